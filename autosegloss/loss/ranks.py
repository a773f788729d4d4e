"""Sums over the processes of a distributed run, with gradients."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

from autosegloss.errors import InputError


class _OfImages(Protocol):
    @property
    def per_image(self) -> bool: ...


Statistic = TypeVar("Statistic", bound=_OfImages)
"""What a statistic is of, such as a `Sum`: it says whether there is one for each image."""


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the ranks of `torch.distributed`, the same on each; the tensor itself without any.

    Every rank calls it with a tensor of one shape and dtype, and later every rank goes backward. The gradient is that
    of the sum of what all ranks make of the result: where k ranks make the same loss of it, k times that of one loss.
    DistributedDataParallel, which averages the gradients of the ranks, makes it that of one loss again.

    Args:
        tensor: Floating, on a device that the backend serves.
    """
    if not _several():
        return tensor
    summed: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return summed


def batch_sums(sums: dict[Statistic, Tensor], images: int, num_classes: int) -> dict[Statistic, Tensor]:
    """The statistics of the batches of all ranks as if they were one batch, the images in the order of the ranks.

    Args:
        sums: The statistics of this rank's batch, see `interpret.sums`; those of images are (N, 1 or C).
        images: The number of its images; it may differ between ranks, and be 0.
        num_classes: C.

    Raises:
        InputError: The ranks have different numbers of classes or dtypes; raised on all of them.
    """
    if not _several():
        return sums
    reduced: dict[Statistic, Tensor] = _batch_sums(sums, images, num_classes)
    return reduced


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


# What the others have is known at run time only. torch.compiler.disable would import PyTorch's compiler here and now, a
# third of the time that it takes to import this package; this is the form that torch has for its own modules.
@_disable_dynamo
def _batch_sums(sums: dict[Statistic, Tensor], images: int, num_classes: int) -> dict[Statistic, Tensor]:
    rank, some = dist.get_rank(), next(iter(sums.values()))
    header = torch.zeros(dist.get_world_size(), 3, dtype=torch.int64, device=some.device)
    header[rank] = torch.tensor([num_classes, torch.finfo(some.dtype).bits, images])
    dist.all_reduce(header)
    kinds = [f"logits of {classes} classes in float{bits}" for classes, bits, _ in header.tolist()]
    if different := [other for other, kind in enumerate(kinds) if kind != kinds[0]]:
        raise InputError(
            f"rank 0 has {kinds[0]}, rank {different[0]} {kinds[different[0]]}; "
            "all ranks must have the same classes in the same dtype."
        )
    before, after = int(header[:rank, 2].sum()), int(header[rank + 1 :, 2].sum())
    placed = {
        node: torch.cat([x.new_zeros(before, x.shape[1]), x, x.new_zeros(after, x.shape[1])]) if node.per_image else x
        for node, x in sums.items()
    }
    together = sum_over_ranks(torch.cat([x.flatten() for x in placed.values()]))
    pieces = torch.split(together, [x.numel() for x in placed.values()])
    return {node: piece.view_as(x).to(x.dtype) for (node, x), piece in zip(placed.items(), pieces, strict=True)}


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(tensor)
    return tensor
