"""A search on a thousand slots, simulated: the study, its journal and its algorithms are real, the clock is not."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

from autosegloss.errors import InputError
from autosegloss.report.environment import machine, packages
from autosegloss.search.algorithms import ALGORITHMS
from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.runners.base import JobQueue
from autosegloss.search.space import CROSS_ENTROPY
from autosegloss.search.study import Study
from results.algorithms.algorithms import Valley
from results.common.losses import theta_alone
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
WINDOW = 1_000
"""Trials at either end of a search over which the driver's time is taken."""


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
        handing: Processor seconds that it took to get each trial from the study, in that order.
        recording: Processor seconds that it took to hand each one back, the algorithm's included where it ends a step.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.clock = 0.0
        self.handing: list[float] = []
        self.recording: list[float] = []

    def run(self, study: JobQueue, objective: Objective) -> None:
        """Run the study to its end; see `Runner.run`."""
        running: list[tuple[float, int, Job, Outcome]] = []
        while not study.finished:
            while len(running) < self.slots:
                start = time.process_time()
                job = study.next_job()
                if job is None:
                    break
                self.handing.append(time.process_time() - start)
                outcome = objective(job)
                # Of trials that end at the same time, the one that was handed out first is recorded first.
                heappush(running, (self.clock + outcome.seconds, len(self.handing), job, outcome))
            self.clock, _, job, outcome = heappop(running)
            start = time.process_time()
            study.record(job, outcome)
            self.recording.append(time.process_time() - start)


@dataclass(frozen=True)
class Run:
    """One simulated search.

    Args:
        hours: Virtual time to the end of its steps, before the finals.
        busy: Share of the slots' time until then that was spent in trials.
        regret: Of what it found, finals included.
        trial: Milliseconds of the driver's processor that a trial took, median over the first `WINDOW` and the last.
        step: The same of a trial that ended a step, where the algorithm learns: the first one, and the last, after
            which the finalists are chosen.
        driver: Seconds of the driver's processor that the whole search took.
    """

    hours: float
    busy: float
    regret: float
    trial: tuple[float, float]
    step: tuple[float, float]
    driver: float


@dataclass(frozen=True)
class Cell:
    """All runs of one setting, a seed each."""

    algorithm: str
    steps: int
    samples: int
    lag: int
    runs: tuple[Run, ...]


def bench_scale(out: Path, seeds: int = 5) -> str:
    """Simulate the searches of `SETTINGS`, and write `scale.json` and `scale.md`.

    The same arguments give the same figures, but for those of the driver's time, which is that of this machine.

    Args:
        out: The folder to write to.
        seeds: Toys and searches of each setting, 2 or more.

    Returns:
        The tables as Markdown.

    Raises:
        InputError: There are too few seeds.
    """
    if seeds < 2:
        raise InputError(f"seeds is {seeds}; a spread needs 2 or more.")
    cells = [
        Cell(name, *setting, tuple(_simulated(name, *setting, seed) for seed in range(seeds)))
        for setting, names in SETTINGS.items()
        for name in names
    ]
    journals = f"TMPDIR={os.environ['TMPDIR']} " if "TMPDIR" in os.environ else ""  # what kind of disk they are on
    record = {
        "command": f"{journals}python -m {MODULE} --seeds {seeds}",
        "machine": machine(),
        "packages": packages("autosegloss", "cmaes", "numpy", "torch"),
        "cells": [asdict(cell) for cell in cells],
    }
    tables = to_markdown(record)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scale.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "scale.md").write_text(tables, encoding="utf-8")
    return tables


def _simulated(name: str, steps: int, samples: int, lag: int, seed: int) -> Run:
    """A search on a virtual clock."""
    toy = Valley(DIMENSIONS, seed, NOISE)
    algorithm = ALGORITHMS[name](start=(0.5,) * DIMENSIONS, samples=samples, seed=seed)
    runner = SimulatedRunner(SLOTS)
    done: list[int] = []  # steps, after each trial
    spent: list[tuple[float, float]] = []  # by the virtual clock, and in trials

    def observer(study: Study) -> None:
        done.append(len(study.steps))
        spent.append((runner.clock, study.seconds))

    with tempfile.TemporaryDirectory(prefix="autosegloss-bench-") as folder, Journal(Path(folder, "trials")) as journal:
        study = Study(
            algorithm,
            journal,
            theta_alone,
            CROSS_ENTROPY,
            steps=steps,
            candidates=CANDIDATES,
            finalist_seeds=FINALIST_SEEDS,
            seed=seed,
            lag=lag,
            observer=observer,
        )
        runner.run(study, Trial(toy))
        regret = toy.regret(study.findings().theta)
    ends = [trial for trial, (before, after) in enumerate(pairwise([0, *done])) if after > before]
    clock, seconds = spent[ends[-1]]
    both = [1000 * (one + other) for one, other in zip(runner.handing, runner.recording, strict=True)]
    return Run(
        hours=clock / 3600,
        busy=seconds / (SLOTS * clock),
        regret=regret,
        trial=(median(both[:WINDOW]), median(both[-WINDOW:])),
        step=(1000 * runner.recording[ends[0]], 1000 * runner.recording[ends[-1]]),
        driver=sum(both) / 1000,
    )


def to_markdown(record: Mapping[str, Any]) -> str:
    """Time and quality of each setting, and the driver's time of each algorithm in it."""
    runs = {
        (c["algorithm"], c["steps"], c["samples"], c["lag"]): [Run(**run) for run in c["runs"]] for c in record["cells"]
    }
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
        timed = runs["random", steps, samples, lag]
        hours, busy = _spread([run.hours for run in timed], 1), _spread([100 * run.busy for run in timed], 1)
        found = [runs.get((name, steps, samples, lag), []) for name in CONTESTANTS]
        regrets = " | ".join(_spread([run.regret for run in each], 4) for each in found)
        lines.append(f"| {steps} x {samples} | {lag} | {hours} | {busy} | {regrets} |")
    lines += [
        "",
        "What the search takes of the processor that drives it: a trial that does not end a step (median of the first "
        f"{WINDOW:,} and of the last), one that does (the first and the last, which chooses the finalists too), and "
        "the whole search; means over seeds. Waiting for the journal's disk is not in it.",
        "",
        "| algorithm | steps x samples | lag | a trial, ms: first | last | a step, ms: first | last | in all, s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (name, steps, samples, lag), each in runs.items():
        costs = [fmean(run.trial[end] for run in each) for end in (0, 1)]
        costs += [fmean(run.step[end] for run in each) for end in (0, 1)]
        figures = " | ".join(f"{cost:.3g}" for cost in [*costs, fmean(run.driver for run in each)])
        lines.append(f"| {name} | {steps} x {samples} | {lag} | {figures} |")
    versions = ", ".join(f"{name} {value}" for name, value in [*record["machine"].items(), *record["packages"].items()])
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
