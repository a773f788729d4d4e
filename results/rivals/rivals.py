"""Many searches of one configuration: what each returns beside the best tuned rival, on seeds that none has used.

The rival is the one with the best mean reward over the screenings of all searches, so that it is tuned on more seeds
than any loss that was found. Searches and trainings that were interrupted are continued.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from autosegloss.errors import InputError
from autosegloss.loss.base import LossContent
from autosegloss.loss.file import build_loss
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.trial import TARGET, WITH_OFFSETS, Proxy
from autosegloss.report.environment import about
from autosegloss.report.shown import loss_line
from autosegloss.search import search
from autosegloss.search.api import status
from autosegloss.search.findings import Findings
from autosegloss.search.folder import JOURNAL_FILE, LOSS_FILE
from autosegloss.search.objective import proxy_of
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import StudyConfig, dump_config, load_config
from autosegloss.search.statistics import t_interval
from results.common.rows import Row, complete
from results.common.script import keep, run, script

MODULE = "results.rivals.rivals"
FIRST = 100
"""The seed of the first search; those of the configurations are below it."""
FRESH = 99
"""The seed from which those of the trainings on fresh seeds derive, and their pretraining."""
WORKERS = 2
RunnerName: TypeAlias = Literal["ray", "serial"]


class Task(NamedTuple):
    """A training on a fresh seed."""

    config: str
    settings: tuple[str, ...]
    loss: str
    rate: float
    seed: int


@dataclass(frozen=True)
class Returned:
    """What a search returned, or a rival."""

    name: str
    loss: LossContent
    rate: float = 1.0


def summarize(
    config: Path, settings: Sequence[str], searches: int, seeds: int, work: Path, runner: RunnerName = "ray"
) -> dict[str, Any]:
    """Search, train what was returned and the rival on fresh seeds, and compare.

    Args:
        config: The file of the configuration.
        settings: Overrides of its keys, as for `--set`.
        searches: Number of searches.
        seeds: Number of fresh seeds.
        work: The folder of the searches and of the scores on fresh seeds.
        runner: What runs their trials.
    """
    configuration = load_config(config, settings)
    found = {FIRST + i: searched(configuration, work / str(FIRST + i), FIRST + i, runner) for i in range(searches)}
    rival, tuned = best_rival([*found.values()])
    returned = {seed: Returned(each.label, each.loss, each.rate) for seed, each in found.items()}
    fresh = comparison_seeds(FRESH, seeds)
    rows = on_fresh_seeds(config, settings, [rival, *returned.values()], fresh, work / "fresh.jsonl")
    theirs, *every = ([row[TARGET] for row in of_loss] for of_loss in rows)
    table = []
    for (seed, each), values in zip(returned.items(), every, strict=True):
        gains = [a - b for a, b in zip(values, theirs, strict=True)]
        screen = found[seed].screen
        table.append(
            {
                "search": seed,
                "returned": each.name,
                "is_rival": found[seed].theta is None,
                "rate": each.rate,
                "loss": each.loss,
                "conclusion": found[seed].conclusion,
                "headroom": None if screen is None or screen.headroom is None else str(screen.headroom),
                "values": values,
                "gains": gains,
            }
        )
    return {
        "config": str(config),
        "settings": list(settings),
        "metric": spec_label(configuration.goal),
        "rival": {"name": rival.name, "screenings": tuned, "values": theirs},
        "seeds": fresh,
        "searches": table,
        "about": about("cpu", "autosegloss", "torch", "numpy"),
        "command": f"python -m {MODULE} {config} --searches {searches} --seeds {seeds}"
        + "".join(f" --set {each}" for each in settings),
    }


def on_fresh_seeds(
    config: Path, settings: Sequence[str], losses: Sequence[Returned], seeds: Sequence[int], path: Path
) -> list[list[Row]]:
    """The scores of each loss on each seed; those that a file has are not trained again.

    Args:
        config: The file of the configuration.
        settings: Overrides of its keys, as for `--set`.
        losses: The losses; one that stands here twice is trained once.
        seeds: The seeds.
        path: The file of the scores.
    """
    keys = [json.dumps([each.loss, each.rate]) for each in losses]
    own = (*settings, f"search.seed={FRESH}")
    tasks = {
        (key, seed): Task(str(config), own, json.dumps(each.loss), each.rate, seed)
        for key, each in zip(keys, losses, strict=True)
        for seed in seeds
    }
    rows = complete(path, ("loss", "seed"), tasks, trained, WORKERS)
    return [[rows[key, seed] for seed in seeds] for key in keys]


def searched(config: StudyConfig, folder: Path, seed: int, runner: RunnerName) -> Findings:
    """The findings of a search with a seed of its own.

    Raises:
        InputError: The folder holds a search of another configuration.
    """
    own = config.model_copy(update={"search": config.search.model_copy(update={"seed": seed})})
    if not (folder / LOSS_FILE).exists():
        search(own, runner=runner, out=folder, resume=(folder / JOURNAL_FILE).exists())
    found = status(folder)
    if dump_config(found.config) != dump_config(own):
        raise InputError(f"{folder}: the search there has another configuration; give the measurement another --name.")
    return found.study.findings()


def best_rival(found: Sequence[Findings]) -> tuple[Returned, str]:
    """The rival with the best mean over all screenings that trained it on all of their seeds, in most of them."""
    rewards: dict[str, list[float]] = {}
    arms = {}
    for each in found:
        assert each.screen is not None
        for tried in each.screen.screened.finalists:
            arms[tried.arm.name] = tried.arm
            rewards.setdefault(tried.arm.name, []).append(tried.reward)
    often = {name: values for name, values in rewards.items() if 2 * len(values) >= len(found)} or rewards
    best = max(often, key=lambda name: statistics.fmean(often[name]))
    tuned = "; ".join(
        f"{name} {100 * statistics.fmean(values):.1f} in {len(values)}"
        for name, values in sorted(often.items(), key=lambda item: -statistics.fmean(item[1]))[:5]
    )
    return Returned(arms[best].name, arms[best].loss, arms[best].rate), tuned


@cache
def _proxy(config: str, settings: tuple[str, ...]) -> Proxy:
    return proxy_of(load_config(config, settings)).prepare()


def trained(task: Task) -> Row:
    """Train with the loss of a task; its scores on the validation set."""
    proxy = _proxy(task.config, task.settings)
    (found,) = proxy.run_group([json.loads(task.loss)], task.seed, True, [task.rate])
    if isinstance(found, Exception):
        raise found
    return {name: found.validation[name] for name in (TARGET, WITH_OFFSETS) if name in found.validation}


def to_markdown(summary: dict[str, Any]) -> str:
    """The summary as a page."""
    rival, number = summary["rival"], len(summary["seeds"])
    overall = [statistics.fmean(row["gains"]) for row in summary["searches"]]
    by_seed = [statistics.fmean(gains) for gains in zip(*(row["gains"] for row in summary["searches"]), strict=True)]
    lines = [
        f"# Searches for {summary['metric']} with `{summary['config']}`",
        "",
        f"Validation set, %, over {number} fresh seeds: mean [95% t-interval], and the paired difference to the best "
        f"tuned rival, `{rival['name']}`: {interval(rival['values'], '.1f')}. It is the best by the mean held-out "
        f"reward over the screenings of all searches ({rival['screenings']}).",
        "",
        f"All searches: {interval(overall, '+.2f')} over the searches, {interval(by_seed, '+.2f')} over the seeds.",
        "",
        "| search | returned | score | difference | why |",
        "|---:|---|---:|---:|---|",
    ]
    for row in summary["searches"]:
        name = f"`{row['returned']}`" if row["is_rival"] else loss_line(build_loss(row["loss"]))
        lines.append(
            f"| {row['search']} | {name.replace('|', chr(92) + '|')} | {interval(row['values'], '.1f')} | "
            f"{interval(row['gains'], '+.2f')} | {row['conclusion']} |"
        )
    return "\n".join([*lines, "", f"Command: `{summary['command']}`. {summary['about']}.", ""])


def interval(values: Sequence[float], form: str) -> str:
    """The mean of values with its 95% t-interval, in %."""
    if len(values) < 2 or len(set(values)) == 1:
        return f"{100 * statistics.fmean(values):{form}}"
    return "{:{form}} [{:{form}}, {:{form}}]".format(*(100 * x for x in t_interval(values)), form=form)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "Many searches, each beside the best tuned rival on fresh seeds.")
    parser.add_argument("config", type=Path, help="a YAML file; see search_configs/")
    parser.add_argument("--name", help="of the files to write; default: that of the configuration")
    parser.add_argument("--searches", type=int, default=20, help="number of searches; default: 20")
    parser.add_argument("--seeds", type=int, default=12, help="number of fresh seeds; default: 12")
    parser.add_argument("--runner", choices=("ray", "serial"), default="ray", help="of the searches; default: ray")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.SUB=VALUE", help="override a key")

    def measure(given: argparse.Namespace) -> str:
        name = given.name or given.config.stem
        work = given.out / "work" / name
        summary = summarize(given.config, given.set, given.searches, given.seeds, work, given.runner)
        if given.name:
            summary["command"] += f" --name {name}"
        return keep(given.out / name, summary, to_markdown)

    run(parser, measure, arguments)


if __name__ == "__main__":
    main()
