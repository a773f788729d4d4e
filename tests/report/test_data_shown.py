"""What is said of the data before any work."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autosegloss.errors import DataError
from autosegloss.proxy.data import Dataset, MaskValue, Split
from autosegloss.report.data import classes_text, data_record, data_text
from autosegloss.report.progress import ComparisonDisplay
from autosegloss.search.objective import announce


def split(labels: list[int], repeated: int = 1) -> Split:
    maps = np.repeat(np.array(labels, np.uint8), repeated).reshape(1, 1, -1)
    return Split(np.zeros((1, 3, *maps.shape[1:]), np.uint8), maps)


def toy(train: list[int], heldout: list[int], validation: list[int], classes: int = 3) -> Dataset:
    names = tuple(f"class {label}" for label in range(classes))
    return Dataset("toy", names, 255, split(train), split(heldout), split(validation))


def test_images_and_pixels_are_told() -> None:
    dataset = toy([0, 0, 1, 255], [2, 2, 0, 0], [0, 1, 1, 1])
    assert data_text(dataset) == (
        "data: toy: 1 training, 1 held-out and 1 validation images of 1x4, 3 classes\n"
        "pixels: `class 0` 41.7%, `class 1` 33.3%, `class 2` 16.7%, ignored 8.3%"
    )
    assert classes_text(dataset) == (
        "pixels     training    held-out  validation\n"
        "class 0       50.0%       50.0%       25.0%\n"
        "class 1       25.0%          0%       75.0%\n"
        "class 2          0%       50.0%          0%\n"
        "ignored       25.0%          0%          0%"
    )
    record = data_record(dataset)
    assert json.loads(json.dumps(record)) == record
    assert record["pixels"] == {"train": [2, 1, 0, 1], "heldout": [2, 0, 2, 0], "validation": [1, 3, 0, 0]}
    many = data_text(toy([0, 0, 1, 19], [0], [0], classes=20))
    assert many.endswith("`class 9` 0%, 10 other classes 16.7%, ignored 0%")
    rare = replace(dataset, train=split([0] * 9999 + [1]))
    assert "\nclass 0      >99.9%" in classes_text(rare)
    assert "\nclass 1       0.01%" in classes_text(rare)


def test_a_class_without_a_pixel_is_named_before_anything_else(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    fine = toy([0, 1], [2, 255], [0, 1, 2])
    assert fine.check().warnings == ()
    dataset = replace(fine, heldout=split([0]), unseen=split([0, 255]))
    values = (MaskValue("0", 0, 9), MaskValue("1", 1, 9), MaskValue("255", 255, 9))
    screen = io.StringIO()
    ComparisonDisplay(Console(file=screen, width=200), tmp_path).data(replace(dataset, values=values))
    held = "The masks hold 0 (`class 0`), 1 (`class 1`), 255 (ignored)."
    assert capsys.readouterr().err.splitlines() == [
        "warning: data set `toy`: class `class 2` has no pixel in the training and held-out labels: no loss can learn "
        f"what is not there. {held}",
        "warning: data set `toy`: classes `class 1`, `class 2` have no pixel in the validation labels: final results "
        f"say nothing about them. {held}",
    ]
    assert screen.getvalue().startswith("data: toy: 1 training")
    announce(dataset, None)  # from Python they are logged
    assert [record.getMessage() for record in caplog.records] == list(dataset.warnings)


LABELS = st.lists(st.sampled_from([0, 1, 2, 255]), min_size=1, max_size=6)


@given(train=LABELS, heldout=LABELS, validation=LABELS, stated=st.booleans(), classes=st.integers(2, 4))
def test_labels_that_cannot_be_meant_are_refused_and_no_others(
    train: list[int], heldout: list[int], validation: list[int], stated: bool, classes: int
) -> None:
    train, heldout, validation = (
        [min(label, classes - 1) if label < 255 else 255 for label in part] for part in (train, heldout, validation)
    )
    dataset = replace(toy(train, heldout, validation, classes), ignore_stated=stated)
    everywhere = {*train, *heldout, *validation}
    absent = {*range(classes)} - everywhere
    alone = len({*train} - {255}) < 2
    ambiguous = not stated and absent and 255 in everywhere
    if alone or ambiguous:
        with pytest.raises(
            DataError, match="255 marks ignored pixels" if ambiguous else "at least two classes"
        ) as error:
            dataset.check()
        assert len(str(error.value)) <= 1000
        return
    warned = " ".join(dataset.check().warnings)
    for label in range(classes):
        missing = label not in {*train, *heldout} or label not in validation
        assert (f"`class {label}`" in warned) == missing
