"""Checks of label maps, the same for metrics and losses."""

from __future__ import annotations

import torch
from torch import Tensor

from autosegloss.errors import InputError, InputTypeError


def check_labels(
    labels: Tensor, shape: tuple[int, ...], num_classes: int, ignore_index: int | None, name: str
) -> Tensor:
    """Label maps of the shape that is wanted, as int64.

    Args:
        labels: (N, *S) or (N, 1, *S), any integer type.
        shape: (N, *S).
        num_classes: Labels lie in 0..num_classes - 1.
        ignore_index: The one other label allowed, or None.
        name: What the labels are called in a message.

    Raises:
        InputTypeError: The type is no integer.
        InputError: The shape or a label is wrong, naming the labels found.
    """
    if not isinstance(labels, Tensor):
        raise InputTypeError(f"{name} is a {type(labels).__name__}; a torch tensor of integer labels is wanted.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputTypeError(f"{name} has dtype {labels.dtype}; integer labels are wanted.")
    with_channel = (shape[0], 1, *shape[1:])
    if tuple(labels.shape) == with_channel and tuple(labels.shape) != shape:
        labels = labels.squeeze(1)
    if tuple(labels.shape) != shape:
        raise InputError(f"{name} has shape {tuple(labels.shape)}; {shape} or {with_channel} is wanted.")
    labels = labels.to(torch.int64)
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
