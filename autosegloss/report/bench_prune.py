"""Whether pruning pays: real searches with and without it, in the time of equally many trainings, on many seeds."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from autosegloss.config import StudyConfig, as_config
from autosegloss.errors import InputError
from autosegloss.files import write_text
from autosegloss.proxy.trial import EARLY
from autosegloss.report.bench_algorithms import PROXIES, RealProxy, cheap_proxy
from autosegloss.report.intervals import interval_text
from autosegloss.report.machine import packages
from autosegloss.report.rows import Row, complete
from autosegloss.search.api import Objective, study_of
from autosegloss.search.journal import Journal
from autosegloss.search.runners import SerialRunner

SHARE = 0.5
COSTS = {"logits": 0.03, "metric": EARLY + 0.03}
"""Of a trial that is given up, in trials, as `autosegloss bench filter` measured it on the shipped configurations."""
PLAIN = "nothing"
CONTESTANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "by logits": {"prune": SHARE, "prune_by": "logits"},
    "by metric": {"prune": SHARE, "prune_by": "metric"},
}
"""Options of a search by name of what is given up."""


@dataclass(frozen=True)
class Run:
    """One search.

    Args:
        data: Name in `PROXIES`.
        contestant: Name in `CONTESTANTS`.
        seed: Of the search; equal seeds are compared.
        trials: Trials of the steps.
        pruned: Those of them that were given up.
        trainings: What the steps cost, in whole trainings.
        found: What the loss found scores, mean reward over trainings with seeds of their own, the same for all.
    """

    data: str
    contestant: str
    seed: int
    trials: int
    pruned: int
    trainings: float
    found: float


def bench_prune(out: Path, seeds: int = 10) -> str:
    """Search on every cheap proxy; those that give trials up draw more samples, for the same training.

    Search after search is written to `out/prune.jsonl`, and those that are there already are not run again; at the end
    the table to `out/prune.md`. The same arguments give the same bytes, interrupted or not.

    Args:
        out: The folder to write to.
        seeds: Searches of each contestant on each proxy, 2 or more.

    Returns:
        The table as Markdown.

    Raises:
        InputError: There are fewer than 2 seeds.
    """
    if seeds < 2:
        raise InputError(f"seeds is {seeds}; an interval needs 2 or more.")
    tasks = {
        (data, contestant, seed): (seed, RealProxy(data), contestant)
        for seed, data, contestant in product(range(seeds), PROXIES, CONTESTANTS)
    }
    rows = complete(out / "prune.jsonl", ("data", "contestant", "seed"), tasks, _row)
    table = _markdown([Run(**row) for row in rows.values()], seeds)
    write_text(out / "prune.md", table)
    return table


def _row(task: tuple[int, RealProxy, str]) -> Row:
    return asdict(searched(*task))


def searched(seed: int, setting: RealProxy, contestant: str) -> Run:
    """Search as a study does, and train anew with what was found."""
    config = _config(setting, contestant, seed)
    proxy = cheap_proxy(config)
    proxy = replace(proxy, dataset=replace(proxy.dataset, unseen=proxy.dataset.heldout))  # the finals look at it
    with tempfile.TemporaryDirectory(prefix="autosegloss-bench-") as folder:
        path = Path(folder, "trials.jsonl")
        with Journal(path) as journal:
            study = study_of(config, journal)
            SerialRunner().run(study, Objective(proxy))
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    trials = [line for line in lines if line["stage"] == "search"]
    pruned = sum("pruned" in trial for trial in trials)
    theta = study.findings().theta
    return Run(
        setting.data,
        contestant,
        seed,
        len(trials),
        pruned,
        len(trials) - pruned * (1 - COSTS[config.search.prune_by]),
        statistics.fmean(proxy(theta, fresh).reward for fresh in range(RealProxy.FRESH_SEEDS)),
    )


def _config(setting: RealProxy, contestant: str, seed: int) -> StudyConfig:
    """A study with as many samples as take the plain one's time if `SHARE` of all but the first step is given up."""
    options, steps = CONTESTANTS[contestant], setting.steps
    cost = 1 - SHARE * (1 - COSTS[options["prune_by"]]) if options else 1.0
    samples = round(setting.samples * steps / (1 + (steps - 1) * cost))
    search = {"steps": steps, "samples": samples, "seed": seed, **options}
    return as_config({**PROXIES[setting.data], "search": search})


def _markdown(runs: Sequence[Run], seeds: int) -> str:
    lines = [
        f"Searches on the cheap proxies of `autosegloss bench algorithms`, {seeds} seeds. After the first step, trials "
        f"that show less than {SHARE:.0%} of the step before are given up, and for that more samples are drawn. What "
        f"was found is scored by its mean reward over {RealProxy.FRESH_SEEDS} trainings of their own, the same for "
        "all; the difference is to the search with the same seed that gives nothing up. Mean and [95% t-interval], %.",
        "",
        "| proxy | given up | trials | of these given up | whole trainings | found | difference |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for data, name in product(PROXIES, CONTESTANTS):
        ours, plain = ([r for r in runs if (r.data, r.contestant) == (data, each)] for each in (name, PLAIN))
        trials, pruned, trainings = (
            statistics.fmean(values) for values in zip(*((r.trials, r.pruned, r.trainings) for r in ours), strict=True)
        )
        found = interval_text([100 * run.found for run in ours], ".1f")
        gains = [100 * (run.found - other.found) for run, other in zip(ours, plain, strict=True)]
        gain = "" if name == PLAIN else interval_text(gains, "+.1f")
        lines.append(f"| {data} | {name} | {trials:.0f} | {pruned:.0f} | {trainings:.0f} | {found} | {gain} |")
    versions = ", ".join(f"{name} {version}" for name, version in packages("autosegloss", "torch", "numpy").items())
    return "\n".join([*lines, "", f"Command: `autosegloss bench prune --seeds {seeds}`. {versions}.", ""])
