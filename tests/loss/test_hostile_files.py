"""Loss files of any content: a LossFileError soon, which repeats little of the file; or the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import LossFileError
from autosegloss.loss import MixedLoss, SurrogateLoss, load_loss
from autosegloss.loss.classic import CLASSICS, CrossEntropy
from autosegloss.loss.file import VERSION, build_loss, read_loss

REAL = [load_loss("asl/voc/miou").content(), MixedLoss(SurrogateLoss("biou"), 0.25).content()]
REAL += [
    SurrogateLoss("miou", scale=8).content(),
    MixedLoss([(2, load_loss("jml")), (1, load_loss("focal"))]).content(),
]
REAL += [CrossEntropy(class_power=0.5, counts=[1, 2]).content()]
REAL += [CLASSICS[name](255, [3, 2, 1]).content() for name in ("weighted_cross_entropy", "boundary_cross_entropy")]
HUGE = [
    "x" * 900_000,
    [1] * 200_000,
    {str(i): i for i in range(50_000)},
    10**400,
    -(10**400),
    [[0.5, 10**400]],
    "(" * 9_000,
]
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(HUGE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def outcome(data: bytes) -> str:
    """Why the bytes are refused; the start of a reason if they are read."""
    try:
        read_loss(data, "loss.json")
    except LossFileError as error:
        return str(error)
    return "loss.json: "


@given(content=st.sampled_from(REAL), data=st.data())
def test_a_value_of_any_kind_anywhere(content: dict[str, Any], data: st.DataObject) -> None:
    changed = json.loads(json.dumps(content))
    at = changed
    while True:
        keys = [*at] if isinstance(at, dict) else range(len(at))
        key = data.draw(st.sampled_from(keys) if keys else st.text(max_size=3))
        if key not in keys or not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(values)
    message = outcome(json.dumps(changed).encode())
    assert message.startswith("loss.json: ")
    assert len(message) <= 1000
    if isinstance(changed["version"], int) and changed["version"] <= VERSION:
        assert "newer" not in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[" * 100_000, "not a JSON file"),
        (b'{"slots": ' + b'{"a": ' * 100_000, "not a JSON file"),
        (b"1" * 5_000, "not a JSON file"),
        (b'"' + b"x" * 2_000_000 + b'"', "more than 1,000,000 bytes"),
        (json.dumps(REAL[0] | {"version": 10**400}).encode(), "version must be an integer from 1 to 3, got 1000"),
        (json.dumps(REAL[0] | {"version": VERSION + 1}).encode(), "version 4 is newer than"),
        (json.dumps(REAL[0])[:-1].encode() + b', "metric": "miou"}', "a key occurs twice"),
        (json.dumps(REAL[0] | {"cross_entropy": 1}).replace(": 1,", ": NaN,").encode(), "NaN is not a number"),
        (json.dumps(REAL[0]).encode("utf-16"), "not a JSON file"),
        (b"", "not a JSON file"),
    ],
)
def test_what_is_no_loss_file(data: bytes, expected: str) -> None:
    assert expected in outcome(data)


def test_a_byte_order_mark_does_not_matter_and_a_long_file_is_not_read(tmp_path: Path) -> None:
    assert outcome(b"\xef\xbb\xbf" + json.dumps(REAL[0]).encode()) == "loss.json: "
    assert build_loss(REAL[0]).content() == REAL[0]
    with (tmp_path / "loss.json").open("wb") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(LossFileError, match="more than 1,000,000 bytes"):
        load_loss(tmp_path / "loss.json")
