"""The contact sheet: the worst images of an evaluation as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from autosegloss.proxy.data.pictures import LabelMap, read_labels
from autosegloss.report.evaluate import Evaluation, LabelFolders, Scored, percent, summary
from autosegloss.report.pages.elements import class_colour, document, error_map, figure, label_map, picture, swatch


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
    body = _BODY.format(
        facts=_facts(evaluation, folders),
        values=_values(evaluation, lists),
        options=_options(lists, len(images)),
        cards=cards,
    )
    return document("Evaluation: values and worst images", _STYLE, body, _SCRIPT)


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
            rows.append((f"{swatch(class_colour(label))}class {label}", cells))
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
        figure("label", label_map(target, valid), f"label of {name}: classes {_joined(seen)}{ignored}"),
        figure("prediction", label_map(pred, np.ones_like(valid)), f"prediction for {name}: classes {_joined(told)}"),
        figure("errors", error_map(valid, wrong), f"error map of {name}: {share}{ignored}"),
    ]
    if image in folders.image_files:
        with Image.open(folders.image_files[image]) as file:
            figures.insert(0, figure("image", picture(file), f"the image {name}"))
    found_in = [
        (found, rank, entry) for found in lists for rank, entry in enumerate(found.entries) if entry.image == image
    ]
    ranks = " ".join(f"{found.key}:{rank}" for found, rank, _ in found_in)
    places = ""
    for metric in dict.fromkeys(found.metric for found, _, _ in found_in):
        links = "".join(_place(*place) for place in found_in if place[0].metric == metric)
        places += f"<div><dt>{escape(metric)}</dt><dd>{links}</dd></div>"
    legend = "".join(
        f"<li>{swatch(class_colour(label))}{label}{_only(label, seen, told)}</li>" for label in sorted({*seen, *told})
    )
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
    what = "all classes" if found.label is None else f"{swatch(class_colour(found.label))}class {found.label}"
    return f'<a{anchor} href="#{found.key}">{what} <b>{percent(entry.score)}</b></a>'


def _only(label: int, seen: Sequence[int], told: Sequence[int]) -> str:
    return " (not predicted)" if label not in told else " (not in the label)" if label not in seen else ""


def _confusions(pred: LabelMap, target: LabelMap, wrong: npt.NDArray[np.bool_], pixels: int) -> str:
    """The most frequent errors in words."""
    base = int(pred.max(initial=0)) + 1
    pairs, counts = np.unique(target[wrong] * base + pred[wrong], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:3]
    said = [f"{pairs[i] // base} taken for {pairs[i] % base} ({percent(counts[i] / pixels)} %)" for i in most]
    return f"; most often class {', '.join(said)}." if said else "."


def _joined(labels: Sequence[int]) -> str:
    return ", ".join(map(str, labels)) or "none"


_STYLE: Final = """
output { margin-left: .5rem; color: var(--link); font-variant-numeric: tabular-nums; }
tbody tr:first-child > * { font-weight: 700; }
.tools { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: center; margin-bottom: .75rem; }
.tools label { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; max-width: 100%; }
select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .3rem .5rem; max-width: 100%; text-overflow: ellipsis; }
input { width: 1.1rem; height: 1.1rem; margin: 0; }
.places { display: block; margin: .75rem 0 0; font-size: .875rem; }
.places div { display: flex; flex-wrap: wrap; gap: .1rem .75rem; margin-bottom: .4rem; }
.places dt { min-width: 6rem; max-width: 16rem; overflow-wrap: anywhere; }
.places dd { display: flex; flex-wrap: wrap; gap: .3rem; flex: 1 1 16rem; }
.places a { padding: 0 .6rem; border: 1px solid var(--line); border-radius: 1rem; color: inherit;
  text-decoration: none; font-variant-numeric: tabular-nums; }
.places a:hover { text-decoration: underline; }
.places a[aria-current] { background: var(--chosen); border-color: var(--link); }
body:has(#large:checked) .pictures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
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

_BODY: Final = """<header>
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
</main>"""
