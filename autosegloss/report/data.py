"""What a data set holds, as the start of a search, a comparison, a retraining or a dry run tells it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from autosegloss.errors import cut
from autosegloss.proxy.data import Dataset

_CLASSES = 10  # in a line
_PARTS = {"train": "training", "heldout": "held-out", "validation": "validation"}


def warn(warnings: Iterable[str]) -> None:
    """Print warnings on standard error."""
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)


def images_text(dataset: Dataset) -> str:
    """The numbers of images, their size and the number of classes, in a line."""
    counts = [f"{dataset.contents[part].images} {title}" for part, title in _PARTS.items()]
    height, width = dataset.train.images.shape[-2:]
    return (
        f"{dataset.name}: {counts[0]}, {counts[1]} and {counts[2]} images of {height}x{width}, "
        f"{len(dataset.classes)} classes"
    )


def data_text(dataset: Dataset) -> str:
    """The images, and the share of the pixels of each class in all parts: two lines."""
    pixels = [sum(each) for each in zip(*(pixels_of(dataset, part) for part in _PARTS), strict=True)]
    names = [f"`{cut(name, 40)}`" for name in dataset.classes[:_CLASSES]]
    shares = [f"{name} {share_text(count, sum(pixels))}" for name, count in zip(names, pixels, strict=False)]
    if len(dataset.classes) > _CLASSES:
        others = sum(pixels[_CLASSES:-1])
        shares.append(f"{len(dataset.classes) - _CLASSES} other classes {share_text(others, sum(pixels))}")
    shares.append(f"ignored {share_text(pixels[-1], sum(pixels))}")
    return f"data: {images_text(dataset)}\npixels: {', '.join(shares)}"


def classes_text(dataset: Dataset) -> str:
    """A table of the share of the pixels of each class in each part, and the values of the masks."""
    columns = {part: pixels_of(dataset, part) for part in _PARTS}
    names = [*(cut(name, 40) for name in dataset.classes), "ignored"]
    width = max(map(len, names))
    lines = [f"{'pixels':<{width}}{''.join(f'{title:>12}' for title in _PARTS.values())}"]
    for label, name in enumerate(names):
        lines.append(
            f"{name:<{width}}{''.join(f'{share_text(each[label], sum(each)):>12}' for each in columns.values())}"
        )
    return "\n".join([*lines, *([dataset.held()] if dataset.values else [])])


def data_record(dataset: Dataset) -> dict[str, Any]:
    """What a data set holds as a JSON object.

    Its keys are `name`, `classes`, `images` (their number, by part: `train`, `heldout`, `validation`), `pixels` (their
    number for each class and, last, the ignored ones, by part), and `warnings`.
    """
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "images": {part: dataset.contents[part].images for part in _PARTS},
        "pixels": {part: pixels_of(dataset, part) for part in _PARTS},
        "warnings": list(dataset.warnings),
    }


def pixels_of(dataset: Dataset, part: str) -> list[int]:
    """The number of pixels of each class in a part, then that of the ignored ones."""
    pixels = dataset.contents[part].pixels
    return [*pixels[: len(dataset.classes)], pixels[dataset.ignore_index]]


def share_text(count: int, total: int) -> str:
    """A share in %; a small one is not rounded to none, nor a large one to all."""
    share = 100 * count / max(total, 1)
    if 0 < share < 0.05:
        return f"{share:.1g}%"
    return ">99.9%" if share >= 99.95 and count < total else f"{share:.1f}%" if count else "0%"
