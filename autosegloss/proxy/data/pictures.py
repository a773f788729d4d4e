"""What a picture and a label map are: finding their files, and reading every pixel at its worth or not at all.

Pillow cuts some files without a word: 16 bits per channel to 8, further channels and pages to the first ones. Therefore
the file's own header decides, not Pillow's mode.
"""

from __future__ import annotations

import os
import stat
import struct
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from autosegloss.errors import DataError, cut, shown

LabelMap = NDArray[np.int64]


class ColoursError(DataError):
    """A label map that holds colours, which `read_labels` reads with `colours`."""


PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""The endings of picture files."""
LABELS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")
"""The endings of label maps."""
COLOUR = -(1 << 40)
"""What is added to the 24 bits of a colour that is not grey, so that it is the value of no label map."""

_PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_LABEL_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B")  # Pillow's modes of integers
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # its modes that become RGB whole
_MODES = {"F": "floats", "I": "32-bit integers", "LAB": "CIE L*a*b* colours"} | {
    mode: "16 bits" for mode in ("I;16", "I;16B", "I;16L", "I;16N")
}
_PHOTOMETRIC: dict[int | None, str] = {
    0: "white is 0",
    1: "black is 0",
    2: "RGB",
    3: "palette",
    5: "CMYK",
    6: "YCbCr",
    8: "CIE L*a*b*",
}
_ORIENTATION = 0x0112
_NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def files_by_name(
    folder: Path, endings: tuple[str, ...], pattern: str = "{name}", without: frozenset[Path] = frozenset()
) -> dict[str, Path]:
    """The files below a folder with one of the endings, by path without ending; hidden files are skipped.

    Args:
        folder: The folder; links in it are followed.
        endings: The endings of the files, in upper or lower case.
        pattern: What a path looks like inside the folder, where `{name}` is the name; with one of the endings, only
            files with this one. Files that look otherwise are skipped.
        without: Files to skip.

    Raises:
        DataError: The folder is missing, can't be read or holds no such file, two files have the same name, or a name
            is not UTF-8 or has control characters.
    """
    if not _is_folder(folder):
        raise DataError(f"{cut(str(folder))}: no such folder.")
    before, _, after = pattern.partition("{name}")
    after, endings = after.lower(), tuple(map(str.lower, endings))
    ends = (after,) if after.endswith(endings) else tuple(after + ending for ending in endings)
    found: dict[str, Path] = {}
    others: set[str] = set()
    for path in sorted(_walk(folder)):
        place = path.relative_to(folder).as_posix()
        ending = next((ending for ending in ends if place.lower().endswith(ending)), None)
        above, slash, last = place[: -len(ending)].rpartition("/") if ending else ("", "", "")
        if not last.startswith(before) or last == before or path in without:
            others.add(path.suffix.lower())
            continue
        name = unicodedata.normalize("NFC", above + slash + last[len(before) :])
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(f"{str(path)!a}: the name is not valid UTF-8; rename the file.")
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise DataError(f"{str(path)!a}: the name has a control character; rename the file.")
        if name in found:
            raise DataError(f"{path} and {found[name]} have the same name; files are paired by name.")
        found[name] = path
    if not found:
        wanted = ", ".join(ends) if pattern == "{name}" else f"{before}*{{{', '.join(ends)}}}"
        there = f"; it holds {', '.join(sorted(others - {''})[:8])} files" if others - {""} else ""
        lossy = " (JPEG changes the values of masks)" if endings == LABELS and {".jpg", ".jpeg"} & others else ""
        raise DataError(f"{folder}: no {wanted} file in this folder or below it{there}{lossy}.")
    return found


def name_pattern(option: str, text: object) -> str:
    """The pattern of `files_by_name` for a suffix such as `_mask`, or for a pattern such as `gt_{name}.png`.

    Raises:
        DataError: The text is neither.
    """
    pattern = text if isinstance(text, str) and ("{" in text or "*" in text) else f"{{name}}{text}"
    before, mark, after = pattern.partition("{name}")
    if not isinstance(text, str) or not mark or len(pattern) > 200 or "/" in before or set("{}*") & set(before + after):
        raise DataError(
            f"{option} must be what follows the name, such as `_mask`, or a pattern with {{name}}, such as "
            f"`{{name}}_mask.png`, got {shown(text)}."
        )
    return pattern


def suffix_between(names: Iterable[str], others: Iterable[str]) -> str:
    """What turns all of some names into others: a suffix or a pattern as `name_pattern` reads it.

    Args:
        names: Paths without ending, such as `day/a`.
        others: Such paths, of which some may be left over.

    Returns:
        The shortest one, such as `_mask` or `gt_{name}`; empty if there is none.
    """
    places, there = [name.rpartition("/") for name in names], set(others)
    if not places:
        return ""
    (above, _, last), found = places[0], set()
    for other in there:
        folder, _, longer = other.rpartition("/")
        if folder == above and last in longer:
            before, _, after = longer.partition(last)
            if all(f"{a}{s}{before}{name}{after}" in there for a, s, name in places):
                found.add(after if not before else f"{before}{{name}}{after}")
    return min(found, key=lambda each: (len(each), each), default="")


def read_picture(path: Path, stretch: bool = False) -> Image.Image:
    """The picture in a file, in RGB, turned as its EXIF orientation says.

    Args:
        path: The file.
        stretch: Whether a grey picture of more than 8 bits or of floats, whose range is unknown, is stretched to the
            range of its values: good enough to be looked at.

    Raises:
        DataError: The file is damaged, not a picture, or holds more than 8 bits per channel, whose range is unknown;
            transparent pixels; several pages or frames; or channels beside those of a colour.
    """
    with _opened(path, _PICTURE_FORMATS, "picture") as (image, layout):
        if stretch and image.mode.startswith(("I", "F")):
            image.load()
            values = np.nan_to_num(
                np.asarray(ImageOps.exif_transpose(image), np.float64), nan=0.0, posinf=0.0, neginf=0.0
            )
            low, high = float(values.min()), float(values.max())
            return Image.fromarray(np.uint8(255 * (values - low) / max(high - low, 1e-12))).convert("RGB")
        _check_eight_bits(layout)
        return rgb(ImageOps.exif_transpose(image))


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture in a file as `read_picture` returns it, from its header alone.

    Raises:
        DataError: The file is damaged or not a picture.
    """
    with _opened(path, _PICTURE_FORMATS, "picture") as (image, layout):
        if layout.size is not None:
            return layout.size
        if image.format == "PNG" and layout.late:
            image.load()
        width, height = image.size
        return (width, height) if image.getexif().get(_ORIENTATION) in (5, 6, 7, 8) else (height, width)


def rgb(image: Image.Image) -> Image.Image:
    """A picture in RGB.

    CMYK is converted without its colour profile. An alpha channel is dropped where it is opaque everywhere.

    Raises:
        DataError: The picture has more than 8 bits per channel, another kind of colours, or transparent pixels.
    """
    if image.mode not in _EIGHT_BITS:
        kind = _MODES.get(image.mode, f"Pillow's mode {image.mode}")
        raise DataError(f"a picture must have 8 bits per channel, got {kind}; scale its values to 0..255")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image)[..., 3]
        if (alpha < 255).any():
            raise DataError(
                f"{(alpha < 255).mean():.1%} of the pixels are transparent, and what is behind them is unknown; lay "
                "the picture on a background and drop its alpha channel"
            )
    return image.convert("RGB")


def read_labels(path: Path, colours: bool = False) -> LabelMap:
    """The labels of a PNG, TIFF, BMP, GIF or .npy file, (height, width), turned as its EXIF orientation says.

    They are the grey values of 1 to 16 bits (TIFF also 32), the indices of a palette (in GIF and BMP, which have no
    other greys: the values of a palette of greys), or the integers of an array.

    Args:
        path: The file.
        colours: Read what has up to 8 bits per channel as colours: a grey by its value 0..255, another colour as
            `COLOUR` + 0xRRGGBB.

    Raises:
        ColoursError: The file has more than one channel, and `colours` is False.
        DataError: The file is damaged or of another kind, has more than one channel (with `colours`: is no picture), or
            several pages or frames.
    """
    with _regular(path) as file:
        if file.read(len(_NPY)) == _NPY:
            try:
                return _read_array(file)
            except DataError:
                raise
            except Exception as error:  # NumPy raises many kinds on damaged headers
                raise DataError(f"damaged: {error}") from None
    with _opened(path, _LABEL_FORMATS, "PNG, TIFF, BMP, GIF or .npy file") as (image, layout):
        image.load()
        if colours and image.mode in _EIGHT_BITS:
            _check_eight_bits(layout)
            return _colour_values(np.asarray(rgb(ImageOps.exif_transpose(image))).astype(np.int64))
        if image.mode not in _ONE_CHANNEL or layout.channels not in (None, 1):
            bands = ", ".join(image.getbands())
            if layout.channels not in (None, len(image.getbands())):
                bands = f"{layout.channels} channels"
            kind = ColoursError if image.mode in _EIGHT_BITS and layout.bits <= 8 else DataError
            raise kind(
                "a label map must have one channel, grey (1 to 16 bits) or palette, "
                f"got {'floats' if image.mode == 'F' else bands}"
            )
        if layout.white_is_zero and layout.bits > 8:
            raise DataError("a TIFF of 16 bits whose white is 0; store it with black as 0")
        stretched = 255 // (2**layout.bits - 1) if image.mode == "L" and layout.bits in (2, 4) else 1  # by Pillow
        labels: LabelMap = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64) // stretched
        if image.mode == "P" and image.format in ("GIF", "BMP"):  # which have no other way to store greys
            palette = np.reshape(image.getpalette() or [], (-1, 3))
            if (palette == palette[:, :1]).all():
                labels = palette[labels, 0].astype(np.int64)
        if layout.signed and layout.bits == 8:
            labels = labels.astype(np.int8).astype(np.int64)
        return labels if layout.signed or layout.bits != 32 else labels & 0xFFFFFFFF


def spelled(value: int) -> str:
    """A value of a label map as a user writes it: a number or `#rrggbb`."""
    return f"#{value - COLOUR:06x}" if COLOUR <= value < COLOUR + (1 << 24) else str(value)


def _colour_values(pixels: NDArray[np.int64]) -> LabelMap:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.where((red == green) & (green == blue), red, COLOUR + (red << 16) + (green << 8) + blue)


def _read_array(file: BinaryIO) -> LabelMap:
    """The integers of a .npy file; its header is checked before anything of its size is allocated."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise DataError(f"damaged: version {version} of the .npy format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.kind not in "iub" or len(shape) != 2 or min(shape) < 1:
        raise DataError(f"an array of labels must hold integers of shape (H, W), got {dtype} of shape {shape}")
    there, expected = os.fstat(file.fileno()).st_size - file.tell(), prod(shape) * dtype.itemsize
    if there != expected:
        raise DataError(f"damaged: {there} bytes of data, not {expected}")
    file.seek(0)
    array = np.load(file, allow_pickle=False)
    if dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise DataError("labels must be below 2 ** 63")
    labels: LabelMap = array.astype(np.int64)
    return labels


@dataclass(frozen=True)
class _Layout:
    """What the header of a file says of its pixels.

    Args:
        bits: Bits per channel.
        channels: Channels per pixel; None if it is for Pillow to say.
        floats: Whether they are floats.
        signed: Whether they are signed integers.
        photometric: What a TIFF says of its colours, tag 262.
        compression: How a TIFF is compressed, tag 259.
        size: Height and width, upright; None if it is for Pillow to say.
        late: Whether metadata follows the pixels.
    """

    bits: int = 8
    channels: int | None = None
    floats: bool = False
    signed: bool = False
    photometric: int | None = None
    compression: int = 1
    size: tuple[int, int] | None = None
    late: bool = False

    @property
    def white_is_zero(self) -> bool:
        """Whether the value 0 is white."""
        return self.photometric == 0

    def __str__(self) -> str:
        """The pixels of a TIFF, in words."""
        kind = "floats" if self.floats else "signed integers" if self.signed else "integers"
        channels = "1 channel" if self.channels == 1 else f"{self.channels or 'its'} channels"
        colours = _PHOTOMETRIC.get(self.photometric, str(self.photometric))
        unknown = "" if self.compression in TiffImagePlugin.COMPRESSION_INFO else f", compression {self.compression}"
        return f"{channels} of {self.bits}-bit {kind}, photometric interpretation {colours}{unknown}"


def _layout(file: BinaryIO) -> _Layout:
    start = file.read(26)
    if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR":
        bits, colour_type = start[24], start[25]
        return _Layout(bits, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour_type), late=_metadata_is_late(file))
    if start[:4] in _TIFF:
        directory = TiffImagePlugin.ImageFileDirectory_v2(start[: 16 if 43 in start[2:4] else 8])
        file.seek(directory.next)
        directory.load(file)
        tags = dict(directory)
        bits, formats = tags.get(258, (1,)), tags.get(339, (1,))
        width, height = tags[256], tags[257]
        return _Layout(
            max(bits),
            tags.get(277, None if tags.get(262) in (2, 6) else len(bits)),
            floats=3 in formats,
            signed=2 in formats,
            photometric=tags.get(262, 0),
            compression=tags.get(259, 1),
            size=(width, height) if tags.get(_ORIENTATION) in (5, 6, 7, 8) else (height, width),
        )
    return _Layout()


def _metadata_is_late(file: BinaryIO) -> bool:
    """Whether a PNG has metadata after its pixels, which Pillow reads with them."""
    seen = False
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if seen and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            return True
        seen |= kind == b"IDAT"
        file.seek(length + 4, os.SEEK_CUR)
    return False


def _check_eight_bits(layout: _Layout) -> None:
    if layout.bits > 8 or layout.floats or layout.signed:
        kind = "floats of " if layout.floats else "signed values of " if layout.signed else ""
        unit = " bits" if kind else ""
        raise DataError(
            f"a picture must have 8 bits per channel, got {kind}{layout.bits}{unit}; scale its values to 0..255"
        )


@contextmanager
def _regular(path: Path) -> Iterator[BinaryIO]:
    """A file that is open; a pipe, which would wait for its writer, is refused."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError("not a regular file but a folder, a pipe or a device")
        file = path.open("rb")
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None
    with file:
        yield file


@contextmanager
def _opened(path: Path, formats: tuple[str, ...], what: str) -> Iterator[tuple[Image.Image, _Layout]]:
    """An open picture file of one page, and what its header says; all errors become a DataError."""
    layout = _Layout()
    try:
        with _regular(path) as file:
            layout = _layout(file)
            if layout.channels is not None and layout.channels > 4:
                raise DataError(f"has {layout.channels} channels; a picture has 1 (grey), 3 (RGB) or 4 (RGBA, CMYK)")
            file.seek(0)
            with Image.open(file, formats=formats) as image:
                _check_pages(image)
                bands = len(image.getbands())
                if layout.bits <= 8 and layout.channels not in (None, bands):
                    raise DataError(f"has {layout.channels} channels, but those of its kind are {bands}")
                yield image, layout
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise DataError(_why_unreadable(error, what, path, layout)) from None


def _check_pages(image: Image.Image) -> None:
    pages = getattr(image, "n_frames", 1)
    if image.format == "MPO" and b"hdrgm:" in image.info.get("xmp", b""):
        return  # a phone's picture, whose second one only says how bright a screen may show the first
    if pages > 1:
        unit = {"TIFF": "pages", "MPO": "pictures (MPO)"}.get(image.format or "", "frames")
        raise DataError(f"holds {pages} {unit}, of which one would be read; store each in a file of its own")


def _why_unreadable(error: Exception, what: str, path: Path, layout: _Layout) -> str:
    """The message for a file that Pillow can't read."""
    if isinstance(error, UnidentifiedImageError):
        with path.open("rb") as file:
            start = file.read(16)
        kinds = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP"} | dict.fromkeys(_TIFF, "TIFF")
        kind = next((kind for magic, kind in kinds.items() if start.startswith(magic)), None)
        if kind == "JPEG" and what != "picture":
            return f"not a {what} but a JPEG, which changes values"
        if kind == "TIFF" and what == "picture":
            return f"a TIFF that can't be read: {layout}; store it as RGB or grey of 8 bits"
        if kind == "TIFF":
            return f"a TIFF that can't be read: {layout}; a label map must have one channel of integers"
        return f"not a {what}" + (f" that can be read, though it starts like a {kind} file" if kind else "")
    if isinstance(error, Image.DecompressionBombError):
        return "too large for a picture"
    if isinstance(error, OSError) and error.strerror:  # of the system, not of the decoder
        return error.strerror
    return f"damaged: {error}"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name of more than 255 bytes
        return False


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; links are followed, each folder once."""
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: can't be read: {error.strerror}.")

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            yield from (Path(place, name) for name in files if not name.startswith("."))
        seen.add(real)
