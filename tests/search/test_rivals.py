"""The rivals of a search and their screening, on tables of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import AutoseglossError
from autosegloss.loss import load_loss
from autosegloss.loss.base import LossContent
from autosegloss.loss.file import build_loss
from autosegloss.metric import metric
from autosegloss.proxy.own_loss import FUNCTION_FORMAT
from autosegloss.proxy.settings import Optimizer
from autosegloss.search.content import CROSS_ENTROPY, bare_content
from autosegloss.search.ladder import LADDERS, at_step, step_name
from autosegloss.search.rivals import (
    BASELINE,
    BEST,
    OF_THE_METRIC,
    PEOPLE_USE,
    Arm,
    Rival,
    Run,
    Screened,
    Screening,
    best_of_each,
    default_rivals,
    rivals_of,
)
from autosegloss.search.settings import as_config
from tests.examples import examples

SOFT = ["cross_entropy", "focal", "0.5*soft_dice + 0.5*cross_entropy", "0.75*jml + 0.25*cross_entropy"]


def rivals(target: Any = "miou", labels: str = "hard", **section: Any) -> list[Rival]:
    return rivals_of(as_config({"metric": target, "rivals": section, "proxy": {"labels": {"name": labels}}}))


# What people would use.


@pytest.mark.parametrize("labels", ["hard", "smoothed"])
@pytest.mark.parametrize("target", ["miou", "macc", "bf1", "dice_i"])
def test_every_rival_is_a_loss_for_the_metric_and_the_labels(target: str, labels: str) -> None:
    found = rivals(target, labels)
    names = [rival.name for rival in found]
    own = [*OF_THE_METRIC] if metric(target) != metric("miou") else []
    assert names == [*default_rivals(metric(target), labels != "hard")]
    assert set(names) <= {*PEOPLE_USE, *OF_THE_METRIC}
    if labels == "hard":
        assert names == [*PEOPLE_USE, *own]
    else:
        assert {*SOFT} <= {*names}
        assert not any("lovasz" in str(rival.loss) or rival.name in OF_THE_METRIC for rival in found)
    for rival in found:
        assert bare_content(build_loss(rival.loss)) == rival.loss
        if rival.name not in OF_THE_METRIC:
            assert bare_content(load_loss(rival.name)) == rival.loss
    assert len({str(rival.loss) for rival in found}) == len(found)


def test_the_rivals_of_the_metric_are_the_metric() -> None:
    identity, log = rivals("macc", losses=["identity", "log"])
    assert identity.loss["metric"] == log.loss["metric"] == str(metric("macc"))
    assert log.loss != identity.loss
    assert rivals("miou", losses=["log"])[0].loss == bare_content(load_loss("log_miou"))


@pytest.mark.parametrize(
    ("section", "labels", "message"),
    [
        ({"losses": ["lovas"]}, "hard", "^rivals.losses: `lovas` is not a loss"),
        ({"losses": ["nowhere.json"]}, "hard", r"^rivals.losses: nowhere\.json: no such file"),
        ({"losses": ["lovasz", "1*lovasz"]}, "hard", r"`1\*lovasz` is the same loss as `lovasz`; name each once"),
        ({"losses": ["jml", "jml + lovasz"]}, "smoothed", "`jml . lovasz` needs hard labels, and proxy.labels makes"),
    ],
)
def test_what_is_no_rival_is_refused(section: dict[str, Any], labels: str, message: str) -> None:
    with pytest.raises(AutoseglossError, match=message):
        rivals(labels=labels, **section)


@pytest.mark.parametrize("target", ["miou", "macc"])
def test_the_name_of_a_rival_at_a_step_is_the_name_of_its_loss(target: str) -> None:
    for rival in rivals(target):
        for step in LADDERS["sgd"]:
            loss, rate = at_step(rival.loss, step, "sgd")
            assert rate == 1
            if rival.name not in OF_THE_METRIC:
                named = load_loss(step_name(rival.name, step, "sgd"))
                assert _rounded(bare_content(named)) == _rounded(loss)
        for step in LADDERS["adamw"]:
            assert at_step(rival.loss, step, "adamw") == (rival.loss, step), "AdamW divides a scale out"
            assert (step_name(rival.name, step, "adamw") == rival.name) == (step == 1)
    own: LossContent = {"format": FUNCTION_FORMAT, "function": "losses:mine"}
    assert at_step(own, 4, "sgd") == (own, 4), "whose scale nobody can set"


def _rounded(value: Any) -> Any:
    """A content with its numbers to 12 digits, and the terms of a sum in any order."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted(map(_rounded, value), key=str)
    return round(value, 12) if isinstance(value, float) else value


# The screening.

Table = Callable[[int, int, int], float | None]
"""The reward of a rival at a step, both by their places, on a seed."""


@cache
def toys(number: int) -> tuple[Rival, ...]:
    return tuple(Rival(f"toy {i}", at_step(CROSS_ENTROPY, 1 + 1 / (2 + i), "sgd").loss) for i in range(number))


def screened(
    table: Table, number: int, steps: Sequence[float], seeds: int, budget: int | None, optimizer: Optimizer = "adamw"
) -> tuple[Screened, list[Run], Screening]:
    """What a screening of toys finds on a table, and its trainings."""
    toy = toys(number)
    place = {rival.name: i for i, rival in enumerate(toy)}
    screening = Screening(toy, steps, optimizer, seeds, budget)
    course, runs = screening.course(), list[Run]()

    def reward(arm: Arm, seed: int) -> float | None:
        return -1.0 if arm.name == BASELINE else table(place[arm.rival], list(steps).index(arm.step), seed)

    batch = next(course)
    while True:
        assert batch, "a round without trainings"
        runs += batch
        try:
            batch = course.send([reward(*run) for run in batch])
        except StopIteration as stop:
            return stop.value, runs, screening


@st.composite
def ladders(draw: st.DrawFn) -> tuple[int, list[float], int, int | None]:
    """The number of rivals, the steps, the number of seeds and the budget of a screening."""
    steps = [2.0**k for k in range(draw(st.integers(1, 7)))]
    budget = draw(st.none() | st.integers(0, 60))
    return draw(st.integers(1, 12)), steps, draw(st.integers(1, 4)), budget


@examples(60)
@given(ladder=ladders(), data=st.data())
def test_whatever_the_rewards_a_screening_keeps_to_its_budget_and_uses_all_it_trains(
    ladder: tuple[int, list[float], int, int | None], data: st.DataObject
) -> None:
    number, steps, seeds, budget = ladder
    rewards = data.draw(
        st.lists(
            st.none() | st.sampled_from([0.0, 0.5, 0.5]) | st.floats(-1, 1),
            min_size=number * len(steps) * seeds,
            max_size=number * len(steps) * seeds,
        )
    )

    def table(rival: int, step: int, seed: int) -> float | None:
        return rewards[(rival * len(steps) + step) * seeds + seed]

    found, runs, screening = screened(table, number, steps, seeds, budget)
    least = 1 + number + (seeds - 1) * (1 + min(2, number))
    assert len(runs) <= screening.total
    assert budget is None or screening.total <= max(budget, least)
    assert len({(run.arm.name, run.arm.rival, run.seed) for run in runs}) == len(runs)

    # Every reward is in the result, and those of one seed share it.
    assert sum(len(each.rewards) for each in [found.baseline, *found.tried]) == len(runs)
    assert found.baseline.rewards == (-1.0,) * seeds
    of_toys = {f"toy {i}": i for i in range(number)}
    for each in found.tried:
        place = of_toys[each.arm.rival], steps.index(each.arm.step)
        assert each.rewards == tuple(table(*place, seed) for seed in range(len(each.rewards)))
        assert len(each.rewards) in (1, seeds)
        assert (each.arm.loss, each.arm.rate) == (toys(number)[place[0]].loss, each.arm.step)
    assert {each.arm.rival for each in found.tried} == {*of_toys}, "every rival is tried"

    # The best first, one of each rival; what failed anywhere is none of them.
    finalists = found.finalists
    assert [each.reward for each in finalists] == sorted((each.reward for each in finalists), reverse=True)
    assert all(None not in each.rewards and len(each.rewards) == seeds for each in finalists)
    best = found.best
    assert len(best) <= BEST
    assert [each.reward for each in best] == sorted((each.reward for each in best), reverse=True)
    assert len({each.arm.rival for each in best}) == len(best)
    assert best[:1] == finalists[:1]
    assert best == best_of_each(finalists)[: len(best)]
    assert screened(table, number, steps, seeds, budget)[0] == found, "of equals, the same are taken"


@examples(40)
@given(
    number=st.integers(1, 5),
    length=st.integers(1, 7),
    seeds=st.integers(1, 3),
    shift=st.floats(0.1, 1),
    data=st.data(),
)
def test_without_noise_it_finds_the_best_step_of_the_best_rival(
    number: int, length: int, seeds: int, shift: float, data: st.DataObject
) -> None:
    """Of at most five rivals, whose rewards fall on both sides of their best steps."""
    peaks = data.draw(st.lists(st.integers(0, length - 1), min_size=number, max_size=number))
    heights = data.draw(st.permutations([shift * i for i in range(number)]))
    slope = data.draw(st.floats(0.01, 2))

    def table(rival: int, step: int, seed: int) -> float:
        return heights[rival] - slope * abs(step - peaks[rival]) + 0.1 * seed

    found, _, _ = screened(table, number, [2.0**k for k in range(length)], seeds, None)
    best = max(range(number), key=heights.__getitem__)
    assert (found.finalists[0].arm.rival, found.finalists[0].arm.step) == (f"toy {best}", 2.0 ** peaks[best])
    by_rival = {each.arm.rival: each for each in found.best}
    assert len(by_rival) == number
    assert all(each.arm.step == 2.0 ** peaks[int(name[4:])] for name, each in by_rival.items())


def test_of_many_rivals_the_better_half_climb_and_five_are_trained_on_more_seeds() -> None:
    def table(rival: int, step: int, seed: int) -> float:
        return 0.1 * rival - 0.02 * abs(step - 4) + 0.01 * seed

    steps = LADDERS["sgd"]
    found, runs, screening = screened(table, 12, steps, 3, None, "sgd")
    assert [run.arm.name for run in runs[:13]] == [BASELINE, *(step_name(f"toy {i}", 4, "sgd") for i in range(12))]
    steps_tried = {i: {run.arm.step for run in runs if run.arm.rival == f"toy {i}"} for i in range(12)}
    assert all(steps_tried[i] == {4.0} for i in range(6))
    assert steps_tried[6] == {2.0, 4.0, 8.0}
    assert all(steps_tried[i] == {2.0, 4.0, 8.0, 16.0} for i in range(7, 12))
    of_the_last = [(run.arm.rival, run.arm.step) for run in runs if run.seed == 2]
    assert of_the_last[1:6] == [(f"toy {i}", 16.0) for i in (11, 10, 9, 8, 7)]
    assert of_the_last[6:] == [("toy 11", 8.0), ("toy 10", 8.0)]
    assert [each.arm.rival for each in found.best] == [f"toy {i}" for i in (11, 10, 9, 8, 7)]
    assert [each.arm.step for each in found.finalists[:2]] == [16.0, 8.0]
    assert len(runs) == 13 + 12 + 5 + 2 * 8 <= screening.total


def test_of_equals_the_smaller_step_and_the_earlier_rival_go_on() -> None:
    found, runs, _ = screened(lambda *_: 0.5, 7, LADDERS["sgd"], 2, 8 + 10 + 6, "sgd")
    assert [run.arm.rival for run in runs[8:18]] == [f"toy {i // 2}" for i in range(10)]
    assert [(run.arm.rival, run.arm.step) for run in runs if run.seed][1:] == [(f"toy {i}", 2.0) for i in range(5)]
    assert len(found.finalists) == 5


def test_under_adamw_the_learning_rate_is_the_step() -> None:
    found, runs, _ = screened(lambda i, j, _: i + 0.1 * j, 2, LADDERS["adamw"], 1, None, "adamw")
    assert {(run.arm.rate, str(run.arm.loss)) for run in runs[1:]} == {
        (rate, str(rival.loss)) for rate in LADDERS["adamw"] for rival in toys(2)
    }
    assert found.best[0].arm == Arm("toy 1 (learning rate x 3)", "toy 1", 3.0, toys(2)[1].loss, 3.0)


def test_a_failure_is_worse_than_any_reward() -> None:
    found, _, _ = screened(lambda i, j, _: None if (i, j) == (0, 2) else -9.0 * (i + 1), 2, LADDERS["sgd"], 2, None)
    assert found.finalists[0].arm.rival == "toy 0"
    assert found.finalists[0].arm.step != 4
    later, _, _ = screened(lambda i, j, s: None if i == 0 and s else -1.0 - i, 2, LADDERS["sgd"], 2, None)
    assert [each.arm.rival for each in later.best] == ["toy 1"]
    assert later.tried[-1].reward == -math.inf or any(each.reward == -math.inf for each in later.tried)
