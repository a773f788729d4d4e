"""`autosegloss evaluate` as a user meets it: folders of PNG files, what it prints, and every mistake they can hold."""

import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from autosegloss.cli import main
from autosegloss.errors import DataError, InputError
from autosegloss.metric import parse
from autosegloss.proxy.data.pictures import read_labels
from autosegloss.report.evaluate import LabelFolders, evaluate, split_metrics
from tests import oracles
from tests.examples import examples

Labels = npt.NDArray[np.integer]

CLASSES = 5  # the last one is in no map
SIZES = {"a": (12, 9), "b": (7, 14), "one class": (5, 6), "sub/a": (9, 9), "sub/deep/c": (16, 11), "void": (4, 4)}
METRICS = ["miou", "macc", "gacc", "fwiou", "dice", "bf1(radius=2, background=True)", "miou_i", "miou_c"]


def write(path: Path, labels: Labels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def maps(tmp_path: Path) -> tuple[dict[str, Labels], dict[str, Labels]]:
    """Predictions and labels of several sizes, in the folders `pred` and `target`."""
    rng = np.random.default_rng(5)
    pred, target = {}, {}
    for name, (height, width) in SIZES.items():
        target[name] = np.kron(rng.integers(0, 4, (-(-height // 3), -(-width // 3))), np.ones((3, 3), int))
        target[name] = target[name][:height, :width]
        pred[name] = np.where(rng.random((height, width)) < 0.8, target[name], rng.integers(0, 4, (height, width)))
        target[name] = np.where(rng.random((height, width)) < 0.1, 255, target[name])
    target["one class"][:] = 2
    target["void"][:] = 255
    for name in SIZES:
        write(tmp_path / "pred" / f"{name}.png", pred[name])
        write(tmp_path / "target" / f"{name}.png", target[name])
    return pred, target


def command(folder: Path, *options: str, metric: str = "miou", classes: int = CLASSES) -> list[str]:
    folders = ["--pred", str(folder / "pred"), "--target", str(folder / "target")]
    ignored = () if "--ignore-index" in options else ("--ignore-index", "255")
    return ["evaluate", *folders, "--num-classes", str(classes), "--metric", metric, *ignored, *options]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, re.sub(r"(damaged: ).+", r"\1...", captured.err)  # the rest is Pillow's


def evaluation(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    status, text, error = run([*arguments, "--json", "-"], capsys)
    found: dict = json.loads(text)
    assert (status, error.splitlines()) == (0, [f"warning: {each}" for each in found["warnings"]])
    return found


def oracle(metric: str, pred: list[Labels], target: list[Labels]) -> float:
    if metric.startswith("bf1"):
        return oracles.bf1(pred, target, CLASSES, radius=2)
    return getattr(oracles, metric)(pred, target, CLASSES)


# Values ---------------------------------------------------------------------------------------------------------------


def test_values_over_all_images_are_those_of_the_oracles(maps, tmp_path: Path, capsys) -> None:
    pred, target = ([folder[name] for name in SIZES] for folder in maps)
    found = evaluation(command(tmp_path, metric=",".join(METRICS)), capsys)
    assert (found["images"], found["num_classes"], found["ignore_index"]) == (len(SIZES), CLASSES, 255)
    assert [row["metric"] for row in found["metrics"]] == METRICS
    for row in found["metrics"]:
        assert row["value"] == pytest.approx(oracle(row["metric"], pred, target), abs=1e-12)
        assert row["worst"] == []


def test_values_per_class_are_those_of_the_oracles(maps, tmp_path: Path, capsys) -> None:
    pred, target = ([folder[name] for name in SIZES] for folder in maps)
    count = oracles.Counts(pred, target, CLASSES)
    rows = evaluation(command(tmp_path, metric="miou,macc,dice,miou(background=False),miou_i,miou_c,gacc"), capsys)
    found = {row["metric"]: row["classes"] for row in rows["metrics"]}
    both, either, size = count.both.sum(0), count.either.sum(0), count.target.sum(0)

    def per_image(c: int) -> float:
        return oracles.mean(oracles.ratio(count.both[:, c], count.either[:, c]), count.target[:, c] > 0)

    wanted = {
        "miou": oracles.ratio(both, either),
        "macc": oracles.ratio(both, size),
        "dice": oracles.ratio(2 * both, size + count.pred.sum(0)),
        "miou_i": [per_image(c) for c in range(CLASSES)],
        "miou_c": [per_image(c) for c in range(CLASSES)],
    }
    for metric, values in wanted.items():
        assert found[metric][:4] == pytest.approx(list(values[:4]), abs=1e-12), metric
        assert found[metric][4] is None, metric
    assert found["miou(background=False)"] == [None, *found["miou"][1:]]
    assert found["gacc"] is None


def test_metrics_are_split_at_commas_outside_brackets() -> None:
    text = "miou , bf1(radius=3, background=True),class_mean(total(pred & target) / total(target), where=total(target))"
    assert split_metrics(text) == [
        "miou",
        "bf1(radius=3, background=True)",
        "class_mean(total(pred & target) / total(target), where=total(target))",
    ]
    with pytest.raises(InputError, match="a metric is missing"):
        split_metrics("miou,,bf1")


def test_another_label_can_be_the_ignored_one(maps, tmp_path: Path, capsys) -> None:
    pred, target = maps
    for name in SIZES:
        write(tmp_path / "target" / f"{name}.png", np.where(target[name] == 255, 0, target[name]))
    found = evaluation(command(tmp_path, "--ignore-index", "0"), capsys)
    wanted = oracles.miou(
        [pred[name] for name in SIZES],
        [np.where(target[name] == 255, 0, target[name]) for name in SIZES],
        CLASSES,
        ignored=0,
    )
    assert found["metrics"][0]["value"] == pytest.approx(wanted, abs=1e-12)


# The worst images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("worst", [1, 2, 100])
def test_worst_images_are_those_of_the_lowest_score_alone(maps, tmp_path: Path, capsys, worst: int) -> None:
    pred, target = maps
    rows = evaluation(
        command(tmp_path, "--worst", str(worst), metric="miou,gacc,bf1(radius=2, background=True)"), capsys
    )
    for row in rows["metrics"]:
        scores = {name: oracle(row["metric"], [pred[name]], [target[name]]) for name in SIZES if name != "void"}
        if row["metric"].startswith("bf1"):  # nothing to score: its label has no boundary
            del scores["one class"]
        ranked = sorted(scores, key=lambda name: (scores[name], name))[:worst]
        assert [entry["image"] for entry in row["worst"]] == ranked
        assert [entry["score"] for entry in row["worst"]] == pytest.approx([scores[name] for name in ranked], abs=1e-12)
    assert rows["metrics"][1]["worst_by_class"] == [[]] * CLASSES  # gacc has no classes


def test_worst_images_of_a_class_are_among_those_whose_label_has_it(maps, tmp_path: Path, capsys) -> None:
    pred, target = maps
    (row,) = evaluation(command(tmp_path, "--worst", "3"), capsys)["metrics"]
    for label in range(CLASSES):
        scores = {}
        for name in SIZES:
            count = oracles.Counts([pred[name]], [target[name]], CLASSES)
            if count.target[0, label]:
                scores[name] = count.both[0, label] / count.either[0, label]
        ranked = sorted(scores, key=lambda name: (scores[name], name))[:3]
        found = row["worst_by_class"][label]
        assert [entry["image"] for entry in found] == ranked
        assert [entry["score"] for entry in found] == pytest.approx([scores[name] for name in ranked], abs=1e-12)


# What is printed and written ------------------------------------------------------------------------------------------

TABLES = """\
2 images, 3 classes; label 255 is ignored.
Pixels of the labels: 0 57.1%, 1 28.6%, 255 14.3% (ignored).
Values in %; - if the metric does not count the class:
┏━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━┓
┃          ┃   miou ┃   gacc ┃
┡━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━┩
│ overall  │  65.00 │  83.33 │
├──────────┼────────┼────────┤
│ class 0  │  80.00 │        │
│ class 1  │  50.00 │        │
│ class 2  │      - │        │
└──────────┴────────┴────────┘
Worst images by their own score in %; for a class, of the images whose label has it:
┏━━━━━━━━━━┳━━━━━━━┳━━━━━━━━┳━━━━━━━┓
┃ worst by ┃ class ┃  score ┃ image ┃
┡━━━━━━━━━━╇━━━━━━━╇━━━━━━━━╇━━━━━━━┩
│ miou     │   all │  25.00 │ y     │
│          │     0 │  50.00 │ y     │
│          │     1 │   0.00 │ y     │
├──────────┼───────┼────────┼───────┤
│ gacc     │   all │  50.00 │ y     │
└──────────┴───────┴────────┴───────┘
wrote {path}
"""


def test_the_tables_and_the_file(tmp_path: Path, capsys) -> None:
    write(tmp_path / "target/x.png", np.array([[0, 0, 0, 1]]))
    write(tmp_path / "pred/x.png", np.array([[0, 0, 0, 1]]))
    write(tmp_path / "target/y.png", np.array([[0, 1, 255]]))
    write(tmp_path / "pred/y.png", np.array([[0, 0, 1]]))
    path = tmp_path / "out.json"
    status, text, error = run(
        command(tmp_path, "--worst", "1", "--json", str(path), metric="miou,gacc", classes=3), capsys
    )
    warning = "class 2 has no pixel in the labels, which hold 0 57.1%, 1 28.6%, 255 14.3% (ignored)."
    assert (status, error) == (0, f"warning: {warning}\n")
    assert [line.rstrip() for line in text.splitlines()] == TABLES.format(path=path).splitlines()
    first = path.read_bytes()
    assert run(command(tmp_path, "--worst", "1", "--json", str(path), metric="miou,gacc", classes=3), capsys)[0] == 0
    assert path.read_bytes() == first
    found = json.loads(first)
    assert (found["target_pixels"], found["warnings"]) == ({"0": 4, "1": 2, "255": 1}, [warning])
    assert found["metrics"][0]["value"] == 0.65


@pytest.mark.slow
def test_a_process_shows_progress_on_a_terminal_and_nothing_but_json_in_a_pipe(maps, tmp_path: Path) -> None:
    terminal, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "autosegloss.cli", *command(tmp_path, "--json", "-")],
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        check=True,
    )
    shown = os.read(terminal, 100_000).decode()
    os.close(slave)
    os.close(terminal)
    assert "evaluating" in shown
    assert f"{len(SIZES)}/{len(SIZES)}" in shown
    assert json.loads(done.stdout)["images"] == len(SIZES)


# Kinds of PNG ---------------------------------------------------------------------------------------------------------


def grey_png(labels: Labels, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits a pixel, which Pillow reads but does not write."""
    rows = b""
    for row in labels:
        digits = "".join(f"{label:0{bits}b}" for label in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_maps_of_every_depth(tmp_path: Path, bits: int) -> None:
    labels = np.random.default_rng(bits).integers(0, 2**bits, (5, 7))
    path = tmp_path / "x.png"
    if bits < 8:
        path.write_bytes(grey_png(labels, bits))
    else:
        Image.fromarray(labels.astype(np.uint8 if bits == 8 else np.uint16)).save(path)
    assert (read_labels(path) == labels).all()


def test_a_map_that_pillow_writes_with_1_bit(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 1], [1, 0, 0]])
    Image.fromarray(labels.astype(bool)).save(tmp_path / "x.png")
    assert (read_labels(tmp_path / "x.png") == labels).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_maps_are_read_as_indices(tmp_path: Path, bits: int) -> None:
    labels = np.random.default_rng(bits).integers(0, 2**bits, (5, 7)).astype(np.uint8)
    image = Image.new("P", (7, 5))
    image.putpalette([value for i in range(2**bits) for value in (255 - i, i // 2, 7 * i % 256)])
    image.frombytes(labels.tobytes())
    image.save(tmp_path / "x.png", bits=bits, transparency=0)
    assert (read_labels(tmp_path / "x.png") == labels).all()


def test_more_than_256_classes(tmp_path: Path, capsys) -> None:
    labels = np.array([[0, 299, 65535], [7, 299, 299]], np.uint16)
    for folder, values in (("target", labels), ("pred", np.where(labels == 65535, 8, labels))):
        (tmp_path / folder).mkdir()
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / folder / "x.PNG")
    found = evaluation(command(tmp_path, "--ignore-index", "65535", classes=300), capsys)
    assert found["metrics"][0]["value"] == 1
    assert [label for label, value in enumerate(found["metrics"][0]["classes"]) if value == 1] == [0, 7, 299]


# Labels that can't be meant -------------------------------------------------------------------------------------------


@given(
    target=st.lists(st.sampled_from([0, 1, 2, 255]), min_size=1, max_size=6),
    ignored=st.sampled_from([None, 255, 0]),
    classes=st.sampled_from([3, 300]),
)
@examples(40)
def test_255_is_ignored_by_default_only_where_it_cannot_be_a_class(
    target: list[int], ignored: int | None, classes: int
) -> None:
    ambiguous = ignored is None and 255 in target and (classes == 300 or len({*target}) < 4)
    with tempfile.TemporaryDirectory() as name:
        for folder in ("pred", "target"):
            write(Path(name, folder, "x.png"), np.array([target]) if folder == "target" else np.zeros((1, len(target))))
        folders = LabelFolders(Path(name, "pred"), Path(name, "target"))
        if ambiguous or (ignored == 0 and classes == 3 and 255 in target):
            with pytest.raises(DataError, match="--ignore-index" if ambiguous else "labels out of range") as error:
                evaluate(folders, {"gacc": parse("gacc")}, classes, ignored)
            assert len(str(error.value)) <= 1000
            return
        if ignored == 255 and classes == 300:
            with pytest.raises(InputError, match="ignore_index is 255, the default, which is one of the 300 classes"):
                evaluate(folders, {"gacc": parse("gacc")}, classes, ignored)
            return
        found = evaluate(folders, {"gacc": parse("gacc")}, classes, ignored)
    assert found.ignore_index == ((255 if classes == 3 else -1) if ignored is None else ignored)
    assert found.target_pixels == Counter(target)
    warned = " ".join(found.warnings)
    assert ("no pixel in the labels" in warned) == ({*range(classes)} > {*target} - {255} or classes == 300)
    both = found.ignore_index < classes and found.ignore_index in target
    assert ("is a class, and its pixels are ignored" in warned) == both


# Mistakes -------------------------------------------------------------------------------------------------------------

HINT = "Files are paired by path without extension; --allow-missing skips files without a partner.\n"


def missing_label(folder: Path) -> str:
    (folder / "target/b.png").unlink()
    return f"predictions without a label in {folder}/target (1):\n  b\n"


def missing_prediction(folder: Path) -> str:
    (folder / "pred/sub/a.png").unlink()
    (folder / "pred/a.png").unlink()
    return f"labels without a prediction in {folder}/pred (2):\n  a\n  sub/a\n"


def no_png(folder: Path) -> str:
    path = folder / "pred/void.png"
    Image.new("L", (4, 4)).save(path, "JPEG")
    why = "not a PNG, TIFF, BMP, GIF or .npy file but a JPEG, which changes values"
    return f"files that can't be read (1):\n  {path}: {why}\n"


def cut_off(folder: Path) -> str:
    path = folder / "target/void.png"
    path.write_bytes(path.read_bytes()[:50])
    return f"files that can't be read (1):\n  {path}: damaged: ...\n"


def colours(folder: Path) -> str:
    path = folder / "target/void.png"
    Image.new("RGB", (4, 4)).save(path)
    return (
        "label maps of colours; --values says which class each colour is (1):\n"
        f"  {path}: a label map must have one channel, "
        "grey (1 to 16 bits) or palette, got R, G, B\n"
    )


def another_size(folder: Path) -> str:
    write(folder / "pred/void.png", np.zeros((5, 4)))
    return "sizes that differ (width x height) (1):\n  void: prediction 4 x 5, label 4 x 4\n"


def prediction_out_of_range(folder: Path) -> str:
    path = write(folder / "pred/void.png", np.array([[255, 0, 9, 9]] * 4))
    return f"predictions out of range; allowed: 0..4 (1):\n  {path}: 9, 255 at 12 of 16 pixels\n"


def label_out_of_range(folder: Path) -> str:
    path = write(folder / "target/void.png", np.arange(3, 19).reshape(4, 4))
    return (
        "labels out of range; allowed: 0..4 and 255 (ignored) (1):\n"
        f"  {path}: 5, 6, 7, 8, 9, 10, 11, 12, ... at 14 of 16 pixels\n"
    )


MISTAKES = [
    missing_label,
    missing_prediction,
    no_png,
    cut_off,
    colours,
    another_size,
    prediction_out_of_range,
    label_out_of_range,
]


def outputs(folder: Path) -> list[str]:
    return ["--json", str(folder / "out.json"), "--sheet", str(folder / "sheet.html")]


@pytest.mark.parametrize("spoil", MISTAKES)
def test_a_mistake_is_named_with_its_file_and_nothing_is_written(maps, tmp_path: Path, capsys, spoil) -> None:
    said = spoil(tmp_path)
    count = sum(line.startswith("  ") for line in said.splitlines())
    status, text, error = run(command(tmp_path, *outputs(tmp_path)), capsys)
    assert (status, text) == (2, "")
    assert (
        error
        == (
            f"DataError: {count} mistake{'s' if count > 1 else ''} in the folders; nothing was evaluated or written.\n"
            f"{said}{HINT if 'without a' in said else ''}"
        ).rstrip("\n")
        + "\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"pred", "target"}


def test_all_mistakes_are_listed_in_one_error(maps, tmp_path: Path, capsys) -> None:
    for spoil in (missing_label, missing_prediction, another_size):
        spoil(tmp_path)
    broken, wrong = tmp_path / "target/one class.png", tmp_path / "pred/one class.png"
    broken.write_bytes(b"GIF89a")
    write(wrong, np.full((5, 6), 77))
    status, text, error = run(command(tmp_path, *outputs(tmp_path)), capsys)
    assert (status, text) == (2, "")
    assert error == (
        "DataError: 6 mistakes in the folders; nothing was evaluated or written.\n"
        f"labels without a prediction in {tmp_path}/pred (2):\n  a\n  sub/a\n"
        f"predictions without a label in {tmp_path}/target (1):\n  b\n"
        f"predictions out of range; allowed: 0..4 (1):\n  {wrong}: 77 at 30 of 30 pixels\n"
        f"files that can't be read (1):\n  {broken}: not a PNG, TIFF, BMP, GIF or .npy file\n"
        "sizes that differ (width x height) (1):\n  void: prediction 4 x 5, label 4 x 4\n" + HINT
    )
    assert {path.name for path in tmp_path.iterdir()} == {"pred", "target"}


def test_allow_missing_evaluates_the_pairs_and_says_how_many_files_were_left_out(maps, tmp_path: Path, capsys) -> None:
    pred, target = maps
    missing_label(tmp_path)
    missing_prediction(tmp_path)
    found = evaluation(command(tmp_path, "--allow-missing"), capsys)
    names = [name for name in SIZES if name not in ("a", "b", "sub/a")]
    assert (found["images"], found["labels_left_out"], found["predictions_left_out"]) == (3, 2, 1)
    wanted = oracles.miou([pred[name] for name in names], [target[name] for name in names], CLASSES)
    assert found["metrics"][0]["value"] == pytest.approx(wanted, abs=1e-12)
    status, text, _ = run(command(tmp_path, "--allow-missing"), capsys)
    assert status == 0
    assert text.startswith(
        "3 images, 5 classes; label 255 is ignored; "
        "left out: 2 labels without a prediction, 1 prediction without a label.\n"
    )


@pytest.mark.parametrize("spoil", MISTAKES[2:])
def test_allow_missing_still_refuses_what_is_wrong(maps, tmp_path: Path, capsys, spoil) -> None:
    said = spoil(tmp_path)
    status, _, error = run(command(tmp_path, "--allow-missing"), capsys)
    assert status == 2
    assert said in error


def test_a_name_is_the_same_in_both_forms_of_unicode(tmp_path: Path, capsys) -> None:
    composed, decomposed = (unicodedata.normalize(form, "über/größe") for form in ("NFC", "NFD"))
    assert composed != decomposed
    write(tmp_path / "pred" / f"{decomposed}.png", np.zeros((3, 3)))
    write(tmp_path / "target" / f"{composed}.png", np.zeros((3, 3)))
    found = evaluation(command(tmp_path, "--worst", "1"), capsys)
    assert found["metrics"][0]["worst"] == [{"image": composed, "score": 1.0}]


def test_a_name_that_is_no_text(maps, tmp_path: Path, capsys) -> None:
    (tmp_path / "pred/void.png").rename(tmp_path / os.fsdecode(b"pred/\xff.png"))
    status, text, error = run(command(tmp_path, *outputs(tmp_path)), capsys)
    assert (status, text) == (2, "")
    path = f"{tmp_path}/pred/\\udcff.png"
    assert error == f"DataError: '{path}': the name is not valid UTF-8; rename the file.\n"


def test_a_folder_with_the_name_of_a_file_is_no_map(maps, tmp_path: Path, capsys) -> None:
    before = evaluation(command(tmp_path), capsys)
    for folder in ("pred", "target"):
        (tmp_path / folder / "b.png").rename(tmp_path / "moved.png")
        (tmp_path / folder / "b.png").mkdir()
        (tmp_path / "moved.png").rename(tmp_path / folder / "b.png" / "b.png")
    assert evaluation(command(tmp_path), capsys)["metrics"] == before["metrics"]


def test_a_link_that_leads_nowhere(maps, tmp_path: Path, capsys) -> None:
    path = tmp_path / "pred/void.png"
    path.unlink()
    path.symlink_to("nowhere.png")
    status, _, error = run(command(tmp_path), capsys)
    assert status == 2
    assert f"files that can't be read (1):\n  {path}: No such file or directory\n" in error


def test_pictures_are_checked_too(maps, tmp_path: Path, capsys) -> None:
    for name, (height, width) in SIZES.items():
        path = tmp_path / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(path)
    options = ["--images", str(tmp_path / "images"), "--sheet", str(tmp_path / "sheet.html")]
    assert run(command(tmp_path, *options), capsys)[0] == 0
    (tmp_path / "sheet.html").unlink()
    (tmp_path / "images/a.jpg").unlink()
    (tmp_path / "images/b.jpg").write_bytes(b"?")
    Image.new("RGB", (5, 4)).save(tmp_path / "images/void.jpg")
    broken = tmp_path / "images/one class.png"
    Image.open(broken.with_suffix(".jpg")).save(broken)
    broken.with_suffix(".jpg").unlink()
    broken.write_bytes(broken.read_bytes()[:-24])  # its header is whole
    status, _, error = run(command(tmp_path, *options), capsys)
    assert status == 2
    assert error == (
        "DataError: 4 mistakes in the folders; nothing was evaluated or written.\n"
        f"labels without a picture in {tmp_path}/images (1):\n  a\n"
        f"files that can't be read (2), in {broken.parent}:\n  b.jpg: not a picture\n  {broken.name}: damaged: ...\n"
        "sizes that differ (width x height) (1):\n  void: prediction 4 x 4, label 4 x 4, picture 5 x 4\n" + HINT
    )
    assert not (tmp_path / "sheet.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--pred", "nowhere"], "DataError: nowhere: no such folder.\n"),
        (
            ["--pred", "empty"],
            "DataError: empty: no .png, .tif, .tiff, .bmp, .gif, .npy file in this ",
        ),
        (
            ["--pred", "other"],
            "DataError: nothing to evaluate: none of the 1 predictions has the name of one of the 6 labels. Files are "
            "paired by path without extension; the first names are `a_pred` in other and `a` in target.\n",
        ),
        (["--pred", "twice"], "DataError: twice/a.png and twice/a.PNG have the same name; files are paired by name.\n"),
        (["--metric", "mIoU"], "InputError: unknown metric `mIoU` (did you mean `miou`?)."),
        (["--metric", "miou,"], "InputError: --metric 'miou,miou,': a metric is missing; "),
        (["--metric", "bf1(radius=1"], "ParseError: "),
        (["--num-classes", "0"], "InputError: num_classes must be an integer from 1 to 65536, got 0."),
        (["--num-classes", "x"], "InputError: argument --num-classes: invalid int value: 'x'. See: "),
        (["--worst", "0"], "InputError: --worst must be at least 1, got 0.\n"),
        (["--images", "target"], "InputError: --images: the pictures are shown in the contact sheet; "),
        (["--sheet", "nowhere/sheet.html"], "InputError: nowhere/sheet.html: can't be written: "),
        (["--json", "out", "--sheet", "pred/../out"], "InputError: out: --json and --sheet name the same file.\n"),
        (["--json", "pred"], "InputError: pred: can't be written: it is a folder, or its folder does not exist.\n"),
    ],
)
def test_a_wrong_argument(maps, tmp_path: Path, capsys, monkeypatch, change: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write(Path("other/a_pred.png"), np.zeros((12, 9)))
    for ending in ("png", "PNG"):
        write(Path(f"twice/a.{ending}"), np.zeros((12, 9)))
    given = ["--pred", "pred", "--target", "target", "--num-classes", "5", "--metric", "miou"]
    status, text, error = run(["evaluate", *given, *change], capsys)
    assert (status, text) == (2, "")
    assert error.startswith(message)


def test_files_that_are_no_maps_are_passed_over(maps, tmp_path: Path, capsys) -> None:
    before = evaluation(command(tmp_path), capsys)
    for name in ("notes.txt", "._a.png", ".cache/a.png"):
        path = tmp_path / "pred" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"?")
    assert evaluation(command(tmp_path), capsys) == before


def test_a_file_that_vanished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_labels(tmp_path / "x.png")
