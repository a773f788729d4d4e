"""Short training runs that are a pure function of their arguments: the same seed gives the same bytes of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autosegloss.errors import InputError, TrainingDiverged
from autosegloss.proxy.batches import Draws, batch, to_input
from autosegloss.proxy.data import IGNORE_INDEX, Split
from autosegloss.proxy.networks import build_network
from autosegloss.proxy.pseudo import MeanTeacher, Unlabelled

Loss = Callable[..., Tensor]
"""From logits (N, C, H, W) and a target to a scalar. The target is int64 labels (N, H, W) where 255 is ignored, or soft
labels like the logits, then perhaps with a boolean mask (N, H, W), True where a pixel counts."""
Optimizer = Literal["sgd", "adamw"]
Regime = Literal["encoder", "scratch", "checkpoint"]
State = dict[str, Tensor]

LEARNING_RATES: dict[Optimizer, float] = {"sgd": 0.1, "adamw": 3e-3}
WEIGHT_DECAY = 1e-4


def train(
    network: nn.Module,
    split: Split,
    loss: Loss,
    *,
    seed: int,
    iterations: int = 100,
    batch_size: int = 8,
    optimizer: Optimizer = "sgd",
    learning_rate: float | None = None,
    unlabelled: Unlabelled | None = None,
) -> None:
    """Train a network in place, on the device it is on.

    The learning rate warms up over the first tenth of the iterations and falls as (1 - i / iterations) ** 0.9; images
    are flipped left to right with probability 1/2. On the CPU the result is the same to the bit whatever the number of
    threads set outside, because the run uses one.

    Args:
        network: From images (N, 3, H, W) to logits (N, C, H, W).
        split: What to train on; its soft labels if it has them.
        loss: Called with logits (N, C, H, W) and what the split's labels need, see `Loss`.
        seed: Decides the order of the images, the flips and whatever the network or the loss draws; non-negative.
        iterations: Number of steps, at least 1.
        batch_size: Images a step, at least 1.
        optimizer: "sgd" (Nesterov, momentum 0.9) or "adamw"; both with weight decay 1e-4.
        learning_rate: Its peak, or `None` for the optimizer's own: 0.1 for sgd, 0.003 for adamw.
        unlabelled: Images to learn from besides, as many a step, with the labels of a `MeanTeacher`.

    Raises:
        TrainingDiverged: The loss, or in the end a weight, is not finite.
    """
    device = next(network.parameters()).device
    rate = LEARNING_RATES[optimizer] if learning_rate is None else learning_rate
    steps = _optimizer(optimizer, network, rate)
    draws = Draws.of(np.random.default_rng(seed), len(split.images), iterations, batch_size)
    teacher = None
    if unlabelled is not None:
        teacher = MeanTeacher(network, unlabelled, seed=seed, iterations=iterations, batch_size=batch_size)
    network.train()
    with one_thread(), _seeded(seed, device):
        for iteration in range(iterations):
            for group in steps.param_groups:
                group["lr"] = rate * _schedule(iteration, iterations)
            images, *target = batch(split, draws, iteration, device)
            value = loss(network(images), *target)
            if teacher is not None:
                value = value + teacher.loss(network, loss, iteration)
            if not math.isfinite(value.item()):
                raise TrainingDiverged(
                    f"training diverged: the loss is {value.item()} at iteration {iteration} of {iterations}"
                    f" ({optimizer}, learning rate {rate:g}). Try a lower learning rate."
                )
            steps.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            steps.step()
            if teacher is not None:
                teacher.follow(network, iteration)
    for name, weight in network.state_dict().items():
        if not bool(torch.isfinite(weight).all()):
            raise TrainingDiverged(
                f"training diverged: `{name}` is not finite after iteration {iterations - 1} of {iterations}"
                f" ({optimizer}, learning rate {rate:g}). Try a lower learning rate."
            )


def predict(network: nn.Module, split: Split, batch_size: int = 64) -> NDArray[np.int64]:
    """Label every pixel with its most probable class.

    Args:
        network: From images (N, 3, H, W) to logits (N, C, H, W).
        split: Whose images to label; its labels are not read.
        batch_size: Images a forward pass; the labels do not depend on it beyond rounding.

    Returns:
        Class numbers, shape (N, H, W).
    """
    labels = [logits.argmax(dim=1).cpu() for logits in logits_of(network, split.images, batch_size)]
    result: NDArray[np.int64] = torch.cat(labels).numpy()
    return result


def logits_of(network: nn.Module, images: NDArray[np.uint8], batch_size: int = 64) -> Iterator[Tensor]:
    """The logits of images, batch by batch, (n, C, H, W) each, on the device the network is on."""
    device = next(network.parameters()).device
    network.eval()
    for start in range(0, len(images), batch_size):
        with one_thread(), torch.inference_mode():
            logits: Tensor = network(to_input(images[start : start + batch_size], device))
        yield logits


def pretrain(name: str, split: Split, num_classes: int, *, seed: int, iterations: int = 200) -> State:
    """Train a network from scratch with weighted cross-entropy, as the common start of a study's proxies.

    A class weighs the inverse square root of its share of the pixels, so that rare classes are seen and frequent ones
    are not drowned. The rest is `train`'s default.

    Args:
        name: A network that `build_network` knows.
        split: What to train on: the labelled images the proxies train on, with hard labels.
        num_classes: Number of classes.
        seed: Decides the initial weights and the run.
        iterations: Number of steps.

    Returns:
        The weights, for `initial_network`.

    Raises:
        TrainingDiverged: The loss is not finite.
    """
    counts = np.bincount(split.labels.ravel(), minlength=IGNORE_INDEX + 1)[:num_classes]
    weights = torch.tensor(1 / np.sqrt(np.maximum(counts, 1)), dtype=torch.float32)
    network = _fresh(name, split.images.shape[1], num_classes, seed)
    loss = nn.CrossEntropyLoss(weight=weights / weights.mean(), ignore_index=IGNORE_INDEX)
    train(network, split, loss, seed=seed, iterations=iterations)
    return network.state_dict()


def initial_network(
    name: str, num_classes: int, regime: Regime, pretrained: Mapping[str, Tensor] | None, *, seed: int
) -> nn.Module:
    """Build the network a proxy starts from.

    Args:
        name: A network that `build_network` knows.
        num_classes: Number of classes.
        regime: "encoder" takes the pretrained encoder and draws the rest, "scratch" draws all, "checkpoint" takes all.
        pretrained: The weights `pretrain` returned; "scratch" does not read them.
        seed: Decides whatever is drawn.

    Returns:
        The network, on the CPU.

    Raises:
        InputError: The regime needs pretrained weights and there are none.
    """
    network = _fresh(name, 3, num_classes, seed)
    if regime == "scratch":
        return network
    if pretrained is None:
        raise InputError(f"regime `{regime}` starts from pretrained weights and none were given; call pretrain first.")
    if regime == "encoder":
        pretrained = network.state_dict() | {k: v for k, v in pretrained.items() if k.startswith("encoder.")}
    network.load_state_dict(pretrained)
    return network


def _fresh(name: str, in_channels: int, num_classes: int, seed: int) -> nn.Module:
    with _seeded(seed, torch.device("cpu")):
        return build_network(name, in_channels, num_classes)


def _optimizer(optimizer: Optimizer, network: nn.Module, rate: float) -> torch.optim.Optimizer:
    if optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)


def _schedule(iteration: int, iterations: int) -> float:
    warm_up = max(1, iterations // 10)
    return float(min(1.0, (iteration + 1) / warm_up) * (1 - iteration / iterations) ** 0.9)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: results then do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
