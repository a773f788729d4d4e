"""What the kernels on a CPU share: blocks of pixels that stay in the cache, threads, and sums by label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

_BLOCK = 2**15  # logits: what torch does in one thread, and a few times that stays in the cache of a core


def working_dtype(logits: Tensor) -> torch.dtype:
    """Float64 for float64 logits, else float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def class_sums(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sums over the pixels of each class, of labels that are not negative: (N, P) -> (N, C)."""
    sums = x.new_zeros(len(x), classes + 1)
    return sums.scatter_add_(1, labels.where(labels >= 0, classes), x)[:, :classes]


def pixel_blocks(logits: Tensor, times: int = 1) -> list[tuple[slice, slice]]:
    """Some pixels of an image at a time, or some small images; on a GPU, which has no such cache, all at once.

    Args:
        logits: (N, C, P).
        times: How many usual blocks one block is, for work with many steps that are short.
    """
    images, classes, pixels = logits.shape
    if logits.device.type != "cpu":
        return [(slice(None), slice(None))]
    some = max(1, times * _BLOCK // max(1, classes))
    together = max(1, some // max(1, pixels))
    return [
        (slice(image, image + together), slice(pixel, pixel + some))
        for image in range(0, images, together)
        for pixel in range(0, pixels, some)
    ]


def in_threads(task: Callable[..., Any], given: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The results in order, in as many threads as torch may use, each with whole tasks of its own."""
    threads = torch.get_num_threads()
    if min(threads, len(given)) < 2:
        return [task(*each) for each in given]
    try:
        with ThreadPoolExecutor(min(threads, len(given)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(torch.no_grad()(task), *zip(*given, strict=True)))
    finally:
        torch.set_num_threads(threads)
