"""The log curve, against its formula in NumPy; and cross-entropy as the limit of what it makes of accuracies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autosegloss.errors import InputError
from autosegloss.loss import SearchSpace, SurrogateLoss, build_loss, fuse
from autosegloss.loss.curve import Curve, points_from_theta
from autosegloss.loss.kernels import moments_cpu
from autosegloss.loss.kernels.atoms import Atoms
from autosegloss.loss.kernels.curves import FastCurve
from autosegloss.metric import metric

HEIGHTS = st.floats(0.02, 0.98) | st.sampled_from([0.02, 0.98, 0.5, 0.5 - 1e-9, 0.5 + 1e-11, np.nextafter(0.5, 1)])


def log_curve(v: float) -> Curve:
    return Curve("log", ((0.5, v),))


def height(e: float) -> float:
    """The v of a curve: that of log(1 + x / e) / log(1 + 1 / e) at 1/2."""
    return math.log1p(0.5 / e) / math.log1p(1 / e)


def batch() -> tuple[Tensor, Tensor]:
    """Logits, and labels of which some are ignored; class 3 is absent, class 2 rare."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.multinomial(torch.tensor([6.0, 3, 0.5, 0]), 2 * 9 * 8, True, generator=generator).view(2, 9, 8)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return 2 * torch.randn(2, 4, 9, 8, generator=generator, dtype=torch.float64), labels


def value_and_gradient(loss: Any, logits: Tensor) -> tuple[float, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    return value.item(), torch.autograd.grad(value, leaf)[0]


# The curve ------------------------------------------------------------------------------------------------------------


@given(v=HEIGHTS)
def test_it_goes_through_its_point_between_fixed_ends_never_falls_and_turns_about_the_middle(v: float) -> None:
    g = log_curve(v)
    x = torch.cat([torch.linspace(0, 1, 201), torch.logspace(-18, -3, 60), 1 - torch.logspace(-18, -3, 60)])
    x = x.double().sort().values
    y = g(x)
    assert g(torch.tensor(0.5, dtype=torch.float64)).item() == pytest.approx(v, abs=1e-15)
    assert y[x == 0].unique().tolist() == [0]
    assert y[x == 1].unique().tolist() == [1]
    assert (y.diff() >= -1e-16).all()
    assert ((y - x) * (v - 0.5) >= -1e-16).all()  # above the diagonal, or below it
    mirrored = g.mirrored
    assert mirrored.points == ((0.5, 1 - v),)
    near = (x * (1 - x) > 1e-3) | (x == 0) | (x == 1)  # elsewhere 1 - x is rounded too much
    torch.testing.assert_close(mirrored(x)[near], 1 - g(1 - x)[near], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("e", [1e-15, 1e-6, 0.1, 1.0, 30.0])
def test_it_is_the_formula_and_its_derivative(dtype: torch.dtype, e: float) -> None:
    x = np.concatenate([np.logspace(-20, -1, 40), np.linspace(0.1, 0.9, 30)]).astype(str(dtype)[6:]).astype(float)
    expected = np.log1p(x / e) / np.log1p(1 / e)
    step = 1e-4 * (x + e)
    slope = (np.log1p((x + step) / e) - np.log1p((x - step) / e)) / (2 * step) / np.log1p(1 / e)
    near = 1e-6 if dtype == torch.float32 else 1e-10  # e is known to the rounding of v, of which it is a power
    for curve, given_x, wanted in (
        (log_curve(height(e)), x, expected),
        (log_curve(1 - height(e)), 1 - x[40:], 1 - expected[40:]),
    ):
        leaf = torch.tensor(given_x, dtype=dtype, requires_grad=True)
        y = curve(leaf)
        np.testing.assert_allclose(y.detach().double(), wanted, rtol=10 * near, atol=0)
        (found,) = torch.autograd.grad(y.sum(), leaf)
        np.testing.assert_allclose(found.double(), slope[-len(wanted) :], rtol=max(near, 1e-7))


def test_the_middle_is_the_identity() -> None:
    x = torch.rand(5)
    for v in (0.5, np.nextafter(0.5, 0), np.nextafter(0.5, 1)):
        assert log_curve(v).is_identity
        assert log_curve(v)(x) is x
    assert Curve("log").is_identity
    assert not log_curve(0.5 + 1e-9).is_identity


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.5, 0.6), (0.5, 0.7)], "2 control points; a log curve has one, (0.5, v)."),
        ([(0.4, 0.6)], "the control point of a log curve must be (0.5, v), v from 0.02 to 0.98, got (0.4, 0.6)."),
        ([(0.5, 0.01)], "the control point of a log curve must be (0.5, v), v from 0.02 to 0.98, got (0.5, 0.01)."),
        ([(0.5, 0.99)], "the control point of a log curve must be (0.5, v), v from 0.02 to 0.98, got (0.5, 0.99)."),
        ([(0.5, math.nan)], "control point 0 must have both coordinates in [0, 1], got (0.5, nan)."),
    ],
)
def test_impossible_log_curves(points: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        Curve("log", tuple(points))
    assert str(caught.value) == expected


def test_its_coordinate_is_its_height() -> None:
    assert [points_from_theta([v], "log") for v in (0, 0.3, 1)] == [((0.5, 0.02),), ((0.5, 0.3),), ((0.5, 0.98),)]
    with pytest.raises(InputError, match="theta has 2 coordinates; a log curve has one"):
        points_from_theta([0.5, 0.5], "log")
    space = SearchSpace(metric("bf1"), "log", share_curves=True)
    assert space.identity == (0.5, 0.5)
    assert space.control_points([0.3, 0.6]) == [((0.5, 0.3),)] * 2 + [((0.5, 0.6),)] * 2
    with pytest.raises(InputError, match=r"theta has 3 coordinates; 2 log curve\(s\) .*have 2"):
        space.control_points([0.5] * 3)
    loss = SurrogateLoss.from_theta("miou", [0.8, 0.3], 64, curve="log")
    assert loss.control_points == [[(0.5, 0.8)], [(0.5, 0.3)]]


def test_a_file_holds_it_as_its_point() -> None:
    loss = SurrogateLoss("miou", [[(0.5, 0.8)], []], curve="log")
    content = loss.content()
    assert content["slots"] == {"and[0] of pred & target": [[0.5, 0.8]], "or[0] of pred | target": []}
    again = build_loss(content)
    assert isinstance(again, SurrogateLoss)
    assert again.curves == loss.curves


def test_atoms_with_a_log_curve_are_summed_by_the_steps_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's kernels know pieces only: on a GPU such atoms must not reach them."""
    monkeypatch.setattr(fuse, "find_spec", lambda name: pytest.fail(f"{name} is asked for"))
    logits, labels = batch()
    rows, counted = logits.float().flatten(2), labels.flatten(1).where(labels.flatten(1) != 255, -1)
    on_gpu = type("OnGpu", (), {"is_cuda": True, "dtype": torch.float32})()
    monkeypatch.setattr(moments_cpu, "moments", lambda given, labels, atoms: given)
    atoms = Atoms(inside=((Curve("bezier", ((0.2, 0.3),)),),), outside=((log_curve(0.3),),))
    assert fuse.moments(on_gpu, counted, atoms) is on_gpu
    assert fuse.moments(rows, counted, atoms) is rows


@pytest.mark.parametrize("v", [0.02, 0.98])
def test_what_is_rounded_to_the_steep_end_has_no_slope_of_1e13(v: float) -> None:
    """A softmax in float32 is 1 from 17 on: beside e = 1e-15 that is far from 1."""
    logits = torch.tensor([[[20.0, 0, 1], [0, 20, 18], [0, 0, 0]]])
    loss = SurrogateLoss("miou", [[(0.5, v)]] * 2, curve="log")
    for fused in (True, False):
        loss.fused = fused
        value, gradient = value_and_gradient(lambda x: loss(x, torch.tensor([[0, 0, 1]])), logits)
        assert 0 <= value <= 1
        assert gradient.abs().max() < 1
    beyond = torch.tensor([0.5, 1, 1 + 1e-6])  # what another curve of a chain may round to
    fast = FastCurve(log_curve(v), beyond)
    assert fast.values(beyond)[1:].tolist() == pytest.approx([1, 1])
    assert fast.slopes(beyond).isfinite().all()


# Cross-entropy as a limit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("e", [1e-2, 1e-6, 1e-8])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["gacc", "macc"])
def test_accuracy_under_a_log_curve_tends_to_cross_entropy(name: str, fused: bool, e: float) -> None:
    """And mean accuracy to cross-entropy weighted by the batch's inverse frequencies; both to first order in e."""
    logits, labels = batch()
    counted = labels != 255
    number = torch.bincount(labels[counted], minlength=4).double()
    weight = torch.where(number > 0, 1 / number, 0.0) if name == "macc" else torch.ones(4, dtype=torch.float64)
    weights = weight[labels[counted]]
    weights = weights / weights.sum()

    def own(x: Tensor) -> Tensor:
        """The probability of the label at each pixel that counts."""
        return x.softmax(1).movedim(1, -1)[counted].gather(1, labels[counted].unsqueeze(1)).squeeze(1)

    loss = SurrogateLoss(name, [[(0.5, height(e))]], curve="log", classes="present")
    loss.fused = fused
    value, slope = value_and_gradient(lambda x: math.log1p(1 / e) * loss(x, labels), logits)
    exact, gradient = value_and_gradient(lambda x: (weights * ((1 + e) / (own(x) + e)).log()).sum(), logits)
    assert value == pytest.approx(exact, abs=1e-9)
    torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=1e-9)

    entropy, pull = value_and_gradient(lambda x: functional.cross_entropy(x, labels, weight, ignore_index=255), logits)
    rate, bend = value_and_gradient(lambda x: (weights * (1 - 1 / own(x))).sum(), logits)
    if e < 1e-4:  # far below every p
        assert value - entropy == pytest.approx(e * rate, rel=1e-2)
        torch.testing.assert_close(slope - pull, e * bend, rtol=1e-2, atol=1e-13)
