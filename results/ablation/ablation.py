"""What each part of the search space is worth: real searches with and without it, at equal numbers of trials."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from autosegloss.errors import InputError, TrainingDiverged
from autosegloss.files import write_text
from autosegloss.metric import metric
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.train import LossFunction, one_thread
from autosegloss.proxy.trial import TARGET, Proxy
from autosegloss.report.environment import packages
from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.objective import proxy_of
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import StudyConfig, as_config
from autosegloss.search.space import CROSS_ENTROPY as CROSS_ENTROPY_CONTENT
from autosegloss.search.space import LossFamily
from autosegloss.search.statistics import interval_text
from results.ablation.free_curves import Freedom, FreeSpace, Theta
from results.algorithms.algorithms import CANDIDATES, FINALIST_SEEDS, found
from results.common.rows import Row, complete
from results.common.script import run, script

MODULE = "results.ablation.ablation"
ALGORITHM = "snes"
"""Which on toys finds more than `ppo2` or as much (`results/algorithms/toys.md`)."""
WORKERS = 2
MEASURED = {TARGET: "", "miou": "mIoU", "gacc": "accuracy"}
"""On the validation set, with the titles of their columns."""
CROSS_ENTROPY = "cross-entropy"
"""The name of the variant without a surrogate."""


@dataclass(frozen=True)
class Variant:
    """A space of losses.

    Args:
        relaxation: Keys of a configuration's `relaxation`.
        free: A constraint that its curves do without.
        searched: Whether it is searched; if not, the loss is the one that a search would start from.
        beside: The variant that it is compared with; the first one of its problem if empty.
    """

    relaxation: Mapping[str, Any] = field(default_factory=dict)
    free: Freedom | None = None
    searched: bool = True
    beside: str = ""


@dataclass(frozen=True)
class Problem:
    """A metric on a data set, and the spaces to search for it.

    Args:
        config: Of a study, without its relaxation and its search.
        variants: By name.
        steps: Steps of a search.
        samples: Trials a step.
        fresh: Trainings of each loss that was found.
    """

    config: Mapping[str, Any]
    variants: Mapping[str, Variant]
    steps: int = 6
    samples: int = 12
    fresh: int = 5

    @property
    def name(self) -> str:
        """All that decides the figures beside the variant."""
        config = as_config(self.config)
        return (
            f"{spec_label(config.metric)} on {config.proxy.data.name}, {config.proxy.train.iterations} iterations, "
            f"searches of {self.steps} x {self.samples}"
        )


def _linear(pieces: int) -> Variant:
    return Variant({"curve": "linear", "pieces": pieces})


# A linear curve stands beside the Bezier curve of as many control points. With hard labels and one soft operand an
# operator, as in mIoU, sharing curves changes nothing, nor does godel. A Bezier curve of one piece can't fall.
PROBLEMS = (
    Problem(
        {"metric": "miou", "proxy": {"data": {"name": "shapes"}}},
        {
            "bezier, 2 pieces": Variant(),
            CROSS_ENTROPY: Variant(searched=False),
            "no curves": Variant(searched=False),
            "bezier, 1 piece": Variant({"pieces": 1}),
            "bezier, 3 pieces": Variant({"pieces": 3}),
            "linear, 4 pieces": _linear(4),
            "2 pieces, no truth table": Variant(free="ends"),
            "2 pieces, not monotone": Variant(free="ordinates"),
        },
    ),
    Problem(
        {"metric": {"name": "bf1", "radius": 2}, "proxy": {"data": {"name": "nuclei"}}},
        {
            "bezier, 1 piece": Variant({"pieces": 1}),
            CROSS_ENTROPY: Variant(searched=False),
            "no curves": Variant(searched=False),
            "no curves, godel": Variant({"logic": "godel"}, searched=False, beside="no curves"),
            "bezier, 2 pieces": Variant({"pieces": 2}),
            "bezier, 3 pieces": Variant({"pieces": 3}),
            "linear, 2 pieces": _linear(2),
            "1 piece, shared": Variant({"pieces": 1, "share_curves": True}),
            "1 piece, godel": Variant({"pieces": 1, "logic": "godel"}),
            "1 piece, no truth table": Variant({"pieces": 1}, free="ends"),
            "2 pieces, not monotone": Variant({"pieces": 2}, free="ordinates", beside="bezier, 2 pieces"),
        },
    ),
)
"""The real ones: the proxies of `results/searches/shapes_miou.json` and `nuclei_bf1.json`."""


@dataclass(frozen=True)
class Course:
    """A variant as `found` searches it.

    Args:
        proxy: Prepared; it is the same for all variants of a problem.
        problem: Says for how long.
        variant: What is searched.
    """

    proxy: Proxy
    problem: Problem
    variant: Variant
    lag: int = 0

    @property
    def steps(self) -> int:
        return self.problem.steps

    @property
    def samples(self) -> int:
        return self.problem.samples

    def start(self) -> Theta:
        """The identity curves."""
        return LossFamily.of(self._config).start if self._free is None else self._free.identity

    def loss(self, theta: Theta | None) -> LossFunction:
        """The loss at a point of the space; None is cross-entropy."""
        ignore_index = self.proxy.dataset.ignore_index
        if theta is not None and self._free is not None:
            return self._free.loss(theta, ignore_index)
        content = CROSS_ENTROPY_CONTENT if theta is None else LossFamily.of(self._config).content(theta)
        return self.proxy.loss(content)

    def objective(self, seed: int) -> Objective:
        """Rewards: the target metric on the held-out part."""
        return lambda job: Outcome(self._reward(job), {}, {}, None, 0.0)

    def _reward(self, job: Job) -> float:
        return self.proxy.reward(self.proxy.trained(self.loss(job.theta), job.seed))

    @property
    def _config(self) -> StudyConfig:
        return as_config({**self.problem.config, "relaxation": self.variant.relaxation})

    @property
    def _free(self) -> FreeSpace | None:
        config = self._config
        free = self.variant.free
        return None if free is None else FreeSpace(metric(config.metric), free, config.relaxation.pieces)


def bench_ablation(out: Path, seeds: int = 1, problems: Sequence[Problem] = PROBLEMS) -> str:
    """Search every variant, train anew with what each search found, and compare on the validation set.

    Search after search is written to `out/ablation.jsonl`, and those that are there already are not run again; at the
    end the tables to `out/ablation.md`. The same arguments give the same bytes, interrupted or not.

    Args:
        out: The folder to write to.
        seeds: Searches of each variant.
        problems: What to search for.

    Returns:
        The tables as Markdown.

    Raises:
        InputError: There is no search.
    """
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; 1 search of each variant or more is wanted.")
    tasks = {}
    for problem in problems:
        proxy = proxy_of(as_config(problem.config)).prepare()
        for name, variant in problem.variants.items():
            for seed in range(seeds if variant.searched else 1):
                tasks[problem.name, name, seed] = Course(proxy, problem, variant), name, seed
    first = dict(sorted(tasks.items(), key=lambda task: task[0][2]))  # a search of everything before a second one
    rows = complete(out / "ablation.jsonl", ("problem", "variant", "search"), first, _measured, WORKERS)
    lines = [line for problem in problems for line in _table(problem, rows)]
    table = "\n".join([_INTRODUCTION, *lines, "", _about(seeds, problems[0].fresh), ""])
    write_text(out / "ablation.md", table)
    return table


def _measured(task: tuple[Course, str, int]) -> Row:
    course, name, seed = task
    theta: Theta | None = course.start()
    with one_thread():
        if name == CROSS_ENTROPY:
            theta = None
        elif course.variant.searched:
            theta = found(ALGORITHM, course, seed)
        loss, seeds = course.loss(theta), comparison_seeds(0, course.problem.fresh)
        return {"theta": theta, "runs": [_scores(course.proxy, loss, fresh) for fresh in seeds]}


def _scores(proxy: Proxy, loss: LossFunction, seed: int) -> dict[str, float]:
    """What a training scores on the validation set; 0, the least of every metric, if it diverged."""
    try:
        network = proxy.trained(loss, seed)
    except TrainingDiverged:
        return dict.fromkeys(MEASURED, 0.0)
    values = proxy.evaluation(network, validate=True).validation
    return {name: values[name] for name in MEASURED}


_INTRODUCTION = (
    f"Searches by `{ALGORITHM}`, each with finals of {CANDIDATES} candidates on {FINALIST_SEEDS} fresh seeds, then "
    "trainings with what was found, on seeds that are the same for all, measured on the validation set. Mean [95% "
    "t-interval over these seeds, of the mean over the searches], %; the interval says how sure the figures of the "
    "losses found are, and the last column, with the difference search by search, how far the luck of a search goes. "
    "Curves are one an operand, under the logic `product`, unless said. Without the truth table g(0) and g(1) are "
    "searched too, from 0 and 1 on, and the curves still rise; hard targets remain 0 and 1. Not monotone: the control "
    "points' ordinates are anywhere between 0 and 1, the ends fixed."
)


def _table(problem: Problem, rows: Mapping[tuple[Any, ...], Row]) -> list[str]:
    searches: dict[str, list[Row]] = {}
    for (where, name, _), row in sorted(rows.items()):
        if where == problem.name:
            searches.setdefault(name, []).append(row)
    config = as_config(problem.config)
    titles = {**MEASURED, TARGET: spec_label(config.metric)}
    if metric(config.metric) == metric("miou"):
        del titles["miou"]
    lines = [
        "",
        f"**{problem.name}**, {problem.fresh} trainings each",
        "",
        f"| losses | coordinates | {' | '.join(titles.values())} | difference in {titles[TARGET]} | to | by search |",
        "|---|---:|" + "---|" * (len(titles) + 3),
    ]
    reference = next(iter(problem.variants))
    for name, variant in problem.variants.items():
        ours, beside = searches[name], variant.beside or reference
        cells = [str(len(ours[0]["theta"])) if variant.searched else "0"]
        cells += [interval_text(_by_seed(ours, measure), ".1f") for measure in titles]
        if name == reference:
            cells += ["", "", ""]
        else:
            gains = _gains(ours, searches[beside])
            by_search = ", ".join(f"{fmean(gain):+.1f}" for gain in gains)
            means = [fmean(values) for values in zip(*gains, strict=True)]
            cells += [interval_text(means, "+.1f"), beside, by_search]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _by_seed(searches: Sequence[Row], measure: str) -> list[float]:
    """A metric in %, for each fresh seed the mean over the searches."""
    return [fmean(values) for values in zip(*(_values(search, measure) for search in searches), strict=True)]


def _gains(ours: Sequence[Row], others: Sequence[Row]) -> list[list[float]]:
    """Differences of the target in %, search by search and seed by seed; a loss not searched stands beside each."""
    number = max(len(ours), len(others))
    pairs = zip(*(list(each) * (number // len(each)) for each in (ours, others)), strict=True)
    return [[a - b for a, b in zip(_values(one, TARGET), _values(other, TARGET), strict=True)] for one, other in pairs]


def _values(search: Row, measure: str) -> list[float]:
    return [100 * run[measure] for run in search["runs"]]


def _about(seeds: int, fresh: int) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in packages("autosegloss", "torch", "numpy", "scipy").items())
    searches, trainings = (", ".join(map(str, each)) for each in (range(seeds), comparison_seeds(0, fresh)))
    return (
        f"Command: `python -m {MODULE} --seeds {seeds}`. Seeds of the searches: {searches}; of the "
        f"trainings: {trainings}; {versions}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "Real searches with and without each part of the search space.")
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="searches of each variant; default: 1")

    def measure(given: argparse.Namespace) -> str:
        return bench_ablation(given.out, given.seeds)

    run(parser, measure, arguments)


if __name__ == "__main__":
    main()
