from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.metric.morphology import ball_maximum_filter, in_pixels, maximum_filter, minimum_filter
from tests import oracles, strategies
from tests.examples import examples

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
@examples(60)
@given(x=maps(), radius=st.integers(0, 4))
def test_filters_are_those_of_the_definition(name: str, x: np.ndarray, radius: int) -> None:
    given_before = x.copy()
    actual = filtered(name, torch.from_numpy(x), radius)
    np.testing.assert_array_equal(actual.numpy(), expected(name, x, radius))
    np.testing.assert_array_equal(x, given_before)


@FILTERS
@examples(60)
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
@pytest.mark.slow
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


# The border of the image, the Euclidean ball, and lengths -------------------------------------------------------------


@examples(60)
@given(x=maps(), radius=st.integers(0, 8))
def test_with_a_border_the_outside_is_0(x: np.ndarray, radius: int) -> None:
    x = np.abs(x)
    actual = minimum_filter(torch.from_numpy(x), radius, border=True)
    np.testing.assert_array_equal(actual.numpy(), oracles.window(x, radius, 0.0).min(axis=0))
    truth = minimum_filter(torch.from_numpy(x > 0.5), radius, border=True)
    assert truth.dtype == torch.bool
    np.testing.assert_array_equal(truth.numpy(), oracles.erode((x > 0.5).astype(float), radius, border=True) > 0)


def ball_window(x: np.ndarray, radius: int) -> np.ndarray:
    """The values within a Euclidean distance, on a new first axis."""
    views = oracles.window(x, radius, -np.inf)
    steps = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * (x.ndim - 2), indexing="ij"), -1)
    return views[(steps.reshape(-1, x.ndim - 2) ** 2).sum(1) <= radius**2]


@examples(60)
@given(x=maps(), radius=st.integers(0, 6))
def test_a_ball_is_that_of_the_definition(x: np.ndarray, radius: int) -> None:
    before = x.copy()
    actual = ball_maximum_filter(torch.from_numpy(x), radius)
    np.testing.assert_array_equal(actual.numpy(), ball_window(x, radius).max(axis=0))
    np.testing.assert_array_equal(x, before)
    truth = ball_maximum_filter(torch.from_numpy(x > 1), radius)
    assert truth.dtype == torch.bool
    np.testing.assert_array_equal(truth.numpy(), oracles.dilate((x > 1).astype(float), radius, "disk") > 0)


def test_a_disk_by_hand() -> None:
    point = torch.zeros(1, 1, 7, 7, dtype=torch.bool)
    point[0, 0, 3, 3] = True
    disk = ball_maximum_filter(point, 2)[0, 0].int().tolist()
    assert disk == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("shape", [(1, 2, 9), (2, 1, 4, 5), (1, 1, 3, 2, 4)])
@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.slow
def test_gradients_of_the_border_and_the_ball(shape: tuple[int, ...], radius: int) -> None:
    order = torch.randperm(int(np.prod(shape)), generator=torch.Generator().manual_seed(2))
    x = ((order.double() + 1) / 7).view(shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ball_maximum_filter(x, radius), (x,))
    assert torch.autograd.gradcheck(lambda x: minimum_filter(x, radius, border=True), (x,))


def test_shared_extremes_of_a_ball_pass_the_whole_gradient() -> None:
    x = torch.zeros(1, 1, 5, 5, requires_grad=True)
    ball_maximum_filter(x, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == pytest.approx(25)


def test_lengths() -> None:
    assert [in_pixels(radius, (3, 4)) for radius in (0, 7, 0.001, 0.29, 0.31, 0.5, 0.7)] == [0, 7, 1, 1, 2, 2, 4]
    assert in_pixels(0.02, (512, 512)) == 14
    assert in_pixels(0.5, (9,)) == 4  # 4.5 is rounded to the even number, as in the published Boundary IoU
    assert in_pixels(0.1, (20, 20, 20)) == 3


def test_an_axis_of_length_1_is_none_of_a_diagonal() -> None:
    assert in_pixels(0.45, [10]) == in_pixels(0.45, [1, 10]) == in_pixels(0.45, [10, 1]) == 4
