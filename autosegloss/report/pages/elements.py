"""What the pages share: the document, its HTML elements, and pictures of label maps as data: URIs."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
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
_PICTURE: Final = 640  # pixels; the longest side of a photo, which takes more bytes per pixel
_ERRORS: Final = 512  # pixels; the longest side of an error map, in which single pixels must stay visible
_SMALL: Final = 400  # pixels; narrower pictures are enlarged without smoothing
_STRIPES: Final = ((128, 134, 142, 255), (176, 181, 188, 255))  # the hatching of ignored pixels
_WRONG: Final = (222, 62, 40, 255)
_CORRECT: Final = (0, 0, 0, 0)  # transparent: the style sheet colours it, light or dark

# Okabe and Ito, Color Universal Design, 2008: distinguishable with the common kinds of colour blindness.
_PALETTE: Final[tuple[Colour, ...]] = (
    (43, 48, 56),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def document(title: str, body: str, style: str, script: str | None = None) -> str:
    """A complete page that loads nothing from a network.

    Args:
        title: The title of the window, as plain text.
        body: HTML.
        style: The style sheet beside this file that follows `style.css`.
        script: The script beside this file; the page forbids scripts if there is none.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    code = ""
    if script:
        policy, code = f"{policy}; script-src 'unsafe-inline'", f"<script>\n{_asset(script)}</script>\n"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>
{_asset("style.css")}{_asset(style)}</style>
</head>
<body>
{body}
{code}</body>
</html>
"""


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def facts_list(facts: Mapping[str, str]) -> str:
    """A description list; keys and values are HTML."""
    return f"<dl>{''.join(f'<dt>{key}</dt><dd>{value}</dd>' for key, value in facts.items())}</dl>"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """A table that scrolls on its own if it is too wide; titles and cells are HTML."""
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def text_block(text: str, name: str) -> str:
    """Preformatted text that scrolls on its own."""
    return f'<pre class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{escape(text)}</pre>'


def details(title: str, body: str) -> str:
    """A part that is folded on the screen and open in print."""
    return f"<details><summary>{title}</summary>\n{body}\n</details>"


def class_colour(label: int) -> Colour:
    """The colour of a class: a palette for the first eight, then steps of the golden angle around the colour wheel.

    The start of the steps is the one that separates the first 24 and the first 34 classes best, of 100.
    """
    if label < len(_PALETTE):
        return _PALETTE[label]
    turn, lightness = 0.59 + 0.381966 * (label - len(_PALETTE)), (0.55, 0.38, 0.72)[label % 3 - 1]
    red, green, blue = colorsys.hls_to_rgb(turn % 1, lightness, (0.9, 0.55)[label % 2 - 1])
    return round(255 * red), round(255 * green), round(255 * blue)


def swatch(label: int) -> str:
    """A small field in the colour of a class, for legends."""
    return f'<i class="swatch" style="background:rgb{class_colour(label)}"></i>'


def error_legend() -> str:
    """The legend of the error maps."""
    kinds = (("right", "correct"), ("wrong", "wrong"), ("ignored", "ignored"))
    entries = "".join(f'<li><i class="swatch {style}"></i>{name}</li>' for style, name in kinds)
    return f'<ul class="legend" aria-label="legend of the error maps"><li>errors:</li>{entries}</ul>'


def figure(caption: str, picture: Embedded, alt: str) -> str:
    """A picture with its caption; both texts are HTML."""
    uri, width, height = picture
    small = ' class="small"' if width < _SMALL else ""
    return (
        f'<figure><img{small} src="{uri}" width="{width}" height="{height}" alt="{alt}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def label_map(labels: LabelMap, valid: npt.NDArray[np.bool_]) -> Embedded:
    """Labels (H, W) in the colours of their classes, hatched where they are not valid."""
    step = _step(labels.shape, _LONGEST)
    labels, valid = np.where(valid, labels, 0)[::step, ::step], valid[::step, ::step]
    colours = np.array([(*class_colour(label), 255) for label in range(int(labels.max()) + 1)], np.uint8)
    pixels = colours[labels]
    _hatch(pixels, ~valid)
    return _png(pixels)


def error_map(valid: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_]) -> Embedded:
    """The wrong pixels (H, W) of a map, hatched where it is not valid."""
    rows, columns = (np.arange(0, side, _step(wrong.shape, _ERRORS)) for side in wrong.shape)
    # Reduced by OR, so that even a single wrong pixel survives in a smaller picture.
    wrong = np.logical_or.reduceat(np.logical_or.reduceat(wrong, rows, axis=0), columns, axis=1)
    pixels = np.array([_CORRECT, _WRONG], np.uint8)[wrong.astype(np.intp)]
    _hatch(pixels, ~valid[np.ix_(rows, columns)] & ~wrong)
    return _png(pixels)


def wrong_share(valid: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_]) -> str:
    """The share of the valid pixels that are wrong, in words."""
    return f"{100 * wrong.sum() / max(valid.sum(), 1):.2f} % of the pixels are wrong"


def picture(image: Image.Image) -> Embedded:
    """A photo in RGB as a JPEG of moderate size."""
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
