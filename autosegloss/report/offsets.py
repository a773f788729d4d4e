"""Offsets fitted on folders of saved scores and label maps, for people who train elsewhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text
from torch import Tensor

from autosegloss.errors import DataError, note
from autosegloss.metric import Accumulators, Expr, Offsets, fit_offsets
from autosegloss.proxy.data import IGNORE_INDEX
from autosegloss.proxy.data.pictures import ColoursError
from autosegloss.report.evaluate import (
    COLOURED,
    UNREADABLE,
    LabelFolders,
    Mistakes,
    note_missing,
    refuse_ambiguous,
    refused,
)
from autosegloss.report.tables import percent

USUAL = ("miou", "miou_i", "dice", "macc", "gacc", "fwiou", "bf1")
"""The metrics that are shown beside the fitted one."""

_SUM_TOLERANCE = 0.02  # of probabilities, as for soft labels: they may be of half precision
_SMALLEST = 1e-30  # a probability of 0 has a logarithm far below that of any other, and a finite one


@dataclass(frozen=True)
class FittedFolder:
    """Offsets fitted on a folder, and the metrics there without and with them, by name; the fitted one first."""

    offsets: Offsets
    before: Mapping[str, float]
    after: Mapping[str, float]
    images: int


class SavedScores:
    """Pairs of scores (1, C, H, W) and labels (1, H, W), read anew on each walk, one file at a time.

    Args:
        folders: The files; the predictions are scores.
        num_classes: C.
        ignore_index: The label of ignored pixels; None is 255 if that is no class.
        allow_missing: Whether to skip files without a partner.

    Raises:
        DataError: Files are missing, damaged, of different sizes or classes, not finite, or some are probabilities and
            some are not; all are listed.
    """

    def __init__(
        self, folders: LabelFolders, num_classes: int, ignore_index: int | None = None, allow_missing: bool = False
    ) -> None:
        self.folders, self.num_classes = folders, num_classes
        self.ignore_index = ignore_index
        if self.ignore_index is None:
            self.ignore_index = IGNORE_INDEX if num_classes <= IGNORE_INDEX else -1
        mistakes: Mistakes = defaultdict(list)
        if not allow_missing:
            note_missing(folders, mistakes)
        pixels: Counter[int] = Counter()
        kinds: dict[bool, str] = {}
        hard = True
        for name in folders.names:
            if (pair := self._checked(name, mistakes)) is not None:
                scores, labels = pair
                kinds.setdefault(_are_probabilities(scores), name)
                hard = hard and bool(((scores == 0) | (scores == 1)).all())
                pixels.update(dict(zip(*map(np.ndarray.tolist, np.unique(labels, return_counts=True)), strict=True)))
        if len(kinds) > 1:
            mistakes["scores of two kinds"].append(f"{kinds[True]} holds probabilities, {kinds[False]} does not")
        if mistakes:
            raise refused(mistakes)
        if ignore_index is None:
            refuse_ambiguous(pixels, num_classes)
        self.are_probabilities = True in kinds
        if self.are_probabilities:
            note("note: the scores are probabilities, from 0 to 1 with a sum of 1; offsets go to their logarithms.")
            if hard:
                note(
                    "warning: all scores are 0 or 1. These are decisions, which no offset can change; save the scores."
                )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for name in self.folders.names:
            scores = read_scores(self.folders.pred_files[name])
            if self.are_probabilities:
                scores = np.log(np.maximum(scores.astype(np.float64), _SMALLEST))
            yield torch.from_numpy(scores)[None], torch.from_numpy(self.folders.label(name))[None]

    def _checked(self, name: str, mistakes: Mistakes) -> tuple[NDArray[np.floating], NDArray[np.int64]] | None:
        """The scores and labels of a name; None if something is wrong with them."""
        before = sum(map(len, mistakes.values()))
        path, truth = self.folders.pred_files[name], self.folders.target_files[name]
        try:
            scores = read_scores(path)
        except DataError as error:
            mistakes[UNREADABLE].append(f"{path}: {error}")
            return None
        try:
            labels = self.folders.label(name)
        except DataError as error:
            mistakes[COLOURED if isinstance(error, ColoursError) else UNREADABLE].append(f"{truth}: {error}")
            return None
        if wrong := int((~np.isfinite(scores)).sum()):
            mistakes["scores that are NaN or infinite"].append(f"{path}: {wrong} of {scores.size}")
        if scores.shape == (*labels.shape, self.num_classes) and len(scores) != self.num_classes:
            mistakes[f"scores of shape (H, W, C); move the axis of the {self.num_classes} classes to the front"].append(
                f"{path}: {scores.shape}"
            )
            return None
        if len(scores) != self.num_classes:
            mistakes[f"scores of another number of classes than {self.num_classes}"].append(f"{path}: {len(scores)}")
        if scores.shape[1:] != labels.shape:
            sizes = " and ".join(f"{width} x {height}" for height, width in (scores.shape[1:], labels.shape))
            mistakes["sizes that differ (width x height)"].append(f"{name}: scores and label {sizes}")
        outside = ((labels < 0) | (labels >= self.num_classes)) & (labels != self.ignore_index)
        if outside.any():
            found = ", ".join(map(str, np.unique(labels[outside]).tolist()[:8]))
            allowed = f"0..{self.num_classes - 1} and {self.ignore_index} (ignored)"
            mistakes[f"labels out of range; allowed: {allowed}"].append(f"{truth}: {found}")
        return (scores, labels) if sum(map(len, mistakes.values())) == before else None


def read_scores(path: Path) -> NDArray[np.floating]:
    """The scores in a .npy file, (C, H, W) floats.

    Raises:
        DataError: The file is no such array, or is damaged.
    """
    if not path.is_file():
        raise DataError("not a regular file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy raises many kinds on damaged files, some of which advise to unpickle them
        raise DataError("not a .npy file of numbers, or damaged") from None
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind != "f" or min(array.shape) < 1:
        given = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"scores must be an array of floats of shape (C, H, W), got {given}")
    return np.array(array, np.dtype(f"f{min(array.dtype.itemsize, 8)}"))


def _are_probabilities(scores: NDArray[np.floating]) -> bool:
    sums = scores.sum(0, dtype=np.float64)
    return bool(scores.min() >= 0 and scores.max() <= 1 and (abs(sums - 1) <= _SUM_TOLERANCE).all())


def fit_folder(
    scores: SavedScores, metrics: Mapping[str, Expr], guards: Mapping[Expr | str, float], bound: float
) -> FittedFolder:
    """Fit offsets for the first of some metrics, and measure all of them without and with the offsets.

    Args:
        scores: The data.
        metrics: By name.
        guards: See `fit_offsets`.
        bound: See `fit_offsets`.
    """
    ignored = scores.ignore_index if scores.ignore_index is not None else -1
    target = next(iter(metrics.values()))
    offsets = fit_offsets(target, scores, scores.num_classes, ignore_index=ignored, guards=guards, bound=bound)
    before, after = (Accumulators(metrics, scores.num_classes, ignored) for _ in range(2))
    for logits, labels in scores:
        before.update(logits, labels)
        after.update(offsets.apply(logits), labels)
    return FittedFolder(offsets, before.values(), after.values(), len(scores.folders.names))


def fitted_tables(fitted: FittedFolder, class_names: list[str]) -> tuple[Table, Table]:
    """The metrics without and with offsets in %, and the offsets by class."""
    metrics, offsets = Table(), Table()
    metrics.add_column("metric", overflow="fold")
    for title in ("without", "with offsets", "gain"):
        metrics.add_column(title, justify="right")
    for number, (name, before) in enumerate(fitted.before.items()):
        after = fitted.after[name]
        row = (percent(before), percent(after), f"{100 * (after - before):+.2f}")
        metrics.add_row(Text(name), *row, style="" if number else "bold")
    offsets.add_column("class", overflow="fold")
    offsets.add_column("offset", justify="right")
    for name, value in zip(class_names, fitted.offsets.values.tolist(), strict=True):
        offsets.add_row(Text(name), f"{value:+.3f}")
    return metrics, offsets
