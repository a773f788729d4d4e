"""Trials as users write them, right and wrong ones; Ray's workers import this module by name."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

BUDGETS: list[float] = []
_CALLS = itertools.count()


def train(loss: torch.nn.Module, seed: int, budget: float) -> dict[str, Any]:
    """A real training of a network of 8 weights on random images of 8x8 pixels; the cost is the share of errors."""
    BUDGETS.append(budget)
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 8, 8, generator=generator)
    labels = (images.sum(dim=1) > 1.4).long()
    labels[:, 0] = 255
    network = torch.nn.Conv2d(3, 2, 1)  # its weights are drawn from PyTorch's own generator
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
    wrong = (network(images).argmax(dim=1) != labels)[:, 1:].float().mean()
    return {"cost": wrong, "miou": np.array(1 - wrong.item()), "steps": np.int64(6)}


def nothing(loss: Any, seed: int, budget: float) -> None:
    """Forgets to return."""


def empty(loss: Any, seed: int, budget: float) -> dict[str, float]:
    return {}


def unnamed(loss: Any, seed: int, budget: float) -> Any:
    return {1: 0.5}


def text(loss: Any, seed: int, budget: float) -> Any:
    return {"miou": "0.5"}


def several(loss: Any, seed: int, budget: float) -> Any:
    return {"miou": torch.rand(2)}


def target(loss: Any, seed: int, budget: float) -> Any:
    return {"miou": 0.5, "target": 0.5}


def other(loss: Any, seed: int, budget: float) -> Any:
    return {"mean_iou": 0.5, "loss": 1}


def undefined(loss: Any, seed: int, budget: float) -> Any:
    return {"miou": float("nan")}


def raising(loss: Any, seed: int, budget: float) -> Any:
    raise ValueError("no such row")


def now_and_then(loss: Any, seed: int, budget: float) -> Any:
    """Returns nothing at every fourth call, but not at the first."""
    return {} if next(_CALLS) % 4 == 3 else train(loss, seed, budget)


def of_two(loss: Any, seed: int) -> Any:
    return {"miou": 0.5}


def varying(loss: Any, seed: int, budget: float) -> Any:
    """One number more for some seeds."""
    return train(loss, seed, budget) | ({"more": 0.5} if seed % 2 else {})
