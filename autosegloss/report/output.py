"""Standard output that may be closed or full, and signals that end a command."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from autosegloss.errors import WriteError


class Output(io.TextIOBase):
    """Standard output: what it can't take is dropped where the results are files, and an error elsewhere.

    Args:
        stream: The stream; None if it is closed.
    """

    needed = True
    """Whether the output is what the command is for."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names and provenance outside the terminal's encoding

    def write(self, text: str) -> int:
        """Write a text.

        Raises:
            BrokenPipeError: The reader has closed the stream, which is needed.
            WriteError: The stream can't be written otherwise, and is needed.
        """
        with self._tolerated():
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered; raises as `write`."""
        with self._tolerated():
            if self._stream is not None:
                self._stream.flush()

    def settle(self) -> None:
        """Flush; what can't be written is dropped for good, lest Python try again at its end and say so."""
        self.needed = False
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            if self.needed:
                raise
        except OSError as error:
            if self.needed:
                raise WriteError(f"standard output can't be written: {error.strerror or error}.") from error

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("standard output is closed")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the signals that end a command, as SLURM, Kubernetes and a closed terminal send them, act as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for each, handler in kept.items():
        if handler is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each, handler in kept.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
