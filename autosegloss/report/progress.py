"""The progress of searches and comparisons, live on a terminal and a line per step elsewhere, and their status."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from autosegloss.loss.file import build_loss
from autosegloss.metric import METRICS, metric
from autosegloss.metric.settings import guard_shares, spec_label
from autosegloss.proxy.data import Dataset
from autosegloss.report.data import data_text, warn
from autosegloss.report.shown import loss_line
from autosegloss.report.tables import LOSSES, number, search_table
from autosegloss.search.api import Result, Status, scores_of
from autosegloss.search.comparison import Comparison
from autosegloss.search.findings import Step
from autosegloss.search.folder import COMPARISON_FILES, LOSS_FILE
from autosegloss.search.settings import StudyConfig
from autosegloss.search.study import Study
from autosegloss.search.tables import Table, not_learned

_BESIDE = ("miou", "macc", "gacc", "bf1")
"""Metrics of the best trial that are shown beside its reward: each is blind to something another one measures."""


class Display:
    """The progress of a search: a live display on a terminal, a line per step elsewhere.

    Args:
        console: Where to print.
        config: The configuration of the search.
        workers: Number of parallel trials, for the estimate of the time left.
        folder: The folder of the search.
    """

    def __init__(self, console: Console, config: StudyConfig, workers: int, folder: Path) -> None:
        self._console = console
        self._config = config
        self._workers = workers
        self._folder = folder
        self._study: Study | None = None
        self._steps = 0
        self._left: float | None = None
        self._since = 0.0
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def __enter__(self) -> Display:
        self._console.print(f"searching for a loss for {self._config.title}; writing to {self._folder}/", markup=False)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def data(self, dataset: Dataset) -> None:
        """Show what the data set holds."""
        self._console.print(data_text(dataset), markup=False)
        warn(dataset.warnings)

    def update(self, study: Study) -> None:
        """Show the state of the study; its observer."""
        if self._study is None:
            self._study, self._steps = study, len(study.steps)
        if study.done:
            self._left, self._since = seconds_left(study, self._workers), time.monotonic()
        if not self._console.is_terminal:
            for step in study.steps[self._steps :]:
                done = f"{step.step + 1} of {study.step_count} steps, {self._left_text(study)}"
                self._console.print(f"{step_text(step)}; {best_text(study, self._config)}; {done}", markup=False)
        self._steps = len(study.steps)

    def end(self, result: Result) -> None:
        """Show the result."""
        target, loss, own = spec_label(self._config.goal), self._folder / LOSS_FILE, self._config.trial is not None
        self._console.print(search_table(result, target, own))
        score = {name: number(row["target"].mean, own) if row else "failed" for name, row in result.scores.items()}
        if zero := not_learned(list(result.scores.values())):
            self._console.print(zero, markup=False)
        guards = result.findings.about_guards
        about = f"guards, on held-out images: {guards}\n" if guards else ""
        self._console.print(
            f"{target}: {', '.join(f'{LOSSES[name]} {text}' for name, text in score.items())} "
            f"({result.findings.label}).\n"
            f"{about}"
            f"its loss: {loss_line(result.loss)}\n"
            f'loss: {loss}; load it with: autosegloss.load_loss("{loss}")',
            markup=False,
        )

    def _render(self) -> RenderableType:
        """The live display, redrawn several times a second so that the time left counts down between trials."""
        study = self._study
        if study is None:
            return Text("preparing")
        first = Grid.grid(padding=(0, 2))
        bar = ProgressBar(total=study.total, completed=study.done, width=24)
        first.add_row(stage_text(study), bar, f"{study.done} of {study.total} trials", self._left_text(study))
        lines = [f"{study.running} running, {study.failed} failed"]
        lines += [step_text(step) for step in study.steps[-1:]]
        lines += [best_text(study, self._config)] if study.best is not None else []
        return Group(first, *map(Text, lines))

    def _left_text(self, study: Study) -> str:
        if self._left is None:
            return ""
        if not study.running:  # the clock stands until the workers have started
            self._since = time.monotonic()
        left = max(0.0, self._left - (time.monotonic() - self._since))
        return f"about {timedelta(seconds=round(left))} left"


def progress_bar(console: Console, what: str) -> Progress:
    """A bar with the time left, on a terminal only."""
    columns = TextColumn(what), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


class ComparisonDisplay:
    """The progress of a comparison: a bar on a terminal, nothing elsewhere; then the table.

    Args:
        console: Where to print.
        folder: The folder of the comparison.
    """

    def __init__(self, console: Console, folder: Path) -> None:
        self._console = console
        self._folder = folder
        self._bar = progress_bar(console, "comparing")
        self._task = self._bar.add_task("comparing", total=None)

    def __enter__(self) -> ComparisonDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def data(self, dataset: Dataset) -> None:
        """Show what a data set holds."""
        self._console.print(data_text(dataset), markup=False)
        warn(dataset.warnings)

    def update(self, comparison: Comparison) -> None:
        """Show the number of finished trials; observer of a comparison."""
        self._bar.update(self._task, total=comparison.total, completed=comparison.done)

    def end(self, table: Table) -> None:
        """Show the table."""
        self._console.print(table.to_markdown(), markup=False)
        self._console.print(written_text(self._folder), markup=False)


def written_text(folder: Path) -> str:
    """The names of the files that a comparison or a retraining has written."""
    _, *tables, last = (str(folder / name) for name in COMPARISON_FILES)
    return f"wrote {', '.join(tables)} and {last}"


def seconds_left(study: Study, workers: int) -> float:
    """The estimated time to the end of a study, from the mean time of its finished trials and the number of workers.

    It depends on the journal alone, so that it is as good right after a resume.
    """
    return study.seconds / study.done * (study.total - study.done) / workers


def stage_text(study: Study) -> str:
    """The stage of a study: the screening of the rivals, its finished steps, or the finals."""
    if study.stage == "screening":
        return "screening the rivals"
    done = len(study.steps)
    now = "" if done < study.step_count or study.finished else ", now the finals"
    return f"{done} of {study.step_count} steps{now}"


def step_text(step: Step) -> str:
    """A finished step in one line."""
    start = "failed" if step.start is None else f"{step.start:.4f}"
    return f"step {step.step}: mean reward {step.mean:.4f}, best {step.best:.4f}, start {start}, {step.failed} failed"


def best_text(study: Study, config: StudyConfig) -> str:
    """The best trial so far: its reward, the metrics of the guard, and a few others."""
    if study.best is None:
        return "no best trial yet"
    job, outcome = study.best
    if config.trial is None:
        target = metric(config.goal)
        beside = [name for name in _BESIDE if METRICS[name]() != target]
    else:
        beside = list(outcome.metrics)[: len(_BESIDE)]
    names = dict.fromkeys([*guard_shares(config.guard), *beside])
    metrics = ", ".join(f"{name} {outcome.metrics[name]:.3f}" for name in names if name in outcome.metrics)
    return f"best so far {outcome.reward:.4f} (sample {job.index} of step {job.step}): {metrics}"


def status_text(found: Status) -> str:
    """The status of a search: a few lines, and one per step."""
    study = found.study
    advice = "; continue with: autosegloss search CONFIG --resume" if found.state == "stopped" else ""
    mixed = [f"{key} {text}" for key, text in {**found.versions, **found.processor}.items() if " and " in text]
    lines = [
        f"{found.config.title}: {found.state}{advice}",
        *([found.damage] if found.damage else []),
        *([f"run in several environments: {', '.join(mixed)}"] if mixed else []),
        f"{stage_text(study)}; {study.done} of {study.total} trials done, {study.failed} failed",
        *map(step_text, study.steps),
        best_text(study, found.config),
    ]
    if study.finished:
        findings = study.findings()
        lines.append(f"found: {findings.label}, reward {findings.reward:.4f} over {len(findings.seeds)} fresh seeds")
        lines.append(f"its loss: {loss_line(build_loss(findings.loss))}")
        lines += [f"guards, on held-out images: {findings.about_guards}"] if findings.about_guards else []
        lines += filter(None, [not_learned(list(scores_of(findings).values()))])
    return "\n".join(lines)
