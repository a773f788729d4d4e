from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autosegloss.errors import RefusedError, SearchError
from autosegloss.search import search
from autosegloss.search.runners.base import Runner
from autosegloss.search.runners.ray import RayRunner
from autosegloss.search.runners.serial import SerialRunner
from tests import journals
from tests.toys import TOY, Clocked, Clumsy, Hanging, run_toy

ROOT = Path(__file__).parents[2]
RUNNERS: dict[str, Runner] = {"serial": SerialRunner(), "ray": RayRunner(2)}


def trials_of(folder: Path) -> list[dict[str, Any]]:
    """Finished trials in a journal, which may be in the middle of being written."""
    return journals.trials_of(folder / "trials.jsonl")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_toy(tmp_path_factory.mktemp("undisturbed"), SerialRunner())


# The suite every runner passes.


@pytest.fixture(params=list(RUNNERS))
def runner(request: pytest.FixtureRequest) -> Runner:
    if request.param == "ray":
        request.getfixturevalue("ray_address")
    return RUNNERS[request.param]


FAILURES = replace(TOY, break_at={("search", 0, 2): "raise", ("search", 1, 5): "nan", ("final", 1, 3): "raise"})


@pytest.mark.slow
def test_same_result_on_every_runner_whatever_fails(
    runner: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = run_toy(tmp_path / "expected", SerialRunner(), FAILURES)
    assert run_toy(tmp_path / "ours", runner, FAILURES) == expected
    errors = [trial["error"] for trial in trials_of(tmp_path / "ours") if trial["reward"] is None]
    oom = "out of memory; lower batch_size or the size of the images (RuntimeError: CUDA out of memory.)"
    assert errors == [oom, "not finite: reward is nan", oom]
    captured = capfd.readouterr()
    assert captured.out + captured.err == "", "a runner is silent: the display is the command line's"


@pytest.mark.slow
def test_a_study_that_refuses_to_go_on_stops_every_runner(runner: Runner, tmp_path: Path, undisturbed: str) -> None:
    broken = replace(TOY, break_at={("search", 1, index): "raise" for index in range(6)})
    with pytest.raises(
        SearchError, match=r"step 1: 6 of 8 trials failed; .*RuntimeError: CUDA out of memory\.\)\.?\nThe jour"
    ):
        run_toy(tmp_path, runner, broken)
    assert len(trials_of(tmp_path)) == 19
    assert run_toy(tmp_path, SerialRunner(), resume=True) == undisturbed


# Ray alone.


@pytest.mark.usefixtures("ray_address")
@pytest.mark.slow
def test_workers_are_reused_and_one_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    breaks = {("final", 0, 1): "raise"}
    raising = replace(TOY, break_at={("search", 2, 3): "raise", **breaks})
    expected = run_toy(tmp_path / "expected", SerialRunner(), raising)
    assert run_toy(tmp_path / "ours", RayRunner(2), Clumsy(tmp_path, replace(TOY, break_at=breaks))) == expected

    # Step 1 has one trial that dies once, and is not counted as failed; step 2 has one that always dies.
    assert (tmp_path / "met").exists()
    assert [step["failed"] for step in json.loads(expected)["steps"]] == [0, 0, 1]
    (dead,) = (t for t in trials_of(tmp_path / "ours") if (t["stage"], t["step"], t["index"]) == ("search", 2, 3))
    assert dead["error"] == ("the worker failed twice: The actor is dead because its worker process has died.")
    where = [json.loads(line) for line in (tmp_path / "where").read_text().splitlines()]
    assert len(where) == 37 + 2
    assert len({pid for pid, _, _ in where}) <= 2 + 3
    assert {threads for _, threads, _ in where} == {"1"}
    assert {folder for _, _, folder in where} == {str(ROOT)}


@pytest.mark.usefixtures("ray_address")
@pytest.mark.slow
def test_a_trial_that_hangs_is_ended_and_tried_once_more(tmp_path: Path) -> None:
    expected = run_toy(tmp_path / "expected", SerialRunner(), replace(TOY, break_at={("search", 2, 3): "raise"}))
    assert run_toy(tmp_path / "ours", RayRunner(2, time_limit=3), Hanging(tmp_path)) == expected
    assert (tmp_path / "met").exists()
    (failed,) = (trial for trial in trials_of(tmp_path / "ours") if trial["reward"] is None)
    assert failed["error"] == "the trial exceeded 3 s twice"


@pytest.mark.usefixtures("ray_address")
@pytest.mark.slow
def test_every_worker_works_in_every_step(tmp_path: Path) -> None:
    """Trials overlap in the steps and in the finals, and no worker is ended between them."""
    run_toy(tmp_path / "study", RayRunner(2), Clocked(tmp_path))
    spans: dict[tuple[str, int], list[tuple[int, float, float]]] = {}
    for line in (tmp_path / "spans").read_text().splitlines():
        stage, step, *span = json.loads(line)
        spans.setdefault((stage, step if stage == "search" else 0), []).append(tuple(span))
    assert len({pid for step in spans.values() for pid, _, _ in step}) == 2
    assert [len(step) for step in spans.values()] == [9, 10, 10, 8]
    for step in list(spans.values())[1:]:  # in the first, one worker may be up before the other
        company = [any(a < end and start < b for _, a, b in step if a != start) for _, start, end in step]
        assert sum(company) > 4, company


@pytest.mark.usefixtures("ray_address")
@pytest.mark.parametrize(
    ("runner", "message"),
    [
        (
            RayRunner(1, gpus=1),
            r"^1 worker of 1 CPU and 1 GPU each do not fit: Ray has 1 node with 2 CPUs and 0 GPUs, room for 0 such w",
        ),
        (RayRunner(3), r"^3 workers of 1 CPU and 0 GPUs each do not fit: .* room for 2 such workers\. Lower resources"),
        (RayRunner(2, cpus=1.5), r"room for 1 such worker\."),
    ],
)
def test_absent_resources_are_refused_at_once(tmp_path: Path, runner: RayRunner, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        run_toy(tmp_path, runner)


@pytest.mark.usefixtures("ray_address")
def test_absent_resources_are_refused_before_work_is_done_for_them(tmp_path: Path) -> None:
    endless = {"metric": "miou", "proxy": {"start": {"iterations": 10**9}}, "resources": {"workers": 3}}
    with pytest.raises(RefusedError, match=r"^3 workers of 1 CPU "):
        search(endless, out=tmp_path)


@pytest.mark.usefixtures("ray_address")
def test_fractions_share_a_core() -> None:
    RayRunner(20, cpus=0.1)._check_room()


# A driver process.


def wait_for(folder: Path, trials: int) -> None:
    deadline = time.monotonic() + 180  # a bound on waiting, no claim of speed
    while len(trials_of(folder)) < trials:
        assert time.monotonic() < deadline, f"{len(trials_of(folder))} of {trials} trials"
        time.sleep(0.005)


UV = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
"""What a script named `run` does, that is started under the name `uv`."""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_ray_of_our_own_starts_quietly_stops_at_a_signal_and_leaves_nothing(
    end: signal.Signals, tmp_path: Path, undisturbed: str
) -> None:
    """Once under `uv run`, in a folder with more than Ray would copy, and with a folder of temporary files whose path
    is too long for sockets."""
    code = f"from pathlib import Path; from tests.toys import drive; drive(Path({str(tmp_path)!r}))"
    command, environment = [sys.executable, "-c", code], {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    if end == signal.SIGTERM:
        long = tmp_path / ("x" * 120)
        long.mkdir()
        environment["TMPDIR"] = str(long)
        (tmp_path / "run").write_text(UV)
        with (tmp_path / "photos.tar").open("wb") as file:
            file.truncate(600 * 2**20)
        (tmp_path / "pyproject.toml").touch()
        command = ["bash", "-c", 'exec -a uv "$0" run "$@"', sys.executable, *command]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as driver:
        wait_for(tmp_path, 3)
        os.killpg(driver.pid, end)  # as a terminal does: to the driver and all it started
        output, _ = driver.communicate(timeout=60)
    # The whole group gets SIGTERM, Ray's servers too: Ray may then end the driver itself before a traceback is printed,
    # with a status that depends on who is first. (The last line of the command line is from a process of its own.)
    if end == signal.SIGINT or output:
        assert output.startswith("Traceback"), output  # and nothing before it
    if end == signal.SIGINT:
        assert output.rstrip().endswith("KeyboardInterrupt"), output
    assert processes_of_group(driver.pid) == []
    if end == signal.SIGTERM and output:
        assert list(long.iterdir()) == []  # a driver that Ray has ended can't remove its folder
    assert 3 <= len(trials_of(tmp_path)) < 37
    assert run_toy(tmp_path, SerialRunner(), resume=True) == undisturbed  # another runner takes over


def processes_of_group(group: int) -> list[int]:
    listing = subprocess.run(["ps", "-e", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return [
        int(pid)
        for pid, own, state in (line.split() for line in listing.splitlines())
        if int(own) == group and not state.startswith("Z")  # it has ended, and its new parent has not noticed
    ]
