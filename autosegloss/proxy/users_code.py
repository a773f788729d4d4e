"""Errors in the user's own code: networks, data sets and losses that a configuration names as `module:function`."""

from __future__ import annotations

import inspect
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autosegloss.errors import AutoseglossError, InputError, cut

_PACKAGE = str(Path(__file__).parents[1])
_NOT_THEIRS = tuple(
    folder.rstrip(os.sep) + os.sep
    for folder in {_PACKAGE, *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))}
)

_OUT_OF_MEMORY = re.compile("OutOfMemoryError|out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""What PyTorch and CUDA say of it, which have no class of exceptions in common."""


@contextmanager
def users_code(
    what: str, error: type[AutoseglossError] = InputError, passing: type[AutoseglossError] = AutoseglossError
) -> Iterator[None]:
    """Run the user's code: whatever it raises, also SystemExit, becomes an error of this package, with its place.

    Args:
        what: What fails, for the message.
        error: The class of the error.
        passing: Errors of this package that are raised as they are, besides an interrupt.
    """
    try:
        yield
    except (KeyboardInterrupt, passing):
        raise
    except BaseException as raised:
        raise error(f"{what}: {where(raised)}.") from raised


def parameters_of(function: Callable[..., object]) -> list[inspect.Parameter] | None:
    """The parameters of the user's function; None if it does not tell them, as some classes of exceptions."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def where(error: BaseException) -> str:
    """The place of an error in the user's code, and the error, in one line: `my_data.py:12: ValueError: no such row`.

    The place is the last line that is neither of this package nor of Python or an installed package; it is left out
    where there is no such line. The file is relative to the working folder, if it lies there. Of memory that is used
    up no place is to blame; what to do about it stands first.
    """
    try:
        text = " ".join(str(error).split())
    except Exception:  # of the user's class of exceptions
        text = ""
    ours = isinstance(error, AutoseglossError) and text  # its class says nothing more
    what = cut(text if ours else f"{type(error).__name__}: {text}" if text else type(error).__name__)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(what):
        return f"out of memory; lower batch_size or the size of the images ({what})"
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_relative(error.filename)}:{error.lineno}: {cut(f'{type(error).__name__}: {error.msg}')}"
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename)]
    return f"{_relative(theirs[-1].filename)}:{theirs[-1].lineno}: {what}" if theirs else what


def _is_theirs(file: str) -> bool:
    return not file.startswith(("<", *_NOT_THEIRS))


def _relative(file: str) -> str:
    path = Path(file)
    return cut(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
