"""`evaluate --classes`: names in place of the number of classes, in the metrics and in the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autosegloss.cli import main


def test_classes_have_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, last in (("pred", 1), ("target", 2)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.array([[0, 1, 2], [2, last, 0]], np.uint8)).save(tmp_path / folder / "a.png")
    command = ["evaluate", "--pred", str(tmp_path / "pred"), "--target", str(tmp_path / "target")]
    assert main([*command, "--classes", "background,leaf, symptom", "--metric", "miou,iou(symptom)"]) == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1:] for line in lines if line}
    assert rows["overall"] == ["72.22", "66.67"]
    assert [rows[name] for name in ("background", "leaf", "symptom")] == [
        ["100.00", "-"],
        ["50.00", "-"],
        ["66.67"] * 2,
    ]
    sheet = tmp_path / "sheet.html"
    assert main([*command, "--classes", "back<b>ground,leaf,symptom", "--metric", "miou", "--sheet", str(sheet)]) == 0
    worst = [line.replace("│", " ").split() for line in capsys.readouterr().out.partition("Worst")[2].splitlines()]
    assert [line[-3] for line in worst if line and line[-1] == "a"] == ["all", "back<b>ground", "leaf", "symptom"]
    page = sheet.read_text()
    assert "most often symptom as leaf (16.67 %)" in page
    assert ", leaf (1)</option>" in page
    assert "back&lt;b&gt;ground" in page
    assert "back<b>" not in page
    assert "class 1" not in page
    for options, expected in [
        (["--metric", "miou"], "name the classes with --classes background,leaf,..., or give their number"),
        (
            ["--metric", "miou", "--classes", "a,b", "--num-classes", "3"],
            "--classes has 2 names, but --num-classes is 3",
        ),
        (["--metric", "miou", "--classes", "a,a"], "--classes must be distinct names separated by commas, got a,a."),
        (["--metric", "iou(c)", "--classes", "a,b"], "unknown class `c`; the classes of the data are 0 `a`, 1 `b`."),
        (["--metric", "iou(a)", "--num-classes", "3"], "class `a` is given by name, but the names of the classes are"),
    ]:
        assert main([*command, *options]) == 2
        assert capsys.readouterr().err.startswith(f"InputError: {expected}")
