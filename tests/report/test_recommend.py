"""`autosegloss recommend` as a user meets it: a real one, with small trainings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from autosegloss import load_loss
from autosegloss.cli import main
from autosegloss.search.content import bare_content
from tests.faulty import TINY
from tests.journals import trials_of

TWO = TINY | {"metric": "miou", "rivals": {"losses": ["cross_entropy", "lovasz"], "steps": [1, 4], "seeds": 2}}


def test_it_takes_one_of_the_losses_that_people_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(json.dumps(TWO))
    assert main(["recommend", "tiny.yaml", "--runner", "serial"]) == 0
    folder = Path("results/recommend/tiny")
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0] == f"trying the losses that people use for miou; writing to {folder}/"
    taken = re.fullmatch(
        r"take (.*): ([+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\] miou over cross-entropy|none of the \d other losses of "
        r"the finals is ahead of it) on 2 fresh seeds, held-out(; the interval holds 0, so it may be no better)?",
        lines[-2],
    )
    assert taken, lines[-2]
    name = "cross_entropy" if taken[1] == "cross-entropy" else taken[1]
    assert bare_content(load_loss(folder / "loss.json")) == bare_content(load_loss(name))
    unknown = "whether a search has headroom is not known"
    assert lines[-1] == f"{unknown}: that takes at least two rivals on three seeds (rivals.seeds)"
    stages = [trial["stage"] for trial in trials_of(folder / "trials.jsonl")]
    assert stages[:5] == ["screen"] * 5
    assert {*stages} == {"screen", "final"}

    # Continued, it trains nothing and says the same; a search is another thing, and goes to another folder.
    assert main(["recommend", "tiny.yaml", "--runner", "serial", "--resume", "--json-logs"]) == 0
    start, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert (start["done"], end["found"]) == (len(stages), taken[1])
    assert main(["search", "tiny.yaml", "--runner", "serial", "--out", str(folder), "--resume"]) == 2
    assert "search.steps" in capsys.readouterr().err


def test_without_rivals_those_of_everyone_take_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.yaml"
    data = {"data": {"name": "folder", "root": str(tmp_path / "nowhere"), "classes": 2}}
    config.write_text(json.dumps(TINY | {"rivals": {"losses": []}, "proxy": data}))
    assert main(["recommend", str(config), "--runner", "serial", "--out", str(tmp_path / "out")]) != 0
    note, error = capsys.readouterr().err.splitlines()[:2]
    assert note == "rivals.losses is empty in this configuration: the losses that people use take its place."
    assert "no such folder" in error  # and not: there are no rivals
