"""The display of a search: what stands on a terminal and elsewhere, and the estimate of the time left."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autosegloss.report.progress import Display, seconds_left
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.settings import as_config
from autosegloss.search.study import Study
from tests.examples import examples
from tests.toys import TOY, toy_study

CONFIG = as_config({"metric": "miou", "guard": {"dice": 0.9}})


def trial(job: Job) -> Outcome:
    """A trial of two seconds with metrics of the catalogue."""
    outcome = TOY(job)
    if (job.step, job.index) == (0, 1):
        return Outcome.failed("broken", 2.0)
    return replace(outcome, metrics={"miou": 0.25, "dice": 0.5, "gacc": 0.75, "precision": 0.1}, seconds=2.0)


def drive(study: Study, trials: int) -> None:
    for _ in range(trials):
        job = study.next_job()
        assert job is not None
        study.record(job, trial(job))


def shown(folder: Path, trials: int, running: int, *, terminal: bool, resume: bool = False) -> tuple[str, Study]:
    """What the display has written when so many trials more are done, and so many are under way."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=90, highlight=False, soft_wrap=True)
    display = Display(console, CONFIG, 2, folder)
    with Journal(folder / "trials.jsonl", resume=resume) as journal, display:
        study = toy_study(journal, display.update)
        display.update(study)
        drive(study, trials)
        for _ in range(running):
            study.next_job()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()), study


def test_on_a_terminal_it_says_where_the_search_stands(tmp_path: Path) -> None:
    text, study = shown(tmp_path, 22, 3, terminal=True)
    assert study.best is not None
    job, outcome = study.best
    last = text.splitlines()[-4:]  # the last picture
    assert re.fullmatch(r"2 of 3 steps +━+.━+  22 of 37 trials  about 0:00:1[45] left *", last[0]), last[0]
    step = study.steps[1]
    assert step.start is not None
    assert step.centre is not None
    assert [line.rstrip() for line in last[1:]] == [
        "3 running, 1 failed",
        f"step 1: mean reward {100 * step.mean:.1f}, best {100 * step.best:.1f}, start {100 * step.start:.1f}, "
        f"centre {100 * step.centre:.1f}, 0 failed",
        f"best so far {100 * outcome.reward:.1f} (sample {job.index} of step {job.step}): dice 50.0, gacc 75.0",
    ]
    assert all(len(line) <= 90 for line in last)


def test_elsewhere_it_is_a_line_a_step_and_says_no_step_twice(tmp_path: Path) -> None:
    text, study = shown(tmp_path, 20, 1, terminal=False)
    lines = text.splitlines()
    assert lines[0] == f"searching for a loss for miou; writing to {tmp_path}/"
    assert len(lines) == 3
    for number, line in enumerate(lines[1:]):
        step = study.steps[number]
        assert line.startswith(
            f"step {number}: mean reward {100 * step.mean:.1f}, best {100 * step.best:.1f}, "
            f"start {100 * step.start:.1f}, centre {100 * step.centre:.1f}, {step.failed} failed"
        )
        assert re.search(r"; best so far -?\d+\.\d \(sample \d of step \d\): dice 50\.0, gacc 75\.0; ", line)
        left = (37 - 9 - 10 * number) * 2 // 2
        assert re.search(rf"; {number + 1} of 3 steps, about 0:00:({left}|{left - 1:02d}) left$", line), line
    text, _ = shown(tmp_path, 17, 0, terminal=False, resume=True)
    assert [line.partition(":")[0] for line in text.splitlines()[1:]] == ["step 2"]


@examples(20, deadline=None)
@given(before=st.integers(0, 30), now=st.integers(0, 36), workers=st.integers(1, 8))
def test_the_time_left_is_right_at_once_after_a_resume(
    before: int, now: int, workers: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("left") / "trials.jsonl"
    for trials in (before, min(now, 36 - before)):
        with Journal(path, resume=True) as journal:
            study = toy_study(journal)
            drive(study, trials)
    with Journal(path, resume=True) as journal:
        study = toy_study(journal)
        if study.done:
            assert seconds_left(study, workers) == pytest.approx(2 * (study.total - study.done) / workers)
