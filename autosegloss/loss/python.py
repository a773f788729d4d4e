"""A loss as one Python module that needs nothing but PyTorch.

`source` walks the expression of a loss once and writes a statement for each value that deserves a name. The functions
that these statements call are copied from `autosegloss.loss.standalone`, and only those. Nothing of a loss file becomes
code but numbers; its provenance becomes comments, of printable characters alone.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from typing_extensions import assert_never

from autosegloss.errors import InputError
from autosegloss.loss import standalone
from autosegloss.loss.balance import balance
from autosegloss.loss.curve import Curve
from autosegloss.loss.lovasz import Errors, Extension
from autosegloss.loss.relax import LogicKind, Slot, check_logic, slots
from autosegloss.metric import expr as e
from autosegloss.metric.interpret import PRESENT, Classes
from autosegloss.metric.parse import metric

_WIDTH = 120
_LONGEST_NAME = 32
_LONGEST_MAP, _LONGEST_OPERAND = 76, 40  # what is longer gets a name
_LONGEST_WEIGHTS = 12
_LONGEST_PROVENANCE = 400  # characters of an entry; a longer one is a table, and stays in the loss file
_NARROW = 1e-9  # of a piece's width, as in `curve`
_LONGEST_VALUE = 105  # of a line that returns it
_SUM, _PRODUCT, _ATOM = 1, 2, 3  # Python's precedences, from loose to tight
_Text = tuple[str, int]
"""An expression in Python and its precedence."""
_AS_MAP = "weight = weight.view(-1, *[1] * (logits.ndim - 2))"


def source(content: Mapping[str, Any], ignore_index: int = 255) -> str:
    """The module of a loss: `loss(logits, target, mask=None)`, with its formula written out.

    Args:
        content: The content of a loss file, as it is read.
        ignore_index: The label of ignored pixels, `IGNORE_INDEX` of the module.

    Returns:
        The text of the module; the same for the same content.

    Raises:
        InputError: The loss is of a kind, or has an option, that is not known here.
    """
    loss = _written(content)
    about = f"Segmentation loss: {loss.about}{', over a batch' if loss.details else ''}."
    title = "\n\n".join(["\n".join(textwrap.wrap(about, _WIDTH - 3)), *loss.details])
    functions = [_loss(loss), *loss.functions]
    functions += _copied(functions)
    callables = ["from collections.abc import Callable"] if any("Callable[" in text for text in functions) else []
    head = [
        f'"""{title}\n\nWritten by `autosegloss export --python`; needs PyTorch and nothing else.\n"""',
        *_provenance(content.get("provenance", {})),
        *callables,
        "import torch\nfrom torch import Tensor",
        f"IGNORE_INDEX = {int(ignore_index)}  # the label of pixels that do not count",
    ]
    return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(functions) + "\n"


@dataclass(frozen=True)
class _Written:
    """A loss in Python: what it is, its value, and the functions that the value calls."""

    about: str
    value: str
    functions: Sequence[str] = ()
    details: Sequence[str] = ()  # paragraphs
    valid: bool = False  # whether the value takes `valid`
    hard: bool = False  # whether it is of integer labels only
    precedence: int = _ATOM  # of both texts


def _written(content: Mapping[str, Any]) -> _Written:
    if "parts" in content:
        scale = _finite("scale", content["scale"])
        return _sum([(scale * _finite("share", part["share"]), part) for part in content["parts"]])
    if "cross_entropy" in content:  # version 2
        share = _finite("cross_entropy", content["cross_entropy"])
        surrogate = {key: value for key, value in content.items() if key != "cross_entropy"}
        return _sum([(share, {"loss": "cross_entropy"}), (1 - share, surrogate)])
    return _classic(content) if "loss" in content else _surrogate(content)


def _sum(terms: Sequence[tuple[float, Mapping[str, Any]]]) -> _Written:
    """A weighted sum; functions of one name get another, unless they are the same."""
    abouts, values, parts = [], [], []
    functions: dict[str, str] = {}
    surrogates = 0
    for weight, content in terms:
        surrogates += "metric" in content
        part = _surrogate(content, surrogates) if "metric" in content else _classic(content)
        texts = [part.value, *part.functions]
        for name in [_name(text) for text in part.functions]:
            text = next(text for text in texts[1:] if _name(text) == name)
            if functions.get(name, text) != text:
                taken = {*functions, *map(_name, texts[1:])}
                new = next(f"{name}_{i}" for i in range(2, len(taken) + 3) if f"{name}_{i}" not in taken)
                texts = [re.sub(rf"\b{name}\b", new, text) for text in texts]
        functions |= {_name(text): text for text in texts[1:]}
        abouts.append(f"{weight:.4g} * {_grouped(part.about, part.precedence)}")
        values.append(f"{_number(weight)} * {_grouped(texts[0], part.precedence)}")
        parts.append(part)
    return _Written(
        " + ".join(abouts),
        "\n+ ".join(values),
        [*functions.values()],
        [paragraph for part in parts for paragraph in part.details],
        any(part.valid for part in parts),
        any(part.hard for part in parts),
        _SUM,
    )


def _name(function: str) -> str:
    """The name of a function, by its text."""
    return function[len("def ") : function.index("(")]


def _grouped(text: str, precedence: int) -> str:
    return text if precedence >= _PRODUCT else f"({text})"


# The surrogate of a metric --------------------------------------------------------------------------------------------


def _surrogate(content: Mapping[str, Any], number: int = 1) -> _Written:
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
    about, value, precedence = f"1 - {name}", f"1 - _{name}(logits.softmax(1), {maps})", _SUM
    if (scale := _finite("scale", content.get("scale", 1))) != 1:
        about, value, precedence = f"{scale:.4g} * ({about})", f"{_number(scale)} * ({value})", _PRODUCT
    details = [_indented(f"{name} = {expr}"), "\n".join(textwrap.wrap(_reading(expr, logic, writer), _WIDTH))]
    arguments = ", ".join(f"{name}: Tensor" for name in ["pred", *maps.split(", ")])
    lines = [
        f"def _{name}({arguments}) -> Tensor:",
        '    """The metric of a batch from maps (N, C, *S) of the softmax and of the target."""',
        *writer.lines,
        f"    return {writer.result}",
    ]
    functions = ["\n".join(lines), *writer.score_functions, *writer.curve_functions()]
    return _Written(about, value, functions, details, writer.uses_valid, logic == "lovasz", precedence)


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
        self.lines += [f"    # {line}" for line in _wrapped(str(expr), _WIDTH - 6)]
        self.result = self._body(expr)[0]

    @property
    def has_curves(self) -> bool:
        """Whether any operand has a curve."""
        return bool(self._functions)

    def curve_functions(self) -> Iterator[str]:
        """The function of each curve."""
        for name, (curve, places) in self._functions.items():
            doc = _wrapped(f"Curve of {', and of '.join(map(_place, places))}.", _WIDTH - 10)
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

    def _text(self, node: e.Expr, longest: int = _LONGEST_OPERAND, at_least: int = _SUM) -> str:
        """The text of a node, or the name that it gets."""
        text, precedence = self._operand(node, longest)
        return text if precedence >= at_least else f"({text})"

    def _operand(self, node: e.Expr, longest: int) -> _Text:
        if node in self._names:
            return self._names[node], _ATOM
        text, precedence = self._body(node)
        named = isinstance(node, e.Sum | e.Erode | e.Dilate | e.AnyClass) or self._uses[node] > 1 or len(text) > longest
        if named and not isinstance(node, e.Number):
            return self._assigned(node, text), _ATOM
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
            return self._extension(expr, self._extended[expr]), _ATOM
        node = cast("e.Node", expr)
        match node:
            case e.Leaf():
                return node.name, _ATOM
            case e.Number():
                return _number(node.value), _ATOM if node.value >= 0 else _SUM
            case e.Logic():
                return self._logic_text(node)
            case e.Not():
                return f"1 - {self._text(node.map, at_least=_PRODUCT)}", _SUM
            case e.Erode():
                erode = "_erode_with_border" if node.border else "_erode"
                return f"{erode}({self._text(node.map)}, {self._radius(node.radius)})", _ATOM
            case e.Dilate():
                radius = self._radius(node.radius)
                if node.shape == "disk":
                    squared = f"{radius} ** 2" if isinstance(node.radius, float) else f"{node.radius}**2"
                    return f"_dilate_disk({self._text(node.map)}, {squared})", _ATOM
                return f"_dilate({self._text(node.map)}, {radius})", _ATOM
            case e.AnyClass():
                if node.background:
                    return f"{self._text(node.map, at_least=_ATOM)}.amax(1, keepdim=True)", _ATOM
                return f"_any_foreground({self._text(node.map)})", _ATOM
            case e.Sum():
                return self._sum(node), _ATOM
            case e.Arithmetic():
                return self._arithmetic(node)
            case e.ClassMean():
                return self._class_mean(node), _ATOM
            case e.ClassSum():
                return f"{self._text(node.value, at_least=_ATOM)}.sum(-1)", _ATOM
            case e.ImageMean():
                if node.where is None:
                    value = self._text(node.value, longest=0)
                    return f"{value}.sum(0) / max(1, len({value}))", _PRODUCT
                return f"_image_mean({self._text(node.value)}, where={self._where(node)})", _ATOM
            case e.ImageWorst():
                value = self._text(node.value, longest=0)
                where = f"torch.ones_like({value})" if node.where is None else self._where(node)
                return f"_image_worst({value}, where={where}, fraction={_number(node.fraction)})", _ATOM
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
            counted = f"valid * {self._text(errors.within, longest=24, at_least=_PRODUCT)}"
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
        result = writer._text(node, longest=_WIDTH)
        name = self._new_name("_score")
        doc = _wrapped(f"{node}, from its sums.", _WIDTH - 10)
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
        return text, _ATOM

    def _under_curves(self, operator: Literal["and", "or"], node: e.Logic, operands: Sequence[_Text]) -> _Text:
        """AND or OR of two operands under their curves; one that has none of its own goes under its partner's."""
        first, second = (self._curve_of(Slot(operator, i, node)) for i in (0, 1))
        partner = first if node.left.soft else second
        parts = []
        for operand, curve, (text, precedence) in zip(node.operands, (first, second), operands, strict=True):
            curve = curve if operand.soft else partner
            bare = self._logic == "godel" or operator == "or" or precedence >= _PRODUCT
            parts.append(f"{curve}({text})" if curve else text if bare else f"({text})")
        if self._logic == "godel":
            return f"torch.{'minimum' if operator == 'and' else 'maximum'}({', '.join(parts)})", _ATOM
        return (f"{parts[0]} * {parts[1]}", _PRODUCT) if operator == "and" else (f"_soft_or({', '.join(parts)})", _ATOM)

    def _radius(self, radius: float) -> str:
        if isinstance(radius, int):
            return str(radius)
        return f"_pixels({_number(radius)}, {self._names[e.pred]})"

    def _sum(self, node: e.Sum) -> str:
        text = self._text(node.map, longest=_LONGEST_MAP, at_least=_PRODUCT)
        factors = [text, *([self._text(node.within, longest=24, at_least=_PRODUCT)] if node.within is not None else [])]
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
                return f"{self._text(part, at_least=_ATOM)}[:, None]"
            return self._text(part, at_least=at_least)

        if node.op == "/" and not isinstance(node.right, e.Number):
            return f"_divide({operand(node.left, _SUM)}, {operand(node.right, _SUM)})", _ATOM
        if isinstance(node.right, e.Number) and node.op == "/" and abs(node.right.value) < 1e-12:  # a 0 to `_divide`
            return f"0 * {operand(node.left, _PRODUCT)}", _PRODUCT
        own = _PRODUCT if node.op in "*/" else _SUM
        left, right = operand(node.left, own), operand(node.right, own + 1)
        return f"{left} {node.op} {right}", own

    def _class_mean(self, node: e.ClassMean) -> str:
        value, where = self._text(node.value, longest=0 if _is_quotient(node.value) else 24, at_least=_ATOM), None
        if self.classes == "present":
            where = self._text(_present(node))
        elif self.classes == "metric" and node.where is not None:
            where = self._text(node.where, at_least=_ATOM)
        if where is None and node.background and not node.selects:
            return f"{value}.mean(-1)"
        if not node.background:
            value = f"{value}[..., 1:]"
            where = None if where is None else f"{where}[..., 1:]"
        where = f"torch.ones_like({value})" if where is None else where
        if not node.selects:
            return f"_class_mean({value}, where={where})"
        if node.classes is None:
            weights = self._listed("[]", [_number(weight) for weight in node.weights or ()])
            return f"_weighted_class_mean({value}, where={where}, weights={weights})"
        pairs = zip(node.classes, node.weights or [1.0] * len(node.classes), strict=True)
        weights = self._listed("{}", [f"{number}: {_number(weight)}" for number, weight in pairs])
        return f"_mean_of_classes({value}, where={where}, weights={weights})"

    def _listed(self, brackets: str, items: list[str]) -> str:
        """The weights of classes, or the name that long ones get."""
        text = f"{brackets[0]}{', '.join(items)}{brackets[1]}"
        if len(text) <= _LONGEST_WEIGHTS:
            return text
        name = self._new_name("weights")
        line = f"    {name} = {text}"
        lines = [f"    {name} = {brackets[0]}", *(f"        {item}," for item in items), f"    {brackets[1]}"]
        self.lines += [line] if len(line) <= _WIDTH else lines
        return name

    def _where(self, node: e.ImageMean | e.ImageWorst) -> str:
        where = cast("e.Expr", node.where)
        spread = "class" in node.value.axes and "class" not in where.axes
        return f"{self._text(where, at_least=_ATOM)}[:, None]" if spread else self._text(where)


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
        numbers = f"e={_number(log.e)}, height={_number(log.height)}"
        return [f"    return _log_curve(x, {numbers}{', mirrored=True' if log.mirrored else ''})"]
    shape = {"linear": "_polyline", "bezier": "_bezier"}[curve.kind]
    pieces = [f"({', '.join(f'({_number(u)}, {_number(v)})' for u, v in piece)})" for piece in _pieces(curve)]
    line = f"    return {shape}(x, [{', '.join(pieces)}])"
    if len(line) <= _WIDTH:
        return [line]
    return ["    pieces = [", *(f"        {piece}," for piece in pieces), "    ]", f"    return {shape}(x, pieces)"]


def _pieces(curve: Curve) -> list[list[tuple[float, float]]]:
    """The points of each piece of a curve; a piece that is all but vertical is a jump, and none."""
    points = [(0.0, 0.0), *curve.points, (1.0, 1.0)]
    step = 1 if curve.kind == "linear" else 2
    pieces = [points[i : i + step + 1] for i in range(0, len(points) - 1, step)]
    return [piece for piece in pieces if piece[-1][0] - piece[0][0] >= _NARROW]


# The classics ---------------------------------------------------------------------------------------------------------


def _classic(content: Mapping[str, Any]) -> _Written:
    """A loss that is not a surrogate."""
    name, options = content["loss"], dict(content.get("options", {}))
    if name not in _CLASSICS:
        raise InputError(f"loss is {name!r}; allowed: {', '.join(_CLASSICS)}.")
    written = _CLASSICS[name](options)
    if options:
        raise InputError(f"{name} has no option {next(iter(options))!r}.")
    return written


def _cross_entropy(options: dict[str, Any]) -> _Written:
    weight, smoothing = _weights(options), _finite("label_smoothing", options.pop("label_smoothing", 0))
    power, counts = _finite("class_power", options.pop("class_power", 0)), options.pop("counts", None)
    extras = [*(["class weights"] if weight else []), *([f"class power {_number(power)}"] if power else [])]
    extras += ["label smoothing"] if smoothing else []
    about = f"cross-entropy with {' and '.join(extras)}" if extras else "cross-entropy"
    if not extras:
        return _Written(about, "_cross_entropy(logits, target)")
    smooth, weighed = "smooth" if smoothing else "target", "weight * " if weight else ""
    lines = ["log_pred = logits.log_softmax(1)"]
    if power:
        lines += [*_powers(power, counts), "target = weight * target"]
    if smoothing:
        lines += [
            "# A share of each label is spread evenly over all classes.",
            "spread = target.sum(1, keepdim=True) / target.shape[1]",
            f"smooth = {_number(1 - smoothing)} * target + {_number(smoothing)} * spread",
        ]
    lines += [
        f"summed = torch.where({smooth} > 0, -{weighed}{smooth} * log_pred, 0.0).sum()",
        f"return _divide(summed, ({weighed}target).sum())" if weight else "return _divide(summed, target.sum())",
    ]
    doc = (
        "Mean over the pixels that count, each weighing as much as its class"
        if weight or power
        else "Mean over the pixels that count"
    )
    function = _function(
        "_mean_cross_entropy", "logits: Tensor, target: Tensor", f"{doc}; 0 if there is none.", weight + lines
    )
    return _Written(about, "_mean_cross_entropy(logits, target)", [function])


def _powers(power: float, counts: Sequence[float] | None) -> list[str]:
    """The lines that make the weights of the classes from their pixels."""
    if counts is not None:
        numbers = balance([_finite("counts", count) for count in counts], power)
        return _class_weights(numbers, f"  # (pixels of the class) ** {_number(-power)}, counted beforehand")
    return [
        "pixels = _total(target.detach()).clamp(min=1)  # of each class",
        f"weight = (pixels / target.detach().sum().clamp(min=1)) ** {_number(-power)}",
        _AS_MAP,
    ]


def _focal(options: dict[str, Any]) -> _Written:
    weight, gamma = _weights(options), _finite("gamma", options.pop("gamma", 2))
    title = f"focal loss of gamma {_number(gamma)}" + (" with class weights" if weight else "")
    lines = [
        "values = torch.where(target > 0, -target * logits.log_softmax(1), 0.0).sum(1)  # -log p of the true class",
        f"weights = {'(weight * target)' if weight else 'target'}.sum(1)  # 0 where a pixel does not count",
        "# 1 - p without cancellation; the bound keeps the slope of a power below 1 finite at p = 1.",
        f"easiness = (-torch.expm1(-values)).clamp(min=1e-12) ** {_number(gamma)}",
        "return _divide((easiness * values * weights).sum(), weights.sum())",
    ]
    doc = "-(1 - p)^gamma log p, the mean over the pixels that count (Lin et al., ICCV 2017, equation 5)."
    function = _function("_focal", "logits: Tensor, target: Tensor", doc, weight + lines)
    return _Written(title, "_focal(logits, target)", [function], hard=True)


def _boundary_cross_entropy(options: dict[str, Any]) -> _Written:
    factor, radius = _finite("factor", options.pop("factor", 10)), int(options.pop("radius", 5))
    title = f"cross-entropy, {_number(factor)} times as heavy within {radius} pixels of a boundary"
    lines = [
        "values = torch.where(target > 0, -target * logits.log_softmax(1), 0.0).sum(1)",
        f"near = _dilate(target, {radius}).sum(1) > 1  # pixels with another class within the distance",
        f"weights = torch.where(near, {_number(factor)}, 1.0) * target.sum(1)  # 0 where a pixel does not count",
        "return _divide((values * weights).sum(), weights.sum())",
    ]
    doc = "Mean over the pixels that count; those near a boundary of the target weigh more."
    function = _function("_boundary_cross_entropy", "logits: Tensor, target: Tensor", doc, lines)
    return _Written(title, "_boundary_cross_entropy(logits, target)", [function], hard=True)


_CLASSICS = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "boundary_cross_entropy": _boundary_cross_entropy,
}


def _weights(options: dict[str, Any]) -> list[str]:
    """The line that makes the weights of the classes; none without."""
    weight = options.pop("weight", None)
    return [] if weight is None else _class_weights([_finite("weight", x) for x in weight])


def _class_weights(numbers: Sequence[float], comment: str = "") -> list[str]:
    texts = [_number(x) for x in numbers]
    line = f"weight = torch.tensor([{', '.join(texts)}], dtype=logits.dtype, device=logits.device){comment}"
    if len(line) <= _WIDTH - 4:
        return [line, _AS_MAP]
    several = f"weights = [{', '.join(texts)}]{comment}"
    lines = [several] if len(several) <= _WIDTH - 4 else [f"weights = [{comment}", *(f"    {x}," for x in texts), "]"]
    return [*lines, "weight = torch.tensor(weights, dtype=logits.dtype, device=logits.device)", _AS_MAP]


# The rest of the module -----------------------------------------------------------------------------------------------


def _loss(loss: _Written) -> str:
    """The public function."""
    unpacked = "target, valid" if loss.valid else "target, _"
    read = "_label_maps" if loss.hard else "_class_maps"
    check = ""
    if loss.hard:
        check = """
    if target.is_floating_point():
        raise TypeError(f"target has dtype {target.dtype}; this loss takes integer labels")"""
    soft = "" if loss.hard else "; or shares (N, C, *S) that sum to 1"
    about = loss.about if len(loss.about) <= _WIDTH - 10 else "the weighted sum of the losses above"
    value, pred = loss.value, ""
    if value.count("logits.softmax(1)") > 1:
        value, pred = value.replace("logits.softmax(1)", "pred"), "\n        pred = logits.softmax(1)"
    if len(value) <= _LONGEST_VALUE:
        value = value.replace("\n", " ")
    elif "\n" in value:
        value = "(\n" + textwrap.indent(value, " " * 12) + "\n        )"
    return f'''def loss(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """{about[0].upper()}{about[1:]}.

    Args:
        logits: Scores before the softmax, (N, C, *S), of any floating type.
        target: Integer labels, (N, *S) or (N, 1, *S), 0..C-1 or IGNORE_INDEX{soft}.
        mask: True where a pixel counts, boolean (N, *S) or (N, 1, *S); None if all do.

    Returns:
        A scalar, computed in float32 (float64 for float64 logits), also under autocast.
    """{check}
    logits = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    {unpacked} = {read}(logits, target, mask)
    with torch.autocast(logits.device.type, enabled=False):{pred}
        return {value}'''


def _function(name: str, arguments: str, doc: str, lines: list[str]) -> str:
    return "\n".join([f"def {name}({arguments}) -> Tensor:", f'    """{doc}"""', *(f"    {line}" for line in lines)])


def _copied(functions: list[str]) -> list[str]:
    """The functions of `standalone` that these call, directly or not, in their order there."""
    texts = {
        name: inspect.getsource(function).rstrip()
        for name, function in vars(standalone).items()
        if inspect.isfunction(function) and function.__module__ == standalone.__name__
    }
    called: set[str] = set()
    left = list(functions)
    while left:
        found = set(re.findall(r"\b_\w+(?=\()", left.pop())) & texts.keys() - called
        called |= found
        left += [texts[name] for name in found]
    return [text for name, text in texts.items() if name in called]


def _provenance(provenance: Mapping[str, Any]) -> list[str]:
    """Comments that say where a loss comes from."""
    lines, tables = [], []
    for key, value in provenance.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) > _LONGEST_PROVENANCE:
            tables.append(str(key))
        else:
            lines += _wrapped(f"{key}: {text}", _WIDTH - 2, indent="  ")
    if tables:
        lines += _wrapped(f"Also in the loss file: {', '.join(tables)}.", _WIDTH - 2, indent="  ")
    return ["\n".join(f"# {line}" for line in ["Provenance", "", *lines]).replace("# \n", "#\n")] if lines else []


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of printable characters alone: a line break in the text must not end a comment."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return textwrap.wrap(printable, width, subsequent_indent=indent, break_on_hyphens=False)


def _indented(text: str) -> str:
    return textwrap.indent("\n".join(_wrapped(text, _WIDTH - 4)), "    ")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}; must be a finite number.")
    return float(value)
