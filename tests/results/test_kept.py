"""The tables kept in `results/` are those of the summaries beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from results.algorithms import algorithms
from results.bench import loss, search
from results.camvid import finals
from results.fidelity import fidelity
from results.rivals import middle, offsets, parts, rivals
from results.scale import scale

RESULTS = Path(__file__).parents[2] / "results"


MADE = {
    "algorithms/*.json": algorithms.to_markdown,
    "fidelity/*.json": fidelity.to_markdown,
    "bench/**/loss.json": loss.to_markdown,
    "rivals/middle.json": middle.to_markdown,
    "rivals/offsets.json": offsets.to_markdown,
    "rivals/*_parts.json": parts.to_markdown,
    "rivals/quickstart.json": rivals.to_markdown,
    "rivals/nuclei.json": rivals.to_markdown,
    "scale/scale.json": scale.to_markdown,
    "bench/search.json": search.to_markdown,
    "camvid/finals.json": finals.to_markdown,
}
KEPT = [pytest.param(path, make, id=str(path)) for pattern, make in MADE.items() for path in RESULTS.glob(pattern)]


def test_there_are_summaries() -> None:
    assert len(KEPT) == 17


@pytest.mark.parametrize(("path", "make"), KEPT)
def test_a_table_is_made_from_its_summary(path: Path, make: Any) -> None:
    assert make(json.loads(path.read_text())) == path.with_suffix(".md").read_text()
