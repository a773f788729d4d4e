"""Tables for the terminal."""

from __future__ import annotations

from rich.table import Table

from autosegloss.metric import METRICS
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.trial import CLASS_PREFIX, TARGET
from autosegloss.search.api import Result
from autosegloss.search.settings import StudyConfig
from autosegloss.search.statistics import Score

_TITLES = {"cross-entropy": "cross-entropy", "identity": "before the search", "found": "found loss"}


def comparison(result: Result, target: str) -> Table:
    """Every metric on the validation set, for cross-entropy, the surrogate before the search, and the loss found.

    Args:
        result: A finished search.
        target: What to call the metric searched for.
    """
    seeds = len(result.findings.seeds)
    table = Table(caption=f"validation set, %, mean ± sd of a run over {seeds} fresh seeds; gain against cross-entropy")
    table.add_column("metric")
    for title in _TITLES.values():
        table.add_column(title, justify="right")
    table.add_column("gain", justify="right")
    rows = [result.scores[name] for name in _TITLES]
    section = ""
    for metrics in same_metrics(list(rows[-1])):
        first = metrics[0]
        before, section = (
            section,
            TARGET if first == TARGET else CLASS_PREFIX if first.startswith(CLASS_PREFIX) else "all",
        )
        if before and section != before:
            table.add_section()
        scores = [row.get(first) for row in rows]
        name = f"target: {target}" if section == TARGET else " = ".join(metrics)
        gain = "-" if scores[0] is None else f"{100 * (rows[-1][first].mean - scores[0].mean):+.1f}"
        table.add_row(name, *map(_score, scores), gain, style="bold" if section == TARGET else "")
    return table


def metric_label(config: StudyConfig) -> str:
    """The metric of a configuration in few words."""
    return spec_label(config.metric)


def same_metrics(names: list[str]) -> list[list[str]]:
    """Names of the catalogue that are one expression share a row."""
    groups: dict[object, list[str]] = {}
    for name in names:
        groups.setdefault(METRICS[name]() if name in METRICS else name, []).append(name)
    return list(groups.values())


def _score(score: Score | None) -> str:
    """A score in %; none where training failed with every seed."""
    return "-" if score is None else f"{100 * score.mean:.1f} ± {100 * score.sd:.1f}"
