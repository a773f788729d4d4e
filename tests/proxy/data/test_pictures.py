"""Pictures and label maps in files: each pixel at its worth, upright, or an error that names what the file holds."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from autosegloss.errors import DataError
from autosegloss.proxy.data.pictures import (
    COLOUR,
    LABELS,
    PICTURES,
    files_by_name,
    name_pattern,
    picture_size,
    read_labels,
    read_picture,
)
from tests.examples import examples

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (6, 9)).astype(np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)


def written(path: Path, image: Image.Image | NDArray[Any], form: str, **options: Any) -> Path:
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, form, **options)
    return path


def png(path: Path, pixels: NDArray[Any], bits: int, colour_type: int) -> Path:
    """A PNG of any depth and kind of colour, from (height, width, channels)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in pixels)
    parts = (
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def tiff(
    path: Path, data: bytes, size: tuple[int, int], bits: int, channels: int, photometric: int, **tags: int
) -> Path:
    """A little-endian TIFF of one strip and any layout; `tags` are `t339=2` and the like."""
    short, long = 3, 4
    bits_at = 8 + len(data) + len(data) % 2
    head = b"II*\0" + struct.pack("<I", bits_at + 2 * max(channels, 2)) + data + b"\0" * (len(data) % 2)
    head += struct.pack(f"<{max(channels, 2)}H", *[bits] * max(channels, 2))
    bits_value = bits_at if channels > 2 else bits | (bits << 16 if channels == 2 else 0)
    found = {256: (long, 1, size[1]), 257: (long, 1, size[0]), 258: (short, channels, bits_value), 259: (short, 1, 1)}
    found |= {262: (short, 1, photometric), 273: (long, 1, 8), 277: (short, 1, channels), 278: (long, 1, size[0])}
    found |= {279: (long, 1, len(data))} | {int(tag[1:]): (short, 1, value) for tag, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(found.items()))
    path.write_bytes(head + struct.pack("<H", len(found)) + entries + b"\0\0\0\0")
    return path


def odd(bits: int, channels: int, photometric: int, **tags: int) -> Callable[[Path], Path]:
    """A way to write a TIFF of 6 x 9 zeros."""
    zeros = bytes(6 * -(-9 * channels * bits // 8))
    return lambda path: tiff(path, zeros, (6, 9), bits, channels, photometric, **tags)


# Orientation


def upright(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The picture that a viewer shows, as the EXIF standard says where row 0 and column 0 lie."""
    height, width = stored.shape[:2]
    shape = (width, height) if orientation > 4 else (height, width)
    shown = np.empty((*shape, *stored.shape[2:]), stored.dtype)
    for r, c in np.ndindex(height, width):
        down, across = height - 1 - r, width - 1 - c
        place = [(r, c), (r, across), (down, across), (down, c), (c, r), (c, down), (across, down), (across, r)]
        shown[place[orientation - 1]] = stored[r, c]
    return shown


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_and_masks_stand_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        path = written(tmp_path / form, RGB, form, exif=exif, **options)
        np.testing.assert_array_equal(read_picture(path), upright(RGB, orientation), err_msg=form)
        assert picture_size(path) == upright(RGB, orientation).shape[:2], form
    smooth = np.repeat(np.repeat(RGB, 16, axis=0), 16, axis=1)
    path = written(tmp_path / "JPEG", smooth, "JPEG", exif=exif, quality=98, subsampling=0)
    assert np.abs(np.asarray(read_picture(path), int) - upright(smooth, orientation)).mean() < 4
    assert picture_size(path) == upright(smooth, orientation).shape[:2]
    for form in ("PNG", "TIFF"):
        for labels in (GREY, GREY > 127, DEEP):
            path = written(tmp_path / form, labels, form, exif=exif)
            np.testing.assert_array_equal(read_labels(path), upright(labels, orientation), err_msg=form)


def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = written(tmp_path / "x.png", RGB, "PNG", exif=exif).read_bytes()
    at = data.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", data[at : at + 4])[0]
    (tmp_path / "x.png").write_bytes(data[:at] + data[at + length : -12] + data[at : at + length] + data[-12:])
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), upright(RGB, 6))
    assert picture_size(tmp_path / "x.png") == (9, 6)
    del exif[0x0112]
    exif[0x010E] = "an orientation elsewhere"
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    data = written(tmp_path / "x.png", RGB, "PNG", exif=exif, pnginfo=text).read_bytes()
    at = data.index(b"iTXt") - 4
    length = 12 + struct.unpack(">I", data[at : at + 4])[0]
    (tmp_path / "x.png").write_bytes(data[:at] + data[at + length : -12] + data[at : at + length] + data[-12:])
    np.testing.assert_array_equal(read_picture(tmp_path / "x.png"), upright(RGB, 6))
    assert picture_size(tmp_path / "x.png") == (9, 6)


# Pictures


def shown_as(path: Path) -> NDArray[Any]:
    assert picture_size(path) == (6, 9)
    return np.asarray(read_picture(path))


def test_pictures_of_8_bits_are_read_whole(tmp_path):
    grey = np.repeat(GREY[..., None], 3, axis=2)
    opaque = np.full((6, 9, 1), 255, np.uint8)
    palette = Image.fromarray(GREY)
    palette.putpalette(bytes(range(256)) * 3)
    colours = np.frombuffer(bytes(range(256)) * 3, np.uint8).reshape(256, 3)[GREY]
    for form in ("PNG", "TIFF", "BMP"):
        path = tmp_path / form
        np.testing.assert_array_equal(shown_as(written(path, RGB, form)), RGB)
        np.testing.assert_array_equal(shown_as(written(path, GREY, form)), grey)
        np.testing.assert_array_equal(shown_as(written(path, GREY > 127, form)), (grey > 127) * 255)
        np.testing.assert_array_equal(shown_as(written(path, palette, form)), colours)
        np.testing.assert_array_equal(shown_as(written(path, np.concatenate([RGB, opaque], 2), form)), RGB)
    path = png(tmp_path / "x.png", np.concatenate([GREY[..., None], opaque], 2), 8, 4)
    np.testing.assert_array_equal(shown_as(path), grey)
    np.testing.assert_array_equal(shown_as(tiff(path, GREY.tobytes(), (6, 9), 8, 1, 0)), 255 - grey)
    ink = np.concatenate([RGB, 0 * opaque], 2)
    np.testing.assert_array_equal(shown_as(written(path, Image.fromarray(ink, "CMYK"), "TIFF")), 255 - RGB)
    exact = written(path, RGB, "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(shown_as(exact), RGB)


def half_transparent(path: Path) -> Path:
    return written(path, np.concatenate([RGB, np.uint8(255 * (GREY[..., None] > 127))], 2), "PNG")


def transparent_palette(path: Path) -> Path:
    image = Image.fromarray(GREY % 4)
    image.putpalette(list(range(12)))
    return written(path, image, "PNG", transparency=3)


def stack(path: Path, form: str, **options: Any) -> Path:
    pages = [Image.fromarray(np.roll(RGB, shift)) for shift in range(3)]
    return written(path, pages[0], form, save_all=True, append_images=pages[1:], **options)


def exotic_jpeg(path: Path) -> Path:
    """A JPEG whose header says 12 bits."""
    data = bytearray(written(path, RGB, "JPEG").read_bytes())
    data[data.index(b"\xff\xc0") + 4] = 12
    path.write_bytes(data)
    return path


PAGES = "of which one would be read; store each in a file of its own"
DEPTH = "a picture must have 8 bits per channel, got {}; scale its values to 0..255"
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "grey 16": (lambda path: written(path, DEEP, "PNG"), DEPTH.format(16)),
    "RGB 16 PNG": (lambda path: png(path, 256 * RGB.astype(np.uint16), 16, 2), DEPTH.format(16)),
    "RGBA 16 PNG": (lambda path: png(path, np.stack([DEEP] * 4, 2), 16, 6), DEPTH.format(16)),
    "grey and alpha 16": (lambda path: png(path, np.stack([DEEP] * 2, 2), 16, 4), DEPTH.format(16)),
    "RGB 16 TIFF": (odd(16, 3, 2), DEPTH.format(16)),
    "12 bits": (odd(12, 1, 1), DEPTH.format(12)),
    "signed": (odd(8, 1, 1, t339=2), DEPTH.format("signed values of 8 bits")),
    "floats": (lambda path: written(path, GREY.astype(np.float32), "TIFF"), DEPTH.format("floats of 32 bits")),
    "LAB": (
        lambda path: written(path, Image.fromarray(RGB, "LAB"), "TIFF"),
        DEPTH.format("CIE L*a*b* colours"),
    ),
    "5 channels": (
        odd(8, 5, 2),
        "has 5 channels; a picture has 1 (grey), 3 (RGB) or 4 (RGBA, CMYK)",
    ),
    "5 grey channels": (
        odd(8, 5, 1),
        "has 5 channels; a picture has 1 (grey), 3 (RGB) or 4 (RGBA, CMYK)",
    ),
    "a fourth channel": (
        odd(8, 4, 2, t338=0),
        "has 4 channels, but those of its kind are 3",
    ),
    "pages": (lambda path: stack(path, "TIFF"), f"holds 3 pages, {PAGES}"),
    "GIF": (lambda path: stack(path, "GIF"), f"holds 3 frames, {PAGES}"),
    "APNG": (lambda path: stack(path, "PNG"), f"holds 3 frames, {PAGES}"),
    "WebP": (lambda path: stack(path, "WEBP"), f"holds 3 frames, {PAGES}"),
    "MPO": (lambda path: stack(path, "MPO"), f"holds 3 pictures (MPO), {PAGES}"),
    "alpha": (half_transparent, "% of the pixels are transparent, and what is behind them is unknown; "),
    "transparent palette": (transparent_palette, "% of the pixels are transparent"),
    "RGB as greys": (
        odd(8, 3, 1),
        "a TIFF that can't be read: 3 channels of 8-bit integers, photometric interpretation black is 0; store it as "
        "RGB or grey of 8 bits",
    ),
    "4 float channels": (
        odd(32, 4, 1, t339=3),
        "a TIFF that can't be read: 4 channels of 32-bit floats, photometric interpretation black is 0; ",
    ),
    "RGB of floats": (
        odd(32, 3, 2, t339=3),
        "a TIFF that can't be read: 3 channels of 32-bit floats, photometric interpretation RGB; ",
    ),
    "float64": (
        odd(64, 1, 1, t339=3),
        "a TIFF that can't be read: 1 channel of 64-bit floats, ",
    ),
    "grey and alpha 16 TIFF": (
        odd(16, 2, 1, t338=2),
        "a TIFF that can't be read: 2 channels of 16-bit integers, ",
    ),
    "unknown compression": (
        odd(8, 1, 1, t259=34887),
        "a TIFF that can't be read: 1 channel of 8-bit integers, photometric interpretation black is 0, "
        "compression 34887; store it as RGB or grey of 8 bits",
    ),
    "12-bit JPEG": (exotic_jpeg, "not a picture that can be read, though it starts like a JPEG file"),
    "text": (lambda path: path.write_text("GIF9") and path, "not a picture"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_picture_that_would_be_cut_is_refused_for_what_it_holds(tmp_path, kind):
    write, message = REFUSED[kind]
    with pytest.raises(DataError) as error:
        read_picture(write(tmp_path / "x"))
    assert message in str(error.value)


def test_a_second_picture_that_only_says_how_bright_the_first_may_be_shown_is_left_out(tmp_path):
    path = tmp_path / "x.jpg"
    xmp = b'<x:xmpmeta><rdf:Description hdrgm:Version="1.0"/></x:xmpmeta>'
    pages = [Image.new("RGB", (9, 6), colour) for colour in ("red", "blue")]
    written(path, pages[0], "MPO", save_all=True, append_images=pages[1:], xmp=xmp)
    assert read_picture(path).getpixel((4, 3))[0] > 250  # type: ignore[index]


# Label maps


def test_labels_are_the_numbers_in_the_file(tmp_path):
    path = tmp_path / "x"
    for form in ("PNG", "TIFF", "BMP", "GIF"):
        for labels in (GREY, GREY[:3] % 4):
            np.testing.assert_array_equal(read_labels(written(path, labels, form)), labels, err_msg=form)
        white = 255 if form == "GIF" else 1  # which has no pictures of 1 bit but by their colours
        np.testing.assert_array_equal(read_labels(written(path, GREY > 127, form)), white * (GREY > 127), err_msg=form)
        labels = np.arange(54, dtype=np.uint8).reshape(6, 9) % 16  # all of them: GIF writers leave out the others
        indices = Image.fromarray(labels)
        indices.putpalette(RNG.integers(0, 256, 48).astype(np.uint8).tobytes())
        np.testing.assert_array_equal(read_labels(written(path, indices, form)), labels, err_msg=form)
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read_labels(written(path, DEEP, form)), DEEP)
    wide = DEEP.astype(np.int32) * 40_000
    np.testing.assert_array_equal(read_labels(tiff(path, wide.tobytes(), (6, 9), 32, 1, 1)), wide.view(np.uint32))
    small = GREY.view(np.int8)
    np.testing.assert_array_equal(read_labels(tiff(path, small.tobytes(), (6, 9), 8, 1, 1, t339=2)), small)
    for bits in (2, 4):
        labels = GREY[:, :8] % 2**bits
        digits = "".join(f"{label:0{bits}b}" for label in labels.ravel())
        packed = bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
        np.testing.assert_array_equal(read_labels(tiff(path, packed, (6, 8), bits, 1, 1)), labels)
        np.testing.assert_array_equal(read_labels(tiff(path, packed, (6, 8), bits, 1, 0)), 2**bits - 1 - labels)


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", ">u2", "<i4", "i8", "u8"])
def test_labels_are_the_integers_of_an_array(tmp_path, dtype):
    labels = (GREY % 100).astype(dtype)
    for array in (labels, np.asfortranarray(labels)):
        np.save(tmp_path / "x.npy", array)
        np.testing.assert_array_equal(read_labels(tmp_path / "x.npy"), labels)


def npy(path: Path, array: NDArray[Any], header: bytes = b"", data: bytes = b"") -> Path:
    """An array as a .npy file, with another header or more data."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    text = file.getvalue()
    if header:
        text = text[:8] + struct.pack("<H", len(header)) + header + text[128:]
    path.write_bytes(text + data)
    return path


class Harmful:
    """What a pickle could run."""

    def __reduce__(self) -> Any:
        return os._exit, (13,)


ONE = "a label map must have one channel, grey (1 to 16 bits) or palette, got "
NOT_LABELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "RGB": (lambda path: written(path, RGB, "PNG"), ONE + "R, G, B"),
    "alpha": (lambda path: png(path, np.stack([GREY] * 2, 2), 8, 4), ONE + "L, A"),
    "floats": (lambda path: written(path, GREY.astype(np.float32), "TIFF"), ONE + "floats"),
    "second channel": (
        odd(8, 2, 1, t338=0),
        "has 2 channels, but those of its kind are 1",
    ),
    "pages": (lambda path: stack(path, "TIFF"), f"holds 3 pages, {PAGES}"),
    "frames": (lambda path: stack(path, "GIF"), f"holds 3 frames, {PAGES}"),
    "white is 0": (odd(16, 1, 0), "a TIFF of 16 bits whose white is 0"),
    "JPEG": (
        lambda path: written(path, GREY, "JPEG"),
        "not a PNG, TIFF, BMP, GIF or .npy file but a JPEG, which changes values",
    ),
    "array of floats": (lambda path: npy(path, GREY / 2), "integers of shape (H, W), got float64 of shape (6, 9)"),
    "array of colours": (lambda path: npy(path, RGB), "integers of shape (H, W), got uint8 of shape (6, 9, 3)"),
    "empty array": (lambda path: npy(path, GREY[:0]), "got uint8 of shape (0, 9)"),
    "pickle": (lambda path: npy(path, np.array([[Harmful()]])), "got object of shape (1, 1)"),
    "more data": (lambda path: npy(path, GREY, data=b"?"), "damaged: 55 bytes of data, not 54"),
    "a size of petabytes": (
        lambda path: npy(path, GREY, b"{'descr': '|u1', 'fortran_order': False, 'shape': (10000000, 100000000)}\n"),
        "damaged: 54 bytes of data, not 1000000000000000",
    ),
    "brackets": (lambda path: npy(path, GREY, b"(" * 9000), "damaged: "),
    "code": (lambda path: npy(path, GREY, b"__import__('os')._exit(13)\n"), "damaged: "),
    "large": (lambda path: npy(path, np.full((2, 2), 2**63, np.uint64)), "labels must be below 2 ** 63"),
}


@pytest.mark.parametrize("kind", NOT_LABELS)
def test_a_file_that_is_no_label_map_is_refused_for_what_it_holds(tmp_path, kind):
    write, message = NOT_LABELS[kind]
    with pytest.raises(DataError) as error:
        read_labels(write(tmp_path / "x"))
    assert message in str(error.value)


def test_masks_of_colours_are_read_as_greys_and_colours(tmp_path):
    pixels = np.array([[[0, 0, 0], [255, 0, 0], [7, 7, 7]]], np.uint8)
    expected = [[0, COLOUR + 0xFF0000, 7]]
    for form in ("PNG", "TIFF", "BMP"):
        assert read_labels(written(tmp_path / "x", pixels, form), colours=True).tolist() == expected
    image = Image.fromarray(np.array([[3, 0, 1]], np.uint8))
    image.putpalette([255, 0, 0, 7, 7, 7, 9, 9, 9, 0, 0, 0])
    for form in ("PNG", "TIFF", "BMP", "GIF"):
        assert read_labels(written(tmp_path / "x", image, form), colours=True).tolist() == expected
    np.testing.assert_array_equal(read_labels(written(tmp_path / "x", DEEP, "PNG"), colours=True), DEEP)
    with pytest.raises(DataError, match="8 bits per channel, got 16"):
        read_labels(png(tmp_path / "x", 256 * RGB.astype(np.uint16), 16, 2), colours=True)


# Files


@pytest.mark.parametrize("read", [read_picture, read_labels, picture_size])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for name, message in (("pipe", "a folder, a pipe or a device"), ("link", "No such file"), ("x" * 300, "too long")):
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)
    with pytest.raises(DataError, match="a folder, a pipe or a device"):
        read(tmp_path)


def test_files_are_found_by_suffix_and_pattern(tmp_path):
    for name in ("a_mask.png", "a.png", "b_mask.PNG", "day/c_mask.tif", "day/gt_d.png", "e_mask.txt", "_mask.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, GREY, "PNG")
    (tmp_path / "day" / "loop").symlink_to(tmp_path)

    def found(option: str) -> list[str]:
        return sorted(files_by_name(tmp_path, LABELS, name_pattern("mask_suffix", option)))

    assert found("_mask") == found("{name}_mask") == ["a", "b", "day/c"]
    assert found("_mask.png") == found("{name}_mask.png") == ["a", "b"]
    assert found("gt_{name}") == ["day/d"]
    assert found("/c_mask") == ["day"]
    for wrong in ("{stem}_mask", "*_mask", "{name}{name}", "x/{name}", 3, None):
        with pytest.raises(DataError, match=r"mask_suffix must be what follows the name, such as `_mask`, or"):
            found(wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError) as error:
        found("_no")
    assert str(error.value) == (
        f"{tmp_path}: no *{{_no.png, _no.tif, _no.tiff, _no.bmp, _no.gif, _no.npy}} file in this folder or below it; "
        "it holds .png, .tif, .txt files."
    )


def test_names_that_would_spoil_a_terminal_and_folders_that_cannot_be_read(tmp_path):
    written(tmp_path / "a\x1b[2J\n.png", GREY, "PNG")
    with pytest.raises(DataError, match=r"a\\x1b\[2J\\n\.png': the name has a control character; rename the file"):
        files_by_name(tmp_path, PICTURES)
    with pytest.raises(DataError, match="no such folder"):
        files_by_name(tmp_path / ("x" * 300), PICTURES)
    written(tmp_path / "a\x1b[2J\n.png", GREY, "JPEG").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"it holds \.jpg files \(JPEG changes the values of masks\)"):
        files_by_name(tmp_path, LABELS)


# Damage


def whole_files() -> list[bytes]:
    found = []
    for form, image in (("PNG", RGB), ("TIFF", GREY), ("BMP", GREY), ("GIF", GREY), ("JPEG", RGB), ("WEBP", RGB)):
        file = io.BytesIO()
        Image.fromarray(image).save(file, form)
        found.append(file.getvalue())
    file = io.BytesIO()
    np.save(file, GREY)
    return [*found, file.getvalue()]


WHOLE = whole_files()
STARTS = [b"", b"\x93NUMPY\x01\0", b"II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a"]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Random bytes, perhaps behind the start of a format, or a whole file with bytes changed, cut or inserted."""
    if draw(st.booleans()):
        start = draw(st.sampled_from(STARTS))
        return start + draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
        data = data or bytearray(b"?")
    return bytes(data)


@pytest.mark.filterwarnings("ignore")  # Pillow's, on damaged metadata
@examples(200)
@given(data=damaged())
def test_damaged_files_are_refused_or_read(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    for read in (read_picture, picture_size, read_labels, lambda path: read_labels(path, colours=True)):
        with suppress(DataError):
            read(path)
