"""The seed of every training, derived from the seed of the study.

The convention: a training's seed is the first word of `SeedSequence(study seed, spawn_key=(purpose, ordinal))`. Losses
that are compared share a seed, so that random effects cancel:

- `STEP`: all trials of a step of the search; the ordinal is the number of the step.
- `FINAL`: all members of the finals; ordinals whose seed a step has used are skipped.
- `COMPARISON`: all losses of a comparison or a retraining.
- `SCREENING`: all rivals of the screening before a search.
- `TUNING`: all losses of a comparison at all steps, before one is chosen for each.

An optimiser draws the points of a step from `step_rng` alone. The random numbers of a training iteration follow from
the seed of the training, the rank and the iteration (see `proxy.train`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np

STEP: Final = 0
FINAL: Final = 1
COMPARISON: Final = 2
SCREENING: Final = 3
TUNING: Final = 4


def step_seed(study_seed: int, step: int) -> int:
    """The seed of the trials of a step of the search."""
    return _seed(study_seed, STEP, step)


def final_seeds(study_seed: int, number: int, used: Collection[int]) -> list[int]:
    """The seeds of the finals, distinct from the used seeds."""
    fresh: list[int] = []
    ordinal = 0
    while len(fresh) < number:
        seed = _seed(study_seed, FINAL, ordinal)
        ordinal += 1
        if seed not in used and seed not in fresh:
            fresh.append(seed)
    return fresh


def comparison_seeds(study_seed: int, number: int) -> list[int]:
    """The seeds of a comparison or a retraining."""
    return [_seed(study_seed, COMPARISON, ordinal) for ordinal in range(number)]


def screening_seeds(study_seed: int, number: int) -> list[int]:
    """The seeds of the screening."""
    return [_seed(study_seed, SCREENING, ordinal) for ordinal in range(number)]


def tuning_seeds(study_seed: int, number: int) -> list[int]:
    """The seeds on which a comparison chooses the step of each loss."""
    return [_seed(study_seed, TUNING, ordinal) for ordinal in range(number)]


def step_rng(search_seed: int, step: int) -> np.random.Generator:
    """The generator from which an optimiser draws the points of a step."""
    return np.random.default_rng((search_seed, step))


def _seed(study_seed: int, purpose: int, ordinal: int) -> int:
    return int(np.random.SeedSequence(study_seed, spawn_key=(purpose, ordinal)).generate_state(1)[0])
