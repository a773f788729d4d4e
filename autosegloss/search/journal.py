"""The journal of a search: a head, then one line per finished trial, on disk before the algorithm is told of it.

A resumed search needs nothing else: replaying the journal through the algorithm restores the rest.

Each line is a JSON object whose last key, `checksum`, is the CRC-32 of all bytes of the line before it, in eight
hexadecimal digits. The first line is a head: the format and its version, the versions of Python and of the packages,
the kind of processor, and fingerprints of the data. A run that continues the journal with other versions or on another
processor writes a head of its own before its first trial.
"""

from __future__ import annotations

import errno
import fcntl
import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any, get_args

from autosegloss.errors import RefusedError, SearchError, cut, note
from autosegloss.files import sync, sync_folder
from autosegloss.search.head import Head, joined, other_data, other_environment
from autosegloss.search.jobs import Job, Outcome, Stage

FORMAT = "autosegloss-journal"
VERSION = 3
"""Steps of a search in version 1 had no trial of the start, in version 2 none of their centre."""
BEGINNING = f'{{"format": "{FORMAT}", '.encode()  # of every head

_SEAL = len(b', "checksum": "00000000"}')
_STAGES = get_args(Stage)
_TRIAL_KEYS = {field.name for kind in (Job, Outcome) for field in fields(kind)}
_HEAD_KEYS = {"format", "version", *(field.name for field in fields(Head))}
_EARLIER = b'{"stage": "'  # of every line of a journal of version 0.1, which had no head
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS}


class Journal:
    """The journal file, locked while it is open.

    A last line that is incomplete or damaged, as a killed process or a crash leaves it, is removed; its trial runs
    again. On a file system without locks, nothing holds two runs apart; a note says so.

    Args:
        path: The file, usually `trials.jsonl` in the folder of the search; created with its folder if absent.
        resume: Whether to continue a journal that holds trials.
        what: What the trials belong to, for messages.
        head: Where the trials to come run and on which data; None takes this process and leaves the data open.
        read_only: Whether the file is left as it is: neither created, locked nor mended. Nothing can be appended.

    Raises:
        RefusedError: The journal is in use or damaged, holds trials and `resume` is not set, or was written on other
            data.
    """

    def __init__(
        self,
        path: Path,
        *,
        resume: bool = False,
        what: str = "search",
        head: Head | None = None,
        read_only: bool = False,
    ) -> None:
        """Open, lock, check and mend the file."""
        self.path = path
        self._what = what
        self._here = Head.here() if head is None else head
        try:
            if path.exists() and not path.is_file():
                raise RefusedError(f"{cut(str(path))}: not a regular file. Choose another folder.")
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk did not take must not come up again when the file is closed.
            self._file: FileIO = path.open("rb" if read_only else "a+b", buffering=0)
        except OSError as error:
            verb = "read" if read_only else "written"
            raise RefusedError(f"{cut(str(path))}: can't be {verb}: {error.strerror}. Choose another folder.") from None
        try:
            if not read_only:
                self._lock()
            self._contents = self._open(resume, read_only)
            self._refuse_other_data()
        except BaseException:
            self.close()
            raise

    @property
    def trials(self) -> Sequence[tuple[Job, Outcome]]:
        """The trials that the file held when it was opened."""
        return self._contents.trials

    @property
    def line_numbers(self) -> Sequence[int]:
        """The line of each of these trials."""
        return self._contents.lines

    @property
    def versions(self) -> dict[str, str]:
        """The versions with which the trials ran; several are joined."""
        return joined([head.versions for head in self._heads()])

    @property
    def processor(self) -> dict[str, str]:
        """The kinds of processors on which the trials ran; several are joined."""
        return joined([head.processor for head in self._heads()])

    @property
    def data(self) -> dict[str, Any]:
        """The fingerprints of the data."""
        return self._heads()[0].data

    @property
    def changes(self) -> str:
        """What differs between the environment of the last trials and this process; empty if nothing does."""
        return self._contents.heads[-1].changes(self._here) if self._contents.heads else ""

    def _heads(self) -> Sequence[Head]:
        return self._contents.heads or [self._here]

    def note_changes(self) -> None:
        """Say what differs between the environment of the last trials and this process, if trials are to follow."""
        if self.changes:
            note(other_environment(self.path.parent, self._what, self.changes))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{cut(str(self.path.parent))}: another {self._what} is running in this folder. Wait for it, or choose "
                "another folder."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            note(
                f"Warning: {cut(str(self.path.parent))}: this file system has no locks; make sure that nothing else "
                "runs in this folder."
            )

    def _open(self, resume: bool, read_only: bool) -> _Contents:
        self._file.seek(0)
        data = self._file.read()
        contents = _read(data, cut(str(self.path)))
        if contents.trials and not resume:
            raise RefusedError(
                f"{cut(str(self.path.parent))} already holds a {self._what} with {len(contents.trials)} finished "
                "trials. Continue it with --resume, or choose another folder."
            )
        if not read_only:
            if contents.size < len(data) and data.endswith(b"\n"):
                number = data.count(b"\n")
                note(f"{cut(str(self.path))}:{number}: the last line is damaged and is removed; its trial runs again.")
            self._file.truncate(contents.size)
            sync_folder(self.path.parent)
        return contents

    def _refuse_other_data(self) -> None:
        """Raise RefusedError if the trials were run on other data."""
        changed = self._contents.heads[0].changed_data(self._here) if self._contents.heads else []
        if changed:
            raise RefusedError(other_data(self.path.parent, self._what, changed))

    def append(self, job: Job, outcome: Outcome) -> None:
        """Write one finished trial to disk.

        Args:
            job: The job.
            outcome: Its outcome, as `Outcome.checked` returns it.

        Raises:
            SearchError: The file can't be written.
        """
        begins = not self._contents.heads or bool(self.changes)
        text = _sealed({"format": FORMAT, "version": VERSION} | asdict(self._here)) if begins else b""
        text += _sealed(asdict(job) | asdict(outcome))
        try:
            while text:  # a nearly full disk may take a part only
                text = text[self._file.write(text) or 0 :]
            sync(self._file.fileno())
        except OSError as error:
            raise SearchError(
                f"{cut(str(self.path))}: can't be written: {error.strerror}. Finished trials are safe; fix this and "
                "continue with --resume."
            ) from error
        if begins:
            self._contents.heads.append(self._here)

    def close(self) -> None:
        """Close the file and release the lock."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def in_use(path: Path) -> bool:
    """Whether a process has the journal open; False on a file system without locks."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
    return False


@dataclass
class _Contents:
    """The whole lines of a journal.

    Args:
        heads: The heads that have trials.
        trials: The trials.
        lines: The line of each trial.
        size: Bytes up to the end of the last trial.
    """

    heads: list[Head]
    trials: list[tuple[Job, Outcome]]
    lines: list[int]
    size: int


def _read(data: bytes, path: str) -> _Contents:
    """Read a journal; what follows the last trial is left out if it is an interrupted write.

    Raises:
        RefusedError: A line is damaged, or the file is no journal of this version.
    """
    lines = list(BytesIO(data))  # ended by \n alone
    torn = bool(lines) and not _is_sealed(lines[-1])
    if torn and (len(lines) > 1 or lines[0].startswith(BEGINNING) or BEGINNING.startswith(lines[0])):
        lines.pop()  # other text may be the user's
    heads: list[Head] = []
    trials: list[tuple[Job, Outcome]] = []
    numbers: list[int] = []
    size = end = 0
    following: Head | None = None
    version = VERSION
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        end += len(line)
        if record is not None and _is_head(record):
            if record["version"] > VERSION:
                raise RefusedError(
                    f"{path}:{number}: this journal was written by autosegloss "
                    f"{cut(str(record['versions'].get('autosegloss')), 40)}, a newer version. Continue it with that "
                    "version, or choose another folder."
                )
            following, version = Head(record["versions"], record["processor"], record["data"]), record["version"]
        elif number == 1:
            raise _refused_beginning(line, path)
        elif record is not None and _is_trial(record):
            if version < VERSION and record["stage"] != "compare":
                raise RefusedError(
                    f"{path}:{number}: this search was run by an earlier version of autosegloss, whose steps had "
                    "other trials. Continue it with that version, or choose another folder. A loss.json beside "
                    "it can be used as before."
                )
            if following is not None:
                heads.append(following)
                following = None
            trials.append(_trial(record))
            numbers.append(number)
            size = end
        else:
            raise RefusedError(
                f"{path}:{number}: this line is damaged, and later lines build on it. Restore the file from a copy, or "
                f"delete line {number} and all later lines to run their trials again."
            )
    return _Contents(heads, trials, numbers, size)


def _refused_beginning(line: bytes, path: str) -> RefusedError:
    """Why a file whose first line is no head is refused."""
    record = _parsed(line) if line.startswith(_EARLIER) else None
    if isinstance(record, dict) and record.keys() <= _TRIAL_KEYS:
        return RefusedError(
            f"{path}: this journal has no head: it was written by autosegloss 0.1. Continue it with that version, or "
            "choose another folder. A loss.json beside it can be used as before."
        )
    return RefusedError(
        f"{path}:1: this line is damaged: it is not the head of a journal. Restore the file from a copy, or choose "
        "another folder."
    )


def _sealed(record: Mapping[str, Any]) -> bytes:
    """A record as a line."""
    return _seal(json.dumps(record, allow_nan=False).encode()[:-1])


def _seal(text: bytes) -> bytes:
    return text + b', "checksum": "%08x"}\n' % zlib.crc32(text)


def _is_sealed(line: bytes) -> bool:
    """Whether a line is as it was written."""
    return len(line) > _SEAL and _seal(line[: -_SEAL - 1]) == line


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line without its checksum; None if the line is damaged."""
    record = _parsed(line) if _is_sealed(line) else None
    if not isinstance(record, dict):
        return None
    added = {"rate": 1.0} if record.keys() == _TRIAL_KEYS - {"rate"} | {"checksum"} else {}  # before version 3
    return {key: value for key, value in (record | added).items() if key != "checksum"}


def _parsed(line: bytes) -> Any:
    """The JSON value of a line; None if it has none that can be used."""
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        return None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key occurs twice")
    return record


def _is_head(record: Mapping[str, Any]) -> bool:
    """Whether a record has the keys of a head, with values of the right types; later versions may have more keys."""
    return (
        record.keys() >= _HEAD_KEYS
        and record["format"] == FORMAT
        and _is_integer(record["version"])
        and all(isinstance(record[key], dict) for key in ("versions", "processor", "data"))
        and all(isinstance(text, str) for key in ("versions", "processor") for text in record[key].values())
    )


def _is_trial(record: Mapping[str, Any]) -> bool:
    """Whether a record has the keys of a trial, with values of the right types."""
    if record.keys() != _TRIAL_KEYS:
        return False
    theta, reward, error = (record[key] for key in ("theta", "reward", "error"))
    return (
        record["stage"] in _STAGES
        and all(_is_integer(record[key]) for key in ("step", "index", "seed"))
        and _is_number(record["rate"])
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


def _trial(record: Mapping[str, Any]) -> tuple[Job, Outcome]:
    job, outcome = ({field.name: record[field.name] for field in fields(kind)} for kind in (Job, Outcome))
    if job["theta"] is not None:
        job["theta"] = tuple(job["theta"])
    return Job(**job), Outcome(**outcome)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
