"""Arguments whose size decides time and memory have an upper bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import autosegloss as asl
from autosegloss.errors import AutoseglossError
from autosegloss.loss import SearchSpace
from autosegloss.loss.classic import class_counts
from autosegloss.loss.curve import Curve
from autosegloss.metric.morphology import ball_maximum_filter
from autosegloss.proxy.data import reader

HUGE = 10**9
POINTS = tuple((i / 1000, i / 1000) for i in range(999))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SearchSpace(asl.metric("miou"), pieces=HUGE), "pieces must be an integer from 1 to 64, got 1000"),
        (lambda: asl.SurrogateLoss.from_theta("miou", [0.5], pieces=65), "pieces must be an integer from 1 to 64"),
        (lambda: Curve("bezier", POINTS), "999 control points; a bezier of at most 64 pieces has 127."),
        (lambda: Curve("linear", POINTS), "999 control points; a linear of at most 64 pieces has 63."),
        (lambda: asl.SurrogateLoss("miou", [POINTS, POINTS]), "999 control points; a bezier of at most 64 pieces"),
        (lambda: asl.Accumulator("miou", HUGE, ignore_index=-1), "num_classes must be an integer from 1 to 65536, got"),
        (lambda: asl.CalibrationError(HUGE, ignore_index=-1), "num_classes must be an integer from 1 to 65536, got"),
        (lambda: class_counts([], HUGE), "num_classes must be an integer from 1 to 65536, got"),
        (lambda: asl.metric("bf1", radius=HUGE), "a whole number of pixels from 0 to 10000, or a share"),
        (lambda: asl.metric("biou", radius=HUGE), "a whole number of pixels from 0 to 10000, or a share"),
        (lambda: reader("shapes", {"annotators": HUGE}), "annotators must be at most 255, got 1000000000"),
    ],
)
def test_a_huge_argument_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(AutoseglossError) as caught:
        build()
    assert message in str(caught.value)


def test_a_radius_beyond_the_image_takes_no_more_than_the_image() -> None:
    maps = torch.zeros(1, 2, 5, 7)
    maps[0, 0, 1, 2] = 1
    assert torch.equal(ball_maximum_filter(maps, 10**6), ball_maximum_filter(maps, 20))
    assert ball_maximum_filter(maps, 10**6)[0].mean(dim=(1, 2)).tolist() == [1, 0]
    assert SearchSpace(asl.metric("miou"), pieces=64).dimension == 4 * 127
