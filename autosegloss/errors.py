"""The errors of the package: each says what was given, where, what is allowed and what to do."""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MESSAGE = 1000  # characters of a message, whatever it is about: what a terminal shows at once
GIVEN = 200  # characters of one thing that was given, within a message
EXAMPLES = 10  # of a long list
_LONG_WORD = re.compile(rf"\S{{{GIVEN + 9},}}")  # of what is cut already, quotes and a full stop may be a part
LISTED = 900  # characters of several mistakes in one message, beside a title and the marks of a list


def cut(text: str, limit: int = GIVEN) -> str:
    """A text for a message; a long one loses its middle, since a path ends with what tells it from others."""
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 3]}...{text[-end:]}"


def shown(value: object) -> str:
    """What was given, for a message: as Python writes it, cut to 200 characters."""
    try:
        return cut(repr(value))
    except Exception:  # an integer of thousands of digits, or a class of the user's
        return f"an object of type {type(value).__name__}"


def brief(text: str, limit: int = MESSAGE) -> str:
    """A whole message, cut as a last resort: each of its words, such as a path, to 200 characters, then itself."""
    return cut(_LONG_WORD.sub(lambda word: cut(word[0]), text), limit)


def listed(mistakes: Sequence[str], unlisted: int = 0) -> list[str]:
    """The first ten of several mistakes, so short that a message holds them, and the number of the others.

    If they do not fit as they are, each is its first line, and the longest are cut.

    Args:
        mistakes: The mistakes.
        unlisted: Number of further ones.
    """
    some, rest = list(mistakes[:EXAMPLES]), len(mistakes[EXAMPLES:]) + unlisted
    if sum(map(len, some)) > LISTED and len(mistakes) > 1:
        some = [each.partition("\n")[0] for each in some]
        room = LISTED
        for done, length in enumerate(sorted(map(len, some))):
            share = room // (len(some) - done)
            if length > share:
                some = [cut(each, share) for each in some]
                break
            room -= length
    return [*some, f"... and {rest} more"] if rest else some


def note(text: str) -> None:
    """Print a line on standard error: something to know about a run that goes on."""
    with contextlib.suppress(OSError, ValueError):  # a closed one is no reason to stop
        if sys.stderr is not None:
            print(brief(text, MESSAGE - 1), file=sys.stderr, flush=True)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to the known name that is most like a misspelt one, to append to a message; empty if none is alike."""
    if len(name) > GIVEN // 2:  # no misspelling, and slow to compare
        return ""
    lower = {word.lower(): word for word in known if len(word) <= GIVEN // 2}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f" (did you mean `{lower[close[0]]}`?)" if close else ""


class AutoseglossError(Exception):
    """Base class of the errors of this package."""

    def __str__(self) -> str:
        """The message, cut as a last resort: it may quote a message of another package."""
        # Not in __init__: torch.compile(fullgraph=True) can't trace one, and would raise an error of its own instead.
        return brief(super().__str__())


class ExprError(AutoseglossError, TypeError):
    """An expression combines incompatible values."""


class ParseError(ExprError, ValueError):
    """A text is not a valid expression; the message points at the position."""


class InputError(AutoseglossError, ValueError):
    """A tensor, a label or an argument is out of range or of the wrong shape."""


class InputTypeError(InputError, TypeError):
    """A tensor or an argument is of the wrong type."""


class ConfigError(AutoseglossError, ValueError):
    """A configuration is invalid; the message lists all errors, each with its file and line.

    `mistakes` has them one by one, and `rest` the values that can be used nevertheless; None if nothing could be read.
    """

    mistakes: Sequence[str] = ()
    rest: Mapping[str, Any] | None = None


class LossFileError(AutoseglossError, ValueError):
    """A loss file is damaged, written by a newer version, or describes an impossible loss."""


class WriteError(AutoseglossError, ValueError):
    """A file can't be written."""


class DataError(AutoseglossError, ValueError):
    """A data set is missing, incomplete or inconsistent."""


class TrainingDiverged(AutoseglossError, RuntimeError):  # noqa: N818 - an outcome of a trial, not a mistake
    """A training run met a loss or a weight that is not finite."""


class SearchError(AutoseglossError, RuntimeError):
    """A search can't continue; finished trials are safe in the journal."""


class RefusedError(SearchError, ValueError):
    """A search is refused before it starts: the folder holds another search, or resources are missing."""
