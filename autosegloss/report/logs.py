"""The progress of searches and comparisons for other programs: JSON lines, and scalars for TensorBoard."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import shutil
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from typing_extensions import Self

from autosegloss.errors import RefusedError, cut, note
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.data import Dataset
from autosegloss.report.data import data_record, warn
from autosegloss.report.rivals import screen_record
from autosegloss.search.api import Result, Status, scores_of, scores_record
from autosegloss.search.comparison import Comparison
from autosegloss.search.findings import Findings
from autosegloss.search.folder import LOSS_FILE, TABLE_FILE
from autosegloss.search.study import Study
from autosegloss.search.tables import Table, not_learned

SCALARS_FOLDER = "tensorboard"
_SPARE = 2**16  # bytes of a disk that scalars leave free


class _JsonLines:
    """Lines of JSON on standard output; all other output of the process goes to standard error.

    Args:
        config: Name of the configuration.
        folder: Where the results are written.
    """

    def __init__(self, config: str, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._begun = False
        self._data: list[dict[str, Any]] = []
        self._console = Console(file=sys.stdout, emoji=False)  # it exits quietly on a closed pipe
        self._redirected = redirect_stdout(sys.stderr)

    def __enter__(self) -> Self:
        self._redirected.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._redirected.__exit__(None, None, None)

    def data(self, dataset: Dataset) -> None:
        """Keep what a data set holds for the line `start`."""
        self._data.append(data_record(dataset))
        warn(dataset.warnings)

    def _write(self, event: str, **fields: Any) -> None:
        self._console.out(json.dumps({"event": event, **fields}, allow_nan=False), highlight=False)


class JsonLog(_JsonLines):
    """A search as lines of JSON.

    The key `event` of a line is its kind, which decides its other keys:

    - `start`: `config` (name), `folder`, `data` (a list of one, see `autosegloss.report.data.data_record`), and the
      counts, which are those of the journal if the search is resumed;
    - `trial`, after each: `stage`, `step`, `index`, `reward` or `error` (the other is null), `seconds`, the counts;
    - `screening`, after that of the rivals: see `autosegloss.report.rivals.screen_record`;
    - `step`, after each of the search: `step`, `seed`, `mu` and `std` (or null), `mean`, `best`, `failed`, `start`,
      `centre` (or null);
    - `end`: `found`, `scores` (by loss and metric on the validation set, `mean` and `sd`), `conclusion` (which loss is
      returned and why, or null without rivals), `learning_rate` (the factor with which it trains), `guards` (what
      became of them, or null), `not_learned` (the classes that no loss has learned, or null), `loss` (path of the
      file).

    The counts are the trials `done`, those `running`, those `failed` (also counted in `done`), and the `total`. Two
    runs of a search in one process differ in `seconds` only; parallel trials may end in a different order.
    """

    _steps = 0
    _screened = False

    def update(self, study: Study) -> None:
        """Write what is new; observer of a study."""
        if not self._begun:
            self._begun, self._steps, self._screened = True, len(study.steps), study.screen is not None
            self._write("start", config=self._config, folder=str(self._folder), data=self._data, **_counts(study))
            return
        assert study.last is not None  # the observer is called after a trial
        job, outcome = study.last
        record = {"reward": outcome.reward, "error": outcome.error, "seconds": outcome.seconds}
        self._write("trial", stage=job.stage, step=job.step, index=job.index, **record, **_counts(study))
        if study.screen is not None and not self._screened:
            self._screened = True
            self._write("screening", **screen_record(study.screen))
        for step in study.steps[self._steps :]:
            self._write("step", **asdict(step))
        self._steps = len(study.steps)

    def end(self, result: Result) -> None:
        """Write the result."""
        scores = scores_record(result.scores)
        findings = result.findings
        kept = result.loss.provenance
        about = _about(findings, str(kept.get("conclusion", "")), str(kept.get("guards", "")))
        self._write("end", found=findings.label, scores=scores, **about, loss=str(self._folder / LOSS_FILE))


class ComparisonLog(_JsonLines):
    """A comparison as lines of JSON.

    The key `event` of a line is its kind, which decides its other keys:

    - `start`: `config` (name), `folder`, `data` (a list of the data sets, see `autosegloss.report.data.data_record`),
      and the counts, which are those of the journal if the comparison is resumed;
    - `trial`, after each trial: `stage` ("tune" where a step is tried, "compare" elsewhere), `setting`, `loss`, its
      `step`, `seed`, `reward` (on the held-out part) or `error` (the other is null), `seconds`, the counts;
    - `end`: `steps` (by setting and loss; null in tables made before losses were tuned), `scores` (by setting, loss
      and metric on the validation set: `mean`, `sd`, and the 95% interval from `low` to `high`), `table` (path of the
      file).

    The counts are the trials `done` and the `total`.
    """

    def update(self, comparison: Comparison) -> None:
        """Write what is new; observer of a comparison."""
        counts = {"done": comparison.done, "total": comparison.total}
        if not self._begun:
            self._begun = True
            self._write("start", config=self._config, folder=str(self._folder), data=self._data, **counts)
            return
        assert comparison.last is not None  # the observer is called after a trial
        job, outcome = comparison.last
        record = {"reward": outcome.reward, "error": outcome.error, "seconds": outcome.seconds}
        setting, loss = comparison.pair(job)
        about = {"setting": setting, "loss": loss, "step": comparison.step(job), "seed": job.seed}
        self._write("trial", stage=job.stage, **about, **record, **counts)

    def end(self, table: Table) -> None:
        """Write the scores."""
        scores: dict[str, Any] = {row.setting: {} for row in table.rows}
        steps: dict[str, Any] = {row.setting: {} for row in table.rows}
        for row in table.rows:
            scores[row.setting] |= scores_record({row.loss: row.scores})
            steps[row.setting][row.loss] = None if row.tuned is None else row.tuned.step
        self._write("end", steps=steps, scores=scores, table=str(self._folder / TABLE_FILE))


class ScalarLog:
    """A search as scalars for TensorBoard, one point per step.

    `reward/mean`, `reward/best`, `reward/best_so_far`, `reward/start`, `failed`, and `mu/0`, `mu/1`, ... where the
    algorithm has a centre. A resumed search writes all its steps again, and TensorBoard drops the points of earlier
    files.

    Args:
        folder: Where to write; created with the first point.

    Raises:
        RefusedError: The package tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._steps = 0
        self._stopped = False
        self._best = -math.inf
        try:
            self._build = importlib.import_module("tensorboardX").SummaryWriter
        except ImportError as error:
            raise RefusedError(
                'the package tensorboardX is not installed; install it with: pip install "autosegloss[tensorboard]"'
            ) from error

    def __enter__(self) -> ScalarLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None and not self._stopped:
            with suppress(OSError):
                self._writer.close()

    def update(self, study: Study) -> None:
        """Write the steps that are new; observer of a study. On a full disk it says so once, and writes no more."""
        if self._stopped:
            return
        try:
            self._write(study)
        except OSError as error:
            self._stopped = True
            note(f"{cut(str(self._folder))}: scalars can't be written: {error.strerror or error}. The search goes on.")

    def _write(self, study: Study) -> None:
        # The writer's own thread would die of a full disk, and the next points wait for it for ever.
        if shutil.disk_usage(self._folder.parent).free < _SPARE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._writer is None:  # not earlier: now the study holds the lock of its journal
            self._writer = self._build(str(self._folder), purge_step=0, flush_secs=2)
        for step in study.steps[self._steps :]:
            self._best = max(self._best, step.best)
            scalars = {
                "reward/mean": step.mean,
                "reward/best": step.best,
                "reward/best_so_far": self._best,
                **({} if step.start is None else {"reward/start": step.start}),
                "failed": step.failed,
                **{f"mu/{i}": x for i, x in enumerate(step.mu or ())},
            }
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step.step)
        self._steps = len(study.steps)


def status_record(found: Status) -> dict[str, Any]:
    """The status of a search as a JSON object.

    Its keys are `metric`, `reward` (if that is something else), `state` ("finished", "running" or "stopped"), the
    counts of trials `done`, `failed` and `total`, the screening of the rivals as `screen`, `step_count`, the finished
    `steps` with the keys of `JsonLog`, the `best` trial so far, and the loss `found`; of these, `screen`, `best` and
    `found` are null if there is none.
    """
    study = found.study
    counts = _counts(study)
    del counts["running"]  # only the process that runs the trials knows it
    record: dict[str, Any] = {"metric": spec_label(found.config.metric), "state": found.state, **counts}
    if found.config.reward is not None:
        record["reward"] = spec_label(found.config.reward)
    record |= {"damage": found.damage or None, "versions": dict(found.versions), "processor": dict(found.processor)}
    record |= {"screen": None if study.screen is None else screen_record(study.screen)}
    record |= {"step_count": study.step_count, "steps": [asdict(step) for step in study.steps]}
    record |= {"best": None, "found": None}
    if study.best is not None:
        job, outcome = study.best
        record["best"] = {"step": job.step, "index": job.index, "theta": job.theta}
        record["best"] |= {"reward": outcome.reward, "metrics": outcome.metrics}
    if study.finished:
        findings = study.findings()
        record["found"] = {"label": findings.label, "theta": findings.theta, "reward": findings.reward}
        own = found.config.trial is not None
        record["found"] |= _about(findings, findings.conclude(own), findings.about_guards(own))
    return record


def _about(findings: Findings, conclusion: str, guards: str) -> dict[str, str | float | None]:
    """What a user should know about the result of a search."""
    missed = not_learned(list(scores_of(findings).values()))
    about = {"conclusion": conclusion or None, "learning_rate": findings.rate}
    return {**about, "guards": guards or None, "not_learned": missed or None}


def _counts(study: Study) -> dict[str, int]:
    return {"done": study.done, "running": study.running, "failed": study.failed, "total": study.total}
