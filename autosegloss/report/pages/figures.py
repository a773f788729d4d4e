"""Figures of the report page: small SVG that takes its colours from the page, light, dark or printed.

Each is a text to put into HTML, with a name for screen readers; the same arguments give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from autosegloss.loss.curve import Curve
from autosegloss.report.pages.elements import embedded

Grid = npt.NDArray[np.float64]

SERIES: Final = 8
"""Colours of series, `s0` to `s7`; more series take them again."""
_HEAT: Final = (47, 125, 196)  # of the surfaces, over the page, light or dark
_SIDE: Final = 32  # pixels; of the toy image of a surface
_SQUARE: Final = slice(10, 22)  # rows and columns of class 1 in it: a seventh of the pixels
_ENDS: Final = (0.01, 0.99)  # of both axes of a surface: at 0 cross-entropy is infinite
_LEVELS: Final = 7  # contours of a surface, at most


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval; without them where there is none."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Frame:
    """Axes of a figure: the part of it that the data fill, and their range."""

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

    def axes(
        self,
        x_ticks: Mapping[float, str],
        y_ticks: Mapping[float, str],
        x_title: str,
        y_title: str,
        grid: bool = True,
    ) -> str:
        """The axes with their texts and titles, and grid lines."""
        left, right = _number(self.left), _number(self.width - self.right)
        low, high = _number(self.height - self.bottom), _number(self.top)
        lines = [f'<path class="grid" d="M{left} {self.y(value)}H{right}"/>' for value in y_ticks] if grid else []
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


def rewards(
    trials: Sequence[Sequence[float | None]],
    mean: Sequence[float],
    sd: Sequence[float],
    lines: Mapping[str, float],
) -> str:
    """Rewards over the steps of a search.

    Args:
        trials: Of each step; None is one that failed, shown as a cross at the bottom.
        mean: Of each step.
        sd: Of each step, shown as a band.
        lines: Rewards to compare with, by the class of the line; across the figure.
    """
    highest = (max((value for value in step if value is not None), default=-math.inf) for step in trials)
    best = list(accumulate(highest, max))
    known = [value for step in trials for value in step if value is not None]
    low, high = _range([*known, *lines.values(), *(m - s for m, s in zip(mean, sd, strict=True))])
    steps = len(trials)
    frame = _Frame(420, 260, (-0.5, steps - 0.5), (low, high), left=52, bottom=34)
    every = max(1, -(-steps // 10))
    parts = [frame.axes({s: str(s) for s in range(0, steps, every)}, _ticks(low, high), "step", "reward")]
    upper = [(s, min(high, m + d)) for s, (m, d) in enumerate(zip(mean, sd, strict=True))]
    lower = [(s, max(low, m - d)) for s, (m, d) in enumerate(zip(mean, sd, strict=True))]
    parts.append(f'<path class="band" d="{frame.path([*upper, *reversed(lower)], closed=True)}"/>')
    for name, level in lines.items():
        parts.append(f'<path class="line {name}" d="{frame.path([(-0.5, level), (steps - 0.5, level)])}"/>')
    for step, values in enumerate(trials):
        for index, value in enumerate(values):
            # Side by side rather than at random: equal rewards stay apart, and the figure is the same each time.
            place = step + 0.5 * ((index + 0.5) / len(values) - 0.5)
            if value is None:
                x, y = frame.x(place), _number(frame.height - frame.bottom - 5)
                parts.append(f'<path class="failed" d="M{x} {y}m-3 -3l6 6m0 -6l-6 6"/>')
            else:
                parts.append(f'<circle class="dot" cx="{frame.x(place)}" cy="{frame.y(value)}" r="2.4"/>')
    # Stairs: what was the best stays so until the step in which another is found.
    stairs = [point for s, top in enumerate(best) if top > -math.inf for point in ((s - 0.5, top), (s + 0.5, top))]
    if stairs:
        parts.append(f'<path class="line best" d="{frame.path(stairs)}"/>')
    parts.append(f'<path class="line mean" d="{frame.path(list(enumerate(mean)))}"/>')
    label = f"Rewards of {sum(map(len, trials))} trials over {steps} steps, with the mean of each step"
    return _svg(frame, label, parts)


def coordinate(
    name: str, mu: Sequence[float] | None, std: Sequence[float] | None, samples: Sequence[Sequence[float]]
) -> str:
    """One coordinate of the search over its steps: the samples, and the policy's centre and spread if it has them.

    Args:
        name: What the coordinate does, for screen readers.
        mu: Before each step.
        std: Of each step, shown as a band; before truncation to [0, 1].
        samples: Of each step.
    """
    steps = len(samples)
    frame = _Frame(156, 116, (-0.5, steps - 0.5), (0, 1), left=18, bottom=30, top=7, right=4)
    every = max(1, -(-steps // 5))
    parts = [frame.axes({s: str(s) for s in range(0, steps, every)}, {0: "0", 0.5: ".5", 1: "1"}, "step", "")]
    if mu is not None and std is not None:
        band = list(zip(mu, std, strict=True))
        upper = [(s, min(1, m + d)) for s, (m, d) in enumerate(band)]
        lower = [(s, max(0, m - d)) for s, (m, d) in enumerate(band)]
        parts.append(f'<path class="band" d="{frame.path([*upper, *reversed(lower)], closed=True)}"/>')
    parts += [
        f'<circle class="dot" cx="{frame.x(step)}" cy="{frame.y(value)}" r="1.3"/>'
        for step, values in enumerate(samples)
        for value in values
    ]
    if mu is not None:
        parts.append(f'<path class="line mean" d="{frame.path(list(enumerate(mu)))}"/>')
        parts += [f'<circle class="centre" cx="{frame.x(s)}" cy="{frame.y(m)}" r="1.8"/>' for s, m in enumerate(mu)]
    what = "samples" if mu is None else f"centre from {mu[0]:.2f} to {mu[-1]:.2f}"
    return _svg(frame, f"{name}: {what} over {steps} steps", parts)


def curve(name: str, found: Curve) -> str:
    """The curve of a slot on the identity, with its control points."""
    frame = _Frame(250, 246, (0, 1), (0, 1), left=44, bottom=36)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    ticks = {0: "0", 0.5: "0.5", 1: "1"}
    points = list(zip(grid.tolist(), found(grid).tolist(), strict=True))
    parts = [
        frame.axes(ticks, ticks, "soft value", "curve"),
        f'<path class="line identity" d="{frame.path([(0, 0), (1, 1)])}"/>',
        f'<path class="line found" d="{frame.path(points)}"/>',
        *(f'<circle class="point" cx="{frame.x(u)}" cy="{frame.y(v)}" r="3"/>' for u, v in found.points),
    ]
    said = ", ".join(f"({u:.2f}, {v:.2f})" for u, v in found.points) or "none, it is the identity"
    return _svg(frame, f"Curve of {name}; control points: {said}", parts)


def surface_values(loss: nn.Module, size: int = 21) -> Grid:
    """A loss on a toy image of two classes, over the probability of class 1 inside and outside of its label.

    The image has 32x32 pixels; the label is class 1 in a square of 12x12 in its middle, and class 0 elsewhere. The
    network gives class 1 the probability `p_true` in every pixel of the square and `q` in every other one, class 0 the
    rest. Losses of sums see all they can see of two classes in these two numbers, and those of boundaries have one.

    Args:
        loss: Called with logits (1, 2, 32, 32) and labels (1, 32, 32).
        size: Values along each axis, from 0.01 to 0.99.

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
    """The label of the toy image of a surface, (1, 32, 32)."""
    labels = torch.zeros(1, _SIDE, _SIDE, dtype=torch.int64)
    labels[:, _SQUARE, _SQUARE] = 1
    return labels


def surface(name: str, values: Grid) -> str:
    """A heat map of what `surface_values` gives, with contours; darker, and bluer, is a higher loss.

    The colours run from the lowest value of this map to its highest.
    """
    low, high = float(values.min()), float(values.max())
    size, span = len(values), _ENDS[1] - _ENDS[0]
    frame = _Frame(250, 246, (0, 1), (0, 1), left=44, bottom=36)
    alpha = np.uint8(np.round(225 * (values - low) / max(high - low, 1e-12)))
    pixels = np.dstack([*(np.full_like(alpha, channel) for channel in _HEAT), alpha])[::-1]
    uri, *_ = embedded(Image.fromarray(pixels), "PNG", optimize=True)
    # The middle of a pixel is where it was computed; what stands out at the ends is clipped.
    step = span / (size - 1)
    x, y = float(frame.x(_ENDS[0] - step / 2)), float(frame.y(_ENDS[1] + step / 2))
    width, height = float(frame.x(_ENDS[1] + step / 2)) - x, float(frame.y(_ENDS[0] - step / 2)) - y
    left, top = float(frame.x(0)), float(frame.y(1))
    inner = f'width="{_number(float(frame.x(1)) - left)}" height="{_number(float(frame.y(0)) - top)}"'
    ticks = {0: "0", 0.5: "0.5", 1: "1"}
    parts = [
        f'<svg x="{_number(left)}" y="{_number(top)}" {inner}><image href="{uri}" preserveAspectRatio="none" '
        f'x="{_number(x - left)}" y="{_number(y - top)}" width="{_number(width)}" height="{_number(height)}"/></svg>',
        frame.axes(ticks, ticks, "p_true", "q", grid=False),
    ]
    contours = _contours(values)
    parts += [f'<path class="contour" d="{frame.path(line)}"/>' for lines in contours.values() for line in lines]
    taken: list[tuple[float, float]] = []
    for level, lines in contours.items():
        place = _label_place(lines, taken)
        if place is not None:
            taken.append(place)
            at = f'x="{frame.x(place[0])}" y="{frame.y(place[1])}"'
            parts.append(f'<text class="level" {at} dy=".32em" text-anchor="middle">{level:.3g}</text>')
    right, worst = values[0, -1], values[-1, 0]
    label = f"Loss surface of {name}: {right:.3g} where all is right, {worst:.3g} where all is wrong"
    return _svg(frame, label, parts)


def bars(groups: Mapping[str, Mapping[str, Interval | None]], title: Callable[[str], str] = escape) -> str:
    """Shares of 1 as bars with whiskers: a group for each class, with a bar for each loss.

    Args:
        groups: By the name of the group and the name of the series.
        title: What heads a group, as HTML; its name by default.
    """
    return (
        '<div class="bars">'
        + "".join(
            f'<section class="bar-group"><h3>{title(name)}</h3>'
            + "".join(_bar(series, value, number) for number, (series, value) in enumerate(row.items()))
            + "</section>"
            for name, row in groups.items()
        )
        + "</div>"
    )


def _bar(series: str, value: Interval | None, number: int) -> str:
    colour, name = f"s{number % SERIES}", escape(series)
    if value is None:
        return f'<div class="bar"><span>{name}</span><span class="none">no run ended</span><b>-</b></div>'
    end = 100 * min(max(value.mean, 0), 1)
    whisker = ""
    if value.low is not None and value.high is not None:
        low, high = (f"{100 * min(max(each, 0), 1):.2f}%" for each in (value.low, value.high))
        whisker = f'<line class="whisker" x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        whisker += "".join(f'<line class="whisker" x1="{x}" x2="{x}" y1="20%" y2="80%"/>' for x in (low, high))
    picture = (
        f'<svg aria-hidden="true" focusable="false"><rect class="{colour}" width="{end:.2f}%" height="100%"/>'
        f"{whisker}</svg>"
    )
    return f'<div class="bar"><span>{name}</span>{picture}<b>{100 * value.mean:.1f}</b></div>'


def _contours(values: Grid) -> dict[float, list[list[tuple[float, float]]]]:
    """Lines of equal loss, by its value."""
    # Matplotlib's own canvas, without pyplot: no display, no global state.
    from matplotlib.figure import Figure

    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        return {}
    axis = np.linspace(*_ENDS, len(values))
    found = Figure().subplots().contour(axis, axis, values, levels=list(_ticks(low, high, _LEVELS)))
    lines = {
        float(level): [[(float(x), float(y)) for x, y in line] for line in each if len(line) > 1]
        for level, each in zip(found.levels, found.allsegs, strict=True)
    }
    return {level: each for level, each in lines.items() if each}


def _label_place(
    lines: Sequence[Sequence[tuple[float, float]]], taken: Sequence[tuple[float, float]]
) -> tuple[float, float] | None:
    """Where a contour's text is to stand: on its longest line, clear of the frame and of other texts."""
    longest = max(lines, key=lambda line: sum(math.dist(a, b) for a, b in pairwise(line)))
    for share in (0.5, 0.35, 0.65, 0.2, 0.8):
        x, y = longest[int(share * (len(longest) - 1))]
        if 0.08 < x < 0.92 and 0.04 < y < 0.96 and all(abs(x - a) > 0.15 or abs(y - b) > 0.08 for a, b in taken):
            return x, y
    return None


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A range that holds all values, with a little room."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.05
    return low - room, high + room


def _ticks(low: float, high: float, most: int = 6) -> dict[float, str]:
    """Round numbers in a range, with their texts."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return {round(i * step, 12): f"{round(i * step, 12):.6g}" for i in range(first, last + 1)}


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _svg(frame: _Frame, label: str, parts: Sequence[str]) -> str:
    size = f"{_number(frame.width)} {_number(frame.height)}"
    return f'<svg class="plot" viewBox="0 0 {size}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
