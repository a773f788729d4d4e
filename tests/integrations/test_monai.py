"""MONAI's SupervisedTrainer. The example is `trainer`."""

from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch.utils.data import DataLoader

import autosegloss
from tests.integrations.task import LOSS_FILE, Images, assert_improved, score, small_network


def trainer(network, loader, loss_file, epochs):
    return SupervisedTrainer(
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        max_epochs=epochs,
        train_data_loader=loader,  # of {"image": (B, C, *S), "label": (B, 1, *S)}, as MONAI's transforms give them
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True),
        loss_function=autosegloss.load_loss(loss_file, ignore_index=255),
    )


@pytest.mark.slow
def test_it_learns() -> None:
    network = small_network()
    before = score(network)
    data = [{"image": image, "label": labels[None]} for image, labels in Images("train", 256)]
    loader = DataLoader(data, batch_size=8, shuffle=True)  # type: ignore[arg-type]
    trainer(network, loader, LOSS_FILE, epochs=2).run()
    assert_improved(before, score(network))
