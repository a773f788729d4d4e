"""segmentation_models_pytorch. The example is `train`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import autosegloss
from autosegloss.errors import InputError
from autosegloss.proxy.data import Split, load_dataset
from autosegloss.proxy.networks import build_network, encoder_prefix
from autosegloss.proxy.networks.weights import matching_weights, read_weights
from autosegloss.proxy.train import initial_network
from autosegloss.proxy.train import train as train_proxy
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


# Its networks by name, as a configuration has them.

NETWORKS = {
    "smp:DeepLabV3Plus/resnet50": {"auxiliary": True},
    "smp:PSPNet/resnet50": {"auxiliary": True},
    "smp:Unet/tu-hrnet_w18": {},
}


@pytest.fixture(scope="module")
def few() -> Split:
    split = load_dataset("shapes").train
    return Split(split.images[:8], split.labels[:8])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_by_name_trains_with_a_searched_loss(name: str, few: Split) -> None:
    loss = autosegloss.load_loss(LOSS_FILE)
    network = initial_network(name, CLASSES, "scratch", None, seed=0, options=NETWORKS[name])
    seen: list[float] = []

    def watched(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(loss(logits, target).item())
        return loss(logits, target)

    settings = {"iterations": 10, "batch_size": 8, "optimizer": "adamw", "learning_rate": 5e-4, "head_multiplier": 2.0}
    train_proxy(network, few, watched, seed=0, **settings)
    of_logits = seen[:: 2 if NETWORKS[name] else 1]  # the auxiliary ones come in turn
    assert len(of_logits) == 10
    assert len(seen) == (20 if NETWORKS[name] else 10)
    assert of_logits[-1] < of_logits[0] - 0.02
    with torch.no_grad():
        for height, width in ((64, 64), (50, 37)):
            assert network.eval()(torch.rand(1, 3, height, width)).shape == (1, CLASSES, height, width)


@pytest.mark.parametrize("name", ["smp:DeepLabV3Plus/resnet50", "smp:Unet/tu-hrnet_w18"])
def test_the_encoder_comes_from_the_librarys_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = build_network(name, 3, 21, **NETWORKS[name])
    alone = {key.removeprefix("model."): weight for key, weight in theirs.encoder.state_dict().items()}
    network = build_network(name, 3, CLASSES, **NETWORKS[name])
    prefix = encoder_prefix(network)
    for content in (alone | {"fc.weight": torch.zeros(1000, 4)}, theirs.state_dict()):
        torch.save(content, tmp_path / "weights.pth")
        found = matching_weights(read_weights(tmp_path / "weights.pth"), network, prefix, "weights.pth")
        network.load_state_dict(network.state_dict() | found)
        for key, weight in network.encoder.named_parameters():
            assert torch.equal(weight, theirs.encoder.get_parameter(key)), key


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smp:DeepLabV4/resnet50", {}, "segmentation_models_pytorch has no `DeepLabV4` (did you mean `DeepLabV3`?)"),
        ("smp:Unet/resnet51", {}, "segmentation_models_pytorch has no encoder `resnet51` (did you mean `resnet"),
        ("smp:Unet/resnet18", {"depth": 3}, "network `smp:Unet/resnet18`: unknown option `depth`"),
        ("smp:Unet/resnet18", {"encoder_weights": "imagenet"}, "unknown option `encoder_weights`"),  # no downloads
    ],
)
def test_what_the_library_has_not_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        build_network(name, 3, CLASSES, **options)
    assert message in str(error.value)
