"""What the HTML pages share: the frame of a document, its style, and pictures of label maps that need no other file."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from autosegloss.proxy.data.pictures import LabelMap

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Embedded = tuple[str, int, int]
"""A picture as a data: URI, its width and its height."""

_LONGEST: Final = 1024  # pixels; the longest side of an embedded map
_PICTURE: Final = 640  # likewise of a picture, which is more bytes a pixel
_ERRORS: Final = 512  # likewise of an error map: single pixels stay visible on a screen
_SMALL: Final = 400  # pixels; a picture narrower than this is enlarged on a screen, and then shows its pixels
_STRIPES: Final = ((128, 134, 142, 255), (176, 181, 188, 255))  # ignored pixels are hatched in these
_WRONG: Final = (222, 62, 40, 255)
_RIGHT: Final = (0, 0, 0, 0)  # transparent: the page colours it, light or dark


def document(title: str, style: str, body: str, script: str = "") -> str:
    """A page that asks for nothing from a network.

    Args:
        title: Of the window; escaped already, as all of the rest.
        style: What follows `STYLE`.
        body: The elements.
        script: Its script; a page without one may run none.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        policy, script = f"{policy}; script-src 'unsafe-inline'", f"<script>{script}</script>\n"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
{script}</body>
</html>
"""


def class_colour(label: int) -> Colour:
    """The colour of a class, for any number of classes; classes of near numbers differ in hue and in lightness.

    Class 0, most often the background, is dark grey. The others step around the colour wheel by the golden angle.
    Their start and their lightness and saturation are those that set the first 21 and 34 classes apart best, of a grid.
    """
    if label == 0:
        return 43, 48, 56
    turn, lightness, saturation = 0.381966 * (label - 1), (0.55, 0.38, 0.72)[label % 3 - 1], (0.9, 0.55)[label % 2 - 1]
    red, green, blue = colorsys.hls_to_rgb((0.7 + turn) % 1, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def swatch(colour: Colour) -> str:
    """A small field of a colour, for legends."""
    return f'<i class="swatch" style="background:rgb{colour}"></i>'


def figure(caption: str, picture: Embedded, alt: str) -> str:
    """A picture with its caption; texts are escaped already."""
    uri, width, height = picture
    small = ' class="small"' if width < _SMALL else ""
    return (
        f'<figure><img{small} src="{uri}" width="{width}" height="{height}" alt="{alt}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def label_map(
    labels: LabelMap, valid: npt.NDArray[np.bool_], colour: Callable[[int], Colour] = class_colour
) -> Embedded:
    """Labels (H, W) in the colours of their classes, hatched where they are not valid."""
    step = _step(labels.shape, _LONGEST)
    labels, valid = np.where(valid, labels, 0)[::step, ::step], valid[::step, ::step]
    colours = np.array([(*colour(label), 255) for label in range(int(labels.max()) + 1)], np.uint8)
    pixels = colours[labels]
    _hatch(pixels, ~valid)
    return _png(pixels)


def error_map(valid: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_]) -> Embedded:
    """The wrong pixels (H, W) of a map, hatched where it is not valid."""
    rows, columns = (np.arange(0, side, _step(wrong.shape, _ERRORS)) for side in wrong.shape)
    # A wrong pixel stays one in a smaller picture, however few there are.
    wrong = np.logical_or.reduceat(np.logical_or.reduceat(wrong, rows, axis=0), columns, axis=1)
    pixels = np.array([_RIGHT, _WRONG], np.uint8)[wrong.astype(np.intp)]
    _hatch(pixels, ~valid[np.ix_(rows, columns)] & ~wrong)
    return _png(pixels)


def picture(image: Image.Image) -> Embedded:
    """A photo, of at most so many pixels as a page needs."""
    if image.mode.startswith(("I", "F")):  # more than 8 bits: stretched to what is there
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(values.min()), float(values.max())
        image = Image.fromarray(np.uint8(255 * (values - low) / max(high - low, 1e-12)))
    image = image.convert("RGB")
    image.thumbnail((_PICTURE, _PICTURE))
    return embedded(image, "JPEG", quality=90, subsampling=0)


def embedded(image: Image.Image, format: str, **options: int) -> Embedded:
    """An image as a data: URI."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}", *image.size


def _hatch(pixels: Pixels, where: npt.NDArray[np.bool_]) -> None:
    stripe = max(1, max(where.shape) // 100)
    dark = np.add.outer(np.arange(where.shape[0]), np.arange(where.shape[1])) // stripe % 3 == 0
    for colour, chosen in zip(_STRIPES, (where & dark, where & ~dark), strict=True):
        pixels[chosen] = colour


def _step(shape: tuple[int, ...], longest: int) -> int:
    return -(-max(shape) // longest)


def _png(pixels: Pixels) -> Embedded:
    return embedded(Image.fromarray(pixels), "PNG", optimize=True)


STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --text: #1c2127; --quiet: #59626d; --line: #d5dae0; --link: #0b57a4;
  --right: #e6eaee; --chosen: #dbe9f9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1d2126; --text: #e7eaee; --quiet: #a3adb9; --line: #363d46; --link: #8cc0f5;
    --right: #343b44; --chosen: #1f3a57;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
header, main { max-width: 88rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
h3, dd { overflow-wrap: anywhere; }
p { margin: 0; }
a { color: var(--link); }
a:focus-visible, select:focus-visible, input:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 3px solid var(--link); outline-offset: 2px; border-radius: 3px;
}
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .75rem; margin: .5rem 0 0; }
dt, figcaption, .classes, .note { color: var(--quiet); }
dd { margin: 0; }
ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem .75rem; }
.scroll { overflow-x: auto; width: fit-content; max-width: 100%; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem; text-align: right; border-top: 1px solid var(--line); }
thead th { border-top: 0; max-width: 18rem; min-width: 4rem; vertical-align: bottom; overflow-wrap: break-word; }
th:first-child { text-align: left; font-weight: 500; white-space: nowrap; position: sticky; left: 0;
  background: var(--card); }
@media (max-width: 40rem) { th, td { padding: .25rem .4rem; } }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .45em; vertical-align: -.08em;
  border: 1px solid var(--quiet); border-radius: 3px; }
.right { background: var(--right); }
.wrong { background: #de3e28; }
.ignored { background: repeating-linear-gradient(-45deg, #80868e 0 2px, #b0b5bc 2px 5px); }
.note { margin-bottom: 1rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem;
  margin-bottom: 1rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr)); gap: .75rem;
  margin: .75rem 0; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: var(--right); border: 1px solid var(--line);
  border-radius: 3px; }
.small { image-rendering: pixelated; }
figcaption, .classes { font-size: .875rem; }
.classes { margin-bottom: .5rem; }
[hidden] { display: none !important; }
"""
