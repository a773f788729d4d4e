"""Standard output that is closed or on a full disk, and signals, of whole commands."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autosegloss.cli import main
from autosegloss.errors import WriteError
from autosegloss.report.output import Output, interruptible
from autosegloss.search.runners.last_word import LAST_WORD

FULL = Path("/dev/full")


def unwritable(kind: str) -> io.TextIOWrapper:
    """A stream on a full disk, or on a pipe that nobody reads."""
    if kind == "full":
        return FULL.open("w")
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("kind", "log"),
    [("full", []), ("closed by its reader", []), ("closed", []), ("full", ["--json-logs"])],
)
def test_a_search_ends_well_whatever_becomes_of_its_output(
    kind: str,
    log: list[str],
    tiny_config: Path,
    tmp_path: Path,
    undisturbed_search: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None if kind == "closed" else unwritable(kind))
    assert main(["search", str(tiny_config), "--runner", "serial", "--out", str(tmp_path / "out"), *log]) == 0
    if sys.stdout is not None:
        sys.stdout.close()  # without an error
    assert (tmp_path / "out" / "loss.json").read_bytes() == undisturbed_search


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_output_that_is_needed_and_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["metrics"], ["schema"]):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", FULL.open("w"))
            assert main(command) == 2
            sys.stdout.close()
    assert capsys.readouterr().err == "WriteError: standard output can't be written: No space left on device.\n" * 2
    with pytest.raises(BrokenPipeError):
        _write(unwritable("closed by its reader"))
    with pytest.raises(WriteError):
        _write(unwritable("full"))


def _write(stream: io.TextIOWrapper) -> None:
    output = Output(stream)
    try:
        output.write("x")
        output.flush()
    finally:
        output.settle()
        stream.close()


def test_signals_that_end_a_command_interrupt_it_unless_they_are_ignored() -> None:
    before, ended = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == ended
    finally:
        signal.signal(signal.SIGHUP, before)


KILLED = """
import os, sys
from autosegloss.search.runners.last_word import last_word
with last_word():
    os.write(2, b"a dump of Ray")
    print("of Python", file=sys.stderr, flush=True)
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), 9)
os.write(2, b"after")
"""


@pytest.mark.parametrize(("end", "expected"), [("kill", f"of Python\n{LAST_WORD}\n"), ("", "of Python\nafter")])
def test_a_process_that_is_killed_leaves_a_last_word(end: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, end], stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == expected


SIGNALLED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
from autosegloss.startup import end_quietly_at_interrupts
sys.argv = ["/bin/autosegloss"]
end_quietly_at_interrupts()
signal.raise_signal(signal.SIGINT)
"""


def test_an_interrupt_during_the_import_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Interrupted.\n")
