"""Losses by name: what Python, a command line and a configuration take alike."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from autosegloss.errors import InputError, InputTypeError, LossFileError, cut, did_you_mean
from autosegloss.loss.base import Loss, check_flag, check_scale
from autosegloss.loss.classic import CLASSICS, PIXEL_LOSSES, CrossEntropy
from autosegloss.loss.file import LARGEST, preset, presets, read_loss
from autosegloss.loss.mixed import MOST_PARTS, SUM_TOLERANCE, MixedLoss
from autosegloss.loss.surrogate import SurrogateLoss
from autosegloss.metric.labels import check_ignore_index

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_PLUS = re.compile(r"((?<![\w.])(?:\d+\.?\d*|\.\d+)[eE]\+\d)|\+")  # the + in 1e+3 is none between terms
_OPTIONS = re.compile(r"([^\s()]+)\s*\((.*)\)", re.DOTALL)
_OPTION = re.compile(rf"\s*(\w+)\s*=\s*({_NUMBER}|true|false)\s*", re.IGNORECASE)
_FUNCTION = re.compile(r"[\w.]+:\w+")
FORMS: Final = "8*lovasz, focal(gamma=3) and 0.2*cross_entropy(class_power=0.5) + 4*jml + 5*loss.json"
"""Examples of texts that are made of names of losses."""
_LONGEST = 4096  # characters of a path, on common file systems
_NOT_AS_TEXT = ("ignore_index", "reduce_over_ranks", "weight", "counts")


def load_loss(
    source: str | os.PathLike[str],
    ignore_index: int = 255,
    reduce_over_ranks: bool = False,
    *,
    counts: Sequence[int] | None = None,
) -> Loss:
    """The loss in a file, of a name, or of a text.

    A text is a sum of names and files, each with a weight or without: `8*lovasz`, `0.25*cross_entropy + 0.75*jml`,
    `cross_entropy(class_power=0.5) + 4*lovasz + 5*loss.json`. The losses of `autosegloss.loss.classic` that are no
    surrogates take options in brackets, numbers and true or false. A file goes before a name, and before a text.

    Args:
        source: The path of a loss file; one of the names that `autosegloss losses` lists: a classic such as `focal` or
            one of `presets()`; or a text of these.
        ignore_index: The label of ignored pixels in your data.
        reduce_over_ranks: Whether the sums of surrogates and cross-entropy run over the batches of all ranks of
            torch.distributed; the other losses are of a rank's own batch.
        counts: The pixels of each class, (C,), which the weighted losses need, and which `class_power` of a text uses
            in place of the pixels of a batch; see `class_counts`.

    Returns:
        A loss to call with (logits, target, mask=None): for a surrogate with a weight, one of this `scale`; for a sum
        or any other loss with a weight, a MixedLoss.

    Raises:
        LossFileError: The file is missing, damaged, of a newer version, or impossible.
        InputError: There is no such loss, it lacks its counts, a weight or an option is wrong, or another argument is.

    Example:
        >>> load_loss("asl/voc/macc").content()["classes"]
        'all'
        >>> load_loss("0.25*cross_entropy + 0.75*jml").cross_entropy
        0.25
        >>> load_loss("8*jml").scale
        8.0
    """
    if not isinstance(source, str | os.PathLike):
        raise InputTypeError(
            f"the loss must be the path of a loss file or the name of a loss, got {type(source).__name__}."
        )
    check_ignore_index(ignore_index)
    check_flag("reduce_over_ranks", reduce_over_ranks)
    settings = _Settings(ignore_index, reduce_over_ranks, counts, counts)
    return _of_text(source, settings) if isinstance(source, str) else _single(str(source), settings)


def loss_for_data(name: str, counts: Sequence[int], ignore_index: int = 255, reduce_over_ranks: bool = False) -> Loss:
    """The loss of a name for a data set of these pixels of each class: only the weighted losses use them.

    So `cross_entropy(class_power=0.5)` weighs by the pixels of the batch, as the loss of this text does in a file and
    in a search. Arguments and errors as for `load_loss`.
    """
    return _of_text(name, _Settings(ignore_index, reduce_over_ranks, counts, None))


named_loss = load_loss
"""The former name of `load_loss` for names."""

ABOUT: Final = {
    "cross_entropy": "the mean over the pixels; with class_power=0.5, a class weighs n^-0.5 of its n pixels",
    "weighted_cross_entropy": "a class weighs the inverse square root of its share of the pixels; needs counts",
    "inverse_weighted_cross_entropy": "a class weighs the inverse of its share of the pixels; needs counts",
    "label_smoothing": "cross-entropy with a tenth of each label spread over all classes",
    "focal": "cross-entropy in which easy pixels count less (gamma 2)",
    "lovasz": "Lovász-softmax of the batch, for mean IoU",
    "boundary_cross_entropy": "cross-entropy in which pixels near a boundary weigh 10 times as much",
    "generalized_dice": "one Dice ratio over all classes, a class weighing 1 / |target|^2",
    "log_miou": "mIoU with a log curve on the intersection, halfway to cross-entropy",
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


@dataclass(frozen=True)
class _Settings:
    """What is the same for all terms of a text."""

    ignore_index: int
    reduce_over_ranks: bool
    counts: Sequence[int] | None  # for the weighted losses
    power_counts: Sequence[int] | None  # for class_power


@dataclass(frozen=True)
class _Term:
    text: str
    weight: float
    name: str


def _of_text(text: str, settings: _Settings) -> Loss:
    if _exists(text):
        return _single(text, settings)
    terms = [*_terms(text)]
    if len(terms) == 1 and terms[0].text == terms[0].name:
        return _single(text, settings)
    losses = [_part(term, settings) for term in terms]
    if (mix := _old_mix(terms, losses)) is not None:
        return mix
    for term in terms:
        try:
            check_scale("the weight", term.weight)
        except InputError as error:
            raise InputError(f"`{cut(term.text)}`: {error}") from None
    weight, loss = terms[0].weight, losses[0]
    try:
        if len(terms) == 1 and weight == 1:
            return loss
        if len(terms) == 1 and isinstance(loss, SurrogateLoss):
            loss.scale = check_scale("the scale", weight * loss.scale)
            return loss
        return MixedLoss([(term.weight, loss) for term, loss in zip(terms, losses, strict=True)])
    except InputError as error:
        raise InputError(f"`{cut(text)}`: {error}") from None


def _old_mix(terms: Sequence[_Term], losses: Sequence[Loss]) -> MixedLoss | None:
    """One surrogate and cross-entropy of weights that sum to 1, of which one may be 0: it keeps the provenance."""
    weights = {term.name: term.weight for term in terms}
    surrogates = [loss for loss in losses if isinstance(loss, SurrogateLoss)]
    if len(terms) != 2 or "cross_entropy" not in weights or len(surrogates) != 1 or surrogates[0].scale != 1:
        return None
    share = weights["cross_entropy"]
    whole = abs(sum(weights.values()) - 1) <= SUM_TOLERANCE and 0 <= share <= 1
    return MixedLoss(surrogates[0], share) if whole else None


def _terms(text: str) -> Iterator[_Term]:
    """The terms of a sum. A + that is in the name of a file that exists is in no other place."""
    starts = [0, *(match.end() for match in _PLUS.finditer(text) if match[1] is None)]
    if len(starts) > 2 * MOST_PARTS:
        raise InputError(f"`{cut(text)}`: a sum must have at most {MOST_PARTS} terms.")
    ends = [*(start - 1 for start in starts[1:]), len(text)]
    i = 0
    while i < len(starts):
        for j in range(len(starts) - 1, i - 1, -1):
            part = text[starts[i] : ends[j]].strip()
            weight, name = _weighed(part)
            if j == i or (_exists(name) and (weight is None or re.fullmatch(_NUMBER, weight))):
                break
        if not name and (part or len(starts) > 1):
            raise InputError(f"`{cut(text)}`: the name of a loss is missing; sums are written as in {FORMS}.")
        yield _Term(part, 1.0 if weight is None else _weight(weight, part), name)
        i = j + 1


def _weighed(term: str) -> tuple[str | None, str]:
    """The text of the weight of a term, if it has one, and the name."""
    weight, star, name = term.partition("*")
    return (weight.strip(), name.strip()) if star and not _exists(term) else (None, term)


def _weight(text: str, term: str) -> float:
    if re.fullmatch(_NUMBER, text) is None:
        raise InputError(
            f"`{cut(term)}`: the weight before the * must be a number, got `{cut(text)}`; for example {FORMS}."
        )
    return float(text)


def _part(term: _Term, settings: _Settings) -> Loss:
    """The loss of a term, without its weight."""
    if _FUNCTION.fullmatch(term.name) and not _exists(term.name):
        raise InputError(
            f"`{cut(term.text)}`: a function of your own can't have a weight or be in a sum; let it return the sum."
        )
    return _single(term.name, settings)


def _single(name: str, settings: _Settings) -> Loss:
    path, bare = Path(name), name.strip()
    try:
        if _exists(name) and not path.is_dir():
            if not path.is_file():  # a pipe would be waited for
                raise LossFileError(f"{cut(name)}: not a regular file.")
            with path.open("rb") as file:
                data = file.read(LARGEST + 1)
            return read_loss(data, cut(name), settings.ignore_index, settings.reduce_over_ranks)
    except OSError as error:
        raise LossFileError(f"{cut(name)}: can't be read: {error.strerror or error}.") from None
    if bare in CLASSICS:
        loss = CLASSICS[bare](settings.ignore_index, settings.counts)
        if isinstance(loss, SurrogateLoss | CrossEntropy):
            loss.reduce_over_ranks = settings.reduce_over_ranks
        return loss
    if bare in presets():
        return preset(bare, settings.ignore_index, settings.reduce_over_ranks)
    if _exists(name):
        raise LossFileError(
            f"{cut(name)} is a folder; the loss of a finished search is its file {cut(str(path / 'loss.json'))}."
        )
    if (call := _OPTIONS.fullmatch(bare)) and (call[1] in {*PIXEL_LOSSES, *loss_names()} or _exists(call[1])):
        return _with_options(bare, call[1], call[2], settings)
    hint = did_you_mean(call[1] if call else bare, loss_names())
    if name.endswith((".json", ".py")) or (os.sep in name and not call):
        raise LossFileError(
            f"{cut(name)}: no such file, nor a loss of that name{hint}. `autosegloss losses` lists the names."
        )
    if _FUNCTION.fullmatch(bare):
        raise InputError(
            f"`{cut(name)}`: functions of your own are taken by compare and retrain only; in Python, call yours."
        )
    also = "" if hint else f"; the path of a loss file is a loss, too, and so are {FORMS}"
    raise InputError(f"`{cut(name)}` is not a loss{hint}. `autosegloss losses` lists the names{also}.")


def _with_options(text: str, name: str, given: str, settings: _Settings) -> Loss:
    """A loss with options in brackets."""
    if name not in PIXEL_LOSSES:
        raise InputError(
            f"`{cut(text)}`: {name} takes no options in brackets; {', '.join(PIXEL_LOSSES)} do. For a surrogate with "
            "other options, make a SurrogateLoss in Python, save it, and name its file."
        )
    parameters = inspect.signature(PIXEL_LOSSES[name]).parameters
    allowed = [option for option in parameters if option not in _NOT_AS_TEXT]
    options: dict[str, Any] = {}
    for part in given.split(",") if given.strip() else []:
        match = _OPTION.fullmatch(part)
        option = match[1] if match else part.partition("=")[0].strip()
        if option not in allowed:
            raise InputError(
                f"`{cut(text)}`: {name} has no option `{cut(option)}`{did_you_mean(option, allowed)}; allowed: "
                f"{', '.join(allowed)}."
            )
        if match is None:
            raise InputError(f"`{cut(text)}`: {option} must be a number, true or false, as in {option}=1.")
        if option in options:
            raise InputError(f"`{cut(text)}`: {option} is given twice.")
        options[option] = _value(match[2])
    if "ignore_index" in parameters:
        options["ignore_index"] = settings.ignore_index
    if "reduce_over_ranks" in parameters:
        options["reduce_over_ranks"] = settings.reduce_over_ranks
    if options.get("class_power") and settings.power_counts is not None:
        options["counts"] = settings.power_counts
    try:
        return PIXEL_LOSSES[name](**options)
    except InputError as error:
        raise InputError(f"`{cut(text)}`: {error}") from None


def _value(text: str) -> float | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)


def _exists(name: str) -> bool:
    try:
        return 0 < len(name) <= _LONGEST and Path(name).exists()
    except (OSError, ValueError):  # too long, or a null character
        return False
