"""Networks: size, shapes, and the parts that a regime keeps or draws afresh."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from autosegloss.errors import ConfigError, InputError
from autosegloss.loss import SurrogateLoss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.proxy.data import Dataset, Split, load_dataset
from autosegloss.proxy.networks import build_network, encoder_prefix
from autosegloss.proxy.networks.weights import matching_weights, read_weights
from autosegloss.proxy.train import initial_network, pretrain, train
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import as_config

# A backbone whose deepest map is 1/8 of the image, so that the tests' images have pixels left there.
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"}
LIBRARY: dict[str, dict[str, Any]] = {
    "transformers:segformer": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
    "transformers:upernet": {"hidden_size": 16, "auxiliary_channels": 8, "backbone_config": RESNET},
}


class Own(nn.Module):
    """A user's: an encoder of one layer, and an auxiliary head if that is asked for."""

    def __init__(self, in_channels: int, num_classes: int, width: int = 4, auxiliary: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(in_channels, width, 3, padding=1)
        self.head = nn.Conv2d(width, num_classes, 1)
        self.second = nn.Conv2d(width, num_classes, 1) if auxiliary else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return self.head(features) if self.second is None else (self.head(features), self.second(features))


def broken(in_channels: int, num_classes: int, **options: Any) -> nn.Module:
    raise KeyError("no such width")


def no_network(in_channels: int, num_classes: int) -> Any:
    return [in_channels, num_classes]


OWN = f"{__name__}:Own"


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return load_dataset("shapes")


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


# Those of a library


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize(("in_channels", "size"), [(3, (64, 64)), (1, (47, 65))])
def test_a_librarys_network_has_logits_of_the_images_size_and_learns_everywhere(name, in_channels, size):
    network = build_network(name, in_channels, 5, **LIBRARY[name])
    images = torch.rand(2, in_channels, *size)
    assert network.eval()(images).shape == (2, 5, *size)
    output = network.train()(images)
    logits = output if isinstance(output, tuple) else (output,)
    assert [each.shape for each in logits] == [(2, 5, *size)] * (2 if name.endswith("upernet") else 1)
    sum(each.square().sum() for each in logits).backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("name", LIBRARY)
def test_a_librarys_network_is_the_librarys_with_larger_logits(name):
    import transformers

    kind = name.removeprefix("transformers:")
    config, model = {
        "segformer": (transformers.SegformerConfig, transformers.SegformerForSemanticSegmentation),
        "upernet": (transformers.UperNetConfig, transformers.UperNetForSemanticSegmentation),
    }[kind]
    options = copy.deepcopy(LIBRARY[name])
    if kind == "upernet":
        stages = [f"stage{stage}" for stage in range(1, 5)]
        options["backbone_config"] = transformers.ResNetConfig(**RESNET, out_features=stages)
    theirs = model(config(num_labels=5, **options)).eval()
    network = build_network(name, 3, 5, **LIBRARY[name]).eval()
    network.load_state_dict(theirs.state_dict())  # the same names
    images = torch.rand(2, 3, 64, 64)
    expected = nn.functional.interpolate(theirs(images).logits, size=(64, 64), mode="bilinear")
    torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize(
    ("name", "encoder"), [("transformers:segformer", "segformer."), ("transformers:upernet", "backbone.")]
)
@pytest.mark.slow
def test_a_librarys_network_trains_with_a_searched_loss_in_every_regime(shapes, name, encoder):
    split = shapes.train
    options, loss = LIBRARY[name], SurrogateLoss.from_theta("miou", [0.2, 0.7, 0.3, 0.4, 0.5, 0.5] * 2)
    pretrained = pretrain(name, split, 6, seed=0, iterations=2, options=options)
    for regime in ("encoder", "scratch", "checkpoint"):
        network = initial_network(name, 6, regime, pretrained, seed=1, options=options)
        kept = {
            key for key, weight in network.state_dict().items() if weight.ndim > 1 and weight.equal(pretrained[key])
        }
        matrices = {key for key, weight in pretrained.items() if weight.ndim > 1}
        assert kept == {
            key for key in matrices if regime == "checkpoint" or (regime == "encoder" and key.startswith(encoder))
        }
        train(network, split, loss, seed=1, iterations=2, batch_size=2, optimizer="adamw", learning_rate=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "unet_smal",
            {},
            "unknown network `unet_smal` (did you mean `unet_small`?); known: unet_small, transformers:segformer, "
            "transformers:upernet, smp:ARCHITECTURE/ENCODER, and module:function.",
        ),
        ("unet_small", {"width": 3}, "network `unet_small`: unknown option `width`; allowed: none."),
        (
            "transformers:segformer",
            {"depth": [1]},
            "network `transformers:segformer`: unknown option `depth` (did you mean `depths`?); allowed: ",
        ),
        (
            "transformers:upernet",
            {"auxiliary_loss_weight": 0.1},  # the weight of another loss than that of the training
            "network `transformers:upernet`: unknown option `auxiliary_loss_weight`",
        ),
        (
            "transformers:upernet",
            {"backbone_config": {"model_type": "resnett"}},
            "network `transformers:upernet`: unknown backbone model_type `resnett`.",
        ),
        (
            "transformers:upernet",
            {"backbone_config": {"widths": [1]}},
            "network `transformers:upernet`, backbone `resnet`: unknown option `widths`",
        ),
        (
            "transformers:segformer",
            {"depths": "x"},
            "network `transformers:segformer` can't be built with depths='x': ",
        ),
        ("nowhere:build", {}, "network `nowhere:build`: no module named `nowhere` "),
        (f"{__name__}:nothing", {}, f"network `{__name__}:nothing`: {__name__} has no `nothing`."),
        (f"{__name__}:LIBRARY", {}, f"network `{__name__}:LIBRARY` must be a function, got {type(LIBRARY).__name__}."),
        (f"{__name__}:no_network", {}, f"network `{__name__}:no_network` must be a torch.nn.Module, got list."),
        (
            f"{__name__}:broken",
            {"width": 3},
            f"network `{__name__}:broken` can't be built with width=3: tests/proxy/test_networks.py:54: Key",
        ),
        (OWN, {"stages": 3}, f"network `{OWN}`: unknown option `stages`; allowed: width, auxiliary."),
    ],
)
def test_a_network_that_is_not_to_be_had_is_refused(name, options, message):
    with pytest.raises(InputError) as error:
        build_network(name, 3, 6, **options)
    assert str(error.value).startswith(message)


# One's own


@pytest.mark.slow
def test_a_network_of_ones_own_takes_options_through_the_configuration(shapes):
    config = {"metric": "miou", "proxy": {"network": {"name": OWN, "width": 7}, "train": {"iterations": 2}}}
    proxy = proxy_of(as_config(config), shapes).prepare()
    assert proxy.trained(CrossEntropy(), seed=0).head.in_channels == 7
    assert 0 <= proxy(CROSS_ENTROPY, seed=0).reward <= 1


def test_a_network_without_an_encoder_trains_from_scratch_only(shapes):
    network = {"name": "torch.nn:Conv2d", "kernel_size": 1}
    scratch = {
        "metric": "miou",
        "proxy": {"network": network, "start": {"regime": "scratch"}, "train": {"iterations": 1}},
    }
    proxy = proxy_of(as_config(scratch), shapes).prepare()
    proxy.trained(CrossEntropy(), seed=0)
    with pytest.raises(InputError, match="named encoder or backbone or segformer, got no child modules"):
        proxy_of(as_config({"metric": "miou", "proxy": {"network": network}}), shapes)


def images_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 3, (4, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("weight", [0.0, 0.4, 2.0])
def test_auxiliary_logits_take_the_loss_with_their_weight(weight):
    """One step of plain gradient descent, by hand."""
    images, labels = images_and_labels()
    torch.manual_seed(0)
    network = Own(3, 3, auxiliary=True)
    by_hand, loss = copy.deepcopy(network), SurrogateLoss("miou", curve="identity")
    train(
        network,
        Split(images.numpy(), labels.numpy()),
        loss,
        seed=0,
        iterations=1,
        batch_size=4,
        auxiliary_weight=weight,
    )
    assert network(images.float())[0].shape == (4, 3, 8, 8)
    # The order of the images does not matter to a batch of all of them, but flips do: try each.
    found = []
    for flips in np.ndindex(2, 2, 2, 2):
        flip = torch.tensor(flips, dtype=torch.bool)
        shown, target = (torch.where(flip.view(-1, *[1] * (m.ndim - 1)), m.flip(-1), m) for m in (images, labels))
        tried = copy.deepcopy(by_hand)
        logits, second = tried(shown / 127.5 - 1)
        (loss(logits, target.long()) + weight * loss(second, target.long())).backward()
        with torch.no_grad():
            for parameter in tried.parameters():
                gradient = parameter.grad + 1e-4 * parameter
                parameter -= 0.1 * (gradient + 0.9 * gradient)  # Nesterov's first step
        found.append(
            all(torch.allclose(a, b, atol=1e-6) for a, b in zip(network.parameters(), tried.parameters(), strict=True))
        )
    assert any(found)


def test_the_head_learns_at_a_multiple_of_the_encoders_rate():
    images, labels = images_and_labels()
    moved = []
    for multiplier in (1.0, 10.0):
        torch.manual_seed(0)
        network = Own(3, 3)
        start = copy.deepcopy(network.state_dict())
        split = Split(images.numpy(), labels.numpy())
        loss = nn.CrossEntropyLoss(ignore_index=255)
        train(network, split, loss, seed=0, iterations=1, batch_size=4, learning_rate=1e-3, head_multiplier=multiplier)
        moved.append({name: weight - start[name] for name, weight in network.state_dict().items()})
    for name, step in moved[0].items():
        expected = step * (10 if name.startswith("head.") else 1)
        torch.testing.assert_close(moved[1][name], expected, rtol=1e-2, atol=1e-6)
    with pytest.raises(InputError, match="the encoder of the network must be a child module"):
        train(nn.Conv2d(3, 3, 1), split, loss, seed=0, iterations=1, head_multiplier=2.0)


def test_a_batch_that_is_too_small_for_the_network_is_refused():
    class Pooled(Own):
        def forward(self, images: Tensor) -> Tensor:
            features = nn.functional.adaptive_avg_pool2d(self.backbone(images), 1)
            return self.head(nn.functional.batch_norm(features, None, None, training=True)).expand(-1, -1, 8, 8)

    images, labels = images_and_labels()
    split, loss = Split(images.numpy(), labels.numpy()), nn.CrossEntropyLoss()
    train(Pooled(3, 3), split, loss, seed=0, iterations=1, batch_size=2)
    with pytest.raises(InputError) as error:
        train(Pooled(3, 3), split, loss, seed=0, iterations=1, batch_size=1)
    assert str(error.value).startswith(
        "the network normalises over the batch, and 1 image(s) of 8x8 are too few for that: Expected more than 1 value"
    )
    assert str(error.value).endswith("Increase train.batch_size.")


# Weights from files


def save(state: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: weight.contiguous() for name, weight in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_proxy_starts_from_a_file_in_place_of_the_pretraining(shapes, tmp_path, ending):
    torch.manual_seed(1)
    state = build_network("unet_small", 3, 21).state_dict()  # of another data set
    path = save(state, tmp_path / f"weights.{ending}")
    config = {"metric": "miou", "proxy": {"start": {"weights": str(path)}}}
    proxy = proxy_of(as_config(config), shapes).prepare()
    network = proxy.training(CrossEntropy(), seed=0).network
    fresh = initial_network("unet_small", 6, "scratch", None, seed=0)
    for name, weight in network.state_dict().items():
        kept = state if name.startswith("encoder.") else fresh.state_dict()
        assert torch.equal(weight, kept[name]), name
    config["proxy"]["start"]["regime"] = "checkpoint"
    with pytest.raises(InputError) as error:
        proxy_of(as_config(config), shapes)
    assert str(error.value) == (
        f"{path}: `head.weight` must have the shape of the network, (6, 16, 1, 1), got (21, 16, 1, 1). "
        "For other classes, use the regime encoder."
    )
    state = build_network("unet_small", 3, 6).state_dict()
    save(state, path)
    proxy = proxy_of(as_config(config), shapes).prepare()
    network = proxy.training(CrossEntropy(), seed=0).network
    assert all(torch.equal(weight, state[name]) for name, weight in network.state_dict().items())


def test_the_encoder_alone_and_with_a_classifier_under_its_own_names_and_wrapped(tmp_path):
    network = build_network("unet_small", 3, 6)
    prefix = encoder_prefix(network)
    alone = {
        name: torch.rand_like(weight)
        for name, weight in network.encoder.state_dict().items()
        if weight.is_floating_point()
    }
    expected = {prefix + name: weight for name, weight in alone.items()}
    for wrapped in (
        alone | {"fc.weight": torch.rand(1000, 64)},
        {"state_dict": alone, "epoch": 3},
        {"model": expected},
    ):
        found = matching_weights(read_weights(save(wrapped, tmp_path / "weights.pt")), network, prefix, "weights.pt")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    # An encoder within an encoder, as smp holds those of timm.
    network.encoder = nn.Sequential()
    network.encoder.add_module("model", build_network("unet_small", 3, 6).encoder)
    found = matching_weights(read_weights(save(alone, tmp_path / "weights.pt")), network, prefix, "weights.pt")
    assert found.keys() == {f"encoder.model.{name}" for name in alone}


def test_weights_that_do_not_fit_are_refused_by_name():
    network = build_network("unet_small", 3, 6)
    state = {name: weight for name, weight in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert matching_weights(state, network, "", "file").keys() == state.keys()
    short = {name: weight for name, weight in state.items() if "levels.2" not in name}
    with pytest.raises(InputError) as error:
        matching_weights(short, network, "encoder.", "file")
    assert str(error.value) == (
        "file: 5 of the 15 weights of the network's encoder are missing, e.g. `encoder.levels.2.0.weight`; "
        "the file holds e.g. `encoder.levels.0.0.weight`."
    )
    with pytest.raises(InputError, match="15 of the 15 weights of the network's encoder are missing"):
        matching_weights({}, network, "encoder.", "file")
    state["encoder.levels.0.0.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(InputError) as error:
        matching_weights(state, network, "encoder.", "file")
    assert str(error.value) == (
        "file: `encoder.levels.0.0.weight` must have the shape of the network's encoder, (16, 3, 3, 3), got "
        "(8, 3, 3, 3)."
    )


class Payload:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(1), "code": Payload()}, "not a weights file: Weights only load failed"),
        ([torch.zeros(1)], "must hold a mapping from names to tensors, as torch.save("),
        ({"weight": 3}, "must hold a mapping from names to tensors, as torch.save("),
        (None, "can't be read: No such file or directory."),
    ],
)
def test_what_is_no_file_of_weights_is_refused_and_nothing_is_run(tmp_path, capsys, content, message):
    path = tmp_path / "weights.pt"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(InputError) as error:
        read_weights(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert capsys.readouterr().out == ""


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    path = save(build_network("unet_small", 3, 6).state_dict(), tmp_path / "weights.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"weights\.safetensors: not a weights file: "):
        read_weights(path)


def test_weights_that_nothing_would_read_are_refused():
    with pytest.raises(ConfigError, match="regime `scratch` does not use `weights`; use `encoder` or `checkpoint`"):
        as_config({"metric": "miou", "proxy": {"start": {"regime": "scratch", "weights": "file.pt"}}})
