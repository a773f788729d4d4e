"""Data of one's own, from a function that returns torch's data sets."""

from __future__ import annotations

import pickle
import re
import sys
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
            "an item must be a pair of an image and a label map, got tuple of length 1",
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


MINE = """
import sys
import torch

class Items:
    def __init__(self, count=3, item=None, fails=None):
        self.count, self.item, self.fails = count, item, fails
    def __len__(self):
        return self.count
    def __getitem__(self, number):
        if self.fails is not None:
            raise self.fails
        if self.item is not None:
            return self.item
        return torch.zeros(3, 8, 8, dtype=torch.uint8), torch.eye(8, dtype=torch.int64)

class NoLength(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())

class BadLength(Items):
    def __len__(self):
        raise OSError("the server is gone")

def data(**changes):
    return {"classes": 2, "train": Items(), "heldout": Items(), "validation": Items()} | changes

def raises(): raise ValueError("no such" + chr(10) + "row")
def leaves(): sys.exit(3)
class Odd(BaseException): ...
def odd(): raise Odd
def odd_item(): return data(validation=Items(fails=GeneratorExit()))
def short(): return data(validation=Items(fails=IndexError("out of range")))
def no_length(): return data(validation=NoLength())
def bad_length(): return data(train=BadLength())
def endless(): return data(train=Items(10**12))
def endless_to_draw_from(): return data(train=Items(10**18), heldout=0.2)
def endless_and_raises(): return data(train=Items(10**12, fails=KeyError("x")))
def nothing(): return data(train=Items(item=[]), heldout=None)
def a_dict(): return data(validation=Items(item={"image": 1, "mask": 2}))
def no_picture(): return data(validation=Items(item=("a.png", "b.png")))
def ragged(): return data(validation=Items(item=([[1], [1, 2]], 0)))
def empty(): return data(validation=Items(item=(torch.zeros(3, 0, 0), torch.zeros(0, 0, dtype=torch.int64))))
def quits(): return data(validation=Items(fails=SystemExit(1)))
def one_class(): return data(train=Items(item=(torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.int64))))
def ambiguous():
    item = torch.zeros(3, 8, 8), 255 * torch.eye(8, dtype=torch.int64)
    return data(**dict.fromkeys(("train", "heldout", "validation"), Items(item=item)))
def a_class_ignored(): return data(ignore_index=1)
def fine(**anything): return data(ignore_index=-100)
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "the function fails: my_data.py:28: ValueError: no such row"),
        ("leaves", "the function fails: my_data.py:29: SystemExit: 3"),
        ("odd", "the function fails: my_data.py:31: Odd."),
        ("odd_item", "validation[0]: my_data.py:12: GeneratorExit"),
        (
            "short",
            "items that can't be used (3):\n  validation[0]: my_data.py:12: IndexError: out of range\n"
            "  validation[1]: my_data.py:12: IndexError: out of range\n"
            "  validation[2]: my_data.py:12: IndexError: out of range",
        ),
        (
            "no_length",
            "validation must be a data set with a length (`__len__`) and items (`__getitem__`), got NoLength: "
            "TypeError: object of type 'NoLength' has no len()",
        ),
        (
            "bad_length",
            "train must be a data set with a length (`__len__`) and items (`__getitem__`), got BadLength: "
            "my_data.py:23: OSError: the server is gone",
        ),
        (
            "endless",
            r"train has 1000000000000 images, which take 2.38e\+05 GiB, more than the .* GiB of this machine's",
        ),
        (
            "endless_to_draw_from",
            "the length (`__len__`) of train is 1000000000000000000; at most 10000000 can be read.",
        ),
        ("endless_and_raises", "items that can't be used (100):\n  train[0]: my_data.py:12: KeyError: 'x'\n"),
        ("nothing", "heldout must be a data set with a length (`__len__`) and items (`__getitem__`), got NoneType"),
        ("a_dict", "validation[0]: an item must be a pair of an image and a label map, got dict of length 2"),
        ("no_picture", "validation[0]: an image must have shape (3, H, W), (1, H, W) or (H, W), got ()"),
        ("ragged", "validation[0]: ValueError: setting an array element with a sequence."),
        ("empty", "validation[0]: an image must have shape (3, H, W), (1, H, W) or (H, W), got (3, 0, 0)"),
        ("quits", "validation[0]: my_data.py:12: SystemExit: 1"),
        ("one_class", "the training labels must hold at least two classes, but all pixels are `0`."),
        (
            "ambiguous",
            "12.5% of the pixels are 255, which is read as ignored by default, but class 1, `1`, has no pixel. "
            "If 255 marks ignored pixels, set `ignore_index: 255`; if it marks a class, give it the label 1.",
        ),
        ("a_class_ignored", "ignore_index must be an integer that is no class (0..1), got 1."),
    ],
)
def test_what_a_users_function_does_wrong_is_said_with_its_place(tmp_path, monkeypatch, name, message):
    (tmp_path / "my_data.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_data", raising=False)
    with pytest.raises(DataError) as error:
        load_dataset(f"my_data:{name}")
    found = str(error.value)
    assert found.startswith(f"data set `my_data:{name}`: ")
    assert re.search(message, found) if "\\" in message else message in found, found
    assert len(found) <= 1000
    dataset = load_dataset("my_data:fine", whatever=1)
    assert [each.images for each in dataset.contents.values()] == [3, 3, 3]
    assert "validation" not in vars(dataset)
    monkeypatch.delitem(sys.modules, "my_data")
