"""Data sets for proxies: each is one module with a function `load(**options) -> Read`.

It checks the options and the names of files, and returns the function that reads them. Those that are read from files
decode and resize them once, see `autosegloss.proxy.data.cache`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autosegloss.errors import EXAMPLES, AutoseglossError, DataError, cut, did_you_mean, shown
from autosegloss.proxy.users_code import parameters_of

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
class MaskValue:
    """A value of the label maps in files.

    Args:
        value: The value, as a user writes it.
        label: The class that it stands for, or the label of ignored pixels.
        pixels: Number of pixels at full size, in all parts.
    """

    value: str
    label: int
    pixels: int


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
        DataError: The file can't be read, or is damaged.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="c")
    except OSError as error:
        raise DataError(
            f"{path}: can't be read: {error.strerror or error}. Decoded images are shared as files: all machines of a "
            "cluster need the same cache folder (proxy.data.cache), and it must stay there while a search runs."
        ) from None
    except Exception as error:  # NumPy raises many kinds on damaged headers
        raise DataError(f"{path}: damaged: {cut(str(error))}. Run the command again, which makes it anew.") from None
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
        values: The values of the label maps, if they are read from files.
        names: Names of the validation images, if they are read from files.
        ignore_stated: Whether the user or the data set says which labels are ignored; False if it is a default.
        remarks: Further warnings, of the reader.
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
    values: tuple[MaskValue, ...] = ()
    names: tuple[str, ...] = ()
    ignore_stated: bool = True
    remarks: tuple[str, ...] = ()

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

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is probably a mistake in the data, in full sentences; to be shown before any work."""
        contents = self.contents
        found = [f"data set `{self.name}`: {remark}" for remark in self.remarks]
        for parts, where, why in (
            (("train", "heldout"), "training and held-out labels", "no loss can learn what is not there"),
            (("validation",), "validation labels", "final results say nothing about {}"),
        ):
            pixels = [sum(contents[part].pixels[label] for part in parts) for label in range(len(self.classes))]
            if absent := [name for name, count in zip(self.classes, pixels, strict=True) if not count]:
                names = f"class {_names(absent)} has" if len(absent) == 1 else f"classes {_names(absent)} have"
                about = why.format("it" if len(absent) == 1 else "them")
                found.append(self._message(f"{names} no pixel in the {where}: {about}."))
        return tuple(found)

    def check(self) -> Dataset:
        """This data set, unless its labels can't be meant.

        Raises:
            DataError: The training labels have fewer than two classes; or some class has no pixel, while others are
                ignored by a default that nobody stated.
        """
        totals = np.sum([each.pixels for each in self.contents.values()], axis=0)
        if self.values:  # the masks at full size: the smallest object may be lost by resizing
            totals = np.zeros(256, np.int64)
            np.add.at(totals, [each.label for each in self.values], [each.pixels for each in self.values])
        absent = [label for label in range(len(self.classes)) if not totals[label]]
        ignored = self.ignore_index
        if not self.ignore_stated and absent and totals[ignored]:
            one = absent[0]
            others = "" if len(absent) == 1 else f" (nor has any pixel {_names([self.classes[i] for i in absent[1:]])})"
            mapped = "{0: 0, 255: 1}" if len(self.classes) == 2 and one == 1 else f"{{..., 255: {one}}}"
            otherwise = f"map it: `values: {mapped}`" if self.values else f"give it the label {one}"
            raise DataError(
                self._message(
                    f"{totals[ignored] / totals.sum():.1%} of the pixels are {ignored}, which is read as ignored by "
                    f"default, but class {one}, {_names([self.classes[one]])}, has no pixel{others}.",
                    f"If {ignored} marks ignored pixels, set `ignore_index: {ignored}`; if it marks a class, "
                    f"{otherwise}.",
                )
            )
        if sum(map(bool, self.train.contents.pixels[: len(self.classes)])) < 2:
            only = [name for name, count in zip(self.classes, self.train.contents.pixels, strict=False) if count]
            what = _names(only) if only else "ignored"
            raise DataError(
                self._message(f"the training labels must hold at least two classes, but all pixels are {what}.")
            )
        return self

    def held(self) -> str:
        """The values of the masks and what they stand for, in a sentence; empty if they are not read from files."""
        names = {self.ignore_index: "ignored"} | {
            label: f"`{cut(name, 40)}`" for label, name in enumerate(self.classes)
        }
        shown = [f"{each.value} ({names[each.label]})" for each in self.values]
        more = f" and {len(shown) - EXAMPLES} other values" if len(shown) > EXAMPLES else ""
        return f"The masks hold {', '.join(shown[:EXAMPLES])}{more}." if shown else ""

    def _message(self, what: str, then: str = "") -> str:
        return " ".join(filter(None, (f"data set `{self.name}`: {what}", self.held(), then)))

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


Read: TypeAlias = Callable[[], Dataset]
"""Reads a data set."""


def load_dataset(name: str, **options: object) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of `READERS`, or `module:function` for your own data, see `autosegloss.proxy.data.custom`.
        **options: Arguments of the reader's `load`, or of the function.

    Returns:
        The data set; the same name and options always give the same arrays.

    Raises:
        DataError: The name or an option is unknown, files of the data set are missing or can't be used, or its labels
            can't be meant, see `Dataset.check`.
    """
    return reader(name, options)().check()


def reader(name: str, options: Mapping[str, Any]) -> Read:
    """The function that reads a data set; its name, its options and the names of its files are checked by then.

    Raises:
        DataError: The name or an option is unknown, an option is missing or wrong, or files are missing.
        InputError: The function `module:function` can't be imported.
    """
    if ":" in name:
        own: Callable[..., Read] = importlib.import_module("autosegloss.proxy.data.custom").load
        return own(name, options)
    if name not in READERS:
        raise DataError(
            f"unknown data set `{cut(name)}`{did_you_mean(name, READERS)}; known: {', '.join(READERS)}, and "
            "`module:function` for your own."
        )
    load: Callable[..., Read] = importlib.import_module(READERS[name]).load
    check_options(f"data set `{name}`", load, options)
    for option, parameter in inspect.signature(load).parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise DataError(f"data set `{name}`: missing option `{option}`; set proxy.data.{option}.")
    return load(**options)


def _names(names: Sequence[str]) -> str:
    """Names of classes for a message."""
    shown = [f"`{cut(name, 40)}`" for name in names[:EXAMPLES]]
    return ", ".join(shown) + (f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else "")


def listing(causes: Mapping[str, Sequence[str]], room: int = 700) -> str:
    """Mistakes for a message: each cause in a line with its number, and examples below it.

    Args:
        causes: The examples of each cause. A folder with which all of them begin is named once.
        room: The largest number of characters for all examples.
    """
    each, texts = room // max(1, len(causes)), []
    for cause, lines in causes.items():
        same = os.path.commonprefix(list(lines))  # noqa: RUF071 - what follows a path is no path
        folder = same.rpartition("/")[0] if len(lines) > 1 else ""
        place = f", in {cut(folder)}" if len(folder) > 1 else ""
        rest = [line[len(folder) + 1 :] for line in lines] if place else lines
        texts.append(f"{cause} ({len(lines)}){place}:{examples(rest, room=each)}")
    return "\n".join(texts)


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
    if callable(takes):
        parameters = parameters_of(takes)
        if parameters is None or any(each.kind is each.VAR_KEYWORD for each in parameters):
            return
        known = [each.name for each in parameters]
    else:
        known = list(takes)
    for option in options:
        if option not in known:
            allowed = ", ".join(known) or "none"
            raise error(f"{owner}: unknown option `{cut(option)}`{did_you_mean(option, known)}; allowed: {allowed}.")


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
    raise DataError(
        f"{owner}: classes must be 2 to {IGNORE_INDEX} distinct names or their number, got {shown(classes)}."
    )
