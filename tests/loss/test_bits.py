"""Truth maps as bits are those of `TruthMaps`, for dozens of classes as for one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.loss.kernels.bits import BitMaps
from autosegloss.metric import Expr, any_class, boundary, dilate, erode, interpret, pred, target
from autosegloss.metric.interpret import TruthMaps
from tests import strategies
from tests.examples import examples


def maps() -> st.SearchStrategy[Expr]:
    """Maps of the target alone."""
    return st.recursive(
        st.just(target),
        lambda inner: st.one_of(
            inner.map(lambda a: ~a),
            st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
            st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
            st.tuples(inner, inner).map(lambda pair: pair[0] ^ pair[1]),
            st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
            inner.map(erode),
            inner.map(boundary),
            st.tuples(inner, st.integers(0, 3), st.sampled_from(["square", "disk"])).map(lambda given: dilate(*given)),
            st.tuples(inner, st.booleans()).map(lambda pair: any_class(pair[0], background=pair[1])),
        ),
        max_leaves=6,
    )


@examples(80)
@given(
    a_map=maps(),
    classes=st.sampled_from([1, 2, 5, 31, 32, 70]),
    some=st.tuples(st.integers(0, 69), st.integers(1, 70)),
    sides=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=strategies.seeds,
)
def test_bits_are_the_maps_of_each_class(
    a_map: Expr, classes: int, some: tuple[int, int], sides: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, classes, (2, *sides), generator=generator)
    numbers = torch.arange(classes, dtype=torch.int32)
    truth = labels.to(torch.int32)
    expected = interpret.pixel_map(a_map, TruthMaps(truth, truth, numbers), {})
    start = some[0] % classes
    wanted = slice(start, start + some[1])
    found = BitMaps(labels, classes).classes(a_map, wanted)
    assert found.dtype == torch.bool
    assert torch.equal(found, expected[:, wanted] if "class" in a_map.axes else expected)


def test_a_map_of_the_prediction_has_no_bits() -> None:
    with pytest.raises(AssertionError, match="the target alone"):
        BitMaps(torch.zeros(1, 2, 2, dtype=torch.int64), 2).classes(erode(pred), slice(None))
