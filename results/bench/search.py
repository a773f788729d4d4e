"""How well a search on Ray keeps its workers busy, and what a trial costs beside its training."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from autosegloss.files import write_text
from autosegloss.report.environment import about
from autosegloss.search.algorithms.external import RandomSearch
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.finals import Schedule
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.plan import without_rivals
from autosegloss.search.runners.ray import RayRunner
from autosegloss.search.study import Study
from results.common.losses import ByTheta
from results.common.script import run, script

MODULE = "results.bench.search"
WORKERS = 2
SECONDS = 2.0
"""Of a trial of the first search: about those of a proxy of `search_configs/quickstart.yaml`."""
BUSY = (4, 12)
"""Steps and samples of the first search."""
CHEAP = (50, 20)
"""Steps and samples of the second search, whose trials take no time: 1,000 trials."""
HUNDRED = 100


@dataclass(frozen=True)
class Sleeper:
    """An objective that takes its time and no processor; it notes when it ran, by the clock of the machine."""

    seconds: float

    def __call__(self, job: Job) -> Outcome:
        """Objective of a study."""
        start = time.monotonic()
        # A fifth more or less, as trainings differ: a step waits for its slowest.
        time.sleep(self.seconds * (0.8 + 0.4 * (job.theta or (0.5,))[0]))
        end = time.monotonic()
        reward = sum(job.theta or (0.0,))
        return Outcome(reward, {"start": start, "end": end}, {"toy": reward}, None, end - start)


def bench_search(out: Path) -> str:
    """Run two searches on Ray with objectives that only wait, and write `search.json` and, made of it, `search.md`.

    Args:
        out: The folder to write to.

    Returns:
        The table as Markdown.

    Raises:
        RefusedError: Ray has no room for two workers.
    """
    called = time.monotonic()
    spans, _ = _run(BUSY, Sleeper(SECONDS))
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    _, recorded = _run(CHEAP, Sleeper(0.0))
    gaps = [later - earlier for earlier, later in pairwise(recorded)]
    summary = {
        "command": f"python -m {MODULE}",
        "about": about("cpu", "autosegloss", "ray", "torch"),
        "busy": sum(end - start for start, end in spans) / (WORKERS * (last - first)),
        "until_first_trial": first - called,
        "overhead": [median(gaps[:HUNDRED]), median(gaps[-HUNDRED:])],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "search.json", json.dumps(summary, indent=1) + "\n")
    write_text(out / "search.md", to_markdown(summary))
    return to_markdown(summary)


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The table of a summary."""
    (steps, samples), trials = BUSY, CHEAP[0] * CHEAP[1]
    first, last = (1000 * each for each in summary["overhead"])
    lines = [
        "| a search on Ray | measured |",
        "|---|---:|",
        f"| share of the workers' time that trials take: {steps} steps of {samples} trials of about {SECONDS:g} s on "
        f"{WORKERS} | {summary['busy']:.3f} |",
        f"| from the start to the first trial, s | {summary['until_first_trial']:.1f} |",
        f"| a trial that takes no time, ms: first {HUNDRED} of {trials:,} | {first:.1f} |",
        f"| the last {HUNDRED} | {last:.1f} |",
    ]
    return "\n".join([*lines, "", f"Command: `{summary['command']}`. {summary['about']}.", ""])


def _run(size: tuple[int, int], objective: Sleeper) -> tuple[list[tuple[float, float]], list[float]]:
    """When each trial of a search began and ended, and when each was recorded."""
    steps, samples = size
    recorded: list[float] = []
    with tempfile.TemporaryDirectory(prefix="autosegloss-bench-") as folder:
        path = Path(folder, "trials.jsonl")
        with Journal(path) as journal:
            study = Study(
                without_rivals(RandomSearch(start=(0.5,) * 12, samples=samples), ByTheta()),
                journal,
                CROSS_ENTROPY,
                Schedule(steps=steps, candidates=1, finalist_seeds=2, seed=0),
                observer=lambda _: recorded.append(time.monotonic()),
            )
            RayRunner(WORKERS).run(study, objective)
        trials = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(t["metrics"]["start"], t["metrics"]["end"]) for t in trials if t.get("stage") == "search"], recorded


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "A search on Ray: share of the workers' time in trials, cost of a trial.")
    run(parser, lambda given: bench_search(given.out), arguments)


if __name__ == "__main__":
    main()
