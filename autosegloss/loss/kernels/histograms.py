"""Histograms of errors for the logic "lovasz": how many pixels have errors in each bin, and their sum.

`of` walks over the logits block by block, as `moments_cpu` does, and makes the softmax again in the backward pass.
Count and sum of a bin come from one scattered addition, of 2^26 and where in the bin the error lies: the multiple of
2^26 is the count. That costs half of two additions, and is exact to 2^-38 in an error. It is plain torch and runs on
any device; on a GPU the order of the additions, and with it the last bits, differ from run to run. `of_maps` is the
reference, which torch can trace.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from autosegloss.loss.curve import Curve
from autosegloss.loss.kernels.curves import FastCurve
from autosegloss.loss.kernels.pixels import in_threads, pixel_blocks, working_dtype

BINS: Final = {False: 4096, True: 1024}
"""Bins of the errors of a batch, and of each image, by `per_image`."""
_BLOCKS: Final = 4  # of the usual ones: a fifth less time in all than with 1
_SEVERAL: Final = 8  # blocks whose table is the same: a table costs as much as a few
_ONE: Final = 2.0**26  # the word for a pixel; more pixels than this do not fit into a bin


def of(
    logits: Tensor, labels: Tensor, curves: tuple[Curve, Curve], per_image: bool, own: bool = True, others: bool = True
) -> Tensor:
    """Counts and sums of the errors of each class, by bins; the sums are differentiable once by the logits.

    Args:
        logits: Scores before the softmax, (N, C, P) floating.
        labels: (N, P) int64, 0..C-1, or negative where a pixel is ignored.
        curves: g_and and g_or: the error of a pixel is 1 - g_and(p) on its class and g_or(p) off it.
        per_image: Whether each image has a row of its own.
        own: Whether pixels of the class are asked for; else only their number is right.
        others: Whether pixels of other classes are asked for; else they are 0.

    Returns:
        (N or 1, C, 4, bins) float64: pixels of the class, pixels of other classes, and the sums of the errors of both;
        bins of equal width from 0 to 1.
    """
    rows: Tensor = _Histograms.apply(logits, labels, curves, per_image, (own, others))  # type: ignore[no-untyped-call]
    return rows


def of_maps(pred: Tensor, target: Tensor, valid: Tensor | None, curves: tuple[Curve, Curve], per_image: bool) -> Tensor:
    """The same from maps, by plain autograd.

    Args:
        pred: Probabilities, (N, C, *S).
        target: One-hot labels, of the same shape and type.
        valid: Pixels that count, (N, 1 or C, *S), boolean; None if all do.
        curves: As for `of`.
        per_image: As for `of`.
    """
    pred, target = (x.unsqueeze(-1).flatten(2) for x in (pred, target))
    images, classes, _ = pred.shape
    bins, mine = BINS[per_image], target > 0
    errors = torch.where(mine, 1 - curves[0](pred), curves[1](pred))
    counts = torch.ones_like(errors) if valid is None else valid.unsqueeze(-1).flatten(2).to(errors).expand_as(errors)
    place = (errors.detach() * bins).long().clamp(0, bins - 1) + bins * (~mine).long()
    place = place + 2 * bins * torch.arange(classes, device=pred.device).view(-1, 1)
    rows = images if per_image else 1
    if per_image:
        place = place + 2 * bins * classes * torch.arange(images, device=pred.device).view(-1, 1, 1)
    empty = pred.new_zeros(rows * classes * 2 * bins, dtype=torch.float64)
    numbers, sums = (
        empty.scatter_add(0, place.flatten(), x.flatten().double()).view(rows, classes, 2, bins)
        for x in (counts, errors * counts)
    )
    return torch.cat([numbers, sums], 2)


def _bins(place: Tensor, bins: int) -> Tensor:
    """The bin of each error times the number of bins, int32; one that is not a number is in some bin."""
    return place.int().clamp_(0, bins - 1)


class _Histograms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        curves: tuple[Curve, Curve],
        per_image: bool,
        asked: tuple[bool, bool],
    ) -> Tensor:
        images, classes, pixels = logits.shape
        dtype, bins = working_dtype(logits), BINS[per_image]
        g_and, g_or = (_Fast(curve, logits) for curve in curves)
        label, valid = labels.clamp(min=0).unsqueeze(1), (labels >= 0).unsqueeze(1)
        counted = valid.to(dtype)
        probability = torch.empty_like(counted)  # of the label
        rows = images if per_image else 1
        found = logits.new_zeros(rows, classes, 4, bins, dtype=torch.float64)

        def packed(blocks: list[tuple[slice, slice]]) -> Tensor:
            """For some images, of pixels of other classes, the packed counts and sums, (1 or images, C, bins)."""
            here = len(logits[blocks[0][0]])
            x = logits.new_zeros((here if per_image else 1) * classes * bins, dtype=torch.float64)
            start = _starts(here, classes, bins, per_image, logits)
            for image, pixel in blocks:
                some, at = logits[image, :, pixel], label[image, :, pixel]
                if not asked[1]:
                    torch.gather(torch.log_softmax(some, 1, dtype), 1, at, out=probability[image, :, pixel])
                    continue
                p = torch.softmax(some, 1, dtype)
                probability[image, :, pixel] = p.gather(1, at)
                place = g_or.values(p.scatter_(1, at, 0).mul_(counted[image, :, pixel])).mul_(bins)
                bin = _bins(place, bins)
                words = place.sub_(bin).double().add_(_ONE)
                x.scatter_add_(0, bin.add_(start).long().flatten(), words.flatten())
            return x.view(-1, classes, bins)

        each = in_threads(packed, [(blocks,) for blocks in _together(pixel_blocks(logits, _BLOCKS), per_image)])
        if not asked[1]:
            probability.exp_()

        size = logits.new_zeros(images, classes + 1, dtype=torch.float64)
        size.scatter_add_(1, labels.where(labels >= 0, classes), torch.ones_like(labels, dtype=torch.float64))
        if asked[1] and images and pixels:
            numbers, sums = _unpacked([torch.cat(each)] if per_image else each, bins)
            ignored_or_own = size[:, :classes] + size[:, classes:]
            numbers[:, :, 0] -= ignored_or_own if per_image else ignored_or_own.sum(0, keepdim=True)
            found[:, :, 1], found[:, :, 3] = numbers, sums
        if asked[0]:
            error = 1 - g_and.values(probability)
            place = _bins(error * bins, bins).long().squeeze(1).add_(labels.where(labels >= 0, classes), alpha=bins)
            if per_image:
                place.add_(torch.arange(images, device=labels.device).unsqueeze(1), alpha=(classes + 1) * bins)
            for into, x in ((0, counted), (2, error * counted)):
                summed = logits.new_zeros(rows * (classes + 1) * bins, dtype=torch.float64)
                summed.scatter_add_(0, place.flatten(), x.flatten().double())
                found[:, :, into] = summed.view(rows, classes + 1, bins)[:, :classes]
        else:
            found[:, :, 0, 0] = size[:, :classes] if per_image else size[:, :classes].sum(0, keepdim=True)
        ctx.save_for_backward(logits, labels, probability)
        ctx.curves, ctx.per_image, ctx.asked = (g_and, g_or), per_image, asked
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_rows: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, probability = ctx.saved_tensors
        (g_and, g_or), per_image, asked = ctx.curves, ctx.per_image, ctx.asked
        images, classes, _ = logits.shape
        dtype, bins = working_dtype(logits), BINS[per_image]
        label, valid = labels.clamp(min=0), (labels >= 0).to(dtype)
        by_own, by_others = by_rows[:, :, 2].to(dtype).flatten(), by_rows[:, :, 3].to(dtype).contiguous()

        values, slopes = g_and.values_and_slopes(probability.squeeze(1))
        own_slope = torch.zeros_like(values)
        if asked[0]:
            place = _bins((1 - values) * bins, bins).long().add_(label, alpha=bins)
            if per_image:
                place.add_(torch.arange(images, device=labels.device).unsqueeze(1), alpha=classes * bins)
            own_slope = by_own[place].mul_(valid).neg_()
            own_slope = own_slope if slopes is None else own_slope.mul_(slopes)
        label, own_slope, valid = label.unsqueeze(1), own_slope.unsqueeze(1), valid.unsqueeze(1)
        gradient = torch.empty_like(logits)

        def write(image: slice, pixel: slice) -> None:
            """Where h is the derivative by the probabilities p, that by the logits is p (h - sum of p h)."""
            p = torch.softmax(logits[image, :, pixel], 1, dtype).mul_(valid[image, :, pixel])
            if asked[1]:
                start = _starts(len(p), classes, bins, per_image, logits)
                x, slope = g_or.values_and_slopes(p)
                table = by_others[image] if per_image else by_others
                h = table.flatten().index_select(0, _bins(x * bins, bins).add_(start).flatten()).view_as(p)
                h = h if slope is None else h.mul_(slope)
            else:
                h = torch.zeros_like(p)
            h.scatter_(1, label[image, :, pixel], own_slope[image, :, pixel]).mul_(p)
            torch.addcmul(h, p, h.sum(1, keepdim=True), value=-1, out=gradient[image, :, pixel])

        in_threads(write, pixel_blocks(logits, _BLOCKS))
        return gradient, None, None, None, None


class _Fast:
    """A curve in few steps; the identity in none."""

    def __init__(self, curve: Curve, like: Tensor) -> None:
        self._curve = None if curve.is_identity else FastCurve(curve, like)

    def values(self, x: Tensor) -> Tensor:
        return x if self._curve is None else self._curve.values(x)

    def values_and_slopes(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Both; None in place of slopes of 1."""
        return (x, None) if self._curve is None else self._curve.values_and_slopes(x)


def _together(blocks: list[tuple[slice, slice]], per_image: bool) -> list[list[tuple[slice, slice]]]:
    """Blocks whose sums are added up in one table, in their order: of one image, or of several small ones."""
    groups: list[list[tuple[slice, slice]]] = []
    for image, pixels in blocks:
        if groups and (groups[-1][-1][0] == image or (not per_image and len(groups[-1]) < _SEVERAL)):
            groups[-1].append((image, pixels))
        else:
            groups.append([(image, pixels)])
    return groups


def _starts(images: int, classes: int, bins: int, per_image: bool, like: Tensor) -> Tensor:
    """Where the bins of each class begin, (1 or images, C, 1)."""
    rows = images if per_image else 1
    return (torch.arange(rows * classes, device=like.device, dtype=torch.int32) * bins).view(rows, classes, 1)


def _unpacked(words: list[Tensor], bins: int) -> tuple[Tensor, Tensor]:
    """Counts and sums of errors, (rows, C, bins), of packed words that are added up."""
    counts = [(each / _ONE).floor() for each in words]
    numbers = torch.stack(counts).sum(0)
    sums = torch.stack([each - count * _ONE for each, count in zip(words, counts, strict=True)]).sum(0)
    left = torch.arange(bins, device=numbers.device, dtype=torch.float64)
    return numbers, (numbers * left + sums) / bins
