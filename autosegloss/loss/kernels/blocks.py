"""Sums that need their maps, as of boundaries, made for a few images and classes at a time.

The maps of one class of an image are independent of all others, unless a map joins the classes. So a block of them is
made and summed while it is in the cache. What the backward pass needs of it is kept: of each operator the two
derivatives by its operands, which a curve gives with its value for a few steps more, and not the dozens of maps that
plain autograd keeps. Labels are hard, so what does not depend on `pred` is made of truth values, a byte each; a product
with a map that is 0 all over a block is not computed, nor a gradient that the value of the metric does not ask for (of
a class that is in no target, say).

What paid on a CPU: the derivatives with the values, though the maps that are kept take twice the memory of
cross-entropy; truth values as bytes and never as booleans, which torch converts 15 times and looks through 40 times
more slowly, made for all classes at once (`bits`); no `where`, `masked_fill` or comparison in what has a gradient.
What did not: `max_pool2d`, whose windows of 3x3 take 50 times as long as two running minima; blocks of other sizes, of
2^15 to 2^19 probabilities, which are all within a fifth; gradients of extrema by their few non-zero pixels, which take
longer to find than the windows to make again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autosegloss.loss.curve import Curve
from autosegloss.loss.kernels.bits import BitMaps
from autosegloss.loss.kernels.curves import FastCurve
from autosegloss.loss.relax import PixelLogic, RelaxedMaps, Slot
from autosegloss.metric import expr as e
from autosegloss.metric import interpret
from autosegloss.metric.interpret import Sums

_BLOCK = 2**16  # probabilities: a quarter of a megabyte a map
_BLOCK_OF_A_DEVICE = 2**25  # where starting a step costs more than its memory


def sums(
    nodes: tuple[e.Sum, ...], logits: Tensor, labels: Tensor, curves: Mapping[Slot, Curve], logic: PixelLogic
) -> Sums:
    """The relaxed sums of a batch with hard labels; differentiable once by the logits.

    Args:
        nodes: The sums to compute.
        logits: Scores before the softmax, (N, C, *S) floating.
        labels: (N, *S) int64, 0..C-1, or negative where a pixel is ignored.
        curves: The curve of each slot.
        logic: As of `RelaxedMaps`.

    Returns:
        What `interpret.sums` gives with `RelaxedMaps` of the softmax.
    """
    if not nodes:
        return {}
    work = _Work(nodes, curves, logic, logits[:0].detach())
    rows = _Rows.apply(logits, labels, work, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return {node: interpret.reduced(node, x) for node, x in zip(nodes, rows, strict=True)}


@dataclass(frozen=True)
class _Work:
    """The sums to compute, and what their maps are made with."""

    nodes: tuple[e.Sum, ...]
    curves: Mapping[Slot, Curve]
    logic: PixelLogic
    like: Tensor
    """On the device of the maps, and in float64 if they are."""

    @cached_property
    def fast_curves(self) -> Mapping[Slot, FastCurve]:
        """The curves that are not the identity."""
        return {slot: FastCurve(curve, self.like) for slot, curve in self.curves.items() if not curve.is_identity}

    @cached_property
    def _walked(self) -> list[e.Expr]:
        return list(dict.fromkeys(part for node in self.nodes for part in node.walk()))

    @cached_property
    def mixes(self) -> bool:
        """Whether a map of the prediction joins the classes, which are then needed together."""
        return any(isinstance(part, e.AnyClass) and part.soft for part in self._walked)

    @cached_property
    def fixed(self) -> list[e.Expr]:
        """The truth maps of the target alone that other maps, or a sum, are made of."""
        users = (x for x in self._walked if x.soft or not x.truth)
        return list(dict.fromkeys(x for user in users for x in user.operands if x.truth and not x.soft))


@dataclass(frozen=True)
class _Block:
    """Some images and classes of a batch."""

    work: _Work
    images: slice
    classes: slice
    truth: Mapping[e.Expr, Tensor]
    """What is `fixed` there."""
    valid: Tensor | None

    def rows(self, probability: Tensor) -> list[Tensor | None]:
        """Sums of each image and class from the probabilities of the block; None where a sum is 0 all over it."""
        exact: dict[e.Expr, Tensor] = dict(self.truth)
        made = {part: x.view(torch.uint8) for part, x in self.truth.items()}  # which a product takes as they are
        maps = _FastMaps(probability, self.truth.get(e.target, probability), self.valid, self.work)
        return [
            None if self._is_zero(node) else interpret.pixel_sums(node, maps, made if node.soft else exact)
            for node in self.work.nodes
        ]

    def _is_zero(self, node: e.Sum) -> bool:
        """Whether a factor of the sum is 0 at every pixel."""
        factors = [node.map] + ([node.within] if node.within is not None else [])
        while factors:
            factor = factors.pop()
            if isinstance(factor, e.Arithmetic | e.Logic) and factor.op in "*&":
                factors += factor.operands
            if factor in self.truth and not bool(self.truth[factor].view(torch.uint8).any()):
                return True
        return False


class _FastMaps(RelaxedMaps):
    """Relaxed maps whose operators keep two derivatives for the backward pass, and nothing else."""

    def __init__(self, pred: Tensor, target: Tensor, valid: Tensor | None, work: _Work) -> None:
        super().__init__(pred, target, valid, work.curves, work.logic, hard_target=True)
        self._fast_curves = work.fast_curves

    def logic(self, node: e.Logic, left: Tensor, right: Tensor) -> Tensor:
        ands, ors = ([self._fast_curves.get(Slot(name, i, node)) for i in (0, 1)] for name in ("and", "or"))
        x: Tensor = _Operator.apply(left, right, node.op, self._logic, ands, ors)  # type: ignore[no-untyped-call]
        return x


class _Operator(torch.autograd.Function):
    """AND, OR or XOR of two maps under curves."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, op: e.LogicOp, logic: PixelLogic, ands: _Pair, ors: _Pair
    ) -> Tensor:
        dtype = torch.promote_types(left.dtype, right.dtype)
        left, right = left.to(dtype), right.to(dtype)
        if op == "&":
            x, *slopes = _under(ands, left, right, _and[logic])
        elif op == "|":
            x, *slopes = _under(ors, left, right, _or[logic])
        else:
            both, *falls = _under(ands, left, right, _and[logic])
            x, *slopes = _under(ors, left, right, _or[logic])
            x = (x - both).relu_()  # as in RelaxedMaps
            above = x.sign()
            slopes = [(rise - fall).mul_(above) for rise, fall in zip(slopes, falls, strict=True)]
        ctx.save_for_backward(
            *(slope if needed else None for slope, needed in zip(slopes, ctx.needs_input_grad[:2], strict=True))
        )
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right = (None if slope is None else slope * gradient for slope in ctx.saved_tensors)
        return left, right, None, None, None, None


_Pair = Sequence[FastCurve | None]
"""The curves of both operands; None leaves one as it is."""
_Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From two maps a third, and its derivatives by both."""


def _under(curves: _Pair, left: Tensor, right: Tensor, rule: _Rule) -> tuple[Tensor, Tensor, Tensor]:
    (a, by_left), (b, by_right) = (
        (x, None) if curve is None else curve.values_and_slopes(x)
        for curve, x in zip(curves, (left, right), strict=True)
    )
    x, by_a, by_b = rule(a, b)
    return x, by_a if by_left is None else by_a * by_left, by_b if by_right is None else by_b * by_right


def _product_or(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    not_a = 1 - a
    return torch.addcmul(a, not_a, b), 1 - b, not_a


def _godel_and(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    lean = (a - b).sign().mul_(0.5)
    return torch.minimum(a, b), 0.5 - lean, 0.5 + lean


def _godel_or(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    lean = (a - b).sign().mul_(0.5)
    return torch.maximum(a, b), 0.5 + lean, 0.5 - lean


_and: Mapping[PixelLogic, _Rule] = {"product": lambda a, b: (a * b, b, a), "godel": _godel_and}
_or: Mapping[PixelLogic, _Rule] = {"product": _product_or, "godel": _godel_or}


class _Rows(torch.autograd.Function):
    """Sums of each image and class, (N, C or 1), of logits (N, C, *S) and labels (N, *S)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, work: _Work, graph: bool) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits)
        ctx.work, ctx.parts = work, []
        asked = graph and ctx.needs_input_grad[0]  # the latter says nothing of `no_grad`, nor of inference
        dtype = _dtype(logits)
        rows = [
            logits.new_zeros(len(logits), logits.shape[1] if "class" in node.axes else 1, dtype=dtype)
            for node in work.nodes
        ]
        for images, blocks in _blocks(logits, labels, work):
            probability = torch.softmax(logits[images].contiguous(), 1, dtype=dtype)  # maps of whole rows
            made = []
            for block in blocks:
                with torch.set_grad_enabled(asked):
                    leaf = probability[:, block.classes].detach().requires_grad_(asked)
                    found = block.rows(leaf)
                for into, x in zip(rows, found, strict=True):
                    if x is not None:
                        into[images, block.classes if into.shape[1] > 1 else slice(None)] = x.detach()
                made.append((block.classes, leaf, found))
            if asked:
                ctx.parts.append((images, probability, made))
        return tuple(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        (logits,) = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for images, probability, made in ctx.parts:
            slope = torch.zeros_like(probability)
            for classes, leaf, found in made:
                asked = [rows[images, classes if rows.shape[1] > 1 else slice(None)] for rows in slopes]
                pairs = [
                    (x, by)
                    for x, by in zip(found, asked, strict=True)
                    if x is not None and x.requires_grad and by.any()
                ]
                if pairs:
                    outputs, weights = zip(*pairs, strict=True)
                    # Kept as long as the loss is: backward may be asked for again.
                    (slope[:, classes],) = torch.autograd.grad(outputs, leaf, weights, retain_graph=True)
            # Of the softmax: p (slope - sum of p slope).
            both = (slope * probability).sum(1, keepdim=True)
            gradient[images] = slope.sub_(both).mul_(probability)
        return gradient, None, None, None


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
    ignored = labels < 0
    valid = None if not bool(ignored.any()) else (~ignored).unsqueeze(1).view(torch.uint8)
    truth = BitMaps(labels, classes)
    for start in range(0, classes, max(1, together)):
        some = slice(start, start + max(1, together))
        fixed = {node: truth.classes(node, some) for node in work.fixed}
        yield _Block(work, images, some, fixed, valid)
