"""The rows of a long benchmark in a file of JSON lines: what is there already is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from autosegloss.files import write_text

T = TypeVar("T")
Key = tuple[Any, ...]
Row = dict[str, Any]


def complete(
    path: Path,
    names: Sequence[str],
    tasks: Mapping[Key, T],
    measure: Callable[[T], Row],
    workers: int | None = None,
) -> dict[Key, Row]:
    """Measure what a file lacks, several side by side; each row is in the file as soon as it is measured.

    In the end its rows are sorted by their keys, in whatever order they came. Those of no task stay where they are.

    Args:
        path: The file. A last line that was cut off is measured again.
        names: What the parts of a key are called in a row.
        tasks: What is wanted, by key.
        measure: A function that a process can be sent; it gives a row without its key.
        workers: Processes; None is one a processor.

    Returns:
        The rows of the tasks, by key.
    """
    rows = {tuple(row[name] for name in names): row for row in _read(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, rows)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, path.open("a") as file:
        waiting = {pool.submit(measure, task): key for key, task in tasks.items() if key not in rows}
        try:
            for done in as_completed(waiting):
                key = waiting[done]
                rows[key] = dict(zip(names, key, strict=True)) | done.result()
                print(json.dumps(rows[key]), file=file, flush=True)
        finally:  # of an interrupt or an error, which need not wait for all the others
            pool.shutdown(wait=False, cancel_futures=True)
    _write(path, rows)
    return {key: rows[key] for key in tasks}


def _read(path: Path) -> list[Row]:
    """The rows of a file, without a last line that was cut off."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _write(path: Path, rows: Mapping[Key, Row]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for _, row in sorted(rows.items())))
