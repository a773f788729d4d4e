"""SegFormer and UperNet of the library transformers, built from a configuration; nothing is downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from autosegloss.errors import InputError
from autosegloss.proxy.data import check_options
from autosegloss.proxy.imports import import_extra
from autosegloss.proxy.networks.unet import resize


class SegFormer(nn.Module):
    """SegFormer with logits of the images' size; the parts have the library's names, and `segformer` is the encoder.

    Reference: Xie et al., SegFormer, NeurIPS 2021.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.segformer, self.decode_head = model.segformer, model.decode_head

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes, H, W)."""
        features = self.segformer(images, output_hidden_states=True).hidden_states
        return resize(self.decode_head(features), images)


class UperNet(nn.Module):
    """UperNet with logits of the images' size; the parts have the library's names, and `backbone` is the encoder.

    In training it also returns auxiliary logits, if it has an auxiliary head.

    Reference: Xiao et al., Unified perceptual parsing for scene understanding, ECCV 2018.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.decode_head = model.backbone, model.decode_head
        self.auxiliary_head: nn.Module | None = model.auxiliary_head

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map images (N, in_channels, H, W) to logits (N, num_classes, H, W), in training with auxiliary ones."""
        features: Sequence[Tensor] = self.backbone(images).feature_maps
        logits = resize(self.decode_head(features), images)
        if self.auxiliary_head is None or not self.training:
            return logits
        return logits, resize(self.auxiliary_head(features), images)


def segformer(in_channels: int, num_classes: int, **options: Any) -> nn.Module:
    """SegFormer; options are those of `transformers.SegformerConfig`, whose defaults are the size B0."""
    library = _library()
    config = _config("network `transformers:segformer`", library.SegformerConfig, options)
    model = library.SegformerForSemanticSegmentation(config(num_channels=in_channels, num_labels=num_classes))
    return SegFormer(model)


def upernet(in_channels: int, num_classes: int, **options: Any) -> nn.Module:
    """UperNet; options are those of `transformers.UperNetConfig`, with the backbone as a mapping.

    For example `backbone_config: {model_type: convnext, depths: [3, 3, 27, 3]}`; by default it is a ResNet-50.
    """
    library = _library()
    backbone = {"model_type": "resnet", **options.pop("backbone_config", {})}
    kind = backbone.pop("model_type")
    if kind not in library.CONFIG_MAPPING:
        raise InputError(f"network `transformers:upernet`: unknown backbone model_type `{kind}`.")
    stages = {"out_features": [f"stage{stage}" for stage in range(1, 5)]}
    encoder = _config(
        f"network `transformers:upernet`, backbone `{kind}`",
        library.CONFIG_MAPPING[kind],
        stages | backbone,
        "out_features",
    )
    config = _config("network `transformers:upernet`", library.UperNetConfig, options)
    model = library.UperNetForSemanticSegmentation(
        config(backbone_config=encoder(num_channels=in_channels), num_labels=num_classes)
    )
    return UperNet(model)


def _config(owner: str, kind: Any, options: Mapping[str, Any], *more: str) -> Callable[..., Any]:
    """A configuration with options of its class only: common options and those of its loss would have no effect."""
    common = inspect.signature(_library().PretrainedConfig).parameters
    own = [name for name in inspect.signature(kind).parameters if name not in common and "loss" not in name]
    check_options(owner, [*own, *more], options, InputError)
    return partial(kind, **options)


def _library() -> Any:
    return import_extra("transformers", "networks transformers:...", "networks")
