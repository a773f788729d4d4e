"""Labels that are not hard: what they are, that training sees them so, and that held-back ones stay unseen."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autosegloss.errors import DataError
from autosegloss.loss.classic import CrossEntropy
from autosegloss.proxy.batches import BatchPlan, batch
from autosegloss.proxy.data import Dataset, Split, load_dataset
from autosegloss.proxy.labels import LABELS, LabelTask, build_labels, near_boundary
from autosegloss.proxy.mean_teacher import MeanTeacher, Unlabelled
from autosegloss.proxy.networks import build_network
from autosegloss.proxy.train import initial_network, train
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import SearchConfig, StudyConfig, as_config

HALF = 5e-4  # what half precision leaves of a share


def few(dataset: Dataset, images: int = 16) -> Dataset:
    train = dataset.train
    annotations = None if train.annotations is None else train.annotations[:images]
    return replace(dataset, train=Split(train.images[:images], train.labels[:images].copy(), annotations))


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return few(load_dataset("shapes"))


@pytest.fixture(scope="module")
def annotated() -> Dataset:
    return few(load_dataset("shapes", annotators=3))


def soften(dataset: Dataset, name: str, seed: int = 0, **options: Any) -> np.ndarray:
    def train_teacher(iterations: int) -> nn.Module:
        raise AssertionError("these labels need no network")

    soft = build_labels(name, **options).soften(LabelTask(dataset, "unet_small", seed), train_teacher)
    assert soft is not None
    assert soft.dtype == np.float16
    return soft.astype(np.float64)


def one_hot(labels: np.ndarray, classes: int = 6) -> np.ndarray:
    return np.moveaxis(np.eye(256)[labels][..., :classes], -1, -3)


def with_void(dataset: Dataset) -> Dataset:
    labels = dataset.train.labels.copy()
    labels[:, 10:14] = 255
    return replace(dataset, train=replace(dataset.train, labels=labels))


def config(**proxy: Any) -> StudyConfig:
    short = {"start": {"iterations": 3}, "train": {"iterations": 3, "batch_size": 4}}
    return as_config({"metric": "miou", "proxy": short | proxy})


# What the labels are


def test_smoothed_labels_give_a_share_to_all_classes(shapes):
    soft = soften(shapes, "smoothed", amount=0.3)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=6 * HALF)
    np.testing.assert_allclose(soft, 0.7 * one_hot(shapes.train.labels) + 0.05, atol=HALF)


@pytest.mark.parametrize("radius", [1, 2])
def test_smoothing_at_boundaries_is_near_boundaries_only(shapes, radius):
    labels = shapes.train.labels[:3]
    near = np.zeros(labels.shape, bool)
    for n, row, column in np.ndindex(labels.shape):
        window = labels[n, max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]
        near[n, row, column] = (window != labels[n, row, column]).any()
    assert 0.02 < near.mean() < 0.6
    soft = soften(few(shapes, 3), "smoothed", amount=0.3, where="boundary", radius=radius)
    hard = one_hot(labels)
    expected = np.where(near[:, None], 0.7 * hard + 0.05, hard)
    np.testing.assert_allclose(soft, expected, atol=HALF)


def test_an_ignored_pixel_makes_no_boundary():
    labels = np.array([[[1, 1, 255, 2, 2, 2], [1, 1, 255, 2, 2, 2]]], np.uint8)
    assert not near_boundary(labels, 1).any()
    np.testing.assert_array_equal(near_boundary(labels, 2)[0, 0], [False, True, False, True, False, False])
    assert not near_boundary(np.zeros((2, 3, 3), np.uint8), 5).any()


def teacher_file(folder: Path, seed: int = 5) -> tuple[Path, nn.Module]:
    torch.manual_seed(seed)
    teacher = build_network("unet_small", 3, 6)
    with torch.no_grad():
        teacher.head.weight *= 100  # so that it says something
    torch.save(teacher.state_dict(), folder / "teacher.pt")
    return folder / "teacher.pt", teacher.eval()


def test_distilled_labels_are_those_of_the_teacher_in_the_file(shapes, tmp_path):
    path, teacher = teacher_file(tmp_path)
    soft = soften(shapes, "distilled", teacher=str(path), temperature=3.0, share=0.25)
    with torch.no_grad():
        logits = teacher(torch.from_numpy(shapes.train.images).float() / 127.5 - 1).double().numpy()
    powers = np.exp(logits / 3)
    said = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(soft, 0.75 * one_hot(shapes.train.labels) + 0.25 * said, atol=HALF)
    assert said.std(axis=(0, 2, 3)).max() > 0.02


@pytest.mark.slow
def test_a_teacher_of_the_study_is_its_proxy_trained_longer_with_cross_entropy(shapes):
    settings = config(labels={"name": "distilled", "iterations": 20, "temperature": 1.5, "share": 1.0})
    proxy = replace(proxy_of(settings), dataset=shapes)
    prepared, again = proxy.prepare(), proxy.prepare()
    plain = replace(proxy, settings=config().proxy).prepare()
    assert weights(prepared.pretrained) == weights(plain.pretrained)
    teacher = initial_network("unet_small", 6, "encoder", plain.pretrained, seed=0)
    train(teacher, shapes.train, nn.CrossEntropyLoss(ignore_index=255), seed=0, iterations=20, batch_size=4)
    with torch.no_grad():
        logits = teacher.eval()(torch.from_numpy(shapes.train.images).float() / 127.5 - 1)
    soft = prepared.dataset.train.soft
    assert soft is not None
    np.testing.assert_allclose(soft, (logits / 1.5).softmax(1).numpy(), atol=2 * HALF)
    np.testing.assert_array_equal(soft, again.dataset.train.soft)
    other = replace(proxy, seed=1).prepare()
    assert not np.array_equal(soft, other.dataset.train.soft)


def test_averaged_labels_are_the_shares_of_the_annotators_who_say_something():
    annotations = np.array([[[[0, 1, 255]], [[0, 2, 255]], [[0, 2, 255]], [[1, 255, 255]]]], np.uint8)
    images = np.zeros((1, 3, 1, 3), np.uint8)
    dataset = Dataset("toy", ("a", "b", "c"), 255, *[Split(images, annotations[:, 0], annotations)] * 3)
    expected = np.zeros((1, 3, 1, 3))
    for column in range(3):
        said = [annotations[0, who, 0, column] for who in range(4) if annotations[0, who, 0, column] != 255]
        for label in said:
            expected[0, label, 0, column] += 1 / len(said)
    np.testing.assert_allclose(soften(dataset, "averaged"), expected, atol=HALF)
    # Where nobody says anything, the hard label does.
    labelled = Split(images, np.array([[[0, 1, 2]]], np.uint8), annotations)
    expected[0, 2, 0, 2] = 1
    np.testing.assert_allclose(soften(replace(dataset, train=labelled), "averaged"), expected, atol=HALF)


@pytest.mark.slow
def test_annotators_move_boundaries_and_the_labels_are_their_majority(annotated):
    true, split = load_dataset("shapes"), annotated.train
    assert split.annotations is not None
    assert split.annotations.shape == (16, 3, 64, 64)
    votes = one_hot(split.annotations).sum(axis=1)
    best = votes.max(axis=1)
    for label in range(6):  # the winner has as many votes as any, and no lower class has
        chosen = split.labels == label
        assert (votes[:, label][chosen] == best[chosen]).all()
        assert (votes[:, :label].max(axis=1, initial=0)[chosen] < best[chosen]).all()
    moved = split.annotations != true.train.labels[:16, None]
    assert 0.02 < moved.mean() < 0.2
    assert not moved[:, 0][~near_boundary(true.train.labels[:16], 6)].any()
    assert (split.annotations[:, 0] != split.annotations[:, 1]).any()
    again = load_dataset("shapes", annotators=3)
    np.testing.assert_array_equal(again.train.annotations[:16], split.annotations)
    fewer = load_dataset("shapes", annotators=2)
    np.testing.assert_array_equal(fewer.train.annotations, again.train.annotations[:, :2])
    assert "simulated" in again.note
    assert not true.note
    for name in ("heldout", "validation"):
        np.testing.assert_array_equal(getattr(again, name).labels, getattr(true, name).labels)
    np.testing.assert_array_equal(again.train.images, true.train.images)


# What training sees


def test_soft_labels_are_flipped_as_the_images_and_ignored_pixels_are_masked():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (10, 6, 5), dtype=np.uint8)
    labels[3, 2, 1:3] = 255
    images = np.repeat(labels[:, None], 3, axis=1)
    soft = (np.repeat(labels[:, None], 3, axis=1) / 256).astype(np.float16)
    split = Split(images, labels, soft=soft)
    draws = BatchPlan.draw(rng, 10, iterations=20, batch_size=4)
    masked = 0
    for iteration in range(20):
        shown, target, *mask = batch(split, draws, iteration, torch.device("cpu"))
        assert target.dtype == torch.float32
        torch.testing.assert_close((shown + 1) * 127.5, target * 256, atol=1e-3, rtol=0)
        there = 3 in draws.order[iteration]
        assert len(mask) == there
        if there:
            torch.testing.assert_close(mask[0], target[:, 0] * 256 != 255)
            masked += 1
    assert masked >= 7
    assert draws.flips.any()
    assert not draws.flips.all()
    np.testing.assert_array_equal(split.soft, soft)


@pytest.mark.parametrize("labels", [{"name": "smoothed"}, {"name": "distilled", "iterations": 3}, {"name": "averaged"}])
@pytest.mark.slow
def test_a_trial_learns_from_the_soft_labels_and_repeats(annotated, labels):
    # The whole way from the configuration, with fewer images.
    proxy = replace(proxy_of(config(labels=labels, data={"name": "shapes", "annotators": 3})), dataset=annotated)
    plain = replace(proxy, settings=config().proxy).prepare()
    prepared = proxy.prepare()
    assert prepared.dataset.train.soft is not None
    assert plain.dataset.train.soft is None
    assert weights(prepared.pretrained) == weights(plain.pretrained)  # which sees hard labels
    loss = CrossEntropy()
    first, again, hard = (weights(proxy.trained(loss, 1).state_dict()) for proxy in (prepared, proxy.prepare(), plain))
    assert first == again
    assert first != hard


def weights(state: dict[str, Tensor] | None) -> dict[str, bytes]:
    assert state is not None
    return {name: weight.contiguous().numpy().tobytes() for name, weight in state.items()}


def test_hard_labels_are_the_labels(shapes):
    assert build_labels("hard").divide(LabelTask(shapes, "unet_small", 0)) == (shapes.train, None)
    prepared = replace(proxy_of(config()), dataset=with_void(shapes)).prepare()
    _, target, *rest = batch(
        prepared.dataset.train, BatchPlan.draw(np.random.default_rng(0), 16, 1, 2), 0, torch.device("cpu")
    )
    assert target.dtype == torch.int64
    assert not rest


# Semi-supervised


@pytest.mark.slow
def test_held_back_labels_are_never_seen(monkeypatch):
    settings = config(labels={"name": "pseudo", "labelled": 0.1, "threshold": 0.2})
    clean = proxy_of(settings)
    assert len(clean.dataset.train.images) == round(0.1 * 256)
    assert clean.unlabelled is not None
    kept = {image.tobytes() for image in clean.dataset.train.images}
    assert len(kept) + len({image.tobytes() for image in clean.unlabelled.images} - kept) == 256

    def corrupted(name: str, **options: Any) -> Dataset:
        dataset = load_dataset(name, **options)
        labels = dataset.train.labels.copy()
        for number, image in enumerate(dataset.train.images):
            if image.tobytes() not in kept:
                labels[number] = 5 - labels[number]
        return replace(dataset, train=replace(dataset.train, labels=labels))

    before = clean.prepare()
    monkeypatch.setattr("autosegloss.proxy.trial.load_dataset", corrupted)
    after = proxy_of(settings).prepare()
    assert weights(before.pretrained) == weights(after.pretrained)
    assert before(CROSS_ENTROPY, 1) == after(CROSS_ENTROPY, 1)
    other = proxy_of(settings.model_copy(update={"search": SearchConfig(seed=1)}))
    assert {image.tobytes() for image in other.dataset.train.images} != kept  # the study's seed draws them


class Line(nn.Module):
    """One weight, one running statistic, one counter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(images))
        return out


def test_the_teacher_is_the_moving_average_of_all_weights_and_statistics():
    torch.manual_seed(0)
    network = Line()
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    teacher = MeanTeacher(network, Unlabelled(images, 1.0, 0.0, 0.75), seed=0, iterations=8, batch_size=2)
    expected = {name: weight.double() for name, weight in network.state_dict().items()}
    for iteration in range(8):
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn_like(weight))
        network(torch.randn(2, 3, 4, 4))
        teacher.follow(network, iteration)
        momentum = min(1 - 1 / (iteration + 1), 0.75)
        for name, weight in network.state_dict().items():
            expected[name] = momentum * expected[name] + (1 - momentum) * weight.double()
    for name, weight in teacher.average.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert weight == 8
        else:
            torch.testing.assert_close(weight.double(), expected[name], atol=1e-5, rtol=1e-5)
    assert not teacher.average.training
    assert not any(weight.requires_grad for weight in teacher.average.parameters())


def test_the_teacher_labels_unflipped_images_and_a_loss_is_ramped_up_and_masked():
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 3, padding=1)
    with torch.no_grad():
        network.weight *= 5
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 5), dtype=np.uint8)
    unlabelled = Unlabelled(images, weight=2.0, threshold=0.6, momentum=0.9)
    teacher = MeanTeacher(network, unlabelled, seed=3, iterations=8, batch_size=6)
    plain = torch.from_numpy(images).float() / 127.5 - 1
    with torch.no_grad():
        said = copy.deepcopy(network)(plain).softmax(1)
    seen: list[bool] = []

    def record(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        assert not target.requires_grad
        for shown, labels, counts in zip(logits, target, mask, strict=True):
            turned = [bool(torch.allclose(labels, own.flip(-1))) for own in said]
            straight = [bool(torch.allclose(labels, own)) for own in said]
            flipped = any(turned)
            number = (turned if flipped else straight).index(True)
            image = plain[number].flip(-1) if flipped else plain[number]
            torch.testing.assert_close(shown, network(image[None])[0])
            assert torch.equal(counts, labels.max(0).values >= 0.6)
            seen.append(flipped)
        assert 0 < mask.float().mean() < 1
        return logits.mean() * 0 + 1

    values = [teacher.loss(network, record, iteration).item() for iteration in range(8)]
    assert values == pytest.approx([0, 0.5, 1, 1.5, 2, 2, 2, 2])
    assert 0.2 < np.mean(seen) < 0.8


def test_unlabelled_images_change_a_run_but_not_its_labelled_batches(shapes):
    seen: list[list[bytes]] = []

    def run(unlabelled: Unlabelled | None) -> dict[str, bytes]:
        targets: list[bytes] = []

        def loss(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
            if mask is None:
                targets.append(target.numpy().tobytes())
            return CrossEntropy()(logits, target, mask)

        torch.manual_seed(0)
        network = build_network("unet_small", 3, 6)
        train(network, shapes.train, loss, seed=1, iterations=4, batch_size=4, unlabelled=unlabelled)
        seen.append(targets)
        return weights(network.state_dict())

    without = Unlabelled(shapes.validation.images[:16], 1.0, 0.0, 0.9)
    results = [run(None), run(without), run(without)]
    assert results[1] == results[2] != results[0]
    assert seen[0] == seen[1] == seen[2]


# Refusals


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"name": "smothed"}, "unknown labels `smothed` (did you mean `smoothed`?); known: " + ", ".join(LABELS) + "."),
        (
            {"name": "smoothed", "amonut": 0.1},
            "labels `smoothed`: unknown option `amonut` (did you mean `amount`?); allowed: amount, where, radius.",
        ),
        ({"name": "hard", "amount": 0.1}, "labels `hard`: unknown option `amount`; allowed: none."),
        (
            {"name": "smoothed", "amount": 1.5},
            "labels `smoothed`: amount must be a number from 0 to 1, got 1.5.",
        ),
        ({"name": "smoothed", "where": "edge"}, "labels `smoothed`: where must be everywhere or boundary, got 'edge'."),
        (
            {"name": "smoothed", "radius": 0.5},
            "labels `smoothed`: radius must be an integer of at least 1, got 0.5.",
        ),
        (
            {"name": "distilled", "temperature": "hot"},
            "labels `distilled`: temperature must be a number of at least 0.01, got 'hot'.",
        ),
        (
            {"name": "distilled", "teacher": "absent.pt"},
            "labels `distilled`: absent.pt: can't be read: No such file or directory.",
        ),
        ({"name": "distilled", "teacher": 3}, "labels `distilled`: teacher must be the path of a file, got 3."),
        (
            {"name": "pseudo", "labelled": 0.001},
            "labels `pseudo`: labelled must leave images with and without labels, got 0.001: "
            "0 of 256 images with labels.",
        ),
        ({"name": "pseudo", "weight": True}, "labels `pseudo`: weight must be a number of at least 0, got True."),
        (
            {"name": "averaged"},
            "labels `averaged`: data set `shapes` has no annotators; for `shapes`, set proxy.data.annotators.",
        ),
    ],
)
@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_anything_is_trained(labels, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        proxy_of(config(labels=labels))
    assert str(error.value) == message


@pytest.mark.slow
def test_a_file_that_is_no_teacher_is_refused(tmp_path):
    path = tmp_path / "teacher.pt"
    path.write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"labels `distilled`: .*teacher\.pt: not a weights file: "):
        proxy_of(config(labels={"name": "distilled", "teacher": str(path)}))
    for content, problem in (
        (build_network("unet_small", 3, 5).state_dict(), " must hold all weights of the study's network"),
        ({"weight": 3}, ": must hold a mapping from names to tensors"),
        ([1], ": must hold a mapping from names to tensors"),
        ({"head.weight": torch.full((2,), torch.nan)}, ": `head.weight` is NaN or infinite in 2 of its 2 numbers"),
    ):
        torch.save(content, path)
        with pytest.raises(DataError, match=rf"labels `distilled`: .*teacher\.pt{problem}"):
            proxy_of(config(labels={"name": "distilled", "teacher": str(path)}))
