"""What searches and comparisons tell other programs: JSON lines, and scalars for TensorBoard."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from typing_extensions import Self

from autosegloss.errors import RefusedError
from autosegloss.report.tables import metric_label
from autosegloss.search.api import Result, Status, scores_record
from autosegloss.search.comparison import TABLE_FILE, Comparison
from autosegloss.search.folder import LOSS_FILE
from autosegloss.search.study import Study
from autosegloss.search.tables import Table

SCALARS_FOLDER = "tensorboard"
Observer = Callable[[Study], None]


def together(*observers: Observer) -> Observer:
    """Several observers of a study as one."""

    def update(study: Study) -> None:
        for observer in observers:
            observer(study)

    return update


class _JsonLines:
    """Lines of JSON on standard output; what anything else prints meanwhile goes to standard error.

    Args:
        config: Name of the configuration.
        folder: Where the results are written.
    """

    def __init__(self, config: str, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._begun = False
        self._console = Console(file=sys.stdout, emoji=False)  # it ends the program quietly if nobody reads any more
        self._redirected = redirect_stdout(sys.stderr)

    def __enter__(self) -> Self:
        self._redirected.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._redirected.__exit__(kind, error, traceback)

    def _write(self, event: str, **fields: Any) -> None:
        self._console.out(json.dumps({"event": event, **fields}, allow_nan=False), highlight=False)


class JsonLog(_JsonLines):
    """A search as lines of JSON.

    The key `event` of each says what it is, and what other keys it has:

    - `start`: `config` (name), `folder`, and the counts, which are those of the journal if the search is resumed;
    - `trial`, after each: `stage`, `step`, `index`, `reward` or `error` (the other one is null), `seconds`, the counts;
    - `step`, after each of the search: `step`, `seed`, `mu` (or null), `mean`, `best`, `failed`;
    - `end`: `found`, `scores` (by loss and metric on the validation set, `mean` and `sd`), `loss` (path of the file).

    The counts are `done` trials, those `running` besides, `failed` ones among the done, and the `total`. Nothing but
    `seconds` differs between two runs of a search in one process; side by side, trials may end in another order.
    """

    _steps = 0

    def update(self, study: Study) -> None:
        """Tell what is new; observer of a study."""
        if not self._begun:
            self._begun, self._steps = True, len(study.steps)
            self._write("start", config=self._config, folder=str(self._folder), **_counts(study))
            return
        assert study.last is not None  # the observer is called after a trial
        job, outcome = study.last
        told = {"reward": outcome.reward, "error": outcome.error, "seconds": outcome.seconds}
        self._write("trial", stage=job.stage, step=job.step, index=job.index, **told, **_counts(study))
        for step in study.steps[self._steps :]:
            self._write("step", **asdict(step))
        self._steps = len(study.steps)

    def end(self, result: Result) -> None:
        """Tell what was found."""
        scores = scores_record(result.scores)
        self._write("end", found=result.findings.label, scores=scores, loss=str(self._folder / LOSS_FILE))


class ComparisonLog(_JsonLines):
    """A comparison as lines of JSON.

    The key `event` of each says what it is, and what other keys it has:

    - `start`: `config` (name), `folder`, and the counts, which are those of the journal if the comparison is resumed;
    - `trial`, after each: `setting`, `loss`, `seed`, `reward` (on the held-out part) or `error` (the other one is
      null), `seconds`, the counts;
    - `end`: `scores` (by setting, loss and metric on the validation set: `mean`, `sd`, and the 95% interval from `low`
      to `high`), `table` (path of the file).

    The counts are `done` trials and the `total`.
    """

    def update(self, comparison: Comparison) -> None:
        """Tell what is new; observer of a comparison."""
        counts = {"done": comparison.done, "total": comparison.total}
        if not self._begun:
            self._begun = True
            self._write("start", config=self._config, folder=str(self._folder), **counts)
            return
        assert comparison.last is not None  # the observer is called after a trial
        job, outcome = comparison.last
        told = {"reward": outcome.reward, "error": outcome.error, "seconds": outcome.seconds}
        setting, loss = comparison.pair(job)
        self._write("trial", setting=setting, loss=loss, seed=job.seed, **told, **counts)

    def end(self, table: Table) -> None:
        """Tell the scores."""
        scores: dict[str, Any] = {row.setting: {} for row in table.rows}
        for row in table.rows:
            scores[row.setting] |= scores_record({row.loss: row.scores})
        self._write("end", scores=scores, table=str(self._folder / TABLE_FILE))


class ScalarLog:
    """A search as scalars of TensorBoard, one point a step.

    `reward/mean`, `reward/best`, `reward/best_so_far`, `failed`, and `mu/0`, `mu/1`, ... where the algorithm has a
    centre. All steps are written when the search starts, so that nothing depends on what a run before has left;
    TensorBoard drops the points of earlier files then.

    Args:
        folder: Where to write; made when there is something to write.

    Raises:
        RefusedError: The package tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._steps = 0
        self._best = -math.inf
        try:
            self._build = importlib.import_module("tensorboardX").SummaryWriter
        except ImportError as error:
            raise RefusedError(
                'the package tensorboardX is not installed; install it with: pip install "autosegloss[tensorboard]"'
            ) from error

    def __enter__(self) -> ScalarLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def update(self, study: Study) -> None:
        """Write the steps that are new; observer of a study."""
        if self._writer is None:  # the folder is ours from here on: the study holds the lock of its journal
            self._writer = self._build(str(self._folder), purge_step=0, flush_secs=2)
        for step in study.steps[self._steps :]:
            self._best = max(self._best, step.best)
            scalars = {
                "reward/mean": step.mean,
                "reward/best": step.best,
                "reward/best_so_far": self._best,
                "failed": step.failed,
                **{f"mu/{i}": x for i, x in enumerate(step.mu or ())},
            }
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step.step)
        self._steps = len(study.steps)


def status_record(found: Status) -> dict[str, Any]:
    """The status of a search for machines, as JSON has it.

    `metric`, `state` ("finished", "running" or "stopped"), the counts `done`, `failed` and `total` of trials,
    `step_count`, the `steps` that are done, as `JsonLog` tells them, the `best` trial so far and what was `found`, both
    null if there is none.
    """
    study = found.study
    counts = _counts(study)
    del counts["running"]  # is known to the process that runs them
    record: dict[str, Any] = {"metric": metric_label(found.config), "state": found.state, **counts}
    record |= {"step_count": study.step_count, "steps": [asdict(step) for step in study.steps]}
    record |= {"best": None, "found": None}
    if study.best is not None:
        job, outcome = study.best
        record["best"] = {"step": job.step, "index": job.index, "theta": job.theta}
        record["best"] |= {"reward": outcome.reward, "metrics": outcome.metrics}
    if study.finished:
        findings = study.findings()
        record["found"] = {"label": findings.label, "theta": findings.theta, "reward": findings.reward}
    return record


def _counts(study: Study) -> dict[str, int]:
    return {"done": study.done, "running": study.running, "failed": study.failed, "total": study.total}
