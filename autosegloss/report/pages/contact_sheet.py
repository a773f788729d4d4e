"""The contact sheet: the worst images of an evaluation as one HTML file that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
import numpy.typing as npt

from autosegloss.proxy.data.pictures import LabelMap, read_picture
from autosegloss.report.evaluate import FolderEvaluation, LabelFolders, Scored, summary
from autosegloss.report.pages.elements import (
    document,
    error_legend,
    error_map,
    facts_list,
    figure,
    label_map,
    picture,
    swatch,
    table,
    wrong_share,
)
from autosegloss.report.tables import percent


def contact_sheet(evaluation: FolderEvaluation, folders: LabelFolders) -> str:
    """The worst images for every metric and class, each once, with picture, label, prediction and error map.

    The page embeds its pictures and loads nothing from a network. Its script only shows one list at a time; without it
    the page has the same content.

    Args:
        evaluation: An evaluation with lists of worst images.
        folders: The files that were evaluated; those of the listed images are read again.

    Returns:
        HTML; the same input gives the same text.
    """
    lists = _lists(evaluation)
    images = list(dict.fromkeys(entry.image for each in lists for entry in each.entries))
    facts = facts_list({"predictions": escape(str(folders.pred)), "labels": escape(str(folders.target))})
    body = _BODY.format(
        facts=f"<p>{summary(evaluation)}</p>\n{facts}",
        values=_values(evaluation, lists),
        options=_options(lists, len(images), evaluation),
        legend=error_legend(),
        cards="\n".join(_card(image, evaluation, folders, lists) for image in images),
    )
    return document("Evaluation: values and worst images", body, "contact_sheet.css", "contact_sheet.js")


@dataclass(frozen=True)
class _List:
    """The worst images for a metric (label None), or for a metric and a class."""

    key: str
    metric: str
    label: int | None
    entries: Sequence[Scored]


def _lists(evaluation: FolderEvaluation) -> list[_List]:
    lists = []
    for i, row in enumerate(evaluation.metrics):
        lists.append(_List(f"worst-{i}", row.metric, None, row.worst))
        lists += [_List(f"worst-{i}-{c}", row.metric, c, entries) for c, entries in enumerate(row.worst_by_class)]
    return [each for each in lists if each.entries]


def _values(evaluation: FolderEvaluation, lists: Sequence[_List]) -> str:
    keys = {(each.metric, each.label): each.key for each in lists}

    def cell(metric: str, label: int | None, value: float | None) -> str:
        key = keys.get((metric, label))
        return f'<a href="#{key}">{percent(value)}</a>' if key else percent(value)

    rows = [["overall", *(cell(row.metric, None, row.value) for row in evaluation.metrics)]]
    if any(row.classes for row in evaluation.metrics):
        rows += [
            [
                f"{swatch(label)}{escape(evaluation.title(label))}",
                *(cell(row.metric, label, row.classes[label]) if row.classes else "" for row in evaluation.metrics),
            ]
            for label in range(evaluation.num_classes)
        ]
    return table(["%", *(escape(row.metric) for row in evaluation.metrics)], rows, "values over all images")


def _options(lists: Sequence[_List], images: int, evaluation: FolderEvaluation) -> str:
    parts = [f'<option value="worst">all lists ({images} image{"s" if images != 1 else ""})</option>']
    for metric in dict.fromkeys(each.metric for each in lists):
        name = escape(metric)
        options = "".join(
            f'<option value="{each.key}">{name}{_of_class(each.label, evaluation)} ({len(each.entries)})</option>'
            for each in lists
            if each.metric == metric
        )
        parts.append(f'<optgroup label="{name}">{options}</optgroup>')
    return "".join(parts)


def _card(image: str, evaluation: FolderEvaluation, folders: LabelFolders, lists: Sequence[_List]) -> str:
    pred, target = folders.prediction(image), folders.label(image)
    valid = target != evaluation.ignore_index
    wrong = valid & (pred != target)
    name, share = escape(image), wrong_share(valid, wrong)
    present, predicted = np.unique(target[valid]).tolist(), np.unique(pred).tolist()
    ignored = "" if valid.all() else ", some pixels ignored"
    figures = [
        figure("label", label_map(target, valid), f"label of {name}: classes {_joined(present, evaluation)}{ignored}"),
        figure(
            "prediction",
            label_map(pred, np.ones_like(valid)),
            f"prediction for {name}: classes {_joined(predicted, evaluation)}",
        ),
        figure("errors", error_map(valid, wrong), f"error map of {name}: {share}{ignored}"),
    ]
    if image in folders.image_files:
        shown = picture(read_picture(folders.image_files[image], stretch=True))
        figures.insert(0, figure("image", shown, f"the image {name}"))
    places = [(each, rank, entry) for each in lists for rank, entry in enumerate(each.entries) if entry.image == image]
    ranks = " ".join(f"{each.key}:{rank}" for each, rank, _ in places)
    links = "".join(
        f"<div><dt>{escape(metric)}</dt>"
        f"<dd>{''.join(_link(*place, evaluation) for place in places if place[0].metric == metric)}</dd></div>"
        for metric in dict.fromkeys(each.metric for each, _, _ in places)
    )
    legend = "".join(
        f"<li>{swatch(label)}{escape(evaluation.name(label))}{_only(label, present, predicted)}</li>"
        for label in sorted({*present, *predicted})
    )
    return f"""<article data-ranks="{ranks}">
<h3>{name} <output></output></h3>
<div class="pictures">{"".join(figures)}</div>
<ul class="classes" aria-label="classes in this image">{legend}</ul>
<p>{share}{_confusions(pred, target, wrong, int(valid.sum()), evaluation)}</p>
<dl class="places">{links}</dl>
</article>"""


def _link(place: _List, rank: int, entry: Scored, evaluation: FolderEvaluation) -> str:
    """The score of an image in a list, as a link to the list; the first image of a list is the link's target."""
    anchor = f' id="{place.key}"' if rank == 0 else ""
    what = "all classes" if place.label is None else f"{swatch(place.label)}{escape(evaluation.title(place.label))}"
    return f'<a{anchor} href="#{place.key}">{what} <b>{percent(entry.score)}</b></a>'


def _only(label: int, present: Sequence[int], predicted: Sequence[int]) -> str:
    return " (not predicted)" if label not in predicted else " (not in the label)" if label not in present else ""


def _confusions(
    pred: LabelMap, target: LabelMap, wrong: npt.NDArray[np.bool_], pixels: int, evaluation: FolderEvaluation
) -> str:
    """The most frequent errors in words."""
    base = int(pred.max(initial=0)) + 1
    pairs, counts = np.unique(target[wrong] * base + pred[wrong], return_counts=True)
    most = np.argsort(-counts, kind="stable")[:3]
    texts = [
        f"{' as '.join(escape(evaluation.name(int(label))) for label in divmod(pairs[i], base))} "
        f"({percent(counts[i] / pixels)} %)"
        for i in most
    ]
    what = "class " if evaluation.class_names is None else ""
    return f"; most often {what}{', '.join(texts)}." if texts else "."


def _of_class(label: int | None, evaluation: FolderEvaluation) -> str:
    return "" if label is None else f", {escape(evaluation.title(label))}"


def _joined(labels: Sequence[int], evaluation: FolderEvaluation) -> str:
    return ", ".join(escape(evaluation.name(label)) for label in labels) or "none"


_BODY: Final = """<header>
<h1>Evaluation</h1>
{facts}
</header>
<main>
<h2>Values over all images</h2>
{values}
<section id="worst">
<h2>Worst images</h2>
<div class="tools">
<label id="choose" hidden>show the worst by <select>{options}</select></label>
<label><input type="checkbox" id="large"> large pictures</label>
{legend}
</div>
<p class="note">The score of an image, in %, is the metric of that image alone. The list of a class contains only images
whose label has the class.</p>
<div id="cards">
{cards}
</div>
</section>
</main>"""
