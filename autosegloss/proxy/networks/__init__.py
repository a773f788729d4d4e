"""Networks by name: a small U-Net, those of two libraries, and those of your own functions.

A network maps images (N, in_channels, H, W) to logits (N, num_classes, H, W). In training it may return a pair of these
and auxiliary logits of the same shape, to which the same loss is applied with a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from autosegloss.errors import InputError, cut, did_you_mean, shown
from autosegloss.proxy.data import check_options
from autosegloss.proxy.imports import import_function
from autosegloss.proxy.networks import hugging_face, smp
from autosegloss.proxy.networks.unet import UNetSmall
from autosegloss.proxy.users_code import parameters_of, users_code

Builder = Callable[..., nn.Module]
"""From in_channels, num_classes and options, which are keyword arguments, to a network."""

NETWORKS: Mapping[str, Builder] = {
    "unet_small": UNetSmall,
    "transformers:segformer": hugging_face.segformer,
    "transformers:upernet": hugging_face.upernet,
}
"""The named networks, besides `smp:ARCHITECTURE/ENCODER` and `module:function`."""

ENCODERS = ("encoder", "backbone", "segformer")
"""The names of the encoder in the libraries, which the regime `encoder` pretrains."""


def build_network(name: str, in_channels: int, num_classes: int, **options: object) -> nn.Module:
    """Build a network with weights drawn from torch's global generator.

    Args:
        name: One of `NETWORKS`; `smp:ARCHITECTURE/ENCODER` for segmentation_models_pytorch, as in
            `smp:DeepLabV3Plus/resnet50`; or `module:function` for a function (in_channels, num_classes) -> network.
        in_channels: Channels of an image.
        num_classes: Channels of the logits.
        **options: Options of the network.

    Returns:
        A module from images (N, in_channels, H, W) to logits (N, num_classes, H, W), in channels-last layout.

    Raises:
        InputError: The name or an option is unknown, a library is not installed, or the network can't be built.
    """
    build = _builder(name)
    parameters = parameters_of(build)
    if parameters is not None and all(each.kind is not each.VAR_KEYWORD for each in parameters):
        own = [each.name for each in parameters[2:]]  # **options check themselves
        check_options(f"network `{name}`", own, options, InputError)
    given = ", ".join(f"{key}={shown(value)}" for key, value in options.items()) or "no options"
    with users_code(f"network `{name}` can't be built with {given}"):
        network = build(in_channels, num_classes, **options)
    if not isinstance(network, nn.Module):
        raise InputError(f"network `{name}` must be a torch.nn.Module, got {type(network).__name__}.")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a gap in torch's types
    return network


def check_network(network: nn.Module, name: str, images: Tensor, num_classes: int) -> None:
    """Run a network once, without training it.

    Args:
        network: The network, in whatever mode; it is left in evaluation mode.
        name: Its name, for messages.
        images: Images as it will be given, (N, C, H, W), on its device.
        num_classes: Channels that its logits must have.

    Raises:
        InputError: The network has nothing to train, raises, or returns something else than logits.
    """
    if not any(weight.requires_grad for weight in network.parameters()):
        raise InputError(f"network `{cut(name)}` has no parameters to train.")
    network.eval()
    what = f"network `{cut(name)}` fails on images of shape {tuple(images.shape)}"
    with users_code(what), torch.inference_mode():
        output = network(images)
    logits = (
        output[0] if isinstance(output, tuple) and len(output) == 2 else output
    )  # beside those of an auxiliary head
    expected = (len(images), num_classes, *images.shape[2:])
    got = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(output).__name__
    if not isinstance(logits, Tensor) or logits.shape != expected:
        raise InputError(
            f"network `{cut(name)}` must return logits of shape {expected}, one channel per class, got {got}."
        )


def encoder_prefix(network: nn.Module) -> str:
    """The prefix of the names of the encoder's weights: `encoder.`, `backbone.` or `segformer.`.

    Raises:
        InputError: The network has no such child.
    """
    children = dict(network.named_children())
    for name in ENCODERS:
        if name in children:
            return f"{name}."
    raise InputError(
        f"the encoder of the network must be a child module named {' or '.join(ENCODERS)}, got "
        f"{', '.join(children) or 'no child modules'}. Use the regime scratch or checkpoint, and no head_multiplier."
    )


def _builder(name: str) -> Builder:
    if name in NETWORKS:
        return NETWORKS[name]
    if name.startswith("smp:"):
        return smp.builder(name.removeprefix("smp:"))
    if ":" in name and not name.startswith("transformers:"):
        return import_function(name, "network")
    raise InputError(
        f"unknown network `{cut(name)}`{did_you_mean(name, NETWORKS)}; known: {', '.join(NETWORKS)}, "
        "smp:ARCHITECTURE/ENCODER, and module:function."
    )
