"""Learning from unlabelled images, which the moving average of the network labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autosegloss.proxy.batches import BatchPlan, to_input


@dataclass(frozen=True)
class Unlabelled:
    """Unlabelled images, and how the network learns from its teacher on them.

    Args:
        images: Colours, uint8 of shape (N, 3, H, W).
        weight: Weight of their loss, beside 1 for the labelled images; it rises from 0 over the first half of a run.
        threshold: Pixels count where the teacher's highest probability is at least this.
        momentum: Decay of the moving average per iteration.
    """

    images: NDArray[np.uint8]
    weight: float
    threshold: float
    momentum: float


class MeanTeacher:
    """The exponential moving average of a network, which labels unlabelled images during training.

    The teacher sees the original images; half of the images of the network are flipped, with their labels, so that the
    network becomes consistent under flips. The teacher normalises with running statistics, averaged like weights.

    Args:
        network: The network that is about to be trained.
        unlabelled: The unlabelled images.
        seed: Decides the order of the images and the flips.
        iterations: Iterations of the run.
        batch_size: Unlabelled images per iteration.

    Reference: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017; masked by confidence as in
    Sohn et al., FixMatch, NeurIPS 2020, here with soft labels.
    """

    def __init__(
        self, network: nn.Module, unlabelled: Unlabelled, *, seed: int, iterations: int, batch_size: int
    ) -> None:
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        """The teacher."""
        self._unlabelled = unlabelled
        self._iterations = iterations
        # A separate generator: the labelled batches are those of a run without unlabelled images.
        self._plan = BatchPlan.draw(np.random.default_rng((seed, 1)), len(unlabelled.images), iterations, batch_size)

    def loss(self, network: nn.Module, loss: Callable[..., Tensor], iteration: int) -> Tensor:
        """The weighted loss of an iteration's unlabelled images, a scalar.

        Args:
            network: The network in training.
            loss: From logits (N, C, H, W), soft labels like them and a boolean mask (N, H, W) to a scalar.
            iteration: From 0.
        """
        own = self._unlabelled
        device = next(network.parameters()).device
        images = to_input(own.images[self._plan.order[iteration]], device)
        flip = torch.from_numpy(self._plan.flips[iteration]).to(device)[:, None, None, None]
        with torch.no_grad():
            soft = self.average(images).softmax(1)
            images, soft = (torch.where(flip, maps.flip(-1), maps) for maps in (images, soft))
        ramp = min(1.0, 2 * iteration / self._iterations)
        return own.weight * ramp * loss(network(images), soft, soft.amax(1) >= own.threshold)

    @torch.no_grad()
    def follow(self, network: nn.Module, iteration: int) -> None:
        """Update the average after a step of the network: average = m average + (1 - m) network.

        m is min(1 - 1 / (iteration + 1), momentum): at first the mean of the networks so far, so that the initial
        weights are forgotten quickly.
        """
        momentum = min(1 - 1 / (iteration + 1), self._unlabelled.momentum)
        for mine, theirs in zip(self.average.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.mul_(momentum).add_(theirs, alpha=1 - momentum)
            else:
                mine.copy_(theirs)  # a counter
