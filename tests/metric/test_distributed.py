"""Counts of real processes: equal to those of one process to the last bit."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from autosegloss.errors import InputError
from autosegloss.metric import METRICS, Accumulator, Accumulators, CalibrationError, class_sum, image_worst, pred, total
from autosegloss.metric.accumulate import Tally
from tests.processes import seen_by_ranks

CLASSES = 4
MASKED = 2  # this image is given with a mask
SHARES = {
    "even": [[0, 1, 2], [3, 4, 5]],
    "uneven": [[5, 0, 2, 1], [4, 3]],
    "one has nothing": [[], [3, 1, 0, 2, 5, 4]],
    "three": [[1], [], [4, 3, 0, 5, 2]],
    "nobody has anything": [[], []],
}


def images() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Scores (1, C, H, W) and labels (1, H, W) of images of several sizes, one of them all ignored."""
    random = np.random.default_rng(3)
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
    for image, (height, width) in enumerate([(5, 7), (3, 3), (8, 2), (1, 11), (6, 6), (4, 9)]):
        scores = random.normal(size=(1, CLASSES, height, width)).astype(np.float32)
        labels = random.integers(0, 1 + image % CLASSES, (1, height, width))
        labels[random.random(labels.shape) < 0.2] = 255
        if image == 4:
            labels[:] = 255
        mask = torch.from_numpy(random.random(labels.shape) < 0.7) if image == MASKED else None
        found.append((torch.from_numpy(scores), torch.from_numpy(labels), mask))
    return found


def tallies() -> dict[str, Tally]:
    """One of each kind: data set and per image, whole and fractional counts."""
    every = {name: build() for name, build in METRICS.items()}
    return {
        "metrics": Accumulators(every | {"worst": image_worst(METRICS["miou_i"]().operands[0], 0.4)}, CLASSES),
        "totals only": Accumulator("miou", CLASSES),
        "rows only": Accumulator("miou_c", CLASSES),
        "fractions": Accumulator(class_sum(total(0.5 * pred)), CLASSES),
        "ece": CalibrationError(CLASSES),
        "classwise_i": CalibrationError(CLASSES, classwise=True, per_image=True),
    }


def value(tally: Tally) -> Any:
    if isinstance(tally, Accumulator | CalibrationError):
        return tally.compute()
    assert isinstance(tally, Accumulators)
    return tally.values()


def count(tally: Tally, share: list[int]) -> Tally:
    for image in share:
        tally.update(*images()[image])
    return tally


def one_rank(rank: int, shares: dict[str, list[list[int]]]) -> dict[Any, Any]:
    """What each process does, and what it saw."""
    warnings.simplefilter("error")
    seen: dict[Any, Any] = {}
    for title, share in shares.items():
        for name, tally in tallies().items():
            own = value(count(tally, share[rank]))
            whole = tally.reduce()
            seen[title, name] = value(whole)
            assert value(tally) == own, "reducing changes what is reduced"
            assert value(tally.reduce()) == seen[title, name], "reducing twice counts twice"
            # Counting goes on after reducing, here and in the new one, each for itself.
            count(whole, [0])
            assert value(tally) == own
            count(tally, share[rank])
            seen[title, name, "twice"] = value(tally.reduce())
    other = Accumulator("miou" if rank == 0 else "miou_i", CLASSES)  # of other lengths: a rank must not wait for more
    with pytest.raises(InputError) as caught:
        other.reduce()
    seen["mistake"] = str(caught.value)
    if importlib.util.find_spec("torchmetrics"):
        seen |= through_torchmetrics(rank, shares)
    return seen


def through_torchmetrics(rank: int, shares: dict[str, list[list[int]]]) -> dict[Any, Any]:
    """The same with torchmetrics' own synchronisation."""
    from autosegloss.metric.torchmetrics import TorchMetric

    warnings.filterwarnings("ignore", message="The ``compute`` method of metric TorchMetric was called before")
    torch.set_default_dtype(torch.float64)  # in which torchmetrics gives its values
    seen = {}
    for title, share in shares.items():
        for name, tally in tallies().items():
            if isinstance(tally, Accumulator | CalibrationError):
                metric = TorchMetric(tally)
                for image in share[rank]:
                    metric.update(*images()[image])
                seen[title, name, "torchmetrics"] = metric.compute().item()
                metric.update(*images()[0])  # after `compute` a process goes on with its own counts
                assert metric.metric_state.keys() == metric._defaults.keys()
                seen[title, name, "torchmetrics, and one more"] = metric.compute().item()
    return seen


@pytest.fixture(scope="module", params=[2, 3])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each of the processes saw."""
    world: int = request.param
    shares = {title: share for title, share in SHARES.items() if len(share) == world}
    folder = tmp_path_factory.mktemp(f"world{world}")
    return seen_by_ranks(one_rank, world, folder, shares)


@pytest.mark.slow
def test_ranks_are_one_process_to_the_last_bit(seen: list[dict[Any, Any]]) -> None:
    titles = {key[0] for key in seen[0] if isinstance(key, tuple)}
    assert titles
    for title in titles:
        together = [image for share in SHARES[title] for image in share]
        for name in tallies():
            once, twice = (value(count(tallies()[name], sorted(together * times))) for times in (1, 2))
            for of_rank in seen:
                assert of_rank[title, name] == once, (title, name)
                assert of_rank[title, name, "twice"] == twice, (title, name)
            assert once != value(tallies()[name]) or not together, "the images count for something"


def test_ranks_that_count_different_things_say_so(seen: list[dict[Any, Any]]) -> None:
    for rank, of_rank in enumerate(seen):
        name = "miou" if rank == 0 else "miou_i"
        assert of_rank["mistake"] == (
            f"rank 1 counts something else than rank 0; here it is {Accumulator(name, CLASSES)!r}. "
            "Every rank builds its accumulator from the same arguments."
        )


@pytest.mark.slow
def test_torchmetrics_brings_the_ranks_together_too(seen: list[dict[Any, Any]]) -> None:
    pytest.importorskip("torchmetrics")
    checked = 0
    for of_rank in seen:
        for title, name, kind in (key for key in of_rank if len(key) == 3 and key[2].startswith("torchmetrics")):
            together = [image for share in SHARES[title] for image in share]
            more = [0] * len(SHARES[title]) if kind.endswith("more") else []
            assert of_rank[title, name, kind] == value(count(tallies()[name], together + more)), (title, name, kind)
            checked += 1
    assert checked


def test_without_torch_distributed_it_is_a_copy() -> None:
    for name, tally in tallies().items():
        once = value(count(tally, [0, 1]))
        whole = tally.reduce()
        assert type(whole) is type(tally)
        assert value(whole) == once, name
        count(whole, [2])
        assert value(tally) == once, name
        assert value(whole) == value(count(tallies()[name], [0, 1, 2])), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="nccl needs a GPU")
def test_nccl_with_one_rank(tmp_path: Path) -> None:
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for name, tally in tallies().items():
            assert value(count(tally, [0, 1]).reduce()) == value(tally), name
    finally:
        dist.destroy_process_group()
