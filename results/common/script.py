"""The command line of the scripts that make the files of `results/`: `python -m results.NAME.NAME`, in a clone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autosegloss.errors import AutoseglossError
from autosegloss.files import write_text


def script(module: str, about: str) -> argparse.ArgumentParser:
    """A parser with the option `--out`, by default the folder of the module.

    Args:
        module: The name it is run by, such as `results.scale.scale`.
        about: What it measures.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    folder = Path(*module.split(".")[:-1])
    parser.add_argument("--out", type=Path, default=folder, metavar="DIR", help=f"where to write; default: {folder}")
    return parser


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], str],
    arguments: Sequence[str] | None = None,
) -> None:
    """Measure, and print the table; bad input is told on standard error, with exit status 2."""
    given = parser.parse_args(arguments)
    try:
        print(measure(given))
    except AutoseglossError as error:
        parser.error(str(error))


def keep(path: Path, summary: dict[str, Any], to_markdown: Callable[[dict[str, Any]], str]) -> str:
    """Write a summary as JSON and as a page, beside each other, and return the page.

    Args:
        path: The files without their suffixes.
        summary: What was measured.
        to_markdown: Makes the page.
    """
    page = to_markdown(summary)
    write_text(path.with_name(f"{path.name}.json"), json.dumps(summary, indent=2) + "\n")
    write_text(path.with_name(f"{path.name}.md"), page)
    return page
