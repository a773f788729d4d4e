"""A filter before training: free logits of a few images descend a loss, no network between, and the metric is read.

Reference: Li et al., AutoLoss-Zero (arXiv 2103.14026), the loss-rejection protocol.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from autosegloss.metric import Accumulator
from autosegloss.proxy.optimizers import eager
from autosegloss.proxy.train import Loss, one_thread

IMAGES, STEPS = 4, 4
"""Training images, and steps of descent: what told most of a reward where it was measured (results/algorithms)."""


def descent(
    loss: Loss,
    logits: Tensor,
    labels: Tensor,
    exact: Accumulator,
    *,
    steps: int = STEPS,
    optimizer: Literal["sgd", "adam"] = "sgd",
) -> list[float]:
    """The exact metric of a few images before, and after every step of, the descent of their logits.

    Args:
        loss: Called with logits (N, C, H, W) and labels.
        logits: Where the descent starts, (N, C, H, W); left as they are.
        labels: int64 labels (N, H, W).
        exact: Computes the metric; it is reset.
        steps: Steps of descent.
        optimizer: "sgd" (momentum 0.9, learning rate 0.3 on the loss times the number of pixels), which feels how the
            loss weighs pixels, or "adam" (learning rate 0.03), which goes by signs.

    Returns:
        `steps` + 1 values.
    """
    free = logits.clone().requires_grad_()
    rule: torch.optim.Optimizer = (
        eager(torch.optim.SGD)([free], lr=0.3 * labels.numel(), momentum=0.9)
        if optimizer == "sgd"
        else eager(torch.optim.Adam)([free], lr=0.03)
    )

    def value() -> float:
        exact.reset()
        exact.update(free.detach(), labels)
        return exact.compute()

    values = [value()]
    with one_thread():
        for _ in range(steps):
            rule.zero_grad()
            loss(free, labels).backward()  # type: ignore[no-untyped-call]
            rule.step()
            values.append(value())
    return values
