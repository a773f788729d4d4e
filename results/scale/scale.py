"""A search on a thousand slots, simulated: the study, its journal and its algorithms are real, the clock is not."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from autosegloss.errors import InputError
from autosegloss.files import write_text
from autosegloss.report.environment import packages
from autosegloss.search.algorithms import ALGORITHMS
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.finals import Schedule
from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.plan import without_rivals
from autosegloss.search.runners.base import JobQueue
from autosegloss.search.study import Study
from results.algorithms.algorithms import Valley
from results.common.losses import ByTheta
from results.common.script import run, script

MODULE = "results.scale.scale"
SLOTS = 1_000
CONTESTANTS = ("ppo2", "cma_es", "random")
SETTINGS: dict[tuple[int, int, int], tuple[str, ...]] = {
    (10, 1_000, 0): CONTESTANTS,
    (10, 1_000, 1): CONTESTANTS,
    (10, 1_000, 2): CONTESTANTS,
    (5, 1_000, 0): CONTESTANTS,
    (100, 100, 0): CONTESTANTS,
    (100, 100, 1): ("random",),
    (100, 100, 2): ("ppo2", "random"),
    (100, 100, 19): CONTESTANTS,
    (313, 32, 0): ("ppo2", "random"),
    (313, 32, 1): ("random",),
    (313, 32, 2): ("random",),
    (313, 32, 62): ("ppo2", "random"),
}
"""Steps, samples and lag: 10,000 trials, and once half of them. Those that search it: random always, which costs little
and decides the times as well as any; the others where there is something to learn from it."""
MEDIAN_SECONDS, SIGMA = 600.0, 0.5
"""Of the log-normal time that a trial takes: one in a hundred takes more than three times the median."""
FAILED = 0.02
"""Share of the trials that fail, each after a part of its time."""
DIMENSIONS, NOISE = 12, 0.05
"""Of the toy reward; the twelve coordinates of a loss with two slots of two pieces."""
CANDIDATES, FINALIST_SEEDS = 3, 3


@dataclass(frozen=True)
class Trial:
    """The objective: a toy's reward, after a time that the job alone decides, so that it is the same whatever the lag.

    Args:
        toy: The reward.
    """

    toy: Valley

    def __call__(self, job: Job) -> Outcome:
        """Objective of a study; `seconds` are those of the virtual clock."""
        rng = np.random.default_rng((self.toy.seed, job.seed, job.index))
        seconds = float(MEDIAN_SECONDS * np.exp(SIGMA * rng.standard_normal()))
        if rng.random() < FAILED and job.stage == "search":
            return Outcome.failed("simulated", seconds * float(rng.random()))
        return Outcome(self.toy(job).reward, {}, {}, None, seconds)


class SimulatedRunner:
    """Runs trials side by side on a virtual clock.

    Args:
        slots: Trials at a time.

    Attributes:
        clock: Virtual seconds since the start.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.clock = 0.0

    def run(self, study: JobQueue, objective: Objective) -> None:
        """Run the study to its end; see `Runner.run`."""
        running: list[tuple[float, int, Job, Outcome]] = []
        handed = 0
        while not study.finished:
            while len(running) < self.slots and (job := study.next_job()) is not None:
                handed += 1
                outcome = objective(job)
                # Of trials that end at the same time, the one that was handed out first is recorded first.
                heappush(running, (self.clock + outcome.seconds, handed, job, outcome))
            self.clock, _, job, outcome = heappop(running)
            study.record(job, outcome)


def bench_scale(out: Path, seeds: int = 5) -> str:
    """Simulate the searches of `SETTINGS`, and write `scale.json` and `scale.md`.

    The same arguments give the same bytes.

    Args:
        out: The folder to write to.
        seeds: Toys and searches of each setting, 2 or more.

    Returns:
        The table as Markdown.

    Raises:
        InputError: There are too few seeds.
    """
    if seeds < 2:
        raise InputError(f"seeds must be 2 or more, got {seeds}.")
    cells = [
        {"algorithm": name, "setting": setting, "runs": [_simulated(name, *setting, seed) for seed in range(seeds)]}
        for setting, names in SETTINGS.items()
        for name in names
    ]
    record = {
        "command": f"python -m {MODULE} --seeds {seeds}",
        "packages": packages("autosegloss", "cmaes", "numpy", "torch"),
        "cells": cells,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "scale.json", json.dumps(record) + "\n")
    write_text(out / "scale.md", to_markdown(record))
    return to_markdown(record)


def _simulated(name: str, steps: int, samples: int, lag: int, seed: int) -> tuple[float, float, float]:
    """A search on a virtual clock.

    Returns:
        Virtual hours to the end of its steps, before the finals; the share of the slots' time until then that was
        spent in trials; and the regret of what it found, finals included.
    """
    toy = Valley(DIMENSIONS, seed, NOISE)
    algorithm = ALGORITHMS[name](start=(0.5,) * DIMENSIONS, samples=samples, seed=seed)
    runner = SimulatedRunner(SLOTS)
    ends: dict[int, tuple[float, float]] = {}  # by steps that are done: the virtual clock, and seconds in trials

    def observer(study: Study) -> None:
        ends.setdefault(len(study.steps), (runner.clock, study.seconds))

    with tempfile.TemporaryDirectory(prefix="autosegloss-bench-") as folder, Journal(Path(folder, "trials")) as journal:
        study = Study(
            without_rivals(algorithm, ByTheta()),
            journal,
            CROSS_ENTROPY,
            Schedule(steps=steps, candidates=CANDIDATES, finalist_seeds=FINALIST_SEEDS, seed=seed, lag=lag),
            observer=observer,
        )
        runner.run(study, Trial(toy))
        theta = study.findings().theta
        assert theta is not None  # cross-entropy is the result of searches with guards only
        regret = toy.regret(theta)
    clock, seconds = ends[steps]
    return clock / 3600, seconds / (SLOTS * clock), regret


def to_markdown(record: Mapping[str, Any]) -> str:
    """Time and quality of each setting."""
    runs = {(cell["algorithm"], *cell["setting"]): cell["runs"] for cell in record["cells"]}
    seeds = len(next(iter(runs.values())))
    lines = [
        f"Searches on {SLOTS:,} simulated slots. Trials take a log-normal time (median {MEDIAN_SECONDS:g} s, sigma "
        f"{SIGMA:g}); {100 * FAILED:g}% of them fail on the way. With lag k a step is drawn before the rewards of the "
        "k steps before it are known, and its trials start while theirs run. Hours are those of the virtual clock, to "
        "the end of the steps. Regret is that of what is found, finals included, on a toy of "
        f"{DIMENSIONS} dimensions whose reward has noise of {NOISE:g}; the start has 0.16 on average. "
        f"Mean ± standard deviation over {seeds} seeds.",
        "",
        "| steps x samples | lag | hours | slots busy, % | " + " | ".join(f"regret, {n}" for n in CONTESTANTS) + " |",
        "|---|---:|---:|---:|" + "---:|" * len(CONTESTANTS),
    ]
    for steps, samples, lag in SETTINGS:
        hours, busy, _ = zip(*runs["random", steps, samples, lag], strict=True)
        times = f"{_spread(hours, 1)} | {_spread([100 * share for share in busy], 1)}"
        found = [runs.get((name, steps, samples, lag), []) for name in CONTESTANTS]
        regrets = " | ".join(_spread([regret for _, _, regret in each], 4) for each in found)
        lines.append(f"| {steps} x {samples} | {lag} | {times} | {regrets} |")
    versions = ", ".join(f"{name} {value}" for name, value in record["packages"].items())
    return "\n".join([*lines, "", f"Command: `{record['command']}`. {versions}.", ""])


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}" if values else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "Searches on a thousand simulated slots: what waiting costs, and saves.")
    parser.add_argument("--seeds", type=int, default=5, metavar="K", help="searches of each setting; default: 5")
    run(parser, lambda given: bench_scale(given.out, given.seeds), arguments)


if __name__ == "__main__":
    main()
