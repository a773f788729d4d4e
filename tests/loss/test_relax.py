from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given

from autosegloss.errors import InputError
from autosegloss.loss import SearchSpace, SurrogateLoss, slots
from autosegloss.loss.curve import Curve
from autosegloss.loss.relax import RelaxedMaps
from autosegloss.metric import Accumulator, any_class, class_sum, metric, pred, target, total
from tests import strategies
from tests.examples import examples


def names(expr: Any) -> list[str]:
    return [str(slot) for slot in slots(metric(expr))]


# Slots: where curves sit, and in which order


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("miou", 2),
        ("fwiou", 2),
        ("biou", 2),
        ("macc", 1),
        ("gacc", 1),
        ("bf1", 4),
        ("dice", 2),
        ("tversky", 2),
        ("boundary_iou", 6),
        ("bf1_i", 4),
    ],
)
def test_numbers_of_slots(name: str, number: int) -> None:
    assert len(slots(metric(name))) == number


def test_slots_of_the_published_metrics_are_named_in_the_order_of_the_published_curves() -> None:
    assert names("miou") == ["and[0] of pred & target", "or[0] of pred | target"]
    assert names("fwiou") == ["and[0] of pred & target", "or[0] of pred | target"]
    assert names("gacc") == ["and[0] of pred & target"]
    assert names("bf1") == [
        "and[0] of pred ^ erode(pred)",
        "and[1] of pred ^ erode(pred)",
        "or[0] of pred ^ erode(pred)",
        "or[1] of pred ^ erode(pred)",
    ]


def test_slots_follow_the_writing_and_soft_operands_only() -> None:
    assert names(class_sum(total((target & pred) | ~pred)) / class_sum(total(target & any_class(target)))) == [
        "and[1] of target & pred",
        "or[0] of target & pred | ~pred",
        "or[1] of target & pred | ~pred",
    ]
    assert names(class_sum(total(target ^ (pred & pred)))) == [
        "and[0] of pred & pred",
        "and[1] of pred & pred",
        "and[1] of target ^ pred & pred",
        "or[1] of target ^ pred & pred",
    ]


def test_fixed_operators_have_no_slots() -> None:
    assert names(class_sum(total(pred * target * ~pred)) / class_sum(total(target))) == []


def test_a_shared_operator_has_one_set_of_slots() -> None:
    both = total(pred & target)
    assert names(class_sum(both / (both + total(pred)))) == ["and[0] of pred & target"]


# The search space


@pytest.mark.parametrize(
    ("name", "curve", "pieces", "share", "dimension"),
    [
        ("miou", "bezier", 2, False, 12),
        ("miou", "bezier", 2, True, 12),
        ("miou", "linear", 3, False, 8),
        ("miou", "identity", 3, False, 0),
        ("gacc", "bezier", 1, False, 2),
        ("bf1", "bezier", 1, False, 8),
        ("bf1", "bezier", 1, True, 4),
    ],
)
def test_dimensions(name: str, curve: Any, pieces: int, share: bool, dimension: int) -> None:
    space = SearchSpace(metric(name), curve, pieces, share)
    assert space.dimension == dimension
    assert len(space.identity) == dimension
    assert len(space.control_points(space.identity)) == len(slots(metric(name)))


def test_the_starting_point_is_the_published_one() -> None:
    assert SearchSpace(metric("miou")).identity == pytest.approx([1 / 4, 1 / 4, 1 / 3, 1 / 3, 1 / 2, 1 / 2] * 2)
    assert SearchSpace(metric("bf1"), pieces=1).identity == (0.5,) * 8


def test_coordinates_fill_the_slots_in_order() -> None:
    space = SearchSpace(metric("bf1"), pieces=1)
    points = space.control_points([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert points == [((0.1, 0.2),), ((0.3, 0.4),), ((0.5, 0.6),), ((0.7, 0.8),)]
    assert [str(slot) for group in space.curves for slot in group] == names("bf1")


def test_shared_curves_are_one_for_both_operands_of_an_operator() -> None:
    space = SearchSpace(metric("bf1"), pieces=1, share_curves=True)
    assert [[str(slot)[:6] for slot in group] for group in space.curves] == [["and[0]", "and[1]"], ["or[0] ", "or[1] "]]
    assert space.control_points([0.1, 0.2, 0.3, 0.4]) == [((0.1, 0.2),)] * 2 + [((0.3, 0.4),)] * 2
    loss = SurrogateLoss.from_theta("bf1", [0.1, 0.2, 0.3, 0.4], pieces=1, share_curves=True)
    assert loss.control_points == [[(0.1, 0.2)], [(0.1, 0.2)], [(0.3, 0.4)], [(0.3, 0.4)]]


def test_operators_do_not_share_curves_with_each_other() -> None:
    expr = class_sum(total(pred & target)) / class_sum(total(pred & ~target)) + class_sum(total(pred | ~pred))
    groups = SearchSpace(metric(expr), share_curves=True).curves
    assert [[str(slot) for slot in group] for group in groups] == [
        ["and[0] of pred & target"],
        ["and[0] of pred & ~target"],
        ["or[0] of pred | ~pred", "or[1] of pred | ~pred"],
    ]


def test_a_theta_of_the_wrong_length() -> None:
    with pytest.raises(InputError) as caught:
        SearchSpace(metric("miou")).control_points([0.5] * 3)
    assert str(caught.value) == "theta has 3 coordinates; 2 bezier curve(s) of 2 piece(s) have 12."


# The logic


@pytest.mark.parametrize("logic", ["product", "godel"])
@pytest.mark.parametrize("hard", [True, False])
def test_truth_tables_under_any_curve(logic: Any, hard: bool) -> None:
    a, b = (
        torch.tensor(bits, dtype=torch.float64).view(1, 1, 4)
        for bits in zip(*itertools.product([0, 1], repeat=2), strict=True)
    )
    for op, expected in (("&", [0, 0, 0, 1]), ("|", [0, 1, 1, 1]), ("^", [0, 1, 1, 0])):
        node: Any = {"&": pred & target, "|": pred | target, "^": pred ^ target}[op]
        curves = {slot: Curve("bezier", ((0.9, 0.1),)) for slot in slots(class_sum(total(node)))}
        maps = RelaxedMaps(a, b, None, curves, logic, hard)
        assert maps.logic(node, a, b).flatten().tolist() == expected


def test_formulas_under_curves() -> None:
    g = Curve("bezier", ((0.5, 0.0),))  # x^2
    h = Curve("bezier", ((0.0, 1.0),))  # 2 sqrt(x) - x
    p, t = 0.36, 0.25

    def relaxed(node: Any, curves: list[Curve], logic: Any, hard: bool) -> float:
        a, b = (torch.full((1, 1, 1), x, dtype=torch.float64) for x in (p, t))
        where = dict(zip(slots(class_sum(total(node))), curves, strict=True))
        return RelaxedMaps(a, b, None, where, logic, hard).logic(node, a, b).item()

    gp, hp, gt, ht = p**2, 2 * 0.6 - p, t**2, 2 * 0.5 - t
    # A hard label would be left as it is by every curve; a soft one goes under its partner's.
    assert relaxed(pred & target, [g], "product", True) == pytest.approx(gp * t)
    assert relaxed(pred & target, [g], "product", False) == pytest.approx(gp * gt)
    assert relaxed(target & pred, [h], "godel", False) == pytest.approx(min(hp, ht))
    assert relaxed(pred | target, [h], "product", False) == pytest.approx(hp + ht - hp * ht)
    assert relaxed(pred | target, [h], "godel", False) == pytest.approx(max(hp, ht))
    xor = relaxed(pred ^ target, [g, h], "product", False)
    assert xor == pytest.approx(hp + ht - hp * ht - gp * gt)
    assert relaxed(pred ^ target, [g, h], "godel", False) == pytest.approx(max(hp, ht) - min(gp, gt))
    # Curves may lift AND above OR: no truth value is below 0.
    assert relaxed(pred ^ target, [h, g], "product", False) == 0 > gp + gt - gp * gt - hp * ht
    # Two soft operands: each under its own.
    a = torch.full((1, 1, 1), p, dtype=torch.float64)
    both: Any = pred & ~pred
    where = dict(zip(slots(class_sum(total(both))), [g, h], strict=True))
    maps = RelaxedMaps(a, a, None, where, "product", True)
    assert maps.logic(both, a, 1 - a).item() == pytest.approx(gp * (2 * 0.8 - 0.64))


# The law


@examples(200)
@given(drawn=strategies.losses_of_labels())
@pytest.mark.slow
def test_on_one_hot_predictions_the_loss_is_1_minus_the_metric(drawn: tuple[SurrogateLoss, strategies.Labels]) -> None:
    loss, labels = drawn
    guess, truth = labels.tensors()
    exact = Accumulator(loss.expr, labels.num_classes)
    exact.update(guess, truth)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        relaxed = loss(labels.scores(dtype), truth)
        assert relaxed.dtype == dtype
        assert 1 - relaxed.item() == pytest.approx(exact.compute(), abs=tolerance, rel=tolerance)


@examples(60)
@given(drawn=strategies.losses_of_labels())
@pytest.mark.slow
def test_the_law_holds_for_one_hot_soft_targets_too(drawn: tuple[SurrogateLoss, strategies.Labels]) -> None:
    loss, labels = drawn
    counted = strategies.Labels(labels.pred, labels.target % 5 % labels.num_classes, labels.num_classes)
    guess, truth = counted.tensors()
    exact = Accumulator(loss.expr, labels.num_classes)
    exact.update(guess, truth)
    soft = strategies.Labels(counted.target, counted.target, labels.num_classes).scores(high=1).clamp(min=0)
    assert 1 - loss(counted.scores(), soft).item() == pytest.approx(exact.compute(), abs=1e-9, rel=1e-9)
