"""How well a search on Ray keeps its workers busy, and what a trial costs beside its training."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from autosegloss.report.environment import machine, packages
from autosegloss.search.algorithms.external import RandomSearch
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.runners.ray import RayRunner
from autosegloss.search.space import CROSS_ENTROPY
from autosegloss.search.study import Study
from results.common.losses import theta_alone
from results.common.script import run, script

MODULE = "results.bench.search"
WORKERS = 2
SECONDS = 2.0
"""What a proxy of the first search takes: about that of `search_configs/quickstart.yaml`."""
BUSY = (4, 12)
"""Steps and samples of it."""
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


@dataclass
class Watch:
    """Notes when each trial was recorded, and the memory of this process then."""

    moments: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def __call__(self, study: Study) -> None:
        """Observer of a study."""
        self.moments.append(time.monotonic())
        self.memory.append(_memory())


@dataclass(frozen=True)
class Throughput:
    """What was measured.

    Args:
        command: What measures it again.
        machine: Where it was measured.
        packages: Versions.
        busy: Seconds of trials over workers times wall seconds, from the first trial's start to the last one's end, of
            trials of `SECONDS` in steps with a barrier after each.
        until_first_trial: Seconds from the call to the start of the first trial: Ray and two workers.
        overhead: Seconds of wall time a trial of no duration takes, median over those of a hundred trials, of the first
            hundred and of the last.
        memory_kib: Growth of the driver's memory a trial, over the trials after the first hundred.
    """

    command: str
    machine: dict[str, str]
    packages: dict[str, str]
    busy: float
    until_first_trial: float
    overhead: tuple[float, float]
    memory_kib: float

    def to_json(self) -> str:
        """The figures as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_markdown(self) -> str:
        """The figures beside what is wanted of them."""
        steps, samples = BUSY
        trials = CHEAP[0] * CHEAP[1]
        first, last = (1000 * each for each in self.overhead)
        searched = f"{steps} steps of {samples} trials of about {SECONDS:g} s on {WORKERS}"
        rows = [
            f"| workers busy: {searched} | {self.busy:.3f} | >= 0.95 |",
            f"| from the start to the first trial, s | {self.until_first_trial:.1f} | < 10 |",
            f"| a trial that takes no time, ms: first {HUNDRED} of {trials:,} | {first:.1f} | <= 50 |",
            f"| the last {HUNDRED} | {last:.1f} | <= 50, and no more than the first |",
            f"| memory of the driver, KiB a trial | {self.memory_kib:.1f} | < 100 |",
        ]
        about = [*self.machine.items(), *self.packages.items()]
        return "\n".join(
            [
                "| a search on Ray | measured | wanted |",
                "|---|---:|---|",
                *rows,
                "",
                f"Command: `{self.command}`. " + ", ".join(f"{name} {value}" for name, value in about) + ".",
                "",
            ]
        )


def bench_search(out: Path) -> Throughput:
    """Run two searches on Ray with objectives that only wait, and write `search.json` and `search.md`.

    Args:
        out: The folder to write to.

    Raises:
        RefusedError: Ray has no room for two workers.
    """
    called = time.monotonic()
    spans, _ = _run(BUSY, Sleeper(SECONDS))
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    busy = sum(end - start for start, end in spans) / (WORKERS * (last - first))
    _, watch = _run(CHEAP, Sleeper(0.0))
    gaps = [later - earlier for earlier, later in zip(watch.moments, watch.moments[1:], strict=False)]
    growth = (watch.memory[-1] - watch.memory[HUNDRED]) / (len(watch.memory) - HUNDRED)
    throughput = Throughput(
        command=f"python -m {MODULE}",
        machine=machine(),
        packages=packages("autosegloss", "ray", "torch"),
        busy=busy,
        until_first_trial=first - called,
        overhead=(median(gaps[:HUNDRED]), median(gaps[-HUNDRED:])),
        memory_kib=growth / 1024,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "search.json").write_text(throughput.to_json(), encoding="utf-8")
    (out / "search.md").write_text(throughput.to_markdown(), encoding="utf-8")
    return throughput


def _run(size: tuple[int, int], objective: Sleeper) -> tuple[list[tuple[float, float]], Watch]:
    """When each trial of a search began and ended, and what the driver noticed meanwhile."""
    steps, samples = size
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="autosegloss-bench-") as folder:
        path = Path(folder, "trials.jsonl")
        with Journal(path) as journal:
            algorithm = RandomSearch(start=(0.5,) * 12, samples=samples)
            study = Study(
                algorithm,
                journal,
                theta_alone,
                CROSS_ENTROPY,
                steps=steps,
                candidates=1,
                finalist_seeds=2,
                seed=0,
                observer=watch,
            )
            RayRunner(WORKERS).run(study, objective)
        trials = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    spans = [(t["metrics"]["start"], t["metrics"]["end"]) for t in trials if t["stage"] == "search"]
    return spans, watch


def _memory() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "A search on Ray: workers busy, cost of a trial, memory.")
    run(parser, lambda given: bench_search(given.out).to_markdown(), arguments)


if __name__ == "__main__":
    main()
