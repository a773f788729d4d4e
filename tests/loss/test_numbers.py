"""Low precision and extreme logits: a finite value and gradient of the right dtype."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autosegloss.loss import SearchSpace, SurrogateLoss
from autosegloss.metric import Accumulator, metric

NAMES = ["miou", "dice_i", "tversky_c", "macc", "fwiou", "biou", "bf1_i"]
LOSSES = pytest.mark.parametrize(
    ("name", "logic", "curve"), list(product(NAMES, ["product", "godel"], ["identity", "bezier", "linear", "log"]))
)
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
Batch = tuple[Tensor, Tensor, Tensor | None]


def loss_of(name: str, logic: Any, curve: Any) -> SurrogateLoss:
    options = {"radius": 2} if name in ("biou", "bf1_i") else {}
    space = SearchSpace(metric(name, **options), curve)
    generator = torch.Generator().manual_seed(4)
    theta = 0.1 + 0.8 * torch.rand(space.dimension, generator=generator, dtype=torch.float64)
    return SurrogateLoss.from_theta(space.expr, theta.tolist(), curve=curve, logic=logic)


def batch(shape: tuple[int, ...], classes: int = 4, kind: str = "labels", dtype: torch.dtype = torch.float64) -> Batch:
    """Logits, target and mask of maps of a shape (N, *S)."""
    generator = torch.Generator().manual_seed(sum(shape))
    full = (shape[0], classes, *shape[1:])
    logits = 2 * torch.randn(full, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.1] = 255
    soft = torch.rand(full, generator=generator, dtype=torch.float64)
    soft = soft / soft.sum(1, keepdim=True)
    mask = torch.rand(shape, generator=generator) < 0.8
    return logits.to(dtype), soft.to(dtype) if "soft" in kind else labels, mask if "masked" in kind else None


def checked(loss: SurrogateLoss, logits: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor]:
    """The value and the gradient by the logits, after a look at what holds for all of them."""
    before = logits.detach().clone()
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, *rest)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert value.shape == ()
    assert value.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert value.device == logits.device
    assert bool(value.isfinite())
    assert gradient.shape == logits.shape
    assert gradient.dtype == logits.dtype
    assert bool(gradient.isfinite().all())
    assert torch.equal(logits.detach(), before)
    return value.detach(), gradient


# Precision ------------------------------------------------------------------------------------------------------------


@HALVES
@pytest.mark.parametrize("name", ["miou", "dice_i", "bf1_i"])
def test_a_training_step_under_autocast(name: str, dtype: torch.dtype) -> None:
    """A network under autocast gives half-precision logits: the loss is that of these, in float32."""
    loss = loss_of(name, "godel", "bezier")
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 3, padding=1)
    image = torch.randn(2, 3, 7, 6)
    for kind in ("labels", "masked soft labels"):
        _, target, mask = batch((2, 7, 6), kind=kind, dtype=torch.float32)
        gradients = []
        for inside in (True, False):
            network.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                logits = network(image)
                if inside:
                    value = loss(logits, target, mask)
            if not inside:
                value = loss(logits.float(), target, mask)
            assert logits.dtype == dtype
            assert value.dtype == torch.float32
            value.backward()
            assert network.weight.grad is not None
            gradients.append((value.item(), network.weight.grad.clone()))
        assert gradients[0][0] == gradients[1][0]
        torch.testing.assert_close(gradients[0][1], gradients[1][1])
        assert bool(gradients[0][1].isfinite().all() & gradients[0][1].any())


# Extreme logits -------------------------------------------------------------------------------------------------------


@LOSSES
@pytest.mark.slow
def test_large_logits_and_mixtures(name: str, logic: Any, curve: Any) -> None:
    loss = loss_of(name, logic, curve)
    for kind in ("labels", "masked soft labels"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            logits, target, mask = batch((2, 5, 6), kind=kind, dtype=dtype)
            signs = logits.sign()
            for extreme in (1e4 * signs, torch.full_like(logits, -1e4), torch.where(logits > 1, 1e4 * signs, logits)):
                value, _ = checked(loss, extreme.to(dtype), target, mask)
                assert kind != "labels" or -1e-6 <= value.item() <= 1 + 1e-6
    # Probabilities that are 0 and 1: the exact metric.
    logits, target, _ = batch((2, 5, 6))
    right = torch.where(torch.arange(4).view(4, 1, 1) == target.unsqueeze(1), 1e4, -1e4)
    assert checked(loss, right, target)[0].item() == pytest.approx(0, abs=1e-6)
    exact = Accumulator(loss.expr, 4)
    exact.update(right.roll(1, dims=1), target)
    assert checked(loss, right.roll(1, dims=1), target)[0].item() == pytest.approx(1 - exact.compute(), abs=1e-6)
