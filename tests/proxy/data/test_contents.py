"""What a data set holds: its fingerprint, its labels, and what is said of them."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autosegloss.proxy import data
from autosegloss.proxy.data import Contents, Dataset, Split, examples

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


@st.composite
def splits(draw: st.DrawFn) -> Split:
    count, height, width = draw(SHAPES)
    images = draw(hnp.arrays(np.uint8, (count, 3, height, width)))
    labels = draw(hnp.arrays(np.uint8, (count, height, width)))
    annotations = draw(st.none() | hnp.arrays(np.uint8, (count, 2, height, width)))
    return Split(images, labels, annotations)


@given(split=splits(), chunk=st.integers(1, 100), data_=st.data())
def test_contents_depend_on_every_value_and_on_nothing_else(split: Split, chunk: int, data_: st.DataObject) -> None:
    before, data._CHUNK = data._CHUNK, chunk
    try:
        found = Contents.of(split)
    finally:
        data._CHUNK = before
    expected = hashlib.sha256()
    for name in ("images", "labels", "annotations"):
        if (array := getattr(split, name)) is not None:
            expected.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    assert found == Contents(
        len(split.images), tuple(np.bincount(split.labels.ravel(), minlength=256).tolist()), expected.hexdigest()
    )
    copies = replace(split, images=np.asfortranarray(split.images), labels=split.labels.copy())
    assert copies.contents == found
    name = data_.draw(
        st.sampled_from([name for name in ("images", "labels", "annotations") if getattr(split, name) is not None])
    )
    changed = getattr(split, name).copy()
    changed.flat[data_.draw(st.integers(0, changed.size - 1))] ^= 1 << data_.draw(st.integers(0, 7))
    assert replace(split, **{name: changed}).contents.digest != found.digest


def toy(unseen: Any, **more: Any) -> Dataset:
    rng = np.random.default_rng(0)
    one, other = (
        Split(rng.integers(0, 256, (n, 3, 4, 4), np.uint8), rng.integers(0, 2, (n, 4, 4), np.uint8)) for n in (3, 2)
    )
    return Dataset("toy", ("a", "b"), 255, one, other, unseen, **more)


READ: list[int] = []


def read() -> Split:
    READ.append(1)
    return Split(np.zeros((2, 3, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8))


def test_the_fingerprint_tells_the_parts_and_the_classes_apart_and_reads_the_validation_set_once() -> None:
    READ.clear()
    dataset = toy(read)
    found = dataset.fingerprint()
    assert list(found) == ["train", "heldout", "validation", "classes"]
    assert len({*found.values()}) == 4
    assert dataset.fingerprint() == found
    assert len(READ) == 1
    assert "validation" not in vars(dataset), "it is dropped"
    assert toy(read()).fingerprint() == found
    assert toy(None, unseen_contents=read().contents).fingerprint() == found
    renamed = replace(dataset, classes=("a", "c")).fingerprint()
    assert {part for part in found if found[part] != renamed[part]} == {"classes"}
    swapped = replace(dataset, train=dataset.heldout, heldout=dataset.train).fingerprint()
    assert (swapped["train"], swapped["heldout"]) == (found["heldout"], found["train"])


def test_a_pickled_dataset_leaves_out_a_validation_set_that_was_read() -> None:
    dataset = toy(read)
    size = len(pickle.dumps(dataset))
    assert dataset.validation.labels.all()
    assert dataset.fingerprint()
    assert len(pickle.dumps(dataset)) == size
    assert pickle.loads(pickle.dumps(dataset)).fingerprint() == dataset.fingerprint()


@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=400), max_size=30))
def test_a_list_shows_its_first_lines_and_counts_the_others(lines: list[str]) -> None:
    shown = examples(lines)
    assert len(shown) <= 650
    _, *found = shown.split("\n")
    left = 0
    if found and (rest := found[-1].removeprefix("  ... and ")) != found[-1] and rest.endswith(" more"):
        left = int(rest.removesuffix(" more"))
        found.pop()
    assert len(found) + left == len(lines)
    assert len(found) <= 10
    assert all(len(line) <= 202 for line in found)
    assert bool(found) == bool(lines)
