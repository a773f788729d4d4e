"""`compare`: train with several losses on the same fresh seeds, in one setting or more, and tabulate the results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autosegloss.errors import AutoseglossError, InputError, cut
from autosegloss.loss import load_loss
from autosegloss.loss.base import LossContent
from autosegloss.loss.file import build_loss
from autosegloss.metric import METRICS, Expr
from autosegloss.metric.expr import with_class_names
from autosegloss.metric.settings import CALIBRATION, spec_label
from autosegloss.proxy.data import Dataset, load_dataset
from autosegloss.proxy.own_loss import is_function, is_own
from autosegloss.proxy.trial import CLASS_PREFIX, TARGET, WITH_OFFSETS, Proxy, device_of
from autosegloss.search.comparison import (
    PLAN_VERSION,
    Comparison,
    check_losses,
    check_runs,
    columns_of,
    losses_of,
    run_comparison,
)
from autosegloss.search.content import bare_content
from autosegloss.search.folder import COMPARISON_FILES, check_folder
from autosegloss.search.head import Head
from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.ladder import LADDERS
from autosegloss.search.objective import announce, proxy_of
from autosegloss.search.own_trial import FirstTrial, TrialObjective
from autosegloss.search.runners import choose_runner
from autosegloss.search.runners.base import Runner, limited
from autosegloss.search.seeds import comparison_seeds, tuning_seeds
from autosegloss.search.settings import StudyConfig, as_config, fingerprint
from autosegloss.search.tables import Table
from autosegloss.search.tabulate import check_baseline, resolved
from autosegloss.search.tuning import Ladder, Tuning


@dataclass(frozen=True)
class ComparisonObjective:
    """Trains the proxy of a job's setting with the loss of the job.

    Args:
        proxies: A proxy for each setting, in the order of the settings.
        more: Metrics to measure besides the catalogue, for each setting.
        offsets: Whether to measure the target after fitted offsets too.
    """

    proxies: tuple[Proxy, ...]
    more: tuple[dict[str, Expr], ...]
    offsets: bool = False

    def __call__(self, job: Job) -> Outcome:
        """Train, and evaluate on the held-out part; except where a step is tried, on the validation set as well."""
        start = time.perf_counter()
        setting = job.index % len(self.proxies)
        proxy = self.proxies[setting]
        network = proxy.trained(proxy.loss(job.loss), job.seed, rate=job.rate)
        if job.stage == "tune":
            return Outcome(proxy.reward(network), {}, {}, error=None, seconds=time.perf_counter() - start)
        found = proxy.evaluation(network, validate=True, more=self.more[setting])
        # The target first and what belongs to it second, the calibration error last.
        fitted = self.offsets and WITH_OFFSETS not in found.validation
        offsets = {WITH_OFFSETS: proxy.with_offsets(network)} if fitted else {}
        validation = {TARGET: found.validation[TARGET], **offsets} | found.validation
        validation[CALIBRATION] = proxy.calibration_error(network)
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
    on_data: Callable[[Dataset], None] | None = None,
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
) -> Table:
    """Train with several losses in the settings of a configuration and compare them on the validation sets.

    First every loss is trained at each step of `compare.steps` on seeds of their own, and the step that is best on the
    held-out part is chosen for each; the comparison is that of the losses at these steps.

    With a `trial` of the user's own it is that which is called, and a step is chosen by its reward.

    The runs are paired: in each setting and for each seed, all losses start from the same initial weights and see the
    same images in the same order. The seeds derive from `search.seed` and differ from those of a search. Each finished
    trial is written to `out/trials.jsonl`; the results to `out/table.json`, `out/table.md` and `out/table.tex`.

    Args:
        config: A configuration, a mapping with its keys, or the path of a YAML file; see its section `compare`.
        losses: Names of losses, presets, or paths of loss files. None takes those of the configuration.
        out: The folder to write to.
        seeds: Number of runs of each loss in each setting, at least 2. None takes that of the configuration.
        runner: As for `search`.
        resume: Whether to continue the comparison in that folder. Losses and seeds may be appended to those it
            has; finished trials are not run again.
        command: The command line, for the record.
        observer: Called with the comparison at the start and after each trial.
        address: As for `search`.
        on_data: Called with each data set before any training; by default its warnings are logged.
        baseline: The loss that the others are compared with; None is the first.
        metrics: The columns of the table, among what is measured; verdicts are on these. None: those of the
            configuration. `tabulate` changes both later, without training.

    Returns:
        The table.

    Raises:
        InputError: A loss is unknown or given twice, there are too few seeds, a metric is not measured, or a `trial`
            is given one; raised before any training.
        RefusedError: The folder holds another comparison, or resources are missing.
        SearchError: Every run failed; raised after the table with the errors is written.
    """
    settled = as_config(config)
    losses = settled.compare.losses if losses is None else losses
    seeds = settled.compare.seeds if seeds is None else seeds
    check_losses(losses, seeds)
    check_baseline(baseline, losses)
    folder = Path(out).absolute()
    chosen = choose_runner(runner, settled.resources, address)
    check_folder(folder, COMPARISON_FILES, "comparison", resume)
    if settled.trial is None:
        compared = _of_proxies(settled, losses, metrics or (), on_data)
    else:
        compared = _of_trial(settled, losses, metrics or ())
    tuning = _tuning(settled)
    _check_steps(tuning, compared.definitions)
    modules = settled.recorded_modules(losses)
    plan = {
        "version": PLAN_VERSION,
        "losses": list(losses),
        "seeds": comparison_seeds(settled.search.seed, seeds),
        "metrics": compared.columns,
        "verdicts": compared.verdicts,
        "settings": list(compared.definitions),
        "steps": {name: list(ladder.steps) for name, ladder in tuning.ladders.items()},
        "tuning_seeds": list(tuning.seeds),
        "configurations": {name: fingerprint(settled.in_setting(name)) for name in compared.definitions},
        "definitions": compared.definitions,
        **({} if modules is None else {"modules": modules}),
    }

    def run(comparison: Comparison) -> None:
        queue = comparison if settled.trial is None else FirstTrial(comparison, rewarded=comparison.rewarded)
        with chosen.ready():
            chosen.run(queue, compared.prepare())

    table = run_comparison(
        plan,
        folder,
        run,
        target=spec_label(settled.goal),
        notes=compared.notes,
        what="comparison",
        resume=resume,
        head=Head.here(compared.data, settled.resources.gpus),
        command=command,
        observer=observer,
        baseline=baseline,
        asked=compared.asked,
        tuning=tuning,
    )
    check_runs(table, folder)
    return table


@dataclass(frozen=True)
class _Compared:
    """What is compared, and by which trainings.

    Args:
        definitions: The content of each loss in each setting.
        columns: The columns of the table.
        verdicts: Those that have verdicts.
        asked: The columns that were asked for, under the names by which they are measured.
        notes: A note on the data of each setting.
        data: What stands for the data in the head of the journal.
        prepare: Makes what runs the jobs, once the resources are there.
    """

    definitions: dict[str, dict[str, LossContent]]
    columns: list[str]
    verdicts: list[str]
    asked: list[str]
    notes: dict[str, str]
    data: dict[str, Any]
    prepare: Callable[[], Objective]


def _of_proxies(
    config: StudyConfig,
    losses: Sequence[str],
    metrics: Sequence[str],
    on_data: Callable[[Dataset], None] | None,
) -> _Compared:
    """The comparison of trainings of the proxy in every setting."""
    columns, verdicts, more = columns_of(config.goal, config.compare.metrics)
    offsets = config.compare.offsets or config.search.offsets
    if config.compare.metrics is None and offsets:
        columns.insert(columns.index(verdicts[0]) + 1, WITH_OFFSETS)
    proxies, definitions, more_of = _load(config, losses, more)
    distinct = {tuple(proxy.dataset.fingerprint().items()): proxy.dataset for proxy in proxies.values()}
    for dataset in distinct.values():
        announce(dataset, on_data)
    classes = [CLASS_PREFIX + name for proxy in proxies.values() for name in proxy.dataset.classes]
    measured = [TARGET, *([WITH_OFFSETS] if offsets else []), *METRICS, *more, *classes, CALIBRATION]

    def prepare() -> ComparisonObjective:
        ready = []
        for proxy in proxies.values():
            with limited(config.resources.time_limit, "the pretraining"):
                ready.append(proxy.prepare())
        return ComparisonObjective(tuple(ready), more_of, offsets)

    return _Compared(
        definitions,
        columns,
        verdicts,
        resolved(metrics, measured, config.goal),
        {name: proxy.dataset.note for name, proxy in proxies.items()},
        _data_of(proxies),
        prepare,
    )


def _of_trial(config: StudyConfig, losses: Sequence[str], metrics: Sequence[str]) -> _Compared:
    """The comparison of calls of the user's own trial."""
    trial = TrialObjective.of(config)
    if metrics:
        raise InputError(
            f"metrics: what `trial: {cut(trial.name)}` returns is not known before it runs, and all its numbers are "
            "columns. Choose some afterwards: autosegloss compare DIR --metrics NAME,NAME."
        )
    if own := next((name for name in losses if is_function(name)), None):
        raise InputError(
            f"loss `{cut(own)}`: next to `trial`, losses are names, texts of these and loss files. Let `trial` train "
            "with a function of yours itself."
        )
    definitions = {name: bare_content(load_loss(name)) for name in losses}
    return _Compared({"": definitions}, [TARGET], [TARGET], [], {"": ""}, trial.fingerprint(), lambda: trial)


def _tuning(config: StudyConfig) -> Tuning:
    """How the steps are chosen in each setting; a single step needs no trials."""
    steps = config.compare.steps
    optimizers = {name: config.in_setting(name).proxy.train.optimizer for name in config.compare.settings}
    ladders = {name: Ladder(tuple(steps or LADDERS[optimizer]), optimizer) for name, optimizer in optimizers.items()}
    number = 0 if steps is not None and len(steps) == 1 else config.compare.tuning_seeds
    return Tuning(ladders, tuple(tuning_seeds(config.search.seed, number)))


def _check_steps(tuning: Tuning, definitions: Mapping[str, Mapping[str, LossContent]]) -> None:
    """Raise InputError if a loss can't be taken to a step: its scale would be too large."""
    for setting, losses in definitions.items():
        ladder = tuning.ladders[setting]
        for name, content in losses.items():
            for place, step in enumerate(ladder.steps):
                try:
                    loss = ladder.at(content, place).loss
                    if loss is not content and not is_own(loss):
                        build_loss(loss)
                except AutoseglossError as error:
                    raise InputError(f"compare.steps: loss `{cut(name)}` at step {step:g}: {error}") from error


def _data_of(proxies: Mapping[str, Proxy]) -> dict[str, Any]:
    """The fingerprints of the data, by setting if the settings have names."""
    found = {name: proxy.dataset.fingerprint() for name, proxy in proxies.items()}
    return found.get("", found)


def _load(
    config: StudyConfig, losses: Sequence[str], more: Mapping[str, Expr]
) -> tuple[dict[str, Proxy], dict[str, dict[str, LossContent]], tuple[dict[str, Expr], ...]]:
    """The proxy, the losses and the further metrics of each setting; settings with the same data share it."""
    device_of(config.resources.gpus)
    datasets: dict[str, Dataset] = {}
    proxies, definitions, more_of = {}, {}, []
    for name in config.compare.settings:
        own = config.in_setting(name)
        data = own.proxy.data
        key = json.dumps(data.model_dump(), sort_keys=True)
        try:
            if key not in datasets:
                datasets[key] = load_dataset(data.name, **data.options)
            proxies[name] = proxy = proxy_of(own, datasets[key])
            more_of.append({name: with_class_names(expr, proxy.dataset.classes) for name, expr in more.items()})
            modules = losses_of(losses, proxy.dataset)
        except AutoseglossError as error:
            if not name:
                raise
            raise type(error)(f"in the setting `{name}`: {error}") from error
        definitions[name] = {loss: bare_content(module) for loss, module in zip(losses, modules, strict=True)}
    return proxies, definitions, tuple(more_of)
