"""Search algorithms of other packages: random search, CMA-ES, TPE, and any searcher of Ray Tune.

Their state is the history of the search, and the points of a step are a function of it: in every step the optimiser of
the package is rebuilt from its seed and replays the history, which takes milliseconds. So any state can be stored and
resumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autosegloss.errors import RefusedError
from autosegloss.proxy.imports import import_extra, import_function
from autosegloss.proxy.users_code import users_code
from autosegloss.search.algorithms.state import JsonState, Theta, check_rewards
from autosegloss.search.seeds import step_rng


@dataclass(frozen=True)
class History(JsonState):
    """The points of every finished step and their rewards; a skipped step has none."""

    points: tuple[tuple[Theta, ...], ...] = ()
    rewards: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class _Replayed(ABC):
    """Base of these algorithms.

    Args:
        start: The start of the search, one number inside (0, 1) per coordinate.
        samples: Points per step.
        seed: Seed of all random numbers.
    """

    start: Theta
    samples: int = 32
    seed: int = 0

    def init(self) -> History:
        """The state before the first step."""
        return History()

    @abstractmethod
    def ask(self, state: History) -> list[Theta]:
        """The points to evaluate next."""

    def skip(self, state: History) -> History:
        """The state of the next step before the rewards of this one are known."""
        return History((*state.points, ()), (*state.rewards, ()))

    def tell(self, state: History, rewards: Sequence[float], asked: History | None = None) -> History:
        """The state of the next step, from one finite reward for each point of `ask(asked)`; higher is better.

        Args:
            state: The history so far.
            rewards: In the order of the points.
            asked: The state that gave the points; by default `state` itself.

        Raises:
            InputError: The number of rewards is wrong, or one is not finite.
        """
        points = tuple(self.ask(state if asked is None else asked))
        check_rewards(rewards, len(points))
        return History((*state.points, points), (*state.rewards, tuple(map(float, rewards))))

    def answer(self, state: History) -> Theta | None:
        """None: there are only samples."""
        return None

    def spread(self, state: History) -> Theta | None:
        """None: these packages do not report it."""
        return None

    def _seed_of_step(self, state: History) -> int:
        return int(np.random.SeedSequence((self.seed, len(state.points))).generate_state(1)[0])


class RandomSearch(_Replayed):
    """Uniform points: the baseline of every other algorithm."""

    def ask(self, state: History) -> list[Theta]:
        rng = step_rng(self.seed, len(state.points))
        return _thetas(rng.random((self.samples, len(self.start))))


@dataclass(frozen=True)
class CMAES(_Replayed):
    """Covariance matrix adaptation, by the package cmaes; a step is a generation.

    Args:
        start: Mean of the first generation.
        samples: Points per generation.
        seed: Seed of all random numbers.
        std: Step size of the first generation.

    Reference: Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772.
    """

    std: float = 0.2

    def ask(self, state: History) -> list[Theta]:
        optimizer = self._at(state)
        return _thetas(np.stack([optimizer.ask() for _ in range(self.samples)]))

    def answer(self, state: History) -> Theta:
        """The mean of the distribution."""
        return _thetas(self._at(state).mean[None])[0]

    def _at(self, state: History) -> Any:
        optimizer = import_extra("cmaes", "searches with cma_es", "algorithms", RefusedError).CMA(
            mean=np.array(self.start),
            sigma=self.std,
            bounds=np.tile([0.0, 1.0], (len(self.start), 1)),
            population_size=self.samples,
            seed=0,
        )
        for points, rewards in filter(all, zip(state.points, state.rewards, strict=True)):
            optimizer.tell([(np.array(point), -reward) for point, reward in zip(points, rewards, strict=True)])
        optimizer.reseed_rng(self._seed_of_step(state))
        return optimizer


class TPE(_Replayed):
    """Tree-structured Parzen estimators over all coordinates together, by Optuna; the first step is random.

    Reference: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.
    """

    def ask(self, state: History) -> list[Theta]:
        return list(self._asked(state))

    @lru_cache(maxsize=4)  # noqa: B019  # seconds of work, which `tell` asks for again; a few states are small
    def _asked(self, state: History) -> list[Theta]:
        optuna = import_extra("optuna", "searches with tpe", "algorithms", RefusedError)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        names = [f"x{i}" for i in range(len(self.start))]
        space = {name: optuna.distributions.FloatDistribution(0, 1) for name in names}
        sampler = optuna.samplers.TPESampler(
            seed=self._seed_of_step(state), multivariate=True, n_startup_trials=self.samples
        )
        study = optuna.create_study(sampler=sampler, direction="maximize")
        for points, rewards in zip(state.points, state.rewards, strict=True):
            for point, reward in zip(points, rewards, strict=True):
                params = dict(zip(names, point, strict=True))
                study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=reward))
        asked = [study.ask(space).params for _ in range(self.samples)]
        return _thetas(np.array([[params[name] for name in names] for params in asked]))


@dataclass(frozen=True)
class TuneSearch(_Replayed):
    """Any searcher of Ray Tune.

    Args:
        start: Only its length is used, as the number of coordinates.
        samples: Points per step.
        seed: Passed to the function.
        searcher: "module:function"; the function takes a seed and returns a `ray.tune.search.Searcher` without
            space, metric or mode. The same seed must give the same points.

    Raises:
        InputError: The function can't be imported.
        RefusedError: The searcher gives other points for the same seed, or too few.
    """

    searcher: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_build", import_function(self.searcher, "searcher"))

    def skip(self, state: History) -> History:
        """Raise RefusedError: a searcher replays all rewards before it suggests new points."""
        raise RefusedError(f"{self.searcher}: Ray Tune needs all rewards of a step before the next one.")

    def ask(self, state: History) -> list[Theta]:
        with users_code(f"searcher `{self.searcher}`"):
            return self._asked(state)

    def _asked(self, state: History) -> list[Theta]:
        searcher = self._build(self.seed)  # type: ignore[attr-defined]
        from autosegloss.search.runners.ray import tune_space  # keeps Ray out of other searches

        space = tune_space(len(self.start))
        if not searcher.set_search_properties("reward", "max", space):
            raise RefusedError(f"{self.searcher}: the searcher must have no space, metric or mode of its own.")
        for step, (points, rewards) in enumerate(zip(state.points, state.rewards, strict=True)):
            if self._suggested(searcher, step, list(space)) != list(points):
                raise RefusedError(f"{self.searcher}: the searcher must give the same points for the same seed.")
            for index, reward in enumerate(rewards):
                searcher.on_trial_complete(f"{step}-{index}", {"reward": reward})
        return self._suggested(searcher, len(state.points), list(space))

    def _suggested(self, searcher: Any, step: int, names: list[str]) -> list[Theta]:
        asked = [searcher.suggest(f"{step}-{index}") for index in range(self.samples)]
        if not all(isinstance(config, dict) for config in asked):
            raise RefusedError(f"{self.searcher}: the searcher suggested too few points in step {step}: {asked}.")
        return _thetas(np.array([[config[name] for name in names] for config in asked]))


def _thetas(points: NDArray[np.float64]) -> list[Theta]:
    clipped: list[list[float]] = np.clip(points, 0.0, 1.0).tolist()
    return [tuple(point) for point in clipped]
