"""A real search whose losses have a part of cross-entropy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import autosegloss as asl
from autosegloss.search.settings import as_config
from autosegloss.search.space import LossFamily
from tests.faulty import TINY
from tests.journals import trials_of


def tiny(cross_entropy: Any) -> dict[str, Any]:
    relaxation = {"pieces": 1, "cross_entropy": cross_entropy}
    return TINY | {"metric": "miou", "relaxation": relaxation, "search": {"steps": 1, "samples": 2}}


def test_a_searched_weight_is_that_of_the_loss_found(tmp_path: Path) -> None:
    result = asl.search(tiny("searched"), runner="serial", out=tmp_path / "out")
    theta = result.findings.theta
    trials = trials_of(tmp_path / "out" / "trials.jsonl")
    sampled = [trial["theta"] for trial in trials if trial["stage"] == "search"]
    assert len({len(point) for point in sampled} | {len(theta)}) == 1
    assert len({point[-1] for point in sampled}) == len(sampled)  # the weight moves from sample to sample

    loss = asl.load_loss(tmp_path / "out" / "loss.json")
    assert isinstance(loss, asl.MixedLoss)
    assert loss.cross_entropy == theta[-1]
    configuration: Any = loss.provenance["configuration"]
    assert configuration["relaxation"]["cross_entropy"] == "searched"
    network = torch.nn.Conv2d(3, 6, 3, padding=1)
    loss(network(torch.rand(2, 3, 8, 8)), torch.randint(0, 6, (2, 8, 8))).backward()
    assert network.weight.grad is not None
    assert network.weight.grad.abs().sum() > 0


def test_the_loss_of_a_trial_is_the_mix_that_the_configuration_says() -> None:
    fixed, searched, without = (as_config(tiny(value)) for value in (0.25, "searched", 0))
    theta = LossFamily.of(without).start
    plain = LossFamily.of(without).loss(theta)
    assert isinstance(plain, asl.SurrogateLoss)
    assert LossFamily.of(fixed).space == LossFamily.of(without).space
    logits, target = torch.randn(2, 6, 8, 8), torch.randint(0, 6, (2, 8, 8))
    for config, weight, point in ((fixed, 0.25, theta), (searched, 0.7, (*theta, 0.7))):
        loss = LossFamily.of(config).loss(point)
        assert isinstance(loss, asl.MixedLoss)
        expected = weight * torch.nn.functional.cross_entropy(logits, target) + (1 - weight) * plain(logits, target)
        assert loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_weight_alone_can_be_searched(tmp_path: Path) -> None:
    config = as_config(tiny("searched") | {"relaxation": {"curve": "linear", "pieces": 1, "cross_entropy": "searched"}})
    assert LossFamily.of(config).start == (0.25,)
