"""Pictures of a loss and of the scores of its search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from autosegloss import SurrogateLoss
from autosegloss.report.plots import plot_loss


def test_names_of_classes_are_plain_text_and_leave_room_for_their_bars(tmp_path: Path) -> None:
    """Names that are no formula of matplotlib's, and of 300 characters; the bars of the last loss are blue."""
    names = ["target", "IoU of $a_{b", "IoU of " + "x" * 300]
    row = {name: {"mean": 1.0, "sd": 0.0} for name in names}
    loss = SurrogateLoss("miou")
    loss.provenance = {"validation": dict.fromkeys(("cross-entropy", "rival", "found"), row)}
    plot_loss(loss, tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    blue = (pixels == (0x1F, 0x5F, 0xA8)).all(-1).sum(axis=1)
    assert blue.max() > pixels.shape[1] / 8
    # Numbers of a trial of one's own have units of their own, and no axis in %.
    loss.provenance["configuration"] = {"trial": "module:function"}
    plot_loss(loss, tmp_path / "own.png")
    with Image.open(tmp_path / "own.png") as own:
        assert own.width < pixels.shape[1]
