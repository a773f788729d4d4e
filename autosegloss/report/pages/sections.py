"""The sections that the pages of searches and of comparisons have in common, and the page around them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from torch import nn

from autosegloss.errors import AutoseglossError, InputError
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss, load_loss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.proxy.trial import CLASS_PREFIX, TARGET
from autosegloss.report.pages import figures
from autosegloss.report.pages.elements import document
from autosegloss.report.pages.examples import NUMBER
from autosegloss.report.pages.figures import Interval
from autosegloss.report.plots import formula
from autosegloss.search.folder import versions
from autosegloss.search.statistics import Difference, t_interval

Runs = Sequence[Mapping[str, float] | None]
"""Every metric, one mapping a seed; None where the training failed."""


@dataclass(frozen=True)
class Section:
    """A part of the page, that its list of contents leads to."""

    key: str
    title: str
    body: str


def curves(loss: Loss) -> str:
    """The formula of a loss and the curve of each of its slots."""
    surrogate = surrogate_of(loss)
    panels = "".join(
        f"<figure>{figures.curve(str(slot), each)}<figcaption>{escape(str(slot))}</figcaption></figure>"
        for slot, each in surrogate.curves.items()
    )
    note = (
        f"<code>{escape(formula(loss))}</code><br>Each operand of a searched operator has a curve, which shapes the "
        f"soft map before the logic (<code>{surrogate.logic}</code>); dashed is the identity, dots are control points."
    )
    return f'<p class="note">{note}</p>\n<div class="panels curves">{panels}</div>'


def surfaces(losses: Mapping[str, nn.Module]) -> str:
    """The losses on the toy image, beside cross-entropy and soft Dice."""
    beside = {"cross-entropy": CrossEntropy(), "soft Dice": load_loss("soft_dice")}
    left_out = {"cross_entropy": "cross-entropy", "soft_dice": "soft Dice"}  # where they are compared by these names
    shown = {n: each for n, each in losses.items() if n not in left_out} | beside
    panels = "".join(
        f"<figure>{figures.surface(name, figures.surface_values(each))}<figcaption>{escape(name)}</figcaption></figure>"
        for name, each in shown.items()
    )
    note = (
        "The loss of one image of 32x32 pixels and two classes: class 1 is a square of 12x12 in its middle. "
        "<var>p_true</var> is the probability of class 1 in every pixel of the square, <var>q</var> that in every "
        "other pixel; class 0 has the rest. All is right at the lower right. Both run from 0.01 to 0.99. "
        "Bluer is higher, "
        "from the lowest to the highest value of each panel, so that shapes are compared, not sizes; contours say the "
        "values."
    )
    return f'<p class="note">{note}</p>\n<div class="panels surfaces">{panels}</div>'


def classes(runs: Mapping[str, Runs], before: Mapping[str, str] | None = None) -> str:
    """Bars of the IoU of each class, after some other metrics."""
    titles = dict(before or {})
    titles |= {name: name[len(CLASS_PREFIX) :] for name in measured_in(runs.values()) if name.startswith(CLASS_PREFIX)}
    groups = {name: {series: interval(each, name) for series, each in runs.items()} for name in titles}
    what = "The target and the IoU of each class" if before else "The IoU of each class"
    note = f"{what} on the validation set, %: mean over seeds, with the 95 % t-interval of the mean."
    return f'<p class="note">{note}</p>\n' + figures.bars(groups, lambda name: escape(titles[name]))


def images(make: Callable[[], str], wanted: bool, what: str) -> str:
    """What two trainings show, or why they don't."""
    if not wanted:
        return "<p>Left out, as <code>--no-images</code> asks.</p>"
    note = (
        "<p>Networks are not kept: these two were trained once more for this page, with one of the seeds of the table. "
        f"Shown are the {NUMBER} validation images whose own mIoU (over the classes in their label) gains most with "
        f"{what} and the {NUMBER} that lose most.</p>\n"
    )
    try:
        return note + make()
    except AutoseglossError as error:
        why = "There are no pictures: two networks have to be trained for them, and that can't be done here."
        return f"<p>{why}</p>\n{text_block(str(error), 'reason')}"


def provenance(facts: Mapping[str, str], folder: Path, files: Sequence[str]) -> str:
    """What is known of where the numbers come from, with the sums of the files they are read from."""
    sums = {
        f"SHA-256 of {name}": f"<code>{hashlib.sha256((folder / name).read_bytes()).hexdigest()}</code>"
        for name in files
        if (folder / name).exists()
    }
    page = {"this page": f"<code>autosegloss report DIR</code>, by {versions_text(versions())}"}
    return facts_list({**facts, **sums, **page})


def surrogate_of(loss: Loss) -> SurrogateLoss:
    """The part of a loss that has curves.

    Raises:
        InputError: It has none.
    """
    surrogate = loss.surrogate if isinstance(loss, MixedLoss) else loss
    if not isinstance(surrogate, SurrogateLoss):
        raise InputError(f"{loss} has no curves.")
    return surrogate


def measured_in(rows: Any) -> list[str]:
    """The names of all metrics that any run has, in their order; the target first."""
    names = dict.fromkeys(name for runs in rows for run in runs if run for name in run)
    return sorted(names, key=lambda name: name != TARGET)


def _values(runs: Runs, name: str) -> list[float | None]:
    return [None if run is None else run.get(name) for run in runs]


def interval(runs: Runs, name: str) -> Interval | None:
    """The mean of a metric over the seeds that ended, with its 95% t-interval; one seed has none."""
    values = [value for value in _values(runs, name) if value is not None]
    if not values:
        return None
    return Interval(*t_interval(values)) if len(values) > 1 else Interval(values[0])


def difference(ours: Runs, first: Runs, name: str) -> Difference | None:
    """The paired difference over the seeds on which both ended; None where it has no interval."""
    both = zip(_values(ours, name), _values(first, name), strict=True)
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    return Difference.of([a for a, _ in pairs], [b for _, b in pairs])


def mean_text(value: Interval | None) -> str:
    """A mean with its interval, in %."""
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"<b>{100 * value.mean:.1f}</b>"
    return f"<b>{100 * value.mean:.1f}</b> [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def gain_text(value: Difference) -> str:
    """A difference with its interval, in %."""
    return f"<b>{100 * value.mean:+.1f}</b> [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def marked(value: Difference | None) -> str:
    """A difference, with a mark if its interval leaves out 0."""
    if value is None:
        return "-"
    return _marked("▲" if value.low > 0 else "▼" if value.high < 0 else "", value)


def recorded(difference: Mapping[str, Any]) -> str:
    """A difference as the file has it, with its verdict where there is one."""
    value = Difference(difference["mean"], difference["low"], difference["high"], difference["p"])
    return _marked(escape(str(difference["verdict"] or "")), value)


def _marked(mark: str, value: Difference) -> str:
    return f'<span class="mark">{mark}</span> {gain_text(value)}' if mark else gain_text(value)


def metric_title(names: Sequence[str], target: str) -> str:
    """What a row is called: all names of one metric."""
    title = f"target: {target}" if names[0] == TARGET else " = ".join(names)
    return escape(title)


def number(value: float | None) -> str:
    """A reward; none where the training failed."""
    return "failed" if value is None else f"{value:.4f}"


def versions_text(found: Mapping[str, Any]) -> str:
    """Packages and their versions."""
    return escape(", ".join(f"{name} {version}" for name, version in found.items())) or "not on record"


def facts_list(facts: Mapping[str, str]) -> str:
    """Facts by what they are about; both are HTML."""
    return f"<dl>{''.join(f'<dt>{key}</dt><dd>{value}</dd>' for key, value in facts.items())}</dl>"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """A table that scrolls by itself where it is too wide; cells are HTML."""
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def text_block(text: str, name: str) -> str:
    """A text as it is, that scrolls by itself."""
    return f'<pre class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{escape(text)}</pre>'


def details(title: str, body: str) -> str:
    """What is shown when it is asked for, and in print."""
    return f"<details><summary>{title}</summary>\n{body}\n</details>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """What the marks of a figure mean."""

    def mark(kind: str) -> str:
        if kind.startswith("line"):
            return f'<path class="{kind}" d="M1 7H27"/>'
        if kind == "failed":
            return '<path class="failed" d="M11 4l6 6m0 -6l-6 6"/>'
        return f'<circle class="{kind}" cx="14" cy="7" r="3"/>'

    items = "".join(
        f'<li><svg class="key" viewBox="0 0 28 14" aria-hidden="true">{mark(kind)}</svg>{text}</li>'
        for kind, text in entries
    )
    return f'<ul class="legend" aria-label="legend">{items}</ul>'


def page(title: str, facts: str, sections: Sequence[Section]) -> str:
    """The page of some sections; all but the title is HTML."""
    links = "".join(f'<li><a href="#{each.key}">{each.title}</a></li>' for each in sections)
    parts = "\n".join(
        f'<section aria-labelledby="{each.key}">\n<h2 id="{each.key}">{each.title}</h2>\n{each.body}\n</section>'
        for each in sections
    )
    body = (
        f"<header>\n<h1>{escape(title)}</h1>\n{facts}\n</header>\n"
        f'<main>\n<nav aria-label="contents"><ul>{links}</ul></nav>\n{parts}\n</main>'
    )
    return document(escape(title), _STYLE, body)


_LIGHT: Final = """
    --s0: #767c84; --s1: #c2570c; --s2: #0b62a8; --s3: #007f5c; --s4: #a8487f; --s5: #8a6100; --s6: #2a7fb0;
    --s7: #6b4a3a;"""
_DARK: Final = """
    --s0: #99a1ab; --s1: #f0904a; --s2: #63b3ed; --s3: #3ec9a0; --s4: #e08fbd; --s5: #e0b040; --s6: #8fd3f5;
    --s7: #c9a48f;"""
_STYLE: Final = (
    f"""
:root {{{_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{{_DARK} }} }}
"""
    + "\n".join(f".s{i} {{ fill: var(--s{i}); }}" for i in range(figures.SERIES))
    + """
main { max-width: 76rem; padding-bottom: 3rem; }
header { max-width: 76rem; }
h1, h4, .note, summary, td, figcaption, .bar span, section p { overflow-wrap: anywhere; }
h3 { margin-top: 1.5rem; }
h4 { font-size: .95rem; margin: 1rem 0 .5rem; font-weight: 600; }
section > p { max-width: 60rem; }
.note { max-width: 60rem; }
p + .note { margin-top: .5rem; }
nav ul { margin: 1rem 0 0; padding: .5rem 0; border-block: 1px solid var(--line); gap: .25rem 1.25rem; }
td, thead th { white-space: nowrap; }
thead th { white-space: normal; }
thead th:first-child { min-width: 0; }
td { color: var(--quiet); }
td b { color: var(--text); }
tbody th:first-child { min-width: 10rem; max-width: 16rem; overflow-wrap: anywhere; white-space: normal; }
@media (max-width: 40rem) {
  tbody th:first-child { max-width: 8.5rem; min-width: 7rem; }
  dl { grid-template-columns: 1fr; }
  dt { margin-top: .4rem; }
}
.mark { color: var(--text); font-weight: 700; }
code, pre { font: .875rem/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { margin: .5rem 0; padding: .75rem; }
pre.scroll { max-height: 32rem; overflow: auto; width: auto; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--link); }
details .scroll { margin-top: .5rem; }
.wide { max-width: 36rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 9rem), 1fr)); gap: .75rem; }
.panels figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .4rem;
  max-width: 16rem; }
.panels.curves, .panels.surfaces { grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.panels.curves figure, .panels.surfaces figure { max-width: 21rem; }
.panels figcaption { text-align: center; }
.legend { margin: .5rem 0; font-size: .875rem; color: var(--quiet); gap: .25rem 1.1rem; }
.legend li { display: flex; align-items: center; max-width: 100%; overflow-wrap: anywhere; }
.legend .swatch { flex: none; }
.key { width: 28px; height: 14px; margin-right: .4em; flex: none; }
.plot { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; overflow: visible; }
.plot text { fill: var(--quiet); }
@media (max-width: 40rem) { .wide .plot { font-size: 13px; } }
.grid { stroke: var(--line); stroke-width: .6; }
.axis { stroke: var(--quiet); fill: none; stroke-width: .8; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.mean, .found { stroke: var(--s2); }
.best { stroke: var(--s1); stroke-dasharray: 5 2; stroke-width: 1.4; }
.cross-entropy { stroke: var(--s0); stroke-dasharray: 1.5 2.5; }
.winner { stroke: var(--s3); stroke-dasharray: 8 2 2 2; }
.identity { stroke: var(--quiet); stroke-dasharray: 3 3; stroke-width: 1; }
.band { fill: var(--s2); opacity: .18; }
.dot { fill: var(--text); opacity: .5; }
.failed { stroke: #d0342c; stroke-width: 1.6; fill: none; }
.centre { fill: var(--s2); }
.point { fill: var(--s1); }
.contour { fill: none; stroke: var(--text); stroke-width: .7; opacity: .75; }
.plot .level { fill: var(--text); font-size: 10px; paint-order: stroke; stroke: var(--card); stroke-width: 3px;
  stroke-linejoin: round; }
.bars { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 0 2rem; }
.bar-group h3 { margin: .9rem 0 .25rem; }
.bar { display: grid; grid-template-columns: 9rem 1fr 3rem; gap: .6rem; align-items: center; font-size: .875rem; }
.bar span { color: var(--quiet); line-height: 1.25; }
.bar svg { width: 100%; height: .95rem; background: var(--right); border-radius: 2px; }
.bar b { text-align: right; font-variant-numeric: tabular-nums; }
.whisker { stroke: var(--text); stroke-width: 1.2; }
article h4 { margin-top: 0; }
@media print {
  :root { color-scheme: light; --page: #fff; --card: #fff; --text: #000; --quiet: #444; --line: #bbb; --link: #000;
    --right: #e6eaee;"""
    + _LIGHT
    + """ }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 10pt; }
  nav { display: none; }
  .scroll, pre.scroll { overflow: visible; max-height: none; width: auto; border: 0; }
  table { font-size: 7.5pt; }
  th, td { padding: .1rem .35rem; }
  td { white-space: normal; }
  th:first-child { position: static; }
  pre { white-space: pre-wrap; }
  .pictures { grid-template-columns: repeat(6, 1fr); gap: .4rem; }
  .bars { grid-template-columns: 1fr 1fr; }
  .panels { grid-template-columns: repeat(6, 1fr); gap: .4rem; }
  .panels.curves, .panels.surfaces { grid-template-columns: repeat(3, 1fr); }
  details::details-content { content-visibility: visible; block-size: auto; }
  figure, article, tr, .bar-group { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
}
"""
)
