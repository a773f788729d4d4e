"""The loss as a citizen of torch: compiled, exported, under functorch, copied and sent to other processes."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autosegloss.errors import InputError
from autosegloss.loss import SearchSpace, SurrogateLoss
from autosegloss.metric import image_worst, metric
from autosegloss.metric.labels import _unless_operator

LOSSES = pytest.mark.parametrize(
    ("name", "logic", "curve"),
    [
        ("miou", "product", "bezier"),
        ("tversky_c", "godel", "linear"),
        ("biou", "product", "bezier"),
        ("worst", "godel", "identity"),
        ("miou", "product", "log"),
    ],
)
KINDS = ["labels", "masked labels", "soft labels", "masked soft labels"]
# Dynamo and Inductor themselves do what torch warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
Batch = tuple[Tensor, Tensor, Tensor | None]


def loss_of(name: str = "miou", logic: Any = "godel", curve: Any = "bezier") -> SurrogateLoss:
    expr = {"worst": image_worst(metric("miou_i").operands[0], 0.5), "biou": metric("biou", radius=1)}.get(name)
    expr = metric(name) if expr is None else expr
    space = SearchSpace(expr, curve)
    theta = torch.rand(space.dimension, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    return SurrogateLoss.from_theta(expr, theta, curve=curve, logic=logic)


def batch(kind: str = "labels", images: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(images)
    logits = torch.randn(images, 3, 6, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (images, 6, 5), generator=generator)
    labels[:, 0, 0] = 255
    mask = torch.rand(images, 6, 5, generator=generator) < 0.7
    soft = torch.rand(images, 3, 6, 5, generator=generator, dtype=torch.float64)
    soft = soft / soft.sum(1, keepdim=True)
    if kind == "masked soft labels":
        soft = soft.masked_fill(~mask.unsqueeze(1), torch.nan)
    return logits, soft if "soft" in kind else labels, mask if "masked" in kind else None


def wrong_batches() -> list[tuple[Batch, str]]:
    logits, labels, _ = batch("labels")
    _, soft, mask = batch("masked soft labels")
    return [
        (
            (logits, labels.masked_fill(labels == 2, 7), None),
            f"target has labels outside the classes at {int((labels == 2).sum())} of 120 pixels: 7; "
            "allowed: 0..2 and 255 (ignored).",
        ),
        (
            (logits, 1.5 * soft, mask),
            "soft labels must be shares that sum to 1 over the classes (within 0.02); the sum is 1.5 at "
            f"{int(mask.sum())} of 120 pixels. Labels that overlap need a sigmoid for each class, which no loss has "
            "yet. A pixel of no class needs a channel for the background, or a mask that is False there.",
        ),
    ]


def value_and_gradient(loss: Callable[..., Tensor], logits: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, *rest)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def assert_same(loss: Callable[..., Tensor], eager: SurrogateLoss, given: Batch) -> None:
    for found, expected in zip(value_and_gradient(loss, *given), value_and_gradient(eager, *given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# torch.compile --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    loss = loss_of()
    compiled: Any = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(compiled, loss, batch())
    assert_same(compiled, loss, batch(images=3))  # the last batch is often smaller
    for given, message in wrong_batches():
        with pytest.raises(InputError) as caught:
            compiled(*given)
        assert str(caught.value) == message


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.slow
def test_inductor_compiles_it() -> None:
    torch.compiler.reset()
    loss = loss_of("gacc")
    compiled: Any = torch.compile(loss, fullgraph=True)
    assert_same(compiled, loss, batch())
    with pytest.raises(InputError, match="labels outside the classes"):
        compiled(*wrong_batches()[0][0])


# torch.func -----------------------------------------------------------------------------------------------------------


@LOSSES
@pytest.mark.parametrize("kind", KINDS)
def test_func_grad_and_vmap_over_batches(name: str, logic: Any, curve: Any, kind: str) -> None:
    loss = loss_of(name, logic, curve)
    logits, target, mask = batch(kind)
    expected = value_and_gradient(loss, logits, target, mask)
    torch.testing.assert_close(torch.func.grad(loss)(logits, target, mask), expected[1])

    batches = [None if x is None else x.unflatten(0, (2, 2)) for x in (logits, target, mask)]
    given = [x for x in batches if x is not None]
    each = [value_and_gradient(loss, *(x[i] for x in given)) for i in range(2)]
    values = torch.func.vmap(loss)(*given)
    torch.testing.assert_close(values, torch.stack([value for value, _ in each]))
    gradients = torch.func.vmap(torch.func.grad(loss))(*given)
    torch.testing.assert_close(gradients, torch.stack([gradient for _, gradient in each]))

    # Several logits for one target, and several targets for the same logits, on an axis of choice.
    two = torch.stack([logits, -logits], 1)
    values = torch.func.vmap(lambda x: loss(x, target, mask), in_dims=1)(two)
    torch.testing.assert_close(values, torch.stack([loss(logits, target, mask), loss(-logits, target, mask)]))
    two = torch.stack([target, target.flip(0)], -1)
    values = torch.func.vmap(lambda y: loss(logits, y), in_dims=-1)(two.nan_to_num(1 / 3))
    torch.testing.assert_close(values, torch.stack([loss(logits, y) for y in two.nan_to_num(1 / 3).unbind(-1)]))
    if mask is not None:
        values = torch.func.vmap(lambda m: loss(logits, target, m))(torch.stack([mask, mask & mask.flip(1)]))
        torch.testing.assert_close(values[0], expected[0])


def test_mistakes_are_found_under_vmap() -> None:
    loss = loss_of()
    for given, message in wrong_batches():
        batches = [x.unsqueeze(1) for x in given if x is not None]
        for call in (torch.func.vmap(loss), torch.func.vmap(torch.func.grad(loss))):
            with pytest.raises(InputError) as caught:
                call(*batches)
            assert str(caught.value) == message
        with pytest.raises(InputError) as caught:
            torch.func.grad(loss)(*given)
        assert str(caught.value) == message


# torch.export ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_found_by_an_exported_loss() -> None:
    loss = loss_of()
    for kind, (wrong, message) in zip(KINDS[::3], wrong_batches(), strict=True):
        program = torch.export.export(loss, batch(kind)).module()
        with pytest.raises(InputError) as caught:
            program(*wrong)
        assert str(caught.value) == message


# The check of labels as an operator -----------------------------------------------------------------------------------


def test_the_operator_keeps_the_rules_of_torch() -> None:
    values = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(_unless_operator, (values, torch.zeros(3, 4, dtype=torch.bool), values, ""))
    labels = torch.arange(6).view(2, 3)
    torch.library.opcheck(_unless_operator, (labels, labels < 0, labels, ""))
    assert torch.equal(_unless_operator(labels, labels < 0, labels, ""), labels)
    with pytest.raises(InputError) as caught:
        _unless_operator(labels, labels > 3, labels, "{wrong} of {all}: {found}.")
    assert str(caught.value) == "2 of 6: 4, 5."


# Copies and other processes -------------------------------------------------------------------------------------------


class Values(Dataset[float]):
    """What a data loader's worker makes of a loss that it is sent."""

    def __init__(self, loss: SurrogateLoss) -> None:
        self.loss = loss

    def __len__(self) -> int:
        return len(KINDS)

    def __getitem__(self, index: int) -> float:
        return float(self.loss(*batch(KINDS[index])))


@LOSSES
def test_copies_are_the_same_loss(name: str, logic: Any, curve: Any) -> None:
    loss = loss_of(name, logic, curve)
    for other in (copy.deepcopy(loss), copy.copy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(other) == repr(loss)
        assert other.curves == loss.curves
        assert_same(other, loss, batch())


@pytest.mark.slow
def test_it_is_sent_to_the_workers_of_a_data_loader() -> None:
    values = Values(loss_of("tversky_c", curve="linear"))
    loader = DataLoader(values, num_workers=1, multiprocessing_context="spawn", batch_size=None)
    assert [float(value) for value in loader] == [values[i] for i in range(len(values))]
