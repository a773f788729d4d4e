"""Figures of the report page: SVG whose colours come from the page's style sheet, in light, dark and print.

Each function returns HTML with a text for screen readers; the same arguments give the same HTML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from autosegloss.loss.curve import Curve
from autosegloss.report.pages.elements import embedded
from autosegloss.search.statistics import Estimate

Grid = npt.NDArray[np.float64]

_SERIES: Final = 8  # colours of series, `s0` to `s7` of the style sheet; more series reuse them
_HEAT: Final = (47, 125, 196)  # the colour of surfaces, over the light or dark page
_SIDE: Final = 32  # pixels; the toy image of a surface
_SQUARE: Final = slice(10, 22)  # rows and columns of class 1 in the toy image: a seventh of the pixels
_ENDS: Final = (0.01, 0.99)  # of both axes of a surface: at 0 cross-entropy is infinite
_BANDS: Final = 12  # shades of a surface
_SMOOTH: Final = 8  # pixels per value along each side of a surface
_TICKS: Final = {0: "0", 0.5: "0.5", 1: "1"}


@dataclass(frozen=True)
class _Frame:
    """The axes of a figure: its size, the ranges of the data, and the margins in pixels."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float
    bottom: float
    top: float = 8
    right: float = 8

    def x(self, value: float) -> str:
        low, high = self.x_range
        return _number(self.left + (value - low) / (high - low) * (self.width - self.left - self.right))

    def y(self, value: float) -> str:
        low, high = self.y_range
        return _number(
            self.height - self.bottom - (value - low) / (high - low) * (self.height - self.bottom - self.top)
        )

    def path(self, points: Sequence[tuple[float, float]], closed: bool = False) -> str:
        return "M" + "L".join(f"{self.x(x)} {self.y(y)}" for x, y in points) + ("Z" if closed else "")

    def axes(self, x_ticks: Mapping[float, str], y_ticks: Mapping[float, str], x_title: str, y_title: str) -> str:
        """The axes with ticks and titles, and horizontal grid lines."""
        left, right = _number(self.left), _number(self.width - self.right)
        low, high = _number(self.height - self.bottom), _number(self.top)
        lines = [f'<path class="grid" d="M{left} {self.y(value)}H{right}"/>' for value in y_ticks]
        beside = _number(self.left - 5)
        parts = lines + [
            f'<text x="{beside}" y="{self.y(value)}" dy=".32em" text-anchor="end">{text}</text>'
            for value, text in y_ticks.items()
        ]
        under = self.height - self.bottom + 14
        parts += [
            f'<text x="{self.x(value)}" y="{_number(under)}" text-anchor="middle">{text}</text>'
            for value, text in x_ticks.items()
        ]
        parts.append(f'<path class="axis" d="M{left} {high}V{low}H{right}"/>')
        middle = _number((self.left + self.width - self.right) / 2)
        parts.append(f'<text x="{middle}" y="{_number(self.height - 3)}" text-anchor="middle">{x_title}</text>')
        if y_title:
            centre = _number((self.top + self.height - self.bottom) / 2)
            parts.append(f'<text transform="translate(11 {centre}) rotate(-90)" text-anchor="middle">{y_title}</text>')
        return "".join(parts)

    def band(self, middle: Sequence[float], spread: Sequence[float]) -> str:
        """A band around a line, one value per step, clipped to the range of y."""
        low, high = self.y_range
        upper = [(x, min(high, y + d)) for x, (y, d) in enumerate(zip(middle, spread, strict=True))]
        lower = [(x, max(low, y - d)) for x, (y, d) in enumerate(zip(middle, spread, strict=True))]
        return f'<path class="band" d="{self.path([*upper, *reversed(lower)], closed=True)}"/>'

    def svg(self, label: str, parts: Sequence[str]) -> str:
        """The figure; the label is for screen readers."""
        size = f"{_number(self.width)} {_number(self.height)}"
        return f'<svg class="plot" viewBox="0 0 {size}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def rewards(
    trials: Sequence[Sequence[float | None]],
    mean: Sequence[float],
    sd: Sequence[float],
    start: Sequence[float | None],
    lines: Mapping[str, float],
) -> str:
    """Rewards over the steps of a search.

    Args:
        trials: The rewards of each step; None for a failed trial, shown as a cross at the bottom.
        mean: The mean of each step.
        sd: The standard deviation of each step, shown as a band.
        start: The reward of the start in each step; None if it failed, which its line passes over.
        lines: Rewards to compare with, by the class of the line; each is a horizontal line.
    """
    highest = (max((value for value in step if value is not None), default=-math.inf) for step in trials)
    best = list(accumulate(highest, max))
    known = [value for step in trials for value in step if value is not None]
    begun = [(step, value) for step, value in enumerate(start) if value is not None]
    low, high = _range(
        [*known, *lines.values(), *(value for _, value in begun), *(m - s for m, s in zip(mean, sd, strict=True))]
    )
    steps = len(trials)
    frame = _Frame(420, 260, (-0.5, steps - 0.5), (low, high), left=52, bottom=34)
    parts = [frame.axes(_step_ticks(steps, 10), _ticks(low, high), "step", "reward"), frame.band(mean, sd)]
    for name, level in lines.items():
        parts.append(f'<path class="line {name}" d="{frame.path([(-0.5, level), (steps - 0.5, level)])}"/>')
    for step, values in enumerate(trials):
        for index, value in enumerate(values):
            # Spread evenly rather than at random: equal rewards stay apart, and the figure is reproducible.
            place = step + 0.5 * ((index + 0.5) / len(values) - 0.5)
            if value is None:
                x, y = frame.x(place), _number(frame.height - frame.bottom - 5)
                parts.append(f'<path class="failed" d="M{x} {y}m-3 -3l6 6m0 -6l-6 6"/>')
            else:
                parts.append(f'<circle class="dot" cx="{frame.x(place)}" cy="{frame.y(value)}" r="2.4"/>')
    stairs = [point for s, top in enumerate(best) if top > -math.inf for point in ((s - 0.5, top), (s + 0.5, top))]
    if stairs:
        parts.append(f'<path class="line best" d="{frame.path(stairs)}"/>')
    if begun:
        parts.append(f'<path class="line start" d="{frame.path(begun)}"/>')
    parts.append(f'<path class="line mean" d="{frame.path(list(enumerate(mean)))}"/>')
    label = f"Rewards of {sum(map(len, trials))} trials over {steps} steps, with the mean of each step"
    return frame.svg(label, parts)


def coordinate(
    name: str, mu: Sequence[float] | None, std: Sequence[float] | None, samples: Sequence[Sequence[float]]
) -> str:
    """One coordinate of theta over the steps of a search: the samples, and the centre and spread of the policy.

    Args:
        name: The coordinate, for screen readers.
        mu: The centre before each step; None if the algorithm has none.
        std: The spread of each step before truncation to [0, 1], shown as a band; None if it is unknown.
        samples: The values drawn in each step.
    """
    steps = len(samples)
    frame = _Frame(156, 116, (-0.5, steps - 0.5), (0, 1), left=18, bottom=30, top=7, right=4)
    parts = [frame.axes(_step_ticks(steps, 5), {0: "0", 0.5: ".5", 1: "1"}, "step", "")]
    if mu is not None and std is not None:
        parts.append(frame.band(mu, std))
    parts += [
        f'<circle class="dot" cx="{frame.x(step)}" cy="{frame.y(value)}" r="1.3"/>'
        for step, values in enumerate(samples)
        for value in values
    ]
    if mu is not None:
        parts.append(f'<path class="line mean" d="{frame.path(list(enumerate(mu)))}"/>')
        parts += [f'<circle class="centre" cx="{frame.x(s)}" cy="{frame.y(m)}" r="1.8"/>' for s, m in enumerate(mu)]
    what = "samples" if mu is None else f"centre from {mu[0]:.2f} to {mu[-1]:.2f}"
    return frame.svg(f"{name}: {what} over {steps} steps", parts)


def curve(name: str, found: Curve) -> str:
    """The curve of a slot over the identity, with its control points."""
    frame = _Frame(250, 246, (0, 1), (0, 1), left=44, bottom=36)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    points = list(zip(grid.tolist(), found(grid).tolist(), strict=True))
    parts = [
        frame.axes(_TICKS, _TICKS, "soft value", "curve"),
        f'<path class="line identity" d="{frame.path([(0, 0), (1, 1)])}"/>',
        f'<path class="line found" d="{frame.path(points)}"/>',
        *(f'<circle class="point" cx="{frame.x(u)}" cy="{frame.y(v)}" r="3"/>' for u, v in found.points),
    ]
    control_points = ", ".join(f"({u:.2f}, {v:.2f})" for u, v in found.points) or "none (identity)"
    return frame.svg(f"Curve of {name}; control points: {control_points}", parts)


def surface_values(loss: nn.Module, size: int = 21) -> Grid:
    """A loss on a toy image, over the probability of class 1 inside and outside of its true region.

    The image has 32x32 pixels and two classes; the label is class 1 in a central square of 12x12, and class 0
    elsewhere. The network predicts class 1 with probability `p_true` in every pixel of the square and with `q` in every
    other pixel. Losses of sums depend on nothing else; those of boundaries have one boundary.

    Args:
        loss: Called with logits (1, 2, 32, 32) and labels (1, 32, 32).
        size: Number of values along each axis, from 0.01 to 0.99.

    Returns:
        The loss, shape (size, size): a row for each `q`, a column for each `p_true`.
    """
    labels = toy_label()
    inside = labels[0] == 1
    axis = torch.linspace(*_ENDS, size, dtype=torch.float64)
    values = torch.empty(size, size, dtype=torch.float64)
    with torch.no_grad():
        for row, q in enumerate(axis):
            for column, p_true in enumerate(axis):
                score = torch.logit(torch.where(inside, p_true, q))
                values[row, column] = loss(torch.stack([torch.zeros_like(score), score])[None], labels)
    grid: Grid = values.numpy()
    return grid


def toy_label() -> Tensor:
    """The label of the toy image, (1, 32, 32)."""
    labels = torch.zeros(1, _SIDE, _SIDE, dtype=torch.int64)
    labels[:, _SQUARE, _SQUARE] = 1
    return labels


def surface(name: str, values: Grid) -> str:
    """A heat map of what `surface_values` returns, in bands from its lowest value to its highest; bluer is higher."""
    low, high = float(values.min()), float(values.max())
    half = (_ENDS[1] - _ENDS[0]) / (len(values) - 1) / 2  # a value stands in the centre of its pixel
    ends = _ENDS[0] - half, _ENDS[1] + half
    frame = _Frame(250, 246, ends, ends, left=44, bottom=36)
    share = Image.fromarray(np.float32((values - low) / max(high - low, 1e-12))[::-1])
    smooth = np.asarray(share.resize(2 * (_SMOOTH * len(values),), Image.Resampling.BILINEAR))
    alpha = np.uint8(225 * np.minimum(np.floor(_BANDS * smooth), _BANDS - 1) / (_BANDS - 1))
    pixels = np.dstack([*(np.full_like(alpha, channel) for channel in _HEAT), alpha])
    uri, *_ = embedded(Image.fromarray(pixels), "PNG", optimize=True)
    size = f'width="{frame.width - frame.left - frame.right}" height="{frame.height - frame.top - frame.bottom}"'
    parts = [
        f'<image href="{uri}" preserveAspectRatio="none" x="{frame.left}" y="{frame.top}" {size}/>',
        frame.axes(_TICKS, _TICKS, "p_true", "q"),
    ]
    right, worst = values[0, -1], values[-1, 0]
    return frame.svg(f"Loss surface of {name}: {right:.3g} where all is right, {worst:.3g} where all is wrong", parts)


def bars(groups: Mapping[str, Mapping[str, Estimate | None]]) -> str:
    """Shares of 1 as bars with their 95% intervals: a group per metric, a bar per loss.

    Args:
        groups: The estimates by metric and loss; None for a loss that has none.
    """
    return (
        '<div class="bars">'
        + "".join(
            f'<section class="bar-group"><h3>{escape(name)}</h3>'
            + "".join(_bar(series, value, number) for number, (series, value) in enumerate(row.items()))
            + "</section>"
            for name, row in groups.items()
        )
        + "</div>"
    )


def _bar(series: str, value: Estimate | None, number: int) -> str:
    name = f"<span>{escape(series)}</span>"
    if value is None:
        return f'<div class="bar">{name}<span class="none">every run failed</span><b>-</b></div>'
    end, *whisker_ends = (
        f"{100 * min(max(each, 0), 1):.2f}%" for each in (value.mean, value.low, value.high) if each is not None
    )
    whisker = ""
    if whisker_ends:
        low, high = whisker_ends
        whisker = f'<line class="whisker" x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        whisker += "".join(f'<line class="whisker" x1="{x}" x2="{x}" y1="20%" y2="80%"/>' for x in whisker_ends)
    rect = f'<rect class="s{number % _SERIES}" width="{end}" height="100%"/>'
    return (
        f'<div class="bar">{name}<svg aria-hidden="true" focusable="false">{rect}{whisker}</svg>'
        f"<b>{100 * value.mean:.1f}</b></div>"
    )


def _step_ticks(steps: int, most: int) -> dict[float, str]:
    return {step: str(step) for step in range(0, steps, -(-steps // most))}


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The range of some values with a margin."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05
    return low - room, high + room


def _ticks(low: float, high: float) -> dict[float, str]:
    """At most seven round numbers in a range, with their texts."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return {round(i * step, 12): f"{round(i * step, 12):.6g}" for i in range(first, last + 1)}


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
