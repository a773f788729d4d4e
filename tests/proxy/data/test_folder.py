"""The options of the data set `folder`: how masks are named, what their values mean, which images are for what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from autosegloss.errors import DataError
from autosegloss.proxy.data import Dataset, load_dataset
from autosegloss.proxy.data.pictures import COLOUR
from autosegloss.proxy.data.splits import alike_neighbours, draw_groups, random_split
from autosegloss.proxy.data.values import read_pairs, read_values

Read = Callable[..., Dataset]
CLASSES = ["ground", "cell", "nucleus"]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def load(**options: Any) -> Dataset:
        given = {"classes": CLASSES, "cache": str(tmp_path / "cache"), **options}
        return load_dataset("folder", **given)

    return load


def labels_of(number: int) -> np.ndarray:
    """The labels that belong to a picture whose pixels are 20 + 80 * label + number."""
    labels = np.zeros((8, 8), np.uint8)
    labels[2:6, 1 : 3 + number % 5] = 1
    labels[6, 3] = 2
    return labels


def write(
    root: Path, names: list[str], mask: Callable[[np.ndarray], Any] = Image.fromarray, form: str = "{}.png"
) -> str:
    for number, name in enumerate(names):
        labels = labels_of(number)
        for path, image in (
            (root / "images" / f"{name}.png", Image.fromarray(np.uint8(20 + 80 * labels + number))),
            (root / "masks" / form.format(name), mask(labels)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, image) if path.suffix == ".npy" else image.save(path)
    return str(root)


def check(data: Dataset, total: int) -> list[list[int]]:
    """The numbers of the images in each part, after their labels are found to be those that belong to them."""
    parts = []
    for split in (data.train, data.heldout, data.validation):
        parts.append([int(image[0, 0, 0]) - 20 for image in split.images])
        for number, labels in zip(parts[-1], split.labels, strict=True):
            np.testing.assert_array_equal(labels, labels_of(number))
    numbers = [number for part in parts for number in part]
    assert len(set(numbers)) == len(numbers) == total
    return parts


def refused(read: Read, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(**options)
    assert len(str(error.value)) <= 1000
    return str(error.value).removeprefix("data set `folder`: ")


# Values


def colours(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.array([[0, 0, 0], [255, 0, 0], [9, 9, 9]], np.uint8)[labels])


def palette(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9])
    return image


GREY = {"0": "ground", "255": 1, "3..9": 2}
COLOURED = {"#000000": 0, "#FF0000": "cell", "#090909": "nucleus"}


def grey(labels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.array([0, 255, 7], np.uint8)[labels])


@pytest.mark.parametrize(
    ("mask", "form", "values"),
    [
        (grey, "{}.png", GREY),
        (grey, "{}.tif", {0: 0, 255: 1, 7: 2}),
        (grey, "{}.gif", {"..6": 0, "10..": 1, "7": 2}),
        (lambda labels: np.array([0, -1, 70_000])[labels], "{}.npy", {"0": 0, "-1": 1, "256..": 2}),
        (colours, "{}.png", COLOURED),
        (colours, "{}.bmp", {"0": 0, "#ff0000": 1, "9": 2}),
        (palette, "{}.png", COLOURED),
        (palette, "{}.png", {"0": 0, "1": 1, "2": 2}),
    ],
)
def test_values_and_colours_are_mapped_to_classes(tmp_path, read, mask, form, values):
    root = write(tmp_path, [f"{number}" for number in range(8)], mask, form)
    data = read(root=root, values=values)
    check(data, 8)
    image, labels = next(iter(data.validation_images()))
    np.testing.assert_array_equal(labels, labels_of(int(image[0, 0, 0]) - 20))


def test_values_may_be_ignored_and_others_are_named(tmp_path, read):
    root = write(tmp_path, [f"{number}" for number in range(8)], grey)
    data = read(root=root, classes=["ground", "cell"], values={"0": 0, "1..9": "ignore", "255": 1})
    assert [np.unique(split.labels).tolist() for split in (data.train, data.heldout)] == [[0, 1, 255]] * 2
    assert [(each.value, each.label) for each in data.values] == [("0", 0), ("7", 255), ("255", 1)]
    same = read(root=root, classes=["ground", "cell"], values={"0": 0, "255": 1}, ignore_index=7)
    np.testing.assert_array_equal(same.train.labels, data.train.labels)
    assert refused(read, root=root, classes=["ground", "cell"], values={"0": 0, "255": 1}).splitlines()[:2] == [
        f"masks hold 0, 7, 255, but the 2 classes are 0, 255 (8), in {root}/masks:",
        "  0.png: 7 at 1 of 64 pixels",
    ]
    write(tmp_path / "colours", [f"{number}" for number in range(8)], colours)
    message = refused(read, root=str(tmp_path / "colours"))
    assert message.startswith(
        f"files that can't be used (8), in {tmp_path}/colours/masks:\n  0.png: a label map must have one "
    )
    assert message.endswith('is which class, as in {0: background, 1..40: cell, 255: ignore, "#ff0000": 2}.')
    message = refused(read, root=str(tmp_path / "colours"), values={"#000000": 0, "#ff0001": 1, "#090909": 2})
    assert message.startswith("masks hold 0, 9, #ff0000, but the 3 classes are 0, 9, #ff0001 (8)")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 255], "values must map values or colours of masks to classes, as in {0: background, "),
        ({}, "values must map values or colours of masks to classes"),
        ({"0": 0, "1-40": 1, "255": 2}, "values: a key must be a value (255), a range (1..40, 1.. or ..9) or a colour"),
        ({"40..1": 0}, "values: a key must be a value (255)"),
        ({"#ff00": 0}, "values: a key must be a value (255)"),
        ({"9" * 400: 0}, "values: a key must be a value (255)"),
        ({True: 0}, "values: a key must be a value (255)"),
        ({"0": 0, "1..40": 1, "40": 2}, "values: '1..40' and '40' overlap."),
        ({"0": 0, "1..": 1, "..-5": 2, "2..3": 1}, "values: '1..' and '2..3' overlap."),
        ({"128": 0, "#808080": 1}, "' overlap."),
        ({"0": 3}, "values: '0' must stand for a class, by name or number 0..2, or for `ignore`, got 3."),
        ({"0": "grund"}, "got 'grund' (did you mean `ground`?)."),
        ({"0": "x" * 5000}, "xxx..."),
        ({"0": None}, "or for `ignore`, got None."),
        ({"0": 0, "1": 1}, "values: no value stands for 'nucleus'."),
    ],
)
def test_values_that_cannot_be_meant_are_refused(tmp_path, read, values, message):
    assert message in refused(read, root=str(tmp_path), values=values)
    named_alike = refused(read, root=str(tmp_path), values={"0": 0, "3": "ignore"}, classes=["a", "ignore"])
    assert named_alike.startswith("values: `ignore` stands for ignored pixels, and there is a class of this name")


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 20), st.integers(0, 2)), min_size=1, max_size=6),
    st.integers(-80, 80),
)
def test_a_value_has_the_class_of_the_range_that_holds_it(ranges, value):
    values = {f"{first}..{first + more}": label for first, more, label in ranges}
    holding = [label for first, more, label in ranges if first <= value <= first + more]
    try:
        found = read_values(values, CLASSES, 255)
    except DataError as error:
        assert "overlap" in str(error)  # noqa: PT017 - not every draw overlaps
        return
    assert found.get(value) == (holding[-1] if holding else None)
    assert found.get(COLOUR + 5) is None


def test_values_on_a_command_line():
    expected = {"0": "background", "1..40": "cell, small", "#ff0000": "2"}
    for text in (
        '{0: background, 1..40: "cell, small", "#ff0000": 2}',
        "0=background,1..40='cell, small',#ff0000=2",
        " 0 : background , 1..40 : 'cell, small' , '#ff0000' : 2 ",
    ):
        assert read_pairs("--values", text) == expected
    for wrong in ("0", "0=", "=1", "0=1,,1=2", "0=0,0=1", "0=1 2=3:"):
        with pytest.raises(DataError, match=r"--values"):
            read_pairs("--values", wrong)


# Names of masks


@pytest.mark.parametrize(
    ("form", "suffix"),
    [("{}_mask.tif", "_mask"), ("{}_mask.png", "_mask.png"), ("gt_{}.bmp", "gt_{name}"), ("{}/mask.npy", "/mask")],
)
def test_masks_with_a_suffix_or_a_pattern(tmp_path, read, form, suffix):
    def mask(labels: np.ndarray) -> Any:
        return labels if form.endswith("npy") else Image.fromarray(labels)

    root = Path(write(tmp_path, [f"{number}" for number in range(8)], mask, form))
    (root / "masks" / "overview.png").write_bytes(b"of another kind")
    apart = check(read(root=str(root), mask_suffix=suffix), 8)
    for path in [*(root / "masks").iterdir()]:
        path.rename(root / "images" / path.name)  # beside the pictures
    (root / "images" / "overview.png").unlink()
    folder = str(root / "images")
    assert check(read(images=folder, masks=folder, mask_suffix=suffix), 8) == apart


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        ("{}_mask.png", "_mask"),
        ("{}1.png", "1"),
        ("gt_{}.png", "gt_{name}"),
        ("m_{}.x.tif", "m_{name}.x"),
        ("x.png", ""),
    ],
)
def test_a_suffix_that_pairs_all_masks_is_named(tmp_path, read, form, suffix):
    names = ["1", "11", "day/1", "day/2"]
    root = tmp_path / "a"
    write(root, names)
    for path in sorted((root / "masks").rglob("*.png"), reverse=True):
        path.rename(path.with_name(form.format(path.stem)))
    what = f"files without a partner of the same name; all are paired with `mask_suffix: {suffix}` ("
    for options in ({}, {"split": {"train": names[:2], "val": names[2:]}}):
        assert refused(read, root=str(root), **options).startswith(
            what if suffix else "files without a partner of the same name ("
        )


# Roots and splits


def test_several_roots_are_one_data_set(tmp_path, read):
    roots = [tmp_path / "one", tmp_path / "two"]
    for root in roots:
        write(root, [f"{number}" for number in range(4)])
    data = read(root=[str(root) for root in roots], heldout=2, validation=2)
    assert len(data.train.images) + len(data.heldout.images) + len(data.validation.images) == 8
    same = read(
        images=[str(root / "images") for root in roots],
        masks=[str(root / "masks") for root in roots],
        heldout=2,
        validation=2,
    )
    np.testing.assert_array_equal(same.train.images, data.train.images)
    assert refused(read, images=[str(roots[0])], masks=[]) == (
        "masks must be the path of a folder, or a list of them, got []."
    )


def test_no_image_is_in_two_parts_by_another_path(tmp_path, read):
    root = write(tmp_path / "one", [f"{number}" for number in range(6)])
    (tmp_path / "two").symlink_to(root)
    assert "in the training and in the validation list" in refused(read, root=root, validation=str(tmp_path / "two"))
    other = write(tmp_path / "other", ["6", "7"])
    message = refused(read, root=[root, str(tmp_path / "two")], heldout=2, validation=other)
    assert "images that are given twice (6), in" in message


SPLIT = {"train": ["a/0", "1", "2.png", "images/b/3.png"], "val": ["4", "a/5"], "test": ["6", "7"]}


def test_a_split_is_kept_whatever_its_form(tmp_path, read):
    root = Path(write(tmp_path, ["a/0", "1", "2", "b/3", "4", "a/5", "6", "7", "8"]))
    (root / "masks" / "6.png").unlink()  # that of a test image, which nobody uses
    (root / "split.json").write_text(json.dumps(SPLIT))
    (root / "lists").mkdir()
    for part, names in SPLIT.items():
        (root / "lists" / f"{part}.txt").write_text("".join(f"{name} masks/{name}\n" for name in names))
    for split in (str(root / "split.json"), str(root / "lists"), SPLIT):
        parts = check(read(root=str(root), split=split, heldout=1), 6)
        assert sorted(parts[0] + parts[1]) == [0, 1, 2, 3]
        assert parts[2] == [4, 5]
    lists = {
        "train": str(root / "lists" / "train.txt"),
        "validation": ["5.png"],
        "heldout": str(root / "lists/test.txt"),
    }
    (root / "images" / "6.png").unlink()
    write(tmp_path, ["a/0", "1", "2", "b/3", "4", "a/5", "6", "7", "8"])
    data = read(root=str(root), split=SPLIT, heldout="val", validation="test")
    assert check(data, 8) == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert len(data.all_training().images) == 6
    assert check(read(root=str(root), split=lists), 7) == [[0, 1, 2, 3], [6, 7], [5]]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"train": ["a/0", "9"], "val": ["4"]},
            "split, `train`: names that match no image, or several (1 of 2):\n  '9': no such",
        ),
        ({"train": ["1"], "val": ["1"]}, "split: names in two places (1):\n  1: train, val"),
        ({"train": ["1", "1.png"], "val": ["4"]}, "'1.png': the same image as '1'"),
        ({"train": ["0"], "val": ["4"]}, "'0': several: a/0, c/0"),
        ({"trian": ["1"]}, "split: 'trian': unknown part; allowed: train, training, val, "),
        ({"val": ["1"]}, "split: there is no list `train`."),
        ({"val": ["1"], "valid": ["2"]}, "split: 'valid': given twice."),
        ({"train": "1"}, "split: `train` must be a list of names or the path of a list (.txt), got '1'."),
        ({"train": "no.txt", "val": ["1"]}, "no.txt: no such file."),
        ({}, "split: must be a JSON file such as"),
        (3, "split: must be a JSON file such as"),
        ("nowhere.json", "split nowhere.json: no such file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_split_that_cannot_be_meant_is_refused(tmp_path, read, split, message):
    root = write(tmp_path, ["a/0", "c/0", "1", "2", "4"])
    assert message in refused(read, root=root, split=split)
    path = tmp_path / "split.json"
    for text, why in (('{"train": ["1"], "train": ["2"]}', "the key 'train' is given twice"), ("[" * 9000, "not JSON")):
        path.write_text(text)
        assert why in refused(read, root=root, split=str(path))
    if isinstance(split, dict) and "train" in split:
        assert "heldout must be a number, a share below 1 or another part of `split`, got 'tst'" in refused(
            read, root=root, split={"train": ["1", "2"], "val": ["4"]}, heldout="tst"
        )


# Groups


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.data())
def test_groups_stay_together_and_as_many_images_are_drawn_as_fit(numbers, data):
    groups = [f"g{number}" for number in numbers]
    number, seed = data.draw(st.integers(1, len(groups) - 1)), data.draw(st.integers(0, 3))
    if len(set(groups)) == 1:
        with pytest.raises(DataError, match=r"all .* images are of one group, 'g"):
            draw_groups("data", "heldout", groups, number, seed)
        return
    rest, part = draw_groups("data", "heldout", groups, number, seed)
    assert sorted(rest + part) == list(range(len(groups)))
    assert rest
    assert part
    assert not {groups[i] for i in rest} & {groups[i] for i in part}
    smallest = min(groups.count(group) for group in set(groups))
    assert len(part) <= max(number, smallest)
    room = number - len(part)
    assert all(groups.count(group) > room for group in {groups[i] for i in rest})  # nothing more would have fitted
    assert draw_groups("data", "heldout", groups, number, seed) == (rest, part)


def test_images_of_a_group_are_never_drawn_apart(tmp_path, read):
    names = [f"drive{drive}/{number:03}" for drive in range(5) for number in range(3)]
    root = write(tmp_path, names)
    maps = {name: f"drive {name[5]}" for name in names}
    (tmp_path / "groups.json").write_text(json.dumps(maps))
    endings = {f"images/{name}.png": int(name[5]) for name in names} | {"other": 9}
    members = {number: [f"{name}.png" for name in names if int(name[5]) == number] for number in range(5)}
    parts = []
    for groups in (r"^drive(\d)", "^[^/]+", str(tmp_path / "groups.json"), maps, endings, members):
        data = read(root=root, groups=groups)
        parts.append(check(data, 15))
        assert [len(part) for part in parts[-1]] == [9, 3, 3]
        assert all(len({number // 3 for number in part}) == len(part) // 3 for part in parts[-1])
        assert data.warnings == ()
    assert parts == parts[:1] * 6
    plain = read(root=root)
    assert check(plain, 15) == drawn_as_ever(15)
    assert "look like neighbours of one sequence" in plain.warnings[0]
    split = {"train": names[:7], "val": names[7:]}
    (shared,) = read(root=root, split=split, groups="^[^/]+", heldout=3).warnings
    assert shared.startswith("data set `folder`: the group 'drive2' has images in two parts, ")
    assert shared.endswith(" and validation: results on the second are too good.")


def test_images_of_a_validation_folder_share_no_group_with_the_others(tmp_path, read):
    names = [f"drive{drive}/{number:03}" for drive in range(4) for number in range(2)]
    root, other = write(tmp_path / "a", names), write(tmp_path / "b", ["v", "w"])
    for groups in (
        r"^drive\d",
        {f"drive{drive}": [name for name in names if name[5] == str(drive)] for drive in range(4)},
    ):
        data = read(root=root, validation=other, groups=groups)
        assert [len(part.images) for part in (data.train, data.heldout, data.validation)] == [6, 2, 2]
    message = refused(read, root=root, validation=write(tmp_path / "c", ["drive2/9", "v"]), groups=r"^drive\d")
    assert message.startswith("groups: the group 'drive2' has images in two parts, ")


def drawn_as_ever(total: int) -> list[list[int]]:
    """The parts without groups: two plain draws, of which earlier results depend."""
    rest, validation = random_split("data", "validation", total, 0.2, 0)
    kept, heldout = random_split("data", "heldout", len(rest), 0.2, 0)
    return [[rest[i] for i in kept], [rest[i] for i in heldout], validation]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("(", "groups: '(' is no regular expression: "),
        (r"^b\d", "groups: images without a group (6 of 6):\n  a0"),
        ("a", "validation: all 6 images are of one group, 'a'; nothing can be drawn"),
        ("nowhere.json", "groups nowhere.json: no such file."),
        (7, "groups must be a regular expression such as"),
        ({"a0": None}, "groups must be a regular expression such as"),
        ({"a0": "x"}, "groups: images without a group (5 of 6):"),
        ({"g": [7.5]}, "groups must be a regular expression such as"),
        (
            {"g": ["a0", "a1"], "h": ["a1.png"]},
            "groups: 'a1' is in two groups, 'g' (as 'a1') and 'h' (as 'a1.png').",
        ),
    ],
)
def test_groups_that_cannot_be_meant_are_refused(tmp_path, read, groups, message):
    assert message in refused(read, root=write(tmp_path, [f"a{number}" for number in range(6)]), groups=groups)


def test_neighbours_are_named_where_they_are_in_two_parts():
    assert alike_neighbours({"training": ["img_1", "img_3"], "held-out": ["img_2"]}) == (
        "`img_1` (training) and `img_2` (held-out) look like neighbours of one sequence, and 1 more such pairs. If "
        "neighbours are alike (frames of a drive, slices of a patient), results are too good: set `groups`, which "
        "keeps the images of a group together."
    )
    assert "'^(.*?)\\d+$'" in alike_neighbours({"training": ["a_1", "b_1"], "held-out": ["a_2"]})
    assert alike_neighbours({"training": ["1", "3", "a_1"], "held-out": ["2", "b_2"]}) == ""
