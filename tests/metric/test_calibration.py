from __future__ import annotations

import itertools
import pickle
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import InputError, InputTypeError
from autosegloss.metric import Accumulator, CalibrationError
from tests import oracles, strategies
from tests.examples import examples

KINDS = [(classwise, per_image) for classwise in (False, True) for per_image in (False, True)]
kinds = pytest.mark.parametrize(("classwise", "per_image"), KINDS)

# An independent reading ----------------------------------------------------------------------------------------------


def binned(confidence: npt.NDArray[np.float64], true: npt.NDArray[np.bool_], bins: int) -> float:
    """sum_b n_b / n |accuracy_b - confidence_b| of n pixels, bin by bin."""
    edges, error = np.arange(bins + 1) / bins, 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high) | (confidence == 0) & (low == 0)
        if inside.any():
            error += inside.mean() * abs(true[inside].mean() - confidence[inside].mean())
    return float(error)


def numpy_error(
    scores: list[npt.NDArray[np.float64]],
    target: list[npt.NDArray[np.int64]],
    *,
    classwise: bool,
    per_image: bool,
    bins: int = 15,
    ignored: int = 255,
) -> float:
    """The error of images (C, *S) with labels (*S); 0 without a pixel that counts."""
    p = [oracles.softmax(s[None])[0].reshape(len(s), -1) for s in scores]
    y = [t.reshape(-1) for t in target]
    if not per_image:
        p, y = [np.concatenate(p, axis=1)], [np.concatenate(y)]
    errors = []
    for probabilities, labels in zip(p, y, strict=True):
        counted, known = probabilities[:, labels != ignored], labels[labels != ignored]
        if not len(known):
            continue
        if classwise:
            errors.append(np.mean([binned(counted[c], known == c, bins) for c in range(len(counted))]))
        else:
            errors.append(binned(counted.max(0), counted.argmax(0) == known, bins))
    return float(np.mean(errors)) if errors else 0.0


@st.composite
def predictions(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Scores (N, C, *S) float32, labels (N, *S) and C; some scores saturate the softmax."""
    labels = draw(strategies.labels())
    random = np.random.default_rng(draw(strategies.seeds))
    scale = draw(st.sampled_from([0.0, 0.5, 3.0, 300.0]))
    shape = (len(labels.pred), labels.num_classes, *labels.pred.shape[1:])
    scores = torch.from_numpy(scale * random.normal(size=shape)).float()
    return scores, torch.from_numpy(labels.target), labels.num_classes


@examples(150)
@given(given_=predictions(), kind=st.sampled_from(KINDS), bins=st.sampled_from([1, 2, 7, 15, 100]))
def test_it_is_the_definition(given_: Any, kind: tuple[bool, bool], bins: int) -> None:
    scores, target, classes = given_
    classwise, per_image = kind
    error = CalibrationError(classes, classwise=classwise, per_image=per_image, bins=bins)
    error.update(scores, target)
    expected = numpy_error(
        list(scores.double().numpy()), list(target.numpy()), classwise=classwise, per_image=per_image, bins=bins
    )
    assert error.compute() == pytest.approx(expected, abs=1e-8)


def test_by_hand() -> None:
    """Four pixels: three said to be of class 0 at 0.75, two of them right; one at 0.5, of class 1; one ignored."""
    odds, even = [np.log(3), 0.0], [0.0, 0.0]
    scores = torch.tensor([odds, odds, odds, even, odds]).T[None].float()
    target = torch.tensor([[0, 0, 1, 1, 255]])
    for classwise, expected in [
        (False, 3 / 4 * abs(2 / 3 - 3 / 4) + 1 / 4 * abs(0 - 1 / 2)),
        # class 0: 0.75 was true in 2 of 3, 0.5 in 0 of 1; class 1: 0.25 in 1 of 3, 0.5 in 1 of 1
        (True, (3 / 4 * abs(2 / 3 - 3 / 4) + 1 / 4 / 2 + 3 / 4 * abs(1 / 3 - 1 / 4) + 1 / 4 / 2) / 2),
    ]:
        error = CalibrationError(2, classwise=classwise)
        error.update(scores, target)
        assert error.compute() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("bins", [1, 4, 8, 16])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(bins: int) -> None:
    """Two pixels, one at an edge and right, one just above it and wrong: in two bins their errors add."""
    edge = (bins // 2 + 1) / bins
    confidence = torch.tensor([edge, min(edge + 1e-6, 1.0)], dtype=torch.float64)
    scores = torch.stack([confidence, (1 - confidence) / 2, (1 - confidence) / 2]).log()[None]
    error = CalibrationError(3, bins=bins)
    error.update(scores, torch.tensor([[0, 1]]))
    together = abs(float(confidence.mean()) - 1 / 2)
    apart = (1 - edge) / 2 + float(confidence[1]) / 2
    assert error.compute() == pytest.approx(together if edge == 1 else apart, abs=1e-8)


# Calibrated predictions ----------------------------------------------------------------------------------------------


def drawn(images: int, classes: int, pixels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, C, P), and labels (N, P) drawn from the distribution that they say."""
    random = np.random.default_rng(seed)
    scores = 2 * random.normal(size=(images, classes, pixels))
    p = oracles.softmax(scores)
    labels = (random.random((images, 1, pixels)) > p.cumsum(1)).sum(1).clip(max=classes - 1)
    return torch.from_numpy(scores), torch.from_numpy(labels)


def expected_error(p: npt.NDArray[np.float64], bins: int = 15) -> float:
    """What chance makes of n calibrated binary statements of probability p: E|gap_b| = sqrt(2 / pi variance_b)."""
    index = np.ceil(p * bins).astype(int).clip(1) - 1
    variance = np.bincount(index, p * (1 - p), bins)
    return float(np.sqrt(2 / np.pi * variance).sum() / len(p))


@kinds
def test_a_calibrated_prediction_scores_what_chance_makes_of_it(classwise: bool, per_image: bool) -> None:
    images, classes, pixels = 20, 5, 4000
    scores, target = drawn(images, classes, pixels, seed=8)
    p = oracles.softmax(scores.numpy())
    sets = list(p) if per_image else [p.transpose(1, 0, 2).reshape(classes, -1)]
    expected = np.mean(
        [np.mean([expected_error(row) for row in each]) if classwise else expected_error(each.max(0)) for each in sets]
    )
    error = CalibrationError(classes, classwise=classwise, per_image=per_image)
    error.update(scores, target)
    # 0.004 to 0.018 per image; over the data set sqrt(20) = 4.5 times less. The sum over 9 to 15 bins spreads by about
    # a fifth, less where classes or images are averaged.
    assert expected < (0.02 if per_image else 0.005)
    assert expected / 2 < error.compute() < expected * 1.6
    calibrated = error.compute()
    error.reset()
    error.update(3 * scores, target)  # overconfident
    assert error.compute() > 5 * calibrated


def test_more_pixels_take_it_to_0() -> None:
    found = []
    for pixels in (1_000, 16_000, 256_000):
        error = CalibrationError(4)
        error.update(*drawn(1, 4, pixels, seed=1))
        found.append(error.compute())
    assert found[0] > 2 * found[1] > 4 * found[2]
    assert found[2] < 0.003


@pytest.mark.parametrize("classwise", [False, True])
def test_a_large_image(classwise: bool) -> None:
    scores, target = drawn(1, 3, 150_001, seed=1)
    target[:, 40_000:90_000] = 255
    error = CalibrationError(3, classwise=classwise)
    error.update(2 * scores, target)
    expected = numpy_error(list((2 * scores).numpy()), list(target.numpy()), classwise=classwise, per_image=False)
    assert error.compute() == pytest.approx(expected, abs=1e-8)


@kinds
def test_an_image_without_a_pixel_that_counts_does_not_count(classwise: bool, per_image: bool) -> None:
    scores, target = drawn(3, 4, 50, seed=5)
    some, more = (CalibrationError(4, classwise=classwise, per_image=per_image) for _ in range(2))
    some.update(scores, target)
    more.update(torch.cat([scores, scores]), torch.cat([target, torch.full_like(target, 255)]))
    assert more.compute() == some.compute() > 0


# Order, batches and shards -------------------------------------------------------------------------------------------


@examples(40)
@given(given_=predictions(), kind=st.sampled_from(KINDS), data=st.data())
def test_order_batches_and_shards_change_nothing(given_: Any, kind: tuple[bool, bool], data: st.DataObject) -> None:
    scores, target, classes = given_
    whole, *shards = (CalibrationError(classes, classwise=kind[0], per_image=kind[1]) for _ in range(4))
    whole.update(scores, target)
    for image in data.draw(st.permutations(range(len(target)))):
        data.draw(st.sampled_from(shards)).update(scores[image : image + 1], target[image : image + 1])
    merged = shards[0]
    for shard in shards[1:]:
        assert merged.merge(pickle.loads(pickle.dumps(shard))) is merged
    assert merged.compute() == whole.compute()  # equal, not close


def test_reset_forgets_everything() -> None:
    for classwise, per_image in KINDS:
        error = CalibrationError(4, classwise=classwise, per_image=per_image)
        assert error.compute() == 0
        error.update(*drawn(2, 4, 30, seed=0))
        assert error.compute() > 0
        error.reset()
        assert error.compute() == 0


# What is given -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (6,), (3, 4), (2, 3, 4)])
def test_any_floating_type_and_any_number_of_axes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(2)
    scores = torch.from_numpy(random.normal(size=(3, 4, *shape))).to(dtype)
    target = torch.from_numpy(random.integers(0, 4, (3, *shape)))
    error = CalibrationError(4, classwise=True, per_image=True)
    before = scores.clone()
    error.update(scores, target)
    expected = numpy_error(list(scores.double().numpy()), list(target.numpy()), classwise=True, per_image=True)
    assert error.compute() == pytest.approx(expected, abs=1e-8)
    assert torch.equal(scores, before)


def test_a_mask_is_an_ignored_label() -> None:
    scores, target = drawn(3, 4, 50, seed=5)
    mask = torch.from_numpy(np.random.default_rng(0).random((3, 50)) < 0.5)
    for classwise, per_image in KINDS:
        masked, ignored = (CalibrationError(4, classwise=classwise, per_image=per_image) for _ in range(2))
        masked.update(scores, target, mask)
        ignored.update(scores, torch.where(mask, target, 255))
        assert masked.compute() == ignored.compute()


def test_an_impossible_class_has_probability_0() -> None:
    scores = torch.tensor([[[1.0, -np.inf], [0.0, 0.0], [-np.inf, -np.inf]]])
    error = CalibrationError(3, classwise=True)
    error.update(scores, torch.tensor([[0, 1]]))
    p = 1 / (1 + np.exp(-1))
    assert error.compute() == pytest.approx((1 - p) / 2 * 2 / 3, abs=1e-8)


SCORES, LABELS = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("scores", "target", "kind", "expected"),
    [
        ([0], LABELS, InputTypeError, "prediction must be a torch tensor, got list."),
        (LABELS, LABELS, InputTypeError, "prediction must have a floating-point dtype, got torch.int64."),
        (SCORES[:, :2], LABELS, InputError, "scores must have shape (N, 3, *S), one map per class, got (1, 2, 2, 2)."),
        (
            SCORES + torch.tensor([[0.0, np.nan], [0.0, 0.0]]),
            LABELS,
            InputError,
            "scores are NaN at 1 of 4 pixels; no class is the best there.",
        ),
        (
            SCORES + torch.tensor([[0.0, np.inf], [-np.inf, 0.0]]),
            LABELS,
            InputError,
            "scores are infinite at 2 of 4 pixels, without a softmax.",
        ),
        (
            SCORES,
            LABELS + 3,
            InputError,
            "target has labels outside the classes at 4 of 4 pixels: 3; allowed: 0..2 and 255 (ignored).",
        ),
    ],
)
def test_mistakes_in_a_batch(scores: Any, target: Any, kind: type[Exception], expected: str) -> None:
    error = CalibrationError(3)
    error.update(SCORES, LABELS)
    before = error.compute()
    with pytest.raises(kind) as caught:
        error.update(scores, target)
    assert type(caught.value) is kind
    assert str(caught.value) == expected
    assert error.compute() == before


@pytest.mark.parametrize("bins", [0, 1.0, True, 1001])
def test_mistakes_in_the_bins(bins: Any) -> None:
    with pytest.raises(InputError) as caught:
        CalibrationError(3, bins=bins)
    assert str(caught.value) == f"bins must be an integer from 1 to 1000, got {bins!r}."


@pytest.mark.parametrize(
    "other",
    [
        CalibrationError(4),
        CalibrationError(3, classwise=True),
        CalibrationError(3, per_image=True),
        CalibrationError(3, bins=10),
        CalibrationError(3, ignore_index=0),
        Accumulator("miou", 3),
    ],
)
def test_only_the_same_can_be_merged(other: Any) -> None:
    with pytest.raises(InputError, match="only accumulators that count the same can be merged"):
        CalibrationError(3).merge(other)


# A second witness ----------------------------------------------------------------------------------------------------


def test_torchmetrics_agrees_where_it_means_the_same() -> None:
    """The top class over the data set, with an ignored label.

    It differs where a confidence is an edge of a bin: there torchmetrics takes the bin above, and for a confidence of
    exactly 1, which float32 has for every saturated pixel, a bin of its own beyond the last. It has neither the
    class-wise nor the per-image error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics and what it imports
        torchmetrics = pytest.importorskip("torchmetrics.classification")
    scores, target = drawn(4, 5, 700, seed=3)
    scores = (1.7 * scores).float()
    target[:, :100] = 255
    theirs = torchmetrics.MulticlassCalibrationError(5, n_bins=15, norm="l1", ignore_index=255)
    ours = CalibrationError(5)
    for part in (slice(0, 1), slice(1, 4)):
        theirs.update(scores[part], target[part])
        ours.update(scores[part], target[part])
    assert ours.compute() == pytest.approx(theirs.compute().item(), abs=2e-7)

    saturated, close = torch.tensor([[[1e3, 4.0], [0.0, 0.0]]]), torch.tensor([[1, 0]])
    theirs = torchmetrics.MulticlassCalibrationError(2)
    theirs.update(saturated, close)
    ours = CalibrationError(2)
    ours.update(saturated, close)
    p = 1 / (1 + np.exp(-4.0))  # 0.982, in the last bin like 1: said 0.991 on average, and right in one of two
    assert ours.compute() == pytest.approx((1 + p) / 2 - 1 / 2, abs=1e-7)
    assert theirs.compute().item() == pytest.approx((1 + (1 - p)) / 2, abs=1e-6)
