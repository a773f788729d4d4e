from __future__ import annotations

import itertools
import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import ExprError, InputError, InputTypeError
from autosegloss.metric import (
    METRICS,
    Accumulator,
    Accumulators,
    Expr,
    any_class,
    class_sum,
    image_mean,
    metric,
    per_image,
    pred,
    target,
    total,
)
from autosegloss.metric import expr as e
from tests import oracles, strategies
from tests.examples import examples

# An independent reading ----------------------------------------------------------------------------------------------


def numpy_value(expr: Expr, labels: strategies.Labels, ignored: int = 255) -> float:
    """The exact value of any metric, from the words of the language: arrays are (N, C, *S), then (N, C)."""
    leaves = {
        "pred": oracles.one_hot(labels.pred, labels.num_classes),
        "target": oracles.one_hot(np.where(labels.target == ignored, -1, labels.target), labels.num_classes),
    }
    counts = (labels.target != ignored)[:, None]

    def read(node: Any) -> npt.NDArray[np.float64]:
        match node:
            case e.Leaf():
                return leaves[node.name]
            case e.Number():
                return np.array(node.value)
            case e.Logic():
                a, b = read(node.left) > 0, read(node.right) > 0
                return np.asarray({"&": a & b, "|": a | b, "^": a != b}[node.op], float)
            case e.Not():
                return 1 - read(node.map)
            case e.Erode():
                x = read(node.map)
                return oracles.window(x, pixels(node.radius, x), 0.0 if node.border else 1.0).min(0)
            case e.Dilate():
                x = read(node.map)
                radius = pixels(node.radius, x)
                shifts = itertools.product(range(-radius, radius + 1), repeat=x.ndim - 2)
                near = [node.shape == "square" or sum(s * s for s in shift) <= radius**2 for shift in shifts]
                return oracles.window(x, radius, 0.0)[near].max(0)
            case e.AnyClass():
                return read(node.map)[:, 0 if node.background else 1 :].max(1, keepdims=True, initial=0)
            case e.Arithmetic():
                a, b = read(node.left), read(node.right)
                return oracles.ratio(a, b) if node.op == "/" else {"+": a + b, "-": a - b, "*": a * b}[node.op]
            case e.Sum():
                x = read(node.map) * (1 if node.within is None else read(node.within))
                x = (x * counts if node.void == "skip" else x).sum(tuple(range(2, x.ndim)))
                return x if node.per_image else x.sum(0, keepdims=True)
            case e.ClassSum():
                return read(node.value).sum(1, keepdims=True)
            case e.ClassMean():
                value, counted = over(node)
                if not node.background:
                    counted[:, 0] = False
                numbers = range(labels.num_classes) if node.classes is None else node.classes
                weights = node.weights or (1,) * len(numbers)
                weight = np.zeros(labels.num_classes)
                weight[list(numbers)] = weights
                shares = counted * weight
                sums = (np.where(shares > 0, value, 0) * shares).sum(1, keepdims=True)
                return sums / np.where(shares.any(1, keepdims=True), shares.sum(1, keepdims=True), 1)
            case e.ImageMean():
                value, counted = over(node)
                return np.array([[oracles.mean(*column) for column in zip(value.T, counted.T, strict=True)]])
            case e.ImageWorst():
                value, counted = over(node)
                return np.array([[worst(value[:, c][counted[:, c]], node.fraction) for c in range(value.shape[1])]])
        raise AssertionError(node)

    def pixels(radius: float, x: npt.NDArray[np.float64]) -> int:
        return radius if isinstance(radius, int) else max(1, round(radius * math.dist(x.shape[2:], [0] * (x.ndim - 2))))

    def over(node: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        value = read(node.value)
        where = np.ones(value.shape) if node.where is None else read(node.where)
        return value, np.array(np.broadcast_to(where > 0, value.shape))

    def worst(values: npt.NDArray[np.float64], fraction: float) -> float:
        lowest = np.sort(values)[: max(1, int(fraction * len(values) + 1e-9))]
        return float(lowest.mean()) if len(lowest) else 0.0

    return read(expr).item()


def value(expr: Expr, labels: strategies.Labels) -> float:
    accumulator = Accumulator(expr, labels.num_classes)
    accumulator.update(*labels.tensors())
    return accumulator.compute()


@examples(250)
@given(drawn=strategies.metrics_of_labels())
@pytest.mark.slow
def test_any_metric_is_what_its_words_say(drawn: tuple[Expr, strategies.Labels]) -> None:
    expr, labels = drawn
    assert value(expr, labels) == pytest.approx(numpy_value(expr, labels), abs=1e-9, rel=1e-9)


def test_the_worst_images() -> None:
    target_map = torch.zeros(20, 100, dtype=torch.long)
    guess = torch.stack([(torch.arange(100) < image).long() for image in range(20)])  # wrong in 0, 1, ..., 19 pixels
    right = class_sum(per_image(pred & target)) / class_sum(per_image(target))
    for fraction, expected in [(0.05, 0.81), (0.14, 0.815), (0.15, 0.82), (0.3, 0.835), (1, 0.905), (1e-9, 0.81)]:
        accumulator = Accumulator(e.image_worst(right, fraction), 2)
        accumulator.update(guess, target_map)
        assert accumulator.compute() == pytest.approx(expected, abs=1e-12), fraction


def test_the_worst_share_of_100_images_is_a_whole_number_of_them() -> None:
    target_map = torch.zeros(100, 100, dtype=torch.long)
    guess = torch.stack([(torch.arange(100) < image).long() for image in range(100)])
    right = class_sum(per_image(pred & target)) / class_sum(per_image(target))
    for percent in range(1, 101):
        accumulator = Accumulator(e.image_worst(right, percent / 100), 2)
        accumulator.update(guess, target_map)
        expected = sum(range(1, percent + 1)) / percent / 100  # 0.29 * 100 is 28.999999999999996
        assert accumulator.compute() == pytest.approx(expected, abs=1e-12), percent


def test_the_worst_of_the_images_that_count() -> None:
    right = class_sum(per_image(pred & target)) / class_sum(per_image(target))
    foreground = per_image(any_class(target, background=False))
    target_map = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    guess = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]])  # right: 1/4, 3/4, 3/4, 1/2
    for fraction, where, expected in [
        (0.5, None, (1 / 4 + 1 / 2) / 2),
        (0.5, foreground, 1 / 2),
        (0.7, foreground, (1 / 2 + 3 / 4) / 2),
        (1, foreground, 2 / 3),
    ]:
        accumulator = Accumulator(e.image_worst(right, fraction, where), 2)
        accumulator.update(guess, target_map)
        assert accumulator.compute() == pytest.approx(expected, abs=1e-12), (fraction, str(where))


# Order, batches and shards --------------------------------------------------------------------------------------------

WHOLE = {
    **{name: build() for name, build in METRICS.items()},
    "worst": e.image_worst(METRICS["miou_i"]().operands[0], 0.4),
}


@examples(60)
@given(labels=strategies.labels(images=(1, 7)), data=st.data())
@pytest.mark.slow
def test_order_batches_and_shards_change_nothing(labels: strategies.Labels, data: st.DataObject) -> None:
    guess, truth = labels.tensors()
    whole = Accumulators(WHOLE, labels.num_classes)
    whole.update(guess, truth)
    expected = whole.values()

    order = data.draw(st.permutations(range(len(guess))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order) - 1)))) if len(order) > 1 else []
    shards = [Accumulators(WHOLE, labels.num_classes) for _ in range(data.draw(st.integers(1, 3)))]
    for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True):
        shard = data.draw(st.sampled_from(shards))
        shard.update(guess[order[start:end]], truth[order[start:end]])
    merged = shards[0]
    for shard in shards[1:]:
        other = pickle.loads(pickle.dumps(shard))  # as it comes from another process
        assert merged.merge(other) is merged
    assert merged.values() == expected  # equal, not close
    for name, expr in WHOLE.items():
        single = Accumulator(expr, labels.num_classes)
        single.update(guess, truth)
        assert single.compute() == expected[name]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("gacc", "macc", "miou", "fwiou", "dice", "miou_i", "miou_c")),
        ("tversky", {"alpha": 0.3, "beta": 0.7}),
        *((name, {"radius": 5, "background": False}) for name in ("biou", "bf1")),
    ],
)
def test_images_of_several_sizes_make_one_data_set(name: str, options: dict[str, Any]) -> None:
    random = np.random.default_rng(4)
    maps = [tuple(random.integers(0, 3, (2, *shape)) for _ in "pt") for shape in ((3, 5), (4, 4), (1, 9))]
    accumulator = Accumulator(metric(name, **options), 3)
    for guess, truth in maps:
        accumulator.update(torch.tensor(guess), torch.tensor(truth))
    images = [[image for pair in maps for image in pair[side]] for side in (0, 1)]
    assert accumulator.compute() == pytest.approx(getattr(oracles, name)(*images, 3, **options), abs=1e-12)


def test_merging_leaves_the_other_as_it_is() -> None:
    first, second = (Accumulators(WHOLE, 2) for _ in range(2))
    first.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
    second.update(torch.tensor([[1, 1]]), torch.tensor([[0, 1]]))
    before = second.values()
    first.merge(second)
    first.update(torch.tensor([[1, 1]]), torch.tensor([[0, 0]]))
    assert second.values() == before


def test_counts_are_exact_beyond_float32() -> None:
    accumulator = Accumulator(metric("gacc"), 2)
    accumulator.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
    for _ in range(40):
        accumulator.merge(accumulator)
    accumulator.update(torch.tensor([[1]]), torch.tensor([[0]]))
    assert accumulator.compute() == 2 * 2**40 / (3 * 2**40 + 1)
    assert accumulator.compute() != 2 / 3


@pytest.mark.parametrize("weight", [1, 3, 0.5])
def test_weighted_counts_are_exact_beyond_float32(weight: float) -> None:
    accumulator = Accumulator(class_sum(total(weight * (pred + target))), 2)
    accumulator.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
    for _ in range(40):
        accumulator.merge(accumulator)
    accumulator.update(torch.tensor([[1]]), torch.tensor([[0]]))
    assert accumulator.compute() == weight * (6 * 2**40 + 2)


# What is given --------------------------------------------------------------------------------------------------------


@examples(40)
@given(labels=strategies.labels(), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
@pytest.mark.slow
def test_scores_and_labels_agree(labels: strategies.Labels, dtype: torch.dtype) -> None:
    guess, truth = labels.tensors()
    from_labels, from_scores = (Accumulators(WHOLE, labels.num_classes) for _ in range(2))
    from_labels.update(guess, truth)
    from_scores.update(labels.scores(dtype, high=2.0), truth)
    assert from_labels.values() == from_scores.values()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type(dtype: torch.dtype) -> None:
    guess, truth = torch.tensor([[0, 1, 2, 1]], dtype=dtype), torch.tensor([[0, 2, 2, 100]], dtype=dtype)
    accumulator = Accumulator(metric("gacc"), 3, ignore_index=100)
    accumulator.update(guess, truth)
    assert accumulator.compute() == pytest.approx(2 / 3)
    assert guess.tolist() == [[0, 1, 2, 1]]
    assert truth.tolist() == [[0, 2, 2, 100]]


@pytest.mark.parametrize("ignored", [-100, -1, 0, 2, 255])
def test_any_ignored_label(ignored: int) -> None:
    random = np.random.default_rng(ignored % 97)
    guess, truth = (random.integers(0, 3, (2, 6, 6)) for _ in range(2))
    truth[:, :2] = ignored
    labels = strategies.Labels(guess, truth, 3)
    boundaries = {name: metric(name, radius=1, background=True) for name in ("biou", "bf1")}
    for name, expr in (WHOLE | boundaries).items():
        accumulator = Accumulator(expr, 3, ignore_index=ignored)
        accumulator.update(*labels.tensors())
        assert accumulator.compute() == pytest.approx(numpy_value(expr, labels, ignored), abs=1e-12), name


def test_a_target_with_a_channel_axis() -> None:
    accumulator = Accumulator(metric("miou"), 2)
    accumulator.update(torch.tensor([[[0, 1], [1, 1]]]), torch.tensor([[[[0, 1], [0, 1]]]]))
    assert accumulator.compute() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_labels_of_whole_images_are_maps_of_one_pixel() -> None:
    guess, truth = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 255])
    flat, maps, scores = (Accumulators(WHOLE, 3) for _ in range(3))
    flat.update(guess, truth)
    maps.update(guess.view(4, 1), truth.view(4, 1))
    scores.update(torch.eye(3)[guess], truth)
    assert flat.values() == maps.values() == scores.values()


@examples(60)
@given(labels=strategies.labels(), data=st.data())
@pytest.mark.slow
def test_a_mask_is_an_ignored_label(labels: strategies.Labels, data: st.DataObject) -> None:
    """In maps of any number of axes, for every metric; what the target holds outside the mask is never looked at."""
    guess, truth = labels.tensors()
    random = np.random.default_rng(data.draw(strategies.seeds))
    mask = torch.from_numpy(random.random(truth.shape) < data.draw(st.sampled_from([0.0, 0.5, 1.0])))
    ignored = data.draw(st.sampled_from([255, -1, 0]))
    truth = torch.where(truth == 255, ignored, truth)
    masked, written = (Accumulators(WHOLE, labels.num_classes, ignore_index=ignored) for _ in range(2))
    given_ = data.draw(st.sampled_from([truth, torch.where(mask, truth, 77)]))
    before = given_.clone()
    masked.update(guess, given_, mask.unsqueeze(1) if data.draw(st.booleans()) else mask)
    written.update(guess, torch.where(mask, truth, ignored))
    assert masked.values() == written.values()
    assert torch.equal(given_, before)


def test_a_mask_by_hand() -> None:
    accumulator = Accumulator("gacc", 2)
    accumulator.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]), torch.tensor([[False, True, True]]))
    assert accumulator.compute() == 1 / 2


def test_a_mask_in_a_type_that_cannot_hold_the_ignored_label() -> None:
    accumulator = Accumulator("gacc", 2, ignore_index=-100)
    target = torch.tensor([[0, 1, 0]], dtype=torch.uint8)
    accumulator.update(torch.tensor([[0, 1, 1]]), target, torch.tensor([[False, True, True]]))
    assert accumulator.compute() == 1 / 2


def test_reset_forgets_everything() -> None:
    accumulator = Accumulators(WHOLE, 3)
    nothing = accumulator.values()
    accumulator.update(torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1, 1, 255]]))
    first = accumulator.values()
    accumulator.update(torch.tensor([[2, 2, 2, 2]]), torch.tensor([[0, 1, 1, 2]]))
    assert accumulator.values() != first
    accumulator.reset()
    assert accumulator.values() == nothing
    accumulator.update(torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1, 1, 255]]))
    assert accumulator.values() == first


def test_a_metric_of_nothing_is_0() -> None:
    accumulator = Accumulators(WHOLE, 3)
    assert set(accumulator.values().values()) == {0.0}
    accumulator.update(torch.zeros(0, 4, 4, dtype=torch.long), torch.zeros(0, 4, 4, dtype=torch.long))
    assert set(accumulator.values().values()) == {0.0}
    accumulator.update(torch.zeros(1, 4, 4, dtype=torch.long), torch.full((1, 4, 4), 255))
    assert set(accumulator.values().values()) == {0.0}


def test_maps_without_a_class_axis() -> None:
    """Both readings of foreground against background: of the data set, and of each image."""
    said, true = any_class(pred, background=False), any_class(target, background=False)
    whole = total(said & true) / total(said | true)
    each = image_mean(per_image(said & true) / per_image(said | true))
    accumulator = Accumulators({"whole": whole, "each": each}, 3)
    assert accumulator.values() == {"whole": 0, "each": 0}
    accumulator.update(torch.tensor([[0, 1, 2], [1, 1, 0]]), torch.tensor([[0, 2, 0], [1, 1, 2]]))
    accumulator.update(torch.tensor([[0, 1, 2]]), torch.tensor([[1, 1, 2]]))
    assert accumulator.values() == pytest.approx({"whole": 5 / 8, "each": (1 / 2 + 2 / 3 + 2 / 3) / 3})


def test_weights_of_pixels_may_be_any_number() -> None:
    for weight in (0.25, 3, 1e20, -1e-9):
        accumulator = Accumulator(class_sum(total(weight * (pred & target))), 2)
        accumulator.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 0]]))
        assert accumulator.compute() == pytest.approx(2 * weight)


@pytest.mark.parametrize("metric", ["boundary_iou", "boundary_iou_i", "bf1", "miou"])
def test_a_channel_axis_of_label_maps_is_no_axis_of_space(metric: str) -> None:
    guess, truth = (torch.randint(0, 3, (2, 4, 4)).repeat_interleave(5, 1).repeat_interleave(5, 2) for _ in range(2))
    plain = Accumulator(metric, 3)
    plain.update(guess, truth)
    for channels in ((guess[:, None], truth[:, None]), (guess, truth[:, None]), (guess[..., None], truth[..., None])):
        accumulator = Accumulator(metric, 3)
        accumulator.update(*channels)
        assert accumulator.compute() == plain.compute()


def test_numbers_of_numpy_are_numbers() -> None:
    labels = np.array([[0, 2, 255]])
    accumulator = Accumulator("miou", labels[labels < 255].max() + np.int64(1), ignore_index=np.uint8(255))
    assert repr(accumulator) == repr(Accumulator("miou", 3, ignore_index=255))
    for wrong in (True, np.True_, 2.0, np.float32(2), "2", None):
        with pytest.raises(InputError, match="num_classes must be"):
            Accumulator("miou", wrong)


# Mistakes: the text is golden, and nothing has been counted -----------------------------------------------------------

LABELS = torch.zeros(1, 2, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("guess", "truth", "kind", "expected"),
    [
        ([0], LABELS, InputTypeError, "prediction must be a torch tensor, got list."),
        (LABELS, np.zeros((1, 2, 2), int), InputTypeError, "target must be a torch tensor, got ndarray."),
        (
            torch.zeros(1, 4, 2, 2),
            LABELS,
            InputError,
            "scores must have shape (N, 3, *S), one map per class, got (1, 4, 2, 2).",
        ),
        (torch.zeros(2), LABELS, InputError, "scores must have shape (N, 3, *S), one map per class, got (2,)."),
        (
            LABELS + 3,
            LABELS,
            InputError,
            "prediction has labels outside the classes at 4 of 4 pixels: 3; allowed: 0..2.",
        ),
        (
            LABELS + 255,
            LABELS,
            InputError,
            "prediction has labels outside the classes at 4 of 4 pixels: 255; allowed: 0..2.",
        ),
        (
            LABELS,
            torch.tensor([[[3, 0], [-1, 255]]]),
            InputError,
            "target has labels outside the classes at 2 of 4 pixels: -1, 3; allowed: 0..2 and 255 (ignored).",
        ),
        (
            torch.zeros(1, 3, 4, 4),
            torch.arange(10, 26).view(1, 4, 4),
            InputError,
            "target has labels outside the classes at 16 of 16 pixels: 10, 11, 12, 13, 14, 15, 16, 17, ...; "
            "allowed: 0..2 and 255 (ignored).",
        ),
        (LABELS, LABELS.float(), InputTypeError, "target must have an integer dtype, got torch.float32."),
        (LABELS.bool(), LABELS, InputTypeError, "prediction must have an integer dtype, got torch.bool."),
        (
            LABELS,
            torch.zeros(1, 3, 3, dtype=torch.long),
            InputError,
            "target must have shape (1, 2, 2) or (1, 1, 2, 2), got (1, 3, 3).",
        ),
        (
            torch.zeros(2, 3, 2, 2),
            LABELS,
            InputError,
            "target must have shape (2, 2, 2) or (2, 1, 2, 2), got (1, 2, 2).",
        ),
        (
            torch.full((1, 3, 2, 2), torch.nan),
            LABELS,
            InputError,
            "scores are NaN at 4 of 4 pixels; no class is the best there.",
        ),
        (
            torch.tensor([[[0.0, 2.0], [torch.nan, 1.0], [9.0, torch.inf]]]),
            LABELS[:, 0],
            InputError,
            "scores are NaN at 1 of 2 pixels; no class is the best there.",
        ),
        (
            torch.tensor(1),
            torch.tensor(1),
            InputError,
            "prediction must be label maps (N, *S), got a single label.",
        ),
    ],
)
def test_mistakes_in_a_batch(guess: Any, truth: Any, kind: type[Exception], expected: str) -> None:
    accumulator = Accumulators(WHOLE, 3)
    accumulator.update(torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1, 1, 2]]))
    before = accumulator.values()
    with pytest.raises(kind) as caught:
        accumulator.update(guess, truth)
    assert type(caught.value) is kind
    assert str(caught.value) == expected
    assert accumulator.values() == before


@pytest.mark.parametrize(
    ("mask", "kind", "expected"),
    [
        (LABELS, InputTypeError, "mask must be a boolean tensor, True where a pixel counts, got torch.int64."),
        ([[True]], InputTypeError, "mask must be a boolean tensor, True where a pixel counts, got list."),
        (torch.ones(1, 2, dtype=torch.bool), InputError, "mask must have shape (1, 2, 2) or (1, 1, 2, 2), got (1, 2)."),
    ],
)
def test_mistakes_in_a_mask(mask: Any, kind: type[Exception], expected: str) -> None:
    accumulator = Accumulator("gacc", 3)
    with pytest.raises(kind) as caught:
        accumulator.update(LABELS, LABELS, mask)
    assert type(caught.value) is kind
    assert str(caught.value) == expected
    assert accumulator.compute() == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("miou", 0), "num_classes must be an integer from 1 to 65536, got 0."),
        (("miou", 2.0), "num_classes must be an integer from 1 to 65536, got 2.0."),
        (("miou", True), "num_classes must be an integer from 1 to 65536, got True."),
        (("miou", 2, None), "ignore_index must be an integer label, got None. With -1 no pixel is ignored."),
        (("miou", 2, 255.0), "ignore_index must be an integer label, got 255.0. With -1 no pixel is ignored."),
    ],
)
def test_mistakes_in_the_arguments(arguments: tuple[Any, ...], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        Accumulator(metric(arguments[0]), *arguments[1:])
    assert str(caught.value) == expected


def test_metrics_have_names() -> None:
    with pytest.raises(InputTypeError, match=r"metrics must be a mapping of names to metrics, got list"):
        Accumulators(["miou"], 3)  # type: ignore[arg-type]


def test_what_is_no_metric() -> None:
    with pytest.raises(ExprError, match=r"a metric is one number, but\n  total\(pred\) is a per-class total"):
        Accumulator(total(pred), 3)


@pytest.mark.parametrize(
    "other",
    [
        Accumulator(metric("macc"), 3),
        Accumulator(metric("miou"), 4),
        Accumulator(metric("miou"), 3, ignore_index=0),
        Accumulators({"metric": metric("miou")}, 3),
        3,
    ],
)
def test_only_the_same_can_be_merged(other: Any) -> None:
    this = Accumulator(metric("miou"), 3)
    with pytest.raises(InputError) as caught:
        this.merge(other)
    assert (
        str(caught.value) == f"only accumulators that count the same can be merged, got\n  {other!r}\nfor\n  {this!r}."
    )


def test_an_accumulator_says_what_it_counts() -> None:
    assert repr(Accumulator("gacc", 3, ignore_index=0)) == (
        "Accumulator({'metric': 'class_sum(total(pred & target)) / class_sum(total(target))'}, "
        "num_classes=3, ignore_index=0)"
    )


def test_class_values_are_what_the_mean_averages() -> None:
    accumulator = Accumulator("miou", num_classes=3)
    accumulator.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]))
    assert accumulator.class_values("metric") == [0.5, 0.5, None]  # class 2 is in neither map
    assert accumulator.compute() == 0.5


def test_class_values_per_image_are_means_over_the_images_with_the_class() -> None:
    accumulator = Accumulator("miou_i", num_classes=3)
    accumulator.update(torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]), torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]]))
    assert accumulator.class_values("metric") == [0.75, pytest.approx(2 / 3), None]


@pytest.mark.parametrize("name", ["gacc", "miou_c * 1.0"])
def test_what_is_no_mean_over_classes_has_no_class_values(name: str) -> None:
    assert Accumulator(name, num_classes=2).class_values("metric") is None


def test_a_metric_that_is_not_counted_has_no_class_values() -> None:
    with pytest.raises(InputError, match="unknown metric `iou`; known: metric"):
        Accumulator("miou", 3).class_values("iou")


def test_an_ignored_label_has_64_bits() -> None:
    with pytest.raises(InputError, match="labels are integers of 64 bits"):
        Accumulator("miou", 3, ignore_index=2**63)
