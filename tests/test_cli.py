"""The command line as a user meets it: real processes, their exit status and what they print."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from autosegloss import METRICS, MixedLoss, SurrogateLoss, load_loss, metric
from autosegloss.cli import main
from autosegloss.loss import named_loss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.loss.python import source
from autosegloss.search.journal import Journal
from tests.faulty import TINY
from tests.journals import trials_of

SMALL = TINY | {"metric": "miou", "search": {"steps": 2, "samples": 2}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.slow
def test_a_search_in_a_process_of_its_own_writes_a_loss_and_shows_it(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "autosegloss.cli", "search", str(config), "--runner", "serial", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for name in ("macc", "gacc", "bf1", "IoU of "):
        assert name in done.stdout
    assert f"all metrics: autosegloss report {out}" in done.stdout
    assert "target: miou" in done.stdout
    assert {path.name for path in out.iterdir()} == {"loss.json", "trials.jsonl", "config.yaml"}
    loss = load_loss(out / "loss.json")
    assert set(loss.provenance["validation"]) == {"cross-entropy", "start", "found"}
    lines = trials_of(out / "trials.jsonl")
    # Samples and the start in each step, the centre from the second on; candidate and two baselines on each seed.
    assert len(lines) == 2 * (2 + 1) + 1 + 3 * 2
    assert all(set(METRICS) <= line["metrics"].keys() for line in lines)


@pytest.mark.slow
def test_status_of_a_search_finished_stopped_or_running(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("search", str(config), "--runner", "serial", "--out", str(out), capsys=capsys)[0] == 0
    code, text, _ = run("status", str(out), capsys=capsys)
    assert code == 0
    assert text.startswith("miou: finished\n2 of 2 steps; 13 of 13 trials done, 0 failed\nstep 0: mean reward ")
    assert re.search(r"\nbest so far \d+\.\d \(", text)
    assert "\nfound: " in text

    # Stopped within the second step, in the middle of a line; nothing is mended here.
    journal = out / "trials.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    torn = b"".join(lines[:5]) + lines[5][:20]
    journal.write_bytes(torn)
    code, text, _ = run("status", str(out), capsys=capsys)
    assert code == 0
    assert text.startswith(
        f"miou: stopped; continue with: autosegloss search {out}/config.yaml --out {out} --resume\n"
        "1 of 2 steps; 4 of 13 trials"
    )
    assert journal.read_bytes() == torn

    with Journal(journal, resume=True):
        assert run("status", str(out), capsys=capsys)[1].startswith("miou: running\n")
    code, _, error = run("status", str(tmp_path), capsys=capsys)
    assert code == 2
    assert error == f"InputError: {tmp_path}: not the folder of a search: trials.jsonl or config.yaml is missing.\n"


@pytest.mark.parametrize(
    ("option", "advice"),
    [("--resume", " Finished trials are in the journal; continue with --resume."), ("--dry-run", "")],
)
def test_who_interrupts_a_search_is_told_how_to_continue(
    option: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "interrupting.py"
    module.write_text("def build(in_channels, num_classes):\n    raise KeyboardInterrupt\n")
    path = tmp_path / "interrupted.yaml"
    path.write_text("metric: miou\nproxy: {data: {name: shapes}, network: {name: 'interrupting:build'}}\n")
    monkeypatch.chdir(tmp_path)
    assert run("search", str(path), "--runner", "serial", option, capsys=capsys)[::2] == (1, f"Interrupted.{advice}\n")


def test_export_and_show(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, exported, picture = tmp_path / "out", tmp_path / "mine.json", tmp_path / "curves.png"
    assert run("search", str(config), "--runner", "serial", "--out", str(out), capsys=capsys)[0] == 0
    status, text, _ = run("export", str(out), "--out", str(exported), capsys=capsys)
    assert (status, text) == (0, f"wrote {exported}\n")
    assert exported.read_bytes() == (out / "loss.json").read_bytes()

    status, text, _ = run("show", str(exported), "--plot", str(picture), capsys=capsys)
    assert status == 0
    assert "1 - class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)" in text
    assert "and[0] of pred & target" in text
    assert "or[0] of pred | target" in text
    assert "control points: (" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_show_draws_a_published_curve(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run("show", "asl/voc/gacc", capsys=capsys)
    assert status == 0
    assert "control points: (0.02145, 0.7391)  (0.4116, 0.7987)  (0.9199, 0.9504)" in text
    rows = [line for line in text.splitlines() if " |" in line]
    assert len(rows) == 13
    assert rows[0].rstrip().endswith("*")  # the curve ends at (1, 1)
    assert rows[-1].split("|")[1].startswith("*")  # and begins at (0, 0)


def test_show_says_what_is_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "mixed.json", tmp_path / "curves.png"
    MixedLoss(SurrogateLoss("gacc"), 0.3).save(path)
    status, text, _ = run("show", str(path), "--plot", str(picture), capsys=capsys)
    assert status == 0
    assert text.startswith(
        "loss      0.3 * cross-entropy + 0.7 * (1 - class_sum(total(pred & target)) / class_sum(total(target)))\n"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_metrics_lists_every_formula(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run("metrics", capsys=capsys)
    assert status == 0
    for build in METRICS.values():
        assert f"    {build()}\n" in text
    titles = [line for line in text.splitlines() if re.fullmatch(r"\w+\(.*\)", line)]
    assert titles.pop() == "iou(classes)"
    assert [metric(title) for title in titles] == [build() for build in METRICS.values()]  # as they are printed


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run("schema", capsys=capsys)
    assert status == 0
    assert json.loads(text)["properties"].keys() >= {"metric", "relaxation", "proxy", "search"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("serch: {steps: 2}", "{config}:3: serch: unknown key (did you mean `search`?)"),
        ("guard: {miou: 2}", "{config}:3: guard.miou:"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    config.write_text(f"# mine\n\n{change}\n{config.read_text()}")
    out = tmp_path / "out"
    status, _, error = run("search", str(config), "--out", str(out), capsys=capsys)
    assert status == 2
    assert message.format(config=config) in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("metric=mIoU", "--set metric=mIoU: metric: unknown metric `mIoU` (did you mean `miou`?)"),
        ("metric=total(pred) & target", "Move the sum outside: total(pred & target)."),
        ("metric=class_mean(total(pred & truth))", "unknown name `truth`; the leaves are pred and target."),
        ("search.steps=0", "--set search.steps=0: search.steps:"),
        ("proxy.network.name=unet_smal", "unet_small"),
        ("proxy.data.name=shape", "shapes"),
    ],
)
def test_wrong_values_exit_with_2_and_leave_no_folder(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    out = tmp_path / "out"
    status, _, error = run("search", str(config), "--set", override, "--out", str(out), capsys=capsys)
    assert status == 2
    assert message in error
    assert not out.exists()


def test_nothing_to_search_is_said_at_once(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relaxation = "relaxation={curve: linear, pieces: 1, logic: product, scale: 1, cross_entropy: 0}"
    arguments = ("--set", relaxation, "--out", str(tmp_path / "out"))
    status, _, error = run("search", str(config), *arguments, capsys=capsys)
    assert status == 2
    assert "there is nothing to search: 2 linear curve(s) of 1 piece(s) have no coordinates" in error


def test_a_folder_that_holds_a_search_is_refused_and_kept(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ("search", str(config), "--runner", "serial", "--out", str(out))
    assert run(*arguments, capsys=capsys)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    status, _, error = run(*arguments, capsys=capsys)
    assert status == 2
    assert "already holds a search" in error
    assert "--resume" in error
    status, _, error = run(*arguments, "--resume", "--set", "search.seed=1", capsys=capsys)
    assert status == 2
    assert "search.seed: 0 there, 1 now" in error
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    other = ("--set", "relaxation.logic=godel", "--set", "search.samples=3", "--set", "resources.workers=1")
    status, _, error = run(*arguments, "--resume", *other, capsys=capsys)
    assert error == (
        f"RefusedError: {out} holds a search with another configuration:\n"
        '  relaxation.logic: "product" there, "godel" now\n'
        "  search.samples: 2 there, 3 now\n"
        "Restore these values to continue it, or choose another folder.\n"
    )
    assert run(*arguments, "--resume", capsys=capsys)[0] == 0  # finished: nothing is run again
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_export_of_what_is_no_finished_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run("export", str(tmp_path), "--out", str(tmp_path / "loss.json"), capsys=capsys)
    assert status == 2
    assert "not the folder of a search: loss.json is missing" in error
    (tmp_path / "trials.jsonl").write_text("")
    status, _, error = run("export", str(tmp_path), "--out", str(tmp_path / "mine.json"), capsys=capsys)
    assert status == 2
    assert error == run("status", str(tmp_path), capsys=capsys)[2], "the two agree"


@pytest.mark.parametrize("name", ["asl/voc/miou", "lovasz", "0.25*cross_entropy + 0.75*jml"])
def test_export_of_a_loss_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, module = tmp_path / "mine.json", tmp_path / "my_loss.py"
    status, text, _ = run("export", name, "--out", str(json_file), "--python", str(module), capsys=capsys)
    assert (status, text) == (0, f"wrote {json_file}\nwrote {module}\n")
    assert module.read_text(encoding="utf-8") == source(named_loss(name).content())
    again = tmp_path / "again.py"
    assert run("export", str(json_file), "--python", str(again), capsys=capsys)[0] == 0
    assert again.read_bytes() == module.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("jml",), "export: give --out FILE for a loss file, --python FILE.py for a PyTorch module, or both."),
        (("jml", "--python", "loss.txt"), "--python must be the name of a module, which ends in .py, got loss.txt."),
        (("jmi", "--python", "loss.py"), "`jmi` is not a loss (did you mean `jml`?)"),
        (("weighted_cross_entropy", "--python", "loss.py"), "a weighted cross-entropy needs `counts`"),
    ],
)
def test_what_can_not_be_exported(
    arguments: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, error = run("export", *arguments, capsys=capsys)
    assert status == 2
    assert error.startswith(f"InputError: {expected}")
    assert not list(tmp_path.iterdir())


def test_a_damaged_loss_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loss.json"
    load_loss("asl/voc/miou").save(path)
    path.write_bytes(path.read_bytes()[:-40])
    status, _, error = run("show", str(path), capsys=capsys)
    assert status == 2
    assert error.startswith(f"LossFileError: {path}: not a JSON file that can be read")
    assert error.count("\n") == 1


def test_a_picture_of_an_unknown_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = run("show", "asl/voc/miou", "--plot", str(tmp_path / "curves.doc"), capsys=capsys)
    assert status == 2
    assert "allowed: .png, .svg, .pdf" in error


@pytest.mark.parametrize("arguments", [[], ["serch"], ["search"], ["search", "x.yaml", "--runner", "slurm"]])
def test_a_wrong_command_line_is_one_message(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, text, error = run(*arguments, capsys=capsys)
    assert (status, text) == (2, "")
    assert error.count("\n") == 1
    assert "--help" in error


def test_a_loss_without_curves_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "loss.json")
    CrossEntropy([1.0, 2.0]).save(path)
    assert run("show", path, capsys=capsys) == (
        0,
        "loss      cross_entropy(weight=[1.0, 2.0])\n",
        "",
    )
    refused = run("show", path, "--plot", str(tmp_path / "curves.png"), capsys=capsys)
    assert refused == (2, "", f"InputError: {path} has no curves to plot; omit --plot.\n"), "before anything is shown"


def test_tables_of_a_provenance_are_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = load_loss("jml")
    loss.provenance = {
        "validation": {"found": {"miou": {"mean": 0.5}, "macc": 1}, "rival": {"target": 0.6, "miou": 0.6, "macc": 1}},
        "seeds": [1, 2],
        "options": {"a": 1},
    }
    loss.save(tmp_path / "loss.json")
    _, text, _ = run("show", str(tmp_path / "loss.json"), capsys=capsys)
    assert text.split("provenance\n")[1].splitlines() == [
        "  validation:",
        "    found:",
        '      miou: {"mean": 0.5}',
        "      macc: 1",
        "    rival: target 0.6  (and 2 more in the file)",
        "  seeds: [1, 2]",
        '  options: {"a": 1}',
    ]


@pytest.mark.slow
def test_texts_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loss = load_loss("jml")
    loss.provenance = {"note": "at 1:100:2, :bug:, [bold]café"}
    loss.save(tmp_path / "noted.json")
    code, text, _ = run("show", str(tmp_path / "noted.json"), capsys=capsys)
    assert code == 0
    assert "at 1:100:2, :bug:, [bold]café" in text
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "autosegloss.cli", "show", str(tmp_path / "noted.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert r"caf\xe9" in done.stdout


@pytest.mark.slow
def test_who_does_not_read_on_ends_it_quietly(tmp_path: Path) -> None:
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "autosegloss.cli", "evaluate", "--pred", str(tmp_path), "--target", str(tmp_path)]
    command += ["--num-classes", "2", "--metric", "miou", "--json", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # long before anything is written
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_damaged_journal_is_named_where_it_is(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run("search", str(config), "--runner", "serial", "--out", str(out), capsys=capsys)[0] == 0
    journal = out / "trials.jsonl"
    journal.write_text("[]\n" + journal.read_text())
    code, _, error = run("status", str(out), capsys=capsys)
    assert code == 2
    assert error.startswith(f"RefusedError: {journal}:1: this line is damaged")
