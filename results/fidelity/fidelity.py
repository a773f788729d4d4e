"""How a proxy is to be made: how well its rewards rank losses as full training does, by length, size and start."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from autosegloss.errors import InputError, TrainingDiverged
from autosegloss.files import write_text
from autosegloss.loss import Loss
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.settings import Regime
from autosegloss.proxy.train import one_thread
from autosegloss.proxy.trial import Proxy
from autosegloss.report.environment import machine, packages
from autosegloss.search.algorithms import policy
from autosegloss.search.comparison import losses_of
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import StudyConfig, fingerprint, load_config
from autosegloss.search.space import LossFamily
from results.algorithms.algorithms import crops
from results.common.rows import Row, complete
from results.common.script import run, script

Array = NDArray[Any]
Theta = tuple[float, ...]

MODULE = "results.fidelity.fidelity"
SEEDS = (1, 2)
"""Of the proxies; full training has others, so that no luck is common to both."""
ITERATIONS, FULL = (25, 50, 100, 200), 600
"""Of the proxies, and of full training."""
NAMED = ("cross_entropy", "weighted_cross_entropy", "soft_dice", "lovasz")
"""Losses beside those that are drawn."""
RESAMPLES = 500
"""Of the bootstrap."""
WORKERS = 2


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Args:
        start: The weights that training starts from.
        half: Whether images are cut into parts of half their height and width, those that are scored too.
        iterations: Steps.
        full: Whether it is the training that the others stand for: of other seeds, scored on the validation set.
    """

    start: Regime
    half: bool
    iterations: int
    full: bool = False

    @property
    def cells(self) -> tuple[str, str, str]:
        """Start, size and iterations, in words."""
        return self.start, "half" if self.half else "full", str(self.iterations)

    @property
    def name(self) -> str:
        """All that it is."""
        return ", ".join([*self.cells, *(["validation"] if self.full else [])])

    def of(self, proxy: Proxy) -> Proxy:
        """A prepared proxy, trained this way."""
        dataset, settings = proxy.dataset, proxy.settings
        if self.half:
            size = [side // 2 for side in dataset.train.labels.shape[1:]]
            dataset = replace(dataset, train=crops(dataset.train, *size), heldout=crops(dataset.heldout, *size))
        if self.full:
            dataset = replace(dataset, heldout=dataset.validation)
        start = settings.start.model_copy(update={"regime": self.start})
        return replace(proxy, settings=settings.model_copy(update={"start": start}), dataset=dataset)


def arms(iterations: Sequence[int] = ITERATIONS, full: int = FULL) -> list[Arm]:
    """All proxies, then full training from scratch and from the encoder."""
    regimes = cast("tuple[Regime, ...]", get_args(Regime))
    proxies = [Arm(start, half, steps) for start, half, steps in product(regimes, (False, True), iterations)]
    return [*proxies, *(Arm(start, False, full, full=True) for start in ("scratch", "encoder"))]


def bench_fidelity(
    out: Path, configs: Sequence[Path], thetas: int = 20, iterations: Sequence[int] = ITERATIONS, full: int = FULL
) -> str:
    """Train with losses of every kind by proxies of every kind and in full, and compare how they rank the losses.

    Loss after loss is written to `out/fidelity.jsonl`, and those that are there already are not trained again; at the
    end a summary of every study to `out/NAME.json`, and the table that is made from it to `out/NAME.md`, by the name of
    its configuration. All but the seconds is the same for the same arguments.

    Args:
        out: The folder to write to.
        configs: Studies with hard labels; the regime and the iterations of their proxies are not read.
        thetas: Losses drawn from the search space, 4 or more: half of them anywhere, half as a first step draws them.
        iterations: Of the proxies.
        full: Iterations of full training.

    Returns:
        The tables as Markdown.

    Raises:
        ConfigError: A configuration has mistakes.
        InputError: An argument is out of range.
    """
    if thetas < 4:
        raise InputError(f"thetas is {thetas}; 4 or more are wanted to be ranked.")
    settings = {path.stem: load_config(path) for path in configs}
    if len(settings) < len(configs):
        raise InputError(f"of {', '.join(map(str, configs))} several have one name; tables are named by it.")
    if soft := [name for name, config in settings.items() if config.proxy.labels.name != "hard"]:
        raise InputError(f"{', '.join(soft)}: proxy.labels.name is not `hard`; parts of images have no soft labels.")
    ways = arms(iterations, full)
    tasks = {}
    for name, config in settings.items():
        start = config.proxy.start.model_copy(update={"regime": "encoder"})
        plain = config.model_copy(update={"proxy": config.proxy.model_copy(update={"start": start})})
        proxy = proxy_of(plain).prepare()
        for loss, seed in product(_losses(plain, proxy, thetas), SEEDS):
            tasks[name, _digest(plain, ways), loss[0], seed] = proxy, loss, seed, ways
    rows = complete(out / "fidelity.jsonl", ("config", "study", "loss", "seed"), tasks, _measured, WORKERS)
    tables = []
    for path, (name, config) in zip(configs, settings.items(), strict=True):
        summary = {
            "study": name,
            "metric": spec_label(config.metric),
            "command": f"python -m {MODULE} {path} --thetas {thetas}",
            "machine": machine() | packages("autosegloss", "torch", "numpy", "scipy"),
            "arms": _summary([row for row in rows.values() if row["config"] == name], ways),
        }
        tables.append(to_markdown(summary))
        write_text(out / f"{name}.json", json.dumps(summary) + "\n")
        write_text(out / f"{name}.md", tables[-1])
    return "\n".join(tables)


def _summary(rows: Sequence[Row], ways: Sequence[Arm]) -> list[Row]:
    """Of each way to train: what it is, the median of its seconds, and its rewards, a list of all losses a seed."""
    by_seed = [sorted((row for row in rows if row["seed"] == seed), key=lambda row: str(row["loss"])) for seed in SEEDS]
    return [
        asdict(way)
        | {
            "seconds": median(row["seconds"][way.name] for row in rows),
            "rewards": [[row["rewards"][way.name] for row in each] for each in by_seed],
        }
        for way in ways
    ]


def _digest(config: StudyConfig, ways: Sequence[Arm]) -> str:
    """A few digits of what was asked, so that rows of another configuration are not taken for these."""
    text = json.dumps([fingerprint(config), [way.name for way in ways]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _losses(config: StudyConfig, proxy: Proxy, thetas: int) -> list[tuple[str, Theta | None, Loss]]:
    """Names, the theta of those that are drawn, and the losses."""
    each = thetas // 2
    drawn, family = drawn_thetas(config, each), LossFamily.of(config)
    names = [f"{kind} {number}" for kind in ("anywhere", "first step") for number in range(each)]
    losses = [proxy.loss(family.content(theta)) for theta in drawn]
    named = zip(NAMED, losses_of(NAMED, proxy.dataset), strict=True)
    return [*zip(names, drawn, losses, strict=True), *((name, None, loss) for name, loss in named)]


def drawn_thetas(config: StudyConfig, count: int) -> list[Theta]:
    """Points from the whole cube, then as many as the first step of a search draws them."""
    start = LossFamily.of(config).start
    cube = np.random.default_rng(0).random((count, len(start)))
    near = policy.sample(start, config.search.std, count, np.random.default_rng(1))
    return [tuple(row) for row in [*cube.tolist(), *near.tolist()]]


def _measured(task: tuple[Proxy, tuple[str, Theta | None, Loss], int, Sequence[Arm]]) -> Row:
    """Rewards of a loss by every arm, and the seconds of a processor that they took."""
    proxy, (_, theta, loss), seed, ways = task
    rewards, seconds = {}, {}
    for arm in ways:
        trained, number = arm.of(proxy), seed + max(SEEDS) if arm.full else seed
        start = time.process_time()
        rewards[arm.name] = _reward(trained, loss, number, arm.iterations)
        seconds[arm.name] = round(time.process_time() - start, 2)
    return {"theta": theta, "rewards": rewards, "seconds": seconds}


def _reward(proxy: Proxy, loss: Loss, seed: int, iterations: int) -> float:
    """Of a trial; 0, the least of every metric, for one that diverged."""
    try:
        with one_thread():
            return proxy.reward(proxy.trained(loss, seed, iterations))
    except TrainingDiverged:
        return 0.0


def agreement(rewards: Array, truth: Array) -> tuple[float, float, float]:
    """Rank correlation of the rewards of a seed with full training, and its bootstrap over the losses.

    Args:
        rewards: Shape (seeds, losses).
        truth: Shape (losses,); or (seeds, losses) to compare each seed with one of its own.

    Returns:
        Mean over the seeds, and the ends of its 95% interval.
    """
    count = rewards.shape[1]
    truth = np.broadcast_to(truth, rewards.shape)
    chosen = np.vstack([np.arange(count), np.random.default_rng(0).integers(count, size=(RESAMPLES, count))])
    mean, *resampled = rank_correlation(rewards[:, chosen], truth[:, chosen]).mean(axis=0).tolist()
    low, high = np.quantile(resampled, [0.025, 0.975])
    return mean, float(low), float(high)


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Spearman's rank correlation along the last axis; 0 where all values of a list are equal: they have no order."""
    x, y = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (rankdata(a, axis=-1), rankdata(b, axis=-1)))
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    # Where ranks differ, the squares of their deviations sum to 1/2 at least.
    correlation: NDArray[np.float64] = (x * y).sum(axis=-1) / np.maximum(scale, 0.25)
    return correlation


def signal_and_noise(rewards: Array) -> tuple[float, float]:
    """How far losses differ (standard deviation of their means over the seeds), and how far the seeds of one loss do.

    Args:
        rewards: Shape (seeds, losses), 2 seeds or more.
    """
    return float(rewards.mean(axis=0).std(ddof=1)), float(rewards.var(axis=0, ddof=1).mean() ** 0.5)


def _introduction(full: int) -> str:
    return (
        "Losses, drawn half from anywhere in the search space and half as the first step of a search draws them, and "
        f"{', '.join(NAMED)}, were trained by proxies and in full ({full} iterations, with seeds of its own), and "
        "scored on the held-out part; after full training on the validation set. Half size: images are cut into parts "
        "half as high and half as wide, as many a batch, the scored ones too. All start from the weights of one "
        f"pretraining (encoder, checkpoint) or from none. Mean over {len(SEEDS)} seeds: Spearman's rank correlation of "
        "the rewards of a seed with the mean of full training [95% bootstrap interval over the losses]; of full "
        "training with itself, of one seed with the other. Then the standard deviation of the rewards over losses and "
        "that over the seeds of a loss, in points. Seconds are of a processor, the median."
    )


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The table of a summary."""
    seconds, rewards = {}, {}
    for arm in summary["arms"]:
        way = Arm(arm["start"], arm["half"], arm["iterations"], arm["full"])
        seconds[way], rewards[way] = arm["seconds"], 100 * np.array(arm["rewards"])
    truths: Mapping[Arm, Array] = {way: values for way, values in rewards.items() if way.full}
    titles = [f"with {way.iterations} from {_origin(way)}" for way in truths]
    count = next(iter(rewards.values())).shape[1]
    lines = [
        _introduction(next(iter(truths)).iterations),
        "",
        f"**{summary['study']}**, {summary['metric']}: {count} losses",
        "",
        f"| start | size | iterations | seconds | {' | '.join(titles)} | over losses | over seeds | ratio |",
        "|---|---|---:|---:|" + "---|" * len(truths) + "---:|---:|---:|",
    ]
    for way, values in rewards.items():
        others = [truth[::-1] if truth is values else truth.mean(axis=0) for truth in truths.values()]
        found = ["{:.2f} [{:.2f}, {:.2f}]".format(*agreement(values, truth)) for truth in others]
        signal, noise = signal_and_noise(values)
        ratio = f"{signal / noise:.1f}" if noise else "-"
        figures = [f"{seconds[way]:.1f}", *found, f"{signal:.1f}", f"{noise:.1f}", ratio]
        lines.append(f"| {' | '.join([*way.cells, *figures])} |")
    seeds = f"Seeds {', '.join(map(str, SEEDS))}; full training {', '.join(str(seed + max(SEEDS)) for seed in SEEDS)}"
    about = ", ".join(f"{name} {value}" for name, value in summary["machine"].items())
    return "\n".join([*lines, "", f"Command: `{summary['command']}`. {seeds}; {about}.", ""])


def _origin(way: Arm) -> str:
    return "scratch" if way.start == "scratch" else f"the {way.start}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "How well short and small proxies rank losses as full training does.")
    parser.add_argument(
        "config", nargs="+", type=Path, metavar="CONFIG", help="a YAML file; several, one after another"
    )
    parser.add_argument("--thetas", type=int, default=20, metavar="N", help="losses drawn; default: 20")

    def measure(given: argparse.Namespace) -> str:
        return bench_fidelity(given.out, given.config, given.thetas)

    run(parser, measure, arguments)


if __name__ == "__main__":
    main()
