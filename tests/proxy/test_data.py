"""Data sets: what is in them, that they never change, and that their splits share nothing."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from autosegloss.errors import DataError
from autosegloss.proxy.data import Dataset, Split, load_dataset, nuclei

needs_samples = pytest.mark.skipif(
    find_spec("stardist") is None or find_spec("PIL") is None, reason="the extra `samples` is not installed"
)


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return load_dataset("shapes")


def splits(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "heldout": dataset.heldout, "validation": dataset.validation}


def check_form(dataset: Dataset) -> None:
    for split in splits(dataset).values():
        assert split.images.dtype == split.labels.dtype == np.uint8
        assert split.images.shape == (len(split.labels), 3, 64, 64)
        assert split.labels.shape[1:] == (64, 64)
        assert set(np.unique(split.labels)) == set(range(len(dataset.classes)))


def test_shapes_have_the_form_of_a_dataset(shapes):
    check_form(shapes)
    assert [len(split.images) for split in splits(shapes).values()] == [256, 128, 256]
    assert shapes.ignore_index == 255


@pytest.mark.parametrize("name", ["train", "heldout", "validation"])
def test_shapes_have_the_shares_they_document(shapes, name):
    labels = splits(shapes)[name].labels
    shares = 100 * np.bincount(labels.ravel(), minlength=6) / labels.size
    np.testing.assert_allclose(shares, [75.7, 13.9, 6.1, 3.2, 0.97, 0.24], rtol=0.06)


def test_shapes_are_the_same_every_time_and_leave_the_global_generator_alone(shapes):
    before = np.random.get_state()[1].tobytes()
    again = load_dataset("shapes", seed=0)
    for name, split in splits(again).items():
        assert split.images.tobytes() == splits(shapes)[name].images.tobytes()
        assert split.labels.tobytes() == splits(shapes)[name].labels.tobytes()
    assert np.random.get_state()[1].tobytes() == before


def test_the_seed_of_shapes_decides_every_image(shapes):
    other = load_dataset("shapes", seed=1)
    images = [split.images for dataset in (shapes, other) for split in splits(dataset).values()]
    distinct = {image.tobytes() for part in images for image in part}
    # No image occurs twice: not within a split, not across splits, not across seeds.
    assert len(distinct) == sum(len(part) for part in images)


@pytest.mark.parametrize("seed", [-1, 0.5, "0"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(DataError) as error:
        load_dataset("shapes", seed=seed)
    assert str(error.value) == f"data set `shapes`: seed must be a non-negative integer, got {seed!r}."
    with pytest.raises(DataError, match="annotators must be a non-negative integer, got True"):
        load_dataset("shapes", annotators=True)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(DataError) as error:
        load_dataset("shape")
    assert str(error.value) == (
        "unknown data set `shape` (did you mean `shapes`?); known: ade20k, cityscapes, folder, mni152, nuclei, shapes, "
        "voc, and `module:function` for your own."
    )


def test_an_unknown_option_is_refused():
    with pytest.raises(DataError) as error:
        load_dataset("shapes", sed=1)
    assert (
        str(error.value) == "data set `shapes`: unknown option `sed` (did you mean `seed`?); allowed: seed, annotators."
    )
    with pytest.raises(DataError) as error:
        load_dataset("nuclei", tile=32)
    assert str(error.value) == "data set `nuclei`: unknown option `tile`; allowed: none."


@needs_samples
def test_nuclei_have_the_form_of_a_dataset():
    dataset = load_dataset("nuclei")
    check_form(dataset)
    assert dataset.classes == ("background", "interior", "border")
    assert "stardist" not in sys.modules  # it is found, not imported


@needs_samples
def test_nuclei_splits_lie_16_columns_apart():
    dataset, image = load_dataset("nuclei"), nuclei._read("img2d.tif")

    def found(split: Split) -> tuple[int, int]:
        """First and last column of the image that the split's tiles come from, found by looking for each tile."""
        windows = np.lib.stride_tricks.sliding_window_view(image, (64, 64))
        columns = []
        for tile in split.images[:, 0]:
            row, column = np.argwhere(windows[:, :, 0, 0] == tile[0, 0]).T
            same = (windows[row, column] == tile).all(axis=(1, 2))
            assert same.sum() == 1
            columns.append(int(column[same][0]))
        return min(columns), max(columns) + 64

    (first, train), (heldout, heldout_end), (validation, last) = (
        found(Split(split.images[-40:], split.labels[-40:])) for split in splits(dataset).values()
    )
    assert (first, last) == (0, 512)
    assert heldout - train >= 16
    assert validation - heldout_end >= 16
    for split in (dataset.heldout, dataset.validation):
        assert split.images[:, 0].size == 512 * 128  # whole, and no pixel twice


@needs_samples
def test_the_border_of_a_nucleus_touches_something_else():
    numbered = nuclei._read("mask2d.tif")[:48, :160]  # has nuclei that touch, and some at the image's border
    labels = nuclei._classes(numbered)
    for row, column in np.ndindex(numbered.shape):
        around = numbered[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        own = numbered[row, column]
        assert labels[row, column] == (0 if own == 0 else 2 if (around != own).any() else 1)


def test_nuclei_without_the_package_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(DataError) as error:
        load_dataset("nuclei")
    assert str(error.value) == (
        "data set `nuclei`: the stardist package, which ships the image, is not installed: "
        'pip install "autosegloss[samples]".'
    )
    (tmp_path / "stardist").mkdir()
    (tmp_path / "stardist" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(DataError, match=r"stardist package.* has no img2d\.tif"):
        load_dataset("nuclei")
