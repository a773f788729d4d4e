"""The progress of searches and comparisons, live on a terminal and a line per step elsewhere, and their status."""

from __future__ import annotations

import os
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
from autosegloss.metric.settings import guard_shares
from autosegloss.proxy.data import Dataset
from autosegloss.proxy.trial import TARGET, WITH_OFFSETS
from autosegloss.report.data import data_text, warn
from autosegloss.report.rivals import closing_text, guards_text, reward_title, screen_text, so_far_text, titles
from autosegloss.report.shown import loss_line
from autosegloss.report.tables import BESIDE, search_table
from autosegloss.search.api import Result, Status, scores_of
from autosegloss.search.comparison import Comparison
from autosegloss.search.findings import Step
from autosegloss.search.folder import COMPARISON_FILES, LOSS_FILE, resume_command
from autosegloss.search.settings import StudyConfig
from autosegloss.search.statistics import number
from autosegloss.search.study import Study
from autosegloss.search.tables import Table, not_learned


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
        self._rewards = 0
        self._screened = False
        self._left: float | None = None
        self._since = 0.0
        self._announced = False
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _announce(self) -> None:
        """Say what begins, once it is not refused."""
        if not self._announced:
            self._announced = True
            what = "searching for a loss" if self._config.search.steps else "trying the losses that people use"
            self._console.print(f"{what} for {self._config.title}; writing to {self._folder}/", markup=False)

    def data(self, dataset: Dataset) -> None:
        """Show what the data set holds."""
        self._announce()
        self._console.print(data_text(dataset), markup=False)
        warn(dataset.warnings)

    def update(self, study: Study) -> None:
        """Show the state of the study; its observer."""
        self._announce()
        if self._study is None:
            self._study, self._steps, self._rewards = study, len(study.steps), _rewards(study)
        if study.done:
            self._left, self._since = seconds_left(study, self._workers), time.monotonic()
        if study.screen is not None and not self._screened:
            self._screened = True
            self._console.print(screen_text(study.screen, self._config), markup=False)
        if not self._console.is_terminal:
            self._say_more(study)
        self._steps, self._rewards = len(study.steps), _rewards(study)

    def _say_more(self, study: Study) -> None:
        """A line for the round of the screening, and for each step, that has been finished since the last."""
        if study.screen is None and study.screening is not None and _rewards(study) > self._rewards:
            best = so_far_text(study.screening.so_far, self._config.trial is not None)
            self._console.print(f"screening: {best}; {self._left_text(study)}", markup=False)
        for step in study.steps[self._steps :]:
            done = f"{step.step + 1} of {study.step_count} steps, {self._left_text(study)}"
            text = step_text(step, self._config.trial is not None)
            self._console.print(f"{text}; {best_text(study, self._config)}; {done}", markup=False)

    def end(self, result: Result) -> None:
        """Show the result."""
        config, findings, loss = self._config, result.findings, self._folder / LOSS_FILE
        own, shown = config.trial is not None, titles(findings)
        called = "" if shown.get("found", findings.label) == findings.label else f" ({findings.label})"
        self._console.print(search_table(result, config, shown))
        rows = {title: result.scores[name] for name, title in shown.items()}
        goal = WITH_OFFSETS if config.search.offsets else TARGET
        scores = ", ".join(f"{title} {number(row[goal].mean, own) if row else 'failed'}" for title, row in rows.items())
        lines = [
            "" if own else f"all metrics: autosegloss report {self._folder}",
            not_learned(list(result.scores.values())),
            f"{reward_title(config)}: {scores}{called}.",
            f"guards, {guards}" if (guards := guards_text(findings, own)) else "",
            f"its loss: {loss_line(result.loss)}",
            f'loss: {loss}; load it with: autosegloss.load_loss("{loss}")',
            closing_text(findings, config),
        ]
        self._console.print("\n".join(filter(None, lines)), markup=False)

    def _render(self) -> RenderableType:
        """The live display, redrawn several times a second so that the time left counts down between trials."""
        study = self._study
        if study is None:
            return Text("preparing")
        first = Grid.grid(padding=(0, 2))
        bar = ProgressBar(total=study.total, completed=study.done, width=24)
        first.add_row(stage_text(study), bar, f"{study.done} of {total_text(study)}", self._left_text(study))
        lines = [f"{study.running} running, {study.failed} failed"]
        if study.stage == "screening" and study.screening is not None:
            lines.append(so_far_text(study.screening.so_far, self._config.trial is not None))
        lines += [step_text(step, self._config.trial is not None) for step in study.steps[-1:]]
        lines += [best_text(study, self._config)] if study.best is not None else []
        return Group(first, *map(Text, lines))

    def _left_text(self, study: Study) -> str:
        if self._left is None:
            return ""
        if not study.running:  # the clock stands until the workers have started
            self._since = time.monotonic()
        left = max(0.0, self._left - (time.monotonic() - self._since))
        return f"about {timedelta(seconds=round(left))} left"


def _rewards(study: Study) -> int:
    """The number of rewards in the finished rounds of the screening."""
    return 0 if study.screening is None else sum(len(each.rewards) for each in study.screening.so_far)


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
    if study.step_count == 0:
        return "no search" if study.finished else "the finals of the rivals"
    done = len(study.steps)
    now = "" if done < study.step_count or study.finished else ", now the finals"
    return f"{done} of {study.step_count} steps{now}"


def total_text(study: Study) -> str:
    """The number of trials; with rivals it is the largest possible until the end, since they may drop out early."""
    bound = not study.finished and (study.screening is not None or study.screen is not None)
    return f"{'at most ' if bound else ''}{study.total} trials"


def step_text(step: Step, own: bool) -> str:
    """A finished step in one line; `own` as for `number`."""

    def reward(value: float | None) -> str:
        return "failed" if value is None else number(value, own)

    centre = "" if step.mu is None else f", centre {reward(step.centre)}"
    return (
        f"step {step.step}: mean reward {reward(step.mean)}, best {reward(step.best)}, start {reward(step.start)}"
        f"{centre}, {step.failed} failed"
    )


def best_text(study: Study, config: StudyConfig) -> str:
    """The best trial so far: its reward, the metrics of the guard, and a few others."""
    if study.best is None:
        return "no best trial yet"
    job, outcome = study.best
    if config.trial is None:
        target = metric(config.goal)
        beside = [name for name in BESIDE if METRICS[name]() != target or config.search.offsets]
    else:
        beside = list(outcome.metrics)[: len(BESIDE)]
    names = dict.fromkeys([*guard_shares(config.guard), *beside])
    own = config.trial is not None
    metrics = ", ".join(f"{name} {number(outcome.metrics[name], own)}" for name in names if name in outcome.metrics)
    return f"best so far {number(outcome.reward or 0.0, own)} (sample {job.index} of step {job.step}): {metrics}"


def status_text(found: Status, folder: str | os.PathLike[str]) -> str:
    """The status of the search in a folder: a few lines, and one per step."""
    study, config = found.study, found.config
    advice = f"; continue with: {resume_command(config.command, folder)}" if found.state == "stopped" else ""
    mixed = [f"{key} {text}" for key, text in {**found.versions, **found.processor}.items() if " and " in text]
    lines = [
        f"{config.title}: {found.state}{advice}",
        *([found.damage] if found.damage else []),
        *([f"run in several environments: {', '.join(mixed)}"] if mixed else []),
        f"{stage_text(study)}; {study.done} of {total_text(study)} done, {study.failed} failed",
    ]
    if study.screen is not None:
        lines.append(screen_text(study.screen, config))
    elif study.screening is not None:
        lines.append(so_far_text(study.screening.so_far, config.trial is not None))
    own = config.trial is not None
    lines += [step_text(step, own) for step in study.steps]
    if study.step_count and study.stage != "screening":
        lines.append(best_text(study, config))
    if study.finished:
        findings = study.findings()
        name = "returned" if findings.theta is None else "found"
        reward = number(findings.reward, own)
        lines.append(f"{name}: {findings.label}, reward {reward} over {len(findings.seeds)} fresh seeds")
        lines.append(f"its loss: {loss_line(build_loss(findings.loss))}")
        lines += [f"guards, {guards}"] if (guards := guards_text(findings, own)) else []
        lines += filter(None, [not_learned(list(scores_of(findings).values())), closing_text(findings, config)])
    return "\n".join(lines)
