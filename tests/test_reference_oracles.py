"""The oracles against every published figure, and the laws the oracles themselves must keep."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import oracles, reference
from tests.examples import examples

CASES = pytest.mark.parametrize("case", reference.cases(), ids=lambda case: case.name)
CLASSES = 4
FEW = examples(30)

TVERSKY = {"jaccard": (1.0, 1.0), "dice": (0.5, 0.5), "tversky": (0.3, 0.7)}
OVER = {"I": "image", "C": "class"}

EXACT: dict[str, Callable[..., float]] = {
    "miou": oracles.miou,
    "macc": oracles.macc,
    "gacc": oracles.gacc,
    "fwiou": oracles.fwiou,
    "biou_all": partial(oracles.biou, radius=2),
    "biou_fg": partial(oracles.biou, radius=2, background=False),
    "bf1_all": partial(oracles.bf1, radius=2),
    "bf1_fg": partial(oracles.bf1, radius=2, background=False),
}


def loss(case: reference.Case, key: str, logits: np.ndarray) -> float:
    """The oracle's value of the published loss `key`."""
    family, name, *variant = key.split("_")
    if family == "jdt":
        target = case.soft_target if variant[-1] == "soft" else case.target
        return oracles.jdt_loss(logits, target, *TVERSKY[name], over=OVER.get(variant[0], "batch"))
    curves = [partial(oracles.bezier, points=points) for points in reference.control_points(name)]
    options = {"radius": int(variant[0][3:]), "background": variant[1] == "all"} if variant else {}
    classes = "all" if name == "macc" else "metric"
    return oracles.surrogate_loss(name, logits, case.target, curves, classes=classes, **options)


# The published figures ------------------------------------------------------------------------------------------------


@CASES
@pytest.mark.parametrize("key", reference.ASL_LOSSES + reference.JDT_LOSSES)
@pytest.mark.slow
def test_losses_are_the_published_ones(case: reference.Case, key: str) -> None:
    reference.assert_agrees(loss(case, key, case.logits), case.loss(key))


@CASES
@pytest.mark.parametrize("key", reference.METRICS)
def test_metrics_are_the_published_ones(case: reference.Case, key: str) -> None:
    actual = EXACT[key](case.logits.argmax(axis=1), case.target, CLASSES)
    reference.assert_agrees(actual, case.metric(key))


@CASES
@pytest.mark.parametrize("key", reference.ASL_LOSSES + reference.JDT_LOSSES)
@pytest.mark.slow
def test_slopes_of_the_losses_are_the_published_projections(case: reference.Case, key: str) -> None:
    step, entries = 1e-6, case.logits.size
    published = case.projections[f"{key}_grad"]
    nudge = step * reference.directions(entries)[:, -1].reshape(case.logits.shape)
    slope = (loss(case, key, case.logits + nudge) - loss(case, key, case.logits - nudge)) / (2 * step)
    typical = np.linalg.norm(published) / reference.DIRECTIONS**0.5
    assert abs(slope - published[-1]) < 1e-4 * typical


@CASES
def test_every_published_figure_is_checked(case: reference.Case) -> None:
    losses = reference.ASL_LOSSES + reference.JDT_LOSSES
    assert case.figures.keys() == {f"{key}_loss" for key in losses} | {f"metric_{key}" for key in reference.METRICS}
    assert case.projections.keys() == {f"{key}_grad" for key in losses}
    stored = json.loads((reference.FOLDER / "figures.json").read_text(encoding="utf-8"))
    assert stored.keys() == {"control_points", *reference.CASES}
    assert stored["control_points"].keys() == oracles.SLOTS.keys()


# The comparison helpers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [1.000002, 0.999998, -1.0, float("nan"), float("inf")])
def test_a_wrong_value_does_not_agree(wrong: float) -> None:
    reference.assert_agrees(1.0000005, 1.0)
    with pytest.raises(AssertionError, match="relative error"):
        reference.assert_agrees(wrong, 1.0)


def test_gradient_error_estimates_the_norm_of_the_difference() -> None:
    case = reference.cases()[0]
    random = np.random.default_rng(5)
    gradient, noise = random.normal(size=(2, *case.logits.shape))
    noise *= np.linalg.norm(gradient) / np.linalg.norm(noise)
    known = dataclasses.replace(case, projections={"known_grad": reference.project(gradient)})
    assert known.gradient_error("known", gradient) == 0
    assert known.gradient_error("known", np.zeros_like(gradient)) == 1
    assert known.gradient_error("known", -gradient) == pytest.approx(2)
    assert known.gradient_error("known", gradient + 1e-5 * noise) == pytest.approx(1e-5, rel=0.5)
    assert known.gradient_error("known", gradient[..., ::-1]) > 1
    gradient[0, 0, 0, 0] = np.nan
    assert not known.gradient_error("known", gradient) < 1e-5


def test_directions_are_signs_that_no_version_of_numpy_changes() -> None:
    signs = reference.directions(18304)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    overlaps = signs.T @ signs / len(signs) - np.eye(reference.DIRECTIONS)
    assert abs(overlaps).max() < 0.05
    assert signs[:2, :8].tolist() == [[1, -1, -1, 1, 1, 1, 1, -1], [-1, -1, 1, -1, -1, -1, -1, 1]]


# Laws of the oracles --------------------------------------------------------------------------------------------------


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a target of a few small images, with ignored pixels; each image has its own highest class."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.integers(low, high)) for low, high in ((1, 3), (4, 9), (4, 9)))
    pred, target = (random.integers(0, random.integers(1, CLASSES + 1, (shape[0], 1, 1)), shape) for _ in range(2))
    target = np.where(random.random(shape) < draw(st.sampled_from([0, 0.5, 0.9])), np.minimum(pred, target), target)
    target = np.where(random.random(shape) < draw(st.sampled_from([0, 0.1, 0.5])), oracles.IGNORED, target)
    return pred, target


ALL_EXACT = {
    **EXACT,
    "dice": oracles.dice,
    "tversky": partial(oracles.tversky, alpha=0.3, beta=0.7),
    "miou_i": oracles.miou_i,
    "miou_c": oracles.miou_c,
}
EVERY_EXACT = pytest.mark.parametrize("metric", ALL_EXACT.values(), ids=ALL_EXACT.keys())


@EVERY_EXACT
@FEW
@given(maps=label_maps())
def test_metrics_lie_in_0_1_and_do_not_see_the_order_of_images(metric: Callable[..., float], maps) -> None:
    pred, target = maps
    value = metric(pred, target, CLASSES)
    assert 0 <= value <= 1
    assert metric(list(pred[::-1]), list(target[::-1]), CLASSES) == pytest.approx(value, abs=1e-12)


@EVERY_EXACT
def test_a_perfect_prediction_scores_1_and_an_ignored_target_0(metric: Callable[..., float]) -> None:
    target = reference.cases()[0].target % 5 % CLASSES
    assert metric(target, target, CLASSES) == 1
    assert metric(target, np.full_like(target, oracles.IGNORED), CLASSES) == 0


@pytest.mark.parametrize("metric", [m for name, m in ALL_EXACT.items() if not name.startswith("bf1")])
@FEW
@given(maps=label_maps())
def test_all_but_bf1_do_not_see_the_prediction_on_ignored_pixels(metric: Callable[..., float], maps) -> None:
    pred, target = maps
    other = np.where(target == oracles.IGNORED, (pred + 1) % CLASSES, pred)
    assert metric(pred, target, CLASSES) == metric(other, target, CLASSES)


def test_metrics_of_a_map_counted_by_hand() -> None:
    target = np.array([[[0, 0, 1, 255], [0, 0, 1, 255]], [[2, 2, 2, 2], [2, 2, 2, 2]]])
    pred = np.array([[[0, 1, 1, 3], [0, 1, 1, 0]], [[2, 2, 2, 0], [2, 2, 2, 0]]])
    # class: both / either, target: 0: 2/6, 4; 1: 2/4, 2; 2: 6/8, 8; 3 in neither (its only pixel is ignored)
    expected = {
        "gacc": 10 / 14,
        "macc": (2 / 4 + 2 / 2 + 6 / 8) / 3,
        "miou": (2 / 6 + 2 / 4 + 6 / 8) / 3,
        "fwiou": (4 * 2 / 6 + 2 * 2 / 4 + 8 * 6 / 8) / 14,
        "dice": (4 / 8 + 4 / 6 + 12 / 14) / 3,
        # class 0: 2 right, 2 false positives, 2 missed; class 1: 2, 2, 0; class 2: 6, 0, 2
        "tversky": (2 / 4 + 2 / (2 + 0.3 * 2) + 6 / (6 + 0.7 * 2)) / 3,
        "miou_i": ((2 / 4 + 2 / 4) / 2 + 6 / 8) / 2,
        "miou_c": (2 / 4 + 2 / 4 + 6 / 8) / 3,
    }
    for name, value in expected.items():
        assert ALL_EXACT[name](pred, target, CLASSES) == pytest.approx(value, abs=1e-12), name


def test_boundary_metrics_of_a_map_counted_by_hand() -> None:
    target = np.array([[[0] * 4 + [1] * 4] * 4])
    pred = np.array([[[0] * 5 + [1] * 3] * 4])
    # The edges are columns 3 and 4 in the target, 4 and 5 in the prediction.
    assert oracles.biou(pred, target, 2, radius=1) == pytest.approx((8 / 12 + 4 / 8) / 2)
    assert oracles.bf1(pred, target, 2, radius=0) == 0
    assert oracles.bf1(pred, target, 2, radius=1) == 1
    # Without the background's edge, the region is columns 3 to 5 around column 4.
    assert oracles.biou(pred, target, 2, radius=1, background=False) == pytest.approx((4 / 8 + 4 / 8) / 2)


@FEW
@given(maps=label_maps())
def test_relations_between_metrics(maps) -> None:
    assert oracles.dice(*maps, CLASSES) == pytest.approx(oracles.tversky(*maps, CLASSES, 0.5, 0.5), abs=1e-12)
    assert oracles.jaccard(*maps, CLASSES) == pytest.approx(oracles.tversky(*maps, CLASSES, 1, 1), abs=1e-12)
    everywhere = oracles.biou(*maps, CLASSES, radius=9)
    if len(np.unique(maps[1])) > 1 and len(maps[1]) == 1:
        assert everywhere == pytest.approx(oracles.miou(*maps, CLASSES), abs=1e-12)


coordinates = st.lists(st.floats(0.02, 0.98), min_size=6, max_size=6)


@FEW
@given(theta=coordinates)
def test_curves_rise_between_fixed_ends(theta: list[float]) -> None:
    points = oracles.control_points(theta)
    x = np.linspace(0, 1, 101)
    for curve in (oracles.bezier, oracles.linear):
        y = curve(x, points)
        assert y[0] == pytest.approx(0, abs=1e-12)
        assert y[-1] == pytest.approx(1, abs=1e-12)
        assert (np.diff(y) > 0).all()
    np.testing.assert_allclose(oracles.bezier(points[1, :1], points), points[1, 1:], atol=1e-9)
    np.testing.assert_allclose(oracles.linear(points[:, 0], points), points[:, 1], atol=1e-9)


def test_control_points_by_hand() -> None:
    starting_point = [1 / 4, 1 / 4, 1 / 3, 1 / 3, 1 / 2, 1 / 2]
    np.testing.assert_allclose(oracles.control_points(starting_point), [[0.25] * 2, [0.5] * 2, [0.75] * 2])
    np.testing.assert_allclose(oracles.control_points([0.5, 0, 0.5, 1]), [[0.5, 0], [0.75, 1]])
    x = np.linspace(0, 1, 11)
    np.testing.assert_allclose(oracles.bezier(x, oracles.control_points(starting_point)), x, atol=1e-12)
    # One piece through (0, 1): x = t^2, y = 2t - t^2.
    np.testing.assert_allclose(oracles.bezier(x, [[0, 1]]), 2 * np.sqrt(x) - x, atol=1e-9)
    np.testing.assert_allclose(oracles.linear([0.1, 0.6], [[0.2, 0.8]]), [0.4, 0.9], atol=1e-12)


@pytest.mark.parametrize("name", ["gacc", "macc", "miou", "fwiou", "biou_all", "biou_fg", "bf1_all", "bf1_fg"])
@FEW
@given(maps=label_maps(), theta=coordinates)
@pytest.mark.slow
def test_a_surrogate_is_exact_on_one_hot_predictions(name: str, maps, theta: list[float]) -> None:
    pred, target = maps
    metric, *variant = name.split("_")
    curves = [partial(oracles.bezier, points=oracles.control_points(theta))] * oracles.SLOTS[metric]
    options = {"radius": 2, "background": variant == ["all"]} if variant else {}
    actual = oracles.surrogate_loss(metric, 2000 * oracles.one_hot(pred, CLASSES), target, curves, **options)
    assert actual == pytest.approx(1 - EXACT[name](pred, target, CLASSES), abs=1e-9)


@pytest.mark.parametrize("over", ["batch", "image", "class"])
@FEW
@given(maps=label_maps())
def test_jdt_losses_are_exact_on_one_hot_predictions(over: str, maps) -> None:
    pred, target = maps
    actual = oracles.jdt_loss(2000 * oracles.one_hot(pred, CLASSES), target, over=over)
    if over == "batch":
        n = oracles.Counts(pred, target, CLASSES)
        iou, present = oracles.ratio(n.both.sum(0), n.either.sum(0)), n.target.sum(0) > 0
        expected = oracles.mean(iou, present)
    else:
        expected = {"image": oracles.miou_i, "class": oracles.miou_c}[over](pred, target, CLASSES)
    assert actual == pytest.approx(1 - expected, abs=1e-9)


@FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_jdt_losses_are_0_where_the_prediction_is_the_soft_target(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(2, CLASSES, 3, 4))
    for (alpha, beta), over in zip(TVERSKY.values(), ("batch", "image", "class"), strict=True):
        same = oracles.jdt_loss(logits, oracles.softmax(logits), alpha, beta, over=over)
        other = oracles.jdt_loss(logits + 0.1 * np.eye(CLASSES)[0][:, None, None], oracles.softmax(logits), alpha, beta)
        assert same == pytest.approx(0, abs=1e-12)
        assert other > 1e-4
