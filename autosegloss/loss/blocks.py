"""Sums that need their maps, as of boundaries, made for a few images and classes at a time.

The maps of one class of an image are independent of all others, unless a map joins the classes. So a block of them is
made, summed and dropped, and the backward pass makes it again, with a graph: the memory in use stays in the cache, and
nothing of the size of the logits is kept but their gradient. Labels are hard, so what does not depend on `pred` is
made of truth values, a byte each; a product with a map that is 0 all over a block is not computed, nor a gradient that
the value of the metric does not ask for (of a class that is in no target, say).

What paid on a CPU: blocks, as fresh memory of the size of the logits costs more than what is computed in it; no
`where`, `masked_fill` or comparison in what has a gradient (3 to 60 times the time of an addition); extrema that keep
their input alone and make their windows again. What did not: `max_pool2d`, whose windows of 3x3 take 50 times as long
as two running minima; blocks of other sizes, of 2^15 to 2^19 probabilities, which are all within a fifth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autosegloss.loss.curve import Curve
from autosegloss.loss.relax import LogicKind, RelaxedMaps, Slot
from autosegloss.metric import expr as e
from autosegloss.metric import interpret
from autosegloss.metric.interpret import Sums, TruthMaps

_BLOCK = 2**16  # probabilities: a quarter of a megabyte a map
_BLOCK_OF_A_DEVICE = 2**25  # where starting a step costs more than its memory


def sums(
    nodes: tuple[e.Sum, ...], logits: Tensor, labels: Tensor, curves: Mapping[Slot, Curve], logic: LogicKind
) -> Sums:
    """The relaxed sums of a batch with hard labels; differentiable once by the logits.

    Args:
        nodes: The sums wanted.
        logits: Scores before the softmax, (N, C, *S) floating.
        labels: (N, *S) int64, 0..C-1, or negative where a pixel is ignored.
        curves: The curve of each slot.
        logic: As of `RelaxedMaps`.

    Returns:
        What `interpret.sums` gives with `RelaxedMaps` of the softmax.
    """
    if not nodes:
        return {}
    rows = _Rows.apply(logits, labels, _Work(nodes, curves, logic))  # type: ignore[no-untyped-call]
    return {node: interpret.reduced(node, x) for node, x in zip(nodes, rows, strict=True)}


@dataclass(frozen=True)
class _Work:
    """The sums wanted, and what their maps are made with."""

    nodes: tuple[e.Sum, ...]
    curves: Mapping[Slot, Curve]
    logic: LogicKind

    @cached_property
    def _walked(self) -> list[e.Expr]:
        return list(dict.fromkeys(part for node in self.nodes for part in node.walk()))

    @cached_property
    def joins(self) -> list[e.Expr]:
        """The maps of the target alone that join the classes, inner ones first."""
        return [part for part in self._walked if isinstance(part, e.AnyClass) and not part.soft]

    @cached_property
    def mixes(self) -> bool:
        """Whether a map of the prediction joins the classes, which are then needed together."""
        return any(isinstance(part, e.AnyClass) and part.soft for part in self._walked)

    @cached_property
    def fixed(self) -> list[e.Expr]:
        """The maps of the target alone that a map of the prediction, or a sum, is made of."""
        users = (part for part in self._walked if part.soft or isinstance(part, e.Sum))
        return list(dict.fromkeys(x for part in users for x in part.operands if x.is_map and not x.soft))


@dataclass(frozen=True)
class _Block:
    """Some images and classes of a batch."""

    work: _Work
    images: slice
    classes: slice
    truth: Mapping[e.Expr, Tensor]
    """What is `fixed` there, as truth values or counts."""
    valid: Tensor | None

    def rows(self, probability: Tensor, nodes: tuple[e.Sum, ...]) -> list[Tensor | None]:
        """Sums of each image and class from the probabilities of the block; None where a sum is 0 all over it."""
        exact: dict[e.Expr, Tensor] = dict(self.truth)
        made = {part: x.to(probability.dtype) for part, x in self.truth.items() if any(part in n.walk() for n in nodes)}
        target = self.truth.get(e.target, probability)
        maps = RelaxedMaps(probability, target, self.valid, self.work.curves, self.work.logic, hard_target=True)
        return [
            None if self._nothing(node) else interpret.pixel_sums(node, maps, made if node.soft else exact)
            for node in nodes
        ]

    def _nothing(self, node: e.Sum) -> bool:
        """Whether a factor of the sum is 0 at every pixel."""
        factors = [node.map] + ([node.within] if node.within is not None else [])
        while factors:
            factor = factors.pop()
            if isinstance(factor, e.Arithmetic | e.Logic) and factor.op in "*&":
                factors += factor.operands
            if factor in self.truth and not bool(self.truth[factor].any()):
                return True
        return False


class _Rows(torch.autograd.Function):
    """Sums of each image and class, (N, C or 1), of logits (N, C, *S) and labels (N, *S)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, work: _Work) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, labels)
        ctx.work = work
        dtype = _dtype(logits)
        rows = [
            logits.new_zeros(len(logits), logits.shape[1] if "class" in node.axes else 1, dtype=dtype)
            for node in work.nodes
        ]
        for images, blocks in _blocks(logits, labels, work):
            probability = torch.softmax(logits[images], 1, dtype=dtype)
            for block in blocks:
                for into, x in zip(rows, block.rows(probability[:, block.classes], work.nodes), strict=True):
                    if x is not None:
                        into[images, block.classes if into.shape[1] > 1 else slice(None)] = x
        return tuple(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for images, blocks in _blocks(logits, labels, ctx.work):
            probability = torch.softmax(logits[images], 1, dtype=_dtype(logits))
            slope = torch.zeros_like(probability)
            for block in blocks:
                asked = {}
                for node, rows in zip(ctx.work.nodes, slopes, strict=True):
                    some = rows[images, block.classes if rows.shape[1] > 1 else slice(None)]
                    if node.soft and bool(some.any()):
                        asked[node] = some
                with torch.enable_grad():
                    leaf = probability[:, block.classes].detach().requires_grad_()
                    given = zip(block.rows(leaf, tuple(asked)), asked.values(), strict=True)
                    pairs = [(x, some) for x, some in given if x is not None and x.requires_grad]
                if pairs:
                    outputs, weights = zip(*pairs, strict=True)
                    (slope[:, block.classes],) = torch.autograd.grad(outputs, leaf, weights)
            # Of the softmax: p (slope - sum of p slope).
            both = (slope * probability).sum(1, keepdim=True)
            gradient[images] = slope.sub_(both).mul_(probability)
        return gradient, None, None


def _dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _blocks(logits: Tensor, labels: Tensor, work: _Work) -> Iterator[tuple[slice, Iterator[_Block]]]:
    """Blocks of a few images at a time, each of a few classes."""
    images, classes = logits.shape[:2]
    pixels = max(1, labels[:1].numel())
    most = _BLOCK if logits.device.type == "cpu" else _BLOCK_OF_A_DEVICE
    together = max(1, most // (classes * pixels))
    for start in range(0, images, together):
        some = slice(start, start + together)
        yield some, _blocks_of_images(labels[some], some, classes, classes if work.mixes else most // pixels, work)


def _blocks_of_images(labels: Tensor, images: slice, classes: int, together: int, work: _Work) -> Iterator[_Block]:
    small = torch.uint8 if classes < 255 else torch.int32
    ignored = labels < 0
    truth = labels.masked_fill(ignored, classes).to(small)
    numbers = torch.arange(classes, dtype=small, device=labels.device)
    valid = None if not bool(ignored.any()) else ~ignored
    joined: dict[e.Expr, Tensor] = {}
    for join in work.joins:
        interpret.pixel_map(join, TruthMaps(truth, truth, numbers, valid), joined)
    joined = {join: joined[join] for join in work.joins}
    weights = None if valid is None else valid.unsqueeze(1).to(torch.float32)
    for part in torch.split(numbers, max(1, together)):
        start = int(part[0])
        maps, done = TruthMaps(truth, truth, part, valid), dict(joined)
        fixed = {node: interpret.pixel_map(node, maps, done) for node in work.fixed}
        yield _Block(work, images, slice(start, start + len(part)), fixed, weights)
