"""`autosegloss fit-offsets` as a user meets it: folders of saved scores and label maps, and their mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import autosegloss as asl
from autosegloss.cli import main

GOLDEN = """\
fitted on 3 images; values in %, on these images:
┏━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━┓
┃ metric ┃ without ┃ with offsets ┃   gain ┃
┡━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━┩
│ miou   │   54.72 │        77.35 │ +22.63 │
│ gacc   │   85.41 │        92.70 │  +7.30 │
│ miou_i │   53.11 │        77.17 │ +24.06 │
│ dice   │   67.48 │        86.79 │ +19.31 │
│ macc   │   60.59 │        86.22 │ +25.63 │
│ fwiou  │   73.29 │        87.07 │ +13.78 │
│ bf1    │   96.67 │       100.00 │  +3.33 │
└────────┴─────────┴──────────────┴────────┘
┏━━━━━━━━━━━━┳━━━━━━━━┓
┃ class      ┃ offset ┃
┡━━━━━━━━━━━━╇━━━━━━━━┩
│ background │ -1.219 │
│ leaf       │ +0.500 │
│ spot       │ +0.719 │
└────────────┴────────┘
wrote offsets.json
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of three images of different sizes in `scores`, which prefer class 0, and labels in `target`."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(7)
    for name, shape in {"a": (9, 12), "sub/b": (8, 8), "c": (14, 6)}.items():
        labels = rng.choice(3, shape, p=(0.7, 0.2, 0.1))
        scores = rng.normal(size=(3, *shape)) + 2 * (np.arange(3)[:, None, None] == labels)
        scores += np.array([2.0, 0.0, -1.0])[:, None, None]
        labels[rng.random(shape) < 0.1] = 255
        for folder in ("scores", "target"):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "scores" / f"{name}.npy", scores.astype(np.float32))
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "target" / f"{name}.png")


def fit(*options: str, classes: str = "background,leaf,spot", metric: str = "miou") -> int:
    folders = ("--scores", "scores", "--target", "target")
    return main(["fit-offsets", "--metric", metric, *folders, "--classes", classes, *options])


def refusal(capsys: pytest.CaptureFixture[str], *options: str, **given: Any) -> str:
    assert fit(*options, **given) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def test_what_is_printed_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--guard", "gacc=0.5", "--out", "offsets.json") == 0
    assert capsys.readouterr().out == GOLDEN
    offsets = asl.load_offsets("offsets.json")
    accumulator = asl.Accumulator("miou", 3)
    for path in Path("target").rglob("*.png"):
        scores = np.load(Path("scores", path.relative_to("target")).with_suffix(".npy"))
        accumulator.update(
            offsets.apply(torch.from_numpy(scores)[None]), torch.from_numpy(np.array(Image.open(path)))[None]
        )
    assert accumulator.compute() == offsets.after > offsets.before + 0.1


def test_the_logarithm_of_probabilities_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--out", "logits.json", metric="iou(spot)") == 0
    for path in Path("scores").rglob("*.npy"):
        shares = torch.from_numpy(np.load(path)).softmax(0)
        np.save(path, np.where(shares < 1e-3, 0, shares))  # with zeros
    capsys.readouterr()
    assert fit("--out", "shares.json", metric="iou(spot)") == 0
    assert capsys.readouterr().err == (
        "note: the scores are probabilities, from 0 to 1 with a sum of 1; offsets go to their logarithms.\n"
    )
    logits, shares = (asl.load_offsets(f"{name}.json") for name in ("logits", "shares"))
    assert logits.values.tolist() == pytest.approx(shares.values.tolist(), abs=0.01)

    np.save("scores/a.npy", np.load("scores/a.npy") * 3)
    assert "c holds probabilities, a does not" in refusal(capsys)


def test_masks_are_mapped_to_classes_and_names_taken_from_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    """As by `evaluate`: the same labels under other values, and a file that the list leaves out."""
    assert fit("--out", "labels.json") == 0
    for path in Path("target").rglob("*.png"):
        labels = np.array(Image.open(path))
        Image.fromarray(np.choose(np.where(labels == 255, 3, labels), (7, 100, 255, 0)).astype(np.uint8)).save(path)
    values = ("--values", "{7: 0, 100: leaf, 255: 2, 0: ignore}")
    assert fit(*values, "--out", "values.json") == 0
    assert Path("values.json").read_text() == Path("labels.json").read_text()
    Path("names.txt").write_text("a\nsub/b\n")
    np.save("scores/c.npy", np.zeros(3))
    capsys.readouterr()
    assert fit(*values, "--split", "names.txt", "--out", "split.json") == 0
    assert capsys.readouterr().out.startswith("fitted on 2 images;")
    assert "c.npy: scores must be an array of floats" in refusal(capsys, *values)


def test_decisions_in_place_of_scores_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path("scores").rglob("*.npy"):
        scores = np.load(path)
        np.save(path, (scores == scores.max(0)).astype(np.float32))
    assert fit() == 0
    assert "all scores are 0 or 1. These are decisions, which no offset can change" in capsys.readouterr().err


def test_mistakes_in_the_folders_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    good = np.load("scores/a.npy")
    for array, message in (
        (good[0], "scores must be an array of floats of shape (C, H, W), got float32 of shape (9, 12)"),
        (good.astype(int), "scores must be an array of floats of shape (C, H, W), got int64 of shape (3, 9, 12)"),
        (np.array([{}], object), "not a .npy file of numbers, or damaged"),
        (good[:2], "scores of another number of classes than 3"),
        (np.moveaxis(good, 0, -1), "scores of shape (H, W, C); move the axis of the 3 classes to the front (1):"),
        (good[:, :5], "a: scores and label 12 x 5 and 12 x 9"),
        (np.where(good > 2, np.inf, good), "scores that are NaN or infinite"),
    ):
        np.save("scores/a.npy", array, allow_pickle=True)
        assert message in refusal(capsys, "--out", "offsets.json")
    Path("scores/a.npy").write_bytes(b"\x93NUMPY")
    assert "scores/a.npy: not a .npy file of numbers, or damaged" in refusal(capsys)
    Path("scores/a.npy").unlink()
    assert "labels without a prediction in scores" in refusal(capsys)
    assert fit("--allow-missing") == 0
    capsys.readouterr()
    Image.fromarray(np.full((14, 6), 9, np.uint8)).save("target/c.png")
    assert "labels out of range; allowed: 0..2 and 255 (ignored)" in refusal(capsys, "--allow-missing")
    assert not Path("offsets.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guard", "gacc"], "--guard must be NAME=SHARE, as in gacc=0.98, got gacc."),
        (["--guard", "gacc=x"], "--guard must be NAME=SHARE, as in gacc=0.98, got gacc=x."),
        (["--guard", "gacc=2"], "got gacc=2. The share must be above 0 and at most 1."),
        (["--guard", "gac=0.9"], "did you mean `gacc`?"),
        (["--bound", "-1"], "bound must be a number above 0 and at most 1e+06, got -1.0."),
        (["--out", "target/a.png"], "target/a.png: is read by this command; write to another file."),
        (["--out", "none/offsets.json"], "can't be written"),
        (["--target", "none"], "none: no such folder."),
        (["--metric", "dice"], "--metric: offsets are fitted for one metric, got 2: miou,dice."),
        (["--part", "val"], "--part: name the lists of names with --split."),
    ],
)
def test_what_can_not_be_meant_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, *options)


def test_one_metric_of_label_maps_is_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    several = "--metric: offsets are fitted for one metric, got 2: miou, dice."
    assert several in refusal(capsys, metric="miou, dice")
    none = "--metric must be a metric of label maps, which offsets can maximise; ece is none."
    assert none in refusal(capsys, metric="ece")
