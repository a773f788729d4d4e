"""Atomic writes, in which a file is replaced completely or stays unchanged, and locks between processes."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autosegloss.errors import WriteError, cut

_LONGEST = 240  # bytes of a name to which `.draft` can be added on every common file system
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, even if the machine crashes.

    What a killed process has left beside the file, `.NAME.draft` and `.NAME.lock`, disappears.

    Raises:
        WriteError: The folder is missing, is read-only or has no space left; the old file is unchanged.
    """
    name = path.name if len(os.fsencode(path.name)) <= _LONGEST else hashlib.sha256(path.name.encode()).hexdigest()
    draft = path.with_name(f".{name}.draft")
    try:
        with locked(path.with_name(f".{name}.lock")):
            try:
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    sync(file.fileno())
                os.replace(draft, path)
            finally:
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{cut(str(path))}: can't be written: {error.strerror or error}.") from error


def read_json(data: bytes) -> Any:
    """The value in a JSON file that can be written again as it is.

    Raises:
        ValueError, RecursionError: It is not JSON, holds NaN or infinity, or has a key twice in one mapping.
    """
    content = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    json.dumps(content, ensure_ascii=False).encode()
    return content


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key occurs twice in one mapping")
    return content


def sweep_drafts(folder: Path, names: Iterable[str]) -> None:
    """Delete what killed writes of files have left beside them; call it only where no other process writes them.

    Args:
        folder: The folder of the files.
        names: Their names; `*` stands for any text.
    """
    for name in names:
        for path in folder.glob(f".{name}.*"):
            if path.is_dir():  # of version 0.1
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def sync(descriptor: int) -> None:
    """Make a file or a folder durable, where its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Make a new file's entry in its folder durable, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder may be open for writing and not for reading
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, which is created for it and deleted afterwards. A process that ends releases its locks.

    Args:
        path: The file of the lock.
        wait: Whether to wait while another process holds it.

    Yields:
        Whether the lock is held. It is not where the file system has no locks, and, without `wait`, where another
        process holds it.

    Raises:
        OSError: The file can't be created.
    """
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                alone, busy = True, False
            except OSError as error:
                alone, busy = False, isinstance(error, BlockingIOError)
            if alone and not _is_the_file(file.fileno(), path):
                continue  # the process that held the lock has deleted this file: it is not the one others lock now
            try:
                yield alone
            finally:
                if not busy:
                    path.unlink(missing_ok=True)
            return


def _is_the_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
