"""The batches of a training run: the choice, order and augmentation of the images."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from autosegloss.proxy.data import IGNORE_INDEX, Split
from autosegloss.proxy.settings import Augment

Maps: TypeAlias = NDArray[Any] | Tensor

# The ranges of `full` are those of the published code. Each change of colour is applied with probability 1/2.
SCALES = (0.5, 2.0)
BRIGHTNESS = 32 / 127.5  # maximal shift of colours in [-1, 1]
FACTORS = (0.5, 1.5)  # range of the factors of contrast and saturation
HUE = math.pi / 5  # maximal rotation, in radians
MAX_GPU_BYTES = 2**32  # splits up to this size are copied to the GPU; VOC at 128x128 has 0.6e9 bytes
_NUMBERS = 11  # random numbers per image: scale, two offsets, four colour changes and whether each is applied
# From red, green and blue to luminance and two axes of colour (YIQ, of the NTSC standard).
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True)
class BatchPlan:
    """The images of each iteration and their augmentation.

    Args:
        order: Indices of the images, (iterations, batch).
        flips: Whether each image is flipped left to right, (iterations, batch).
        numbers: Uniform numbers in [0, 1) for the other changes, (iterations, batch, 11), or (iterations, batch, 0) if
            there are none.
    """

    order: NDArray[np.intp]
    flips: NDArray[np.bool_]
    numbers: NDArray[np.float64]

    @classmethod
    def draw(
        cls, rng: np.random.Generator, images: int, iterations: int, batch_size: int, augment: Augment = "flip"
    ) -> BatchPlan:
        """Draw a plan in which every image comes once per epoch, flipped with probability 1/2."""
        draws = iterations * batch_size
        epochs = [rng.permutation(images) for _ in range(math.ceil(draws / images))]
        order = np.concatenate(epochs)[:draws].reshape(iterations, batch_size)
        flips = rng.random(order.shape) < 0.5
        return cls(order, flips, rng.random((*order.shape, _NUMBERS if augment == "full" else 0)))

    def share(self, rank: int, ranks: int) -> BatchPlan:
        """The part of one of several processes: of each batch, the images rank, rank + ranks, ..."""
        return BatchPlan(*(getattr(self, field.name)[:, rank::ranks] for field in fields(self)))


@dataclass(frozen=True)
class TrainingArrays:
    """The arrays of a split that training reads, on the device that batches are taken from."""

    images: Maps
    labels: Maps
    soft: Maps | None

    @classmethod
    def on(cls, split: Split, device: torch.device) -> TrainingArrays:
        """Copy the arrays to a GPU if they are small enough (`MAX_GPU_BYTES`); otherwise leave them in memory."""
        images, labels, soft = split.images, split.labels, split.soft
        size = images.nbytes + labels.nbytes + (0 if soft is None else soft.nbytes)
        if device.type == "cpu" or size > MAX_GPU_BYTES:
            return cls(images, labels, soft)
        put = partial(torch.tensor, device=device)
        return cls(put(images), put(labels), None if soft is None else put(soft))


def batch(split: Split | TrainingArrays, plan: BatchPlan, iteration: int, device: torch.device) -> tuple[Tensor, ...]:
    """The images (N, 3, H, W) of an iteration, and the arguments of a loss besides the logits.

    These are int64 labels (N, H, W), or float32 soft labels (N, C, H, W), followed by a boolean mask (N, H, W), True
    where a pixel counts, if some pixels are ignored.
    """
    numbers = plan.numbers[iteration]
    chosen, flip = (torch.from_numpy(each[iteration]) for each in (plan.order, plan.flips))
    images = to_input(_take(split.images, chosen, flip, device), device)
    labels = _take(split.labels, chosen, flip, device).to(torch.int64)
    soft = None if split.soft is None else _take(split.soft, chosen, flip, device).to(torch.float32)
    if numbers.size:
        images, labels, soft = _scale_and_crop(_jitter_colours(images, numbers[:, 3:]), labels, soft, numbers[:, :3])
    if soft is None:
        return images, labels
    counts = labels != IGNORE_INDEX
    return (images, soft) if bool(counts.all()) else (images, soft, counts)


def to_input(images: Maps, device: torch.device) -> Tensor:
    """Images as networks take them: float32 in [-1, 1], in channels-last layout."""
    there = images.to(device) if isinstance(images, Tensor) else torch.tensor(images, device=device)
    # Centred, so that zero padding of convolutions is grey, not black.
    scaled = there.to(torch.float32) / 127.5 - 1
    return scaled.contiguous(memory_format=torch.channels_last)


def _take(maps: Maps, chosen: Tensor, flip: Tensor, device: torch.device) -> Tensor:
    """The chosen maps (N, ..., W) on a device, flipped left to right where `flip` says so."""
    if isinstance(maps, Tensor):
        taken = maps[chosen.to(maps.device)]
    else:
        taken = torch.from_numpy(maps[chosen.numpy()]).to(device)  # indexing with numbers copies
    return torch.where(flip.to(device).view(-1, *[1] * (taken.ndim - 1)), taken.flip(-1), taken)


def _jitter_colours(images: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """Change brightness, contrast, saturation and hue of images in [-1, 1] by numbers (N, 8), each for half of them.

    Hue rotates and saturation scales the plane of equal luminance; with contrast and brightness this is one affine map
    of the colours of an image.
    """
    made, amount = numbers[:, :4] < 0.5, numbers[:, 4:]
    low, high = FACTORS
    brightness = np.where(made[:, 0], BRIGHTNESS * (2 * amount[:, 0] - 1), 0)
    contrast, saturation = np.where(made[:, 1:3], low + (high - low) * amount[:, 1:3], 1).T
    hue = np.where(made[:, 3], HUE * (2 * amount[:, 3] - 1), 0)
    plane = np.zeros((len(numbers), 3, 3))
    plane[:, 0, 0] = 1
    plane[:, 1, 1] = plane[:, 2, 2] = saturation * np.cos(hue)
    plane[:, 2, 1] = saturation * np.sin(hue)
    plane[:, 1, 2] = -plane[:, 2, 1]
    colours = contrast[:, None, None] * (np.linalg.inv(_YIQ) @ plane @ _YIQ)
    # Contrast scales colours from black, which is -1 here; the other changes keep grey unchanged.
    offset = contrast * (1 + brightness) - 1
    matrix, shift = (torch.from_numpy(each).to(images) for each in (colours, offset))
    return torch.baddbmm(shift[:, None, None], matrix, images.flatten(2)).clamp(-1, 1).view(images.shape)


def _scale_and_crop(
    images: Tensor, labels: Tensor, soft: Tensor | None, numbers: NDArray[np.float64]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scale images and labels and crop them to their size, by numbers (N, 3): scale, horizontal and vertical offset.

    Where an image becomes smaller, the area around it is grey and ignored.
    """
    low, high = SCALES
    scale = low + (high - low) * numbers[:, :1]
    # The source position of each pixel, in coordinates from -1 to 1.
    affine = np.zeros((len(numbers), 2, 3))
    affine[:, 0, 0] = affine[:, 1, 1] = 1 / scale[:, 0]
    affine[:, :, 2] = (1 - 1 / scale) * (2 * numbers[:, 1:] - 1)
    grid = F.affine_grid(torch.from_numpy(affine).to(images), list(images.shape), align_corners=False)
    inside = (grid.abs() <= 1).all(dim=3)

    def sampled(maps: Tensor, mode: str) -> Tensor:
        return F.grid_sample(maps, grid, mode=mode, padding_mode="border", align_corners=False)

    images = (sampled(images, "bilinear") * inside[:, None]).contiguous(memory_format=torch.channels_last)
    labels = sampled(labels[:, None].to(grid.dtype), "nearest")[:, 0].to(torch.int64)
    return images, labels.where(inside, IGNORE_INDEX), None if soft is None else sampled(soft, "nearest")
