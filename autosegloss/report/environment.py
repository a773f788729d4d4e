"""The machine, its memory and the installed packages, as a measurement records them."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from autosegloss.version import VERSION

_LIMIT = Path("/sys/fs/cgroup/memory.max")  # control groups, version 2


def peak_memory_so_far() -> float:
    """The peak resident memory of this process in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts in bytes, others in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory() -> float:
    """The memory of this machine, or of its container, in MiB."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = _LIMIT.read_text(encoding="ascii").strip() if _LIMIT.exists() else "max"
    return (whole if text == "max" else min(whole, int(text))) / 2**20


def machine() -> dict[str, str]:
    """Processor, number of cores and operating system."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def packages(*names: str) -> dict[str, str]:
    """The versions of Python and of the given packages, without those that are not installed."""
    found = {"python": platform.python_version()}
    for package in names:
        try:
            # In an environment that points to a clone, the metadata may be older than the clone.
            found[package] = VERSION if package == "autosegloss" else version(package)
        except PackageNotFoundError:
            continue
    return found


def about(device: str, *names: str) -> str:
    """Machine, GPU if that was used, and packages in a line, for the end of a table."""
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return ", ".join(f"{name} {value}" for name, value in (machine() | gpu | packages(*names)).items())
