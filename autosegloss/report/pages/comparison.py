"""The report page of a comparison or a retraining."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from autosegloss.loss import MixedLoss, SurrogateLoss
from autosegloss.loss.file import build_loss
from autosegloss.metric.settings import CALIBRATION
from autosegloss.proxy.trial import TARGET
from autosegloss.report.pages import sections
from autosegloss.report.pages.elements import details, table, text_block
from autosegloss.report.pages.examples import Trained, examples
from autosegloss.report.tables import same_metrics
from autosegloss.search.folder import JOURNAL_FILE, PLAN_FILE, TABLE_FILE
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import as_config
from autosegloss.search.tables import Row, Table
from autosegloss.search.tabulate import read_table


def comparison_page(folder: Path, images: bool) -> str:
    """The page of a finished comparison or retraining; see `report_page`."""
    found = read_table(folder)
    plan, seeds = found.plan, len(found.plan["seeds"])
    settings = {setting: [row for row in found.rows if row.setting == setting] for setting in found.notes}
    definitions = next(iter(plan["definitions"].values()))
    losses = {row.loss: build_loss(definitions[row.loss]) for row in found.rows}
    curves = "\n".join(
        f"<h3>{escape(name)}</h3>\n{sections.curves(loss)}"
        for name, loss in losses.items()
        if isinstance(loss, SurrogateLoss | MixedLoss)
    )
    notes = " ".join(filter(None, dict.fromkeys(found.notes.values())))
    facts = {
        "target": escape(found.target),
        "losses": escape(", ".join(losses)),
        "settings": escape(", ".join(filter(None, settings))),
        "runs": f"{seeds} of each loss, on the same seeds",
        "data": escape(notes),
    }
    what = "Retraining" if "processes" in plan else "Comparison"
    return sections.page(
        f"{what} for {found.target}",
        {key: value for key, value in facts.items() if value},
        [
            sections.Section(
                "metrics", "All metrics", _by_setting(settings, lambda rows: _metrics(rows, found.target, seeds))
            ),
            sections.Section(
                "classes", "Target and classes", _by_setting(settings, lambda rows: _bars(rows, found.target))
            ),
            sections.Section("curves", "The curves of the losses", curves or "<p>None of the losses has curves.</p>"),
            sections.Section("surfaces", "Loss surfaces", sections.surfaces(losses)),
            sections.Section("images", "Images", _images(found, images)),
            sections.Section("provenance", "Provenance", _provenance(folder, found)),
        ],
    )


def _by_setting(settings: Mapping[str, Sequence[Row]], make: Callable[[Sequence[Row]], str]) -> str:
    """A part for each setting, under the setting's name if it has one."""
    return "\n".join(
        (f"<h3>{escape(setting)}</h3>\n" if setting else "") + make(rows) for setting, rows in settings.items()
    )


def _metrics(rows: Sequence[Row], target: str, seeds: int) -> str:
    """Metrics by losses."""
    names = sections.measured(row.scores for row in rows)
    lines = []
    for group in same_metrics(names):
        cells = [sections.metric_title(group, target)]
        for row in rows:
            cell = sections.mean_text(row.scores.get(group[0]))
            if difference := row.differences.get(group[0]):
                cell += f'<br><span class="gain">{sections.gain_text(difference, difference.verdict or "")}</span>'
            cells.append(cell)
        lines.append(cells)
    note = f"Validation set, %: {f'mean [95 % t-interval of the mean] over {seeds} seeds' if seeds > 1 else 'one run'}."
    if seeds > 1 and len(rows) > 1:
        note += (
            f" Second line: the difference to {escape(rows[0].loss)}, paired by seed, with the verdict of the table "
            "(better or worse, with Holm's correction); only the columns of the table have verdicts."
        )
    if CALIBRATION in names:
        note += f" Lower is better for {CALIBRATION}."
    failed = "".join(
        f'<p class="note">{escape(row.loss)}: {len(row.errors)} of {seeds} runs failed. {escape(row.errors[0])}</p>'
        for row in rows
        if row.errors
    )
    titles = ["%", *(escape(row.loss) for row in rows)]
    return f'<p class="note">{note}</p>\n{failed}' + table(titles, lines, "all metrics of all losses")


def _bars(rows: Sequence[Row], target: str) -> str:
    return sections.class_bars({row.loss: row.scores for row in rows}, {TARGET: f"target: {target}"})


def _images(found: Table, images: bool) -> str:
    plan, (first, *others) = found.plan, found.rows
    if "processes" in plan:
        return "<p>There are no pictures: a retraining takes too long to repeat.</p>"
    if len(plan["configurations"]) > 1:
        return "<p>There are no pictures: they are made for comparisons with a single setting.</p>"
    ended = [row for row in others if row.scores]
    if not ended:
        return "<p>There are no pictures: there are no two losses to compare.</p>"
    best = max(ended, key=lambda row: row.scores[TARGET].mean)
    pairs = zip(plan["seeds"], first.runs, best.runs, strict=True)
    usable = [(seed, a[TARGET], b[TARGET]) for seed, a, b in pairs if a and b]
    if not usable:
        return "<p>There are no pictures: on no seed did both trainings end.</p>"
    seed, *recorded = usable[0]

    def make() -> str:
        ((setting, configuration),) = plan["configurations"].items()
        proxy, definitions = proxy_of(as_config(configuration)), plan["definitions"][setting]
        one, other = (
            Trained(row.loss, proxy.loss(definitions[row.loss]), value)
            for row, value in zip((first, best), recorded, strict=True)
        )
        return examples(proxy, one, other, seed)

    return sections.images(make, images, f"{escape(best.loss)}, the best of the other losses on the target,")


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
