"""A real fluorescence microscopy image of nuclei, read from the installed stardist package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image

from autosegloss.proxy.data import IGNORE_INDEX, Dataset, Read, Split
from autosegloss.proxy.data.package_files import package_file

FILES = ("img2d.tif", "mask2d.tif")
TILE = 64
# 480 of the 512 columns, in whole tiles for the two splits that are scored, with 16 columns between any two.
COLUMNS = {"train": (0, 224), "heldout": (240, 368), "validation": (384, 512)}


def load() -> Read:
    """The nuclei: background, interior and border of each nucleus.

    One image of 512x512 pixels is split by columns with gaps of 16. Tiles of the training part overlap; those of the
    other two do not, so that no pixel is scored twice.

    Returns:
        A function that reads 319 training, 16 held-out and 16 validation tiles of 64x64; the grey image fills
            all three channels.

    Raises:
        DataError: The package that ships the image is not installed.

    Reference: the test image of stardist (BSD-3-Clause), from Caicedo et al., Nucleus segmentation across imaging
    experiments: the 2018 Data Science Bowl, Nature Methods 16, 2019.
    """
    for file in FILES:
        _path(file)
    return _dataset


def _dataset() -> Dataset:
    image, nuclei = map(_read, FILES)
    labels = _classes(nuclei)
    train, heldout, validation = (
        _tiles(image[:, start:stop], labels[:, start:stop], stride=TILE // 4 if name == "train" else TILE)
        for name, (start, stop) in COLUMNS.items()
    )
    return Dataset("nuclei", ("background", "interior", "border"), IGNORE_INDEX, train, heldout, validation)


def _path(name: str) -> Path:
    return package_file("nuclei", "stardist", f"data/images/{name}", "the image")


def _read(name: str) -> NDArray[np.uint16]:
    with Image.open(_path(name)) as file:
        return np.asarray(file, dtype=np.uint16)


def _classes(nuclei: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Turn numbered nuclei into classes; the border is each nucleus' outermost pixel, where nuclei touch too."""
    uniform = scipy.ndimage.minimum_filter(nuclei, size=3, mode="nearest") == scipy.ndimage.maximum_filter(
        nuclei, size=3, mode="nearest"
    )
    return np.where(nuclei == 0, 0, np.where(uniform, 1, 2)).astype(np.uint8)


def _tiles(image: NDArray[np.uint16], labels: NDArray[np.uint8], stride: int) -> Split:
    corners = [
        (row, column)
        for row in range(0, image.shape[0] - TILE + 1, stride)
        for column in range(0, image.shape[1] - TILE + 1, stride)
    ]
    grey = np.stack([image[row : row + TILE, column : column + TILE] for row, column in corners]).astype(np.uint8)
    return Split(
        images=np.repeat(grey[:, None], 3, axis=1),
        labels=np.stack([labels[row : row + TILE, column : column + TILE] for row, column in corners]),
    )
