"""The head of a journal: where its trials run and on which data, so that a resumed run can be compared with it."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from autosegloss.errors import cut, listed
from autosegloss.version import VERSION


@dataclass(frozen=True)
class Head:
    """What decides the numbers of a trial, besides its job and the configuration.

    Args:
        versions: Versions of Python and of the packages that compute.
        processor: The kind of processor: `architecture`, `vendor` and `instructions` (the vector instructions that
            torch uses) decide the last bits on a CPU, `gpu` (the model) those of trials on a GPU.
        data: The fingerprint of each part of the data, by setting if there are several; empty if unknown.
    """

    versions: dict[str, str]
    processor: dict[str, str]
    data: dict[str, Any]

    @classmethod
    def here(cls, data: Mapping[str, Any] | None = None, gpus: float = 0) -> Head:
        """The head of a run in this process.

        Args:
            data: See `Head`.
            gpus: The GPUs of a trial; above 0 the model of the GPU counts.
        """
        gpu = {"gpu": torch.cuda.get_device_name()} if gpus and torch.cuda.is_available() else {}
        return cls(versions(), processor() | gpu, json.loads(json.dumps(data or {})))

    def environment(self) -> dict[str, str]:
        """Versions and processor in one mapping."""
        return self.versions | self.processor

    def changes(self, here: Head) -> str:
        """What differs between the environment of this head and another one, as `torch was 2.12.0 and is 2.13.0`."""
        old, new = self.environment(), here.environment()
        keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        return ", ".join(f"{key} was {old.get(key, 'none')} and is {new.get(key, 'none')}" for key in keys)

    def changed_data(self, here: Head) -> list[str]:
        """The parts of the data that differ; none where one of the heads does not know them."""
        if not self.data or not here.data:
            return []
        old, new = _leaves(self.data), _leaves(here.data)
        return listed([key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)])


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that determine the results."""
    return {
        "autosegloss": VERSION,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def processor() -> dict[str, str]:
    """The kind of processor, as far as it decides the last bits of a training on it."""
    return {
        "architecture": platform.machine(),
        "vendor": _vendor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _vendor() -> str:
    """The vendor of the processor, by which MKL chooses its kernels."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:vendor_id|CPU implementer)\s*: *(\S+)", text, re.MULTILINE)
    return found[1] if found else platform.processor() or "unknown"


def joined(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Mappings as one: values that differ are joined, as in {"torch": "2.12.0 and 2.13.0"}."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return {key: " and ".join(dict.fromkeys(each[key] for each in mappings if key in each)) for key in keys}


def other_data(where: Path, what: str, changed: Sequence[str]) -> str:
    """Why a run on other data can't be continued; `what` is a search, a comparison, ..."""
    if list(changed) == ["trial"]:
        return (
            f"{cut(str(where))}: the file of the function `trial` has changed since this {what} began. Results of "
            "different trainers can't be mixed. Restore the file, or choose another folder."
        )
    return (
        f"{cut(str(where))}: the data has changed since this {what} began, in: {cut(', '.join(changed))}. Results on "
        "different data can't be mixed. Restore the images and masks, or choose another folder."
    )


def other_environment(where: Path, what: str, changes: str) -> str:
    """What follows from continuing a run in another environment; see `Head.changes`."""
    return (
        f"Warning: {cut(str(where))}: this {what} is continued in another environment: {cut(changes)}. Trials from "
        "here on may differ in their last bits from those of an undisturbed run, and so may the result, which records "
        "both. To avoid this, stop now and continue in the first environment."
    )


def _leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The leaves of nested mappings by their keys, as `setting.train`."""
    found: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}.{key}" if prefix else key
        found |= _leaves(item, name) if isinstance(item, Mapping) else {name: str(item)}
    return found
