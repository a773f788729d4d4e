"""Metrics as expressions: the nodes, and the functions that build them.

A metric is written once, over the leaves `pred` and `target` (one map per class and pixel), and is later evaluated
exactly or relaxed into a loss. A node knows its axes and whether it depends on `pred`; both are derived, never
declared. Equal nodes are one object, so `a == b` compares whole expressions and shared parts are computed and printed
once.
"""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Final, Literal, Union, cast, get_args
from weakref import WeakValueDictionary

from autosegloss.errors import ExprError, InputError, cut, shown
from autosegloss.metric.classes import Class, class_number, class_weights, quoted, selection
from autosegloss.metric.text import ATOM, UNARY, Printer, Text, Written, number

Axis = Literal["image", "class", "pixel"]
Axes = frozenset[Axis]
LogicOp = Literal["&", "|", "^"]
ArithmeticOp = Literal["+", "-", "*", "/"]
Void = Literal["skip", "keep"]
BallShape = Literal["square", "disk"]
Operand = Union["Expr", float, int]

PIXEL_MAP: Final[Axes] = frozenset[Axis](("image", "class", "pixel"))
SCALAR: Final[Axes] = frozenset[Axis]()
LARGEST_RADIUS: Final = 10_000  # pixels: far beyond any tolerance at a boundary

_nodes: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


class _Interned(ABCMeta):
    """Makes equal nodes one object: building a node twice gives the first one back."""

    def __call__(cls, *args: Any) -> Any:
        node = super().__call__(*args)
        return _nodes.setdefault((cls, *node.arguments), node)


class Expr(Written, metaclass=_Interned):
    """A node of a metric expression; one of the subclasses below, which are closed (see `Node`)."""

    @property
    @abstractmethod
    def axes(self) -> Axes:
        """The named axes of the value."""

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The fields of the node, in order: operands and options."""
        return tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    @cached_property
    def operands(self) -> tuple[Expr, ...]:
        """The nodes this one is computed from, in the order in which they are written."""
        return tuple(argument for argument in self.arguments if isinstance(argument, Expr))

    @cached_property
    def soft(self) -> bool:
        """Whether the value depends on `pred`."""
        return any(operand.soft for operand in self.operands)

    @property
    def truth(self) -> bool:
        """Whether the value is a map of truth values: 0 or 1 exactly, in [0, 1] relaxed."""
        return False

    @cached_property
    def is_map(self) -> bool:
        """Whether the value has a pixel axis."""
        return "pixel" in self.axes

    def walk(self) -> Iterator[Expr]:
        """Every node below and including this one, once, operands before the nodes that use them."""
        seen: set[Expr] = set()
        stack: list[tuple[Expr, bool]] = [(self, False)]
        while stack:
            node, ready = stack.pop()
            if ready:
                yield node
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((operand, False) for operand in reversed(node.operands))

    def __reduce__(self) -> tuple[type[Expr], tuple[Any, ...]]:
        return type(self), self.arguments

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Expr:
        return self

    def __bool__(self) -> bool:
        raise ExprError(
            "an expression has no truth value while it is built; use &, | and ~ in place of and, or and not."
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def __and__(self, other: Operand) -> Expr:
        return _logic("&", self, other)

    def __rand__(self, other: Operand) -> Expr:
        return _logic("&", other, self)

    def __or__(self, other: Operand) -> Expr:
        return _logic("|", self, other)

    def __ror__(self, other: Operand) -> Expr:
        return _logic("|", other, self)

    def __xor__(self, other: Operand) -> Expr:
        return _logic("^", self, other)

    def __rxor__(self, other: Operand) -> Expr:
        return _logic("^", other, self)

    def __invert__(self) -> Expr:
        return Not(_truth_map(self, "~"))

    def __neg__(self) -> Expr:
        return arithmetic("*", -1, self)

    def __add__(self, other: Operand) -> Expr:
        return arithmetic("+", self, other)

    def __radd__(self, other: Operand) -> Expr:
        return arithmetic("+", other, self)

    def __sub__(self, other: Operand) -> Expr:
        return arithmetic("-", self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return arithmetic("-", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return arithmetic("*", self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return arithmetic("*", other, self)

    def __truediv__(self, other: Operand) -> Expr:
        return arithmetic("/", self, other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return arithmetic("/", other, self)


@dataclass(frozen=True, eq=False, repr=False)
class Leaf(Expr):
    """`pred` or `target`: one map per class."""

    name: Literal["pred", "target"]

    @cached_property
    def axes(self) -> Axes:
        return PIXEL_MAP

    @cached_property
    def soft(self) -> bool:
        return self.name == "pred"

    @property
    def truth(self) -> bool:
        return True

    def text(self, printer: Printer) -> Text:
        return self.name, ATOM


@dataclass(frozen=True, eq=False, repr=False)
class Number(Expr):
    """A constant."""

    value: float

    @cached_property
    def axes(self) -> Axes:
        return SCALAR

    def text(self, printer: Printer) -> Text:
        return number(self.value), ATOM if self.value >= 0 else UNARY


@dataclass(frozen=True, eq=False, repr=False)
class Logic(Expr):
    """`a & b`, `a | b`, `a ^ b`: the operators whose relaxation is searched."""

    op: LogicOp
    left: Expr
    right: Expr

    @cached_property
    def axes(self) -> Axes:
        return self.left.axes | self.right.axes

    @property
    def truth(self) -> bool:
        return True

    def text(self, printer: Printer) -> Text:
        return printer.binary(self.left, self.op, self.right)


@dataclass(frozen=True, eq=False, repr=False)
class Not(Expr):
    """`~a`: 1 - a."""

    map: Expr

    @cached_property
    def axes(self) -> Axes:
        return self.map.axes

    @property
    def truth(self) -> bool:
        return True

    def text(self, printer: Printer) -> Text:
        return printer.unary("~", self.map)


@dataclass(frozen=True, eq=False, repr=False)
class Erode(Expr):
    """Minimum over the square neighbourhood of a radius, inside the image or with 0 outside."""

    map: Expr
    radius: float
    border: bool

    @cached_property
    def axes(self) -> Axes:
        return self.map.axes

    @property
    def truth(self) -> bool:
        return True

    def text(self, printer: Printer) -> Text:
        return printer.call(erode, self.map, radius=self.radius, border=self.border)


@dataclass(frozen=True, eq=False, repr=False)
class Dilate(Expr):
    """Maximum over the square or round neighbourhood of a radius, inside the image."""

    map: Expr
    radius: float
    shape: BallShape

    @cached_property
    def axes(self) -> Axes:
        return self.map.axes

    @property
    def truth(self) -> bool:
        return True

    def text(self, printer: Printer) -> Text:
        return printer.call(dilate, self.map, radius=self.radius, shape=self.shape)


@dataclass(frozen=True, eq=False, repr=False)
class AnyClass(Expr):
    """Maximum over the classes, with or without class 0."""

    map: Expr
    background: bool

    @cached_property
    def axes(self) -> Axes:
        return self.map.axes - {"class"}

    @property
    def truth(self) -> bool:
        return True

    def text(self, printer: Printer) -> Text:
        return printer.call(any_class, self.map, background=self.background)


@dataclass(frozen=True, eq=False, repr=False)
class Sum(Expr):
    """A sum over pixels, of all images together or of each image: the statistics a metric is made of."""

    map: Expr
    per_image: bool
    within: Expr | None
    void: Void

    @cached_property
    def axes(self) -> Axes:
        axes = self.map.axes if self.within is None else self.map.axes | self.within.axes
        return axes - {"pixel"} if self.per_image else axes - {"pixel", "image"}

    def text(self, printer: Printer) -> Text:
        return printer.call(per_image if self.per_image else total, self.map, within=self.within, void=self.void)


@dataclass(frozen=True, eq=False, repr=False)
class Arithmetic(Expr):
    """`a + b`, `a - b`, `a * b`, `a / b`, broadcast over the named axes; 0 / 0 = 0."""

    op: ArithmeticOp
    left: Expr
    right: Expr

    @cached_property
    def axes(self) -> Axes:
        return self.left.axes | self.right.axes

    @property
    def truth(self) -> bool:
        return self.op == "*" and self.left.truth and self.right.truth

    def text(self, printer: Printer) -> Text:
        return printer.binary(self.left, self.op, self.right)


@dataclass(frozen=True, eq=False, repr=False)
class ClassMean(Expr):
    """Mean over the classes that count, perhaps of some classes only, perhaps weighted."""

    value: Expr
    where: Expr | None
    background: bool
    classes: tuple[Class, ...] | None = None
    weights: tuple[float, ...] | None = None

    @cached_property
    def axes(self) -> Axes:
        return self.value.axes - {"class"}

    def text(self, printer: Printer) -> Text:
        options = {"background": self.background, "classes": self.classes, "weights": self.weights}
        return printer.call(class_mean, self.value, where=self.where, **options)

    @property
    def selects(self) -> bool:
        """Whether classes or weights are given."""
        return self.classes is not None or self.weights is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that are given by name."""
        return tuple(each for each in self.classes or () if isinstance(each, str))

    def check_names(self) -> None:
        """Raise InputError where a class is still given by name."""
        if self.class_names:
            raise InputError(
                f"class {quoted(self.class_names[0])} is given by name, but the names of the classes are not known "
                "here; give its number, or the names of all classes: metric(..., class_names=[...])."
            )

    def weights_of(self, num_classes: int) -> tuple[float, ...]:
        """The weight of each class of the data; 0 for a class that is not in the mean.

        Raises:
            InputError: A class is out of range or still a name, or there are not as many weights as classes.
        """
        self.check_names()
        return class_weights(self.classes, self.weights, self.background, num_classes)


@dataclass(frozen=True, eq=False, repr=False)
class ClassSum(Expr):
    """Sum over the classes."""

    value: Expr

    @cached_property
    def axes(self) -> Axes:
        return self.value.axes - {"class"}

    def text(self, printer: Printer) -> Text:
        return printer.call(class_sum, self.value)


@dataclass(frozen=True, eq=False, repr=False)
class ImageMean(Expr):
    """Mean over the images that count."""

    value: Expr
    where: Expr | None

    @cached_property
    def axes(self) -> Axes:
        return self.value.axes - {"image"}

    def text(self, printer: Printer) -> Text:
        return printer.call(image_mean, self.value, where=self.where)


@dataclass(frozen=True, eq=False, repr=False)
class ImageWorst(Expr):
    """Mean over the lowest share of the images that count."""

    value: Expr
    fraction: float
    where: Expr | None

    @cached_property
    def axes(self) -> Axes:
        return self.value.axes - {"image"}

    def text(self, printer: Printer) -> Text:
        return printer.call(image_worst, self.value, fraction=self.fraction, where=self.where)


MapNode = Leaf | Number | Logic | Not | Erode | Dilate | AnyClass | Arithmetic
"""The nodes that a pixel map is made of."""
ValueNode = Number | Sum | Arithmetic | ClassMean | ClassSum | ImageMean | ImageWorst
"""The nodes that come after the sums."""
Node = MapNode | ValueNode
"""Every kind of node there is."""

pred: Final = Leaf("pred")
"""The prediction: the one-hot arg-max exactly, the softmax relaxed."""
target: Final = Leaf("target")
"""The label: one-hot, or soft; 0 in every class at ignored pixels."""


def total(map: Operand, within: Expr | None = None, void: Void = "skip") -> Expr:
    """Sum of a map over the pixels of all images, per class.

    Args:
        map: A pixel map.
        within: A map of truth values; only pixels inside it are summed.
        void: "skip" leaves ignored pixels out, "keep" counts them too.

    Returns:
        A value per class (a plain number if the map has no class axis).

    Raises:
        ExprError: `map` or `within` is not a pixel map.
    """
    return _sum(map, False, within, void)


def per_image(map: Operand, within: Expr | None = None, void: Void = "skip") -> Expr:
    """Sum of a map over the pixels of each image, per class; the arguments are those of `total`."""
    return _sum(map, True, within, void)


def class_mean(
    value: Operand,
    where: Expr | None = None,
    background: bool = True,
    classes: Class | Sequence[Class] | None = None,
    weights: Sequence[float] | None = None,
) -> Expr:
    """Mean over the classes with `where > 0` (all without `where`); 0 if there is none.

    Args:
        value: A value per class, or per image and class.
        where: The classes that count; its axes are among those of `value`.
        background: Whether class 0 may count.
        classes: The classes that may count, by number or by name; one alone needs no list. A name becomes a number
            where the names of the data are known (see `with_class_names`). Their order does not matter.
        weights: A weight per class of `classes`, or per class of the data; 0, or from 1e-6 to 1e6. The mean is
            the weighted one of the classes that count.

    Raises:
        ExprError: There is no class axis to average over.
        InputError: `classes` or `weights` can't be meant.
    """
    expr = _over("class_mean", "class", value)
    where = _where("class_mean", "class", expr, where)
    background = _flag("class_mean", "background", background)
    names, shares, background = selection(classes, weights, background)
    return ClassMean(expr, where, background, names, shares)


def class_sum(value: Operand) -> Expr:
    """Sum over the classes of a value per class, or per image and class."""
    return ClassSum(_over("class_sum", "class", value))


def image_mean(value: Operand, where: Expr | None = None) -> Expr:
    """Mean over the images with `where > 0` (all without `where`); 0 if there is none."""
    expr = _over("image_mean", "image", value)
    return ImageMean(expr, _where("image_mean", "image", expr, where))


def image_worst(value: Operand, fraction: float, where: Expr | None = None) -> Expr:
    """Mean of the lowest `max(1, floor(fraction * n))` of the n images with `where > 0`; 0 if there is none.

    Reference: Wang et al., Revisiting Evaluation Metrics for Semantic Segmentation, NeurIPS 2023.
    """
    expr = _over("image_worst", "image", value)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise InputError(
            f"image_worst: fraction is {shown(fraction)}; it is a share of the images in (0, 1], such as 0.05."
        )
    return ImageWorst(expr, float(fraction), _where("image_worst", "image", expr, where))


def erode(map: Expr, radius: float = 1, border: bool = False) -> Expr:
    """Minimum over the (2 radius + 1)-wide square around each pixel, as by `radius` erosions of 3x3.

    Args:
        map: A pixel map of truth values.
        radius: A whole number of pixels, or a share of the image's diagonal in (0, 1), which is rounded to pixels and
            at least one.
        border: Whether the outside of the image counts, as 0, so that the image border is a boundary of what touches
            it. An axis of length 1 has no border.
    """
    expr = _truth_map(map, "erode")
    return Erode(expr, radius, _flag("erode", "border", border)) if _radius("erode", "radius", radius) else expr


def dilate(map: Expr, radius: float, shape: BallShape = "square") -> Expr:
    """Maximum over the neighbourhood of each pixel inside the image.

    Args:
        map: A pixel map of truth values.
        radius: As for `erode`; 0 is the map itself.
        shape: "square" is what lies within `radius` by the Chebyshev distance, "disk" by the Euclidean distance.
    """
    expr = _truth_map(map, "dilate")
    if shape not in get_args(BallShape):
        raise InputError(f'dilate: shape is {shown(shape)}; allowed: "square", "disk".')
    return Dilate(expr, radius, shape) if _radius("dilate", "radius", radius) else expr


def boundary(map: Expr) -> Expr:
    """The inner boundary of each class, `map ^ erode(map)`: pixels with a neighbour of another class."""
    return map ^ erode(map)


def band(map: Expr, width: float = 0.02) -> Expr:
    """The inner boundary region of each class, `map ^ erode(map, width, border=True)`; the image border is a boundary.

    Args:
        map: A pixel map of truth values.
        width: A whole number of pixels, at least 1, or a share of the image's diagonal, as the radius of `erode`.

    Reference: Cheng et al., Boundary IoU, CVPR 2021.
    """
    return map ^ erode(map, _radius("band", "width", width, least=1), border=True)


def any_class(map: Expr, background: bool = True) -> Expr:
    """Maximum over the classes, with or without class 0."""
    expr = _truth_map(map, "any_class")
    if "class" not in expr.axes:
        raise ExprError(f"any_class joins the maps of all classes, but\n  {cut(str(expr))} has no class axis any more.")
    return AnyClass(expr, _flag("any_class", "background", background))


BUILDERS: Final[dict[str, Callable[..., Expr]]] = {
    build.__name__: build
    for build in (
        total,
        per_image,
        class_mean,
        class_sum,
        image_mean,
        image_worst,
        erode,
        dilate,
        boundary,
        band,
        any_class,
    )
}
"""The functions a text expression may call, by name."""


def as_expr(value: Operand) -> Expr:
    """The expression itself, or the constant a number stands for."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExprError(f"{shown(value)} is neither an expression nor a number.")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not math.isfinite(number):
        raise ExprError(f"{shown(number)} can't be part of an expression; constants are finite numbers.")
    return Number(number + 0.0)  # -0 and 0 are one constant


def arithmetic(op: ArithmeticOp, a: Operand, b: Operand) -> Expr:
    """`a op b` for two maps, two values, or either with a number; constants are folded."""
    left, right = as_expr(a), as_expr(b)
    if isinstance(right, Number) and right.value == 0 and op == "/":
        raise ExprError(f"{cut(str(left))} is divided by the constant 0.")
    if isinstance(left, Number) and isinstance(right, Number):
        x, y = left.value, right.value
        return as_expr(x + y if op == "+" else x - y if op == "-" else x * y if op == "*" else x / y)
    if left.is_map or right.is_map:
        if op == "/":
            raise ExprError(
                f"`/` divides sums, but\n  {_described(left)} and {_described(right)}.\n"
                "Sum first: total(...) / total(...)."
            )
        _same_kind(op, left, right, allow_numbers=True)
    return Arithmetic(op, left, right)


def rebuilt(expr: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """The expression with each node replaced by what `change` makes of it, operands first."""
    done: dict[Expr, Expr] = {}
    for node in expr.walk():
        arguments = [done[argument] if isinstance(argument, Expr) else argument for argument in node.arguments]
        done[node] = made = change(type(node)(*arguments))
        _ = made.axes, made.soft  # from the bottom up: an expression may be deep
    return done[expr]


def with_class_names(expr: Expr, class_names: Sequence[str]) -> Expr:
    """The expression with class numbers in place of class names.

    Args:
        expr: An expression.
        class_names: The names of all classes, in the order of their numbers.

    Raises:
        InputError: A class is not among them, or there are not as many weights as classes.
    """

    def change(node: Expr) -> Expr:
        if isinstance(node, ClassMean) and node.selects:
            if node.classes is not None:
                numbers = [class_number(each, class_names) for each in node.classes]
                node = class_mean(node.value, node.where, node.background, numbers, node.weights)
            cast("ClassMean", node).weights_of(len(class_names))
        return node

    return rebuilt(expr, change)


def check_classes(expr: Expr, num_classes: int | None = None) -> None:
    """Raise InputError where class names are left, or where the data has no such classes.

    Args:
        expr: An expression.
        num_classes: The number of classes of the data; None if it is not known yet.
    """
    for node in expr.walk():
        if isinstance(node, ClassMean) and node.selects:
            node.check_names()
            if num_classes is not None:
                node.weights_of(num_classes)


def has_class_names(expr: Expr) -> bool:
    """Whether a class is given by its name."""
    return any(isinstance(node, ClassMean) and node.class_names for node in expr.walk())


def check_scalar(expr: Expr) -> Expr:
    """The expression if its value is one number, as a metric's is.

    Raises:
        ExprError: Axes are left, naming them.
    """
    if not isinstance(expr, Expr):
        raise ExprError(f"a metric is an expression, a name or a text, not {type(expr).__name__}.")
    if expr.axes:
        kind = _kind(expr)
        first = "total(...) or per_image(...)" if expr.is_map else "class_mean(...) or class_sum(...)"
        if expr.axes == {"image"}:
            first = "image_mean(...)"
        raise ExprError(f"a metric is one number, but\n  {cut(str(expr))} is {kind}.\nReduce it with {first}.")
    if not expr.soft:
        raise ExprError(f"a metric depends on the prediction, but\n  {cut(str(expr))} does not: pred is not in it.")
    return expr


def _logic(op: LogicOp, a: Operand, b: Operand) -> Expr:
    left, right = as_expr(a), as_expr(b)
    _same_kind(op, left, right, allow_numbers=False)
    for operand in (left, right):
        if not operand.truth:
            raise ExprError(
                f"`{op}` joins maps of truth values, but\n  {cut(str(operand))} may leave 0..1.\n"
                "Use & | ^ ~ or * to combine maps before it."
            )
    return Logic(op, left, right)


def _sum(map: Operand, each: bool, within: Expr | None, void: Void) -> Expr:
    name = "per_image" if each else "total"
    expr = as_expr(map)
    if not expr.is_map:
        raise ExprError(f"{name} sums over pixels, but\n  {_described(expr)}.")
    if within is not None and not (isinstance(within, Expr) and within.is_map and within.truth):
        given = _described(within) if isinstance(within, Expr) else repr(within)
        raise ExprError(f"{name}: within= is a pixel map of truth values, but\n  {given}.")
    if void not in ("skip", "keep"):
        raise InputError(f'{name}: void is {shown(void)}; allowed: "skip", "keep".')
    return Sum(expr, each, within, void)


def _over(name: str, axis: Axis, value: Operand) -> Expr:
    expr = as_expr(value)
    plural = "classes" if axis == "class" else "images"
    if expr.is_map:
        inner = cut(str(expr), 100)
        suggestion = f"{name}(per_image({inner}))" if axis == "image" else f"{name}(total({inner}))"
        raise ExprError(f"{name} goes over {plural}, but\n  {_described(expr)}.\nSum over pixels first: {suggestion}.")
    if axis not in expr.axes:
        hint = "\nTake the sums per image: per_image(...) in place of total(...)." if axis == "image" else ""
        raise ExprError(f"{name} goes over {plural}, but\n  {_described(expr)}.{hint}")
    return expr


def _where(name: str, axis: Axis, value: Expr, where: Expr | None) -> Expr | None:
    if where is None:
        return None
    if not isinstance(where, Expr) or axis not in where.axes or not where.axes <= value.axes:
        given = _described(where) if isinstance(where, Expr) else repr(where)
        raise ExprError(f"{name}: where= has the axes of what is averaged, but\n  {_described(value)} and\n  {given}.")
    return where


def _flag(name: str, option: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name}: {option} is {shown(value)}; allowed: True, False.")
    return value


def _radius(name: str, option: str, value: float, least: int = 0) -> float:
    """A length: an int in pixels, or a float below 1 as a share of the image's diagonal."""
    pixels = isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST_RADIUS
    if not pixels and not (isinstance(value, float) and 0 < value < 1):
        raise InputError(
            f"{name}: {option} is {shown(value)}; it is a whole number of pixels from {least} to "
            f"{LARGEST_RADIUS}, or a share of the image's diagonal in (0, 1)."
        )
    return value


def _truth_map(value: Operand, name: str) -> Expr:
    expr = as_expr(value)
    if not expr.is_map:
        raise ExprError(f"{name} takes a pixel map, but\n  {_described(expr)}.")
    if not expr.truth:
        raise ExprError(f"{name} takes a map of truth values, but\n  {cut(str(expr))} may leave 0..1.")
    return expr


def _same_kind(op: str, left: Expr, right: Expr, *, allow_numbers: bool) -> None:
    for a, b in ((left, right), (right, left)):
        if a.is_map or (allow_numbers and isinstance(a, Number)):
            continue
        message = f"`{op}` joins two pixel maps, but\n  {_described(left)} and {_described(right)}."
        if isinstance(a, Sum) and b.is_map:
            parts = [
                f"({cut(str(part), 100)})" if isinstance(part, Logic | Arithmetic) else cut(str(part), 100)
                for part in (a.map, b)
            ]
            inner = f" {op} ".join(parts if a is left else reversed(parts))
            message += f"\nMove the sum outside: {'per_image' if a.per_image else 'total'}({inner})."
        raise ExprError(message)


def _described(expr: Expr) -> str:
    return f"{cut(str(expr))} is {_kind(expr)}"


def _kind(expr: Expr) -> str:
    if isinstance(expr, Number):
        return "a number"
    if expr.is_map:
        return "a pixel map"
    what = "total" if isinstance(expr, Sum) else "value"
    if expr.axes == {"class"}:
        return f"a per-class {what}"
    if expr.axes == {"image"}:
        return f"a per-image {what}"
    if expr.axes:
        return f"a per-image and per-class {what}"
    return f"a single {what}"
