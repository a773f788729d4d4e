"""A trainer of the user's own in place of the proxy: a function that a configuration names with `trial`."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from autosegloss.errors import InputError, RefusedError, cut, did_you_mean, listed, shown
from autosegloss.loss.file import build_loss
from autosegloss.metric.settings import guard_shares, spec_label
from autosegloss.proxy.imports import import_function, source_hash, use_folder
from autosegloss.proxy.trial import TARGET
from autosegloss.proxy.users_code import parameters_of, users_code
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.runners.base import JobQueue
from autosegloss.search.settings import StudyConfig

_EXAMPLE = 'return a mapping of names to numbers, such as {"miou": 0.71}'


@dataclass(frozen=True)
class TrialObjective:
    """Calls a function of the user's with the loss of a job.

    Args:
        name: The function, as "module:function".
        reward: The name of the number that is the reward; after a minus sign the reward is its negative.
        guarded: The names of the numbers that a guard needs.
        folder: The folder of the configuration, where the module is found too.
        share: The share of the schedule of the finals for which the other trials train.
    """

    name: str
    reward: str
    guarded: tuple[str, ...]
    folder: str
    share: float = 1.0

    @classmethod
    def of(cls, config: StudyConfig) -> TrialObjective:
        """The trial that a configuration names, which can be imported and called.

        Raises:
            InputError: The function can't be imported, or does not take three arguments.
        """
        assert config.trial is not None
        guarded, short, long = (
            tuple(guard_shares(config.guard)),
            config.proxy.train.iterations,
            config.finalists.iterations,
        )
        share = 1.0 if long is None else min(1.0, short / long)
        found = cls(config.trial, spec_label(config.goal), guarded, config.folder, share)
        parameters = parameters_of(found._function())
        if parameters is not None and not _takes_three(parameters):
            raise InputError(
                f"trial `{found.name}`: the function must take (loss, seed, budget), got "
                f"({cut(', '.join(map(str, parameters)))})."
            )
        return found

    def fingerprint(self) -> dict[str, Any]:
        """What stands for the data in the head of a journal: the hash of the file of the function."""
        return {"trial": source_hash(self._function())}

    def budget(self, job: Job) -> float:
        """The share of the schedule of the finals that a job trains for, in (0, 1]."""
        return 1.0 if job.stage in ("final", "fidelity") else self.share

    def __call__(self, job: Job) -> Outcome:
        """Train with the loss of a job.

        PyTorch is seeded for the call, so that a function which draws from it alone is deterministic.

        Raises:
            InputError: The user's code fails.
            RefusedError: It can't be imported here, or returns something else than the numbers that are needed.
        """
        start = time.perf_counter()
        try:
            function = self._function()
        except InputError as error:
            raise RefusedError(str(error)) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            with users_code(f"trial `{self.name}`"):
                returned = function(build_loss(job.loss), job.seed, self.budget(job))
        values = self._values(returned)
        name = self.reward.removeprefix("-").strip()
        for needed in (name, *self.guarded):
            if needed not in values:
                what = "reward" if needed == name else "guard"
                raise RefusedError(
                    f"trial `{self.name}` returned no `{cut(needed)}`{did_you_mean(needed, values)}, which `{what}` "
                    f"needs. It returned {', '.join(listed([f'`{cut(each)}`' for each in values]))}; name one of "
                    f"these in `{what}`."
                )
        reward = values[name] if name == self.reward else -values[name]
        validation = {} if job.stage not in ("final", "compare") else {TARGET: reward, **values}
        return Outcome(reward, values, validation, error=None, seconds=time.perf_counter() - start)

    def _function(self) -> Any:
        use_folder(self.folder)
        return import_function(self.name, "trial")

    def _values(self, returned: object) -> dict[str, float]:
        """What the function returned, as floats."""
        if not isinstance(returned, Mapping) or not returned:
            raise RefusedError(f"trial `{self.name}` must {_EXAMPLE}, got {shown(returned)}.")
        values = {}
        for key, value in returned.items():
            number = _number(value)
            if not isinstance(key, str):
                raise RefusedError(f"trial `{self.name}` must {_EXAMPLE}; the name {shown(key)} is no text.")
            if number is None:
                raise RefusedError(f"trial `{self.name}` must {_EXAMPLE}, got {shown(value)} for {shown(key)}.")
            values[key] = number
        if TARGET in values:
            raise RefusedError(f"trial `{self.name}`: `{TARGET}` stands for the reward in the tables; rename it.")
        return values


class FirstTrial:
    """A queue that stops at its first trial if what that returns can never be used, instead of after all of them.

    Nothing is recorded then. As soon as a trial has a reward, others may fail as they like.

    Args:
        queue: The queue.
        rewarded: Whether a trial has had a reward before.
    """

    def __init__(self, queue: JobQueue, rewarded: bool) -> None:
        self._queue, self._rewarded = queue, rewarded

    @property
    def finished(self) -> bool:
        """See `JobQueue.finished`."""
        return self._queue.finished

    def next_job(self) -> Job | None:
        """See `JobQueue.next_job`."""
        return self._queue.next_job()

    def record(self, job: Job, outcome: Outcome) -> None:
        """See `JobQueue.record`.

        Raises:
            RefusedError: No trial has had a reward yet, and this one returned something that can't be used.
        """
        kind, _, text = (outcome.error or "").partition(": ")
        if kind == RefusedError.__name__ and not self._rewarded:
            raise RefusedError(text)
        self._queue.record(job, outcome)
        self._rewarded = self._rewarded or outcome.checked().reward is not None


def _takes_three(parameters: list[Any]) -> bool:
    """Whether a function with these parameters can be called with three positional arguments."""
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    others = [each for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty]
    variadic = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    required = sum(each.default is each.empty for each in positional)
    return not others and required <= 3 and (variadic or len(positional) >= 3)


def _number(value: Any) -> float | None:
    """A number, or a tensor or an array of one element, as a float; None if it is none."""
    if isinstance(value, torch.Tensor | numpy.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
