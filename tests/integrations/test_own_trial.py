"""A trainer in plain PyTorch as the trial of a search. The example is `train`."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

import autosegloss
from autosegloss.search.jobs import Job
from autosegloss.search.own_trial import TrialObjective
from autosegloss.search.settings import as_config
from tests.integrations.task import CLASSES, Images, small_network


@cache  # once in each worker
def data():
    return Images("train", 256), Images("heldout", 32)


def train(loss, seed, budget):
    torch.manual_seed(seed)  # equal arguments must give equal numbers
    (training, held_out), network, iterations = data(), small_network(seed), max(1, round(budget * ITERATIONS))
    order = RandomSampler(training, replacement=True, num_samples=8 * iterations)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, iterations, power=0.9)
    for images, labels in DataLoader(training, batch_size=8, sampler=order):
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()
        schedule.step()
    exact = {name: autosegloss.Accumulator(name, CLASSES) for name in ("miou", "bf1")}
    network.eval()
    with torch.no_grad():
        for images, labels in DataLoader(held_out, batch_size=8):
            logits = network(images)
            for each in exact.values():
                each.update(logits, labels)
    return {name: each.compute() for name, each in exact.items()}


ITERATIONS = 20


@pytest.mark.slow
def test_it_is_a_trial() -> None:
    config = {"metric": "miou", "trial": f"{__name__}:train", "reward": "bf1"}
    trial = TrialObjective.of(as_config(config))
    jobs = [Job("search", 0, 0, autosegloss.load_loss(name).content(), seed=3) for name in ("8*lovasz", "jml")]
    better, outcome = (trial(job).checked() for job in jobs)
    assert outcome.error is None
    assert outcome.metrics.keys() == {"miou", "bf1"}
    assert outcome.reward == outcome.metrics["bf1"]
    assert better.metrics["miou"] > outcome.metrics["miou"], "in so few iterations"
    assert trial(jobs[1]).metrics == outcome.metrics, "the same arguments give the same numbers"
