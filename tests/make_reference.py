"""Make the compact files of `tests/reference` from the full reference arrays, which hold every gradient.

Usage: python -m tests.make_reference FOLDER_WITH_CASE10_AND_CASE11_NPZ
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from tests.reference import CASES, FOLDER, project

CURVES = {"miou": 2, "fwiou": 2, "biou": 2, "gacc": 1, "macc": 1, "bf1": 4}


def main(source: Path) -> None:
    """Write figures.json and one npz a case."""
    figures: dict[str, object] = {}
    for name in CASES:
        with np.load(source / f"{name}.npz", allow_pickle=False) as stored:
            full = {key: stored[key] for key in stored.files}
        figures["control_points"] = {
            metric: full[f"theta_{metric}"].reshape(curves, -1, 2).tolist() for metric, curves in CURVES.items()
        }
        figures[name] = {key: float(value) for key, value in sorted(full.items()) if value.ndim == 0}
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            logits=full["logits"],
            target=full["target"].astype(np.uint8),
            soft_target=full["soft_target"],
            **{key: project(value) for key, value in sorted(full.items()) if key.endswith("_grad")},
        )
    (FOLDER / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
