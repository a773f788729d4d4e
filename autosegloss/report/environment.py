"""What a measurement has to say about the machine and its memory."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of control groups, version 2


def peak_memory_so_far() -> float:
    """MiB of memory that this process has had resident at its highest."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts in bytes, others in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory() -> float:
    """MiB of memory of this machine, or of the container that this process is in."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = _LIMIT.read_text(encoding="ascii").strip() if _LIMIT.exists() else "max"
    return (whole if text == "max" else min(whole, int(text))) / 2**20


def machine() -> dict[str, str]:
    """What this machine is, for the record of a measurement."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return {
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
    }


def packages(*names: str) -> dict[str, str]:
    """The versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in names:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
