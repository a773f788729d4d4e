"""Hugging Face accelerate. The example is `train`."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import autosegloss
from tests.integrations.task import LOSS_FILE, Images, assert_improved, score, small_network


def train(network, loader, loss_file, epochs):
    accelerator = Accelerator()
    # The sums run over the batches of all processes; with one process that changes nothing.
    loss = autosegloss.load_loss(loss_file, ignore_index=255, reduce_over_ranks=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(loss(network(images), labels))
            optimizer.step()


@pytest.mark.slow
def test_it_learns() -> None:
    network = small_network()
    before = score(network)
    train(network, DataLoader(Images("train", 256), batch_size=8, shuffle=True), LOSS_FILE, epochs=2)
    assert_improved(before, score(network))
