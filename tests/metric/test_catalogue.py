from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import autosegloss as asl
from autosegloss.metric import METRICS, Accumulator, Expr, metric, parse
from tests import oracles, reference, strategies

# A metric that is added gets a row here and one in ORACLES.
TEXTS = {
    "gacc": "class_sum(total(pred & target)) / class_sum(total(target))",
    "macc": "class_mean(total(pred & target) / (x1 := total(target)), where=x1)",
    "miou": "class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)",
    "fwiou": ("class_sum((x1 := total(target)) * total(pred & target) / total(pred | target)) / class_sum(x1)"),
    "biou": (
        "class_mean(total(pred & target, within=(x1 := dilate(any_class(target ^ erode(target), background=False), "
        "radius=5))) / (x2 := total(pred | target, within=x1)), where=x2)"
    ),
    "bf1": (
        "class_mean(2 * (x1 := total((x2 := pred ^ erode(pred)) * dilate((x3 := target ^ erode(target)), radius=5), "
        'void="keep") / total(x2, void="keep")) * (x4 := total(x3 * dilate(x2, radius=5), void="keep") / '
        '(x5 := total(x3, void="keep"))) / (x1 + x4), where=x5, background=False)'
    ),
    "dice": "class_mean(2 * (x1 := total(pred & target)) / (x1 + (x2 := total(pred | target))), where=x2)",
    "jaccard": "class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)",
    "tversky": (
        "class_mean((x1 := total(pred & target)) / (x1 + (0.3 * ((x2 := total(pred | target)) - (x3 := total(target)))"
        " + 0.7 * (x3 - x1))), where=x2)"
    ),
    "miou_i": (
        "image_mean(class_mean(per_image(pred & target) / per_image(pred | target), where=(x1 := per_image(target))), "
        "where=class_sum(x1))"
    ),
    "miou_c": (
        "class_mean(image_mean(per_image(pred & target) / per_image(pred | target), where=per_image(target)), "
        "where=total(target))"
    ),
}
Oracle = Callable[..., float]
ORACLES: dict[str, Oracle] = {
    **{
        name: getattr(oracles, name)
        for name in ("gacc", "macc", "miou", "fwiou", "dice", "jaccard", "miou_i", "miou_c")
    },
    "tversky": partial(oracles.tversky, alpha=0.3, beta=0.7),
    "biou": partial(oracles.biou, radius=5, background=False),
    "bf1": partial(oracles.bf1, radius=5, background=False),
}


def value(expr: Expr, labels: strategies.Labels) -> float:
    accumulator = Accumulator(expr, labels.num_classes)
    accumulator.update(*labels.tensors())
    return accumulator.compute()


@pytest.mark.parametrize("name", METRICS)
def test_each_entry_has_its_golden_text(name: str) -> None:
    assert str(metric(name)) == TEXTS[name]
    assert parse(TEXTS[name]) is METRICS[name]()
    assert METRICS[name].__doc__


def test_every_entry_is_tested() -> None:
    assert METRICS.keys() == TEXTS.keys() == ORACLES.keys()
    assert asl.METRICS is METRICS


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=60)
@given(labels=strategies.labels())
def test_each_entry_is_its_definition(name: str, labels: strategies.Labels) -> None:
    expected = ORACLES[name](labels.pred, labels.target, labels.num_classes)
    assert value(metric(name), labels) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60)
@given(
    labels=strategies.labels(),
    radius=st.integers(0, 8),
    background=st.booleans(),
    weights=st.tuples(st.floats(0, 3), st.floats(0, 3)),
)
def test_options_are_those_of_the_definition(
    labels: strategies.Labels, radius: int, background: bool, weights: tuple[float, float]
) -> None:
    maps = labels.pred, labels.target, labels.num_classes
    alpha, beta = weights
    for expr, expected in [
        (metric("biou", radius=radius, background=background), oracles.biou(*maps, radius, background)),
        (metric("bf1", radius=radius, background=background), oracles.bf1(*maps, radius, background)),
        (metric("tversky", alpha=alpha, beta=beta), oracles.tversky(*maps, alpha, beta)),
    ]:
        assert value(expr, labels) == pytest.approx(expected, abs=1e-11), str(expr)


@settings(max_examples=60)
@given(labels=strategies.labels())
def test_without_background_a_mean_leaves_class_0_out(labels: strategies.Labels) -> None:
    n = oracles.Counts(labels.pred, labels.target, labels.num_classes)
    both, either, guess, truth = (rows.sum(0) for rows in (n.both, n.either, n.pred, n.target))
    for name, per_class, counted in [
        ("miou", oracles.ratio(both, either), either),
        ("jaccard", oracles.ratio(both, either), either),
        ("macc", oracles.ratio(both, truth), truth),
        ("dice", oracles.ratio(2 * both, guess + truth), either),
        ("tversky", oracles.ratio(both, both + 0.3 * (guess - both) + 0.7 * (truth - both)), either),
    ]:
        expected = oracles.mean(per_class[1:], counted[1:] > 0)
        assert value(metric(name, background=False), labels) == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("case", reference.cases(), ids=lambda case: case.name)
@pytest.mark.parametrize("key", reference.METRICS)
def test_the_published_figures(case: reference.Case, key: str) -> None:
    name, *variant = key.split("_")
    options = {"radius": 2, "background": variant == ["all"]} if variant else {}
    accumulator = Accumulator(metric(name, **options), num_classes=4)
    accumulator.update(torch.tensor(case.logits), torch.tensor(case.target))
    reference.assert_agrees(accumulator.compute(), case.metric(key))


@pytest.mark.parametrize("name", METRICS)
def test_perfect_and_worthless_predictions(name: str) -> None:
    target = torch.tensor([[[0] * 4 + [1] * 4 + [2] * 4] * 9])
    accumulator = Accumulator(metric(name), num_classes=4)
    accumulator.update(target, target)
    assert accumulator.compute() == 1
    accumulator.reset()
    # Every boundary moves by more than the tolerance only in a map without any.
    accumulator.update(torch.full_like(target, 3), target)
    assert accumulator.compute() == 0


def test_all_but_bf1_do_not_see_the_prediction_on_ignored_pixels() -> None:
    random = np.random.default_rng(3)
    target = random.integers(0, 3, (2, 8, 8))
    target[:, :3] = oracles.IGNORED
    guess = random.integers(0, 3, (2, 8, 8))
    other = np.where(target == oracles.IGNORED, (guess + 1) % 3, guess)
    for name in METRICS:
        expr = metric(name, radius=1) if name in ("biou", "bf1") else metric(name)
        same = value(expr, strategies.Labels(guess, target, 3)) == value(expr, strategies.Labels(other, target, 3))
        assert same == (name != "bf1"), name
