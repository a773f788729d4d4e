"""The folder of a search or a comparison: the names of its files, and the checks before it is written to."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from autosegloss.errors import InputError, LossFileError, RefusedError, SearchError, WriteError, cut, listed
from autosegloss.search.journal import Journal, in_use

LOSS_FILE, JOURNAL_FILE, CONFIG_FILE = "loss.json", "trials.jsonl", "config.yaml"
SEARCH_FILES: Final = (LOSS_FILE, CONFIG_FILE)
PLAN_FILE, TABLE_FILE, MARKDOWN_FILE, LATEX_FILE = "plan.json", "table.json", "table.md", "table.tex"
COMPARISON_FILES: Final = (PLAN_FILE, TABLE_FILE, MARKDOWN_FILE, LATEX_FILE)
CHECKPOINT_FILE = "checkpoint.pt"
"""The last checkpoint of a retraining."""
WEIGHTS = ".pt"
"""The suffix of the weights of a retraining."""
_LONGEST = 255  # bytes of a file's name on every common file system


def resume_command(command: str, folder: str | os.PathLike[str]) -> str:
    """The command that continues the search in a folder, by the configuration there."""
    return shlex.join(["autosegloss", command, str(Path(folder, CONFIG_FILE)), "--out", os.fspath(folder), "--resume"])


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
            listed([f"  {key}: {old.get(key, 'not set')} there, {new.get(key, 'not set')} now" for key in differing])
        )
        raise RefusedError(f"{what}:\n{table}\nRestore these values to continue it, or choose another folder.")


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of nested dictionaries as `a.b.c`, with their values as JSON text."""
    if isinstance(value, dict) and value:
        inner = (_leaves(item, ".".join(filter(None, (prefix, key)))) for key, item in value.items())
        return {key: text for leaves in inner for key, text in leaves.items()}
    return {prefix: json.dumps(value)}


def check_folder(folder: Path, files: Sequence[str], what: str, resume: bool) -> bool:
    """Check that a run can write to a folder, before any data is read and without changing anything.

    Args:
        folder: The output folder.
        files: The files that the run will write, besides the journal.
        what: What the folder is to hold, for messages.
        resume: Whether to continue what it holds.

    Returns:
        Whether the folder holds trials, which the run is to continue.

    Raises:
        RefusedError: The folder can't be written to or is in use, its journal is damaged, it holds trials and `resume`
            is not set, or it holds these files without a journal.
    """
    try:
        _refuse_unwritable(folder)
        journal = folder / JOURNAL_FILE
        if (held := held_in(folder)) and (held == "search") != (what == "search"):
            raise RefusedError(f"{cut(str(folder))}: holds a {held}, no {what}. Choose another folder.")
        found = [name for name in files if os.path.lexists(folder / name)]
        if found and not journal.exists():
            raise RefusedError(
                f"{cut(str(folder))} already holds {' and '.join(found)}, but no {what}. Choose another folder."
            )
        for name in found:
            if (folder / name).is_dir():
                raise RefusedError(f"{cut(str(folder / name))}: is a folder. Choose another output folder.")
        if not journal.exists():
            return False
        if journal.is_file() and in_use(journal):
            raise RefusedError(
                f"{cut(str(folder))}: another {what} is running in this folder. Wait for it, or choose another folder."
            )
        with Journal(journal, resume=resume, what=what, read_only=True) as opened:
            return bool(opened.trials)
    except (OSError, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise RefusedError(f"{cut(str(folder))}: can't be written: {why}. Choose another folder.") from None


def held_in(folder: Path) -> str:
    """What a folder with trials holds: "search", or "comparison or retraining"; empty if it holds none of them."""
    if not (folder / JOURNAL_FILE).exists():
        return ""
    if (folder / PLAN_FILE).exists():
        return "comparison or retraining"
    return "search" if (folder / CONFIG_FILE).exists() else ""


def _refuse_unwritable(folder: Path) -> None:
    """Raise an error if a folder, or the files in it, can't be made."""
    if any(len(os.fsencode(part)) > _LONGEST or "\0" in part for part in folder.parts):
        raise RefusedError(
            f"{cut(str(folder))}: can't be written: a name has more than {_LONGEST} bytes, or one of 0. Choose another."
        )
    nearest = folder
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise RefusedError(f"{cut(str(folder))}: can't be written: {cut(str(nearest))} is not a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RefusedError(
            f"{cut(str(folder))}: can't be written: {cut(str(nearest))} is read-only. Choose another folder."
        )


def refuse_results(path: Path) -> None:
    """Raise InputError if a path is a file of a search, a comparison or a retraining, also through a link."""
    for each in (path.parent.resolve() / path.name, path.resolve()):
        own = each.name in (JOURNAL_FILE, *SEARCH_FILES, *COMPARISON_FILES) or each.suffix == WEIGHTS
        if own and (each.parent / JOURNAL_FILE).exists():
            raise InputError(
                f"{cut(str(path))}: this file belongs to the search, comparison or retraining in "
                f"{cut(str(each.parent))}. Choose another name."
            )
