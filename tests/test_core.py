"""The core: metrics and losses where torch and numpy are all that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TORCH = ["torch", "torchgen", "functorch", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe"]
TORCH += ["filelock", "fsspec"]
REFUSE = f"""
import sys

class Refuse:
    allowed = sys.stdlib_module_names | {{"autosegloss", "numpy", *{TORCH!r}}}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"{{name}} is not installed here")

sys.meta_path.insert(0, Refuse())
"""

CORE = (ROOT / "tests/core.py").read_text()


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


@pytest.mark.slow
def test_metrics_and_losses_need_torch_and_numpy_only(tmp_path: Path) -> None:
    done = python(REFUSE + CORE, str(tmp_path / "loss.json"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(
        " is not installed here. Metrics and losses need torch and numpy only; a search needs a complete install of "
        "autosegloss.\n"
    )


def test_what_is_refused_can_not_be_imported() -> None:
    for name in ("scipy", "ray", "PIL"):
        assert f"ModuleNotFoundError: {name} is not installed here" in python(REFUSE + f"import {name}").stderr


@pytest.mark.parametrize(
    "first",
    [
        "import autosegloss.search.journal",
        "from autosegloss.search import Result",
        "from autosegloss.report.pages import report",
    ],
)
@pytest.mark.slow
def test_the_search_is_a_function_whatever_is_imported(first: str) -> None:
    script = f"""
import inspect
{first}
import autosegloss
assert inspect.isfunction(autosegloss.search)
import autosegloss.search.journal
from autosegloss.search import Result, journal, search
from autosegloss.search import api
assert autosegloss.search is search and callable(search)
assert inspect.signature(search) == inspect.signature(api.search)
assert Result is api.Result
from autosegloss import *
assert load_config is autosegloss.load_config
from autosegloss.search import settings
assert inspect.signature(load_config) == inspect.signature(settings.load_config)
try:
    autosegloss.serch
except AttributeError as error:
    print(error)
"""
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'autosegloss' has no attribute 'serch'\n"
