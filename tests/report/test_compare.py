"""Comparisons: paired runs, the same table whoever runs them and however often they were stopped, and refusals."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import autosegloss as asl
from autosegloss import METRICS, CalibrationError, load_loss
from autosegloss.cli import main
from autosegloss.errors import InputError, RefusedError
from autosegloss.loss import named_loss
from autosegloss.loss.classic import CrossEntropy, class_counts
from autosegloss.proxy.train import initial_network, train
from autosegloss.search.compare import Comparison, ComparisonObjective, columns_of, compare
from autosegloss.search.content import bare_content
from autosegloss.search.head import processor, versions
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import as_config, fingerprint
from autosegloss.search.tables import Difference, Estimate, Row, Table, holm, judged
from tests import oracles
from tests.journals import rewrite, trials_of

LOSSES = ["cross_entropy", "asl/voc/miou"]
TINY = {
    "metric": "miou",
    "proxy": {
        "data": {"name": "nuclei"},
        "start": {"regime": "scratch"},
        "train": {"iterations": 3, "batch_size": 4},
        "labels": {"name": "smoothed"},
    },
    "compare": {"steps": [1]},
}
PLAIN = {"name": "tests.networks:Plain"}
CROSSED: dict[str, Any] = {
    "metric": "miou",
    "proxy": {
        "data": {"name": "tests.layouts:few_shapes"},
        "network": PLAIN,
        "start": {"regime": "scratch"},
        "train": {"iterations": 2, "batch_size": 4},
    },
    "compare": {
        "losses": ["cross_entropy", "inverse_weighted_cross_entropy"],
        "seeds": 2,
        "steps": [1],
        "metrics": ["macc", {"name": "bf1", "radius": 2}, "ece"],
        "settings": {
            "plain": {},
            "other data, pretrained": {
                "proxy": {"data": {"seed": 1}, "start": {"regime": "checkpoint", "iterations": 2}}
            },
        },
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


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison in two settings, whose configuration says all."""
    folder = tmp_path_factory.mktemp("crossed")
    (folder / "crossed.yaml").write_text(json.dumps(CROSSED))
    assert main(["compare", str(folder / "crossed.yaml"), "--out", str(folder / "out"), "--runner", "serial"]) == 0
    return folder / "out"


def run(config: Path, folder: Path, *more: str, losses: list[str] = LOSSES, runner: str = "serial") -> int:
    named = [part for name in losses for part in ("--loss", name)]
    return main(["compare", str(config), *named, "--seeds", "2", "--out", str(folder), "--runner", runner, *more])


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("plan.json", "table.json", "table.md", "table.tex")}


def test_the_table_has_every_metric_class_and_the_calibration(done: Path, config: Path) -> None:
    table = json.loads((done / "table.json").read_text())
    classes = [f"IoU of {name}" for name in ("background", "interior", "border")]
    assert [row["loss"] for row in table["rows"]] == LOSSES
    for row in table["rows"]:
        assert set(row["scores"]) == {"target", *METRICS, *classes, "ece"}
        assert len(row["runs"]) == 2
        for name, score in row["scores"].items():
            values = [each[name] for each in row["runs"]]
            assert score["mean"] == pytest.approx(np.mean(values), abs=1e-15)
            assert score["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-15)
            assert (score["low"] + score["high"]) / 2 == pytest.approx(score["mean"], abs=1e-15)
    assert table["rows"][0]["differences"] == {}
    assert table["command"] == (f"autosegloss compare {config} --loss cross_entropy --loss asl/voc/miou --seeds 2")
    assert table["plan"]["configurations"][""]["proxy"]["labels"] == {"name": "smoothed"}
    assert table["versions"] == versions() | processor()
    assert len(set(table["plan"]["seeds"])) == 2


def test_a_run_is_a_training_of_its_own_with_the_seed_and_the_loss_of_the_row(done: Path) -> None:
    """By hand: the same initial weights and images for both losses, the calibration from the logits."""
    table = json.loads((done / "table.json").read_text())
    proxy = proxy_of(as_config(TINY)).prepare()
    validation = proxy.dataset.validation
    images, labels = torch.from_numpy(validation.images).float() / 127.5 - 1, torch.from_numpy(validation.labels)
    heldout = proxy.dataset.heldout
    fitted_on = torch.from_numpy(heldout.images).float() / 127.5 - 1, torch.from_numpy(heldout.labels)
    for index, loss in enumerate((CrossEntropy(), load_loss("asl/voc/miou"))):
        for ordinal, seed in enumerate(table["plan"]["seeds"]):
            network = initial_network("unet_small", 3, "scratch", None, seed=seed)
            train(network, proxy.dataset.train, loss, seed=seed, iterations=3, batch_size=4)
            with torch.no_grad():
                logits = network.eval()(images)
                offsets = asl.fit_offsets("miou", [(network(fitted_on[0]), fitted_on[1])], num_classes=3)
            exact = asl.Accumulator("miou", num_classes=3)
            exact.update(offsets.apply(logits), labels)
            error = CalibrationError(3)
            error.update(logits, labels)
            found = table["rows"][index]["runs"][ordinal]
            assert found["ece"] == pytest.approx(error.compute(), abs=1e-5)
            job = Job("compare", ordinal, index, bare_content(loss), seed)
            again = ComparisonObjective((proxy,), ({},), offsets=True)(job).validation
            assert list(again)[:2] == ["target", "target with offsets"]
            assert again.pop("target with offsets") == pytest.approx(exact.compute(), abs=1e-5)
            assert again == found
            assert found["gacc"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-5)


@pytest.mark.slow
def test_every_setting_trains_its_own_proxy_and_the_losses_of_a_seed_start_alike(crossed: Path) -> None:
    """By hand, from configurations that are written out: data, pretraining, class weights, the metric with options."""
    table = json.loads((crossed / "table.json").read_text())
    rows = iter(table["rows"])
    proxies = [
        CROSSED["proxy"],
        CROSSED["proxy"]
        | {"data": {"name": "tests.layouts:few_shapes", "seed": 1}, "start": {"regime": "checkpoint", "iterations": 2}},
    ]
    found = []
    for setting, own in zip(CROSSED["compare"]["settings"], proxies, strict=True):
        config = as_config({"metric": "miou", "proxy": own})
        assert table["plan"]["configurations"][setting] == fingerprint(config)
        proxy = proxy_of(config).prepare()
        counts = class_counts([proxy.dataset.train.labels], 6)
        images = torch.from_numpy(proxy.dataset.validation.images).float() / 127.5 - 1
        labels = torch.from_numpy(proxy.dataset.validation.labels)
        for loss in CROSSED["compare"]["losses"]:
            row = next(rows)
            assert (row["setting"], row["loss"]) == (setting, loss)
            for seed, measured in zip(table["plan"]["seeds"], row["runs"], strict=True):
                regime = config.proxy.start.regime
                network = initial_network("tests.networks:Plain", 6, regime, proxy.pretrained, seed=seed)
                module = named_loss(loss, counts=counts)
                train(network, proxy.dataset.train, module, seed=seed, iterations=2, batch_size=4)
                with torch.no_grad():
                    logits = network.eval()(images)
                for name in ("miou", "macc", "bf1(radius=2)"):
                    exact = asl.Accumulator(asl.metric(f"{name}"), num_classes=6)
                    exact.update(logits, labels)
                    assert measured[name] == pytest.approx(exact.compute(), abs=1e-5)
                error = CalibrationError(6)
                error.update(logits, labels)
                assert measured["ece"] == pytest.approx(error.compute(), abs=1e-5)
                found.append(measured["ece"])
    assert len(set(found)) == len(found) == 8
    assert next(rows, None) is None


def test_a_journal_of_two_settings_names_them_by_the_index(crossed: Path) -> None:
    lines = trials_of(crossed / "trials.jsonl")
    seeds = json.loads((crossed / "plan.json").read_text())["seeds"]
    assert [(line["step"], line["index"], line["seed"]) for line in lines] == [
        (step, index, seed) for step, seed in enumerate(seeds) for index in range(4)
    ]
    rows = json.loads((crossed / "table.json").read_text())["rows"]  # loss by loss in each setting
    assert [line["validation"] for line in lines] == [
        rows[row]["runs"][step] for step in (0, 1) for row in (0, 2, 1, 3)
    ]


@pytest.mark.parametrize("kept", [3])
@pytest.mark.slow
def test_killed_in_a_setting_and_resumed_it_gives_the_same_bytes(crossed: Path, tmp_path: Path, kept: int) -> None:
    lines = (crossed / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_bytes(b"".join(lines[: kept + 1]) + lines[kept + 1][:20])
    (tmp_path / "plan.json").write_bytes((crossed / "plan.json").read_bytes())
    config = str(crossed.parent / "crossed.yaml")
    assert main(["compare", config, "--out", str(tmp_path), "--runner", "serial", "--resume"]) == 0
    assert files(tmp_path) == files(crossed)


@pytest.mark.slow
def test_losses_and_seeds_that_are_added_are_trained_and_nothing_else_again(crossed: Path, tmp_path: Path) -> None:
    """To a comparison that was finished and to one that was stopped; the bytes are those of one that had them all."""
    (tmp_path / "crossed.yaml").write_text(json.dumps(CROSSED))
    more = ["--loss", "cross_entropy", "--loss", "inverse_weighted_cross_entropy", "--loss", "jml", "--seeds", "3"]
    arguments = ["compare", str(tmp_path / "crossed.yaml"), *more, "--runner", "serial", "--out"]
    assert main([*arguments, str(tmp_path / "whole")]) == 0
    for kept in (3, 8):
        added = tmp_path / f"added {kept}"
        added.mkdir()
        before = b"".join((crossed / "trials.jsonl").read_bytes().splitlines(keepends=True)[: kept + 1])
        (added / "trials.jsonl").write_bytes(before)
        (added / "plan.json").write_bytes((crossed / "plan.json").read_bytes())
        assert main([*arguments, str(added), "--resume"]) == 0
        assert files(added) == files(tmp_path / "whole")
        journal = (added / "trials.jsonl").read_bytes()
        assert journal.startswith(before)
        assert journal.count(b"\n") == 1 + 2 * 3 * 3


@pytest.mark.slow
def test_another_setting_and_the_journal_of_an_earlier_version_are_refused(
    crossed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(crossed.parent / "crossed.yaml"), "--runner", "serial", "--resume"]
    for changes, message in (
        (
            "compare.settings.plain.proxy.train={iterations: 3}",
            "configurations.plain.proxy.train.iterations: 2 there, 3 now",
        ),
        ("compare.settings.more={}", "configurations.more.metric: not set there"),
        (
            f"compare.settings={json.dumps(dict(reversed(CROSSED['compare']['settings'].items())))}",
            'settings: ["plain", "other data, pretrained"] there, ["other data, pretrained", "plain"] now',
        ),
        ("compare.metrics=[macc]", 'metrics: ["target", "macc", "bf1(radius=2)", "ece"] there, ["target", "macc"] now'),
    ):
        assert main([*arguments, "--out", str(crossed), "--set", changes]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "trials.jsonl").write_bytes((crossed / "trials.jsonl").read_bytes())
    earlier = json.dumps({"losses": [], "definitions": {}, "seeds": [], "configuration": {}})
    for damaged in (earlier, "[" * 100_000, "", '{"version": 3}'):
        (tmp_path / "plan.json").write_text(damaged)
        assert main([*arguments, "--out", str(tmp_path)]) == 2
        assert f"{tmp_path}/plan.json: this file is damaged, or of another version. Restore" in capsys.readouterr().err


def test_what_the_command_line_says_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def noted(config: Any, losses: Any, out: Any, *, seeds: Any, command: str, **_: Any) -> Any:
        asked.append((losses, seeds, command))
        raise InputError("enough")

    monkeypatch.setattr("autosegloss.cli.compare", noted)
    path = tmp_path / "a.yaml"
    path.write_text(json.dumps(CROSSED))
    start = f"autosegloss compare {path}"
    for arguments in ([], ["--loss", "jml"], ["--seeds", "3"]):
        assert main(["compare", str(path), *arguments]) == 2
    assert asked == [
        (None, None, start),
        (["jml"], None, f"{start} --loss jml"),
        (None, 3, f"{start} --seeds 3"),
    ]


def test_the_target_has_a_column_unless_a_metric_is_the_same() -> None:
    shown: list[Any] = ["miou", {"name": "bf1"}, {"name": "bf1", "radius": 2}, "0.5*miou + \n 0.5*macc", "ece"]
    labels = ["miou", "bf1", "bf1(radius=2)", "0.5*miou + 0.5*macc", "ece"]
    columns, verdicts, more = columns_of("dice", shown)
    assert columns == verdicts == ["target", *labels]
    assert more == {"bf1(radius=2)": asl.metric("bf1(radius=2)"), labels[3]: asl.metric("0.5 * miou + 0.5 * macc")}
    assert columns_of("bf1(radius=2)", shown)[0] == labels
    # By default there are verdicts on the target alone.
    assert columns_of("dice", None)[:2] == (["target", "miou", "miou_i", "miou_c", "ece"], ["target"])
    assert columns_of("jaccard", None)[:2] == (["miou", "miou_i", "miou_c", "ece"], ["miou"])


@pytest.mark.usefixtures("ray_address")
@pytest.mark.slow
def test_ray_gives_the_bytes_of_the_serial_runner(done: Path, config: Path, tmp_path: Path) -> None:
    assert run(config, tmp_path, "--workers", "2", runner="ray") == 0
    assert files(tmp_path) == files(done)


def test_a_finished_comparison_is_tabulated_again_without_training(
    done: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By the folder alone or by the command that made it; without options both give what there was."""
    monkeypatch.setattr("autosegloss.proxy.train.Training.advance", lambda *_: pytest.fail("it trains"))
    before = files(done)
    options = ["--baseline", "asl/voc/miou", "--metrics", "IoU of border, iou(1), jaccard, ece"]
    assert main(["compare", str(done), *options, "--out", str(tmp_path / "new/again")]) == 0
    text = capsys.readouterr().out
    assert "| loss | IoU of border | IoU of interior | jaccard | ece |" in text
    assert "Difference to `asl/voc/miou` on the same seeds" in text
    assert "over the tests of this table (4)." in text
    assert run(config, done, "--resume", *options) == 0
    again = {name: (tmp_path / "new/again" / name).read_bytes() for name in ("table.json", "table.md", "table.tex")}
    assert again.items() <= files(done).items()
    assert main(["compare", str(done)]) == 0
    assert files(done) == before
    one, other = (json.loads(text)["rows"] for text in (again["table.json"], before["table.json"]))
    assert [row["runs"] for row in one] == [row["runs"] for row in other]
    assert [row["scores"] for row in one] == [row["scores"] for row in other]
    assert one[1]["differences"] == {}
    for name, gain in one[0]["differences"].items():
        assert gain["mean"] == -other[1]["differences"][name]["mean"]


@pytest.mark.parametrize("kept", [0, 1, 3, 4])
def test_a_resumed_comparison_gives_the_same_bytes(done: Path, config: Path, tmp_path: Path, kept: int) -> None:
    lines = (done / "trials.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 4
    torn = b'{"stage": "com' if kept < 4 else b""
    (tmp_path / "trials.jsonl").write_bytes(b"".join(lines[: 1 + kept]) + torn)
    (tmp_path / "plan.json").write_bytes((done / "plan.json").read_bytes())
    assert run(config, tmp_path, "--resume") == 0
    assert files(tmp_path) == files(done)
    assert (tmp_path / "trials.jsonl").read_bytes().startswith(b"".join(lines[: 1 + kept]))


def test_a_trial_that_is_written_twice_is_refused(done: Path, config: Path, tmp_path: Path, capsys: Any) -> None:
    lines = (done / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_bytes(b"".join([*lines[:3], lines[1], *lines[3:]]))
    (tmp_path / "plan.json").write_bytes((done / "plan.json").read_bytes())
    assert run(config, tmp_path, "--resume") == 2
    assert f"{tmp_path}/trials.jsonl:4: this trial is in the file twice. Restore" in capsys.readouterr().err


def test_a_failed_run_is_counted_and_left_out(done: Path, config: Path, tmp_path: Path, capsys: Any) -> None:
    lines = trials_of(done / "trials.jsonl")
    lines[1] |= {"reward": None, "metrics": {}, "validation": {}, "error": "TrainingDiverged: the loss is nan"}
    rewrite(tmp_path / "trials.jsonl", lines, done / "trials.jsonl")
    (tmp_path / "plan.json").write_bytes((done / "plan.json").read_bytes())
    assert run(config, tmp_path, "--resume") == 0
    text = capsys.readouterr().out
    assert "`asl/voc/miou`: 1 of 2 runs failed. TrainingDiverged: the loss is nan" in text
    whole, row = (json.loads((folder / "table.json").read_text())["rows"][1] for folder in (done, tmp_path))
    assert row["runs"] == [None, whole["runs"][1]]
    assert row["scores"]["miou"] == {"mean": whole["runs"][1]["miou"], "sd": 0.0, "low": None, "high": None}
    latex = (tmp_path / "table.tex").read_text()
    assert r"\texttt{asl/voc/miou}: 1 of 2 runs failed. TrainingDiverged: the loss is nan" in latex
    assert row["differences"]["miou"] is None  # one pair has no interval
    failed = {"reward": None, "metrics": {}, "validation": {}, "error": "InputError: logits with NaN"}
    rewrite(tmp_path / "trials.jsonl", [line | failed for line in lines], done / "trials.jsonl")
    assert run(config, tmp_path, "--resume") == 1
    assert "First: `cross_entropy`: InputError: logits with NaN. Failed runs are not" in capsys.readouterr().err
    assert (tmp_path / "table.md").read_text().count("2 of 2 runs failed. InputError: logits with NaN") == 2


def test_the_markdown_table(done: Path) -> None:
    table = json.loads((done / "table.json").read_text())
    text = (done / "table.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0] == "| loss | miou | miou_i | miou_c | ece |"  # the target is miou: one column
    score, gain = table["rows"][1]["scores"]["ece"], table["rows"][1]["differences"]["ece"]
    assert rows[3].startswith("| `asl/voc/miou` | ")
    assert rows[3].endswith(f"| {100 * score['mean']:.2f} [{100 * score['low']:.2f}, {100 * score['high']:.2f}] |")
    shown = f"{100 * gain['mean']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]"
    marked = {None: shown, "better": f"**{shown}**", "worse": f"{shown} ↓"}[gain["verdict"]]
    assert rows[-1].endswith(f"| {marked} |")
    assert f"Command: `{table['command']}`" in text


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    ours, first = rng.normal(0.3, 1, 6), rng.normal(0, 1, 6)
    found = Difference.of(ours.tolist(), first.tolist())
    assert found is not None
    test = stats.ttest_rel(ours, first)
    low, high = test.confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx(((ours - first).mean(), low, high))
    assert found.p == pytest.approx(test.pvalue)
    assert Difference.of([1.0], [2.0]) is None


def test_differences_without_spread_are_certain_or_none_at_all() -> None:
    assert Difference.of([0.5, 0.25], [0.25, 0.0]) == Difference(0.25, 0.25, 0.25, 0.0)
    assert Difference.of([0.5, 0.25], [0.5, 0.25]) == Difference(0.0, 0.0, 0.0, 1.0)


def test_the_interval_of_a_score_is_that_of_a_t_test() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 5)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = Estimate.of(values.tolist())
    assert asdict(found) == pytest.approx({"mean": values.mean(), "sd": values.std(ddof=1), "low": low, "high": high})
    assert Estimate.of([0.5]) == Estimate(0.5, 0.0, None, None)


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.0125, 0.05, 1.0]), max_size=7))
def test_holm_is_the_closed_test(values: list[float]) -> None:
    assert holm(values) == oracles.holm(values)


def row(loss: str, setting: str = "", **differences: Difference | None) -> Row:
    score = Estimate(0.5, 0.1, 0.4, 0.6)
    return Row(setting, loss, (), (), dict.fromkeys(["a", "b", "ece"], score), dict(differences))


def test_a_verdict_is_on_the_family_of_the_shown_differences_of_a_setting() -> None:
    better, worse = Difference(0.2, 0.1, 0.3, 0.01), Difference(-0.2, -0.3, -0.1, 0.01)
    weak, none = Difference(0.2, 0.1, 0.3, 0.02), Difference(0.2, -0.1, 0.5, 0.001)
    rows = [row("first"), row("x", a=better, b=weak, ece=better), row("y", a=worse, b=None, ece=worse)]

    def verdicts(rows: list[Row], columns: list[str]) -> list[Any]:
        return [[each and each.verdict for each in row.differences.values()] for row in judged(rows, columns)]

    # Five tests: 0.01 * 5 is 5%, and 0.02, the largest, is tested alone.
    assert verdicts(rows, ["a", "b", "ece"]) == [[], ["better", "better", "worse"], ["worse", None, "better"]]
    more = [*rows, row("z", a=none, b=weak, ece=None)]
    # Of seven the interval rules the smallest out, and 0.01 * 6 is above 5%.
    assert verdicts(more, ["a", "b", "ece"]) == [[], [None] * 3, [None] * 3, [None] * 3]
    assert verdicts(more, ["a"]) == [[], ["better", None, None], ["worse", None, None], [None, None, None]]
    assert [replace(each, verdict=None) for each in judged(rows, ["a"])[1].differences.values() if each] == [
        better,
        weak,
        better,
    ]


NASTY = r"50% of a_b & {c} #1 $x$ ^ ~ \ < > |"


@pytest.fixture
def table() -> Table:
    """A made-up table of two settings, with names that LaTeX would not take."""
    better, worse = Difference(0.2, 0.1, 0.3, 0.001), Difference(-0.2, -0.3, -0.1, 0.001)
    rows = []
    for setting in ("one", NASTY):
        rows += judged(
            [row("first_loss", setting), row("0.5*a + 0.5*b", setting, a=better, b=None, ece=worse)], ["a", "ece"]
        )
    rows[-1] = judged([row("first_loss", NASTY), row("x", NASTY, a=worse, b=better, ece=better)], ["a", "b", "ece"])[1]
    plan = {"losses": ["first_loss"], "seeds": [1, 2], "metrics": ["target", "a", "b", "ece"]}
    plan["settings"] = ["one", NASTY]
    rows = [replace(each, scores=each.scores | {"target": Estimate(0.25, 0.0, None, None)}) for each in rows]
    return Table(plan, "autosegloss compare\n'x'", "bf1(a_b=1)", {"one": "", NASTY: "A note: 5%."}, tuple(rows), {})


def test_the_markdown_of_settings_has_a_heading_for_each_and_marks_verdicts(table: Table) -> None:
    text = table.to_markdown()
    one, other = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert text.startswith("## one\n")
    assert other.splitlines()[0] == NASTY
    assert "| `0.5*a + 0.5*b` | - | **+20.00 [+10.00, +30.00]** | - | **-20.00 [-30.00, -10.00]** |" in one
    assert "| `x` | - | -20.00 [-30.00, -10.00] ↓ | **+20.00 [+10.00, +30.00]** | +20.00 [+10.00, +30.00] ↓ |" in other
    assert "Holm's correction over the tests of this table (2)." in one
    assert "Holm's correction over the tests of this table (3)." in other
    assert "| `x` | 25.00 | 50.00 [40.00, 60.00] | 50.00 [40.00, 60.00] | 50.00 [40.00, 60.00] |" in other
    assert "A note" not in one
    assert "\n\nA note: 5%.\n\n" in other


def test_the_latex_is_well_formed_and_has_the_numbers_of_the_markdown(table: Table) -> None:
    text = table.to_latex()
    plain = re.sub(r"^%.*\n", "", text, flags=re.MULTILINE)
    assert len(text.splitlines()) - len(plain.splitlines()) == 3
    unescaped = re.sub(r"\\[\\{}$&#%_]", "", plain)
    assert unescaped.count("{") == unescaped.count("}")
    assert re.sub(r"\$-\$|\$\\downarrow\$", "", unescaped).count("$") == 0
    assert not set("#%_^~<>|") & set(unescaped)
    assert set(re.findall(r"\\[a-z]+", unescaped, flags=re.IGNORECASE)) == {
        *(rf"\{name}" for name in ("begin", "end", "toprule", "midrule", "bottomrule", "multicolumn", "texttt")),
        *(rf"\{name}" for name in ("textbf", "downarrow", "footnotesize", "par", "textbackslash", "textasciicircum")),
        *(rf"\{name}" for name in ("textasciitilde", "textless", "textgreater", "textbar")),
    }
    bodies = re.findall(r"\\begin{tabular}{(l+r+)}\n\\toprule\n(.*?)\n\\bottomrule\n\\end{tabular}", plain, re.DOTALL)
    assert len(bodies) == 2
    for columns, body in bodies:
        rows = [line for line in body.splitlines() if line != r"\midrule"]
        assert all(line.endswith(r" \\") for line in rows)
        for line in rows:
            across = re.match(r"\\multicolumn{(\d)}{l}", line)
            assert (int(across[1]) if across else 1) + len(re.findall(r"(?<!\\)&", line)) == len(columns) == 5
        assert rows[1] == r"loss & bf1(a\_b=1) & a & b & ece \\"
    assert r"\textbf{+20.00 [+10.00, +30.00]} & +20.00 [+10.00, +30.00] $\downarrow$ \\" in bodies[1][1]
    assert r"50\% of a\_b \& \{c\} \#1 \$x\$ \textasciicircum{} \textasciitilde{} \textbackslash{}" in bodies[1][1]

    def numbers(text: str) -> list[str]:
        return re.findall(r"[-+]?\d+\.\d\d", text)

    assert numbers(plain.replace("$-$", "-")) == numbers(table.to_markdown())


def test_a_comparison_takes_outcomes_in_any_order_and_each_once(tmp_path: Path) -> None:
    outcome = Outcome(0.5, {}, {"miou": 0.5}, None, 0.1)
    with Journal(tmp_path / "trials.jsonl") as journal:
        comparison = Comparison({"": {"a": {}, "b": {}}}, [7, 8], journal)
        jobs: list[Job] = []
        while (job := comparison.next_job()) is not None:
            jobs.append(job)
        assert [(job.step, job.index, job.seed) for job in jobs] == [(0, 0, 7), (0, 1, 7), (1, 0, 8), (1, 1, 8)]
        for number, job in enumerate(reversed(jobs)):
            assert not comparison.finished
            comparison.record(job, replace(outcome, reward=math.nan) if number == 0 else outcome)
        assert comparison.finished
        assert comparison.next_job() is None
        assert [run.reward for run in comparison.outcomes("", "b")] == [0.5, None]
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
    data = start["data"]
    assert [each["images"] for each in data] == [{"train": 319, "heldout": 16, "validation": 16}]
    assert start == {
        "event": "start", "config": "tiny", "folder": str(folder), "data": data, "done": 0, "total": 4,
    }  # fmt: skip
    lines = trials_of(folder / "trials.jsonl")
    for number, (trial, line) in enumerate(zip(trials, lines, strict=True), start=1):
        shared = {key: line[key] for key in ("seed", "reward", "error", "seconds")}
        counts = {"done": number, "total": 4}
        about = {"stage": "compare", "setting": "", "loss": LOSSES[line["index"]], "step": 1}
        assert trial == {"event": "trial", **about, **shared, **counts}
    rows = json.loads((done / "table.json").read_text())["rows"]
    scores = {row["loss"]: row["scores"] for row in rows}
    steps = {"": dict.fromkeys(LOSSES, 1)}
    assert end == {"event": "end", "steps": steps, "scores": {"": scores}, "table": str(folder / "table.json")}
    assert run(config, folder, "--json-logs", "--resume") == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert again == [start | {"done": 4}, end]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "losses must name at least one loss; give one with --loss NAME."),
        (
            ["--loss", "cross_entropy", "--loss", "cross_entropy"],
            "got cross_entropy more than once.",
        ),
        (["--loss", "cross_entropy", "--loss", "asl/voc/mio"], "asl/voc/mio"),
        (["--loss", "cross_entropy", "--baseline", "jml"], "baseline must be one of the losses compared, got `jml`"),
        (["--loss", "cross_entropy", "--metrics", "bf1(radius=9)"], "`bf1(radius=9)` was not measured"),
        (["--loss", "cross_entropy", "--seeds", "1"], "seeds must be an integer of at least 2, got 1."),
        (["--loss", "cross_entropy", "--set", "proxy.labels.name=averaged"], "has no annotators"),
        (["--loss", "cross_entropy", "--set", "proxy.labels.amonut=1"], "unknown option `amonut`"),
        (
            ["--loss", "cross_entropy", "--set", "compare.settings={a: {}, b: {proxy: {data: {amonut: 1}}}}"],
            "DataError: in the setting `b`: data set `nuclei`: unknown option `amonut`",
        ),
        (
            ["--loss", "cross_entropy", "--set", "compare.settings.b.proxy.network.name=nope"],
            "InputError: in the setting `b`: unknown network `nope`",
        ),
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
    assert "already holds a comparison with 4 finished trials" in capsys.readouterr().err
    assert run(config, done, "--resume", losses=["cross_entropy", "asl/voc/bf1"]) == 2
    error = capsys.readouterr().err
    assert f"{done} holds another comparison:\n  definitions.asl/voc/bf1.classes: not set there" in error
    assert run(config, done, "--resume", losses=LOSSES[:1]) == 2
    assert 'losses: ["cross_entropy", "asl/voc/miou"] there, ["cross_entropy"] now' in capsys.readouterr().err
    assert run(config, done, "--resume", losses=LOSSES[::-1]) == 2
    assert 'losses: ["cross_entropy", "asl/voc/miou"] there, ["asl/voc/miou"' in capsys.readouterr().err
    assert run(config, done, "--resume", "--set", "proxy.train.iterations=4") == 2
    assert "configurations.proxy.train.iterations: 3 there, 4 now" in capsys.readouterr().err
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
    assert ".slots.and[0] of pred & target: [[0.0005" in capsys.readouterr().err


def test_results_without_their_journal_and_other_folders_are_kept(done: Path, config: Path, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("mine")
    with pytest.raises(RefusedError, match=r"already holds table\.json, but no comparison"):
        compare(config, LOSSES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
    search = tmp_path / "search"
    search.mkdir()
    line = Job("search", 0, 0, {}, 1, (0.5,)), Outcome(0.5, {}, {}, None, 0.1)
    with Journal(search / "trials.jsonl") as journal:
        journal.append(*line)
    with pytest.raises(RefusedError, match=r"no plan\.json of a comparison"):
        compare(config, LOSSES, search, resume=True)
    (search / "plan.json").write_bytes((done / "plan.json").read_bytes())
    with pytest.raises(RefusedError, match=r"trials\.jsonl:2: this trial does not belong to this comparison"):
        compare(config, LOSSES, search, seeds=2, resume=True)
