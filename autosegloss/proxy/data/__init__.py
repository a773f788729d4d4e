"""Data sets for proxies: each is one module with a function `load(**options) -> Dataset`.

Those that are read from files decode and resize them once, see `autosegloss.proxy.data.files`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autosegloss.errors import EXAMPLES, AutoseglossError, DataError, cut, did_you_mean

IGNORE_INDEX = 255
_CHUNK = 2**24  # bytes that are hashed and counted at a time: an array may be larger than the memory

READERS = {
    name: f"autosegloss.proxy.data.{name}"
    for name in ("ade20k", "cityscapes", "folder", "mni152", "nuclei", "shapes", "voc")
}


@dataclass(frozen=True)
class Contents:
    """What a split holds, in numbers that are small whatever the images are.

    Args:
        images: Number of images.
        pixels: Number of pixels of each label 0..255.
        digest: SHA-256 of images, labels and annotations: their shapes, types and values.
    """

    images: int
    pixels: tuple[int, ...]
    digest: str

    @classmethod
    def of(cls, split: Split) -> Contents:
        """Read a split once, a chunk at a time."""
        hashed, pixels = hashlib.sha256(), np.zeros(256, np.int64)
        for name in ("images", "labels", "annotations"):
            array = getattr(split, name)
            if array is None:
                continue
            hashed.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            step = max(1, _CHUNK * len(array) // max(1, array.nbytes))
            for start in range(0, len(array), step):
                chunk = np.ascontiguousarray(array[start : start + step])
                hashed.update(chunk.data)
                if name == "labels":
                    pixels += np.bincount(chunk.ravel(), minlength=256)
        return cls(len(split.images), tuple(pixels.tolist()), hashed.hexdigest())


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Memory-mapped arrays are pickled as the paths of their files, so that the processes of a machine share one copy.

    Args:
        images: Colours, uint8 of shape (N, 3, H, W).
        labels: Class numbers, uint8 of shape (N, H, W); `Dataset.ignore_index` marks ignored pixels.
        annotations: The maps of A annotators, (N, A, H, W); `labels` is then their majority vote.
        soft: The target of training in place of `labels`: shares of each class, float16 of shape (N, C, H, W). The
            ignored pixels are those of `labels`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    annotations: NDArray[np.uint8] | None = None
    soft: NDArray[np.float16] | None = None

    @cached_property
    def contents(self) -> Contents:
        """What the split holds."""
        return Contents.of(self)

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: Path(each.filename).absolute() if _is_file(each) else each for name, each in state.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: open_array(each) if isinstance(each, Path) else each for name, each in state.items()})


def open_array(path: Path) -> NDArray[Any]:
    """The memory-mapped array of a .npy file; changes stay in this process.

    Raises:
        DataError: The file can't be read.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="c")
    except OSError as error:
        raise DataError(
            f"{path}: can't be read: {error.strerror}. Decoded images are shared as files: all machines of a "
            "cluster need the same cache folder (proxy.data.cache), and it must stay there while a search runs."
        ) from None
    return array


def _is_file(array: object) -> bool:
    """Whether an array is the whole of a mapped file; a part of one has the array for its base, not the map."""
    return isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of one data set.

    Args:
        name: The name for `load_dataset`.
        classes: Names of the classes, in label order.
        ignore_index: The label of ignored pixels.
        train: The training images of proxies.
        heldout: The part of the training set that rewards come from.
        unseen: The validation set, or a function that reads it; processes then read their own copy when they need one.
        note: A sentence on the data for tables of results.
        whole: A function that reads the whole training set; None joins `train` and `heldout`.
        full_size: The number of validation images, and a function that reads one by index: the image (3, h, w) and the
            labels (H, W) at full size; None if the arrays have the full size.
        unseen_contents: What `unseen` holds, if it is a function and this is known already.
    """

    name: str
    classes: tuple[str, ...]
    ignore_index: int
    train: Split
    heldout: Split
    unseen: Split | Callable[[], Split]
    note: str = ""
    whole: Callable[[], Split] | None = None
    full_size: tuple[int, Callable[[int], tuple[NDArray[np.uint8], NDArray[np.uint8]]]] | None = None
    unseen_contents: Contents | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # no validation set that was read

    @cached_property
    def validation(self) -> Split:
        """The validation set, for final results only; rewards never come from it."""
        return self.unseen if isinstance(self.unseen, Split) else self.unseen()

    @cached_property
    def contents(self) -> dict[str, Contents]:
        """What each part holds: `train`, `heldout` and `validation`."""
        validation = self.unseen_contents
        if validation is None:  # read and dropped, unless it is in memory anyway
            kept = "validation" in vars(self)
            validation = (self.validation if kept or isinstance(self.unseen, Split) else self.unseen()).contents
        return {"train": self.train.contents, "heldout": self.heldout.contents, "validation": validation}

    def fingerprint(self) -> dict[str, str]:
        """A hash of each part (`train`, `heldout`, `validation`) and of the names of the `classes`.

        Equal data have equal fingerprints on every machine and in every cache: paths and times do not count, the order
        of the images does.
        """
        classes = hashlib.sha256(json.dumps([self.classes, self.ignore_index]).encode()).hexdigest()
        return {part: contents.digest for part, contents in self.contents.items()} | {"classes": classes}

    def all_training(self) -> Split:
        """The training images including the held-out ones."""
        if self.whole is not None:
            return self.whole()
        one, other = self.train, self.heldout
        annotations = None
        if one.annotations is not None and other.annotations is not None:
            annotations = np.concatenate([one.annotations, other.annotations])
        images, labels = (np.concatenate(pair) for pair in ((one.images, other.images), (one.labels, other.labels)))
        return Split(images, labels, annotations)

    def validation_images(self, start: int = 0, step: int = 1) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Every `step`-th validation image (3, h, w) from `start` on, with its full-size labels (H, W)."""
        number, read = self.full_size or (len(self.validation.images), self._of_the_arrays)
        return map(read, range(start, number, step))

    def _of_the_arrays(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return self.validation.images[number], self.validation.labels[number]


def load_dataset(name: str, **options: object) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of `READERS`, or `module:function` for your own data, see `autosegloss.proxy.data.custom`.
        **options: Arguments of the reader's `load`, or of the function.

    Returns:
        The data set; the same name and options always give the same arrays.

    Raises:
        DataError: The name or an option is unknown, or files of the data set are missing or can't be used.
    """
    if ":" in name:
        own: Callable[..., Dataset] = importlib.import_module("autosegloss.proxy.data.custom").load
        return own(name, options)
    if name not in READERS:
        raise DataError(
            f"unknown data set `{name}`{did_you_mean(name, READERS)}; known: {', '.join(READERS)}, and "
            "`module:function` for your own."
        )
    load: Callable[..., Dataset] = importlib.import_module(READERS[name]).load
    check_options(f"data set `{name}`", load, options)
    for option, parameter in inspect.signature(load).parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise DataError(f"data set `{name}`: missing option `{option}`; set proxy.data.{option}.")
    return load(**options)


def examples(lines: Iterable[str], most: int = EXAMPLES, room: int = 600) -> str:
    """The first lines of a list for a message, each indented on a line of its own, then the number of the others.

    Args:
        lines: The list.
        most: The largest number of lines.
        room: The largest number of characters; at least one line is shown, cut to 200 characters.
    """
    given, length = list(lines), 0
    shown: list[str] = []
    for line in given[:most]:
        text = f"\n  {cut(line)}"
        length += len(text)
        if shown and length > room:
            break
        shown.append(text)
    rest = len(given) - len(shown)
    return "".join(shown) + (f"\n  ... and {rest} more" if rest else "")


def check_options(
    owner: str,
    takes: Callable[..., object] | Sequence[str],
    options: Iterable[str],
    error: type[AutoseglossError] = DataError,
) -> None:
    """Raise an error for an unknown option.

    Args:
        owner: What the options belong to, for the message.
        takes: The names of all options, or a function with these parameters.
        options: The given names.
        error: The class of the error.
    """
    known = list(inspect.signature(takes).parameters) if callable(takes) else list(takes)
    for option in options:
        if option not in known:
            allowed = ", ".join(known) or "none"
            raise error(f"{owner}: unknown option `{option}`{did_you_mean(option, known)}; allowed: {allowed}.")


def class_names(owner: str, classes: object) -> tuple[str, ...]:
    """The names of classes, given as names or as their number.

    Raises:
        DataError: The value is neither, or there are fewer than 2 or more than 255 classes.
    """
    names = [str(number) for number in range(classes)] if type(classes) is int and classes < 256 else classes
    if (
        isinstance(names, list | tuple)
        and 2 <= len(names) <= IGNORE_INDEX
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    ):
        return tuple(names)
    raise DataError(f"{owner}: classes must be 2 to {IGNORE_INDEX} distinct names or their number, got {classes!r}.")
