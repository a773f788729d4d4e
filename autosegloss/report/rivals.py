"""The rivals of a search in words: their screening, its gates, and which loss to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from autosegloss.metric.settings import spec_label
from autosegloss.report.tables import LOSSES, gain_text
from autosegloss.search.findings import Findings, Screen
from autosegloss.search.rivals import BASELINE, Tried, best_of_each
from autosegloss.search.settings import StudyConfig
from autosegloss.search.statistics import Difference, Estimate, number

_SHOWN: Final = 3
"""Rivals that are named while the screening runs."""


class Line(NamedTuple):
    """A rival at its best step.

    Args:
        rival: Its name.
        step: The step.
        reward: Its reward over the seeds of the screening.
        gain: The paired difference to cross-entropy; None for cross-entropy itself, and for fewer than two seeds.
    """

    rival: str
    step: float
    reward: Estimate
    gain: Difference | None


def screen_lines(screen: Screen) -> list[Line]:
    """The rivals that were trained on all seeds, each at its best step, the best first; and cross-entropy at step 1."""
    screened = screen.screened
    theirs = screened.baseline
    lines = [
        Line(each.arm.rival, each.arm.step, Estimate.of(_ended(each)), difference(each.rewards, theirs.rewards))
        for each in screened.best
        if each.arm.name != theirs.arm.rival
    ]
    if values := _ended(theirs):
        lines.append(Line(BASELINE, 1.0, Estimate.of(values), None))
    return sorted(lines, key=lambda line: -line.reward.mean)  # stable


def guards_text(findings: Findings, own: bool) -> str:
    """What became of the guards and where they were measured; empty without guards."""
    text = findings.about_guards(own)
    return text if own or not text else f"on held-out images: {text}"


def difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> Difference | None:
    """The paired difference over the seeds on which both ended; None for fewer than two of them."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a is not None and b is not None]
    return Difference.of([a for a, _ in pairs], [b for _, b in pairs])


def _ended(tried: Tried) -> list[float]:
    return [reward for reward in tried.rewards if reward is not None]


def so_far_text(tried: Sequence[Tried], own: bool) -> str:
    """The best rivals of the rounds so far, each at its best step."""
    best = best_of_each([each for each in sorted(tried, key=lambda each: -each.reward) if _ended(each)])
    shown = ", ".join(f"{each.arm.name} {number(each.reward, own)}" for each in best[:_SHOWN])
    return f"best rivals so far: {shown}" if shown else "no rival yet"


def reward_title(config: StudyConfig) -> str:
    """What the rewards are."""
    return f"{spec_label(config.goal)}{' with offsets' if config.search.offsets else ''}"


def where_text(config: StudyConfig) -> str:
    """Where rewards were measured and what was done to them."""
    if config.trial is not None:
        return "reduced by the guards" if config.guard else "as the trial returns it"
    return f"held-out, %{', reduced by the guards' if config.guard else ''}"


def screen_text(screen: Screen, config: StudyConfig) -> str:
    """The screening as a small table, and what its gates say."""
    own = config.trial is not None
    seeds = screen.screened.seeds
    what = f"{reward_title(config)}, {where_text(config)}"
    rows = [
        (number(line.reward.mean, own), gain_text(line.gain, own) if line.gain else "-", f"{line.step:.3g}", line.rival)
        for line in screen_lines(screen)
    ]
    table = [("reward", f"gain over {BASELINE}", "step", "rival"), *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        [
            f"the rivals over {seeds} paired seed{'s' * (seeds > 1)} ({what}; gains with 95% intervals):",
            *(f"{a:>{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {name}" for a, b, c, name in table),
            *gates(screen, own),
            *([] if screen.searched or not config.search.steps else [NOT_SEARCHED]),
        ]
    )


NOT_SEARCHED: Final = "so there is no search; `search: {always: true}` searches all the same"


def gates(screen: Screen, own: bool) -> list[str]:
    """What the gates say, a line each; `own` as for `number`."""
    headroom = [] if screen.headroom is None else [screen.headroom.text(own)]
    return headroom + ([] if screen.fidelity is None else [str(screen.fidelity)])


def screen_record(screen: Screen) -> dict[str, Any]:
    """The screening as a JSON object.

    Its keys are `seeds`; `baseline`, the rewards of cross-entropy; `rivals`, each at every step tried, the best first,
    with `name`, `rival`, `step`, `rate` (the factor of the learning rate) and `rewards`; `headroom` and `fidelity` with
    what was measured, or null; and `searched`, whether a search followed.
    """
    arms = [
        {"name": each.arm.name, "rival": each.arm.rival, "step": each.arm.step, "rate": each.arm.rate}
        | {"rewards": list(each.rewards)}
        for each in screen.screened.tried
    ]
    headroom, fidelity = screen.headroom, screen.fidelity
    return {
        "seeds": list(screen.seeds),
        "baseline": list(screen.screened.baseline.rewards),
        "rivals": arms,
        "headroom": None if headroom is None else asdict(headroom) | {"told_apart": headroom.told_apart},
        "fidelity": None if fidelity is None else asdict(fidelity) | {"suffices": fidelity.suffices},
        "searched": screen.searched,
    }


def titles(findings: Findings) -> dict[str, str]:
    """The titles of the losses to show beside each other, by their names in `Findings.compared`.

    A rival has its name. One that is returned is shown once, and so is cross-entropy, beside the best other rival.
    """
    rival = findings.best_rival
    if rival is None:
        return {name: LOSSES[name] for name in findings.compared}
    shown = {"cross-entropy": LOSSES["cross-entropy"]}
    if findings.label == BASELINE:
        best = findings.compared["rival"].label
        return shown if best == BASELINE else {**shown, "rival": best}
    if findings.theta is None:
        return {**shown, "found": findings.label}
    if rival.label != BASELINE:
        shown["rival"] = rival.label
    return {**shown, "found": LOSSES["found"]}


def closing_text(findings: Findings, config: StudyConfig) -> str:
    """Which loss to take and why; empty without rivals."""
    screen = findings.screen
    if screen is None:
        return ""
    if config.search.steps:
        how = "" if findings.rate == 1 else f"; train it with the learning rate x {findings.rate:.3g}"
        return f"{findings.conclude(config.trial is not None)}{how}"
    return f"{_advice(findings, config)}\n{_prospect(screen)}"


def _advice(findings: Findings, config: StudyConfig) -> str:
    """Which rival to take."""
    own = config.trial is not None
    seeds = f"{len(findings.seeds)} fresh seeds{'' if own else ', held-out'}"
    if findings.label == BASELINE:
        others = len(findings.finals) - 1
        rivals = {0: "no other loss", 1: "not the other loss"}.get(others, f"none of the {others} other losses")
        if others and all(final.broken for final in findings.finals[1:]):
            return f"take {BASELINE}: {rivals} of the finals keeps the guards on {seeds}"
        keeping = " keeps the guards and" if config.guard and others else ""
        return f"take {BASELINE}: {rivals} of the finals{keeping} is ahead of it on {seeds}"
    gain = difference(findings.winner.rewards, findings.finals[0].rewards)
    if gain is None:
        return f"take {findings.label}: its gain over {BASELINE} on {seeds} is not known, as trainings failed"
    doubt = "; the interval holds 0, so it may be no better" if gain.low <= 0 else ""
    return f"take {findings.label}: {gain_text(gain, own)} {reward_title(config)} over {BASELINE} on {seeds}{doubt}"


def _prospect(screen: Screen) -> str:
    """Whether a search may find more."""
    headroom = screen.headroom
    if headroom is None:
        return (
            "whether a search has headroom is not known: that takes at least two rivals on three seeds (rivals.seeds)"
        )
    p = f"{headroom.p:.2g}"
    if headroom.told_apart:
        return f"a search has headroom: the best rivals differ by more than the noise of the seed (p = {p})"
    return f"a search has little headroom: the best {len(headroom.names)} rivals can't be told apart (p = {p})"
