"""Evaluation of folders of label maps: values over the data set and per class, and the worst images."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from autosegloss.errors import DataError, InputError, cut, shown
from autosegloss.metric import Accumulators, Expr
from autosegloss.proxy.data import IGNORE_INDEX, listing
from autosegloss.proxy.data.pictures import (
    LABELS,
    PICTURES,
    ColoursError,
    LabelMap,
    files_by_name,
    name_pattern,
    read_labels,
    read_picture,
    suffix_between,
)
from autosegloss.proxy.data.splits import PARTS, pick, read_names, read_split
from autosegloss.proxy.data.values import ValueMap, read_pairs, read_values
from autosegloss.report.data import share_text

_LABELS = 10  # in a line
Mistakes = defaultdict[str, list[str]]
UNREADABLE = "files that can't be read"
COLOURED = "label maps of colours; --values says which class each colour is"


class LabelFolders:
    """The files of an evaluation by name: the path inside the folder, without the extension.

    Names are in Unicode's composed form (NFC): `ü` is one letter on every file system.

    Args:
        pred: Folder of predicted label maps (PNG, TIFF, BMP, GIF or .npy); sub-folders are searched too.
        target: Folder of true label maps (PNG, TIFF, BMP, GIF or .npy); sub-folders are searched too.
        images: Folder of the pictures, in any common format; None if there are none.
        mask_suffix: What follows the name in the files of `target`, or a pattern, see `name_pattern`.
        pred_suffix: Likewise in those of `pred`.
        values: The labels of the values in the files of `target`; None if these are labels themselves.
        pred_values: Likewise of `pred`.
        only: The names to evaluate, see `pick`; None for all.

    Attributes:
        names: The names that have both a prediction and a label, sorted.
        found: All files, those that `only` leaves out too.

    Raises:
        DataError: A folder does not exist, has no such file, two files of one name or a name that is not UTF-8, no
            prediction has a label, or a name of `only` has no file.
    """

    def __init__(
        self,
        pred: Path,
        target: Path,
        images: Path | None = None,
        *,
        mask_suffix: str = "",
        pred_suffix: str = "",
        values: ValueMap | None = None,
        pred_values: ValueMap | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        self.pred, self.target, self.images = pred, target, images
        self.values, self.pred_values = values, pred_values
        self.pred_files = files_by_name(pred, LABELS, name_pattern("--pred-suffix", pred_suffix))
        self.target_files = files_by_name(target, LABELS, name_pattern("--mask-suffix", mask_suffix))
        maps = frozenset([*self.pred_files.values(), *self.target_files.values()])
        self.image_files = files_by_name(images, PICTURES, without=maps) if images else {}
        self.found = frozenset([*maps, *self.image_files.values()])
        if only is not None:
            chosen = set(pick(only, self.pred_files.keys() | self.target_files.keys(), "--split"))
            self.pred_files, self.target_files, self.image_files = (
                {name: path for name, path in files.items() if name in chosen}
                for files in (self.pred_files, self.target_files, self.image_files)
            )
        self.names = sorted(self.pred_files.keys() & self.target_files.keys())
        if not self.names:
            raise DataError(
                f"nothing to evaluate: none of the {len(self.pred_files)} predictions has the name of one of the "
                f"{len(self.target_files)} labels. Files are paired by path without extension; the first names are "
                f"{_first(self.pred_files)} in {pred} and {_first(self.target_files)} in {target}.{self._hint()}"
            )

    def _hint(self) -> str:
        """How all files of a folder would be paired with those of the other, for a message."""
        for option, names, others in (
            ("--mask-suffix", self.pred_files, self.target_files),
            ("--pred-suffix", self.target_files, self.pred_files),
        ):
            if suffix := suffix_between(names, others):
                return f" With `{option}={cut(suffix)}` they are paired."
        return ""

    def prediction(self, name: str) -> LabelMap:
        """The predicted labels of a name.

        Raises:
            DataError: The file can't be read, or holds values that have no label.
        """
        return _labels(self.pred_files[name], self.pred_values)

    def label(self, name: str) -> LabelMap:
        """The true labels of a name.

        Raises:
            DataError: The file can't be read, or holds values that have no label.
        """
        return _labels(self.target_files[name], self.values)


def _labels(path: Path, values: ValueMap | None) -> LabelMap:
    return read_labels(path) if values is None else values.apply(read_labels(path, values.colours))


def _first(files: Mapping[str, Path]) -> str:
    return f"`{cut(min(files))}`" if files else "none"


def names_to_evaluate(split: str, part: str | None) -> list[str]:
    """The names in a text file, or those of a part of a split.

    Args:
        split: The path of a text file (.txt) of a name a line; or of a JSON file or a folder, see `read_split`.
        part: The part; None for a text file.

    Raises:
        InputError: A text file has no parts, or a part is needed.
        DataError: The file can't be read.
    """
    if split.lower().endswith(".txt"):
        if part is not None:
            raise InputError(f"--part {cut(part)}: {cut(split)} is one list, which has no parts.")
        return read_names(Path(split))
    parts = read_split(split)
    if part is None or PARTS.get(part) not in parts:
        raise InputError(f"--part must be one of {', '.join(parts)} (parts of {cut(split)}), got {shown(part)}.")
    return parts[PARTS[part]]


def refuse_inputs(path: Path, folders: LabelFolders, split: str | None) -> None:
    """Raise InputError if a file to be written is read, by this or another path.

    Args:
        path: The file to be written.
        folders: The files that are read.
        split: The list of names, or the folder of lists; None if there is none.
    """
    lists = [] if split is None else [Path(split).expanduser(), *Path(split).expanduser().glob("*.txt")]
    if path.exists() and any(path.samefile(each) for each in (*folders.found, *lists) if each.exists()):
        raise InputError(f"{cut(str(path))}: is read by this command; write to another file.")


def value_maps(
    values: str | None, pred_values: str | None, classes: Sequence[str], ignore_index: int | None
) -> tuple[ValueMap | None, ValueMap | None, int | None]:
    """The labels of values in targets and in predictions, and the label of ignored pixels.

    Args:
        values: The text of `--values`, see `read_pairs`; None if values are labels.
        pred_values: That of `--pred-values`; None is `values`.
        classes: The names of the classes.
        ignore_index: With `values`, another value of the targets that is ignored.

    Raises:
        DataError: A text is misspelt, or something in it can't be meant.
    """
    ignored = IGNORE_INDEX if len(classes) <= IGNORE_INDEX else -1
    maps = [
        None if text is None else read_values(read_pairs(option, text), classes, ignored, also)
        for option, text, also in (
            ("--values", values, ignore_index),
            ("--pred-values", pred_values if pred_values is not None else values, None),
        )
    ]
    return maps[0], maps[1], ignore_index if maps[0] is None else ignored


@dataclass(frozen=True)
class Scored:
    """An image and its score: the metric of this image alone."""

    image: str
    score: float


@dataclass(frozen=True)
class MetricValues:
    """The values of one metric.

    `classes` is None for a metric that is not a mean over classes; its entries are None for the classes that the mean
    does not count. See `Accumulators.class_values`.
    """

    metric: str
    expression: str
    value: float
    classes: list[float | None] | None
    worst: list[Scored]
    worst_by_class: list[list[Scored]]


@dataclass(frozen=True)
class FolderEvaluation:
    """The values of metrics over a data set, and its worst images."""

    images: int
    labels_left_out: int
    predictions_left_out: int
    num_classes: int
    ignore_index: int
    target_pixels: dict[int, int]
    """Number of pixels of each label in the targets, the ignored one included."""
    warnings: list[str]
    metrics: list[MetricValues]
    class_names: list[str] | None = None
    """The names of the classes in label order, where they are known."""
    options: dict[str, str] = field(default_factory=dict)
    """How files were chosen and read, as given on the command line."""

    def name(self, label: int) -> str:
        """The name of a class; its number where names are not known."""
        return str(label) if self.class_names is None else self.class_names[label]

    def title(self, label: int) -> str:
        """The name of a class; `class 2` where names are not known."""
        return f"class {label}" if self.class_names is None else self.name(label)

    def to_json(self) -> str:
        """The evaluation as JSON; the same input gives the same bytes."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def evaluate(
    folders: LabelFolders,
    metrics: Mapping[str, Expr],
    num_classes: int,
    ignore_index: int | None = None,
    worst: int = 0,
    allow_missing: bool = False,
    progress: Callable[[], None] = lambda: None,
    class_names: Sequence[str] | None = None,
) -> FolderEvaluation:
    """Evaluate predictions against labels, one image at a time; images may differ in size.

    The score of an image is the metric of that image alone. The worst lists leave out images with nothing to score:
    those without a valid pixel, or without a class that the metric counts. The list of a class contains only images
    whose label has the class.

    Args:
        folders: The files.
        metrics: Expressions by the name to report them under.
        num_classes: Labels are 0..num_classes - 1.
        ignore_index: The label of ignored pixels in the targets; -1 if there is none. None is 255 if that is no class.
        worst: Number of images to list per metric, and per metric and class; lowest scores first.
        allow_missing: Skip files without a partner instead of raising an error.
        progress: Called after each image.
        class_names: The names of the classes, in label order.

    Raises:
        DataError: Files are missing, damaged, of different sizes or have other labels, which are listed; or the targets
            can't be meant: 255 is ignored by default, while a class has no pixel, or is 255.
    """
    stated = ignore_index is not None
    if ignore_index is None:
        ignore_index = IGNORE_INDEX if num_classes <= IGNORE_INDEX else -1
    whole, single = (Accumulators(metrics, num_classes, ignore_index) for _ in range(2))
    overall: dict[str, list[Scored]] = {name: [] for name in metrics}
    by_class: dict[str, list[list[Scored]]] = {name: [[] for _ in range(num_classes)] for name in metrics}
    mistakes: Mistakes = defaultdict(list)
    pixels: Counter[int] = Counter()
    if not allow_missing:
        note_missing(folders, mistakes)
    for name in folders.names:
        pair = _checked_pair(folders, name, num_classes, ignore_index, mistakes)
        if pair and not mistakes:  # after a mistake the remaining files are only checked
            pred, target = pair
            pixels.update(dict(zip(*map(np.ndarray.tolist, np.unique(target, return_counts=True)), strict=True)))
            single.reset()
            single.update(torch.from_numpy(pred)[None], torch.from_numpy(target)[None])
            whole.add(single.counts())
            if worst:
                present = np.bincount(target[target != ignore_index], minlength=num_classes) > 0
                for metric, score in single.values().items():
                    classes = single.class_values(metric)
                    if present.any() and (classes is None or any(value is not None for value in classes)):
                        overall[metric].append(Scored(name, score))
                    for value, there, scores in zip(classes or (), present, by_class[metric], strict=False):
                        if value is not None and there:
                            scores.append(Scored(name, value))
        progress()
    if mistakes:
        raise refused(mistakes)
    if not stated:
        refuse_ambiguous(pixels, num_classes)
    values = whole.values()
    return FolderEvaluation(
        images=len(folders.names),
        labels_left_out=len(folders.target_files) - len(folders.names),
        predictions_left_out=len(folders.pred_files) - len(folders.names),
        num_classes=num_classes,
        ignore_index=ignore_index,
        target_pixels=dict(sorted(pixels.items())),
        warnings=_warnings(pixels, num_classes, ignore_index),
        metrics=[
            MetricValues(
                metric=name,
                expression=str(expr),
                value=values[name],
                classes=whole.class_values(name),
                worst=_lowest(overall[name], worst),
                worst_by_class=[_lowest(scores, worst) for scores in by_class[name]],
            )
            for name, expr in metrics.items()
        ],
        class_names=None if class_names is None else list(class_names),
    )


def split_metrics(text: str) -> list[str]:
    """The metrics of a list, split at commas outside brackets.

    Raises:
        InputError: There is nothing between two commas.

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
        raise InputError(
            f"--metric {shown(text)}: a metric is missing; separate them by single commas, as in miou,bf1."
        )
    return parts


def summary(evaluation: FolderEvaluation) -> str:
    """The numbers of images, classes and files left out."""
    text = f"{_number(evaluation.images, 'image')}, {_number(evaluation.num_classes, 'class', 'classes')}"
    left_out = [
        f"{_number(count, what)} without a {partner}"
        for count, what, partner in (
            (evaluation.labels_left_out, "label", "prediction"),
            (evaluation.predictions_left_out, "prediction", "label"),
        )
        if count
    ]
    text += "; no label is ignored" if evaluation.ignore_index < 0 else f"; label {evaluation.ignore_index} is ignored"
    text = f"{text}; left out: {', '.join(left_out)}." if left_out else f"{text}."
    return f"{text}\nPixels of the labels: {_shares(evaluation.target_pixels, evaluation.ignore_index)}."


def _shares(pixels: Mapping[int, int], ignore_index: int) -> str:
    """The share of the pixels of each label, as in `0 98.1%, 255 1.9% (ignored)`."""
    total = sum(pixels.values())
    texts = [
        f"{label} {share_text(count, total)}{' (ignored)' if label == ignore_index else ''}"
        for label, count in sorted(pixels.items())
    ]
    return ", ".join(texts[:_LABELS]) + (f" and {len(texts) - _LABELS} more labels" if len(texts) > _LABELS else "")


def refuse_ambiguous(pixels: Mapping[int, int], num_classes: int) -> None:
    """Raise an error if 255, which nobody has called ignored, may be a class."""
    if not pixels.get(IGNORE_INDEX):
        return
    if num_classes > IGNORE_INDEX:
        raise DataError(
            f"the labels hold {IGNORE_INDEX}, which is one of the {num_classes} classes (0..{num_classes - 1}) and by "
            f"default also the ignored label. Give the ignored label as --ignore-index; with `--ignore-index -1` no "
            f"pixel is ignored, and {IGNORE_INDEX} is a class."
        )
    absent = [label for label in range(num_classes) if not pixels.get(label)]
    if absent:
        raise DataError(
            f"class {absent[0]}{f' (and {len(absent) - 1} more)' if len(absent) > 1 else ''} has no pixel in the "
            f"labels, which hold {_shares(pixels, IGNORE_INDEX)}: {IGNORE_INDEX} is ignored by default. If it marks "
            f"ignored pixels, give `--ignore-index {IGNORE_INDEX}`; if it marks a class, map it: "
            f"--values '{{0: 0, {IGNORE_INDEX}: {absent[0]}}}'."
        )


def _warnings(pixels: Mapping[int, int], num_classes: int, ignore_index: int) -> list[str]:
    """What is probably a mistake in the labels."""
    found = []
    if ignore_index < num_classes and pixels.get(ignore_index):
        found.append(f"label {ignore_index} is a class, and its pixels are ignored, as --ignore-index says.")
    absent = [str(label) for label in range(num_classes) if not pixels.get(label)]
    if absent:
        names = f"{', '.join(absent[:_LABELS])}{f' and {len(absent) - _LABELS} more' if len(absent) > _LABELS else ''}"
        found.append(
            f"{'class' if len(absent) == 1 else 'classes'} {names} {'has' if len(absent) == 1 else 'have'} no pixel in "
            f"the labels, which hold {_shares(pixels, ignore_index)}."
        )
    return found


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _lowest(scores: list[Scored], number: int) -> list[Scored]:
    return sorted(scores, key=lambda each: (each.score, each.image))[:number]


def refused(mistakes: Mistakes) -> DataError:
    """All mistakes as one error, by kind."""
    count = sum(map(len, mistakes.values()))
    message = [f"{_number(count, 'mistake')} in the folders; nothing was evaluated or written.", listing(mistakes, 600)]
    if any(" without a " in kind for kind in mistakes):
        message.append("Files are paired by path without extension; --allow-missing skips files without a partner.")
    return DataError("\n".join(message))


def note_missing(folders: LabelFolders, mistakes: Mistakes) -> None:
    """Add the files without a partner to the mistakes."""
    pred, target, images = (set(files) for files in (folders.pred_files, folders.target_files, folders.image_files))
    missing = {
        f"labels without a prediction in {folders.pred}": target - pred,
        f"predictions without a label in {folders.target}": pred - target,
        f"labels without a picture in {folders.images}": (pred & target) - images if folders.images else set(),
    }
    for kind, names in missing.items():
        if names:
            mistakes[kind] += sorted(names)


def _checked_pair(
    folders: LabelFolders, name: str, num_classes: int, ignore_index: int, mistakes: Mistakes
) -> tuple[LabelMap, LabelMap] | None:
    """The prediction and the label of a name; None if one of them can't be read."""
    sizes: dict[str, tuple[int, int]] = {}
    maps: list[LabelMap] = []
    for what, path, ignored in (
        ("prediction", folders.pred_files[name], None),
        ("label", folders.target_files[name], ignore_index),
    ):
        try:
            labels = folders.prediction(name) if what == "prediction" else folders.label(name)
        except DataError as error:
            mistakes[COLOURED if isinstance(error, ColoursError) else UNREADABLE].append(f"{path}: {error}")
            continue
        sizes[what] = (labels.shape[1], labels.shape[0])
        wrong = ((labels < 0) | (labels >= num_classes)) & (labels != (ignored if ignored is not None else -1))
        if wrong.any():
            found = np.unique(labels[wrong]).tolist()
            allowed = f"0..{num_classes - 1}" + (f" and {ignored} (ignored)" if ignored is not None else "")
            mistakes[f"{what}s out of range; allowed: {allowed}"].append(
                f"{path}: {', '.join(map(str, found[:8]))}{', ...' if len(found) > 8 else ''} "
                f"at {wrong.sum()} of {labels.size} pixels"
            )
        maps.append(labels)
    if name in folders.image_files:
        try:
            sizes["picture"] = read_picture(folders.image_files[name], stretch=True).size
        except DataError as error:
            mistakes[UNREADABLE].append(f"{folders.image_files[name]}: {error}")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{what} {width} x {height}" for what, (width, height) in sizes.items())
        mistakes["sizes that differ (width x height)"].append(f"{name}: {listed}")
    return (maps[0], maps[1]) if len(maps) == 2 else None
