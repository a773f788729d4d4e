"""Truth maps of labels for all classes at once, a bit a class: what an operator costs for one, it costs for dozens."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from typing_extensions import assert_never

from autosegloss.metric import expr as e
from autosegloss.metric.morphology import in_pixels, maximum_filter_of_bits, minimum_filter_of_bits

_BITS = 31  # classes in an int32, without its sign


class BitMaps:
    """Maps of truth values that see the target alone.

    Args:
        labels: (N, *S) int64, 0..C-1, or negative where no class is set.
        num_classes: C.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        groups = torch.arange(-(-num_classes // _BITS), device=labels.device).view(-1, *[1] * (labels.ndim - 1))
        bit = torch.bitwise_left_shift(torch.ones_like(labels), labels.remainder(_BITS)).to(torch.int32)
        group = labels.div(_BITS, rounding_mode="floor")  # of a negative label: none there is
        target = torch.where(group.unsqueeze(1) == groups, bit.unsqueeze(1), 0)
        self._num_classes = num_classes
        self._done: dict[e.Expr, Tensor] = {e.target: target}

    def classes(self, node: e.Expr, classes: slice) -> Tensor:
        """The maps of some classes, (N, n, *S) boolean; (N, 1, *S) of a map without a class axis."""
        bits = self._bits(node)
        if "class" not in node.axes:
            return (bits & 1).to(torch.uint8).view(torch.bool)
        numbers = torch.arange(self._num_classes, device=bits.device)[classes]
        if bits.shape[1] > 1:
            bits = bits[:, numbers // _BITS]
        shift = (numbers % _BITS).to(torch.int32).view(-1, *[1] * (bits.ndim - 2))
        return ((bits >> shift) & 1).to(torch.uint8).view(torch.bool)

    def _bits(self, expr: e.Expr) -> Tensor:
        """Bits of the classes, (N, groups, *S) int32; without a class axis 0 or all bits, (N, 1, *S)."""
        if expr in self._done:
            return self._done[expr]
        node = cast("e.MapNode", expr)
        match node:
            case e.Logic():
                left, right = self._bits(node.left), self._bits(node.right)
                x = left & right if node.op == "&" else left | right if node.op == "|" else left ^ right
            case e.Arithmetic():  # must be a product: nothing else yields truth values
                x = self._bits(node.left) & self._bits(node.right)
            case e.Not():
                x = ~self._bits(node.map)
            case e.Erode():
                inner = self._bits(node.map)
                x = minimum_filter_of_bits(inner, in_pixels(node.radius, inner.shape[2:]), node.border)
            case e.Dilate():
                inner = self._bits(node.map)
                x = maximum_filter_of_bits(inner, in_pixels(node.radius, inner.shape[2:]), node.shape)
            case e.AnyClass():
                x = self._any(self._bits(node.map), node.background)
            case e.Leaf() | e.Number():
                raise AssertionError(f"{node} is no map of the target alone")  # unreachable: nobody asks for it
            case _:
                assert_never(node)
        self._done[expr] = x
        return x

    def _any(self, bits: Tensor, background: bool) -> Tensor:
        x = torch.zeros_like(bits[:, :1])
        for group in range(bits.shape[1]):
            classes = min(_BITS, self._num_classes - group * _BITS)
            counted = (1 << classes) - 1 - (not background and group == 0)
            x = x | (bits[:, group : group + 1] & counted)
        return -(x != 0).to(torch.int32)
