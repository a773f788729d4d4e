"""The report page of a comparison or a retraining."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

from autosegloss.loss.file import build_loss
from autosegloss.metric.settings import CALIBRATION
from autosegloss.proxy.own_loss import is_own
from autosegloss.proxy.trial import TARGET
from autosegloss.report.pages import sections
from autosegloss.report.pages.elements import details, table, text_block
from autosegloss.report.pages.examples import Trained, examples
from autosegloss.report.plots import surrogates
from autosegloss.report.tables import same_metrics
from autosegloss.search.folder import JOURNAL_FILE, PLAN_FILE, TABLE_FILE
from autosegloss.search.ladder import at_step
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import as_config
from autosegloss.search.tables import Row, Table
from autosegloss.search.tabulate import read_table

_LOSSES: Final = 5
"""Losses in a table of all metrics: as many as fit beside each other in a window of 1100 pixels."""


def comparison_page(folder: Path, images: bool) -> str:
    """The page of a finished comparison or retraining; see `report_page`."""
    found = read_table(folder)
    plan, seeds = found.plan, len(found.plan["seeds"])
    settings = {setting: [row for row in found.rows if row.setting == setting] for setting in found.notes}
    definitions = next(iter(plan["definitions"].values()))
    losses = {row.loss: build_loss(definitions[row.loss]) for row in found.rows if not is_own(definitions[row.loss])}
    curves = "\n".join(
        f"<h3>{escape(name)}</h3>\n{sections.curves(loss)}" for name, loss in losses.items() if surrogates(loss)
    )
    bars = _by_setting(settings, lambda rows: _bars(rows, found.target))
    notes = " ".join(filter(None, dict.fromkeys(found.notes.values())))
    facts = {
        "parts of the data": "" if found.own else sections.parts(),
        "target": escape(found.target),
        "losses": escape(", ".join(dict.fromkeys(row.loss for row in found.rows))),
        "settings": escape(", ".join(filter(None, settings))),
        "steps": " ".join(dict.fromkeys(filter(None, map(found.steps_text, settings)))),
        "guards": escape(found.guards_text),
        "runs": f"{seeds} of each loss, on the same seeds",
        "data": escape(notes),
    }
    what = "Retraining" if "processes" in plan else "Comparison"
    return sections.page(
        f"{what} for {found.target}",
        {key: value for key, value in facts.items() if value},
        [
            sections.Section("target", "The target", _by_setting(settings, lambda rows: _goal(rows, found))),
            sections.Section("metrics", "All metrics", _by_setting(settings, lambda rows: _metrics(rows, found))),
            *([] if found.own else [sections.Section("classes", "Target and classes", bars)]),
            sections.Section("curves", "The curves of the losses", curves or "<p>None of the losses has curves.</p>"),
            sections.Section("surfaces", "Loss surfaces", sections.surfaces(losses)),
            *([] if found.own else [sections.Section("images", "Images", _images(found, images))]),
            sections.Section("provenance", "Provenance", _provenance(folder, found)),
        ],
    )


def _by_setting(settings: Mapping[str, Sequence[Row]], make: Callable[[Sequence[Row]], str]) -> str:
    """A part for each setting, under the setting's name if it has one."""
    return "\n".join(
        (f"<h3>{escape(setting)}</h3>\n" if setting else "") + make(rows) for setting, rows in settings.items()
    )


def _about(rows: Sequence[Row], found: Table) -> str:
    """What the numbers of a setting are."""
    seeds = len(found.plan["seeds"])
    first = next(row for row in rows if row.loss == found.first)
    over = f"mean [95% t-interval of the mean] over {seeds} seeds" if seeds > 1 else "one run"
    note = f"{'What the trial returned' if found.own else 'Validation set, %'}: {over}."
    if seeds > 1 and len(rows) > 1:
        tests = found.tests_text(rows, found.columns)
        note += (
            f" Differences are to {escape(first.name)}, paired by seed; better or worse only where a paired t-test "
            f"{escape(tests)}"
        )
    return note


def _goal(rows: Sequence[Row], found: Table) -> str:
    """The target of every loss, a row each; failures, and classes that no loss has learned."""
    first, lines = next(row for row in rows if row.loss == found.first), []
    for row in rows:
        gain = row.differences.get(TARGET)
        verdict = gain.verdict or "-" if gain else "baseline" if row.loss == found.first else "-"
        lines.append(
            [
                escape(row.name),
                sections.mean_text(row.scores.get(TARGET), found.own),
                sections.gain_text(gain, own=found.own) if gain else "-",
                verdict,
            ]
        )
    titles = ["loss", escape(found.target), f"difference to {escape(first.name)}", "verdict"]
    failed = "".join(
        f'<p class="note">{escape(row.name)}: {len(row.errors)} of {len(row.runs)} runs failed. '
        f"{escape(row.errors[0])}</p>"
        for row in rows
        if row.errors
    )
    zero = sections.zero_classes(row.scores for row in rows)
    return f'<p class="note">{_about(rows, found)}</p>\n{failed}{zero}' + table(titles, lines, "the target")


def _metrics(rows: Sequence[Row], found: Table) -> str:
    """Metrics by losses, in tables of a few losses each, which fit on a page."""
    names = sections.measured(row.scores for row in rows)
    note = _about(rows, found)
    if len(found.plan["seeds"]) > 1 and len(rows) > 1:
        note += " The second line of a cell is the difference."
    if CALIBRATION in names:
        note += f" Lower is better for {CALIBRATION}."
    tables = []
    for start in range(0, len(rows), _LOSSES):
        part = rows[start : start + _LOSSES]
        lines = [
            [sections.metric_title(each, found.target), *(_cell(row, each[0], found.own) for row in part)]
            for each in ([[name] for name in names] if found.own else same_metrics(names))
        ]
        name = f"all metrics of losses {start + 1} to {start + len(part)}"
        tables.append(table(["" if found.own else "%", *(escape(row.name) for row in part)], lines, name))
    return f'<p class="note">{note}</p>\n' + "\n<br>\n".join(tables)


def _cell(row: Row, name: str, own: bool) -> str:
    cell = sections.mean_text(row.scores.get(name), own)
    if difference := row.differences.get(name):
        cell += f'<br><span class="gain">{sections.gain_text(difference, difference.verdict or "", own)}</span>'
    return cell


def _bars(rows: Sequence[Row], target: str) -> str:
    return sections.class_bars({row.name: row.scores for row in rows}, {TARGET: f"target: {target}"})


def _images(found: Table, images: bool) -> str:
    plan = found.plan
    if "processes" in plan:
        return "<p>There are no pictures: a retraining takes too long to repeat.</p>"
    if len(plan["configurations"]) > 1:
        return "<p>There are no pictures: they are made for comparisons with a single setting.</p>"
    (first,) = (row for row in found.rows if row.loss == found.first)
    ended = [row for row in found.rows if row.scores and row is not first]
    if not ended:
        return "<p>There are no pictures: there are no two losses to compare.</p>"
    best = max(ended, key=lambda row: row.scores[TARGET].mean)
    usable = [number for number, (a, b) in enumerate(zip(first.runs, best.runs, strict=True)) if a and b]
    if not usable:
        return "<p>There are no pictures: on no seed did both trainings end.</p>"
    number = usable[0]
    shown = {row.loss: row for row in (first, *ended) if row.runs[number]}

    def make() -> str:
        ((setting, configuration),) = plan["configurations"].items()
        config = as_config({**configuration, "modules": plan.get("modules")})
        proxy, definitions = proxy_of(config), plan["definitions"][setting]
        optimizer = config.proxy.train.optimizer
        trained = {}
        for loss, row in shown.items():
            content, rate = definitions[loss], 1.0
            if row.tuned is not None and row.tuned.step != 1:
                content, rate = at_step(content, row.tuned.step, optimizer)
            run = row.runs[number]
            trained[loss] = Trained(row.name, proxy.loss(content), run[TARGET] if run else None, rate)
        return examples(proxy, list(trained.values()), trained[best.loss], plan["seeds"][number])

    what = f"{escape(best.name)}, the best of the other losses on the target, against {escape(first.name)}"
    left_out = [row.name for row in found.rows if row.loss not in shown]
    note = f"<p>Not shown, since their run failed: {escape(', '.join(left_out))}.</p>\n" if left_out and images else ""
    return note + sections.images(make, images, what)


def _provenance(folder: Path, found: Table) -> str:
    plan = found.plan
    facts = {
        "command": f"<code>{escape(found.command)}</code>" if found.command else "not recorded",
        "seeds": ", ".join(map(str, plan["seeds"])),
        "versions": sections.versions_text(found.versions),
        **{key: escape(str(plan[key])) for key in ("processes", "device", "threads", "weights") if plan.get(key)},
    }
    text = text_block(json.dumps(plan, indent=2, ensure_ascii=False), "plan")
    return sections.provenance(facts, folder, (PLAN_FILE, JOURNAL_FILE, TABLE_FILE)) + details(
        "The plan: losses with their definitions, seeds, configurations", text
    )
