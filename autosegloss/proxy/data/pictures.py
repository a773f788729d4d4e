"""Finding and reading picture files and label maps."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from autosegloss.errors import DataError

LabelMap = NDArray[np.int64]

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""The endings of picture files."""
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16")  # Pillow's modes of a grey or palette PNG
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # its modes that become RGB whole


def files_by_name(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """The files below a folder with one of the endings, by path without ending; hidden files are skipped.

    Raises:
        DataError: The folder is missing or holds no such file, two files have the same name, or a name is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        ending = next((ending for ending in endings if path.name.lower().endswith(ending.lower())), None)
        place = path.relative_to(folder)
        if ending is None or path.is_dir() or any(part.startswith(".") for part in place.parts):
            continue
        name = unicodedata.normalize("NFC", place.as_posix()[: -len(ending)])
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"{str(path)!a}: the name is not valid UTF-8; rename the file.")
        if name in found:
            raise DataError(f"{path} and {found[name]} have the same name; files are paired by name.")
        found[name] = path
    if not found:
        raise DataError(f"{folder}: no {', '.join(endings)} file in this folder or below it.")
    return found


def read_labels(path: Path) -> LabelMap:
    """The labels of a PNG file, (height, width): its grey values, 1 to 16 bits, or its palette's indices.

    Raises:
        DataError: The file is damaged, not a PNG file, or has more than one channel.
    """
    try:
        with path.open("rb") as file:
            header = file.read(26)
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            if image.mode not in _ONE_CHANNEL:
                bands = ", ".join(image.getbands())
                raise DataError(f"a label map must have one channel, grey (1 to 16 bits) or palette, got {bands}")
            labels = np.asarray(image).astype(np.int64)
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise DataError(why_unreadable(error, "PNG")) from None
    bits, colour_type = header[24], header[25]
    if colour_type == 0 and bits in (2, 4):  # Pillow stretches these to 0..255
        labels //= 255 // (2**bits - 1)
    return labels


def read_picture(path: Path) -> Image.Image:
    """The picture in a file, in RGB.

    Raises:
        DataError: The file is damaged, not a picture, or has more than 8 bits per channel, whose range is unknown.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in _EIGHT_BITS:
                raise DataError(f"a picture must have 8 bits per channel, got Pillow's mode {image.mode}")
            picture: Image.Image = image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # likewise
        raise DataError(why_unreadable(error, "picture")) from None
    return picture


def why_unreadable(error: Exception, wanted: str) -> str:
    """The message for a file that Pillow can't read."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a {wanted}"
    if isinstance(error, OSError) and error.strerror:  # of the system, not of the decoder
        return error.strerror
    return f"damaged: {error}"
