"""Trials side by side in one process: each has the outcome that it has alone, to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import autosegloss
from autosegloss.errors import TrainingDiverged
from autosegloss.loss.base import LossContent
from autosegloss.loss.classic import CrossEntropy
from autosegloss.proxy import train
from autosegloss.proxy.data import Split
from autosegloss.proxy.train import CHECK_EVERY, LossFunction
from autosegloss.proxy.trial import Evaluation, Proxy
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.objective import ProxyObjective, proxy_of
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.settings import as_config
from autosegloss.search.space import LossFamily
from tests.faulty import TINY
from tests.toys import TOY, Quadratic, run_toy, toy_loss

STEPS = CHECK_EVERY + 7
NAN, RAISES, LATE, NEVER = ({"odd": name} for name in ("nan", "raises", "late", "never"))  # which are no losses


@dataclass(frozen=True)
class Odd(Proxy):
    """A proxy some of whose losses are at fault in the iteration 3."""

    def loss(self, content: LossContent) -> LossFunction:
        if "odd" not in content:
            return super().loss(content)
        usual, calls = CrossEntropy(), 0

        def odd(logits: Tensor, *target: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if content == LATE and calls > 5:
                raise RuntimeError("what a loss may say to numbers that are none")
            if calls > 3 and content == RAISES:
                raise RuntimeError("out of memory")
            value = usual(logits, *target)
            return value * math.nan if calls > 3 and content in (NAN, LATE) else value

        return odd


CONFIG = as_config(
    TINY | {"proxy": TINY["proxy"] | {"train": {"iterations": STEPS, "batch_size": 4}}, "search": TINY["search"]}
)
FAMILY = LossFamily.of(CONFIG)


def proxy() -> Odd:
    usual = proxy_of(CONFIG).prepare()
    heldout = usual.dataset.heldout
    few = replace(usual.dataset, heldout=Split(heldout.images[:8], heldout.labels[:8]))
    return Odd(**{field.name: getattr(usual, field.name) for field in fields(usual)} | {"dataset": few})


def alone(trial: Callable[[], Evaluation]) -> Evaluation | Exception:
    try:
        return trial()
    except Exception as error:
        return error


def told(outcome: Evaluation | Exception) -> object:
    return outcome if isinstance(outcome, Evaluation) else (type(outcome), str(outcome))


@pytest.mark.slow
def test_trials_side_by_side_are_trials_alone() -> None:
    odd = proxy()
    contents = [
        FAMILY.content(FAMILY.start),
        NAN,
        CROSS_ENTROPY,
        RAISES,
        LATE,
        FAMILY.content((0.1, 0.9, 0.9, 0.1)),
        NEVER,
    ]
    before = torch.get_rng_state()
    found = odd.run_group(contents, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert [told(each) for each in found] == [told(alone(partial(odd, content, 5))) for content in contents]
    one, nan, plain, raised, late, other, never = found
    assert len({each.reward for each in (one, plain, other) if isinstance(each, Evaluation)}) == 3
    for each in (nan, late):
        assert isinstance(each, TrainingDiverged)
        assert f"the loss is nan at iteration 3 of {STEPS}" in str(each)
    assert told(raised) == (RuntimeError, "out of memory")
    assert never == plain


def test_a_batch_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    odd, made = proxy(), []
    whole = train.batch

    def counted(*arguments: Any) -> Any:
        made.append(arguments[2])
        return whole(*arguments)

    monkeypatch.setattr(train, "batch", counted)
    odd.run_group([CROSS_ENTROPY, NEVER, NAN], 1)
    assert made == list(range(STEPS))


def test_a_search_with_trials_side_by_side_ends_in_the_same_bytes(tmp_path: Path, undisturbed_search: bytes) -> None:
    autosegloss.search(TINY, runner=SerialRunner(3), out=tmp_path / "out")
    assert (tmp_path / "out" / "loss.json").read_bytes() == undisturbed_search


def test_what_fails_beside_others_is_tried_alone() -> None:
    """As one that finds no memory beside them; one that has diverged would do so again."""
    odd = proxy()
    jobs = [Job("search", 0, index, content, 5) for index, content in enumerate([CROSS_ENTROPY, RAISES, NAN])]
    tried: list[Job] = []

    @dataclass(frozen=True)
    class Noted(ProxyObjective):
        def __call__(self, job: Job) -> Outcome:
            tried.append(job)
            return super().__call__(replace(job, loss=NEVER))  # there is memory now

    outcomes = Noted(odd).run_group(jobs)
    assert tried == [jobs[1]]
    assert outcomes[1].reward == outcomes[0].reward is not None
    assert outcomes[2].error is not None
    assert outcomes[2].error.startswith("TrainingDiverged: training diverged: the loss is nan at iteration 3")


@dataclass(frozen=True)
class Together:
    """A toy that notes which jobs it was given at a time; it can't have some of them together."""

    groups: list[list[Job]] = field(default_factory=list)
    toy: Quadratic = TOY
    never: int = -1

    def __call__(self, job: Job) -> Outcome:
        self.groups.append([job])
        return self.toy(job)

    def run_group(self, jobs: Sequence[Job]) -> list[Outcome]:
        if any(job.index == self.never for job in jobs):
            raise RuntimeError("not these")
        self.groups.append(list(jobs))
        return [self.toy(job) for job in jobs]


@pytest.mark.parametrize("size", [1, 3, 8, 99])
def test_groups_are_of_one_seed_and_as_large_as_they_may_be(size: int, tmp_path: Path) -> None:
    expected = run_toy(tmp_path / "expected", SerialRunner())
    toy = Together()
    assert run_toy(tmp_path / "ours", SerialRunner(size), toy) == expected
    assert {len({(job.stage, job.seed) for job in group}) for group in toy.groups} == {1}
    trials = [9, 10, 10, 4, 4]
    expected_sizes = [min(size, number - start) for number in trials for start in range(0, number, size)]
    assert [len(group) for group in toy.groups] == expected_sizes
    toy = Together(never=2)
    assert run_toy(tmp_path / "never", SerialRunner(size), toy) == expected
    assert sum(len(group) for group in toy.groups) == 37


def test_trials_of_two_steps_are_not_run_side_by_side() -> None:
    """The jobs of two steps may be due at a time."""

    def toy_job(step: int, index: int, seed: int) -> Job:
        return Job("search", step, index, toy_loss((0.5,) * 3), seed, (0.5,) * 3)

    jobs = [
        *(toy_job(0, index, 1) for index in range(3)),
        *(toy_job(1, index, 2) for index in range(2)),
    ]
    waiting = iter(jobs)

    class Due:
        finished = False

        def next_job(self) -> Job | None:
            return next(waiting, None)

        def record(self, job: Job, outcome: Outcome) -> None:
            recorded.append(job)

    recorded: list[Job] = []
    toy = Together()
    SerialRunner(9).run(Due(), toy)
    assert toy.groups == [jobs[:3], jobs[3:]]
    assert recorded == jobs
