"""Evaluation of folders of label maps: the values over the data set and per class, and the images that score worst."""

from __future__ import annotations

import json
from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text

from autosegloss.errors import DataError, InputError
from autosegloss.metric import Accumulators, Expr
from autosegloss.proxy.data.pictures import PICTURES, LabelMap, files_by_name, read_labels, why_unreadable

_UNREADABLE = "files that can't be read"


class LabelFolders:
    """The files of an evaluation by their name: the path inside the folder, without the ending.

    A name is in Unicode's composed form (NFC): `ü` is one letter on every file system.

    Args:
        pred: Folder of predicted label maps (PNG), searched with its sub-folders.
        target: Folder of label maps (PNG), likewise.
        images: Folder of the pictures they belong to, of any usual format; None if there is none.

    Attributes:
        names: The names that have both a prediction and a label, sorted.

    Raises:
        DataError: A folder does not exist, holds no such file, two of one name or a name that is no text in UTF-8,
            or nothing can be paired.
    """

    def __init__(self, pred: Path, target: Path, images: Path | None = None) -> None:
        self.pred, self.target, self.images = pred, target, images
        self.pred_files, self.target_files = files_by_name(pred, (".png",)), files_by_name(target, (".png",))
        self.image_files = files_by_name(images, PICTURES) if images else {}
        self.names = sorted(self.pred_files.keys() & self.target_files.keys())
        if not self.names:
            raise DataError(
                f"nothing to evaluate: none of the {len(self.pred_files)} predictions has the name of one of the "
                f"{len(self.target_files)} labels. Files are paired by path without ending, and the first are "
                f"`{min(self.pred_files)}` in {pred} and `{min(self.target_files)}` in {target}."
            )


@dataclass(frozen=True)
class Scored:
    """An image and its score: the metric of this image alone."""

    image: str
    score: float


@dataclass(frozen=True)
class MetricValues:
    """What one metric says.

    `classes` is None for a metric that does not end in a mean over classes, and None for a class that the mean does
    not count; see `Accumulators.class_values`.
    """

    metric: str
    expression: str
    value: float
    classes: list[float | None] | None
    worst: list[Scored]
    worst_by_class: list[list[Scored]]


@dataclass(frozen=True)
class Evaluation:
    """The values of metrics over a data set, and its worst images."""

    images: int
    labels_left_out: int
    predictions_left_out: int
    num_classes: int
    ignore_index: int
    metrics: list[MetricValues]

    def to_json(self) -> str:
        """All of it as JSON; the same input gives the same bytes."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def evaluate(
    folders: LabelFolders,
    metrics: Mapping[str, Expr],
    num_classes: int,
    ignore_index: int = 255,
    worst: int = 0,
    allow_missing: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate predictions against labels, one image at a time; images may differ in size.

    A score of an image is the metric of this image alone. It is left out of the worst lists where there is nothing to
    score: in an image without a valid pixel, or without a class that the metric counts. The lists of a class hold the
    images whose label has it.

    Args:
        folders: The files.
        metrics: Expressions by the name to report them under.
        num_classes: Labels lie in 0..num_classes - 1.
        ignore_index: The label of pixels that do not count.
        worst: How many images to list per metric, and per metric and class; lowest scores first.
        allow_missing: Leave out files without a partner, in place of refusing them.
        progress: Called after each image.

    Raises:
        DataError: Files are missing, damaged, of different sizes or hold other labels; every one is listed.
    """
    whole, single = (Accumulators(metrics, num_classes, ignore_index) for _ in range(2))
    lists = {name: _WorstLists(worst, num_classes) for name in metrics}
    mistakes = _Mistakes()
    if not allow_missing:
        _note_missing(folders, mistakes)
    for name in folders.names:
        pair = _checked_pair(folders, name, num_classes, ignore_index, mistakes)
        if pair and not mistakes:  # after a mistake the rest is only looked at
            pred, target = pair
            single.reset()
            single.update(torch.from_numpy(pred)[None], torch.from_numpy(target)[None])
            whole.add(single.counts())
            if worst:
                present = np.bincount(target[target != ignore_index], minlength=num_classes) > 0
                for metric, score in single.values().items():
                    lists[metric].add(name, score, single.class_values(metric), present)
        progress()
    mistakes.refuse()
    values = whole.values()
    return Evaluation(
        images=len(folders.names),
        labels_left_out=len(folders.target_files) - len(folders.names),
        predictions_left_out=len(folders.pred_files) - len(folders.names),
        num_classes=num_classes,
        ignore_index=ignore_index,
        metrics=[
            MetricValues(
                metric=name,
                expression=str(expr),
                value=values[name],
                classes=whole.class_values(name),
                worst=lists[name].overall.found,
                worst_by_class=[lowest.found for lowest in lists[name].by_class],
            )
            for name, expr in metrics.items()
        ],
    )


def split_metrics(text: str) -> list[str]:
    """The metrics of a list, split at the commas outside brackets.

    Raises:
        InputError: Nothing stands between two commas.

    Example:
        >>> split_metrics("miou, bf1(radius=3, background=True)")
        ['miou', 'bf1(radius=3, background=True)']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise InputError(f"--metric {text!r}: a metric is missing; separate them by single commas, as in miou,bf1.")
    return parts


def summary(evaluation: Evaluation) -> str:
    """What was evaluated, and what was left out."""
    text = f"{_number(evaluation.images, 'image')}, {_number(evaluation.num_classes, 'class', 'classes')}"
    left_out = [
        f"{_number(count, what)} without a {partner}"
        for count, what, partner in (
            (evaluation.labels_left_out, "label", "prediction"),
            (evaluation.predictions_left_out, "prediction", "label"),
        )
        if count
    ]
    text += f"; label {evaluation.ignore_index} is ignored"
    return f"{text}; left out: {', '.join(left_out)}." if left_out else f"{text}."


def values_table(evaluation: Evaluation) -> Table:
    """The value in % of each metric over the data set, and per class where it has one."""
    table = Table()
    table.add_column("", no_wrap=True, min_width=8)
    for row in evaluation.metrics:
        table.add_column(Text(row.metric), justify="right", overflow="fold", min_width=6)
    table.add_row("overall", *(percent(row.value) for row in evaluation.metrics), style="bold", end_section=True)
    if any(row.classes for row in evaluation.metrics):
        for label in range(evaluation.num_classes):
            table.add_row(
                f"class {label}", *(percent(row.classes[label]) if row.classes else "" for row in evaluation.metrics)
            )
    return table


def worst_table(evaluation: Evaluation) -> Table:
    """The images of each list and their scores in %, lowest first."""
    table = Table()
    table.add_column("worst by", overflow="fold")
    table.add_column("class", justify="right", min_width=5)
    table.add_column("score", justify="right", min_width=6)
    table.add_column("image", overflow="fold")
    for row in evaluation.metrics:
        lists = [("all", row.worst), *((str(label), found) for label, found in enumerate(row.worst_by_class))]
        entries = [(label if i == 0 else "", entry) for label, found in lists for i, entry in enumerate(found)]
        for i, (label, entry) in enumerate(entries):
            table.add_row(Text(row.metric if i == 0 else ""), label, percent(entry.score), Text(entry.image))
        table.add_section()
    return table


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def percent(value: float | None) -> str:
    """A value as a table shows it."""
    return "-" if value is None else f"{100 * value:.2f}"


class _Lowest:
    """The lowest scores of those added; ties by name."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._entries: list[tuple[float, str]] = []

    def add(self, image: str, score: float) -> None:
        insort(self._entries, (score, image))
        del self._entries[self._number :]

    @property
    def found(self) -> list[Scored]:
        return [Scored(image, score) for score, image in self._entries]


class _WorstLists:
    """The worst images of one metric, over all classes and for each class."""

    def __init__(self, number: int, num_classes: int) -> None:
        self.overall = _Lowest(number)
        self.by_class = [_Lowest(number) for _ in range(num_classes)]

    def add(self, image: str, score: float, classes: list[float | None] | None, present: npt.NDArray[np.bool_]) -> None:
        """Add an image to the lists it belongs to.

        Args:
            image: Its name.
            score: The metric of this image alone.
            classes: The metric's value of each class in it, see `Accumulators.class_values`.
            present: The classes in its label, (C,).
        """
        if present.any() and (classes is None or any(value is not None for value in classes)):
            self.overall.add(image, score)
        for value, there, lowest in zip(classes or (), present, self.by_class, strict=False):
            if value is not None and there:
                lowest.add(image, value)


class _Mistakes:
    """The mistakes found, by kind, in the order in which they were met."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, kind: str, line: str) -> None:
        self._lines.setdefault(kind, []).append(line)

    def refuse(self) -> None:
        """Raise them all as one error, if there are any."""
        if not self:
            return
        count = sum(map(len, self._lines.values()))
        message = [f"{_number(count, 'mistake')} in the folders; nothing was evaluated or written."]
        for kind, lines in self._lines.items():
            message += [f"{kind} ({len(lines)}):", *(f"  {line}" for line in lines)]
        if any(" without a " in kind for kind in self._lines):
            message.append("Files are paired by path without ending; --allow-missing goes on without what is missing.")
        raise DataError("\n".join(message))


def _note_missing(folders: LabelFolders, mistakes: _Mistakes) -> None:
    pred, target, images = (set(files) for files in (folders.pred_files, folders.target_files, folders.image_files))
    missing = {
        f"labels without a prediction in {folders.pred}": target - pred,
        f"predictions without a label in {folders.target}": pred - target,
        f"labels without a picture in {folders.images}": (pred & target) - images if folders.images else set(),
    }
    for kind, names in missing.items():
        for name in sorted(names):
            mistakes.add(kind, name)


def _checked_pair(
    folders: LabelFolders, name: str, num_classes: int, ignore_index: int, mistakes: _Mistakes
) -> tuple[LabelMap, LabelMap] | None:
    """The prediction and the label of a name; None where something is wrong with them or their picture."""
    sizes: dict[str, tuple[int, int]] = {}
    maps: list[LabelMap] = []
    for what, path, ignored in (
        ("prediction", folders.pred_files[name], None),
        ("label", folders.target_files[name], ignore_index),
    ):
        try:
            labels = read_labels(path)
        except DataError as error:
            mistakes.add(_UNREADABLE, f"{path}: {error}")
            continue
        sizes[what] = (labels.shape[1], labels.shape[0])
        wrong = ((labels < 0) | (labels >= num_classes)) & (labels != (ignored if ignored is not None else -1))
        if wrong.any():
            found = np.unique(labels[wrong]).tolist()
            allowed = f"0..{num_classes - 1}" + (f" and {ignored} (ignored)" if ignored is not None else "")
            mistakes.add(
                f"{what}s out of range; allowed: {allowed}",
                f"{path}: {', '.join(map(str, found[:8]))}{', ...' if len(found) > 8 else ''} "
                f"at {wrong.sum()} of {labels.size} pixels",
            )
        maps.append(labels)
    if name in folders.image_files:
        try:
            with Image.open(folders.image_files[name]) as image:
                image.load()  # the header alone does not say that it is whole
                sizes["picture"] = image.size
        except Exception as error:  # likewise
            mistakes.add(_UNREADABLE, f"{folders.image_files[name]}: {why_unreadable(error, 'picture')}")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{what} {width} x {height}" for what, (width, height) in sizes.items())
        mistakes.add("sizes that differ (width x height)", f"{name}: {listed}")
    return (maps[0], maps[1]) if len(maps) == 2 else None
