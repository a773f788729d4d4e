"""What must hold of the Triton kernels to the bit: natively on a GPU, elsewhere in Triton's interpreter.

`test_equivalence.py` holds their values and gradients. Run by `test_kernels.py` in a process of its own, with
`TRITON_INTERPRET` set: the interpreter is chosen before Triton is first imported.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor

from autosegloss.loss.curve import Curve, points_from_theta
from autosegloss.loss.kernels.atoms import Atom, Atoms
from autosegloss.loss.kernels.moments_triton import moments

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# Jumps at 0 and within, a level piece, vertical starts and ends.
STEEP = Curve("bezier", ((0.0, 0.0), (0.0, 0.3), (0.0, 0.6), (0.4, 0.7), (0.4, 0.8), (0.7, 0.8), (1.0, 0.8)))


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


def weighted_gradient(
    logits: Tensor, labels: Tensor, wanted: Atoms, weights: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor]:
    leaf = logits.detach().requires_grad_()
    found = moments(leaf, labels, wanted)
    assert not found[2].requires_grad
    (gradient,) = torch.autograd.grad(found[:2], leaf, weights)
    return tuple(x.detach() for x in found), gradient


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
