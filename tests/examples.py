"""How many examples Hypothesis draws for a law."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

CI = "CI" in os.environ
"""CI draws the same few examples in every run, so that it says something of a change and not of its luck; elsewhere
they are drawn anew, and more of them."""


def examples(number: int, **more: Any) -> settings:
    """Draw a number of examples; in CI a third.

    Args:
        number: The number.
        **more: See `hypothesis.settings`.
    """
    return settings(max_examples=max(number // 3, 5) if CI else number, **more)
