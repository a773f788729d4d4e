from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autosegloss.errors import ExprError, InputError, InputTypeError, ParseError
from autosegloss.loss import SearchSpace, SurrogateLoss
from autosegloss.metric import METRICS, any_class, image_worst, metric, per_image, pred, target, total
from tests import strategies
from tests.examples import examples

LOGIC = pytest.mark.parametrize("logic", ["product", "godel"])
CLASSES = pytest.mark.parametrize("classes", ["metric", "all", "present"])
EVERY_METRIC = pytest.mark.parametrize("name", {build(): name for name, build in reversed(METRICS.items())}.values())
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
WORST = image_worst(METRICS["miou_i"]().operands[0], 0.5)


def curved(expr: Any, seed: int = 1, **options: Any) -> SurrogateLoss:
    """A loss with steep random curves."""
    space = SearchSpace(metric(expr))
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(space.dimension, generator=generator, dtype=torch.float64).tolist()
    return SurrogateLoss.from_theta(expr, theta, **options)


def batch(*shape: int, classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (N, C, *S) and labels (N, *S), a tenth of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.1] = 255
    return torch.randn(shape[0], classes, *shape[1:], generator=generator, dtype=torch.float64).to(dtype), labels


def value_and_gradient(loss: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, labels)
    if not value.requires_grad:  # `pred` says which classes count and nothing else
        return value, torch.zeros_like(logits)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


# Gradients ------------------------------------------------------------------------------------------------------------


@EVERY_METRIC
@LOGIC
@pytest.mark.slow
def test_every_entry_passes_gradcheck(name: str, logic: Any) -> None:
    expr = metric(name, radius=1) if name in ("biou", "trimap_iou", "bf1") else metric(name)
    space = SearchSpace(expr, pieces=1)
    loss = SurrogateLoss.from_theta(expr, [0.3 + 0.1 * (i % 4) for i in range(space.dimension)], 1, logic=logic)
    logits, labels = batch(2, 3, 3, seed=5)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits.requires_grad_(),), atol=1e-6)


@EVERY_METRIC
@LOGIC
@DTYPES
@pytest.mark.slow
def test_gradients_are_finite_at_extreme_logits(name: str, logic: Any, dtype: torch.dtype) -> None:
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        logits, labels = batch(2, 4, 5, seed=seed)
        space = SearchSpace(metric(name), ("bezier", "linear")[seed % 2], 2)  # type: ignore[arg-type]
        theta = torch.rand(space.dimension, generator=generator, dtype=torch.float64)
        theta = torch.where(torch.rand(space.dimension, generator=generator) < 0.5, theta.round(), theta)
        theta[::3] *= 10.0 ** -(4 * seed)
        loss = SurrogateLoss.from_theta(name, theta.tolist(), 2, curve=space.curve, logic=logic)
        for extreme in (
            50 * logits.sign(),
            torch.full_like(logits, 50),
            torch.where(logits > 1, 50, -50),
            1e4 * logits,
        ):
            value, gradient = value_and_gradient(loss, extreme.to(dtype), labels)
            assert value.dtype == dtype
            assert bool(torch.isfinite(value))
            assert -1e-6 <= value.item() <= 1 + 1e-6
            assert bool(torch.isfinite(gradient).all())


@examples(60)
@given(
    loss=strategies.losses(),
    labels=strategies.labels(),
    extreme=st.sampled_from([0.0, 1.0, 50.0]),
    seed=strategies.seeds,
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_loss_has_finite_gradients(
    loss: SurrogateLoss, labels: strategies.Labels, extreme: float, seed: int, dtype: torch.dtype
) -> None:
    _, truth = labels.tensors()
    shape = (len(truth), labels.num_classes, *truth.shape[1:])
    logits = extreme * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    value, gradient = value_and_gradient(loss, logits, truth)
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.slow
def test_descent_reaches_the_target() -> None:
    """The sign of the gradient, for every entry: following it from nothing labels the map rightly."""
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 255]]])
    named = {
        metric(name, background=True) if name in ("biou", "trimap_iou", "bf1") else metric(name): name
        for name in METRICS
    }
    for expr, name in named.items():
        loss = SurrogateLoss(expr)
        logits = 0.01 * torch.randn(1, 3, 3, 4, generator=torch.Generator().manual_seed(2))
        logits.requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.2)
        first = loss(logits, labels).item()
        for _ in range(60):
            optimizer.zero_grad()
            loss(logits, labels).backward()
            optimizer.step()
        assert loss(logits, labels).item() < 0.5 * first, name


# Nothing to see -------------------------------------------------------------------------------------------------------


@EVERY_METRIC
@LOGIC
@CLASSES
@DTYPES
@pytest.mark.slow
def test_all_pixels_ignored_is_no_gradient(name: str, logic: Any, classes: Any, dtype: torch.dtype) -> None:
    logits, labels = batch(2, 4, 5, dtype=dtype)
    for loss in (SurrogateLoss(name, logic=logic, classes=classes), curved(name, logic=logic, classes=classes)):
        value, gradient = value_and_gradient(loss, logits, torch.full_like(labels, 255))
        assert value.item() == 1
        assert torch.equal(gradient, torch.zeros_like(gradient))


@EVERY_METRIC
@LOGIC
@CLASSES
@DTYPES
@pytest.mark.slow
def test_absent_classes_and_an_ignored_image_are_finite(
    name: str, logic: Any, classes: Any, dtype: torch.dtype
) -> None:
    logits, labels = batch(3, 5, 6, classes=4, dtype=dtype)
    labels[labels == 3] = 1  # absent in all images
    labels[1, labels[1] == 2] = 0  # absent in one
    labels[2] = 255
    for loss in (SurrogateLoss(name, logic=logic, classes=classes), curved(name, logic=logic, classes=classes)):
        value, gradient = value_and_gradient(loss, logits, labels)
        assert 0 <= value.item() <= 1
        assert bool(torch.isfinite(gradient).all())
        assert bool((gradient != 0).any())
        if name != "bf1":  # which counts ignored pixels
            assert torch.equal(gradient[2], torch.zeros_like(gradient[2]))


@EVERY_METRIC
def test_no_image_and_no_pixel_are_finite(name: str) -> None:
    for shape in ((0, 3, 4, 4), (2, 3, 0, 4)):
        logits = torch.zeros(shape)
        value, gradient = value_and_gradient(
            SurrogateLoss(name), logits, torch.zeros(shape[0], *shape[2:], dtype=torch.long)
        )
        assert bool(torch.isfinite(value))
        assert gradient.shape == shape


def test_which_classes_a_mean_counts() -> None:
    # Class 0 is perfect, class 1 absent from the target and predicted, class 2 in neither.
    logits = 1e4 * torch.tensor([[[1.0, 1, -1], [-1, -1, 1], [-1, -1, -1]]])
    labels = torch.tensor([[0, 0, 255]])
    scores = {c: 1 - SurrogateLoss("miou", classes=c)(logits, labels).item() for c in ("metric", "all", "present")}
    assert scores == pytest.approx({"metric": 1, "all": 1 / 3, "present": 1})
    labels = torch.tensor([[0, 0, 0]])
    scores = {c: 1 - SurrogateLoss("miou", classes=c)(logits, labels).item() for c in ("metric", "all", "present")}
    assert scores == pytest.approx({"metric": (2 / 3 + 0) / 2, "all": 2 / 9, "present": 2 / 3})
    # `present` is of the batch for totals, of each image for what is per image.
    logits = 1e4 * torch.tensor([[[1.0, -1], [-1, 1]], [[1.0, 1], [-1, -1]]])
    labels = torch.tensor([[0, 0], [1, 0]])
    batch_wise = 1 - SurrogateLoss("miou", classes="present")(logits, labels).item()
    image_wise = 1 - SurrogateLoss("miou_i", classes="present")(logits, labels).item()
    assert batch_wise == pytest.approx((2 / 4 + 0) / 2)
    assert image_wise == pytest.approx((1 / 2 + (1 / 2 + 0) / 2) / 2)


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    logits, labels = batch(2, 9, 8, dtype=torch.float32)
    for loss in (curved("miou"), curved("bf1", logic="godel")):
        expected, gradient = value_and_gradient(loss, logits, labels)
        with torch.autocast("cpu", dtype=dtype):
            value, under = value_and_gradient(loss, logits, labels)
            network = nn.Conv2d(3, 3, 1)(logits)
            assert network.dtype == dtype
            assert loss(network, labels).dtype == torch.float32
        assert torch.equal(value, expected)
        assert torch.equal(under, gradient)


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (2, 7), (2, 4, 5), (1, 3, 4, 5), (1, 1, 1), (4, 1, 9), (2, 2, 3, 2, 2)])
@EVERY_METRIC
@pytest.mark.slow
def test_any_number_of_spatial_axes(name: str, shape: tuple[int, ...]) -> None:
    logits, labels = batch(*shape)
    loss = curved(name)
    value = loss(logits, labels)
    assert value.shape == ()
    assert loss(logits, labels.unsqueeze(1)).item() == value.item()
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert loss(logits, labels.to(dtype)).item() == value.item()


def test_the_channel_axis_of_a_target_is_told_from_an_image_axis() -> None:
    logits, labels = batch(3, 1, 4)
    loss = SurrogateLoss("miou_i")
    assert loss(logits, labels).item() == loss(logits[:, :, 0], labels[:, 0]).item()


@EVERY_METRIC
def test_a_soft_target_of_zeros_and_ones_is_a_label(name: str) -> None:
    logits, labels = batch(2, 6, 7)
    labels = labels.remainder(3)
    soft = nn.functional.one_hot(labels, 3).movedim(-1, 1)
    for logic in ("product", "godel"):
        loss = curved(name, logic=logic)
        hard_value, hard_gradient = value_and_gradient(loss, logits, labels)
        for dtype in (torch.float16, torch.float32, torch.float64):
            value, gradient = value_and_gradient(loss, logits, soft.to(dtype))
            assert value.item() == pytest.approx(hard_value.item(), abs=1e-12)
            torch.testing.assert_close(gradient, hard_gradient)


@pytest.mark.parametrize("ignored", [-100, 0, 2, 255])
def test_any_ignored_label(ignored: int) -> None:
    logits, labels = batch(2, 6, 7)
    marked = torch.where(labels == 255, ignored, labels)
    by_hand = torch.where(marked == ignored, 255, marked)
    for name in METRICS:
        expr = metric(name, radius=1, background=True) if name in ("biou", "trimap_iou", "bf1") else metric(name)
        loss = SurrogateLoss(expr, ignore_index=ignored)
        assert loss(logits, marked).item() == SurrogateLoss(expr)(logits, by_hand).item(), name
    _, gradient = value_and_gradient(SurrogateLoss("miou", ignore_index=ignored), logits, marked)
    assert bool((gradient.abs().sum(1)[marked == ignored] == 0).all())
    assert bool((gradient.abs().sum(1)[marked != ignored] > 0).all())


def test_a_gradient_by_a_soft_target() -> None:
    logits, _ = batch(2, 3, 3)
    soft = torch.rand(2, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(1)
    loss = SurrogateLoss("jaccard", logic="godel")
    assert torch.autograd.gradcheck(loss, (logits, soft.requires_grad_()), atol=1e-6)


# The module -----------------------------------------------------------------------------------------------------------


def test_it_has_no_state_to_move_or_to_save() -> None:
    loss = curved("bf1")
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    logits, labels = batch(2, 6, 7)
    expected = loss(logits, labels).item()
    assert loss.half().train()(logits, labels).item() == expected
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert copied(logits, labels).item() == expected
        assert copied.expr is loss.expr
        assert copied.control_points == loss.control_points


def test_a_metric_may_be_a_name_a_text_or_an_expression() -> None:
    assert SurrogateLoss("miou").expr is metric("miou")
    assert SurrogateLoss("1 - miou").expr is 1 - metric("miou")
    assert SurrogateLoss(WORST).expr is WORST


def test_metrics_of_ones_own() -> None:
    said, true = any_class(pred, background=False), any_class(target, background=False)
    foreground = total(said & true) / total(said | true)
    logits, labels = batch(2, 6, 7)
    for expr in (foreground, WORST, 0.5 * metric("miou") + 0.5 * foreground, per_image_accuracy()):
        value, gradient = value_and_gradient(curved(expr), logits, labels)
        assert 0 < value.item() < 1
        assert bool(torch.isfinite(gradient).all())


def per_image_accuracy() -> Any:
    return metric("image_mean(class_sum(per_image(pred & target)) / class_sum(per_image(target)))") + 0 * total(
        any_class(pred & target)
    )


def test_text_for_people() -> None:
    assert repr(SurrogateLoss("gacc", curve="linear", ignore_index=0)) == (
        "SurrogateLoss(class_sum(total(pred & target)) / class_sum(total(target)), logic='product', curve='linear', "
        "classes='metric', ignore_index=0, reduce_over_ranks=False, scale=1.0)"
    )


# Mistakes: the text is golden -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("metric", [*METRICS, "miou_i(worst=0.5)", "0.5 * miou + 0.5 * bf1"])
@pytest.mark.slow
def test_what_is_undefined_is_seen(metric: str, fused: bool) -> None:
    # A single pixel, and all of one of two images: the loss must not hide from whoever looks for NaN.
    logits, labels = batch(2, 12, 12)
    for wrong in (float("nan"), float("inf")):
        for index in ((0, 1, 3, 4), (0,)):
            given = logits.clone()
            given[index] = wrong
            loss = curved(metric)
            loss.fused = fused
            assert loss(given, labels).isnan()


LOGITS = torch.zeros(1, 3, 2, 2)
LABELS = torch.zeros(1, 2, 2, dtype=torch.long)


NO_SHARES = (
    "soft labels must be shares that sum to 1 over the classes (within 0.02); the sum is {found} pixels. Labels that "
    "overlap need a sigmoid for each class, which no loss has yet. A pixel of no class needs a channel for the "
    "background, or a mask that is False there."
)


@pytest.mark.parametrize(
    ("logits", "labels", "kind", "expected"),
    [
        (
            LABELS,
            LABELS,
            InputTypeError,
            "logits must be a floating-point tensor (N, C, *S) of scores, got dtype torch.int64.",
        ),
        ([1.0], LABELS, InputTypeError, "logits must be a floating-point tensor (N, C, *S) of scores, got list."),
        (torch.zeros(3), LABELS, InputError, "logits must have shape (N, C, *S), got (3,)."),
        (
            torch.zeros(1, 0, 2, 2),
            LABELS,
            InputError,
            "logits must have shape (N, C, *S) of two classes or more, got (1, 0, 2, 2).",
        ),
        (
            LOGITS,
            torch.tensor([-0.25, 0.75, 0.5]).view(1, 3, 1, 1).expand(1, 3, 2, 2),
            InputError,
            "soft labels must be shares from 0 to 1; the lowest of a pixel is -0.25 at 4 of 4 pixels.",
        ),
        (
            LOGITS,
            torch.tensor([[[0, 1], [5, -3]]]),
            InputError,
            "target has labels outside the classes at 2 of 4 pixels: -3, 5; allowed: 0..2 and 255 (ignored).",
        ),
        (
            LOGITS,
            LABELS + 3,
            InputError,
            "target has labels outside the classes at 4 of 4 pixels: 3; allowed: 0..2 and 255 (ignored).",
        ),
        (
            LOGITS,
            torch.zeros(1, 3, 3, dtype=torch.long),
            InputError,
            "target must have shape (1, 2, 2) or (1, 1, 2, 2), got (1, 3, 3).",
        ),
        (
            LOGITS,
            torch.zeros(1, 3, 2, 2, dtype=torch.long),
            InputError,
            "target must have shape (1, 2, 2) or (1, 1, 2, 2), got (1, 3, 2, 2).",
        ),
        (
            LOGITS,
            torch.zeros(2, 2, 2, dtype=torch.long),
            InputError,
            "target must have shape (1, 2, 2) or (1, 1, 2, 2), got (2, 2, 2).",
        ),
        (
            LOGITS,
            torch.zeros(1, 2, 2),
            InputError,
            "soft labels must have the shape of the logits, (1, 3, 2, 2), got (1, 2, 2). "
            "Labels as class indices are of an integer type.",
        ),
        (
            LOGITS,
            torch.full((1, 3, 2, 2), 1.5),
            InputError,
            NO_SHARES.format(found="4.5 at 4 of 4"),
        ),
        (
            LOGITS,
            torch.full((1, 3, 2, 2), float("nan")),
            InputError,
            NO_SHARES.format(found="nan at 4 of 4"),
        ),
        (LOGITS, LABELS.bool(), InputTypeError, "target must have an integer dtype, got torch.bool."),
        (LOGITS, [[0]], InputTypeError, "target must be a torch tensor of integer labels, got list."),
    ],
)
def test_mistakes_in_a_batch(logits: Any, labels: Any, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        SurrogateLoss("miou")(logits, labels)
    assert type(caught.value) is kind
    assert str(caught.value) == expected


def test_tensors_of_two_devices() -> None:
    with pytest.raises(InputError) as caught:
        SurrogateLoss("miou")(torch.zeros(1, 3, 2, 2, device="meta"), LABELS)
    assert str(caught.value) == "logits and target must be on the same device, got meta and cpu."


AND, OR = "slot `and[0] of pred & target`", "slot `or[0] of pred | target`"


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        (
            {"control_points": [[(0.5, 0.5)]]},
            InputError,
            "control points for 1 slots; the metric has 2: and[0] of pred & target; or[0] of pred | target.",
        ),
        (
            {"control_points": [[(0.5, 0.5)], [(0.5, 0.5), (0.6, 0.6)]]},
            InputError,
            f"{OR}: 2 control points; a bezier of n pieces has 2 n - 1 (1, 3, 5, ...).",
        ),
        (
            {"control_points": [[(0.5, 0.5), (0.4, 0.6), (0.7, 0.7)], []]},
            InputError,
            f"{AND}: control point 1 (0.4, 0.6) falls below control point 0 (0.5, 0.5); a curve must not fall.",
        ),
        (
            {"control_points": [[(0.5, 1.5)], []]},
            InputError,
            f"{AND}: control point 0 must have both coordinates in [0, 1], got (0.5, 1.5).",
        ),
        (
            {"control_points": [[], [0.5]]},
            InputTypeError,
            f"{OR}: control point 0 must be a pair of numbers (u, v), got 0.5.",
        ),
        ({"curve": "besier"}, InputError, "curve is 'besier'; allowed: identity, bezier, linear, log."),
        ({"logic": "fuzzy"}, InputError, "logic is 'fuzzy'; allowed: product, godel, lovasz."),
        ({"classes": "none"}, InputError, "classes is 'none'; allowed: metric, all, present."),
        (
            {"ignore_index": 1.5},
            InputTypeError,
            "ignore_index must be an integer label, got 1.5. With -1 no pixel is ignored.",
        ),
        (
            {"ignore_index": True},
            InputTypeError,
            "ignore_index must be an integer label, got True. With -1 no pixel is ignored.",
        ),
        ({"reduce_over_ranks": 2}, InputTypeError, "reduce_over_ranks must be True or False, got 2."),
    ],
)
def test_mistakes_in_the_arguments(options: dict[str, Any], kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        SurrogateLoss("miou", **options)
    assert type(caught.value) is kind
    assert str(caught.value) == expected


@pytest.mark.parametrize("points", [5, [None, None], [3, 4], {"and": 1}, "ab"])
def test_control_points_that_are_no_lists(points: Any) -> None:
    with pytest.raises(InputError):
        SurrogateLoss("miou", points)


@pytest.mark.parametrize(
    ("theta", "options", "expected"),
    [
        ([0.5] * 3, {}, "theta has 3 coordinates; 2 bezier curve(s) of 2 piece(s) have 12."),
        ([0.5] * 11 + [2], {}, "theta[5] must be in [0, 1], got 2."),
        ([0.5] * 12, {"pieces": 0}, "pieces must be an integer from 1 to 64, got 0."),
        ([0.5] * 12, {"curve": "besier"}, "curve is 'besier'; allowed: identity, bezier, linear, log."),
    ],
)
def test_mistakes_in_theta(theta: list[float], options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        SurrogateLoss.from_theta("miou", theta, **options)
    assert str(caught.value) == expected


def test_what_is_no_metric() -> None:
    with pytest.raises(InputError, match=r"unknown metric `mioo` \(did you mean `miou`\?\)"):
        SurrogateLoss("mioo")
    with pytest.raises(ParseError, match="unknown name `truth`"):
        SurrogateLoss("total(pred & truth)")
    with pytest.raises(ExprError, match="a metric is one number"):
        SurrogateLoss(per_image(pred))
