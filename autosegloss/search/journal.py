"""The journal of a search: one JSON line per finished trial, on disk before the algorithm is told of it.

A resumed search needs nothing else: replaying the journal through the algorithm restores the rest.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from io import FileIO
from pathlib import Path
from types import UnionType
from typing import Any, cast, get_args

from autosegloss.errors import RefusedError, SearchError
from autosegloss.search.jobs import Job, Outcome, Stage

BEGINNING = b'{"stage": "'  # of every line


_STAGES = get_args(Stage)
LINE_KEYS = {field.name for kind in (Job, Outcome) for field in fields(kind)}


class Journal:
    """The journal file, locked while it is open.

    An incomplete last line, left by a killed process, is removed; its trial runs again.

    Args:
        path: The file, usually `trials.jsonl` in the folder of the search; created with its folder if absent.
        resume: Whether to continue a journal that holds trials.
        what: What the trials belong to, for messages.

    Raises:
        RefusedError: The journal is in use or damaged, or holds trials and `resume` is not set.
    """

    def __init__(self, path: Path, *, resume: bool = False, what: str = "search") -> None:
        """Open, lock, check and mend the file."""
        self.path = path
        self._what = what
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk did not take must not come up again when the file is closed.
            self._file: FileIO = path.open("a+b", buffering=0)
        except OSError as error:
            raise RefusedError(f"{path}: can't be written: {error.strerror}. Choose another folder.") from None
        try:
            self._lock()
            self.trials = self._open(resume)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{self.path.parent}: another {self._what} is running in this folder. Wait for it, or choose another "
                "folder."
            ) from None

    def _open(self, resume: bool) -> list[tuple[Job, Outcome]]:
        self._file.seek(0)
        lines = self._file.read().splitlines(keepends=True)
        torn = bool(lines) and not (lines[-1].endswith(b"\n") and _is_json(lines[-1]))
        if torn and (len(lines) > 1 or lines[0].startswith(BEGINNING[: len(lines[0])])):
            lines.pop()  # an interrupted write; other text that is not JSON may be the user's
        if lines and not resume:
            raise RefusedError(
                f"{self.path.parent} already holds a {self._what} with {len(lines)} finished trials. "
                "Continue it with --resume, or choose another folder."
            )
        trials = [self._parse(number, line) for number, line in enumerate(lines, start=1)]
        self._file.truncate(sum(map(len, lines)))
        _sync_folder(self.path.parent)
        return trials

    def _parse(self, number: int, line: bytes) -> tuple[Job, Outcome]:
        record = json.loads(line) if _is_json(line) else None
        if isinstance(record, dict) and record.keys() == LINE_KEYS - {"loss"}:
            raise RefusedError(
                f"{self.path}:{number}: this journal was written by an older version of autosegloss, which did not "
                "record losses. Continue it with that version, or choose another folder."
            )
        if not isinstance(record, dict) or not _is_trial(record):
            raise RefusedError(
                f"{self.path}:{number}: this line is damaged, and later lines build on it. Restore the file from a "
                f"copy, or delete line {number} and all later lines to run their trials again."
            )
        job, outcome = ({field.name: record[field.name] for field in fields(kind)} for kind in (Job, Outcome))
        if job["theta"] is not None:
            job["theta"] = tuple(job["theta"])
        return Job(**job), Outcome(**outcome)

    def append(self, job: Job, outcome: Outcome) -> None:
        """Write one finished trial to disk.

        Args:
            job: The job.
            outcome: Its outcome, as `Outcome.checked` returns it.

        Raises:
            SearchError: The file can't be written.
        """
        try:
            line = json.dumps(asdict(job) | asdict(outcome), allow_nan=False).encode() + b"\n"
            while line:  # a nearly full disk may take a part only
                line = line[self._file.write(line) or 0 :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SearchError(
                f"{self.path}: can't be written: {error.strerror}. Finished trials are safe; fix this and continue "
                "with --resume."
            ) from error

    def close(self) -> None:
        """Close the file and release the lock."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def in_use(path: Path) -> bool:
    """Whether a process has the journal open."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _is_trial(record: Mapping[str, Any]) -> bool:
    """Whether a record has the keys of a trial, with values of the right types."""
    if record.keys() != LINE_KEYS:
        return False
    theta, reward, error = (record[key] for key in ("theta", "reward", "error"))
    return (
        record["stage"] in _STAGES
        and all(_is_number(record[key], int) for key in ("step", "index", "seed"))
        and isinstance(record["loss"], dict)
        and (theta is None or (isinstance(theta, list) and all(map(_is_number, theta))))
        and (reward is None or _is_number(reward))
        and all(
            isinstance(record[key], dict) and all(map(_is_number, record[key].values()))
            for key in ("metrics", "validation")
        )
        and (error is None or isinstance(error, str))
        and _is_number(record["seconds"])
    )


def _is_number(value: object, kind: type | UnionType = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(cast("float", value)) < math.inf


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Make a new file's entry in its folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
