"""CamVid without its data: its lists from names alone, its tables from a search of trainings that are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from autosegloss.search.jobs import Job, Outcome
from results.camvid import finals
from results.camvid.split import lists_of
from tests.courses import run_course, toy


def test_the_end_of_each_drive_is_held_out() -> None:
    train = [f"b_{frame:03d}" for frame in range(8)] + [f"a_f{frame:03d}" for frame in (5, 3, 1, 4, 2)]
    lists = lists_of(train, ["c_1", "a_9"])
    assert lists["heldout"] == ["a_f005", "b_006", "b_007"]
    assert lists["train"] == ["a_f001", "a_f002", "a_f003", "a_f004", *(f"b_{frame:03d}" for frame in range(6))]
    assert lists["val"] == ["c_1", "a_9"]


def test_the_members_of_the_finals_are_beside_the_best_rival(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def harder(job: Job) -> Outcome:
        outcome = toy(job)
        return replace(outcome, validation={name: value - 0.1 for name, value in outcome.validation.items()})

    _, study = run_course(tmp_path / "found", objective=harder)
    findings = study.findings()
    finals.main([str(tmp_path / "found"), "--out", str(tmp_path)])
    page = (tmp_path / "finals.md").read_text()
    assert capsys.readouterr().out.removesuffix("\n") == page
    assert finals.to_markdown(json.loads((tmp_path / "finals.json").read_text())) == page
    assert f"{study.done} trials. The result: {findings.conclusion}." in page
    rewards = {final.label: np.array(final.rewards, float) for final in findings.finals}
    best = max(findings.rivals, key=lambda name: float(rewards[name].mean()))
    assert f"difference to {best}, the rival" in page
    gains = rewards[findings.label] - rewards[best]
    low, high = stats.t.interval(0.95, len(gains) - 1, gains.mean(), stats.sem(gains))
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {findings.label}: ")]
    cells = [cell.strip() for cell in row.split(" | ")]
    assert cells[1].startswith(f"{100 * rewards[findings.label].mean():.1f} [")
    assert cells[2] == f"{100 * gains.mean():+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
    assert cells[3].startswith(f"{100 * rewards[findings.label].mean() - 10:.1f} [")
    assert cells[4] == f"{cells[2]} |"
