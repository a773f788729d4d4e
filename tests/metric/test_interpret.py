"""The two ways of the exact reading: by counts, and by maps made part by part."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from autosegloss.metric import METRICS, Accumulators, Expr, class_sum, erode, interpret, per_image, pred, target, total
from autosegloss.metric import expr as e
from tests import strategies
from tests.examples import examples

ALL = {name: build() for name, build in METRICS.items()}


def nodes_of(*exprs: Expr) -> tuple[e.Sum, ...]:
    return tuple(dict.fromkeys(node for expr in exprs for node in interpret.statistics(expr)))


def exact(labels: strategies.Labels) -> interpret.ExactMaps:
    return interpret.ExactMaps(*labels.tensors(), labels.num_classes, 255)


def assert_same(one: interpret.Sums, other: interpret.Sums) -> None:
    assert one.keys() == other.keys()
    for node, found in one.items():
        assert found.shape == other[node].shape, node
        assert found.dtype == other[node].dtype, node
        assert torch.equal(found, other[node]), node


@examples(200)
@given(
    node=st.builds(
        lambda each, a, within: (per_image if each else total)(a, within=within),
        st.booleans(),
        strategies.pointwise_maps(),
        st.none() | strategies.pointwise_truth_maps(),
    ),
    labels=strategies.labels(images=(0, 4)),
)
@pytest.mark.slow
def test_counts_and_maps_give_the_same_sums(node: Any, labels: strategies.Labels) -> None:
    assert interpret._is_pointwise(node)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpret, "_DENSE", 1e9)
        by_matrices = interpret.sums((node,), exact(labels))
        patch.setattr(interpret, "_DENSE", 0)
        by_tallies = interpret.sums((node,), exact(labels))
        patch.setattr(interpret, "_is_pointwise", lambda _: False)
        by_maps = interpret.sums((node,), exact(labels))
    assert_same(by_matrices, by_maps)
    assert_same(by_tallies, by_maps)


def test_what_is_read_from_counts() -> None:
    for node in (total(pred & target), per_image(2 * pred - target, within=~pred), total(pred * (0.5 - target))):
        assert interpret._is_pointwise(cast("e.Sum", node))
    for node in (total(pred, void="keep"), total(erode(pred)), total(pred, within=e.any_class(target))):
        assert not interpret._is_pointwise(cast("e.Sum", node))
    assert sum(interpret._is_pointwise(node) for node in nodes_of(*ALL.values())) == 6  # I, U, T and theirs per image


@examples(100)
@given(
    expr=strategies.metrics(),
    labels=strategies.labels(images=(0, 5)),
    part=st.sampled_from([1, 5, 30, 200]),
)
@pytest.mark.slow
def test_the_size_of_the_parts_changes_nothing(expr: Expr, labels: strategies.Labels, part: int) -> None:
    nodes = nodes_of(expr)
    whole = interpret.sums(nodes, exact(labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpret, "_PART", part)
        assert_same(whole, interpret.sums(nodes, exact(labels)))


@pytest.mark.parametrize("ignored", [255, -1, 3, 700])
@pytest.mark.slow
def test_the_number_of_classes_changes_nothing(ignored: int) -> None:
    """Labels are kept in bytes up to 254 classes, and classes that are nowhere are read once for all."""
    random = np.random.default_rng(0)
    guess, truth = (torch.from_numpy(random.integers(0, 5, (3, 9, 7))) for _ in range(2))
    truth[random.random(truth.shape) < 0.2] = ignored
    extra = {
        "neither": class_sum(total(~pred & ~target, void="keep")),
        "any": total(e.any_class(~pred, background=False)),
        "foreground": total(e.any_class(pred, background=False)),
    }
    values = []
    for num_classes in (5, 254, 255, 300, 50_000)[
        : 3 if ignored == 255 else 5
    ]:  # a matrix of the last is beyond what int32 counts
        accumulators = Accumulators(ALL | extra, num_classes, ignored)
        accumulators.update(guess, truth)
        values.append(accumulators.values())
        in_neither = [(guess != c) & ((truth != c) | (truth == ignored)) for c in range(num_classes)]
        assert values[-1].pop("neither") == sum(int(map.sum()) for map in in_neither)
        assert values[-1].pop("any") == int((truth != ignored).sum())
        assert values[-1].pop("foreground") == int(((truth != ignored) & (guess > 0)).sum())
    for other in values[1:]:
        assert other == pytest.approx(values[0], abs=1e-15)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return made


@pytest.mark.slow
def test_many_classes_do_not_multiply_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpret, "_PART", 2**14)
    pixels, images = 128 * 128, 2
    regions = {name: ALL[name] for name in ("miou", "miou_i")}
    for num_classes, metrics in ((2, ALL), (150, ALL), (1000, regions), (30_000, regions)):
        random = np.random.default_rng(num_classes)
        guess, truth = (torch.from_numpy(random.integers(0, num_classes, (images, 128, 128))) for _ in range(2))
        with Largest() as largest:
            interpret.sums(nodes_of(*metrics.values()), interpret.ExactMaps(guess, truth, num_classes, -1))
        # Indices and counts are of 8 bytes, maps with their margin of 1.
        assert largest.bytes <= 8 * 4 * max(pixels, images * num_classes)


def test_given_labels_are_left_as_they_are() -> None:
    guess = torch.tensor([[0, 1, 1]], dtype=torch.uint8)
    truth = torch.tensor([[0, 9, 1]], dtype=torch.uint8)
    interpret.sums(nodes_of(*ALL.values()), interpret.ExactMaps(guess, truth, 2, 9))
    assert truth.tolist() == [[0, 9, 1]]
    assert guess.tolist() == [[0, 1, 1]]


def test_counts_above_what_a_byte_holds() -> None:
    truth = torch.ones(1, 1000, 7, dtype=torch.long)
    found = interpret.sums((total(pred, void="keep"),), interpret.ExactMaps(truth, truth, 2, 255))  # type: ignore[arg-type]
    assert [value.tolist() for value in found.values()] == [[[0, 7000]]]
