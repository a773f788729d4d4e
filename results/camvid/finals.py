"""The finals of a search: every member on held-out images and on the validation set, beside the best rival."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autosegloss.loss.file import build_loss
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.trial import TARGET
from autosegloss.report.environment import about
from autosegloss.report.shown import loss_line
from autosegloss.search.api import status
from results.common.script import keep, run, script
from results.rivals.rivals import interval

MODULE = "results.camvid.finals"
CONFIG = "results/camvid/camvid.yaml"


def summarize(folder: Path) -> dict[str, Any]:
    """What a finished search has measured in its screening and its finals."""
    found = status(folder)
    findings = found.study.findings()
    screen = findings.screen
    assert screen is not None
    return {
        "metric": spec_label(found.config.goal),
        "conclusion": findings.conclusion,
        "rivals": list(findings.rivals),
        "screening": {
            "headroom": str(screen.headroom),
            "best": {each.arm.name: list(each.rewards) for each in screen.screened.best},
            "cross-entropy": list(screen.screened.baseline.rewards),
        },
        "seeds": list(findings.seeds),
        "members": [
            {
                "name": final.label,
                "loss": final.loss,
                "rate": final.rate,
                "held-out": list(final.rewards),
                "validation": [each[TARGET] for each in final.validation],
            }
            for final in findings.finals
        ],
        "trials": found.study.done,
        "about": about("cpu", "autosegloss", "torch", "numpy"),
        "command": f"autosegloss search {CONFIG} --out {folder}; python -m {MODULE} {folder}",
    }


def to_markdown(summary: dict[str, Any]) -> str:
    """The summary as a page."""
    members = {each["name"]: each for each in summary["members"]}
    best = max(summary["rivals"], key=lambda name: statistics.fmean(members[name]["held-out"]))
    lines = [
        f"# The finals of a search for {summary['metric']} on CamVid",
        "",
        f"{summary['trials']} trials. The result: {summary['conclusion']}.",
        "",
        "Held-out images, on which losses were chosen, and the test list, on which nothing was; %, over "
        f"{len(summary['seeds'])} seeds that nothing else has used: mean [95% t-interval], and the paired difference "
        f"to {best}, the rival that is best on held-out images.",
        "",
        "| loss | held-out | difference | test | difference |",
        "|---|---:|---:|---:|---:|",
    ]
    for each in members.values():
        cells = []
        for part in ("held-out", "validation"):
            gains = [a - b for a, b in zip(each[part], members[best][part], strict=True)]
            cells += [interval(each[part], ".1f"), "" if each["name"] == best else interval(gains, "+.2f")]
        rival = each["name"] in summary["rivals"] or each["name"] == "cross-entropy"
        rate = "" if each["rate"] == 1 or rival else f"; learning rate x {each['rate']:.3g}"
        name = each["name"] if rival else f"{each['name']}: {loss_line(build_loss(each['loss']))}{rate}"
        lines.append(f"| {name.replace('|', chr(92) + '|')} | {' | '.join(cells)} |")
    lines += [
        "",
        "The screening, held-out images, three paired seeds, each rival at its best learning rate; "
        f"{summary['screening']['headroom']}:",
        "",
        "| rival | held-out | over cross-entropy |",
        "|---|---:|---:|",
    ]
    theirs = summary["screening"]["cross-entropy"]
    for name, values in (summary["screening"]["best"] | {"cross-entropy": theirs}).items():
        gains = [a - b for a, b in zip(values, theirs, strict=True)]
        over = "" if name == "cross-entropy" else interval(gains, "+.1f")
        lines.append(f"| {name} | {interval(values, '.1f')} | {over} |")
    return "\n".join([*lines, "", f"Command: `{summary['command']}`. {summary['about']}.", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "The finals of a search, on held-out images and on the validation set.")
    parser.add_argument("folder", type=Path, help="the folder of a finished search")

    def measure(given: argparse.Namespace) -> str:
        summary = summarize(given.folder)
        return keep(given.out / "finals", summary, to_markdown)

    run(parser, measure, arguments)


if __name__ == "__main__":
    main()
