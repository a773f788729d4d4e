"""`search`: from a configuration to a loss file."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch

from autosegloss.config import StudyConfig, as_config, dump_config, fingerprint, load_config
from autosegloss.errors import InputError, LossFileError, RefusedError, SearchError, TrainingDiverged, WriteError
from autosegloss.files import write_text
from autosegloss.loss import MixedLoss, SearchSpace, SurrogateLoss
from autosegloss.proxy.trial import Evaluation, Proxy, search_space, surrogate
from autosegloss.search.algorithms import ALGORITHMS
from autosegloss.search.journal import Job, Journal, Outcome, in_use
from autosegloss.search.runners import Runner, SerialRunner, attempt, failed
from autosegloss.search.study import Final, Findings, Study
from autosegloss.version import VERSION

LOSS_FILE, JOURNAL_FILE, CONFIG_FILE = "loss.json", "trials.jsonl", "config.yaml"


@dataclass(frozen=True)
class Score:
    """A metric over several seeds: its mean, and the standard deviation of one run (n - 1)."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: list[float]) -> Score:
        """The score of some runs; one run alone has no spread, given as 0."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class Result:
    """A finished search.

    Args:
        loss: The loss found, as in `folder/loss.json`.
        folder: Where loss, journal and configuration are.
        scores: On the validation set, per loss ("cross-entropy", "identity", "found") and metric ("target" is the one
            searched for); over the final's fresh seeds.
        findings: The course of the search and its finals in full.
    """

    loss: SurrogateLoss | MixedLoss
    folder: Path
    scores: Mapping[str, Mapping[str, Score]]
    findings: Findings


@dataclass(frozen=True)
class Objective:
    """The proxy as the study and its workers call it: a job in, an outcome out."""

    proxy: Proxy

    def __call__(self, job: Job) -> Outcome:
        """Run a trial; a final is measured on the validation set too."""
        start = time.perf_counter()
        (found,) = self._found([job])
        if isinstance(found, Exception):
            raise found
        return _outcome(found, time.perf_counter() - start)

    def together(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run trials side by side; see `Joint.together`.

        What fails other than by diverging is run once more alone: it may have lacked the memory that the others had.
        """
        start = time.perf_counter()
        found = self._found(jobs)
        seconds = (time.perf_counter() - start) / len(jobs)
        outcomes = []
        for job, each in zip(jobs, found, strict=True):
            if isinstance(each, Evaluation):
                outcomes.append(_outcome(each, seconds))
            elif isinstance(each, TrainingDiverged):
                outcomes.append(failed(each, seconds))
            else:
                outcomes.append(attempt(self, job))
        return outcomes

    def _found(self, jobs: Sequence[Job]) -> list[Evaluation | Exception]:
        first = jobs[0]
        return self.proxy.together([job.theta for job in jobs], first.seed, first.stage == "final")


def _outcome(evaluation: Evaluation, seconds: float) -> Outcome:
    return Outcome(evaluation.reward, evaluation.metrics, evaluation.validation, error=None, seconds=seconds)


def search(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    runner: Runner | Literal["ray", "serial"] = "ray",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    observer: Callable[[Study], None] | None = None,
    address: str | None = None,
) -> Result:
    """See `autosegloss.search`."""
    settled = as_config(config if isinstance(config, StudyConfig | Mapping) else Path(config))
    folder = _folder(config, out)
    check_space(settled)
    chosen = choose_runner(runner, settled, address)
    refuse_to_overwrite(folder, (LOSS_FILE, CONFIG_FILE), "search")
    proxy = Proxy.load(settled)
    with Journal(folder / JOURNAL_FILE, resume=resume) as journal:
        if journal.trials:
            _refuse_another_configuration(folder, settled)
        with resumable():
            write_text(folder / CONFIG_FILE, dump_config(settled))
        study = study_of(settled, journal, observer)
        if observer is not None:
            observer(study)
        if not study.finished:
            with chosen.ready():
                chosen.run(study, Objective(proxy.prepare()))
        return _result(settled, folder, study.findings())


@dataclass(frozen=True)
class Status:
    """Where the search in a folder stands.

    Args:
        config: Its configuration.
        study: Its course so far, from a copy of its journal.
        running: Whether a process is at work on it now.
        trials: Those that are finished, in the order of the journal; one that was run again after its step had failed
            stands there once more.
    """

    config: StudyConfig
    study: Study
    running: bool
    trials: tuple[tuple[Job, Outcome], ...]

    @property
    def state(self) -> Literal["finished", "running", "stopped"]:
        """In one word."""
        return "finished" if self.study.finished else "running" if self.running else "stopped"


def status(folder: str | os.PathLike[str]) -> Status:
    """Where the search in a folder stands, running or not; nothing in the folder is touched.

    Args:
        folder: What a search writes to.

    Raises:
        InputError: There is no search in the folder.
        RefusedError: Its journal is damaged.
    """
    path = Path(folder, JOURNAL_FILE)
    if not path.exists() or not Path(folder, CONFIG_FILE).exists():
        raise InputError(f"{folder}: no {JOURNAL_FILE} and {CONFIG_FILE} in this folder; it is not that of a search.")
    config = load_config(Path(folder, CONFIG_FILE))
    running = in_use(path)
    with tempfile.TemporaryDirectory(prefix="autosegloss-status-") as draft:
        copy = Path(shutil.copy(path, draft))
        try:
            with Journal(copy, resume=True) as journal:
                return Status(config, study_of(config, journal), running, tuple(journal.trials))
        except RefusedError as error:
            raise RefusedError(str(error).replace(str(copy), str(path))) from None


def check_space(config: StudyConfig) -> SearchSpace:
    """The space of a search.

    Raises:
        InputError: It has no coordinates.
    """
    space = search_space(config)
    if not space.dimension:
        raise InputError(
            f"there is nothing to search: {config.relaxation.curve} curves of {config.relaxation.pieces} piece(s) on "
            f"{len(space.curves)} slot(s) have no coordinates. Give relaxation.pieces a larger value."
        )
    return space


def study_of(config: StudyConfig, journal: Journal, observer: Callable[[Study], None] | None = None) -> Study:
    """The study that a configuration describes, as far as its journal goes."""
    return Study(
        ALGORITHMS[config.search.algorithm](start=search_space(config).identity, **config.search.options),
        journal,
        steps=config.search.steps,
        candidates=config.finalists.candidates,
        finalist_seeds=config.finalists.seeds,
        seed=config.search.seed,
        guard=config.guard,
        lag=config.search.lag,
        observer=observer,
    )


def _result(config: StudyConfig, folder: Path, findings: Findings) -> Result:
    finals = {final.label: final for final in findings.finals}
    compared = {
        "cross-entropy": finals["cross-entropy"],
        "identity": finals["identity"],
        "found": finals[findings.label],
    }
    scores = {name: _scores(final) for name, final in compared.items()}
    loss = surrogate(config, findings.theta)
    loss.provenance = {
        "found": findings.label,
        "theta": list(findings.theta),
        "reward": findings.reward,
        "validation": scores_record(scores),
        "seeds": list(findings.seeds),
        "configuration": fingerprint(config),
        "versions": versions(),
    }
    with resumable():
        loss.save(folder / LOSS_FILE)
    return Result(loss, folder, scores, findings)


def _scores(final: Final) -> dict[str, Score]:
    """Per metric over the seeds that ended; the target first."""
    runs = [run for run in final.validation if run]
    return {name: Score.of([run[name] for run in runs]) for name in (runs[0] if runs else {})}


def scores_record(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores as JSON has them."""
    return {name: {each: asdict(score) for each, score in row.items()} for name, row in scores.items()}


def versions() -> dict[str, str]:
    """Of the packages that decide the numbers."""
    return {"autosegloss": VERSION, "torch": str(torch.__version__), "numpy": numpy.__version__}


@contextmanager
def resumable() -> Iterator[None]:
    """Say of a file that can't be written, as on a full disk, that the trials are not lost with it.

    Raises:
        SearchError: In place of a WriteError, or of the LossFileError of `save`.
    """
    try:
        yield
    except (WriteError, LossFileError) as error:
        raise SearchError(f"{error} Finished trials are safe; mend this and continue with --resume.") from error


def choose_runner(runner: Runner | str, config: StudyConfig, address: str | None = None) -> Runner:
    """The runner of a name, with the resources of a configuration; on the Ray cluster at an address, if one is given.

    Raises:
        InputError: There is no such runner, or it has no use for an address.
    """
    if address is not None and runner != "ray":
        raise InputError(f"address is {address!r}, of a Ray cluster, but runner is {runner!r}; leave one of them out.")
    if runner == "serial":
        return SerialRunner(config.resources.workers if config.resources.gpus else 1)
    if runner == "ray":
        from autosegloss.search.ray_runner import RayRunner  # Ray is imported when it is asked for, not before

        resources = config.resources
        return RayRunner(resources.workers, resources.cpus, resources.gpus, resources.time_limit, address)
    if isinstance(runner, str):
        raise InputError(f"runner is {runner!r}; allowed: ray, serial.")
    return runner


def _folder(config: object, out: str | os.PathLike[str] | None) -> Path:
    if out is not None:
        return Path(out).absolute()
    if isinstance(config, StudyConfig | Mapping):
        raise InputError("a configuration that is no file has no name: say where to write with out=.")
    return Path("results", Path(str(config)).stem).absolute()


def _refuse_another_configuration(folder: Path, config: StudyConfig) -> None:
    """Stop if the trials in the folder were run with a configuration that gives other results."""
    refuse_differences(
        f"{folder} holds a search with another configuration",
        fingerprint(load_config(folder / CONFIG_FILE)),
        fingerprint(config),
    )


def refuse_differences(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Stop if two nested mappings differ, and say in what."""
    old, new = _leaves(dict(there)), _leaves(dict(here))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        table = "\n".join(
            f"  {key}: {old.get(key, 'not set')} there, {new.get(key, 'not set')} now" for key in differing
        )
        raise RefusedError(f"{what}:\n{table}\nRestore these values to continue it, or choose another folder.")


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of nested dictionaries as `a.b.c`, with their values as JSON text."""
    if isinstance(value, dict) and value:
        inner = (_leaves(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
        return {key: text for leaves in inner for key, text in leaves.items()}
    return {prefix: json.dumps(value)}


def refuse_to_overwrite(folder: Path, names: Sequence[str], what: str) -> None:
    """Stop if files of these names are there without the journal of a search, which else decides what may be done."""
    found = [name for name in names if (folder / name).exists()]
    if found and not (folder / JOURNAL_FILE).exists():
        raise RefusedError(f"{folder} holds {' and '.join(found)} already, and no {what}. Choose another folder.")
