"""The simulated scale: the virtual clock is that of an independent account, and the tables repeat themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autosegloss.search.algorithms.external import RandomSearch
from autosegloss.search.journal import Journal
from results.algorithms.algorithms import Valley
from results.scale import scale
from tests.journals import trials_of
from tests.toys import search_of

STEPS, SAMPLES = 6, 8


def simulated(folder: Path, slots: int, lag: int) -> tuple[scale.SimulatedRunner, list[dict[str, Any]]]:
    """A small search on a virtual clock, and its journal."""
    path = folder / "trials.jsonl"
    with Journal(path) as journal:
        algorithm = RandomSearch(start=(0.5,) * scale.DIMENSIONS, samples=SAMPLES)
        study = search_of(algorithm, journal, steps=STEPS, candidates=1, finalist_seeds=2, seed=0, lag=lag)
        runner = scale.SimulatedRunner(slots)
        runner.run(study, scale.Trial(Valley(scale.DIMENSIONS, 0, 0.05)))
    return runner, trials_of(path)


def seconds(trials: list[dict[str, Any]], step: int) -> list[float]:
    return [trial["seconds"] for trial in trials if (trial["stage"], trial["step"]) == ("search", step)]


def test_one_slot_takes_the_sum_of_the_times(tmp_path: Path) -> None:
    runner, trials = simulated(tmp_path, slots=1, lag=0)
    assert runner.clock == pytest.approx(sum(trial["seconds"] for trial in trials))


def test_a_barrier_takes_the_longest_of_each_step(tmp_path: Path) -> None:
    runner, trials = simulated(tmp_path, slots=100, lag=0)
    steps = [seconds(trials, step) for step in range(STEPS)]
    finals = [trial["seconds"] for trial in trials if trial["stage"] == "final"]
    assert runner.clock == pytest.approx(sum(map(max, [*steps, finals])))


def test_with_a_lag_a_step_waits_for_all_but_the_last_of_those_before_it(tmp_path: Path) -> None:
    runner, trials = simulated(tmp_path, slots=100, lag=2)
    ends = np.zeros(STEPS + 3)  # of all steps up to one; the first three steps begin at once
    for step in range(STEPS):
        ends[step + 3] = max(ends[step + 2], ends[step] + max(seconds(trials, step)))
    finals = [trial["seconds"] for trial in trials if trial["stage"] == "final"]
    assert runner.clock == pytest.approx(ends[-1] + max(finals))


def test_times_are_log_normal_and_some_trials_fail() -> None:
    trial = scale.Trial(Valley(2, 0, 0.0))
    outcomes = [trial(scale.Job("search", 0, index, {}, 1, (0.5, 0.5))) for index in range(4000)]
    done = np.log([outcome.seconds for outcome in outcomes if outcome.reward is not None])
    assert np.mean(done) == pytest.approx(np.log(scale.MEDIAN_SECONDS), abs=0.03)
    assert np.std(done) == pytest.approx(scale.SIGMA, rel=0.05)
    assert 1 - len(done) / len(outcomes) == pytest.approx(scale.FAILED, rel=0.4)


def test_the_table_repeats_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("SLOTS", 10), ("SETTINGS", {(3, 10, 0): ("ppo2", "random"), (3, 10, 1): ("random",)})):
        monkeypatch.setattr(scale, name, value)
    for name in ("first", "second"):
        scale.main(["--seeds", "2", "--out", str(tmp_path / name)])
    for name in ("scale.json", "scale.md"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    table = (tmp_path / "second" / "scale.md").read_text()
    assert table in capsys.readouterr().out
    cells = json.loads((tmp_path / "second" / "scale.json").read_text())["cells"]
    assert all(0 < busy <= 1 for cell in cells for _, busy, _ in cell["runs"])
    hours = [run[0] for cell in cells for run in cell["runs"] if cell["algorithm"] == "random"]
    assert f"| 3 x 10 | 1 | {np.mean(hours[2:]):.1f} ± {np.std(hours[2:], ddof=1):.1f} | " in table
    assert all(lagging < waiting for waiting, lagging in zip(hours[:2], hours[2:], strict=True))

    with pytest.raises(SystemExit, match="2"):
        scale.main(["--seeds", "1", "--out", str(tmp_path / "third")])
