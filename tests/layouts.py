"""Tiny data sets in the official layouts, made from random scenes, and functions that return data sets.

Ray's workers import this module by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

from autosegloss.proxy.data import Split

COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
CITIES = {"train": ("aachen", "ulm"), "val": ("lindau",)}


def scene(seed: int, height: int, width: int, values: Iterable[int], void: int | None = None) -> NDArray[np.uint8]:
    """A label map of two rectangles on the first of the values, with contours of another value around them."""
    rng = np.random.default_rng(seed)
    ground, *others = values
    labels = np.full((height, width), ground, np.uint8)
    for value in rng.choice(others, 2):
        top, left = int(rng.integers(1, height // 2)), int(rng.integers(1, width // 2))
        bottom, right = top + height // 3, left + width // 3
        if void is not None:
            labels[top - 1 : bottom + 1, left - 1 : right + 1] = void
        labels[top:bottom, left:right] = value
    return labels


def picture(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of a label map: a colour for each value."""
    return COLOURS[labels]


def write(path: Path, array: NDArray[np.uint8], palette: bool = False, **options: int) -> None:
    """Write an image; with a palette, grey values become indices into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette(COLOURS.tobytes())
    image.save(path, **options)


def voc(root: Path, train: int = 8, val: int = 3, augmented: bool = False) -> Path:
    """PASCAL VOC 2012: JPEG images in two shapes, palette masks with contours of 255, lists."""
    lists = {"train": range(train), "val": range(100, 100 + val)}
    if augmented:
        lists["trainaug"] = range(2 * train)
    for name, numbers in lists.items():
        for number in numbers:
            labels = scene(number, *((40, 48) if number % 2 else (48, 40)), range(21), void=255)
            write(root / "JPEGImages" / f"2012_{number:03}.jpg", picture(labels), quality=95)
            folder = "SegmentationClassAug" if name == "trainaug" else "SegmentationClass"
            write(root / folder / f"2012_{number:03}.png", labels, palette=folder == "SegmentationClass")
        path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"2012_{number:03}\n" for number in numbers))
    return root


def cityscapes(root: Path, images: int = 4) -> Path:
    """Cityscapes: a folder for each city, label ids, and the other annotations that lie beside them."""
    for part, cities in CITIES.items():
        for city in cities:
            for number in range(images):
                labels = scene(number + len(city), 32, 64, (7, 0, 3, 8, 11, 23, 26, 33))
                name = f"{city}_{number:06}_000019"
                write(root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png", picture(labels))
                write(root / "gtFine" / part / city / f"{name}_gtFine_labelIds.png", labels)
                write(root / "gtFine" / part / city / f"{name}_gtFine_color.png", picture(labels))
                (root / "gtFine" / part / city / f"{name}_gtFine_polygons.json").write_text("{}")
    return root


def ade20k(root: Path, images: int = 6) -> Path:
    """ADE20K as in the scene parsing challenge."""
    for part in ("training", "validation"):
        for number in range(images):
            labels = scene(number, 40, 48, (0, 1, 2, 75, 150))
            name = f"ADE_{part[:5]}_{number:08}"
            write(root / "images" / part / f"{name}.jpg", picture(labels), quality=95)
            write(root / "annotations" / part / f"{name}.png", labels)
    rows = "".join(f"{number}\t0.1\t10\t1\tname {number}, other name\n" for number in range(1, 151))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + rows)
    return root


def folder(root: Path, images: int = 10, size: tuple[int, int] = (32, 32)) -> Path:
    """Images and masks of three classes, of which 9 is ignored, some in a folder below."""
    for number in range(images):
        labels = scene(number, *size, range(3), void=9)
        place = f"day{number % 2}/{number:02}" if number > 3 else f"{number:02}"
        write(root / "images" / f"{place}.jpg", picture(labels), quality=95)
        write(root / "masks" / f"{place}.png", labels)
    return root


def digest(split: Split) -> str:
    """A hash of all pixels of a split."""
    return sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()


def seen_by(split: Split) -> tuple[str, bool]:
    """What a worker sees of a split: its hash, and whether it is mapped from a file."""
    return digest(split), isinstance(split.images, np.memmap)


class Squares(TorchDataset[tuple[Any, Any]]):
    """Images of three classes in one of the forms that data sets give them in."""

    def __init__(self, images: int, form: str = "bytes", first: int = 0) -> None:
        self.images, self.form, self.first = images, form, first

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch

        labels = scene(self.first + index, 32, 32, range(3), void=7)
        pixels = picture(labels)
        if self.form == "pil":
            return Image.fromarray(pixels), Image.fromarray(labels)
        tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        if self.form == "floats":
            return tensor / 255, torch.from_numpy(labels)[None].long()
        if self.form == "normalised":
            return tensor / 127.5 - 1, labels
        return tensor.numpy(), labels.astype(np.int32)


def squares(images: int = 10, form: str = "bytes") -> dict[str, Any]:
    """Data of one's own, as a configuration names it."""
    return {
        "classes": ["ground", "red", "green"],
        "train": Squares(images, form),
        "validation": Squares(4, form, first=100),
        "heldout": 0.3,
        "ignore_index": 7,
    }


@cache  # they take a second to draw
def few_shapes(seed: int = 0) -> dict[str, Any]:
    """The first images of `shapes`."""
    from autosegloss.proxy.data import load_dataset

    whole = load_dataset("shapes", seed=seed)
    parts = {"train": 32, "heldout": 8, "validation": 16}
    items = {
        name: [*zip(getattr(whole, name).images[:count], getattr(whole, name).labels[:count], strict=True)]
        for name, count in parts.items()
    }
    return {"classes": list(whole.classes), **items}


def incomplete() -> dict[str, Any]:
    """A function that forgets the validation set."""
    return {"classes": 3, "train": Squares(4)}
