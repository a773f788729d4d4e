"""The checkpoint of a retraining: damaged, of other data, of another environment, or met by a run that is new."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from autosegloss.errors import RefusedError
from autosegloss.proxy.data import Dataset, Split, load_dataset
from autosegloss.search import head
from autosegloss.search import retrain as room
from autosegloss.search.head import versions
from autosegloss.search.jobs import Job
from autosegloss.search.retrain import retrain

CONFIG: dict[str, Any] = {
    "metric": "miou",
    "proxy": {"data": {"name": "shapes"}, "network": {"name": "tests.networks:Drawing"}},
    "retrain": {"iterations": 3, "batch_size": 2, "checkpoint_every": 1},
}
LOSSES = ["cross_entropy"]


@cache
def few(swapped: bool = False) -> Dataset:
    """A few images, so that a run takes a moment; two masks may be swapped."""
    whole = load_dataset("shapes")
    parts = (Split(part.images[:4], part.labels[:4]) for part in (whole.train, whole.heldout, whole.validation))
    train, heldout, validation = parts
    if swapped:
        heldout = replace(heldout, labels=heldout.labels[::-1].copy())
    return replace(whole, train=train, heldout=heldout, unseen=validation)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "load_dataset", lambda *_, **__: few())


def stop_after(iteration: int) -> Any:
    def progress(job: Job, done: int) -> None:
        if done == iteration:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "load_dataset", lambda *_, **__: few())
        with pytest.raises(KeyboardInterrupt):
            retrain(CONFIG, LOSSES, folder, progress=stop_after(2))
    return folder


@pytest.fixture
def stopped(once: Path, tmp_path: Path) -> Path:
    """The folder of a retraining that was stopped after 2 of its 3 iterations."""
    return shutil.copytree(once, tmp_path / "out")


def result(folder: Path) -> Any:
    table = json.loads((folder / "table.json").read_text())
    (weights,) = folder.glob("*.pt")
    return table["rows"], {name: weight.tolist() for name, weight in torch.load(weights, weights_only=True).items()}


def resumed(folder: Path) -> list[int]:
    """The iterations at which a resumed run writes a checkpoint."""
    told: list[int] = []
    retrain(CONFIG, LOSSES, folder, resume=True, progress=lambda _, done: told.append(done))
    return told


def test_a_damaged_checkpoint_is_named_and_its_run_starts_again(stopped: Path, capsys: Any, tmp_path: Path) -> None:
    assert resumed(shutil.copytree(stopped, tmp_path / "whole")) == [3]
    assert capsys.readouterr().err == ""
    path = stopped / "checkpoint.pt"
    data = path.read_bytes()
    flips = [0, 64, 65, 70, len(data) // 3, len(data) // 2, len(data) - 1]
    damaged = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in flips]
    for number, content in enumerate([*damaged, data[: len(data) // 2], b"", data + b"x"]):
        folder = shutil.copytree(stopped, tmp_path / str(number))
        (folder / "checkpoint.pt").write_bytes(content)
        if number > 0:  # one is trained to its end
            assert room._unsealed(content) is None
            continue
        assert resumed(folder) == [1, 2, 3]
        assert capsys.readouterr().err == (
            f"{folder / 'checkpoint.pt'}: the checkpoint is damaged; its run starts again from its beginning.\n"
        )
        assert result(folder) == result(tmp_path / "whole")


def test_a_checkpoint_of_other_data_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "load_dataset", lambda *_, **__: few(swapped=True))
    with pytest.raises(RefusedError) as caught:
        resumed(stopped)
    assert str(caught.value) == (
        f"{stopped / 'checkpoint.pt'}: the data has changed since this checkpoint began, in: heldout, train. Results "
        "on different data can't be mixed. Restore the images and masks, or choose another folder."
    )


def test_a_checkpoint_of_another_configuration_is_refused(stopped: Path) -> None:
    other = CONFIG | {"retrain": CONFIG["retrain"] | {"learning_rate": 0.5}}
    with pytest.raises(RefusedError, match=r"holds another retraining:\n  configurations\.retrain\.learning_rate"):
        retrain(other, LOSSES, stopped, resume=True)


def test_a_checkpoint_of_another_environment_is_told(
    stopped: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "versions", lambda: versions() | {"torch": "2.99.0"})
    assert resumed(stopped) == [3]
    assert f"this checkpoint is continued in another environment: torch was {torch.__version__} and is 2.99.0." in (
        capsys.readouterr().err
    )


def test_without_resume_a_checkpoint_is_kept(stopped: Path) -> None:
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(RefusedError) as caught:
        retrain(CONFIG, LOSSES, stopped)
    assert str(caught.value) == (
        f"{stopped} already holds a retraining with a checkpoint. Continue it with --resume, or choose another folder."
    )
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before
