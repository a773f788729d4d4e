"""The folder of a run: what is refused before data is read, what is never written over, and which state it is in."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

import autosegloss
from autosegloss.cli import main
from autosegloss.errors import InputError, RefusedError
from autosegloss.search.api import found_loss, status
from autosegloss.search.compare import compare
from autosegloss.search.folder import check_folder, refuse_results, resume_command
from autosegloss.search.head import processor, versions
from autosegloss.search.journal import Journal
from autosegloss.search.retrain import retrain
from tests.faulty import TINY
from tests.journals import records_of, rewrite, sealed, trials_of

UNREAD = "tests.search.test_folder:unread"
CONFIG: dict[str, Any] = TINY | {"proxy": TINY["proxy"] | {"data": {"name": UNREAD, "options": {}}}}
RUNS: dict[str, Callable[..., object]] = {
    "search": lambda config, out, **more: autosegloss.search(config, runner="serial", out=out, **more),
    "comparison": lambda config, out, **more: compare(config, ["jml", "lovasz"], out, seeds=2, runner="serial", **more),
    "retraining": lambda config, out, **more: retrain(config, ["jml"], out, **more),
}


def unread() -> Any:
    raise AssertionError("the data is read")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real search, which was told to resume where nothing was; beside it what it said."""
    out = tmp_path_factory.mktemp("finished") / "out"
    with redirect_stderr(io.StringIO()) as told:
        autosegloss.search(TINY | {"search": {"steps": 1, "samples": 2}}, runner="serial", out=out, resume=True)
    (out.parent / "told").write_text(told.getvalue())
    return out


# Before any data is read.


@pytest.mark.parametrize("what", RUNS)
def test_a_folder_that_cannot_be_used_is_refused_before_the_data_is_read(
    what: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RUNS[what]

    def refused(message: str, folder: Path = tmp_path, **more: Any) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(RefusedError) as caught:
            run(CONFIG, folder, **more)
        assert str(caught.value).startswith(message.format(folder))
        assert len(str(caught.value)) < 1000
        assert sorted(tmp_path.rglob("*")) == before

    journal = tmp_path / "trials.jsonl"
    shutil.copy(finished / "trials.jsonl", journal)
    number = len(trials_of(journal))
    refused(f"{{}} already holds a {what} with {number} finished trials. Continue it with --resume, or choose")
    journal.write_bytes(journal.read_bytes().replace(b"search", b"Search", 1))
    refused("{}/trials.jsonl:2: this line is damaged", resume=True)
    journal.write_bytes(b"")
    with Journal(journal):
        refused(f"{{}}: another {what} is running in this folder. Wait for it, or choose another folder.")
    journal.unlink()
    os.mkfifo(journal)
    refused("{}/trials.jsonl: not a regular file.")
    journal.unlink()
    journal.mkdir()
    refused("{}/trials.jsonl: not a regular file.")
    journal.rmdir()
    own = "loss.json" if what == "search" else "table.json"
    (tmp_path / own).write_text("mine")
    refused(f"{{}} already holds {own}, but no {what}. Choose another folder.")
    refused(f"{{}}: can't be written: {tmp_path / own} is not a folder.", tmp_path / own / "out")
    (tmp_path / own).unlink()
    long = tmp_path / "absent" / ("x" * 300)
    refused(f"{str(long)[:60]}", long)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write to read-only folders
    refused(f"{{}}: can't be written: {tmp_path} is read-only. Choose another folder.", tmp_path / "new")


def test_what_a_long_name_says(tmp_path: Path) -> None:
    for name in ("ä" * 130, "a\0b"):
        with pytest.raises(RefusedError, match=r"can't be written: a name has more than 255 bytes, or one of 0"):
            check_folder(tmp_path / name, (), "search", resume=False)


# Resuming.


def test_nothing_to_resume_is_said_and_the_run_begins(finished: Path) -> None:
    told = (finished.parent / "told").read_text()
    assert told == f"{finished} holds no trials to resume: the search starts from its beginning.\n"
    assert (finished / "loss.json").exists()


def small_folder(root: Path) -> dict[str, Any]:
    """A configuration on a data set of the user's own, in a folder of this test."""
    return TINY | {
        "search": {"steps": 1, "samples": 2},
        "proxy": TINY["proxy"] | {"data": {"name": "tests.search.test_folder:drawn", "mark": str(root / "mark")}},
    }


def drawn(mark: str) -> Any:
    """The shapes, with another label in a corner of the first training image where a file says so."""
    dataset = autosegloss.proxy.data.load_dataset("shapes", train=8, heldout=4, validation=4, size=16)
    labels = dataset.train.labels.copy()
    if Path(mark).exists():
        labels[0, :2, :2] = 1 - labels[0, :2, :2].clip(0, 1)
    return dataset, labels


def test_a_search_that_is_continued_elsewhere_says_so_in_its_result(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its journal says was run with another torch; and a finished search is finished wherever it is resumed."""
    out, config = tmp_path / "out", tmp_path / "out" / "config.yaml"
    shutil.copytree(finished, out)
    journal = out / "trials.jsonl"
    head, *trials = records_of(journal)
    head["versions"]["torch"] = "2.12.0"
    journal.write_bytes(b"".join(map(sealed, [head, *trials])))
    before = journal.read_bytes()
    arguments = ["search", str(config), "--runner", "serial", "--out", str(out), "--resume"]
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    assert journal.read_bytes() == before
    assert json.loads((out / "loss.json").read_text())["provenance"]["versions"]["torch"] == "2.12.0"

    journal.write_bytes(b"".join(map(sealed, [head, *trials[:-2]])))
    assert main(arguments) == 0
    assert f"Warning: {out}: this search is continued in another environment: torch was 2.12.0 and is" in (
        capsys.readouterr().err
    )
    provenance = json.loads((out / "loss.json").read_text())["provenance"]
    assert provenance["versions"] == versions() | {"torch": f"2.12.0 and {versions()['torch']}"}
    assert provenance["processor"] == processor()
    assert provenance["data"] == head["data"]
    assert main(["status", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"\nrun in several environments: torch 2.12.0 and {versions()['torch']}\n" in told


def test_a_search_on_other_data_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    head, *trials = records_of(out / "trials.jsonl")
    assert list(head["data"]) == ["train", "heldout", "validation", "classes"]
    head["data"]["heldout"] = "0" * 64
    (out / "trials.jsonl").write_bytes(b"".join(map(sealed, [head, *trials])))
    assert main(["search", str(out / "config.yaml"), "--runner", "serial", "--out", str(out), "--resume"]) == 2
    assert capsys.readouterr().err.startswith(
        f"RefusedError: {out}: the data has changed since this search began, in: heldout. Results on different data"
    )


def test_drafts_of_killed_runs_are_swept_by_the_next(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / ".loss.json.draft").write_text("{")
    (out / ".config.yaml.lock").write_text("")
    (out / ".loss.json.k3x9q2ab").mkdir()
    (out / ".loss.json.k3x9q2ab" / "draft").write_text("{")
    (out / ".mine").write_text("kept")
    assert main(["search", str(out / "config.yaml"), "--runner", "serial", "--out", str(out), "--resume"]) == 0
    assert sorted(os.listdir(out)) == [".mine", "config.yaml", "loss.json", "trials.jsonl"]


# The state of a folder.


def cut_short(out: Path) -> None:
    rewrite(out / "trials.jsonl", trials_of(out / "trials.jsonl")[:-1])


def other_loss(out: Path) -> None:
    content = json.loads((out / "loss.json").read_text())
    next(iter(content["slots"].values()))[0][0] /= 2
    (out / "loss.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "state", "message"),
    [
        (lambda out: None, "finished", ""),
        (
            cut_short,
            "stopped",
            "the search is not finished. Finish it with: autosegloss search {out}/config.yaml --out ",
        ),
        (lambda out: (out / "loss.json").unlink(), "stopped", "the search is not finished. Finish it with"),
        (other_loss, "damaged", "this is not the loss that the journal beside it leads to. Restore it, or write it ag"),
        (lambda out: (out / "loss.json").write_text("["), "damaged", "not a JSON file that can be read"),
    ],
)
def test_status_export_and_report_agree(
    finished: Path, tmp_path: Path, change: Callable[[Path], None], state: str, message: str, capsys: Any
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    change(out)
    assert status(out).state == state
    assert main(["status", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"biou(radius=2): {state}")
    assert main(["export", str(out), "--out", str(tmp_path / "mine.json")]) == (0 if state == "finished" else 2)
    error = capsys.readouterr().err
    assert message.format(out=out) in error
    if state == "finished":
        return
    assert main(["report", str(out), "--no-images"]) == 2
    if state == "damaged":
        assert message in capsys.readouterr().err
    # Resumed by the command of the message, it is finished, with the bytes of before.
    assert main([*resume_command("search", out).split()[1:], "--runner", "serial"]) == 0
    assert (out / "loss.json").read_bytes() == (finished / "loss.json").read_bytes()
    assert status(out).state == "finished"


def test_a_folder_with_a_loss_alone_is_exported(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "loss.json", tmp_path)
    assert found_loss(tmp_path).content() == autosegloss.load_loss(finished / "loss.json").content()
    with Journal(tmp_path / "trials.jsonl"):
        pass
    with pytest.raises(InputError, match="not the folder of a search"):
        found_loss(tmp_path)


# What is never written over.


@pytest.mark.parametrize(
    "name", ["loss.json", "trials.jsonl", "config.yaml", "plan.json", "table.json", "table.md", "table.tex", "0-1.pt"]
)
def test_the_files_of_a_run_are_not_written_over(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (tmp_path / "folder").symlink_to(out)
    (tmp_path / "link").symlink_to(out / name)
    (out / name).touch()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for target in (out / name, tmp_path / "folder" / name, tmp_path / "link"):
        for arguments in (["export", "jml", "--out"], ["report", str(out), "--no-images", "--out"]):
            assert main([*arguments, str(target)]) == 2
            assert capsys.readouterr().err == (
                f"InputError: {target}: this file belongs to the search, comparison or retraining in {out}. Choose "
                "another name.\n"
            )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (tmp_path / "link").is_symlink()


def test_other_files_may_be_written(tmp_path: Path) -> None:
    for name in ("mine.json", "loss.json", "report.html"):
        refuse_results(tmp_path / name)
