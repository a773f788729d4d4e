"""Between two rivals: each of them and the losses on the way from one's theta to the other's, on fresh seeds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autosegloss.errors import InputError
from autosegloss.loss import load_loss
from autosegloss.loss.file import build_loss
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.trial import TARGET
from autosegloss.report.environment import about
from autosegloss.report.shown import loss_line
from autosegloss.search.content import bare_content
from autosegloss.search.points import point_of
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import load_config
from autosegloss.search.space import LossFamily
from results.common.script import keep, run, script
from results.rivals.rivals import FRESH, Returned, interval, on_fresh_seeds

MODULE = "results.rivals.middle"
WAY = (0, 1 / 4, 1 / 2, 3 / 4, 1)
"""Fractions of the way."""


def summarize(config: Path, settings: Sequence[str], names: tuple[str, str], seeds: int, out: Path) -> dict[str, Any]:
    """Train two rivals and what lies between them.

    Args:
        config: The file of the configuration.
        settings: Overrides of its keys, as for `--set`.
        names: The rivals.
        seeds: Number of fresh seeds.
        out: The folder to write to; rows are in its folder `work`.

    Raises:
        InputError: A rival is no point of the losses that are searched.
    """
    configuration = load_config(config, settings)
    rivals = [load_loss(name) for name in names]
    family = LossFamily.of(configuration, rivals)
    points = [point_of(family, rival) for rival in rivals]
    for name, point in zip(names, points, strict=True):
        if point is None:
            raise InputError(f"`{name}` is no point of the losses that {config} searches.")
    losses = dict(zip(names, map(bare_content, rivals), strict=True))
    for way in WAY:
        theta = [(1 - way) * a + way * b for a, b in zip(*map(tuple, filter(None, points)), strict=True)]
        losses[f"{way:.0%} of the way"] = family.content(theta)
    fresh = comparison_seeds(FRESH, seeds)
    trained = [Returned(name, loss) for name, loss in losses.items()]
    rows = on_fresh_seeds(config, settings, trained, fresh, out / "work" / config.stem / "middle.jsonl")
    return {
        "metric": spec_label(configuration.goal),
        "seeds": fresh,
        "losses": [
            {"name": each.name, "loss": each.loss, "values": [row[TARGET] for row in of_loss]}
            for each, of_loss in zip(trained, rows, strict=True)
        ],
        "about": about("cpu", "autosegloss", "torch", "numpy"),
        "command": f"python -m {MODULE} {config} '{names[0]}' '{names[1]}' --seeds {seeds}"
        + "".join(f" --set {each}" for each in settings),
    }


def to_markdown(summary: dict[str, Any]) -> str:
    """The summary as a page."""
    first, second, *_ = (each["name"] for each in summary["losses"])
    base = summary["losses"][0]["values"]
    lines = [
        f"# From `{first}` to `{second}` for {summary['metric']}",
        "",
        f"Validation set, %, over {len(base)} fresh seeds: mean [95% t-interval], and the paired difference to "
        f"`{first}`. At either end of the way lies the loss at the theta of a rival, which has a little of the parts "
        "that the rival lacks.",
        "",
        "| loss | what it is | score | difference |",
        "|---|---|---:|---:|",
    ]
    for each in summary["losses"]:
        gains = [a - b for a, b in zip(each["values"], base, strict=True)]
        lines.append(
            f"| {each['name']} | {loss_line(build_loss(each['loss'])).replace('|', chr(92) + '|')} | "
            f"{interval(each['values'], '.1f')} | {interval(gains, '+.2f')} |"
        )
    return "\n".join([*lines, "", f"Command: `{summary['command']}`. {summary['about']}.", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "Two rivals, and the losses between them in the space of a search.")
    parser.add_argument("config", type=Path, help="a YAML file; see search_configs/")
    parser.add_argument("rivals", nargs=2, metavar="LOSS", help="two losses, such as 8*lovasz and 8*log_miou")
    parser.add_argument("--seeds", type=int, default=12, help="number of fresh seeds; default: 12")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.SUB=VALUE", help="override a key")

    def measure(given: argparse.Namespace) -> str:
        summary = summarize(given.config, given.set, tuple(given.rivals), given.seeds, given.out)
        return keep(given.out / "middle", summary, to_markdown)

    run(parser, measure, arguments)


if __name__ == "__main__":
    main()
