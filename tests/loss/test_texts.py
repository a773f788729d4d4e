"""Losses as texts: weights, options and sums."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from torch import Tensor

from autosegloss.errors import InputError, LossFileError
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss, build_loss, load_loss
from autosegloss.loss.classic import BoundaryCrossEntropy, CrossEntropy, Focal, weights_of_counts
from autosegloss.loss.named import loss_for_data
from autosegloss.proxy.own_loss import any_loss
from tests.examples import examples

COUNTS = [50, 20, 5]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def value(loss: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    result: Tensor = loss(logits, torch.randint(0, 3, (2, 6, 5), generator=generator))
    return result


TERMS: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "cross_entropy(class_power=0.5, label_smoothing=0.1)": CrossEntropy(None, 0.1, class_power=0.5),
    " cross_entropy ( CLASS_power = -1e-1 ) ".replace("CLASS", "class"): CrossEntropy(class_power=-0.1),
    "focal(gamma=3)": Focal(3),
    "focal(gamma=2.5e+0)": Focal(2.5),
    "focal()": Focal(),
    "boundary_cross_entropy(factor=.5e1,radius=2)": BoundaryCrossEntropy(5, 2),
    "jml": load_loss("jml"),
    "shapes/miou": load_loss("shapes/miou"),
    "weighted_cross_entropy": CrossEntropy(weights_of_counts(COUNTS, "sqrt_inverse")),
    "mine + 1e+3*(so).json": SurrogateLoss("biou", scale=2),
}
WEIGHTS = {"": 1.0, "2*": 2.0, "1e-3 * ": 1e-3, "1e+2*": 100.0, ".5*": 0.5, "0.25 *": 0.25, " 3. *": 3.0}


@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    terms=st.lists(st.tuples(st.sampled_from([*WEIGHTS]), st.sampled_from([*TERMS])), min_size=1, max_size=4),
    plus=st.sampled_from(["+", " + ", "  +"]),
)
def test_a_text_is_the_sum_of_its_weighted_terms(terms: list[tuple[str, str]], plus: str) -> None:
    TERMS["mine + 1e+3*(so).json"].save("mine + 1e+3*(so).json")
    loss = loss_for_data(plus.join(weight + name for weight, name in terms), COUNTS)
    expected = sum(WEIGHTS[weight] * value(TERMS[name]) for weight, name in terms)
    assert value(loss).item() == pytest.approx(float(expected), rel=1e-9)
    again = build_loss(loss.content())
    assert again.content() == loss.content()
    assert value(again).item() == value(loss).item()


def test_what_kind_of_loss_a_text_is() -> None:
    SurrogateLoss("biou", scale=2).save("two.json")
    MixedLoss([(1, Focal()), (3, CrossEntropy())]).save("sum.json")
    SurrogateLoss("gacc").save("8*jml")
    Path("8*jml").rename("9*jml")
    assert str(load_loss("9*jml").expr) == str(SurrogateLoss("gacc").expr)  # a file goes before a text
    for text, scale in (("8*jml", 8), ("1*jml", 1), ("3*two.json", 6), ("two.json", 2)):
        loss = load_loss(text, ignore_index=7, reduce_over_ranks=True)
        assert isinstance(loss, SurrogateLoss)
        assert (loss.scale, loss.ignore_index, loss.reduce_over_ranks) == (scale, 7, True)
    for text, weights in (("2*focal", (2,)), ("2*sum.json", (2, 6)), ("sum.json+two.json", (1, 3, 2))):
        loss = load_loss(text)
        assert isinstance(loss, MixedLoss)
        assert loss.weights == pytest.approx(weights)
    assert isinstance(load_loss("1*focal(gamma=1)"), Focal)
    powered = load_loss("cross_entropy(class_power=1)", reduce_over_ranks=True, ignore_index=7)
    assert isinstance(powered, CrossEntropy)
    assert (powered.reduce_over_ranks, powered.ignore_index, powered.counts) == (True, 7, None)

    # One surrogate and cross-entropy of weight 1 is what it was, to the provenance, with a weight of 0 as well.
    for share in ("0.25", "0", "1"):
        for text in (f"{share}*cross_entropy + {1 - float(share)}*shapes/miou",) * 2:
            surrogate = load_loss("shapes/miou")
            assert isinstance(surrogate, SurrogateLoss)
            assert load_loss(text).content() == MixedLoss(surrogate, float(share)).content()
            assert load_loss(text).content()["version"] == 2


def test_counts_are_for_the_weighted_losses_and_if_given_for_class_power() -> None:
    text = "cross_entropy(class_power=0.5) + 2*inverse_weighted_cross_entropy"
    weighted = CrossEntropy(weights_of_counts(COUNTS, "inverse"))
    of_batch, of_counts = CrossEntropy(class_power=0.5), CrossEntropy(class_power=0.5, counts=COUNTS)
    for loss, plain in (
        (load_loss(text, counts=COUNTS), of_counts),
        (loss_for_data(text, COUNTS), of_batch),
        (any_loss(text, counts=COUNTS), of_batch),  # what compare and retrain do
    ):
        assert loss.content() == MixedLoss([(1, plain), (2, weighted)]).content()
    assert load_loss("cross_entropy(class_power=0.5)").content() == of_batch.content()
    assert load_loss("cross_entropy(class_power=0)", counts=COUNTS).content() == CrossEntropy().content()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8*jmll", "`jmll` is not a loss (did you mean `jml`?). `autosegloss losses` lists the names."),
        ("jml + 2*jmll + lovasz", "`jmll` is not a loss (did you mean `jml`?)"),
        ("jml + 2*lost.json", "lost.json: no such file, nor a loss of that name"),
        ("jml + 0*lovasz", "`0*lovasz`: the weight must be a number above 0 and at most 1,000,000, got 0.0."),
        ("0*jml", "`0*jml`: the weight must be a number above 0"),
        ("-0.5*cross_entropy + 1.5*jml", "`-0.5*cross_entropy`: the weight must be a number above 0"),
        ("1e7*jml", "`1e7*jml`: the weight must be a number above 0 and at most 1,000,000, got 10000000.0."),
        ("1e999*jml", "`1e999*jml`: the weight must be a number above 0 and at most 1,000,000, got inf."),
        ("9e5*jml + 9e5*dml", "`9e5*jml + 9e5*dml`: the sum of the weights must be a number above 0"),
        ("1.2.3*jml + dml", "`1.2.3*jml`: the weight before the * must be a number, got `1.2.3`; for example 8*lovasz"),
        ("jml*8", "`jml*8`: the weight before the * must be a number, got `jml`"),
        ("*jml", "`*jml`: the weight before the * must be a number, got ``"),
        ("nan*jml", "`nan*jml`: the weight before the * must be a number, got `nan`"),
        ("2*3*jml", "`3*jml` is not a loss"),
        ("8*", "`8*`: the name of a loss is missing; sums are written as in 8*lovasz"),
        ("jml +", "`jml +`: the name of a loss is missing"),
        ("+jml", "`+jml`: the name of a loss is missing"),
        ("jml ++ dml", "`jml ++ dml`: the name of a loss is missing"),
        ("jml - dml", "`jml - dml` is not a loss"),
        ("+".join(["jml"] * 17), "`" + "+".join(["jml"] * 17) + "`: a sum must have 1 to 16 parts, got more."),
        ("+" * 10**6, "`" + "+" * 131 + "..." + "+" * 66 + "`: a sum must have at most 16 terms."),
        ("focal(gama=3)", "`focal(gama=3)`: focal has no option `gama` (did you mean `gamma`?); allowed: gamma."),
        ("focal(3)", "`focal(3)`: focal has no option `3`; allowed: gamma."),
        ("focal(gamma=3,)", "`focal(gamma=3,)`: focal has no option ``; allowed: gamma."),
        ("focal(gamma)", "`focal(gamma)`: gamma must be a number, true or false, as in gamma=1."),
        ("focal(gamma=two)", "`focal(gamma=two)`: gamma must be a number, true or false, as in gamma=1."),
        ("focal(gamma=2, gamma=3)", "`focal(gamma=2, gamma=3)`: gamma is given twice."),
        ("focal(gamma=-3)", "`focal(gamma=-3)`: gamma must be a number of at least 0, got -3."),
        ("focal(gamma=true)", "`focal(gamma=true)`: gamma must be a number of at least 0, got True."),
        ("focal(gamma=3", "`focal(gamma=3` is not a loss"),
        ("foca(gamma=3)", "`foca(gamma=3)` is not a loss (did you mean `focal`?)"),
        ("boundary_cross_entropy(radius=1.5)", "`boundary_cross_entropy(radius=1.5)`: radius must be an integer"),
        ("cross_entropy(class_power=3)", "`cross_entropy(class_power=3)`: class_power must be a number from -2 to 2"),
        (
            "jml + cross_entropy(classpower=1)",
            "`cross_entropy(classpower=1)`: cross_entropy has no option `classpower` (did you mean `class_power`?); "
            "allowed: label_smoothing, class_power.",
        ),
        (
            "8*jml(logic=product)",
            "`jml(logic=product)`: jml takes no options in brackets; cross_entropy, focal, "
            "boundary_cross_entropy do. For a surrogate with other options, make a SurrogateLoss in Python, save it, "
            "and name its file.",
        ),
        ("asl/voc/miou(scale=2)", "`asl/voc/miou(scale=2)`: asl/voc/miou takes no options in brackets"),
        (
            "weighted_cross_entropy(class_power=1)",
            "`weighted_cross_entropy(class_power=1)`: weighted_cross_entropy takes",
        ),
        ("jml + mine:brier", "`mine:brier`: a function of your own can't have a weight or be in a sum; let it return"),
        ("2*mine:brier", "`2*mine:brier`: a function of your own can't have a weight or be in a sum; let it return"),
        ("mine:brier", "`mine:brier`: functions of your own are taken by compare and retrain only"),
        ("jml + weighted_cross_entropy", "a weighted cross-entropy needs `counts`"),
    ],
)
def test_mistakes_in_a_text(text: str, expected: str) -> None:
    with pytest.raises((InputError, LossFileError)) as caught:
        load_loss(text)
    assert str(caught.value).startswith(expected)
    assert len(str(caught.value)) <= 1000
    if ":brier" in text and len(text) > 11:
        with pytest.raises(InputError, match="a function of your own"):
            any_loss(text, counts=COUNTS)


@examples(60)
@given(
    text=st.lists(
        st.sampled_from(["jml", "focal", "cross_entropy", "+", "*", "(", ")", "=", ",", "gamma", "class_power"])
        | st.sampled_from(["1", "1e+3", ".5", " ", "-", "true", "counts", "x", "/", "\0"])
        | st.text(max_size=2),
        max_size=12,
    ).map("".join)
)
def test_any_text_is_a_loss_or_refused(text: str) -> None:
    with suppress(InputError, LossFileError):
        loss = load_loss(text)
        assert build_loss(loss.content()).content() == loss.content()
