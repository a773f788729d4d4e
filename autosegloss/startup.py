"""Ctrl-C while the command line is imported, which takes seconds, ends it with one line."""

import os
import signal
import sys
from types import FrameType

COMMAND, MODULE = "autosegloss", "autosegloss.cli"


def end_quietly_at_interrupts() -> None:
    """Until `cli.main` takes over, end this process at Ctrl-C, if it is the command line."""
    script = os.path.basename(sys.argv[0]) if sys.argv else ""
    ours = script == COMMAND or (script == "-m" and MODULE in sys.orig_argv)
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # No exception: half-imported packages turn it into warnings and errors of their own.
    os.write(2, b"Interrupted.\n")
    os._exit(1)
