"""The benchmark of exact metrics: all jobs of a task find the same, and no ratio is claimed that the noise could be."""

import json
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from autosegloss.errors import AutoseglossError
from autosegloss.report.bench.loss import Spread
from results.bench import metrics as bench
from results.bench.metrics import Job, Task, decided, peak_memory
from tests import oracles

JOBS = [pytest.param(task, job, id=f"{task.title}: {job.name}") for task in bench.TASKS for job in task.jobs]
ORACLES: dict[str, Callable[[bench.Tensor, bench.Tensor], float]] = {
    "miou": lambda pred, target: oracles.miou(pred.numpy(), target.numpy(), 5),
    "miou_i": lambda pred, target: oracles.miou_i(pred.numpy(), target.numpy(), 5),
    "miou_c": lambda pred, target: oracles.miou_c(pred.numpy(), target.numpy(), 5),
    "biou": lambda pred, target: oracles.biou(pred.numpy(), target.numpy(), 5, bench.RADIUS, background=False),
    "bf1": lambda pred, target: oracles.bf1(pred.numpy(), target.numpy(), 5, bench.RADIUS, background=False),
}


def needed(job: Job) -> None:
    if job.needs:
        pytest.importorskip(job.needs, exc_type=ImportError)


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TURN", 1e-9)


@pytest.mark.parametrize(("task", "job"), JOBS)
def test_a_job_finds_the_value_of_its_definition(task: Task, job: Job) -> None:
    needed(job)
    pred, target = bench.label_maps(2, 5, 40)
    values = job.start(5)(pred, target)
    own = task.jobs[0].start(5)(pred, target)
    assert values.keys() == own.keys()
    for name, value in values.items():
        if job.differs:
            assert abs(value - own[name]) > bench.TOLERANCE
        elif "Euclidean" in task.title:
            assert value == pytest.approx(own[name], abs=bench.TOLERANCE)
        elif name in ORACLES:
            assert value == pytest.approx(ORACLES[name](pred, target), abs=bench.TOLERANCE)


@pytest.mark.parametrize(("task", "job"), JOBS)
def test_a_perfect_prediction_scores_1_everywhere(task: Task, job: Job) -> None:
    needed(job)
    labels, _ = bench.label_maps(2, 5, 40)
    assert job.start(5)(labels, labels) == pytest.approx(dict.fromkeys(job.start(5)(labels, labels), 1.0), abs=1e-6)


def test_label_maps_are_the_same_on_every_call_and_mostly_right() -> None:
    pred, target = bench.label_maps(3, 21, 64)
    assert all(map(torch.equal, (pred, target), bench.label_maps(3, 21, 64)))
    valid = target != bench.IGNORED
    assert (~valid).float().mean() == pytest.approx(bench.VOID, abs=0.005)
    assert 0.6 < (pred == target)[valid].float().mean() < 0.98


def test_a_job_that_finds_something_else_is_not_timed() -> None:
    right = Job("ours", lambda classes: lambda pred, target: {"miou": 0.5})
    wrong = Job("theirs", lambda classes: lambda pred, target: {"miou": 0.50002})
    pred, target = bench.label_maps(1, 5, 16)
    with pytest.raises(AutoseglossError, match=r"task: theirs gives miou = 0.500020, and ours 0.500000"):
        bench.time_task(Task("task", (right, wrong)), pred, target, 5, repeats=2)
    said = Job("theirs", wrong.start, differs="it rounds")
    assert len(bench.time_task(Task("task", (right, said)), pred, target, 5, repeats=2)) == 2


@pytest.mark.parametrize(
    ("ratio", "clear"),
    [
        (Spread(5.0, 4.5, 5.5), True),
        (Spread(0.2, 0.18, 0.22), True),
        (Spread(1.1, 1.05, 1.14), True),
        (Spread(1.1, 1.0, 1.2), False),
        (Spread(0.9, 0.8, 1.0), False),
        (Spread(1.0, 1.0, 1.0), False),
        (Spread(5.0, 1.0, 6.0), False),
    ],
)
def test_a_ratio_is_decided_when_its_quartiles_are_closer_than_it_is_to_1(ratio: Spread, clear: bool) -> None:
    assert decided(ratio) is clear


def test_a_ratio_that_the_noise_could_be_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1.0, 1.0] + [1.0, 1.1, 1.0, 0.9] * 5)  # of the two jobs in turn; the first pair sets the passes
    monkeypatch.setattr(bench, "_seconds", lambda *_: next(seconds))
    jobs = [Job(name, lambda classes: lambda pred, target: {"miou": 0.5}) for name in ("ours", "theirs")]
    pred, target = bench.label_maps(1, 5, 16)
    own, theirs = bench.time_task(Task("task", tuple(jobs)), pred, target, 5, repeats=10)
    assert own.ratio is None
    assert theirs.ratio is None
    assert theirs.seconds == Spread(1.0, 0.9, 1.1)


def test_a_ratio_is_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [second for scale in (1.0, 10.0, 3.0) for second in (scale, 2 * scale)]  # a machine that slows down
    seconds = iter([1.0, 1.0, *rounds])
    monkeypatch.setattr(bench, "_seconds", lambda *_: next(seconds))
    jobs = [Job(name, lambda classes: lambda pred, target: {"miou": 0.5}) for name in ("ours", "theirs")]
    pred, target = bench.label_maps(1, 5, 16)
    _, theirs = bench.time_task(Task("task", tuple(jobs)), pred, target, 5, repeats=3)
    assert theirs.ratio == Spread(2.0, 2.0, 2.0)


def test_spread_is_median_and_quartiles() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    assert Spread.of(values) == Spread(median, low, high)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="takes Linux")
def test_peak_memory_is_what_is_held_at_once() -> None:
    # In this process freed memory is used again; in a fresh one the first call brings the code that it runs.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(_take_64_mib).result()
        assert 60 < process.submit(peak_memory, _take_64_mib).result() < 100
        assert process.submit(peak_memory, _take_nothing).result() < 30


def _take_64_mib() -> None:
    for _ in range(3):
        torch.ones(64, 2**18)  # freed each time


def _take_nothing() -> None:
    pass


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    threads = torch.get_num_threads()
    bench.main(["--repeats", "2", "--side", "32", "--out", str(out)])
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    markdown = (out / "metrics.md").read_text()
    assert markdown in printed
    assert "Written by `python -m results.bench.metrics --repeats 2 --side 32`." in markdown
    found = json.loads((out / "metrics.json").read_text())
    assert found["tasks"].keys() == {task.title for task in bench.TASKS}
    assert found["packages"]["torch"] == torch.__version__
    for task in bench.TASKS:
        timings = {timing["name"]: timing for timing in found["tasks"][task.title]}
        assert timings.keys() == {job.name for job in task.jobs if job.needs not in found["left_out"]}
        assert all(timing["seconds"]["low"] > 0 and timing["name"] in markdown for timing in timings.values())
        if task.memory and found["memory_mib"]:
            assert found["memory_mib"][task.title].keys() == timings.keys()


def test_a_peer_that_is_not_there_is_said_to_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setattr(bench, "_memory", lambda tasks, side: {})
    found = bench.bench_metrics(2, 16, tmp_path)
    assert found.left_out["monai"] == "not installed"
    assert not any("monai" in timing.name for timings in found.tasks.values() for timing in timings)
    assert "Left out: monai not installed" in found.to_markdown()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--repeats", "1"], "repeats must be 2 or more, got 1"),
        (["--side", "8"], "side must be 16 pixels or more, got 8"),
    ],
)
def test_bad_arguments(option: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(option)
    assert message in capsys.readouterr().err
