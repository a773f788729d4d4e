"""The course of searches, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from autosegloss.search.statistics import t_interval


def plot_courses(
    panels: Mapping[str, Mapping[str, NDArray[np.float64]]], x: Mapping[str, Sequence[float]], path: Path
) -> None:
    """Draw how something falls in the course of searches: means with bands of 95% t-intervals.

    The same arguments give the same bytes.

    Args:
        panels: By the title of a panel and the name of a line, one row a search, one column a step.
        x: Trials until the end of each step, by the title of a panel.
        path: The SVG to write.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    names_a_row = 2 if columns == 1 else 4  # of the legend, which a single panel is too narrow for
    legend = -(-len(next(iter(panels.values()))) // names_a_row)
    with rc_context({"svg.hashsalt": "autosegloss", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.25 * legend), layout="constrained")
        figure.patch.set_facecolor("white")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, (title, lines) in zip(axes, panels.items(), strict=False):
            for name, values in lines.items():
                mean, low, high = np.transpose([t_interval(column) for column in values.T.tolist()])
                (line,) = axis.plot(x[title], mean, linewidth=1.4, label=name)
                axis.fill_between(x[title], low, high, color=line.get_color(), alpha=0.13, linewidth=0)
            axis.set_title("\n".join(wrap(title, 52)), fontsize=8)
            axis.set_ylim(bottom=0)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        figure.supxlabel("trials", fontsize=9)
        figure.supylabel("regret of the best so far", fontsize=9)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=names_a_row, fontsize=8, frameon=False)
        figure.savefig(path, metadata={"Date": None})
