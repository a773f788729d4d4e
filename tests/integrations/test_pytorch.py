"""Plain PyTorch. The example is `train`."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

import autosegloss
from tests.integrations.task import LOSS_FILE, Images, assert_improved, score, small_network


def train(network, loader, loss_file):
    loss = autosegloss.load_loss(loss_file, ignore_index=255)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for images, labels in loader:
        optimizer.zero_grad()
        loss(network(images), labels).backward()
        optimizer.step()


@pytest.mark.slow
def test_it_learns() -> None:
    network = small_network()
    before = score(network)
    loader = DataLoader(Images("train", 256), batch_size=8, shuffle=True)
    for _ in range(2):
        train(network, loader, LOSS_FILE)
    assert_improved(before, score(network))
