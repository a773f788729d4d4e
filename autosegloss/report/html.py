"""The contact sheet: the worst images of an evaluation as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from autosegloss.proxy.data.pictures import Labels, read_labels
from autosegloss.report.evaluate import Evaluation, LabelFolders, Scored, percent, summary

Pixels = npt.NDArray[np.uint8]

_LONGEST: Final = 1024  # pixels; the longest side of an embedded map
_PICTURE: Final = 640  # likewise of a picture, which is more bytes a pixel
_ERRORS: Final = 512  # likewise of an error map: single pixels stay visible on a screen
_SMALL: Final = 400  # pixels; a picture narrower than this is enlarged on a screen, and then shows its pixels
_STRIPES: Final = ((128, 134, 142, 255), (176, 181, 188, 255))  # ignored pixels are hatched in these
_WRONG: Final = (222, 62, 40, 255)
_RIGHT: Final = (0, 0, 0, 0)  # transparent: the page colours it, light or dark


def class_colour(label: int) -> tuple[int, int, int]:
    """The colour of a class, for any number of classes; classes of near numbers differ in hue and in lightness.

    Class 0, most often the background, is dark grey. The others step around the colour wheel by the golden angle.
    Their start and their lightness and saturation are those that set the first 21 and 34 classes apart best, of a grid.
    """
    if label == 0:
        return 43, 48, 56
    turn, lightness, saturation = 0.381966 * (label - 1), (0.55, 0.38, 0.72)[label % 3 - 1], (0.9, 0.55)[label % 2 - 1]
    red, green, blue = colorsys.hls_to_rgb((0.7 + turn) % 1, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def contact_sheet(evaluation: Evaluation, folders: LabelFolders) -> str:
    """The worst images of every metric and class: picture, label, prediction and error map of each, once.

    The page embeds its pictures, asks for nothing from a network and reads the same without its script, which shows
    one list at a time.

    Args:
        evaluation: With its lists of worst images.
        folders: The files it was made from; read again for the images listed.

    Returns:
        HTML; the same input gives the same text.
    """
    lists = _lists(evaluation)
    images = list(dict.fromkeys(entry.image for found in lists for entry in found.entries))
    cards = "\n".join(_card(image, evaluation, folders, lists) for image in images)
    return _PAGE.format(
        style=_STYLE,
        script=_SCRIPT,
        facts=_facts(evaluation, folders),
        values=_values(evaluation, lists),
        options=_options(lists, len(images)),
        cards=cards,
    )


class _List:
    """One list of worst images: of a metric (label None), or of a metric and a class."""

    def __init__(self, key: str, metric: str, label: int | None, entries: Sequence[Scored]) -> None:
        self.key, self.metric, self.label, self.entries = key, metric, label, entries

    @property
    def title(self) -> str:
        return self.metric if self.label is None else f"{self.metric}, class {self.label}"


def _lists(evaluation: Evaluation) -> list[_List]:
    lists = []
    for i, row in enumerate(evaluation.metrics):
        lists.append(_List(f"worst-{i}", row.metric, None, row.worst))
        lists += [_List(f"worst-{i}-{c}", row.metric, c, found) for c, found in enumerate(row.worst_by_class)]
    return [found for found in lists if found.entries]


def _facts(evaluation: Evaluation, folders: LabelFolders) -> str:
    return (
        f"<p>{summary(evaluation)}</p>\n<dl><dt>predictions</dt><dd>{escape(str(folders.pred))}</dd>"
        f"<dt>labels</dt><dd>{escape(str(folders.target))}</dd></dl>"
    )


def _values(evaluation: Evaluation, lists: Sequence[_List]) -> str:
    keys = {(found.metric, found.label): found.key for found in lists}

    def cell(metric: str, label: int | None, value: float | None) -> str:
        key = keys.get((metric, label))
        text = percent(value)
        return f'<td><a href="#{key}">{text}</a></td>' if key else f"<td>{text}</td>"

    head = "".join(f'<th scope="col">{escape(row.metric)}</th>' for row in evaluation.metrics)
    rows = [("overall", [cell(row.metric, None, row.value) for row in evaluation.metrics])]
    if any(row.classes for row in evaluation.metrics):
        for label in range(evaluation.num_classes):
            cells = [
                cell(row.metric, label, row.classes[label]) if row.classes else "<td></td>"
                for row in evaluation.metrics
            ]
            rows.append((f"{_swatch(label)}class {label}", cells))
    body = "\n".join(f'<tr><th scope="row">{title}</th>{"".join(cells)}</tr>' for title, cells in rows)
    return f'<table>\n<thead><tr><th scope="col">%</th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'


def _options(lists: Sequence[_List], images: int) -> str:
    parts = [f'<option value="worst">all lists ({images} image{"s" if images != 1 else ""})</option>']
    for metric in dict.fromkeys(found.metric for found in lists):
        options = "".join(
            f'<option value="{found.key}">{escape(found.title)} ({len(found.entries)})</option>'
            for found in lists
            if found.metric == metric
        )
        parts.append(f'<optgroup label="{escape(metric)}">{options}</optgroup>')
    return "".join(parts)


def _card(image: str, evaluation: Evaluation, folders: LabelFolders, lists: Sequence[_List]) -> str:
    pred, target = read_labels(folders.pred_files[image]), read_labels(folders.target_files[image])
    valid = target != evaluation.ignore_index
    wrong = valid & (pred != target)
    name = escape(image)
    seen, told = np.unique(target[valid]).tolist(), np.unique(pred).tolist()
    share = f"{percent(wrong.sum() / max(valid.sum(), 1))} % of the pixels wrong"
    ignored = "" if valid.all() else ", some pixels ignored"
    figures = [
        _figure("label", _label_map(target, valid), f"label of {name}: classes {_joined(seen)}{ignored}"),
        _figure("prediction", _label_map(pred, np.ones_like(valid)), f"prediction for {name}: classes {_joined(told)}"),
        _figure("errors", _error_map(valid, wrong), f"error map of {name}: {share}{ignored}"),
    ]
    if image in folders.image_files:
        with Image.open(folders.image_files[image]) as file:
            figures.insert(0, _figure("image", _picture(file), f"the image {name}"))
    found_in = [
        (found, rank, entry) for found in lists for rank, entry in enumerate(found.entries) if entry.image == image
    ]
    ranks = " ".join(f"{found.key}:{rank}" for found, rank, _ in found_in)
    places = ""
    for metric in dict.fromkeys(found.metric for found, _, _ in found_in):
        links = "".join(_place(*place) for place in found_in if place[0].metric == metric)
        places += f"<div><dt>{escape(metric)}</dt><dd>{links}</dd></div>"
    legend = "".join(f"<li>{_swatch(label)}{label}{_only(label, seen, told)}</li>" for label in sorted({*seen, *told}))
    return f"""<article data-ranks="{ranks}">
<h3>{name} <output></output></h3>
<div class="pictures">{"".join(figures)}</div>
<ul class="classes" aria-label="classes in this image">{legend}</ul>
<p>{share}{_confusions(pred, target, wrong, int(valid.sum()))}</p>
<dl class="places">{places}</dl>
</article>"""


def _place(found: _List, rank: int, entry: Scored) -> str:
    """The score of an image in a list, which links to the list; without the script that is its first image."""
    anchor = f' id="{found.key}"' if rank == 0 else ""
    what = "all classes" if found.label is None else f"{_swatch(found.label)}class {found.label}"
    return f'<a{anchor} href="#{found.key}">{what} <b>{percent(entry.score)}</b></a>'


def _only(label: int, seen: Sequence[int], told: Sequence[int]) -> str:
    return " (not predicted)" if label not in told else " (not in the label)" if label not in seen else ""


def _confusions(pred: Labels, target: Labels, wrong: npt.NDArray[np.bool_], pixels: int) -> str:
    """The most frequent errors in words."""
    base = int(pred.max(initial=0)) + 1
    pairs, counts = np.unique(target[wrong] * base + pred[wrong], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:3]
    said = [f"{pairs[i] // base} taken for {pairs[i] % base} ({percent(counts[i] / pixels)} %)" for i in most]
    return f"; most often class {', '.join(said)}." if said else "."


def _joined(labels: Sequence[int]) -> str:
    return ", ".join(map(str, labels)) or "none"


def _swatch(label: int) -> str:
    return f'<i class="swatch" style="background:rgb{class_colour(label)}"></i>'


def _figure(caption: str, picture: tuple[str, int, int], alt: str) -> str:
    uri, width, height = picture
    small = ' class="small"' if width < _SMALL else ""
    return (
        f'<figure><img{small} src="{uri}" width="{width}" height="{height}" alt="{alt}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _label_map(labels: Labels, valid: npt.NDArray[np.bool_]) -> tuple[str, int, int]:
    step = _step(labels.shape, _LONGEST)
    labels, valid = np.where(valid, labels, 0)[::step, ::step], valid[::step, ::step]
    colours = np.array([(*class_colour(label), 255) for label in range(int(labels.max()) + 1)], np.uint8)
    pixels = colours[labels]
    _hatch(pixels, ~valid)
    return _png(pixels)


def _error_map(valid: npt.NDArray[np.bool_], wrong: npt.NDArray[np.bool_]) -> tuple[str, int, int]:
    rows, columns = (np.arange(0, side, _step(wrong.shape, _ERRORS)) for side in wrong.shape)
    # A wrong pixel stays one in a smaller picture, however few there are.
    wrong = np.logical_or.reduceat(np.logical_or.reduceat(wrong, rows, axis=0), columns, axis=1)
    pixels = np.array([_RIGHT, _WRONG], np.uint8)[wrong.astype(np.intp)]
    _hatch(pixels, ~valid[np.ix_(rows, columns)] & ~wrong)
    return _png(pixels)


def _hatch(pixels: Pixels, where: npt.NDArray[np.bool_]) -> None:
    stripe = max(1, max(where.shape) // 100)
    dark = np.add.outer(np.arange(where.shape[0]), np.arange(where.shape[1])) // stripe % 3 == 0
    for colour, chosen in zip(_STRIPES, (where & dark, where & ~dark), strict=True):
        pixels[chosen] = colour


def _step(shape: tuple[int, ...], longest: int) -> int:
    return -(-max(shape) // longest)


def _png(pixels: Pixels) -> tuple[str, int, int]:
    return _embedded(Image.fromarray(pixels), "PNG", optimize=True)


def _picture(image: Image.Image) -> tuple[str, int, int]:
    if image.mode.startswith(("I", "F")):  # more than 8 bits: stretched to what is there
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(values.min()), float(values.max())
        image = Image.fromarray(np.uint8(255 * (values - low) / max(high - low, 1e-12)))
    image = image.convert("RGB")
    image.thumbnail((_PICTURE, _PICTURE))
    return _embedded(image, "JPEG", quality=90, subsampling=0)


def _embedded(image: Image.Image, format: str, **options: int) -> tuple[str, int, int]:
    file = io.BytesIO()
    image.save(file, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}", *image.size


_STYLE: Final = """
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
output { margin-left: .5rem; color: var(--link); font-variant-numeric: tabular-nums; }
h3, dd { overflow-wrap: anywhere; }
p { margin: 0; }
a { color: var(--link); }
a:focus-visible, select:focus-visible, input:focus-visible, .scroll:focus-visible {
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
tbody tr:first-child > * { font-weight: 700; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .45em; vertical-align: -.08em;
  border: 1px solid var(--quiet); border-radius: 3px; }
.right { background: var(--right); }
.wrong { background: #de3e28; }
.ignored { background: repeating-linear-gradient(-45deg, #80868e 0 2px, #b0b5bc 2px 5px); }
.tools { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: center; margin-bottom: .75rem; }
.note { margin-bottom: 1rem; }
.tools label { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; max-width: 100%; }
select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .3rem .5rem; max-width: 100%; text-overflow: ellipsis; }
input { width: 1.1rem; height: 1.1rem; margin: 0; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem;
  margin-bottom: 1rem; }
.places { display: block; margin: .75rem 0 0; font-size: .875rem; }
.places div { display: flex; flex-wrap: wrap; gap: .1rem .75rem; margin-bottom: .4rem; }
.places dt { min-width: 6rem; max-width: 16rem; overflow-wrap: anywhere; }
.places dd { display: flex; flex-wrap: wrap; gap: .3rem; flex: 1 1 16rem; }
.places a { padding: 0 .6rem; border: 1px solid var(--line); border-radius: 1rem; color: inherit;
  text-decoration: none; font-variant-numeric: tabular-nums; }
.places a:hover { text-decoration: underline; }
.places a[aria-current] { background: var(--chosen); border-color: var(--link); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr)); gap: .75rem;
  margin: .75rem 0; }
body:has(#large:checked) .pictures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: var(--right); border: 1px solid var(--line);
  border-radius: 3px; }
.small { image-rendering: pixelated; }
figcaption, .classes { font-size: .875rem; }
.classes { margin-bottom: .5rem; }
[hidden] { display: none !important; }
"""

_SCRIPT: Final = """
const select = document.querySelector("select");
const cards = [...document.querySelectorAll("article")];
const rank = (card, key) => {
  const place = card.dataset.ranks.split(" ").find((place) => place.startsWith(key + ":"));
  return place ? Number(place.split(":")[1]) : -1;
};
function show() {
  const key = location.hash.slice(1);
  const one = [...select.options].some((option) => option.value === key) && key !== "worst";
  select.value = one ? key : "worst";
  for (const card of cards) {
    card.hidden = one && rank(card, key) < 0;
    const score = one && card.querySelector(`.places a[href="#${key}"] b`);
    card.querySelector("output").textContent = score ? score.textContent : "";
  }
  const order = one ? [...cards].sort((a, b) => rank(a, key) - rank(b, key)) : cards;
  document.querySelector("#cards").append(...order);
  for (const link of document.querySelectorAll(".places a")) {
    if (one && link.hash === location.hash) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
select.addEventListener("change", () => { location.hash = select.value; });
addEventListener("hashchange", () => { show(); document.querySelector("#worst").scrollIntoView(); });
document.querySelector("#choose").hidden = false;
show();
"""

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Evaluation: values and worst images</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>Evaluation</h1>
{facts}
</header>
<main>
<h2 id="values">Values over all images</h2>
<div class="scroll" tabindex="0" role="region" aria-labelledby="values">
{values}
</div>
<section id="worst">
<h2>Worst images</h2>
<div class="tools">
<label id="choose" hidden>show the worst by <select>{options}</select></label>
<label><input type="checkbox" id="large"> large pictures</label>
<ul aria-label="legend of the error maps">
<li>errors:</li>
<li><i class="swatch right"></i>right</li>
<li><i class="swatch wrong"></i>wrong</li>
<li><i class="swatch ignored"></i>ignored</li>
</ul>
</div>
<p class="note">A score, in %, is the metric of that image alone. A list of a class holds images whose label has it.</p>
<div id="cards">
{cards}
</div>
</section>
</main>
<script>{script}</script>
</body>
</html>
"""
