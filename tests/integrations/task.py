"""What every trainer here trains: the small network on some images of the data set `shapes`, judged on others."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autosegloss import Accumulator, load_loss
from autosegloss.proxy.data import load_dataset
from autosegloss.proxy.networks import build_network

LOSS_FILE = Path(__file__).parents[2] / "results" / "searches" / "quickstart.json"
CLASSES = 6


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an image (3, 64, 64), float32 about 0, and its labels (64, 64), int64."""

    def __init__(self, split: str, count: int) -> None:
        chosen = getattr(load_dataset("shapes"), split)
        self.images = torch.from_numpy(chosen.images[:count]).float() / 127.5 - 1
        self.labels = torch.from_numpy(chosen.labels[:count]).long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("unet_small", 3, CLASSES)


def score(network: nn.Module) -> tuple[float, float]:
    """The searched loss and the exact mean IoU of a network on images that are not trained with."""
    held_out = Images("heldout", 32)
    network.eval()
    with torch.no_grad():
        logits = network(held_out.images)
    exact = Accumulator("miou", CLASSES)
    exact.update(logits, held_out.labels)
    network.train()
    return load_loss(LOSS_FILE)(logits, held_out.labels).item(), exact.compute()


def assert_improved(before: tuple[float, float], after: tuple[float, float]) -> None:
    """Both by more than what differs from seed to seed."""
    assert after[0] < before[0] - 0.1, (before, after)
    assert after[1] > before[1] + 0.1, (before, after)
