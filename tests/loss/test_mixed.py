from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from autosegloss.errors import InputError, InputTypeError, LossFileError
from autosegloss.loss import MixedLoss, SurrogateLoss, load_loss, named_loss, presets
from autosegloss.loss.classic import CLASSICS, CrossEntropy
from autosegloss.metric import metric
from tests.processes import seen_by_ranks


def batch(images: int = 2) -> tuple[Tensor, Tensor]:
    """Logits (N, 3, 5, 7) and labels (N, 5, 7), a tenth of them ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (images, 5, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return torch.randn(images, 3, 5, 7, generator=generator, dtype=torch.float64), labels


# The mix --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("soft", [False, True])
def test_a_mix_is_the_weighted_sum_of_its_parts(weight: float, soft: bool) -> None:
    logits, labels = batch()
    jml = load_loss("jml")
    assert isinstance(jml, SurrogateLoss)
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    target = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)).softmax(1) if soft else labels
    for arguments in ((logits, target), (logits, target, mask)):
        expected = weight * CrossEntropy()(*arguments) + (1 - weight) * jml(*arguments)
        assert MixedLoss(jml, weight)(*arguments).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_weight_of_numpy_is_a_weight() -> None:
    assert MixedLoss(SurrogateLoss("miou"), np.float32(0.25)).cross_entropy == 0.25


def test_what_is_ignored_is_that_of_the_surrogate() -> None:
    logits, labels = batch()
    loss = MixedLoss(SurrogateLoss("miou", curve="identity", ignore_index=7), 1)
    expected = functional.cross_entropy(logits, labels, ignore_index=255)
    assert loss(logits, torch.where(labels == 255, 7, labels)).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_mix_can_be_copied_pickled_and_told_from_another() -> None:
    logits, labels = batch()
    loss = MixedLoss(SurrogateLoss("miou", curve="identity"))
    assert loss.cross_entropy == 0.25
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(again(logits, labels), loss(logits, labels))
    assert "cross_entropy=0.25" in repr(loss)
    assert not loss.state_dict()


@pytest.mark.parametrize(
    ("build", "kind", "expected"),
    [
        (
            lambda: MixedLoss(SurrogateLoss("miou"), -0.1),
            InputError,
            "cross_entropy must be a number from 0 to 1, got -0.1.",
        ),
        (
            lambda: MixedLoss(SurrogateLoss("miou"), "1"),
            InputError,
            "cross_entropy must be a number from 0 to 1, got '1'.",
        ),
        (
            lambda: MixedLoss(CrossEntropy()),
            InputTypeError,
            "a sum must be a list of pairs (weight, loss), or one SurrogateLoss, got CrossEntropy.",
        ),
    ],
)
def test_mistakes_in_the_arguments(build: Any, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        build()
    assert str(caught.value).startswith(expected)


# Several ranks --------------------------------------------------------------------------------------------------------

IMAGES = 5
SHARES = (slice(0, 2), slice(2, IMAGES))


def images_and_labels() -> tuple[Tensor, Tensor]:
    _, labels = batch(IMAGES)
    labels[:2][labels[:2] == 1] = 255  # unlike numbers of pixels
    images = torch.rand(IMAGES, 2, 5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return images, labels


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(2, 3, 1).double()


def one_rank(rank: int, shares: tuple[slice, ...]) -> dict[str, Tensor]:
    """The loss of one of the processes, and the gradients that DistributedDataParallel leaves."""
    images, labels = images_and_labels()
    parallel = DistributedDataParallel(network())
    loss = CrossEntropy([1.0, 2.0, 3.0], 0.1, reduce_over_ranks=True)
    value = loss(parallel(images[shares[rank]]), labels[shares[rank]])
    value.backward()
    gradients = {name: weight.grad for name, weight in parallel.module.named_parameters()}
    # The mixed loss asks its cross-entropy for the same.
    mixed = MixedLoss(SurrogateLoss("miou", curve="identity", reduce_over_ranks=True), 1)
    plain = mixed(parallel(images[shares[rank]]), labels[shares[rank]]).detach()
    # The pixels of the classes are those of all ranks; so are those of a sum's parts.
    power = {str(soft): of_class_power(shares[rank], soft) for soft in (False, True)}
    return {"loss": value.detach(), "mixed": plain} | gradients | power


def of_class_power(images: slice, soft: bool) -> Tensor:
    """The gradient by some logits of a sum of losses, followed by its value; it is of all ranks."""
    _, labels = images_and_labels()
    logits = batch(IMAGES)[0][images].requires_grad_()
    target = torch.rand(IMAGES, 3, 5, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64).softmax(1)
    balanced = CrossEntropy(label_smoothing=0.1, class_power=0.7, reduce_over_ranks=True)
    loss = MixedLoss([(0.5, balanced), (2, SurrogateLoss("miou", curve="identity", reduce_over_ranks=True))])
    value = loss(logits, (target if soft else labels)[images])
    value.backward()
    assert logits.grad is not None
    return torch.cat([logits.grad.flatten(), value.detach().view(1)])


@pytest.mark.slow
def test_two_ranks_have_the_loss_and_the_gradients_of_one_process(tmp_path: Path) -> None:
    seen = seen_by_ranks(one_rank, 2, tmp_path, SHARES)
    images, labels = images_and_labels()
    alone = network()
    value = CrossEntropy([1.0, 2.0, 3.0], 0.1)(alone(images), labels)
    value.backward()
    plain = functional.cross_entropy(alone(images), labels, ignore_index=255).detach()
    expected = {"loss": value.detach(), "mixed": plain} | {
        name: weight.grad for name, weight in alone.named_parameters()
    }
    for soft in (False, True):
        *gradient, summed = of_class_power(slice(IMAGES), soft)
        of_ranks = [of_rank.pop(str(soft)) for of_rank in seen]
        torch.testing.assert_close(torch.cat([each[:-1] for each in of_ranks]), 2 * torch.stack(gradient))
        torch.testing.assert_close(torch.stack([each[-1] for each in of_ranks]), summed.repeat(2))
    for of_rank in seen:
        assert of_rank.keys() == expected.keys()
        for name, wanted in expected.items():
            torch.testing.assert_close(of_rank[name], wanted, rtol=1e-9, atol=1e-12)


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSICS)
def test_a_classic_by_its_name(name: str) -> None:
    logits, labels = batch()
    loss = named_loss(name, ignore_index=7, counts=[30, 20, 5])
    expected = CLASSICS[name](7, [30, 20, 5])
    labels = torch.where(labels == 255, 7, labels)
    assert torch.equal(loss(logits, labels), expected(logits, labels))


@pytest.mark.parametrize("name", presets())
def test_a_preset_by_its_name(name: str) -> None:
    loss = named_loss(name, ignore_index=7)
    assert isinstance(loss, SurrogateLoss)
    assert loss.expr is load_loss(name).expr
    assert loss.ignore_index == 7


def test_a_file_and_a_mix(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    SurrogateLoss("biou").save(path)
    assert isinstance(named_loss(str(path)), SurrogateLoss)
    for text in ("0.3*cross_entropy + 0.7*{}", "0.7 * {} + 0.3 * cross_entropy", " 7e-1*{}  +  .3*cross_entropy "):
        loss = named_loss(text.format(path), ignore_index=3)
        assert isinstance(loss, MixedLoss)
        assert loss.cross_entropy == pytest.approx(0.3)
        assert loss.surrogate.expr is metric("biou")
        assert loss.surrogate.ignore_index == 3
    loss.save(path)
    assert isinstance(named_loss(str(path)), MixedLoss)
    assert isinstance(named_loss("0.5*cross_entropy+0.5*generalized_dice"), MixedLoss)
    with_space = path.with_name("my own + loss.json")
    SurrogateLoss("biou").save(with_space)
    assert isinstance(named_loss(f"0.5*cross_entropy + 0.5*{with_space}"), MixedLoss)
    assert isinstance(named_loss("lovasz"), SurrogateLoss)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "jmll",
            "`jmll` is not a loss (did you mean `jml`?). `autosegloss losses` lists the names.",
        ),
        ("", "`` is not a loss. `autosegloss losses` lists"),
        ("0.5*cross_entropy + 0.5*jmll", "`jmll` is not a loss (did you mean `jml`?)"),
        (
            "weighted_cross_entropy",
            "a weighted cross-entropy needs `counts`, the pixels of each class; class_counts of "
            "autosegloss.loss.classic finds them.",
        ),
    ],
)
def test_mistakes_in_a_name(name: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        named_loss(name)
    assert str(caught.value).startswith(expected)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(LossFileError, match=r"absent\.json: no such file, nor a loss of that name"):
        named_loss("absent.json")
