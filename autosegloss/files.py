"""Atomic writes: a file is replaced completely or stays unchanged."""

import os
import tempfile
from pathlib import Path

from autosegloss.errors import WriteError


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, even if the machine crashes.

    Raises:
        WriteError: The folder is missing, is read-only or has no space left; the old file is unchanged.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder, "draft")
            with draft.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
    except OSError as error:
        raise WriteError(f"{path}: can't be written: {error.strerror or error}.") from error
