"""A real search, its driver killed with SIGKILL at random moments, ends in the bytes of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faulty import TRIALS

KILLED = ["serial", "ray"]
"""Runners; each resumes what the one before it left, and the one that ends it runs on Ray."""


def start(config: Path, out: Path, runner: str, *, resume: bool) -> subprocess.Popen[bytes]:
    arguments = ["search", str(config), "--out", str(out), "--runner", runner, *(["--resume"] if resume else [])]
    # A session of its own, so that what it starts can be ended with it.
    return subprocess.Popen(
        [sys.executable, "-m", "autosegloss.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        start_new_session=True,
    )


def finish(config: Path, out: Path, runner: str, *, resume: bool) -> bytes:
    process = start(config, out, runner, resume=resume)
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()
    return (out / "loss.json").read_bytes()


def lines(out: Path) -> int:
    journal = out / "trials.jsonl"
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0  # after the head


@pytest.mark.slow
def test_killed_twice_and_resumed_by_the_other_runner(
    tiny_config: Path, undisturbed_search: bytes, tmp_path: Path
) -> None:
    out, seed = tmp_path / "out", random.SystemRandom().randrange(10**6)
    moments = random.Random(seed)
    print(f"moments of the kills: seed {seed}")  # shown if the test fails
    for kill, runner in enumerate(KILLED):
        process = start(tiny_config, out, runner, resume=kill > 0)
        # Somewhere in the share of the journal that this run is to write, then some milliseconds into what follows.
        wanted = moments.randint(lines(out) + 1, TRIALS * (kill + 1) // (len(KILLED) + 1))
        while lines(out) < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        assert process.poll() is None, process.communicate()[1].decode()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (out / "loss.json").exists()
    assert finish(tiny_config, out, "ray", resume=True) == undisturbed_search
