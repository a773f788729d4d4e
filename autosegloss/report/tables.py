"""Tables for the terminal: the losses of a search, and the values and worst images of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from autosegloss.metric import METRICS, metric
from autosegloss.metric.settings import guard_shares, spec_label
from autosegloss.proxy.trial import CLASS_PREFIX, TARGET, WITH_OFFSETS
from autosegloss.report.evaluate import FolderEvaluation
from autosegloss.search.api import Result
from autosegloss.search.settings import StudyConfig
from autosegloss.search.statistics import Difference, Score, number
from autosegloss.search.tables import VALIDATION

LOSSES: Final = {
    "cross-entropy": "cross-entropy",
    "start": "before the search",
    "rival": "best rival",
    "found": "found loss",
}
"""The titles of the losses that a search compares, by their names in its result."""
BESIDE: Final = ("miou", "macc", "gacc", "bf1")
"""Metrics that are shown beside a target: each is blind to something another one measures."""


def search_table(result: Result, config: StudyConfig, titles: Mapping[str, str]) -> Table:
    """The main metrics on the validation set of the losses of a search.

    Args:
        result: A finished search.
        config: Its configuration.
        titles: The titles of the losses, by their names in the result.
    """
    own, target = config.trial is not None, spec_label(config.goal)
    what = "what the trial returned" if own else f"validation set ({VALIDATION}), %"
    seeds = len(result.findings.seeds)
    caption = f"{what}: mean ± sd over {seeds} fresh seeds; gain over cross-entropy"
    table = Table(caption=Text(caption))
    table.add_column("metric", overflow="fold", min_width=12)
    for title in (*titles.values(), "gain"):
        table.add_column(Text(title), justify="right", overflow="fold", min_width=6)
    rows = [result.scores[name] for name in titles]
    first, found = rows[0], rows[-1]
    section = None
    for name in main_metrics(list(found), config):
        before, section = section, (name in (TARGET, WITH_OFFSETS), name.startswith(CLASS_PREFIX))
        if before and before != section:
            table.add_section()
        title = f"target: {target}" if name == TARGET else name
        gain = number(found[name].mean - first[name].mean, own, "+") if name in first else "-"
        style = "bold" if name == TARGET else ""
        table.add_row(Text(title), *(_score(row.get(name), own) for row in rows), gain, style=style)
    return table


def main_metrics(names: Sequence[str], config: StudyConfig) -> list[str]:
    """The metrics to show first: the target, also with offsets, those with a guard, a few others, each class's IoU.

    Of a trial of the user's own, all numbers. A metric that the target is too is left out.
    """
    if config.trial is not None:
        return list(names)
    target = metric(config.goal)
    few = dict.fromkeys([*guard_shares(config.guard), *BESIDE])
    chosen = [name for name in few if name in names and not (name in METRICS and METRICS[name]() == target)]
    goal = [name for name in names if name in (TARGET, WITH_OFFSETS)]
    return [*goal, *chosen, *(name for name in names if name.startswith(CLASS_PREFIX))]


def same_metrics(names: list[str]) -> list[list[str]]:
    """Metrics in groups: the names of the catalogue that mean the same expression are one group."""
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(METRICS[name]() if name in METRICS else name, []).append(name)
    return list(groups.values())


def gain_text(value: Difference, own: bool) -> str:
    """A difference with its interval, as text."""
    mean, low, high = (number(each, own, "+") for each in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def _score(score: Score | None, own: bool) -> str:
    """A score; None if the training failed with every seed."""
    return "-" if score is None else f"{number(score.mean, own)} ± {number(score.sd, own)}"


def values_table(evaluation: FolderEvaluation) -> Table:
    """The value in % of each metric over the data set, and per class where it has one."""
    table = Table()
    table.add_column("", no_wrap=True, min_width=8)
    for row in evaluation.metrics:
        table.add_column(Text(row.metric), justify="right", overflow="fold", min_width=6)
    table.add_row("overall", *(percent(row.value) for row in evaluation.metrics), style="bold", end_section=True)
    if any(row.classes for row in evaluation.metrics):
        for label in range(evaluation.num_classes):
            values = (percent(row.classes[label]) if row.classes else "" for row in evaluation.metrics)
            table.add_row(Text(evaluation.title(label)), *values)
    return table


def worst_table(evaluation: FolderEvaluation) -> Table:
    """The images of each list and their scores in %, lowest first."""
    table = Table()
    table.add_column("worst by", overflow="fold")
    table.add_column("class", justify="right", overflow="fold", min_width=5)
    table.add_column("score", justify="right", min_width=6)
    table.add_column("image", overflow="fold")
    for row in evaluation.metrics:
        names = evaluation.class_names or map(str, range(evaluation.num_classes))
        lists = [("all", row.worst), *zip(names, row.worst_by_class, strict=True)]
        entries = [(label if i == 0 else "", entry) for label, found in lists for i, entry in enumerate(found)]
        for i, (label, entry) in enumerate(entries):
            table.add_row(Text(row.metric if i == 0 else ""), Text(label), percent(entry.score), Text(entry.image))
        table.add_section()
    return table


def percent(value: float | None) -> str:
    """A value in %; `-` for None."""
    return "-" if value is None else f"{100 * value:.2f}"
