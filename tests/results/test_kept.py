"""The tables kept in `results/` are those of the summaries beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autosegloss.report.bench.loss import Case, Cost, Spread
from results.algorithms import algorithms
from results.bench.loss import Costs, Profile
from results.bench.metrics import Benchmark, Setting, Timing
from results.bench.search import Throughput
from results.fidelity import fidelity
from results.scale import scale

RESULTS = Path(__file__).parents[2] / "results"


def spread(values: dict[str, float] | None) -> Spread | None:
    return None if values is None else Spread(**values)


def costs(found: dict[str, Any]) -> str:
    cases = []
    for case in found.pop("cases"):
        rows = [Cost(**row | {key: spread(row[key]) for key in ("seconds", "time")}) for row in case.pop("costs")]
        cases.append(Case(**case | {"seconds": Spread(**case["seconds"])}, costs=rows))
    profiles = [Profile(**each) for each in found.pop("profiles")]
    return Costs(**found, cases=cases, profiles=profiles).to_markdown()


def metrics(found: dict[str, Any]) -> str:
    tasks = {
        title: [Timing(**each | {key: spread(each[key]) for key in ("seconds", "ratio")}) for each in timings]
        for title, timings in found.pop("tasks").items()
    }
    return Benchmark(**found | {"setting": Setting(**found["setting"])}, tasks=tasks).to_markdown()


MADE = {
    "algorithms/*.json": algorithms.to_markdown,
    "fidelity/*.json": fidelity.to_markdown,
    "bench/**/loss.json": costs,
    "bench/metrics.json": metrics,
    "scale/scale.json": scale.to_markdown,
    "bench/search.json": lambda found: Throughput(**found).to_markdown(),
}
KEPT = [pytest.param(path, make, id=str(path)) for pattern, make in MADE.items() for path in RESULTS.glob(pattern)]


def test_there_are_summaries() -> None:
    assert len(KEPT) == 11


@pytest.mark.parametrize(("path", "make"), KEPT)
def test_a_table_is_made_from_its_summary(path: Path, make: Any) -> None:
    assert make(json.loads(path.read_text())) == path.with_suffix(".md").read_text()
