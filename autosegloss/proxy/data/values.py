"""Which class each value or colour of a mask stands for."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from autosegloss.errors import DataError, did_you_mean, shown
from autosegloss.proxy.data.pictures import COLOUR, LabelMap, spelled

IGNORE = "ignore"
"""What stands for ignored pixels in place of a class."""
EXAMPLE = '{0: background, 1..40: cell, 255: ignore, "#ff0000": 2}'

_LOWEST, _HIGHEST = COLOUR + (1 << 24), (1 << 63) - 1  # of the values that are no colours
_NUMBER = re.compile(r"(-?\d{1,18})?(\.\.)?(-?\d{1,18})?")
_PAIR = re.compile(r"""\s*("[^"]*"|'[^']*'|[^,:=]*?)\s*[:=]\s*("[^"]*"|'[^']*'|[^,:=]*?)\s*(,|$)""")


@dataclass(frozen=True)
class ValueMap:
    """The labels of values.

    Args:
        ranges: First value, last value and label of each range; ascending and disjoint.
        colours: Whether masks are read as colours where they can be, see `read_labels`.
    """

    ranges: tuple[tuple[int, int, int], ...]
    colours: bool = False

    @classmethod
    def of(cls, labels: Mapping[int, int]) -> ValueMap:
        """The map of single values."""
        return cls(tuple((value, value, label) for value, label in sorted(labels.items())))

    def get(self, value: int) -> int | None:
        """The label of a value; None if it has none."""
        at = bisect_right(self.ranges, (value, _HIGHEST + 1, 0)) - 1
        return self.ranges[at][2] if at >= 0 and value <= self.ranges[at][1] else None

    def apply(self, values: LabelMap) -> LabelMap:
        """The labels of a map of values.

        Raises:
            DataError: Some values have none.
        """
        seen, places = np.unique(values, return_inverse=True)
        labels = [self.get(value) for value in seen.tolist()]
        if unknown := [value for value, label in zip(seen.tolist(), labels, strict=True) if label is None]:
            held, known = (
                spans(each) for each in ([(value, value) for value in unknown], [(a, b) for a, b, _ in self.ranges])
            )
            raise DataError(
                f"holds {held} at {np.isin(values, unknown).sum()} of {values.size} pixels; `values` has {known}"
            )
        found: LabelMap = np.array(labels, np.int64)[places.reshape(values.shape)]
        return found

    def spelled(self, ignored: int) -> str:
        """The values for a message: those of classes, then those that are ignored."""
        counted, others = (
            spans([(first, last) for first, last, label in self.ranges if (label == ignored) == left_out])
            for left_out in (False, True)
        )
        return f"{counted}, and {others} (ignored)" if others else counted


def spans(ranges: Iterable[tuple[int, int]]) -> str:
    """Ranges of values for a message: `0..2, 7, 200.., #ff0000`; the first eight, numbers before colours."""
    joined: list[list[int]] = []
    for first, last in sorted(ranges, key=lambda each: (each[0] < _LOWEST, each)):
        if joined and first == joined[-1][1] + 1 and first >= _LOWEST:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    texts = [
        spelled(first) if first == last else f"{'' if first == _LOWEST else first}..{'' if last == _HIGHEST else last}"
        for first, last in joined[:8]
    ]
    return ", ".join(texts + ["..."] * (len(joined) > 8))


def read_values(values: object, classes: Sequence[str], ignored: int, ignore_index: int | None = None) -> ValueMap:
    """The map of an option `values`.

    Args:
        values: The class, by number or name, or `ignore`, of each value (an integer or its digits), range (`1..40`,
            `1..`, `..9`) or colour (`#rrggbb`, where a grey is the same as its value 0..255).
        classes: The names of the classes.
        ignored: The label of ignored pixels.
        ignore_index: Another value that is ignored.

    Raises:
        DataError: Something is misspelt, two ranges overlap, or a class is unknown.
    """
    if not isinstance(values, Mapping) or not values:
        raise DataError(f"values must map values or colours of masks to classes, as in {EXAMPLE}, got {shown(values)}.")
    given = [*values.items(), *([(ignore_index, IGNORE)] if ignore_index is not None else [])]
    if IGNORE in classes and IGNORE in values.values():
        raise DataError(f"values: `{IGNORE}` stands for ignored pixels, and there is a class of this name; rename it.")
    found = sorted((*_range(key), _label(key, label, classes, ignored), str(key)) for key, label in given)
    for (_, last, _, one), (first, _, _, other) in pairwise(found):
        if first <= last:
            raise DataError(f"values: {shown(one)} and {shown(other)} overlap.")
    colours = any(isinstance(key, str) and key.startswith("#") for key in values)
    return ValueMap(tuple((first, last, label) for first, last, label, _ in found), colours)


def read_pairs(option: str, text: str) -> dict[str, str]:
    """The mapping of a command line's text, as in a configuration: `{0: background, 255: cell}`, or `0=0,255=1`.

    Raises:
        DataError: The text is misspelt, or has a key twice.
    """
    inside = text.strip()
    if inside.startswith("{") and inside.endswith("}"):
        inside = inside[1:-1]
    found: dict[str, str] = {}
    at = 0
    while at < len(inside):
        pair = _PAIR.match(inside, at)
        if pair is None or not pair[1] or not pair[2]:
            raise DataError(f"{option} must map values to classes, as in '{EXAMPLE}', got {shown(text)}.")
        key, label = (part[1:-1] if part[0] in "\"'" else part for part in (pair[1], pair[2]))
        if key in found:
            raise DataError(f"{option}: {shown(key)} is given twice.")
        found[key] = label
        at = pair.end()
    return found


def _range(key: object) -> tuple[int, int]:
    """The first and the last value of a key."""
    text = str(key) if isinstance(key, str | int) and not isinstance(key, bool) else ""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        red, green, blue = bytes.fromhex(text[1:])
        value = red if red == green == blue else COLOUR + int(text[1:], 16)
        return value, value
    number = _NUMBER.fullmatch(text)
    if number and (number[1] or number[3]) and (number[2] or not number[3]):
        first = int(number[1]) if number[1] else _LOWEST
        last = int(number[3]) if number[3] else _HIGHEST if number[2] else first
        if _LOWEST <= first <= last:
            return first, last
    raise DataError(
        f"values: a key must be a value (255), a range (1..40, 1.. or ..9) or a colour (#ff0000), got {shown(key)}."
    )


def _label(key: object, label: object, classes: Sequence[str], ignored: int) -> int:
    if label in classes:
        return classes.index(str(label))
    if label == IGNORE:
        return ignored
    number = int(label) if isinstance(label, str) and re.fullmatch(r"\d{1,9}", label) else label
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(classes):
        return number
    guess = did_you_mean(label, classes) if isinstance(label, str) else ""
    raise DataError(
        f"values: {shown(key)} must stand for a class, by name or number 0..{len(classes) - 1}, or for `{IGNORE}`, got "
        f"{shown(label)}{guess}."
    )
