"""Data sets for proxies: each is one module with a function `load(**options) -> Dataset`.

Those that are read from files decode and resize them once, see `autosegloss.proxy.data.files`.
"""

from __future__ import annotations

import importlib
import inspect
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autosegloss.errors import AutoseglossError, DataError, did_you_mean

IGNORE_INDEX = 255

READERS = {
    name: f"autosegloss.proxy.data.{name}"
    for name in ("ade20k", "cityscapes", "folder", "mni152", "nuclei", "shapes", "voc")
}


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

    def __getstate__(self) -> dict[str, Any]:
        return {name: Path(each.filename).absolute() if _is_file(each) else each for name, each in vars(self).items()}

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
        unseen: The validation set, or a function that reads it when first used.
        note: A sentence on the data for tables of results.
        whole: A function that reads the whole training set; None joins `train` and `heldout`.
        full_size: The number of validation images, and a function that reads one by index: the image (3, h, w) and the
            labels (H, W) at full size; None if the arrays have the full size.
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

    @cached_property
    def validation(self) -> Split:
        """The validation set, for final results only; rewards never come from it."""
        return self.unseen if isinstance(self.unseen, Split) else self.unseen()

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
