"""What a search tells other programs: every line is JSON, every point is there for TensorBoard's own reader."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from autosegloss.cli import main
from autosegloss.proxy.data import load_dataset
from autosegloss.report.data import data_record
from autosegloss.report.logs import SCALARS_FOLDER, JsonLog, ScalarLog
from autosegloss.search.journal import Journal
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.study import Study
from tests.faulty import TINY
from tests.journals import trials_of
from tests.toys import TOY, toy_study

SMALL = TINY | {"metric": "miou", "rivals": {"losses": []}, "search": {"steps": 2, "samples": 2}}


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def drive(study: Study, trials: int) -> None:
    """Run some trials of the small study, one after another."""
    for _ in range(trials):
        job = study.next_job()
        assert job is not None
        study.record(job, TOY(job))


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, as TensorBoard reads them."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def expected(study: Study) -> dict[str, list[tuple[int, float]]]:
    steps = study.steps
    best = [max(step.best for step in steps[: number + 1]) for number in range(len(steps))]
    series: dict[str, list[float]] = {
        "reward/mean": [step.mean for step in steps],
        "reward/best": [step.best for step in steps],
        "reward/best_so_far": best,
        "reward/start": [step.start for step in steps if step.start is not None],
        "failed": [step.failed for step in steps],
    }
    series |= {f"mu/{i}": [step.mu[i] for step in steps if step.mu is not None] for i in range(3)}
    return {tag: [(i, pytest.approx(x, abs=1e-6)) for i, x in enumerate(values)] for tag, values in series.items()}


def test_a_search_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(SMALL))
    out = tmp_path / "out"
    arguments = ["search", str(config), "--runner", "serial", "--out", str(out), "--json-logs", "--tensorboard"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    every = events(captured.out)
    kinds = [event["event"] for event in every]
    assert kinds == ["start", *["trial"] * 3, "step", *["trial"] * 4, "step", *["trial"] * 6, "end"]
    assert every[0] == {
        "event": "start", "config": "tiny", "folder": str(out), "done": 0, "running": 0, "failed": 0, "total": 13,
        "data": [data_record(load_dataset(TINY["proxy"]["data"]["name"]))],
    }  # fmt: skip
    trials = [event for event in every if event["event"] == "trial"]
    lines = trials_of(out / "trials.jsonl")
    for number, (trial, line) in enumerate(zip(trials, lines, strict=True), start=1):
        counts = {"done": number, "running": 0, "failed": 0, "total": 13}
        shared = ("stage", "step", "index", "reward", "error", "seconds")
        assert trial == {"event": "trial", **{key: line[key] for key in shared}, **counts}
    end = every[-1]
    loss = json.loads((out / "loss.json").read_text())
    assert end["scores"] == loss["provenance"]["validation"]
    assert (end["found"], end["loss"]) == (loss["provenance"]["found"], str(out / "loss.json"))

    # The status says the same, and so do the scalars.
    assert main(["status", str(out), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    steps = [event for event in every if event["event"] == "step"]
    assert [{"event": "step", **step} for step in status["steps"]] == steps
    assert (status["metric"], status["state"], status["step_count"]) == ("miou", "finished", 2)
    assert (status["done"], status["failed"], status["total"]) == (13, 0, 13)
    best = max((line for line in lines[:7] if line["index"] < 2), key=lambda line: line["reward"])
    assert status["best"] == {key: best[key] for key in ("step", "index", "theta", "reward", "metrics")}
    assert status["found"]["theta"] == loss["provenance"]["theta"]
    scalars = points(out / SCALARS_FOLDER)
    assert scalars["reward/mean"] == [(i, pytest.approx(step["mean"])) for i, step in enumerate(steps)]
    assert scalars["reward/start"] == [(i, pytest.approx(lines[3 * i + 2]["reward"])) for i in range(2)]
    assert sum(tag.startswith("mu/") for tag in scalars) == len(steps[0]["mu"])

    # A finished search is told from its journal, and nothing is run.
    assert main([*arguments, "--resume"]) == 0
    assert [event["event"] for event in events(capsys.readouterr().out)] == ["start", "end"]


def test_a_resumed_search_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path / "whole" / "trials.jsonl") as journal, JsonLog("toy", tmp_path) as log:
        study = toy_study(journal, log.update)
        log.update(study)
        SerialRunner().run(study, TOY)
    whole = events(capsys.readouterr().out)

    path, scalars = tmp_path / "trials.jsonl", tmp_path / SCALARS_FOLDER
    for trials in (22, 15):  # in the middle of the third step
        with Journal(path, resume=True) as journal, JsonLog("toy", tmp_path) as log, ScalarLog(scalars) as points_log:

            def observe(study: Study, log: JsonLog = log, points_log: ScalarLog = points_log) -> None:
                log.update(study)
                points_log.update(study)

            study = toy_study(journal, observe)
            observe(study)
            drive(study, trials)
        if trials == 22:
            assert points(scalars) == {tag: values[:2] for tag, values in expected(study).items()}
            time.sleep(1.1)  # a file of TensorBoard's has its second in its name
    assert study.finished
    told = events(capsys.readouterr().out)
    assert told[0] == whole[0]
    resumed = next(number for number, event in enumerate(told) if number and event["event"] == "start")
    assert told[resumed] == {**whole[0], "done": 22}
    assert told[:resumed] + told[resumed + 1 :] == whole
    assert len(list(scalars.iterdir())) == 2
    assert points(scalars) == expected(study)


def test_what_else_is_printed_is_kept_out_of_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path / "trials.jsonl") as journal, JsonLog("toy", tmp_path) as log:
        study = toy_study(journal, log.update)
        log.update(study)
        print("a network that talks")
        drive(study, 9)
    captured = capsys.readouterr()
    assert [event["event"] for event in events(captured.out)] == ["start", *["trial"] * 9, "step"]
    assert events(captured.out)[-1] == {"event": "step", **json.loads(json.dumps(asdict(study.steps[0])))}
    assert captured.err == "a network that talks\n"


def test_running_trials_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path / "trials.jsonl") as journal, JsonLog("toy", tmp_path) as log:
        study = toy_study(journal, log.update)
        log.update(study)
        jobs = [job for job in (study.next_job() for _ in range(3)) if job is not None]
        for job in reversed(jobs):
            study.record(job, TOY(job))
    told = events(capsys.readouterr().out)[1:]
    assert [(event["index"], event["done"], event["running"]) for event in told] == [(2, 1, 2), (1, 2, 1), (0, 3, 0)]


def test_without_the_package_nothing_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as if it were not installed
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(json.dumps(SMALL))
    assert main(["search", str(config), "--out", str(out), "--tensorboard"]) == 2
    error = capsys.readouterr().err
    assert error == (
        'RefusedError: the package tensorboardX is not installed; install it with: pip install "'
        'autosegloss[tensorboard]"\n'
    )
    assert not out.exists()


def test_scalars_that_cannot_be_written_are_no_reason_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scalars").touch()  # where their folder would be
    with Journal(tmp_path / "trials.jsonl") as journal, ScalarLog(tmp_path / "scalars") as log:
        study = toy_study(journal)
        log.update(study)
        log.update(study)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{tmp_path / 'scalars'}: scalars can't be written: Not a directory. The search goes on."
