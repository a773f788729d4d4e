"""Networks: size, shapes, and the parts that a regime keeps or draws afresh."""

from __future__ import annotations

import pytest
import torch

from autosegloss.errors import InputError
from autosegloss.proxy.networks import build_network


def test_unet_small_has_about_60_thousand_parameters():
    assert 55_000 < sum(weight.numel() for weight in build_network("unet_small", 3, 6).parameters()) < 65_000


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (33, 47), (7, 1), (1, 1)])
@pytest.mark.parametrize(("in_channels", "num_classes"), [(3, 6), (1, 2)])
def test_logits_have_the_size_of_the_images(size, in_channels, num_classes):
    network = build_network("unet_small", in_channels, num_classes)
    assert network(torch.rand(2, in_channels, *size)).shape == (2, num_classes, *size)


def test_every_weight_lies_in_one_of_three_parts_and_learns():
    network = build_network("unet_small", 3, 6)
    assert [name for name, _ in network.named_children()] == ["encoder", "decoder", "head"]
    assert not list(network.parameters(recurse=False))
    network(torch.rand(2, 3, 64, 64)).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_the_decoder_sees_every_level_of_the_encoder():
    network = build_network("unet_small", 3, 6).eval()
    features = network.encoder(torch.rand(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in features] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    whole = network.decoder(features)
    for level in range(3):
        without = [torch.zeros_like(f) if i == level else f for i, f in enumerate(features)]
        assert not torch.equal(network.decoder(without), whole)


def test_the_layout_is_channels_last():
    network = build_network("unet_small", 3, 6)
    kernels = [weight for weight in network.parameters() if weight.ndim == 4]
    assert len(kernels) == 6
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_an_unknown_network_is_refused():
    with pytest.raises(InputError) as error:
        build_network("unet_smal", 3, 6)
    assert str(error.value) == "unknown network `unet_smal` (did you mean `unet_small`?); known: unet_small."
