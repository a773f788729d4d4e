"""Where a search starts: the theta of a given loss, and the middle between two."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from autosegloss.loss import MixedLoss, SurrogateLoss, load_loss
from autosegloss.loss.base import Loss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.loss.file import build_loss
from autosegloss.search.content import bare_content
from autosegloss.search.ladder import LADDERS, at_step
from autosegloss.search.points import INSIDE, LEAST, point_of, start_of
from autosegloss.search.rivals import Arm, Screened, Tried, rivals_of
from autosegloss.search.settings import StudyConfig, as_config
from autosegloss.search.space import LossFamily

V = math.log1p(0.5 / 0.1) / math.log1p(1 / 0.1)
LOG = [[(0.5, V)], [(0.5, 1 - V)]]


def configuration(metric: str = "miou", optimizer: str = "sgd", **relaxation: Any) -> StudyConfig:
    train = {"train": {"optimizer": optimizer}}
    return as_config({"metric": metric, "relaxation": relaxation, "proxy": train})


def family(metric: str = "miou", **relaxation: Any) -> LossFamily:
    return LossFamily.of(configuration(metric, **relaxation))


def both(loss: Loss) -> tuple[Tensor, Tensor]:
    """The value and the gradient of a loss on a batch of 4 classes, all of which are present."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 4, 9, 9, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.tensor([0.5, 0.3, 0.1, 0.1]), 162, replacement=True, generator=generator)
    assert len(labels.unique()) == 4
    value = loss(logits.requires_grad_(), labels.view(2, 9, 9))
    return value.detach(), torch.autograd.grad(value, logits)[0]


def surrogate(logic: Any, points: Any = None, curve: Any = "log") -> SurrogateLoss:
    return SurrogateLoss("miou", points, logic=logic, curve=curve if points else "identity")


TERMS: dict[str, list[tuple[float, Loss]]] = {
    "lovasz": [(1, surrogate("lovasz"))],
    "8*lovasz": [(8, surrogate("lovasz"))],
    "2*cross_entropy": [(2, CrossEntropy())],
    "16*cross_entropy(class_power=1)": [(16, CrossEntropy(class_power=1))],
    "4*soft_jaccard": [(4, surrogate("product"))],
    "3*lovasz + 1*cross_entropy(class_power=0.5)": [(3, surrogate("lovasz")), (1, CrossEntropy(class_power=0.5))],
    "4*lovasz + 4*soft_jaccard": [(4, surrogate("lovasz")), (4, surrogate("product"))],
    "curves": [(2, surrogate("product", LOG)), (1, surrogate("lovasz", LOG)), (1, CrossEntropy())],
}
"""Losses that people use, and their terms."""


@pytest.mark.parametrize("name", TERMS)
def test_at_its_theta_is_the_loss_with_a_little_of_what_it_lacks(name: str) -> None:
    """The shares of all parts sum to the scale, and what is absent has a fiftieth of the largest."""
    terms = TERMS[name]
    loss = MixedLoss(terms) if name == "curves" else load_loss(name)
    found = family()
    theta = point_of(found, loss)
    assert theta is not None
    assert all(INSIDE <= x <= 1 - INSIDE for x in theta)

    readings = [part for _, part in terms if isinstance(part, SurrogateLoss)]
    points = LOG if name == "curves" else None
    lacking: list[Loss] = [
        surrogate(logic, points) for logic in ("product", "lovasz") if logic not in {part.logic for part in readings}
    ]
    if len(readings) == len(terms):
        lacking.append(CrossEntropy(class_power=0.5))  # the middle
    scale, largest = sum(weight for weight, _ in terms), max(weight for weight, _ in terms)
    whole = [*terms, *((LEAST * largest, part) for part in lacking)]
    total = sum(weight for weight, _ in whole)
    expected = MixedLoss([(scale * weight / total, part) for weight, part in whole])
    for ours, theirs in zip(both(found.loss(theta)), both(expected), strict=True):
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm()


def test_the_points_of_the_rivals() -> None:
    """Those of other metrics or logics have none; under AdamW the step is the learning rate."""
    no_points = {"focal", "0.5*soft_dice + 0.5*cross_entropy", "0.75*jml + 0.25*cross_entropy"}
    config = configuration()
    for rival in rivals_of(config):
        thetas = [point_of(family(), build_loss(at_step(rival.loss, step, "sgd").loss)) for step in LADDERS["sgd"]]
        assert (None in thetas) == (rival.name in no_points), rival.name
        if rival.name in no_points:
            continue
        scales = [theta[family().names.index("scale")] for theta in thetas if theta is not None]
        assert [2 ** (8 * x - 2) for x in scales] == pytest.approx(LADDERS["sgd"])
        under = LossFamily.of(configuration(optimizer="adamw"))
        for step in LADDERS["adamw"]:
            loss, rate = at_step(rival.loss, step, "adamw")
            theta = point_of(under, build_loss(loss), rate)
            assert theta is not None
            assert under.rate(theta) == pytest.approx(step)


@pytest.mark.parametrize(
    ("loss", "relaxation"),
    [
        (load_loss("soft_dice"), {}),
        (load_loss("jml"), {}),
        (load_loss("focal"), {}),
        (CrossEntropy(label_smoothing=0.1), {}),
        (CrossEntropy([1.0, 2.0, 1.0, 1.0]), {}),
        (load_loss("lovasz"), {"logic": "product"}),
        (load_loss("lovasz + cross_entropy"), {"cross_entropy": 0}),
        (load_loss("lovasz + cross_entropy"), {"cross_entropy": 0.25}),
        (load_loss("lovasz + cross_entropy"), {"class_power": 0.5}),
        (load_loss("cross_entropy + cross_entropy(class_power=1)"), {}),
        (load_loss("lovasz + soft_dice"), {}),
        (load_loss("log_miou"), {"curve": "bezier"}),
        (SurrogateLoss("miou", [[(0.5, 0.6)], [(0.5, 0.6)]], curve="bezier"), {}),
        (MixedLoss([(1, surrogate("product", LOG)), (1, surrogate("lovasz"))]), {}),
    ],
    ids=str,
)
def test_what_is_no_point(loss: Loss, relaxation: dict[str, Any]) -> None:
    assert point_of(family(**relaxation), loss) is None


def test_what_is_fixed_may_be_what_the_loss_has() -> None:
    fixed = family(cross_entropy=0.25, class_power=0.5)
    theta = point_of(fixed, load_loss("3*lovasz + 1*cross_entropy(class_power=0.5)"))
    assert theta is not None
    found = fixed.loss(theta)
    assert isinstance(found, MixedLoss)
    assert found.scale == pytest.approx(4)
    assert found.shares[0] == pytest.approx(0.25)
    assert point_of(family(logic="lovasz", cross_entropy=0), load_loss("2*lovasz")) is not None
    assert point_of(family(curve="bezier"), load_loss("2*lovasz")) is not None, "under identity curves"


def screened(rewards: dict[str, float], baseline: float = 0.4) -> Screened:
    """A screening of losses by their names, the best first."""
    arms = {name: Arm(name, name.split("*")[-1], 1.0, bare_content(load_loss(name)), 1.0) for name in rewards}
    tried = tuple(Tried(arms[name], (reward - 0.1, reward + 0.1)) for name, reward in rewards.items())
    of_baseline = Arm("cross-entropy", "cross_entropy", 1.0, bare_content(CrossEntropy()), 1.0)
    return Screened(Tried(of_baseline, (baseline, baseline)), tried, 2)


def test_a_search_starts_half_way_between_the_best_two_rivals() -> None:
    found = family()
    start = start_of(found, screened({"16*lovasz": 0.8, "focal": 0.79, "8*lovasz": 0.78, "4*log_miou": 0.75}))
    assert start is not None
    loss = found.loss(start)
    shares = dict(zip([getattr(part, "logic", "cross-entropy") for part in loss.parts], loss.shares, strict=True))
    assert loss.scale == pytest.approx(8), "of 16*lovasz and 4*log_miou; the step of a rival that is better counts"
    assert shares["lovasz"] == pytest.approx(shares["product"])
    assert shares["cross-entropy"] == pytest.approx(LEAST / (2 * LEAST**0.5 + LEAST)), "neither has it"
    bent = load_loss("log_miou")
    assert isinstance(bent, SurrogateLoss)
    (u, v), *_ = next(curve.points for curve in bent.curves.values() if curve.points)
    half = ((u, pytest.approx((v + 0.5) / 2)),)
    for part in loss.parts:
        if isinstance(part, SurrogateLoss):
            assert [curve.points for curve in part.curves.values()] == [half, ((0.5, 0.5),)]


def test_a_second_rival_that_gains_too_little_is_no_neighbour() -> None:
    found = family()
    alone = point_of(found, load_loss("8*lovasz"))
    assert start_of(found, screened({"8*lovasz": 0.8, "cross_entropy": 0.59})) == alone
    assert start_of(found, screened({"8*lovasz": 0.8, "cross_entropy": 0.61})) != alone
    assert start_of(found, screened({"8*lovasz": 0.8})) == alone
    assert start_of(found, screened({"focal": 0.8})) is None


def test_a_loss_beyond_the_cube_is_at_its_edge() -> None:
    theta = point_of(family(), load_loss("1000*lovasz"))
    assert theta is not None
    assert theta[family().names.index("scale")] == 1 - INSIDE
