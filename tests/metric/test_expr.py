from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

import autosegloss as asl
from autosegloss.errors import ExprError, InputError
from autosegloss.metric import (
    METRICS,
    Expr,
    any_class,
    boundary,
    class_mean,
    class_sum,
    dilate,
    erode,
    image_mean,
    image_worst,
    per_image,
    pred,
    target,
    total,
)
from autosegloss.metric.expr import Leaf, as_expr, band
from tests import strategies
from tests.examples import examples

I, U, T = total(pred & target), total(pred | target), total(target)  # noqa: E741
PIXEL, IMAGE, CLASS = "pixel", "image", "class"


def message(build: Callable[..., Any], *arguments: Any, kind: type[Exception] = ExprError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        build(*arguments, **options)
    assert type(caught.value) is kind
    return str(caught.value)


# One node for equal expressions


def test_equal_expressions_are_one_object() -> None:
    assert (pred & target) is (pred & target)
    assert (pred & target) is not (target & pred)
    assert class_mean(I / U, where=U) is class_mean(total(pred & target) / total(pred | target), None or U)
    assert METRICS["jaccard"]() is METRICS["miou"]()
    assert 2 * I is 2.0 * I
    assert total(pred) is not per_image(pred)
    assert total(pred) is not total(pred, void="keep")
    assert total(pred) is not total(pred, within=target)
    assert dilate(pred, 1) is not dilate(pred, 2)
    assert dilate(pred, 2) is dilate(pred, 2, "square") is not dilate(pred, 2, "disk")
    assert erode(pred) is erode(pred, 1) is not erode(pred, border=True)
    assert any_class(pred) is not any_class(pred, background=False)
    assert class_mean(I) is not class_mean(I, background=False)
    assert image_worst(per_image(pred), 1) is image_worst(per_image(pred), 1.0)
    assert as_expr(0.0) is as_expr(-0.0)
    assert hash(pred & target) == hash(pred & target)
    assert len({pred & target, pred & target, pred | target}) == 2


@examples(60)
@given(expr=strategies.expressions())
def test_copies_are_the_same_object(expr: Expr) -> None:
    assert copy.copy(expr) is expr
    assert copy.deepcopy(expr) is expr
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(expr, protocol)) is expr


def test_a_copied_container_keeps_its_expressions() -> None:
    assert copy.deepcopy({"metric": I})["metric"] is I


def test_nodes_are_not_kept_for_ever() -> None:
    node = total(dilate(pred, 9876))
    gone = weakref.ref(node)
    del node
    gc.collect()
    assert gone() is None


def test_nodes_do_not_change() -> None:
    with pytest.raises(AttributeError):
        pred.name = "target"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        dilate(pred, 2).radius = 3  # type: ignore[attr-defined]


def test_the_leaves_are_the_only_ones_of_their_name() -> None:
    assert Leaf("pred") is pred
    assert Leaf("target") is target
    assert asl.pred is pred


# Axes and softness follow from the operands


@pytest.mark.parametrize(
    ("expr", "axes"),
    [
        (pred, {IMAGE, CLASS, PIXEL}),
        (~pred & erode(target) | dilate(pred, 2), {IMAGE, CLASS, PIXEL}),
        (2 * pred - target, {IMAGE, CLASS, PIXEL}),
        (any_class(pred), {IMAGE, PIXEL}),
        (any_class(pred) & any_class(target), {IMAGE, PIXEL}),
        (any_class(pred) & target, {IMAGE, CLASS, PIXEL}),
        (total(pred), {CLASS}),
        (per_image(pred), {IMAGE, CLASS}),
        (total(any_class(pred)), set()),
        (total(any_class(pred), within=target), {CLASS}),
        (per_image(any_class(pred)), {IMAGE}),
        (per_image(any_class(pred), within=target), {IMAGE, CLASS}),
        (I / U, {CLASS}),
        (per_image(pred) / total(target), {IMAGE, CLASS}),
        (per_image(any_class(pred)) / total(target), {IMAGE, CLASS}),
        (class_sum(per_image(pred)), {IMAGE}),
        (class_mean(per_image(pred)), {IMAGE}),
        (class_mean(I), set()),
        (image_mean(per_image(pred)), {CLASS}),
        (image_worst(per_image(pred), 0.1), {CLASS}),
        (image_mean(class_mean(per_image(pred))), set()),
        (as_expr(3), set()),
        (3 * I, {CLASS}),
    ],
    ids=lambda given: str(sorted(given) if isinstance(given, set) else given),
)
def test_axes(expr: Expr, axes: set[str]) -> None:
    assert expr.axes == axes
    assert expr.is_map == (PIXEL in axes)


@pytest.mark.parametrize(
    ("expr", "soft"),
    [
        (pred, True),
        (target, False),
        (as_expr(3), False),
        (erode(target) | ~target, False),
        (target & dilate(pred, 1), True),
        (total(target, within=any_class(pred)), True),
        (total(target, within=any_class(target)), False),
        (class_mean(T, where=U), True),
        (class_mean(T, where=T), False),
        (image_worst(per_image(target), 0.5, where=per_image(pred)), True),
        (class_sum(T) / class_sum(U), True),
    ],
    ids=str,
)
def test_softness(expr: Expr, soft: bool) -> None:
    assert expr.soft is soft


@pytest.mark.parametrize(
    "expr", [pred, ~pred, pred & target, erode(pred), dilate(pred, 1), any_class(pred), pred * target]
)
def test_maps_of_truth_values(expr: Expr) -> None:
    assert expr.truth
    assert erode(expr).truth


@pytest.mark.parametrize("expr", [pred + target, pred - target, 2 * pred, pred * (1 - target), I, as_expr(1)], ids=str)
def test_no_maps_of_truth_values(expr: Expr) -> None:
    assert not expr.truth


@examples(60)
@given(expr=strategies.expressions())
def test_a_walk_meets_each_node_once_after_its_operands(expr: Expr) -> None:
    seen: list[Expr] = []
    for node in expr.walk():
        assert node not in seen
        assert all(operand in seen for operand in node.operands)
        seen.append(node)
    assert seen[-1] is expr


def test_a_walk_goes_in_the_order_of_writing() -> None:
    assert [str(node) for node in ((pred & target) | (target ^ pred)).walk()] == [
        "pred",
        "target",
        "pred & target",
        "target ^ pred",
        "pred & target | target ^ pred",
    ]


# Building


def test_constants_are_folded() -> None:
    two = as_expr(2)
    assert str(two * 3 + 1 - 2 / two) == "6"
    assert -two is as_expr(-2)
    assert str(-I) == "-1 * total(pred & target)"


def test_operators_take_numbers_on_either_side() -> None:
    assert [str(x) for x in (1 + I, I + 1, 1 - I, I - 1, 2 * I, I * 2, 2 / I, I / 2)] == [
        "1 + total(pred & target)",
        "total(pred & target) + 1",
        "1 - total(pred & target)",
        "total(pred & target) - 1",
        "2 * total(pred & target)",
        "total(pred & target) * 2",
        "2 / total(pred & target)",
        "total(pred & target) / 2",
    ]


def test_short_forms() -> None:
    assert boundary(pred) is pred ^ erode(pred)
    assert band(pred) is pred ^ erode(pred, 0.02, border=True)
    assert dilate(pred, 0) is dilate(pred, 0, "disk") is erode(pred, 0) is pred


def test_text_for_people() -> None:
    assert repr(pred & target) == "<Logic pred & target>"
    assert repr(pred) == "<Leaf pred>"


def test_an_expression_is_neither_true_nor_false() -> None:
    expected = message(bool, pred)
    assert expected == (
        "an expression has no truth value while it is built; use &, | and ~ in place of and, or and not."
    )
    assert message(lambda: pred and target) == expected
    assert message(lambda: not pred) == expected
    with pytest.raises(TypeError):
        pred < target  # type: ignore[operator]  # noqa: B015


# Mistakes: the text is golden

LENGTH = "it is a whole number of pixels from 0 to 10000, or a share of the image's diagonal in (0, 1)."
LOGIC = "`{}` joins two pixel maps, but\n  {} and {}."


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lambda: total(pred) & target,
            "`&` joins two pixel maps, but\n"
            "  total(pred) is a per-class total and target is a pixel map.\n"
            "Move the sum outside: total(pred & target).",
        ),
        (
            lambda: pred | per_image(target),
            "`|` joins two pixel maps, but\n"
            "  pred is a pixel map and per_image(target) is a per-image and per-class total.\n"
            "Move the sum outside: per_image(pred | target).",
        ),
        (
            lambda: total(pred | target) & pred,
            "`&` joins two pixel maps, but\n"
            "  total(pred | target) is a per-class total and pred is a pixel map.\n"
            "Move the sum outside: total((pred | target) & pred).",
        ),
        (lambda: 1 ^ pred, LOGIC.format("^", "1 is a number", "pred is a pixel map")),
        (lambda: I & U, LOGIC.format("&", f"{I} is a per-class total", f"{U} is a per-class total")),
        (
            lambda: class_mean(I) & pred,
            LOGIC.format("&", "class_mean(total(pred & target)) is a single value", "pred is a pixel map"),
        ),
        (
            lambda: pred + total(target),
            "`+` joins two pixel maps, but\n"
            "  pred is a pixel map and total(target) is a per-class total.\n"
            "Move the sum outside: total(pred + target).",
        ),
        (
            lambda: pred / total(target),
            "`/` divides sums, but\n  pred is a pixel map and total(target) is a per-class total.\n"
            "Sum first: total(...) / total(...).",
        ),
        (
            lambda: pred & (pred + target),
            "`&` joins maps of truth values, but\n  pred + target may leave 0..1.\n"
            "Use & | ^ ~ or * to combine maps before it.",
        ),
        (lambda: ~total(pred), "~ takes a pixel map, but\n  total(pred) is a per-class total."),
        (lambda: ~(pred - target), "~ takes a map of truth values, but\n  pred - target may leave 0..1."),
        (lambda: erode(2 * pred), "erode takes a map of truth values, but\n  2 * pred may leave 0..1."),
        (lambda: dilate(I, 1), f"dilate takes a pixel map, but\n  {I} is a per-class total."),
        (
            lambda: any_class(any_class(pred)),
            "any_class joins the maps of all classes, but\n  any_class(pred) has no class axis any more.",
        ),
        (lambda: total(total(pred)), "total sums over pixels, but\n  total(pred) is a per-class total."),
        (lambda: per_image(3), "per_image sums over pixels, but\n  3 is a number."),
        (
            lambda: total(pred, within=T),
            "total: within= is a pixel map of truth values, but\n  total(target) is a per-class total.",
        ),
        (
            lambda: class_mean(pred),
            "class_mean goes over classes, but\n  pred is a pixel map.\n"
            "Sum over pixels first: class_mean(total(pred)).",
        ),
        (
            lambda: class_sum(total(any_class(pred))),
            "class_sum goes over classes, but\n  total(any_class(pred)) is a single total.",
        ),
        (
            lambda: image_mean(I),
            f"image_mean goes over images, but\n  {I} is a per-class total.\n"
            "Take the sums per image: per_image(...) in place of total(...).",
        ),
        (
            lambda: image_worst(pred, 0.5),
            "image_worst goes over images, but\n  pred is a pixel map.\n"
            "Sum over pixels first: image_worst(per_image(pred)).",
        ),
        (
            lambda: class_mean(T, where=per_image(target)),
            "class_mean: where= has the axes of what is averaged, but\n"
            "  total(target) is a per-class total and\n"
            "  per_image(target) is a per-image and per-class total.",
        ),
        (
            lambda: image_mean(class_sum(per_image(pred)), where=total(pred)),
            "image_mean: where= has the axes of what is averaged, but\n"
            "  class_sum(per_image(pred)) is a per-image value and\n"
            "  total(pred) is a per-class total.",
        ),
        (lambda: I / 0, f"{I} is divided by the constant 0."),
        (lambda: I * float("nan"), "nan can't be part of an expression; constants are finite numbers."),
        (lambda: as_expr(1e308) * 10, "inf can't be part of an expression; constants are finite numbers."),
        (lambda: I + True, "True is neither an expression nor a number."),
        (lambda: "pred" & pred, "'pred' is neither an expression nor a number."),
        (lambda: class_mean(None), "None is neither an expression nor a number."),
    ],
)
def test_what_does_not_fit_together(build: Callable[[], Any], expected: str) -> None:
    assert message(build) == expected


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: dilate(pred, -1), f"dilate: radius is -1; {LENGTH}"),
        (lambda: dilate(pred, 1.5), f"dilate: radius is 1.5; {LENGTH}"),
        (lambda: dilate(pred, 1.0), f"dilate: radius is 1.0; {LENGTH}"),
        (lambda: dilate(pred, 0.0), f"dilate: radius is 0.0; {LENGTH}"),
        (lambda: dilate(pred, float("nan")), f"dilate: radius is nan; {LENGTH}"),
        (lambda: dilate(pred, True), f"dilate: radius is True; {LENGTH}"),
        (lambda: dilate(pred, 2, "round"), 'dilate: shape is \'round\'; allowed: "square", "disk".'),
        (lambda: erode(pred, -1), f"erode: radius is -1; {LENGTH}"),
        (lambda: erode(pred, border=1), "erode: border is 1; allowed: True, False."),
        (lambda: band(pred, 0), f"band: width is 0; {LENGTH.replace('from 0', 'from 1')}"),
        (lambda: band(pred, 2.5), f"band: width is 2.5; {LENGTH.replace('from 0', 'from 1')}"),
        (lambda: any_class(pred, 1), "any_class: background is 1; allowed: True, False."),
        (lambda: class_mean(I, background="no"), "class_mean: background is 'no'; allowed: True, False."),
        (lambda: total(pred, void="drop"), 'total: void is \'drop\'; allowed: "skip", "keep".'),
        (
            lambda: image_worst(per_image(pred), 0),
            "image_worst: fraction is 0; it is a share of the images in (0, 1], such as 0.05.",
        ),
        (
            lambda: image_worst(per_image(pred), 5),
            "image_worst: fraction is 5; it is a share of the images in (0, 1], such as 0.05.",
        ),
    ],
)
def test_options_out_of_range(build: Callable[[], Any], expected: str) -> None:
    assert message(build, kind=InputError) == expected


def test_a_number_too_large_to_be_one() -> None:
    with pytest.raises(ExprError, match="constants are finite numbers"):
        as_expr(10**400)
