"""Errors in the user's own code: networks, data sets and losses that a configuration names as `module:function`."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

from autosegloss.errors import cut

_PACKAGE = str(Path(__file__).parents[1])
_NOT_THEIRS = tuple(
    folder.rstrip(os.sep) + os.sep
    for folder in {_PACKAGE, *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))}
)


def where(error: BaseException) -> str:
    """The place of an error in the user's code, and the error, in one line: `my_data.py:12: ValueError: no such row`.

    The place is the last line that is neither of this package nor of Python or an installed package; it is left out
    where there is no such line. The file is relative to the working folder, if it lies there.
    """
    text = " ".join(str(error).split())
    what = cut(f"{type(error).__name__}: {text}" if text else type(error).__name__)
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_relative(error.filename)}:{error.lineno}: {cut(f'{type(error).__name__}: {error.msg}')}"
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename)]
    return f"{_relative(theirs[-1].filename)}:{theirs[-1].lineno}: {what}" if theirs else what


def _is_theirs(file: str) -> bool:
    return not file.startswith(("<", *_NOT_THEIRS))


def _relative(file: str) -> str:
    path = Path(file)
    return cut(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
