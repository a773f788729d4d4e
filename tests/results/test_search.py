"""The benchmark of a search: run for real at a small size; the figures are consistent, whatever they are."""

import json
from pathlib import Path

import pytest

from results.bench import search


@pytest.mark.usefixtures("ray_address")
@pytest.mark.slow
def test_it_measures_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("SECONDS", 0.2), ("BUSY", (2, 4)), ("CHEAP", (3, 20)), ("HUNDRED", 20)):
        monkeypatch.setattr(search, name, value)
    search.main(["--out", str(tmp_path)])
    found = json.loads((tmp_path / "search.json").read_text())
    assert 0 < found["busy"] <= 1.001
    assert found["until_first_trial"] > 0
    assert len(found["overhead"]) == 2
    assert all(seconds > 0 for seconds in found["overhead"])
    table = (tmp_path / "search.md").read_text()
    assert f"| {found['busy']:.3f} |" in table
    assert table in capsys.readouterr().out


def test_the_sleeper_takes_its_time() -> None:
    job = search.Job("search", 0, 0, {}, 1, (0.0,))
    outcome = search.Sleeper(0.05)(job)
    assert outcome.seconds >= 0.04
    assert outcome.metrics["end"] - outcome.metrics["start"] == outcome.seconds
