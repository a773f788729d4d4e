"""`compare`: train with several losses on the same fresh seeds, in one setting or more, and tabulate the results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from autosegloss.config import CALIBRATION, StudyConfig, as_config, fingerprint
from autosegloss.errors import AutoseglossError, InputError, RefusedError
from autosegloss.files import write_text
from autosegloss.loss import SurrogateLoss, named_loss
from autosegloss.loss.classic import class_counts
from autosegloss.metric import METRICS, Expr, metric
from autosegloss.proxy.data import Dataset, load_dataset
from autosegloss.proxy.trial import TARGET, Proxy, device_of
from autosegloss.report.paired import Difference, Estimate, Row, Table, judged
from autosegloss.report.tables import metric_label, spec_label
from autosegloss.search.api import (
    JOURNAL_FILE,
    choose_runner,
    refuse_differences,
    refuse_to_overwrite,
    resumable,
    versions,
)
from autosegloss.search.journal import Job, Journal, Outcome
from autosegloss.search.runners import Runner

PLAN_VERSION = 2
"""Of `plan.json`: 2 since losses may be added, by which the jobs are numbered in another order."""
FILES = PLAN_FILE, TABLE_FILE, MARKDOWN_FILE, LATEX_FILE = "plan.json", "table.json", "table.md", "table.tex"


class Comparison:
    """A comparison in progress, as runners see it: every loss in every setting on every seed, all due from the start.

    The jobs of a seed come together, and of these the jobs of a loss, so that what is wrong with a setting shows soon.
    The index of a job is the place of its loss times the number of settings, plus the place of its setting: losses and
    seeds that are added at the end leave the jobs before them as they are.

    Args:
        settings: Their names.
        losses: Their names.
        seeds: The seeds each is trained with.
        journal: Where finished trials are written, and what was finished before.
        observer: Called with the comparison after each record.

    Raises:
        RefusedError: The journal is not of this comparison.
    """

    def __init__(
        self,
        settings: Sequence[str],
        losses: Sequence[str],
        seeds: Sequence[int],
        journal: Journal,
        observer: Callable[[Comparison], None] | None = None,
    ) -> None:
        self._pairs = [(setting, loss) for loss in losses for setting in settings]
        self._journal = journal
        self._observer = observer
        self._jobs = [
            Job("compare", ordinal, index, None, seed)
            for ordinal, seed in enumerate(seeds)
            for index in range(len(self._pairs))
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

    def pair(self, job: Job) -> tuple[str, str]:
        """The setting and the loss of a job."""
        return self._pairs[job.index]

    def outcomes(self, setting: str, loss: str) -> list[Outcome]:
        """What came of a loss in a setting, seed by seed, once the comparison is finished."""
        return [self._outcomes[job] for job in self._jobs if self.pair(job) == (setting, loss)]


@dataclass(frozen=True)
class Contest:
    """The proxies and the losses as workers call them: a job in, an outcome out.

    Args:
        proxies: One for each setting.
        losses: For each setting, the losses there.
        more: What to measure beside the catalogue.
    """

    proxies: tuple[Proxy, ...]
    losses: tuple[tuple[nn.Module, ...], ...]
    more: dict[str, Expr]

    def __call__(self, job: Job) -> Outcome:
        """Train with the job's loss in its setting and measure everything."""
        start = time.perf_counter()
        loss, setting = divmod(job.index, len(self.proxies))
        proxy = self.proxies[setting]
        network = proxy.trained(self.losses[setting][loss], job.seed)
        found = proxy.evaluation(network, validate=True, more=self.more)
        validation = found.validation | {CALIBRATION: proxy.calibration_error(network)}
        return Outcome(found.reward, found.metrics, validation, error=None, seconds=time.perf_counter() - start)


def compare(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    losses: Sequence[str] | None,
    out: str | os.PathLike[str],
    *,
    seeds: int | None = None,
    runner: Runner | Literal["ray", "serial"] = "ray",
    resume: bool = False,
    command: str = "",
    observer: Callable[[Comparison], None] | None = None,
    address: str | None = None,
) -> Table:
    """Train with several losses in the settings of a configuration and compare them on the validation sets.

    The runs are paired: in a setting, for each seed, all losses have the same initial weights and the same images in
    the same order. The seeds are drawn from `search.seed` and are none of those of a search. Trial after trial is
    written to `out/trials.jsonl`; the results to `out/table.json`, `out/table.md` and `out/table.tex`.

    Args:
        config: A configuration, a mapping with its keys, or the path of a YAML file; its section `compare` says more.
        losses: Names of losses, presets, or paths of loss files; the others are compared with the first. None is what
            the configuration says.
        out: The folder to write to.
        seeds: Number of runs of each loss in each setting, at least 2. None is what the configuration says.
        runner: As for `search`.
        resume: Whether to continue the comparison in that folder. Losses and seeds may be added at the end of those it
            has; what is trained is not trained again.
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
    losses = settled.compare.losses if losses is None else losses
    seeds = settled.compare.seeds if seeds is None else seeds
    check_losses(losses, seeds)
    folder = Path(out).absolute()
    chosen = choose_runner(runner, settled, address)
    refuse_to_overwrite(folder, FILES, "comparison")
    proxies, modules = _load(settled, losses)
    columns, more = columns_of(settled.metric, settled.compare.metrics)
    plan = {
        "version": PLAN_VERSION,
        "losses": list(losses),
        "seeds": fresh_seeds(settled.search.seed, seeds),
        "metrics": columns,
        "settings": list(proxies),
        "configurations": {name: fingerprint(proxy.config) for name, proxy in proxies.items()},
        "definitions": {name: dict(zip(losses, map(definition, own), strict=True)) for name, own in modules.items()},
    }

    def run(comparison: Comparison) -> None:
        with chosen.ready():
            ready = tuple(proxy.prepare() for proxy in proxies.values())
            chosen.run(comparison, Contest(ready, tuple(modules.values()), more))

    return carry_out(plan, folder, run, proxies, what="comparison", resume=resume, command=command, observer=observer)


def _load(config: StudyConfig, losses: Sequence[str]) -> tuple[dict[str, Proxy], dict[str, tuple[nn.Module, ...]]]:
    """The proxy and the losses of each setting; settings with the same data share it."""
    device_of(config)
    datasets: dict[str, Dataset] = {}
    proxies, modules = {}, {}
    for name in config.compare.settings:
        own = config.in_setting(name)
        data = own.proxy.data
        key = json.dumps(data.model_dump(), sort_keys=True)
        try:
            if key not in datasets:
                datasets[key] = load_dataset(data.name, **data.options)
            proxies[name] = Proxy.of(own, datasets[key])
            modules[name] = losses_of(losses, proxies[name])
        except AutoseglossError as error:
            if not name:
                raise
            raise type(error)(f"in the setting `{name}`: {error}") from error
    return proxies, modules


def columns_of(
    target: str | dict[str, Any], metrics: Sequence[str | dict[str, Any]]
) -> tuple[list[str], dict[str, Expr]]:
    """The columns that are shown, and those of their metrics that the catalogue does not have by that name.

    The target has no column of its own where one of the metrics is the same.

    Args:
        target: The metric of the configuration.
        metrics: Those of its section `compare`.
    """
    exprs = {spec_label(spec): metric(spec) for spec in metrics if spec != CALIBRATION}
    first = [] if metric(target) in exprs.values() else [TARGET]
    more = {label: expr for label, expr in exprs.items() if label not in METRICS}
    return [*first, *map(spec_label, metrics)], more


def carry_out(
    plan: dict[str, Any],
    folder: Path,
    run: Callable[[Comparison], None],
    proxies: Mapping[str, Proxy],
    *,
    what: str,
    resume: bool,
    command: str,
    observer: Callable[[Comparison], None] | None,
) -> Table:
    """Run what a plan says, or what is left of it, and write the table of it.

    Args:
        plan: The losses, seeds, columns, settings and all else that decides the numbers, as `plan.json` has it.
        folder: Where to write.
        run: Takes the jobs of a comparison and records their outcomes.
        proxies: What is trained in each setting.
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
            write_text(folder / PLAN_FILE, json.dumps(plan, indent=2) + "\n")
        comparison = Comparison(plan["settings"], plan["losses"], plan["seeds"], journal, observer)
        if observer is not None:
            observer(comparison)
        if not comparison.finished:
            run(comparison)
        table = _table(comparison, plan, command, proxies)
    with resumable():
        write_text(folder / TABLE_FILE, table.to_json())
        write_text(folder / MARKDOWN_FILE, table.to_markdown())
        write_text(folder / LATEX_FILE, table.to_latex())
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
    """Stop if the trials in the folder are of another plan, which is not the first part of this one."""
    path = folder / PLAN_FILE
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RefusedError(f"{folder} holds trials, but no {PLAN_FILE} of a {what}. Choose another folder.") from None
    if not isinstance(there, dict) or there.get("version") != PLAN_VERSION:
        raise RefusedError(f"{folder} holds a {what} of another version of autosegloss. Choose another folder.")
    refuse_differences(f"{folder} holds another {what}", there, _first_part(json.loads(json.dumps(plan)), there))


def _first_part(plan: dict[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """A plan with as many of its losses and seeds as there are in another one."""
    losses = plan["losses"][: len(there["losses"])]
    definitions = {
        setting: {loss: each for loss, each in own.items() if loss in losses}
        for setting, own in plan["definitions"].items()
    }
    return plan | {"losses": losses, "seeds": plan["seeds"][: len(there["seeds"])], "definitions": definitions}


def _table(comparison: Comparison, plan: dict[str, Any], command: str, proxies: Mapping[str, Proxy]) -> Table:
    rows: list[Row] = []
    for setting in plan["settings"]:
        runs = {loss: comparison.outcomes(setting, loss) for loss in plan["losses"]}
        rows += judged([_row(setting, loss, runs) for loss in plan["losses"]], plan["metrics"])
    (target,) = {metric_label(proxy.config) for proxy in proxies.values()}
    notes = {setting: proxy.dataset.note for setting, proxy in proxies.items()}
    return Table(plan, command, target, notes, tuple(rows), versions())


def _row(setting: str, loss: str, outcomes: Mapping[str, Sequence[Outcome]]) -> Row:
    """The row of a loss, as yet without verdicts."""
    first = next(iter(outcomes))
    runs, compared = (
        tuple(None if run.reward is None else run.validation for run in outcomes[name]) for name in (loss, first)
    )
    ended = [run for run in runs if run is not None]
    pairs = [(own, other) for own, other in zip(runs, compared, strict=True) if own and other]
    measured = list(ended[0]) if ended else []
    return Row(
        setting=setting,
        loss=loss,
        runs=runs,
        errors=tuple(run.error for run in outcomes[loss] if run.error is not None),
        scores={each: Estimate.of([run[each] for run in ended]) for each in measured},
        differences={
            each: Difference.of([own[each] for own, _ in pairs], [other[each] for _, other in pairs])
            for each in (measured if loss != first else [])
        },
    )
