"""The published figures that the oracles and the package are held to; README.md here says what each is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent
DIRECTIONS = 64
SEED = 20210501

CASES = ("case10", "case11")
ASL_LOSSES = tuple(f"asl_{m}" for m in ("miou", "fwiou", "gacc", "macc")) + tuple(
    f"asl_{m}_{variant}" for m in ("biou", "bf1") for variant in ("tol3_fg", "tol1_all")
)
JDT_LOSSES = tuple(
    f"jdt_{loss}_{labels}"
    for loss in ("jaccard", "dice", "tversky", "jaccard_I", "jaccard_C")
    for labels in ("hard", "soft")
)
METRICS = ("miou", "macc", "gacc", "fwiou", "biou_fg", "biou_all", "bf1_fg", "bf1_all")


@dataclass(frozen=True)
class Case:
    """One input and every figure published for it.

    Attributes:
        name: `case10` (all four classes present) or `case11` (class 3 absent).
        logits: (2, 4, 52, 44) float64.
        target: (2, 52, 44) int64, 255 = ignored.
        soft_target: (2, 4, 52, 44) float64.
        figures: Scalars by key.
        projections: (64,) float64 by gradient key.
    """

    name: str
    logits: npt.NDArray[np.float64]
    target: npt.NDArray[np.int64]
    soft_target: npt.NDArray[np.float64]
    figures: dict[str, float]
    projections: dict[str, npt.NDArray[np.float64]]

    def loss(self, key: str) -> float:
        """The loss `key`, one of `ASL_LOSSES` or `JDT_LOSSES`."""
        return self.figures[f"{key}_loss"]

    def metric(self, key: str) -> float:
        """The exact metric `key`, one of `METRICS`, of the arg-max of the logits; tolerance 2 for biou and bf1."""
        return self.figures[f"metric_{key}"]

    def gradient_error(self, key: str, gradient: npt.ArrayLike) -> float:
        """Estimate of |gradient - published| / |published| for the gradient of the loss `key` by the logits.

        The standard deviation of the estimate is about an eighth of its value (README.md); NaN stays NaN.
        """
        expected = self.projections[f"{key}_grad"]
        return float(np.linalg.norm(project(gradient) - expected) / np.linalg.norm(expected))


@lru_cache(maxsize=1)
def directions(size: int) -> npt.NDArray[np.float64]:
    """The 64 vectors of signs (size, 64): bit j of the i-th raw PCG64 word is the sign of direction j at entry i.

    Raw words are used because NumPy promises that stream for good, and not that of the distributions built on it.
    """
    words = np.random.PCG64(SEED).random_raw(size)
    bits = words[:, None] >> np.arange(DIRECTIONS, dtype=np.uint64) & np.uint64(1)
    return 1.0 - 2.0 * bits.astype(np.float64)


def project(gradient: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Inner products (64,) of a gradient, flattened in C order, with the directions."""
    flat = np.asarray(gradient, np.float64).reshape(-1)
    return flat @ directions(flat.size)


def cases() -> list[Case]:
    """Both published cases."""
    return [_case(name) for name in CASES]


def control_points(metric: str) -> list[list[tuple[float, float]]]:
    """The curves published for PASCAL VOC: for each slot in order, its inner points (u, v)."""
    return [[(u, v) for u, v in points] for points in _figures()["control_points"][metric]]


def assert_agrees(actual: float, expected: float, relative: float = 1e-6) -> None:
    """Fail unless `actual` is within `relative` of `expected`; NaN and infinities never agree."""
    error = abs(float(actual) - expected) / abs(expected)
    assert error <= relative, f"{actual!r} is not {expected!r}: relative error {error:.3g}, allowed {relative:.3g}"


@lru_cache(maxsize=1)
def _figures() -> Any:
    return json.loads((FOLDER / "figures.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=2)
def _case(name: str) -> Case:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    inputs = {
        "logits": arrays.pop("logits"),
        "target": arrays.pop("target").astype(np.int64),
        "soft_target": arrays.pop("soft_target"),
    }
    for array in (*inputs.values(), *arrays.values()):
        array.flags.writeable = False
    return Case(name=name, **inputs, figures=_figures()[name], projections=arrays)
