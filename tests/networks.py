"""Networks of one's own, as a configuration names them: `tests.networks:Plain`."""

from __future__ import annotations

import time

from torch import Tensor, nn


class Plain(nn.Module):
    """Draws nothing and does not normalise: halves of a batch give halves of its gradient. One layer is idle."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.head = nn.Conv2d(8, num_classes, 1)
        self.idle = nn.Conv2d(8, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images).relu())


class Hanging(Plain):
    """Never answers."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(3600)
        return super().forward(images)


class Drawing(nn.Module):
    """Draws in training and keeps running statistics; it has an auxiliary head."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)
        )
        self.head = nn.Sequential(nn.Conv2d(8, num_classes, 1), nn.Upsample(scale_factor=2))
        self.second = nn.Sequential(nn.Conv2d(8, num_classes, 1), nn.Upsample(scale_factor=2))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.encoder(images)
        return (self.head(features), self.second(features)) if self.training else self.head(features)


class Scribbling(nn.Module):
    """Draws in training, and writes into its images."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Conv2d(8, num_classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images.mul_(0.5)).relu())


class Overflowing(Plain):
    """Learns like `Plain`; its logits overflow where it is evaluated, as after steps of a learning rate of 1e6."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if self.training else logits * 1e38 * 1e38 * 0
