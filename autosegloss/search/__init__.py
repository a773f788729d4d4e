"""The search room: ask/tell optimisers, studies with their journals, runners, and `search`.

`import autosegloss` imports this module, which therefore imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from autosegloss.proxy.data import Dataset
    from autosegloss.search.api import Result
    from autosegloss.search.runners.base import Runner
    from autosegloss.search.settings import StudyConfig
    from autosegloss.search.study import Study

__all__ = ["Result", "load_config", "search"]


def search(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    runner: Runner | Literal["ray", "serial"] = "ray",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    observer: Callable[[Study], None] | None = None,
    address: str | None = None,
    on_data: Callable[[Dataset], None] | None = None,
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
        on_data: Called with the data set before any training; by default its warnings are logged. With `trial` there is
            none.

    Returns:
        The loss found and its scores beside the baselines.

    Raises:
        ConfigError: The configuration is invalid.
        RefusedError: The folder holds another search, or resources are missing.
        SearchError: The search can't continue; the journal is safe.
    """
    with _whole_install():
        from autosegloss.search import api

    return api.search(config, runner, out, resume, observer, address, on_data)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a configuration from a YAML file.

    Args:
        path: The file; messages show it as given.
        overrides: Texts `key.sub=value` that override the file; the value is YAML.

    Returns:
        The configuration, complete with defaults.

    Raises:
        ConfigError: The configuration is invalid; all errors are listed, each with its file and line or its override.
    """
    with _whole_install():
        from autosegloss.search import settings

    return settings.load_config(path, overrides)


@contextmanager
def _whole_install() -> Iterator[None]:
    """Say what is missing where only the core, metrics and losses, is installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        message = (
            f"{error}. Metrics and losses need torch and numpy only; a search needs a complete install of autosegloss."
        )
        raise ModuleNotFoundError(message, name=error.name) from error


def __getattr__(name: str) -> object:
    if name == "Result":
        from autosegloss.search.api import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
