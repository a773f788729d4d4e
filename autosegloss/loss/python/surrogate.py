"""The surrogate of a metric in Python."""

from __future__ import annotations

import copy
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast, get_args

from typing_extensions import assert_never

from autosegloss.errors import InputError
from autosegloss.loss.curve import Curve
from autosegloss.loss.lovasz import Errors, Extension
from autosegloss.loss.python.written import ATOM, PRODUCT, SUM, WIDTH, Written, finite, indented, number_text, wrapped
from autosegloss.loss.relax import LogicKind, Slot, check_logic, slots
from autosegloss.metric import expr as e
from autosegloss.metric.interpret import PRESENT, Classes
from autosegloss.metric.parse import metric

_LONGEST_NAME = 32
_LONGEST_MAP, _LONGEST_OPERAND = 76, 40  # what is longer gets a name
_LONGEST_WEIGHTS = 12
_NARROW = 1e-9  # of a piece's width, as in `curve`
_Text = tuple[str, int]
"""An expression in Python and its precedence."""


def surrogate(content: Mapping[str, Any], number: int = 1) -> Written:
    """A surrogate, the first or another of a module."""
    expr, logic, classes = metric(content["metric"]), content["logic"], content["classes"]
    e.check_classes(expr)
    check_logic(logic)
    if classes not in get_args(Classes):
        raise InputError(f"classes is {classes!r}; allowed: {', '.join(get_args(Classes))}.")
    curves = {slot: Curve(content["curve"], tuple(content["slots"][str(slot)])) for slot in slots(expr)}
    writer = _Writer(expr, logic, classes, curves)

    name = "metric" if number == 1 else f"metric_{number}"
    maps = "target, valid" if writer.uses_valid else "target"
    about, value, precedence = f"1 - {name}", f"1 - _{name}(logits.softmax(1), {maps})", SUM
    if (scale := finite("scale", content.get("scale", 1))) != 1:
        about, value, precedence = f"{scale:.4g} * ({about})", f"{number_text(scale)} * ({value})", PRODUCT
    details = [indented(f"{name} = {expr}"), "\n".join(textwrap.wrap(_reading(expr, logic, writer), WIDTH))]
    arguments = ", ".join(f"{name}: Tensor" for name in ["pred", *maps.split(", ")])
    lines = [
        f"def _{name}({arguments}) -> Tensor:",
        '    """The metric of a batch from maps (N, C, *S) of the softmax and of the target."""',
        *writer.lines,
        f"    return {writer.result}",
    ]
    functions = ["\n".join(lines), *writer.score_functions, *writer.curve_functions()]
    return Written(about, value, functions, details, writer.uses_valid, logic == "lovasz", precedence)


def _reading(expr: e.Expr, logic: LogicKind, writer: _Writer) -> str:
    """What makes the metric differentiable, in a sentence."""
    operators = {node.op for node in expr.walk() if isinstance(node, e.Logic)}
    product = logic != "godel"
    parts = ["pred is the softmax of the logits"]
    if operators & {"&", "^"}:
        parts.append("a & b is a b" if product else "a & b is min(a, b)")
    if operators & {"|", "^"}:
        parts.append("a | b is a + b - a b" if product else "a | b is max(a, b)")
    if "^" in operators:
        parts.append("a ^ b is (a | b) - (a & b)")
    curved = ", where a and b go through monotone curves" if writer.has_curves else ""
    text = f"Made differentiable: {', '.join(parts)}{curved}."
    if logic == "lovasz":
        text += (
            " What is a function of the sums of one class goes through the Lovász extension of its fall with errors."
        )
    if writer.classes == "metric" or not any(isinstance(node, e.ClassMean) for node in expr.walk()):
        return text
    present = writer.classes == "present"
    return f"{text} A class mean counts {'the classes in the target' if present else 'every class, 0 where absent'}."


class _Writer:
    """The statements of an expression.

    Maps are (N, C, *S), or (N, 1, *S) without a class axis; a value has the axes that it is of: (N, C), (N,), (C,), ().
    """

    def __init__(self, expr: e.Expr, logic: LogicKind, classes: Classes, curves: Mapping[Slot, Curve]) -> None:
        self.lines: list[str] = []
        self.uses_valid = False
        self._logic, self.classes = "product" if logic == "lovasz" else logic, classes
        extension = Extension(expr, curves, classes) if logic == "lovasz" else None
        self._extended = {part.node: part.errors for part in extension.parts} if extension else {}
        self._errors: dict[Errors, str] = {}
        self.score_functions: list[str] = []
        """The functions of the scores that are extended after Lovász."""
        self._functions = _named({slot: curve for slot, curve in curves.items() if not curve.is_identity})
        self._curve_of = {slot: name for name, (_, places) in self._functions.items() for slot in places}.get
        self._names: dict[e.Expr, str] = {e.pred: "pred", e.target: "target"}
        self._taken = {"pred", "target", "valid", "torch", "loss", "mask", "logits"}
        self._uses = self._count_uses(expr)
        self.lines += [f"    # {line}" for line in wrapped(str(expr), WIDTH - 6)]
        self.result = self._body(expr)[0]

    @property
    def has_curves(self) -> bool:
        """Whether any operand has a curve."""
        return bool(self._functions)

    def curve_functions(self) -> Iterator[str]:
        """The function of each curve."""
        for name, (curve, places) in self._functions.items():
            doc = wrapped(f"Curve of {', and of '.join(map(_place, places))}.", WIDTH - 10)
            doc = [f'"""{doc[0]}"""'] if len(doc) == 1 else [f'"""{doc[0]}', *doc[1:], '"""']
            yield "\n".join([f"def {name}(x: Tensor) -> Tensor:", *(f"    {line}" for line in doc), *_ordinates(curve)])

    # What is named and what is not

    def _parts(self, node: e.Expr) -> list[e.Expr]:
        """The nodes that the text of a node is made of."""
        if node in self._extended:
            within = self._extended[node].within
            return [] if within is None else [within]
        if isinstance(node, e.ClassMean) and self.classes == "all":
            return [node.value]
        if isinstance(node, e.ClassMean) and self.classes == "present":
            return [node.value, _present(node)]
        return list(node.operands)

    def _count_uses(self, expr: e.Expr) -> Counter[e.Expr]:
        uses: Counter[e.Expr] = Counter([expr])
        stack = [expr]
        while stack:
            for part in self._parts(stack.pop()):
                uses[part] += 1
                if uses[part] == 1:
                    stack.append(part)
        return uses

    def _text(self, node: e.Expr, longest: int = _LONGEST_OPERAND, at_least: int = SUM) -> str:
        """The text of a node, or the name that it gets."""
        text, precedence = self._operand(node, longest)
        return text if precedence >= at_least else f"({text})"

    def _operand(self, node: e.Expr, longest: int) -> _Text:
        if node in self._names:
            return self._names[node], ATOM
        text, precedence = self._body(node)
        named = isinstance(node, e.Sum | e.Erode | e.Dilate | e.AnyClass) or self._uses[node] > 1 or len(text) > longest
        if named and not isinstance(node, e.Number):
            return self._assigned(node, text), ATOM
        return text, precedence

    def _assigned(self, node: e.Expr, text: str) -> str:
        name = self._names[node] = self._new_name(_described(node, self._names))
        self.lines.append(f"    {name} = {text}")
        return name

    def _new_name(self, wish: str) -> str:
        name, number = wish, 1
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        return name

    # The text of each kind of node

    def _body(self, expr: e.Expr) -> _Text:
        if expr in self._extended:
            return self._extension(expr, self._extended[expr]), ATOM
        node = cast("e.Node", expr)
        match node:
            case e.Leaf():
                return node.name, ATOM
            case e.Number():
                return number_text(node.value), ATOM if node.value >= 0 else SUM
            case e.Logic():
                return self._logic_text(node)
            case e.Not():
                return f"1 - {self._text(node.map, at_least=PRODUCT)}", SUM
            case e.Erode():
                erode = "_erode_with_border" if node.border else "_erode"
                return f"{erode}({self._text(node.map)}, {self._radius(node.radius)})", ATOM
            case e.Dilate():
                radius = self._radius(node.radius)
                if node.shape == "disk":
                    squared = f"{radius} ** 2" if isinstance(node.radius, float) else f"{node.radius}**2"
                    return f"_dilate_disk({self._text(node.map)}, {squared})", ATOM
                return f"_dilate({self._text(node.map)}, {radius})", ATOM
            case e.AnyClass():
                if node.background:
                    return f"{self._text(node.map, at_least=ATOM)}.amax(1, keepdim=True)", ATOM
                return f"_any_foreground({self._text(node.map)})", ATOM
            case e.Sum():
                return self._sum(node), ATOM
            case e.Arithmetic():
                return self._arithmetic(node)
            case e.ClassMean():
                return self._class_mean(node), ATOM
            case e.ClassSum():
                return f"{self._text(node.value, at_least=ATOM)}.sum(-1)", ATOM
            case e.ImageMean():
                if node.where is None:
                    value = self._text(node.value, longest=0)
                    return f"{value}.sum(0) / max(1, len({value}))", PRODUCT
                return f"_image_mean({self._text(node.value)}, where={self._where(node)})", ATOM
            case e.ImageWorst():
                value = self._text(node.value, longest=0)
                where = f"torch.ones_like({value})" if node.where is None else self._where(node)
                return f"_image_worst({value}, where={where}, fraction={number_text(node.fraction)})", ATOM
            case _:
                assert_never(node)

    def _extension(self, node: e.Expr, errors: Errors) -> str:
        """A score of each class, extended after Lovász."""
        if errors not in self._errors:
            bends = (self._curve_of(slot) if slot is not None else None for slot in errors.slots)
            own, other = (f"{bend}(pred)" if bend else "pred" for bend in bends)
            name = self._errors[errors] = self._new_name("errors")
            self.lines.append(f"    {name} = torch.where(target > 0, 1 - {own}, {other})")
        self.uses_valid = True
        counted = "valid"
        if errors.within is not None:
            counted = f"valid * {self._text(errors.within, longest=24, at_least=PRODUCT)}"
        function = "_image_extension" if errors.per_image else "_extension"
        return f"{function}({self._score(node, errors)}, {self._errors[errors]}, target, {counted})"

    def _score(self, node: e.Expr, errors: Errors) -> str:
        """The name of the function that a score is of its sums, which is written."""
        writer = copy.copy(self)
        size, both, either = (errors.sum_of(a_map) for a_map in (e.target, errors.both, errors.either))
        names = ((size, "size"), (both, "both"), (either, "either"))
        writer.lines, writer._extended = [], {}
        writer._names = {summed: name for summed, name in names if summed is not None}
        writer._taken = {"both", "either", "size", "torch"}
        writer._uses = writer._count_uses(node)
        result = writer._text(node, longest=WIDTH)
        name = self._new_name("_score")
        doc = wrapped(f"{node}, from its sums.", WIDTH - 10)
        doc = [f'"""{doc[0]}"""'] if len(doc) == 1 else [f'"""{doc[0]}', *doc[1:], '"""']
        lines = [*(f"    {line}" for line in doc), *writer.lines, f"    return {result}"]
        self.score_functions.append(
            "\n".join([f"def {name}(both: Tensor, either: Tensor, size: Tensor) -> Tensor:", *lines])
        )
        return name

    def _logic_text(self, node: e.Logic) -> _Text:
        longest = 0 if node.op == "^" else 24  # of XOR each operand is written twice
        operands = [self._operand(operand, longest) for operand in (node.left, node.right)]
        if node.op == "&":
            return self._under_curves("and", node, operands)
        either, precedence = self._under_curves("or", node, operands)
        if node.op == "|":
            return either, precedence
        both, _ = self._under_curves("and", node, operands)
        text = f"torch.relu({either} - {both})"
        if len(text) > _LONGEST_MAP:
            names = self._new_name("either"), self._new_name("both")
            self.lines += [f"    {name} = {part}" for name, part in zip(names, (either, both), strict=True)]
            text = f"torch.relu({names[0]} - {names[1]})"
        return text, ATOM

    def _under_curves(self, operator: Literal["and", "or"], node: e.Logic, operands: Sequence[_Text]) -> _Text:
        """AND or OR of two operands under their curves; one that has none of its own goes under its partner's."""
        first, second = (self._curve_of(Slot(operator, i, node)) for i in (0, 1))
        partner = first if node.left.soft else second
        parts = []
        for operand, curve, (text, precedence) in zip(node.operands, (first, second), operands, strict=True):
            curve = curve if operand.soft else partner
            bare = self._logic == "godel" or operator == "or" or precedence >= PRODUCT
            parts.append(f"{curve}({text})" if curve else text if bare else f"({text})")
        if self._logic == "godel":
            return f"torch.{'minimum' if operator == 'and' else 'maximum'}({', '.join(parts)})", ATOM
        return (f"{parts[0]} * {parts[1]}", PRODUCT) if operator == "and" else (f"_soft_or({', '.join(parts)})", ATOM)

    def _radius(self, radius: float) -> str:
        if isinstance(radius, int):
            return str(radius)
        return f"_pixels({number_text(radius)}, {self._names[e.pred]})"

    def _sum(self, node: e.Sum) -> str:
        text = self._text(node.map, longest=_LONGEST_MAP, at_least=PRODUCT)
        factors = [text, *([self._text(node.within, longest=24, at_least=PRODUCT)] if node.within is not None else [])]
        if node.void == "skip":
            self.uses_valid = True
            factors.append("valid")
        summed = f"{'_per_image' if node.per_image else '_total'}({' * '.join(factors)})"
        if "class" in node.axes:
            return summed
        return f"{summed}[:, 0]" if node.per_image else f"{summed}[0]"

    def _arithmetic(self, node: e.Arithmetic) -> _Text:
        def operand(part: e.Expr, at_least: int) -> str:
            if not node.is_map and "class" in node.axes and part.axes == {"image"}:
                return f"{self._text(part, at_least=ATOM)}[:, None]"
            return self._text(part, at_least=at_least)

        if node.op == "/" and not isinstance(node.right, e.Number):
            return f"_divide({operand(node.left, SUM)}, {operand(node.right, SUM)})", ATOM
        if isinstance(node.right, e.Number) and node.op == "/" and abs(node.right.value) < 1e-12:  # a 0 to `_divide`
            return f"0 * {operand(node.left, PRODUCT)}", PRODUCT
        own = PRODUCT if node.op in "*/" else SUM
        left, right = operand(node.left, own), operand(node.right, own + 1)
        return f"{left} {node.op} {right}", own

    def _class_mean(self, node: e.ClassMean) -> str:
        value, where = self._text(node.value, longest=0 if _is_quotient(node.value) else 24, at_least=ATOM), None
        if self.classes == "present":
            where = self._text(_present(node))
        elif self.classes == "metric" and node.where is not None:
            where = self._text(node.where, at_least=ATOM)
        if where is None and node.background and not node.selects:
            return f"{value}.mean(-1)"
        if not node.background:
            value = f"{value}[..., 1:]"
            where = None if where is None else f"{where}[..., 1:]"
        where = f"torch.ones_like({value})" if where is None else where
        if not node.selects:
            return f"_class_mean({value}, where={where})"
        if node.classes is None:
            weights = self._listed("[]", [number_text(weight) for weight in node.weights or ()])
            return f"_weighted_class_mean({value}, where={where}, weights={weights})"
        pairs = zip(node.classes, node.weights or [1.0] * len(node.classes), strict=True)
        weights = self._listed("{}", [f"{number}: {number_text(weight)}" for number, weight in pairs])
        return f"_mean_of_classes({value}, where={where}, weights={weights})"

    def _listed(self, brackets: str, items: list[str]) -> str:
        """The weights of classes, or the name that long ones get."""
        text = f"{brackets[0]}{', '.join(items)}{brackets[1]}"
        if len(text) <= _LONGEST_WEIGHTS:
            return text
        name = self._new_name("weights")
        line = f"    {name} = {text}"
        lines = [f"    {name} = {brackets[0]}", *(f"        {item}," for item in items), f"    {brackets[1]}"]
        self.lines += [line] if len(line) <= WIDTH else lines
        return name

    def _where(self, node: e.ImageMean | e.ImageWorst) -> str:
        where = cast("e.Expr", node.where)
        spread = "class" in node.value.axes and "class" not in where.axes
        return f"{self._text(where, at_least=ATOM)}[:, None]" if spread else self._text(where)


def _present(node: e.ClassMean) -> e.Sum:
    """What says that the target has a class."""
    return PRESENT["image" in node.value.axes]


def _named(curves: Mapping[Slot, Curve]) -> dict[str, tuple[Curve, list[Slot]]]:
    """The curves that differ, each with its places, by a name for its function."""
    places: dict[Curve, list[Slot]] = {}
    for slot, curve in curves.items():
        places.setdefault(curve, []).append(slot)
    if len(places) == 1:
        return {"_curve": next(iter(places.items()))}
    kinds = Counter(found[0].operator for found in places.values())
    named, numbers = {}, Counter[str]()
    for curve, found in places.items():
        kind = found[0].operator
        numbers[kind] += 1
        named[f"_{kind}_curve" + (f"_{numbers[kind]}" if kinds[kind] > 1 else "")] = (curve, found)
    return named


def _place(slot: Slot) -> str:
    both = slot.node.left.soft and slot.node.right.soft
    which = f" the {('first', 'second')[slot.operand]} operand of" if both else ""
    return f"{which} the {slot.operator.upper()} in {slot.node}".strip()


def _described(node: e.Expr, names: Mapping[e.Expr, str]) -> str:
    """A name that says what a value is, as far as one can tell."""
    name = _wish(node, names)
    return name if len(name) <= _LONGEST_NAME else "pixels" if node.is_map else "value"


def _wish(expr: e.Expr, names: Mapping[e.Expr, str]) -> str:
    node = cast("e.Node", expr)

    def of(part: e.Expr) -> str:
        return names.get(part) or _wish(part, names)

    match node:
        case e.Leaf():
            return node.name
        case e.Logic() if _is_boundary(node):
            return f"{of(node.left)}_boundary"
        case e.Logic():
            return {"&": "both", "|": "either", "^": "difference"}[node.op]
        case e.Not():
            return f"not_{of(node.map)}"
        case e.Erode():
            return f"eroded_{of(node.map)}"
        case e.Dilate():
            return f"near_{of(node.map)}"
        case e.AnyClass():
            return f"any_{of(node.map)}"
        case e.Sum():
            return ("image_" if node.per_image else "") + _wish_of_sum(node.map, of)
        case e.Arithmetic(op="/"):
            return _wish_of_quotient(node, of)
        case e.ClassMean() | e.ImageMean():
            return f"mean_{of(node.value)}".replace("mean_mean_", "mean_")
        case e.ImageWorst():
            return f"worst_{of(node.value)}"
        case e.ClassSum():
            return f"{of(node.value)}_sum"
        case e.Arithmetic(right=e.AnyClass()) if node.truth:
            return f"masked_{of(node.left)}"
        case e.Arithmetic() | e.Number():
            return "pixels" if node.is_map else "value"
        case _:
            assert_never(node)


def _is_quotient(node: e.Expr) -> bool:
    return isinstance(node, e.Arithmetic) and node.op == "/"


def _is_boundary(node: e.Expr) -> bool:
    return (
        isinstance(node, e.Logic) and node.op == "^" and isinstance(node.right, e.Erode) and node.right.map is node.left
    )


def _wish_of_sum(a_map: e.Expr, of: Callable[[e.Expr], str]) -> str:
    match a_map:
        case e.Logic(op="&"):
            return "intersection"
        case e.Logic(op="|"):
            return "union"
        case e.Logic(op="^") if not _is_boundary(a_map):
            return "difference"
        case e.Arithmetic():
            return (
                f"{of(a_map.left)}_hits" if isinstance(a_map.right, e.Dilate) else "hits" if a_map.truth else "amount"
            )
        case _:
            return f"{of(a_map)}_size"


def _wish_of_quotient(node: e.Arithmetic, of: Callable[[e.Expr], str]) -> str:
    match node.left, node.right:
        case e.Sum(map=e.Logic(op="&")), e.Sum(map=e.Logic(op="|")):
            return "iou"
        case e.Sum(map=part), e.Sum(map=whole) if whole in part.operands:
            return "precision" if whole.soft else "recall"
        case _, e.Arithmetic(op="+", left=a, right=b):
            names = {of(a).removeprefix("image_"), of(b).removeprefix("image_")}
            return {"intersection union": "dice", "precision recall": "f_score"}.get(" ".join(sorted(names)), "score")
        case _:
            return "score"


def _ordinates(curve: Curve) -> list[str]:
    """The last lines of the function of a curve."""
    if log := curve.logarithm:
        numbers = f"e={number_text(log.e)}, height={number_text(log.height)}"
        return [f"    return _log_curve(x, {numbers}{', mirrored=True' if log.mirrored else ''})"]
    shape = {"linear": "_polyline", "bezier": "_bezier"}[curve.kind]
    pieces = [f"({', '.join(f'({number_text(u)}, {number_text(v)})' for u, v in piece)})" for piece in _pieces(curve)]
    line = f"    return {shape}(x, [{', '.join(pieces)}])"
    if len(line) <= WIDTH:
        return [line]
    return ["    pieces = [", *(f"        {piece}," for piece in pieces), "    ]", f"    return {shape}(x, pieces)"]


def _pieces(curve: Curve) -> list[list[tuple[float, float]]]:
    """The points of each piece of a curve; a piece that is all but vertical is a jump, and none."""
    points = [(0.0, 0.0), *curve.points, (1.0, 1.0)]
    step = 1 if curve.kind == "linear" else 2
    pieces = [points[i : i + step + 1] for i in range(0, len(points) - 1, step)]
    return [piece for piece in pieces if piece[-1][0] - piece[0][0] >= _NARROW]
