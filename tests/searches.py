"""Configurations: the commands that found the losses of `results/`, and a short training of a network of the tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from autosegloss.search.settings import StudyConfig, load_config

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "results/searches/searches.md"
COMMANDS: dict[Path, str] = {
    (TABLE.parent / link).resolve(): command
    for link, command in re.findall(r"^\| \[.*?\]\((\S+?)\) \| `(.*?)` \|", TABLE.read_text(), flags=re.MULTILINE)
}
"""By the file of the loss."""


def configuration(command: str) -> StudyConfig:
    """The configuration that a command runs: its file, and what `--set` changes of it."""
    program, action, file, *options = shlex.split(command)
    assert (program, action) == ("autosegloss", "search")
    names, values = options[::2], options[1::2]
    assert set(names) <= {"--set", "--out"}
    return load_config(ROOT / file, [value for name, value in zip(names, values, strict=True) if name == "--set"])


def found_by(name: str) -> StudyConfig:
    """The configuration of a file of `results/searches`."""
    return configuration(COMMANDS[TABLE.parent / f"{name}.json"])


def short(network: str) -> dict[str, Any]:
    """Trainings of two iterations from scratch on `nuclei`, of a network of `tests.networks`."""
    return {
        "metric": "miou",
        "proxy": {
            "data": {"name": "nuclei"},
            "network": {"name": f"tests.networks:{network}"},
            "start": {"regime": "scratch"},
            "train": {"iterations": 2, "batch_size": 2},
        },
        "compare": {"metrics": ["miou"], "steps": [1]},
        "retrain": {"iterations": 2, "batch_size": 2},
    }
