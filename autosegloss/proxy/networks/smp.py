"""Networks of segmentation_models_pytorch, which comes with the extra `networks`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor, nn

from autosegloss.errors import InputError, did_you_mean
from autosegloss.proxy.data import check_options
from autosegloss.proxy.imports import import_extra
from autosegloss.proxy.networks.unet import resize

_OURS = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs")
_AUXILIARY_WIDTH = 256  # as in the published configurations of PSPNet and DeepLabV3+


class Segmenter(nn.Module):
    """A network of the library for images of any size, perhaps with an auxiliary head.

    The parts keep their names, so that the library's files of weights fit. `encoder` is the library's encoder; the rest
    is `decoder` and `segmentation_head`, and ours is `auxiliary_head`: convolution, normalisation, dropout and
    classes on the last feature map but one, which only training has.

    Args:
        model: Of the library.
        num_classes: Channels of the logits.
        auxiliary: Whether there is an auxiliary head.

    Reference: Zhao et al., Pyramid scene parsing network, CVPR 2017, section 3.2, for the auxiliary head.
    """

    def __init__(self, model: Any, num_classes: int, auxiliary: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = model.encoder, model.decoder, model.segmentation_head
        # A divisor of the sides: what the encoder halves must be whole where the decoder doubles it.
        self._multiple = max(model.encoder.output_stride, 2 ** (len(model.encoder.out_channels) - 1))
        self.auxiliary_head: nn.Module | None = None
        if auxiliary:
            self.auxiliary_head = nn.Sequential(
                nn.Conv2d(model.encoder.out_channels[-2], _AUXILIARY_WIDTH, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(_AUXILIARY_WIDTH),
                nn.ReLU(inplace=True),
                nn.Dropout2d(0.1),
                nn.Conv2d(_AUXILIARY_WIDTH, num_classes, kernel_size=1),
            )

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map images (N, in_channels, H, W) to logits (N, num_classes, H, W), in training with auxiliary ones."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self._multiple, 0, -height % self._multiple))
        features: Sequence[Tensor] = self.encoder(padded)
        logits: Tensor = resize(self.segmentation_head(self.decoder(features)), padded)[..., :height, :width]
        if self.auxiliary_head is None or not self.training:
            return logits
        return logits, resize(self.auxiliary_head(features[-2]), padded)[..., :height, :width]


def builder(name: str) -> Callable[..., nn.Module]:
    """The builder of a network such as `DeepLabV3Plus/resnet50`; encoders `tu-...` are those of timm.

    Its options are those of the library's class, and `auxiliary` for an auxiliary head.

    Raises:
        InputError: The library is not installed, or has no such network.
    """
    architecture, _, encoder = name.partition("/")

    def build(in_channels: int, num_classes: int, *, auxiliary: bool = False, **options: Any) -> nn.Module:
        library = import_extra("segmentation_models_pytorch", "networks smp:...", "networks")
        known = {each.__name__: each for each in library.MODEL_ARCHITECTURES_MAPPING.values()}
        if architecture not in known:
            raise InputError(
                f"network `smp:{name}`: segmentation_models_pytorch has no `{architecture}`"
                f"{did_you_mean(architecture, known)}; it has: {', '.join(known)}."
            )
        encoders = library.encoders.get_encoder_names()
        if encoder not in encoders and not encoder.startswith("tu-"):
            raise InputError(
                f"network `smp:{name}`: segmentation_models_pytorch has no encoder `{encoder}`"
                f"{did_you_mean(encoder, encoders)}; write smp:{architecture}/ENCODER, e.g. resnet50, or tu-NAME for "
                "one of timm."
            )
        parameters = [each for each in inspect.signature(known[architecture].__init__).parameters][1:]
        takes = [each for each in parameters if each not in _OURS]
        check_options(f"network `smp:{name}`", ["auxiliary", *takes], options, InputError)
        model = known[architecture](
            encoder_name=encoder, encoder_weights=None, in_channels=in_channels, classes=num_classes, **options
        )
        return Segmenter(model, num_classes, auxiliary)

    return build
