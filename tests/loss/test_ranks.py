"""Losses of real processes: k ranks of n images are one process of k n."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autosegloss.errors import InputError
from autosegloss.loss import SearchSpace, SurrogateLoss
from autosegloss.loss.ranks import sum_over_ranks
from autosegloss.metric import image_worst, metric
from tests.processes import seen_by_ranks

CLASSES = 4
SHARES = {
    "even": [[0, 1, 2], [3, 4, 5]],
    "uneven": [[0, 1, 2, 3], [4, 5]],
    "one has nothing": [[], [0, 1, 2, 3, 4, 5]],
    "three": [[0], [], [1, 2, 3, 4, 5]],
    "nobody has anything": [[], []],
}
TARGETS = ["labels", "masked labels", "soft labels", "masked soft labels"]
LOSSES: dict[str, dict[str, Any]] = {
    "miou": {},
    "dice": {"logic": "godel", "classes": "present"},
    "miou_i": {"logic": "godel"},
    "miou_c": {"classes": "present"},
    "worst": {"logic": "godel"},
    "jaccard": {"logic": "lovasz", "classes": "present"},
    "jaccard_i": {"logic": "lovasz"},
}


def loss_of(name: str, **options: Any) -> SurrogateLoss:
    expr = image_worst(metric("miou_i").operands[0], 0.5) if name == "worst" else metric(name)
    theta = torch.rand(SearchSpace(expr).dimension, generator=torch.Generator().manual_seed(1)).tolist()
    return SurrogateLoss.from_theta(expr, theta, **LOSSES[name], **options)


def batch(images: list[int], kind: str = "labels") -> tuple[Tensor, Tensor, Tensor | None]:
    """Some of six images, (N, 3, 7, 5), with their target and mask; some classes are in few of them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 3, 7, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (6, 7, 5), generator=generator)
    labels[[0, 1, 4], :] %= 2
    labels[2, :3] = labels[4, :] = 255
    soft = torch.randn(6, CLASSES, 7, 5, generator=generator, dtype=torch.float64).softmax(1)
    mask = torch.rand(6, 7, 5, generator=generator) < 0.7
    soft = torch.where(mask.unsqueeze(1), soft, torch.nan) if kind == "masked soft labels" else soft
    target = soft if "soft" in kind else labels
    return inputs[images], target[images], mask[images] if "masked" in kind else None


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, CLASSES, 1)).double()


def logits_of(images: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = 3 * network()(batch(images)[0])
    return logits.requires_grad_()


def step(loss: SurrogateLoss, images: list[int], kind: str) -> tuple[float, Tensor]:
    """The loss of some images and its gradient by their logits."""
    logits = logits_of(images)
    value = loss(logits, *batch(images, kind)[1:])
    value.backward()
    assert logits.grad is not None
    return value.item(), logits.grad


def training_step(model: nn.Module, loss: SurrogateLoss, images: list[int], kind: str) -> list[Tensor]:
    """The gradients of the parameters."""
    model.zero_grad()
    inputs, target, mask = batch(images, kind)
    loss(model(inputs), target, mask).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def one_rank(rank: int, shares: dict[str, list[list[int]]]) -> dict[Any, Any]:
    """What each process does, and what it saw."""
    warnings.simplefilter("error")
    world = dist.get_world_size()
    seen: dict[Any, Any] = {}
    for title, share in shares.items():
        for name in LOSSES:
            for kind in TARGETS[: 2 if LOSSES[name].get("logic") == "lovasz" else 4]:  # which takes no soft labels
                seen["loss", title, name, kind] = step(loss_of(name, reduce_over_ranks=True), share[rank], kind)
        alone = loss_of("miou")
        seen["alone", title] = step(alone, share[rank], "labels")
    model = DistributedDataParallel(network())
    for title, share in shares.items():
        for name in ("miou", "miou_i"):
            for kind in TARGETS:
                loss = loss_of(name, reduce_over_ranks=True)
                seen["DDP", title, name, kind] = training_step(model, loss, share[rank], kind)
    seen["DDP alone"] = training_step(model, loss_of("miou"), [rank], "labels")

    own = torch.tensor([1.0, 10.0 * rank], requires_grad=True)
    total = sum_over_ranks(own)
    ((1 + rank) * total).sum().backward()  # the ranks go on in different ways
    assert own.grad is not None
    seen["sum"] = total.tolist(), own.grad.tolist(), own.tolist()

    loss = loss_of("miou", reduce_over_ranks=True)
    seen["mistakes"] = []
    for logits in (torch.zeros(2, 3 + rank, 4), torch.zeros(2, 3, 4, dtype=(torch.float64, torch.float32)[rank > 0])):
        with pytest.raises(InputError) as caught:
            loss(logits, torch.zeros(2, 4, dtype=torch.int64))
        seen["mistakes"].append(str(caught.value))

    if world == 2:
        seen |= compiled(loss, next(iter(shares.values()))[rank])
    return seen


def compiled(loss: SurrogateLoss, images: list[int]) -> dict[Any, Any]:
    """What becomes of the loss under `torch.compile`."""
    warnings.simplefilter("ignore")  # Dynamo does what torch warns of
    broken: Any = torch.compile(loss, backend="eager")
    plain = copy.deepcopy(loss)
    plain.fused = False  # as all traced code
    seen: dict[Any, Any] = {"compiled": (step(broken, images, "labels"), step(plain, images, "labels"))}
    torch.compiler.reset()
    whole: Any = torch.compile(loss, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="_batch_sums") as refused:
        step(whole, images, "labels")
    return seen | {"fullgraph": type(refused.value).__name__}


@pytest.fixture(scope="module", params=[2, 3])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of the processes saw."""
    world: int = request.param
    shares = {title: share for title, share in SHARES.items() if len(share) == world}
    folder = tmp_path_factory.mktemp(f"world{world}")
    return seen_by_ranks(one_rank, world, folder, shares)


def keys(seen: list[dict[Any, Any]], what: str) -> list[Any]:
    found = [key for key in seen[0] if isinstance(key, tuple) and key[0] == what]
    assert found
    return found


def assert_near(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape
    assert (one - other).norm() <= 1e-9 * (1e-6 + other.norm())


@pytest.mark.slow
def test_the_loss_and_its_gradient_are_those_of_one_process(seen: list[dict[Any, Any]]) -> None:
    for key in keys(seen, "loss"):
        _, title, name, kind = key
        together = [image for share in SHARES[title] for image in share]
        value, gradient = step(loss_of(name), together, kind)
        assert [rank[key][0] for rank in seen] == pytest.approx([value] * len(seen), rel=1e-12), key
        assert_near(torch.cat([rank[key][1] for rank in seen]), len(seen) * gradient)
        assert bool(gradient.any()) == bool(together), "there is something to compare"


def test_ddp_gives_the_parameters_the_gradients_of_one_process(seen: list[dict[Any, Any]]) -> None:
    for key in keys(seen, "DDP"):
        _, title, name, kind = key
        together = [image for share in SHARES[title] for image in share]
        expected = training_step(network(), loss_of(name), together, kind)
        for rank in seen:
            assert len(rank[key]) == len(expected) == 4
            for gradient, of_one in zip(rank[key], expected, strict=True):
                assert_near(gradient, of_one)


@pytest.mark.usefixtures("fused_path")
def test_without_the_option_each_rank_has_a_loss_of_its_own(seen: list[dict[Any, Any]]) -> None:
    for _, title in keys(seen, "alone"):
        for share, rank in zip(SHARES[title], seen, strict=True):
            value, gradient = step(loss_of("miou"), share, "labels")
            assert rank["alone", title][0] == value
            assert torch.equal(rank["alone", title][1], gradient)
    together = training_step(network(), loss_of("miou"), list(range(len(seen))), "labels")
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(seen[0]["DDP alone"], together, strict=True))


def test_the_gradient_of_a_sum_is_that_of_all_ranks(seen: list[dict[Any, Any]]) -> None:
    world = len(seen)
    for number, rank in enumerate(seen):
        total, gradient, own = rank["sum"]
        assert total == [world, 10 * sum(range(world))]
        assert gradient == [sum(range(1, world + 1))] * 2
        assert own == [1, 10 * number], "the tensor given stays as it is"


def test_ranks_that_do_not_fit_together_say_so(seen: list[dict[Any, Any]]) -> None:
    for rank in seen:
        assert rank["mistakes"] == [
            "rank 0 has logits of 3 classes in float32, rank 1 logits of 4 classes in float32; "
            "all ranks must have the same classes in the same dtype.",
            "rank 0 has logits of 3 classes in float64, rank 1 logits of 3 classes in float32; "
            "all ranks must have the same classes in the same dtype.",
        ]


def test_compiled_code_leaves_the_graph_for_the_other_ranks(seen: list[dict[Any, Any]]) -> None:
    for rank in seen if len(seen) == 2 else []:
        (value, gradient), (expected, of_eager) = rank["compiled"]
        assert value == expected
        assert torch.equal(gradient, of_eager)
        assert rank["fullgraph"] == "Unsupported"


def test_without_torch_distributed_it_is_the_loss_of_one_process() -> None:
    tensor = torch.ones(3, requires_grad=True)
    assert sum_over_ranks(tensor) is tensor
    for name in LOSSES:
        value, gradient = step(loss_of(name, reduce_over_ranks=True), [0, 2, 3], "labels")
        expected, of_one = step(loss_of(name), [0, 2, 3], "labels")
        assert value == expected
        assert torch.equal(gradient, of_one)


def test_the_option_is_kept(tmp_path: Path) -> None:
    loss = loss_of("miou", reduce_over_ranks=True)
    assert loss.reduce_over_ranks
    assert copy.deepcopy(loss).reduce_over_ranks
    assert pickle.loads(pickle.dumps(loss)).reduce_over_ranks
    loss.save(tmp_path / "loss.json")
    loss_of("miou").save(tmp_path / "other.json")
    assert (tmp_path / "loss.json").read_text() == (tmp_path / "other.json").read_text(), "no setting of a loss file"
