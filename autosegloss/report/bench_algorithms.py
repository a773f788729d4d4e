"""Which search algorithm finds most: toy rewards with known optima, equal numbers of trials, many seeds."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from autosegloss.errors import InputError
from autosegloss.report.machine import packages
from autosegloss.search.algorithms import ALGORITHMS
from autosegloss.search.journal import Job, Journal, Outcome
from autosegloss.search.runners import SerialRunner
from autosegloss.search.study import Study

STEPS, SAMPLES = 12, 32
CANDIDATES, FINALIST_SEEDS = 3, 3
DIMENSIONS = (6, 12, 24)
NOISES = (0.0, 0.05, 0.2)
CONTESTANTS: dict[str, dict[str, Any]] = {
    "ppo2": {},
    "ppo2, joint ratio": {"ratio": "joint"},
    "ppo2, baseline mu (published)": {"baseline": "mu"},
    "random": {},
    "cma_es": {},
    "tpe": {},
}
"""Options by name; the name begins with that of the algorithm."""


@dataclass(frozen=True)
class Valley:
    """Reward -sum(w (theta - optimum)^2), with weights that sum to 3, plus noise of the trial's seed.

    The objective of a study; every number follows from `dimensions`, `seed` and `noise`.
    """

    dimensions: int
    seed: int
    noise: float

    def regret(self, theta: Sequence[float]) -> float:
        """How far below the optimum a point is, without noise."""
        rng = np.random.default_rng((self.dimensions, self.seed))
        weights, optimum = rng.random(self.dimensions), rng.uniform(0.1, 0.9, self.dimensions)
        return float(3 * (weights * (np.array(theta) - optimum) ** 2).sum() / weights.sum())

    def __call__(self, job: Job) -> Outcome:
        """A trial; cross-entropy earns -1."""
        value = -1.0 if job.theta is None else -self.regret(job.theta)
        key = [job.seed, *(int(x * 2**32) for x in job.theta or ())]
        reward = value + self.noise * float(np.random.default_rng(key).standard_normal())
        return Outcome(reward, {}, {}, None, 0.0)


@dataclass(frozen=True)
class Cell:
    """Regrets of one contestant in one setting, a seed each, with their mean and its 95% t-interval."""

    contestant: str
    dimensions: int
    noise: float
    regrets: tuple[float, ...]
    mean: float
    low: float
    high: float


def bench_algorithms(out: Path, seeds: int = 20, contestants: Sequence[str] = tuple(CONTESTANTS)) -> str:
    """Let every contestant search every toy, as a study does: steps, then finals on fresh seeds.

    Writes `toys.json` and `toys.md`; the same arguments give the same bytes.

    Args:
        out: The folder to write to.
        seeds: Toys and searches of each setting, 2 or more.
        contestants: Names of `CONTESTANTS`.

    Returns:
        The table as Markdown.

    Raises:
        InputError: An argument is out of range.
    """
    if seeds < 2:
        raise InputError(f"seeds is {seeds}; an interval needs 2 or more.")
    if unknown := [name for name in contestants if name not in CONTESTANTS]:
        raise InputError(f"unknown: {', '.join(unknown)}; known: {'; '.join(CONTESTANTS)}.")
    settings = list(product(contestants, DIMENSIONS, NOISES))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        runs = [(name, Valley(size, seed, noise)) for name, size, noise in settings for seed in range(seeds)]
        regrets = list(pool.map(_searched, *zip(*runs, strict=True), chunksize=5))
    cells = [_cell(*setting, regrets[i * seeds : (i + 1) * seeds]) for i, setting in enumerate(settings)]
    table = _markdown(cells, seeds, contestants)
    out.mkdir(parents=True, exist_ok=True)
    (out / "toys.json").write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n", encoding="utf-8")
    (out / "toys.md").write_text(table, encoding="utf-8")
    return table


def _searched(contestant: str, toy: Valley) -> float:
    """The regret of what a search finds."""
    build = ALGORITHMS[contestant.partition(",")[0]]
    algorithm = build(start=(0.5,) * toy.dimensions, samples=SAMPLES, seed=toy.seed, **CONTESTANTS[contestant])
    with tempfile.TemporaryDirectory(prefix="autosegloss-bench-") as folder, Journal(Path(folder, "trials")) as journal:
        study = Study(
            algorithm, journal, steps=STEPS, candidates=CANDIDATES, finalist_seeds=FINALIST_SEEDS, seed=toy.seed
        )
        SerialRunner().run(study, toy)
        return toy.regret(study.findings().theta)


def _cell(contestant: str, dimensions: int, noise: float, regrets: Sequence[float]) -> Cell:
    mean = statistics.fmean(regrets)
    half = float(student.ppf(0.975, len(regrets) - 1)) * statistics.stdev(regrets) / len(regrets) ** 0.5
    return Cell(contestant, dimensions, noise, tuple(regrets), mean, mean - half, mean + half)


def _markdown(cells: Sequence[Cell], seeds: int, contestants: Sequence[str]) -> str:
    rows = {(cell.contestant, cell.dimensions, cell.noise): cell for cell in cells}
    lines = [
        f"Mean regret [95% t-interval] over {seeds} seeds of what a search of {STEPS} steps of {SAMPLES} trials finds, "
        f"the finals ({CANDIDATES} candidates on {FINALIST_SEEDS} fresh seeds) included. Rewards are weighted "
        "quadratics with an optimum inside; the start has a regret of 0.16 on average; noise is the standard deviation "
        "of a trial's reward.",
        "",
        "| dimensions | noise | " + " | ".join(contestants) + " |",
        "|---:|---:|" + "---|" * len(contestants),
    ]
    for size, noise in product(DIMENSIONS, NOISES):
        found = (rows[name, size, noise] for name in contestants)
        scores = " | ".join(f"{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]" for cell in found)
        lines.append(f"| {size} | {noise:g} | {scores} |")
    versions = ", ".join(f"{name} {version}" for name, version in packages("autosegloss", "cmaes", "optuna").items())
    return "\n".join([*lines, "", f"Command: `autosegloss bench algorithms --seeds {seeds}`. {versions}.", ""])
