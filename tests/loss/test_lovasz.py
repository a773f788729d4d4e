"""The logic lovasz: held by its definition, by sorting, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autosegloss.errors import InputError, InputTypeError
from autosegloss.loss import SurrogateLoss, build_loss, load_loss
from autosegloss.loss.curve import Curve
from autosegloss.loss.kernels import histograms
from autosegloss.loss.relax import one_hot
from autosegloss.metric import (
    Accumulator,
    Expr,
    boundary,
    class_mean,
    dilate,
    image_mean,
    metric,
    per_image,
    pred,
    target,
    total,
)
from tests import oracles, strategies
from tests.examples import examples
from tests.loss.test_equivalence import DOUBLE, SINGLE, autograd, batch, compiled, exported, fused, loss_of

Score = Callable[[float, float, float], float]


def ratio(a: float, b: float) -> float:
    return 0.0 if b == 0 else a / b


SCORES: dict[str, Score] = {
    "jaccard": lambda both, either, _: ratio(both, either),
    "dice": lambda both, either, _: ratio(2 * both, both + either),
    "tversky(alpha=0.3, beta=0.7)": lambda both, either, size: ratio(
        both, both + 0.3 * (either - size) + 0.7 * (size - both)
    ),
    "macc": lambda both, _, size: ratio(both, size),
}


def extended(errors: np.ndarray, mine: np.ndarray, score: Score) -> tuple[float, np.ndarray]:
    """The score at no error less the Lovász extension of its fall, and its gradient by the errors."""
    size = float(mine.sum())
    own = others = 0
    value = before = score(size, size, size)
    gradient = np.zeros(len(errors))
    for i in np.argsort(-errors):
        own, others = own + int(mine[i]), others + int(not mine[i])
        after = score(size - own, size + others, size)
        gradient[i] = after - before
        before = after
    return value + float(gradient @ errors), gradient


def scattered(images: int, classes: int, pixels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores and labels where no two errors of a class lie in one of 1,024 bins; the last class is absent."""
    random = np.random.default_rng(seed)
    steps = np.arange(images * pixels)
    probability = np.empty((images * pixels, classes))
    # Each class has its own order of multiples of the width; what is left goes to the last one, spread as well.
    for c in range(classes - 1):
        probability[:, c] = (random.permutation(steps) + 0.5) / len(steps) / (classes - 1)
    probability[:, -1] = 1 - probability[:, :-1].sum(1)
    logits = torch.tensor(np.log(probability)).view(images, pixels, classes).movedim(2, 1)
    labels = torch.tensor(random.integers(0, classes - 1, (images, pixels)))
    return logits, labels


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(("run", "each"), [(autograd, False), (fused, False), (fused, True)])
def test_value_and_gradient_are_those_of_the_sorted_form(name: str, run: Any, each: bool) -> None:
    logits, labels = scattered(2, 3, 12, seed=1)
    labels[:, 3] = 255
    head, _, options = name.partition("(")
    loss = SurrogateLoss(f"{head}{'_i' * each}({options or ')'}", logic="lovasz", curve="identity", classes="present")
    value, slope = run(loss, (logits, labels, None))
    p = logits.softmax(1).numpy()
    by_p, values = np.zeros_like(p), []
    groups = [[0], [1]] if each else [[0, 1]]
    for group in groups:
        counted = (labels[group] != 255).numpy()
        present = sorted(set(labels[group][labels[group] != 255].tolist()))
        of_classes = []
        for c in present:
            mine = (labels[group] == c).numpy()
            errors = np.where(mine, 1 - p[group, c], p[group, c])
            assert len(set(np.floor(errors[counted] * 1024))) == counted.sum(), "each error has a bin of its own"
            score, by_errors = extended(errors[counted], mine[counted], SCORES[name])
            of_classes.append(score)
            part = np.zeros_like(errors)
            part[counted] = by_errors
            by_p[group, c] = -np.where(mine, -part, part) / len(present) / len(groups)
        values.append(np.mean(of_classes))
    assert value.item() == pytest.approx(1 - np.mean(values), abs=1e-9)
    expected = p * (by_p - (p * by_p).sum(1, keepdims=True))
    np.testing.assert_allclose(slope.numpy(), expected, rtol=0, atol=1e-9)


def test_of_many_pixels_the_bins_cost_few_digits() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (2, 60, 50), generator=random).repeat_interleave(2, 1)
    right = torch.nn.functional.one_hot(labels, 5).movedim(-1, 1)
    logits = 2 * (torch.randn(right.shape, generator=random) + right)
    leaf = logits.double().requires_grad_()
    p, values = leaf.softmax(1), []
    for c in range(5):
        mine = (labels == c).flatten()
        errors, order = torch.where(mine, 1 - p[:, c].flatten(), p[:, c].flatten()).sort(descending=True)
        own, others = mine[order].cumsum(0), (~mine[order]).cumsum(0)
        loss = 1 - (mine.sum() - own) / (mine.sum() + others)
        values.append((errors * torch.cat([loss[:1], loss.diff()])).sum())
    exact = torch.stack(values).mean()
    exact.backward()
    for dtype, share in ((DOUBLE, 3e-4), (SINGLE, 5e-4)):
        value, slope = fused(load_loss("lovasz"), (logits.to(dtype), labels, None))  # type: ignore[arg-type]
        assert value.item() == pytest.approx(exact.item(), rel=1e-6)
        assert (slope.double() - leaf.grad).norm() < share * leaf.grad.norm()


@examples(30)
@given(labels=strategies.labels(images=(1, 3)), seed=strategies.seeds, each=st.booleans())
def test_lovasz_softmax_is_that_of_the_oracle(labels: strategies.Labels, seed: int, each: bool) -> None:
    """Ignored pixels and absent classes included; where no pixel counts it is 1, as every surrogate."""
    shape = (len(labels.target), labels.num_classes, *labels.target.shape[1:])
    logits = 2 * np.random.default_rng(seed).normal(size=shape)
    form = "jaccard_i" if each else "jaccard"
    loss = SurrogateLoss(form, logic="lovasz", curve="identity", classes="present")
    value = loss(torch.from_numpy(logits), torch.from_numpy(labels.target)).item()
    any_counts = (labels.target != oracles.IGNORED).any()
    expected = oracles.lovasz_softmax(logits, labels.target, each) if any_counts else 1
    assert value == pytest.approx(expected, abs=2e-4 / len(labels.target[0].flat) + 1e-6)


MEANS = "0.5 * miou_i + 0.5 * class_mean(total(pred | target) / 100)"
WITHIN = class_mean(
    total(pred & target, within=dilate(boundary(target), 1)) / total(pred | target, within=dilate(boundary(target), 1))
)
EXTENDED: list[Expr | str] = [
    "jaccard",
    "miou_i(worst=0.5)",
    "fwiou",
    "gacc",
    "miou(classes=[1, 0], weights=[1, 3])",
    "miou * macc",
    "0.5 * miou + 0.5 * bf1(radius=1)",
    "0.5 * dice_c + 0.5 * biou(radius=1)",
    WITHIN,
    image_mean(class_mean(per_image(target & pred) / per_image(pred | target))),
]
"""The last but one has a mask of each class; the others are in parts extended, or none of their classes is absent."""


@examples(40)
@given(
    expr=st.sampled_from(EXTENDED),
    curves=st.sampled_from([("identity", 1), ("bezier", 2), ("linear", 3)]),
    labels=strategies.labels(),
    classes=st.sampled_from(["metric", "all"]),
    is_fused=st.booleans(),
    seed=strategies.seeds,
)
@pytest.mark.slow
def test_on_one_hot_predictions_the_loss_is_exact_under_any_curve(
    expr: Expr | str, curves: tuple[Any, int], labels: strategies.Labels, classes: Any, is_fused: bool, seed: int
) -> None:
    loss = loss_of(expr, curves, logic="lovasz", classes=classes, scale=3.0)
    loss.fused = is_fused
    plain = loss_of(expr, curves, logic="product", classes=classes)
    guess = np.random.default_rng(seed).integers(0, labels.num_classes, labels.target.shape)
    logits = 1e4 * torch.nn.functional.one_hot(torch.tensor(guess), labels.num_classes).movedim(-1, 1).double()
    truth = torch.tensor(labels.target)
    value = loss(logits, truth).item()
    assert value == pytest.approx(3 * plain(logits, truth).item(), abs=1e-9)
    if classes == "metric":
        exact = Accumulator(metric(expr), labels.num_classes)
        exact.update(torch.tensor(guess), truth)
        assert value == pytest.approx(3 * (1 - exact.compute()), abs=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what Dynamo itself does
@pytest.mark.parametrize(("run", "expr"), [(fused, MEANS), (fused, WITHIN), (compiled, WITHIN), (exported, MEANS)])
@pytest.mark.slow
def test_every_evaluator_is_the_reference(run: Any, expr: Expr | str) -> None:
    for dtype, near in ((DOUBLE, 1e-9), (SINGLE, 1e-5))[: 2 if run is fused else 1]:
        loss = SurrogateLoss(expr, logic="lovasz", classes="present")
        given_ = batch((3, 5, 13, 10), dtype, layout="channels last", ignored="some", masked="some")
        value, slope = autograd(loss, given_)
        loss.fused = True
        found, gradient = run(loss, given_)
        assert found.dtype == dtype
        assert found.item() == pytest.approx(value.item(), rel=near)
        # An error at the edge of two bins may be rounded into either.
        assert (gradient - slope).norm() <= (1e-9 if dtype == DOUBLE else 1e-3) * slope.norm()


@pytest.mark.parametrize("per", [False, True])
def test_the_kernel_counts_what_maps_show(per: bool) -> None:
    logits, labels, _ = batch((3, 5, 13, 10), DOUBLE, ignored="some")
    labels = labels.masked_fill(labels == 255, -1)
    truth, valid = one_hot(labels, 5, DOUBLE), (labels >= 0).unsqueeze(1)
    bends = Curve("bezier", ((0.3, 0.7),)), Curve("bezier", ((0.8, 0.4),))
    shown = histograms.of_maps(logits.softmax(1), truth, valid, bends, per)
    found = histograms.of(logits.flatten(2), labels.flatten(1), bends, per)
    assert found.shape == shown.shape
    assert torch.equal(found[:, :, :2], shown[:, :, :2])
    torch.testing.assert_close(found[:, :, 2:], shown[:, :, 2:], rtol=0, atol=1e-9)


def test_tied_errors_share_what_they_take_about_as_in_the_mean_over_their_orders() -> None:
    mine = np.array([True] * 30 + [False] * 50)
    orders = [np.random.default_rng(i).permutation(len(mine)) for i in range(100)]
    taken = np.zeros(len(mine))
    for order in orders:
        taken[order] -= extended(-np.arange(len(mine)) * 1.0, mine[order], SCORES["jaccard"])[1] / len(orders)
    logits = torch.zeros(1, 2, len(mine), dtype=DOUBLE)  # each error is 1/2
    loss = SurrogateLoss("iou(1)", logic="lovasz", curve="identity")
    _, slope = fused(loss, (logits, torch.tensor(mine[None]).long(), None))
    expected = np.where(mine, -taken, taken) / 4  # the slope of a softmax at 1/2
    for kind in (mine, ~mine):  # of each all are equal
        np.testing.assert_allclose(slope[0, 1].numpy()[kind], expected[kind].mean(), rtol=0.3)


def test_curves_bend_the_errors() -> None:
    """A curve on AND bends the errors of the class, one on OR those of other classes."""
    logits, labels = scattered(1, 3, 10, seed=4)
    on_and, on_or = Curve("bezier", ((0.3, 0.7),)), Curve("bezier", ((0.8, 0.4),))
    loss = SurrogateLoss("jaccard", [on_and.points, on_or.points], logic="lovasz", classes="present")
    p, values = logits.softmax(1), []
    for c in sorted(set(labels.flatten().tolist())):
        mine = labels == c
        errors = torch.where(mine, 1 - on_and(p[:, c]), on_or(p[:, c]))
        values.append(extended(errors.flatten().numpy(), mine.flatten().numpy(), SCORES["jaccard"])[0])
    assert loss(logits, labels).item() == pytest.approx(1 - np.mean(values), abs=1e-9)


def test_what_is_linear_in_the_errors_is_the_product() -> None:
    """The extension of a sum of pixels is the sum of the errors."""
    given_ = batch((2, 4, 9, 8), DOUBLE, ignored="some")
    for name in ("gacc", "macc", "macc_i"):
        value, slope = fused(SurrogateLoss(name, logic="lovasz"), given_)
        plain, gradient = fused(SurrogateLoss(name), given_)
        assert value.item() == pytest.approx(plain.item(), rel=1e-9)
        torch.testing.assert_close(slope, gradient, rtol=1e-6, atol=1e-9)


def test_a_part_that_cannot_be_extended_stays_product() -> None:
    given_ = batch((2, 4, 9, 8), DOUBLE, ignored="some")
    mixed, _ = fused(SurrogateLoss("0.3 * jaccard + 0.7 * bf1(radius=1)", logic="lovasz"), given_)
    one, _ = fused(SurrogateLoss("jaccard", logic="lovasz"), given_)
    other, _ = fused(SurrogateLoss("bf1(radius=1)"), given_)
    assert mixed.item() == pytest.approx(0.3 * one.item() + 0.7 * other.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("expr", "reason"),
    [
        ("bf1", "sees pred outside `pred & target` and `pred | target`"),
        (class_mean(total(pred & target) / total(pred)), "sees pred outside `pred & target` and `pred | target`"),
        (class_mean(total(pred ^ target) / 100), "sees pred outside `pred & target` and `pred | target`"),
        (class_mean(total(pred | target) / 100), "rises with an error"),
        (class_mean(0 - total(pred & target) / total(pred | target)), "rises with an error"),
        (class_mean(total(pred & target, within=dilate(pred, 1)) / 100), "the mask of `.*` depends on pred"),
        (class_mean(total(pred & target, void="keep") / 100), "counts ignored pixels"),
        (
            class_mean(total(pred & target) / total(pred | target, within=dilate(target, 1))),
            "joins sums of diff",
        ),
    ],
)
def test_what_cannot_be_extended_is_refused_with_the_reason(expr: Expr | str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^the logic lovasz has nothing to extend in .*{reason}.*Use the logic prod"):
        SurrogateLoss(expr, logic="lovasz")


def test_soft_labels_are_refused() -> None:
    logits = torch.zeros(1, 2, 3)
    with pytest.raises(
        InputTypeError, match=r"the logic lovasz is not defined for soft labels: .* Use the logic godel"
    ):
        load_loss("lovasz")(logits, logits.softmax(1))


def test_logits_that_are_not_numbers_are_seen() -> None:
    logits = torch.zeros(1, 2, 3)
    logits[0, 1, 2] = torch.nan
    for run in (autograd, fused):
        value, _ = run(load_loss("lovasz"), (logits, torch.tensor([[0, 1, 0]]), None))  # type: ignore[arg-type]
        assert value.isnan()


@pytest.mark.parametrize("per", [False, True])
def test_a_loss_of_the_former_class_is_read(per: bool) -> None:
    content = {"format": "autosegloss-loss", "version": 3, "loss": "lovasz", "options": {"per_image": per}}
    loss = build_loss(content)
    assert isinstance(loss, SurrogateLoss)
    assert (loss.logic, loss.classes, loss.expr) == ("lovasz", "present", metric("jaccard_i" if per else "jaccard"))
    assert per or loss.content() | {"provenance": {}} == load_loss("lovasz").content() | {"provenance": {}}
