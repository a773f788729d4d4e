"""A torchvision whose compiled operators do not load, made importable."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def _operators_load(torchvision: Path) -> bool:
    try:
        for library in torchvision.glob("_C*"):
            torch.ops.load_library(library)
            return True
    except OSError:
        pass
    return False


# There is not a torchvision for every CPU build of torch. The one that pip installs then does not find the libraries
# its operators are linked with, and its import fails all the same: it describes `nms`, which torch has never heard of.
# The frameworks here import torchvision and call neither operator, so a declaration is enough. It comes before the
# first import, which is in the test files, and lives as long as this object.
_found = importlib.util.find_spec("torchvision")
if _found is not None and _found.origin is not None and not _operators_load(Path(_found.origin).parent):
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
