"""A part of a module in Python, and how its texts are written."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from autosegloss.errors import InputError

WIDTH = 120
"""Characters of a line."""
SUM, PRODUCT, ATOM = 1, 2, 3
"""Python's precedences, from loose to tight."""


@dataclass(frozen=True)
class Written:
    """A loss in Python: what it is, its value, and the functions that the value calls."""

    about: str
    value: str
    functions: Sequence[str] = ()
    details: Sequence[str] = ()  # paragraphs
    valid: bool = False  # whether the value takes `valid`
    hard: bool = False  # whether it is of integer labels only
    precedence: int = ATOM  # of both texts


def function_text(name: str, arguments: str, doc: str, lines: list[str]) -> str:
    """A function of maps."""
    return "\n".join([f"def {name}({arguments}) -> Tensor:", f'    """{doc}"""', *(f"    {line}" for line in lines)])


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of printable characters alone: a line break in the text must not end a comment."""
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return textwrap.wrap(printable, width, subsequent_indent=indent, break_on_hyphens=False)


def indented(text: str) -> str:
    """A paragraph of a docstring, set off."""
    return textwrap.indent("\n".join(wrapped(text, WIDTH - 4)), "    ")


def number_text(value: float) -> str:
    """A number with all its digits."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def finite(name: str, value: object) -> float:
    """A number of a loss file.

    Raises:
        InputError: It is none, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}; must be a finite number.")
    return float(value)
