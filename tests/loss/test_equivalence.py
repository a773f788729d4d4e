"""Every evaluator of a loss gives the value and the gradient of one reference, plain autograd in float64.

The reference itself is held by witnesses that share no code with it: the NumPy oracles and finite differences. All
other evaluators of an expression, and of a curve, run through the same cases. A case is a combination of options in
which any two options of different axes meet (`pairwise`); expressions that Hypothesis draws come on top.

Triton's interpreter is switched on before Triton is first imported, so `test_kernels.py` runs this file once more in a
process of its own with `TRITON_INTERPRET` set; there Triton's kernels are the only evaluator.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, cycle, islice, product
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from autosegloss.loss import SearchSpace, SurrogateLoss, fuse, slots
from autosegloss.loss.curve import Curve
from autosegloss.loss.kernels import blocks, pixels
from autosegloss.loss.kernels.atoms import Atoms
from autosegloss.loss.kernels.curves import FastCurve
from autosegloss.metric import (
    Expr,
    any_class,
    boundary,
    class_mean,
    class_sum,
    dilate,
    erode,
    image_mean,
    image_worst,
    interpret,
    metric,
    per_image,
    pred,
    target,
    total,
)
from autosegloss.metric.expr import Logic
from tests import oracles, strategies
from tests.examples import examples

TRITON = os.environ.get("TRITON_INTERPRET")
"""Set where Triton is the evaluator: "1" in its interpreter, "0" on a GPU."""
DEVICE = "cuda" if TRITON == "0" else "cpu"
SINGLE, DOUBLE, BRAIN, HALF = torch.float32, torch.float64, torch.bfloat16, torch.float16
Batch = tuple[Tensor, Tensor, Tensor | None]
Found = tuple[Tensor, Tensor]
"""Value and gradient by the logits."""
Run = Callable[[SurrogateLoss, Batch], Found]


# The evaluators of an expression --------------------------------------------------------------------------------------


def value_and_gradient(loss: Callable[..., Tensor], logits: Tensor, *rest: Tensor | None) -> Found:
    leaf = logits.detach().requires_grad_()  # of the same layout
    value = loss(leaf, *rest)
    if not value.requires_grad:  # `pred` decides which classes count, and nothing else
        return value, torch.zeros_like(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def autograd(loss: SurrogateLoss, given: Batch) -> Found:
    loss.fused = False
    return value_and_gradient(loss, *given)


def fused(loss: SurrogateLoss, given: Batch) -> Found:
    """Moments where sums fuse, blocks elsewhere; blocks so small that a batch has many."""
    loss.fused = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "_BLOCK", 100)
        patch.setattr(blocks, "_BLOCK", 40)
        return value_and_gradient(loss, *given)


def in_blocks(loss: SurrogateLoss, given: Batch) -> Found:
    """Blocks for every sum."""
    loss._walks = ()
    return fused(loss, given)


def by_triton(loss: SurrogateLoss, given: Batch) -> Found:
    """Triton's moments, on the CPU too if they are interpreted."""
    from autosegloss.loss.kernels import moments_triton

    assert loss._walks
    loss.fused = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuse, "moments", moments_triton.moments)
        return value_and_gradient(loss, *given)


def compiled(loss: SurrogateLoss, given: Batch) -> Found:
    torch.compiler.reset()
    return value_and_gradient(torch.compile(loss, fullgraph=True, backend="aot_eager"), *given)


def exported(loss: SurrogateLoss, given: Batch) -> Found:
    file = io.BytesIO()
    torch.export.save(torch.export.export(loss, given), file)
    file.seek(0)
    return value_and_gradient(torch.export.load(file).module(), *given)


@dataclass(frozen=True)
class Evaluator:
    """A way to compute a loss, and what it takes."""

    run: Run
    dtypes: tuple[torch.dtype, ...] = (SINGLE, DOUBLE, BRAIN, HALF)
    soft: bool = True
    """Whether it takes soft labels."""
    maps: bool = True
    """Whether it takes sums that need their maps."""
    logs: bool = True
    """Whether it takes log curves."""


EVALUATORS = {
    "autograd": Evaluator(autograd),
    "fused": Evaluator(fused),
    "blocks": Evaluator(in_blocks, soft=False),
    "triton": Evaluator(by_triton, (SINGLE, BRAIN, HALF), soft=False, maps=False, logs=False),
}
RUN = ["triton"] if TRITON else ["autograd", "fused", "blocks"]
without_triton = pytest.mark.skipif(TRITON is not None, reason="Triton is the evaluator")


# The cases ------------------------------------------------------------------------------------------------------------

FUSES: list[Expr | str] = [
    "miou",
    "macc",
    "gacc",
    "fwiou",
    "dice",
    "tversky(alpha=0.3, beta=0.7)",
    "precision",
    "miou_i",
    "macc_c",
    "dice_i(worst=0.5)",
    "biou(radius=1)",
    "miou * macc",
    "miou(classes=[1, 0], weights=[1, 3])",
    image_worst(class_mean(per_image(pred & target) / per_image(pred | target)), 0.5),
    class_mean(total(~(pred & target) ^ target) / total(pred | target)),
    class_mean(total(2 * (pred - target) + 3 * (pred | target)) / (1 + total(target | pred))),
    class_sum(total((pred & target) | target, within=~(pred & target) & target)) / (1 + class_sum(total(target))),
    class_mean(total(target & pred, void="keep") / (1 + total(target, void="keep"))),
]
MAPS: list[Expr | str] = [
    "boundary_iou",
    "boundary_iou_i",
    "bf1(radius=1)",
    "bf1_i(radius=2)",
    "0.5 * miou + 0.5 * bf1(radius=1)",
    class_sum(total(target * dilate(any_class(boundary(pred)), 1))) / (1 + class_sum(total(target))),
    total(any_class(pred & target, background=False)) / (1 + total(any_class(pred | target, background=False))),
    class_mean(total(erode(pred) ^ target, within=dilate(target, 1) * target) / (1 + total(pred, void="keep"))),
    class_mean(total(pred & ~pred) / total(pred | erode(pred))),
]
SHAPES = [(2, 5, 13, 10), (1, 5, 40, 45), (3, 4, 5, 4, 6), (2, 2, 30), (4, 21), (1, 200, 4, 3)]
"""(N, C, *S)"""
SMOOTH = [("identity", 1), ("bezier", 1), ("bezier", 2), ("bezier", 3), ("linear", 2), ("linear", 3)]
STEEP: dict[tuple[str, int], list[Any]] = {
    # Vertical at either end; with a jump at either end; with jumps within, level and vertical pieces.
    ("bezier", 0): [
        [(0, 1)],
        [(1, 0)],
        [(0, 0.3), (0, 0.6), (0.4, 0.6)],
        [(1, 0), (1, 0.5), (1, 1)],
        [(0, 0), (0, 0.3), (0, 0.6), (0.4, 0.7), (0.4, 0.8), (0.7, 0.8), (1, 0.8)],
    ],
    ("linear", 0): [[(0.3, 0.2), (0.3, 0.7)], [(0, 0.3), (0.6, 0.6)], [(0.5, 0), (1, 0.4)], [(0.01, 0.9)]],
}
LOGS = [(0.5, v) for v in (0.98, 0.02, 0.95, 0.05, 0.5)]
AXES: dict[str, Sequence[Any]] = {
    "expr": FUSES + MAPS,
    "shape": SHAPES,
    "curve": SMOOTH + list(STEEP),
    "dtype": [SINGLE, DOUBLE, BRAIN, HALF],
    "layout": ["contiguous", "channels last", "transposed", "expanded"],
    "ignored": ["none", "some"],
    "masked": ["none", "some"],
    "classes": ["metric", "all", "present"],
    "logic": ["product", "godel"],
    "soft": [False, True],
    "scores": ["moderate"],
}
EDGES: dict[str, Sequence[Any]] = {
    "expr": ["miou", "macc_i", "biou(radius=1)", "bf1(radius=1)", "boundary_iou_i"],
    "shape": [(3, 4, 7, 6), (2, 2, 6, 5), (1, 2), (0, 3, 4, 3), (2, 3, 0, 4), (0, 3)],
    "ignored": ["none", "some", "all"],
    "masked": ["none", "some", "all"],
    "scores": ["moderate", "one-hot"],
}
"""One class, no image, no pixel, none that counts; probabilities of 0 and 1."""
LOGARITHMS: dict[str, Sequence[Any]] = {
    "expr": [
        "miou",
        "biou(radius=1)",
        "dice_i(worst=0.5)",
        "0.5 * miou + 0.5 * bf1(radius=1)",
        *MAPS[5:7],
        *FUSES[-5:-3],
    ],
    "curve": [("log", 1), ("log", 0)],
    "scores": ["moderate", "one-hot"],
}
"""Moderate and very steep log curves, on sums of all kinds."""


def pairwise(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """A few combinations in which any two options of two axes meet; greedily, most new pairs first."""
    options = {name: range(len(values)) for name, values in axes.items()}
    missing = dict.fromkeys(
        frozenset({(a, i), (b, j)}) for a, b in combinations(axes, 2) for i in options[a] for j in options[b]
    )
    found, used, random = [], Counter[tuple[str, int]](), Random(0)

    def new_pairs(option: tuple[str, int], chosen: dict[str, int]) -> int:
        return sum(frozenset({option, other}) in missing for other in chosen.items())

    while missing:
        chosen = dict(sorted(next(iter(missing))))
        for name in [name for name in axes if name not in chosen]:
            chosen[name] = max(
                options[name],
                key=lambda i: (new_pairs((name, i), chosen), -used[name, i], random.random()),
            )
        for pair in combinations(chosen.items(), 2):
            missing.pop(frozenset(pair), None)
        used.update(chosen.items())
        found.append({name: axes[name][chosen[name]] for name in axes})
    return found


def cases(name: str) -> list[Any]:
    """The cases of an evaluator."""
    it = EVALUATORS[name]
    own = {"dtype": it.dtypes, "soft": [False, True][: 1 + it.soft]}
    some = {"shape": SHAPES[1:3] + SHAPES[4:]} if TRITON == "1" else {}  # its interpreter is slow
    chosen = [
        case
        for axes in (AXES | some, AXES | EDGES, *[AXES | LOGARITHMS] * it.logs)
        for case in pairwise(axes | own | {"expr": [x for x in axes["expr"] if it.maps or x not in MAPS]})
    ]
    return [pytest.param(name, case, id="-".join([name, *map(str, case.values())])) for case in chosen]


def loss_of(expr: Expr | str, curve: tuple[Any, int], **options: Any) -> SurrogateLoss:
    """A loss with curves of a kind and of a number of pieces; 0 for those of `STEEP` and `LOGS`."""
    kind, pieces = curve
    if curve == ("log", 0):
        points = [[point] for _, point in zip(slots(metric(expr)), cycle(LOGS), strict=False)]
    elif pieces == 0:
        first = len(str(metric(expr))) % len(STEEP[curve])  # each is the first of some expression
        # A curve of a curve stays the identity: float32 can't tell which side of a jump a level piece is on.
        points = [
            [] if any(isinstance(node, Logic) for node in slot.node.operands[slot.operand].walk()) else points
            for slot, points in zip(slots(metric(expr)), islice(cycle(STEEP[curve]), first, None), strict=False)
        ]
    else:
        space = SearchSpace(metric(expr), kind, pieces)
        points = space.control_points(np.random.default_rng(pieces).uniform(0.1, 0.9, space.dimension).tolist())
    return SurrogateLoss(expr, points, curve=kind, **options)


def batch(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: str = "contiguous",
    ignored: str = "none",
    masked: str = "none",
    soft: bool = False,
    scores: str = "moderate",
) -> Batch:
    """A batch of shape (N, C, *S): labels of stripes, often right; the last of several classes is absent."""
    random = np.random.default_rng(shape)
    images, classes, *sides = shape
    place = np.indices((images, *sides)).sum(0) // 3 + random.integers(0, 2, (images, *sides))
    labels = place % max(1, classes - 1)
    right = np.arange(classes).reshape(-1, *[1] * len(sides)) == labels[:, None]
    values = 2 * (random.normal(size=shape) + right)
    if scores == "one-hot":
        values = np.where(values == values.max(1, keepdims=True), 1e4, -1e4)
    labels[random.random(labels.shape) < {"none": 0, "some": 0.1, "all": 1}[ignored]] = 255
    mask = random.random(labels.shape) >= {"none": 0, "some": 0.3, "all": 1}[masked]
    labels[~mask] = 77  # no class, but nobody looks
    shares = random.random(shape) ** 3
    shares = np.where(mask[:, None], shares / shares.sum(1, keepdims=True), np.nan)
    logits = torch.tensor(values, device=DEVICE).to(dtype)
    truth = torch.tensor(shares, device=DEVICE).to(dtype) if soft else torch.tensor(labels, device=DEVICE)
    if layout == "channels last":
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "transposed":
        logits, truth = (x.transpose(0, -1).contiguous().transpose(0, -1) for x in (logits, truth))
    elif layout == "expanded" and images:
        logits = logits[:1].expand(shape)
    return logits, truth, None if masked == "none" else torch.tensor(mask, device=DEVICE)


# The comparison -------------------------------------------------------------------------------------------------------

TOLERANCES = {DOUBLE: (1e-11, 1e-11), SINGLE: (1e-5, 1e-5), BRAIN: (1e-5, 2**-7), HALF: (1e-5, 2**-9)}
"""Relative, of the value and of the norm of the gradient. With halves, all but the last rounding is in float32."""
STEEPNESS = 100
"""How many times as much where curves are vertical or jump."""


def reference(loss: SurrogateLoss, given: Batch) -> Found:
    logits, truth, mask = given
    return autograd(loss, (logits.double(), truth.double() if truth.is_floating_point() else truth, mask))


def assert_equivalent(run: Run, loss: SurrogateLoss, given: Batch, slack: float = 1) -> None:
    value, gradient = reference(loss, given)
    before = [None if x is None else x.clone() for x in given]
    found, slope = run(loss, given)
    dtype = given[0].dtype
    assert found.shape == ()
    assert found.dtype == (DOUBLE if dtype == DOUBLE else SINGLE)
    assert slope.dtype == dtype
    assert slope.shape == given[0].shape
    assert value.isfinite()
    near, share = TOLERANCES[dtype]
    assert found.item() == pytest.approx(value.item(), rel=slack * near, abs=slack * near)
    # Where the gradient is 0 but for rounding; float16 has no number below 2^-24.
    least = {DOUBLE: 1e-12, HALF: 2**-24 * slope.numel() ** 0.5}.get(dtype, 1e-8)
    assert (slope.double() - gradient).norm() <= slack * share * gradient.norm() + least
    for x, y in zip(given, before, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("evaluator", "case"), [case for name in RUN for case in cases(name)])
@pytest.mark.slow
def test_every_evaluator_is_the_reference(evaluator: str, case: dict[str, Any]) -> None:
    options = {name: case[name] for name in ("logic", "classes")}
    loss = loss_of(case["expr"], case["curve"], **options)
    given = batch(**{name: case[name] for name in AXES if name not in ("expr", "curve", *options)})
    assert_equivalent(EVALUATORS[evaluator].run, loss, given, STEEPNESS if case["curve"][1] == 0 else 1)


@st.composite
def linear_in_atoms(draw: st.DrawFn) -> Expr:
    """Metrics with a sum of a map that fuses, most of them under chains of curves."""
    within = draw(st.none() | strategies.pointwise_truth_maps())
    each = draw(st.booleans())
    summed = (per_image if each else total)(draw(strategies.pointwise_maps()), within=within)
    value = class_mean((total(pred & target) + summed) / 1000 / (1 + total(pred | target)))
    return image_mean(value) if each else value


def rounding_decides(loss: SurrogateLoss, given: Batch) -> bool:
    """Whether a mean counts what is 0 but for rounding, as 1 - (p + 1 - p)."""
    logits, truth, mask = given[0].double(), *given[1:]
    loss.fused = False
    sums = loss._statistics(logits, *loss._checked(logits, truth, mask, DOUBLE), DOUBLE)
    wheres = [where for node in loss.expr.walk() if (where := getattr(node, "where", None)) is not None]
    values = [interpret._value(where, sums, loss.classes, {}) for where in wheres]
    return any(bool(((x != 0) & (x.abs() < 1e-9)).any()) for x in values)


@pytest.mark.parametrize("evaluator", RUN[-2:])
@examples(15 if TRITON else 80)
@given(data=st.data(), labels=strategies.labels(), masked=st.booleans(), seed=strategies.seeds)
@pytest.mark.slow
def test_drawn_metrics(evaluator: str, data: st.DataObject, labels: strategies.Labels, masked: bool, seed: int) -> None:
    it = EVALUATORS[evaluator]
    exprs = st.one_of(linear_in_atoms(), strategies.metrics()) if it.maps else linear_in_atoms()
    expr = data.draw(strategies.selections(data.draw(exprs), labels.num_classes))
    loss = data.draw(strategies.losses(st.just(expr), st.sampled_from(["metric", "all", "present"]), moderate=True))
    assume(it.maps or loss._walks)
    assume(it.logs or loss.curve != "log")
    truth = labels.tensors()[1]
    generator = torch.Generator().manual_seed(seed)
    shape = (len(truth), labels.num_classes, *truth.shape[1:])
    logits = 2 * torch.randn(shape, generator=generator, dtype=DOUBLE)
    mask = torch.rand(truth.shape, generator=generator) < 0.7 if masked else None
    given = tuple(None if x is None else x.to(DEVICE) for x in (logits.to(sorted(it.dtypes, key=str)[-1]), truth, mask))
    assume(not rounding_decides(loss, given))
    # Curves of curves are steep, and evaluators differ in the order of their roundings.
    assert_equivalent(it.run, loss, given, STEEPNESS)


@without_triton
@pytest.mark.parametrize("evaluator", ["fused", "blocks"])
def test_an_and_above_its_or_leaves_no_boundary_and_no_gradient(evaluator: str) -> None:
    """Curves of their own may lift AND above OR: there XOR is 0, not negative."""
    lifted, lowered = ((0.1, 0.9),), ((0.9, 0.1),)
    given = batch((2, 5, 13, 10), DOUBLE, ignored="some")
    loss = SurrogateLoss("bf1", [lifted, lifted, lowered, lowered])
    p = given[0].softmax(1)
    least = -torch.nn.functional.max_pool2d(-p, 3, 1, 1)
    ands, ors = (curve for slot, curve in loss.curves.items() if slot.operand == 0)
    assert (ands(p) * ands(least) > ors(p) + ors(least) - ors(p) * ors(least)).any()
    assert_equivalent(EVALUATORS[evaluator].run, loss, given)


COMPILED = [
    ("tversky_c(weights=[1, 0, 2, 3])", ("linear", 2), "godel", True),
    ("biou(radius=1)", ("bezier", 2), "product", True),
    ("miou_i(worst=0.5)", ("identity", 1), "godel", False),
    ("miou", ("log", 0), "product", False),
]


@without_triton
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what Dynamo itself does
@pytest.mark.parametrize(
    ("run", "expr", "curve", "logic", "soft"),
    [(compiled, *case) for case in COMPILED] + [(exported, *case) for case in COMPILED[1:3]],
)
@pytest.mark.slow
def test_traced_losses_are_the_reference(run: Run, expr: str, curve: Any, logic: Any, soft: bool) -> None:
    given = batch((3, 4, 6, 5), DOUBLE, ignored="some", masked="some" if soft else "none", soft=soft)
    assert_equivalent(run, loss_of(expr, curve, logic=logic), given)


# The witnesses of the reference ---------------------------------------------------------------------------------------


@st.composite
def maps(draw: st.DrawFn) -> tuple[Any, Any]:
    """Logits and labels in NumPy."""
    labels = draw(strategies.labels(images=(1, 3)))
    random = np.random.default_rng(draw(strategies.seeds))
    shape = (len(labels.pred), labels.num_classes, *labels.pred.shape[1:])
    return random.normal(scale=2, size=shape), labels.target


@without_triton
@pytest.mark.parametrize("name", oracles.SLOTS)
@examples(40)
@given(
    maps=maps(),
    radius=st.integers(0, 3),
    background=st.booleans(),
    classes=st.sampled_from(["metric", "all", "present"]),
    data=st.data(),
)
@pytest.mark.slow
def test_the_reference_is_the_oracle_of_auto_seg_loss(
    name: str, maps: tuple[Any, Any], radius: int, background: bool, classes: Any, data: st.DataObject
) -> None:
    options = {"radius": radius, "background": background} if name in ("biou", "bf1") else {}
    expr = metric(name, **options)
    assert len(slots(expr)) == oracles.SLOTS[name]
    kind = data.draw(st.sampled_from(strategies.CURVE_KINDS))
    space = SearchSpace(expr, kind, data.draw(st.integers(1, 3)))
    points = space.control_points(data.draw(strategies.thetas(space, moderate=True)))
    curves = [partial(getattr(oracles, kind), points=p) for p in points]
    expected = oracles.surrogate_loss(name, *maps, curves, classes=classes, **options)
    loss = SurrogateLoss(expr, points, curve=kind, classes=classes)
    value, _ = reference(loss, (*map(torch.tensor, maps), None))
    assert value.item() == pytest.approx(expected, abs=1e-9)


WEIGHTS = {"jaccard": (1.0, 1.0), "dice": (0.5, 0.5), "tversky": (0.3, 0.7), "miou_i": (1.0, 1.0), "miou_c": (1.0, 1.0)}


@without_triton
@pytest.mark.parametrize("name", WEIGHTS)
@examples(40)
@given(maps=maps(), soft=st.booleans())
def test_the_reference_is_the_oracle_of_jdt_losses(name: str, maps: tuple[Any, Any], soft: bool) -> None:
    logits, truth = maps
    if soft:
        truth = oracles.softmax(np.random.default_rng(truth.size).normal(scale=2, size=logits.shape))
    over = {"miou_i": "image", "miou_c": "class"}.get(name, "batch")
    expected = oracles.jdt_loss(logits, truth, *WEIGHTS[name], over=over)
    loss = SurrogateLoss(name, logic="godel", classes="all" if soft else "present")
    value, _ = reference(loss, (torch.tensor(logits), torch.tensor(truth), None))
    assert value.item() == pytest.approx(expected, abs=1e-9)


@without_triton
@examples(80)
@given(
    loss=strategies.losses(classes=st.sampled_from(["metric", "all", "present"]), moderate=True),
    labels=strategies.labels(images=(1, 3)),
    soft=st.booleans(),
    seed=strategies.seeds,
)
@pytest.mark.slow
def test_gradients_of_the_reference_are_finite_differences(
    loss: SurrogateLoss, labels: strategies.Labels, soft: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = labels.tensors()[1]
    shape = (len(truth), labels.num_classes, *truth.shape[1:])
    logits, direction, shares = torch.randn(3, *shape, generator=generator, dtype=DOUBLE)
    rest = (shares.softmax(1) if soft else truth, None)
    value, gradient = reference(loss, (logits, *rest))
    slope = (gradient * direction).sum().item()
    # One step size of several may straddle a kink (a knot of a curve, a tie of a minimum): the best of three counts.
    errors = []
    for step in (1e-5, 1e-6, 1e-7):
        there, back = (loss(logits + sign * step * direction, *rest).item() for sign in (1, -1))
        errors.append(abs((there - back) / (2 * step) - slope))
    assert min(errors) < 1e-6 * (1 + abs(slope) + abs(value.item()) + gradient.norm().item())


# The evaluators of a curve --------------------------------------------------------------------------------------------

LOGITS = torch.cat([torch.linspace(-16, 16, 65), torch.tensor([-200.0, -60.0, 60.0, 200.0])])
"""A curve is looked at where the sigmoid of these is: between and at 0 and 1."""


def curve_by_autograd(curve: Curve, logits: Tensor) -> Found:
    leaf = logits.sigmoid().requires_grad_()
    y = curve(leaf)
    return y.detach(), torch.autograd.grad(y.sum(), leaf)[0]


def curve_fast(curve: Curve, logits: Tensor) -> Found:
    x = logits.sigmoid()
    fast = FastCurve(curve, x)
    return fast.values(x), fast.slopes(x).expand_as(x)


def curve_at_once(curve: Curve, logits: Tensor) -> Found:
    x = logits.sigmoid()
    y, slope = FastCurve(curve, x).values_and_slopes(x)
    return y, slope.expand_as(x)


def curve_by_triton(curve: Curve, logits: Tensor) -> Found:
    """A pixel and a class for each abscissa, and one class more that has what is left of the pixel's probability."""
    from autosegloss.loss.kernels.moments_triton import moments

    own = torch.eye(len(logits) + 1, len(logits), dtype=torch.bool)
    scores = torch.full(own.shape, -1e4)
    scores[own], scores[-1] = logits, 0
    leaf = scores.unsqueeze(0).to(DEVICE).requires_grad_()
    labels = torch.arange(len(logits), device=DEVICE).unsqueeze(0)
    y = moments(leaf, labels, Atoms(inside=((curve,),), outside=()))[0][0, :-1, 0]
    slope = torch.autograd.grad(y.sum(), leaf)[0][0].cpu()[own] / (logits.sigmoid() * (-logits).sigmoid())
    return y.detach().cpu(), slope


CURVES = (
    [("triton", curve_by_triton, SINGLE)]
    if TRITON
    else [
        (run.__name__, run, dtype)
        for run, dtype in product((curve_by_autograd, curve_fast, curve_at_once), (SINGLE, DOUBLE))
    ]
)
ROOT_OF_ROUNDING = {DOUBLE: 1e-6, SINGLE: 1e-3}
"""Where a piece ends vertically, its end is the root of a number that is 0 but for rounding."""
DRAWN_KINDS = [kind for kind in strategies.CURVE_KINDS if all(EVALUATORS[name].logs for name in RUN) or kind != "log"]
EVERY_CURVE = pytest.mark.parametrize(("run", "dtype"), [pytest.param(*it[1:], id=f"{it[0]}-{it[2]}") for it in CURVES])


def check_values(run: Any, dtype: torch.dtype, curve: Curve, rounding: float) -> None:
    """To the rounding of abscissae and ordinates: a curve may be as steep as it likes, but it never falls."""
    logits = LOGITS.to(dtype)
    y, _ = run(curve, logits)
    assert y.dtype == dtype
    oracle = partial(getattr(oracles, curve.kind), points=curve.points)
    x, shift = logits.double().sigmoid().numpy(), {DOUBLE: 2e-9, SINGLE: 3e-7}[dtype]
    shifts = np.where(x == 1, 0, shift)  # where no jump is missing
    assert (oracle(x - shifts) - rounding <= y.double().numpy()).all()
    assert (y.double().numpy() <= oracle(x + shifts) + rounding).all()


@EVERY_CURVE
@examples(10 if TRITON else 60)
@given(shape=strategies.shapes(kinds=DRAWN_KINDS).filter(lambda shape: shape.theta))
@pytest.mark.slow
def test_curves_are_those_of_bisection(run: Any, dtype: torch.dtype, shape: strategies.Shape) -> None:
    check_values(run, dtype, shape.curve, ROOT_OF_ROUNDING[dtype])


@EVERY_CURVE
@pytest.mark.parametrize(
    "curve",
    [Curve(kind, tuple(points)) for (kind, _), several in STEEP.items() for points in several]  # type: ignore[arg-type]
    + [Curve("log", (point,)) for point in LOGS if "log" in DRAWN_KINDS]
    + [Curve("bezier", ((0.5, 0), (0.5, 1), (0.75, 1)))],
)
def test_steep_curves_are_those_of_bisection(run: Any, dtype: torch.dtype, curve: Curve) -> None:
    check_values(run, dtype, curve, ROOT_OF_ROUNDING[dtype])


@EVERY_CURVE
@examples(10 if TRITON else 60)
@given(shape=strategies.shapes(st.floats(0.05, 0.95), DRAWN_KINDS).filter(lambda shape: shape.theta))
@pytest.mark.slow
def test_smooth_curves_and_their_slopes_are_those_of_bisection(
    run: Any, dtype: torch.dtype, shape: strategies.Shape
) -> None:
    curve = shape.curve
    check_values(run, dtype, curve, {DOUBLE: 1e-9, SINGLE: 5e-6}[dtype])
    oracle = partial(getattr(oracles, curve.kind), points=curve.points)
    _, slope = run(curve, LOGITS.to(dtype))
    x, step = LOGITS.to(dtype).double().sigmoid().numpy(), 1e-6
    knots = np.array([0.0, *(u for u, _ in curve.points), 1.0])
    inside = abs(x[:, None] - knots).min(1) > 1e-4
    expected = (oracle(x + step) - oracle(x - step)) / (2 * step)
    near = {DOUBLE: 1e-4, SINGLE: 3e-3}[dtype]  # of differences, where a piece may be narrow and bend a lot
    np.testing.assert_allclose(slope.double().numpy()[inside], expected[inside], rtol=near, atol=near)


@without_triton
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@given(shape=strategies.shapes().filter(lambda shape: shape.theta))
@example(shape=strategies.Shape("bezier", 2, (0.4375, 0.0, 0.99999, 0.0, 0.0, 0.0)))
@example(shape=strategies.Shape("bezier", 2, (0.7288129047037087, 0.0, 0.0625, 1.0, 0.0, 0.0)))
def test_fast_curves_are_exact_at_the_ends_and_never_beyond(dtype: torch.dtype, shape: strategies.Shape) -> None:
    fast = FastCurve(shape.curve, torch.empty(0, dtype=dtype))
    x = torch.linspace(0, 1, 103, dtype=dtype)  # more than a vector register: ends and middle take other instructions
    y, _ = fast.values_and_slopes(x)
    assert (y[0], y[-1]) == (0, 1)
    assert fast.values(x)[0] == 0
    assert 1 <= fast.values(x)[-1] <= 1.01  # also where the last piece is a few ulps wide
    assert ((y >= 0) & (y <= 1)).all()
    ends = torch.cat([torch.zeros(50, dtype=dtype), torch.ones(53, dtype=dtype)])
    assert torch.equal(fast.values_and_slopes(ends)[0], ends)


@without_triton
@given(shape=strategies.shapes().filter(lambda shape: shape.theta))
def test_a_mirrored_curve_is_the_curve_of_one_minus_x(shape: strategies.Shape) -> None:
    curve = shape.curve
    x = torch.linspace(0.013, 0.987, 50, dtype=DOUBLE)
    knots = torch.tensor([0.0, *(u for u, _ in curve.points), 1.0], dtype=DOUBLE)
    x = x[((x - (1 - knots).unsqueeze(1)).abs() > 1e-6).all(0)]  # a jump has no value of its own
    torch.testing.assert_close(curve.mirrored(x), 1 - curve(1 - x), rtol=0, atol=1e-6)


# The suite itself -----------------------------------------------------------------------------------------------------


def test_any_two_options_meet() -> None:
    axes = {"a": [0, 1, 2], "b": [0, 1, 2], "c": [0, 1], "d": [0, 1], "e": [0]}
    found = pairwise(axes)
    for one, other in combinations(axes, 2):
        assert {(case[one], case[other]) for case in found} == {*product(axes[one], axes[other])}
    assert len(found) < 15


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE, BRAIN, HALF])
def test_a_wrong_gradient_or_value_is_seen(dtype: torch.dtype) -> None:
    loss, given = loss_of("miou", ("bezier", 2)), batch((2, 5, 13, 10), dtype, masked="some")

    def sign(x: Tensor) -> Tensor:
        """Of the least part: the gradient of a single class in a single image."""
        return x.index_put((torch.tensor(1), torch.tensor(4)), -x[1, 4])

    for wrong in (lambda v, g: (v + 1e-4, g), lambda v, g: (v, sign(g)), lambda v, g: (v, g.roll(1, -1))):
        with pytest.raises(AssertionError):
            assert_equivalent(lambda loss, given, wrong=wrong: wrong(*autograd(loss, given)), loss, given)
