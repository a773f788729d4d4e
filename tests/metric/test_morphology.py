from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autosegloss.metric.morphology import maximum_filter, minimum_filter
from tests import oracles, strategies

FILTERS = pytest.mark.parametrize("name", ["minimum", "maximum"])


def filtered(name: str, x: torch.Tensor, radius: int) -> torch.Tensor:
    return (minimum_filter if name == "minimum" else maximum_filter)(x, radius)


def expected(name: str, x: np.ndarray, radius: int) -> np.ndarray:
    views = oracles.window(x, radius, np.inf if name == "minimum" else -np.inf)
    return views.min(axis=0) if name == "minimum" else views.max(axis=0)


@st.composite
def maps(draw: st.DrawFn) -> np.ndarray:
    shape = [
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        *draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)),
    ]
    return np.random.default_rng(draw(strategies.seeds)).normal(size=shape)


@FILTERS
@settings(max_examples=60)
@given(x=maps(), radius=st.integers(0, 4))
def test_filters_are_those_of_the_definition(name: str, x: np.ndarray, radius: int) -> None:
    given_before = x.copy()
    actual = filtered(name, torch.from_numpy(x), radius)
    np.testing.assert_array_equal(actual.numpy(), expected(name, x, radius))
    np.testing.assert_array_equal(x, given_before)


@FILTERS
@settings(max_examples=60)
@given(x=maps(), radius=st.integers(0, 4))
def test_truth_values_stay_truth_values(name: str, x: np.ndarray, radius: int) -> None:
    actual = filtered(name, torch.from_numpy(x > 0.5), radius)
    assert actual.dtype == torch.bool
    np.testing.assert_array_equal(actual.numpy(), expected(name, (x > 0.5).astype(float), radius) > 0)


@FILTERS
def test_a_radius_beyond_the_image_sees_all_of_it(name: str) -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    extreme = x.amin((2, 3), keepdim=True) if name == "minimum" else x.amax((2, 3), keepdim=True)
    for radius in (4, 5, 10**6):
        assert torch.equal(filtered(name, x, radius), extreme.expand_as(x))


@FILTERS
@pytest.mark.parametrize("shape", [(1, 2, 9), (2, 1, 4, 5), (1, 1, 3, 2, 4)])
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_gradients_go_to_the_extreme_pixel(name: str, shape: tuple[int, ...], radius: int) -> None:
    # Distinct values, further apart than a finite difference: no ties.
    order = torch.randperm(int(np.prod(shape)), generator=torch.Generator().manual_seed(2))
    x = (order.double() / 7).view(shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: filtered(name, x, radius), (x,))


@FILTERS
def test_shared_extremes_pass_the_whole_gradient(name: str) -> None:
    x = torch.zeros(1, 1, 5, 5, requires_grad=True)
    filtered(name, x, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == pytest.approx(25)
