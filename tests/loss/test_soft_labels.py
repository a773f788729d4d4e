"""Soft labels and masks: what the two logics make of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autosegloss.errors import InputError, InputTypeError
from autosegloss.loss import SearchSpace, SurrogateLoss
from autosegloss.metric import METRICS, Expr, metric
from autosegloss.metric.labels import check_soft_labels
from tests import oracles, strategies
from tests.examples import examples

OF_BOUNDARIES = ("boundary_iou", "boundary_iou_i", "bf1", "bf1_i")
"""These join `pred` with its own erosion."""
NOT_SMALLEST = (*OF_BOUNDARIES, "precision", "precision_i", "precision_c")
"""The others rise with each AND, fall with each OR and see `pred` nowhere else, whatever the increasing curves."""
SMALLEST = [name for name in METRICS if name not in NOT_SMALLEST]
EVERY_METRIC = pytest.mark.parametrize("name", {build(): name for name, build in reversed(METRICS.items())}.values())


@st.composite
def rising_metrics(draw: st.DrawFn, names: list[str]) -> Expr:
    name, options = draw(st.sampled_from(names)), {}
    if name.startswith("tversky"):
        options = dict(
            zip(("alpha", "beta"), sorted(draw(st.tuples(st.floats(0, 1), st.floats(0.05, 1)))), strict=True)
        )
    if name.startswith("fbeta"):
        options = {"beta": draw(st.floats(1, 3))}
    if name.endswith(("_i", "_c")) and draw(st.booleans()):
        options["worst"] = 0.5
    return metric(name, **options)


def curved(draw: st.DrawFn, expr: Expr, logic: Any = "godel") -> SurrogateLoss:
    """Strictly increasing curves."""
    space = SearchSpace(expr, draw(st.sampled_from(["bezier", "linear"])), draw(st.integers(1, 3)))
    theta = draw(strategies.thetas(space, moderate=True))
    classes = draw(st.sampled_from(["metric", "all", "present"]))
    return SurrogateLoss.from_theta(expr, theta, space.pieces, curve=space.curve, logic=logic, classes=classes)


def value_and_gradient(loss: nn.Module, logits: Tensor, *target: Tensor | None) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *target)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def random_batch(seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, soft labels, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 6, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, 6, 7), generator=generator)
    soft = torch.rand(2, classes, 6, 7, generator=generator, dtype=torch.float64)
    soft = soft / soft.sum(1, keepdim=True)
    return logits, labels, soft, torch.rand(2, 6, 7, generator=generator) < 0.6


# Where the loss is smallest -------------------------------------------------------------------------------------------


@examples(150)
@given(data=st.data(), truth=strategies.soft_targets(), seed=strategies.seeds, masked=st.booleans())
@pytest.mark.slow
def test_godel_is_smallest_where_the_prediction_is_the_soft_target(
    data: st.DataObject, truth: Tensor, seed: int, masked: bool
) -> None:
    loss = curved(data.draw, data.draw(rising_metrics(SMALLEST)))
    generator = torch.Generator().manual_seed(seed)
    shape = (truth.shape[0], *truth.shape[2:])
    mask = torch.rand(shape, generator=generator) < 0.7 if masked else None
    best = truth.log()  # -inf where the target is 0
    smallest = loss(best, truth, mask).item()
    noise = torch.randn(6, *truth.shape, generator=generator, dtype=torch.float64)
    others = [best + scale * x for scale, x in zip((1e-4, 1e-2, 0.3, 3.0), noise[:4], strict=True)]
    hard = 1e4 * nn.functional.one_hot(truth.argmax(1), truth.shape[1]).movedim(-1, 1)
    others += [noise[4], 5 * noise[5], torch.zeros_like(best), hard, best.clamp(min=-9)]
    losses = [loss(other.to(torch.float64), truth, mask).item() for other in others]
    assert min(losses) > smallest - 1e-12
    if max(losses) == min(losses) == 1:
        return  # no pixel counts, as without a boundary for `trimap_iou`
    if all(curve.is_identity for curve in loss.curves.values()) and loss.classes == "present" and mask is None:
        assert smallest == pytest.approx(0, abs=1e-12)


@examples(80)
@given(
    data=st.data(),
    truth=strategies.soft_targets().filter(lambda truth: bool((truth > 1e-6).all())),
    seed=strategies.seeds,
)
def test_no_other_prediction_is_as_good(data: st.DataObject, truth: Tensor, seed: int) -> None:
    names = [name for name in SMALLEST if name not in ("trimap_iou", "biou")]  # which looks at some pixels only
    expr = data.draw(rising_metrics(names).filter(lambda expr: "image_worst" not in str(expr)))  # at some images only
    loss = curved(data.draw, expr)
    smallest = loss(truth.log(), truth).item()
    generator = torch.Generator().manual_seed(seed)
    for scale in (1e-3, 0.1, 1.0):
        direction = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
        moved = torch.rand(truth.shape[0], 1, *truth.shape[2:], generator=generator) < 0.5
        moved.view(-1)[0] = True
        other = truth.log() + scale * direction * moved  # at some pixels
        change = (other.softmax(1) - truth).abs().sum().item() / (truth.numel() / truth.shape[1])
        # The loss has an edge there: it rises as fast as the prediction goes away.
        assert loss(other, truth).item() - smallest > 1e-6 * change


def test_identity_curves_are_0_at_the_soft_target() -> None:
    truth = torch.tensor([[[0.6, 0.1], [0.3, 0.1], [0.1, 0.8]]], dtype=torch.float64)
    for name in ("jaccard", "dice", "precision_c", "miou_i", "fwiou", "gacc", "recall", "fbeta"):
        loss = SurrogateLoss(name, logic="godel")
        assert loss(truth.log(), truth).item() == pytest.approx(0, abs=1e-12)
        assert loss(truth.log() + torch.eye(3)[0].view(1, 3, 1), truth).item() > 0.01
    loss = SurrogateLoss(metric("tversky", alpha=1.5, beta=0.2), logic="godel")
    assert loss(truth.log(), truth).item() == pytest.approx(0, abs=1e-12)


def test_product_prefers_a_hard_prediction_to_the_soft_target() -> None:
    truth = torch.tensor([[[0.6, 0.1], [0.4, 0.9]]], dtype=torch.float64)
    loss = SurrogateLoss("jaccard", logic="product")
    assert loss(100 * truth.log(), truth) < loss(truth.log(), truth) - 0.1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tversky", {"alpha": 0.9, "beta": 0.1}),
        ("tversky", {"alpha": 1, "beta": 3}),
        ("precision", {}),
        ("fbeta", {"beta": 0.3}),
    ],
)
def test_weights_that_curves_can_turn_around(name: str, options: dict[str, float]) -> None:
    """Why the law asks for weights: U - T and T - I of curved sums may be negative, and then count the wrong way."""
    truth = torch.tensor([[[0.5, 0.45], [0.5, 0.55]]], dtype=torch.float64)
    expr = metric(name, **options)
    low, high = (0.9, 0.1), (0.1, 0.9)
    worse = []
    for points in ([[low], [low]], [[high], [high]], [[low], [high]], [[high], [low]]):
        loss = SurrogateLoss(expr, points, curve="linear", logic="godel")
        smallest = loss(truth.log(), truth).item()
        others = [torch.tensor([[[a, b], [0, 0]]], dtype=torch.float64) for a in (-4, 0, 4) for b in (-4, 0, 4)]
        worse.append(min(loss(other, truth).item() for other in others) < smallest - 1e-3)
    assert any(worse)


# Hard labels ----------------------------------------------------------------------------------------------------------


@EVERY_METRIC
@examples(8)
@given(data=st.data(), labels=strategies.labels(), seed=strategies.seeds)
@pytest.mark.slow
def test_on_hard_labels_the_two_logics_agree(
    name: str, data: st.DataObject, labels: strategies.Labels, seed: int
) -> None:
    losses = [curved(data.draw, metric(name), logic="product")]
    losses.append(
        SurrogateLoss(
            losses[0].expr, losses[0].control_points, logic="godel", curve=losses[0].curve, classes=losses[0].classes
        )
    )
    _, truth = labels.tensors()
    shape = (len(truth), labels.num_classes, *truth.shape[1:])
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if labels.num_classes == 1 or name in OF_BOUNDARIES:
        logits = labels.scores()  # `pred` and its erosion are both soft; and a single class has probability 1
        (product, _), (godel, _) = (value_and_gradient(loss, logits, truth) for loss in losses)
    else:
        (product, gradient), (godel, of_godel) = (value_and_gradient(loss, logits, truth) for loss in losses)
        torch.testing.assert_close(of_godel, gradient, rtol=1e-9, atol=1e-12)
    assert godel.item() == pytest.approx(product.item(), abs=1e-12)


@pytest.mark.parametrize("name", OF_BOUNDARIES)
def test_where_pred_meets_its_own_erosion_the_two_logics_differ(name: str) -> None:
    logits, labels, _, _ = random_batch()
    product, godel = (SurrogateLoss(name, logic=logic)(logits, labels).item() for logic in ("product", "godel"))
    assert abs(product - godel) > 1e-3


# Values and masks -----------------------------------------------------------------------------------------------------


@examples(40)
@given(seed=strategies.seeds, weights=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)), classes=st.integers(2, 5))
def test_soft_labels_are_those_of_the_oracle(seed: int, weights: tuple[float, float], classes: int) -> None:
    logits, _, soft, mask = random_batch(seed, classes)
    loss = SurrogateLoss(metric("tversky", alpha=weights[0], beta=weights[1]), logic="godel", classes="all")
    theirs = oracles.jdt_loss(logits.numpy(), soft.numpy(), *weights)
    assert loss(logits, soft).item() == pytest.approx(theirs, abs=1e-12)
    # A mask leaves pixels out.
    kept = [x.movedim(1, -1)[mask].T.unsqueeze(0) for x in (logits, soft)]
    theirs = oracles.jdt_loss(kept[0].numpy(), kept[1].numpy(), *weights)
    assert loss(logits, soft, mask).item() == pytest.approx(theirs, abs=1e-12)


@EVERY_METRIC
@pytest.mark.parametrize("logic", ["product", "godel"])
@pytest.mark.slow
def test_a_mask_is_another_spelling_of_ignore_index(name: str, logic: Any) -> None:
    logits, labels, _, mask = random_batch()
    space = SearchSpace(metric(name))
    theta = torch.rand(space.dimension, generator=torch.Generator().manual_seed(2)).tolist()
    loss = SurrogateLoss.from_theta(name, theta, logic=logic)
    marked = torch.where(mask, labels, 255)
    value, gradient = value_and_gradient(loss, logits, marked)
    one_hot = nn.functional.one_hot(labels, 3).movedim(-1, 1)
    undefined = torch.where(mask.unsqueeze(1), one_hot, torch.nan)
    beyond = torch.where(mask, labels, 77)
    for target, where in ((labels, mask), (beyond, mask.unsqueeze(1)), (one_hot.double(), mask), (undefined, mask)):
        masked, of_masked = value_and_gradient(loss, logits, target, where)
        assert masked.item() == pytest.approx(value.item(), abs=1e-12)
        torch.testing.assert_close(of_masked, gradient, rtol=1e-9, atol=1e-12)
    twice, _ = value_and_gradient(loss, logits, torch.where(labels == 1, 255, labels), mask)
    once, _ = value_and_gradient(loss, logits, torch.where(labels == 1, 255, marked))
    assert twice.item() == once.item()


@EVERY_METRIC
@pytest.mark.parametrize("logic", ["product", "godel"])
def test_masked_pixels_have_no_gradient(name: str, logic: Any) -> None:
    logits, _, soft, mask = random_batch()
    soft = torch.where(mask.unsqueeze(1), soft, torch.nan).requires_grad_()
    loss = SurrogateLoss(name, logic=logic)
    leaf = logits.clone().requires_grad_()
    of_logits, of_soft = torch.autograd.grad(loss(leaf, soft, mask), (leaf, soft))
    assert bool(of_logits.isfinite().all() & of_soft.isfinite().all())
    assert bool((of_soft.movedim(1, -1)[~mask] == 0).all())
    assert bool(of_logits.any())
    assert bool(of_soft.any())
    if name != "bf1":  # which counts ignored pixels
        if "bf1" not in name and "boundary" not in name:
            assert bool((of_logits.movedim(1, -1)[~mask] == 0).all())
        nothing, none = value_and_gradient(loss, logits, soft.detach(), torch.zeros_like(mask))
        assert bool(nothing.isfinite())
        assert not bool(none.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_soft_labels_of_any_floating_type(dtype: torch.dtype) -> None:
    logits, _, soft, mask = random_batch()
    rounded = soft.to(dtype)
    for of_logits in (torch.float32, torch.float64, torch.bfloat16):
        expected = SurrogateLoss("miou", logic="godel")(logits.to(of_logits), rounded.double(), mask)
        value = SurrogateLoss("miou", logic="godel")(logits.to(of_logits), rounded, mask)
        assert value.dtype == (torch.float64 if of_logits == torch.float64 else torch.float32)
        assert value.item() == expected.item()


def test_what_the_check_gives_back() -> None:
    soft = torch.tensor([[[0.25, torch.nan], [0.75, 9.0]]], dtype=torch.float16)
    checked, valid = check_soft_labels(soft, (1, 2, 2), torch.float64, torch.tensor([[True, False]]))
    assert checked.dtype == torch.float64
    assert checked.tolist() == [[[0.25, 0], [0.75, 0]]]
    assert valid is not None
    assert valid.tolist() == [[[True, False]]]
    assert check_soft_labels(torch.ones(1, 2, 1) / 2, (1, 2, 1), torch.float32)[1] is None


# Mistakes: the text is golden -----------------------------------------------------------------------------------------

LOGITS = torch.zeros(1, 3, 2, 2)
SOFT = torch.full((1, 3, 2, 2), 1 / 3)
LABELS = torch.zeros(1, 2, 2, dtype=torch.int64)


@pytest.mark.parametrize("target", [SOFT, LABELS], ids=["soft", "labels"])
@pytest.mark.parametrize(
    ("mask", "kind", "expected"),
    [
        (
            torch.ones(1, 2, 2),
            InputTypeError,
            "mask must be a boolean tensor, True where a pixel counts, got torch.float32.",
        ),
        ([[True]], InputTypeError, "mask must be a boolean tensor, True where a pixel counts, got list."),
        (
            torch.ones(1, 3, 2, 2, dtype=torch.bool),
            InputError,
            "mask must have shape (1, 2, 2) or (1, 1, 2, 2), got (1, 3, 2, 2).",
        ),
    ],
)
def test_masks_that_are_none(target: Tensor, mask: Any, kind: type[Exception], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        SurrogateLoss("miou")(LOGITS, target, mask)
    assert type(caught.value) is kind
    assert str(caught.value) == expected


@pytest.mark.parametrize("wrong", [-0.001, 1.001, torch.nan, torch.inf])
def test_a_mask_hides_no_mistake_elsewhere(wrong: float) -> None:
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = False
    for place, good in (((0, 1, 0, 0), True), ((0, 1, 0, 1), False)):
        target = SOFT.clone()
        target[place] = wrong
        if good:
            assert bool(SurrogateLoss("miou")(LOGITS, target, mask).isfinite())
            continue
        with pytest.raises(InputError, match=r"at 1 of 4 pixels"):
            SurrogateLoss("miou")(LOGITS, target, mask)
