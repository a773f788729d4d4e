"""What a search finds: its steps, the screening of its rivals, its finals, and the loss to take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from autosegloss.loss.base import LossContent
from autosegloss.search.algorithms.state import Theta
from autosegloss.search.gates import Fidelity, Headroom
from autosegloss.search.guard import Baseline, Check, Guard, checked
from autosegloss.search.race import Verdict
from autosegloss.search.rivals import BASELINE, Screened
from autosegloss.search.statistics import LEVEL, number


@dataclass(frozen=True)
class Step:
    """A finished step of the search.

    Args:
        step: Number of the step.
        seed: Seed of all its trials.
        mu: The algorithm's answer before the step, its centre, if it has one.
        std: The algorithm's standard deviation of each coordinate, if it has one.
        mean: Mean reward; failed trials count as the lowest reward.
        best: Highest reward.
        failed: Number of trials without a reward.
        start: Reward of the loss at the start of the search, with the seed of the step; None if it failed.
        centre: Reward of the loss at the centre, likewise; None also if there is no centre.
    """

    step: int
    seed: int
    mu: Theta | None
    std: Theta | None
    mean: float
    best: float
    failed: int
    start: float | None
    centre: float | None


@dataclass(frozen=True)
class Final:
    """The result of one member of the finals.

    Args:
        label: "cross-entropy", a rival such as "8*lovasz", "start", "mu of step 7" or "sample 3 of step 7".
        loss: The content of its loss file.
        theta: Its coordinates; None for cross-entropy and rivals.
        reward: Mean reward over the seeds; a failed run counts as the lowest reward. None if all runs failed.
        rewards: Reward per seed; None for a failed run.
        metrics: Every metric on the held-out part, per seed.
        validation: Every metric on the validation set, per seed. No decision looks at it.
        guards: The guards, checked; empty without guards, or if all runs failed.
        rate: The factor of the learning rate with which it trains.
    """

    label: str
    loss: LossContent
    theta: Theta | None
    reward: float | None
    rewards: tuple[float | None, ...]
    metrics: tuple[dict[str, float], ...]
    validation: tuple[dict[str, float], ...]
    guards: tuple[Check, ...] = ()
    rate: float = 1.0

    @property
    def scored(self) -> dict[str, list[float]]:
        """The values on the validation set of each metric that all successful runs have; the target first."""
        runs = [run for run in self.validation if run]
        names = [name for name in (runs[0] if runs else ()) if all(name in run for run in runs)]
        return {name: [run[name] for run in runs] for name in names}

    @property
    def broken(self) -> tuple[Check, ...]:
        """The guards that the loss does not keep."""
        return tuple(check for check in self.guards if not check.kept)


@dataclass(frozen=True)
class Screen:
    """The screening of the rivals.

    Args:
        screened: Every rival at every step that was tried.
        seeds: The seeds of its trainings.
        headroom: Whether the best rivals differ; None if there are too few rivals or seeds to say.
        fidelity: Whether the proxy's schedule ranks them as that of the finals does; None if both are one.
        searched: Whether a search followed.
    """

    screened: Screened
    seeds: tuple[int, ...]
    headroom: Headroom | None
    fidelity: Fidelity | None
    searched: bool


@dataclass(frozen=True)
class Findings:
    """The result of a search and the evidence for it. Equal searches give equal findings: no times are recorded.

    Args:
        label: Label of the winner.
        loss: The winner, as the content of its loss file.
        theta: Its coordinates; None for cross-entropy and rivals.
        reward: The winner's mean reward over the seeds of the finals.
        seeds: The seeds of the finals, which nothing else has used; with a test, those of the test.
        steps: The steps of the search.
        finals: Cross-entropy, then the rivals, or without rivals the start of the search, then the candidates.
        rate: The factor of the learning rate with which the winner trains.
        rivals: Labels of the rivals in the finals, the best of the screening first.
        screen: The screening; None without rivals.
        heats: The first part of the finals, which decides who goes on to the test: all its members, on seeds of its
            own; empty if there is no test.
        verdict: The test; None without one.
    """

    label: str
    loss: LossContent
    theta: Theta | None
    reward: float
    seeds: tuple[int, ...]
    steps: tuple[Step, ...]
    finals: tuple[Final, ...]
    rate: float = 1.0
    rivals: tuple[str, ...] = ()
    screen: Screen | None = None
    heats: tuple[Final, ...] = ()
    verdict: Verdict | None = None

    @property
    def winner(self) -> Final:
        """The winner in the finals."""
        return next(final for final in self.finals if final.label == self.label)

    @property
    def best_rival(self) -> Final | None:
        """The rival that is returned, else that with the highest reward in the finals; None without a screening.

        Cross-entropy stands in for rivals that all failed or break the guards.
        """
        if self.screen is not None and self.theta is None:
            return self.winner
        alive = [final for final in self.finals if final.label in self.rivals and final.reward is not None]
        return None if self.screen is None else max(alive, key=lambda each: each.reward or 0.0, default=self.finals[0])

    @property
    def compared(self) -> dict[str, Final]:
        """The losses that a user compares: "cross-entropy", the best "rival" or else the "start", and the "found".

        Where cross-entropy is returned, the rival is the best of the other rivals.
        """
        second = self.best_rival
        if second is self.finals[0]:
            alive = [final for final in self.finals[1:] if final.reward is not None and final.theta is None]
            second = max(alive, key=lambda each: each.reward or 0.0, default=second)
        if second is None:
            middle = {"start": next(final for final in self.finals if final.label == "start")}
        else:
            middle = {"rival": second}
        return {"cross-entropy": self.finals[0], **middle, "found": self.winner}

    @property
    def conclusion(self) -> str:
        """Which loss is returned, and why; see `conclude`."""
        return self.conclude()

    def conclude(self, own: bool = False) -> str:
        """Which loss is returned, and why, in a sentence; empty without rivals.

        Args:
            own: Whether rewards are numbers of a trial of the user's own, which are not shown in %.
        """
        if self.screen is None:
            return ""
        if self.verdict is not None and self.theta is not None:
            lead = self.verdict.least(self.label)
            return (
                f"{self.label} beats every rival here ({lead.text(own)} over {lead.rival}): loss.json is the loss found"
            )
        keeping = " that keeps the guards" if self.winner.guards else ""
        if not self.screen.searched:
            return f"no search was made: loss.json is {self.label}, the best rival{keeping}"
        if self.verdict is not None and (closest := self.verdict.closest) is not None:
            reason = ""
            if closest.bound > 0:
                tested = len({lead.loss for lead in self.verdict.leads})
                held = self.verdict.adjusted(closest.loss) > LEVEL
                reason = f", too little for the best of {tested}" if held else ", but it breaks a guard"
            return (
                f"no searched loss beats {closest.rival} here ({closest.text(own)}{reason}): loss.json is {self.label}"
            )
        searched = [final for final in self.finals if final.theta is not None and final.reward is not None]
        if searched and all(final.broken for final in searched):
            return f"every searched loss of the finals breaks a guard: loss.json is {self.label}"
        return (
            f"no searched loss{keeping} is ahead of {self.label} in the first part of the finals: loss.json is "
            f"{self.label}"
        )

    def about_guards(self, own: bool = False) -> str:
        """What became of the guards, in a sentence; empty without guards.

        Args:
            own: Whether a trial of the user's own has measured them, whose numbers are shown as they are.
        """
        winner = self.winner
        if not winner.guards:
            return ""
        others = [final for final in self.finals if final.label != BASELINE and final.reward is not None]
        passed = [final for final in others if final.broken]
        best = max(passed, key=lambda final: final.reward or 0.0, default=None)
        reward = number((best and best.reward) or 0.0, own)
        if winner.label == BASELINE and best is not None and passed == others:
            return (
                f"no loss keeps its guards, so cross-entropy is returned instead; the best of them, {best.label} "
                f"(reward {reward}): {_sentence(best.broken, own)}."
            )
        kept = f"kept: {_sentence(winner.guards, own)}."
        if later := self._broken_later(winner):
            kept += f" But not on the validation set, which decides nothing: {_sentence(later, own)}."
        if best is not None and (best.reward or 0.0) > self.reward:
            kept += f" {best.label} has a higher reward, {reward}, but breaks them: {_sentence(best.broken, own)}."
        return kept

    def _broken_later(self, winner: Final) -> tuple[Check, ...]:
        """The guards that the winner does not keep on the validation set, among those measured there."""
        finals = {final.label: final for final in self.finals}
        of = {check.of: finals[check.of] for check in winner.guards}
        guards = [Guard(check.metric, check.share, Baseline(check.of, of[check.of].loss)) for check in winner.guards]
        later = checked(winner.validation, {label: final.validation for label, final in of.items()}, guards)
        return tuple(check for check in later if not check.kept)

    def to_json(self) -> str:
        """The findings as JSON; equal findings give equal bytes."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"


def _sentence(checks: Sequence[Check], own: bool) -> str:
    return ", ".join(check.text(own) for check in checks)
