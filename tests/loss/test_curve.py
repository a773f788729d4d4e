from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import InputError, InputTypeError
from autosegloss.loss.curve import (
    IDENTITY,
    Curve,
    identity_theta,
    number_of_coordinates,
    number_of_points,
    points_from_theta,
)
from tests import oracles, strategies
from tests.examples import examples

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Both ends, what a softmax may leave next to them, and a grid.
ABSCISSAE = np.unique(
    np.concatenate(
        [[0, 5e-324, 1e-45, 1e-38, 1e-30, 1e-20, 1e-12, 1e-7, 1e-3, 1 - 1e-7, 1 - 1e-16, 1], np.linspace(0, 1, 101)]
    )
)


def abscissae(curve: Curve, dtype: torch.dtype) -> torch.Tensor:
    """Sorted, with the control points and their neighbours."""
    knots = torch.tensor([u for u, _ in curve.points], dtype=dtype)
    towards = [torch.nextafter(knots, torch.tensor(end, dtype=dtype)) for end in (0.0, 1.0)]
    return torch.cat([torch.tensor(ABSCISSAE, dtype=dtype), knots, *towards]).clamp(0, 1).sort().values


@DTYPES
@examples(200)
@given(shape=strategies.shapes())
def test_every_theta_gives_a_curve_that_never_falls_between_fixed_ends(
    dtype: torch.dtype, shape: strategies.Shape
) -> None:
    g = shape.curve
    x = abscissae(g, dtype)
    y = g(x)
    assert y.dtype == dtype
    assert y[x == 0].unique().tolist() == [0.0]
    assert y[x == 1].unique().tolist() == [1.0]
    assert bool((y >= 0).all())
    assert bool((y <= 1).all())
    rounding = 1e-12 if dtype == torch.float64 else 1e-6
    assert bool((y.diff() >= -rounding).all())


@DTYPES
@examples(200)
@given(shape=strategies.shapes())
def test_every_theta_has_finite_gradients_everywhere(dtype: torch.dtype, shape: strategies.Shape) -> None:
    g = shape.curve
    x = abscissae(g, dtype).requires_grad_()
    g(x).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert bool((x.grad >= -1e-3 * max(1.0, x.grad.max().item())).all())  # to rounding, beside the steepest slope


@examples(100)
@given(theta=st.lists(strategies.coordinates, max_size=12).filter(lambda theta: len(theta) % 2 == 0))
def test_control_points_follow_the_recursion(theta: list[float]) -> None:
    points = points_from_theta(theta)
    np.testing.assert_allclose(np.reshape(points, (-1, 2)), oracles.control_points(theta), rtol=0, atol=1e-15)
    assert all(type(c) is float for point in points for c in point)


@pytest.mark.parametrize("kind", ["bezier", "linear", "log", "identity"])
@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 7])
def test_the_identity_has_coordinates(kind: Any, pieces: int) -> None:
    theta = identity_theta(kind, pieces)
    assert len(theta) == number_of_coordinates(kind, pieces)
    points = points_from_theta(theta, kind)
    assert len(points) == number_of_points(kind, pieces)
    steps = len(points) + 1
    np.testing.assert_allclose(points, [(i / steps, i / steps) for i in range(1, steps)], atol=1e-15)
    x = torch.tensor(ABSCISSAE)
    torch.testing.assert_close(Curve(kind, points)(x), x, rtol=0, atol=1e-15)


def test_numbers_of_control_points() -> None:
    assert [number_of_points("bezier", n) for n in (1, 2, 3)] == [1, 3, 5]
    assert [number_of_points("linear", n) for n in (1, 2, 3)] == [0, 1, 2]
    assert number_of_points("identity", 4) == 0
    assert [number_of_points("log", n) for n in (1, 2, 64)] == [1, 1, 1]


def test_a_curve_without_points_leaves_everything_as_it_is() -> None:
    x = torch.rand(3)
    for g in (IDENTITY, Curve("bezier"), Curve("linear")):
        assert g.is_identity
        assert g(x) is x
    assert not Curve("linear", ((0.5, 0.5),)).is_identity


def test_known_curves() -> None:
    x = torch.tensor([0.0, 0.04, 0.25, 0.49, 0.64, 1.0], dtype=torch.float64)
    # Through (0, 1): x = s^2, y = 2 s - s^2; through (1, 0) the mirror image; through (1/2, 0): x = s, y = s^2.
    torch.testing.assert_close(Curve("bezier", ((0, 1),))(x), 2 * x.sqrt() - x)
    torch.testing.assert_close(Curve("bezier", ((1, 0),))(x), (1 - (1 - x).sqrt()) ** 2)
    torch.testing.assert_close(Curve("bezier", ((0.5, 0),))(x), x**2)
    torch.testing.assert_close(
        Curve("linear", ((0.25, 0.5), (0.25, 0.75)))(x),
        torch.tensor([0, 0.08, 0.5, 0.83, 0.88, 1], dtype=torch.float64),
    )


def test_values_beyond_the_ends_are_cut_off() -> None:
    x = torch.tensor([-1.0, -1e-9, 1 + 1e-6, 3.0])
    for g in (Curve("bezier", ((0.3, 0.8),)), Curve("linear", ((0.3, 0.8),))):
        assert g(x).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("kind", "points", "error", "expected"),
    [
        ("besier", [], InputError, "curve is 'besier'; allowed: identity, bezier, linear, log."),
        ("identity", [(0.5, 0.5)], InputError, "1 control points; an identity curve has none."),
        (
            "bezier",
            [(0.1, 0.1), (0.2, 0.2)],
            InputError,
            "2 control points; a bezier of n pieces has 2 n - 1 (1, 3, 5, ...).",
        ),
        (
            "linear",
            [(0.5, 0.5), (0.4, 0.6)],
            InputError,
            "control point 1 (0.4, 0.6) falls below control point 0 (0.5, 0.5); a curve must not fall.",
        ),
        (
            "bezier",
            [(0.1, 0.1), (0.2, 0.5), (0.3, 0.4)],
            InputError,
            "control point 2 (0.3, 0.4) falls below control point 1 (0.2, 0.5); a curve must not fall.",
        ),
        ("linear", [(0.5, 1.5)], InputError, "control point 0 must have both coordinates in [0, 1], got (0.5, 1.5)."),
        ("linear", [(-0.5, 0.5)], InputError, "control point 0 must have both coordinates in [0, 1], got (-0.5, 0.5)."),
        (
            "linear",
            [(0.5, float("nan"))],
            InputError,
            "control point 0 must have both coordinates in [0, 1], got (0.5, nan).",
        ),
        ("linear", [(0.5, 0.5), 0.7], InputTypeError, "control point 1 must be a pair of numbers (u, v), got 0.7."),
        ("linear", [(0.5,)], InputTypeError, "control point 0 must be a pair of numbers (u, v), got (0.5,)."),
        ("linear", ["ab"], InputTypeError, "control point 0 must be a pair of numbers (u, v), got 'ab'."),
        (
            "linear",
            [("0.5", "0.5")],
            InputTypeError,
            "control point 0 must be a pair of numbers (u, v), got ('0.5', '0.5').",
        ),
    ],
)
def test_impossible_curves(kind: Any, points: Any, error: type[Exception], expected: str) -> None:
    with pytest.raises(error) as caught:
        Curve(kind, tuple(points))
    assert type(caught.value) is error
    assert str(caught.value) == expected


def test_a_control_point_too_large_for_a_number() -> None:
    with pytest.raises(InputError):
        Curve("linear", ((10**400, 0),))


@pytest.mark.parametrize(
    ("theta", "expected"),
    [
        ([0.5], "theta has 1 coordinates; a curve has two for each control point."),
        ([0.5, 1.5], "theta[1] must be in [0, 1], got 1.5."),
        ([-1e-9, 0.5], "theta[0] must be in [0, 1], got -1e-09."),
        ([0.5, float("nan")], "theta[1] must be in [0, 1], got nan."),
    ],
)
def test_impossible_coordinates(theta: list[float], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        points_from_theta(theta)
    assert str(caught.value) == expected


@pytest.mark.parametrize("pieces", [0, -1, 1.0, True])
def test_impossible_numbers_of_pieces(pieces: Any) -> None:
    with pytest.raises(InputError) as caught:
        number_of_points("bezier", pieces)
    assert str(caught.value) == f"pieces must be an integer from 1 to 64, got {pieces!r}."


def test_coordinates_are_numbers() -> None:
    with pytest.raises(InputError, match=r"theta\[0\] must be in \[0, 1\], got 'a'"):
        points_from_theta("ab")
