"""Counts of all processes of a distributed run."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from autosegloss.errors import InputError


def gather(tensors: Sequence[Tensor], meaning: str) -> list[list[Tensor]]:
    """The tensors of every rank, in the order of the ranks; those given where nothing is distributed.

    Every rank calls it, also one that has nothing. It exchanges one size, then one buffer of 64-bit words padded to the
    longest; nothing is pickled, and every bit arrives as it was.

    Args:
        tensors: int64 or float64. Between ranks each may differ in the size of its first axis, which may be 0.
        meaning: What the tensors mean; a rank that means something else is found before anything is mixed up.

    Returns:
        For each rank its tensors, on the CPU.

    Raises:
        InputError: The ranks do not mean the same; raised on all of them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [[tensor.cpu() for tensor in tensors]]
    # NCCL moves memory of the current CUDA device only; the other backends of PyTorch's own builds move the CPU's.
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    lengths = torch.tensor([len(tensor) for tensor in tensors], dtype=torch.int64)
    words = torch.cat([lengths, *(tensor.cpu().contiguous().view(torch.int64).flatten() for tensor in tensors)])

    layout = [(tensor.dtype, tensor.shape[1:]) for tensor in tensors]
    headers = _all_gather(torch.tensor([crc32(f"{meaning} {layout}".encode()), len(words)]), device)
    different = [rank for rank, header in enumerate(headers) if header[0] != headers[0][0]]
    if different:
        raise InputError(
            f"rank {different[0]} counts something else than rank 0; here it is {meaning}. "
            "Every rank builds its accumulator from the same arguments."
        )
    longest = max(int(header[1]) for header in headers)
    padded = torch.cat([words, words.new_zeros(longest - len(words))])
    return [_unpack(received, tensors) for received in _all_gather(padded, device)]


def _all_gather(tensor: Tensor, device: torch.device) -> list[Tensor]:
    sent = tensor.to(device)
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(received, sent)
    return [each.cpu() for each in received]


def _unpack(words: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    start, tensors = len(like), []
    for length, tensor in zip(words[: len(like)].tolist(), like, strict=True):
        shape = (length, *tensor.shape[1:])
        end = start + torch.Size(shape).numel()
        tensors.append(words[start:end].clone().view(tensor.dtype).view(shape))
        start = end
    return tensors
