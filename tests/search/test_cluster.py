"""Clusters that run already: a head started with `ray start`, searches that join it."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import autosegloss
from autosegloss.cli import main
from autosegloss.errors import InputError, RefusedError
from autosegloss.search.runners.ray import RayRunner, _package_env
from autosegloss.search.runners.serial import SerialRunner
from tests.faulty import BOUND, TINY, Visible, in_a_process, lines_of
from tests.toys import run_toy

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
JOBS = importlib.util.find_spec("aiohttp_cors") is not None  # of ray[default]


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


KEY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def outside() -> dict[str, str]:
    """The environment of a process that knows of no Ray, but has the key of the cluster."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | KEY


@dataclass(frozen=True)
class Head:
    address: str
    dashboard: str


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head node with two cores and, as it says, one GPU; the autosegloss on its path is of another version."""
    other = tmp_path_factory.mktemp("other") / "autosegloss"
    other.mkdir()
    (other / "__init__.py").write_text('raise ImportError("this is another version")\n')
    port, client, dashboard, agent = free_ports(4)
    arguments = [str(RAY), "start", "--head", "--block", f"--port={port}", f"--ray-client-server-port={client}"]
    arguments += ["--num-cpus=2", "--num-gpus=1", f"--object-store-memory={80 * 2**20}", "--disable-usage-stats"]
    arguments += [
        f"--include-dashboard={JOBS}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
    ]
    environment = {**outside(), "PYTHONPATH": str(other.parent), "RAY_memory_monitor_refresh_ms": "0"}
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as file, subprocess.Popen(arguments, env=environment, stdout=file, stderr=file) as process:
        try:
            deadline = time.monotonic() + BOUND
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
        finally:
            process.terminate()  # and with it all it started
            process.wait(60)


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autosegloss.cli", *map(str, arguments)],
        env={**outside(), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND,
    )


@pytest.mark.slow
def test_a_search_joins_a_cluster_and_brings_its_code(
    head: Head, tiny_config: Path, tmp_path: Path, undisturbed_search: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Ray shows its workers the driver's folder
    done = command("search", tiny_config, "--out", "out", "--address", head.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("out/loss.json").read_bytes() == undisturbed_search


def share_a_gpu(folder: Path, address: str, expected: str) -> None:
    os.environ["RAY_ADDRESS"] = address
    assert run_toy(folder / "study", RayRunner(2, gpus=0.5), Visible(folder / "notes")) == expected
    with pytest.raises(RefusedError, match=r"^2 workers of 1 CPU and 1 GPU each do not fit: .* room for 1 such"):
        run_toy(folder / "refused", RayRunner(2, gpus=1))


@pytest.mark.slow
def test_two_workers_share_a_gpu(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEY.items():
        monkeypatch.setenv(name, value)
    in_a_process(share_a_gpu, tmp_path, head.address, run_toy(tmp_path / "expected", SerialRunner()))
    notes = lines_of(tmp_path / "notes")
    assert {gpu for _, gpu, *_ in notes} == {"0"}
    assert len({pid for pid, *_ in notes}) == 2
    pairs = [(a, b) for a in notes for b in notes if a[0] < b[0]]
    assert any(a[2] < b[3] and b[2] < a[3] for a, b in pairs), "never side by side"


@pytest.mark.skipif(not JOBS, reason="`ray job submit` needs ray[default]")
def test_a_search_as_a_job_of_the_cluster(
    head: Head, tiny_config: Path, tmp_path: Path, undisturbed_search: bytes
) -> None:
    """As the page on clusters has it, but that the folder it is given holds the package and the configuration only."""
    shipped = tmp_path / "shipped"
    shutil.copytree(ROOT / "autosegloss", shipped / "autosegloss", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(tiny_config, shipped)
    entry = ["--", sys.executable, "-m", "autosegloss.cli", "search", "tiny.yaml", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [str(RAY), "job", "submit", "--address", head.dashboard, "--working-dir", str(shipped), *entry],
        env=outside(),
        capture_output=True,
        text=True,
        check=False,
        timeout=BOUND,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "found loss" in done.stdout
    assert (tmp_path / "out" / "loss.json").read_bytes() == undisturbed_search


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("no-such-host.invalid:6379", ""),
        ("127.0.0.1:99999", ""),
        ("http://127.0.0.1:8265", "the address must be host:port"),
        ("here", "the address must be host:port"),
    ],
)
def test_a_wrong_address_is_refused_soon(
    address: str, why: str, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray itself tries for minutes, then ends the process."""
    start = time.monotonic()
    arguments = [str(tiny_config), "--out", str(tmp_path / "out"), "--address", address]
    compared = address == "here"  # the other command that takes an address
    assert main(["compare", *arguments, "--loss", "jml"] if compared else ["search", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"RefusedError: can't join a Ray cluster at {address}: {why}")
    assert error.count("\n") == 1
    assert time.monotonic() - start < 60


def test_a_refused_address_leaves_the_callers_connection(ray_address: str) -> None:
    """It ended it once, and every later search of the process started a Ray of its own."""
    import ray

    for address, why in [("here", "the address must be host:port"), (ray_address, "this process is connected to Ray")]:
        with pytest.raises(RefusedError, match=why), RayRunner(1, address=address).ready():
            pass
        assert ray.get_runtime_context().gcs_address == ray_address


def test_an_address_without_ray_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"address needs the runner ray, got 'serial'\."):
        autosegloss.search(TINY, runner="serial", out=tmp_path / "out", address="10.0.0.1:6379")


@pytest.mark.slow
def test_the_modules_of_a_job_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to start a driver that names modules for its workers when the job it is of has named some."""
    assert _package_env() == {"py_modules": [str(ROOT / "autosegloss")]}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://a.zip"}}')
    assert _package_env() == {"py_modules": [str(ROOT / "autosegloss")]}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"py_modules": ["gcs://b.zip"]}}')
    assert _package_env() == {}
