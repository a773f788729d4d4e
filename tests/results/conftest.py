"""Fixtures for benchmarks that train in other processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from autosegloss.proxy.data import shapes
from results.common import rows


class Here(Executor):
    """Runs each task at once in this process, after the journey that it would make to another."""

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        work, arguments, named = pickle.loads(pickle.dumps((work, arguments, named)))
        future.set_result(work(*arguments, **named))
        return future


@pytest.fixture(scope="module")
def small_and_here() -> Iterator[None]:
    """A dozen shapes to train on, and rows that are measured in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "ProcessPoolExecutor", lambda workers, mp_context: Here())
        patch.setattr(shapes, "IMAGES", {"train": 12, "heldout": 6, "validation": 6})
        yield
