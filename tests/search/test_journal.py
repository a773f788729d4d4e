"""The journal: its head and checksums, damage of every kind, and what resuming elsewhere or on other data does."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import MESSAGE, RefusedError, SearchError
from autosegloss.search.head import Head, versions
from autosegloss.search.journal import Journal
from autosegloss.search.runners.serial import SerialRunner
from tests.examples import examples
from tests.journals import records_of, sealed, trials_of
from tests.toys import TOY, run_toy, toy_study

JOURNAL = "trials.jsonl"
HEAD = Head(
    {"autosegloss": "0.2.0", "torch": "2.13.0"},
    {"architecture": "x86_64", "instructions": "AVX2"},
    {"train": "aa", "heldout": "bb", "validation": "cc"},
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_toy(tmp_path_factory.mktemp("undisturbed"), SerialRunner())


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The journal of a study that stopped after 12 trials."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.raises(KeyboardInterrupt):
        run_toy(folder, SerialRunner(), replace(TOY, break_at={("search", 1, 3): "interrupt"}))
    return (folder / JOURNAL).read_bytes()


@pytest.fixture
def halfway(half: bytes, tmp_path: Path) -> Path:
    (tmp_path / JOURNAL).write_bytes(half)
    return tmp_path


def read(path: Path, **options: Any) -> list[Any]:
    """The trials of a journal, without a look at what they mean."""
    with Journal(path, resume=True, read_only=True, **options) as journal:
        return list(journal.trials)


def test_a_head_then_a_line_per_trial_each_with_its_checksum(halfway: Path) -> None:
    head, *trials = records_of(halfway / JOURNAL)  # which checks the checksums
    assert list(head) == ["format", "version", "versions", "processor", "data"]
    assert (head["format"], head["version"]) == ("autosegloss-journal", 3)
    assert head["versions"] == versions()
    assert list(head["versions"]) == ["autosegloss", "torch", "numpy", "python"]
    assert list(head["processor"]) == ["architecture", "vendor", "instructions"]
    keys = ["stage", "step", "index", "loss", "seed", "theta", "rate"]
    keys += ["reward", "metrics", "validation", "error", "seconds"]
    assert [list(trial) for trial in trials] == [keys] * 12


# Interrupted writes.


@pytest.mark.parametrize("keep", [0, 1, 30, -2, -1])
def test_a_torn_last_line_is_cut_off(halfway: Path, keep: int, undisturbed: str) -> None:
    path = halfway / JOURNAL
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[:keep])
    assert run_toy(halfway, SerialRunner(), resume=True) == undisturbed
    assert len(trials_of(path)) == 37


def test_a_last_line_of_rubbish_is_cut_off_with_a_word(halfway: Path, undisturbed: str, capsys: Any) -> None:
    path = halfway / JOURNAL
    with path.open("ab") as file:
        file.write(b"\0\0\0\0\n")
    assert run_toy(halfway, SerialRunner(), resume=True) == undisturbed
    assert capsys.readouterr().err == f"{path}:14: the last line is damaged and is removed; its trial runs again.\n"


@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_journal_torn_before_its_first_trial_is_new(
    half: bytes, tmp_path: Path, lines: int, keep: int, undisturbed: str
) -> None:
    every = half.splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(b"".join(every[:lines]) + every[lines][:keep])
    assert run_toy(tmp_path, SerialRunner()) == undisturbed


# Damage.


def test_no_flip_of_a_bit_goes_unnoticed(half: bytes, tmp_path: Path) -> None:
    """A bit of every third byte of the head, of a trial and of the last line, which may be an interrupted write."""
    path = tmp_path / JOURNAL
    lines = half.splitlines(keepends=True)[:3]
    text = b"".join(lines)
    path.write_bytes(text)
    whole = read(path)
    starts = [len(lines[0]), len(lines[0] + lines[1])]
    for place in range(0, len(text), 3):
        flipped = bytearray(text)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        line = 1 + sum(place >= start for start in starts)
        if line == 3 or place == starts[1] - 1:  # the last line, or the end of the line before it
            assert read(path) == whole[: line - 2], "what is left out runs again"
            continue
        with pytest.raises(RefusedError, match=rf"^{re.escape(str(path))}:{line}: this line is damaged"):
            read(path)


def damage(record: dict[str, Any], **changes: Any) -> bytes:
    return sealed(record | changes)


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (4, lambda record: b'{"stage": "search"\n', "this line is damaged"),
        (4, lambda record: b"[1, 2]\n", "this line is damaged"),
        (4, lambda record: b"\n", "this line is damaged"),
        (4, lambda record: b"[" * 100_000 + b"\n", "this line is damaged"),
        (4, lambda record: sealed(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000), "this line is damaged"),
        (4, lambda record: sealed(b'{"a": ' + b"9" * 400), "this line is damaged"),
        (4, lambda record: sealed(b'{"a": ' + b"9" * 5000), "this line is damaged"),
        (4, lambda record: sealed(b'{"a": 1, "a": 1'), "this line is damaged"),
        (4, lambda record: sealed(json.dumps(record).encode()[:-1] + b', "step": 0'), "this line is damaged"),
        (4, lambda record: sealed(b'{"a": "\xff"'), "this line is damaged"),
        (4, lambda record: sealed(json.dumps(record).encode("utf-16")), "this line is damaged"),
        *(
            (4, partial(damage, **{key: value}), "this line is damaged")
            for key, value in [
                ("extra", 1),
                ("theta", 5),
                ("theta", [None]),
                ("theta", [10**400]),
                ("reward", "x"),
                ("reward", [1]),
                ("reward", math.nan),
                ("reward", 10**400),
                ("reward", True),
                ("seconds", None),
                ("stage", []),
                ("rate", "x"),
                ("rate", None),
                ("rate", math.inf),
                ("index", [1]),
                ("seed", 10**400),
                ("step", -1),
                ("metrics", None),
                ("metrics", [1]),
                ("validation", {"miou": "x"}),
                ("error", 1),
            ]
        ),
        (4, partial(damage, theta=[0.1, 0.2, 0.3]), "trial 2 of search step 0 is not what this search would run here."),
        (4, partial(damage, seed=1), "trial 2 of search step 0 is not what this search would run here. Lines before"),
        (4, partial(damage, index=1), "trial 1 of search step 0 is not what this search would run here. Lines before"),
        (1, lambda record: b"trial,reward\n", "this line is damaged: it is not the head of a journal"),
        (1, lambda record: b"[" * 100_000 + b"\n", "this line is damaged: it is not the head of a journal"),
        (1, lambda record: b'{"stage": "' + b"[" * 100_000 + b"\n", "this line is damaged: it is not the head"),
        (1, lambda record: b"", "this line is damaged: it is not the head of a journal"),
        (1, partial(damage, version="1"), "this line is damaged: it is not the head of a journal"),
        (1, partial(damage, versions=[]), "this line is damaged: it is not the head of a journal"),
    ],
)
def test_a_damaged_line_is_named(
    halfway: Path, number: int, change: Callable[[dict[str, Any]], bytes], message: str
) -> None:
    path = halfway / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = change(records_of(path)[number - 1])
    path.write_bytes(b"".join(lines))
    start = time.monotonic()
    with pytest.raises(RefusedError) as caught:
        run_toy(halfway, SerialRunner(), resume=True)
    assert time.monotonic() - start < 60  # it is not stuck
    assert str(caught.value).startswith(f"{path}:{number}: {message}")
    assert path.read_bytes() == b"".join(lines)


def test_what_a_damaged_line_says() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, JOURNAL)
        head = sealed({"format": "autosegloss-journal", "version": 1, "versions": {}, "processor": {}, "data": {}})
        path.write_bytes(head + b"x\n" + b"y\n")
        with pytest.raises(RefusedError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path}:2: this line is damaged, and later lines build on it. Restore the file from a copy, or delete "
            "line 2 and all later lines to run their trials again."
        )
        path.write_bytes(b"x\n" + head)
        with pytest.raises(RefusedError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path}:1: this line is damaged: it is not the head of a journal. Restore the file from a copy, or choose "
            "another folder."
        )


@examples(25)
@given(data=st.data())
def test_what_is_done_to_a_journal_is_refused_or_harmless(half: bytes, undisturbed: str, data: st.DataObject) -> None:
    """Lines lost, repeated, moved, cut and written over; what is not refused ends as if nothing had happened."""
    lines = half.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1)) if lines else 0
        match data.draw(st.sampled_from(["drop", "repeat", "move", "cut", "bytes", "insert"])):
            case "drop":
                del lines[at : at + 1]
            case "repeat":
                lines[at:at] = lines[at : at + 1]
            case "move":
                lines = lines[at:] + lines[:at] if data.draw(st.booleans()) else lines[::-1]
            case "cut":
                whole = b"".join(lines)
                lines = whole[: data.draw(st.integers(0, len(whole)))].splitlines(keepends=True)
            case "bytes":
                lines[at : at + 1] = [data.draw(st.binary(max_size=60)) + data.draw(st.sampled_from([b"\n", b""]))]
            case _:
                value = data.draw(st.recursive(st.none() | st.floats() | st.text(), lambda each: st.lists(each)))
                lines.insert(at, sealed(json.dumps({"stage": value, "step": value}).encode()[:-1]))
    with tempfile.TemporaryDirectory() as name:
        Path(name, JOURNAL).write_bytes(b"".join(lines))
        message, found = "", undisturbed
        try:
            found = run_toy(Path(name), SerialRunner(), resume=True)
        except RefusedError as error:
            message = str(error)
    assert found == undisturbed
    assert len(message) <= MESSAGE
    assert "version" not in message


def test_thetas_that_differ_in_the_last_bit_pass(halfway: Path) -> None:
    path = halfway / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    record = records_of(path)[3]
    lines[3] = damage(record, theta=[math.nextafter(x, 1) for x in record["theta"]])
    path.write_bytes(b"".join(lines))
    run_toy(halfway, SerialRunner(), resume=True)


# Journals of other versions.


def test_a_journal_without_a_head_names_the_version_that_reads_it(halfway: Path) -> None:
    path = halfway / JOURNAL
    earlier = [json.dumps(trial) for trial in trials_of(path)]
    without_losses = [json.dumps({key: trial[key] for key in trial if key != "loss"}) for trial in trials_of(path)]
    for lines in (earlier, without_losses):
        path.write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(RefusedError) as caught:
            run_toy(halfway, SerialRunner(), resume=True)
        assert str(caught.value) == (
            f"{path}: this journal has no head: it was written by autosegloss 0.1. Continue it with that version, or "
            "choose another folder. A loss.json beside it can be used as before."
        )


def test_a_journal_of_a_newer_version_names_it(halfway: Path) -> None:
    path = halfway / JOURNAL
    head, *_ = records_of(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = damage(head, version=4, versions={"autosegloss": "0.9.1"}, more=1)
    path.write_bytes(b"".join(lines))
    with pytest.raises(RefusedError) as caught:
        run_toy(halfway, SerialRunner(), resume=True)
    assert str(caught.value) == (
        f"{path}:1: this journal was written by autosegloss 0.9.1, a newer version. Continue it with that version, or "
        "choose another folder."
    )


@pytest.mark.parametrize("version", [1, 2])
def test_a_search_of_an_earlier_version_is_refused_and_a_comparison_of_its_time_is_not(
    halfway: Path, version: int
) -> None:
    """Steps had no trial of the start in version 1 and none of the centre in version 2; no trial had a rate."""
    path = halfway / JOURNAL
    head, first, *_ = records_of(path)
    assert first.pop("rate") == 1
    path.write_bytes(damage(head, version=version) + sealed(first))
    with pytest.raises(RefusedError) as caught:
        run_toy(halfway, SerialRunner(), resume=True)
    assert str(caught.value) == (
        f"{path}:2: this search was run by an earlier version of autosegloss, whose steps had other trials. Continue "
        "it with that version, or choose another folder. A loss.json beside it can be used as before."
    )
    path.write_bytes(damage(head, version=version) + sealed(first | {"stage": "compare"}))
    ((job, _),) = read(path)
    assert (job.stage, job.rate) == ("compare", 1.0)


# Other environments and other data.


def written(path: Path, head: Head, number: int) -> None:
    """Append trials to a journal in an environment."""
    with Journal(path, resume=True, head=head) as journal:
        study = toy_study(journal)
        if not study.finished:
            journal.note_changes()
        for _ in range(number):
            job = study.next_job()
            assert job is not None
            study.record(job, TOY(job))


def test_another_environment_is_told_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / JOURNAL
    newer = replace(HEAD, versions=HEAD.versions | {"torch": "2.14.0"})
    other = replace(newer, processor=HEAD.processor | {"instructions": "AVX512", "gpu": "NVIDIA H200"})
    written(path, HEAD, 3)
    written(path, HEAD, 2)
    assert capsys.readouterr().err == ""
    written(path, newer, 2)
    assert capsys.readouterr().err == (
        f"Warning: {tmp_path}: this search is continued in another environment: torch was 2.13.0 and is 2.14.0. Trials "
        "from here on may differ in their last bits from those of an undisturbed run, and so may the result, which "
        "records both. To avoid this, stop now and continue in the first environment.\n"
    )
    written(path, other, 0)  # without a trial, it leaves no trace but the warning
    assert "instructions was AVX2 and is AVX512, gpu was none and is NVIDIA H200." in capsys.readouterr().err
    written(path, other, 30)
    assert [number for number, record in enumerate(records_of(path)) if "format" in record] == [0, 6, 9]
    with Journal(path, resume=True, head=HEAD) as journal:
        assert toy_study(journal).finished
        assert journal.versions == {"autosegloss": "0.2.0", "torch": "2.13.0 and 2.14.0"}
        assert journal.processor == {
            "architecture": "x86_64", "instructions": "AVX2 and AVX512", "gpu": "NVIDIA H200",
        }  # fmt: skip
    # A journal that does not fit is put down to the environment where it was another one.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with (
        Journal(path, resume=True, head=HEAD) as journal,
        pytest.raises(RefusedError, match=r":12: trial 0 of search step 1 .* in another environment: torch was 2\.14"),
    ):
        toy_study(journal)


def test_other_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    written(path, HEAD, 3)
    before = path.read_bytes()
    with pytest.raises(RefusedError) as caught:
        written(path, replace(HEAD, data=HEAD.data | {"heldout": "xx", "weights": "yy"}), 1)
    assert str(caught.value) == (
        f"{tmp_path}: the data has changed since this search began, in: heldout, weights. Results on different data "
        "can't be mixed. Restore the images and masks, or choose another folder."
    )
    with pytest.raises(RefusedError, match=r"in: heldout, other\.train, train, validation\. "):
        written(path, replace(HEAD, data={"other": {"train": "zz"}}), 1)
    assert path.read_bytes() == before


# The file and its lock.


def test_without_resume_a_journal_is_not_touched(halfway: Path) -> None:
    path = halfway / JOURNAL
    path.write_bytes(path.read_bytes() + b"torn")
    before = path.read_bytes()
    with pytest.raises(RefusedError, match=f"{re.escape(str(halfway))} already holds a search with 12 finished trials"):
        run_toy(halfway, SerialRunner())
    assert path.read_bytes() == before


def test_two_searches_in_one_folder_are_refused(halfway: Path) -> None:
    before = (halfway / JOURNAL).read_bytes()
    with (
        Journal(halfway / JOURNAL, resume=True),
        pytest.raises(RefusedError, match=f"{re.escape(str(halfway))}: another search is running"),
    ):
        run_toy(halfway, SerialRunner(), resume=True)
    assert (halfway / JOURNAL).read_bytes() == before
    with Journal(halfway / JOURNAL, resume=True):  # the lock went with the first
        pass


def test_a_journal_without_trials_may_be_begun_anew(tmp_path: Path) -> None:
    for _ in range(2):
        with Journal(tmp_path / JOURNAL) as journal:
            assert not journal.trials


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b'{"a": 1}\n', b"notes\nmore", b"\n"])
def test_a_file_that_is_no_journal_is_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(content)
    for resume in (False, True):
        with pytest.raises(RefusedError, match=r"trials\.jsonl:1: this line is damaged"):
            Journal(path, resume=resume)
    assert path.read_bytes() == content


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "fifo"):
        for read_only in (False, True):
            with pytest.raises(RefusedError) as caught:
                Journal(tmp_path / name, resume=True, read_only=read_only)
            assert str(caught.value) == f"{tmp_path / name}: not a regular file. Choose another folder."


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / JOURNAL, tmp_path / ("x" * 300) / JOURNAL):
        with pytest.raises(RefusedError, match="can't be written"):
            Journal(path)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EINVAL, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_and_without_durable_folders(
    tmp_path: Path, number: int, undisturbed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    if number != errno.ENOLCK:
        monkeypatch.setattr(os, "fsync", refused)
    assert run_toy(tmp_path, SerialRunner()) == undisturbed
    assert capsys.readouterr().err == (
        f"Warning: {tmp_path}: this file system has no locks; make sure that nothing else runs in this folder.\n"
    )


def test_a_disk_that_fails_is_no_file_system_without_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal(tmp_path / JOURNAL) as journal:
        study = toy_study(journal)
        job = study.next_job()
        assert job is not None
        monkeypatch.setattr(os, "fsync", refused)
        with pytest.raises(SearchError, match="can't be written: Input/output error"):
            study.record(job, TOY(job))
