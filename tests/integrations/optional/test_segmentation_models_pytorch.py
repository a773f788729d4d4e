"""segmentation_models_pytorch. The example is `train`."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

import autosegloss
from tests.integrations.task import CLASSES, LOSS_FILE, Images, assert_improved, score

smp = pytest.importorskip("segmentation_models_pytorch")


def train(network, loader, loss_file, epochs):
    loss = autosegloss.load_loss(loss_file, ignore_index=255)  # in the place of smp.losses.DiceLoss("multiclass")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss(network(images), labels).backward()
            optimizer.step()


def test_it_learns() -> None:
    torch.manual_seed(0)
    network = smp.Unet(
        "mobilenet_v2", encoder_depth=3, decoder_channels=(64, 32, 16), encoder_weights=None, classes=CLASSES
    )
    before = score(network)
    train(network, DataLoader(Images("train", 256), batch_size=8, shuffle=True), LOSS_FILE, epochs=2)
    assert_improved(before, score(network))
