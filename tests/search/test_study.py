from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import InputError, RefusedError, SearchError
from autosegloss.search import seeds
from autosegloss.search.algorithms.external import RandomSearch
from autosegloss.search.algorithms.ppo import PPO2, State
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.study import Study
from tests.examples import examples
from tests.journals import trials_of
from tests.toys import TOY, Quadratic, run_toy, search_of, toy_study

JOURNAL = "trials.jsonl"
FIRST = (0, 9, 19)
"""Where the trials of each step begin: 8 samples, the start, and from the second step on the centre."""


@contextmanager
def opened(folder: Path, *, resume: bool = False, lag: int = 0) -> Iterator[Study]:
    with Journal(folder / JOURNAL, resume=resume) as journal:
        yield toy_study(journal, lag=lag)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return trials_of(folder / JOURNAL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run_toy(tmp_path_factory.mktemp("undisturbed"), SerialRunner())


# The plan.


def test_the_jobs_are_those_of_the_plan(tmp_path: Path) -> None:
    run_toy(tmp_path, SerialRunner())
    trials = lines_of(tmp_path)
    keys = ["stage", "step", "index", "loss", "seed", "theta", "rate"]
    keys += ["reward", "metrics", "validation", "error", "seconds"]
    assert all(list(trial) == keys for trial in trials)
    places = [(trial["stage"], trial["step"], trial["index"]) for trial in trials]
    assert places == [("search", s, i) for s in range(3) for i in range(9 + (s > 0))] + [
        ("final", s, i) for s in range(2) for i in range(4)
    ]

    # The seed is common to the members of a step, and the finals see fresh ones.
    seeds = {(trial["stage"], trial["step"]): set[int]() for trial in trials}
    for trial in trials:
        seeds[trial["stage"], trial["step"]].add(trial["seed"])
    assert all(len(members) == 1 for members in seeds.values())
    assert len(set.union(*seeds.values())) == 5

    # Only the finals look at the validation set; cross-entropy and the start run beside the candidates.
    assert [bool(trial["validation"]) for trial in trials] == [trial["stage"] == "final" for trial in trials]
    assert trials[29]["theta"] is None
    assert [trials[i]["theta"] for i in (8, 17, 27, 30)] == [[0.5, 0.5, 0.5]] * 4
    assert {trial["rate"] for trial in trials} == {1.0}


def test_the_result_says_what_won_and_why(tmp_path: Path) -> None:
    result = json.loads(run_toy(tmp_path, SerialRunner()))
    trials = lines_of(tmp_path)
    assert [final["label"] for final in result["finals"]][:2] == ["cross-entropy", "start"]
    assert TOY.regret(tuple(result["theta"])) < 0.5 * TOY.regret((0.5,) * 3)

    # One candidate of each kind: the centre after the last step, and the sample farthest ahead of the start.
    centre, sample = result["finals"][2:]
    samples = [trials[first : first + 8] for first in FIRST]
    means = [sum(trial["reward"] for trial in step) / 8 for step in samples]
    starts = [trials[first + 8] for first in FIRST]
    centres = [starts[0], *(trials[first + 9] for first in FIRST[1:])]
    assert [step["start"] for step in result["steps"]] == [trial["reward"] for trial in starts]
    assert [step["centre"] for step in result["steps"]] == [trial["reward"] for trial in centres]
    assert [step["mu"] for step in result["steps"]] == [trial["theta"] for trial in centres]
    assert [step["mean"] for step in result["steps"]] == pytest.approx(means)
    assert centre["label"] == "mu after step 2"
    assert centre["theta"] not in [step["mu"] for step in result["steps"]]
    best = max((trial for step in samples for trial in step), key=lambda t: t["reward"] - starts[t["step"]]["reward"])
    assert sample["label"] == f"sample {best['index']} of step {best['step']}"
    assert sample["theta"] == best["theta"]

    for final in result["finals"]:
        assert final["reward"] == pytest.approx(sum(final["rewards"]) / 2)
        assert final["rewards"] == [metrics["toy"] for metrics in final["metrics"]]
        assert len(final["validation"]) == 2
    winner = max(result["finals"][1:], key=lambda final: final["reward"])
    assert (result["label"], result["theta"], result["reward"]) == (winner["label"], winner["theta"], winner["reward"])
    assert "seconds" not in json.dumps(result)


def test_a_search_that_finds_nothing_ends_where_it_began(tmp_path: Path) -> None:
    result = json.loads(run_toy(tmp_path, SerialRunner(), Quadratic((0.5,) * 3, (1.0,) * 3)))
    assert result["label"] == "start"
    assert result["theta"] == [0.5] * 3
    assert result["reward"] == 0


def test_cross_entropy_does_not_compete(tmp_path: Path) -> None:
    def lower_than_cross_entropy(job: Job) -> Outcome:
        outcome = TOY(job)
        return outcome if job.theta is None else replace(outcome, reward=(outcome.reward or 0) - 10)

    result = json.loads(run_toy(tmp_path, SerialRunner(), lower_than_cross_entropy))
    assert result["finals"][0]["reward"] > result["reward"]
    assert result["label"] != "cross-entropy"


@pytest.mark.parametrize(("candidates", "labels"), [(1, 1), (5, 5)])
def test_candidates_are_distinct_and_of_both_kinds(tmp_path: Path, candidates: int, labels: int) -> None:
    # With baseline mu, the centre is one of the samples, and in the first step also the start; none is run again.
    algorithm = PPO2(start=(0.5,) * 3, samples=4, updates=5, baseline="mu")
    with Journal(tmp_path / JOURNAL) as journal:
        study = search_of(algorithm, journal, steps=3, candidates=candidates, finalist_seeds=1, seed=0)
        announced = study.total
        SerialRunner().run(study, TOY)
        finals = study.findings().finals
    assert announced - 2 == study.total == study.done == 3 * 6 - 1 + 2 + candidates
    trials = lines_of(tmp_path)
    assert [step.start for step in study.steps] == [trials[i]["reward"] for i in (0, 10, 16)]
    thetas = [final.theta for final in finals]
    assert len(set(thetas)) == len(thetas) == 2 + candidates
    kinds = [final.label.split()[0] for final in finals[2:]]
    assert kinds[:2] == ["mu", "sample"][:candidates]


def test_the_finals_avoid_every_seed_of_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "_seed", lambda study_seed, purpose, ordinal: ordinal)  # seeds that would collide
    assert json.loads(run_toy(tmp_path, SerialRunner()))["seeds"] == [3, 4]


def test_progress_is_told_after_each_trial(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int, int]] = []

    def observer(study: Study) -> None:
        best = study.best
        assert best is not None
        seen.append((study.done, study.total, study.failed, len(study.steps)))

    with Journal(tmp_path / JOURNAL) as journal:
        study = toy_study(journal, observer)
        SerialRunner().run(study, replace(TOY, break_at={("search", 0, 3): "raise"}))
    ends = [first - 1 for first in FIRST[1:]] + [28]
    steps = [sum(n > end for end in ends) for n in range(1, 38)]
    assert seen == [(n, 37, int(n >= 4), done) for n, done in enumerate(steps, start=1)]
    assert study.best is not None
    samples = [trial for trial in lines_of(tmp_path)[:29] if trial["index"] < 8 and trial["reward"] is not None]
    assert study.best[1].reward == max(trial["reward"] for trial in samples)


# Failures.


def test_a_failed_trial_counts_as_the_lowest_of_its_step(tmp_path: Path) -> None:
    def lowest(job: Job) -> Outcome:
        outcome = TOY(job)
        if (job.stage, job.step, job.index) == ("search", 0, 2):
            return replace(outcome, reward=min(rewards))
        return outcome

    with opened(tmp_path / "clean") as study:
        rewards = []
        for _ in range(8):
            job = study.next_job()
            assert job is not None
            outcome = TOY(job)
            study.record(job, outcome)
            if job.index != 2 and outcome.reward is not None:
                rewards.append(outcome.reward)
    broken = json.loads(
        run_toy(tmp_path / "broken", SerialRunner(), replace(TOY, break_at={("search", 0, 2): "raise"}))
    )
    low = json.loads(run_toy(tmp_path / "low", SerialRunner(), lowest))
    assert broken["steps"][0]["failed"] == 1
    assert broken["steps"][1:] == low["steps"][1:]
    assert broken["steps"][0]["mean"] == low["steps"][0]["mean"]


@pytest.mark.parametrize("how", ["nan metric", "inf", "nan", "raise"])
def test_what_is_not_finite_is_a_failure(tmp_path: Path, how: str) -> None:
    def objective(job: Job) -> Outcome:
        outcome = TOY(job)
        if (job.stage, job.step, job.index) != ("search", 1, 5):
            return outcome
        if how == "raise":
            raise RuntimeError("no luck")
        if how == "nan metric":
            return replace(outcome, metrics={"toy": math.nan})
        return replace(outcome, reward=float(how))

    run_toy(tmp_path, SerialRunner(), objective)
    line = lines_of(tmp_path)[9 + 5]
    assert line["reward"] is None
    expected = {"raise": "RuntimeError: no luck", "nan metric": "not finite: toy is nan"}
    assert line["error"].endswith(expected.get(how, f"not finite: reward is {how}"))
    assert line["error"].startswith("tests/search/test_study.py:" if how == "raise" else "not finite")
    assert "NaN" not in (tmp_path / JOURNAL).read_text()
    assert "Infinity" not in (tmp_path / JOURNAL).read_text()


def test_a_trial_that_ends_the_process_in_python_is_a_failed_one(tmp_path: Path) -> None:
    """`sys.exit` in a user's network, and others that are no `Exception`; only an interrupt ends the search."""
    raised = [SystemExit(3), GeneratorExit(), asyncio.CancelledError("late")]

    class Group:
        def __call__(self, job: Job) -> Outcome:
            if job.stage == "search" and job.step == 1 and job.index < 3:
                raise raised[job.index]
            return TOY(job)

        def run_group(self, jobs: Sequence[Job]) -> list[Outcome]:
            return [self(job) for job in jobs]

    found = [run_toy(tmp_path / str(trials), SerialRunner(trials), Group()) for trials in (1, 4)]
    assert found[0] == found[1]
    errors = [": SystemExit: 3", ": GeneratorExit", ": CancelledError: late"]
    for trials in (1, 4):
        for line, error in zip(lines_of(tmp_path / str(trials))[9:12], errors, strict=True):
            assert line["error"].endswith(error)


def test_half_a_step_may_fail_and_more_may_not(tmp_path: Path, undisturbed: str) -> None:
    four = {("search", 1, index): "raise" for index in range(1, 5)}
    run_toy(tmp_path / "half", SerialRunner(), replace(TOY, break_at=four))

    folder = tmp_path / "more"
    five = {("search", 1, index): "raise" for index in range(1, 6)}
    with pytest.raises(SearchError) as caught:
        run_toy(folder, SerialRunner(), replace(TOY, break_at=five))
    seed = lines_of(folder)[9]["seed"]
    assert str(caught.value) == (
        "step 1: 5 of 8 trials failed; the policy was not updated. "
        f"First: trial 1 (seed {seed}): out of memory; lower batch_size or the size of the images (RuntimeError: CUDA "
        "out of memory.).\n"
        "The journal is safe; continue with --resume."
    )
    assert not isinstance(caught.value, RefusedError)

    # The failed trials, and only they, run again: the cause is mended, and nothing of the mishap remains.
    again: Counter[tuple[str, int, int]] = Counter()

    def counting(job: Job) -> Outcome:
        again[job.stage, job.step, job.index] += 1
        return TOY(job)

    assert run_toy(folder, SerialRunner(), counting, resume=True) == undisturbed
    assert [place for place in again if place[:2] == ("search", 1)] == list(five)
    assert not any(place[:2] == ("search", 0) for place in again)


def test_a_start_that_fails_is_noted_and_decides_nothing(tmp_path: Path, undisturbed: str) -> None:
    result = json.loads(run_toy(tmp_path, SerialRunner(), replace(TOY, break_at={("search", 1, 8): "raise"})))
    expected = json.loads(undisturbed)
    assert expected["steps"][1].pop("start") is not None
    assert result["steps"][1].pop("start") is None
    assert result == expected

    # Nor do a start and a baseline that end well make up for samples that fail.
    both, guard = {("search", 0, index): "raise" for index in range(2)}, {"other": 0.5}
    with Journal(tmp_path / "few") as journal:
        algorithm = PPO2(start=(0.5,) * 3, samples=2)
        study = search_of(algorithm, journal, steps=1, candidates=1, finalist_seeds=2, seed=0, guard=guard)
        with pytest.raises(SearchError, match="step 0: 2 of 2 trials failed"):
            SerialRunner().run(study, replace(TOY, break_at=both))


def test_the_algorithm_is_not_told_of_the_start_nor_of_the_centre(tmp_path: Path, undisturbed: str) -> None:
    def better_beside(job: Job) -> Outcome:
        outcome = TOY(job)
        return replace(outcome, reward=9.0) if job.stage == "search" and job.index >= 8 else outcome

    result, expected = json.loads(run_toy(tmp_path, SerialRunner(), better_beside)), json.loads(undisturbed)
    with opened(tmp_path, resume=True) as study:
        assert study.best is not None
        assert study.best[0].index < 8
    for beside in ("start", "centre"):
        assert [step.pop(beside) for step in result["steps"]] == [9.0] * 3
        assert all(step.pop(beside) < 0 for step in expected["steps"])
    assert result["steps"] == expected["steps"]


def test_a_refused_step_retries_all_its_failures_even_if_killed_meanwhile(tmp_path: Path, undisturbed: str) -> None:
    five = {("search", 1, index): "raise" for index in range(1, 6)}
    with pytest.raises(SearchError):
        run_toy(tmp_path, SerialRunner(), replace(TOY, break_at=five))
    with opened(tmp_path, resume=True) as study:  # retries two of the five, then is killed
        for _ in range(2):
            job = study.next_job()
            assert job is not None
            study.record(job, TOY(job))
    with opened(tmp_path, resume=True) as study:
        job = study.next_job()
        assert job is not None
        assert (job.step, job.index) == (1, 3)
    assert run_toy(tmp_path, SerialRunner(), resume=True) == undisturbed


def test_a_final_whose_every_seed_failed_cannot_win(tmp_path: Path) -> None:
    clean = json.loads(run_toy(tmp_path / "clean", SerialRunner()))
    winner = [final["label"] for final in clean["finals"]].index(clean["label"])
    broken = {("final", seed, winner): "nan" for seed in range(2)}
    result = json.loads(run_toy(tmp_path / "broken", SerialRunner(), replace(TOY, break_at=broken)))
    assert result["finals"][winner]["reward"] is None
    assert result["finals"][winner]["rewards"] == [None, None]
    assert result["label"] != clean["label"]


def test_a_final_with_a_failed_seed_is_not_judged_by_its_good_ones(tmp_path: Path) -> None:
    result = json.loads(run_toy(tmp_path, SerialRunner(), replace(TOY, break_at={("final", 1, 2): "raise"})))
    lowest = min(reward for final in result["finals"] for reward in final["rewards"] if reward is not None)
    first, second = result["finals"][2]["rewards"]
    assert second is None
    assert result["finals"][2]["reward"] == pytest.approx((first + lowest) / 2)


def test_nothing_to_choose_from_is_an_error_that_resume_mends(tmp_path: Path, undisturbed: str) -> None:
    broken = {("final", seed, index): "raise" for seed in range(2) for index in range(1, 4)}
    with pytest.raises(SearchError, match="finals: all 6 trials of other losses than cross-entropy failed"):
        run_toy(tmp_path, SerialRunner(), replace(TOY, break_at=broken))
    assert run_toy(tmp_path, SerialRunner(), resume=True) == undisturbed


def test_an_interrupt_is_no_outcome(tmp_path: Path, undisturbed: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, SerialRunner(), replace(TOY, break_at={("search", 1, 3): "interrupt"}))
    assert len(lines_of(tmp_path)) == 9 + 3
    assert run_toy(tmp_path, SerialRunner(), resume=True) == undisturbed


# Order and resumption.


@cache
def lagging(lag: int) -> str:
    """The result of the small study, one trial after another."""
    with tempfile.TemporaryDirectory() as name, opened(Path(name), lag=lag) as study:
        SerialRunner().run(study, TOY)
        return study.findings().to_json()


@examples(25, deadline=None)
@given(lag=st.sampled_from([0, 1, 2]), data=st.data())
@pytest.mark.slow
def test_neither_order_nor_kills_change_the_result(lag: int, data: st.DataObject) -> None:
    undisturbed = lagging(lag)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finished, resume = False, False
        while not finished:
            with opened(folder, resume=resume, lag=lag) as study:
                budget = data.draw(st.integers(1, 46), label="trials until the kill")
                running: list[Job] = []
                while not study.finished and budget:
                    while len(running) < 4 and (job := study.next_job()) is not None:
                        running.append(job)
                    job = running.pop(data.draw(st.integers(0, len(running) - 1), label="next to finish"))
                    study.record(job, TOY(job))
                    budget -= 1
                finished, resume = study.finished, True
                result = study.findings().to_json() if finished else None
        assert result == undisturbed
        with opened(folder, resume=True, lag=lag) as study:  # and a finished study is finished at once
            assert study.finished
            assert study.next_job() is None
            assert study.findings().to_json() == undisturbed


def test_a_step_begins_when_all_but_the_lag_before_it_are_done(tmp_path: Path) -> None:
    with opened(tmp_path, lag=1) as study:
        first, second = ([study.next_job() for _ in range(9)] for _ in range(2))
        assert [{job.step for job in step if job is not None} for step in (first, second)] == [{0}, {1}]
        assert study.next_job() is None
        assert (study.running, study.done) == (18, 0)
        for job in [*second, *first[:-1]]:
            assert job is not None
            study.record(job, TOY(job))
            assert study.next_job() is None, "step 2 needs all of step 0"
        assert first[-1] is not None
        study.record(first[-1], TOY(first[-1]))
        assert (study.running, study.done, len(study.steps)) == (0, 18, 2)
        third = study.next_job()
        assert third is not None
        assert (third.step, study.running) == (2, 1)

    # What is asked ahead of the rewards is drawn from the same policy, but is not the same.
    thetas = [[job.theta for job in step if job is not None] for step in (first, second)]
    assert set(thetas[0]) & set(thetas[1]) == {(0.5,) * 3}
    assert study.steps[0].mu == study.steps[1].mu == (0.5,) * 3


def test_a_lag_changes_what_is_learned_and_nothing_else(tmp_path: Path) -> None:
    """Random search learns nothing, so it finds the same; PPO2 does not."""
    found = []
    for lag in (0, 2):
        with Journal(tmp_path / str(lag) / JOURNAL) as journal:
            random = RandomSearch(start=(0.5,) * 3, samples=8)
            study = search_of(random, journal, steps=3, candidates=2, finalist_seeds=2, seed=7, lag=lag)
            SerialRunner().run(study, TOY)
            found.append(study.findings())
    assert found[0] == found[1]
    assert lagging(0) != lagging(1)


def test_an_algorithm_is_told_from_which_state_its_points_came(tmp_path: Path) -> None:
    told: list[tuple[State, State | None]] = []

    class Listening(PPO2):
        def tell(self, state: State, rewards: Sequence[float], asked: State | None = None) -> State:
            told.append((state, asked))
            return super().tell(state, rewards, asked)

    with Journal(tmp_path / JOURNAL) as journal:
        algorithm = Listening((0.5,) * 3, samples=8, updates=5)
        study = search_of(algorithm, journal, steps=4, candidates=2, finalist_seeds=2, seed=7, lag=2)
        SerialRunner().run(study, TOY)
    first, after_one = told[0][0], told[1][0]
    in_turn = [first, algorithm.skip(first), algorithm.skip(algorithm.skip(first))]
    assert [asked for _, asked in told] == [*in_turn, algorithm.skip(algorithm.skip(after_one))]


def test_points_that_coincide_are_run_once(tmp_path: Path) -> None:
    class Repeating(PPO2):
        def ask(self, state: State) -> list[tuple[float, ...]]:
            points = super().ask(state)
            return [*points[:2], *points[:3], *points[3:]]

    runs: Counter[tuple[int, tuple[float, ...] | None]] = Counter()

    def counting(job: Job) -> Outcome:
        runs[job.seed, job.theta] += 1
        return TOY(job)

    with Journal(tmp_path / JOURNAL) as journal:
        algorithm = Repeating((0.5,) * 3, samples=8, updates=5)
        study = search_of(algorithm, journal, steps=3, candidates=2, finalist_seeds=2, seed=7)
        SerialRunner().run(study, counting)
        assert set(runs.values()) == {1}
        assert study.done == study.total == 37
    trials = lines_of(tmp_path)
    assert [trial["index"] for trial in trials[:8]] == [0, 1, 4, 5, 6, 7, 8, 9]
    rewards = [trial["reward"] for trial in trials[:8]]
    assert study.steps[0].mean == pytest.approx((sum(rewards) + rewards[0] + rewards[1]) / 10)


def test_a_job_that_is_not_due_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as study:
        job = study.next_job()
        assert job is not None
        study.record(job, TOY(job))
        for wrong in (job, replace(job, index=5), replace(job, step=2)):
            with pytest.raises(InputError, match="is not due"):
                study.record(wrong, TOY(wrong))
        with pytest.raises(SearchError, match="not finished: 1 of 37 trials are done"):
            study.findings()


def test_a_trial_is_on_disk_before_the_algorithm_is_told(tmp_path: Path) -> None:
    written: list[int] = []

    class Watched(PPO2):
        def tell(self, state: Any, rewards: Any, asked: Any = None) -> Any:
            written.append(len(lines_of(tmp_path)))
            return super().tell(state, rewards, asked)

    with Journal(tmp_path / JOURNAL) as journal:
        algorithm = Watched((0.5,) * 3, samples=8)
        study = search_of(algorithm, journal, steps=3, candidates=2, finalist_seeds=2, seed=7)
        SerialRunner().run(study, TOY)
    assert written == [9, 19, 29]
