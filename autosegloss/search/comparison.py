"""A comparison of losses on the same seeds: its jobs, its plan on disk and its table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
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
from autosegloss.search.jobs import Job, Outcome, Place
from autosegloss.search.journal import Journal
from autosegloss.search.tables import Row, Table
from autosegloss.search.tuning import Ladder, Tuned, Tuning

PLAN_VERSION = 4
"""The version of the `plan.json` of a comparison: 4 since the steps of its losses are tuned."""
UNTUNED_VERSION = 3
"""That of a retraining, and of comparisons before: losses are trained as they are."""
_IDLE = {"rivals": (), "guard": (), "search": ("seed", "offsets"), "finalists": ("iterations",)}
"""Sections of a configuration that only searches have, and those of their keys that have a part in a comparison."""
COLUMNS = ("miou", "miou_i", "miou_c", CALIBRATION)
"""The columns beside the target, by default."""


class Comparison:
    """A comparison in progress: hands out the jobs of every loss in every setting.

    First each loss is trained at each step of the setting's ladder on the seeds of the tuning ("tune"), then at the
    best of these on every seed of the comparison ("compare"); these jobs of a loss are handed out once its step is
    known. Jobs of a stage are ordered by seed, loss and setting, so that problems of a setting show early. A job's
    index is the index of its loss times the number of settings, plus the index of its setting: appended losses and
    seeds leave earlier jobs unchanged.

    Args:
        losses: The contents of the loss files, by setting and name; each setting has the same names.
        seeds: The seeds of the runs.
        journal: The journal, with the trials finished so far.
        observer: Called with the comparison after each record.
        tuning: The ladders and their seeds; None trains the losses as they are.

    Raises:
        RefusedError: The journal belongs to another comparison.
    """

    def __init__(
        self,
        losses: Mapping[str, Mapping[str, LossContent]],
        seeds: Sequence[int],
        journal: Journal,
        observer: Callable[[Comparison], None] | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        names = next(iter(losses.values()))
        self._losses = losses
        self._pairs = [(setting, name) for name in names for setting in losses]
        self._seeds = list(seeds)
        self._tuning = Tuning({setting: Ladder() for setting in losses}) if tuning is None else tuning
        self._journal = journal
        self._observer = observer
        tried = [
            ("tune", step, index)
            for ordinal in range(len(self._tuning.seeds))
            for index in range(len(self._pairs))
            for step in self._steps(ordinal, index)
        ]
        runs = [("compare", ordinal, index) for ordinal in range(len(self._seeds)) for index in range(len(self._pairs))]
        self._places: dict[Place, None] = dict.fromkeys([*tried, *runs])
        self._waiting = dict(self._places)
        self._outcomes: dict[Place, Outcome] = {}
        self.last: tuple[Job, Outcome] | None = None
        """The trial recorded last; None before the first one."""
        for line, (job, outcome) in zip(journal.line_numbers, journal.trials, strict=True):
            if job.place in self._outcomes:
                raise RefusedError(
                    f"{cut(str(journal.path))}:{line}: this trial is in the file twice. Restore the file from a copy, "
                    "or delete this line."
                )
            if job.place not in self._waiting or job != self._job(job.place):
                raise RefusedError(f"{cut(str(journal.path))}:{line}: this trial does not belong to this comparison.")
            self._outcomes[job.place] = outcome
            del self._waiting[job.place]

    @property
    def total(self) -> int:
        """Number of trials of the comparison, those that choose the steps included."""
        return len(self._places)

    @property
    def done(self) -> int:
        """Number of finished trials, failed ones included."""
        return len(self._outcomes)

    @property
    def rewarded(self) -> bool:
        """Whether a trial has a reward."""
        return any(outcome.reward is not None for outcome in self._outcomes.values())

    @property
    def finished(self) -> bool:
        """Whether all trials are finished."""
        return self.done == self.total

    def next_job(self) -> Job | None:
        """The next job to run, each handed out once; None if there is none, or none before others are recorded."""
        for place in self._waiting:
            if (job := self._job(place)) is not None:
                del self._waiting[place]
                return job
        return None

    def record(self, job: Job, outcome: Outcome) -> None:
        """Record the outcome of a job.

        Raises:
            InputError: The job does not belong to the comparison, or is already recorded.
            SearchError: The journal can't be written.
        """
        if job.place in self._outcomes or job.place not in self._places or job != self._job(job.place):
            raise InputError(f"{job} is not due; record each job that next_job returns once.")
        outcome = outcome.checked()
        self._journal.append(job, outcome)
        self._outcomes[job.place] = outcome
        self.last = job, outcome
        if self._observer is not None:
            self._observer(self)

    def pair(self, job: Job) -> tuple[str, str]:
        """The setting and the loss of a job."""
        return self._pairs[job.index]

    def step(self, job: Job) -> float:
        """The step of the loss in a job."""
        setting, loss = self.pair(job)
        if job.stage == "tune":
            return self._tuning.ladders[setting].steps[job.step % self._tuning.width]
        return self.tuned(setting, loss).step

    def tuned(self, setting: str, loss: str) -> Tuned:
        """The step of a loss in a setting, once its trials at every step are recorded."""
        ladder, means = self._tuning.ladders[setting], self._heldout(self._pairs.index((setting, loss)))
        assert means is not None  # its trials are recorded
        place = ladder.best(means)
        return Tuned(ladder.name(loss, self._losses[setting][loss], place), ladder.steps[place], means)

    def outcomes(self, setting: str, loss: str) -> list[Outcome]:
        """The outcomes of a loss in a setting, one per seed, once the comparison is finished."""
        index = self._pairs.index((setting, loss))
        return [self._outcomes["compare", ordinal, index] for ordinal in range(len(self._seeds))]

    def _steps(self, ordinal: int, index: int) -> range:
        """The steps of the jobs that try a loss on a seed: the ladder's places, seed by seed."""
        start = ordinal * self._tuning.width
        return range(start, start + self._tuning.tried(self._pairs[index][0]))

    def _job(self, place: Place) -> Job | None:
        """The job at one of the places; None if the step of its loss is not known yet."""
        stage, step, index = place
        setting, name = self._pairs[index]
        ladder, content = self._tuning.ladders[setting], self._losses[setting][name]
        if stage == "tune":
            ordinal, rung = divmod(step, self._tuning.width)
            loss, rate = ladder.at(content, rung)
            return Job("tune", step, index, loss, self._tuning.seeds[ordinal], rate=rate)
        if (means := self._heldout(index)) is None:
            return None
        loss, rate = ladder.at(content, ladder.best(means))
        return Job("compare", step, index, loss, self._seeds[step], rate=rate)

    def _heldout(self, index: int) -> tuple[float | None, ...] | None:
        """The mean reward of a loss at each step, None where every run failed; None before all are recorded."""
        places = [[*self._steps(ordinal, index)] for ordinal in range(len(self._tuning.seeds))]
        found = [[self._outcomes.get(("tune", step, index)) for step in steps] for steps in zip(*places, strict=True)]
        if any(outcome is None for outcomes in found for outcome in outcomes):
            return None
        rewards = [[each.reward for each in outcomes if each and each.reward is not None] for outcomes in found]
        return tuple(fmean(each) if each else None for each in rewards)


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
    tuning: Tuning | None = None,
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
        tuning: How the step of each loss is chosen; None trains the losses as they are.

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
        comparison = Comparison(plan["definitions"], plan["seeds"], journal, observer, tuning)
        if observer is not None:
            observer(comparison)
        if not comparison.finished:
            journal.note_changes()
            run(comparison)
        rows = _rows(comparison, plan, tuned=tuning is not None)
        table = Table(plan, command, target, notes, rows, journal.versions | journal.processor)
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
    sound = isinstance(there, dict) and all(isinstance(there.get(key), list) for key in ("losses", "seeds"))
    if sound and there.get("version") == UNTUNED_VERSION < plan["version"]:
        raise RefusedError(
            f"{cut(str(path))}: an earlier version of autosegloss, which did not tune the steps of losses, has begun "
            f"this {what}. Continue it with that version, or choose another folder; a finished table can still be "
            "tabulated and reported."
        )
    if not sound or there.get("version") != plan["version"]:
        raise RefusedError(
            f"{cut(str(path))}: this file is damaged, or of another version. Restore it from a copy, or choose another "
            "folder."
        )
    here = _first_part(json.loads(json.dumps(plan)), there)
    for each in (there, here):
        _drop_idle(each)
    refuse_differences(f"{folder} holds another {what}", there, here)


def _drop_idle(plan: dict[str, Any]) -> None:
    """Drop from a plan what decides nothing in it: the place of modules, and what only searches have."""
    plan.pop("modules", None)
    configurations = plan.get("configurations")
    for each in configurations.values() if isinstance(configurations, dict) else ():
        for section in _IDLE.keys() & each.keys() if isinstance(each, dict) else ():
            given = each.pop(section)
            left = {key: given[key] for key in _IDLE[section] if key in given} if isinstance(given, dict) else given
            each |= {section: left} if left else {}


def _first_part(plan: dict[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """A plan with only as many of its losses and seeds as another plan has."""
    losses = plan["losses"][: len(there["losses"])]
    definitions = {
        setting: {loss: each for loss, each in own.items() if loss in losses}
        for setting, own in plan["definitions"].items()
    }
    return plan | {"losses": losses, "seeds": plan["seeds"][: len(there["seeds"])], "definitions": definitions}


def _rows(comparison: Comparison, plan: Mapping[str, Any], tuned: bool) -> tuple[Row, ...]:
    """The rows of the table, without differences."""
    rows = []
    for setting in plan["settings"]:
        for loss in plan["losses"]:
            outcomes = comparison.outcomes(setting, loss)
            runs = [None if run.reward is None else run.validation for run in outcomes]
            errors = [run.error for run in outcomes if run.error is not None]
            step = comparison.tuned(setting, loss) if tuned else None
            rows.append(Row.of(setting, loss, runs, errors, None, step))
    return tuple(_distinct(row, rows) for row in rows)


def _distinct(row: Row, rows: Sequence[Row]) -> Row:
    """The row, with its own name added where another loss has the same name at its step (`lovasz` and `8*lovasz`)."""
    same = [each for each in rows if (each.setting, each.name) == (row.setting, row.name)]
    if len(same) == 1 or row.tuned is None or row.name == row.loss:
        return row
    return replace(row, tuned=replace(row.tuned, name=f"{row.name} (given as {row.loss})"))
