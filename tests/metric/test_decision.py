"""Fitted offsets: laws of the fit, an oracle of plain NumPy, and everything that a user can get wrong."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import autosegloss as asl
from autosegloss.errors import AutoseglossError, InputError, InputTypeError
from autosegloss.metric import decision, interpret
from tests import oracles, strategies
from tests.examples import examples

COUNTED: dict[str, Callable[..., float]] = {
    "miou": oracles.miou,
    "dice": oracles.dice,
    "macc": oracles.macc,
    "gacc": oracles.gacc,
}
OTHERS = ("miou_i", "bf1(radius=1, background=True)", "boundary_iou")
Batches = list[tuple[Tensor, Tensor]]


def data(
    seed: int, classes: int, absent: int = 0, dtype: torch.dtype = torch.float32, frequent: bool = False
) -> Batches:
    """Logits that know something of the labels, but prefer some classes; the last `absent` classes have no pixel.

    Where they prefer the frequent classes, as good ones do, another metric than accuracy costs accuracy.
    """
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.ones(classes - absent))
    labels = rng.choice(classes - absent, (6, 4, 5), p=share)
    preferred = np.log(share + 1e-2) if frequent else 2 * rng.normal(size=classes)
    logits = rng.normal(size=(6, classes, 4, 5)) + preferred[:, None, None]
    logits += 1.5 * (np.arange(classes)[:, None, None] == labels[:, None])
    labels[rng.random(labels.shape) < 0.1] = 255
    return [(torch.tensor(logits).to(dtype), torch.tensor(labels))]


def exact(metric: Any, batches: Batches, apply: Callable[[Tensor], Tensor], classes: int) -> float:
    accumulator = asl.Accumulator(metric, classes)
    for logits, labels in batches:
        accumulator.update(apply(logits), labels)
    return accumulator.compute()


def best_of(logits: npt.NDArray[np.floating], offsets: npt.NDArray[np.floating]) -> npt.NDArray[np.integer]:
    return np.argmax(logits + offsets.astype(logits.dtype)[None, :, None, None], 1)


def regrouped(batches: Batches, seed: int) -> Batches:
    """The images in another order and in other batches."""
    logits, labels = (torch.cat(maps) for maps in zip(*batches, strict=True))
    order = torch.tensor(np.random.default_rng(seed).permutation(len(labels)))
    return list(zip(logits[order].split(4), labels[order].split(4), strict=True))


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(0, 2), st.sampled_from([*COUNTED]))
@examples(10, deadline=None)
def test_a_fit_is_exact_and_no_change_of_one_offset_betters_it(seed: int, classes: int, absent: int, name: str) -> None:
    absent = min(absent, classes - 1)
    batches = data(seed, classes, absent)
    found = asl.fit_offsets(name, batches, classes)
    values = found.values.numpy()

    assert found.before == exact(name, batches, lambda logits: logits, classes)
    assert found.after == exact(name, batches, found.apply, classes) >= found.before
    assert found.metric == str(asl.metric(name))
    assert np.abs(values).max() <= 10

    logits, labels = (tensor.numpy() for tensor in batches[0])
    seen = np.isin(np.arange(classes), labels)
    assert (values[~seen] == 0).all()
    assert abs(values[seen].mean()) < 1e-12

    oracle = COUNTED[name]
    assert found.after == pytest.approx(oracle(best_of(logits, values), labels, classes), abs=1e-12)
    for label in np.flatnonzero(seen) if seen.all() else ():
        for step in np.arange(-3, 3.25, 0.25):
            moved = values + step * (np.arange(classes) == label)
            moved -= moved.mean()
            assert oracle(best_of(logits, moved), labels, classes) < found.after + 2e-5, (label, step)

    again = asl.fit_offsets(name, regrouped(batches, seed), classes)
    assert again.values.equal(found.values)
    assert again.after == found.after


@given(st.integers(0, 2**32 - 1), st.sampled_from([*COUNTED]).map(asl.metric) | strategies.metrics(), st.integers(2, 3))
@examples(10, deadline=None)
def test_no_fit_is_worse_than_none_whatever_the_metric_and_the_ties(seed: int, expr: asl.Expr, classes: int) -> None:
    ((logits, labels),) = data(seed, classes, dtype=(torch.float16, torch.float32, torch.float64)[seed % 3])
    batches = [(logits.round(), labels)]
    found = asl.fit_offsets(expr, batches, classes)
    assert found.before == exact(expr, batches, lambda logits: logits, classes)
    assert found.after == exact(expr, batches, found.apply, classes) >= found.before
    assert abs(float(found.values.sum())) < 1e-9


def test_of_equal_offsets_the_nearest_is_taken() -> None:
    logits = torch.tensor([[[9.0, 1.0, 1.0], [0.0, 0.5, 0.5]]])
    for label in (0, 1):  # the class that is too low
        turned = logits if label else logits.flip(1)
        labels = torch.tensor([[1 - label, label, label]])
        found = asl.fit_offsets("miou", [(turned, labels)], 2)
        assert found.after == 1
        assert found.values[label] == pytest.approx(0.25, abs=0.02)


def test_what_follows_from_counts_is_told_from_what_does_not() -> None:
    for name in ("miou", "fwiou", "tversky", "precision", "miou(classes=[1])"):
        assert interpret.is_counted(asl.metric(name)), name
    for name in ("miou_i", "bf1", "trimap_iou", "boundary_iou"):
        assert not interpret.is_counted(asl.metric(name)), name


@pytest.mark.parametrize("name", OTHERS)
def test_any_metric_can_be_fitted_in_so_many_walks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = 0

    class Counted:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal walks
            walks += 1
            return iter(batches)

    batches = data(3, 3)
    found = asl.fit_offsets(name, Counted(), 3)
    assert found.after == exact(name, batches, found.apply, 3) > found.before
    full, walks = walks, 0
    monkeypatch.setattr(decision, "_WALKS", 5)
    asl.fit_offsets(name, Counted(), 3)
    assert walks == 6 < full <= 201
    monkeypatch.undo()
    again = asl.fit_offsets(name, regrouped(batches, 1), 3)
    assert again.values.equal(found.values)


@pytest.mark.parametrize("name", ["macc", "macc_i"])
def test_guards_hold(name: str) -> None:
    changed = 0
    for seed in range(3):
        batches = data(seed, 3, frequent=True)
        free = asl.fit_offsets(name, batches, 3)
        kept = asl.fit_offsets(name, batches, 3, guards={"gacc": 1, asl.metric("fwiou"): 0.95})
        shares = {"gacc": 1, "fwiou": 0.95}
        leasts = {each: share * exact(each, batches, lambda logits: logits, 3) for each, share in shares.items()}
        assert all(exact(each, batches, kept.apply, 3) >= least for each, least in leasts.items())
        assert kept.before <= kept.after <= free.after or name != "macc"
        changed += not kept.values.equal(free.values)
        for label, step in itertools.product(range(3), np.arange(-2, 2.25, 0.25) if name == "macc" else ()):
            moved = kept.values + step * (torch.arange(3) == label)
            other = asl.Offsets(moved - moved.mean(), "", 0, 0)
            if all(exact(each, batches, other.apply, 3) >= least for each, least in leasts.items()):
                assert exact(name, batches, other.apply, 3) < kept.after + 2e-5, (label, step)
    assert changed


@pytest.mark.parametrize("name", ["miou", "miou_i"])
def test_no_offset_is_beyond_the_bound(name: str) -> None:
    # The lead of class 0: the metric rises with every offset of class 1.
    lead = torch.tensor([100.0, *((k - 0.5) / 10 for k in range(1, 81))])
    batches = [(torch.stack([lead, 0 * lead])[None], torch.tensor([[0, *[1] * 80]]))]
    assert asl.fit_offsets(name, batches, 2).values[1] > 3
    near = asl.fit_offsets(name, batches, 2, bound=1)
    assert near.values[1] == pytest.approx(1, abs=0.3)
    assert near.values.abs().max() <= 1


def test_a_class_that_is_everywhere_moves_nothing() -> None:
    logits = torch.randn(2, 3, 4, 4)
    found = asl.fit_offsets("miou", [(logits, torch.full((2, 4, 4), 1))], 3)
    assert found.values.tolist() == [0, 0, 0]
    assert found.before == found.after


def test_a_class_without_labels_that_takes_pixels_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Offsets of the others keep their mean, so that they can't rise above it together."""
    logits = torch.tensor([3.0, 0, 0]).view(1, 3, 1, 1) + torch.randn(1, 3, 8, 8, generator=torch.manual_seed(0))
    labels = logits[:, 1:].argmax(1) + 1
    found = asl.fit_offsets("miou", [(logits, labels)], 3)
    assert found.values[0] == 0
    (told,) = caplog.messages
    share = (logits.argmax(1) == 0).float().mean()
    assert told.startswith(f"no label has class 0, yet {100 * share:.2g}% of the pixels are predicted so.")
    caplog.clear()
    asl.fit_offsets("miou", [(logits - torch.tensor([99.0, 0, 0]).view(1, 3, 1, 1), labels)], 3)
    assert caplog.messages == []


def test_offsets_are_applied_in_single_precision_or_better() -> None:
    offsets = asl.Offsets(torch.tensor([0.1, -0.1], dtype=torch.float64), "miou", 0.0, 0.0)
    for dtype, result in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        applied = offsets.apply(torch.ones(1, 2, 3, dtype=dtype))
        assert applied.dtype == result
        assert applied[0, :, 0].tolist() == pytest.approx([1.1, 0.9])
    assert offsets.apply(torch.zeros(4, 2)).shape == (4, 2)
    with pytest.raises(InputError, match=r"logits must have shape \(N, 2, \*S\), one map per offset, got \(1, 3, 4\)"):
        offsets.apply(torch.zeros(1, 3, 4))
    with pytest.raises(InputTypeError, match="logits must be a floating-point tensor"):
        offsets.apply(torch.zeros(1, 2, 4, dtype=torch.int64))


LOGITS, LABELS = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
PAIR = (LOGITS, LABELS)


class Vanishing:
    """Batches that are there once, or change; a class that a user may write."""

    def __init__(self, *walks: list[Any]) -> None:
        self.walks = [*walks]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.walks.pop(0) if len(self.walks) > 1 else self.walks[0])


TWO = (torch.randn(1, 3, 2, 2), torch.tensor([[[0, 1], [1, 0]]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": (pair for pair in [PAIR])}, "batches is of type generator, which can be walked only once"),
        ({"batches": zip([LOGITS], [LABELS], strict=True)}, "batches is of type zip, which can be walked only once"),
        ({"batches": LOGITS}, "batches must be an iterable of pairs (logits, labels), such as a list, got Tensor."),
        ({"batches": None}, "batches must be an iterable of pairs (logits, labels), such as a list, got NoneType."),
        ({"batches": []}, "batches is empty; give pairs"),
        ({"batches": Vanishing([TWO], [])}, "batches was empty on the second walk"),
        ({"batches": Vanishing([TWO], [TWO, TWO])}, "batches held other labels on the second walk"),
        ({"batches": [PAIR, LOGITS]}, "batch 1: must be a pair (logits, labels), got Tensor."),
        ({"batches": [(LOGITS, LABELS, LABELS)]}, "batch 0: must be a pair (logits, labels), got tuple."),
        ({"batches": [(LOGITS / 0, LABELS)]}, "batch 0: logits are NaN or infinite at 12 of 12 places"),
        ({"batches": [(LOGITS.long(), LABELS)]}, "batch 0: logits must be a floating-point tensor"),
        ({"batches": [(LOGITS[:, :2], LABELS)]}, "batch 0: logits must have shape (N, 3, *S), got (1, 2, 2, 2)."),
        ({"batches": [(LOGITS, LABELS[:, :1])]}, "batch 0: labels must have shape (1, 2, 2) or (1, 1, 2, 2)"),
        ({"batches": [(LOGITS, LABELS.float())]}, "batch 0: labels must have an integer dtype"),
        ({"batches": [(LOGITS, LABELS.numpy())]}, "batch 0: labels must be a torch tensor of integers, got ndarray."),
        ({"batches": [(LOGITS, LABELS + 3)]}, "batch 0: labels has labels outside the classes at 4 of 4 pixels: 3;"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"bound": 0}, "bound must be a number above 0 and at most 1e+06, got 0."),
        ({"bound": float("nan")}, "bound must be a number above 0 and at most 1e+06, got nan."),
        ({"guards": ["miou"]}, "guards must be a mapping of metrics to shares, got list."),
        ({"guards": {"miou": 2}}, "guards: the share of miou must be a number in (0, 1], got 2."),
        ({"guards": {"miuo": 0.5}}, "did you mean `miou`?"),
        ({"guards": {"iou(0) - 2": 0.5}}, " is -1 without offsets; a share of it means something for metrics that"),
        ({"batches": [(LOGITS, LABELS + 255)]}, "batches hold no label that counts: every pixel is 255, which is ign"),
        ({"expr": "miuo"}, "did you mean `miou`?"),
        ({"expr": "iou(leaf)"}, "class `leaf` is given by name"),
        ({"ignore_index": 0.5}, "ignore_index must be an integer label, got 0.5."),
    ],
)
def test_what_can_not_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    given_ = {"expr": "miou", "batches": [PAIR], "num_classes": 3} | options
    with pytest.raises(AutoseglossError) as caught:
        asl.fit_offsets(**given_)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError | TypeError)


def test_a_file_gives_the_offsets_back(tmp_path: Path) -> None:
    found = asl.fit_offsets("miou", data(1, 4), 4)
    path = tmp_path / "offsets.json"
    found.save(path)
    read = asl.load_offsets(path)
    assert read.values.equal(found.values)
    assert (read.metric, read.before, read.after) == (found.metric, found.before, found.after)
    assert read.to_json() == path.read_text() == found.to_json()


CONTENT = json.loads(asl.Offsets(torch.tensor([0.5, -0.5]), "miou", 0.1, 0.2).to_json())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "autosegloss-loss"}, 'offsets.json: not a file of offsets; it has no "format"'),
        ({"version": 0}, "version must be an integer of at least 1, got 0."),
        ({"version": True}, "version must be an integer of at least 1, got True."),
        ({"version": 2}, "version 2 is newer than what this package reads (1); upgrade autosegloss."),
        ({"after": None}, "after must be a finite number, got None."),
        ({"metric": "__import__('os')"}, "metric: "),
        ({"metric": 3}, "metric must be the text of an expression, got 3."),
        ({"offsets": [1]}, "offsets must be a list of a number for each of two classes or more."),
        ({"offsets": "12"}, "offsets must be a list"),
        ({"offsets": [1, 1e400]}, "not a JSON file that can be read"),
        (
            {"offsets": [0, 10**30]},
            "the offset of class 1 must be a finite number, got 1000000000000000000000000000000.",
        ),
        ({"offsets": [0, True]}, "the offset of class 1 must be a finite number, got True."),
        ({"extra": 1}, "unknown: extra; allowed: format, version, metric, before, after, offsets."),
    ],
)
def test_a_file_of_something_else_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "offsets.json"
    path.write_text(json.dumps(CONTENT | changes))
    with pytest.raises(InputError) as caught:
        asl.load_offsets(path)
    assert message in str(caught.value)


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "offsets.json"
    os.mkfifo(tmp_path / "pipe")
    texts = {"": "not a JSON file", "[1]": "not a file of offsets", "[" * 100_000: "not a JSON file"}
    texts |= {json.dumps(CONTENT)[:-9]: "not a JSON file", '{"a": 1, "a": 2}': "a key occurs twice"}
    texts |= {json.dumps({key: CONTENT[key] for key in ("format", "version")}): "missing: metric, before"}
    for text, message in texts.items():
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            asl.load_offsets(path)
    for name, message in (("none.json", "No such file"), (".", "not a regular file"), ("pipe", "not a regular file")):
        with pytest.raises(InputError, match=message):
            asl.load_offsets(tmp_path / name)
    with pytest.raises(InputError, match="can't be read"):
        asl.load_offsets("a\0b")
    with pytest.raises(InputTypeError, match="the offsets must be the path of their file, got int"):
        asl.load_offsets(3)  # type: ignore[arg-type]
