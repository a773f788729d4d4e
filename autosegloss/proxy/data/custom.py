"""Your own data, from a function that returns `torch.utils.data.Dataset`s."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from autosegloss.errors import DataError, SearchError, cut, shown
from autosegloss.proxy.data import IGNORE_INDEX, Dataset, Read, Split, check_options, class_names, listing
from autosegloss.proxy.data.pictures import rgb
from autosegloss.proxy.data.splits import random_split
from autosegloss.proxy.imports import import_function
from autosegloss.proxy.users_code import users_code, where

UNUSABLE = "items that can't be used"

REQUIRED = ("classes", "train", "validation")
OPTIONAL = ("heldout", "ignore_index")
_DRAWN = 10**7  # items from which some are held out: an order of so many is drawn in a second
_MOST = 100  # mistakes of a part, after which reading stops: a length may be wrong by any number


def load(name: str, options: Mapping[str, Any]) -> Read:
    """The data sets that a function returns.

    The function returns a mapping with the keys

    - `classes`: the names of the classes 0, 1, 2, ..., or their number;
    - `train` and `validation`: each a `torch.utils.data.Dataset` with a length, of pairs of an image and a label map;
    - `heldout`: another such data set for rewards, or a number or share below 1 of the training images, drawn with
      seed 0; by default 0.2;
    - `ignore_index`: the label of ignored pixels; by default 255, unless some class has no pixel then.

    An image is a PIL image, or an array or tensor (3, H, W), (1, H, W) or (H, W), uint8 or floats in [0, 1],
    before any normalisation. A label map is a PIL image, or an integer array or tensor (H, W) or (1, H, W). All have
    the same size. Each item is read once, so random transforms are drawn once. The validation set is read to check it,
    and again where it is needed; a worker calls the function again.

    Args:
        name: "module:function".
        options: The function's arguments.

    Returns:
        A function that calls yours and reads all items. It raises DataError if the function or an item raises an error,
        returns something else, or items can't be used; the error lists them.

    Raises:
        InputError: The function can't be imported.
        DataError: It has no such option.
    """
    _function(name, options)
    return partial(_dataset, name, options)


def _function(name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The function, if it takes the options."""
    function = import_function(name, "data set")
    check_options(f"data set `{name}`", function, options)
    return function


def _dataset(name: str, options: Mapping[str, Any]) -> Dataset:
    owner = f"data set `{name}`"
    given = _given(name, options)
    classes, ignored = class_names(owner, given["classes"]), given.get("ignore_index")
    reading = _Reading(owner, len(classes), _ignored(owner, ignored, len(classes)))
    train, heldout = given["train"], given.get("heldout", 0.2)
    kept: Sequence[int] = range(reading.length("train", train))
    apart: Split | None
    if isinstance(heldout, int | float):
        if len(kept) > _DRAWN:
            raise DataError(f"{owner}: the length (`__len__`) of train is {len(kept)}; at most {_DRAWN} can be read.")
        kept, drawn = random_split(owner, "heldout", len(kept), heldout, seed=0)
        apart = reading.split("train", train, drawn)
        whole = reading.split("train", train, kept)
    else:
        whole = reading.split("train", train, kept)
        apart = reading.split("heldout", heldout)
    unseen = reading.split("validation", given["validation"])
    reading.refuse()
    assert whole is not None  # refused above
    assert apart is not None
    assert unseen is not None
    return Dataset(
        name,
        classes,
        IGNORE_INDEX,
        whole,
        apart,
        partial(_validation, name, dict(options), reading),
        unseen_contents=unseen.contents,
        ignore_stated=ignored is not None,
    )


def _given(name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Call the function and check the keys of the mapping that it returns."""
    owner = f"data set `{name}`"
    function = _function(name, options)
    with users_code(f"{owner}: the function fails", DataError, passing=SearchError):
        given: Mapping[str, Any] = function(**options)
    keys = set(given) if isinstance(given, Mapping) else set()
    if not set(REQUIRED) <= keys <= {*REQUIRED, *OPTIONAL}:
        what = f"the keys {cut(', '.join(map(str, given)))}" if isinstance(given, Mapping) else type(given).__name__
        raise DataError(
            f"{owner}: the function must return a mapping with the keys {', '.join(REQUIRED)}, optionally "
            f"{' and '.join(OPTIONAL)}, got {what}."
        )
    return given


def _ignored(owner: str, given: Any, classes: int) -> int:
    """The label of ignored pixels."""
    if given is None:
        return IGNORE_INDEX
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or 0 <= given < classes:
        raise DataError(
            f"{owner}: ignore_index must be an integer that is no class (0..{classes - 1}), got {shown(given)}."
        )
    return int(given)


def _validation(name: str, options: Mapping[str, Any], reading: _Reading) -> Split:
    split = reading.split("validation", _given(name, options)["validation"])
    reading.refuse()
    assert split is not None  # refused above
    return split


@dataclass(frozen=True)
class _Reading:
    """Converts the items of data sets to arrays, and collects those that can't be used."""

    owner: str
    classes: int
    ignored: int
    mistakes: list[str] = field(default_factory=list)

    def length(self, part: str, items: Any) -> int:
        """The number of items of a part.

        Raises:
            DataError: It has no length, or is empty.
        """
        kind = "a data set with a length (`__len__`) and items (`__getitem__`)"
        what = f"{self.owner}: {part} must be {kind}, got {type(items).__name__}"
        with users_code(what, DataError, passing=SearchError):
            count = len(items)
        if not count:
            raise DataError(f"{self.owner}: {part} is empty.")
        return count

    def split(self, part: str, items: Any, numbers: Sequence[int] | None = None) -> Split | None:
        """Read items of a part, all by default; None if some can't be used.

        Raises:
            DataError: The part has no length, is empty, or does not fit in the memory.
        """
        numbers = range(self.length(part, items)) if numbers is None else numbers
        images = labels = None
        mistakes: list[str] = []
        for place, number in enumerate(numbers):
            try:
                image, classes = self._pair(items, number)
                if images is None or labels is None:
                    shape = classes.shape
                    self._check_memory(part, len(numbers), shape)
                    images, labels = (np.empty((len(numbers), *more, *shape), np.uint8) for more in ((3,), ()))
                if not image.shape[1:] == classes.shape == labels.shape[1:]:
                    sizes = f"image {image.shape[1:]}, labels {classes.shape}, the first labels {labels.shape[1:]}"
                    raise _UnusableItem(f"all must have one size (height, width), got {sizes}")
                images[place], labels[place] = image, classes
            except _UnusableItem as error:
                mistakes.append(f"{part}[{number}]: {error}")
            if len(mistakes) == _MOST:
                break
        self.mistakes.extend(mistakes)
        return None if mistakes or images is None or labels is None else Split(images, labels)

    def refuse(self) -> None:
        """Raise an error that lists the items that can't be used, if there are any."""
        if self.mistakes:
            raise DataError(f"{self.owner}: {listing({UNUSABLE: self.mistakes})}")

    def _pair(self, items: Any, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        try:
            item = items[number]
            if isinstance(item, Mapping) or not hasattr(item, "__len__") or len(item) != 2:
                kind = f"{type(item).__name__}{f' of length {len(item)}' if hasattr(item, '__len__') else ''}"
                raise _UnusableItem(f"an item must be a pair of an image and a label map, got {kind}")
            image, labels = item
            return _pixels(image), self._labels(labels)
        except (_UnusableItem, KeyboardInterrupt, SearchError):
            raise
        except BaseException as error:
            raise _UnusableItem(where(error)) from None

    def _check_memory(self, part: str, count: int, shape: tuple[int, ...]) -> None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        needed = 4 * count * math.prod(shape)
        if needed > memory:
            raise DataError(
                f"{self.owner}: {part} has {count} images, which take {needed / 2**30:.3g} GiB, more than the "
                f"{memory / 2**30:.3g} GiB of this machine's memory. If its length is right, return smaller images."
            )

    def _labels(self, value: Any) -> NDArray[np.uint8]:
        array = _array(value)
        labels = array[0] if array.ndim == 3 and len(array) == 1 else array
        if labels.ndim != 2 or labels.dtype.kind not in "iub":
            raise _UnusableItem(f"labels must be integers of shape (H, W), got {array.dtype} of shape {array.shape}")
        ignored = labels == self.ignored
        wrong = np.unique(labels[~ignored & ((labels < 0) | (labels >= self.classes))])
        if len(wrong):
            found = ", ".join(map(str, wrong[:8].tolist()))
            raise _UnusableItem(f"labels must be 0..{self.classes - 1}, and {self.ignored} (ignored), got {found}")
        return np.where(ignored, IGNORE_INDEX, labels).astype(np.uint8)


class _UnusableItem(Exception):  # noqa: N818 - a finding, which never leaves this module
    """Why an item can't be used."""


def _pixels(value: Any) -> NDArray[np.uint8]:
    """An image as uint8, (3, H, W)."""
    array = _array(rgb(value)).transpose(2, 0, 1) if isinstance(value, Image.Image) else _array(value)
    image = array[None] if array.ndim == 2 else array
    if image.ndim != 3 or len(image) not in (1, 3) or not image.size:
        raise _UnusableItem(f"an image must have shape (3, H, W), (1, H, W) or (H, W), got {array.shape}")
    if image.dtype.kind == "f":
        if not 0 <= image.min() <= image.max() <= 1:
            limits = f"{image.min():g} to {image.max():g}"
            raise _UnusableItem(f"a floating image must lie in [0, 1], got {limits}; leave normalisation to the proxy")
        image = np.rint(255 * image).astype(np.uint8)
    if image.dtype != np.uint8:
        raise _UnusableItem(f"an image must be uint8 or floating, got {image.dtype}")
    return np.broadcast_to(image, (3, *image.shape[1:]))


def _array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
