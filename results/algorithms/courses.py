"""The course of searches, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure


def plot_courses(panels: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw how the regret falls in the course of searches: means with bands of 95% t-intervals.

    The same arguments give the same bytes.

    Args:
        panels: By its title, the `trials` until the end of each step, and in `courses` by name the mean and both ends
            of the interval after each step.
        path: The SVG to write.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    names_a_row = 2 if columns == 1 else 4  # of the legend, which a single panel is too narrow for
    legend = -(-len(next(iter(panels.values()))["courses"]) // names_a_row)
    with rc_context({"svg.hashsalt": "autosegloss", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.25 * legend), layout="constrained")
        figure.patch.set_facecolor("white")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, (title, panel) in zip(axes, panels.items(), strict=False):
            for name, (mean, low, high) in panel["courses"].items():
                (line,) = axis.plot(panel["trials"], mean, linewidth=1.4, label=name)
                axis.fill_between(panel["trials"], low, high, color=line.get_color(), alpha=0.13, linewidth=0)
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
