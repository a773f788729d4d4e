"""The moments of `fuse` on a GPU: a pair of Triton kernels. Only `fuse` imports this module, and only for such logits.

A program holds all classes of a block of pixels in registers. Forward reads the logits once and writes one row of sums
a program, which torch adds up: no atomics, so the same logits give the same bytes. Backward reads the logits once more,
makes the softmax again and writes the gradient once. Nothing else of the logits' size is made or saved.

The floor is memory: three times the bytes of the logits, where cross-entropy moves at least five (log-softmax reads and
writes, its backward reads twice and writes) and saves one. But a curve costs dozens of instructions an element, which
in half precision are likely to be the bound. The speed is not measured on a GPU yet.
"""

# The kernels' decorator has no types.
# mypy: disallow-untyped-decorators=False
from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor
from torch.autograd.function import once_differentiable

from autosegloss.loss.curve import _TINY, IDENTITY
from autosegloss.loss.kernels.atoms import Atom, Atoms

_COEFFICIENTS = tl.constexpr(6)  # of a piece
_LEAST = tl.constexpr(_TINY)
_LOG2_E = tl.constexpr(math.log2(math.e))
_PER_THREAD = 32  # logits that a thread holds: with more the registers run out


def moments(logits: Tensor, labels: Tensor, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    """See `fuse.moments`.

    The logits are float32, bfloat16 or float16, of any strides, on a GPU (in Triton's interpreter anywhere); the
    arithmetic is float32.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Moments.apply(logits, labels.contiguous(), atoms)  # type: ignore[no-untyped-call]
    return found


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, labels: Tensor, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
        images, classes, pixels = logits.shape
        insides, outsides = len(atoms.inside), len(atoms.outside)
        blocks = triton.cdiv(pixels, _block(classes)[1])
        partial = logits.new_empty((images, blocks, insides + outsides + 1, classes), dtype=torch.float32)
        _launch(_sum, logits, labels, atoms, partial)
        sums = partial.sum(1).mT
        return sums[..., :insides], sums[..., insides:-1], sums[..., -1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Atoms], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.atoms = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, inside: Tensor, outside: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        by_sums = inside.contiguous(), outside.contiguous()
        _launch(_differentiate, logits, labels, ctx.atoms, *by_sums, gradient, *gradient.stride())
        return gradient, None, None


def _block(classes: int) -> tuple[int, int]:
    """The classes, filled up, and the pixels of a program: 4096 logits, but whole sectors of memory."""
    block_c = triton.next_power_of_2(classes)
    return block_c, min(max(4096 // block_c, 16), 1024)


def _launch(kernel: Any, logits: Tensor, labels: Tensor, atoms: Atoms, *others: Tensor | int) -> None:
    images, classes, pixels = logits.shape
    block_c, block_p = _block(classes)
    inside, outside = (_table(each, logits.device) for each in (atoms.inside, atoms.outside))
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        kernel[(images * triton.cdiv(pixels, block_p),)](
            logits,
            *logits.stride(),
            labels,
            classes,
            pixels,
            inside,
            outside,
            *others,
            **dict(zip(("insides", "inside_links", "inside_pieces"), inside.shape, strict=False)),
            **dict(zip(("outsides", "outside_links", "outside_pieces"), outside.shape, strict=False)),
            block_c=block_c,
            block_p=block_p,
            num_warps=min(max(block_c * block_p // (32 * _PER_THREAD), 4), 32),
            enable_fp_fusion=True,
        )


@lru_cache(maxsize=256)  # a loss wants the same at every step: it is copied to the device once
def _table(atoms: tuple[Atom, ...], device: torch.device) -> Tensor:
    """The pieces of the curves of all atoms: (atoms, links, pieces, 6) float32.

    A row is (start, 1 / width, middle, level, linear, square). All atoms are computed alike: the shorter chains begin
    with identities, and a curve of fewer pieces repeats its last.
    """
    links = max(map(len, atoms), default=0)
    chains = [(IDENTITY,) * (links - len(atom)) + atom for atom in atoms]
    pieces = max((len(curve.pieces) for chain in chains for curve in chain), default=1)
    rows = [
        (piece.start, 1 / piece.width, *piece[2:])
        for chain in chains
        for curve in chain
        for piece in curve.pieces + curve.pieces[-1:] * (pieces - len(curve.pieces))
    ]
    table = torch.tensor(rows, dtype=torch.float32, device=device)
    return table.reshape(len(atoms), links, pieces, _COEFFICIENTS.value)


@triton.jit
def _sum(
    logits: tl.tensor,
    image_stride: tl.tensor,
    class_stride: tl.tensor,
    pixel_stride: tl.tensor,
    labels: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    inside_table: tl.tensor,
    outside_table: tl.tensor,
    partial: tl.tensor,
    insides: tl.constexpr,
    inside_links: tl.constexpr,
    inside_pieces: tl.constexpr,
    outsides: tl.constexpr,
    outside_links: tl.constexpr,
    outside_pieces: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    """Write the sums of a block of pixels: a row (inside atoms, outside atoms, pixels) x classes a program."""
    _, c, _, label, p, p_label = _softmax(
        logits, image_stride, class_stride, pixel_stride, labels, classes, pixels, block_c, block_p
    )
    is_label = c[:, None] == label[None, :]
    row = partial + tl.program_id(0).to(tl.int64) * (insides + outsides + 1) * classes + c
    for j in tl.static_range(insides):
        y, _ = _atom(p_label, inside_table, j, inside_links, inside_pieces)
        tl.store(row + j * classes, tl.sum(tl.where(is_label, y[None, :], 0.0), 1), c < classes)
    is_other = (label[None, :] >= 0) & (c[:, None] != label[None, :])
    for j in tl.static_range(outsides):
        y, _ = _atom(p, outside_table, j, outside_links, outside_pieces)
        tl.store(row + (insides + j) * classes, tl.sum(tl.where(is_other, y, 0.0), 1), c < classes)
    tl.store(row + (insides + outsides) * classes, tl.sum(is_label.to(tl.int32), 1), c < classes)


@triton.jit
def _differentiate(
    logits: tl.tensor,
    image_stride: tl.tensor,
    class_stride: tl.tensor,
    pixel_stride: tl.tensor,
    labels: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    inside_table: tl.tensor,
    outside_table: tl.tensor,
    inside_gradient: tl.tensor,
    outside_gradient: tl.tensor,
    gradient: tl.tensor,
    gradient_image_stride: tl.tensor,
    gradient_class_stride: tl.tensor,
    gradient_pixel_stride: tl.tensor,
    insides: tl.constexpr,
    inside_links: tl.constexpr,
    inside_pieces: tl.constexpr,
    outsides: tl.constexpr,
    outside_links: tl.constexpr,
    outside_pieces: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> None:
    """Write the gradient by the logits of a block of pixels, from those by the sums of its image, (N, C, atoms)."""
    image, c, pixel, label, p, p_label = _softmax(
        logits, image_stride, class_stride, pixel_stride, labels, classes, pixels, block_c, block_p
    )
    counted = label >= 0
    by_p_label = tl.zeros([block_p], tl.float32)
    for j in tl.static_range(insides):
        _, slope = _atom(p_label, inside_table, j, inside_links, inside_pieces)
        weight = tl.load(inside_gradient + (image * classes + label) * insides + j, counted, 0.0)
        by_p_label += weight * slope
    by_p = tl.zeros([block_c, block_p], tl.float32)
    for j in tl.static_range(outsides):
        _, slope = _atom(p, outside_table, j, outside_links, outside_pieces)
        weight = tl.load(outside_gradient + (image * classes + c) * outsides + j, c < classes, 0.0)
        by_p += weight[:, None] * slope
    by_p = tl.where(c[:, None] == label[None, :], by_p_label[None, :], by_p)
    by_logit = p * (by_p - tl.sum(p * by_p, 0)[None, :])
    tl.store(
        gradient
        + image * gradient_image_stride
        + (c.to(tl.int64) * gradient_class_stride)[:, None]
        + (pixel * gradient_pixel_stride)[None, :],
        tl.where(counted[None, :], by_logit, 0.0).to(gradient.dtype.element_ty),
        (c < classes)[:, None] & (pixel < pixels)[None, :],
    )


@triton.jit
def _softmax(
    logits: tl.tensor,
    image_stride: tl.tensor,
    class_stride: tl.tensor,
    pixel_stride: tl.tensor,
    labels: tl.tensor,
    classes: tl.tensor,
    pixels: tl.tensor,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """This program's image, classes, pixels, their labels and probabilities (block_c, block_p), and those of the label.

    A pixel beyond the image is labelled -1, as an ignored one; what its probabilities are is of no account.
    """
    blocks = tl.cdiv(pixels, block_p)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.arange(0, block_c)
    pixel = (tl.program_id(0) % blocks).to(tl.int64) * block_p + tl.arange(0, block_p)
    label = tl.load(labels + image * pixels + pixel, pixel < pixels, -1).to(tl.int32)
    start = logits + image * image_stride + pixel * pixel_stride
    known = (c < classes)[:, None] & (pixel < pixels)[None, :]
    absent = tl.where(c < classes, 0.0, float("-inf"))
    score = tl.load(start[None, :] + (c.to(tl.int64) * class_stride)[:, None], known, absent[:, None]).to(tl.float32)
    top = tl.max(score, 0)
    p = tl.exp2((score - top[None, :]) * _LOG2_E)
    share = tl.div_rn(tl.full([block_p], 1.0, tl.float32), tl.sum(p, 0))  # exactly 1 for 1
    # The label's own logit lies in the cache by now: reading it costs less than finding it among the classes.
    own = tl.load(start + label.to(tl.int64) * class_stride, label >= 0, 0.0).to(tl.float32)
    return image, c, pixel, label, p * share[None, :], tl.exp2((own - top) * _LOG2_E) * share


@triton.jit
def _atom(
    x: tl.tensor, tables: tl.tensor, atom: tl.constexpr, links: tl.constexpr, pieces: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Value and slope of a chain of curves; the compiler leaves out what is not used of them."""
    y = x
    slope = tl.full(x.shape, 1.0, tl.float32)
    for link in tl.static_range(links):
        y, steepness = _curve(y, tables + (atom * links + link) * pieces * _COEFFICIENTS, pieces)
        slope *= steepness
    return y, slope


@triton.jit
def _curve(x: tl.tensor, table: tl.tensor, pieces: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Value and slope of a curve at x in [0, 1], as in `curve._Evaluation`; a NaN stays one."""
    start = tl.load(table)
    scale = tl.load(table + 1)
    middle = tl.load(table + 2)
    level = tl.load(table + 3)
    linear = tl.load(table + 4)
    square = tl.load(table + 5)
    for piece in tl.static_range(1, pieces):
        row = table + piece * _COEFFICIENTS
        beyond = x > tl.load(row)
        start = tl.where(beyond, tl.load(row), start)
        scale = tl.where(beyond, tl.load(row + 1), scale)
        middle = tl.where(beyond, tl.load(row + 2), middle)
        level = tl.where(beyond, tl.load(row + 3), level)
        linear = tl.where(beyond, tl.load(row + 4), linear)
        square = tl.where(beyond, tl.load(row + 5), square)
    t = tl.abs(x - start) * scale  # beside a jump t may be below 0 or above 1, where any level between is right
    radicand = tl.maximum(middle * middle * (1 - t) + (1 - middle) * (1 - middle) * t, _LEAST)
    # Reciprocal square roots are single instructions, a root and a division are many.
    inverse = tl.rsqrt(radicand)
    half = tl.rsqrt(middle + radicand * inverse)
    s = t * half * half
    y = level + s * (linear + square * s)
    slope = (linear + 2 * square * s) * scale * (0.5 * inverse)
    return tl.where(x <= 0, 0.0, tl.where(x >= 1, 1.0, y)), tl.where((x <= 0) | (x >= 1), 0.0, slope)
