"""Batches of a training run: which images, in which order, flipped or not, as tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autosegloss.proxy.data import IGNORE_INDEX, Split

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class Draws:
    """What each iteration sees: image numbers, and which of them are flipped left to right, (iterations, batch)."""

    order: NDArray[np.intp]
    flips: NDArray[np.bool_]

    @classmethod
    def of(cls, rng: np.random.Generator, images: int, iterations: int, batch_size: int) -> Draws:
        """Draw such that each image comes once before any comes again, flipped with probability 1/2."""
        draws = iterations * batch_size
        epochs = [rng.permutation(images) for _ in range(math.ceil(draws / images))]
        order = np.concatenate(epochs)[:draws].reshape(iterations, batch_size)
        return cls(order, rng.random(order.shape) < 0.5)

    def share(self, rank: int, ranks: int) -> Draws:
        """What one of several processes sees: of each batch, the images rank, rank + ranks, ..."""
        return Draws(*(getattr(self, field.name)[:, rank::ranks] for field in fields(self)))


def batch(split: Split, draws: Draws, iteration: int, device: torch.device) -> tuple[Tensor, ...]:
    """The images (N, 3, H, W) of an iteration, and what a loss takes besides the logits.

    That is the target: int64 labels (N, H, W), or float32 soft labels (N, C, H, W), which are followed by a boolean
    mask (N, H, W), True where a pixel counts, if there are pixels that do not.
    """
    chosen, flip = draws.order[iteration], draws.flips[iteration]
    images = to_input(_flipped(split.images[chosen], flip), device)
    labels = torch.from_numpy(_flipped(split.labels[chosen], flip)).to(device, torch.int64)
    if split.soft is None:
        return images, labels
    soft = torch.from_numpy(_flipped(split.soft[chosen], flip)).to(device, torch.float32)
    counts = labels != IGNORE_INDEX
    return (images, soft) if bool(counts.all()) else (images, soft, counts)


def to_input(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Images as the networks take them: float32, in channels-last layout."""
    # Centred, so that the zeros a convolution pads with are grey and not black.
    scaled = torch.tensor(images).to(device, torch.float32) / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


def _flipped(maps: NDArray[_Number], flip: NDArray[np.bool_]) -> NDArray[_Number]:
    maps[flip] = maps[flip, ..., ::-1]  # indexing with numbers has copied them
    return maps
