"""The report page: a finished search, comparison or retraining as one HTML file that needs nothing else."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Final

from autosegloss.errors import InputError
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss, load_loss
from autosegloss.loss.curve import number_of_points
from autosegloss.loss.file import build_loss
from autosegloss.metric.settings import CALIBRATION
from autosegloss.proxy.train import one_thread
from autosegloss.proxy.trial import TARGET
from autosegloss.report.pages import figures, sections
from autosegloss.report.pages.examples import Trained, examples
from autosegloss.report.tables import metric_label, same_metrics
from autosegloss.search.api import Status, status
from autosegloss.search.comparison import PLAN_FILE, TABLE_FILE
from autosegloss.search.folder import CONFIG_FILE, JOURNAL_FILE, LOSS_FILE
from autosegloss.search.guard import guarded
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.objective import proxy_of
from autosegloss.search.plan import Final as Member
from autosegloss.search.plan import Findings
from autosegloss.search.settings import StudyConfig, as_config
from autosegloss.search.space import CROSS_ENTROPY, LossFamily, bare_content

READ: Final = (CONFIG_FILE, JOURNAL_FILE, LOSS_FILE, PLAN_FILE, TABLE_FILE)
"""What a page is made from."""
_NAMES: Final = {"cross-entropy": "cross-entropy", "identity": "before the search", "found": "found loss"}


def report_page(folder: Path, images: bool = True) -> str:
    """The page of what a folder holds.

    A trial is a pure function of configuration, loss and seed, and a folder holds no networks: for the pictures of a
    search or a comparison two of its trainings are run once more.

    Args:
        folder: Of a finished search, comparison or retraining.
        images: Whether to train for pictures.

    Returns:
        HTML; the same folder gives the same text.

    Raises:
        InputError: The folder is of nothing that is finished, or damaged.
        RefusedError: The journal of the search is damaged.
    """
    with one_thread():  # its many small tensors are no work for several
        if (folder / PLAN_FILE).exists() or (folder / TABLE_FILE).exists():
            return _comparison_page(folder, images)
        if not (folder / JOURNAL_FILE).exists() and not (folder / CONFIG_FILE).exists():
            raise InputError(
                f"{folder}: no {CONFIG_FILE} and {JOURNAL_FILE} of a search in this folder, and no {PLAN_FILE} and "
                f"{TABLE_FILE} of a comparison or a retraining; there is nothing to report."
            )
        return _search_page(folder, images)


# A search -------------------------------------------------------------------------------------------------------------


def _search_page(folder: Path, images: bool) -> str:
    found = status(folder)
    study, config = found.study, found.config
    if not study.finished or not (folder / LOSS_FILE).exists():
        what = "is still running: wait for its end" if found.running else "is not finished"
        raise InputError(
            f"{folder}: the search {what}; {study.done} of {study.total} trials are done. Continue one that was "
            f"stopped with: autosegloss search CONFIG --out {folder} --resume."
        )
    loss, findings = load_loss(folder / LOSS_FILE), study.findings()
    if bare_content(loss) != findings.loss:
        raise InputError(
            f"{folder / LOSS_FILE}: this is not the loss that the journal beside it leads to. Restore it, or have it "
            f"written again with: autosegloss search CONFIG --out {folder} --resume."
        )
    finals = {final.label: final for final in findings.finals}
    compared = {
        _NAMES["cross-entropy"]: finals["cross-entropy"],
        _NAMES["identity"]: finals["identity"],
        _NAMES["found"]: finals[findings.label],
    }
    target = metric_label(config)
    shown = [
        sections.Section("search", "The search", _course(found, findings)),
        sections.Section("curves", "The curves found", sections.curves(loss)),
        sections.Section("surfaces", "Loss surfaces", sections.surfaces({"found loss": loss})),
        sections.Section("metrics", "All metrics", _search_table(compared, target, len(findings.seeds))),
        sections.Section(
            "classes", "Classes", sections.classes({name: _runs(final) for name, final in compared.items()})
        ),
        sections.Section("images", "Images", _search_images(config, findings, compared, images)),
        sections.Section("provenance", "Provenance", _search_provenance(folder, found, findings, loss)),
    ]
    return sections.page(f"Search for {target}", _summary(found, findings, compared), shown)


def _summary(found: Status, findings: Findings, compared: Mapping[str, Member]) -> str:
    study, config = found.study, found.config
    first, _, last = (_runs(final) for final in compared.values())
    gain = sections.difference(last, first, TARGET)
    ours, theirs = (sections.mean_text(sections.interval(runs, TARGET)) for runs in (last, first))
    said = f"{ours} with it, {theirs} with cross-entropy"
    by = f"; by {sections.gain_text(gain)}" if gain else ""
    return sections.facts_list(
        {
            "found": f"{escape(findings.label)}, reward {findings.reward:.4f} over {len(findings.seeds)} fresh seeds",
            "validation set": f"{escape(metric_label(config))}, %: {said}{by} (mean [95 % interval])",
            "search": f"{escape(config.search.algorithm)}, {study.step_count} steps, {study.done} trials with the "
            f"finals, {study.failed} failed; {study.seconds:.0f} s of training",
            "proxy": f"{escape(config.proxy.network.name)} on {escape(config.proxy.data.name)}, "
            f"{config.proxy.train.iterations} iterations",
        }
    )


def _course(found: Status, findings: Findings) -> str:
    """Rewards and coordinates over the steps."""
    steps = _steps(found)
    rewards = [[outcome.reward for _, outcome in step] for step in steps]
    spreads = [_spread(step) for step in rewards]
    finals = {final.label: final.reward for final in findings.finals}
    lines = {"cross-entropy": finals["cross-entropy"], "winner": findings.reward}
    figure = figures.rewards(
        rewards,
        [step.mean for step in findings.steps],
        spreads,
        {name: value for name, value in lines.items() if value is not None},
    )
    legend = [
        ("dot", "a trial"),
        *([("failed", "a failed trial")] if any(None in step for step in rewards) else []),
        ("line mean", "mean of the step, ± standard deviation of its trials"),
        ("line best", "best so far"),
        ("line cross-entropy", "cross-entropy in the finals"),
        ("line winner", "found loss in the finals"),
    ]
    guard = " Rewards have the guard in them." if found.config.guard else ""
    note = (
        "The reward is the target metric on the held-out part of the training set. All trials of a step share a seed; "
        f"the finals have others, {len(findings.seeds)} fresh ones, and their means are the horizontal lines.{guard}"
    )
    numbers = sections.table(
        ["step", "seed", "mean", "sd", "best", "failed"],
        [
            [str(step.step), str(step.seed), f"{step.mean:.4f}", f"{sd:.4f}", f"{step.best:.4f}", str(step.failed)]
            for step, sd in zip(findings.steps, spreads, strict=True)
        ],
        "the steps in numbers",
    )
    members = sections.table(
        ["member of the finals", "mean reward", *(f"seed {seed}" for seed in findings.seeds)],
        [[escape(f.label), sections.number(f.reward), *map(sections.number, f.rewards)] for f in findings.finals],
        "the finals in numbers",
    )
    return (
        f'<p class="note">{note}</p>\n<figure class="wide">{figure}</figure>\n{sections.legend(legend)}\n'
        f"{sections.details('The steps in numbers', numbers)}\n{sections.details('The finals in numbers', members)}\n"
        f"{_coordinates(found, findings, steps)}"
    )


def _coordinates(found: Status, findings: Findings, steps: Sequence[Sequence[tuple[Job, Outcome]]]) -> str:
    """Every coordinate of theta over the steps."""
    space = LossFamily.of(found.config).space
    size = 2 * number_of_points(space.curve, space.pieces)
    groups = [(" and ".join(map(str, slots)), size) for slots in space.curves]
    if space.cross_entropy:
        groups.append(("weight of cross-entropy", 1))
    centres, spreads = [step.mu for step in findings.steps], [step.std for step in findings.steps]
    parts, first = [], 0
    for title, length in groups:
        panels = []
        for offset in range(length):
            i = first + offset
            name = f"point {offset // 2 + 1}, {'uv'[offset % 2]}" if length > 1 else "weight"
            figure = figures.coordinate(
                f"{title}, {name}",
                _column(centres, i),
                _column(spreads, i),
                [[job.theta[i] for job, _ in step if job.theta is not None] for step in steps],
            )
            panels.append(f"<figure>{figure}<figcaption>{name}</figcaption></figure>")
        parts.append(f'<h4>{escape(title)}</h4>\n<div class="panels">{"".join(panels)}</div>')
        first += length
    algorithm = f"<code>{escape(found.config.search.algorithm)}</code>"
    if None in centres:
        how = f"{algorithm} has no centre: the samples are all there is."
    elif None in spreads:
        how = f"The line is the centre of {algorithm}, whose spread is not known; dots are samples."
    else:
        how = f"The line is the centre of {algorithm}, the band one standard deviation of it before truncation."
    note = (
        f"{how} A coordinate says how much of what is left to the end (1, 1) a control point takes, in u or in v, "
        "after the point before it."
    )
    return f'<h3>The policy, coordinate by coordinate</h3>\n<p class="note">{note}</p>\n' + "\n".join(parts)


def _search_table(compared: Mapping[str, Member], target: str, seeds: int) -> str:
    """Every metric of the three losses, and what is gained on both of the others."""
    runs = {name: _runs(final) for name, final in compared.items()}
    first, before, last = runs.values()
    rows = []
    for names in same_metrics(sections.measured_in(runs.values())):
        name = names[0]
        rows.append(
            [
                sections.metric_title(names, target),
                *(sections.mean_text(sections.interval(each, name)) for each in runs.values()),
                sections.marked(sections.difference(last, first, name)),
                sections.marked(sections.difference(last, before, name)),
            ]
        )
    titles = ["%", *map(escape, runs), "found less cross-entropy", "found less before the search"]
    note = (
        f"Validation set, %: mean [95 % t-interval of the mean] over {seeds} fresh seeds; differences are paired by "
        "seed. ▲ and ▼ mark those whose interval leaves out 0; with so many metrics, and no correction for their "
        "number, some do by chance. An "
        "interval of a mean may pass 0 or 100. No decision of the search has seen these numbers."
    )
    return f'<p class="note">{note}</p>\n' + sections.table(titles, rows, "all metrics of the three losses")


def _search_images(config: StudyConfig, findings: Findings, compared: Mapping[str, Member], images: bool) -> str:
    seed = findings.seeds[0]
    first, _, last = compared.values()
    recorded = [final.validation[0].get(TARGET) if final.validation[0] else None for final in (first, last)]

    def make() -> str:
        proxy = proxy_of(config)
        both = (
            Trained("cross-entropy", proxy.loss(CROSS_ENTROPY), recorded[0]),
            Trained("found loss", proxy.loss(findings.loss), recorded[1]),
        )
        return examples(proxy, *both, seed)

    return sections.images(make, images, "the found loss")


def _search_provenance(folder: Path, found: Status, findings: Findings, loss: Loss) -> str:
    recorded = loss.provenance.get("versions")
    facts = {
        "command": "<code>autosegloss search config.yaml</code>, with the configuration below",
        "seed of the search": str(found.config.search.seed),
        "seeds of the steps": ", ".join(str(step.seed) for step in findings.steps),
        "seeds of the finals": ", ".join(map(str, findings.seeds)),
        "versions": sections.versions_text(recorded if isinstance(recorded, Mapping) else {}),
    }
    return sections.provenance(facts, folder, (CONFIG_FILE, JOURNAL_FILE, LOSS_FILE)) + sections.details(
        "The configuration, as resolved",
        sections.text_block((folder / CONFIG_FILE).read_text(encoding="utf-8"), "configuration"),
    )


def _steps(found: Status) -> list[list[tuple[Job, Outcome]]]:
    """The trials of each step in their order, with the rewards that the search went by."""
    places = {job.place: (job, outcome) for job, outcome in found.trials if job.stage == "search"}
    steps: list[list[tuple[Job, Outcome]]] = [[] for _ in found.study.steps]
    for _, (job, outcome) in sorted(places.items()):
        steps[job.step].append((job, outcome))
    decided = [guarded(dict(step), found.config.guard, CROSS_ENTROPY) for step in steps]
    return [[(job, outcome) for job, outcome in step.items() if job.theta is not None] for step in decided]


def _spread(rewards: Sequence[float | None]) -> float:
    """The standard deviation of a step, whose mean counts a failed trial as the lowest."""
    ended = [reward for reward in rewards if reward is not None]
    values = [min(ended) if reward is None else reward for reward in rewards]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _column(vectors: Sequence[tuple[float, ...] | None], index: int) -> list[float] | None:
    column = [vector[index] for vector in vectors if vector is not None]
    return column if len(column) == len(vectors) else None


def _runs(final: Member) -> sections.Runs:
    """What each seed measured on the validation set; None where the training failed."""
    return [run or None for run in final.validation]


# A comparison or a retraining -----------------------------------------------------------------------------------------


def _comparison_page(folder: Path, images: bool) -> str:
    if not (folder / TABLE_FILE).exists():
        raise InputError(
            f"{folder}: no {TABLE_FILE} in this folder: what {PLAN_FILE} plans is not finished. Continue it with the "
            "command that began it and --resume."
        )
    return _comparison(folder, _read_table(folder / TABLE_FILE), images)


def _read_table(path: Path) -> dict[str, Any]:
    """The table of a comparison, whose every part that the page needs is there."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        seeds, rows = table["plan"]["seeds"], table["rows"]
        sound = (
            isinstance(table["target"], str)
            and table["notes"].keys() == table["plan"]["definitions"].keys() == {row["setting"] for row in rows}
            and all(build_loss(each) for losses in table["plan"]["definitions"].values() for each in losses.values())
            and all(type(seed) is int for seed in seeds)
            and len(rows) > 0
            and all(len(row["runs"]) == len(seeds) and _is_row(row) for row in rows)
        )
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}.") from None
    except (KeyError, TypeError, AttributeError, ValueError):
        sound = False
    if not sound:
        raise InputError(
            f"{path}: this file is damaged, or of another version. Have it written again with the command that made it "
            "and --resume."
        )
    found: dict[str, Any] = table
    return found


def _is_row(row: Mapping[str, Any]) -> bool:
    """Whether there is all of a row."""
    runs = [run for run in row["runs"] if run is not None]
    differences = [each for each in row["differences"].values() if each is not None]
    numbers = [value for run in runs for value in run.values()]
    numbers += [each[end] for each in differences for end in ("mean", "low", "high", "p")]
    return (
        isinstance(row["loss"], str)
        and all(isinstance(text, str) for text in row["errors"])
        and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
    )


def _comparison(folder: Path, table: Mapping[str, Any], images: bool) -> str:
    plan, rows, target = table["plan"], table["rows"], str(table["target"])
    seeds = [int(seed) for seed in plan["seeds"]]
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        settings.setdefault(str(row["setting"]), []).append(row)
    names = list(dict.fromkeys(str(row["loss"]) for row in rows))
    definitions = next(iter(plan["definitions"].values()))
    modules = {name: build_loss(definitions[name]) for name in names}
    what = "Retraining" if "processes" in plan else "Comparison"
    surrogates = {n: each for n, each in modules.items() if isinstance(each, SurrogateLoss | MixedLoss)}
    curves = "\n".join(f"<h3>{escape(name)}</h3>\n{sections.curves(each)}" for name, each in surrogates.items())
    several = len(settings) > 1 or "" not in settings
    notes = " ".join(filter(None, dict.fromkeys(map(str, table["notes"].values()))))
    shown = [
        sections.Section(
            "metrics", "All metrics", _by_setting(settings, partial(_loss_table, target=target, seeds=len(seeds)))
        ),
        sections.Section("classes", "Target and classes", _by_setting(settings, partial(_loss_bars, target=target))),
        sections.Section("curves", "The curves of the losses", curves or "<p>None of them has curves.</p>"),
        sections.Section("surfaces", "Loss surfaces", sections.surfaces(modules)),
        sections.Section("images", "Images", _comparison_images(plan, rows, images)),
        sections.Section("provenance", "Provenance", _comparison_provenance(folder, table, seeds)),
    ]
    facts = {
        "target": escape(target),
        "losses": escape(", ".join(names)),
        **({"settings": escape(", ".join(settings))} if several else {}),
        "runs": f"{len(seeds)} of each loss, on the same seeds",
        **(
            {"data": escape(notes)} if (notes := " ".join(filter(None, dict.fromkeys(table["notes"].values())))) else {}
        ),
    }
    return sections.page(f"{what} for {target}", sections.facts_list(facts), shown)


def _by_setting(
    settings: Mapping[str, Sequence[Mapping[str, Any]]], make: Callable[[Sequence[Mapping[str, Any]]], str]
) -> str:
    """A part for each setting, under its name if it has one."""
    return "\n".join(
        (f"<h3>{escape(setting)}</h3>\n" if setting else "") + make(rows) for setting, rows in settings.items()
    )


def _loss_table(rows: Sequence[Mapping[str, Any]], target: str, seeds: int) -> str:
    """Metrics by losses."""
    names = sections.measured_in(row["runs"] for row in rows)
    lines = []
    for group in same_metrics(names):
        cells = [sections.metric_title(group, target)]
        for row in rows:
            cell = sections.mean_text(sections.interval(row["runs"], group[0]))
            difference = row["differences"].get(group[0])
            if difference:
                cell += f'<br><span class="gain">{sections.recorded(difference)}</span>'
            cells.append(cell)
        lines.append(cells)
    first = escape(str(rows[0]["loss"]))
    over = f"mean [95 % t-interval of the mean] over {seeds} seeds" if seeds > 1 else "one run"
    note = f"Validation set, %: {over}." + (
        f" Under it the difference to {first}, paired by seed; better and worse are the verdicts of the table, after "
        "Holm's correction; only its columns have any."
        if seeds > 1 and len(rows) > 1
        else ""
    )
    failed = "".join(
        f'<p class="note">{escape(str(row["loss"]))}: {len(row["errors"])} of {seeds} runs failed. '
        f"{escape(str(row['errors'][0]))}</p>"
        for row in rows
        if row["errors"]
    )
    lower = f" Lower is better for {CALIBRATION}." if CALIBRATION in names else ""
    titles = ["%", *(escape(str(row["loss"])) for row in rows)]
    return f'<p class="note">{note}{lower}</p>\n{failed}' + sections.table(titles, lines, "all metrics of all losses")


def _loss_bars(rows: Sequence[Mapping[str, Any]], target: str) -> str:
    runs = {str(row["loss"]): row["runs"] for row in rows}
    return sections.classes(runs, {TARGET: f"target: {target}"})


def _comparison_images(
    plan: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    images: bool,
) -> str:
    if "processes" in plan:
        return "<p>A retraining takes long, and is not repeated for pictures.</p>"
    if len(plan["configurations"]) > 1:
        return "<p>Pictures are made for comparisons of one setting only.</p>"
    scored = [(sections.interval(row["runs"], TARGET), row) for row in rows[1:]]
    ended = [(interval.mean, row) for interval, row in scored if interval is not None]
    first = rows[0]
    if not ended:
        return "<p>There are no two losses to compare in pictures.</p>"
    _, best = max(ended, key=lambda entry: entry[0])
    pairs = zip(plan["seeds"], first["runs"], best["runs"], strict=True)
    usable = [(int(seed), a[TARGET], b[TARGET]) for seed, a, b in pairs if a and b]
    if not usable:
        return "<p>There are no pictures: on no seed did both trainings end.</p>"
    seed, *recorded = usable[0]
    named = str(first["loss"]), str(best["loss"])

    def make() -> str:
        (setting,) = plan["configurations"]
        proxy = proxy_of(as_config(plan["configurations"][setting]))
        losses = [proxy.loss(plan["definitions"][setting][name]) for name in named]
        one, other = (Trained(*each) for each in zip(named, losses, recorded, strict=True))
        return examples(proxy, one, other, seed)

    return sections.images(make, images, f"{escape(named[1])}, the best of the others by the target,")


def _comparison_provenance(folder: Path, table: Mapping[str, Any], seeds: Sequence[int]) -> str:
    plan = table["plan"]
    facts = {
        "command": f"<code>{escape(str(table['command']))}</code>" if table.get("command") else "not on record",
        "seeds": ", ".join(map(str, seeds)),
        "versions": sections.versions_text(table.get("versions", {})),
        **{key: escape(str(plan[key])) for key in ("processes", "device", "threads", "weights") if plan.get(key)},
    }
    text = json.dumps(plan, indent=2, ensure_ascii=False)
    return sections.provenance(facts, folder, (PLAN_FILE, JOURNAL_FILE, TABLE_FILE)) + sections.details(
        "The plan: losses with their definitions, seeds, configurations", sections.text_block(text, "plan")
    )
