"""Readers of data in files: what they read, whatever the layout, and what they say of files that can't be used."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from autosegloss.errors import DataError
from autosegloss.proxy.data import Dataset, Split, load_dataset, mni152
from autosegloss.proxy.data.cache import _covering
from tests import layouts
from tests.examples import examples

needs_nilearn = pytest.mark.skipif(
    find_spec("nilearn") is None or find_spec("nibabel") is None, reason="the extra `samples` is not installed"
)

MAKE: dict[str, Callable[[Path], Path]] = {
    "voc": layouts.voc,
    "cityscapes": layouts.cityscapes,
    "ade20k": layouts.ade20k,
    "folder": layouts.folder,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "voc": {"heldout": 3},
    "cityscapes": {"heldout": 3},
    "ade20k": {"heldout": 2},
    "folder": {"classes": 3, "ignore_index": 9},
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Dataset]:
    """Reads a data set with a cache of its own."""

    def load(name: str, root: Path, **options: Any) -> Dataset:
        given = {"root": str(root), "cache": str(tmp_path / "cache"), **OPTIONS[name], **options}
        return load_dataset(name, **given)

    return load


def values(path: Path) -> NDArray[np.uint8]:
    """The numbers in a mask, as they lie in the file."""
    with Image.open(path) as image:
        return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width)


def rows(split: Split) -> set[bytes]:
    return {labels.tobytes() for labels in split.labels}


def as_they_are(folder: Path, pattern: str, train_ids: NDArray[np.uint8]) -> set[bytes]:
    """The labels of all masks of a folder, in train ids."""
    return {train_ids[values(path)].tobytes() for path in folder.rglob(pattern)}


def test_voc_is_read_as_its_palette_says(tmp_path, read):
    root = layouts.voc(tmp_path / "VOC2012")
    for path in (*(root / "JPEGImages").iterdir(), *(root / "SegmentationClass").iterdir()):
        with Image.open(path) as image:  # one size, at which nothing is resized
            shape = (image.height, image.width)
        if shape != (48, 40):
            path.unlink()
    for name in ("train", "val"):
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.write_text("".join(line + "\n" for line in path.read_text().split() if int(line[-3:]) % 2 == 0))
    dataset = read("voc", root, size=[48, 40], heldout=2)
    same = np.arange(256, dtype=np.uint8)
    assert rows(dataset.train) | rows(dataset.heldout) | rows(dataset.validation) == as_they_are(
        root / "SegmentationClass", "*.png", same
    )
    assert (len(dataset.train.labels), len(dataset.heldout.labels), len(dataset.validation.labels)) == (2, 2, 2)
    assert (len(dataset.classes), dataset.classes[0], dataset.classes[20]) == (21, "background", "tvmonitor")
    assert 255 in dataset.train.labels
    # The picture belongs to its labels: JPEG at quality 95 keeps flat colours.
    inside = dataset.validation.labels == 0
    shown = dataset.validation.images.transpose(0, 2, 3, 1)[inside].astype(int)
    assert np.median(np.abs(shown - layouts.COLOURS[0]), axis=0).max() < 12


def test_the_larger_list_of_voc_is_taken_where_it_is(tmp_path, read):
    plain = read("voc", layouts.voc(tmp_path / "plain"), heldout=3)
    larger = read("voc", layouts.voc(tmp_path / "larger", augmented=True), heldout=3)
    assert (len(plain.train.labels), len(larger.train.labels)) == (5, 13)
    assert "training list `train`" in plain.note
    assert "training list `trainaug`" in larger.note
    assert layouts.digest(plain.validation) == layouts.digest(larger.validation)


def test_an_image_in_both_lists_of_voc_is_refused(tmp_path, read):
    root = layouts.voc(tmp_path / "VOC2012")
    with (root / "ImageSets/Segmentation/train.txt").open("a") as file:
        file.write("2012_101\n2012_100\n")
    with pytest.raises(DataError) as error:
        read("voc", root)
    assert str(error.value) == (
        f"data set `voc`: images in the training and in the validation list (2), in {root}/JPEGImages:\n"
        "  2012_100.jpg\n  2012_101.jpg"
    )


def test_cityscapes_has_the_19_train_ids(tmp_path, read):
    root = layouts.cityscapes(tmp_path / "cityscapes")
    every = np.arange(34, dtype=np.uint8).repeat(64).reshape(34, 64)[:32]
    name = "ulm_000000_000019"
    layouts.write(root / "gtFine/train/ulm" / f"{name}_gtFine_labelIds.png", every)
    dataset = read("cityscapes", root, size=[32, 64])
    # Train ids in the order of the ids 0..33, as the data set's own scripts list them.
    official = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, *range(6, 16), 255, 255, 16, 17, 18]
    train_ids = np.full(256, 255, np.uint8)
    train_ids[:34] = official
    masks = as_they_are(root / "gtFine", "*_labelIds.png", train_ids)
    assert rows(dataset.train) | rows(dataset.heldout) | rows(dataset.validation) == masks
    assert (len(dataset.train.labels), len(dataset.heldout.labels), len(dataset.validation.labels)) == (5, 3, 4)
    assert (len(dataset.classes), dataset.classes[0], dataset.classes[18]) == (19, "road", "bicycle")


def test_ade20k_counts_from_1_and_ignores_0(tmp_path, read):
    root = layouts.ade20k(tmp_path / "ADEChallengeData2016")
    dataset = read("ade20k", root, size=[40, 48])
    masks = as_they_are(root / "annotations", "*.png", np.arange(256, dtype=np.uint8) - 1)  # 0 - 1 is 255
    assert rows(dataset.train) | rows(dataset.heldout) | rows(dataset.validation) == masks
    assert dataset.classes[149] == "name 150"
    (root / "objectInfo150.txt").unlink()
    assert read("ade20k", root).classes[149] == "150"


def test_a_folder_is_read_with_its_names(tmp_path, read):
    root = layouts.folder(tmp_path / "mine")
    names = ["ground", "cat", "dog"]
    dataset = read("folder", root, classes=names)
    known = np.arange(256, dtype=np.uint8)
    known[9] = 255
    assert rows(dataset.train) | rows(dataset.heldout) | rows(dataset.validation) == as_they_are(
        root / "masks", "*.png", known
    )
    assert dataset.classes == tuple(names)
    assert [len(split.labels) for split in (dataset.train, dataset.heldout, dataset.validation)] == [6, 2, 2]
    assert "drawn from the same folder" in dataset.note
    apart = load_dataset(
        "folder",
        images=str(root / "images"),
        masks=str(root / "masks"),
        cache=str(tmp_path / "cache"),
        **OPTIONS["folder"],
    )
    assert layouts.digest(apart.train) == layouts.digest(dataset.train)


def test_a_folder_may_have_another_for_validation(tmp_path, read):
    root, other = layouts.folder(tmp_path / "mine"), layouts.folder(tmp_path / "other", images=3)
    dataset = read("folder", root, validation=str(other), heldout=4)
    assert [len(split.labels) for split in (dataset.train, dataset.heldout, dataset.validation)] == [6, 4, 3]
    assert dataset.note == ""


@pytest.mark.parametrize("name", MAKE)
def test_a_seed_draws_what_is_held_out_from_the_training_list_only(tmp_path, read, name):
    root = MAKE[name](tmp_path / "data")
    validation = ({"validation": str(layouts.folder(tmp_path / "other"))}) if name == "folder" else {}
    first, again, other = (read(name, root, seed=seed, **validation) for seed in (0, 0, 1))
    assert layouts.digest(first.heldout) == layouts.digest(again.heldout) != layouts.digest(other.heldout)
    together = [[*dataset.train.images, *dataset.heldout.images] for dataset in (first, other)]
    assert sorted(image.tobytes() for image in together[0]) == sorted(image.tobytes() for image in together[1])
    assert layouts.digest(first.validation) == layouts.digest(other.validation)


@given(
    height=st.integers(9, 60),
    width=st.integers(9, 60),
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    across=st.booleans(),
)
def test_pictures_and_labels_keep_to_each_other_when_resized(height, width, size, across):
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2, :] = 1
    if across:
        labels = np.zeros((height, width), np.uint8)
        labels[:, : width // 2] = 1
    small = np.asarray(_covering(Image.fromarray(labels), size, Image.Resampling.NEAREST))
    shown = np.asarray(_covering(Image.fromarray(255 * labels), size, Image.Resampling.BILINEAR))
    assert small.shape == shown.shape == size
    # Nothing is stretched: of a step across the middle, what is kept is the middle.
    scale = max(size[0] / height, size[1] / width)
    length, whole = (size[1], width) if across else (size[0], height)
    expected = (whole // 2 - whole / 2) * scale + length / 2
    for row in small if across else small.T:
        assert abs(row.sum() - expected) <= 1
    for row in shown if across else shown.T:
        assert abs(row.sum() / 255 - expected) <= 1


@pytest.mark.parametrize("name", MAKE)
def test_a_folder_that_is_not_there_says_what_was_expected_and_who_has_it(tmp_path, read, name):
    with pytest.raises(DataError) as error:
        read(name, tmp_path / "nowhere")
    first, *advice = str(error.value).splitlines()
    assert first.startswith(f"data set `{name}`: {tmp_path}/nowhere/")
    assert "`root` is " in advice[0]
    assert "://" not in str(error.value)
    words = {"voc": "from its site", "cityscapes": "from the site", "ade20k": "from the site", "folder": "masks (PNG"}
    assert words[name] in " ".join(advice)


def test_missing_files_are_all_listed_before_any_is_read(tmp_path, read):
    root = layouts.voc(tmp_path / "VOC2012")
    gone = ["JPEGImages/2012_001.jpg", "SegmentationClass/2012_002.png", "SegmentationClass/2012_101.png"]
    for name in gone:
        (root / name).unlink()
    (root / "JPEGImages/2012_003.jpg").write_bytes(b"damaged too")
    with pytest.raises(DataError) as error:
        read("voc", root)
    lines = str(error.value).splitlines()
    assert lines[:4] == [f"data set `voc`: missing files (3), in {root}:", *(f"  {name}" for name in gone)]
    assert lines[4].startswith("`root` is the folder VOC2012")
    os.mkfifo(root / gone[0])
    (root / gone[1]).mkdir()
    with pytest.raises(DataError) as error:
        read("voc", root)
    lines = str(error.value).splitlines()
    assert lines[0] == f"data set `voc`: folders, pipes or devices in place of files (2), in {root}:"
    assert lines[1:5] == [*(f"  {name}" for name in gone[:2]), "missing files (1):", f"  {root}/{gone[2]}"]


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "folder"])
def test_files_without_a_partner_are_all_listed(tmp_path, read, name):
    root = MAKE[name](tmp_path / "data")
    masks = sorted(path for path in root.rglob("*.png") if "asks" in str(path) or "labelIds" in path.name)
    masks = masks or sorted((root / "annotations").rglob("*.png"))
    masks[0].unlink()
    masks[-1].rename(masks[-1].with_name("stray" + masks[-1].name))
    with pytest.raises(DataError, match=r"files without a partner of the same name \(3\)") as error:
        read(name, root)
    assert str(error.value).count("has no label map in") == 2
    assert str(error.value).count("has no picture in") == 1


def test_all_files_that_cannot_be_used_are_listed_at_once(tmp_path, read):
    root = layouts.folder(tmp_path / "mine", images=16)
    images, masks = sorted((root / "images").rglob("*.jpg")), sorted((root / "masks").rglob("*.png"))
    good = np.zeros((32, 32), np.uint8)
    images[0].write_bytes(images[0].read_bytes()[:200])
    images[1].write_text("no picture")
    images[2].unlink()
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(images[2], format="PNG")
    layouts.write(images[3], layouts.picture(good[:16]))
    masks[4].write_bytes(masks[4].read_bytes()[:60])
    Image.fromarray(layouts.picture(good)).save(masks[5])
    layouts.write(masks[6], np.full((32, 32), 4, np.uint8))
    Image.fromarray(np.full((32, 32), 3000, np.uint16)).save(masks[7])
    layouts.write(masks[8], good[:, :30])
    for options in ({"validation": 3}, {"validation": 0.3, "seed": 1}):  # in whichever part they are
        with pytest.raises(DataError) as error:
            read("folder", root, size=32, **options)
        message = str(error.value)
        assert message.startswith(
            f"data set `folder`: files that can't be used (7), in {root}:\n  images/00.jpg: damaged: "
        )
        assert (
            f"\nmasks hold 0..2, 4, 9, 3000, but the 3 classes are 0..2, and 9 (ignored) (2), in {root}/masks"
            in message
        )
        for path, why in (
            (images[1], "not a picture"),
            (masks[3], "must be 32 x 16 (width x height), like its picture, got 32 x 32 (width x height)"),
            (masks[6], "4 at 1024 of 1024 pixels"),
            (masks[7], "3000 at 1024 of 1024 pixels"),
        ):
            assert any(line.endswith(f"{path.name}: {why}") for line in message.splitlines()), (why, message)
        assert len(message) <= 1000
        (cache,) = (path for path in tmp_path.iterdir() if path.name == "cache")
        assert not any(path.suffix for path in cache.iterdir()), "nothing of a failed build stays"


def test_pictures_of_several_sizes_want_a_size(tmp_path, read):
    root = layouts.folder(tmp_path / "mine")
    odd = sorted((root / "images").rglob("*.jpg"))[0]
    shutil.copy(layouts.folder(tmp_path / "other", size=(48, 32)) / "images/00.jpg", odd)
    shutil.copy(tmp_path / "other/masks/00.png", root / "masks/00.png")
    with pytest.raises(DataError, match=r"the pictures have 2 different sizes; set the option `size`") as error:
        read("folder", root, heldout=1, validation=1, seed=1)
    assert f"32 x 48 (width x height), e.g. {odd}" in str(error.value)
    assert read("folder", root, size=16, heldout=1, validation=1, seed=1).train.images.shape == (8, 3, 16, 16)


def test_masks_of_black_and_white_are_not_taken_for_ignored_pixels(tmp_path, read):
    root = layouts.folder(tmp_path / "mine")
    for path in (root / "masks").rglob("*.png"):
        layouts.write(path, np.where(values(path) == 1, 255, 0).astype(np.uint8))
    with pytest.raises(DataError) as error:
        read("folder", root, classes=["ground", "cell"], ignore_index=255)
    assert str(error.value) == (
        "data set `folder`: the training labels must hold at least two classes, but all pixels are `ground`. "
        "The masks hold 0 (`ground`), 255 (ignored)."
    )
    with pytest.raises(DataError) as error:
        read("folder", root, classes=["ground", "cell"], ignore_index=None)
    ignored = 100 * np.mean([values(path) == 255 for path in (root / "masks").rglob("*.png")])
    assert str(error.value) == (
        f"data set `folder`: {ignored:.1f}% of the pixels are 255, which is read as ignored by default, but class 1, "
        "`cell`, has no pixel. The masks hold 0 (`ground`), 255 (ignored). If 255 marks ignored pixels, set "
        "`ignore_index: 255`; if it marks a class, map it: `values: {0: 0, 255: 1}`."
    )


VALUES = st.sampled_from([0, 1, 2, 3, 9, 254, 255, 256, 65535])


@given(
    masks=st.lists(hnp.arrays(np.uint16, (2, 3), elements=VALUES), min_size=3, max_size=3),
    classes=st.integers(2, 4),
    ignored=st.sampled_from([None, 3, 9, 255, 65535]),
)
@examples(25)
def test_masks_of_any_values_are_read_or_refused_with_these_values(
    masks: list[NDArray[np.uint16]], classes: int, ignored: int | None
) -> None:
    """An oracle of what is refused: values that are neither classes nor ignored, and labels that can't be meant."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number, mask in enumerate(masks):
            layouts.write(root / "images" / f"{number}.png", np.full((2, 3, 3), 10 * number, np.uint8))
            layouts.write(root / "masks" / f"{number}.png", mask)
        options = {"classes": classes, "ignore_index": ignored, "validation": 1, "heldout": 1}
        label = 255 if ignored is None else ignored
        everything = np.concatenate(masks)
        wrong = {*everything[everything != label].tolist()} - {*range(classes)}
        absent = {*range(classes)} - {*everything.ravel().tolist()}
        try:
            dataset = load_dataset("folder", root=str(root), cache=str(root / "cache"), **options)
        except DataError as error:
            message = str(error)
            assert len(message) <= 1000
            if "ignore_index must be" in message:
                assert label < classes
            elif "masks hold" in message and "classes are" in message:
                assert wrong
            elif "read as ignored by default" in message:
                assert not wrong
                assert ignored is None
                assert absent
                assert label in everything
            else:
                assert "at least two classes" in message
                assert any(len({*mask.ravel().tolist()} - {label}) < 2 for mask in masks)
            return
        assert not wrong
        assert not (ignored is None and absent and label in everything)
        found = {each.value: each.pixels for each in dataset.values}
        assert found == {str(value): int((everything == value).sum()) for value in np.unique(everything)}
        parts = (dataset.train, dataset.heldout, dataset.validation)
        for split in parts:
            (mask,) = (mask for number, mask in enumerate(masks) if (split.images == 10 * number).all())
            assert (split.labels[0] == np.where(mask == label, 255, mask)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"heldout": 0},
            "heldout must leave images on both sides, as a number of the 8 images or",
        ),
        ({"heldout": 8}, "heldout must .* got 8"),
        ({"heldout": 1.5}, r"heldout must .* got 1\.5"),
        ({"heldout": "many"}, "heldout must .* got 'many'"),
        ({"validation": True}, "validation must .* of the 10 images .* got True"),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"size": [32]}, r"size must be integers from 1 to 16384, one side or \[height, width\], got \[32\]"),
        ({"size": 0}, "size must .* got 0"),
        ({"size": True}, "size must .* got True"),
        ({"classes": 1}, "classes must be 2 to 255 distinct names or their number, got 1"),
        ({"classes": ["a", "a"]}, r"classes must .* got \['a', 'a'\]"),
        ({"ignore_index": "none"}, "ignore_index must be an integer from 3 to 65535, above the classes, got 'none'"),
        ({"ignore_index": 2}, "ignore_index must be an integer from 3 to 65535, above the classes, got 2"),
        ({"images": "elsewhere"}, "give either `root`, or both `images` and `masks`"),
        ({"cache": 3}, r"proxy\.data\.cache must be the path of a folder, got 3"),
        ({"rot": "a"}, r"unknown option `rot` \(did you mean `root`\?\)"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, read, options, message):
    with pytest.raises(DataError, match=message):
        read("folder", layouts.folder(tmp_path / "mine"), **options)


def test_an_option_that_is_needed_is_named():
    with pytest.raises(DataError, match=r"data set `voc`: missing option `root`; set proxy\.data\.root\."):
        load_dataset("voc")


@needs_nilearn
@pytest.mark.slow
def test_slices_of_the_template_lie_apart_in_one_hemisphere():
    dataset = load_dataset("mni152")
    image = mni152._read("t1")
    assert np.array_equal(image, image[::-1]), "the other hemisphere would show what is known already"
    found = {}
    for name in ("train", "heldout", "validation"):
        split = getattr(dataset, name)
        assert set(np.unique(split.labels)) == {0, 1, 2}
        assert split.images.shape == (len(split.labels), 3, 160, 96)
        upright = image[3:99, :, :160].transpose(1, 2, 0)[:, ::-1]
        found[name] = [int(np.flatnonzero((upright == each).all(axis=(1, 2)))[0]) for each in split.images[:, 0]]
    gaps = [abs(one - other) for a in found for b in found if a != b for one in found[a] for other in found[b]]
    assert min(gaps) == 9, "eight slices of 1 mm are left out"
    assert [len(set(numbers)) for numbers in found.values()] == [80, 20, 20]
    assert "one brain" in dataset.note


def test_the_template_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(DataError, match=r"the nilearn package, which ships the template, .*autosegloss\[samples\]"):
        load_dataset("mni152")
