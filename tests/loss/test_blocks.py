"""Sums made block by block are those of all maps at once, and so are their gradients; whatever the blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autosegloss.loss import SurrogateLoss
from autosegloss.loss.kernels import blocks
from autosegloss.loss.relax import RelaxedMaps, one_hot
from autosegloss.metric import any_class, boundary, class_sum, dilate, interpret, pred, target, total
from autosegloss.report.bench_loss import peak_allocated, surrogate
from tests import strategies


def reference(loss: SurrogateLoss, logits: Tensor, labels: Tensor) -> Tensor:
    sums = sums_of_all_maps(loss, logits, labels)
    return interpret.value(loss.expr, sums, loss.classes)


def sums_of_all_maps(loss: SurrogateLoss, logits: Tensor, labels: Tensor) -> interpret.Sums:
    hard, valid = one_hot(labels, logits.shape[1], logits.dtype), (labels >= 0).unsqueeze(1)
    maps = RelaxedMaps(logits.softmax(1), hard, valid, loss.curves, loss.logic, hard_target=True)
    return interpret.sums(loss._nodes, maps)


def rounding_decides(loss: SurrogateLoss, logits: Tensor, labels: Tensor) -> bool:
    """Whether what counts in a mean hangs on a number that is 0 but for rounding, as 1 - (p + 1 - p)."""
    sums = sums_of_all_maps(loss, logits, labels)
    wheres = [where for node in loss.expr.walk() if (where := getattr(node, "where", None)) is not None]
    return any(
        bool(((x != 0) & (x.abs() < 1e-9)).any())
        for x in (interpret._value(where, sums, loss.classes, {}) for where in wheres)
    )


def in_blocks(loss: SurrogateLoss, logits: Tensor, labels: Tensor) -> Tensor:
    sums = blocks.sums(loss._nodes, logits, labels, loss.curves, loss.logic)
    return interpret.value(loss.expr, sums, loss.classes)


def both(loss: SurrogateLoss, logits: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    found = []
    for way in (in_blocks, reference):
        leaf = logits.clone().requires_grad_()
        value = way(loss, leaf, labels)
        gradient = torch.autograd.grad(value, leaf)[0] if value.requires_grad else torch.zeros_like(leaf)
        found.append((value.detach(), gradient))
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is an image and a class or two; else what a test can afford would all be one."""
    monkeypatch.setattr(blocks, "_BLOCK", 40)


@settings(max_examples=40)
@given(
    loss=strategies.losses(classes=st.sampled_from(["metric", "present"])),
    labels=strategies.labels(),
    seed=strategies.seeds,
    block=st.sampled_from([1, 16, 100, 2**16]),
)
def test_blocks_change_nothing(loss: SurrogateLoss, labels: strategies.Labels, seed: int, block: int) -> None:
    _, truth = labels.tensors()
    truth = truth.masked_fill(truth == 255, -1)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(truth), labels.num_classes, *truth.shape[1:])
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    assume(not rounding_decides(loss, logits, truth))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_BLOCK", block)
        (value, gradient), (expected, slope) = both(loss, logits, truth)
    # The two evaluate curves in other steps, which tell in the last digits where a curve is steep.
    torch.testing.assert_close(value, expected.to(value.dtype), rtol=1e-6, atol=1e-9)
    assert (gradient - slope).norm() <= 1e-5 * (1e-5 + slope.norm())


BOUNDARIES = ["biou", "boundary_iou", "boundary_iou_i", "bf1", "bf1_i"]


def batch(*sides: int, classes: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits, and labels of blobs; class 1 is in no image, and a tenth of the pixels is ignored."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, classes, (3, *(-(-side // 3) for side in sides)), generator=generator)
    for axis, side in enumerate(sides, 1):
        labels = labels.repeat_interleave(3, axis).narrow(axis, 0, side)
    labels = labels.masked_fill(labels == 1, 0)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = -1
    return torch.randn(3, classes, *sides, generator=generator, dtype=torch.float64).to(dtype), labels


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", BOUNDARIES)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_boundary_metrics_in_blocks(name: str, dtype: torch.dtype, near: float) -> None:
    for sides in ((13, 10), (5, 4, 6)):
        (value, gradient), (expected, slope) = both(surrogate(name), *batch(*sides, dtype=dtype))
        assert value.dtype == dtype
        torch.testing.assert_close(value, expected, rtol=near, atol=near)
        assert (gradient - slope).norm() <= 10 * near * slope.norm()
        assert slope.norm() > 0


@pytest.mark.usefixtures("small_blocks")
def test_classes_that_a_map_joins_are_made_together() -> None:
    near = dilate(any_class(boundary(pred)), 1)
    loss = SurrogateLoss(class_sum(total(target * near)) / class_sum(total(target)), curve="identity")
    (value, gradient), (expected, slope) = both(loss, *batch(7, 6))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
    assert slope.norm() > 0


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["boundary_iou_i", "bf1"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    logits, labels = batch(3, 3)
    loss = surrogate(name)
    assert torch.autograd.gradcheck(lambda x: in_blocks(loss, x, labels), (logits.requires_grad_(),), atol=1e-6)


def test_half_precision_is_computed_in_float32() -> None:
    logits, labels = batch(13, 10, dtype=torch.bfloat16)
    (value, gradient), _ = both(surrogate("bf1"), logits, labels)
    (expected, slope), _ = both(surrogate("bf1"), logits.float(), labels)
    assert gradient.dtype == torch.bfloat16
    assert value == expected
    torch.testing.assert_close(gradient, slope.bfloat16())


@pytest.mark.usefixtures("fused_path")
def test_the_loss_of_labels_uses_blocks_and_their_memory() -> None:
    """A boundary metric keeps what its gradient is made of; all maps at once are several times as many."""
    logits, labels = batch(96, 96, classes=8, dtype=torch.float32)
    loss, logits = surrogate("bf1"), logits.repeat(4, 1, 1, 1).requires_grad_()
    labels = labels.repeat(4, 1, 1)
    size = logits.numel() * 4
    peak = peak_allocated(lambda x, y: loss(x, y.masked_fill(y < 0, 255)), logits, labels)
    whole = peak_allocated(lambda x, y: reference(loss, x, y), logits, labels)
    cross_entropy = peak_allocated(functional.cross_entropy, logits, labels.clamp(min=0))
    assert size < peak < 4 * cross_entropy
    assert whole > 2.5 * peak


def test_a_batch_of_no_images() -> None:
    logits, labels = batch(7, 6)
    (value, gradient), (expected, slope) = both(SurrogateLoss("bf1"), logits[:0], labels[:0])
    torch.testing.assert_close(value, expected)
    assert gradient.shape == slope.shape


def test_an_and_above_its_or_leaves_no_boundary_and_no_gradient() -> None:
    """Curves of their own may lift AND above OR: there XOR is 0, not negative."""
    lifted, lowered = ((0.1, 0.9),), ((0.9, 0.1),)
    loss = SurrogateLoss("bf1", [lifted, lifted, lowered, lowered])
    logits, labels = batch(13, 10)
    (value, gradient), (expected, slope) = both(loss, 4 * logits, labels)
    p = (4 * logits).softmax(1)
    smallest = -functional.max_pool2d(-p, 3, 1, 1)
    ands, ors = (curve for slot, curve in loss.curves.items() if slot.operand == 0)
    assert (ands(p) * ands(smallest) > ors(p) + ors(smallest) - ors(p) * ors(smallest)).any()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
    assert slope.norm() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("metric", ["bf1", "boundary_iou", "miou"])
def test_a_loss_may_only_be_looked_at(metric: str, mode: type) -> None:
    loss, labels = surrogate(metric), torch.randint(0, 3, (2, 8, 8))
    logits = torch.nn.Conv2d(3, 3, 1)(torch.randn(2, 3, 8, 8))
    with mode():
        seen = loss(logits, labels)
    assert not seen.requires_grad
    assert seen.item() == loss(logits, labels).item()
