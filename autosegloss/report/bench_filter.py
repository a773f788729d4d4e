"""Whether a trial's reward can be told before it is trained, by a filter, or early on, by the metric on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autosegloss.config import StudyConfig, load_config
from autosegloss.errors import InputError, TrainingDiverged
from autosegloss.proxy.train import one_thread
from autosegloss.proxy.trial import Proxy, search_space
from autosegloss.report.intervals import rank_correlation
from autosegloss.report.machine import machine, packages
from autosegloss.search import policy

SEEDS = (1, 2)
"""Of the trials: each theta is trained with both, as in two steps of a search."""
SHARES = (0.1, 0.2, 0.3, 0.5)
"""Of a trial's iterations, after which its metric is measured."""
STEPS = (4, 10, 40)
"""Of the filter, after which its metric is taken."""
EVERY = 2
"""Steps of the filter between what is written down."""
REJECTED = 0.5
"""The share of the trials that is given up."""
TOP = 0.1
"""The share of the trials that a search is after."""
BUDGET = 16
"""Trials of one step of the shipped searches."""
RESAMPLES, DRAWS = 200, 200
"""Of the bootstrap, and of the random choices of losses within each."""

Array = NDArray[Any]


FILTERS: dict[str, dict[str, Any]] = {
    "fresh logits, sgd": {"regime": "encoder", "optimizer": "sgd"},
    "fresh logits, adam": {"regime": "encoder", "optimizer": "adam"},
    "pretrained logits, sgd": {"regime": "checkpoint", "optimizer": "sgd"},
}
"""Options of `Proxy.descent`: whose logits, and what they descend by."""


@dataclass(frozen=True)
class Record:
    """What was measured of one loss.

    Args:
        theta: Its parameters.
        rewards: Of a trial with each of `SEEDS`; 0, the least of every metric, for one that diverged.
        early: The metric on the held-out part after each of `SHARES` of the iterations, of the same trials.
        rises: What each of `FILTERS` saw, with the first seed, before and after every second step.
        seconds: Of a processor, for a "trial", a "look" at the metric on its way, and each filter.
    """

    theta: tuple[float, ...]
    rewards: tuple[float, ...]
    early: tuple[tuple[float, ...], ...]
    rises: dict[str, tuple[float, ...]]
    seconds: dict[str, float]


def bench_filter(out: Path, configs: Sequence[Path], thetas: int = 64) -> str:
    """Train with losses from all over the search space and from near its start, and compare with what was seen before.

    Writes `filter.json` and `filter.md`; all but the seconds is the same for the same arguments.

    Args:
        out: The folder to write to.
        configs: Studies; their regime is not `scratch`.
        thetas: Losses from the whole space, and as many from near its start; 5 or more.

    Returns:
        The tables as Markdown.

    Raises:
        ConfigError: A configuration has mistakes.
        InputError: An argument is out of range.
    """
    if thetas < 5:
        raise InputError(f"thetas is {thetas}; the best tenth of twice fewer than 5 is none.")
    settings = {path.stem: load_config(path) for path in configs}
    if scratch := [name for name, config in settings.items() if config.proxy.start.regime == "scratch"]:
        raise InputError(f"{', '.join(scratch)}: proxy.start.regime is `scratch`, and there are no pretrained logits.")
    measured: dict[str, list[Record]] = {}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for name, config in settings.items():
            proxy = Proxy.load(config).prepare()
            measured[name] = list(pool.map(partial(_measured, proxy), drawn_thetas(config, thetas)))
    table = "\n".join([*_tables(measured), "", _about([str(path) for path in configs], thetas), ""])
    out.mkdir(parents=True, exist_ok=True)
    content = {name: [_rounded(asdict(record)) for record in records] for name, records in measured.items()}
    (out / "filter.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    (out / "filter.md").write_text(table, encoding="utf-8")
    return table


def drawn_thetas(config: StudyConfig, count: int) -> list[tuple[float, ...]]:
    """Points from the whole cube, then as many as the first step of a search draws them."""
    start = search_space(config).identity
    cube = np.random.default_rng(0).random((count, len(start)))
    near = policy.sample(start, config.search.std, count, np.random.default_rng(1))
    return [tuple(row) for row in [*cube.tolist(), *near.tolist()]]


def _measured(proxy: Proxy, theta: tuple[float, ...]) -> Record:
    iterations = proxy.config.proxy.train.iterations
    moments = [max(1, round(share * iterations)) for share in SHARES]
    rewards, early, seconds = [], [], {}
    for seed in SEEDS:
        training = proxy.training(proxy.loss(theta), seed)
        seen = [0.0] * len(SHARES)
        start, looks = time.process_time(), 0.0
        try:
            with one_thread():
                for number, moment in enumerate(moments):
                    training.advance(moment)
                    before = time.process_time()
                    seen[number] = proxy.target(training.network)
                    looks += time.process_time() - before
                training.advance()
            reward = proxy.target(training.network)
        except TrainingDiverged:
            reward = 0.0
        seconds["trial"] = time.process_time() - start - looks
        seconds["look"] = looks / len(SHARES)
        rewards.append(reward)
        early.append(tuple(seen))
    rises = {}
    for name, options in FILTERS.items():
        start = time.process_time()
        rises[name] = tuple(proxy.descent(proxy.loss(theta), seed=SEEDS[0], steps=STEPS[-1], **options)[::EVERY])
        seconds[name] = time.process_time() - start
    return Record(theta, tuple(rewards), tuple(early), rises, seconds)


@dataclass(frozen=True)
class Score:
    """What may stand for the rewards of a group, and what a trial then costs.

    Args:
        values: Shape (seeds, thetas); higher is what looks better.
        kept: Cost of a trial that is kept, in trials.
        rejected: Cost of one that is given up.
        share: The share that is given up, those of the lowest values.
    """

    values: Array
    kept: float
    rejected: float
    share: float = REJECTED

    def of(self, chosen: Array) -> Score:
        """The same of some of the thetas."""
        return replace(self, values=self.values[:, chosen])

    def correlation(self, rewards: Array) -> float:
        """Spearman's rank correlation with the rewards, mean over the seeds; 0 for equal values."""
        return float(rank_correlation(self.values, rewards).mean())

    def lost(self, rewards: Array) -> float:
        """The share of the best `TOP` of the trials that is given up, mean over the seeds."""
        count = rewards.shape[1]
        best = np.argsort(-rewards, axis=1)[:, : round(TOP * count)]
        worst = np.argsort(self.values, axis=1, kind="stable")[:, : round(self.share * count)]
        return fmean(float(np.isin(a, b).mean()) for a, b in zip(best, worst, strict=True))

    @property
    def afforded(self) -> int:
        """Trials, with those that are given up, that take the time of `BUDGET` whole ones."""
        return round(BUDGET / (self.share * self.rejected + (1 - self.share) * self.kept))

    def found(self, rewards: Array, trials: int, rng: np.random.Generator) -> float:
        """What the best of so many losses earns with the other seed, mean over draws."""
        kept = trials - round(self.share * trials)
        drawn = rng.integers(rewards.shape[1], size=(DRAWS, trials))
        earned = []
        for values, own, other in zip(self.values, rewards, rewards[::-1], strict=True):
            order = np.argsort(-values[drawn], axis=1, kind="stable")[:, :kept]
            chosen = np.take_along_axis(drawn, order, axis=1)
            best = np.take_along_axis(chosen, own[chosen].argmax(axis=1)[:, None], axis=1)
            earned.append(float(other[best].mean()))
        return fmean(earned)


def _scores(records: Sequence[Record]) -> dict[str, Score]:
    """By name; that of a trial with another seed shows how far a reward repeats itself."""
    trial = median(record.seconds["trial"] for record in records)
    rewards = np.array([record.rewards for record in records]).T
    scores = {}
    for name in FILTERS:
        whole = median(record.seconds[name] for record in records) / trial
        rises = np.array([record.rises[name] for record in records]).T
        views = [(f"after {steps} steps", rises[steps // EVERY], steps) for steps in STEPS]
        for view, values, steps in [*views, (f"mean of {STEPS[-1]} steps", rises.mean(axis=0), STEPS[-1])]:
            cost = whole * steps / STEPS[-1]
            scores[f"{name}: {view}"] = Score(np.stack([values] * len(SEEDS)), 1 + cost, cost)
    early = np.array([record.early for record in records])  # thetas, seeds, shares
    look = median(record.seconds["look"] for record in records) / trial
    for share, values in zip(SHARES, early.transpose(2, 1, 0), strict=True):
        scores[f"after {share:.0%} of a trial"] = Score(values, 1 + look, share + look)
    scores["a trial with another seed"] = Score(rewards[::-1], 2.0, 1.0)
    return scores


def _tables(measured: Mapping[str, Sequence[Record]]) -> list[str]:
    lines = [
        "Losses, half of them from anywhere in the search space and half as the first step of a search draws them, "
        f"were trained with {len(SEEDS)} seeds. What was seen before or on the way: its rank correlation with the "
        f"reward; the share of the best {TOP:.0%} that is lost when the lower {REJECTED:.0%} are given up; and the "
        f"reward, with the other seed, of the best of {BUDGET} losses of which the lower {REJECTED:.0%} are given up, "
        f"less that of the best of {BUDGET} that are all trained, in points; then the same of as many losses as take "
        f"the time of {BUDGET} trials. [95% bootstrap intervals over the losses.]",
    ]
    for name, records in measured.items():
        rewards = np.array([record.rewards for record in records]).T
        low, middle, high = 100 * np.quantile(rewards, [0, 0.5, 1])
        plain, half = Score(rewards, 1.0, 1.0, share=0.0), round((1 - REJECTED) * BUDGET)
        usual, chance = (100 * plain.found(rewards, trials, np.random.default_rng(0)) for trials in (BUDGET, half))
        lines += [
            "",
            f"**{name}**: {len(records)} losses, rewards {low:.1f} to {high:.1f}, median {middle:.1f}; a trial takes "
            f"{median(record.seconds['trial'] for record in records):.1f} s; half of them given up by chance, the best "
            f"of {BUDGET} is {chance - usual:+.1f}",
            "",
            f"| seen | costs, trials | rank correlation | best lost, % | of {BUDGET} losses | at equal time |",
            "|---|---:|---|---|---|---|",
        ]
        lines += [f"| {seen} | {_row(score, rewards)} |" for seen, score in _scores(records).items()]
    return lines


def _row(score: Score, rewards: Array) -> str:
    """The figures of one score, each with the interval of its bootstrap."""
    rng = np.random.default_rng(0)
    plain = Score(rewards, 1.0, 1.0, share=0.0)

    def figures(chosen: Array) -> tuple[float, ...]:
        ours, theirs, earned = score.of(chosen), plain.of(chosen), rewards[:, chosen]
        usual = theirs.found(earned, BUDGET, rng)
        gains = (100 * (ours.found(earned, trials, rng) - usual) for trials in (BUDGET, ours.afforded))
        return ours.correlation(earned), 100 * ours.lost(earned), *gains

    count = rewards.shape[1]
    values = figures(np.arange(count))
    resamples: Array = rng.integers(count, size=(RESAMPLES, count))
    resampled = np.array([figures(chosen) for chosen in resamples])
    intervals = np.quantile(resampled, [0.025, 0.975], axis=0).T
    cells = [
        f"{value:{form}} [{low:{form}}, {high:{form}}]"
        for value, (low, high), form in zip(values, intervals, (".2f", ".0f", "+.1f", "+.1f"), strict=True)
    ]
    return " | ".join([f"{score.rejected:.2f}", *cells])


def _about(configs: Sequence[str], thetas: int) -> str:
    about = [*machine().items(), *packages("autosegloss", "torch", "numpy", "scipy").items()]
    command = " ".join(["autosegloss bench filter", *configs, f"--thetas {thetas}"])
    return f"Command: `{command}`. " + ", ".join(f"{name} {value}" for name, value in about) + "."


def _rounded(value: Any) -> Any:
    """Numbers with the digits that say something."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 5)
