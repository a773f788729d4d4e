"""The weights of classes by a power of their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autosegloss.errors import InputError, shown


def balance(counts: Sequence[float], power: float) -> list[float]:
    """The weights count^-power of classes, normalised to mean 1 over the pixels that were counted.

    Args:
        counts: The pixels of each class, or shares of them, 0 or more.
        power: A finite number.

    Returns:
        The weight of each class; one of 0 pixels weighs the mean of the others.

    Raises:
        InputError: No class has pixels, or the weights are too far apart for floating-point numbers.
    """
    largest = max(counts)
    shares = [count / largest if largest else 0.0 for count in counts]
    try:
        weights = [share**-power if share > 0 else math.nan for share in shares]
        known = [weight for weight in weights if weight == weight]
        weights = [math.fsum(known) / len(known) if weight != weight else weight for weight in weights]
        mean = math.fsum(map(math.prod, zip(weights, shares, strict=True))) / math.fsum(shares)
        weights = [weight / mean for weight in weights]
    except (OverflowError, ZeroDivisionError):
        weights = [math.inf]
    if not all(map(math.isfinite, weights)):
        raise InputError(f"counts must have a class with pixels, and be of a reasonable range, got {shown(counts)}.")
    return weights
