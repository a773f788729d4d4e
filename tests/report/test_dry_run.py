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
from autosegloss.proxy.data import load_dataset
from autosegloss.proxy.networks import build_network
from autosegloss.report.dry_run import dry_run
from autosegloss.search.settings import as_config

CONFIG: dict[str, Any] = {
    "metric": "miou",
    "proxy": {"start": {"iterations": 3}, "train": {"iterations": 5, "batch_size": 4}},
    "rivals": {"losses": []},
    "search": {"steps": 2, "samples": 3},
    "guard": {"miou": 0.5},
    "finalists": {"candidates": 1, "seeds": 2},
    "resources": {"workers": 1},
}
NOTHING = {"curve": "linear", "pieces": 1, "logic": "product", "scale": 1, "cross_entropy": 0}


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
    shapes = ["pixels", "background", "region", "ellipse", "polygon", "curve", "dot", "ignored"]
    assert list(lines) == ["data", *shapes, "network", "space", "iteration", "trial", "search", "memory"]
    assert lines["data"] == "shapes: 256 training, 128 held-out and 256 validation images of 64x64, 6 classes"
    assert lines["pixels"].split() == ["training", "held-out", "validation"]
    dataset = load_dataset("shapes")
    for label, name in enumerate(dataset.classes):
        parts = (dataset.train, dataset.heldout, dataset.validation)
        shares = [100 * (part.labels == label).mean() for part in parts]
        assert [float(share.rstrip("%")) for share in lines[name].split()] == pytest.approx(shares, abs=0.05)
    assert lines["ignored"].split() == ["0%"] * 3
    assert lines["network"] == "unet_small: 0.06 million parameters"
    assert lines["space"] == (
        "7 coordinates: v of and[0] of pred & target; v of or[0] of pred | target; scale, share of product, share of "
        "lovasz, share of cross-entropy, class_power"
    )
    assert lines["iteration"].endswith(" ms")
    assert lines["search"].startswith("17 trials, 1 in parallel: about ")  # steps of 5 and 6, 3 finals of 2


def test_it_counts_the_screening_and_advises_to_recommend_first() -> None:
    rivals = {"rivals": {"losses": ["cross_entropy", "lovasz"], "steps": [1, 4]}}
    trials = dry_run(as_config(CONFIG | rivals), "serial").trials
    # Cross-entropy, both rivals at both steps, and these on two more seeds, of one also the second best step.
    assert 3 * (1 + 2) < trials.screening < trials.total
    assert str(trials) == f"at most {trials.total} trials, {trials.screening} of them to screen the rivals"
    assert trials.advice == [
        f"advice     autosegloss recommend CONFIG tells in at most {trials.recommending} trials which loss to take, "
        "and whether a search has headroom"
    ]
    assert trials.recommending is not None
    assert trials.recommending < trials.total
    config = as_config(CONFIG | rivals | {"search": {"steps": 0}})
    alone, finals = dry_run(config, "serial").trials, config.finalists
    assert alone.advice == []
    assert alone.total - alone.screening == (1 + finals.candidates) * finals.seeds, "no test without a search"


@pytest.mark.usefixtures("ray_address")
def test_workers_that_have_no_room_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(tmp_path, capsys, {}, "--runner", "ray", "--workers", "99")
    assert code == 2
    assert "99 workers of 1 CPU and 0 GPUs each do not fit" in error


def test_workers_that_have_no_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory", lambda: 100.0)
    with pytest.raises(RefusedError, match=r"1 workers of \d+ MiB each do not fit in the 100 MiB of this machine"):
        dry_run(as_config(CONFIG), "serial")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy": {"network": {"name": "nope"}}}, "InputError: unknown network `nope`"),
        ({"proxy": {"data": {"name": "nope"}}}, "DataError: unknown data set `nope`"),
        ({"relaxation": NOTHING}, "InputError: there is nothing to search"),
        ({"proxy": {"start": {"weights": "nowhere.pt"}}}, "InputError: nowhere.pt: can't be read"),
        (
            {"proxy": {"network": {"name": "torch.nn:Conv2d", "kernel_size": 3}, "start": {"regime": "scratch"}}},
            "InputError: network `torch.nn:Conv2d` must return logits of shape (1, 6, 64, 64)",
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


def test_all_mistakes_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "proxy": {
            "data": {"name": "shape"},
            "network": {"name": "unet"},
            "labels": {"name": "soft"},
        },
        "relaxation": NOTHING,
        "retrain": {"data": {"sise": 64}},
        "compare": {
            "losses": ["cross_entropy", "lovas", "nowhere.json"],
            "settings": {"small": {"proxy": {"start": {"weights": "nowhere.pt"}, "network": {"name": "unet_small"}}}},
        },
    }
    code, _, error = run(tmp_path, capsys, wrong)
    assert code == 2
    first, *lines = error.splitlines()
    assert first == "InputError: 7 mistakes:"
    for line, start in zip(
        lines,
        (
            "- InputError: there is nothing to search: ",
            "- DataError: unknown data set `shape` (did you mean `shapes`?)",
            "- InputError: unknown network `unet`",
            "- DataError: unknown labels `soft`",
            "- InputError: nowhere.pt: can't be read",
            "- InputError: `lovas` is not a loss (did you mean `lovasz`?)",
            "- LossFileError: nowhere.json: ",
        ),
        strict=True,
    ):
        assert line.startswith(start), (line, start)
    assert len(error) <= 1015
    code, _, error = run(tmp_path, capsys, {"compare": {"losses": ["weighted_cross_entropy", "lovas"]}})
    assert (code, error[:56]) == (2, "InputError: `lovas` is not a loss (did you mean `lovasz`"), (
        "one alone is as it is"
    )
    code, _, error = run(tmp_path, capsys, {"retrain": {"data": {"sede": 64}}})
    assert code == 2
    assert (
        error
        == "DataError: data set `shapes`: unknown option `sede` (did you mean `seed`?); allowed: seed, annotators.\n"
    )


def test_mistakes_of_reading_and_all_others_are_told_in_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = {"name": "folder", "classes": 2, "root": str(tmp_path / "nowhere")}
    wrong: dict[str, Any] = {
        "metric": "moiu",
        "search": {"steps": -1, "algorithm": "tune", "searcher": "nomodule:searcher"},
        "proxy": {
            "data": folder,
            "network": {"name": "nomodule:net"},
            "start": {"regime": "checkpoint", "weights": "nothing.pt"},
        },
        "compare": {
            "losses": ["jlm"],
            "metrics": ["dicee", "miou"],
            "settings": {"other": {"proxy": {"data": {"root": "nosuchroot"}}}, "none": {"proxy": {"daat": 1}}},
        },
    }
    code, _, error = run(tmp_path, capsys, wrong)
    assert code == 2
    first, *lines = error.splitlines()
    assert first == "InputError: 10 mistakes:"
    for line, part in zip(
        [*sorted(lines[:4]), *lines[4:]],
        (
            "compare.metrics.0: unknown metric `dicee`",
            "compare.settings.none.proxy.daat: unknown key",
            "metric: unknown metric `moiu`",
            "search.steps: must be at least 0",
            "searcher `nomodule:searcher`: no module",
            "masks: no such folder",
            "network `nomodule:net`: no module",
            "nothing.pt: can't be read",
            "nosuchroot/masks: no such folder",
            "`jlm` is not a loss (did you mean `jml`?)",
        ),
        strict=True,
    ):
        assert part in line, (line, part)
    assert len(error) <= 1000
    code, _, error = run(tmp_path, capsys, {"search": {"steps": -1}, "retrain": {"data": {"seed": -1}}})
    assert code == 2
    assert [line.partition("(")[0] for line in error.splitlines()][2] == (
        "- DataError: data set `shapes`: seed must be a non-negative integer, got -1."
    )
    code, _, error = run(tmp_path, capsys, {"search": {"steps": 0}})
    path = tmp_path / "tiny.yaml"
    assert error == f"ConfigError: {path}:1: search.steps: must be at least 1 where there are no rivals\n", "as it is"


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
