from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autosegloss.errors import WriteError
from autosegloss.files import locked, write_bytes, write_text


def test_the_file_is_replaced(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\n"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError) as caught:
        write_bytes(path, b"new")
    assert str(caught.value) == f"{path}: can't be written: No space left on device."
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "a.txt"
    with pytest.raises(WriteError) as caught:
        write_text(path, "")
    assert str(caught.value) == f"{path}: can't be written: No such file or directory."


def test_what_a_killed_process_has_left_disappears(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.draft").write_text("half")
    (tmp_path / ".a.txt.lock").touch()
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.txt", [letter * 100_000 for letter in "abcd"]
    with ThreadPoolExecutor() as threads:
        for _ in threads.map(lambda number: write_text(path, texts[number % 4]), range(40)):
            assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["a.txt"]


def test_one_holds_a_lock(tmp_path: Path) -> None:
    path, holders = tmp_path / "lock", []

    def hold(_: int) -> None:
        with locked(path) as alone:
            assert alone
            holders.append(1)
            assert len(holders) == 1
            with locked(path, wait=False) as second:
                assert not second
            holders.pop()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(hold, range(100)))
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="of the body"), locked(path):
        raise FileNotFoundError("of the body")
    assert not path.exists()
