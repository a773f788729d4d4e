"""Searches with and without offsets in the reward: what each returns, and the best rivals, with fitted offsets.

Both kinds of search have the same seeds. Every loss is trained on the same fresh seeds and scored on the validation
set as it is and with offsets that were fitted on the held-out part.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from autosegloss.loss.file import build_loss
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.trial import TARGET, WITH_OFFSETS
from autosegloss.report.environment import about
from autosegloss.report.shown import loss_line
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import load_config
from results.common.script import keep, run, script
from results.rivals.rivals import (
    FIRST,
    FRESH,
    Returned,
    RunnerName,
    best_rival,
    interval,
    on_fresh_seeds,
    searched,
)

MODULE = "results.rivals.offsets"
WITHOUT, WITH = "without", "with"
OFFSETS: Final = "search.offsets=true"


def summarize(
    config: Path, settings: Sequence[str], searches: int, seeds: int, work: Path, runner: RunnerName = "ray"
) -> dict[str, Any]:
    """Search with and without offsets in the reward, train on fresh seeds, and compare.

    Args:
        config: The file of the configuration.
        settings: Overrides of its keys, as for `--set`.
        searches: Number of searches of each kind.
        seeds: Number of fresh seeds.
        work: The folder of those without offsets, which `rivals` may have made; those with offsets are beside it.
        runner: What runs their trials.
    """
    beside = work.with_name(f"{work.name}-offsets")
    losses = {}
    for kind, more, folder in ((WITHOUT, (), work), (WITH, (OFFSETS,), beside)):
        configuration = load_config(config, [*settings, *more])
        found = {
            seed: searched(configuration, folder / str(seed), seed, runner) for seed in range(FIRST, FIRST + searches)
        }
        rival, _ = best_rival([*found.values()])
        losses[kind, "rival"] = rival
        losses |= {(kind, str(seed)): Returned(each.label, each.loss, each.rate) for seed, each in found.items()}
    fresh = comparison_seeds(FRESH, seeds)
    rows = on_fresh_seeds(config, [*settings, OFFSETS], [*losses.values()], fresh, beside / "fresh.jsonl")
    return {
        "metric": spec_label(configuration.goal),
        "seeds": fresh,
        "losses": [
            {"reward": kind, "search": which, "name": each.name, "loss": each.loss, "rate": each.rate}
            | {name: [row[name] for row in of_loss] for name in (TARGET, WITH_OFFSETS)}
            for ((kind, which), each), of_loss in zip(losses.items(), rows, strict=True)
        ],
        "about": about("cpu", "autosegloss", "torch", "numpy"),
        "command": f"python -m {MODULE} {config} --searches {searches} --seeds {seeds}"
        + "".join(f" --set {each}" for each in settings),
    }


def to_markdown(summary: dict[str, Any]) -> str:
    """The summary as a page."""
    rows = {(row["reward"], row["search"]): row for row in summary["losses"]}
    searches = [which for kind, which in rows if kind == WITH and which != "rival"]
    lines = [
        f"# Offsets in the reward of searches for {summary['metric']}",
        "",
        f"Validation set, %, over {len(summary['seeds'])} fresh seeds: mean [95% t-interval], as trained and with "
        "offsets that were fitted on the held-out part, and what these add. Searches with and without offsets in the "
        "reward have equal seeds; a rival is the best by the mean reward over the screenings of its kind.",
        "",
        "| reward | search | returned | as trained | with offsets | added |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in rows.values():
        added = _differences(row, row, WITH_OFFSETS, TARGET)
        line = loss_line(build_loss(row["loss"])).replace("|", chr(92) + "|")
        lines.append(
            f"| {row['reward']} | {row['search']} | {row['name'] if row['search'] == 'rival' else line} | "
            f"{interval(row[TARGET], '.1f')} | {interval(row[WITH_OFFSETS], '.1f')} | {interval(added, '+.2f')} |"
        )
    lines += [
        "",
        "What is deployed, a loss with offsets; paired differences, the mean over all searches with its interval over "
        "the searches and over the seeds:",
        "",
        "| found with offsets in the reward, minus | over the searches | over the seeds |",
        "|---|---:|---:|",
    ]
    rival = rows[WITH, "rival"]
    for title, others in (
        ("found without", [rows[WITHOUT, which] for which in searches]),
        (f"`{rival['name']}`, the best rival with offsets", [rival for _ in searches]),
    ):
        each = [
            _differences(rows[WITH, which], other, WITH_OFFSETS, WITH_OFFSETS)
            for which, other in zip(searches, others, strict=True)
        ]
        by_search, by_seed = map(statistics.fmean, each), map(statistics.fmean, zip(*each, strict=True))
        lines.append(f"| {title} | {interval([*by_search], '+.2f')} | {interval([*by_seed], '+.2f')} |")
    return "\n".join([*lines, "", f"Command: `{summary['command']}`. {summary['about']}.", ""])


def _differences(ours: dict[str, Any], theirs: dict[str, Any], our_value: str, their_value: str) -> list[float]:
    return [a - b for a, b in zip(ours[our_value], theirs[their_value], strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "Searches with and without offsets in the reward, on fresh seeds.")
    parser.add_argument("config", type=Path, help="a YAML file; see search_configs/")
    parser.add_argument("--searches", type=int, default=3, help="number of searches of each kind; default: 3")
    parser.add_argument("--seeds", type=int, default=12, help="number of fresh seeds; default: 12")
    parser.add_argument("--runner", choices=("ray", "serial"), default="ray", help="of the searches; default: ray")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.SUB=VALUE", help="override a key")

    def measure(given: argparse.Namespace) -> str:
        work = given.out / "work" / given.config.stem
        summary = summarize(given.config, given.set, given.searches, given.seeds, work, given.runner)
        return keep(given.out / "offsets", summary, to_markdown)

    run(parser, measure, arguments)


if __name__ == "__main__":
    main()
