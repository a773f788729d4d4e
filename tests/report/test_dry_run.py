"""Dry runs: the whole way once, a forecast, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import autosegloss.report.dry_run as module
from autosegloss.cli import main
from autosegloss.errors import RefusedError
from autosegloss.proxy.networks import build_network
from autosegloss.report.dry_run import dry_run
from autosegloss.search.settings import as_config

CONFIG: dict[str, Any] = {
    "metric": "miou",
    "proxy": {"start": {"iterations": 3}, "train": {"iterations": 5, "batch_size": 4}},
    "search": {"steps": 2, "samples": 3},
    "guard": {"miou": 0.5},
    "finalists": {"candidates": 1, "seeds": 2},
    "resources": {"workers": 1},
}


def run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], *more: str
) -> tuple[int, str, str]:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(CONFIG | changes))
    code = main(["search", str(path), "--dry-run", "--runner", "serial", "--out", str(tmp_path / "out"), *more])
    captured = capsys.readouterr()
    assert [each.name for each in tmp_path.iterdir() if each.suffix != ".pt"] == ["tiny.yaml"], "nothing is written"
    return code, captured.out, captured.err


def test_it_tells_data_network_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(tmp_path, capsys, {})
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert list(lines) == ["data", "network", "iteration", "trial", "search", "memory"]
    assert lines["data"] == "shapes: 256 training images and 128 held out, 64x64, 6 classes"
    assert lines["network"] == "unet_small: 0.06 million parameters"
    assert lines["iteration"].endswith(" ms")
    assert lines["search"].startswith("14 trials, 1 in parallel: about ")  # 2 steps of 4, 3 finals of 2


@pytest.mark.usefixtures("ray_address")
def test_workers_that_have_no_room_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(tmp_path, capsys, {}, "--runner", "ray", "--workers", "99")
    assert code == 2
    assert "99 workers of 1 CPUs and 0 GPUs each do not fit" in error


def test_workers_that_have_no_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory", lambda: 100.0)
    with pytest.raises(RefusedError, match=r"1 workers of \d+ MiB each do not fit in the 100 MiB of this machine"):
        dry_run(as_config(CONFIG), "serial")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy": {"network": {"name": "nope"}}}, "InputError: unknown network `nope`"),
        ({"proxy": {"data": {"name": "nope"}}}, "DataError: unknown data set `nope`"),
        ({"relaxation": {"curve": "linear", "pieces": 1}}, "InputError: there is nothing to search"),
        ({"proxy": {"start": {"weights": "nowhere.pt"}}}, "InputError: nowhere.pt: can't be read"),
        (
            {"proxy": {"network": {"name": "torch.nn:Conv2d", "kernel_size": 3}, "start": {"regime": "scratch"}}},
            "InputError: target must have shape (8, 62, 62) or (8, 1, 62, 62), got (8, 64, 64).",
        ),
        (
            {"proxy": {"train": {"precision": "float16"}}},
            "InputError: precision must be float32 or bfloat16 on the CPU",
        ),
    ],
)
@pytest.mark.slow
def test_what_would_stop_the_search_stops_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    code, _, error = run(tmp_path, capsys, changes)
    assert code == 2
    assert error.startswith(message), error


def test_labels_and_start_are_tried_without_their_whole_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    steps = torch.optim.SGD.step

    def step(optimizer: torch.optim.SGD, *args: Any) -> Any:
        taken.append(1)
        return steps(optimizer, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    proxy = CONFIG["proxy"] | {"labels": {"name": "distilled"}, "start": {"iterations": 10**6}}
    dry_run(as_config(CONFIG | {"proxy": proxy}), "serial")
    assert len(taken) == 1 + 1 + 4  # pretraining, teacher, and a trial's
    taken.clear()
    torch.save(build_network("unet_small", 3, 6).state_dict(), tmp_path / "weights.pt")
    forecast = dry_run(
        as_config(CONFIG | {"proxy": CONFIG["proxy"] | {"start": {"weights": str(tmp_path / "weights.pt")}}}), "serial"
    )
    assert len(taken) == 4
    assert forecast.preparation == 0
