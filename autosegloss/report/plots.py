"""Plots: the curves of a loss, as text or as a picture, with what it gained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from autosegloss.errors import InputError
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss
from autosegloss.loss.classic import PixelLoss
from autosegloss.loss.curve import Curve

_BLUE, _GREY, _ORANGE = "#1f5fa8", "#8a8a8a", "#c8621b"
_FORMATS = (".png", ".svg", ".pdf")
_NAMES = {"cross-entropy": "cross-entropy", "identity": "surrogate before the search", "found": "found loss"}


def formula(loss: Loss) -> str:
    """A loss in one line."""
    if isinstance(loss, PixelLoss):
        return f"{loss.name}({', '.join(f'{option}={value}' for option, value in loss.options.items())})"
    if isinstance(loss, MixedLoss):
        weight, surrogate = loss.cross_entropy, formula(loss.surrogate)
        return f"{weight:.4g} * cross-entropy + {1 - weight:.4g} * ({surrogate})" if weight else surrogate
    return f"1 - {loss.expr}" if isinstance(loss, SurrogateLoss) else str(loss)


def text_plot(curve: Curve, width: int = 41, height: int = 13) -> str:
    """A curve in characters, `*` on the identity `.`; both axes run from 0 to 1."""
    x = torch.linspace(0, 1, width, dtype=torch.float64)
    cells = [[" "] * width for _ in range(height)]
    for mark, y in ((".", x), ("*", curve(x))):
        for column, value in enumerate(y.tolist()):
            cells[height - 1 - round(value * (height - 1))][column] = mark
    rows = [
        f"{'1' if i == 0 else '0' if i == height - 1 else ' '} |{''.join(row).rstrip()}" for i, row in enumerate(cells)
    ]
    return "\n".join([*rows, f"  +{'-' * width}", f"   0{' ' * (width - 2)}1"])


def plot_loss(loss: SurrogateLoss, path: str | os.PathLike[str]) -> None:
    """Draw the curves of a loss, and the scores in its provenance if it comes from a search.

    Args:
        loss: The loss.
        path: The picture to write; its ending decides the format (.png, .svg, .pdf).

    Raises:
        InputError: The format is unknown or the file can't be written.
    """
    # Matplotlib's own canvas, without pyplot: no display, no global state.
    from matplotlib.figure import Figure

    file = Path(path)
    if file.suffix.lower() not in _FORMATS:
        raise InputError(f"{file}: can't draw a `{file.suffix}` file; allowed: {', '.join(_FORMATS)}.")
    scores = _validation(loss)
    panels = len(loss.curves) + bool(scores)
    height = max(3.4, 1 + 0.23 * len(_groups(scores))) if scores else 3.4  # inches
    figure = Figure(figsize=(3.1 * len(loss.curves) + (5.0 if scores else 0), height), layout="constrained")
    ratios = [1.0] * len(loss.curves) + ([1.5] if scores else [])
    axes = figure.subplots(1, panels, width_ratios=ratios, squeeze=False)[0]
    grid = torch.linspace(0, 1, 501, dtype=torch.float64)
    for axis, (slot, curve) in zip(axes, loss.curves.items(), strict=False):
        axis.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--", label="identity")
        axis.plot(grid, curve(grid), color=_BLUE, linewidth=2, label="curve")
        axis.plot(
            *zip(*curve.points, strict=True) if curve.points else ([], []),
            "o",
            color=_ORANGE,
            markersize=4,
            label="control points",
        )
        name = str(slot)
        axis.set_title(name if len(name) <= 34 else name[:33] + "…", fontsize=9)
        axis.set(xlim=(0, 1), ylim=(-0.02, 1.02), aspect="equal")
        axis.tick_params(labelsize=8)
    axes[0].legend(fontsize=7, frameon=False, loc="lower right")
    if scores:
        _draw_scores(axes[-1], scores)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(file, dpi=130)
    except OSError as error:
        raise InputError(f"{file}: can't be written: {error.strerror}.") from None


def _draw_scores(axis: Any, scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    groups = _groups(scores)
    height = 0.8 / len(scores)
    for i, ((name, row), colour) in enumerate(zip(scores.items(), (_GREY, _ORANGE, _BLUE), strict=False)):
        places = [j + (i - (len(scores) - 1) / 2) * height for j in range(len(groups))]
        means, sds = ([100 * row[names[0]][part] for names in groups] for part in ("mean", "sd"))
        axis.barh(
            places,
            means,
            height=height * 0.9,
            xerr=sds,
            color=colour,
            error_kw={"linewidth": 0.8},
            label=_NAMES.get(name, name),
        )
    axis.set_yticks(range(len(groups)), [" = ".join(names) for names in groups], fontsize=8)
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)
    axis.set_xlabel("validation score, %, mean and sd over seeds", fontsize=8)
    axis.set_title("before and after the search", fontsize=9)
    axis.set_xlim(0, 100)
    axis.figure.legend(*axis.get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize=8, frameon=False)


def _groups(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """The names to draw; those that score the same everywhere, as names of one metric do, share a place."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for name in next(iter(scores.values())):
        groups.setdefault(tuple(row[name][part] for row in scores.values() for part in ("mean", "sd")), []).append(name)
    return list(groups.values())


def _validation(loss: SurrogateLoss) -> dict[str, dict[str, dict[str, float]]]:
    """The scores a search has written; empty for a loss that has none, whatever else its provenance says."""
    table = loss.provenance.get("validation")
    if not isinstance(table, dict) or list(table) != list(_NAMES):
        return {}
    rows = cast("dict[str, dict[str, dict[str, float]]]", table)
    first = list(rows["cross-entropy"])
    for row in rows.values():
        if list(row) != first or not all(isinstance(s, dict) and s.keys() == {"mean", "sd"} for s in row.values()):
            return {}
    return rows
