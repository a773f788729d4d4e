"""Losses by name, for command lines and configurations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from autosegloss.errors import InputError, cut, did_you_mean
from autosegloss.loss.base import Loss
from autosegloss.loss.classic import CLASSICS, CrossEntropy
from autosegloss.loss.file import load_loss, presets
from autosegloss.loss.mixed import MixedLoss
from autosegloss.loss.surrogate import SurrogateLoss

_TERM = r"\s*([0-9.eE+-]+)\s*\*\s*(\S|\S.*?\S)\s*"  # the name of a file may hold spaces
_MIX = re.compile(rf"{_TERM}\+{_TERM}")


def named_loss(
    name: str, *, ignore_index: int = 255, counts: Sequence[int] | None = None, reduce_over_ranks: bool = False
) -> Loss:
    """The loss of a name, to call with (logits, target).

    Args:
        name: One of `CLASSICS` or of `presets()`; the path of a loss file; or cross-entropy and one surrogate (a
            preset, a file or `generalized_dice`) with weights that sum to 1, as in `0.25*cross_entropy + 0.75*jml`.
        ignore_index: The label of ignored pixels.
        counts: The pixels of each class, (C,), which the weighted losses need; see `class_counts`.
        reduce_over_ranks: Whether the sums of surrogates and cross-entropy run over the batches of all ranks of
            torch.distributed; the other losses are of a rank's own batch.

    Raises:
        InputError: There is no such loss, it lacks its counts, or the mix is not of that form.
        LossFileError: The file is damaged.

    Example:
        >>> named_loss("0.25*cross_entropy + 0.75*jml").cross_entropy
        0.25
    """
    loss = _named(name, ignore_index, counts)
    for part in loss.modules():
        if isinstance(part, SurrogateLoss | CrossEntropy):
            part.reduce_over_ranks = reduce_over_ranks
    return loss


def _named(name: str, ignore_index: int, counts: Sequence[int] | None) -> Loss:
    mix = _MIX.fullmatch(name)
    if mix is None:
        return _single(name.strip(), ignore_index, counts)
    weights = {mix[2]: _weight(mix[1], name), mix[4]: _weight(mix[3], name)}
    if "cross_entropy" not in weights or len(weights) != 2:
        raise InputError(f"`{name}`: a mix is one of cross_entropy and one surrogate, as in {_EXAMPLE}.")
    if abs(sum(weights.values()) - 1) > 1e-9:
        raise InputError(f"`{name}`: the weights must sum to 1, got {sum(weights.values()):g}.")
    weight = weights.pop("cross_entropy")
    (other,) = weights
    surrogate = _single(other, ignore_index, counts)
    if not isinstance(surrogate, SurrogateLoss):
        raise InputError(f"`{name}`: {other} is not a surrogate; use a preset or its file, as in {_EXAMPLE}.")
    return MixedLoss(surrogate, weight)


_EXAMPLE = "`0.25*cross_entropy + 0.75*jml`"


def _single(name: str, ignore_index: int, counts: Sequence[int] | None) -> Loss:
    if name in CLASSICS:
        return CLASSICS[name](ignore_index, counts)
    known = [*CLASSICS, *presets()]
    if name in known or name.endswith(".json") or (name and Path(name).exists()):
        return load_loss(name, ignore_index)
    raise InputError(
        f"`{cut(name)}` is not a loss{did_you_mean(name, known)}; known: {', '.join(known)}, the path of a loss file, "
        f"or a mix such as {_EXAMPLE}."
    )


def _weight(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"`{name}`: a weight must be a number from 0 to 1, got {text}.") from None
