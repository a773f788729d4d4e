"""What must hold of the Triton kernels: natively on a GPU, elsewhere in Triton's interpreter (TRITON_INTERPRET=1).

Run by `test_moments_triton.py`, in a process of its own: the interpreter is chosen before Triton is first imported.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autosegloss.loss.curve import Curve, points_from_theta
from autosegloss.loss.kernels.atoms import Atom, Atoms
from autosegloss.loss.kernels.moments_triton import moments
from tests import oracles

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# Jumps at 0 and within, a level piece, vertical starts and ends.
STEEP = Curve("bezier", ((0.0, 0.0), (0.0, 0.3), (0.0, 0.6), (0.4, 0.7), (0.4, 0.8), (0.7, 0.8), (1.0, 0.8)))
# Of a gradient: one unit in the last place of the logits' precision (the interpreter cuts off, a GPU rounds).
PRECISIONS = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
Sums = tuple[npt.NDArray[np.float64], ...]


def smooth(random: np.random.Generator) -> Curve:
    """A curve without jumps."""
    if random.random() < 0.3:
        return Curve("linear", points_from_theta(random.uniform(0.1, 0.9, 2 * int(random.integers(1, 4))).tolist()))
    pieces = int(random.integers(1, 4))
    return Curve("bezier", points_from_theta(random.uniform(0.1, 0.9, 2 * (2 * pieces - 1)).tolist()))


def several(random: np.random.Generator) -> Atoms:
    """Chains of different lengths of curves of different numbers of pieces."""
    f, g, h = (smooth(random) for _ in range(3))
    return Atoms(inside=((f,), (), (g, f)), outside=((h,), (f, h)))


def batch(
    random: np.random.Generator, images: int, classes: int, pixels: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Logits, and labels among which some are ignored and the last of several classes is absent."""
    logits = torch.from_numpy(random.normal(0, 3, (images, classes, pixels))).to(DEVICE, dtype)
    labels = random.integers(-1, max(classes - 1, 1), (images, pixels))
    return logits, torch.from_numpy(labels).to(DEVICE)


def under(atom: Atom, p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    for curve in atom:
        p = getattr(oracles, curve.kind)(p, curve.points)
    return p


def sums_by_numpy(logits: Tensor, labels: Tensor, wanted: Atoms) -> Sums:
    """The moments from their definition, with curves by bisection, in float64."""
    p = oracles.softmax(logits.detach().double().cpu().numpy())
    truth = labels.cpu().numpy()[:, None] == np.arange(p.shape[1])[:, None]
    other = (labels.cpu().numpy() >= 0)[:, None] & ~truth
    inside, outside = (
        np.stack([np.where(where, under(atom, p), 0).sum(2) for atom in atoms], 2)
        if atoms
        else np.zeros((*p.shape[:2], 0))
        for atoms, where in ((wanted.inside, truth), (wanted.outside, other))
    )
    return inside, outside, truth.sum(2)


def gradient_by_torch(
    logits: Tensor, labels: Tensor, wanted: Atoms, weights: tuple[Tensor, ...]
) -> tuple[npt.NDArray[np.float64], float]:
    """The gradient of the weighted moments, by autograd in float64, and the largest of the terms that it is made of."""
    leaf = logits.detach().double().cpu().requires_grad_()
    p, truth = leaf.softmax(1), labels.cpu().unsqueeze(1) == torch.arange(leaf.shape[1]).view(-1, 1)
    other = (labels.cpu() >= 0).unsqueeze(1) & ~truth
    p.retain_grad()
    total = 0 * p.sum()
    for atoms, where, weight in zip((wanted.inside, wanted.outside), (truth, other), weights, strict=True):
        for j, atom in enumerate(atoms):
            y = p
            for curve in atom:
                y = curve(y)
            total = total + (weight[..., j : j + 1].cpu().double() * y * where).sum()
    total.backward()
    assert leaf.grad is not None
    assert p.grad is not None
    return leaf.grad.numpy(), (p * p.grad).abs().max().item()


def weighted_gradient(
    logits: Tensor, labels: Tensor, wanted: Atoms, weights: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    leaf = logits.detach().requires_grad_()
    found = moments(leaf, labels, wanted)
    assert not found[2].requires_grad
    (gradient,) = torch.autograd.grad(found[:2], leaf, weights)
    return tuple(x.detach() for x in found), gradient


def assert_near(found: Tensor, expected: npt.NDArray[np.float64], relative: float, absolute: float = 0) -> None:
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(found.double().cpu().numpy(), expected, relative, absolute)


def check(random: np.random.Generator, logits: Tensor, labels: Tensor, wanted: Atoms, relative: float = 1e-6) -> None:
    """Values to `relative` of the oracles', the gradient to that of its largest term and to its own precision."""
    shape = logits.shape[:2]
    weights = tuple(
        torch.from_numpy(random.normal(size=(*shape, len(atoms)))).to(DEVICE, torch.float32)
        for atoms in (wanted.inside, wanted.outside)
    )
    found, gradient = weighted_gradient(logits, labels, wanted, weights)
    for x, y in zip(found, sums_by_numpy(logits, labels, wanted), strict=True):
        assert x.dtype == torch.float32
        assert_near(x, y, relative, 1e-8)
    assert gradient.dtype == logits.dtype
    expected, largest = gradient_by_torch(logits, labels, wanted, weights)
    least = 2**-24 if logits.dtype == torch.float16 else 0  # the smallest float16
    assert_near(gradient, expected, PRECISIONS[logits.dtype], relative * largest + least)


@pytest.mark.parametrize(
    ("classes", "pixels", "dtype"),
    [
        (1, 1030, torch.float32),
        (2, 1500, torch.float32),
        (21, 200, torch.float32),
        (21, 200, torch.bfloat16),
        (21, 200, torch.float16),
        (150, 30, torch.float32),
    ],
)
def test_sums_and_gradients_of_blocks_that_are_not_full(classes: int, pixels: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(classes)
    logits, labels = batch(random, 2, classes, pixels, dtype)
    check(random, logits, labels, several(random))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 70)),
    insides=st.integers(0, 3),
    outsides=st.integers(0, 2),
)
def test_sums_and_gradients(seed: int, shape: tuple[int, int, int], insides: int, outsides: int) -> None:
    random = np.random.default_rng(seed)
    atoms = several(random)
    wanted = Atoms(atoms.inside[:insides], atoms.outside[:outsides])
    check(random, *batch(random, *shape), wanted, 2e-5)  # a steep chain at a single pixel: float32 has no more


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_sums_under_curves_with_jumps(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, labels = batch(random, 2, 3, 40)
    wanted = Atoms(((STEEP,),), ((STEEP,), (smooth(random), STEEP)))
    for x, y in zip(moments(logits, labels, wanted), sums_by_numpy(logits, labels, wanted), strict=True):
        assert_near(x, y, 1e-4)  # a probability of float32 beside a vertical piece


def test_sums_of_one_hot_predictions_are_counts_under_any_curve() -> None:
    random = np.random.default_rng(0)
    _, labels = batch(random, 2, 5, 300)
    pred = torch.from_numpy(random.integers(0, 5, (2, 300))).to(DEVICE)
    logits = 200 * torch.nn.functional.one_hot(pred, 5).mT.float() - 50
    curve = smooth(random)
    atoms: tuple[Atom, ...] = ((), (curve,), (STEEP,), (curve, STEEP), (STEEP, curve))
    inside, outside, pixels = moments(logits, labels, Atoms(atoms, atoms))
    chosen = torch.nn.functional.one_hot(pred, 5).bool() & (labels >= 0).unsqueeze(2)
    truth = labels.unsqueeze(2) == torch.arange(5, device=DEVICE)
    assert torch.equal(pixels, truth.sum(1).float())
    assert torch.equal(inside, (chosen & truth).sum(1).float().unsqueeze(2).expand(-1, -1, 5))
    assert torch.equal(outside, (chosen & ~truth).sum(1).float().unsqueeze(2).expand(-1, -1, 5))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which the interpreter computes with
def test_ignored_pixels_may_hold_anything() -> None:
    random = np.random.default_rng(1)
    logits, labels = batch(random, 2, 3, 50)
    wanted = several(random)
    weights = torch.ones(2, 3, 3, device=DEVICE), torch.ones(2, 3, 2, device=DEVICE)
    found, gradient = weighted_gradient(logits, labels, wanted, weights)
    spoilt = logits.masked_fill((labels < 0).unsqueeze(1), torch.nan)
    again, spoilt_gradient = weighted_gradient(spoilt, labels, wanted, weights)
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
    assert torch.equal(gradient, spoilt_gradient)
    assert not gradient.mT[labels < 0].any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_nan_stays_one() -> None:
    random = np.random.default_rng(2)
    logits, labels = batch(random, 2, 3, 50)
    labels[1] = 2
    logits[1, 0, 7] = torch.nan
    inside, outside, _ = moments(logits, labels, several(random))
    assert inside[0].isfinite().all()
    assert outside[0].isfinite().all()
    assert inside[1, 2].isnan().all()
    assert outside[1, :2].isnan().all()


@pytest.mark.parametrize("layout", ["channels last", "part", "repeated"])
def test_strides_do_not_matter(layout: str) -> None:
    random = np.random.default_rng(3)
    logits, labels = batch(random, 2, 6, 90)
    given_logits = {
        "channels last": logits.mT.contiguous().mT,
        "part": torch.stack([logits, logits], 3).flip(3)[..., 1],
        "repeated": logits[:1].expand(2, -1, -1),
    }[layout]
    given_labels = torch.stack([labels, labels], 2)[..., 0]
    if layout == "repeated":
        logits = logits[:1].repeat(2, 1, 1)
    assert not given_logits.is_contiguous()
    assert not given_labels.is_contiguous()
    wanted = several(random)
    weights = torch.randn(2, 3, 6, device=DEVICE).mT, torch.ones(1, device=DEVICE).expand(2, 6, 2)
    found, gradient = weighted_gradient(given_logits, given_labels, wanted, weights)
    alike = weights[0].contiguous(), weights[1].contiguous()
    expected, expected_gradient = weighted_gradient(logits, labels, wanted, alike)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0)])
def test_without_images_or_pixels_all_sums_are_0(shape: tuple[int, int, int]) -> None:
    random = np.random.default_rng(4)
    logits, labels = batch(random, *shape)
    weights = torch.ones(shape[0], 3, 3, device=DEVICE), torch.ones(shape[0], 3, 2, device=DEVICE)
    found, gradient = weighted_gradient(logits, labels, several(random), weights)
    assert [tuple(x.shape) for x in found] == [(shape[0], 3, 3), (shape[0], 3, 2), (shape[0], 3)]
    assert not any(x.any() for x in found)
    assert gradient.shape == shape


def test_the_same_bytes_twice() -> None:
    random = np.random.default_rng(5)
    logits, labels = batch(random, 2, 3, 2500)
    wanted = several(random)
    weights = torch.randn(2, 3, 3, device=DEVICE), torch.randn(2, 3, 2, device=DEVICE)
    first, gradient = weighted_gradient(logits, labels, wanted, weights)
    second, again = weighted_gradient(logits, labels, wanted, weights)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert torch.equal(gradient, again)


def test_a_second_derivative_is_refused() -> None:
    random = np.random.default_rng(6)
    logits, labels = batch(random, 1, 3, 5)
    inside, _, _ = moments(logits.requires_grad_(), labels, several(random))
    (gradient,) = torch.autograd.grad(inside.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
