"""The losses against the published figures."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from autosegloss.loss import SearchSpace, SurrogateLoss, load_loss, presets
from autosegloss.loss.curve import Curve
from autosegloss.metric import metric
from tests import oracles, reference

CASES = pytest.mark.parametrize("case", reference.cases(), ids=lambda case: case.name)
JDT = {"jaccard": "jaccard", "dice": "dice", "tversky": "tversky", "jaccard_I": "miou_i", "jaccard_C": "miou_c"}


def published(key: str) -> tuple[SurrogateLoss, bool]:
    """The loss of a published figure, and whether its target is soft."""
    family, _, name = key.partition("_")
    if family == "jdt":
        name, _, labels = name.rpartition("_")
        soft = labels == "soft"
        return SurrogateLoss(JDT[name], logic="godel", classes="all" if soft else "present"), soft
    name, *variant = name.split("_")
    options = {"radius": int(variant[0][3:]), "background": variant[1] == "all"} if variant else {}
    points = reference.control_points(name)
    return SurrogateLoss(metric(name, **options), points, classes="all" if name == "macc" else "metric"), False


@CASES
@pytest.mark.parametrize("key", reference.ASL_LOSSES + reference.JDT_LOSSES)
def test_losses_and_gradients_are_the_published_ones(case: reference.Case, key: str) -> None:
    loss, soft = published(key)
    logits = torch.tensor(case.logits, requires_grad=True)
    value = loss(logits, torch.tensor(case.soft_target if soft else case.target))
    assert value.dtype == torch.float64
    reference.assert_agrees(value.item(), case.loss(key))
    (gradient,) = torch.autograd.grad(value, logits)
    assert case.gradient_error(key, gradient.numpy()) < 1e-5


@CASES
@pytest.mark.parametrize("key", reference.ASL_LOSSES + reference.JDT_LOSSES)
def test_float32_is_close_to_the_published_figures(case: reference.Case, key: str) -> None:
    loss, soft = published(key)
    target = torch.tensor(case.soft_target if soft else case.target)
    logits = torch.tensor(case.logits, dtype=torch.float32, requires_grad=True)
    value = loss(logits, target)
    reference.assert_agrees(value.item(), case.loss(key), relative=1e-5)
    (gradient,) = torch.autograd.grad(value, logits)
    assert case.gradient_error(key, gradient.numpy()) < 1e-3


# The presets


def test_the_presets_are_the_published_losses() -> None:
    published = [f"asl/voc/{name}" for name in ("bf1", "biou", "fwiou", "gacc", "macc", "miou")]
    assert {*published, "ctl", "dml", "jml", "soft_dice", "soft_jaccard", "soft_tversky"} <= {*presets()}
    for name in ("bf1", "biou", "fwiou", "gacc", "macc", "miou"):
        loss = load_loss(f"asl/voc/{name}")
        assert loss.expr is metric(name)
        assert loss.control_points == reference.control_points(name)
        assert (loss.logic, loss.curve, loss.ignore_index) == ("product", "bezier", 255)
        assert loss.classes == ("all" if name == "macc" else "metric")
        assert "Auto Seg-Loss" in str(loss.provenance["source"])


@CASES
@pytest.mark.parametrize("name", ["miou", "fwiou", "gacc", "macc"])
def test_the_presets_give_the_published_figures(case: reference.Case, name: str) -> None:
    value = load_loss(f"asl/voc/{name}")(torch.tensor(case.logits), torch.tensor(case.target))
    reference.assert_agrees(value.item(), case.loss(f"asl_{name}"))


@CASES
@pytest.mark.parametrize("name", ["biou", "bf1"])
def test_the_presets_of_boundaries_are_those_of_the_oracle(case: reference.Case, name: str) -> None:
    value = load_loss(f"asl/voc/{name}")(torch.tensor(case.logits), torch.tensor(case.target))
    curves = [partial(oracles.bezier, points=points) for points in reference.control_points(name)]
    expected = oracles.surrogate_loss(name, case.logits, case.target, curves, radius=5, background=False)
    reference.assert_agrees(value.item(), expected)


JDT_PRESETS = {"jml": "jaccard", "dml": "dice", "ctl": "tversky"}
TWINS = {"soft_jaccard": "jml", "soft_dice": "dml", "soft_tversky": "ctl"}


@CASES
@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("name", JDT_PRESETS)
def test_the_jdt_presets_give_the_published_figures(case: reference.Case, name: str, labels: str) -> None:
    logits = torch.tensor(case.logits, requires_grad=True)
    key = f"jdt_{JDT_PRESETS[name]}_{labels}"
    value = load_loss(name)(logits, torch.tensor(case.soft_target if labels == "soft" else case.target))
    reference.assert_agrees(value.item(), case.loss(key))
    (gradient,) = torch.autograd.grad(value, logits)
    assert case.gradient_error(key, gradient.numpy()) < 1e-5


@CASES
@pytest.mark.parametrize("name", [*JDT_PRESETS, *TWINS])
def test_the_presets_of_the_seeds_are_one_line_each(case: reference.Case, name: str) -> None:
    loss = load_loss(name)
    logic: Any = "product" if name in TWINS else "godel"
    ours = SurrogateLoss(JDT_PRESETS[TWINS.get(name, name)], logic=logic, curve="identity", classes="present")
    assert loss.expr is ours.expr
    assert (loss.logic, loss.curve, loss.classes) == (ours.logic, ours.curve, ours.classes)
    assert loss.provenance["name"] == name
    assert loss.provenance["source"]
    logits = torch.tensor(case.logits)
    for target in (torch.tensor(case.target), torch.tensor(case.soft_target)):
        assert torch.equal(loss(logits, target), ours(logits, target))
    if name in TWINS:  # alike on integer labels, and there only
        twin = load_loss(TWINS[name])
        hard, soft = torch.tensor(case.target), torch.tensor(case.soft_target)
        assert loss(logits, hard).item() == pytest.approx(twin(logits, hard).item(), rel=1e-12)
        assert loss(logits, soft).item() != pytest.approx(twin(logits, soft).item(), rel=1e-2)


def test_a_wrong_loss_does_not_pass() -> None:
    case = reference.cases()[1]
    loss = SurrogateLoss("macc", reference.control_points("macc"), classes="metric")  # published: "all"
    value = loss(torch.tensor(case.logits), torch.tensor(case.target))
    with pytest.raises(AssertionError, match="relative error"):
        reference.assert_agrees(value.item(), case.loss("asl_macc"))


def test_identity_curves_are_the_same_however_they_are_written() -> None:
    case = reference.cases()[0]
    logits, target = torch.tensor(case.logits), torch.tensor(case.target)
    plain = SurrogateLoss("miou", curve="identity")(logits, target).item()
    for kind, pieces in (("bezier", 1), ("bezier", 3), ("linear", 2)):
        space = SearchSpace(metric("miou"), kind, pieces)  # type: ignore[arg-type]
        loss = SurrogateLoss.from_theta("miou", space.identity, pieces, curve=kind)  # type: ignore[arg-type]
        assert not any(isinstance(g, Curve) and g.is_identity for g in loss.curves.values())
        assert loss(logits, target).item() == pytest.approx(plain, abs=1e-12)
