"""A comparison of losses on the same seeds: its jobs, its plan on disk and its table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autosegloss.errors import InputError, RefusedError, SearchError, cut, note, shown
from autosegloss.files import sweep_drafts, write_text
from autosegloss.loss import Loss
from autosegloss.loss.base import LossContent
from autosegloss.loss.classic import class_counts
from autosegloss.metric import METRICS, Expr, metric
from autosegloss.metric.settings import CALIBRATION, spec_label
from autosegloss.proxy.data import Dataset
from autosegloss.proxy.own_loss import any_loss
from autosegloss.proxy.trial import TARGET
from autosegloss.search.folder import (
    CHECKPOINT_FILE,
    COMPARISON_FILES,
    JOURNAL_FILE,
    LATEX_FILE,
    MARKDOWN_FILE,
    PLAN_FILE,
    TABLE_FILE,
    WEIGHTS,
    check_folder,
    refuse_differences,
    resumable,
)
from autosegloss.search.head import Head
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.tables import Row, Table

PLAN_VERSION = 3
"""The version of `plan.json`: 3 since losses are defined by the contents of their files."""
COLUMNS = ("miou", "miou_i", "miou_c", CALIBRATION)
"""The columns beside the target, by default."""


class Comparison:
    """A comparison in progress: hands out a job for every loss in every setting on every seed.

    Jobs are ordered by seed, loss and setting, so that problems of a setting show early. A job's index is the index of
    its loss times the number of settings, plus the index of its setting: appended losses and seeds leave earlier jobs
    unchanged.

    Args:
        losses: The contents of the loss files, by setting and name; each setting has the same names.
        seeds: The seeds of the runs.
        journal: The journal, with the trials finished so far.
        observer: Called with the comparison after each record.

    Raises:
        RefusedError: The journal belongs to another comparison.
    """

    def __init__(
        self,
        losses: Mapping[str, Mapping[str, LossContent]],
        seeds: Sequence[int],
        journal: Journal,
        observer: Callable[[Comparison], None] | None = None,
    ) -> None:
        names = next(iter(losses.values()))
        self._pairs = [(setting, name) for name in names for setting in losses]
        self._journal = journal
        self._observer = observer
        self._jobs = [
            Job("compare", ordinal, index, losses[setting][name], seed)
            for ordinal, seed in enumerate(seeds)
            for index, (setting, name) in enumerate(self._pairs)
        ]
        self._outcomes: dict[Job, Outcome] = {}
        self.last: tuple[Job, Outcome] | None = None
        """The trial recorded last; None before the first one."""
        for line, (job, outcome) in zip(journal.line_numbers, journal.trials, strict=True):
            if job not in self._jobs:
                raise RefusedError(f"{cut(str(journal.path))}:{line}: this trial does not belong to this comparison.")
            if job in self._outcomes:
                raise RefusedError(
                    f"{cut(str(journal.path))}:{line}: this trial is in the file twice. Restore the file from a copy, "
                    "or delete this line."
                )
            self._outcomes[job] = outcome
        self._waiting = iter([job for job in self._jobs if job not in self._outcomes])

    @property
    def total(self) -> int:
        """Number of trials of the comparison."""
        return len(self._jobs)

    @property
    def done(self) -> int:
        """Number of finished trials, failed ones included."""
        return len(self._outcomes)

    @property
    def finished(self) -> bool:
        """Whether all trials are finished."""
        return self.done == self.total

    def next_job(self) -> Job | None:
        """The next job to run; each is handed out once."""
        return next(self._waiting, None)

    def record(self, job: Job, outcome: Outcome) -> None:
        """Record the outcome of a job.

        Raises:
            InputError: The job does not belong to the comparison, or is already recorded.
            SearchError: The journal can't be written.
        """
        if job not in self._jobs or job in self._outcomes:
            raise InputError(f"{job} is not due; record each job that next_job returns once.")
        outcome = outcome.checked()
        self._journal.append(job, outcome)
        self._outcomes[job] = outcome
        self.last = job, outcome
        if self._observer is not None:
            self._observer(self)

    def pair(self, job: Job) -> tuple[str, str]:
        """The setting and the loss of a job."""
        return self._pairs[job.index]

    def outcomes(self, setting: str, loss: str) -> list[Outcome]:
        """The outcomes of a loss in a setting, one per seed, once the comparison is finished."""
        return [self._outcomes[job] for job in self._jobs if self.pair(job) == (setting, loss)]


def run_comparison(
    plan: dict[str, Any],
    folder: Path,
    run: Callable[[Comparison], None],
    *,
    target: str,
    notes: dict[str, str],
    what: str,
    resume: bool,
    head: Head,
    command: str,
    observer: Callable[[Comparison], None] | None,
    baseline: str | None = None,
    asked: Sequence[str] = (),
) -> Table:
    """Run the unfinished jobs of a plan and write the table.

    Args:
        plan: The losses, seeds, columns, settings and everything else that decides the numbers, as in `plan.json`; its
            definitions are the contents of the losses in each setting.
        folder: The output folder.
        run: Takes the jobs of a comparison and records their outcomes.
        target: Label of the metric of the configuration.
        notes: A note on the data of each setting.
        what: "comparison" or "retraining", for messages.
        resume: Whether to continue the comparison in the folder.
        head: Where the trials run and on which data.
        command: The command line, for the record.
        observer: Called with the comparison at the start and after each trial.
        baseline: The loss that the others are compared with; None is the first.
        asked: The columns of the table, which have verdicts; none: those of the plan.

    Raises:
        RefusedError: The folder holds another comparison.
    """
    if check_folder(folder, COMPARISON_FILES, what, resume):
        _refuse_another(folder, plan, what)  # before a difference of the data, which follows from one of the plan
    with Journal(folder / JOURNAL_FILE, resume=resume, what=what, head=head) as journal:
        begun = bool(journal.trials) or (folder / CHECKPOINT_FILE).exists()
        if begun:
            _refuse_another(folder, plan, what)
        elif resume:
            note(f"{cut(str(folder))} holds no trials to resume: the {what} starts from its beginning.")
        sweep_drafts(folder, (*COMPARISON_FILES, CHECKPOINT_FILE, f"*{WEIGHTS}"))
        with resumable():
            write_text(folder / PLAN_FILE, json.dumps(plan, indent=2) + "\n")
        comparison = Comparison(plan["definitions"], plan["seeds"], journal, observer)
        if observer is not None:
            observer(comparison)
        if not comparison.finished:
            journal.note_changes()
            run(comparison)
        table = Table(plan, command, target, notes, _rows(comparison, plan), journal.versions | journal.processor)
        table = table.tabulated(baseline, asked)
        with resumable():
            write_table(table, folder)
    return table


def check_runs(table: Table, folder: Path) -> None:
    """Raise SearchError if every run of a table failed; the table in the folder has the errors."""
    runs = [run for row in table.rows for run in row.runs]
    if not any(runs):
        first = table.rows[0]
        raise SearchError(
            f"all {len(runs)} runs failed; {cut(str(folder / MARKDOWN_FILE))} has the errors. First: "
            f"`{cut(first.loss)}`: {cut(first.errors[0].rstrip('.'))}. Failed runs are not repeated by --resume: once "
            "the cause is gone, choose another folder."
        )


def write_table(table: Table, folder: Path) -> None:
    """Write a table as JSON, Markdown and LaTeX."""
    write_text(folder / TABLE_FILE, table.to_json())
    write_text(folder / MARKDOWN_FILE, table.to_markdown())
    write_text(folder / LATEX_FILE, table.to_latex())


def losses_of(names: Sequence[str], dataset: Dataset, reduce_over_ranks: bool = False) -> tuple[Loss, ...]:
    """Build losses by name, for a data set."""
    counts = class_counts([dataset.train.labels], len(dataset.classes), dataset.ignore_index)
    return tuple(
        any_loss(name, counts=counts, ignore_index=dataset.ignore_index, reduce_over_ranks=reduce_over_ranks)
        for name in names
    )


def check_losses(losses: Sequence[str], seeds: int, least: int = 2) -> None:
    """Raise InputError for losses or a number of seeds that can't be compared."""
    if not losses:
        raise InputError("losses must name at least one loss; give one with --loss NAME.")
    twice = [name for name in dict.fromkeys(losses) if list(losses).count(name) > 1]
    if twice:
        raise InputError(f"losses must be distinct, got {cut(', '.join(twice))} more than once.")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or not least <= seeds <= 1_000:
        limit = f"of at least {least}" if not isinstance(seeds, int) or seeds < least else "of at most 1000"
        raise InputError(f"seeds must be an integer {limit}, got {shown(seeds)}.")


def columns_of(
    target: str | dict[str, Any], metrics: Sequence[str | dict[str, Any]] | None
) -> tuple[list[str], list[str], dict[str, Expr]]:
    """The columns of the table, those that have verdicts, and the metrics among them that are not catalogue names.

    The target has no column of its own if one of the metrics equals it.

    Args:
        target: The metric of the configuration.
        metrics: Those of its section `compare`, on which there are verdicts; None: `COLUMNS`, with verdicts on the
            target alone.
    """
    specs = COLUMNS if metrics is None else metrics
    exprs = {spec_label(spec): metric(spec) for spec in specs if spec != CALIBRATION}
    same = [label for label, expr in exprs.items() if expr == metric(target)] or [TARGET]
    columns = [*(same if same == [TARGET] else []), *map(spec_label, specs)]
    more = {label: expr for label, expr in exprs.items() if label not in METRICS}
    return columns, same if metrics is None else columns, more


def _refuse_another(folder: Path, plan: Mapping[str, Any], what: str) -> None:
    """Raise RefusedError unless the plan in the folder is this plan, or this plan with fewer losses or seeds."""
    path = folder / PLAN_FILE
    if not path.is_file():
        raise RefusedError(f"{cut(str(folder))} holds trials, but no {PLAN_FILE} of a {what}. Choose another folder.")
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        there = None
    if (
        not isinstance(there, dict)
        or there.get("version") != PLAN_VERSION
        or not all(isinstance(there.get(key), list) for key in ("losses", "seeds"))
    ):
        raise RefusedError(
            f"{cut(str(path))}: this file is damaged, or of another version. Restore it from a copy, or choose another "
            "folder."
        )
    here = _first_part(json.loads(json.dumps(plan)), there)
    for each in (there, here):
        each.pop("modules", None)  # a place, which decides nothing
    refuse_differences(f"{folder} holds another {what}", there, here)


def _first_part(plan: dict[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """A plan with only as many of its losses and seeds as another plan has."""
    losses = plan["losses"][: len(there["losses"])]
    definitions = {
        setting: {loss: each for loss, each in own.items() if loss in losses}
        for setting, own in plan["definitions"].items()
    }
    return plan | {"losses": losses, "seeds": plan["seeds"][: len(there["seeds"])], "definitions": definitions}


def _rows(comparison: Comparison, plan: Mapping[str, Any]) -> tuple[Row, ...]:
    """The rows of the table, without differences."""
    rows = []
    for setting in plan["settings"]:
        for loss in plan["losses"]:
            outcomes = comparison.outcomes(setting, loss)
            runs = [None if run.reward is None else run.validation for run in outcomes]
            errors = [run.error for run in outcomes if run.error is not None]
            rows.append(Row.of(setting, loss, runs, errors, None))
    return tuple(rows)
