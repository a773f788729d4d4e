"""Pruning: the rule by hand, its lack of bias, a study that repeats itself to the byte, and a real proxy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autosegloss.config import as_config
from autosegloss.errors import ConfigError
from autosegloss.proxy.filter import STEPS
from autosegloss.proxy.train import Loss
from autosegloss.proxy.trial import EARLY, Proxy, search_space
from autosegloss.search.api import Objective
from autosegloss.search.guard import guarded
from autosegloss.search.journal import Job, Outcome
from autosegloss.search.prune import Rung, rung
from autosegloss.search.ray_runner import RayRunner
from autosegloss.search.runners import SerialRunner
from tests.toys import Climbing, run_toy


def isotonic(pairs: list[tuple[float, float]]) -> dict[float, float]:
    """The isotonic regression by its formula: over those below, the largest of the least means up to those above."""
    xs = sorted({x for x, _ in pairs})

    def mean(low: float, high: float) -> float:
        return float(np.mean([y for x, y in pairs if low <= x <= high]))

    return {x: max(min(mean(low, high) for high in xs if high >= x) for low in xs if low <= x) for x in xs}


def test_by_hand() -> None:
    assert rung(0.5, []) == Rung()
    assert rung(0.5, [[(0.1, 0.3), (0.2, 0.5)]]) == Rung(), "two trials are too few to go by"
    first = [(0.4, 0.9), (0.2, 0.5), (0.3, 0.7), (0.1, 0.3)]
    line = rung(0.5, [first])
    assert [line.floor, *map(line.expected, (0.0, 0.15, 0.35, 2.0))] == pytest.approx([0.25, 0.3, 0.4, 0.8, 0.9])
    # The floor is that of the last step, with those that were given up; what is expected is from all that ended.
    later = rung(0.25, [first, [(0.0, None), (0.5, 1.1), (0.6, 1.3)]])
    assert [later.floor, later.expected(0.0), later.expected(0.5)] == pytest.approx([0.25, 0.3, 1.1])
    # Who is behind is not expected to be ahead; of equals the same is expected.
    assert rung(0.5, [[(0.1, 0.9), (0.2, 0.5), (0.3, 0.1)]]).expected(0.05) == pytest.approx(0.5)
    assert rung(0.5, [[(0.2, 0.1), (0.2, 0.3), (0.2, 0.5)]]).expected(0.7) == pytest.approx(0.3)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.35, 0.9]), st.floats(-1, 1)), min_size=3, max_size=12))
def test_what_is_expected_is_the_isotonic_regression(pairs: list[tuple[float, float]]) -> None:
    decide = rung(0.5, [list(pairs)])
    for early, reward in isotonic(pairs).items():
        assert decide.expected(early) == pytest.approx(reward, abs=1e-9)


def line(x: np.ndarray) -> np.ndarray:
    return 0.4 + 0.5 * x


def bend(x: np.ndarray) -> np.ndarray:
    return 0.6 - 0.5 * np.exp(-4 * x)


@pytest.mark.parametrize("curve", [line, bend])
def test_neither_the_mean_nor_the_gradient_of_a_step_has_a_bias(curve: Callable[[np.ndarray], np.ndarray]) -> None:
    """Where a reward follows from what is shown, and that from theta, but for noise."""
    rng = np.random.default_rng(0)
    means, gradients, wanted, naive = [], [], [], []
    for _ in range(1000):
        theta = rng.standard_normal((2, 32))
        early = 0.5 + 0.15 * theta + 0.1 * rng.standard_normal((2, 32))
        rewards = curve(early) + 0.05 * rng.standard_normal((2, 32))
        decide = rung(0.5, [list(zip(early[0].tolist(), rewards[0].tolist(), strict=True))])
        given_up = early[1] < decide.floor
        counted = np.where(given_up, [decide.expected(x) for x in early[1].tolist()], rewards[1])
        means.append(counted.mean() - rewards[1].mean())
        gradients.append(((counted - counted.mean()) * theta[1]).mean())
        wanted.append(((rewards[1] - rewards[1].mean()) * theta[1]).mean())
        naive.append(np.where(given_up, rewards[1].min(), rewards[1]).mean() - rewards[1].mean())
    assert abs(np.mean(means)) < 0.1 * abs(np.mean(naive)), "a tenth of what counting the lowest reward would do"
    assert np.mean(gradients) == pytest.approx(np.mean(wanted), rel=0.1)


# The study.


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run_toy(folder, SerialRunner(), Climbing(), prune=0.75)
    return result, (folder / "trials.jsonl").read_text().splitlines()


def test_the_floor_of_a_step_is_that_of_the_steps_before_it(undisturbed: tuple[str, list[str]]) -> None:
    trials = [json.loads(line) for line in undisturbed[1]]
    steps = [[trial for trial in trials if (trial["stage"], trial["step"]) == ("search", s)] for s in range(3)]
    assert [len(step) for step in steps] == [8, 8, 8]
    assert not any("pruned" in trial for trial in steps[0])
    for step in (1, 2):
        floor = np.quantile([trial["early"] for trial in steps[step - 1]], 0.75)
        ended = [trial for s in steps[:step] for trial in s if "pruned" not in trial]
        shown, expected = zip(*isotonic([(trial["early"], trial["reward"]) for trial in ended]).items(), strict=True)
        assert 0 < sum("pruned" in trial for trial in steps[step]) < 8
        for trial in steps[step]:
            assert trial.get("pruned", False) == (trial["early"] < floor)
            if "pruned" in trial:
                assert trial["reward"] == pytest.approx(np.interp(trial["early"], shown, expected))
    assert not any({"early", "pruned", "rung"} & trial.keys() for trial in trials if trial["stage"] == "final")
    given_up = [trial["theta"] for trial in trials if "pruned" in trial]
    assert all(final["theta"] not in given_up for final in json.loads(undisturbed[0])["finals"])


def test_what_was_given_up_is_no_candidate_however_much_is_expected_of_it(tmp_path: Path) -> None:
    def hopeful(job: Job) -> Outcome:
        outcome = Climbing()(job)
        return replace(outcome, reward=9.0) if outcome.pruned else outcome

    result = json.loads(run_toy(tmp_path, SerialRunner(), hopeful, prune=0.75))
    trials = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    given_up = [trial["theta"] for trial in trials if "pruned" in trial]
    assert given_up
    assert all(final["theta"] not in given_up for final in result["finals"])


@pytest.mark.parametrize("cut", [0, 5, 8, 13, 21, 30])
def test_cut_anywhere_and_resumed(undisturbed: tuple[str, list[str]], cut: int, tmp_path: Path) -> None:
    result, lines = undisturbed
    (tmp_path / "trials.jsonl").write_text("".join(line + "\n" for line in lines[:cut]))
    assert run_toy(tmp_path, SerialRunner(), Climbing(), prune=0.75, resume=True) == result


@pytest.mark.usefixtures("ray_address")
def test_the_same_on_ray(undisturbed: tuple[str, list[str]], tmp_path: Path) -> None:
    assert run_toy(tmp_path, RayRunner(2), Climbing(), prune=0.75) == undisturbed[0]


def test_off_there_is_nothing_of_it(tmp_path: Path) -> None:
    run_toy(tmp_path, SerialRunner(), Climbing())
    assert not any(word in (tmp_path / "trials.jsonl").read_text() for word in ("early", "pruned", "rung"))


def test_what_is_expected_of_a_trial_is_not_guarded_twice() -> None:
    baseline, trial = Job("search", 1, 1, None, 5), Job("search", 1, 0, (0.5,), 5)
    given_up = Outcome(0.4, {}, {}, None, 0.0, early=0.1, pruned=True)
    ended = Outcome(0.5, {"miou": 0.5}, {}, None, 0.0)
    assert guarded({trial: given_up, baseline: ended}, {"miou": 0.9})[trial] == given_up


@pytest.mark.parametrize("share", [-0.1, 1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"search\.prune: must be (at least 0|less than 1), not"):
        as_config({"metric": "miou", "search": {"prune": share}})


# A real proxy.


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    train = {"iterations": 10, "batch_size": 4}
    config = as_config({"metric": "miou", "proxy": {"start": {"iterations": 3}, "train": train}})
    return Proxy.load(config).prepare()


CALLS: list[float] = []


class Counted(Proxy):
    """A proxy that notes every value of its losses."""

    def loss(self, theta: tuple[float, ...] | None) -> Loss:
        loss = super().loss(theta)

        def noted(logits: Tensor, labels: Tensor) -> Tensor:
            value: Tensor = loss(logits, labels)
            CALLS.append(value.item())
            return value

        return noted


@pytest.mark.parametrize(("sign", "steps"), [("logits", STEPS), ("metric", round(EARLY * 10))])
def test_a_real_trial_is_the_same_if_it_is_looked_at_and_ends_if_given_up(proxy: Proxy, sign: str, steps: int) -> None:
    content = proxy.config.model_dump()
    content["search"] |= {"prune": 0.5, "prune_by": sign}
    proxy = Counted(as_config(content), proxy.dataset, proxy.unlabelled, proxy.pretrained)
    job = Job("search", 1, 0, search_space(proxy.config).identity, 5)
    plain = Objective(proxy)(job)
    looked = Objective(proxy)(replace(job, rung=Rung()))
    assert looked.early is not None
    assert replace(looked, early=None, seconds=0.0) == replace(plain, seconds=0.0)
    assert plain.early is None

    CALLS.clear()
    given_up = Objective(proxy)(replace(job, rung=Rung(looked.early + 1e-6, (0.0, 1.0), (0.5, 2.5))))
    assert len(CALLS) == steps, "of the descent; of the training"
    assert given_up.pruned
    assert given_up.early == looked.early
    assert given_up.reward == pytest.approx(0.5 + 2 * looked.early)
    assert (given_up.metrics, given_up.validation) == ({}, {})

    kept = Objective(proxy)(replace(job, rung=Rung(looked.early)))
    assert replace(kept, seconds=0.0) == replace(looked, seconds=0.0)


def test_free_logits_rise_with_a_loss_and_fall_against_it(proxy: Proxy) -> None:
    loss = proxy.loss(search_space(proxy.config).identity)
    start, *risen = proxy.descent(loss, steps=40)
    assert len(risen) == 40
    assert start < 0.2
    assert risen[-1] > 0.9
    assert proxy.descent(lambda logits, labels: -loss(logits, labels), steps=40)[-1] < start
    assert proxy.descent(loss, steps=40) == [start, *risen]


def test_logits_of_a_pretrained_network_need_one() -> None:
    own = {"metric": "miou", "proxy": {"start": {"regime": "encoder", "weights": "encoder.pt"}}}
    scratch = {"metric": "miou", "proxy": {"start": {"regime": "scratch"}}}
    for begun in (own, scratch):
        with pytest.raises(ConfigError, match=r"`search\.prune_by: logits` looks at those of a network that is pre"):
            as_config(begun | {"search": {"prune": 0.5}})
    assert as_config(scratch | {"search": {"prune": 0.5, "prune_by": "metric"}}).search.prune == 0.5
