"""Searches among rivals with rewards that are functions of the loss and the seed: folders as `search` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autosegloss.loss.file import build_loss
from autosegloss.search.api import Result, scores_of, study_of
from autosegloss.search.folder import CONFIG_FILE, JOURNAL_FILE, LOSS_FILE
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.settings import StudyConfig, as_config, dump_config
from autosegloss.search.study import Study

RIVALS = ["cross_entropy", "cross_entropy(class_power=0.5)", "focal", "lovasz", "log_miou"]
COURSE: dict[str, Any] = {
    "metric": "miou",
    "guard": {"dice": 0.5},
    "rivals": {"losses": RIVALS, "steps": [4]},
    "search": {"steps": 2, "samples": 3},
    "finalists": {"candidates": 2, "seeds": 2, "test_seeds": 5},
}


def toy(job: Job, gain: float = 0.0, spread: float = 0.1) -> Outcome:
    """A trial of two seconds: rivals differ by the spread, a loss of the search is ahead of lovasz by the gain."""
    content = json.dumps(job.loss)
    noise = 0.002 * float(np.random.default_rng([job.seed, len(content)]).standard_normal())
    worth = {"lovasz": 3.0, "focal": 1.0, "log": 2.0}
    kind = next((worth[name] for name in worth if f'"{name}"' in content), 0.0)
    reward = 0.5 + spread * kind + 0.001 * content.count("8") + noise
    if job.theta is not None:
        reward = 0.5 + 3 * spread + gain + 0.02 * job.theta[0] + noise
    metrics = dict.fromkeys(("miou", "precision", "dice", "gacc", "macc", "bf1", "fwiou"), reward)
    metrics = {"target": reward, **metrics, "IoU of ground": reward + 0.05, "IoU of dot": reward - 0.05}
    return Outcome(reward, metrics, metrics if job.stage == "final" else {}, None, 2.0)


def run_course(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    observer: Callable[[Study], None] | None = None,
    trials: int | None = None,
    objective: Callable[[Job], Outcome] = toy,
) -> tuple[StudyConfig, Study]:
    """Run a search, or so many of its trials, in a folder."""
    config = as_config(COURSE | dict(changes or {}))
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_FILE).write_text(dump_config(config))
    with Journal(folder / JOURNAL_FILE, resume=True) as journal:
        study = study_of(config, journal, observer)
        if observer is not None:
            observer(study)
        while not study.finished and study.done != trials:
            job = study.next_job()
            assert job is not None
            study.record(job, objective(job))
    if study.finished:
        build_loss(study.findings().loss).save(folder / LOSS_FILE)
    return config, study


def result_of(folder: Path, study: Study) -> Result:
    """The result of a finished course."""
    findings = study.findings()
    loss = build_loss(findings.loss)
    loss.provenance = {"conclusion": findings.conclusion}
    return Result(loss, folder, scores_of(findings), findings)
