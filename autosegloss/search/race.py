"""The race of the finals: who goes on to the test, and whether a loss of the search beats every rival.

A loss of the search is returned only if it beats each remaining rival beyond doubt, on seeds that nothing else has
used. Otherwise the best rival is returned.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autosegloss.search.statistics import LEVEL, holm, number, signed_rank


@dataclass(frozen=True)
class Lead:
    """How far a loss is ahead of a rival on paired seeds.

    Args:
        loss: Label of the loss.
        rival: Label of the rival.
        centre: The centre of the paired differences in reward; see `signed_rank`.
        bound: Its one-sided 95% bound from below.
        p: p-value of the one-sided signed-rank test that it is at most 0.
    """

    loss: str
    rival: str
    centre: float
    bound: float
    p: float

    @classmethod
    def of(cls, loss: str, rival: str, ours: Sequence[float], theirs: Sequence[float]) -> Lead:
        """The lead of paired rewards, as many as `signed_rank` needs."""
        return cls(loss, rival, *signed_rank([a - b for a, b in zip(ours, theirs, strict=True)]))

    def text(self, own: bool = False) -> str:
        """The lead and its bound in %; of numbers of a trial of the user's own, as they are."""
        return f"{number(self.centre, own, '+')}, bound {number(self.bound, own, '+')}"

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True)
class Verdict:
    """The outcome of the test.

    Args:
        winners: Labels of the losses of the search that beat every rival, the best first; empty if none does.
        leads: The lead of each candidate over each rival.
    """

    winners: tuple[str, ...]
    leads: tuple[Lead, ...]

    def narrowest(self, loss: str) -> Lead:
        """The lead of a loss over the rival that it beats by the least certain margin."""
        return max((lead for lead in self.leads if lead.loss == loss), key=lambda lead: (lead.p, -lead.centre))

    def least(self, loss: str) -> Lead:
        """The smallest lead of a loss, over the rival that comes nearest to it."""
        return min((lead for lead in self.leads if lead.loss == loss), key=lambda lead: lead.centre)

    def adjusted(self, loss: str) -> float:
        """The p-value that a loss beats every rival, adjusted for the number of losses."""
        losses = list(dict.fromkeys(lead.loss for lead in self.leads))
        return holm([self.narrowest(each).p for each in losses])[losses.index(loss)]

    @property
    def closest(self) -> Lead | None:
        """The narrowest lead of the candidate that came closest to beating every rival."""
        losses = dict.fromkeys(lead.loss for lead in self.leads)
        return min(map(self.narrowest, losses), key=lambda lead: (lead.p, -lead.centre), default=None)


def better_half(rewards: Mapping[str, float], above: float = -math.inf) -> list[str]:
    """The better half of some labels by reward, rounded up, the best first; those with a reward above a bound alone."""
    ranked = sorted((label for label in rewards if rewards[label] > above), key=lambda label: -rewards[label])
    return ranked[: math.ceil(len(rewards) / 2)]


def verdict(
    candidates: Mapping[str, Sequence[float]], rivals: Mapping[str, Sequence[float]], fit: Sequence[str]
) -> Verdict:
    """Test each candidate against every rival.

    A candidate beats the rivals if the largest of its p-values does, which keeps the level (an intersection-union
    test), after Holm's correction over the candidates.

    Args:
        candidates: The rewards of each loss of the search on the seeds of the test.
        rivals: Those of each rival, on the same seeds.
        fit: Labels of the candidates that may win: those that keep the guards.

    Reference: Berger, Multiparameter hypothesis testing and acceptance sampling, Technometrics 24, 1982.
    """
    leads = [
        Lead.of(loss, rival, ours, theirs) for loss, ours in candidates.items() for rival, theirs in rivals.items()
    ]
    largest = [max(lead.p for lead in leads if lead.loss == loss) for loss in candidates]
    passed = [loss for loss, p in zip(candidates, holm(largest), strict=True) if p <= LEVEL and loss in fit]
    passed.sort(key=lambda loss: -statistics.fmean(candidates[loss]))
    return Verdict(tuple(passed), tuple(leads))
