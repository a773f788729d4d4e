"""The errors of the package: each says what was given, where, what is allowed and what to do."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Sequence

MESSAGE = 1000  # characters of a message, whatever it is about: what a terminal shows at once
GIVEN = 200  # characters of one thing that was given, within a message
EXAMPLES = 10  # of a long list


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


def listed(lines: Sequence[str], unlisted: int = 0) -> list[str]:
    """The first ten of a list of lines, fewer if they are long, and how many there are beyond them and `unlisted`."""
    shown: list[str] = []
    for line in lines[:EXAMPLES]:
        if shown and sum(map(len, shown)) + len(line) > MESSAGE - 100:
            break
        shown.append(line)
    rest = len(lines) - len(shown) + unlisted
    return [*shown, f"... and {rest} more"] if rest else shown


def note(text: str) -> None:
    """Print a line on standard error: something to know about a run that goes on."""
    with contextlib.suppress(OSError, ValueError):  # a closed one is no reason to stop
        if sys.stderr is not None:
            print(cut(text, MESSAGE), file=sys.stderr, flush=True)


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
        """The message, cut to 1,000 characters as a last resort: it may quote a message of another package."""
        # Not in __init__: torch.compile(fullgraph=True) can't trace one, and would raise an error of its own instead.
        return cut(super().__str__(), MESSAGE)


class ExprError(AutoseglossError, TypeError):
    """An expression combines incompatible values."""


class ParseError(ExprError, ValueError):
    """A text is not a valid expression; the message points at the position."""


class InputError(AutoseglossError, ValueError):
    """A tensor, a label or an argument is out of range or of the wrong shape."""


class InputTypeError(InputError, TypeError):
    """A tensor or an argument is of the wrong type."""


class ConfigError(AutoseglossError, ValueError):
    """A configuration is invalid; the message lists all errors, each with its file and line."""


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
