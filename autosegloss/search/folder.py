"""The folder of a search or a comparison: the names of its files, and the checks before it is written to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch

from autosegloss.errors import LossFileError, RefusedError, SearchError, WriteError
from autosegloss.version import VERSION

LOSS_FILE, JOURNAL_FILE, CONFIG_FILE = "loss.json", "trials.jsonl", "config.yaml"


def versions() -> dict[str, str]:
    """The versions of the packages that determine the results."""
    return {"autosegloss": VERSION, "torch": str(torch.__version__), "numpy": numpy.__version__}


@contextmanager
def resumable() -> Iterator[None]:
    """Turn a failed write into a SearchError which says that the search can be resumed."""
    try:
        yield
    except (LossFileError, WriteError) as error:
        raise SearchError(f"{error} Finished trials are safe; fix this and continue with --resume.") from error


def refuse_differences(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise RefusedError if two nested mappings differ, listing the differences."""
    old, new = _leaves(dict(there)), _leaves(dict(here))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        table = "\n".join(
            f"  {key}: {old.get(key, 'not set')} there, {new.get(key, 'not set')} now" for key in differing
        )
        raise RefusedError(f"{what}:\n{table}\nRestore these values to continue it, or choose another folder.")


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of nested dictionaries as `a.b.c`, with their values as JSON text."""
    if isinstance(value, dict) and value:
        inner = (_leaves(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
        return {key: text for leaves in inner for key, text in leaves.items()}
    return {prefix: json.dumps(value)}


def refuse_to_overwrite(folder: Path, names: Sequence[str], what: str) -> None:
    """Raise RefusedError if these files exist without a journal; with one, the journal decides."""
    found = [name for name in names if (folder / name).exists()]
    if found and not (folder / JOURNAL_FILE).exists():
        raise RefusedError(f"{folder} already holds {' and '.join(found)}, but no {what}. Choose another folder.")
