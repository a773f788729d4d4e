"""Slices of a brain, the MNI152 template, read from the installed nilearn package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autosegloss.errors import DataError
from autosegloss.proxy.data import IGNORE_INDEX, Dataset, Read, Split
from autosegloss.proxy.data.package_files import package_file
from autosegloss.proxy.imports import import_extra

FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
KINDS = ("t1", "gm", "wm")
# Of the grid of 197 x 233 x 189 mm: one hemisphere up to its midline, and the height of the brain.
HEMISPHERE, HEIGHT = slice(3, 99), slice(0, 160)
# Coronal slices of each split, from back to front, first and last; between any two blocks 8 are left out.
BLOCKS = {
    "train": ((28, 47), (74, 93), (120, 139), (166, 185)),
    "heldout": ((102, 111), (194, 203)),
    "validation": ((56, 65), (148, 157)),
}
NOTE = "MNI152 is one brain, the average of 152; its splits are blocks of slices, at least 9 mm apart."


def load() -> Read:
    """Slices of the MNI152 template: background, grey and white matter, on a grid of 1 mm.

    It is one average brain and exactly mirror-symmetric: only one hemisphere is taken. Blocks of coronal slices take
    turns, with gaps of 8 slices. A pixel is of the class whose probability in the template's maps is the highest;
    background is what neither of the two maps claims.

    Returns:
        A function that reads 80 training, 20 held-out and 20 validation slices of 160x96; the grey image fills
            all three channels.

    Raises:
        DataError: The package that ships the template is not installed.

    Reference: Fonov et al., Unbiased average age-appropriate brain templates from birth to adulthood, NeuroImage 47,
    2009; the ICBM 152 non-linear symmetric template, version 2009a.
    """
    for kind in KINDS:
        _path(kind)
    return _dataset


def _dataset() -> Dataset:
    image, grey, white = map(_read, KINDS)
    neither = 255 - np.minimum(grey.astype(np.int16) + white, 255)
    labels: NDArray[np.uint8] = np.stack([neither, grey, white]).argmax(axis=0).astype(np.uint8)
    train, heldout, validation = (
        _slices(image, labels, [number for first, last in blocks for number in range(first, last + 1)])
        for blocks in BLOCKS.values()
    )
    classes = ("background", "grey matter", "white matter")
    return Dataset("mni152", classes, IGNORE_INDEX, train, heldout, validation, NOTE)


def _path(kind: str) -> Path:
    return package_file("mni152", "nilearn", f"datasets/data/{FILE.format(kind)}", "the template")


def _read(kind: str) -> NDArray[np.uint8]:
    path = _path(kind)
    nibabel = import_extra("nibabel", "slices of data set `mni152`", "samples", DataError)
    return np.asarray(nibabel.load(path).dataobj, dtype=np.uint8)


def _slices(image: NDArray[np.uint8], labels: NDArray[np.uint8], numbers: list[int]) -> Split:
    """Coronal slices (N, height, width), upright."""
    pictures, maps = (
        np.ascontiguousarray(grid[HEMISPHERE, numbers, HEIGHT].transpose(1, 2, 0)[:, ::-1]) for grid in (image, labels)
    )
    return Split(np.repeat(pictures[:, None], 3, axis=1), maps)
