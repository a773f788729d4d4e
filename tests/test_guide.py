"""Every file and every command of the guide, as somebody walks through it, with small budgets."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

import autosegloss
from autosegloss.cli import main

PAGES = Path(__file__).parent.parent / ".docs/pages"
GUIDE = (PAGES / "guide.md").read_text()
FILES = dict(re.findall(r'```\w+ title="([\w.]+)"\n(.*?)```', GUIDE, flags=re.DOTALL))
INSTALLATION, *COMMANDS = re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL)
SMALL = {
    "proxy.start.iterations": 2,
    "proxy.train.iterations": 2,
    "search.steps": 1,
    "search.samples": 2,
    "finalists.candidates": 1,
    "finalists.seeds": 2,
    "retrain.iterations": 2,
    "compare.steps": "[1, 2]",
    "compare.tuning_seeds": 1,
}
BUDGETS = {"search": ["--runner", "serial"], "compare": ["--runner", "serial"], "retrain": []}


def carry_out(command: str) -> None:
    """Run a line of the guide in this process."""
    program, *arguments = shlex.split(command)
    if program == "python":
        (file,) = arguments
        runpy.run_path(file, run_name="__main__")
        return
    assert program == "autosegloss"
    if arguments[0] in BUDGETS and not Path(arguments[1]).is_dir():  # a folder is tabulated, not trained
        sets = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
        arguments += [*sets, *BUDGETS[arguments[0]]]
    assert main(arguments) == 0, command


@pytest.mark.slow
def test_the_guide_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert INSTALLATION.startswith("python3 -m venv .venv")
    for name, text in FILES.items():
        Path(name).write_text(text)
    lines = [line for block in COMMANDS for line in block.splitlines()]
    assert {line.split()[1] for line in lines} >= {"search", "export", "show", "retrain", "compare", *scripts()}
    printed = {}
    for line in lines:
        carry_out(line)
        printed[line] = capsys.readouterr().out

    mine, value = printed["python metric.py"].splitlines()
    assert autosegloss.load_config("mine.yaml").metric == mine
    assert float(value) == pytest.approx((1 / 2 + 2 / 5) / 2, abs=1e-12)
    assert "loss.json" not in printed["autosegloss search mine.yaml --dry-run"]
    assert len(list(Path("my_data/masks").iterdir())) == 256
    assert printed["python predict.py"].startswith("torch.Size([1, ")
    assert len(printed["python train.py"].splitlines()) == 256 / 8
    for file in re.findall(r"results/\w+/mine/table\.\w+", GUIDE):
        assert Path(file).is_file()


def scripts() -> list[str]:
    return [name for name in FILES if name.endswith(".py")]


def test_the_lines_for_a_trainer_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    autosegloss.SurrogateLoss("miou").save("loss.json")
    (lines,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    network = torch.nn.Conv2d(3, 6, 3, padding=1)
    loader = [(torch.rand(2, 3, 8, 8), torch.randint(0, 6, (2, 8, 8)))]
    exec(lines, {"autosegloss": autosegloss, "network": network, "loader": loader})
    assert network.weight.grad is not None
    assert network.weight.grad.abs().sum() > 0
