"""Data sets for proxies: each is one module with a function `load(**options) -> Dataset`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autosegloss.errors import AutoseglossError, DataError

IGNORE_INDEX = 255

READERS = {
    "nuclei": "autosegloss.proxy.data.nuclei",
    "shapes": "autosegloss.proxy.data.shapes",
}


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Args:
        images: Colours, uint8 of shape (N, 3, H, W).
        labels: Class numbers, uint8 of shape (N, H, W); `Dataset.ignore_index` marks pixels that do not count.
        annotations: The maps of A annotators, like `labels`, (N, A, H, W); `labels` then is their majority vote.
        soft: What training has for its target in place of `labels`: shares of each class, float16 of shape
            (N, C, H, W). Pixels that do not count are those of `labels`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    annotations: NDArray[np.uint8] | None = None
    soft: NDArray[np.float16] | None = None


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of one data set.

    Args:
        name: The name `load_dataset` knows it by.
        classes: Names of the classes, in label order.
        ignore_index: The label of pixels that do not count.
        train: What proxies train on.
        heldout: The part of the training set that rewards come from.
        validation: What final tables are about; a search never sees it.
        note: What a table of results has to say about the data, in a sentence.
    """

    name: str
    classes: tuple[str, ...]
    ignore_index: int
    train: Split
    heldout: Split
    validation: Split
    note: str = ""


def load_dataset(name: str, **options: object) -> Dataset:
    """Load a data set by name.

    Args:
        name: One of `READERS`.
        **options: What the reader's `load` takes.

    Returns:
        The data set; the same name and options always give the same arrays.

    Raises:
        DataError: The name or an option is unknown, or the files of the data set are missing.
    """
    if name not in READERS:
        raise DataError(f"unknown data set `{name}`{did_you_mean(name, READERS)}; known: {', '.join(READERS)}.")
    load: Callable[..., Dataset] = importlib.import_module(READERS[name]).load
    check_options(f"data set `{name}`", load, options)
    return load(**options)


def check_options(
    owner: str,
    takes: Callable[..., object] | Sequence[str],
    options: Iterable[str],
    error: type[AutoseglossError] = DataError,
) -> None:
    """Raise an error for an option that there is not.

    Args:
        owner: What the options are of, for the message.
        takes: The names of all options, or a function whose parameters they are.
        options: The names given.
        error: The kind of error.
    """
    known = list(inspect.signature(takes).parameters) if callable(takes) else list(takes)
    for option in options:
        if option not in known:
            allowed = f"its options: {', '.join(known)}" if known else "it has no options"
            raise error(f"{owner}: unknown option `{option}`{did_you_mean(option, known)}; {allowed}.")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The name that was probably meant, as the end of a message; nothing if none is alike."""
    close = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""
