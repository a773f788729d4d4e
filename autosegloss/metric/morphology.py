"""Minimum and maximum filters over any number of spatial axes, for truth values and for soft maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_Pick = Callable[[Tensor, Tensor], Tensor]


def maximum_filter(x: Tensor, radius: int) -> Tensor:
    """Maximum over the (2 radius + 1)-wide cube around each pixel; nothing outside the image counts.

    Args:
        x: Maps of shape (N, C, *S), boolean or floating.
        radius: In pixels, at least 0.

    Returns:
        Maps shaped like `x`, differentiable where `x` is floating.
    """
    return _filter(x, radius, torch.logical_or if x.dtype == torch.bool else torch.maximum)


def minimum_filter(x: Tensor, radius: int) -> Tensor:
    """Minimum over the (2 radius + 1)-wide cube around each pixel; arguments as `maximum_filter`."""
    return _filter(x, radius, torch.logical_and if x.dtype == torch.bool else torch.minimum)


def _filter(x: Tensor, radius: int, pick: _Pick) -> Tensor:
    for axis in range(2, x.ndim):  # a cube is separable
        x = _filter_axis(x, axis, min(radius, x.shape[axis] - 1), pick)
    return x


def _filter_axis(x: Tensor, axis: int, radius: int, pick: _Pick) -> Tensor:
    """A running extremum of half-width `radius`, by windows of doubling width."""
    length = x.shape[axis]
    if radius <= 0:
        return x
    ends = [
        x.narrow(axis, 0, 1).expand(_with(x.shape, axis, radius)),
        x.narrow(axis, length - 1, 1).expand(_with(x.shape, axis, radius)),
    ]
    window = torch.cat([ends[0], x, ends[1]], dim=axis)  # repeating the edge adds nothing new to a window that holds it
    width, full = 1, 2 * radius + 1
    while width < full:
        step = min(width, full - width)
        size = window.shape[axis] - step
        window = pick(window.narrow(axis, 0, size), window.narrow(axis, step, size))
        width += step
    return window


def _with(shape: torch.Size, axis: int, size: int) -> list[int]:
    return [size if dimension == axis else length for dimension, length in enumerate(shape)]
