from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from autosegloss.errors import InputError, InputTypeError
from autosegloss.loss.classic import (
    CLASSICS,
    BoundaryCrossEntropy,
    CrossEntropy,
    Focal,
    class_counts,
    class_weights,
    generalized_dice,
)
from tests import oracles, strategies
from tests.examples import examples

COUNTS = [50, 20, 5]
EVERY = pytest.mark.parametrize("name", CLASSICS)
SOFT = (
    "cross_entropy",
    "weighted_cross_entropy",
    "inverse_weighted_cross_entropy",
    "label_smoothing",
    "generalized_dice",
    "log_miou",
)
HARD_ONLY = ("focal", "boundary_cross_entropy")
NO_SCORE = {"generalized_dice": 1.0, "log_miou": 1.0}  # the loss of nothing, where it is not 0


def batch(*shape: int, classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (N, C, *S) and labels (N, *S), a tenth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.1] = 255
    return torch.randn(shape[0], classes, *shape[1:], generator=generator, dtype=torch.float64).to(dtype), labels


def one_hot(labels: Tensor, classes: int = 3) -> Tensor:
    return torch.stack([labels == c for c in range(classes)], 1).double()


def gradient(loss: nn.Module, logits: Tensor, *target: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *target)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def random_logits(labels: strategies.Labels, seed: int) -> Any:
    shape = (len(labels.pred), labels.num_classes, *labels.pred.shape[1:])
    return np.random.default_rng(seed).normal(scale=2, size=shape)


# What every one of them keeps -----------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_it_is_computed_in_full_precision_also_under_autocast(name: str, dtype: torch.dtype) -> None:
    loss, (logits, labels) = CLASSICS[name](255, COUNTS), batch(2, 5, 7, dtype=dtype)
    value = loss(logits, labels)
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(loss(logits.double(), labels).item(), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, labels), value)


@EVERY
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_are_finite_and_right(name: str, scale: float) -> None:
    loss, (logits, labels) = CLASSICS[name](255, COUNTS), batch(2, 3, 4)
    if scale == 1:
        assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.requires_grad_())
    for dtype in (torch.float32, torch.float64):
        value, slope = gradient(loss, (scale * logits).to(dtype), labels)
        assert value.isfinite()
        assert slope.isfinite().all()


@EVERY
def test_without_a_pixel_that_counts_there_is_no_gradient(name: str) -> None:
    loss, (logits, labels) = CLASSICS[name](255, COUNTS), batch(2, 3, 4, dtype=torch.float32)
    nothing = torch.zeros_like(labels, dtype=torch.bool)
    for inputs in ((logits, torch.full_like(labels, 255)), (logits, labels, nothing), (logits[:0], labels[:0])):
        value, slope = gradient(loss, *inputs)
        assert value.item() == NO_SCORE.get(name, 0.0)
        assert not slope.any()
    if name in SOFT:
        value, slope = gradient(loss, logits, one_hot(labels), nothing)
        assert value.item() == NO_SCORE.get(name, 0.0)
        assert not slope.any()


@EVERY
@pytest.mark.parametrize("shape", [(2,), (2, 5), (2, 5, 3), (2, 4, 3, 2)], ids=str)
def test_any_number_of_spatial_axes_and_a_channel_axis(name: str, shape: tuple[int, ...]) -> None:
    loss, (logits, labels) = CLASSICS[name](255, COUNTS), batch(*shape)
    flat = loss(logits.flatten(2), labels.flatten(1)) if len(shape) > 1 else loss(logits, labels)
    if name != "boundary_cross_entropy":  # the only one that knows who is whose neighbour
        assert loss(logits, labels).item() == pytest.approx(flat.item(), rel=1e-12)
    assert torch.equal(loss(logits, labels.unsqueeze(1)), loss(logits, labels))


@EVERY
def test_a_mask_is_another_spelling_of_an_ignored_label(name: str) -> None:
    loss, (logits, labels) = CLASSICS[name](255, COUNTS), batch(2, 5, 7)
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    expected = loss(logits, torch.where(mask, labels, 255))
    rubbish = torch.where(mask, labels, -77)
    assert torch.equal(loss(logits, rubbish, mask), expected)
    assert torch.equal(loss(logits, rubbish, mask.unsqueeze(1)), expected)
    assert expected.item() != pytest.approx(loss(logits, labels).item(), rel=1e-6)
    other = CLASSICS[name](1, COUNTS)  # one of the classes may be the one ignored
    assert other(logits, labels.clamp(max=2)).item() == pytest.approx(
        loss(logits, torch.where(labels.clamp(max=2) == 1, 255, labels.clamp(max=2))).item(), rel=1e-12
    )


@pytest.mark.parametrize("name", SOFT)
def test_a_soft_label_of_zeros_and_ones_is_a_label(name: str) -> None:
    loss, (logits, labels) = CLASSICS[name](255, COUNTS), batch(2, 5, 7)
    value, slope = gradient(loss, logits, labels)
    assert math.isclose(loss(logits, one_hot(labels), labels != 255).item(), value.item(), rel_tol=1e-12)
    for dtype in (torch.float16, torch.float32):
        rubbish = torch.where((labels == 255).unsqueeze(1), math.nan, one_hot(labels).to(dtype))
        masked, masked_slope = gradient(loss, logits, rubbish, labels != 255)
        assert math.isclose(masked.item(), value.item(), rel_tol=1e-12)
        torch.testing.assert_close(masked_slope, slope)


@pytest.mark.parametrize("name", HARD_ONLY)
def test_soft_labels_without_a_meaning_are_refused(name: str) -> None:
    logits, labels = batch(2, 5, 7)
    loss = CLASSICS[name](255, COUNTS)
    with pytest.raises(InputTypeError) as caught:
        loss(logits, one_hot(labels.clamp(max=2)))
    assert str(caught.value) == (
        f"{type(loss).__name__} is not defined for soft labels: the target must have an integer dtype, got "
        "torch.float64."
    )


@EVERY
@pytest.mark.parametrize(
    ("change", "kind", "expected"),
    [
        (lambda x, y: (x, y + 1), InputError, "target has labels outside the classes at"),
        (lambda x, y: (x, y[:, :4]), InputError, "target must have shape (2, 5, 7) or (2, 1, 5, 7), got (2, 4, 7)."),
        (lambda x, y: (x, y == 1), InputTypeError, "target must have an integer dtype, got torch.bool."),
        (
            lambda x, y: (x, y.numpy()),
            InputTypeError,
            "target must be a torch tensor of integer labels, got ndarray.",
        ),
        (lambda x, y: (x, y, y), InputTypeError, "mask must be a boolean tensor"),
        (
            lambda x, y: (x.long(), y),
            InputTypeError,
            "logits must be a floating-point tensor (N, C, *S)",
        ),
        (lambda x, y: (x[0, 0, 0], y), InputError, "logits must have shape (N, C, *S), got (7,)."),
        (
            lambda x, y: (x.numpy(), y),
            InputTypeError,
            "logits must be a floating-point tensor (N, C, *S) of scores, got ndarray.",
        ),
    ],
)
def test_mistakes_in_a_batch(name: str, change: Any, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        CLASSICS[name](255, COUNTS)(*change(*batch(2, 5, 7)))
    assert str(caught.value).startswith(expected)


@EVERY
def test_it_can_be_copied_and_has_nothing_to_save(name: str) -> None:
    loss, (logits, labels) = CLASSICS[name](255, COUNTS), batch(2, 5, 7)
    assert not loss.state_dict()
    assert torch.equal(copy.deepcopy(loss)(logits, labels), loss(logits, labels))


# Cross-entropy --------------------------------------------------------------------------------------------------------


@examples(60)
@given(
    labels=strategies.labels(images=(1, 3)),
    seed=strategies.seeds,
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
)
def test_cross_entropy_is_that_of_torch(labels: strategies.Labels, seed: int, smoothing: float, weighted: bool) -> None:
    logits, target = torch.from_numpy(random_logits(labels, seed)), torch.from_numpy(labels.target)
    weight = torch.rand(labels.num_classes, dtype=torch.float64) + 0.1 if weighted else None
    value = CrossEntropy(weight, smoothing)(logits, target)
    if bool((target == 255).all()):
        assert value.item() == 0  # torch: NaN
        return
    expected = functional.cross_entropy(logits, target, weight, ignore_index=255, label_smoothing=smoothing)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)


@examples(40)
@given(soft=strategies.soft_targets(), seed=strategies.seeds, smoothing=st.sampled_from([0.0, 0.2]))
def test_soft_cross_entropy_is_that_of_torch(soft: Tensor, seed: int, smoothing: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=soft.shape))
    expected = functional.cross_entropy(logits, soft, label_smoothing=smoothing)
    assert CrossEntropy(label_smoothing=smoothing)(logits, soft).item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_soft_label_weighs_its_shares() -> None:
    logits = torch.zeros(1, 2, 3, dtype=torch.float64)
    logits[0, 1] = torch.tensor([0.0, 1.0, 5.0])
    soft = torch.tensor([[[0.5, 0.2, 0.0], [0.5, 0.8, 0.0]]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    weight = [2.0, 3.0]
    log_p = logits.log_softmax(1)[0].tolist()
    top = 2 * (0.5 * log_p[0][0] + 0.2 * log_p[0][1]) + 3 * (0.5 * log_p[1][0] + 0.8 * log_p[1][1])
    expected = -top / (2 * (0.5 + 0.2) + 3 * (0.5 + 0.8))
    assert CrossEntropy(weight)(logits, soft, mask).item() == pytest.approx(expected, rel=1e-12)
    _, slope = gradient(CrossEntropy(weight, label_smoothing=0.1), logits, soft, mask)
    assert not slope[..., 2].any()


@pytest.mark.parametrize(
    ("build", "kind", "expected"),
    [
        (
            lambda: CrossEntropy([1, -1]),
            InputError,
            "weight must be finite and at least 0 for each class, got [1.0, -1.0].",
        ),
        (
            lambda: Focal(weight=[1, math.nan]),
            InputError,
            "weight must be finite and at least 0 for each class, got [1.0, nan].",
        ),
        (
            lambda: CrossEntropy([[1.0]]),
            InputError,
            "weight must be finite and at least 0 for each class, got [[1.0]].",
        ),
        (lambda: CrossEntropy("ab"), InputTypeError, "weight must be a list of numbers, one for each class, got 'ab'."),
        (
            lambda: CrossEntropy([1.0, 2.0])(*batch(1, 2)),
            InputError,
            "weight has 2 numbers; the logits have 3 classes.",
        ),
        (
            lambda: CrossEntropy(label_smoothing=1.5),
            InputError,
            "label_smoothing must be a number from 0 to 1, got 1.5.",
        ),
        (lambda: Focal(-1), InputError, "gamma must be a number of at least 0, got -1."),
        (lambda: Focal("2"), InputError, "gamma must be a number of at least 0, got '2'."),
        (lambda: BoundaryCrossEntropy(math.inf), InputError, "factor must be a number of at least 0, got inf."),
        (
            lambda: BoundaryCrossEntropy(radius=1.5),
            InputError,
            "radius must be an integer of at least 0 pixels, got 1.5.",
        ),
    ],
)
def test_mistakes_in_the_arguments(build: Any, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        build()
    assert str(caught.value).startswith(expected)


# Focal, boundaries ----------------------------------------------------------------------------------------------------


@examples(40)
@given(labels=strategies.labels(images=(1, 3)), seed=strategies.seeds, gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_focal_is_that_of_the_oracle(labels: strategies.Labels, seed: int, gamma: float) -> None:
    logits = random_logits(labels, seed)
    weight = np.random.default_rng(seed).uniform(0.1, 2, labels.num_classes)
    value = Focal(gamma, weight.tolist())(torch.from_numpy(logits), torch.from_numpy(labels.target))
    expected = oracles.weighted_pixel_loss(
        logits, labels.target, lambda p: -((1 - p) ** gamma) * np.log(p), lambda label, _: weight[label]
    )
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if gamma == 0:
        plain = CrossEntropy(weight.tolist())(torch.from_numpy(logits), torch.from_numpy(labels.target))
        assert value.item() == pytest.approx(plain.item(), rel=1e-12)


@examples(40)
@given(
    labels=strategies.labels(images=(1, 2)),
    seed=strategies.seeds,
    factor=st.sampled_from([0.0, 1.0, 10.0]),
    radius=st.integers(0, 3),
)
def test_boundary_cross_entropy_is_that_of_the_oracle(
    labels: strategies.Labels, seed: int, factor: float, radius: int
) -> None:
    logits, target = random_logits(labels, seed), labels.target
    value = BoundaryCrossEntropy(factor, radius)(torch.from_numpy(logits), torch.from_numpy(target))
    expected = oracles.weighted_pixel_loss(
        logits,
        target,
        lambda p: -np.log(p),
        lambda _, at: factor if oracles.has_other_class_near(target, at, radius, 255) else 1.0,
    )
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_ignored_pixels_and_the_border_are_no_boundary() -> None:
    logits, _ = batch(1, 6, 6)
    labels = torch.zeros(1, 6, 6, dtype=torch.int64)
    labels[:, 2:4] = 255
    plain = CrossEntropy()(logits, labels)
    assert BoundaryCrossEntropy(10, 5)(logits, labels).item() == pytest.approx(plain.item(), rel=1e-12)
    labels[:, 5] = 1
    assert BoundaryCrossEntropy(10, 5)(logits, labels).item() != pytest.approx(plain.item(), rel=1e-3)


# Generalised Dice -----------------------------------------------------------------------------------------------------


@examples(40)
@given(labels=strategies.labels(images=(1, 3)), seed=strategies.seeds)
def test_generalized_dice_is_that_of_the_oracle(labels: strategies.Labels, seed: int) -> None:
    logits = random_logits(labels, seed)
    value = generalized_dice()(torch.from_numpy(logits), torch.from_numpy(labels.target))
    assert value.item() == pytest.approx(oracles.generalized_dice_loss(logits, labels.target), abs=1e-9)


@examples(20)
@given(soft=strategies.soft_targets(), seed=strategies.seeds)
def test_generalized_dice_of_soft_labels_is_that_of_the_oracle(soft: Tensor, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=soft.shape)
    value = generalized_dice()(torch.from_numpy(logits), soft)
    assert value.item() == pytest.approx(oracles.generalized_dice_loss(logits, soft.numpy()), abs=1e-9)


def test_generalized_dice_is_that_of_monai_where_every_class_is_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what warns while it is imported is not ours
        losses = pytest.importorskip("monai.losses")
    theirs = losses.GeneralizedDiceLoss(
        softmax=True, to_onehot_y=True, batch=True, w_type="square", smooth_nr=0, smooth_dr=0
    )
    logits, labels = batch(3, 7, 9, classes=4)
    labels = labels.clamp(max=3)
    expected = theirs(logits, labels.unsqueeze(1)).item()
    assert generalized_dice()(logits, labels).item() == pytest.approx(expected, rel=1e-6)  # MONAI counts in float32
    # Of an absent class MONAI lets any probability weigh as much as that of the rarest class present.
    labels = labels.clamp(max=2)
    assert generalized_dice()(logits, labels).item() < theirs(logits, labels.unsqueeze(1)).item()


# Class weights --------------------------------------------------------------------------------------------------------


def test_class_weights_agree_with_a_hand_count() -> None:
    maps = [np.array([[0, 0, 0, 0, 1, 255]], np.uint8), torch.tensor([0, 0, 0, 0, 0, 3])]  # 9, 1, 0 and 1 pixels
    assert class_counts(maps, 4) == [9, 1, 0, 1]
    mean = (1 / 9 + 1 + 1) / 3
    expected = [1 / 9 / mean, 1 / mean, 1.0, 1 / mean]
    assert class_weights(maps, 4).tolist() == pytest.approx(expected, rel=1e-6)
    mean = (1 / 3 + 1 + 1) / 3
    expected = [1 / 3 / mean, 1 / mean, 1.0, 1 / mean]
    assert class_weights(maps, 4, "sqrt_inverse").tolist() == pytest.approx(expected, rel=1e-6)
    assert class_weights(maps, 4, "uniform").tolist() == [1, 1, 1, 1]
    assert class_weights(iter(maps), 4, ignore_index=255).dtype == torch.float32
    assert class_weights([], 2).tolist() == [1, 1]


def test_inverse_weights_make_every_class_that_occurs_count_alike() -> None:
    _, labels = batch(4, 9, 9, classes=4)
    weights = class_weights(labels, 5)
    shares = [(weights[c] * (labels == c).sum()).item() for c in range(4)]
    assert shares == pytest.approx([shares[0]] * 4, rel=1e-6)
    assert weights[:4].mean().item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "options", "kind", "expected"),
    [
        (
            [torch.tensor([0]), torch.tensor([7])],
            {},
            InputError,
            "label map 1 has labels outside the classes at 1 of 1",
        ),
        ([np.array([0.5])], {}, InputTypeError, "label map 0 must have an integer dtype, got torch.float64."),
        ([torch.tensor([0])], {"kind": "cube"}, InputError, "kind is 'cube'; allowed: inverse, sqrt_inverse, uniform."),
    ],
)
def test_mistakes_in_class_weights(labels: Any, options: Any, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        class_weights(labels, 3, **options)
    assert str(caught.value).startswith(expected)


def test_what_is_no_label_map_is_named() -> None:
    with pytest.raises(InputTypeError, match="label map 1 can't be converted to a tensor, got str"):
        class_counts([np.zeros(3, int), "a"], 3)
