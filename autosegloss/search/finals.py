"""The finals: candidates of the search and the best rivals on fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from autosegloss.loss.base import LossContent
from autosegloss.search.algorithms.state import Theta
from autosegloss.search.findings import Final, Findings, Screen, Step
from autosegloss.search.guard import Baseline, Guard, checked
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.race import Verdict, better_half, verdict
from autosegloss.search.rivals import BASELINE
from autosegloss.search.seeds import final_seeds

Course: TypeAlias = Generator[list[list[Job]], list[Outcome], Findings]


@dataclass(frozen=True)
class Schedule:
    """The numbers of a study.

    Args:
        steps: Number of steps of the search.
        candidates: Number of losses of the search in the finals, and of rivals.
        finalist_seeds: Number of runs of each member of the finals.
        seed: Seed of the study, from which `seeds` derives those of the trials.
        lag: Number of steps that may be unfinished when the next one begins. The result depends on the lag, never on
            timing.
        test_seeds: Number of further runs for the test against the rivals.
        longer: Whether a training of the finals is longer than one of the search.
        always: Whether to search where the rivals can't be told apart.
    """

    steps: int
    candidates: int
    finalist_seeds: int
    seed: int
    lag: int = 0
    test_seeds: int = 8
    longer: bool = False
    always: bool = False


@dataclass(frozen=True)
class Member:
    """A member of the finals before it is run.

    Args:
        label: What it is called.
        loss: The content of its loss file.
        theta: Its coordinates; None if it is no loss of the search.
        rate: The factor of the learning rate with which it trains.
    """

    label: str
    loss: LossContent
    theta: Theta | None = None
    rate: float = 1.0


@dataclass(frozen=True)
class Finals:
    """The last part of a study.

    Args:
        baseline: The content of cross-entropy.
        schedule: The numbers of the study.
    """

    baseline: LossContent
    schedule: Schedule

    def most(self, rivals: bool, searched: bool, guards: int) -> dict[str, int]:
        """The most trials that there can be, in the heats and in the test.

        Args:
            rivals: Whether there are rivals.
            searched: Whether there are candidates.
            guards: Number of losses that the guards compare with.
        """
        number, heats = self.schedule.candidates, self.schedule.finalist_seeds
        if not rivals:
            return {"heats": (2 + number) * heats, "test": 0}
        beside = max(1, guards)  # cross-entropy is there in any case
        if not searched:
            return {"heats": (beside + number) * heats, "test": 0}
        of_test = (beside + number + math.ceil(number / 2)) * self.schedule.test_seeds
        return {"heats": (beside + 2 * number) * heats, "test": of_test}

    def plain(
        self,
        start: Member,
        candidates: Sequence[Member],
        used: Collection[int],
        steps: Sequence[Step],
        guards: Sequence[Guard],
    ) -> Course:
        """Without rivals: of the start and the candidates that keep the guards, the best by mean reward.

        If none keeps them, cross-entropy wins, which does by definition.
        """
        seeds = final_seeds(self.schedule.seed, self.schedule.finalist_seeds, used)
        finals = yield from self._run([self._of_baseline, start, *candidates], seeds, 0, guards)
        # `max` keeps the first of equals: the start wins a tie.
        rated = [(final.reward, final) for final, _ in finals if final.reward is not None]
        keeping = [entry for entry in rated if entry[1].theta is not None and not entry[1].broken]
        _, winner = max(keeping or rated[:1], key=lambda entry: entry[0])
        return _found(winner, seeds, steps, [final for final, _ in finals])

    def race(
        self,
        candidates: Sequence[Member],
        used: Collection[int],
        steps: Sequence[Step],
        screen: Screen,
        guards: Sequence[Guard],
    ) -> Course:
        """Heats of the candidates and the best rivals, then the test on further seeds.

        Every rival goes on to the test: a few seeds can't tell which of them is best. Of the candidates the better half
        goes on, if it is ahead of every rival. The best candidate that beats all rivals of the test wins; if there is
        none, the rival with the best mean over all seeds, those of the screening included where its schedule is that of
        the finals. Cross-entropy is a rival in any case. A loss that breaks a guard is out.
        """
        rivals = self._rivals(screen)
        rivals += [] if BASELINE in [each.label for each in rivals] else [self._of_baseline]
        labels = {rival.label for rival in rivals}
        more = [each for each in _compared(guards) if each.label not in labels]
        rivals += [Member(each.label, each.loss, None, each.rate) for each in more]
        members = [self._of_baseline, *(rival for rival in rivals if rival.label != BASELINE)]
        seen = [(member.loss, member.rate) for member in members]
        candidates = [member for member in candidates if (member.loss, member.rate) not in seen]
        number = self.schedule.finalist_seeds
        seeds = final_seeds(self.schedule.seed, number + self.schedule.test_seeds, {*used, *screen.seeds})
        heats = yield from self._run([*members, *candidates], seeds[:number], 0, guards)
        rewards = {
            final.label: fmean(values) for final, values in heats if final.reward is not None and not final.broken
        }
        against = [rival.label for rival in rivals if rival.label in rewards] or [BASELINE]
        least = max(rewards.get(label, -math.inf) for label in against)
        ahead = better_half({each.label: rewards.get(each.label, -math.inf) for each in candidates}, above=least)
        of_heats = [final for final, _ in heats]
        before = {final.label: [*self._screened(final, screen), *values] for final, values in heats}
        if not ahead:
            label = max(against, key=lambda each: fmean(before[each]))
            winner = next(final for final in of_heats if final.label == label)
            return _found(winner, seeds[:number], steps, of_heats, [each.label for each in rivals], screen)
        staying = {BASELINE, *against, *ahead, *(each.label for each in _compared(guards))}
        again = [each for each in [*members, *candidates] if each.label in staying]
        finals = yield from self._run(again, seeds[number:], number, guards)
        values = {final.label: rewards for final, rewards in finals}
        decision = verdict(
            {label: values[label] for label in ahead},
            {label: values[label] for label in against},
            [final.label for final, _ in finals if not final.broken],
        )
        if decision.winners:
            label = decision.winners[0]
        else:
            kept = [final.label for final, _ in finals if final.label in against and not final.broken] or [BASELINE]
            label = max(kept, key=lambda each: fmean([*before[each], *values[each]]))
        of_test = [final for final, _ in finals]
        winner = next(final for final in of_test if final.label == label)
        return _found(winner, seeds[number:], steps, of_test, against, screen, of_heats, decision)

    @property
    def _of_baseline(self) -> Member:
        return Member(BASELINE, self.baseline)

    def _rivals(self, screen: Screen) -> list[Member]:
        """The best rivals of the screening, each at its best step; one that is cross-entropy has its label."""
        best = [each.arm for each in screen.screened.best[: self.schedule.candidates]]
        same = [arm.loss == self.baseline and arm.rate == 1 for arm in best]
        return [
            self._of_baseline if is_baseline else Member(arm.name, arm.loss, None, arm.rate)
            for arm, is_baseline in zip(best, same, strict=True)
        ]

    def _screened(self, final: Final, screen: Screen) -> Sequence[float]:
        """The rewards of a rival in the screening, if they count beside those of the finals."""
        screened = screen.screened
        tried = [screened.baseline, *screened.finalists]
        rewards = [each.rewards for each in tried if (each.arm.loss, each.arm.rate) == (final.loss, final.rate)]
        complete = rewards and len(rewards[0]) == screened.seeds and not self.schedule.longer
        return [reward for reward in rewards[0] if reward is not None] if complete else []

    def _run(
        self, members: Sequence[Member], seeds: Sequence[int], first: int, guards: Sequence[Guard]
    ) -> Generator[list[list[Job]], list[Outcome], list[tuple[Final, list[float]]]]:
        """Train every member on every seed; the values are the rewards with the lowest for a failed one.

        Args:
            members: The members, cross-entropy first.
            seeds: The seeds.
            first: The ordinal of the first one.
            guards: The guards, whose losses are among the members.
        """
        outcomes = yield [
            [
                Job("final", ordinal, index, member.loss, seed, member.theta, member.rate)
                for ordinal, seed in enumerate(seeds, start=first)
                for index, member in enumerate(members)
            ]
        ]
        number = len(members)
        rewards = failed_as_lowest(outcomes)
        runs = {member.label: [run.metrics for run in outcomes[i::number]] for i, member in enumerate(members)}
        finals = []
        for index, member in enumerate(members):
            own, values = outcomes[index::number], rewards[index::number]
            alive = any(outcome.reward is not None for outcome in own)
            final = Final(
                label=member.label,
                loss=member.loss,
                theta=member.theta,
                reward=fmean(values) if alive else None,
                rewards=tuple(outcome.reward for outcome in own),
                metrics=tuple(outcome.metrics for outcome in own),
                validation=tuple(outcome.validation for outcome in own),
                guards=checked(runs[member.label], runs, guards),
                rate=member.rate,
            )
            finals.append((final, values))
        return finals


def _compared(guards: Sequence[Guard]) -> list[Baseline]:
    """The losses that guards compare with."""
    return list({guard.of.label: guard.of for guard in guards}.values())


def failed_as_lowest(outcomes: Sequence[Outcome]) -> list[float]:
    """The rewards; a missing one is replaced by the lowest."""
    lowest = min(outcome.reward for outcome in outcomes if outcome.reward is not None)
    return [lowest if outcome.reward is None else outcome.reward for outcome in outcomes]


def _found(
    winner: Final,
    seeds: Sequence[int],
    steps: Sequence[Step],
    finals: Sequence[Final],
    rivals: Sequence[str] = (),
    screen: Screen | None = None,
    heats: Sequence[Final] = (),
    decision: Verdict | None = None,
) -> Findings:
    return Findings(
        label=winner.label,
        loss=winner.loss,
        theta=winner.theta,
        reward=winner.reward or 0.0,
        seeds=tuple(seeds),
        steps=tuple(steps),
        finals=tuple(finals),
        rate=winner.rate,
        rivals=tuple(rivals),
        screen=screen,
        heats=tuple(heats),
        verdict=decision,
    )
