"""The race: its test against SciPy, and its level by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.search.race import Lead, better_half, verdict
from tests.examples import examples

GAINS = st.lists(st.floats(-1, 1, width=32).filter(bool), min_size=5, max_size=12, unique_by=abs)


@examples(30)
@given(gains=GAINS)
def test_a_lead_is_the_exact_signed_rank_test(gains: list[float]) -> None:
    lead = Lead.of("ours", "theirs", gains, [0.0] * len(gains))
    test = scipy.stats.wilcoxon(gains, alternative="greater", method="exact")
    assert lead.p == pytest.approx(test.pvalue, abs=1e-12)
    pairs = [(a + b) / 2 for i, a in enumerate(gains) for b in gains[i:]]
    assert lead.centre == pytest.approx(np.median(pairs), abs=1e-12)
    assert (lead.bound > 0) == (lead.p <= 0.05)
    assert lead.bound <= lead.centre


@examples(30)
@given(gains=GAINS)
def test_the_bound_is_the_largest_shift_that_the_test_rejects(gains: list[float]) -> None:
    bound = Lead.of("ours", "theirs", gains, [0.0] * len(gains)).bound
    for shift, rejected in ((bound - 1e-6, True), (bound + 1e-6, False)):
        assert (Lead.of("ours", "theirs", gains, [shift] * len(gains)).p <= 0.05) is rejected


def test_a_rival_that_collapses_on_a_seed_hides_no_lead_and_a_loss_that_does_has_none() -> None:
    """Differences of a search on `shapes`, where the t-test is at 6%."""
    gains = [0.012, 0.003, 0.016, 0.018, 0.042, -0.001, 0.022, 0.167]
    lead = Lead.of("ours", "theirs", gains, [0.0] * 8)
    assert (lead.p, lead.bound > 0) == (2 / 256, True)
    assert scipy.stats.ttest_1samp(gains, 0, alternative="greater").pvalue > 0.05
    collapsed = Lead.of("ours", "theirs", [*gains[:-1], -gains[-1]], [0.0] * 8)
    assert collapsed.p > 0.1


def test_losses_of_equal_rewards_have_no_lead() -> None:
    lead = Lead.of("ours", "theirs", [0.5] * 6, [0.5] * 6)
    assert (lead.centre, lead.bound, lead.p) == (0.0, 0.0, 1.0)


def test_what_a_lead_says() -> None:
    assert str(Lead("a", "b", 0.0012, -0.0031, 0.2)) == "+0.1, bound -0.3"


def test_losses_that_are_as_good_as_the_rivals_are_rarely_returned() -> None:
    """At most one time in twenty, whatever the number of candidates; of one that is far better, nearly always."""
    rng = np.random.default_rng(0)
    wins = []
    for _ in range(2000):
        seeds = rng.normal(size=8)
        candidates, rivals = ((0.5 + seeds + 0.2 * rng.normal(size=(2, 8))).tolist() for _ in range(2))
        found = verdict({"a": candidates[0], "b": candidates[1]}, {"r": rivals[0]}, ["a", "b"])
        wins.append(bool(found.winners))
    assert np.mean(wins) <= 0.06
    far = [
        verdict({"a": 0.5 + rng.normal(size=8) * 0.1}, {"r": rng.normal(size=8) * 0.1}, ["a"]).winners == ("a",)
        for _ in range(100)
    ]
    assert np.mean(far) > 0.95


@examples(20)
@given(seed=st.integers(0, 10**6), ahead=st.floats(0, 1))
def test_a_loss_wins_only_if_it_beats_every_rival_and_keeps_the_guards(seed: int, ahead: float) -> None:
    rng = np.random.default_rng(seed)
    losses = {name: (ahead + 0.3 * rng.normal(size=7)).tolist() for name in "abc"}
    rivals = {name: (0.3 * rng.normal(size=7)).tolist() for name in "xy"}
    found = verdict(losses, rivals, ["a", "b"])
    largest = {
        loss: max(
            scipy.stats.wilcoxon(ours, theirs, alternative="greater", method="exact").pvalue
            for theirs in rivals.values()
        )
        for loss, ours in losses.items()
    }
    in_order, passed = sorted(largest, key=largest.__getitem__), []
    for rank, loss in enumerate(in_order):  # Holm: the smallest at a third of the level, then at half of it
        if largest[loss] > 0.05 / (3 - rank):
            break
        passed.append(loss)
    kept = sorted((loss for loss in passed if loss != "c"), key=lambda loss: -float(np.mean(losses[loss])))
    assert found.winners == tuple(kept)
    assert [(lead.loss, lead.rival) for lead in found.leads] == [(a, b) for a in losses for b in rivals]
    assert found.narrowest("a").p == pytest.approx(largest["a"])
    assert found.least("a").centre == min(lead.centre for lead in found.leads if lead.loss == "a")
    assert found.closest is not None
    assert found.closest.p == pytest.approx(min(largest.values()))

    # With a rival of the same rewards there is nothing to return.
    assert verdict(losses, rivals | {"z": losses[in_order[0]]}, in_order[:1]).winners == ()


def test_the_better_half_is_rounded_up_and_may_have_to_be_above_a_bound() -> None:
    rewards = {"a": 0.1, "b": 0.4, "c": 0.4, "d": 0.2, "e": -math.inf}
    assert better_half(rewards) == ["b", "c", "d"]
    assert better_half(rewards, above=0.2) == ["b", "c"]
    assert better_half(rewards, above=0.4) == []
    assert better_half({"e": -math.inf}) == better_half({}) == []


def test_a_bound_above_0_that_is_not_enough_says_why() -> None:
    """Two losses with p-values of 3% and 30%: the first is significant alone, not as the best of two."""
    rival = [0.0] * 5
    first, second = [0.01, 0.03, 0.02, 0.002, 0.005], [0.01, -0.01, 0.02, -0.005, 0.003]
    found = verdict({"a": first, "b": second}, {"r": rival}, ["a", "b"])
    assert found.winners == ()
    assert found.closest is not None
    assert (found.closest.loss, found.closest.bound > 0) == ("a", True)
    assert found.adjusted("a") == pytest.approx(2 * found.closest.p)
    assert found.adjusted("a") > 0.05
    assert verdict({"a": first}, {"r": rival}, ["a"]).winners == ("a",)
