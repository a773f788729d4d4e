"""The search room: ask/tell optimisers, studies with their journals, runners, and `search`.

`import autosegloss` imports this module, which therefore imports nothing heavy.
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
    """Search for the loss that trains best for a metric.

    Each finished trial is written to `out/trials.jsonl`; a search that is stopped at any point and resumed gives
    byte-identical results. The loss is written to `out/loss.json`, the resolved configuration to `out/config.yaml`.

    Args:
        config: A configuration, a mapping with its keys, or the path of a YAML file.
        runner: "ray" (parallel worker processes), "serial" (this process: one trial at a time, or on a GPU
            `resources.workers` at a time), or any `Runner`.
        out: The folder to write to; `results/<name of the file>` by default.
        resume: Whether to continue the search in that folder.
        observer: Called with the study at the start and after each trial.
        address: Address of a running Ray cluster, `host:port`; by default that in `RAY_ADDRESS`, or else Ray starts on
            this machine.

    Returns:
        The loss found and its scores beside the baselines.

    Raises:
        ConfigError: The configuration is invalid.
        RefusedError: The folder holds another search, or resources are missing.
        SearchError: The search can't continue; the journal is safe.
    """
    from autosegloss.search import api

    return api.search(config, runner, out, resume, observer, address)


def __getattr__(name: str) -> object:
    if name == "Result":
        from autosegloss.search.api import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
