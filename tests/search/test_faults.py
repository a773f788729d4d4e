"""Faults that are made to happen: each ends in the bytes of an undisturbed run, or in a clear message with the journal
intact.

Here are nodes, disks, memory, clocks, GPUs and networks; killed workers and drivers, trials that hang and absent
resources are in `test_ray_runner.py` and `test_kill_and_resume.py`, damaged and contested journals in `test_study.py`.
"""

from __future__ import annotations

import ast
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import autosegloss
from autosegloss.errors import InputError, RefusedError, SearchError
from autosegloss.loss.classic import CrossEntropy
from autosegloss.proxy import trial
from autosegloss.proxy.networks import NETWORKS
from autosegloss.report.progress import Display
from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.objective import ProxyObjective, proxy_of
from autosegloss.search.runners.base import JobQueue
from autosegloss.search.runners.ray import RayRunner
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.settings import StudyConfig, as_config
from tests.faulty import (
    BOUND,
    TINY,
    TRIALS,
    Greedy,
    Jumping,
    Located,
    Sharing,
    in_a_process,
    lines_of,
    toy_with_a_jumping_clock,
    wait_until,
)
from tests.journals import trials_of
from tests.toys import TOY, run_toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_toy(tmp_path_factory.mktemp("undisturbed"), SerialRunner())


# A node of the cluster.


def lose_nodes(folder: Path, undisturbed: str) -> None:
    """Two studies on three nodes, the head without room for workers: a node is killed under each."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_memory_monitor_refresh_ms="0")
    from ray.cluster_utils import Cluster

    options = {"object_store_memory": 80 * 2**20}
    # Ray looks at its nodes every 3 s, and this is no test of its patience.
    health = {"initial_delay_ms": 0, "period_ms": 300, "timeout_ms": 1000, "failure_threshold": 5}
    settings = {f"health_check_{name}": value for name, value in health.items()}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": settings, **options}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=2, wait=False, **options) for _ in range(2)]
    cluster.wait_for_nodes()

    def kill_the_fullest(notes: Path) -> None:
        """End the node with most workers while one of them is at work on the second step."""
        wait_until(lambda: any((stage, step) == ("search", 1) for _, _, stage, step, _ in lines_of(notes)))
        workers = Counter(node for node, _ in {(node, pid) for node, pid, *_ in lines_of(notes)})
        fullest = max(nodes, key=lambda node: workers[node.node_id])
        notes.with_suffix(".doom").write_text(fullest.node_id)
        wait_until(lambda: any(doomed for *_, doomed in lines_of(notes)))
        nodes.remove(fullest)
        cluster.remove_node(fullest, allow_graceful=False)

    def run(name: str, workers: int) -> str:
        notes = folder / name
        killer = threading.Thread(target=kill_the_fullest, args=(notes,))
        killer.start()
        try:
            runner = RayRunner(workers, address=cluster.address)
            return run_toy(folder / f"study of {name}", runner, Located(notes, workers))
        finally:
            killer.join()

    # Two workers on one node and one on the other: of the lost two one is replaced, for the other there is no room.
    assert run("three", 3) == undisturbed
    trials = trials_of(folder / "study of three" / "trials.jsonl")
    assert all(trial["error"] is None for trial in trials)
    notes = lines_of(folder / "three")
    assert len(notes) > len(trials), "no trial was disturbed"
    assert len({pid for _, pid, *_ in notes}) == 3 + 1
    survivor = notes[-1][0]
    assert len({pid for node, pid, *_ in notes if node == survivor}) == 2

    with pytest.raises(SearchError, match="all workers are lost, and no node of Ray has 1 CPU and 0 GPUs"):
        run("two", 2)
    done = trials_of(folder / "study of two" / "trials.jsonl")
    assert 9 <= len(done) < 37
    assert all(trial["error"] is None for trial in done)
    assert run_toy(folder / "study of two", SerialRunner(), resume=True) == undisturbed
    cluster.shutdown()


@pytest.mark.slow
def test_a_node_that_dies_costs_no_trial_and_the_last_one_ends_in_a_message(tmp_path: Path, undisturbed: str) -> None:
    in_a_process(lose_nodes, tmp_path, undisturbed)


# The disk.

FILL = """
import os, subprocess, sys
from pathlib import Path

from autosegloss.cli import main

config, disk, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
disk.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True)
arguments = ["search", config, "--runner", "serial", "--out", str(disk / "out")]
ballast = disk / "ballast"


def fill(leave):
    ballast.write_bytes(b"")
    free = os.statvfs(disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - leave))


fill(leave=0)
print("status", main(arguments), flush=True)  # not even the configuration can be written
fill(leave=5 * 4096)  # for the folder, the configuration and a few trials
print("status", main([*arguments, "--resume"]), flush=True)
(out / "torn").write_bytes((disk / "out/trials.jsonl").read_bytes())
ballast.unlink()
os.environ["FILL_AT_THE_END"] = "1"
last = disk / "out/trials.jsonl"


def when_all_trials_are_done(study):
    if study.finished:
        fill(leave=0)


import autosegloss

try:
    autosegloss.search(config, runner="serial", out=disk / "out", resume=True, observer=when_all_trials_are_done)
except autosegloss.errors.SearchError as error:
    print("error", error, flush=True)
ballast.unlink()
(out / "whole").write_bytes(last.read_bytes())
print("status", main([*arguments, "--resume"]), flush=True)
(out / "loss.json").write_bytes((disk / "out/loss.json").read_bytes())
"""


def may_mount() -> bool:
    """Whether a process may have a file system of its own, which only it sees."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        ).returncode
    )


@pytest.mark.slow
def test_a_full_disk_is_said_and_nothing_is_lost(tiny_config: Path, tmp_path: Path, undisturbed_search: bytes) -> None:
    """On a real file system of 1 MiB, which only the process that runs the search sees."""
    if not may_mount():
        pytest.skip("this user may not mount a file system in a namespace of its own")
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", FILL, str(tiny_config), str(tmp_path / "disk"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("status")] == [
        "status 1",
        "status 1",
        "status 0",
    ]
    journal = f"{tmp_path}/disk/out/trials.jsonl"
    assert f"SearchError: {journal}: can't be written: No space left on device. Finished trials are safe" in done.stderr
    assert f"error {tmp_path}/disk/out/loss.json: can't be written: No space left on device. Finished" in done.stdout
    assert 0 < len(trials_of(tmp_path / "torn")) < TRIALS
    assert not (tmp_path / "torn").read_bytes().endswith(b"\n")
    assert len(trials_of(tmp_path / "whole")) == TRIALS
    assert (tmp_path / "loss.json").read_bytes() == undisturbed_search


def test_a_journal_that_may_not_grow_is_as_a_full_disk(
    tiny_config: Path, tmp_path: Path, undisturbed_search: bytes
) -> None:
    """The closest to a full disk where none may be mounted: the system refuses to let a file grow beyond a size."""
    if may_mount():
        pytest.skip("there is the real test")
    arguments = [sys.executable, "-m", "autosegloss.cli", "search", str(tiny_config), "--runner", "serial"]
    arguments += ["--out", str(tmp_path / "out")]
    limited = subprocess.run(
        arguments,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    journal = tmp_path / "out" / "trials.jsonl"
    assert limited.returncode == 1
    assert limited.stderr == (
        f"SearchError: {journal}: can't be written: File too large. Finished trials are safe; fix this and continue "
        "with --resume.\n"
    )
    assert journal.stat().st_size == 4000
    assert 0 < len(trials_of(journal)) < TRIALS
    autosegloss.search(tiny_config, runner="serial", out=tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "loss.json").read_bytes() == undisturbed_search


# Memory.


def memory() -> tuple[int, int]:
    """Bytes in use on this machine, and all of them."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes["MemTotal"] - sizes["MemAvailable"], sizes["MemTotal"]


def exhaust_memory(folder: Path, expected: str) -> None:
    used, total = memory()
    threshold = (used + 2.5 * 2**30) / total  # of 4 GiB to come: what else runs here may take and give back a little
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0", RAY_memory_monitor_refresh_ms="50", RAY_memory_usage_threshold=str(threshold)
    )
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    try:
        assert run_toy(folder / "study", RayRunner(2), Greedy(folder)) == expected
    except (AssertionError, SearchError):
        ray.shutdown()
        if abs(memory()[0] - used) < 2**30:
            raise
        (folder / "unsteady").touch()


@pytest.mark.slow
def test_the_memory_monitor_ends_a_trial(tmp_path: Path) -> None:
    """Its threshold is a little above what is in use, so that the machine itself is never short of memory."""
    expected = run_toy(tmp_path / "expected", SerialRunner(), replace(TOY, break_at={("search", 2, 3): "raise"}))
    in_a_process(exhaust_memory, tmp_path, expected)
    if (tmp_path / "unsteady").exists():
        pytest.skip("other processes take and give back too much memory meanwhile")
    assert (tmp_path / "met").exists()
    (failed,) = (trial for trial in trials_of(tmp_path / "study" / "trials.jsonl") if trial["error"])
    assert re.match(
        r"out of memory twice, the second time with no other trial running: "
        r"\d worker\(s\) were killed due to the node running low on memory\.",
        failed["error"],
    )


# The clock.


@pytest.mark.usefixtures("ray_address")
@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the driver and the workers, as Python sees it: to turn the clock of the machine takes more than a test may."""
    monkeypatch.setattr(time, "time", Jumping())
    assert run_toy(tmp_path, RayRunner(2, time_limit=60), toy_with_a_jumping_clock) == undisturbed
    assert all(trial["error"] is None for trial in trials_of(tmp_path / "trials.jsonl"))


def wall_clocks(code: str) -> list[str]:
    """Uses of a clock that people and servers set."""
    names = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}
    tree = ast.parse(code)
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    return sorted(use for use in used | imported if any(use == name or use.endswith(f".{name}") for name in names))


def test_the_search_asks_no_clock_that_may_jump() -> None:
    modules = sorted((ROOT / "autosegloss" / "search").glob("*.py"))
    assert len(modules) > 5
    assert {module.name: found for module in modules if (found := wall_clocks(module.read_text()))} == {}
    assert wall_clocks("import time\nfrom time import time\nx = datetime.datetime.now()") == [
        "datetime.datetime.now",
        "time.time",
    ]


# GPUs.


def test_a_gpu_that_torch_does_not_find_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RefusedError, match=r"resources\.gpus is 0\.5, but torch .* finds no CUDA device"):
        autosegloss.search({**TINY, "resources": {"gpus": 0.5}}, runner="serial", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_trial_with_a_gpu_trains_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the closest possible: torch is asked for one and says that it can't."""
    settings = as_config({**TINY, "resources": {"gpus": 1}})
    scratch = as_config({**TINY, "resources": {"gpus": 1}, "proxy": {"start": {"regime": "scratch"}}})
    if torch.cuda.is_available():
        proxy = proxy_of(settings).prepare()
        network = proxy.trained(CrossEntropy(), seed=0)
        assert {weight.device.type for weight in network.state_dict().values()} == {"cuda"}
        assert proxy.pretrained is not None
        assert {weight.device.type for weight in proxy.pretrained.values()} == {"cpu"}
        assert proxy.evaluation(network, validate=True).reward >= 0
        return
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    proxy = proxy_of(scratch)
    for train in (proxy_of(settings).prepare, lambda: proxy.trained(CrossEntropy(), seed=0)):
        with pytest.raises((InputError, AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
            train()


# Networks and losses.


class Exploding(nn.Module):
    """A network whose every logit is infinite."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images) / 0


class Raising(Exploding):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such layer")


@dataclass(frozen=True)
class Ill(SerialRunner):
    """Runs a search whose proxy is another one in some places."""

    cases: dict[tuple[str, int, int], StudyConfig]

    def run(self, study: JobQueue, objective: Objective) -> None:
        assert isinstance(objective, ProxyObjective)

        def mixed(job: Job) -> Outcome:
            case = self.cases.get((job.stage, job.step, job.index))
            return (objective if case is None else ProxyObjective(replace(objective.proxy, settings=case.proxy)))(job)

        super().run(study, mixed)


def test_real_trainings_that_diverge_or_raise_are_failed_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def proxy(**changes: Any) -> StudyConfig:
        return as_config({**TINY, "proxy": {**TINY["proxy"], "start": {"regime": "scratch"}, **changes}})

    monkeypatch.setitem(NETWORKS, "exploding", Exploding)
    monkeypatch.setitem(NETWORKS, "raising", Raising)
    cases = {
        ("search", 0, 1): proxy(train={"iterations": 8, "batch_size": 4, "learning_rate": 1e30}),
        ("final", 0, 0): proxy(train={"iterations": 8, "batch_size": 4, "learning_rate": 1e30}),
        ("final", 1, 0): proxy(network={"name": "raising"}),
        ("search", 0, 2): proxy(network={"name": "exploding"}),
        ("search", 1, 0): proxy(network={"name": "raising"}),
    }
    result = autosegloss.search(TINY, runner=Ill(cases), out=tmp_path / "out")
    errors = {
        (line["stage"], line["step"], line["index"]): line["error"]
        for line in trials_of(tmp_path / "out" / "trials.jsonl")
        if line["error"]
    }
    assert errors.keys() == cases.keys()
    assert errors["search", 0, 1].startswith("TrainingDiverged: training diverged: the loss is nan at iteration 1 of 8")
    assert errors["final", 0, 0].startswith("TrainingDiverged: training diverged: the loss is ")
    assert errors["search", 0, 2].startswith("TrainingDiverged: training diverged: the loss is nan at iteration 0 of 2")
    assert errors["search", 1, 0] == errors["final", 1, 0]
    assert errors["search", 1, 0].endswith(": RuntimeError: no such layer")
    console = Console(file=io.StringIO(), width=120)
    Display(console, as_config(TINY), 1, tmp_path).end(result)
    assert "biou(radius=2): cross-entropy failed, before the search " in console.file.getvalue()


# What workers share.


class Shared(RayRunner):
    def run(self, study: JobQueue, objective: Objective) -> None:
        assert isinstance(objective, ProxyObjective)
        super().run(study, Sharing(objective))


@pytest.mark.usefixtures("ray_address")
@pytest.mark.slow
def test_workers_share_one_copy_of_the_data_and_one_pretraining(
    tmp_path: Path, undisturbed_search: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = []

    def counting(*arguments: Any, **options: Any) -> trial.State:
        pretrained.append(arguments)
        return pretrain(*arguments, **options)

    pretrain = trial.pretrain
    monkeypatch.setattr(trial, "pretrain", counting)
    autosegloss.search(TINY, runner=Shared(2), out=tmp_path / "out")
    assert (tmp_path / "out" / "loss.json").read_bytes() == undisturbed_search
    assert len(pretrained) == 1
