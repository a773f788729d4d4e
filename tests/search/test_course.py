"""Whole studies with rivals, whose rewards are those of a toy."""

from __future__ import annotations

import json
import math
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import SearchError
from autosegloss.loss import load_loss
from autosegloss.loss.base import LossContent
from autosegloss.proxy.settings import Optimizer
from autosegloss.search import seeds
from autosegloss.search.algorithms.ppo import PPO2
from autosegloss.search.content import CROSS_ENTROPY, bare_content
from autosegloss.search.finals import Schedule
from autosegloss.search.findings import Findings
from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.ladder import at_step, step_name
from autosegloss.search.plan import without_rivals
from autosegloss.search.rivals import BASELINE, Rival, Screening
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.study import Study
from tests.examples import examples
from tests.journals import trials_of
from tests.toys import ToyLosses

NAMES = ("cross_entropy", "lovasz", "jml", "soft_dice")
HEIGHTS = (0.0, 0.2, 0.15, 0.1)
RIVALS = [Rival(name, bare_content(load_loss(name))) for name in NAMES]
LADDER: dict[Optimizer, tuple[float, ...]] = {"sgd": (1.0, 2.0, 4.0), "adamw": (1 / 3, 1.0, 3.0)}
HEIGHT = {
    (json.dumps(arm.loss), arm.rate): (step_name(rival.name, step, optimizer), height - 0.01 * (2 - place))
    for optimizer, steps in LADDER.items()
    for rival, height in zip(RIVALS, HEIGHTS, strict=True)
    for place, step in enumerate(steps)
    for arm in [at_step(rival.loss, step, optimizer)]
}
"""The name and the height of a rival at a step: at the highest step it is highest."""
HEIGHT[json.dumps(CROSS_ENTROPY), 1.0] = ("cross_entropy", HEIGHTS[0] - 0.02)


@dataclass(frozen=True)
class Toy:
    """Rewards by loss: those of rivals as `HEIGHT` has them, those of the search highest at (0.6, 0.6).

    Args:
        gain: How much higher the best loss of the search is than the best rival.
        spread: A factor of the differences between rivals.
        noise: Standard deviation of the noise of a loss on a seed, beside that of the seed.
        broken: Names of rivals that fail.
        collapsed: Names of rivals whose other metric collapses.
        better: Names of rivals whose other metric is higher.
    """

    gain: float = 0.0
    spread: float = 1.0
    noise: float = 0.001
    broken: frozenset[str] = frozenset()
    collapsed: frozenset[str] = frozenset()
    better: frozenset[str] = frozenset()

    def __call__(self, job: Job) -> Outcome:
        """Objective of a study."""
        if job.theta is None:
            name, height = HEIGHT[json.dumps(job.loss), job.rate]
            value = 0.5 + self.spread * height
        else:
            name, value = "searched", 0.7 + self.gain - sum((x - 0.6) ** 2 for x in job.theta)
        if name in self.broken:
            raise RuntimeError("diverged")
        own = zlib.crc32(json.dumps([job.loss, job.rate]).encode())
        of_seed, of_loss = (np.random.default_rng(key).standard_normal() for key in ([job.seed], [job.seed, own]))
        reward = value + 0.05 * float(of_seed) + self.noise * float(of_loss)
        metrics = {"toy": reward, "other": 0.1 if name in self.collapsed else 1.0 if name in self.better else 0.9}
        return Outcome(reward, metrics, metrics if job.stage == "final" else {}, None, 0.0)


def study_of(
    journal: Journal,
    *,
    optimizer: Optimizer = "sgd",
    guard: Mapping[str, float] | None = None,
    guard_rivals: bool = False,
    rivals: slice = slice(None),
    budget: int | None = None,
    **changes: Any,
) -> Study:
    numbers = {"steps": 2, "candidates": 2, "finalist_seeds": 2, "test_seeds": 5, "seed": 3} | changes
    screening = Screening(RIVALS[rivals], LADDER[optimizer], optimizer, 3, budget)
    begin = without_rivals(PPO2(start=(0.5, 0.5), samples=4, updates=3), ToyLosses())
    return Study(
        begin,
        journal,
        CROSS_ENTROPY,
        Schedule(**numbers),
        screening=screening,
        guard=guard,
        guard_rivals=guard_rivals,
    )


def course(folder: Path, objective: Objective, *, resume: bool = False, **changes: Any) -> Findings:
    """Run a study to its end, and check what holds for all of them."""
    with Journal(folder / "trials.jsonl", resume=resume) as journal:
        study = study_of(journal, **changes)
        announced = study.total
        counts = []
        while (job := study.next_job()) is not None:
            SerialRunner().run(_One(study, job), objective)
            counts.append((study.done, study.total))
        found = study.findings()
    assert all(done <= total for done, total in counts)
    assert resume or changes.get("guard") or all(a >= b for (_, a), (_, b) in pairwise(counts))
    assert resume or announced >= study.total
    assert study.done == study.total == len(trials_of(folder / "trials.jsonl"))
    assert study.stage == "finished"
    assert found.screen is not None
    _check_seeds(trials_of(folder / "trials.jsonl"), found)
    others = [final for final in found.finals[1:] if final.theta is None and final.reward is not None]
    best = max(others, key=lambda final: final.reward or 0.0, default=found.best_rival)
    rival = best if found.label == BASELINE else found.best_rival
    assert found.compared == {"cross-entropy": found.finals[0], "rival": rival, "found": found.winner}
    assert found.finals[0].label == BASELINE
    assert found.loss == found.winner.loss
    return found


class _One:
    """A study that hands out one job."""

    def __init__(self, study: Study, job: Job) -> None:
        self._study, self._jobs = study, [job]
        self.finished = False

    def next_job(self) -> Job | None:
        return self._jobs.pop() if self._jobs else None

    def record(self, job: Job, outcome: Outcome) -> None:
        self._study.record(job, outcome)


def _check_seeds(trials: list[dict[str, Any]], found: Findings) -> None:
    """Losses that are compared share a seed, and no seed serves two purposes."""
    purposes: dict[int, set[tuple[str, int]]] = {}
    for trial in trials:
        stage, step = trial["stage"], trial["step"]
        purpose = ("screen", 0) if stage in ("screen", "fidelity") else (stage, step)
        purposes.setdefault(trial["seed"], set()).add(purpose)
    assert all(len(of_seed) == 1 for of_seed in purposes.values())
    assert found.screen is not None
    of = {stage: {trial["seed"] for trial in trials if trial["stage"] == stage} for stage in ("screen", "final")}
    assert of["screen"] == {*found.screen.seeds}
    heats = {trial["seed"] for trial in trials if trial["stage"] == "final" and trial["step"] < 2}
    assert {*found.seeds} == (of["final"] - heats if found.verdict else heats)
    assert len(found.seeds) == (5 if found.verdict else 2)


# What is returned, and why.


def test_a_loss_that_beats_every_rival_is_returned(tmp_path: Path) -> None:
    found = course(tmp_path, Toy(gain=0.3))
    assert found.verdict is not None
    assert found.theta is not None
    assert found.label == found.verdict.winners[0]
    assert found.reward == max(final.reward or 0 for final in found.finals)
    lead = found.verdict.least(found.label)
    assert lead.bound > 0
    assert found.conclusion == (
        f"{found.label} beats every rival here ({lead} over {lead.rival}): loss.json is the loss found"
    )
    assert found.screen is not None
    assert found.screen.searched
    assert [each.arm.name for each in found.screen.screened.best[:2]] == ["4*lovasz", "4*jml"]
    assert found.rivals == ("4*lovasz", "4*jml", BASELINE)
    assert [final.label for final in found.heats] == [BASELINE, "4*lovasz", "4*jml", "mu after step 1", "start"]
    assert found.heats[-1].theta == found.steps[0].mu
    assert [final.label for final in found.finals[:3]] == [BASELINE, "4*lovasz", "4*jml"]
    assert found.best_rival == found.finals[1]
    assert [step.step for step in found.steps] == [0, 1]
    assert found.heats[0].rewards != found.finals[0].rewards


def test_where_no_loss_is_ahead_there_is_no_test(tmp_path: Path) -> None:
    found = course(tmp_path, Toy(gain=-0.3))
    assert (found.label, found.theta, found.verdict, found.heats) == ("4*lovasz", None, None, ())
    assert found.loss == at_step(RIVALS[1].loss, 4, "sgd").loss
    assert found.conclusion == (
        "no searched loss is ahead of 4*lovasz in the first part of the finals: loss.json is 4*lovasz"
    )
    assert found.best_rival == found.winner
    assert any(final.theta is not None for final in found.finals)


def test_a_lead_within_the_noise_returns_the_best_rival(tmp_path: Path) -> None:
    found = course(tmp_path, Toy(gain=0.02, noise=0.02), always=True, candidates=3, seed=2)
    assert found.verdict is not None
    assert found.verdict.closest is not None
    assert found.verdict.winners == ()
    assert found.theta is None
    assert found.label in found.rivals
    closest = found.verdict.closest
    assert found.conclusion == (
        f"no searched loss beats {closest.rival} here ({closest}, too little for the best of 2): loss.json is "
        f"{found.label}"
    )
    heats = {final.label: final for final in found.heats}
    both = {label: heats[label].rewards + _final(found, label).rewards for label in found.rivals}
    assert found.label == max(both, key=lambda label: sum(x or 0 for x in both[label])), "over all seeds"
    assert found.best_rival == found.winner


def _final(found: Findings, label: str) -> Any:
    return next(final for final in found.finals if final.label == label)


def test_where_the_rivals_can_not_be_told_apart_there_is_no_search_unless_asked(tmp_path: Path) -> None:
    alike = Toy(gain=0.3, spread=0, noise=0.01)
    found = course(tmp_path / "gated", alike)
    assert found.screen is not None
    assert found.screen.headroom is not None
    assert not found.screen.headroom.told_apart
    assert (found.screen.searched, found.steps, found.verdict) == (False, (), None)
    assert found.conclusion == f"no search was made: loss.json is {found.label}, the best rival"
    assert {final.theta for final in found.finals} == {None}
    assert len(found.finals) == 3
    assert [step.step for step in course(tmp_path / "always", alike, always=True).steps] == [0, 1]


def test_without_steps_there_are_rivals_alone(tmp_path: Path) -> None:
    found = course(tmp_path, Toy(gain=0.3), steps=0)
    assert (found.label, found.theta, found.steps) == ("4*lovasz", None, ())
    assert found.conclusion == "no search was made: loss.json is 4*lovasz, the best rival"
    assert {final.theta for final in found.finals} == {None}, "the start of a search is none of them"
    assert {trial["stage"] for trial in trials_of(tmp_path / "trials.jsonl")} == {"screen", "final"}
    assert found.screen is not None
    assert found.screen.headroom is not None
    assert found.screen.headroom.told_apart
    assert found.screen.headroom.names == ("4*lovasz", "4*jml", "4*soft_dice", "4*cross_entropy")


def test_the_finals_avoid_the_seeds_of_the_screening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "_seed", lambda _, purpose, ordinal: ordinal + 9 * (purpose == seeds.STEP))
    found = course(tmp_path, Toy(gain=0.3))
    assert found.screen is not None
    assert (found.screen.seeds, [step.seed for step in found.steps]) == ((0, 1, 2), [9, 10])
    assert found.seeds == (5, 6, 7, 8, 11), "after 3 and 4; 9 and 10 are taken in the first part"


def test_under_adamw_a_rival_is_returned_with_its_learning_rate(tmp_path: Path) -> None:
    found = course(tmp_path, Toy(gain=-0.3), optimizer="adamw")
    assert (found.label, found.rate) == ("lovasz (learning rate x 3)", 3)
    assert found.loss == RIVALS[1].loss
    rates = {trial["rate"] for trial in trials_of(tmp_path / "trials.jsonl") if trial["stage"] == "screen"}
    assert rates == {*LADDER["adamw"]}


def test_cross_entropy_may_be_the_best_rival(tmp_path: Path) -> None:
    """At the step at which it is the baseline, it is run once on a seed of the finals."""
    others = frozenset(step_name("cross_entropy", step, "adamw") for step in (1 / 3, 3))
    found = course(tmp_path, Toy(gain=-0.9, broken=others), rivals=slice(1), optimizer="adamw")
    assert (found.label, found.rivals) == (BASELINE, (BASELINE,))
    assert [final.label for final in found.finals].count(BASELINE) == 1


def test_rivals_also_train_at_the_schedule_of_the_finals_where_it_is_longer(tmp_path: Path) -> None:
    found = course(tmp_path, Toy(), longer=True)
    assert found.screen is not None
    assert found.screen.fidelity is not None
    assert found.screen.fidelity.names == ("4*lovasz", "4*jml", "4*soft_dice", "4*cross_entropy")
    assert found.screen.fidelity.correlation == pytest.approx(1), "the toy does not know of schedules"
    trials = [trial for trial in trials_of(tmp_path / "trials.jsonl") if trial["stage"] == "fidelity"]
    assert [trial["seed"] for trial in trials] == [found.screen.seeds[0]] * 4


# Guards.


def test_a_rival_that_breaks_a_guard_is_not_returned(tmp_path: Path) -> None:
    collapsed = frozenset({"lovasz", "2*lovasz", "4*lovasz"})
    toy = Toy(gain=-0.9, collapsed=collapsed)
    assert course(tmp_path / "without", toy).label == "4*lovasz"
    found = course(tmp_path / "with", toy, guard={"other": 0.9})
    assert found.label == "4*jml"
    assert found.about_guards() == "kept: other is 90.00 where at least 81.00 was asked (0.9 of cross-entropy's 90.00)."
    by_round: dict[int, list[dict[str, Any]]] = {}
    for trial in trials_of(tmp_path / "with" / "trials.jsonl"):
        if trial["stage"] == "screen":
            by_round.setdefault(trial["step"], []).append(trial)
    for trials in by_round.values():
        of_cross_entropy = {trial["seed"] for trial in trials if trial["loss"] == CROSS_ENTROPY}
        assert {trial["seed"] for trial in trials} == of_cross_entropy, "each round has what the guard compares with"


def test_where_all_rivals_break_the_guards_cross_entropy_is_returned(tmp_path: Path) -> None:
    every = frozenset({name for name, _ in HEIGHT.values()} - {"cross_entropy"})
    found = course(tmp_path, Toy(gain=-0.9, collapsed=every | {"searched"}), guard={"other": 0.9}, rivals=slice(3))
    assert (found.label, found.loss, found.theta) == (BASELINE, CROSS_ENTROPY, None)
    assert found.best_rival == found.winner


def test_a_guard_may_compare_with_the_rival_that_is_best_on_its_metric(tmp_path: Path) -> None:
    toy = Toy(gain=0.3, better=frozenset({"4*jml"}))
    for guard_rivals in (False, True):
        found = course(tmp_path / str(guard_rivals), toy, guard={"other": 0.95}, guard_rivals=guard_rivals)
        assert (found.theta is None) == guard_rivals
    assert found.label == "4*jml"
    kept = "kept: other is 100.00 where at least 95.00 was asked (0.95 of 4*jml's 100.00)"
    assert found.about_guards().startswith(kept)
    assert all(final.broken for final in found.finals if final.label != "4*jml")


# Failures.


def test_if_all_rivals_fail_the_search_is_refused_and_can_be_resumed(tmp_path: Path) -> None:
    whole = course(tmp_path / "whole", Toy(gain=0.3))
    every = frozenset(name for name, _ in HEIGHT.values())
    for number, broken in enumerate([every, every - {"cross_entropy"}]):
        with pytest.raises(SearchError) as caught:
            course(tmp_path / str(number), Toy(gain=0.3, broken=broken))
        first = trials_of(tmp_path / str(number) / "trials.jsonl")[1]
        assert str(caught.value).startswith(
            "screening: all 4 trials of other losses than cross-entropy of round 0 failed. First: trial 1 (seed "
            f"{first['seed']}): tests/search/test_course.py:"
        )
        assert str(caught.value).endswith("diverged.\nThe journal is safe; continue with --resume.")
        assert _again(tmp_path / str(number)) == whole.to_json()


def _again(folder: Path) -> str:
    with Journal(folder / "trials.jsonl", resume=True) as journal:
        study = study_of(journal)
        SerialRunner().run(study, Toy(gain=0.3))
        return study.findings().to_json()


def test_a_step_that_is_too_large_for_all_rivals_is_no_fault(tmp_path: Path) -> None:
    """Where a round has climbed to it alone, all of its trials fail."""
    steps = frozenset(f"{step}*{name}" for step in (4, 1) for name in NAMES)
    found = course(tmp_path, Toy(gain=-0.9, broken=steps | {*NAMES[1:]}))
    assert found.label == "2*lovasz"
    assert found.screen is not None
    assert all(each.arm.step == 2 for each in found.screen.screened.best)


def test_a_rival_that_fails_in_the_test_counts_as_the_lowest_there(tmp_path: Path) -> None:
    def failing(job: Job) -> Outcome:
        if job.stage == "final" and job.step == 3 and job.theta is None and job.loss != CROSS_ENTROPY:
            raise RuntimeError("diverged")
        return toy(job)

    toy = Toy(gain=0.3)
    found = course(tmp_path, failing)
    assert found.theta is not None
    (rival,) = (final for final in found.finals if final.label == "4*lovasz")
    assert rival.rewards.count(None) == 1
    lowest = min(x for final in found.finals for x in final.rewards if x is not None)
    alive = [x for x in rival.rewards if x is not None]
    assert rival.reward == pytest.approx((sum(alive) + lowest) / 5)


# Order and resumption.


@cache
def undisturbed(lag: int) -> tuple[str, int]:
    """The result of a study that is left alone, and its number of trials."""
    with tempfile.TemporaryDirectory() as name:
        found = course(Path(name), Toy(gain=0.3), lag=lag, longer=True)
        return found.to_json(), len(trials_of(Path(name, "trials.jsonl")))


@examples(5)
@given(lag=st.sampled_from([0, 1]), data=st.data())
def test_neither_order_nor_kills_change_the_result(lag: int, data: st.DataObject) -> None:
    expected, number = undisturbed(lag)
    toy = Toy(gain=0.3)
    with tempfile.TemporaryDirectory() as name:
        resume, result = False, ""
        while not result:
            with Journal(Path(name, "trials.jsonl"), resume=resume) as journal:
                study = study_of(journal, lag=lag, longer=True)
                budget = data.draw(st.integers(1, number), label="trials until the kill")
                running: list[Job] = []
                while not study.finished and budget:
                    while len(running) < 3 and (job := study.next_job()) is not None:
                        running.append(job)
                    job = running.pop(data.draw(st.integers(0, len(running) - 1), label="next to finish"))
                    study.record(job, toy(job))
                    budget -= 1
                result, resume = study.findings().to_json() if study.finished else "", True
        assert result == expected


def test_what_begins_after_the_screening_is_told_of_it(tmp_path: Path) -> None:
    """The optimiser is made when the screening is finished, and again when the study is resumed."""
    told: list[Any] = []

    class Shifted(ToyLosses):
        def content(self, theta: tuple[float, ...]) -> LossContent:
            return {"theta": list(theta), "shifted": True}

    def begin(screened: Any) -> Any:
        told.append(screened)
        start = (0.5, 0.5) if screened is None else (0.7, 0.3, 0.5)
        return PPO2(start=start, samples=4, updates=3), Shifted()

    schedule = Schedule(steps=2, candidates=2, finalist_seeds=2, seed=3, test_seeds=5)
    for resume in (False, True):
        with Journal(tmp_path / "trials.jsonl", resume=resume) as journal:
            screening = Screening(RIVALS, LADDER["sgd"], "sgd", 3, None)
            study = Study(begin, journal, CROSS_ENTROPY, schedule, screening=screening)
            SerialRunner().run(study, Toy(gain=0.3))
            assert study.screen is not None
            assert told[-2:] == [None, study.screen.screened]
    searched = [trial for trial in trials_of(tmp_path / "trials.jsonl") if trial["stage"] == "search"]
    assert {len(trial["theta"]) for trial in searched} == {3}
    assert [trial["theta"] for trial in searched].count([0.7, 0.3, 0.5]) == 2, "in each step"


def test_cross_entropy_is_a_rival_that_nobody_need_name(tmp_path: Path) -> None:
    """Rivals that are worse are not returned, nor a loss of the search that beats these alone."""
    found = course(tmp_path, Toy(gain=-0.25, spread=-1.0), rivals=slice(1, None), always=True)
    assert (found.label, found.theta) == (BASELINE, None)
    assert set(found.rivals) == {"soft_dice", "jml", BASELINE}
    assert max(final.reward or 0 for final in found.finals if final.theta is not None) > 0.4


def test_the_upper_bound_of_trials_counts_cross_entropy_beside_guarded_rounds(tmp_path: Path) -> None:
    """Under budgets that leave nothing over, of a recommendation in which larger steps are always better."""

    def climbing(job: Job) -> Outcome:
        reward = 0.5 + 0.02 * math.log2(job.loss.get("scale", 1)) + 1e-4 * (zlib.crc32(str(job.loss).encode()) % 10)
        return Outcome(reward, {"other": 1.0}, {}, None, 0.0)

    left = []
    for budget in range(20, 44, 3):
        with Journal(tmp_path / f"{budget}.jsonl") as journal:
            study = study_of(journal, steps=0, guard={"other": 0.5}, budget=budget)
            announced = study.total
            while (job := study.next_job()) is not None:
                SerialRunner().run(_One(study, job), climbing)
        left.append(announced - study.done)
    assert min(left) == 0
