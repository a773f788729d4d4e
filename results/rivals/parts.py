"""A loss that was found, taken apart: without each of its parts, each alone, without its curves, on fresh seeds.

With `--set search.offsets=true`, also with fitted offsets.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autosegloss.errors import InputError
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss, load_loss
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.trial import TARGET, WITH_OFFSETS
from autosegloss.report.environment import about
from autosegloss.search.content import bare_content
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import load_config
from results.common.script import keep, run, script
from results.rivals.rivals import FRESH, Returned, interval, on_fresh_seeds

MODULE = "results.rivals.parts"
FOUND = "found"
OPERATORS = ("and", "or")


def taken_apart(loss: MixedLoss) -> dict[str, Loss]:
    """Variants of a sum by what they are, of the same scale; the sum itself first."""
    terms = [*zip(loss.weights, loss.parts, strict=True)]
    variants: dict[str, Loss] = {FOUND: loss}
    for number, (_, part) in enumerate(terms):
        rest = [term for i, term in enumerate(terms) if i != number]
        whole = sum(weight for weight, _ in rest)
        variants[f"without {_name(part)}"] = MixedLoss([(loss.scale * weight / whole, each) for weight, each in rest])
    variants |= {f"{_name(part)} alone": MixedLoss([(loss.scale, part)]) for _, part in terms}
    for title, kept in [("without curves", ()), *((f"curves on {kept.upper()} alone", (kept,)) for kept in OPERATORS)]:
        variants[title] = MixedLoss([(weight, _with_curves(part, kept)) for weight, part in terms])
    return variants


def _name(part: Loss) -> str:
    return part.logic if isinstance(part, SurrogateLoss) else "cross-entropy"


def _with_curves(part: Loss, operators: Sequence[str]) -> Loss:
    """A surrogate with the curves of some operators alone; other losses have none."""
    if not isinstance(part, SurrogateLoss):
        return part
    points = [curve.points if slot.operator in operators else () for slot, curve in part.curves.items()]
    return SurrogateLoss(part.expr, points, part.logic, part.curve, part.classes)


def tuned(rival: str) -> Returned:
    """A rival by its name, which a factor of the learning rate may follow: `lovasz@3`.

    Raises:
        InputError: There is no such loss, or the factor is no number above 0.
    """
    name, _, factor = rival.partition("@")
    try:
        rate = float(factor or 1)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise InputError(f"{rival}: {factor!r} is no factor of the learning rate; give a number above 0.")
    return Returned(rival, bare_content(load_loss(name)), rate)


def summarize(
    config: Path,
    settings: Sequence[str],
    loss: str,
    rivals: Sequence[str],
    seeds: int,
    work: Path,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Train with a loss, its variants and rivals on fresh seeds.

    Args:
        config: The file of the configuration.
        settings: Overrides of its keys, as for `--set`.
        loss: A loss file or name, of a sum. Its variants are trained as it was, with the learning rate that a search
            under AdamW wrote into the file.
        rivals: The rivals; see `tuned`.
        seeds: Number of fresh seeds.
        work: The folder of the scores.
        without: Parts of the names of variants that are left out.

    Raises:
        InputError: The loss is no sum, or there is no such rival.
    """
    configuration, found = load_config(config, settings), load_loss(loss)
    if not isinstance(found, MixedLoss):
        raise InputError(f"{loss}: only a sum of losses can be taken apart.")
    rate: Any = found.provenance.get("learning_rate", 1.0)
    trained = [
        Returned(name, bare_content(each), rate)
        for name, each in taken_apart(found).items()
        if name == FOUND or not any(text in name for text in without)
    ]
    trained += map(tuned, rivals)
    fresh = comparison_seeds(FRESH, seeds)
    rows = on_fresh_seeds(config, settings, trained, fresh, work / "parts.jsonl")
    return {
        "metric": spec_label(configuration.goal),
        "of": loss,
        "seeds": fresh,
        "losses": [
            {"name": each.name, "loss": each.loss, "rate": each.rate, "values": [row[TARGET] for row in of_loss]}
            | ({WITH_OFFSETS: [row[WITH_OFFSETS] for row in of_loss]} if WITH_OFFSETS in of_loss[0] else {})
            for each, of_loss in zip(trained, rows, strict=True)
        ],
        "about": about("cpu", "autosegloss", "torch", "numpy"),
        "command": f"python -m {MODULE} {shlex.join([str(config), loss, *rivals])} --seeds {seeds}"
        + "".join(f" --set {each}" for each in settings)
        + "".join(f" --leave-out {shlex.quote(each)}" for each in without),
    }


def to_markdown(summary: dict[str, Any]) -> str:
    """The summary as a page."""
    whole = summary["losses"][0]["values"]
    has_offsets = WITH_OFFSETS in summary["losses"][0]
    lines = [
        f"# `{summary['of']}` taken apart, for {summary['metric']}",
        "",
        f"Validation set, %, over {len(whole)} fresh seeds: mean [95% t-interval], and the paired difference to the "
        "loss that was found. All variants have its scale and learning rate; the other rows are rivals, `@` before the "
        "factor of their learning rate."
        + (" Offsets are fitted on the held-out part; what they add is paired too." if has_offsets else ""),
        "",
        "| loss | score | difference |" + (" with offsets | added |" if has_offsets else ""),
        "|---|---:|---:|" + ("---:|---:|" if has_offsets else ""),
    ]
    for each in summary["losses"]:
        gains = [a - b for a, b in zip(each["values"], whole, strict=True)]
        difference = "" if each["name"] == FOUND else interval(gains, "+.2f")
        line = f"| {each['name']} | {interval(each['values'], '.1f')} | {difference} |"
        if has_offsets:
            added = [a - b for a, b in zip(each[WITH_OFFSETS], each["values"], strict=True)]
            line += f" {interval(each[WITH_OFFSETS], '.1f')} | {interval(added, '+.2f')} |"
        lines.append(line)
    return "\n".join([*lines, "", f"Command: `{summary['command']}`. {summary['about']}.", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "A loss that was found, taken apart.")
    parser.add_argument("config", type=Path, help="a YAML file; see search_configs/")
    parser.add_argument("loss", help="a loss file of a search in the wide space")
    parser.add_argument(
        "rivals",
        nargs="+",
        help="losses to compare with; a factor of the learning rate may follow: 8*lovasz, lovasz@3",
    )
    parser.add_argument("--seeds", type=int, default=12, help="number of fresh seeds; default: 12")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.SUB=VALUE", help="override a key")
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="TEXT", help="leave out variants of such names, as in alone"
    )

    def measure(given: argparse.Namespace) -> str:
        work = given.out / "work" / given.config.stem
        summary = summarize(given.config, given.set, given.loss, given.rivals, given.seeds, work, given.leave_out)
        return keep(given.out / f"{given.config.stem}_parts", summary, to_markdown)

    run(parser, measure, arguments)


if __name__ == "__main__":
    main()
