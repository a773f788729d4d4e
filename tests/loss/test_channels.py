"""Logits and labels that a softmax over the classes has no meaning for are refused, with advice."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autosegloss import Accumulator, CalibrationError
from autosegloss.errors import InputError, InputTypeError
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss
from autosegloss.loss.classic import CLASSICS, class_counts
from autosegloss.loss.python import source
from autosegloss.metric.labels import SUM_TOLERANCE

LOSSES: dict[str, Loss] = {name: build(255, [4, 2, 1]) for name, build in CLASSICS.items()}
LOSSES |= {
    "product": SurrogateLoss("miou"),
    "godel": SurrogateLoss("dice", logic="godel"),
    "mix": MixedLoss(SurrogateLoss("miou"), 0.5),
}
SOFT = (
    "cross_entropy",
    "weighted_cross_entropy",
    "label_smoothing",
    "generalized_dice",
    "log_miou",
    "product",
    "godel",
    "mix",
)
EVERY = pytest.mark.parametrize("name", LOSSES)
TAKES_SOFT = pytest.mark.parametrize("name", SOFT)

LABELS = torch.arange(16).reshape(1, 4, 4) % 3
ONE_HOT = nn.functional.one_hot(LABELS, 3).movedim(-1, 1).float()


def exported(loss: Loss) -> Callable[..., Tensor]:
    """The function of the module that the loss is written as."""
    module = types.ModuleType("exported")
    exec(source(loss.content()), module.__dict__)
    function: Callable[..., Tensor] = module.loss  # type: ignore[attr-defined]
    return function


@EVERY
def test_one_channel_of_logits_is_refused_with_advice(name: str) -> None:
    logits = torch.zeros(2, 1, 4, 4)
    for target in (torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4).long(), torch.zeros(0, 4, 4).long()):
        with pytest.raises(InputError) as caught:
            LOSSES[name](logits[: len(target)], target)
        assert str(caught.value) == (
            f"logits have one channel, ({len(target)}, 1, 4, 4), and a softmax over one channel is 1 everywhere. A "
            "binary network needs two channels, background and foreground: pass torch.cat([torch.zeros_like(x), x], "
            "1), whose softmax is 1 - sigmoid(x) and sigmoid(x), with integer labels 0 and 1 as the target."
        )
    with pytest.raises(ValueError, match=r"two channels or more"):
        exported(LOSSES[name])(logits, torch.zeros(2, 4, 4).long())


def test_the_advice_for_one_channel_is_the_binary_loss() -> None:
    x, labels = torch.linspace(-3, 3, 32).view(2, 1, 4, 4), torch.arange(32).view(2, 4, 4) % 2
    two = torch.cat([torch.zeros_like(x), x], 1)
    expected = nn.functional.binary_cross_entropy_with_logits(x[:, 0], labels.float())
    torch.testing.assert_close(LOSSES["cross_entropy"](two, labels), expected)


def test_metrics_of_one_channel_of_scores_are_refused_and_of_one_class_of_labels_are_not() -> None:
    for tally in (Accumulator("miou", 1), CalibrationError(1)):
        with pytest.raises(InputError, match=r"whose arg-max is class 0 everywhere.*num_classes=2"):
            tally.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2).long())
    accumulator = Accumulator("miou", 1)
    accumulator.update(torch.zeros(1, 2, 2).long(), torch.tensor([[[0, 0], [0, 255]]]))
    assert accumulator.compute() == 1


@TAKES_SOFT
def test_soft_labels_that_are_no_shares_are_refused(name: str) -> None:
    loss, logits = LOSSES[name], torch.zeros(1, 3, 4, 4)
    overlapping = ONE_HOT.clone()
    overlapping[0, 1:, 1, 1] = 1
    overlapping[0, 0, 1, 1] = 0
    of_no_class = ONE_HOT.clone()
    of_no_class[..., 2, 2] = 0
    negative = ONE_HOT.clone()
    negative[0, :, 0, 0] = torch.tensor([1.25, -0.25, 0])
    cases = (
        (overlapping, "sum is 2 at 1 of 16"),
        (of_no_class, "sum is 0 at 1 of 16"),
        (negative, "lowest of a pixel is -0.25 at 1 of 16"),
    )
    for target, message in (*cases, (ONE_HOT * torch.nan, "sum is nan at 16 of 16")):
        whole = torch.compile(loss, backend="eager", fullgraph=True)
        for call in (
            (loss, torch.compile(loss, backend="eager"), whole) if name in ("product", "cross_entropy") else (loss,)
        ):
            with pytest.raises(InputError, match=message):
                call(logits, target)
        with pytest.raises(ValueError, match=r"need a sigmoid"):
            exported(loss)(logits, target)
        wrong = ~(((target.sum(1) - 1).abs() < 0.5) & (target >= 0).all(1))
        torch.testing.assert_close(loss(logits, target, ~wrong), loss(logits, LABELS, ~wrong))
    with pytest.raises(InputError, match=r"sum is 2 at 1 of 32"):
        torch.func.vmap(loss)(logits.expand(2, 1, 3, 4, 4), torch.stack([ONE_HOT, overlapping]))


@TAKES_SOFT
def test_shares_computed_in_halves_are_accepted(name: str) -> None:
    generator, loss = torch.Generator().manual_seed(3), LOSSES[name]
    many = 3 if name == "weighted_cross_entropy" else 200
    for classes in (3, many):
        for dtype in (torch.bfloat16, torch.float16):
            scores = (3 * torch.randn(2, classes, 8, 8, generator=generator)).clamp(max=9).to(dtype)
            normalised = scores.exp() / scores.exp().sum(1, keepdim=True)
            smoothed = scores.softmax(1) * 0.9 + 0.1 / classes
            resized = nn.functional.interpolate(smoothed, scale_factor=1.7, mode="bilinear")
            for soft in (scores.softmax(1), normalised, smoothed, resized):
                assert soft.dtype == dtype
                assert bool(loss(torch.zeros(soft.shape), soft).isfinite())
    near = ONE_HOT * (1 + 0.9 * SUM_TOLERANCE)
    assert bool(loss(torch.zeros(1, 3, 4, 4), near).isfinite())


@EVERY
def test_a_class_that_the_default_label_of_ignored_pixels_names_is_refused(name: str) -> None:
    loss, logits = LOSSES[name], torch.zeros(1, 256, 2, 2)
    if name in ("weighted_cross_entropy", "inverse_weighted_cross_entropy"):
        loss = CLASSICS[name](255, [1] * 256)
    message = (
        "ignore_index is 255, the default, which is one of the 256 classes (0..255): its pixels would not count. Pass "
        "another ignore_index, such as -100; with -1 no pixel is ignored."
    )
    with pytest.raises(InputError) as caught:
        loss(logits, torch.full((1, 2, 2), 3))
    assert str(caught.value) == message
    with pytest.raises(ValueError, match=r"IGNORE_INDEX is 255, which is a class of these logits"):
        exported(loss)(logits, torch.full((1, 2, 2), 3))
    loss.ignore_index = -100
    x = torch.randn(1, 256, 2, 2, requires_grad=True)
    loss(x, torch.tensor([[[255, 254], [-100, 255]]])).backward()
    assert x.grad is not None
    assert bool(x.grad[0, :, 0, 0].any())
    loss.ignore_index = 255
    if "weighted" not in name:
        assert bool(loss(logits[:, :255], torch.tensor([[[255, 254], [0, 1]]])).isfinite())


@pytest.mark.parametrize(
    "build",
    [
        lambda: Accumulator("miou", 300),
        lambda: CalibrationError(300),
        lambda: class_counts([torch.zeros(1, 2).long()], 300),
    ],
    ids=["accumulator", "calibration", "counts"],
)
def test_tallies_of_more_than_255_classes_want_another_ignore_index(build: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=r"^ignore_index is 255, the default, which is one of the 300 classes"):
        build()


def test_an_ignore_index_that_is_a_class_by_intention_ignores_it() -> None:
    accumulator = Accumulator("gacc", 3, ignore_index=0)
    accumulator.update(torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 1, 2, 1]]))
    assert accumulator.compute() == pytest.approx(2 / 3)


def test_soft_labels_are_still_refused_where_they_have_no_meaning() -> None:
    with pytest.raises(InputTypeError, match=r"not defined for soft labels"):
        LOSSES["focal"](torch.zeros(1, 3, 4, 4), ONE_HOT)
