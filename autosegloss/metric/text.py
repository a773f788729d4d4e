"""The text of an expression: Python syntax that `parse` reads back to the same node."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator

Text = tuple[str, int]
"""A text and how tightly its outermost operator binds."""

UNARY = 6
ATOM = 7
_PRECEDENCE = {"|": 1, "^": 2, "&": 3, "+": 4, "-": 4, "*": 5, "/": 5}  # Python's, from loose to tight


class Written(ABC):
    """A node with a text: `str` writes a shared part once, `(x1 := ...)`, and by its name from then on."""

    @property
    @abstractmethod
    def operands(self) -> tuple[Written, ...]:
        """The nodes this one is computed from, in the order in which they are written."""

    @abstractmethod
    def walk(self) -> Iterator[Written]:
        """Every node below and including this one, once."""

    @abstractmethod
    def text(self, printer: Printer) -> Text:
        """How the node is written; the printer writes its operands."""

    def __str__(self) -> str:
        uses = Counter(operand for node in self.walk() for operand in node.operands)
        return Printer({node for node, count in uses.items() if count > 1 and node.operands}).node(self)[0]


class Printer:
    """Writes nodes from left to right.

    Args:
        shared: The nodes that get a name.
    """

    def __init__(self, shared: set[Written]) -> None:
        self._shared = shared
        self._names: dict[Written, str] = {}

    def node(self, node: Written) -> Text:
        """A node, or its name where it is shared."""
        if node in self._names:
            return self._names[node], ATOM
        if node not in self._shared:
            return node.text(self)
        name = self._names[node] = f"x{len(self._names) + 1}"
        return f"({name} := {node.text(self)[0]})", ATOM

    def unary(self, op: str, operand: Written) -> Text:
        """`op operand`."""
        return f"{op}{self._operand(operand, UNARY)}", UNARY

    def binary(self, left: Written, op: str, right: Written) -> Text:
        """`left op right`, of an operator that groups from the left."""
        own = _PRECEDENCE[op]
        return f"{self._operand(left, own)} {op} {self._operand(right, own + 1)}", own

    def call(self, build: Callable[..., Written], first: Written, **options: object) -> Text:
        """`build(first, option=...)` without the options that have their default value."""
        parameters = inspect.signature(build).parameters
        parts = [self.node(first)[0]]
        for option, value in options.items():
            if value is None or value == parameters[option].default:
                continue
            if isinstance(value, Written):
                parts.append(f"{option}={self.node(value)[0]}")
            else:
                parts.append(f"{option}={_literal(value)}")
        return f"{build.__name__}({', '.join(parts)})", ATOM

    def _operand(self, node: Written, at_least: int) -> str:
        # As in `node`, without its frame: an expression may be nested as deeply as it can be read.
        if node in self._names or node in self._shared:
            return self.node(node)[0]
        text, precedence = node.text(self)
        return text if precedence >= at_least else f"({text})"


def _literal(value: object) -> str:
    """An option as Python writes it: a number, a text of printable characters, a flag, or a list of these."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """A finite number, without a fraction where it is whole."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
