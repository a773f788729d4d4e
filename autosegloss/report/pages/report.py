"""The report page: a finished search, comparison or retraining as one HTML file that needs no other file."""

from __future__ import annotations

from pathlib import Path

from autosegloss.errors import InputError
from autosegloss.proxy.train import one_thread
from autosegloss.report.pages.comparison import comparison_page
from autosegloss.report.pages.search import search_page
from autosegloss.search.folder import CONFIG_FILE, JOURNAL_FILE, PLAN_FILE, TABLE_FILE


def report_page(folder: Path, images: bool = True) -> str:
    """The page of a folder.

    A folder holds no networks. A trial is a pure function of configuration, loss and seed, so for the pictures of a
    search or a comparison two of its trainings are run again.

    Args:
        folder: The folder of a finished search, comparison or retraining.
        images: Whether to train for pictures.

    Returns:
        HTML; the same folder gives the same text.

    Raises:
        InputError: The folder holds nothing that is finished, or is damaged.
        RefusedError: The journal of the search is damaged.
    """
    with one_thread():  # the tensors are too small for several threads
        if (folder / PLAN_FILE).exists() or (folder / TABLE_FILE).exists():
            return comparison_page(folder, images)
        if (folder / JOURNAL_FILE).exists() or (folder / CONFIG_FILE).exists():
            return search_page(folder, images)
    raise InputError(
        f"{folder}: there is nothing to report. A search has {CONFIG_FILE} and {JOURNAL_FILE}; a comparison or a "
        f"retraining has {PLAN_FILE} and {TABLE_FILE}."
    )
