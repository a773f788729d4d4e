"""`compare`: train a proxy with several losses on the same fresh seeds, and put the results side by side."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from autosegloss.config import StudyConfig, as_config, fingerprint
from autosegloss.errors import InputError, RefusedError
from autosegloss.loss import SurrogateLoss, named_loss
from autosegloss.loss.classic import class_counts
from autosegloss.loss.file import replace_text
from autosegloss.metric import metric
from autosegloss.proxy.trial import TARGET, Proxy
from autosegloss.report.intervals import t_interval
from autosegloss.report.tables import metric_label
from autosegloss.search.api import (
    JOURNAL_FILE,
    Score,
    choose_runner,
    refuse_differences,
    refuse_to_overwrite,
    resumable,
    versions,
)
from autosegloss.search.journal import Job, Journal, Outcome
from autosegloss.search.runners import Runner

FILES = PLAN_FILE, TABLE_FILE, MARKDOWN_FILE = "plan.json", "table.json", "table.md"
CALIBRATION = "ece"
"""The name under which the expected calibration error stands among the metrics; lower is better."""
_SHOWN = (TARGET, "miou", "miou_i", "miou_c", CALIBRATION)  # in the Markdown table; the JSON one has all


@dataclass(frozen=True)
class Difference:
    """How a loss differs from the first one: over the seeds on which both ended, mean and 95% t-interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], first: Sequence[float]) -> Difference | None:
        """The difference of paired values; None of fewer than two pairs, which have no interval."""
        gains = [a - b for a, b in zip(ours, first, strict=True)]
        if len(gains) < 2:
            return None
        return cls(*t_interval(gains))


@dataclass(frozen=True)
class Row:
    """What one loss scores on the validation set.

    Args:
        loss: Its name.
        runs: Every metric, one mapping a seed; None where the training failed.
        errors: Why, one text for each seed that failed.
        scores: Mean and standard deviation per metric, over the seeds that ended.
        differences: To the first loss, per metric; empty for the first loss itself.
    """

    loss: str
    runs: tuple[dict[str, float] | None, ...]
    errors: tuple[str, ...]
    scores: dict[str, Score]
    differences: dict[str, Difference | None]


@dataclass(frozen=True)
class Table:
    """A finished comparison.

    Args:
        plan: What was compared: the losses with their definitions, the seeds and the configuration.
        command: The command line that gives this table, if it came from one.
        note: What there is to know about the data.
        target: The metric of the configuration, in words.
        rows: A row for each loss, in the order given.
        versions: Of the packages that decide the numbers.
    """

    plan: dict[str, Any]
    command: str
    note: str
    target: str
    rows: tuple[Row, ...]
    versions: dict[str, str]

    def to_json(self) -> str:
        """The table as JSON text, the same bytes for the same table."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The main columns as Markdown: means and spreads, then differences to the first loss."""
        columns = [name for name in _SHOWN if any(name in row.scores for row in self.rows)]
        if TARGET in columns and metric(self.plan["configuration"]["metric"]) == metric("miou"):
            columns.remove(TARGET)
        titles = [self.target if name == TARGET else name for name in columns]
        seeds = self.plan["seeds"]
        # A mix of losses has asterisks in its name: as code they stay as they are.
        several = len(seeds) > 1
        scores = [[f"`{row.loss}`", *(_score(row.scores.get(name), several) for name in columns)] for row in self.rows]
        gains = [[f"`{row.loss}`", *(_gain(row.differences.get(name)) for name in columns)] for row in self.rows[1:]]
        failed = [
            f"`{row.loss}`: {len(row.errors)} of {len(seeds)} runs failed. {row.errors[0]}"
            for row in self.rows
            if row.errors
        ]
        over = f"mean ± standard deviation of a run over {len(seeds)} seeds" if several else "one run"
        parts = [
            f"Validation set, %: {over}. Lower is better for {CALIBRATION}.",
            _markdown(["loss", *titles], scores),
        ]
        if gains and several:
            parts += [
                f"Difference to `{self.rows[0].loss}` on the same seeds: mean [95% t-interval].",
                _markdown(["loss", *titles], gains),
            ]
        parts += failed
        parts += [self.note] if self.note else []
        parts += [f"Command: `{self.command}`"] if self.command else []
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        parts += [f"Seeds {', '.join(map(str, seeds))}; {versions}."]
        return "\n\n".join(parts) + "\n"


class Comparison:
    """A comparison in progress, as runners see it: every loss on every seed, all due from the start.

    Args:
        losses: Their names.
        seeds: The seeds each is trained with.
        journal: Where finished trials are written, and what was finished before.
        observer: Called with the comparison after each record.

    Raises:
        RefusedError: The journal is not of this comparison.
    """

    def __init__(
        self,
        losses: Sequence[str],
        seeds: Sequence[int],
        journal: Journal,
        observer: Callable[[Comparison], None] | None = None,
    ) -> None:
        self.losses = tuple(losses)
        """Their names."""
        self._journal = journal
        self._observer = observer
        self._jobs = [
            Job("compare", ordinal, index, None, seed)
            for ordinal, seed in enumerate(seeds)
            for index in range(len(losses))
        ]
        self._outcomes: dict[Job, Outcome] = {}
        self.last: tuple[Job, Outcome] | None = None
        """The trial recorded last; None before the first one."""
        for line, (job, outcome) in enumerate(journal.trials, start=1):
            if job not in self._jobs:
                raise RefusedError(f"{journal.path}:{line}: this trial is not one of this comparison's.")
            self._outcomes[job] = outcome
        self._waiting = iter([job for job in self._jobs if job not in self._outcomes])

    @property
    def total(self) -> int:
        """Trials of the whole comparison."""
        return len(self._jobs)

    @property
    def done(self) -> int:
        """Trials that are finished, failed ones included."""
        return len(self._outcomes)

    @property
    def finished(self) -> bool:
        """Whether all are."""
        return self.done == self.total

    def next_job(self) -> Job | None:
        """The next job that is not done; each is handed out once."""
        return next(self._waiting, None)

    def record(self, job: Job, outcome: Outcome) -> None:
        """Write down the outcome of a job.

        Raises:
            InputError: The job is not due.
            SearchError: The journal cannot be written.
        """
        if job not in self._jobs or job in self._outcomes:
            raise InputError(f"{job} is not due; record the jobs that next_job hands out, each once.")
        outcome = outcome.checked()
        self._journal.append(job, outcome)
        self._outcomes[job] = outcome
        self.last = job, outcome
        if self._observer is not None:
            self._observer(self)

    def outcomes(self, index: int) -> list[Outcome]:
        """What came of a loss, seed by seed, once the comparison is finished."""
        return [self._outcomes[job] for job in self._jobs if job.index == index]


@dataclass(frozen=True)
class Contest:
    """The proxy and the losses as workers call them: a job in, an outcome out."""

    proxy: Proxy
    losses: tuple[nn.Module, ...]

    def __call__(self, job: Job) -> Outcome:
        """Train with the job's loss and measure everything."""
        start = time.perf_counter()
        network = self.proxy.trained(self.losses[job.index], job.seed)
        found = self.proxy.evaluation(network, validate=True)
        validation = found.validation | {CALIBRATION: self.proxy.calibration_error(network)}
        return Outcome(found.reward, found.metrics, validation, error=None, seconds=time.perf_counter() - start)


def compare(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    losses: Sequence[str],
    out: str | os.PathLike[str],
    *,
    seeds: int = 5,
    runner: Runner | Literal["ray", "serial"] = "ray",
    resume: bool = False,
    command: str = "",
    observer: Callable[[Comparison], None] | None = None,
    address: str | None = None,
) -> Table:
    """Train the proxy of a configuration with several losses and compare them on the validation set.

    The runs are paired: for each seed all losses have the same initial weights and the same images in the same order.
    The seeds are drawn from `search.seed` and are none of those of a search. Trial after trial is written to
    `out/trials.jsonl`; the results to `out/table.json` and `out/table.md`.

    Args:
        config: A configuration, a mapping with its keys, or the path of a YAML file.
        losses: Names of losses, presets, or paths of loss files; the others are compared with the first.
        out: The folder to write to.
        seeds: Number of runs of each loss, at least 2.
        runner: As for `search`.
        resume: Whether to continue the comparison in that folder.
        command: The command line that asks for this, for the record.
        observer: Called with the comparison at the start and after each trial.
        address: As for `search`.

    Returns:
        The table.

    Raises:
        InputError: A loss is unknown or given twice, or there are too few seeds; nothing has been trained then.
        RefusedError: The folder holds another comparison, or the resources are not there.
    """
    settled = as_config(config if isinstance(config, StudyConfig | Mapping) else Path(config))
    check_losses(losses, seeds)
    folder = Path(out).absolute()
    chosen = choose_runner(runner, settled, address)
    refuse_to_overwrite(folder, FILES, "comparison")
    proxy = Proxy.load(settled)
    modules = losses_of(losses, proxy)
    plan = {
        "losses": list(losses),
        "definitions": {name: definition(module) for name, module in zip(losses, modules, strict=True)},
        "seeds": fresh_seeds(settled.search.seed, seeds),
        "configuration": fingerprint(settled),
    }

    def run(comparison: Comparison) -> None:
        with chosen.ready():
            chosen.run(comparison, Contest(proxy.prepare(), modules))

    return carry_out(plan, folder, run, proxy, what="comparison", resume=resume, command=command, observer=observer)


def carry_out(
    plan: dict[str, Any],
    folder: Path,
    run: Callable[[Comparison], None],
    proxy: Proxy,
    *,
    what: str,
    resume: bool,
    command: str,
    observer: Callable[[Comparison], None] | None,
) -> Table:
    """Run what a plan says, or what is left of it, and write the table of it.

    Args:
        plan: The losses, seeds and all else that decides the numbers, as `plan.json` has it.
        folder: Where to write.
        run: Takes the jobs of a comparison and records their outcomes.
        proxy: What is trained.
        what: What to call it in messages.
        resume: Whether to continue what the folder holds.
        command: For the record.
        observer: Called with the comparison at the start and after each trial.

    Raises:
        RefusedError: The folder holds something else.
    """
    with Journal(folder / JOURNAL_FILE, resume=resume, what=what) as journal:
        if journal.trials:
            _refuse_another(folder, plan, what)
        with resumable():
            replace_text(folder / PLAN_FILE, json.dumps(plan, indent=2) + "\n")
        comparison = Comparison(plan["losses"], plan["seeds"], journal, observer)
        if observer is not None:
            observer(comparison)
        if not comparison.finished:
            run(comparison)
        table = _table(comparison, plan, command, proxy)
    with resumable():
        replace_text(folder / TABLE_FILE, table.to_json())
        replace_text(folder / MARKDOWN_FILE, table.to_markdown())
    return table


def losses_of(names: Sequence[str], proxy: Proxy, reduce_over_ranks: bool = False) -> tuple[nn.Module, ...]:
    """The losses of some names, for the data of a proxy."""
    dataset = proxy.dataset
    counts = class_counts([dataset.train.labels], len(dataset.classes), dataset.ignore_index)
    return tuple(
        named_loss(name, ignore_index=dataset.ignore_index, counts=counts, reduce_over_ranks=reduce_over_ranks)
        for name in names
    )


def check_losses(losses: Sequence[str], seeds: int, least: int = 2) -> None:
    """Raise InputError for losses or a number of seeds that can't be compared."""
    if not losses:
        raise InputError("there is nothing to compare: name at least one loss.")
    twice = [name for name in dict.fromkeys(losses) if list(losses).count(name) > 1]
    if twice:
        raise InputError(f"given twice: {', '.join(twice)}; each loss is compared once.")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < least:
        why = "a spread needs a whole number of at least 2" if least > 1 else "a whole number of at least 1 is wanted"
        raise InputError(f"seeds is {seeds!r}; {why}.")


def fresh_seeds(seed: int, number: int) -> list[int]:
    """Fresh seeds: the first word of the key is neither of those of a study's stages."""
    sequences = (np.random.SeedSequence(seed, spawn_key=(2, ordinal)) for ordinal in range(number))
    return [int(sequence.generate_state(1)[0]) for sequence in sequences]


def definition(loss: nn.Module) -> dict[str, Any]:
    """What a loss is, beyond its name: it changes when the file of that name does."""
    curves = [part.control_points for part in loss.modules() if isinstance(part, SurrogateLoss)]
    return {"module": repr(loss), "control_points": curves}


def _refuse_another(folder: Path, plan: Mapping[str, Any], what: str) -> None:
    """Stop if the trials in the folder are of another plan."""
    path = folder / PLAN_FILE
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RefusedError(f"{folder} holds trials, but no {PLAN_FILE} of a {what}. Choose another folder.") from None
    refuse_differences(f"{folder} holds another {what}", there, json.loads(json.dumps(plan)))


def _table(comparison: Comparison, plan: dict[str, Any], command: str, proxy: Proxy) -> Table:
    names = plan["losses"]
    runs = [
        tuple(None if run.reward is None else run.validation for run in comparison.outcomes(index))
        for index in range(len(names))
    ]
    rows = []
    for index, name in enumerate(names):
        ended = [run for run in runs[index] if run is not None]
        pairs = [(own, first) for own, first in zip(runs[index], runs[0], strict=True) if own and first]
        measured = list(ended[0]) if ended else []
        rows.append(
            Row(
                loss=name,
                runs=runs[index],
                errors=tuple(run.error for run in comparison.outcomes(index) if run.error is not None),
                scores={each: Score.of([run[each] for run in ended]) for each in measured},
                differences={
                    each: Difference.of([own[each] for own, _ in pairs], [first[each] for _, first in pairs])
                    for each in (measured if index else [])
                },
            )
        )
    return Table(plan, command, proxy.dataset.note, metric_label(proxy.config), tuple(rows), versions())


def _score(score: Score | None, several: bool) -> str:
    if score is None:
        return "-"
    return f"{100 * score.mean:.2f} ± {100 * score.sd:.2f}" if several else f"{100 * score.mean:.2f}"


def _gain(gain: Difference | None) -> str:
    return "-" if gain is None else f"{100 * gain.mean:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
