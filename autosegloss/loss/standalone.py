"""The functions that an exported loss is made of; `autosegloss.loss.python` copies the text of those that it calls.

Each stands for itself: it uses torch, other functions of this file and `IGNORE_INDEX`, and nothing else. What they
compute is what `SurrogateLoss` does by its reference path, in short.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

IGNORE_INDEX = 255


# Curves and logic -----------------------------------------------------------------------------------------------------


def _bezier(x: Tensor, pieces: list[tuple[tuple[float, float], ...]]) -> Tensor:
    """A curve of quadratic Bezier pieces that never falls, exactly 0 at 0 and 1 at 1 (Auto Seg-Loss, section 4.2)."""
    with torch.no_grad():
        y = slope = x
        for i, ((x0, y0), (x1, y1), (x2, y2)) in enumerate(pieces):
            # Solve x = x0 + width (2 middle s (1 - s) + s^2) for s; this form of the root has no cancellation.
            width, middle = x2 - x0, (x1 - x0) / (x2 - x0)
            t = ((x - x0) / width).clamp(0, 1)
            root = ((1 - t) * middle**2 + t * (1 - middle) ** 2).clamp(min=1e-12).sqrt()
            s = t / (root + middle)
            bend = s * (y0 - 2 * y1 + y2)
            chord = bend + 2 * (y1 - y0)
            here = x > (x0 if i else -torch.inf)
            y = torch.where(here, (chord * s + y0).clamp(0, 1), y)
            slope = torch.where(here, (chord + bend) / (2 * width * root), slope)
        y = torch.where(x <= 0, 0.0, torch.where(x >= 1, 1.0, y))
        slope = torch.where((x <= 0) | (x >= 1), 0.0, slope)
    return y + slope * (x - x.detach())  # the value y with this slope


def _polyline(x: Tensor, pieces: list[tuple[tuple[float, float], ...]]) -> Tensor:
    """A curve of straight pieces that never falls, exactly 0 at 0 and 1 at 1."""
    with torch.no_grad():
        y = slope = x
        for i, ((x0, y0), (x1, y1)) in enumerate(pieces):
            t = ((x - x0) / (x1 - x0)).clamp(0, 1)
            here = x > (x0 if i else -torch.inf)
            y = torch.where(here, (t * (y1 - y0) + y0).clamp(0, 1), y)
            slope = torch.where(here, (y1 - y0) / (x1 - x0), slope)
        y = torch.where(x <= 0, 0.0, torch.where(x >= 1, 1.0, y))
        slope = torch.where((x <= 0) | (x >= 1), 0.0, slope)
    return y + slope * (x - x.detach())  # the value y with this slope


def _log_curve(x: Tensor, e: float, height: float, mirrored: bool = False) -> Tensor:
    """log(1 + x / e) / height, height = log(1 + 1 / e), or its mirror image; exactly 0 at 0 and 1 at 1."""
    with torch.no_grad():
        distance = (1 - x if mirrored else x) + e
        y = (x / (distance if mirrored else e)).log1p() / height
        slope = 1 / (distance * height)
        y = torch.where(x <= 0, 0.0, torch.where(x >= 1, 1.0, y.clamp(0, 1)))
        slope = torch.where((x <= 0) | (x >= 1), 0.0, slope)
    return y + slope * (x - x.detach())  # the value y with this slope


def _soft_or(a: Tensor, b: Tensor) -> Tensor:
    """The OR whose AND is the product."""
    return a + b - a * b


# Maps -----------------------------------------------------------------------------------------------------------------


def _erode(x: Tensor, radius: int) -> Tensor:
    """Minimum over the (2 radius + 1)-wide square around each pixel, inside the image."""
    return -_dilate(-x, radius)


def _erode_with_border(x: Tensor, radius: int) -> Tensor:
    """Minimum over the (2 radius + 1)-wide square around each pixel; what lies outside the image is 0."""
    for axis in range(2, x.ndim):
        length = x.shape[axis]
        reach = min(radius, length) if length > 1 else 0  # an axis of length 1 has no border
        outside = [torch.zeros_like(x.narrow(axis, 0, 1))] * reach if reach else []
        x = -_window_maximum(-torch.cat([*outside, x, *outside], axis), axis, 2 * reach + 1)
    return x


def _dilate(x: Tensor, radius: int) -> Tensor:
    """Maximum over the (2 radius + 1)-wide square around each pixel, inside the image."""
    for axis in range(2, x.ndim):
        x = _dilate_axis(x, axis, radius)
    return x


def _dilate_disk(x: Tensor, squared_radius: int, axis: int = 2) -> Tensor:
    """Maximum over the pixels within a Euclidean distance in the axes from `axis` on, inside the image."""
    reach = int(squared_radius**0.5)
    if axis == x.ndim - 1:
        return _dilate_axis(x, axis, reach)
    result, length = _dilate_disk(x, squared_radius, axis + 1), x.shape[axis]
    for offset in range(1, min(reach, length - 1) + 1):
        part = _dilate_disk(x, squared_radius - offset**2, axis + 1)
        part = _repeat_edges(part, axis, offset)
        result = torch.maximum(result, part.narrow(axis, 0, length))
        result = torch.maximum(result, part.narrow(axis, 2 * offset, length))
    return result


def _dilate_axis(x: Tensor, axis: int, radius: int) -> Tensor:
    """Maximum over the pixels within a distance along one axis, inside the image."""
    reach = max(0, min(radius, x.shape[axis] - 1))
    return _window_maximum(_repeat_edges(x, axis, reach), axis, 2 * reach + 1)


def _repeat_edges(x: Tensor, axis: int, times: int) -> Tensor:
    """The maps, wider at both ends of an axis; the edge again adds nothing to a maximum that sees the edge."""
    if times == 0:
        return x
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, -1, 1)
    return torch.cat([first] * times + [x] + [last] * times, axis)


def _window_maximum(x: Tensor, axis: int, width: int) -> Tensor:
    """Maximum over each window of `width` pixels along an axis, from windows that double their width."""
    done = 1
    while done < width:
        step = min(done, width - done)
        size = x.shape[axis] - step
        x = torch.maximum(x.narrow(axis, 0, size), x.narrow(axis, step, size))
        done += step
    return x


def _pixels(share: float, x: Tensor) -> int:
    """A share of the image's diagonal in pixels, at least 1; an axis of length 1 is none of the image's."""
    diagonal: float = sum(side * side for side in x.shape[2:] if side > 1) ** 0.5
    return max(1, round(share * diagonal))


def _any_foreground(x: Tensor) -> Tensor:
    """Maximum over the classes but class 0, (N, C, *S) -> (N, 1, *S)."""
    return x[:, 1:].amax(1, keepdim=True) if x.shape[1] > 1 else torch.zeros_like(x)


# Sums and means -------------------------------------------------------------------------------------------------------


def _total(x: Tensor) -> Tensor:
    """Sum over the pixels of all images, (N, C, *S) -> (C,)."""
    return x.unsqueeze(-1).flatten(2).sum((0, 2))


def _per_image(x: Tensor) -> Tensor:
    """Sum over the pixels of each image, (N, C, *S) -> (N, C)."""
    return x.unsqueeze(-1).flatten(2).sum(2)


def _class_mean(x: Tensor, where: Tensor) -> Tensor:
    """Mean over the classes with where > 0, the last axis; 0 if there is none."""
    counted = ~(where <= 0)  # NaN counts: it must be seen
    return torch.where(counted, x, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)


def _weighted_class_mean(x: Tensor, where: Tensor, weights: list[float]) -> Tensor:
    """Weighted mean over the classes with where > 0, the last axis; 0 if there is none."""
    if len(weights) != x.shape[-1]:
        raise ValueError(f"the metric has weights for {len(weights)} classes, but the logits have {x.shape[-1]}")
    share = x.new_tensor(weights)
    counted = ~(where <= 0) & (share > 0)  # NaN counts: it must be seen
    weight = (counted * share).sum(-1)
    return (torch.where(counted, x, 0.0) * share).sum(-1) / torch.where(weight > 0, weight, 1.0)


def _mean_of_classes(x: Tensor, where: Tensor, weights: dict[int, float]) -> Tensor:
    """Weighted mean over some classes with where > 0, of the last axis; 0 if there is none."""
    if max(weights) >= x.shape[-1]:
        raise ValueError(f"the metric is of class {max(weights)}, but the logits have {x.shape[-1]} classes")
    return _weighted_class_mean(x, where, [weights.get(number, 0.0) for number in range(x.shape[-1])])


def _image_mean(x: Tensor, where: Tensor) -> Tensor:
    """Mean over the images with where > 0, the first axis; 0 if there is none."""
    counted = ~(where <= 0)  # NaN counts: it must be seen
    return torch.where(counted, x, 0.0).sum(0) / counted.sum(0).clamp(min=1)


def _image_worst(x: Tensor, where: Tensor, fraction: float) -> Tensor:
    """Mean of the lowest max(1, floor(fraction * n)) of the n images with where > 0; 0 if there is none."""
    counted = (~(where <= 0)).expand_as(x)  # NaN counts: it must be seen
    number = counted.sum(0)
    kept = torch.floor(fraction * number.double() + 1e-9).long().clamp(min=1).minimum(number)
    lowest = torch.where(counted, x, torch.inf).sort(0).values
    rank = torch.arange(len(x), device=x.device).view(-1, *[1] * (x.ndim - 1))
    mean = torch.where(rank < kept, lowest, 0.0).sum(0) / kept.clamp(min=1)
    return torch.where((counted & x.isnan()).any(0), torch.nan, mean)


def _extension(
    score: Callable[[Tensor, Tensor, Tensor], Tensor], errors: Tensor, target: Tensor, valid: Tensor
) -> Tensor:
    """`_lovasz` of the batch, (N, C, *S) -> (C,)."""
    maps = (errors, target, valid.expand_as(target))
    return _lovasz(score, *(x.unsqueeze(-1).flatten(2).movedim(1, 0).flatten(1) for x in maps))


def _image_extension(
    score: Callable[[Tensor, Tensor, Tensor], Tensor], errors: Tensor, target: Tensor, valid: Tensor
) -> Tensor:
    """`_lovasz` of each image, (N, C, *S) -> (N, C)."""
    return _lovasz(score, *(x.unsqueeze(-1).flatten(2) for x in (errors, target, valid.expand_as(target))))


def _lovasz(score: Callable[[Tensor, Tensor, Tensor], Tensor], errors: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The score at no error less the Lovász extension of its fall with errors, over the last axis.

    `score` is a function of the intersection, the union and the size of the target (Berman et al., CVPR 2018).
    """
    errors, order = torch.where(valid > 0, errors, -1.0).sort(-1, descending=True)  # what does not count comes last
    mine, counted = target.gather(-1, order) > 0, errors >= 0
    own, others = (mine & counted).cumsum(-1), (~mine & counted).cumsum(-1)
    size = (mine & counted).sum(-1, keepdim=True).double()
    scores = score(size - own, size + others, size)
    best = score(size, size, size)
    fall = torch.cat([best, scores], -1)[..., :-1] - scores
    return (best.squeeze(-1) - (errors.clamp(min=0) * fall).sum(-1)).to(errors.dtype)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the pixels that count; 0 if there is none."""
    summed = torch.where(target > 0, -target * logits.log_softmax(1), 0.0).sum()
    return _divide(summed, target.sum())


def _divide(a: Tensor | float, b: Tensor) -> Tensor:
    """The quotient, and 0 with a zero gradient where b is 0."""
    none = b.abs() < 1e-12
    return torch.where(none, 0.0, a / torch.where(none, 1.0, b))


# Labels ---------------------------------------------------------------------------------------------------------------


def _class_maps(logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Maps of the target, (N, C, *S), 0 where a pixel does not count; and where one counts, (N, 1, *S) boolean."""
    if not target.is_floating_point():
        return _label_maps(logits, target, mask)
    _check_channels(logits)
    if target.shape != logits.shape:
        raise ValueError(
            f"soft labels have shape {tuple(target.shape)}; must be that of the logits, {tuple(logits.shape)}"
        )
    valid = torch.ones_like(logits[:, :1]) if mask is None else _one_channel(mask, logits, "mask")
    valid = valid.bool()
    target = target.to(logits.dtype).masked_fill(~valid, 0)
    if not torch.compiler.is_compiling():
        sums = target.detach().sum(1, keepdim=True)
        if bool((valid & ~((sums - 1).abs() <= 0.02)).any()) or bool((target < 0).any()):
            raise ValueError(
                "soft labels are shares of the classes, at least 0, which sum to 1 at each pixel; labels that overlap "
                "need a sigmoid for each class, and pixels of no class a channel for the background, or a mask"
            )
    return target, valid


def _label_maps(logits: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """One-hot maps of integer labels, (N, C, *S), 0 where a pixel does not count; and where one counts, (N, 1, *S)."""
    _check_channels(logits)
    if IGNORE_INDEX == 255 and logits.shape[1] > 255:
        raise ValueError("IGNORE_INDEX is 255, which is a class of these logits; set it to another value, such as -100")
    labels = _one_channel(labels, logits, "target").long()
    valid = labels != IGNORE_INDEX
    if mask is not None:
        valid = valid & _one_channel(mask, logits, "mask").bool()
    unknown = valid & ((labels < 0) | (labels >= logits.shape[1]))
    if not torch.compiler.is_compiling() and bool(unknown.any()):
        raise ValueError(f"target has labels that are neither 0 to {logits.shape[1] - 1} nor {IGNORE_INDEX}")
    classes = torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.ndim - 2))
    return ((labels == classes) & valid).to(logits.dtype), valid


def _check_channels(logits: Tensor) -> None:
    if logits.shape[1] < 2:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; a softmax needs two channels or more: for one logit x of a "
            "binary network, pass torch.cat([torch.zeros_like(x), x], 1)"
        )


def _one_channel(x: Tensor, logits: Tensor, name: str) -> Tensor:
    """A map of the pixels as (N, 1, *S)."""
    x = x if x.ndim == logits.ndim else x.unsqueeze(1)
    if x.shape != logits[:, :1].shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; must be (N, *S) or (N, 1, *S) of logits {tuple(logits.shape)}"
        )
    return x
