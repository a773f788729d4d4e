"""Comparisons: paired runs, the same table whoever runs them and however often they were stopped, and refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from autosegloss import METRICS, CalibrationError, load_loss
from autosegloss.cli import main
from autosegloss.config import as_config
from autosegloss.errors import InputError, RefusedError
from autosegloss.proxy.train import initial_network, train
from autosegloss.proxy.trial import Proxy
from autosegloss.report.compare import Comparison, Difference, compare
from autosegloss.search.journal import Job, Journal, Outcome

LOSSES = ["cross_entropy", "asl/voc/miou"]
TINY = {
    "metric": "miou",
    "proxy": {
        "start": {"regime": "scratch"},
        "train": {"iterations": 3, "batch_size": 4},
        "labels": {"name": "smoothed"},
    },
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def done(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison made on the command line, serially."""
    folder = tmp_path_factory.mktemp("compare") / "out"
    assert run(config, folder) == 0
    return folder


def run(config: Path, folder: Path, *more: str, losses: list[str] = LOSSES, runner: str = "serial") -> int:
    named = [part for name in losses for part in ("--loss", name)]
    return main(["compare", str(config), *named, "--seeds", "2", "--out", str(folder), "--runner", runner, *more])


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("plan.json", "table.json", "table.md")}


def test_the_table_has_every_metric_class_and_the_calibration(done: Path, config: Path) -> None:
    table = json.loads((done / "table.json").read_text())
    classes = [f"IoU of {name}" for name in ("background", "region", "ellipse", "polygon", "curve", "dot")]
    assert [row["loss"] for row in table["rows"]] == LOSSES
    for row in table["rows"]:
        assert set(row["scores"]) == {"target", *METRICS, *classes, "ece"}
        assert len(row["runs"]) == 2
        for name, score in row["scores"].items():
            values = [each[name] for each in row["runs"]]
            assert score["mean"] == pytest.approx(np.mean(values), abs=1e-15)
            assert score["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert table["rows"][0]["differences"] == {}
    assert table["command"] == (f"autosegloss compare {config} --loss cross_entropy --loss asl/voc/miou --seeds 2")
    assert table["plan"]["configuration"]["proxy"]["labels"] == {"name": "smoothed"}
    assert set(table["versions"]) == {"autosegloss", "torch", "numpy"}
    assert len(set(table["plan"]["seeds"])) == 2


def test_a_run_is_a_training_of_its_own_with_the_seed_and_the_loss_of_the_row(done: Path) -> None:
    """By hand: the same initial weights and images for both losses, the calibration from the logits."""
    table = json.loads((done / "table.json").read_text())
    proxy = Proxy.load(as_config(TINY)).prepare()
    validation = proxy.dataset.validation
    images, labels = torch.from_numpy(validation.images).float() / 127.5 - 1, torch.from_numpy(validation.labels)
    for index, loss in enumerate((proxy.loss(None), load_loss("asl/voc/miou"))):
        for ordinal, seed in enumerate(table["plan"]["seeds"]):
            network = initial_network("unet_small", 6, "scratch", None, seed=seed)
            train(network, proxy.dataset.train, loss, seed=seed, iterations=3, batch_size=4)
            with torch.no_grad():
                logits = network.eval()(images)
            error = CalibrationError(6)
            error.update(logits, labels)
            found = table["rows"][index]["runs"][ordinal]
            assert found["ece"] == pytest.approx(error.compute(), abs=1e-5)
            assert found["gacc"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-5)


@pytest.mark.usefixtures("ray_address")
def test_ray_gives_the_bytes_of_the_serial_runner(done: Path, config: Path, tmp_path: Path) -> None:
    assert run(config, tmp_path, "--workers", "2", runner="ray") == 0
    assert files(tmp_path) == files(done)


@pytest.mark.parametrize("kept", [0, 1, 3, 4])
def test_a_resumed_comparison_gives_the_same_bytes(done: Path, config: Path, tmp_path: Path, kept: int) -> None:
    lines = (done / "trials.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    torn = b'{"stage": "com' if kept < 4 else b""
    (tmp_path / "trials.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
    (tmp_path / "plan.json").write_bytes((done / "plan.json").read_bytes())
    assert run(config, tmp_path, "--resume") == 0
    assert files(tmp_path) == files(done)
    assert (tmp_path / "trials.jsonl").read_bytes().startswith(b"".join(lines[:kept]))


def test_a_failed_run_is_counted_and_left_out(done: Path, config: Path, tmp_path: Path, capsys: Any) -> None:
    lines = [json.loads(line) for line in (done / "trials.jsonl").read_text().splitlines()]
    lines[1] |= {"reward": None, "metrics": {}, "validation": {}, "error": "TrainingDiverged: the loss is nan"}
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "plan.json").write_bytes((done / "plan.json").read_bytes())
    assert run(config, tmp_path, "--resume") == 0
    text = capsys.readouterr().out
    assert "`asl/voc/miou`: 1 of 2 runs failed. TrainingDiverged: the loss is nan" in text
    whole, row = (json.loads((folder / "table.json").read_text())["rows"][1] for folder in (done, tmp_path))
    assert row["runs"] == [None, whole["runs"][1]]
    assert row["scores"]["miou"] == {"mean": whole["runs"][1]["miou"], "sd": 0.0}
    assert row["differences"]["miou"] is None  # one pair has no interval


def test_the_markdown_table(done: Path) -> None:
    table = json.loads((done / "table.json").read_text())
    text = (done / "table.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "| loss | miou | miou_i | miou_c | ece |"  # the target is miou: one column
    score, gain = table["rows"][1]["scores"]["ece"], table["rows"][1]["differences"]["ece"]
    assert rows[3].startswith("| `asl/voc/miou` | ")
    assert rows[3].endswith(f"| {100 * score['mean']:.2f} ± {100 * score['sd']:.2f} |")
    assert rows[-1].endswith(f"| {100 * gain['mean']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}] |")
    assert f"Command: `{table['command']}`" in text


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    ours, first = rng.normal(0.3, 1, 6), rng.normal(0, 1, 6)
    found = Difference.of(ours.tolist(), first.tolist())
    assert found is not None
    test = stats.ttest_rel(ours, first)
    low, high = test.confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx(((ours - first).mean(), low, high))
    assert Difference.of([1.0], [2.0]) is None


def test_a_comparison_takes_outcomes_in_any_order_and_each_once(tmp_path: Path) -> None:
    outcome = Outcome(0.5, {}, {"miou": 0.5}, None, 0.1)
    with Journal(tmp_path / "trials.jsonl") as journal:
        comparison = Comparison(["a", "b"], [7, 8], journal)
        jobs: list[Job] = []
        while (job := comparison.next_job()) is not None:
            jobs.append(job)
        assert [(job.step, job.index, job.seed) for job in jobs] == [(0, 0, 7), (0, 1, 7), (1, 0, 8), (1, 1, 8)]
        for number, job in enumerate(reversed(jobs)):
            assert not comparison.finished
            comparison.record(job, replace(outcome, reward=math.nan) if number == 0 else outcome)
        assert comparison.finished
        assert comparison.next_job() is None
        assert [run.reward for run in comparison.outcomes(1)] == [0.5, None]
        with pytest.raises(InputError, match="is not due"):
            comparison.record(jobs[0], outcome)


# Refusals


def test_a_comparison_as_lines_of_json(
    config: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert run(config, folder, "--json-logs") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    start, *trials, end = (json.loads(line) for line in captured.out.splitlines())
    assert start == {"event": "start", "config": "tiny", "folder": str(folder), "done": 0, "total": 4}
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for number, (trial, line) in enumerate(zip(trials, lines, strict=True), start=1):
        shared = {key: line[key] for key in ("seed", "reward", "error", "seconds")}
        counts = {"done": number, "total": 4}
        assert trial == {"event": "trial", "loss": LOSSES[line["index"]], **shared, **counts}
    rows = json.loads((done / "table.json").read_text())["rows"]
    scores = {row["loss"]: row["scores"] for row in rows}
    assert end == {"event": "end", "scores": scores, "table": str(folder / "table.json")}
    assert run(config, folder, "--json-logs", "--resume") == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert again == [start | {"done": 4}, end]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to compare: name at least one loss."),
        (["--loss", "cross_entropy", "--loss", "cross_entropy"], "given twice: cross_entropy; each loss is compared"),
        (["--loss", "cross_entropy", "--loss", "asl/voc/mio"], "asl/voc/mio"),
        (["--loss", "cross_entropy", "--seeds", "1"], "seeds is 1; a spread needs a whole number of at least 2."),
        (["--loss", "cross_entropy", "--set", "proxy.labels.name=averaged"], "has no annotators"),
        (["--loss", "cross_entropy", "--set", "proxy.labels.amonut=1"], "unknown option `amonut`"),
    ],
)
def test_bad_input_is_refused_before_any_training(
    config: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    def trained(*_: object, **__: object) -> nn.Module:
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr("autosegloss.proxy.train.Training.advance", trained)
    monkeypatch.setattr("autosegloss.proxy.trial.pretrain", trained)
    folder = tmp_path / "out"
    assert main(["compare", str(config), "--out", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_another_comparison_in_the_folder_is_refused_and_kept(done: Path, config: Path, capsys: Any) -> None:
    before = files(done)
    assert run(config, done) == 2
    assert "holds a comparison already, with 4 finished trials" in capsys.readouterr().err
    assert run(config, done, "--resume", losses=["cross_entropy", "asl/voc/bf1"]) == 2
    error = capsys.readouterr().err
    assert f"{done} holds another comparison:\n  definitions.asl/voc/bf1.control_points: not set there" in error
    assert run(config, done, "--resume", losses=LOSSES[::-1]) == 2
    assert 'losses: ["cross_entropy", "asl/voc/miou"] there, ["asl/voc/miou"' in capsys.readouterr().err
    assert run(config, done, "--resume", "--set", "proxy.train.iterations=4") == 2
    assert "configuration.proxy.train.iterations: 3 there, 4 now" in capsys.readouterr().err
    assert files(done) == before


def test_a_loss_file_that_has_changed_is_another_comparison(config: Path, tmp_path: Path, capsys: Any) -> None:
    path, folder = tmp_path / "mine.json", tmp_path / "out"
    load_loss("asl/voc/miou").save(path)
    assert run(config, folder, losses=[str(path)]) == 0
    content = json.loads(path.read_text())
    content["slots"]["and[0] of pred & target"][0] = [0.001, 0.5]
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert run(config, folder, "--resume", losses=[str(path)]) == 2
    assert "control_points: " in capsys.readouterr().err


def test_results_without_their_journal_and_other_folders_are_kept(done: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("mine")
    with pytest.raises(RefusedError, match=r"holds table\.json already, and no comparison"):
        compare(config, LOSSES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
    search = tmp_path / "search"
    search.mkdir()
    line = Job("search", 0, 0, (0.5,), 1), Outcome(0.5, {}, {}, None, 0.1)
    with Journal(search / "trials.jsonl") as journal:
        journal.append(*line)
    with pytest.raises(RefusedError, match=r"no plan\.json of a comparison"):
        compare(config, LOSSES, search, resume=True)
    (search / "plan.json").write_bytes((done / "plan.json").read_bytes())
    with pytest.raises(RefusedError, match=r"trials\.jsonl:1: this trial is not one of this comparison's"):
        compare(config, LOSSES, search, seeds=2, resume=True)
