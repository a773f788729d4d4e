"""Cross-entropy whose pixels weigh a power of the pixels of their class."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from autosegloss.errors import InputError
from autosegloss.loss import build_loss
from autosegloss.loss.classic import CrossEntropy, weights_of_counts
from tests import strategies
from tests.examples import examples

powers = st.floats(-2, 2)


def logits_of(labels: strategies.Labels) -> tuple[Tensor, Tensor]:
    target = torch.from_numpy(labels.target)
    shape = (len(target), labels.num_classes, *target.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), target


def shares_of(target: Tensor, num_classes: int) -> Tensor:
    """One-hot maps, (N, C, *S), and 0 where a pixel does not count."""
    return torch.stack([target == label for label in range(num_classes)], 1).double()


def by_hand(logits: Tensor, shares: Tensor, power: float, smoothing: float = 0.0, counts: Any = None) -> Tensor:
    """Each share of each pixel weighs a power of the pixels of its class; the mean by these weights."""
    log = logits.log_softmax(1)
    of_share = (1 - smoothing) * log + smoothing * log.mean(1, keepdim=True)
    axes = [0, *range(2, logits.ndim)]
    pixels = shares.sum(axes).clamp(min=1) if counts is None else torch.tensor(counts, dtype=torch.float64)
    weights = pixels ** (-power)
    weighted = shares * weights.view(-1, *[1] * (logits.ndim - 2))
    return -(weighted * of_share).sum() / weighted.sum() if bool(shares.any()) else logits.sum() * 0


def value_and_gradient(loss: Any, logits: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits, *others)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def assert_close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], rtol: float = 1e-9) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@examples(25)
@given(labels=strategies.labels(), power=powers, smoothing=st.sampled_from([0.0, 0.2]))
def test_the_laws_of_class_power(labels: strategies.Labels, power: float, smoothing: float) -> None:
    logits, target = logits_of(labels)
    shares = shares_of(target, labels.num_classes)
    loss = CrossEntropy(label_smoothing=smoothing, class_power=power)
    expected = value_and_gradient(lambda x: by_hand(x, shares, power, smoothing), logits)
    assert_close(value_and_gradient(loss, logits, target), expected)
    if bool((target != 255).all()):  # one-hot labels are labels
        assert_close(value_and_gradient(loss, logits, shares), expected)
    # The mean weight of a pixel is 1: a loss of log C at each pixel has the mean log C.
    level = loss(torch.zeros_like(logits), target)
    assert level.item() == pytest.approx(math.log(labels.num_classes) if bool(shares.any()) else 0, rel=1e-12)
    # 0 is cross-entropy, to the bit.
    plain = value_and_gradient(CrossEntropy(label_smoothing=smoothing), logits, target)
    assert all(
        map(torch.equal, value_and_gradient(CrossEntropy(None, smoothing, class_power=0), logits, target), plain)
    )
    # 1 is the mean over the classes present.
    present = [label for label in range(labels.num_classes) if bool((target == label).any())]
    log = functional.cross_entropy(logits, target, ignore_index=255, reduction="none", label_smoothing=smoothing)
    means = [log[target == label].mean() for label in present]
    balanced = CrossEntropy(label_smoothing=smoothing, class_power=1)(logits, target)
    assert balanced.item() == pytest.approx(float(sum(means)) / max(1, len(means)), rel=1e-9)


@examples(20)
@given(soft=strategies.soft_targets(), power=powers, smoothing=st.sampled_from([0.0, 0.2]), seed=strategies.seeds)
def test_the_pixels_of_a_class_of_soft_labels_are_its_mass(
    soft: Tensor, power: float, smoothing: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(soft.shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(soft.shape[0], *soft.shape[2:], generator=generator) < 0.8
    loss = CrossEntropy(label_smoothing=smoothing, class_power=power)
    expected = value_and_gradient(lambda x: by_hand(x, soft * mask.unsqueeze(1), power, smoothing), logits)
    assert_close(value_and_gradient(loss, logits, soft, mask), expected)


@examples(20)
@given(labels=strategies.labels(), power=powers.filter(bool), data=st.data())
def test_counts_stand_for_the_pixels_of_the_batch_and_are_in_the_file(
    labels: strategies.Labels, power: float, data: st.DataObject
) -> None:
    logits, target = logits_of(labels)
    size = labels.num_classes
    counts = data.draw(st.lists(st.integers(1, 10**6) | st.floats(1e-3, 1), min_size=size, max_size=size))
    loss = CrossEntropy(class_power=power, counts=counts)
    expected = value_and_gradient(lambda x: by_hand(x, shares_of(target, size), power, counts=counts), logits)
    assert_close(value_and_gradient(loss, logits, target), expected)
    again = build_loss(loss.content())
    assert again.content() == loss.content()
    assert loss.content()["options"]["counts"] == counts
    assert all(map(torch.equal, value_and_gradient(again, logits, target), value_and_gradient(loss, logits, target)))


def test_the_square_root_of_counts_is_the_weighted_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 9, 9, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (2, 9, 9), generator=generator)
    for counts in ([9000, 30, 1, 500], [9000, 0, 1, 0]):  # of a class of 0 pixels nothing is known
        for power, kind in ((0.5, "sqrt_inverse"), (1, "inverse")):
            old = CrossEntropy(weights_of_counts(counts, cast("Any", kind)))
            new = CrossEntropy(class_power=power, counts=counts)
            assert_close(value_and_gradient(new, logits, target), value_and_gradient(old, logits, target), rtol=1e-6)


def test_what_has_no_class_power_is_written_as_before_and_it_compiles() -> None:
    assert CrossEntropy().options == {"weight": None, "label_smoothing": 0.0}
    assert CrossEntropy(class_power=0.5).options == {
        "weight": None,
        "label_smoothing": 0.0,
        "class_power": 0.5,
        "counts": None,
    }
    logits, target = torch.randn(2, 3, 5, 5), torch.randint(0, 3, (2, 5, 5))
    target[0] = 255
    for loss in (CrossEntropy(class_power=0.7), CrossEntropy(class_power=0.7, counts=[1, 2, 3])):
        compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
        for given_target in (target, logits.softmax(1)):
            expected = value_and_gradient(loss, logits, given_target)
            assert_close(value_and_gradient(compiled, logits, given_target), expected, rtol=1e-5)
    large = torch.zeros(1, 3, 700, 700)  # half a million pixels in float32
    for power in (-2, 2):
        one = torch.zeros(1, 700, 700, dtype=torch.int64)
        one[0, 0, :2] = torch.tensor([1, 2])
        assert CrossEntropy(class_power=power)(large, one).item() == pytest.approx(math.log(3), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"class_power": 2.5}, "class_power must be a number from -2 to 2, got 2.5."),
        ({"class_power": "1"}, "class_power must be a number from -2 to 2, got '1'."),
        ({"class_power": None}, "class_power must be a number from -2 to 2, got None."),
        ({"class_power": math.nan}, "class_power must be a number from -2 to 2, got nan."),
        ({"class_power": 1, "weight": [1, 2]}, "weight excludes class_power and counts"),
        ({"counts": [1, 2], "weight": [1, 2]}, "weight excludes class_power and counts"),
        ({"counts": [1, 2]}, "counts are for a class_power other than 0; give both, or neither."),
        ({"class_power": 1, "counts": []}, "counts must be the pixels of each class, numbers of at least 0, got []."),
        ({"class_power": 1, "counts": "12"}, "counts must be the pixels of each class, numbers of at least 0"),
        ({"class_power": 1, "counts": [1, -1]}, "counts must be the pixels of each class, numbers of at least 0"),
        ({"class_power": 1, "counts": [1, None]}, "counts must be the pixels of each class, numbers of at least 0"),
        ({"class_power": 1, "counts": [True, 1]}, "counts must be the pixels of each class, numbers of at least 0"),
        ({"class_power": 1, "counts": [0, 0]}, "counts must have a class with pixels"),
        ({"class_power": 2, "counts": [1e-160, 1]}, "counts must have a class with pixels"),
    ],
)
def test_mistakes_in_the_options(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        CrossEntropy(**options)
    assert str(caught.value).startswith(expected)


def test_counts_of_other_classes() -> None:
    with pytest.raises(InputError, match=r"counts has 2 numbers; the logits have 3 classes\."):
        CrossEntropy(class_power=1, counts=[1, 2])(torch.zeros(1, 3, 2), torch.zeros(1, 2, dtype=torch.int64))
