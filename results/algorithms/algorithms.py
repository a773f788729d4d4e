"""Which search algorithm finds most, at equal numbers of trials over many seeds: on toys, and on real proxies."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from autosegloss.errors import InputError
from autosegloss.files import write_text
from autosegloss.metric import Accumulator
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.data import Split
from autosegloss.proxy.train import predict
from autosegloss.proxy.trial import Proxy
from autosegloss.report.environment import packages
from autosegloss.search.algorithms import ALGORITHMS
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.finals import Schedule
from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.objective import proxy_of
from autosegloss.search.plan import without_rivals
from autosegloss.search.runners.base import attempt
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.settings import as_config
from autosegloss.search.space import LossFamily
from autosegloss.search.statistics import interval_text
from autosegloss.search.study import Study
from results.common.losses import ByTheta
from results.common.rows import Row, complete
from results.common.script import run, script

Theta = tuple[float, ...]

MODULE = "results.algorithms.algorithms"
CANDIDATES, FINALIST_SEEDS = 3, 3
_PLACES = 6  # of the figures of a summary
BASIS = "ppo2"
"""The contestant that the others are compared with."""
CONTESTANTS: dict[str, dict[str, Any]] = {
    "ppo2": {},
    "ppo2, baseline mu (published)": {"baseline": "mu"},
    "ppo2, joint ratio": {"ratio": "joint"},
    "snes": {},
    "cma_es": {},
    "tpe": {},
    "random": {},
}
"""Options by name; the name begins with that of the algorithm."""


@dataclass(frozen=True)
class Valley:
    """Reward -q with q = sum(w (theta - optimum)^2) and weights that sum to 3, plus noise of the trial's seed.

    The objective of a study; every number follows from `dimensions` and `seed`. With a width the reward is
    exp(-q / width) - 1: flat but near the optimum, as where most losses earn nothing.
    """

    dimensions: int
    seed: int
    noise: float
    width: float | None = None

    def regret(self, theta: Sequence[float]) -> float:
        """How far below the optimum a point is, without noise."""
        rng = np.random.default_rng((self.dimensions, self.seed))
        weights, optimum = rng.random(self.dimensions), rng.uniform(0.1, 0.9, self.dimensions)
        q = float(3 * (weights * (np.array(theta) - optimum) ** 2).sum() / weights.sum())
        return q if self.width is None else -float(np.expm1(-q / self.width))

    def __call__(self, job: Job) -> Outcome:
        """A trial; cross-entropy earns -1."""
        value = -1.0 if job.theta is None else -self.regret(job.theta)
        key = [job.seed, *(int(x * 2**32) for x in job.theta or ())]
        return _outcome(value + self.noise * float(np.random.default_rng(key).standard_normal()))


@dataclass(frozen=True)
class Toy:
    """A valley or a bump (a valley with a width), another for each seed.

    Args:
        shape: Which.
        dimensions: Coordinates.
        noise: Standard deviation of the noise of each trial.
        steps: Steps of the search.
        samples: Trials a step.
        lag: Steps that may be under way when the next one is asked.
    """

    shape: Literal["valley", "bump"]
    dimensions: int
    noise: float
    steps: int = 12
    samples: int = 32
    lag: int = 0
    best: ClassVar[float | None] = 0.0

    @property
    def name(self) -> str:
        lag = f", lag {self.lag}" if self.lag else ""
        return f"{self.shape}, {self.dimensions} dimensions, noise {self.noise:g}, {self.steps} x {self.samples}{lag}"

    def start(self) -> Theta:
        return (0.5,) * self.dimensions

    def objective(self, seed: int) -> Valley:
        return Valley(self.dimensions, seed, self.noise, None if self.shape == "valley" else 0.08)

    def score(self, theta: Theta, seed: int) -> float:
        return -self.objective(seed).regret(theta)


@dataclass(frozen=True)
class RealProxy:
    """A proxy on real training, made cheap: quarters of the images, few iterations, the target metric alone.

    What a search finds is scored by its mean reward over trainings with seeds of their own.

    Args:
        data: A data set of `PROXIES`.
        steps: Steps of the search.
        samples: Trials a step.
    """

    data: str
    steps: int = 8
    samples: int = 12
    lag: ClassVar[int] = 0
    best: ClassVar[float | None] = None
    FRESH_SEEDS: ClassVar[int] = 6

    @property
    def name(self) -> str:
        config = as_config(PROXIES[self.data])
        train = config.proxy.train
        return (
            f"{spec_label(config.metric)} on {self.data}, {config.relaxation.pieces} pieces a curve, "
            f"{train.iterations} iterations of {train.batch_size} crops of {SIDE}x{SIDE}, {self.steps} x {self.samples}"
        )

    def start(self) -> Theta:
        return LossFamily.of(as_config(PROXIES[self.data])).start

    def objective(self, seed: int) -> Objective:
        return lambda job: _outcome(_reward(self.data, tuple(job.loss["theta"]), job.seed))

    def score(self, theta: Theta, seed: int) -> float:
        fresh = (Job("final", 0, 0, {"theta": theta}, number, theta) for number in range(self.FRESH_SEEDS))
        return statistics.fmean(attempt(self.objective(seed), job).reward or 0.0 for job in fresh)


Setting = Toy | RealProxy
"""What is searched, for how long, and the score of a point. `best` is the highest one; None if nobody knows."""

SIDE = 32
"""Height and width of the crops that cheap proxies train on and are scored on."""
_CURVES_ALONE: Mapping[str, Any] = {"curve": "bezier", "logic": "product", "scale": 1, "cross_entropy": 0}
PROXIES: Mapping[str, Mapping[str, Any]] = {
    "shapes": {
        "metric": "miou",
        "relaxation": _CURVES_ALONE,
        "proxy": {"data": {"name": "shapes"}, "train": {"iterations": 16, "batch_size": 4}},
    },
    "nuclei": {
        "metric": {"name": "bf1", "radius": 2},
        "relaxation": {**_CURVES_ALONE, "pieces": 1},
        "proxy": {"data": {"name": "nuclei"}, "train": {"iterations": 16, "batch_size": 4}},
    },
}
"""The configurations of the cheap proxies."""


@cache
def _cheap_proxy(data: str) -> Proxy:
    """A proxy that trains on quarters of its images, and is scored on some of them."""
    proxy = proxy_of(as_config(PROXIES[data])).prepare()
    train, heldout = crops(proxy.dataset.train, SIDE, SIDE), crops(proxy.dataset.heldout, SIDE, SIDE, 64)
    return replace(proxy, dataset=replace(proxy.dataset, train=train, heldout=heldout))


@cache
def _reward(data: str, theta: Theta, seed: int) -> float:
    """The target metric alone of a loss and a seed; what several searches try alike is trained once."""
    proxy, family = _cheap_proxy(data), LossFamily.of(as_config(PROXIES[data]))
    dataset = proxy.dataset
    network = proxy.trained(proxy.loss(family.content(theta)), seed)
    accumulator = Accumulator(proxy.target, len(dataset.classes), dataset.ignore_index)
    accumulator.update(torch.from_numpy(predict(network, dataset.heldout)), torch.from_numpy(dataset.heldout.labels))
    return accumulator.compute()


def crops(split: Split, height: int, width: int, count: int | None = None) -> Split:
    """Images and labels cut into parts of a size, without what is left at the right and below; the first `count`."""

    def cut(maps: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows, columns = (range(0, n - part + 1, part) for n, part in zip(maps.shape[-2:], (height, width), strict=True))
        parts = [maps[..., row : row + height, column : column + width] for row, column in product(rows, columns)]
        return np.ascontiguousarray(np.concatenate(parts)[:count])

    return Split(cut(split.images), cut(split.labels))


def _outcome(reward: float) -> Outcome:
    return Outcome(reward, {}, {}, None, 0.0)


def searched(contestant: str, setting: Setting, seed: int) -> Theta:
    """What a search finds, as a study does: steps, then finals on fresh seeds."""
    options = CONTESTANTS[contestant]
    samples = setting.samples - (options.get("baseline") == "mu")  # mu is a trial too
    algorithm = ALGORITHMS[contestant.partition(",")[0]](start=setting.start(), samples=samples, seed=seed, **options)
    with tempfile.TemporaryDirectory(prefix="autosegloss-bench-") as folder, Journal(Path(folder, "trials")) as journal:
        study = Study(
            without_rivals(algorithm, ByTheta()),
            journal,
            CROSS_ENTROPY,
            Schedule(
                steps=setting.steps, candidates=CANDIDATES, finalist_seeds=FINALIST_SEEDS, seed=seed, lag=setting.lag
            ),
        )
        SerialRunner().run(study, setting.objective(seed))
        theta = study.findings().theta
        assert theta is not None  # cross-entropy is the result of searches with guards only
        return theta


def _row(task: tuple[str, Setting, int]) -> Row:
    contestant, setting, seed = task
    theta = searched(contestant, setting, seed)
    return {"theta": theta, "score": setting.score(theta, seed)}


SETTINGS: Mapping[str, Sequence[Setting]] = {
    "toys": [
        *(Toy("valley", d, noise) for d, noise in product((6, 12, 24), (0.0, 0.05, 0.2))),
        *(Toy("valley", 12, noise, 8, 12) for noise in (0.0, 0.05, 0.2)),
        *(Toy("bump", 12, noise, 8, 12) for noise in (0.0, 0.05, 0.2)),
    ],
    "lag": [Toy("valley", 12, noise, lag=lag) for noise, lag in product((0.0, 0.05, 0.2), (0, 1, 2))],
    "shapes": [RealProxy("shapes")],
    "nuclei": [RealProxy("nuclei")],
}
"""The settings of each benchmark."""
_TOY = (
    "Noise is the standard deviation of a trial's reward. A valley is a weighted quadratic with an optimum inside, and "
    "the start has a regret of 0.16 on average; a bump is flat but near the optimum, and the start has 0.8."
)
_REAL = (
    f"What was found is scored by its mean reward over {RealProxy.FRESH_SEEDS} trainings of their own, the same for "
    "all; the regret is the distance to the best that any search of the table found."
)
_ABOUT = {"toys": _TOY, "lag": _TOY, "shapes": _REAL, "nuclei": _REAL}


def bench_algorithms(
    out: Path, on: str = "toys", seeds: int = 20, contestants: Sequence[str] = tuple(CONTESTANTS)
) -> str:
    """Let every contestant search in every setting.

    Search after search is written to `out/<on>.jsonl`, and those that are there already are not run again; at the end
    the regrets to `out/<on>.json`, and from these the table to `out/<on>.md`. The same arguments give the same bytes,
    interrupted or not.

    Args:
        out: The folder to write to.
        on: Name of `SETTINGS`.
        seeds: Searches of each contestant in each setting, 2 or more.
        contestants: Names of `CONTESTANTS`.

    Returns:
        The table as Markdown.

    Raises:
        InputError: There are too few seeds.
    """
    if seeds < 2:
        raise InputError(f"seeds must be 2 or more, got {seeds}.")
    settings = SETTINGS[on]
    tasks = {
        (c, setting.name, seed): (c, setting, seed)
        for setting in settings
        for seed in range(seeds)
        for c in contestants
    }
    rows = complete(out / f"{on}.jsonl", ("contestant", "setting", "seed"), tasks, _row)

    chosen = "" if list(contestants) == list(CONTESTANTS) else "".join(f' --algorithm "{name}"' for name in contestants)
    summary: dict[str, Any] = {
        "on": on,
        "command": f"python -m {MODULE} --on {on} --seeds {seeds}{chosen}",
        "packages": packages("autosegloss", "torch", "cmaes", "optuna"),
        "settings": {
            s.name: _regrets(s.best, {c: [rows[c, s.name, k]["score"] for k in range(seeds)] for c in contestants})
            for s in settings
        },
    }
    write_text(out / f"{on}.json", json.dumps(summary) + "\n")
    table = to_markdown(summary)
    write_text(out / f"{on}.md", table)
    return table


def _regrets(best: float | None, scores: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The regrets of each contestant, by seed."""
    top = max(max(each) for each in scores.values()) if best is None else best
    return {name: [round(top - score, _PLACES) for score in each] for name, each in scores.items()}


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The table of a summary."""
    regrets = {name: {c: np.array(values) for c, values in s.items()} for name, s in summary["settings"].items()}
    first = next(iter(regrets.values()))
    contestants, seeds = list(first), len(next(iter(first.values())))

    def table(names: Sequence[str], minus: str | None = None) -> list[str]:
        rows = []
        for setting, of in regrets.items():
            cells = [of[name] - (of[minus] if minus else 0) for name in names]
            rows.append(" | ".join([setting, *(interval_text(cell.tolist(), ".3f") for cell in cells)]))
        return [f"| setting | {' | '.join(names)} |", "|---|" + "---:|" * len(names), *map("| {} |".format, rows)]

    lines = [
        f"Mean regret [95% t-interval] over {seeds} seeds of what a search finds, the finals ({CANDIDATES} candidates "
        f"on {FINALIST_SEEDS} fresh seeds) included; a setting ends with its steps x trials. "
        f"{_ABOUT[summary['on']]}",
        "",
        *table(contestants),
    ]
    others = [name for name in contestants if name != BASIS]
    if others and BASIS in contestants:
        lines += [
            "",
            f"Difference to {BASIS} on the same seeds; below 0 is better than {BASIS}:",
            "",
            *table(others, BASIS),
        ]
    versions = ", ".join(f"{name} {version}" for name, version in summary["packages"].items())
    return "\n".join([*lines, "", f"Command: `{summary['command']}`. {versions}.", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "Search algorithms, on toys and on real proxies.")
    parser.add_argument("--on", choices=tuple(SETTINGS), default="toys", help="what to search; default: toys")
    parser.add_argument("--seeds", type=int, default=20, metavar="K", help="searches of each setting; default: 20")
    parser.add_argument("--algorithm", action="append", choices=tuple(CONTESTANTS), help="may be given again")

    def measure(given: argparse.Namespace) -> str:
        return bench_algorithms(given.out, given.on, given.seeds, given.algorithm or tuple(CONTESTANTS))

    run(parser, measure, arguments)


if __name__ == "__main__":
    main()
