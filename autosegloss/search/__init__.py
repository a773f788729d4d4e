"""The search room: an ask/tell optimiser, a study that journals its trials, runners that execute them, `search`.

This module imports nothing, for `import autosegloss` imports it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from autosegloss.search.api import Result
    from autosegloss.search.runners.base import Runner
    from autosegloss.search.settings import StudyConfig
    from autosegloss.search.study import Study

__all__ = ["Result", "search"]


def search(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    runner: Runner | Literal["ray", "serial"] = "ray",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    observer: Callable[[Study], None] | None = None,
    address: str | None = None,
) -> Result:
    """Search the loss that trains best for a metric.

    Trial after trial is written to `out/trials.jsonl`; a search that was stopped anywhere and resumed ends with the
    bytes of one that was not. The loss is written to `out/loss.json`, the resolved configuration to `out/config.yaml`.

    Args:
        config: A configuration, a mapping with its keys, or the path of a YAML file.
        runner: "ray" (several trials side by side), "serial" (one after another in this process, on a GPU
            `resources.workers` at a time), or a runner of your own.
        out: The folder to write to; `results/<name of the file>` by default.
        resume: Whether to continue the search in that folder.
        observer: Called with the study at the start and after each trial.
        address: Of a running Ray cluster, `host:port`; by default what `RAY_ADDRESS` says, or this machine alone.

    Returns:
        The loss found and how it compares.

    Raises:
        ConfigError: The configuration has mistakes.
        RefusedError: The folder holds another search, or the resources are not there.
        SearchError: The search cannot go on; the journal is safe.
    """
    from autosegloss.search import api

    return api.search(config, runner, out, resume, observer, address)


def __getattr__(name: str) -> object:
    if name == "Result":
        from autosegloss.search.api import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
