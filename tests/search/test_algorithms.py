"""The suite that every search algorithm passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autosegloss.errors import ConfigError, InputError, RefusedError
from autosegloss.search.algorithms import ALGORITHMS, Algorithm
from autosegloss.search.algorithms.external import TuneSearch
from autosegloss.search.journal import Journal
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.settings import as_config
from tests.toys import TOY, Quadratic, search_of

Theta = tuple[float, ...]

OPTIONS: dict[str, dict[str, Any]] = {name: {} for name in ALGORITHMS} | {"tune": {"searcher": f"{__name__}:uniform"}}
# How much of random search's regret is left, at most, after 12 x 32 trials in 12 dimensions. Measured, without noise
# and with: ppo2 0.39 and 0.27, snes 0.18 and 0.29, cma_es 0.06 and 0.40 (6 seeds), tpe 0.76 and 0.74 (4 seeds).
BETTER = {"ppo2": 0.6, "snes": 0.6, "cma_es": 0.6, "tpe": 0.9}


def uniform(seed: int) -> Any:
    """A searcher of Ray Tune: uniform points."""
    from ray.tune.search import Searcher

    class Uniform(Searcher):
        def __init__(self) -> None:
            super().__init__()
            self._rng = np.random.default_rng(seed)
            self._names: list[str] | None = None

        def set_search_properties(self, metric: Any, mode: Any, config: dict[str, Any], **spec: Any) -> bool:
            self._names = list(config)
            return metric == "reward" and mode == "max"

        def suggest(self, trial_id: str) -> Any:
            assert self._names
            return {name: float(self._rng.random()) for name in self._names}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self._rng = np.random.default_rng([seed, int(1e9 * (2 + result["reward"]))])  # listens to what it is told

    return Uniform()


def forgetful(seed: int) -> Any:
    """The same without a seed."""
    return uniform(int(np.random.SeedSequence().generate_state(1)[0]))


def build(name: str, **options: Any) -> Algorithm[Any]:
    return ALGORITHMS[name](**(OPTIONS[name] | options))


@pytest.fixture(params=list(ALGORITHMS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_ask_and_tell_are_pure_and_stay_in_the_cube(name: str) -> None:
    toy = Quadratic.random(5, seed=0)
    algorithm, twin = (build(name, start=(0.5,) * 5, samples=8, seed=3) for _ in range(2))
    state = algorithm.init()
    for _ in range(3):
        asked = algorithm.ask(state)
        assert asked == algorithm.ask(state) == twin.ask(state)
        assert len(set(asked)) == 8
        assert all(0 <= x <= 1 for theta in asked for x in theta)
        rewards = [-toy.regret(theta) for theta in asked]
        told = algorithm.tell(state, rewards)
        assert told == algorithm.tell(state, rewards) == twin.tell(state, rewards)
        assert len(algorithm.ask(told)) == len(asked)
        state = told
    other = build(name, start=(0.5,) * 5, samples=8, seed=4)
    assert other.ask(other.init()) != algorithm.ask(algorithm.init())


def test_a_state_survives_json_and_the_search_goes_on_from_it(name: str) -> None:
    algorithm = build(name, start=(0.2, 0.8), samples=4)
    state = algorithm.init()
    for _ in range(2):
        state = algorithm.tell(state, [-sum(theta) / 3 for theta in algorithm.ask(state)])
    text = state.to_json()
    assert isinstance(json.loads(text), dict)
    again = type(state).from_json(text)
    assert again == state
    assert algorithm.ask(again) == algorithm.ask(state)
    assert algorithm.answer(again) == algorithm.answer(state)


def test_what_was_told_decides_what_is_asked(name: str) -> None:
    if name == "random":
        pytest.skip("random search does not listen")
    algorithm = build(name, start=(0.5,) * 3, samples=8)
    state = algorithm.init()
    first = [theta[0] for theta in algorithm.ask(state)]
    up, down = (algorithm.ask(algorithm.tell(state, [sign * x for x in first])) for sign in (1, -1))
    assert up != down


def test_a_step_may_be_asked_before_the_rewards_of_the_last_are_known(name: str) -> None:
    algorithm = build(name, start=(0.5,) * 3, samples=8)
    state = algorithm.init()
    if name == "tune":
        with pytest.raises(RefusedError, match="needs all rewards of a step"):
            algorithm.skip(state)
        return
    toy = Quadratic((0.7, 0.3, 0.6), (1.0, 1.0, 1.0))
    asked = [state, algorithm.skip(state)]  # a lag of one step
    for _ in range(4):
        first, second = (algorithm.ask(old) for old in asked)
        assert len(second) == len(first)
        assert not set(first) & set(second)
        assert all(0 <= x <= 1 for theta in second for x in theta)
        rewards = [-toy.regret(theta) for theta in first]
        told = algorithm.tell(state, rewards, asked[0])
        assert told == algorithm.tell(state, rewards, type(state).from_json(asked[0].to_json()))
        assert type(state).from_json(told.to_json()) == told
        state, asked = told, [asked[1], algorithm.skip(told)]


def test_what_was_just_asked_is_what_is_told_by_default(name: str) -> None:
    algorithm = build(name, start=(0.4,) * 2, samples=4)
    state = algorithm.tell(algorithm.init(), [0.1, 0.4, 0.2, 0.3])
    assert algorithm.tell(state, [0.3, 0.1, 0.0, 0.2], state) == algorithm.tell(state, [0.3, 0.1, 0.0, 0.2])


@pytest.mark.parametrize("rewards", [[1.0], [1.0, float("nan"), 0.0, 0.0]])
def test_rewards_that_are_missing_or_not_finite_are_refused(name: str, rewards: list[float]) -> None:
    algorithm = build(name, start=(0.5,), samples=4)
    with pytest.raises(InputError, match="rewards must be 4 finite numbers"):
        algorithm.tell(algorithm.init(), rewards)


@pytest.mark.parametrize("name", BETTER)
@pytest.mark.slow
def test_it_leaves_random_search_behind(name: str) -> None:
    dimensions, steps, samples, seeds, noise = 12, 12, 16, 3, 0.2
    ours, random = [], []
    for seed in range(seeds):
        toy = Quadratic.random(dimensions, seed=seed)
        luck = np.random.default_rng(seed)

        def reward(theta: Theta, toy: Quadratic = toy, luck: np.random.Generator = luck) -> float:
            return -toy.regret(theta) + noise * float(luck.standard_normal())

        ours.append(
            toy.regret(found(build(name, start=(0.5,) * dimensions, seed=seed, samples=samples), reward, steps))
        )
        points = [tuple(point) for point in luck.uniform(size=(steps * samples, dimensions)).tolist()]
        random.append(toy.regret(max(points, key=reward)))
    assert np.mean(ours) < BETTER[name] * np.mean(random), (ours, random)


def found(algorithm: Algorithm[Any], reward: Callable[[Theta], float], steps: int) -> Theta:
    """The answer of the step with the best mean reward; without answers, the sample with the best reward."""
    state, best = algorithm.init(), (-np.inf, (0.0,))
    for _ in range(steps):
        asked = algorithm.ask(state)
        rewards = [reward(theta) for theta in asked]
        answer = algorithm.answer(state)
        here = max(zip(rewards, asked, strict=True)) if answer is None else (float(np.mean(rewards)), answer)
        best = max(best, here)
        state = algorithm.tell(state, rewards)
    return best[1]


def test_a_study_torn_anywhere_ends_the_same(name: str, tmp_path: Path) -> None:
    def run(folder: Path, *, resume: bool = False) -> str:
        with Journal(folder / "trials.jsonl", resume=resume) as journal:
            algorithm = build(name, start=(0.5,) * 3, samples=4)
            study = search_of(algorithm, journal, steps=3, candidates=2, finalist_seeds=2, seed=7)
            SerialRunner().run(study, TOY)
            return study.findings().to_json()

    whole = run(tmp_path / "whole")
    lines = (tmp_path / "whole" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (1, 6, 11, 14):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "trials.jsonl").write_bytes(b"".join(lines[: 1 + kept]) + lines[1 + kept][:9])
        assert run(folder, resume=True) == whole


# The door.


def test_options_reach_their_algorithm_and_no_other() -> None:
    def options(**search: Any) -> dict[str, Any]:
        return as_config({"metric": "miou", "search": search}).search.options

    assert options(algorithm="cma_es", std=0.3, samples=8) == {"std": 0.3, "samples": 8, "seed": 0}
    assert options(algorithm="random") == {"samples": 32, "seed": 0}
    assert options()["clip"] == 0.2
    with pytest.raises(ConfigError, match=r"search\.clip: `clip` is an option of `ppo2`, not of `cma_es`"):
        options(algorithm="cma_es", clip=0.1)
    with pytest.raises(ConfigError, match="`tune` needs the option `searcher`"):
        options(algorithm="tune")
    with pytest.raises(ConfigError, match="`tune` does not support `lag`"):
        options(algorithm="tune", searcher="m:f", lag=1)


@pytest.mark.parametrize(
    ("searcher", "message"),
    [
        ("no colon", "searcher must be `module:function`, got 'no colon'"),
        ("no_such_module:f", "no module named `no_such_module`"),
        ("math:no_such_function", "no_such_function"),
        ("math:pi", "searcher `math:pi` must be a function, got float"),
    ],
)
def test_a_searcher_that_is_none_is_refused(searcher: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TuneSearch(start=(0.5,), searcher=searcher)


def test_a_searcher_that_does_not_repeat_itself_is_refused() -> None:
    algorithm = TuneSearch(start=(0.5,), samples=4, searcher=f"{__name__}:forgetful")
    with pytest.raises(RefusedError, match="must give the same points for the same seed"):
        algorithm.ask(algorithm.tell(algorithm.init(), [0.0] * 4))


def test_optuna_through_ray_tune() -> None:
    algorithm = TuneSearch(start=(0.5,) * 2, samples=4, searcher=f"{__name__}:optuna_of_tune")
    toy = Quadratic((0.7, 0.3), (1.0, 1.0))
    state = algorithm.init()
    for _ in range(3):
        state = algorithm.tell(state, [-toy.regret(theta) for theta in algorithm.ask(state)])
    assert algorithm.ask(state) == algorithm.ask(state)


def optuna_of_tune(seed: int) -> Any:
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(seed=seed)
