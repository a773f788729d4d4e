"""A last word for commands on Ray, whose core ends the process when its servers die, and writes pages about it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

LAST_WORD = (
    "SearchError: Ray or the system has ended this process; its other processes were killed, or memory ran out. "
    "The journal is safe; continue with --resume."
)
_WATCH = 'exec 3<&0; { trap "" INT TERM HUP; read -r done <&3 || echo "$0" >&2; } &'
"""Leaves a process behind, no child of ours, that prints its argument when this process ends without a word."""


@contextmanager
def last_word() -> Iterator[None]:
    """Print `LAST_WORD` on standard error if the process is killed meanwhile, and drop what Ray's core writes there.

    The core is C++ and writes to the file descriptor; what Python writes to `sys.stderr` is printed as ever.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed: there is nobody to tell
        yield
        return
    python = sys.stderr
    end, pipe = os.pipe()
    subprocess.run(["sh", "-c", _WATCH, LAST_WORD], stdin=end, stdout=subprocess.DEVNULL, check=False)
    os.close(end)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        if _writes_to_2(python):
            sys.stderr = open(stderr, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        sys.stderr = python
        with suppress(OSError):  # there is no shell
            os.write(pipe, b"done\n")
        os.close(pipe)


def _writes_to_2(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.fileno() == 2
    except (OSError, ValueError):  # no file, or a closed one
        return False
