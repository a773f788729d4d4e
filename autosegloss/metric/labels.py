"""Checks of label maps, soft labels, masks and scores, the same for metrics and losses."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor

from autosegloss.errors import InputError, InputTypeError, shown

_INT64 = torch.iinfo(torch.int64)
DEFAULT_IGNORE_INDEX = 255
LARGEST_CLASSES = 2**16
SUM_TOLERANCE = 0.02
"""How far the sum of the shares of a pixel may be from 1. Rounding shares to bfloat16 moves it by 2^-8 at most, however
many classes there are; shares computed in bfloat16 (normalised, smoothed, resized) are rounded several times."""


def whole(value: object) -> int | None:
    """A whole number of Python or NumPy as an int; None for anything else, True and False too."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(cast("Any", value))
    except TypeError:
        return None


def check_num_classes(num_classes: int) -> int:
    """The number of classes.

    Raises:
        InputError: It is no integer from 1 to 65,536, the labels of 16 bits: counts take memory by it.
    """
    classes = whole(num_classes)
    if classes is None or not 1 <= classes <= LARGEST_CLASSES:
        raise InputError(f"num_classes must be an integer from 1 to {LARGEST_CLASSES}, got {shown(num_classes)}.")
    return classes


def check_tensors(prediction: object, target: object) -> None:
    """Raise InputTypeError unless both are torch tensors."""
    for name, given in (("prediction", prediction), ("target", target)):
        if not isinstance(given, Tensor):
            raise InputTypeError(f"{name} must be a torch tensor, got {type(given).__name__}.")


def check_ignore_index(ignore_index: int) -> int:
    """The label of ignored pixels; one that no pixel has, as -1, ignores nothing.

    Raises:
        InputTypeError: It is no integer.
        InputError: It does not fit in 64 bits.
    """
    label = whole(ignore_index)
    if label is None:
        raise InputTypeError(
            f"ignore_index must be an integer label, got {shown(ignore_index)}. With -1 no pixel is ignored."
        )
    if not _INT64.min <= label <= _INT64.max:
        raise InputError(f"ignore_index is {ignore_index}; labels are integers of 64 bits.")
    return label


def check_ignored_class(ignore_index: int | None, num_classes: int) -> None:
    """Raise InputError if the default label of ignored pixels is a class; another one is a class by intention."""
    if ignore_index == DEFAULT_IGNORE_INDEX and num_classes > DEFAULT_IGNORE_INDEX:
        raise InputError(
            f"ignore_index is {DEFAULT_IGNORE_INDEX}, the default, which is one of the {num_classes} classes "
            f"(0..{num_classes - 1}): its pixels would not count. Pass another ignore_index, such as -100; with -1 no "
            "pixel is ignored."
        )


def check_labels(
    labels: Tensor,
    shape: tuple[int, ...],
    num_classes: int,
    ignore_index: int | None,
    name: str,
    mask: Tensor | None = None,
) -> Tensor:
    """Label maps of the given shape, as int64.

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
        InputError: The shape or a label is wrong, naming the labels found; or `ignore_index` is 255, its default, and
            that is a class.
    """
    check_ignored_class(ignore_index, num_classes)
    if not isinstance(labels, Tensor):
        raise InputTypeError(f"{name} must be a torch tensor of integer labels, got {type(labels).__name__}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputTypeError(f"{name} must have an integer dtype, got {labels.dtype}.")
    if not shape:
        raise InputError(f"{name} must be label maps (N, *S), got a single label.")
    labels = _without_channel(labels, shape, name).to(torch.int64)
    if mask is not None and ignore_index is not None:
        labels = labels.masked_fill(~_checked_mask(mask, shape, labels.device), ignore_index)
    wrong = (labels < 0) | (labels >= num_classes)
    if ignore_index is not None:
        wrong = wrong & (labels != ignore_index)
    ignored = f" and {ignore_index} (ignored)" if ignore_index is not None else ""
    return _unless(
        wrong,
        labels,
        labels,
        f"{name} has labels outside the classes at {{wrong}} of {{all}} pixels: {{found}}; "
        f"allowed: 0..{num_classes - 1}{ignored}.",
    )


def check_soft_labels(
    target: Tensor, shape: tuple[int, ...], dtype: torch.dtype, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Soft labels in the given dtype, 0 in every class where the mask is False.

    What they hold there is not looked at and has a zero gradient, NaN included.

    Args:
        target: (N, C, *S) of any floating type, at least 0, with a sum of 1 over the classes of a pixel (within
            `SUM_TOLERANCE`).
        shape: (N, C, *S), that of the logits.
        dtype: A floating type.
        mask: True where a pixel counts: boolean, (N, *S) or (N, 1, *S).

    Returns:
        The soft labels, and the mask as (N, 1, *S), or None without one.

    Raises:
        InputTypeError: The mask is not boolean.
        InputError: A shape is wrong, or the soft labels of a pixel that counts are not shares.
    """
    if tuple(target.shape) != shape:
        raise InputError(
            f"soft labels must have the shape of the logits, {shape}, got {tuple(target.shape)}. "
            "Labels as class indices are of an integer type."
        )
    soft, valid = target.to(dtype), None
    if mask is not None:
        valid = _checked_mask(mask, (shape[0], *shape[2:]), target.device).unsqueeze(1)
        soft = soft.masked_fill(~valid, 0)
    given = soft.detach()
    sums = given.sum(1, keepdim=True)
    near = (sums - 1).abs() <= SUM_TOLERANCE  # False for NaN
    wrong = ~near if valid is None else ~near & valid
    soft = _unless(wrong, soft, sums, _NO_SHARES)
    lowest = given.amin(1, keepdim=True)
    return _unless(lowest < 0, soft, lowest, _NEGATIVE), valid  # such sums of shares from 0 leave none far above 1


_NO_SHARES = (
    f"soft labels must be shares that sum to 1 over the classes (within {SUM_TOLERANCE:g}); the sum is {{found}} at "
    "{wrong} of {all} pixels. Labels that overlap need a sigmoid for each class, which no loss has yet. A pixel of no "
    "class needs a channel for the background, or a mask that is False there."
)
_NEGATIVE = "soft labels must be shares from 0 to 1; the lowest of a pixel is {found} at {wrong} of {all} pixels."


def check_logits(logits: Tensor, target: object) -> torch.dtype:
    """The dtype to compute with logits in: float64 for float64, else float32.

    Args:
        logits: Scores before the softmax, (N, C, *S), of any floating type.
        target: What they are compared with; a tensor is on the same device.

    Raises:
        InputTypeError: The logits are no floating-point tensor.
        InputError: They have no class or only one, or are on another device than the target.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        given = f"dtype {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputTypeError(f"logits must be a floating-point tensor (N, C, *S) of scores, got {given}.")
    if logits.ndim < 2:
        raise InputError(f"logits must have shape (N, C, *S), got {tuple(logits.shape)}.")
    if logits.shape[1] == 0:
        raise InputError(f"logits must have shape (N, C, *S) of two classes or more, got {tuple(logits.shape)}.")
    if logits.shape[1] == 1:
        raise InputError(
            f"logits have one channel, {tuple(logits.shape)}, and a softmax over one channel is 1 everywhere. A binary "
            "network needs two channels, background and foreground: pass torch.cat([torch.zeros_like(x), x], 1), whose "
            "softmax is 1 - sigmoid(x) and sigmoid(x), with integer labels 0 and 1 as the target."
        )
    if isinstance(target, Tensor) and target.device != logits.device:
        raise InputError(f"logits and target must be on the same device, got {logits.device} and {target.device}.")
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def best_class(scores: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The highest score of each pixel and its class, the lowest such class where scores are equal.

    Args:
        scores: (N, C, *S), any floating type.
        num_classes: C.

    Returns:
        Scores and labels, (N, *S) each.

    Raises:
        InputError: The shape is wrong, a score is NaN, or there is one class, which has the highest score everywhere.
    """
    if scores.ndim < 2 or scores.shape[1] != num_classes:
        raise InputError(
            f"scores must have shape (N, {num_classes}, *S), one map per class, got {tuple(scores.shape)}."
        )
    if num_classes == 1 and len(scores):
        raise InputError(
            f"scores have one channel, {tuple(scores.shape)}, whose arg-max is class 0 everywhere. For a binary "
            "network use num_classes=2, and labels for scores: (x > 0).long() of the logits x, without the channel."
        )
    highest, labels = scores.max(1)  # a NaN is the maximum of its pixel
    undefined = highest.isnan()
    if bool(undefined.any()):
        raise InputError(
            f"scores are NaN at {int(undefined.sum())} of {undefined.numel()} pixels; no class is the best there."
        )
    return highest, labels


def _checked_mask(mask: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InputTypeError(f"mask must be a boolean tensor, True where a pixel counts, got {given}.")
    return _without_channel(mask, shape, "mask").to(device)


def _without_channel(maps: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    with_channel = (shape[0], 1, *shape[1:])
    if tuple(maps.shape) == with_channel and tuple(maps.shape) != shape:
        maps = maps.squeeze(1)
    if tuple(maps.shape) != shape:
        raise InputError(f"{name} must have shape {shape} or {with_channel}, got {tuple(maps.shape)}.")
    return maps


def is_traced(*tensors: Tensor) -> bool:
    """Whether the code is compiled, exported or under `torch.func`, where a tensor may have no values to look at."""
    return torch.compiler.is_compiling() or any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))


def _unless(wrong: Tensor, values: Tensor, shown: Tensor, message: str) -> Tensor:
    """The values, unless one is wrong: then InputError, also where the code is compiled, exported or under `vmap`.

    Args:
        wrong: Where something is wrong.
        values: Returned.
        shown: What the message lists where something is wrong, shaped like `wrong`.
        message: With the fields `wrong`, `all` and `found`.
    """
    # What traces a program sees no value, so there the look at them is an operator; it copies, which is for nothing
    # anywhere else.
    if is_traced(wrong):
        traced: Tensor = _unless_operator(values, wrong, shown, message)
        return traced
    _refuse(wrong, shown, message)
    return values


def _refuse(wrong: Tensor, shown: Tensor, message: str) -> None:
    if bool(wrong.any()):
        found = torch.unique(shown[wrong])[:100].tolist()
        texts = list(dict.fromkeys(f"{each:.4g}" if isinstance(each, float) else str(each) for each in found))
        listed = ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")
        raise InputError(message.format(wrong=int(wrong.sum()), all=wrong.numel(), found=listed))


@torch.library.custom_op("autosegloss::unless", mutates_args=())
def _unless_operator(values: Tensor, wrong: Tensor, shown: Tensor, message: str) -> Tensor:
    _refuse(wrong, shown, message)
    return values.clone()


@_unless_operator.register_fake
def _(values: Tensor, wrong: Tensor, shown: Tensor, message: str) -> Tensor:
    return torch.empty_like(values)


@_unless_operator.register_vmap
def _(
    info: Any, axes: tuple[int | None, ...], values: Tensor, wrong: Tensor, shown: Tensor, message: str
) -> tuple[Tensor, int]:
    batched = [
        x.expand(info.batch_size, *x.shape) if axis is None else x.movedim(axis, 0)
        for x, axis in zip((values, wrong, shown), axes[:3], strict=True)
    ]
    return _unless_operator(*batched, message), 0


_unless_operator.register_autograd(lambda _, gradient: (gradient, None, None, None))
