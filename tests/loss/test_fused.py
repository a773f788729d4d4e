"""The fused path: equal to plain autograd for any metric, with nothing as large as the logits kept."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from autosegloss.loss import SearchSpace, SurrogateLoss, fuse
from autosegloss.loss.curve import Curve, points_from_theta
from autosegloss.metric import METRICS, Expr, class_mean, dilate, erode, interpret, metric, per_image, pred, target
from autosegloss.metric import total as sum_of
from tests import strategies

POINTWISE = [name for name in METRICS if "bf1" not in name and "boundary" not in name]


def loss_of(expr: Expr | str, **options: Any) -> SurrogateLoss:
    """A loss with curves of two uneven pieces each."""
    theta = [0.3, 0.6, 0.4, 0.7, 0.2, 0.55] * len(SearchSpace(metric(expr)).curves)
    return SurrogateLoss.from_theta(expr, theta, **options)


def batch(*shape: int, classes: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (N, C, *S) and labels (N, *S): the last class absent, a tenth ignored."""
    generator = torch.Generator().manual_seed(sum(shape))
    labels = torch.randint(0, max(1, classes - 1), shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.1] = 255
    return (3 * torch.randn(shape[0], classes, *shape[1:], generator=generator, dtype=torch.float64)).to(dtype), labels


def on_both_paths(loss: SurrogateLoss, logits: Tensor, *rest: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Value and gradient of the fused path and of the reference."""
    found = []
    for fused in (True, False):
        loss.fused = fused
        leaf = logits.detach().clone().requires_grad_()
        value = loss(leaf, *rest)
        if value.requires_grad:
            value.backward()
        found.append((value.detach(), leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)))
    return found


def assert_equal_paths(loss: SurrogateLoss, logits: Tensor, *rest: Tensor, gradients: float = 1e-5) -> None:
    (value, gradient), (reference, expected) = on_both_paths(loss, logits, *rest)
    assert value.dtype == reference.dtype
    assert gradient.dtype == expected.dtype == logits.dtype
    torch.testing.assert_close(value, reference, rtol=0, atol=1e-6)
    assert (gradient - expected).norm() <= gradients * (1e-9 + expected.norm())


def walks(loss: SurrogateLoss) -> tuple[fuse.Walk, ...]:
    return fuse.plan(interpret.statistics(loss.expr, loss.classes), loss.curves)


# The plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POINTWISE)
def test_every_sum_of_a_pointwise_metric_fuses_into_one_walk(name: str) -> None:
    loss = loss_of(name)
    (walk,) = walks(loss)
    assert list(walk.forms) == list(interpret.statistics(loss.expr))
    assert len(walk.atoms.inside) == 1
    assert len(walk.atoms.outside) == (0 if name.startswith(("gacc", "macc", "recall")) else 1)


@pytest.mark.parametrize(
    ("node", "fuses"),
    [
        (sum_of(pred & target), True),
        (sum_of(~pred ^ target), True),
        (sum_of(2 * (pred - target) + 3 * (pred | target)), True),
        (sum_of((pred & target) | target, within=~(pred & target) & target), True),
        (sum_of(pred, within=dilate(target, 1) * target), False),  # a mask of each class
        (sum_of(pred & pred), False),
        (sum_of(pred * (pred | target)), False),
        (sum_of(erode(pred) & target), False),
        (sum_of(target, void="keep"), True),  # 0 at ignored pixels
        (sum_of(pred, void="keep"), False),
    ],
    ids=str,
)
def test_what_fuses(node: Any, fuses: bool) -> None:
    loss = loss_of(class_mean(node + sum_of(pred)))
    assert any(node in walk.forms for walk in walks(loss)) is fuses
    assert_equal_paths(loss, *batch(2, 6, 5))


@given(theta=st.lists(st.floats(0, 1), min_size=6, max_size=6), kind=st.sampled_from(["bezier", "linear"]))
def test_a_mirrored_curve_is_the_curve_of_one_minus_x(theta: list[float], kind: Any) -> None:
    curve = Curve(kind, points_from_theta(theta))
    x = torch.linspace(0.013, 0.987, 50, dtype=torch.float64)
    knots = torch.tensor([0.0, *(u for u, _ in curve.points), 1.0], dtype=torch.float64)
    x = x[((x - (1 - knots).unsqueeze(1)).abs() > 1e-6).all(0)]  # a jump has no value of its own
    torch.testing.assert_close(curve.mirrored(x), 1 - curve(1 - x), rtol=0, atol=1e-6)


# Both paths -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    a_map=strategies.pointwise_maps(),
    within=st.none() | strategies.pointwise_truth_maps(),
    each=st.booleans(),
    seed=strategies.seeds,
    labels=strategies.labels(),
    options=st.fixed_dictionaries(
        {"logic": st.sampled_from(["product", "godel"]), "classes": st.sampled_from(["metric", "all", "present"])}
    ),
)
def test_random_maps_fuse_to_the_same(
    a_map: Expr, within: Expr | None, each: bool, seed: int, labels: strategies.Labels, options: dict[str, Any]
) -> None:
    summed = (per_image if each else sum_of)(a_map, within=within)
    value = class_mean((sum_of(pred & target) + summed) / 1000 / (1 + sum_of(pred | target)))
    expr = value if "image" not in value.axes else metric(f"image_mean({value})")
    assume(summed.soft)
    space = SearchSpace(expr, ("bezier", "linear")[seed % 2], 2)
    generator = torch.Generator().manual_seed(seed)
    theta = 0.05 + 0.9 * torch.rand(space.dimension, generator=generator, dtype=torch.float64)
    loss = SurrogateLoss(expr, space.control_points(theta.tolist()), curve=space.curve, **options)
    _, truth = labels.tensors()
    shape = (len(truth), labels.num_classes, *truth.shape[1:])
    assert_equal_paths(loss, 3 * torch.randn(shape, generator=generator, dtype=torch.float64), truth)


@settings(max_examples=40)
@given(
    loss=strategies.losses(classes=st.sampled_from(["metric", "all", "present"]), moderate=True),
    labels=strategies.labels(),
    masked=st.booleans(),
    seed=strategies.seeds,
)
def test_random_metrics_are_the_same_on_both_paths(
    loss: SurrogateLoss, labels: strategies.Labels, masked: bool, seed: int
) -> None:
    _, truth = labels.tensors()
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(truth), labels.num_classes, *truth.shape[1:], generator=generator, dtype=torch.float64)
    mask = [torch.rand(truth.shape, generator=generator) < 0.7] if masked else []
    assert_equal_paths(loss, logits, truth, *mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
@pytest.mark.parametrize("name", ["miou", "macc", "biou"])
def test_layouts_and_dtypes(name: str, layout: str, dtype: torch.dtype) -> None:
    logits, labels = batch(3, 24, 20, dtype=dtype)
    if layout == "channels last":
        logits = logits.to(memory_format=torch.channels_last)
    if layout == "strided":
        logits = logits.transpose(2, 3).contiguous().transpose(2, 3)
    assert_equal_paths(loss_of(name), logits, labels, gradients=1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0), (3,), (2, 3, 3, 3), (300, 4), (1, 90, 90)], ids=str)
@pytest.mark.parametrize("classes", [1, 5])
def test_shapes_and_blocks(shape: tuple[int, ...], classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autosegloss.loss.kernels.moments_cpu._BLOCK", 2**10)
    assert_equal_paths(loss_of("miou"), *batch(*shape, classes=classes))
    if shape[0]:
        assert_equal_paths(loss_of("dice_i"), *batch(*shape, classes=classes))


@pytest.mark.parametrize(
    "points",
    [[(0.0, 1.0)], [(1.0, 0.0)], [(0.5, 0.5)], [(0.0, 0.3), (0.0, 0.6), (0.4, 0.6)], [(1, 0), (1, 0.5), (1, 1)]],
)
def test_curves_that_start_or_end_steeply_or_jump(points: Any) -> None:
    loss = SurrogateLoss("miou", [points, points])
    logits, labels = batch(2, 8, 8)
    logits[:, :, 0], logits[:, :, 1] = 0, 1e4 * logits[:, :, 1]
    assert_equal_paths(loss, logits, labels)


@pytest.mark.parametrize(
    "expr", ["miou", "macc_i", class_mean(sum_of(~(pred & target) ^ target) / sum_of(pred | target))]
)
def test_finite_differences(expr: Any) -> None:
    loss = loss_of(expr)
    logits, labels = batch(2, 3, 3)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits.requires_grad_(),), atol=1e-6)


# What it promises -----------------------------------------------------------------------------------------------------


def test_threads_change_no_bit() -> None:
    logits, labels = batch(2, 128, 128, classes=9, dtype=torch.float32)
    loss, threads, found = loss_of("miou"), torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(on_both_paths(loss, logits, labels)[0])
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["miou", "macc", "dice_i", "biou"])
def test_nothing_as_large_as_the_logits_is_kept(name: str) -> None:
    logits, labels = batch(2, 40, 40, classes=9, dtype=torch.float32)
    leaf, kept = logits.requires_grad_(), []
    loss = loss_of(name)

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() != leaf.untyped_storage().data_ptr():
            kept.append(x.numel())
        return x

    for fused in (True, False):
        loss.fused = fused
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss(leaf, labels)
        assert (max(kept) < leaf.numel()) is fused


@pytest.mark.usefixtures("fused_path")
def test_the_choice_of_the_path_is_copied() -> None:
    loss = SurrogateLoss("miou")
    assert loss.fused
    loss.fused = False
    assert not pickle.loads(pickle.dumps(loss)).fused
