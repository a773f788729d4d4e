"""`autosegloss evaluate` on folders as they are: other values, names and kinds of files, and parts of a split."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autosegloss.cli import main
from tests import oracles

RNG = np.random.default_rng(8)
NAMES = ["a", "b", "day/c", "d"]
TARGET = {name: RNG.integers(0, 3, (6, 7)) for name in NAMES}
PRED = {name: RNG.integers(0, 2, (6, 7)) for name in NAMES}


def save(path: Path, image: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, image) if path.suffix == ".npy" else Image.fromarray(image).save(path)


def folders(root: Path, target: str, values: Any, pred: str, pred_values: Any) -> list[str]:
    for name in NAMES:
        save(root / "target" / target.format(name), np.array(values)[TARGET[name]])
        save(root / "pred" / pred.format(name), np.array(pred_values)[PRED[name]])
    return ["evaluate", "--pred", str(root / "pred"), "--target", str(root / "target")]


def value(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[float, dict[str, str]]:
    status = main([*arguments, "--num-classes", "2", "--metric", "miou", "--json", "-"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    found = json.loads(captured.out)
    return found["metrics"][0]["value"], found["options"]


def oracle(names: list[str], third: int) -> float:
    """The mean IoU where the third value of the targets is `third`: a class, or 255 for ignored."""
    targets = [np.array([0, 1, third])[TARGET[name]] for name in names]
    return oracles.miou([PRED[name] for name in names], targets, 2)


U8, COLOURS = np.array([0, 255, 9], np.uint8), np.array([[0, 0, 0], [255, 0, 0], [9, 9, 9]], np.uint8)
FOUR = np.array([4, 3], np.uint8)


@pytest.mark.parametrize(
    ("target", "values", "pred", "pred_values", "options", "third"),
    [
        ("{}.png", U8, "{}.tif", U8, {"values": "{0: 0, 1..9: ignore, 255: 1}"}, 255),
        ("{}.png", U8, "{}.png", U8, {"values": "0=0,1..=1"}, 1),
        ("{}_mask.bmp", U8, "{}_p.npy", [0, 1], {"values": "0: 0, 9: 0, 255: 1", "pred_values": "0: 0, 1: 1"}, 0),
        ("{}.png", COLOURS, "{}.png", COLOURS, {"values": "#000000: 0, #ff0000: 1, 9: ignore"}, 255),
        (
            "{}.png",
            COLOURS,
            "{}.png",
            np.uint8([4, 3]),
            {"values": '{"#ff0000": 1, ..9: 0}', "pred_values": "4:0,3:1"},
            0,
        ),
        ("{}.npy", [0, 1, -1], "{}.gif", np.uint8([0, 1]), {"ignore_index": "-1"}, 255),
    ],
)
def test_values_of_labels_and_predictions_are_mapped(
    tmp_path, capsys, target, values, pred, pred_values, options, third
):
    arguments = folders(tmp_path, target, values, pred, pred_values)
    given = dict(options) | ({"mask_suffix": "_mask", "pred_suffix": "{name}_p"} if "_mask" in target else {})
    flags = [part for name, text in given.items() for part in (f"--{name.replace('_', '-')}={text}",)]
    found, used = value([*arguments, *flags], capsys)
    assert found == pytest.approx(oracle(NAMES, third), abs=1e-12)
    assert used == {name: text for name, text in given.items() if name != "ignore_index"}


def test_a_part_of_a_split_is_evaluated(tmp_path, capsys):
    arguments = folders(tmp_path, "{}.png", np.uint8([0, 1, 1]), "{}.png", np.uint8([0, 1]))
    (tmp_path / "pred" / "b.png").unlink()  # which nobody asks for
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["b"], "test": ["a", "c"]}))
    names = tmp_path / "test.txt"
    names.write_text("images/a.jpg\nday/c\n")
    for flags in (["--split", str(split), "--part", "test"], ["--split", str(names)]):
        found, used = value([*arguments, *flags], capsys)
        assert found == pytest.approx(oracle(["a", "day/c"], 1), abs=1e-12)
        assert used["split"] == flags[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--values", "0: 0, 255: 2"], "values: '255' must stand for a class, by name or number 0..1, or for `ignore`"),
        (["--values", "0: 0"], "holds 9, 255 at "),
        (["--values", "0 0"], "--values must map values to classes, as in"),
        (["--pred-suffix", "*"], "--pred-suffix must be what follows the name"),
        (["--mask-suffix", "_no"], "target: no *{_no.png, _no.tif, "),
        (["--part", "val"], "--part: name the lists of names with --split"),
        (["--split", "s.json"], "--part must be one of train, test (parts of s.json), got None."),
        (["--split", "s.json", "--part", "val"], "--part must be one of train, test (parts of s.json), got 'val'."),
        (
            ["--split", "s.json", "--part", "train"],
            "--split: names that match no image, or several (1 of 2):\n  'x'",
        ),
        (["--split", "l.txt", "--part", "val"], "--part val: l.txt is one list, which has no parts."),
        (["--split", "no.txt"], "no.txt: no such file"),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(tmp_path, capsys, monkeypatch, flags, message):
    arguments = folders(tmp_path, "{}.png", U8, "{}.png", np.uint8([0, 1]))
    monkeypatch.chdir(tmp_path)
    Path("s.json").write_text(json.dumps({"train": ["a", "x"], "test": ["b"]}))
    Path("l.txt").write_text("a\n")
    assert main([*arguments, "--num-classes", "2", "--metric", "miou", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error) < 1050


def test_a_suffix_that_pairs_all_files_is_named(tmp_path, capsys):
    for root, target, pred, hint in (
        ("a", "{}_mask.png", "{}.png", "With `--mask-suffix=_mask` they are paired."),
        ("b", "{}.png", "{}-p.png", "With `--pred-suffix=-p` they are paired."),
        ("c", "{}1.png", "{}2.png", "c/target.\n"),
    ):
        arguments = folders(tmp_path / root, target, np.uint8([0, 1, 1]), pred, np.uint8([0, 1]))
        (tmp_path / root / ("pred" if root == "b" else "target") / "left over.png").touch()
        assert main([*arguments, "--num-classes", "2", "--metric", "miou"]) == 2
        assert hint in capsys.readouterr().err


def test_a_file_that_is_read_is_not_written_over(tmp_path, capsys):
    arguments = folders(tmp_path, "{}.png", np.uint8([0, 1, 1]), "{}.png", np.uint8([0, 1]))
    save(tmp_path / "images" / "a.png", np.zeros((6, 7), np.uint8))
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "val.txt").write_text("a\n")
    (tmp_path / "link.html").symlink_to(tmp_path / "images" / "a.png")
    (tmp_path / "folder").symlink_to(tmp_path / "target")
    os.link(tmp_path / "pred" / "a.png", tmp_path / "hard.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    arguments += ["--num-classes", "2", "--metric", "miou", "--split", str(lists), "--part", "val", "--allow-missing"]
    sheet = ["--images", str(tmp_path / "images"), "--sheet"]
    for option in (
        ["--json", "target/b.png"],  # which is not in the part
        ["--json", "folder/a.png"],
        ["--json", "hard.json"],
        ["--json", "lists/val.txt"],
        [*sheet, "pred/a.png"],
        [*sheet, "link.html"],
    ):
        assert main([*arguments, *option[:-1], str(tmp_path / option[-1])]) == 2, option
        assert f"{option[-1]}: is read by this command; write to another file." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_class_that_is_ignored_is_a_warning(tmp_path, capsys):
    arguments = folders(tmp_path, "{}.png", np.uint8([0, 1, 1]), "{}.png", np.uint8([0, 1]))
    assert main([*arguments, "--num-classes", "2", "--metric", "miou", "--ignore-index", "1", "--json", "-"]) == 0
    captured = capsys.readouterr()
    (warning,) = json.loads(captured.out)["warnings"]
    assert warning == "label 1 is a class, and its pixels are ignored, as --ignore-index says."
    assert captured.err == f"warning: {warning}\n"
