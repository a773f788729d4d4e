"""Narrow terminals: no number is cut, whatever the width."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from autosegloss.cli import main
from autosegloss.loss.classic import CrossEntropy
from autosegloss.report.tables import search_table
from autosegloss.search.api import Result
from autosegloss.search.findings import Findings
from autosegloss.search.settings import as_config
from autosegloss.search.statistics import Score


@pytest.mark.parametrize("columns", [20, 400])
def test_an_evaluation_keeps_its_numbers(
    columns: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, last in (("pred", 1), ("target", 2)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.array([[0, 1, 2], [2, last, 0]], np.uint8)).save(tmp_path / folder / "a.png")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "dumb")
    command = ["evaluate", "--pred", str(tmp_path / "pred"), "--target", str(tmp_path / "target"), "--worst", "1"]
    assert main([*command, "--classes", "background,leaf,symptom", "--metric", "miou,precision,macc"]) == 0
    out = capsys.readouterr().out
    for number in ("72.22", "100.00", "50.00", "66.67", "83.33"):
        assert number in out


@pytest.mark.parametrize("columns", [20, 400])
def test_the_table_of_a_search_keeps_its_numbers(columns: int) -> None:
    rows = {"cross-entropy": 0.123, "start": 0.456, "found": 0.789}
    scores = {name: {"target": Score(mean, 0.0214)} for name, mean in rows.items()}
    result = Result(CrossEntropy(), Path(), scores, Findings("start", {}, (0.5,), 0.5, (1, 2), (), ()))
    screen = io.StringIO()
    Console(file=screen, width=columns, soft_wrap=True).print(
        search_table(result, as_config({"metric": "miou"}), dict.fromkeys(rows, "loss"))
    )
    for number in ("12.3", "45.6", "78.9", "2.1", "+66.6"):
        assert number in screen.getvalue()
