"""Fixtures for the whole suite."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import autosegloss
from tests.examples import CI, examples
from tests.faulty import TINY

# Times vary on shared machines; a failure prints how to repeat it.
settings.register_profile("autosegloss", examples(100), deadline=None, print_blob=True, derandomize=CI)
settings.load_profile("autosegloss")
torch.set_num_threads(1)  # the maps of the tests are small


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --reference` runs the tests on the reference path of SurrogateLoss (of this process, not of others)."""
    parser.addoption("--reference", action="store_true", help="plain autograd in place of the fused path of the losses")


def pytest_configure(config: pytest.Config) -> None:
    autosegloss.SurrogateLoss.fused = not config.getoption("--reference")
    # Several processes take the files in the order of their names, not by how many tests they have: the longest tests
    # are in files of few, and would be left for the end, where one process waits for the other.
    config.option.loadscopereorder = False


@pytest.fixture(autouse=True)
def no_autocast_is_left_open() -> Iterator[None]:
    """An error inside a compiled graph may leave its autocast open, which changes what follows in the process."""

    def depth() -> int:
        torch.autocast_increment_nesting()
        return torch.autocast_decrement_nesting()

    before = depth()
    yield
    assert depth() == before


@pytest.fixture
def fused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that other processes are on, for tests that compare with one, or that are about the path."""
    monkeypatch.setattr(autosegloss.SurrogateLoss, "fused", True)


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """One small Ray for all tests, which this process is connected to; its address, for other processes."""
    import ray

    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_memory_monitor_refresh_ms="0")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def undisturbed_search(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The loss file of the smallest real search, run in this process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    autosegloss.search(TINY, runner="serial", out=out)
    return (out / "loss.json").read_bytes()


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    """Its configuration."""
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(TINY))  # which is YAML
    return path
