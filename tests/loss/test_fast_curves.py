"""Fast curves are the curves: their values, their slopes, and their ends to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.loss.curve import Curve, points_from_theta
from autosegloss.loss.kernels.curves import FastCurve

COORDINATES = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


@given(
    theta=st.sampled_from([2, 6, 10]).flatmap(lambda n: st.lists(st.floats(0.01, 0.99), min_size=n, max_size=n)),
    kind=st.sampled_from(["bezier", "linear"]),
    seed=st.integers(0, 2**31),
)
def test_values_and_slopes_are_those_of_the_curve(theta: list[float], kind: Any, seed: int) -> None:
    curve = Curve(kind, points_from_theta(theta))
    x = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    knots = torch.tensor([0.0, *(u for u, _ in curve.points), 1.0], dtype=torch.float64)
    x = x[((x - knots.unsqueeze(1)).abs() > 1e-4).all(0)].requires_grad_()  # near a knot the slope may know no bound
    fast = FastCurve(curve, x)
    y, slope = fast.values_and_slopes(x.detach())
    expected = curve(x)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(fast.values(x.detach()), expected, rtol=1e-6, atol=1e-9)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(slope.expand_as(x), gradient, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fast.slopes(x.detach()).expand_as(x), gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(theta=st.lists(COORDINATES, min_size=6, max_size=6), kind=st.sampled_from(["bezier", "linear"]))
def test_the_ends_are_exact_and_nothing_is_beyond(dtype: torch.dtype, theta: list[float], kind: Any) -> None:
    fast = FastCurve(Curve(kind, points_from_theta(theta)), torch.empty(0, dtype=dtype))
    x = torch.linspace(0, 1, 103, dtype=dtype)  # more than a vector register: ends and middle take other instructions
    y, _ = fast.values_and_slopes(x)
    assert y.dtype == dtype
    assert (y[0], y[-1]) == (0, 1)
    assert fast.values(x)[0] == 0
    assert ((y >= 0) & (y <= 1)).all()
    ends = torch.cat([torch.zeros(50, dtype=dtype), torch.ones(53, dtype=dtype)])
    assert torch.equal(fast.values_and_slopes(ends)[0], ends)


def test_beyond_a_piece_that_ends_vertically_nothing_of_its_rise_is_missing() -> None:
    curve = Curve("bezier", ((0.5, 0.0), (0.5, 1.0), (0.75, 1.0)))
    x = torch.linspace(0.51, 1, 50, dtype=torch.float64)
    fast = FastCurve(curve, x)
    torch.testing.assert_close(fast.values(x), curve(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(fast.values_and_slopes(x)[0], curve(x), rtol=0, atol=1e-12)
