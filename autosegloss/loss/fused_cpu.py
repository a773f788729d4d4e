"""The moments of `fuse` on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from autosegloss.loss.fuse import Moments


def moments(logits: Tensor, labels: Tensor, wanted: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """See `fuse.moments`; plain so far."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    p = logits.to(dtype).softmax(1)
    valid = labels >= 0
    own = (labels.unsqueeze(1) == torch.arange(p.shape[1], device=p.device).view(-1, 1)).to(dtype)
    other = valid.unsqueeze(1).to(dtype) - own
    found = []
    for atoms, weight in ((wanted.inside, own), (wanted.outside, other)):
        columns = []
        for atom in atoms:
            x = p
            for curve in atom:
                x = curve(x)
            columns.append((x * weight).sum(2))
        found.append(torch.stack(columns, 2) if columns else p.new_zeros(*p.shape[:2], 0))
    return found[0], found[1], own.sum(2)
