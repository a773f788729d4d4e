"""Data sets for proxies: each is one module with a function `load(**options) -> Dataset`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autosegloss.errors import DataError

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
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


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
    """

    name: str
    classes: tuple[str, ...]
    ignore_index: int
    train: Split
    heldout: Split
    validation: Split


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
        raise DataError(f"unknown data set `{name}`{_did_you_mean(name, READERS)}; known: {', '.join(READERS)}.")
    load: Callable[..., Dataset] = importlib.import_module(READERS[name]).load
    known = list(inspect.signature(load).parameters)
    for option in options:
        if option not in known:
            allowed = f"its options: {', '.join(known)}" if known else "it has no options"
            raise DataError(f"data set `{name}`: unknown option `{option}`{_did_you_mean(option, known)}; {allowed}.")
    return load(**options)


def _did_you_mean(given: str, known: dict[str, str] | list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""
