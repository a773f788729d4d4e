"""Checks of label maps, masks and scores, the same for metrics and losses."""

from __future__ import annotations

import torch
from torch import Tensor

from autosegloss.errors import InputError, InputTypeError


def check_labels(
    labels: Tensor,
    shape: tuple[int, ...],
    num_classes: int,
    ignore_index: int | None,
    name: str,
    mask: Tensor | None = None,
) -> Tensor:
    """Label maps of the shape that is wanted, as int64.

    A mask is another spelling of `ignore_index`: the label becomes `ignore_index` where the mask is False, whatever it
    was, and nothing after this function knows of the mask.

    Args:
        labels: (N, *S) or (N, 1, *S), any integer type.
        shape: (N, *S).
        num_classes: Labels lie in 0..num_classes - 1.
        ignore_index: The one other label allowed, or None.
        name: What the labels are called in a message.
        mask: True where a pixel counts: boolean, (N, *S) or (N, 1, *S). Only with an `ignore_index`.

    Raises:
        InputTypeError: The type is no integer, or that of the mask is not boolean.
        InputError: The shape or a label is wrong, naming the labels found.
    """
    if not isinstance(labels, Tensor):
        raise InputTypeError(f"{name} is a {type(labels).__name__}; a torch tensor of integer labels is wanted.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputTypeError(f"{name} has dtype {labels.dtype}; integer labels are wanted.")
    labels = _without_channel(labels, shape, name).to(torch.int64)
    if mask is not None and ignore_index is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise InputTypeError(f"mask is {given}; a boolean torch tensor is wanted, True where a pixel counts.")
        counts = _without_channel(mask, shape, "mask").to(labels.device)
        labels = labels.masked_fill(~counts, ignore_index)
    wrong = (labels < 0) | (labels >= num_classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if bool(wrong.any()):
        found = sorted(set(labels[wrong].tolist()))
        listed = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
        ignored = f" and {ignore_index} (ignored)" if ignore_index is not None else ""
        raise InputError(
            f"{name} has labels outside the classes at {int(wrong.sum())} of {labels.numel()} pixels: {listed}; "
            f"allowed: 0..{num_classes - 1}{ignored}."
        )
    return labels


def best_class(scores: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The highest score of each pixel and its class, the lowest such class where scores are equal.

    Args:
        scores: (N, C, *S), any floating type.
        num_classes: C.

    Returns:
        Scores and labels, (N, *S) each.

    Raises:
        InputError: The shape is wrong, or a score is NaN.
    """
    if scores.ndim < 2 or scores.shape[1] != num_classes:
        raise InputError(
            f"scores have shape {tuple(scores.shape)}; (N, {num_classes}, *S) is wanted: one map per class."
        )
    highest, labels = scores.max(1)  # a NaN is the maximum of its pixel
    undefined = highest.isnan()
    if bool(undefined.any()):
        raise InputError(
            f"scores are NaN at {int(undefined.sum())} of {undefined.numel()} pixels; no class is the best there."
        )
    return highest, labels


def _without_channel(maps: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    with_channel = (shape[0], 1, *shape[1:])
    if tuple(maps.shape) == with_channel and tuple(maps.shape) != shape:
        maps = maps.squeeze(1)
    if tuple(maps.shape) != shape:
        raise InputError(f"{name} has shape {tuple(maps.shape)}; {shape} or {with_channel} is wanted.")
    return maps
