"""Optimizers that leave the compiler out take PyTorch's own steps, and a training with them brings no compiler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autosegloss.proxy.optimizers import without_dynamo
from tests.faulty import TINY

SGD = torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
ADAM = torch.optim.Adam, {"lr": 0.03}
ADAMW = torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 1e-4}
Kind = tuple[type[torch.optim.Optimizer], dict[str, Any]]


def run(optimizer: type[torch.optim.Optimizer], options: dict[str, Any], change: type[torch.optim.Optimizer]) -> Any:
    """Weights and state after 10 steps, with another optimizer from the state after 5 on."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    groups = [{"params": list(network[0].parameters())}, {"params": list(network[2].parameters()), "lr": 0.01}]
    rule = optimizer(groups, **options)
    for step in range(10):
        if step == 5:
            state = rule.state_dict()
            rule = change(groups, **options)
            rule.load_state_dict(state)
        rule.zero_grad()
        network(torch.randn(4, 5)).square().mean().backward()
        rule.step()
    return [*network.parameters()], rule.state_dict()


@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW], ids=["sgd", "adam", "adamw"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("then", [True, False])
def test_steps_and_states_are_those_of_pytorch(kind: Kind, first: bool, then: bool) -> None:
    optimizer, options = kind
    weights, state = run(
        without_dynamo(optimizer) if first else optimizer, options, without_dynamo(optimizer) if then else optimizer
    )
    expected, expected_state = run(optimizer, options, optimizer)
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0)


@pytest.mark.slow
def test_searches_never_import_the_compiler(tmp_path: Path) -> None:
    for name in ("sgd", "adamw"):
        proxy = TINY["proxy"] | {"train": TINY["proxy"]["train"] | {"optimizer": name}}
        config = TINY | {"proxy": proxy, "search": {"steps": 2, "samples": 4}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))
    script = """
import sys
from autosegloss.cli import main
for name in ("sgd", "adamw"):
    assert main(["search", f"{name}.yaml", "--runner", "serial", "--out", name]) == 0
assert "torch" in sys.modules
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
