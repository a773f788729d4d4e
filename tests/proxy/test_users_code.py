"""Errors of the user's own code are told with their place."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from types import ModuleType

import pytest
import torch

from autosegloss.proxy.imports import import_function
from autosegloss.proxy.users_code import where


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def caught(function: object, *arguments: object) -> BaseException:
    try:
        function(*arguments)  # type: ignore[operator]
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_an_error_has_the_file_and_line_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine" / "my_data.py"
    path.parent.mkdir()
    path.write_text(
        "import statistics\n"
        "def direct():\n    raise ValueError('no such\\nrow')\n"
        "def below():\n    direct()\n"
        "def in_a_library():\n    return statistics.mean([])\n"
        "def bare():\n    raise SystemExit\n"
        "def long():\n    raise KeyError('x' * 10**6)\n"
        "class Mute(Exception):\n    def __str__(self): raise ValueError\n"
        "def mute():\n    raise Mute\n"
    )
    mine = module(path)
    monkeypatch.chdir(tmp_path)
    assert where(caught(mine.direct)) == "mine/my_data.py:3: ValueError: no such row"
    assert where(caught(mine.below)) == "mine/my_data.py:3: ValueError: no such row"
    assert where(caught(mine.in_a_library)).startswith("mine/my_data.py:7: StatisticsError: mean requires")
    assert where(caught(mine.bare)) == "mine/my_data.py:9: SystemExit"
    assert len(where(caught(mine.long))) < 250
    assert where(caught(mine.mute)) == "mine/my_data.py:15: Mute"
    monkeypatch.chdir(path.parent)
    assert where(caught(mine.direct)) == "my_data.py:3: ValueError: no such row"
    monkeypatch.chdir("/")
    assert where(caught(mine.direct)) == f"{str(path)[1:]}:3: ValueError: no such row"
    path.write_text("def broken(:\n")
    monkeypatch.chdir(tmp_path)
    assert where(caught(module, path)).startswith("mine/my_data.py:1: SyntaxError: ")


def test_an_error_outside_the_users_code_has_no_place() -> None:
    error = caught(statistics.mean, [])
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next  # without the line of this test
    assert where(error).startswith("StatisticsError: mean requires")
    error = caught(import_function, "nothing", "data")
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    assert where(error).startswith("data must be"), "the class of an error of the package says nothing"


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA: tried"), RuntimeError("can't allocate memory")]
)
def test_of_used_up_memory_is_said_what_to_do(error: Exception) -> None:
    assert where(error).startswith("out of memory; lower batch_size or the size of the images (")
    assert type(error).__name__ in where(error)
