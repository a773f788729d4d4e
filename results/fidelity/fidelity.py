"""How a proxy is to be made: how well its rewards rank losses as full training does, by length, size and start."""

from __future__ import annotations

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
from autosegloss.search.settings import WIDE, StudyConfig, fingerprint, load_config
from autosegloss.search.space import LossFamily
from results.algorithms.algorithms import crops
from results.common.rows import Row, complete
from results.common.script import run, script

Array = NDArray[Any]

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
    out: Path, path: Path, thetas: int = 20, iterations: Sequence[int] = ITERATIONS, full: int = FULL
) -> str:
    """Train with losses of every kind by proxies of every kind and in full, and compare how they rank the losses.

    Loss after loss is written to `out/NAME.jsonl`, by the name of the configuration, and those that are there already
    are not trained again; at the end a summary to `out/NAME.json`, and the table that is made from it to `out/NAME.md`.
    All but the seconds is the same for the same arguments.

    Args:
        out: The folder to write to.
        path: A configuration with hard labels; the regime and the iterations of its proxy are not read.
        thetas: Losses drawn from the search space, 4 or more: half of them anywhere, half as a first step draws them.
        iterations: Of the proxies.
        full: Iterations of full training.

    Returns:
        The table as Markdown.

    Raises:
        ConfigError: The configuration has mistakes.
        InputError: An argument is out of range.
    """
    if thetas < 4:
        raise InputError(f"thetas must be 4 or more, got {thetas}.")
    config = load_config(path)
    if config.proxy.labels.name != "hard":
        raise InputError(f"{path}: proxy.labels.name must be `hard`; parts of images have no soft labels.")
    ways = arms(iterations, full)
    start = config.proxy.start.model_copy(update={"regime": "encoder"})
    proxy = proxy_of(config.model_copy(update={"proxy": config.proxy.model_copy(update={"start": start})})).prepare()
    asked = json.dumps([fingerprint(config), [way.name for way in ways]], sort_keys=True)
    study = hashlib.sha256(asked.encode()).hexdigest()[:8]  # so that rows of another configuration are not taken
    losses = [*_drawn(config, proxy, thetas // 2), *zip(NAMED, losses_of(NAMED, proxy.dataset), strict=True)]
    tasks = {(study, name, seed): (proxy, loss, seed, ways) for (name, loss), seed in product(losses, SEEDS)}
    found = complete(out / f"{path.stem}.jsonl", ("study", "loss", "seed"), tasks, _measured, WORKERS)
    rows = [found[key] for key in sorted(found)]
    summary = {
        "study": path.stem,
        "metric": spec_label(config.metric),
        "command": f"python -m {MODULE} {path} --thetas {thetas}",
        "machine": machine() | packages("autosegloss", "torch", "numpy", "scipy"),
        "arms": [
            asdict(way)
            | {
                "seconds": median(row["seconds"][way.name] for row in rows),
                "rewards": [[row["rewards"][way.name] for row in rows if row["seed"] == seed] for seed in SEEDS],
            }
            for way in ways
        ],
    }
    write_text(out / f"{path.stem}.json", json.dumps(summary) + "\n")
    write_text(out / f"{path.stem}.md", to_markdown(summary))
    return to_markdown(summary)


def _drawn(config: StudyConfig, proxy: Proxy, count: int) -> list[tuple[str, Loss]]:
    """Losses from anywhere in the search space, then as many as the first step of a search draws them."""
    family = LossFamily.of(config)
    anywhere = np.random.default_rng(0).random((count, len(family.start)))
    first = policy.sample(family.start, WIDE, count, np.random.default_rng(1))
    named = {"anywhere": anywhere, "first step": first}
    return [
        (f"{kind} {number}", proxy.loss(family.content(tuple(theta))))
        for kind, thetas in named.items()
        for number, theta in enumerate(thetas.tolist())
    ]


def _measured(task: tuple[Proxy, Loss, int, Sequence[Arm]]) -> Row:
    """Rewards of a loss by every arm, and the seconds of a processor that they took."""
    proxy, loss, seed, ways = task
    rewards, seconds = {}, {}
    for arm in ways:
        trained, number = arm.of(proxy), seed + max(SEEDS) if arm.full else seed
        start = time.process_time()
        rewards[arm.name] = _reward(trained, loss, number, arm.iterations)
        seconds[arm.name] = round(time.process_time() - start, 2)
    return {"rewards": rewards, "seconds": seconds}


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
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file")
    parser.add_argument("--thetas", type=int, default=20, metavar="N", help="losses drawn; default: 20")

    run(parser, lambda given: bench_fidelity(given.out, given.config, given.thetas), arguments)


if __name__ == "__main__":
    main()
