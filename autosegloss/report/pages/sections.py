"""The sections that the report pages of searches and of comparisons share, and the frame of these pages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from torch import nn

from autosegloss.errors import AutoseglossError
from autosegloss.loss import Loss, load_loss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.proxy.trial import CLASS_PREFIX, TARGET
from autosegloss.report.pages import figures
from autosegloss.report.pages.elements import document, facts_list, text_block
from autosegloss.report.pages.examples import NUMBER
from autosegloss.report.plots import curves_of, formula, surrogates
from autosegloss.search.head import versions
from autosegloss.search.statistics import Difference, Estimate, number
from autosegloss.search.tables import not_learned

Scores = Mapping[str, Mapping[str, Estimate]]
"""Estimates of every metric on the validation set, by loss and metric."""


@dataclass(frozen=True)
class Section:
    """A section of the page; its body is HTML, its key the anchor."""

    key: str
    title: str
    body: str


def page(title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The page of some sections; the facts are HTML."""
    links = "".join(f'<li><a href="#{each.key}">{each.title}</a></li>' for each in sections)
    parts = "\n".join(
        f'<section aria-labelledby="{each.key}">\n<h2 id="{each.key}">{each.title}</h2>\n{each.body}\n</section>'
        for each in sections
    )
    body = (
        f"<header>\n<h1>{escape(title)}</h1>\n{facts_list(facts)}\n</header>\n"
        f'<main>\n<nav aria-label="contents"><ul>{links}</ul></nav>\n{parts}\n</main>'
    )
    return document(title, body, "report.css")


def curves(loss: Loss) -> str:
    """The formula of a loss and the curve of each of its slots."""
    shown = f"<code>{escape(formula(loss))}</code>"
    if not (slots := curves_of(loss)):
        return f"<p>{shown} has no curves.</p>"
    panels = "".join(
        f"<figure>{figures.curve(str(slot), each)}<figcaption>{escape(str(slot))}</figcaption></figure>"
        for slot, each in slots
    )
    logics = ", ".join(dict.fromkeys(f"<code>{each.logic}</code>" for each in surrogates(loss)))
    note = (
        f"{shown}<br>Each operand of a searched operator passes through a curve before the logic ({logics}). Dashed: "
        "the identity; dots: control points."
    )
    return f'<p class="note">{note}</p>\n<div class="panels curves">{panels}</div>'


def surfaces(losses: Mapping[str, nn.Module]) -> str:
    """The losses on the toy image, beside cross-entropy and soft Dice."""
    beside = {"cross-entropy": CrossEntropy(), "soft Dice": load_loss("soft_dice")}
    shown = {name: loss for name, loss in losses.items() if name not in ("cross_entropy", "soft_dice")} | beside
    panels = ""
    for name, each in shown.items():
        try:
            values = figures.surface_values(each)
        except AutoseglossError as error:  # a loss for another number of classes
            panels += f"<figure><figcaption>{escape(name)}: not shown. {escape(str(error))}</figcaption></figure>"
            continue
        caption = f"{escape(name)}: {values.min():.3g} to {values.max():.3g}"
        panels += f"<figure>{figures.surface(name, values)}<figcaption>{caption}</figcaption></figure>"
    note = (
        "The loss of an image of 32x32 pixels with two classes, whose label is class 1 in a central square of 12x12 "
        "pixels. <var>p_true</var> is the predicted probability of class 1 inside the square, <var>q</var> outside; "
        "the perfect prediction is at the lower right. Both run from 0.01 to 0.99. Each panel runs from its own lowest "
        "value to its highest (bluer), so compare shapes, not values."
    )
    return f'<p class="note">{note}</p>\n<div class="panels surfaces">{panels}</div>'


def class_bars(scores: Scores, before: Mapping[str, str] | None = None) -> str:
    """Bars of the IoU of each class, after some other metrics, which are given with their titles."""
    names = [name for name in measured(scores.values()) if name.startswith(CLASS_PREFIX)]
    titles = {**(before or {}), **{name: name.removeprefix(CLASS_PREFIX) for name in names}}
    groups = {title: {loss: row.get(name) for loss, row in scores.items()} for name, title in titles.items()}
    note = "Validation set, %: mean over the seeds with the 95% t-interval of the mean. A class's value is its IoU."
    return f'<p class="note">{note}</p>\n' + figures.bars(groups)


def images(make: Callable[[], str], wanted: bool, what: str) -> str:
    """What trainings predict, or why it is not shown."""
    if not wanted:
        return "<p>Omitted because of <code>--no-images</code>.</p>"
    note = (
        "<p>Networks are not kept: these were trained again for this page, with one of the seeds of the table. "
        f"Shown are the {NUMBER} validation images whose own score gains most with {what} and the {NUMBER} that lose "
        f"most, the largest change first; then the {NUMBER} others with the lowest score. The score of an image is the "
        "target metric on this image alone, in %.</p>\n"
    )
    try:
        return note + make()
    except AutoseglossError as error:
        why = "There are no pictures: they need new trainings, which can't be run here."
        return f"<p>{why}</p>\n{text_block(str(error), 'reason')}"


def provenance(facts: Mapping[str, str], folder: Path, files: Sequence[str]) -> str:
    """Where the numbers come from, with the checksums of the files they are read from."""
    sums = {
        f"SHA-256 of {name}": f"<code>{hashlib.sha256((folder / name).read_bytes()).hexdigest()}</code>"
        for name in files
        if (folder / name).exists()
    }
    return facts_list(
        {**facts, **sums, "this page": f"<code>autosegloss report DIR</code>, {versions_text(versions())}"}
    )


PARTS: Final = {
    "train": "the images that networks train on",
    "held-out part (often called val)": "training images that are kept apart; the rewards of a search come from them",
    "validation set (often called test)": "images that neither training nor search has used; for final numbers alone",
}
"""The parts of the data as the pages and tables call them."""


def parts() -> str:
    """What the parts of the data are, for where a page first names them."""
    return "; ".join(f"<b>{name}</b>: {what}" for name, what in PARTS.items())


def zero_classes(rows: Iterable[Mapping[str, Estimate]]) -> str:
    """A note on classes that no loss has learned, if there are any."""
    text = not_learned(list(rows))
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
    return f'<p class="note"><strong>{marked}</strong></p>\n' if text else ""


def measured(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """The names of all metrics in some rows, in their order; the target first."""
    return sorted(dict.fromkeys(name for row in rows for name in row), key=lambda name: name != TARGET)


def metric_title(names: Sequence[str], target: str) -> str:
    """The title of a row: all names of one metric."""
    return escape(f"target: {target}" if names[0] == TARGET else " = ".join(names))


def mean_text(value: Estimate | None, own: bool = False) -> str:
    """A mean, with its interval if there is one; `own` as for `number`."""
    if value is None:
        return "-"
    ends = [] if value.low is None or value.high is None else [value.low, value.high]
    interval = f" [{', '.join(number(end, own) for end in ends)}]" if ends else ""
    return f"<b>{number(value.mean, own)}</b>{interval}"


def gain_text(value: Difference, mark: str = "", own: bool = False) -> str:
    """A difference, with its interval and perhaps a mark before it; `own` as for `number`."""
    mean, low, high = (number(each, own, "+") for each in (value.mean, value.low, value.high))
    text = f"<b>{mean}</b> [{low}, {high}]"
    return f'<span class="mark">{mark}</span> {text}' if mark else text


def versions_text(found: Mapping[str, Any]) -> str:
    """Packages and their versions."""
    return escape(", ".join(f"{name} {version}" for name, version in found.items())) or "not recorded"
