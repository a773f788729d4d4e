"""`search`: from a configuration to a loss file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autosegloss.errors import InputError, LossFileError, RefusedError, cut, note
from autosegloss.files import sweep_drafts, write_text
from autosegloss.loss import Loss, load_loss
from autosegloss.loss.file import build_loss
from autosegloss.metric.settings import guard_shares, spec_label
from autosegloss.proxy.data import Dataset
from autosegloss.proxy.trial import Proxy
from autosegloss.search.algorithms import ALGORITHMS, Algorithm
from autosegloss.search.content import CROSS_ENTROPY, bare_content
from autosegloss.search.finals import Finals, Schedule
from autosegloss.search.findings import Findings
from autosegloss.search.folder import (
    CONFIG_FILE,
    JOURNAL_FILE,
    LOSS_FILE,
    SEARCH_FILES,
    check_folder,
    held_in,
    refuse_differences,
    resumable,
    resume_command,
)
from autosegloss.search.head import Head
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.journal import Journal, in_use
from autosegloss.search.ladder import LADDERS
from autosegloss.search.objective import ProxyObjective, announce, proxy_of
from autosegloss.search.own_trial import FirstTrial, TrialObjective
from autosegloss.search.plan import Begin, Plan
from autosegloss.search.points import start_of
from autosegloss.search.rivals import Screened, Screening, rivals_of
from autosegloss.search.runners import choose_runner
from autosegloss.search.runners.base import Runner, limited
from autosegloss.search.settings import NEAR, StudyConfig, as_config, dump_config, fingerprint, load_config
from autosegloss.search.space import LossFamily
from autosegloss.search.statistics import Score
from autosegloss.search.study import Study

_ANOTHER = "with another version of the function, begin anew in another folder"


@dataclass(frozen=True)
class Result:
    """A finished search.

    Args:
        loss: The loss found, as in `folder/loss.json`.
        folder: The folder of the loss, the journal and the configuration.
        scores: Validation scores over the seeds of the finals, by loss ("cross-entropy", "rival", the best one, or
            without rivals "start", and "found") and by metric ("target" is what the search maximises); with `trial`,
            the numbers that it returned.
        findings: The steps and finals of the search.
    """

    loss: Loss
    folder: Path
    scores: Mapping[str, Mapping[str, Score]]
    findings: Findings


def search(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    runner: Runner | Literal["ray", "serial"] = "ray",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    observer: Callable[[Study], None] | None = None,
    address: str | None = None,
    on_data: Callable[[Dataset], None] | None = None,
) -> Result:
    """See `autosegloss.search`."""
    settled = as_config(config)
    folder = _folder(config, out)
    LossFamily.of(settled).check()
    algorithm_of(settled)  # refuses a searcher that can't be imported
    if not settled.names_classes:
        rivals_of(settled)  # and rivals that are no losses
    chosen = choose_runner(runner, settled.resources, address)
    if check_folder(folder, SEARCH_FILES, "search", resume) and not settled.names_classes:
        _refuse_another_configuration(folder, settled)
    proxy = TrialObjective.of(settled) if settled.trial is not None else proxy_of(settled)
    if isinstance(proxy, Proxy):
        settled = settled.with_class_numbers(proxy.dataset.classes)
        rivals_of(settled)
        announce(proxy.dataset, on_data)
    with Journal(folder / JOURNAL_FILE, resume=resume, head=head_of(settled, proxy)) as journal:
        if journal.trials:
            _refuse_another_configuration(folder, settled)
        elif resume:
            note(f"{cut(str(folder))} holds no trials to resume: the search starts from its beginning.")
        sweep_drafts(folder, SEARCH_FILES)
        with resumable():
            write_text(folder / CONFIG_FILE, dump_config(settled))
        study = study_of(settled, journal, observer)
        if observer is not None:
            observer(study)
        if not study.finished:
            journal.note_changes()
            with chosen.ready():
                if isinstance(proxy, TrialObjective):
                    chosen.run(FirstTrial(study, rewarded=study.done > study.failed), proxy)
                else:
                    with limited(settled.resources.time_limit, "the pretraining"):
                        prepared = proxy.prepare()
                    chosen.run(study, ProxyObjective(prepared, settled.finalists.iterations))
        return _result(settled, folder, study.findings(), journal)


def head_of(config: StudyConfig, proxy: Proxy | TrialObjective) -> Head:
    """The head of the journal of a run on this machine."""
    if isinstance(proxy, TrialObjective):
        return Head.here(proxy.fingerprint(), config.resources.gpus)
    data, weights = proxy.dataset.fingerprint(), config.proxy.start.weights
    if weights is not None:
        data["weights"] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return Head.here(data, config.resources.gpus)


@dataclass(frozen=True)
class Status:
    """The progress of a search.

    Args:
        config: The configuration.
        study: The study so far, from a copy of the journal.
        running: Whether a process is running the search.
        trials: The finished trials in the order of the journal; a trial that was run again is listed each time.
        loss: The loss found, if the search is finished and its loss file is the one that the journal leads to.
        damage: What is wrong with the loss file of a search whose trials are finished; empty if nothing is.
        versions: The versions with which the trials ran; several are joined.
        processor: The kinds of processors on which they ran; several are joined.
    """

    config: StudyConfig
    study: Study
    running: bool
    trials: tuple[tuple[Job, Outcome], ...]
    loss: Loss | None
    damage: str
    versions: Mapping[str, str]
    processor: Mapping[str, str]

    @property
    def state(self) -> Literal["finished", "running", "damaged", "stopped"]:
        """The state in one word; a search whose loss file is yet to be written is not finished."""
        if self.loss is not None:
            return "finished"
        return "running" if self.running else "damaged" if self.damage else "stopped"


def status(folder: str | os.PathLike[str]) -> Status:
    """The progress of the search in a folder, which is left unchanged.

    Args:
        folder: The output folder of the search.

    Raises:
        InputError: There is no search in the folder.
        RefusedError: Its journal is damaged.
    """
    path = Path(folder, JOURNAL_FILE)
    if not path.exists() or not Path(folder, CONFIG_FILE).exists():
        raise _no_search(folder, f"{JOURNAL_FILE} or {CONFIG_FILE} is missing")
    config = as_config(Path(folder, CONFIG_FILE))
    running = path.is_file() and in_use(path)
    with Journal(path, resume=True, read_only=True) as journal:
        study = study_of(config, journal)
    loss, damage = _written_loss(Path(folder, LOSS_FILE), study, config.command)
    return Status(config, study, running, tuple(journal.trials), loss, damage, journal.versions, journal.processor)


def _no_search(folder: str | os.PathLike[str], missing: str) -> InputError:
    """The error that a folder holds no search."""
    path = Path(folder)
    why = f"it holds a {held}" if (held := held_in(path)) not in ("", "search") else missing
    return InputError(f"{folder}: not the folder of a search: {why if path.exists() else 'there is no such folder'}.")


def _written_loss(path: Path, study: Study, command: str) -> tuple[Loss | None, str]:
    """The loss file of a study, and what is wrong with it."""
    if not study.finished or not path.exists():
        return None, ""
    advice = f"Restore it, or write it again with: {resume_command(command, path.parent)}"
    try:
        loss = load_loss(path)
    except LossFileError as error:
        return None, f"{error} {advice}"
    if bare_content(loss) != study.findings().loss:
        return None, f"{cut(str(path))}: this is not the loss that the journal beside it leads to. {advice}"
    return loss, ""


def found_loss(folder: str | os.PathLike[str]) -> Loss:
    """The loss that the search in a folder has found.

    Args:
        folder: The output folder of a finished search, or one with a loss file alone.

    Raises:
        InputError: There is no search in the folder.
        RefusedError: The search is not finished, or its folder is damaged.
    """
    if not Path(folder, JOURNAL_FILE).exists():
        if not Path(folder, LOSS_FILE).exists():
            raise _no_search(folder, f"{LOSS_FILE} is missing")
        return load_loss(Path(folder, LOSS_FILE))
    found = status(folder)
    if found.loss is not None:
        return found.loss
    if found.damage:
        raise RefusedError(f"{found.damage}.")
    what = "is still running. Wait for its end" if found.running else "is not finished. Finish it with"
    command = "" if found.running else f": {resume_command(found.config.command, folder)}"
    raise RefusedError(f"{folder}: the search {what}{command}.")


def algorithm_of(config: StudyConfig) -> Algorithm[Any]:
    """The search algorithm of a configuration.

    Raises:
        InputError: The searcher of the algorithm `tune` can't be imported.
    """
    return _begin(config)(None)[0]


def _begin(config: StudyConfig) -> Begin:
    """How a study begins: by its rivals, which decide what is `auto` and where it starts."""
    build = ALGORITHMS[config.search.algorithm]

    def begin(screened: Screened | None) -> tuple[Algorithm[Any], LossFamily]:
        best = () if screened is None else screened.best
        family = LossFamily.of(config, [build_loss(each.arm.loss) for each in best])
        start = None if screened is None else start_of(family, screened)
        options = config.search.options
        if start is not None and config.search.takes("std"):
            options = {"std": NEAR} | options
        algorithm: Algorithm[Any] = build(start=family.start if start is None else start, **options)
        return algorithm, family

    return begin


def study_of(config: StudyConfig, journal: Journal, observer: Callable[[Study], None] | None = None) -> Study:
    """The study of a configuration, in the state that its journal records."""
    begin, guard, finals = _begin(config), guard_shares(config.guard), config.finalists
    schedule = Schedule(
        steps=config.search.steps,
        candidates=finals.candidates,
        finalist_seeds=finals.seeds,
        seed=config.search.seed,
        lag=config.search.lag,
        test_seeds=finals.test_seeds,
        longer=has_longer_finals(config),
        always=config.search.always,
    )
    search = Plan(begin, CROSS_ENTROPY, schedule, guard=guard).search_total
    race = Finals(CROSS_ENTROPY, schedule).most(rivals=True, searched=True, guards=len(guard))
    screening = _screening(config, search + sum(race.values()))
    return Study(
        begin,
        journal,
        CROSS_ENTROPY,
        schedule,
        screening=screening,
        guard=guard,
        guard_rivals=config.rivals.guard,
        observer=observer,
        advice="continue with --resume" + (f"; {_ANOTHER}" if config.trial else ""),
    )


def has_longer_finals(config: StudyConfig) -> bool:
    """Whether a training of the finals is longer than one of the search."""
    return (config.finalists.iterations or 0) > config.proxy.train.iterations


def _screening(config: StudyConfig, others: int) -> Screening | None:
    """The screening of a configuration, of at most half as many trials as all others; None without rivals."""
    rivals, optimizer = rivals_of(config), config.proxy.train.optimizer
    if not rivals:
        return None
    steps = LADDERS[optimizer] if config.rivals.steps is None else config.rivals.steps
    return Screening(rivals, steps, optimizer, config.rivals.seeds, others // 2 if config.search.steps else None)


def _result(config: StudyConfig, folder: Path, findings: Findings, journal: Journal) -> Result:
    own = config.trial is not None
    scores, conclusion, guards = scores_of(findings), findings.conclude(own), findings.about_guards(own)
    loss = build_loss(findings.loss)
    loss.provenance = {
        "found": findings.label,
        "theta": None if findings.theta is None else list(findings.theta),
        "reward": findings.reward,
        "validation": scores_record(scores),
        "seeds": list(findings.seeds),
        "configuration": fingerprint(config),
        "versions": journal.versions,
        "processor": journal.processor,
        "data": journal.data,
        **({"maximised": spec_label(config.goal)} if config.reward is not None else {}),
        **({} if findings.rate == 1 else {"learning_rate": findings.rate}),
        **({"conclusion": conclusion} if conclusion else {}),
        **({"guards": guards} if guards else {}),
    }
    with resumable():
        loss.save(folder / LOSS_FILE)
    return Result(loss, folder, scores, findings)


def scores_of(findings: Findings) -> dict[str, dict[str, Score]]:
    """The `scores` of a `Result`."""
    return {
        name: {metric: Score.of(values) for metric, values in final.scored.items()}
        for name, final in findings.compared.items()
    }


def scores_record(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, dict[str, float]]]:
    """The scores as plain values for JSON."""
    return {name: {each: asdict(score) for each, score in row.items()} for name, row in scores.items()}


def _folder(config: object, out: str | os.PathLike[str] | None) -> Path:
    if out is not None:
        return Path(out).absolute()
    if isinstance(config, StudyConfig | Mapping):
        raise InputError("out is required when the configuration is not a file.")
    return Path("results", Path(str(config)).stem).absolute()


def _refuse_another_configuration(folder: Path, config: StudyConfig) -> None:
    """Raise RefusedError if the trials in the folder belong to a configuration with other results."""
    refuse_differences(
        f"{folder} holds a search with another configuration",
        fingerprint(load_config(folder / CONFIG_FILE)),
        fingerprint(config),
    )
