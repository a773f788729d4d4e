"""What people call a loss: the names in the map of losses of the documentation."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

from autosegloss.loss.base import Loss, LossContent
from autosegloss.loss.named import load_loss

KNOWN: Final = {
    "cross_entropy": "cross-entropy",
    "cross_entropy(class_power=0.5)": "root-weighted cross-entropy (by the pixels of the batch)",
    "cross_entropy(class_power=1)": "inverse-weighted cross-entropy (likewise)",
    "label_smoothing": "label smoothing (Szegedy et al., CVPR 2016)",
    "focal": "focal loss (Lin et al., ICCV 2017)",
    "soft_jaccard": "soft Jaccard, soft IoU (Rahman and Wang, ISVC 2016)",
    "soft_dice": "soft Dice (Drozdzal et al., DLMIA 2016)",
    "generalized_dice": "generalised Dice (Sudre et al., DLMIA 2017)",
    "soft_tversky": "Tversky loss (Salehi et al., MLMI 2017)",
    "jml": "JML (Wang et al., NeurIPS 2023)",
    "dml": "DML (Wang et al., MICCAI 2023)",
    "ctl": "CTL (Wang et al., MICCAI 2023)",
    "lovasz": "Lovász-Softmax (Berman et al., CVPR 2018)",
    "soft_dice + cross_entropy": "Dice + CE",
    "0.25*cross_entropy + 0.75*jml": "JML + CE (Wang et al., NeurIPS 2023)",
    "lovasz + cross_entropy": "Lovász + CE",
    "lovasz + cross_entropy(class_power=0.5)": "Lovász + weighted CE (SalsaNext: Cortinhal et al., ISVC 2020)",
    "4*lovasz + 4*soft_jaccard": "Lovász + soft Jaccard (this package)",
    "asl/voc/miou": "mIoU of Auto Seg-Loss (Li et al., ICLR 2021)",
    "boundary_cross_entropy": "boundary-weighted cross-entropy (a plain form of U-Net's)",
}
"""What the loss of a text is called, with its source."""
_LEFT_OUT = ("format", "version", "scale", "provenance")


def known_as(loss: Loss) -> str | None:
    """What people call a loss, whatever its scale; None if it is not in `KNOWN`."""
    own = _shape(loss)
    return next((called for text, called in KNOWN.items() if not _hidden(text) and _shape_of(text) == own), None)


def _hidden(text: str) -> bool:
    """Whether a file of this name goes before the loss."""
    paths = map(Path, [text, *re.findall(r"[\w/]+", text)])
    return any(path.exists() and not path.is_dir() for path in paths)


@cache
def _shape_of(text: str) -> LossContent:
    return _shape(load_loss(text))


def _shape(loss: Loss) -> LossContent:
    """All of a loss but its scale and where it comes from."""
    content: dict[str, Any] = loss.content()
    return {key: value for key, value in content.items() if key not in _LEFT_OUT}
