"""Sums over the processes of a distributed training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the ranks of torch.distributed, with gradients; the tensor where nothing is distributed.

    The gradient is summed over the ranks as well: each rank's loss depends on the numbers of all. Distributed data
    parallel averages the gradients of k ranks, so parameters get those of one process with the whole batch.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    result: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return result


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total
