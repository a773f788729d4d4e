"""What the states of all search algorithms share."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from typing_extensions import Self

from autosegloss.errors import InputError

Theta: TypeAlias = tuple[float, ...]
"""A point of the unit cube: the coordinates of a loss."""


@dataclass(frozen=True)
class JsonState:
    """Base of the states: frozen dataclasses of numbers and nested tuples, which JSON stores exactly."""

    def to_json(self) -> str:
        """The state as JSON; every float survives exactly."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return cls(**{name: _tuples(value) for name, value in json.loads(text).items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def check_rewards(rewards: Sequence[float], points: int) -> None:
    """Raise InputError unless there is one finite reward per point."""
    if len(rewards) != points or not all(map(math.isfinite, rewards)):
        raise InputError(f"rewards must be {points} finite numbers, one per point, got {list(rewards)}.")
