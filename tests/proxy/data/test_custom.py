"""Data of one's own, from a function that returns torch's data sets."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from autosegloss.errors import DataError, InputError
from autosegloss.proxy.data import load_dataset
from tests import layouts
from tests.layouts import Squares, scene, squares

NAME = "tests.layouts:squares"


@pytest.mark.parametrize("form", ["bytes", "floats", "pil"])
def test_images_and_labels_are_read_in_every_form(form):
    dataset = load_dataset(NAME, form=form)
    labels = np.stack([scene(number, 32, 32, range(3), void=7) for number in range(10)])
    pixels = layouts.picture(labels).transpose(0, 3, 1, 2)
    labels[labels == 7] = 255
    assert (dataset.classes, dataset.ignore_index) == (("ground", "red", "green"), 255)
    read = [*zip(dataset.train.images, dataset.train.labels, strict=True)]
    read += zip(dataset.heldout.images, dataset.heldout.labels, strict=True)
    assert len(read) == 10
    assert len(dataset.heldout.labels) == 3
    for image, map_ in read:
        (number,) = np.flatnonzero((labels == map_).all(axis=(1, 2)))
        assert np.array_equal(image, pixels[number])
    # A worker asks the function again.
    assert layouts.digest(pickle.loads(pickle.dumps(dataset)).validation) == layouts.digest(dataset.validation)


def given(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let the function return something else."""
    monkeypatch.setattr(layouts, "squares", lambda: {**squares(), **changes})


def test_what_is_held_out_may_be_a_data_set(monkeypatch):
    given(monkeypatch, heldout=Squares(2, first=50))
    dataset = load_dataset(NAME)
    assert (len(dataset.train.labels), len(dataset.heldout.labels)) == (10, 2)


def test_all_items_that_cannot_be_used_are_listed(monkeypatch):
    good = np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8), int)
    items = [
        good,
        (good[0][:2], good[1]),
        (good[0].astype(int), good[1]),
        (good[0], good[1] + 3),
        (good[0], good[1].astype(float)),
        (good[0], good[1][:4]),
        (good[0][:, :4], good[1][:4]),
        good[:1],
        (good[0] - 0.5, good[1]),
    ]
    given(monkeypatch, train=items, heldout=Squares(2))
    with pytest.raises(DataError) as error:
        load_dataset(NAME)
    first, *lines = str(error.value).splitlines()
    assert first == "data set `tests.layouts:squares`: items that can't be used (8):"
    for number, why in enumerate(
        (
            "an image must have shape (3, H, W), (1, H, W) or (H, W), got (2, 8, 8)",
            "an image must be uint8 or floating, got int64",
            "labels must be 0..2, and 7 (ignored), got 3",
            "labels must be integers of shape (H, W), got float64 of shape (8, 8)",
            "all must have one size (height, width), got image (8, 8), labels (4, 8), the first labels (8, 8)",
            "all must have one size (height, width), got image (4, 8), labels (4, 8), the first labels (8, 8)",
            "not enough values to unpack (expected 2, got 1)",
            "a floating image must lie in [0, 1], got -0.5 to -0.5; leave normalisation to the proxy",
        ),
        start=1,
    ):
        assert lines[number - 1] == f"  train[{number}]: {why}"


def test_a_function_that_is_none_or_returns_something_else_is_refused(monkeypatch):
    with pytest.raises(InputError, match=r"data set `tests\.layouts:nothing`"):
        load_dataset("tests.layouts:nothing")
    with pytest.raises(DataError, match=r"unknown option `image` \(did you mean `images`\?\)"):
        load_dataset(NAME, image=3)
    with pytest.raises(
        DataError,
        match=r"must return a mapping with the keys classes, train, val.*, got the keys classes, train",
    ):
        load_dataset("tests.layouts:incomplete")
    monkeypatch.setattr(layouts, "squares", lambda: (Squares(3), Squares(3)))
    with pytest.raises(DataError, match=r"the function must return a mapping .*, got tuple"):
        load_dataset(NAME)


@pytest.mark.parametrize(("heldout", "images"), [(0, 10), (10, 10), (0.01, 10), (True, 10)])
def test_nothing_held_out_is_refused(monkeypatch, heldout, images):
    given(monkeypatch, heldout=heldout, train=Squares(images))
    with pytest.raises(DataError, match=f"heldout must leave .* number of the {images} images .* got {heldout}"):
        load_dataset(NAME)
