from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import autosegloss as asl
from autosegloss.metric import METRICS, Accumulator, Expr, metric, parse
from tests import oracles, reference, strategies
from tests.examples import examples

# A metric that is added gets a row here and one in ORACLES.
TEXTS = {
    "gacc": "class_sum(total(pred & target)) / class_sum(total(target))",
    "gacc_i": ("image_mean(class_sum(per_image(pred & target)) / (x1 := class_sum(per_image(target))), where=x1)"),
    "macc": "class_mean(total(pred & target) / (x1 := total(target)), where=x1)",
    "macc_i": (
        "image_mean(class_mean(per_image(pred & target) / (x1 := per_image(target)), where=x1), where=class_sum(x1))"
    ),
    "macc_c": (
        "class_mean(image_mean(per_image(pred & target) / (x1 := per_image(target)), where=x1), where=total(target))"
    ),
    "precision": (
        "class_mean((x1 := total(pred & target)) / (x2 := x1 + (total(pred | target) - total(target))), where=x2)"
    ),
    "precision_i": (
        "image_mean(class_mean((x1 := per_image(pred & target)) / (x1 + (per_image(pred | target) - "
        "(x2 := per_image(target)))), where=x2), where=class_sum(x2))"
    ),
    "precision_c": (
        "class_mean(image_mean((x1 := per_image(pred & target)) / (x1 + (per_image(pred | target) - "
        "(x2 := per_image(target)))), where=x2), where=total(target))"
    ),
    "miou": "class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)",
    "miou_i": (
        "image_mean(class_mean(per_image(pred & target) / per_image(pred | target), where=(x1 := per_image(target))), "
        "where=class_sum(x1))"
    ),
    "miou_c": (
        "class_mean(image_mean(per_image(pred & target) / per_image(pred | target), where=per_image(target)), "
        "where=total(target))"
    ),
    "fwiou": ("class_sum((x1 := total(target)) * total(pred & target) / total(pred | target)) / class_sum(x1)"),
    "dice": "class_mean(2 * (x1 := total(pred & target)) / (x1 + (x2 := total(pred | target))), where=x2)",
    "dice_i": (
        "image_mean(class_mean(2 * (x1 := per_image(pred & target)) / (x1 + per_image(pred | target)), "
        "where=(x2 := per_image(target))), where=class_sum(x2))"
    ),
    "dice_c": (
        "class_mean(image_mean(2 * (x1 := per_image(pred & target)) / (x1 + per_image(pred | target)), "
        "where=per_image(target)), where=total(target))"
    ),
    "fbeta": (
        "class_mean(2 * (x1 := total(pred & target)) / (x2 := x1 + (total(pred | target) - (x3 := total(target))) + "
        "1 * x3), where=x2)"
    ),
    "fbeta_i": (
        "image_mean(class_mean(2 * (x1 := per_image(pred & target)) / (x1 + (per_image(pred | target) - "
        "(x2 := per_image(target))) + 1 * x2), where=x2), where=class_sum(x2))"
    ),
    "fbeta_c": (
        "class_mean(image_mean(2 * (x1 := per_image(pred & target)) / (x1 + (per_image(pred | target) - "
        "(x2 := per_image(target))) + 1 * x2), where=x2), where=total(target))"
    ),
    "tversky": (
        "class_mean((x1 := total(pred & target)) / (x1 + (0.3 * ((x2 := total(pred | target)) - (x3 := total(target)))"
        " + 0.7 * (x3 - x1))), where=x2)"
    ),
    "tversky_i": (
        "image_mean(class_mean((x1 := per_image(pred & target)) / (x1 + (0.3 * (per_image(pred | target) - "
        "(x2 := per_image(target))) + 0.7 * (x2 - x1))), where=x2), where=class_sum(x2))"
    ),
    "tversky_c": (
        "class_mean(image_mean((x1 := per_image(pred & target)) / (x1 + (0.3 * (per_image(pred | target) - "
        "(x2 := per_image(target))) + 0.7 * (x2 - x1))), where=x2), where=total(target))"
    ),
    "trimap_iou": (
        "class_mean(total(pred & target, within=(x1 := dilate(any_class(target ^ erode(target), background=False), "
        "radius=5))) / (x2 := total(pred | target, within=x1)), where=x2)"
    ),
    "boundary_iou": (
        "class_mean(total((x1 := (x2 := pred * any_class(target)) ^ erode(x2, radius=0.02, border=True)) & "
        "(x3 := target ^ erode(target, radius=0.02, border=True))) / (x4 := total(x1 | x3)), where=x4)"
    ),
    "boundary_iou_i": (
        "image_mean(class_mean(per_image((x1 := (x2 := pred * any_class(target)) ^ erode(x2, radius=0.02, border=True))"
        " & (x3 := target ^ erode(target, radius=0.02, border=True))) / per_image(x1 | x3), "
        "where=(x4 := per_image(x3))), where=class_sum(x4))"
    ),
    "bf1": (
        "class_mean(2 * (x1 := total((x2 := pred ^ erode(pred)) * dilate((x3 := target ^ erode(target)), radius=5), "
        'void="keep") / total(x2, void="keep")) * (x4 := total(x3 * dilate(x2, radius=5), void="keep") / '
        '(x5 := total(x3, void="keep"))) / (x1 + x4), where=x5, background=False)'
    ),
    "bf1_i": (
        "image_mean(class_mean(2 * (x1 := per_image((x2 := (x3 := pred * any_class(target)) ^ erode(x3)) * "
        "dilate((x4 := target ^ erode(target)), radius=5)) / per_image(x2)) * (x5 := per_image(x4 * "
        "dilate(x2, radius=5)) / (x6 := per_image(x4))) / (x1 + x5), where=x6), where=class_sum(x6))"
    ),
}
for form in ("", "_i", "_c"):
    TEXTS |= {f"recall{form}": TEXTS[f"macc{form}"], f"jaccard{form}": TEXTS[f"miou{form}"]}
TEXTS["biou"] = TEXTS["trimap_iou"]
Oracle = Callable[..., float]
ORACLES: dict[str, Oracle] = {
    **{name: getattr(oracles, name) for name in TEXTS if name != "trimap_iou"},
    "tversky": partial(oracles.tversky, alpha=0.3, beta=0.7),
    "trimap_iou": partial(oracles.biou, radius=5, background=False),
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


COMMON = ("background", "worst")


def test_each_entry_says_what_it_is() -> None:
    for name, build in METRICS.items():
        text = inspect.getdoc(build) or ""
        assert build.__name__ == name
        assert re.match(r"[A-Z].*\((D|I|C)\)", text.replace("\n", " ")), name
        form = {"_i": "(I)", "_c": "(C)"}.get(name[-2:], "(D)")
        assert form in text.split("\n\n")[0], name
        options = inspect.signature(build).parameters
        assert ("worst" in options) == (form != "(D)"), name
        for word in ["gnored pixels", "class", "Source: ", *(f"`{option}" for option in options if option in COMMON)]:
            assert word in " ".join(text.split("\n\n", 1)[1].split()).replace("Class", "class"), (name, word)
    assert "`macc_i` by its other name" in (METRICS["recall_i"].__doc__ or "")
    assert "`trimap_iou` by its other name" in (METRICS["biou"].__doc__ or "")
    assert METRICS["biou"](3, background=True) is METRICS["trimap_iou"](radius=3, background=True)
    assert "Salehi" in (METRICS["tversky_c"].__doc__ or "")


def test_every_entry_is_tested() -> None:
    assert METRICS.keys() == TEXTS.keys() == ORACLES.keys()
    assert asl.METRICS is METRICS


@pytest.mark.parametrize("name", METRICS)
@examples(60)
@given(labels=strategies.labels())
@pytest.mark.slow
def test_each_entry_is_its_definition(name: str, labels: strategies.Labels) -> None:
    expected = ORACLES[name](labels.pred, labels.target, labels.num_classes)
    assert value(metric(name), labels) == pytest.approx(expected, abs=1e-12)


@examples(60)
@given(
    labels=strategies.labels(),
    radius=st.integers(0, 8),
    background=st.booleans(),
    weights=st.tuples(st.floats(0, 3), st.floats(0, 3)),
)
@pytest.mark.slow
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


WORST = st.none() | st.sampled_from([0.05, 0.34, 0.5, 1])
LENGTHS = st.integers(1, 6) | st.sampled_from([0.0075, 0.02, 0.1, 0.4])


@pytest.mark.parametrize("name", ["macc", "recall", "precision", "miou", "jaccard", "dice", "fbeta", "tversky"])
@pytest.mark.parametrize("form", ["", "_i", "_c"])
@examples(40)
@given(labels=strategies.labels(images=(1, 7)), data=st.data())
@pytest.mark.slow
def test_options_of_the_forms(name: str, form: str, labels: strategies.Labels, data: st.DataObject) -> None:
    options: dict[str, Any] = {"background": data.draw(st.booleans())}
    if form:
        options["worst"] = data.draw(WORST)
    if name in ("fbeta", "tversky"):
        options["beta"] = data.draw(st.floats(0.01, 3))
    if name == "tversky":
        options["alpha"] = data.draw(st.floats(0.01, 3))
    score = getattr(oracles, {"recall": "macc", "jaccard": "miou"}.get(name, name) + "_score")
    over = {"": oracles.over_data_set, "_i": oracles.over_images, "_c": oracles.over_classes}[form]
    expected = over(score, oracles.Counts(labels.pred, labels.target, labels.num_classes), **options)
    assert value(metric(name + form, **options), labels) == pytest.approx(expected, abs=1e-11)


@examples(40)
@given(labels=strategies.labels(images=(1, 7)), worst=WORST)
def test_the_worst_images_by_pixel_accuracy(labels: strategies.Labels, worst: float | None) -> None:
    expected = oracles.gacc_i(labels.pred, labels.target, labels.num_classes, worst)
    assert value(metric("gacc_i", worst=worst), labels) == pytest.approx(expected, abs=1e-12)


@examples(100)
@given(
    labels=strategies.labels(images=(1, 5)),
    length=LENGTHS,
    background=st.booleans(),
    shape=st.sampled_from(["square", "disk"]),
    worst=WORST,
)
@pytest.mark.slow
def test_options_of_the_boundary_metrics(
    labels: strategies.Labels, length: float, background: bool, shape: str, worst: float | None
) -> None:
    maps = labels.pred, labels.target, labels.num_classes
    for expr, expected in [
        (metric("boundary_iou", width=length, background=background), oracles.boundary_iou(*maps, length, background)),
        (
            metric("boundary_iou_i", width=length, background=background, worst=worst),
            oracles.boundary_iou_i(*maps, length, background, worst),
        ),
        (
            metric("bf1", radius=length, background=background, shape=shape),
            oracles.bf1(*maps, length, background, shape),
        ),
        (
            metric("bf1_i", radius=length, background=background, shape=shape, worst=worst),
            oracles.bf1_i(*maps, length, background, shape, worst),
        ),
    ]:
        assert value(expr, labels) == pytest.approx(expected, abs=1e-12), str(expr)


@examples(40)
@given(labels=strategies.labels())
def test_two_classes_without_background_are_the_binary_metric(labels: strategies.Labels) -> None:
    binary = strategies.Labels((labels.pred > 0) * 1, np.where(labels.target == 255, 255, labels.target > 0), 2)
    said, true = (binary.pred == 1) & (binary.target != 255), binary.target == 1
    tp, fp, fn = float((said & true).sum()), float((said & ~true).sum()), float((~said & true).sum())
    for name, expected in [
        ("miou", oracles.ratio(tp, tp + fp + fn)),
        ("dice", oracles.ratio(2 * tp, 2 * tp + fp + fn)),
        ("precision", oracles.ratio(tp, tp + fp)),
        ("recall", oracles.ratio(tp, tp + fn)),
    ]:
        assert value(metric(name, background=False), binary) == pytest.approx(float(expected), abs=1e-12), name


def test_forms_by_hand() -> None:
    target = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [255] * 4])
    guess = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0], [0, 1, 2, 0]])
    labels = strategies.Labels(guess.numpy(), target.numpy(), 3)
    # precision of class 0: 3/4 of all, 2/2 and 1/1 in images 0 and 1; of class 1: 5/8, 2/3 and 3/3 in images 1 and 2
    for text, expected in [
        ("precision", (3 / 4 + 5 / 8) / 2),
        ("precision_i", (1 + (1 + 2 / 3) / 2 + 1) / 3),
        ("precision_c", (1 + (2 / 3 + 1) / 2) / 2),
        ("precision_i(worst=0.5)", (1 + 2 / 3) / 2),
        ("precision_c(worst=0.5)", (1 + 2 / 3) / 2),
        ("precision_i(background=False)", (2 / 3 + 1) / 2),
        ("precision_c(background=False)", (2 / 3 + 1) / 2),
        ("recall_i", (2 / 4 + (1 / 2 + 1) / 2 + 3 / 4) / 3),
        ("recall_c", ((2 / 4 + 1 / 2) / 2 + (1 + 3 / 4) / 2) / 2),
        ("gacc_i", (2 / 4 + 3 / 4 + 3 / 4) / 3),
        ("gacc_i(worst=0.3)", 2 / 4),
        ("fbeta(beta=2)", (5 * 3 / (5 * 3 + 1 + 4 * 3) + 5 * 5 / (5 * 5 + 3 + 4 * 1)) / 2),
    ]:
        assert value(metric(text), labels) == pytest.approx(expected, abs=1e-12), text


def test_relations_between_entries() -> None:
    random = np.random.default_rng(1)
    labels = strategies.Labels(*(random.integers(0, 4, (3, 9, 8)) for _ in range(2)), 4)
    for form in ("", "_i", "_c"):
        dice = value(metric(f"dice{form}"), labels)
        assert value(metric(f"fbeta{form}"), labels) == pytest.approx(dice, abs=1e-12)
        assert value(metric(f"tversky{form}", alpha=0.5, beta=0.5), labels) == pytest.approx(dice, abs=1e-12)
        assert metric(f"recall{form}") is metric(f"macc{form}")
        assert metric(f"jaccard{form}") is metric(f"miou{form}")


# Boundaries -----------------------------------------------------------------------------------------------------------


def test_boundary_iou_by_hand() -> None:
    target = np.zeros((1, 8, 8), int)
    guess = target.copy()
    target[0, 2:7, 2:7] = 1  # 25 pixels; the band of width 1 leaves 3 x 3 of them out
    guess[0, 2:7, 2:6] = 1  # 20 pixels, of which 3 x 2 are inside
    band_both, band_either = 11, 16 + 14 - 11  # the right side of the guess is inside the target
    labels = strategies.Labels(guess, target, 2)
    assert value(metric("boundary_iou", width=1, background=False), labels) == pytest.approx(band_both / band_either)
    # The image border is a boundary: a class that fills the image has a band along it.
    whole = strategies.Labels(np.zeros((1, 9, 9), int), np.zeros((1, 9, 9), int), 1)
    whole.target[0, 4, 4] = 255  # and so has one around ignored pixels, in both maps
    assert value(metric("boundary_iou", width=1), whole) == 1
    assert value(metric("class_sum(total(band(pred * any_class(target), 1)))"), whole) == 32 + 8


@pytest.mark.parametrize("name", ["boundary_iou", "boundary_iou_i", "bf1_i"])
def test_ignored_pixels_are_of_no_class_in_both_maps(name: str) -> None:
    target = np.zeros((1, 12, 12), int)
    target[0, 3:9, 3:9] = 1
    target[0, 2:4, :] = 255
    guess = np.where(target == 255, 1, target)  # another boundary, seen by nobody
    assert value(metric(name, **{"width" if "iou" in name else "radius": 1}), strategies.Labels(guess, target, 2)) == 1


def test_a_tolerance_is_by_chebyshev_or_euclidean_distance() -> None:
    target, guess = np.zeros((2, 1, 40, 40), int)
    target[0, 10, 10] = guess[0, 13, 14] = 1  # 4 apart by Chebyshev's distance, 5 by Euclid's
    labels = strategies.Labels(guess, target, 2)
    for name in ("bf1", "bf1_i"):
        for shape, radius, found in [("square", 3, 0), ("square", 4, 1), ("disk", 4, 0), ("disk", 5, 1)]:
            expr = metric(name, radius=radius, background=False, shape=shape)
            assert value(expr, labels) == found, (name, shape, radius)


def test_a_single_pixel_and_an_image_of_one_class() -> None:
    target = np.zeros((2, 7, 7), int)
    target[0, 0, 0] = 1
    same = strategies.Labels(target, target, 2)
    none = strategies.Labels(np.zeros_like(target), target, 2)
    for name in ("boundary_iou", "boundary_iou_i", "bf1", "bf1_i"):
        assert value(metric(name, background=False), same) == 1, name
        assert value(metric(name, background=False), none) == 0, name
    # Of the second image class 0 has a band, along the border of the image, but no boundary.
    assert value(metric("bf1_i"), none) == 0.0
    assert value(metric("boundary_iou_i", width=1), none) == pytest.approx(((23 / 25 + 0) / 2 + 1) / 2)


@examples(60)
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
        expr = metric(name, radius=1) if name in ("biou", "trimap_iou", "bf1") else metric(name)
        same = value(expr, strategies.Labels(guess, target, 3)) == value(expr, strategies.Labels(other, target, 3))
        assert same == (name != "bf1"), name
