"""Minimum and maximum filters over any number of spatial axes, for truth values and for soft maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_Pick = Callable[[Tensor, Tensor], Tensor]


def in_pixels(radius: float, sides: Sequence[int]) -> int:
    """A radius in pixels: an int as it is, a share of the image's diagonal rounded, at least 1.

    An axis of length 1 does not count: it may be a channel axis or a volume of one slice.
    """
    if isinstance(radius, int):
        return radius
    return max(1, round(radius * math.sqrt(sum(side * side for side in sides if side > 1))))


def maximum_filter(x: Tensor, radius: int) -> Tensor:
    """Maximum over the (2 radius + 1)-wide cube around each pixel; nothing outside the image counts.

    Args:
        x: Maps of shape (N, C, *S), boolean or floating.
        radius: In pixels, at least 0.

    Returns:
        Maps shaped like `x`, differentiable where `x` is floating.
    """
    pick = _maximum(x)
    for axis in range(2, x.ndim):  # a cube is separable
        x = _filter_axis(x, axis, radius, pick)
    return x


def minimum_filter(x: Tensor, radius: int, border: bool = False) -> Tensor:
    """Minimum over the (2 radius + 1)-wide cube around each pixel; arguments as `maximum_filter`.

    With `border` what lies outside the image counts, as 0; along an axis of length 1 nothing does.
    """
    pick = torch.logical_and if x.dtype == torch.bool else torch.minimum
    for axis in range(2, x.ndim):
        x = _filter_axis(x, axis, radius, pick, border)
    return x


def ball_maximum_filter(x: Tensor, radius: int) -> Tensor:
    """Maximum over the pixels within a Euclidean distance of `radius`; arguments as `maximum_filter`."""
    return _ball(x, 2, radius * radius, _maximum(x)) if x.ndim > 2 else x


def minimum_filter_of_bits(x: Tensor, radius: int, border: bool = False) -> Tensor:
    """`minimum_filter` of integers whose bits are truth values of maps of their own."""
    for axis in range(2, x.ndim):
        x = _filter_axis(x, axis, radius, torch.bitwise_and, border)
    return x


def maximum_filter_of_bits(x: Tensor, radius: int, shape: Literal["square", "disk"]) -> Tensor:
    """`maximum_filter` or `ball_maximum_filter` of integers whose bits are truth values of maps of their own."""
    if shape == "disk":
        return _ball(x, 2, radius * radius, torch.bitwise_or) if x.ndim > 2 else x
    for axis in range(2, x.ndim):
        x = _filter_axis(x, axis, radius, torch.bitwise_or)
    return x


def _maximum(x: Tensor) -> _Pick:
    return torch.logical_or if x.dtype == torch.bool else torch.maximum


def _ball(x: Tensor, axis: int, squared: int, pick: _Pick) -> Tensor:
    """The maximum over the ball of a squared radius in the spatial axes from `axis` on: of a smaller ball per slice."""
    length = x.shape[axis]
    reach = min(math.isqrt(squared), max(0, length - 1))  # beyond it no window changes
    if axis == x.ndim - 1:
        return _filter_axis(x, axis, reach, pick)
    slices: dict[int, Tensor] = {}  # by the radius of the slice where that says it all: the last axis
    result = _ball(x, axis + 1, squared, pick)
    for offset in range(1, reach + 1):
        left = squared - offset * offset
        key = math.isqrt(left) if axis == x.ndim - 2 else left
        if key not in slices:
            slices[key] = _padded(_ball(x, axis + 1, left, pick), axis, reach)
        for start in (reach - offset, reach + offset):
            result = pick(result, slices[key].narrow(axis, start, length))
    return result


def _filter_axis(x: Tensor, axis: int, radius: int, pick: _Pick, border: bool = False) -> Tensor:
    """A running extremum of half-width `radius`."""
    length = x.shape[axis]
    radius = min(radius, length if border and length > 1 else length - 1)  # beyond it no window changes
    if radius <= 0:
        return x
    if pick not in (torch.minimum, torch.maximum):  # truth values, which have no gradient
        return _windows(x, axis, radius, pick, border)[-1]
    extremum: Tensor = _Extremum.apply(x, axis, radius, pick is torch.maximum, border)  # type: ignore[no-untyped-call]
    return extremum


def _windows(x: Tensor, axis: int, radius: int, pick: _Pick, border: bool) -> list[Tensor]:
    """The padded map, and the extrema over windows of doubling width up to the whole."""
    windows = [_padded(x, axis, radius, border)]
    for step in _steps(radius):
        size = windows[-1].shape[axis] - step
        windows.append(pick(windows[-1].narrow(axis, 0, size), windows[-1].narrow(axis, step, size)))
    return windows


def _steps(radius: int) -> list[int]:
    """How far apart the two windows are that make each wider one."""
    steps, width, full = [], 1, 2 * radius + 1
    while width < full:
        steps.append(min(width, full - width))
        width += steps[-1]
    return steps


class _Extremum(torch.autograd.Function):
    """A running extremum that keeps its input alone: the backward pass makes the windows again.

    The gradient goes to the extreme pixel; two equal windows share it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, axis: int, radius: int, largest: bool, border: bool) -> Tensor:
        return _windows(x, axis, radius, torch.maximum if largest else torch.minimum, border)[-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.options = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        axis, radius, largest, border = ctx.options
        windows = _windows(ctx.saved_tensors[0], axis, radius, torch.maximum if largest else torch.minimum, border)
        steps = _steps(radius)
        for window, step in zip(windows[-2::-1], steps[::-1], strict=True):
            size = window.shape[axis] - step
            left, right = window.narrow(axis, 0, size), window.narrow(axis, step, size)
            first, second = (left, right) if largest else (right, left)
            # The share of the left window is (1 + sign) / 2, and both halves are taken at the end. A sign is several
            # times faster than `where` or a comparison.
            lean = (first - second).sign_()
            wider = torch.zeros_like(window)
            wider.narrow(axis, 0, size).add_(torch.addcmul(gradient, lean, gradient))
            wider.narrow(axis, step, size).add_(torch.addcmul(gradient, lean, gradient, value=-1))
            gradient = wider
        length = gradient.shape[axis] - 2 * radius
        inner = gradient.narrow(axis, radius, length)
        if not border:
            inner.narrow(axis, 0, 1).add_(gradient.narrow(axis, 0, radius).sum(axis, keepdim=True))
            inner.narrow(axis, length - 1, 1).add_(
                gradient.narrow(axis, radius + length, radius).sum(axis, keepdim=True)
            )
        return inner * 0.5 ** len(steps), None, None, None, None


def _padded(x: Tensor, axis: int, size: int, zeros: bool = False) -> Tensor:
    """`size` pixels more at both ends: zeros, or the edge repeated, which adds nothing to a window that holds it."""
    if x.is_floating_point() and not zeros and x.numel():  # much faster than `cat`, for floating maps alone
        if axis == x.ndim - 1:
            wide = functional.pad(x.reshape(1, 1, -1, x.shape[axis]), (size, size, 0, 0), mode="replicate")
        else:
            planes = x.reshape(1, -1, x.shape[axis], math.prod(x.shape[axis + 1 :]))
            wide = functional.pad(planes, (0, 0, size, size), mode="replicate")
        return wide.view(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    shape = list(x.shape)
    shape[axis] = size
    if zeros:
        ends = [x.new_zeros(shape)] * 2
    else:
        ends = [x.narrow(axis, start, 1).expand(shape) for start in (0, x.shape[axis] - 1)]
    return torch.cat([ends[0], x, ends[1]], dim=axis)
