"""Compiled operators that do not load here and that no test calls, made importable."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _loads(libraries: list[Path]) -> bool:
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)


class _NotCompiled(ModuleType):
    """Has every function, as mmcv checks when it is imported; to call one is an error."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: object, **kwargs: object) -> None:
            raise NotImplementedError(f"{self.__name__}.{name} is not compiled here")

        return call


# There is not a torchvision for every CPU build of torch. The one that pip installs then does not find the libraries
# that its operators are linked with, and its import fails all the same: it describes `nms` to torch, which has never
# heard of it. A declaration is enough for the import. It comes before the test files and lives as long as its object.
_torchvision = _folder("torchvision")
if _torchvision is not None and not _loads([*_torchvision.glob("_C*")]):
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _declared.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

# mmcv has no wheels for current versions of torch, and mmcv-lite comes without operators. mmsegmentation imports them
# for some of its heads, then all of them.
_mmcv = _folder("mmcv")
if _mmcv is not None and not [*_mmcv.glob("_ext*")]:
    sys.modules["mmcv._ext"] = _NotCompiled("mmcv._ext")
