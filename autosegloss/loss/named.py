"""Losses by name: what Python, a command line and a configuration take alike."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from autosegloss.errors import InputError, InputTypeError, LossFileError, cut, did_you_mean
from autosegloss.loss.base import Loss, check_flag
from autosegloss.loss.classic import CLASSICS, CrossEntropy
from autosegloss.loss.file import LARGEST, preset, presets, read_loss
from autosegloss.loss.mixed import MixedLoss
from autosegloss.loss.surrogate import SurrogateLoss
from autosegloss.metric.labels import check_ignore_index

_TERM = r"\s*([0-9.eE+-]+)\s*\*\s*(\S|\S.*?\S)\s*"  # the name of a file may hold spaces
_MIX = re.compile(rf"{_TERM}\+{_TERM}")
_EXAMPLE = "`0.25*cross_entropy + 0.75*jml`"
_LONGEST = 4096  # characters of a path, on common file systems


def load_loss(
    source: str | os.PathLike[str],
    ignore_index: int = 255,
    reduce_over_ranks: bool = False,
    *,
    counts: Sequence[int] | None = None,
) -> Loss:
    """The loss in a file, or of a name.

    Args:
        source: The path of a loss file; one of the names that `autosegloss losses` lists: a classic such as `lovasz` or
            one of `presets()`; or cross-entropy and one surrogate (a preset, a file or `generalized_dice`) with weights
            that sum to 1, as in `0.25*cross_entropy + 0.75*jml`. A file goes before a name.
        ignore_index: The label of ignored pixels in your data.
        reduce_over_ranks: Whether the sums of surrogates and cross-entropy run over the batches of all ranks of
            torch.distributed; the other losses are of a rank's own batch.
        counts: The pixels of each class, (C,), which the weighted losses need; see `class_counts`.

    Returns:
        A loss to call with (logits, target, mask=None).

    Raises:
        LossFileError: The file is missing, damaged, of a newer version, or impossible.
        InputError: There is no such loss, it lacks its counts, the mix is not of that form, or another argument is
            wrong.

    Example:
        >>> load_loss("asl/voc/macc").content()["classes"]
        'all'
        >>> load_loss("0.25*cross_entropy + 0.75*jml").cross_entropy
        0.25
    """
    if not isinstance(source, str | os.PathLike):
        raise InputTypeError(
            f"the loss must be the path of a loss file or the name of a loss, got {type(source).__name__}."
        )
    check_ignore_index(ignore_index)
    check_flag("reduce_over_ranks", reduce_over_ranks)
    name = str(source)
    mix = _MIX.fullmatch(name)
    if mix is None or _exists(name):
        return _single(name, ignore_index, reduce_over_ranks, counts)
    weights = {mix[2]: _weight(mix[1], name), mix[4]: _weight(mix[3], name)}
    if "cross_entropy" not in weights or len(weights) != 2:
        raise InputError(f"`{cut(name)}`: a mix is one of cross_entropy and one surrogate, as in {_EXAMPLE}.")
    if abs(sum(weights.values()) - 1) > 1e-9:
        raise InputError(f"`{cut(name)}`: the weights must sum to 1, got {sum(weights.values()):g}.")
    weight = weights.pop("cross_entropy")
    (other,) = weights
    surrogate = _single(other, ignore_index, reduce_over_ranks, counts)
    if not isinstance(surrogate, SurrogateLoss):
        raise InputError(f"`{cut(name)}`: {cut(other)} is not a surrogate; use a preset or its file, as in {_EXAMPLE}.")
    return MixedLoss(surrogate, weight)


named_loss = load_loss
"""The former name of `load_loss` for names."""

ABOUT: Final = {
    "cross_entropy": "the mean over the pixels",
    "weighted_cross_entropy": "a class weighs the inverse square root of its share of the pixels; needs counts",
    "inverse_weighted_cross_entropy": "a class weighs the inverse of its share of the pixels; needs counts",
    "label_smoothing": "cross-entropy with a tenth of each label spread over all classes",
    "focal": "cross-entropy in which easy pixels count less (gamma 2)",
    "lovasz": "Lovász-softmax of the batch, for mean IoU",
    "boundary_cross_entropy": "cross-entropy in which pixels near a boundary weigh 10 times as much",
    "generalized_dice": "one Dice ratio over all classes, a class weighing 1 / |target|^2",
    "jml": "Jaccard metric loss, for mean IoU; right for soft labels",
    "dml": "Dice semimetric loss; right for soft labels",
    "ctl": "compatible Tversky loss; right for soft labels",
    "soft_jaccard": "1 - mean IoU with sums of probabilities",
    "soft_dice": "1 - mean Dice with sums of probabilities",
    "soft_tversky": "1 - mean Tversky index with sums of probabilities",
    "asl/voc/": "published by Auto Seg-Loss, searched on PASCAL VOC",
    "auto/": "what to take for a metric when nothing else is known; the same as one of shapes/",
    "nuclei/": "searched on the images of cell nuclei in this package",
    "shapes/": "searched on drawn shapes",
}
"""What each name of a loss means, in a line; a name that ends in / is that of a group."""


def loss_names() -> dict[str, str]:
    """All names of `load_loss`, the classics first, each with a line."""

    def about(name: str) -> str:
        group, slash, metric = name.rpartition("/")
        return f"for {metric}; {ABOUT[group + slash]}" if slash else ABOUT[name]

    return {name: about(name) for name in (*CLASSICS, *presets())}


def _single(name: str, ignore_index: int, reduce_over_ranks: bool, counts: Sequence[int] | None) -> Loss:
    path, bare = Path(name), name.strip()
    try:
        if _exists(name) and not path.is_dir():
            if not path.is_file():  # a pipe would be waited for
                raise LossFileError(f"{cut(name)}: not a regular file.")
            with path.open("rb") as file:
                return read_loss(file.read(LARGEST + 1), cut(name), ignore_index, reduce_over_ranks)
    except OSError as error:
        raise LossFileError(f"{cut(name)}: can't be read: {error.strerror or error}.") from None
    if bare in CLASSICS:
        loss = CLASSICS[bare](ignore_index, counts)
        if isinstance(loss, SurrogateLoss | CrossEntropy):
            loss.reduce_over_ranks = reduce_over_ranks
        return loss
    if bare in presets():
        return preset(bare, ignore_index, reduce_over_ranks)
    if _exists(name):
        raise LossFileError(
            f"{cut(name)} is a folder; the loss of a finished search is its file {cut(str(path / 'loss.json'))}."
        )
    hint = did_you_mean(bare, loss_names())
    if name.endswith((".json", ".py")) or os.sep in name:
        raise LossFileError(
            f"{cut(name)}: no such file, nor a loss of that name{hint}. `autosegloss losses` lists the names."
        )
    if re.fullmatch(r"[\w.]+:\w+", bare):
        raise InputError(
            f"`{cut(name)}`: functions of your own are taken by compare and retrain only; in Python, call yours."
        )
    also = "" if hint else f"; the path of a loss file is a loss, too, and so is a mix such as {_EXAMPLE}"
    raise InputError(f"`{cut(name)}` is not a loss{hint}. `autosegloss losses` lists the names{also}.")


def _exists(name: str) -> bool:
    try:
        return 0 < len(name) <= _LONGEST and Path(name).exists()
    except (OSError, ValueError):  # too long, or a null character
        return False


def _weight(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"`{cut(name)}`: a weight must be a number from 0 to 1, got {cut(text)}.") from None
