"""Where a search starts: the theta of a given loss, and the middle between two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from autosegloss.loss import MixedLoss, Slot, SurrogateLoss
from autosegloss.loss.base import Loss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.loss.curve import Curve
from autosegloss.loss.file import build_loss
from autosegloss.loss.mixed import SUM_TOLERANCE
from autosegloss.search.content import bare_content
from autosegloss.search.rivals import Screened, best_of_each
from autosegloss.search.space import OF_CROSS_ENTROPY, RATE, LossFamily, is_reading, is_searched

LEAST = 1 / 50
"""The share of a part that a loss lacks, beside its largest part: the search must be able to reach it."""
INSIDE = 0.03
"""How far a start is from the faces of the cube."""


def start_of(family: LossFamily, screened: Screened) -> tuple[float, ...] | None:
    """The theta at which a search starts: half-way between the best two rivals.

    There their shares, scales and curves meet: half-way between Lovász and the product logic under a curve is the sum
    of both under a curve half as bent (`results/rivals/middle.md` has what this gains). A second rival counts if it
    gains at least half of what the best one gains over cross-entropy.

    Args:
        family: The losses that are searched.
        screened: The rivals. Those that are no point of the family are left out, and so are all but the best step of
            each.

    Returns:
        Theta: that of the best rival if there is no second; None if no rival is a point of the family.
    """
    rivals = best_of_each(screened.finalists)
    points = [(each, point_of(family, build_loss(each.arm.loss), each.arm.rate)) for each in rivals]
    found = [(each.reward, theta) for each, theta in points if theta is not None]
    least = fmean([found[0][0], screened.baseline.reward]) if found else 0.0
    best = [theta for reward, theta in found[:2] if reward >= least] or [theta for _, theta in found[:1]]
    return tuple(map(fmean, zip(*best, strict=True))) if best else None


def point_of(family: LossFamily, loss: Loss, rate: float = 1.0) -> tuple[float, ...] | None:
    """The theta of a loss.

    It is inside the cube by `INSIDE`, and parts that the loss lacks have a share of `LEAST` of its largest part, so
    that the loss at this theta is near the given one, not equal to it. Nor need it average over the same classes: on
    batches in which all classes are present, that makes no difference.

    Args:
        family: The losses that are searched.
        loss: A loss.
        rate: The factor of the learning rate with which it trains.

    Returns:
        Theta; None if the loss is no point of the family.
    """
    relaxation = family.relaxation
    shares, readings, power = _taken_apart(family, loss)
    if not shares or not shares.keys() <= {*family.logics, OF_CROSS_ENTROPY}:
        return None
    fixed = {"cross_entropy": shares.get(OF_CROSS_ENTROPY, 0.0), "class_power": power}
    for name, value in fixed.items():
        setting = getattr(relaxation, name)
        if value is not None and not is_searched(setting) and abs(value - setting) > SUM_TOLERANCE:
            return None
    curves = _on_curves(family, readings)
    if curves is None:
        return None
    scale = loss.scale if isinstance(loss, MixedLoss | SurrogateLoss) else 1.0
    at = dict(zip(family.names, curves, strict=False))
    at |= {"scale": (math.log2(scale) + 2) / 8, RATE: (math.log2(rate) + 2) / 4}
    at |= {"class_power": 0.5 if power is None else (power + 0.25) / 1.5}
    at |= _of_shares({name: shares.get(name, 0.0) for name in family.shared})
    return tuple(min(1 - INSIDE, max(INSIDE, at[name])) for name in family.names)


def _taken_apart(family: LossFamily, loss: Loss) -> tuple[dict[str, float], list[Mapping[Slot, Curve]], float | None]:
    """The share of each part, the curves of the surrogates, and the class power; no shares if a part is another."""
    pairs = [*zip(loss.shares, loss.parts, strict=True)] if isinstance(loss, MixedLoss) else [(1.0, loss)]
    shares: dict[str, float] = {}
    readings: list[Mapping[Slot, Curve]] = []
    power: float | None = None
    for share, part in pairs:
        if isinstance(part, CrossEntropy):
            name, power = OF_CROSS_ENTROPY, part.class_power
            known = bare_content(part) == bare_content(CrossEntropy(class_power=power))
        elif is_reading(part, family.space.expr):
            name, known = part.logic, True
            readings.append(part.curves)
        else:
            known = False
        if not known or name in shares:
            return {}, [], None
        shares[name] = share
    return shares, readings, power


def _on_curves(family: LossFamily, readings: Sequence[Mapping[Slot, Curve]]) -> tuple[float, ...] | None:
    """The coordinates of the curves that all surrogates of a loss have; None if the family has no such curves."""
    space, at = family.space, [*family.space.identity]
    if not readings:
        return space.identity
    shapes = [{slot: None if curve.is_identity else curve for slot, curve in curves.items()} for curves in readings]
    if any(shape != shapes[0] for shape in shapes):
        return None
    for number, group in enumerate(space.curves):
        first, *others = (shapes[0][slot] for slot in group)
        if any(curve != first for curve in others):
            return None
        if first is not None:
            if space.curve != "log" or first.kind != "log":
                return None
            at[number] = first.points[0][1]  # a log curve has one coordinate
    return tuple(at)


def _of_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """The coordinates of shares, around the middle."""
    if not shares:
        return {}
    largest = max(shares.values())
    heights = {name: math.log2(max(share / largest, LEAST)) / 12 for name, share in shares.items()}
    middle = (min(heights.values()) + max(heights.values())) / 2
    return {f"share of {name}": 0.5 + height - middle for name, height in heights.items()}
