"""The formula of a loss, its curves as text, and a picture of them with the scores of its search."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from autosegloss.errors import InputError, cut
from autosegloss.loss import Loss, MixedLoss, Slot, SurrogateLoss
from autosegloss.loss.classic import CrossEntropy, PixelLoss
from autosegloss.loss.curve import Curve
from autosegloss.metric.expr import Arithmetic
from autosegloss.report.tables import LOSSES, same_metrics
from autosegloss.search.statistics import Score

_BLUE, _GREY, _ORANGE = "#1f5fa8", "#8a8a8a", "#c8621b"
_LABEL = 40  # characters of a metric beside its bars
_FORMATS = (".png", ".svg", ".pdf")


def formula(loss: Loss) -> str:
    """A loss in one line."""
    if isinstance(loss, MixedLoss):
        return " + ".join(
            formula(part) if weight == 1 else f"{weight:.4g} * {_factor(part)}"
            for weight, part in zip(loss.weights, loss.parts, strict=True)
            if weight
        )
    if isinstance(loss, PixelLoss):
        defaults = inspect.signature(type(loss)).parameters
        chosen = {option: value for option, value in loss.options.items() if value != defaults[option].default}
        return (
            f"{loss.name}({', '.join(f'{option}={value}' for option, value in chosen.items())})"
            if chosen
            else loss.name
        )
    if isinstance(loss, SurrogateLoss):
        is_sum = isinstance(loss.expr, Arithmetic) and loss.expr.op in ("+", "-")
        text = f"1 - ({loss.expr})" if is_sum else f"1 - {loss.expr}"
        return text if loss.scale == 1 else f"{loss.scale:.4g} * ({text})"
    return str(loss)


def _factor(loss: Loss) -> str:
    """A part of a sum, beside its weight."""
    if loss.content() == CrossEntropy().content():
        return "cross-entropy"
    return formula(loss) if isinstance(loss, PixelLoss) else f"({formula(loss)})"


def surrogates(loss: Loss) -> tuple[SurrogateLoss, ...]:
    """The surrogates in a loss."""
    parts = loss.parts if isinstance(loss, MixedLoss) else (loss,)
    return tuple(part for part in parts if isinstance(part, SurrogateLoss))


def curves_of(loss: Loss) -> list[tuple[Slot, Curve]]:
    """The slots of a loss with their curves; the same slot with the same curve in two surrogates once."""
    return list(dict.fromkeys(pair for surrogate in surrogates(loss) for pair in surrogate.curves.items()))


def text_plot(curve: Curve, width: int = 41, height: int = 13) -> str:
    """A curve in characters, `*` over the identity `.`; both axes run from 0 to 1."""
    x = torch.linspace(0, 1, width, dtype=torch.float64)
    cells = [[" "] * width for _ in range(height)]
    for mark, y in ((".", x), ("*", curve(x))):
        for column, value in enumerate(y.tolist()):
            cells[height - 1 - round(value * (height - 1))][column] = mark
    rows = [
        f"{'1' if i == 0 else '0' if i == height - 1 else ' '} |{''.join(row).rstrip()}" for i, row in enumerate(cells)
    ]
    return "\n".join([*rows, f"  +{'-' * width}", f"   0{' ' * (width - 2)}1"])


def plot_loss(loss: Loss, path: str | os.PathLike[str]) -> None:
    """Draw the curves of a loss, and the scores in its provenance if a search of the proxy found it.

    Args:
        loss: A surrogate, or a sum with one.
        path: The picture to write; its extension sets the format (.png, .svg, .pdf).

    Raises:
        InputError: The format is unknown or the file can't be written.
    """
    # Without pyplot: no display, no global state.
    from matplotlib.figure import Figure

    file = Path(path)
    if file.suffix.lower() not in _FORMATS:
        raise InputError(f"{file}: can't draw a `{file.suffix}` file; allowed: {', '.join(_FORMATS)}.")
    scores, curves = _validation(loss), curves_of(loss)
    ratios = [1.0] * len(curves) + ([1.5] if scores else [])
    height = max(3.4, 1 + 0.23 * len(same_metrics(list(scores["found"])))) if scores else 3.4  # inches
    figure = Figure(figsize=(3.1 * len(curves) + (5.0 if scores else 0), height), layout="constrained")
    axes = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    grid = torch.linspace(0, 1, 501, dtype=torch.float64)
    for axis, (slot, curve) in zip(axes, curves, strict=False):
        axis.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--", label="identity")
        axis.plot(grid, curve(grid), color=_BLUE, linewidth=2, label="curve")
        points = zip(*curve.points, strict=True) if curve.points else ([], [])
        axis.plot(*points, "o", color=_ORANGE, markersize=4, label="control points")
        name = str(slot)
        axis.set_title(name if len(name) <= 34 else name[:33] + "…", fontsize=9)
        axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), aspect="equal")
    # Below the axes: inside, a curve may run anywhere.
    axes[0].legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)
    if scores:
        _draw_scores(axes[-1], scores)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    try:
        figure.savefig(file, dpi=130)
    except OSError as error:
        raise InputError(f"{file}: can't be written: {error.strerror}.") from None


def _draw_scores(axis: Any, scores: Mapping[str, Mapping[str, Score]]) -> None:
    groups = same_metrics(list(scores["found"]))
    height = 0.8 / len(scores)
    for i, ((name, row_of), colour) in enumerate(zip(scores.items(), (_GREY, _ORANGE, _BLUE), strict=True)):
        places = [j + (i - (len(scores) - 1) / 2) * height for j in range(len(groups))]
        row, title = [row_of[names[0]] for names in groups], LOSSES[name]
        means, sds = [100 * score.mean for score in row], [100 * score.sd for score in row]
        error = {"linewidth": 0.8}
        axis.barh(places, means, height=height * 0.9, xerr=sds, color=colour, error_kw=error, label=title)
    names = [cut(" = ".join(names), _LABEL) for names in groups]
    axis.set_yticks(range(len(groups)), names, fontsize=8, parse_math=False)  # a class may be called $x$
    axis.invert_yaxis()
    axis.set_xlabel("validation score, %, mean and sd over seeds", fontsize=8)
    axis.set_title("before and after the search" if "start" in scores else "beside the best rival", fontsize=9)
    axis.set_xlim(0, 100)
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=8, frameon=False)


def _validation(loss: Loss) -> dict[str, dict[str, Score]]:
    """The scores that a search has recorded; empty if the provenance has none, or something else.

    Empty also for a trial of the user's own, whose numbers may have any units and so fit on no common axis.
    """
    configuration = loss.provenance.get("configuration")
    if isinstance(configuration, dict) and configuration.get("trial") is not None:
        return {}
    try:
        rows = TypeAdapter(dict[str, dict[str, Score]]).validate_python(loss.provenance.get("validation"))
    except ValidationError:
        return {}
    rows = {"start" if name == "identity" else name: row for name, row in rows.items()}  # its name in earlier files
    complete = len(rows) == 3 and rows.keys() < LOSSES.keys() and "found" in rows
    return rows if complete and all(row.keys() == rows["found"].keys() for row in rows.values()) else {}
