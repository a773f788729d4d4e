"""Your own data, from a function that returns `torch.utils.data.Dataset`s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from autosegloss.errors import DataError
from autosegloss.proxy.data import IGNORE_INDEX, Dataset, Split, check_options, class_names
from autosegloss.proxy.data.files import random_split
from autosegloss.proxy.imports import import_function

REQUIRED = ("classes", "train", "validation")
OPTIONAL = ("heldout", "ignore_index")


def load(name: str, options: Mapping[str, Any]) -> Dataset:
    """Read the data sets that a function returns.

    The function returns a mapping with the keys

    - `classes`: the names of the classes 0, 1, 2, ..., or their number;
    - `train` and `validation`: each a `torch.utils.data.Dataset` with a length, of pairs of an image and a label map;
    - `heldout`: another such data set for rewards, or a number or share below 1 of the training images, drawn with
      seed 0; by default 0.2;
    - `ignore_index`: the label of ignored pixels; by default 255.

    An image is a PIL image, or an array or tensor (3, H, W), (1, H, W) or (H, W), uint8 or floats in [0, 1],
    before any normalisation. A label map is a PIL image, or an integer array or tensor (H, W) or (1, H, W). All have
    the same size. Each item is read once, so random transforms are drawn once. The validation set is read only where it
    is needed; a worker calls the function again.

    Args:
        name: "module:function".
        options: The function's arguments.

    Raises:
        InputError: The function can't be imported.
        DataError: The function returns something else, or items can't be used; the error lists all of them.
    """
    owner = f"data set `{name}`"
    given = _given(name, options)
    classes = class_names(owner, given["classes"])
    ignored = given.get("ignore_index", IGNORE_INDEX)
    train, heldout = given["train"], given.get("heldout", 0.2)
    kept: Sequence[int] = range(len(train))
    if isinstance(heldout, int | float):
        kept, apart = random_split(owner, "heldout", len(train), heldout, seed=0)
        heldout = [train[number] for number in apart]
    reading = _Reading(owner, len(classes), ignored)
    return Dataset(
        name,
        classes,
        IGNORE_INDEX,
        reading.split("train", [train[number] for number in kept]),
        reading.split("heldout", heldout),
        partial(_validation, name, dict(options), reading),
    )


def _given(name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Call the function and check the keys of the mapping that it returns."""
    owner = f"data set `{name}`"
    function = import_function(name, "data set")
    check_options(owner, function, options)
    given: Mapping[str, Any] = function(**options)
    keys = set(given) if isinstance(given, Mapping) else set()
    if not set(REQUIRED) <= keys <= {*REQUIRED, *OPTIONAL}:
        what = f"the keys {', '.join(map(str, given))}" if isinstance(given, Mapping) else type(given).__name__
        raise DataError(
            f"{owner}: the function must return a mapping with the keys {', '.join(REQUIRED)}, optionally "
            f"{' and '.join(OPTIONAL)}, got {what}."
        )
    return given


def _validation(name: str, options: Mapping[str, Any], reading: _Reading) -> Split:
    return reading.split("validation", _given(name, options)["validation"])


@dataclass(frozen=True)
class _Reading:
    """Converts the items of a data set to arrays."""

    owner: str
    classes: int
    ignored: int

    def split(self, part: str, items: Any) -> Split:
        """Read all items of a split; the error lists those that can't be used."""
        pairs, mistakes = [], []
        for number in range(len(items)):
            try:
                image, labels = items[number]
                pairs.append((_pixels(image), self._labels(labels)))
                first, last = pairs[0], pairs[-1]
                if not last[0].shape[1:] == last[1].shape == first[1].shape:
                    sizes = f"image {last[0].shape[1:]}, labels {last[1].shape}, the first labels {first[1].shape}"
                    raise DataError(f"all must have one size (height, width), got {sizes}")
            except (DataError, TypeError, ValueError) as error:
                mistakes.append(f"\n  {part}[{number}]: {error}")
        if mistakes or not pairs:
            what = f"items that can't be used ({len(mistakes)}):" if mistakes else f"{part} is empty."
            raise DataError(f"{self.owner}: {what}{''.join(mistakes)}")
        images, maps = zip(*pairs, strict=True)
        return Split(np.stack(images), np.stack(maps))

    def _labels(self, value: Any) -> NDArray[np.uint8]:
        array = _array(value)
        labels = array[0] if array.ndim == 3 and len(array) == 1 else array
        if labels.ndim != 2 or labels.dtype.kind not in "iub":
            raise DataError(f"labels must be integers of shape (H, W), got {array.dtype} of shape {array.shape}")
        ignored = labels == self.ignored
        wrong = np.unique(labels[~ignored & ((labels < 0) | (labels >= self.classes))])
        if len(wrong):
            found = ", ".join(map(str, wrong[:8].tolist()))
            raise DataError(f"labels must be 0..{self.classes - 1}, and {self.ignored} (ignored), got {found}")
        return np.where(ignored, IGNORE_INDEX, labels).astype(np.uint8)


def _pixels(value: Any) -> NDArray[np.uint8]:
    """An image as uint8, (3, H, W)."""
    array = _array(value.convert("RGB")).transpose(2, 0, 1) if isinstance(value, Image.Image) else _array(value)
    image = array[None] if array.ndim == 2 else array
    if image.ndim != 3 or len(image) not in (1, 3):
        raise DataError(f"an image must have shape (3, H, W), (1, H, W) or (H, W), got {array.shape}")
    if image.dtype.kind == "f":
        if not 0 <= image.min() <= image.max() <= 1:
            limits = f"{image.min():g} to {image.max():g}"
            raise DataError(f"a floating image must lie in [0, 1], got {limits}; leave normalisation to the proxy")
        image = np.rint(255 * image).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"an image must be uint8 or floating, got {image.dtype}")
    return np.broadcast_to(image, (3, *image.shape[1:]))


def _array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
