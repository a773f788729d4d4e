"""The text of an expression: Python syntax that `parse` reads back to the same node."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import cast

from typing_extensions import assert_never

from autosegloss.metric import expr as e

# Python's precedences, from loose to tight.
_PRECEDENCE = {"|": 1, "^": 2, "&": 3, "+": 4, "-": 4, "*": 5, "/": 5}
_UNARY = 6
_ATOM = 7


def to_text(expr: e.Expr) -> str:
    """The expression as one line of Python; a shared part is written once, `(x1 := ...)`, and named from then on."""
    uses = Counter(operand for node in expr.walk() for operand in node.operands)
    shared = {node for node, count in uses.items() if count > 1 and node.operands}
    return _Printer(shared).text(expr)[0]


class _Printer:
    def __init__(self, shared: set[e.Expr]) -> None:
        self.shared = shared
        self.names: dict[e.Expr, str] = {}

    def text(self, node: e.Expr) -> tuple[str, int]:
        if node in self.names:
            return self.names[node], _ATOM
        if node not in self.shared:
            return self.body(node)
        name = self.names[node] = f"x{len(self.names) + 1}"
        return f"({name} := {self.body(node)[0]})", _ATOM

    def body(self, expr: e.Expr) -> tuple[str, int]:
        node = cast("e.Node", expr)
        match node:
            case e.Leaf():
                return node.name, _ATOM
            case e.Number():
                return _number(node.value), _ATOM if node.value >= 0 else _UNARY
            case e.Logic() | e.Arithmetic():
                own = _PRECEDENCE[node.op]
                left = self.operand(node.left, own)
                right = self.operand(node.right, own + 1)
                return f"{left} {node.op} {right}", own
            case e.Not():
                return f"~{self.operand(node.map, _UNARY)}", _UNARY
            case e.Erode():
                return self.call("erode", node.map, radius=node.radius, border=node.border), _ATOM
            case e.Dilate():
                return self.call("dilate", node.map, radius=node.radius, shape=node.shape), _ATOM
            case e.AnyClass():
                return self.call("any_class", node.map, background=node.background), _ATOM
            case e.Sum():
                name = "per_image" if node.per_image else "total"
                return self.call(name, node.map, within=node.within, void=node.void), _ATOM
            case e.ClassMean():
                return self.call("class_mean", node.value, where=node.where, background=node.background), _ATOM
            case e.ClassSum():
                return self.call("class_sum", node.value), _ATOM
            case e.ImageMean():
                return self.call("image_mean", node.value, where=node.where), _ATOM
            case e.ImageWorst():
                return self.call("image_worst", node.value, fraction=node.fraction, where=node.where), _ATOM
            case _:
                assert_never(node)

    def operand(self, node: e.Expr, at_least: int) -> str:
        text, precedence = self.text(node)
        return text if precedence >= at_least else f"({text})"

    def call(self, name: str, first: e.Expr, **options: object) -> str:
        """`name(first, option=...)` without the options that have their default value."""
        parameters = inspect.signature(e.BUILDERS[name]).parameters
        parts = [self.text(first)[0]]
        for option, value in options.items():
            if value is None or value == parameters[option].default:
                continue
            if isinstance(value, e.Expr):
                parts.append(f"{option}={self.text(value)[0]}")
            elif isinstance(value, float):
                parts.append(f"{option}={_number(value)}")
            else:
                parts.append(f'{option}="{value}"' if isinstance(value, str) else f"{option}={value}")
        return f"{name}({', '.join(parts)})"


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
