"""The policy of the search: a normal distribution per coordinate, truncated to [0, 1].

Reference: Li et al., Auto Seg-Loss, ICLR 2021, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy
import torch
from torch import Tensor
from torch.special import log_ndtr

from autosegloss.errors import InputError


def check_start(start: Sequence[float]) -> None:
    """Check the start of a search.

    Raises:
        InputError: There is no coordinate, or the start is not inside (0, 1).
    """
    if not start:
        raise InputError("start must have at least one coordinate, got none.")
    if not all(0 < x < 1 for x in start):
        raise InputError(f"each coordinate of start must lie strictly between 0 and 1, got {start}.")


def sample(
    mu: Sequence[float], std: float | Sequence[float], n: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw points from the truncated normal.

    Each coordinate uses one uniform number, row by row, so the first rows do not depend on `n`.

    Args:
        mu: Centre of each coordinate, length d, in [0, 1].
        std: Standard deviation before truncation, > 0; one for all coordinates, or one for each.
        n: Number of points.
        rng: Source of the uniform numbers.

    Returns:
        Points in [0, 1], shape (n, d).
    """
    centre, scale = np.asarray(mu, dtype=np.float64), np.asarray(std, dtype=np.float64)
    uniform = rng.random((n, len(centre)))
    points = scipy.stats.truncnorm.ppf(uniform, (0 - centre) / scale, (1 - centre) / scale, loc=centre, scale=scale)
    return np.clip(points, 0.0, 1.0)  # the last bit of the inverse may fall outside


def log_prob(theta: Tensor, mu: Tensor, std: float) -> Tensor:
    """Log-density of the truncated normal, per coordinate.

    The mass between the bounds is a difference of two normal tails. It is taken of their logarithms, on the side
    where both are small: the difference of the tails themselves is 0 far out, and its logarithm -inf.

    Args:
        theta: Points in [0, 1], shape (..., d), float64.
        mu: Centres, shape (d,), float64; gradients flow to it.
        std: Standard deviation before truncation, > 0.

    Returns:
        Log-densities, shape (..., d), float64.
    """
    low, high = (0 - mu) / std, (1 - mu) / std
    flip = low + high > 0  # by symmetry the mass between low and high is the mass between -high and -low
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    log_mass: Tensor = log_ndtr(high) + torch.log1p(-torch.exp(log_ndtr(low) - log_ndtr(high)))
    log_normal: Tensor = -0.5 * ((theta - mu) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
    return log_normal - log_mass
