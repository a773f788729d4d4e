"""Training: a pure function of its arguments that learns, and the three regimes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autosegloss.errors import AutoseglossError, InputError, TrainingDiverged
from autosegloss.loss import SurrogateLoss
from autosegloss.proxy.data import Dataset, Split, load_dataset
from autosegloss.proxy.mean_teacher import Unlabelled
from autosegloss.proxy.networks import build_network
from autosegloss.proxy.settings import TrainConfig
from autosegloss.proxy.train import Training, advance_together, initial_network, one_thread, predict, pretrain, train
from tests.processes import seen_by_ranks

cross_entropy = nn.CrossEntropyLoss(ignore_index=255)


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return load_dataset("shapes")


@pytest.fixture(scope="module")
def few(shapes: Dataset) -> Split:
    return Split(shapes.train.images[:24], shapes.train.labels[:24])


@pytest.fixture(scope="module")
def pretrained(shapes: Dataset) -> dict[str, Tensor]:
    return pretrain("unet_small", shapes.train, 6, seed=0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def weights(network: nn.Module | dict[str, Tensor]) -> dict[str, bytes]:
    state = network.state_dict() if isinstance(network, nn.Module) else network
    return {name: weight.contiguous().numpy().tobytes() for name, weight in state.items()}


def scratch(split: Split, seed: int, **settings) -> nn.Module:
    network = initial_network("unet_small", 6, "scratch", None, seed=seed)
    train(network, split, cross_entropy, seed=seed, **{"iterations": 10, **settings})
    return network


def mean_loss(network: nn.Module, split: Split) -> float:
    images = torch.from_numpy(split.images).float() / 127.5 - 1
    with torch.no_grad():
        return cross_entropy(network.eval()(images), torch.from_numpy(split.labels).long()).item()


def iou(labels: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    confusion = np.bincount(classes * target.ravel().astype(int) + labels.ravel(), minlength=classes**2)
    confusion = confusion.reshape(classes, classes)
    both = np.diag(confusion)
    return both / (confusion.sum(axis=0) + confusion.sum(axis=1) - both)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.slow
def test_training_lowers_the_loss(few, optimizer):
    start = mean_loss(scratch(few, seed=0, iterations=1, learning_rate=1e-9), few)
    assert mean_loss(scratch(few, seed=0, iterations=40, optimizer=optimizer), few) < 0.6 * start


@pytest.mark.slow
def test_only_a_better_loss_finds_the_rare_classes(shapes, pretrained):
    """What a search has to find: weights see the curve and the dots, cross-entropy in the default regime does not."""
    network = initial_network("unet_small", 6, "checkpoint", pretrained, seed=1)
    weighted = iou(predict(network, shapes.validation), shapes.validation.labels, 6)
    network = initial_network("unet_small", 6, "encoder", pretrained, seed=1)
    train(network, shapes.train, cross_entropy, seed=1)
    plain = iou(predict(network, shapes.validation), shapes.validation.labels, 6)
    assert (weighted[4:] > 0.2).all()
    assert (plain[4:] < 0.05).all()
    assert (plain[:4] > 0.5).all()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_whatever_the_threads_outside(few, two_threads):
    assert weights(scratch(few, seed=3)) == weights(scratch(few, seed=3))
    assert torch.get_num_threads() == 2
    two = weights(scratch(few, seed=3))
    torch.set_num_threads(1)
    assert weights(scratch(few, seed=3)) == two


def test_another_seed_gives_other_weights_in_each_of_its_uses(few, pretrained):
    assert weights(scratch(few, seed=3)) != weights(scratch(few, seed=4))
    first, second = (initial_network("unet_small", 6, "encoder", pretrained, seed=seed) for seed in (3, 4))
    assert weights(first) != weights(second)
    same = [initial_network("unet_small", 6, "checkpoint", pretrained, seed=0) for _ in range(2)]
    for network, seed in zip(same, (3, 4), strict=True):
        train(network, few, cross_entropy, seed=seed, iterations=3)
    assert weights(same[0]) != weights(same[1])


def test_the_global_generators_neither_matter_nor_move(few):
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.dropout(self.conv(images), training=self.training)

    results = []
    for number in (1, 2):
        torch.manual_seed(number)
        np.random.seed(number)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        pretrained = pretrain("unet_small", few, 6, seed=5, iterations=2)
        network = initial_network("unet_small", 6, "encoder", pretrained, seed=5)
        train(network, few, cross_entropy, seed=5, iterations=2)
        predict(network, few)
        assert torch.equal(torch.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])
        dropped = Dropped()
        nn.init.constant_(dropped.conv.weight, 0.1)
        nn.init.constant_(dropped.conv.bias, 0)
        train(dropped, few, cross_entropy, seed=5, iterations=2)
        results.append((weights(network), weights(dropped)))
    assert results[0] == results[1]


def test_a_regime_keeps_what_it_says(few, pretrained):
    kept = weights(pretrained)
    fresh = weights(initial_network("unet_small", 6, "scratch", None, seed=7))
    assert not any(fresh[name] == kept[name] for name in fresh if name.endswith("0.weight"))
    assert weights(initial_network("unet_small", 6, "checkpoint", pretrained, seed=7)) == kept
    network = initial_network("unet_small", 6, "encoder", pretrained, seed=7)
    expected = {name: (kept if name.startswith("encoder.") else fresh)[name] for name in fresh}
    assert weights(network) == expected
    assert any("running_var" in name for name in expected if name.startswith("encoder."))
    train(network, few, cross_entropy, seed=7, iterations=2)
    assert weights(pretrained) == kept  # trials share it


@pytest.mark.parametrize("regime", ["encoder", "checkpoint"])
def test_a_regime_without_its_weights_is_refused(regime):
    with pytest.raises(InputError) as error:
        initial_network("unet_small", 6, regime, None, seed=0)
    assert str(error.value) == (f"regime `{regime}` needs pretrained weights; call pretrain first.")


def identity() -> nn.Conv2d:
    network = nn.Conv2d(3, 3, kernel_size=1, bias=False)
    nn.init.dirac_(network.weight)
    return network


def test_images_and_labels_stay_together_flipped_half_of_the_time_each_once_an_epoch():
    labels = np.random.default_rng(0).integers(0, 256, (10, 6, 5), dtype=np.uint8)
    seen: list[np.ndarray] = []

    def record(logits: Tensor, target: Tensor) -> Tensor:
        assert target.dtype == torch.int64
        assert torch.equal(((logits + 1) * 127.5).round().long(), target[:, None].expand(-1, 3, -1, -1))
        seen.extend(target.numpy())
        return 0 * logits.sum()

    images = np.repeat(labels[:, None], 3, axis=1)
    train(identity(), Split(images, labels), record, seed=0, iterations=30, batch_size=4)
    assert (labels[:, None].repeat(3, axis=1) == images).all()  # flips do not write into the split
    plain = [[bool((label == shown).all()) for label in labels] for shown in seen]
    turned = [[bool((label[:, ::-1] == shown).all()) for label in labels] for shown in seen]
    which = (np.array(plain) | np.array(turned)).reshape(12, 10, 10)
    assert (which.sum(axis=1) == 1).all()
    assert (which.sum(axis=2) == 1).all()
    assert len({epoch.tobytes() for epoch in which}) > 10
    assert 0.3 < np.sum(turned) / len(seen) < 0.7


def test_the_learning_rate_warms_up_for_a_tenth_and_falls_to_zero():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            values.append(self.scale.item())
            return self.scale * torch.ones_like(images)

    values: list[float] = []
    split = Split(np.zeros((1, 3, 2, 2), np.uint8), np.zeros((1, 2, 2), np.uint8))
    # Adam moves by the learning rate, whatever the size of a constant gradient.
    train(Scale(), split, lambda logits, target: -logits.mean(), seed=0, optimizer="adamw", learning_rate=1e-3)
    moves = np.diff(values) / 1e-3
    iteration = np.arange(len(moves))
    expected = np.minimum(1, (iteration + 1) / 10) * (1 - iteration / 100) ** 0.9
    np.testing.assert_allclose(moves, expected, atol=2e-3)


def test_prediction_is_the_most_probable_class_whatever_the_batch():
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 9, 8), dtype=np.uint8)
    split = Split(images, np.zeros((7, 9, 8), np.uint8))
    for batch_size in (3, 7, 64):
        labels = predict(identity(), split, batch_size)
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, images.argmax(axis=1))


def test_prediction_uses_the_running_statistics(few):
    network = scratch(few, seed=0)
    before = weights(network)
    one_by_one = predict(network, few, batch_size=1)
    assert (one_by_one == predict(network, few)).mean() > 0.999  # equal but for rounding
    assert weights(network) == before


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_iteration(few):
    calls = iter([1.0, 1.0, 1.0, float("nan")])
    network = build_network("unet_small", 3, 6)
    with pytest.raises(TrainingDiverged) as error:
        train(network, few, lambda logits, target: next(calls) * logits.mean(), seed=0, iterations=10)
    assert str(error.value) == (
        "training diverged: the loss is nan at iteration 3 of 10 (sgd, learning rate 0.1). Try a lower learning rate."
    )
    assert isinstance(error.value, AutoseglossError)


def test_a_learning_rate_out_of_all_proportion_diverges(few):
    with pytest.raises(TrainingDiverged):
        scratch(few, seed=0, learning_rate=1e30)


def test_a_last_step_that_breaks_the_weights_is_noticed():
    split = Split(np.ones((1, 3, 2, 2), np.uint8), np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(TrainingDiverged, match=r"`weight` is not finite after iteration 0 of 1"):
        # Finite itself, but its derivative is 0 * infinity.
        train(identity(), split, lambda logits, _: (0 * logits).abs().sqrt().sum(), seed=0, iterations=1)


# Runs that stop and go on


def saved(training: Training) -> dict:
    """The state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(training.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize(
    ("settings", "unlabelled"),
    [
        ({}, False),
        ({"optimizer": "adamw", "precision": "bfloat16"}, False),
        ({"head_multiplier": 3.0}, True),
    ],
)
@pytest.mark.slow
def test_a_run_that_stops_and_goes_on_ends_with_the_same_bytes(few, settings, unlabelled):
    without = Unlabelled(few.images[:8], 1.0, 0.1, 0.9) if unlabelled else None

    def fresh() -> Training:
        network = initial_network("tests.networks:Drawing", 6, "scratch", None, seed=1)
        chosen = TrainConfig(iterations=6, batch_size=4, **settings)
        return Training(network, few, SurrogateLoss("miou"), chosen, seed=5, unlabelled=without)

    with one_thread():  # as trials run: the number of threads may change the last bits
        whole = fresh()
        whole.advance()
        expected = weights(whole.network)
        for stop in range(7):
            torch.manual_seed(stop)  # a generator is not in the state
            first, second = fresh(), fresh()
            first.advance(stop)
            assert first.iteration == stop
            second.load_state_dict(saved(first))
            second.advance()
            assert weights(second.network) == expected
        assert (weights(first.network) == expected) == (stop == 6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_autocast_around_a_run_changes_nothing(few, precision):
    """PyTorch keeps weights in half precision until the outermost autocast ends, also if it is not enabled."""

    def trained() -> dict[str, bytes]:
        network = initial_network("tests.networks:Drawing", 6, "scratch", None, seed=1)
        train(network, few, cross_entropy, seed=5, iterations=4, batch_size=4, precision=precision)
        return weights(network)

    alone = trained()
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert trained() == alone


@pytest.mark.parametrize("network", ["Drawing", "Scribbling"])
@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.slow
def test_runs_side_by_side_are_runs_alone(few, network, unlabelled):
    without = Unlabelled(few.images[:8], 1.0, 0.1, 0.9) if unlabelled else None
    losses = [SurrogateLoss("miou"), SurrogateLoss("gacc"), *([] if unlabelled else [cross_entropy])]  # takes no mask

    def fresh(loss) -> Training:
        start = initial_network(f"tests.networks:{network}", 6, "scratch", None, seed=1)
        chosen = TrainConfig(iterations=6, batch_size=4, augment="full", head_multiplier=2.0)
        return Training(start, few, loss, chosen, seed=5, unlabelled=without)

    beside, alone = ([fresh(loss) for loss in losses] for _ in range(2))
    assert not any(error for stop in (2, None) for error in advance_together(beside, stop))
    for training in alone:
        training.advance()
    found = [weights(training.network) for training in beside]
    assert found == [weights(training.network) for training in alone]
    assert all(one != other for one, other in itertools.pairwise(found))


def one_rank(rank: int, images: int) -> dict:
    split = load_dataset("shapes").train
    few = Split(split.images[:images], split.labels[:images])
    seen: dict = {}
    for name, loss in (
        ("surrogate", SurrogateLoss("miou", curve="identity", reduce_over_ranks=True)),
        ("mean", nn.CrossEntropyLoss()),  # of each rank, averaged; no pixel is ignored
    ):
        network = initial_network("tests.networks:Plain", 6, "scratch", None, seed=1)
        training = Training(network, few, loss, TrainConfig(iterations=5, batch_size=4), seed=2, over_ranks=True)
        training.advance()
        seen[name] = {key: weight.clone().numpy() for key, weight in network.state_dict().items()}
    network = initial_network("tests.networks:Drawing", 6, "scratch", None, seed=1)
    training = Training(network, few, loss, TrainConfig(iterations=2, batch_size=4), seed=2, over_ranks=True)
    training.advance()
    seen["drawing"] = {key: weight.clone().numpy() for key, weight in network.state_dict().items()}
    calls = 0  # two an iteration, one for the auxiliary logits

    def fails(logits: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return logits.mean() * (float("nan") if rank == 1 and calls == 3 else 1.0)

    for key, broken in (
        (
            "diverged",
            lambda: Training(network, few, fails, TrainConfig(batch_size=4), seed=2, over_ranks=True).advance(),
        ),
        ("uneven", lambda: Training(network, few, loss, TrainConfig(batch_size=3), seed=2, over_ranks=True)),
    ):
        try:
            broken()
        except AutoseglossError as error:
            seen[key] = str(error)
    return seen


@pytest.mark.slow
def test_processes_together_are_one_process(tmp_path):
    seen = seen_by_ranks(one_rank, 2, tmp_path, 24)
    split = load_dataset("shapes").train
    few = Split(split.images[:24], split.labels[:24])
    for name, loss in (("surrogate", SurrogateLoss("miou", curve="identity")), ("mean", nn.CrossEntropyLoss())):
        network = initial_network("tests.networks:Plain", 6, "scratch", None, seed=1)
        start = {key: weight.clone() for key, weight in network.state_dict().items()}
        train(network, few, loss, seed=2, iterations=5, batch_size=4)
        for key, weight in network.state_dict().items():
            moved = (weight - start[key]).abs().max().item()
            assert moved > 1e-3 or "idle" in key
            for of_rank in seen:
                np.testing.assert_allclose(of_rank[name][key], weight, atol=1e-3 * moved + 1e-6)
    for key, value in seen[0]["drawing"].items():
        np.testing.assert_array_equal(value, seen[1]["drawing"][key], err_msg=key)  # running statistics too
    for of_rank in seen:
        assert of_rank["diverged"].startswith("training diverged: the loss is nan at iteration 1 of 100")
        assert of_rank["uneven"] == "batch_size must be a multiple of the number of processes, 2, got 3."


def test_float16_is_for_gpus(few):
    with pytest.raises(InputError) as error:
        scratch(few, seed=0, precision="float16")
    assert str(error.value) == "precision must be float32 or bfloat16 on the CPU, got float16."
