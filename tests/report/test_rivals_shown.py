"""What a user sees of the rivals: on the terminal, by `status`, in JSON and on the page, from trials of toy rewards."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from autosegloss.cli import main
from autosegloss.report.logs import JsonLog
from autosegloss.report.pages import figures
from autosegloss.report.pages.report import report_page
from autosegloss.report.progress import Display
from autosegloss.report.rivals import so_far_text
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.rivals import Arm, Tried
from autosegloss.search.settings import as_config
from autosegloss.search.statistics import number
from autosegloss.search.study import Study
from tests.courses import COURSE, RIVALS, result_of, run_course, toy
from tests.journals import trials_of

NO_STEPS = {"search": {"steps": 0}, "rivals": {"losses": RIVALS}}
ADAMW = {"proxy": {"train": {"optimizer": "adamw"}}, "rivals": {"losses": RIVALS}}


def displayed(
    folder: Path, changes: dict[str, Any], objective: Callable[[Job], Outcome] = toy, terminal: bool = False
) -> tuple[list[str], Study]:
    """The lines that a search writes."""
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=terminal, highlight=False, soft_wrap=True)
    display = Display(console, as_config(COURSE | changes), 2, Path("DIR"))
    with display:
        _, study = run_course(folder, changes, display.update, objective=objective)
    display.end(result_of(folder, study))
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).splitlines(), study


def screened(folder: Path, arm: str | None = None) -> list[float]:
    """The rewards of the screening in the journal, in the order of the seeds: of lovasz at step 4, or cross-entropy."""
    trials = [trial for trial in trials_of(folder / "trials.jsonl") if trial["stage"] == "screen"]
    return [
        trial["reward"]
        for trial in trials
        if ('"lovasz"' in json.dumps(trial["loss"]) if arm else trial["loss"] == CROSS_ENTROPY)
    ]


def interval(values: list[float], sign: str = "") -> str:
    """By scipy's own interval, in %."""
    mean = np.mean(values)
    low, high = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def finals(study: Study, label: str) -> list[float]:
    found = next(final for final in study.findings().finals if final.label == label)
    return [reward for reward in found.rewards if reward is not None]


def gain(study: Study, ours: str, theirs: str) -> str:
    return interval(np.subtract(finals(study, ours), finals(study, theirs)).tolist(), "+")


TITLE = "the rivals over 3 paired seeds (miou, held-out, %, reduced by the guards; gains with 95% intervals):"


# The terminal ---------------------------------------------------------------------------------------------------------


def test_a_search_shows_rivals_then_gates_steps_and_finals_and_ends_with_its_conclusion(tmp_path: Path) -> None:
    lines, study = displayed(tmp_path, {})
    findings, screen = study.findings(), study.screen
    assert screen is not None
    assert lines[0] == "searching for a loss for miou; writing to DIR/"
    assert re.fullmatch(
        r"screening: best rivals so far: 4\*lovasz 79\.9, 4\*log_miou 70\.1, 4\*focal 60\.0; about 0:00:\d\d left",
        lines[1],
    )
    assert (
        lines[2]
        == "the rivals over 3 paired seeds (miou, held-out, %, reduced by the guards; gains with 95% intervals):"
    )
    assert lines[3].split() == ["reward", "gain", "over", "cross-entropy", "step", "rival"]
    ours, theirs = screened(tmp_path, "lovasz"), screened(tmp_path)
    assert len(ours) == len(theirs) == 3
    assert lines[4].split("  ")[1:] == [
        f"{100 * np.mean(ours):.1f}",
        "",
        f" {interval(np.subtract(ours, theirs).tolist(), '+')}",
        "",
        " 4",
        "lovasz",
    ]
    at = lines.index(str(screen.headroom))
    assert [f"{100 * np.mean(theirs):.1f}", "-", "1", "cross-entropy"] in [line.split() for line in lines[4:at]]
    assert [line.partition(":")[0] for line in lines[at + 1 : at + 3]] == ["step 0", "step 1"]
    centre = study.steps[1].centre
    assert centre is not None
    assert study.steps[1].start is not None
    start = f"start {100 * study.steps[1].start:.1f}, centre {100 * centre:.1f}, 0 failed; best so far"
    assert start in lines[at + 2]
    (titles,) = [line for line in lines if "cross-entropy ┃" in line]
    assert [title.strip() for title in titles.strip("┃").split("┃")] == [
        "metric",
        "cross-entropy",
        "4*lovasz",
        "found loss",
        "gain",
    ]
    rows = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert rows == ["target: miou", "dice", "macc", "gacc", "bf1", "IoU of ground", "IoU of dot"]
    assert "all metrics: autosegloss report DIR" in lines
    assert lines[-1] == findings.conclusion
    assert lines[-1].startswith(f"{findings.label} beats every rival here (+")


def test_where_a_rival_is_returned_it_has_one_column_and_the_last_line_says_why(tmp_path: Path) -> None:
    lines, study = displayed(tmp_path, {}, partial(toy, gain=-0.2))
    (titles,) = [line for line in lines if "cross-entropy ┃" in line]
    assert [title.strip() for title in titles.strip("┃").split("┃")] == ["metric", "cross-entropy", "4*lovasz", "gain"]
    assert study.findings().label == "4*lovasz"
    (scores,) = [line for line in lines if line.startswith("miou: ")]
    assert re.fullmatch(r"miou: cross-entropy \d\d\.\d, 4\*lovasz \d\d\.\d\.", scores), "each once"
    assert lines[-1] == (
        "no searched loss that keeps the guards is ahead of 4*lovasz in the first part of the finals: loss.json is "
        "4*lovasz"
    )


def test_where_every_searched_loss_breaks_a_guard_the_last_line_says_so(tmp_path: Path) -> None:
    def ruined(outcome: Outcome, ruins: bool) -> Outcome:
        return replace(outcome, metrics={**outcome.metrics, "dice": 0.01}) if ruins else outcome

    lines, _ = displayed(tmp_path / "rivals", NO_STEPS, lambda job: ruined(toy(job), job.loss != CROSS_ENTROPY))
    seeds = "2 fresh seeds, held-out"
    assert lines[-2] == f"take cross-entropy: none of the 2 other losses of the finals keeps the guards on {seeds}"
    lines, study = displayed(tmp_path / "searched", {}, lambda job: ruined(toy(job, gain=0.5), job.theta is not None))
    assert lines[-1] == f"every searched loss of the finals breaks a guard: loss.json is {study.findings().label}"


def test_a_search_with_offsets_ends_with_scores_after_them(tmp_path: Path) -> None:
    def shifted(job: Job) -> Outcome:
        outcome = toy(job)
        more = {"target with offsets": outcome.validation["target"] + 0.1} if outcome.validation else {}
        return replace(outcome, validation={**outcome.validation, **more})

    lines, study = displayed(tmp_path, {"search": {"steps": 2, "samples": 3, "offsets": True}}, shifted)
    (scores,) = [line for line in lines if line.startswith("miou with offsets: ")]
    theirs = [run["target with offsets"] for run in study.findings().finals[0].validation]
    assert scores.startswith(f"miou with offsets: cross-entropy {100 * np.mean(theirs):.1f}, ")
    step = next(line for line in lines if line.startswith("step 0: "))
    assert ": miou " in step.split("best so far")[1] or ", miou " in step.split("best so far")[1]


@pytest.mark.parametrize(
    ("value", "own", "sign", "text"),
    [(-1e-5, False, "-", "0.0"), (-1e-5, False, "+", "+0.0"), (-0.0, True, "+", "+0"), (-0.5, False, "+", "-50.0")],
)
def test_no_number_is_minus_zero(value: float, own: bool, sign: str, text: str) -> None:
    assert number(value, own, sign) == text


def test_a_live_terminal_shows_the_best_three_while_it_screens(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True, highlight=False, soft_wrap=True)
    display = Display(console, as_config(COURSE), 2, Path("DIR"))
    with display:
        run_course(tmp_path, {}, display.update, trials=8)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = [line.rstrip() for line in text.splitlines()[-3:]]
    assert last[0].startswith("screening the rivals")
    assert last[1:] == [
        "0 running, 0 failed",
        "best rivals so far: 4*lovasz 79.9, 4*log_miou 70.1, 4*focal 60.0",
    ]


def test_a_rival_is_ranked_by_its_best_step() -> None:
    rewards = {("lovasz", 1.0): 0.02, ("lovasz", 2.0): 0.03, ("focal", 1.0): 0.01, ("focal", 2.0): 0.9}
    arms = {key: Arm(f"{key[1]:g}*{key[0]}", *key, CROSS_ENTROPY, 1.0) for key in rewards}
    tried = [Tried(arms[key], (reward,)) for key, reward in rewards.items()]
    assert so_far_text(tried, own=False) == "best rivals so far: 2*focal 90.0, 2*lovasz 3.0"


def test_without_headroom_it_says_so_and_how_to_search_all_the_same(tmp_path: Path) -> None:
    lines, study = displayed(tmp_path, {}, partial(toy, spread=0.0))
    at = next(number for number, line in enumerate(lines) if line.startswith("no headroom: the best "))
    assert lines[at + 1] == "so there is no search; `search: {always: true}` searches all the same"
    assert not any(line.startswith("step ") for line in lines)
    label = study.findings().label
    assert lines[-1] == f"no search was made: loss.json is {label}, the best rival that keeps the guards"


def test_a_learning_rate_to_train_with_is_said(tmp_path: Path) -> None:
    lines, study = displayed(tmp_path, ADAMW, lambda job: toy(job, gain=0.2 * (job.rate - 1)))
    findings = study.findings()
    assert findings.rate != 1
    assert lines[-1] == f"{findings.conclusion}; train it with the learning rate x {findings.rate:.3g}"


def test_a_recommendation_says_what_to_take_and_whether_to_search(tmp_path: Path) -> None:
    lines, study = displayed(tmp_path / "apart", NO_STEPS)
    assert lines[0] == "trying the losses that people use for miou; writing to DIR/"
    assert sum(line.startswith("screening: best rivals so far: ") for line in lines) == 3  # before the last round
    label, screen = study.findings().label, study.screen
    assert screen is not None
    assert screen.headroom is not None
    assert lines[-2:] == [
        f"take {label}: {gain(study, label, 'cross-entropy')} miou over cross-entropy on 2 fresh seeds, held-out",
        "a search has headroom: the best rivals differ by more than the noise of the seed "
        f"(p = {screen.headroom.p:.2g})",
    ]
    lines, study = displayed(tmp_path / "alike", NO_STEPS, partial(toy, spread=0.0))
    assert lines[-1].startswith("a search has little headroom: the best 5 rivals can't be told apart (p = 0.")
    assert "on 2 fresh seeds, held-out; the interval holds 0, so it may be no better" in lines[-2]
    worse = NO_STEPS | {"rivals": {"losses": ["lovasz", "focal"]}}
    lines, study = displayed(tmp_path / "worse", worse, partial(toy, spread=-0.1))
    assert study.findings().label == "cross-entropy"
    (titles,) = [line for line in lines if "cross-entropy ┃" in line]
    best = max(study.findings().finals[1:], key=lambda final: final.reward or 0.0).label
    assert [title.strip() for title in titles.strip("┃").split("┃")] == ["metric", "cross-entropy", best, "gain"]
    one = {"rivals": {"losses": ["cross_entropy"], "steps": [1]}}
    lines, _ = displayed(tmp_path / "one", NO_STEPS | one)
    assert lines[-2] == "take cross-entropy: no other loss of the finals is ahead of it on 2 fresh seeds, held-out"
    assert lines[-1].startswith("whether a search has headroom is not known: ")


def test_numbers_of_a_trial_of_the_users_own_are_no_percentages(tmp_path: Path) -> None:
    lines, study = displayed(tmp_path, {"guard": {}, "reward": "score", "trial": "tests.own_trials:train"})
    screen, verdict = study.screen, study.findings().verdict
    assert screen is not None
    assert verdict is not None
    assert screen.headroom is not None
    assert lines[2] == "the rivals over 3 paired seeds (score, as the trial returns it; gains with 95% intervals):"
    assert lines[4].split()[0] == f"{screen.headroom.means[0]:.4g}"
    (told,) = [line for line in lines if line.startswith("headroom: ")]
    assert f": 4*lovasz {screen.headroom.means[0]:.4g}, 4*log_miou {screen.headroom.means[1]:.4g}" in told
    assert f"({verdict.leads[0].centre:+.4g}, bound {verdict.leads[0].bound:+.4g} over 4*lovasz)" in lines[-1]


# For other programs, and the page -------------------------------------------------------------------------------------


def test_status_shows_the_rivals_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_course(tmp_path, trials=8)
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"miou: stopped; continue with: autosegloss search {tmp_path}/config.yaml --out {tmp_path} --resume",
        "screening the rivals; 8 of at most 63 trials done, 0 failed",
        "best rivals so far: 4*lovasz 79.9, 4*log_miou 70.1, 4*focal 60.0",
    ]
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["screen"] is None
    run_course(tmp_path / "alone", NO_STEPS, trials=1)
    for command in ("status", "show", "report"):
        main([command, str(tmp_path / "alone")])
        captured = capsys.readouterr()
        assert f"autosegloss recommend {tmp_path}/alone/config.yaml" in captured.out + captured.err, command
    _, rivals_alone = run_course(tmp_path / "rivals", NO_STEPS)
    assert main(["status", str(tmp_path / "rivals")]) == 0
    alone = rivals_alone.findings()
    assert f"\nreturned: {alone.label}, reward {100 * alone.reward:.1f} over" in capsys.readouterr().out
    _, study = run_course(tmp_path)
    assert main(["status", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[2]
        == "the rivals over 3 paired seeds (miou, held-out, %, reduced by the guards; gains with 95% intervals):"
    )
    assert lines[-1] == study.findings().conclusion
    assert main(["status", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    screen = record["screen"]
    assert screen["baseline"] == screened(tmp_path)
    first = screen["rivals"][0]
    assert (first["name"], first["rival"], first["step"], first["rate"]) == ("4*lovasz", "lovasz", 4.0, 1.0)
    assert first["rewards"] == screened(tmp_path, "lovasz")
    assert {each["rival"] for each in screen["rivals"]} == {*RIVALS}
    assert screen["headroom"]["told_apart"] is screen["searched"] is True
    assert screen["fidelity"] is None
    assert record["steps"][1]["centre"] == study.steps[1].centre
    assert record["found"]["conclusion"] == study.findings().conclusion
    assert record["found"]["learning_rate"] == 1.0


def test_the_end_of_the_screening_is_a_line_of_json_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLog("toy", tmp_path) as log:
        _, study = run_course(tmp_path, observer=log.update)
        log.end(result_of(tmp_path, study))
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (at,) = [number for number, event in enumerate(told) if event["event"] == "screening"]
    assert told[at - 1]["stage"] == "screen"
    assert told[at + 1]["stage"] == "search"
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert {"event": "screening", **json.loads(capsys.readouterr().out)["screen"]} == told[at]
    assert told[-1]["conclusion"] == study.findings().conclusion
    with JsonLog("toy", tmp_path) as log:
        run_course(tmp_path, observer=log.update)
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["start"]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, Study]]:
    """Makes the page of a course, without surfaces, which take seconds."""
    monkeypatch.setattr(figures, "surface_values", lambda _: np.add.outer(np.arange(3.0), np.arange(3.0)))

    def make(changes: dict[str, Any], objective: Callable[[Job], Outcome] = toy) -> tuple[str, Study]:
        _, study = run_course(tmp_path, changes, objective=objective)
        return report_page(tmp_path, images=False), study

    return make


def plain(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def part(text: str, key: str) -> str:
    return text.split(f'<section aria-labelledby="{key}">', 1)[1].split("</section>", 1)[0]


def test_the_page_opens_with_a_verdict_and_the_rivals(page: Any, tmp_path: Path) -> None:
    text, study = page({})
    findings = study.findings()
    header = plain(text.split("<header>")[1].split("</header>")[0])
    best = f"{gain(study, findings.label, 'cross-entropy')} over cross-entropy"
    over = f"{gain(study, findings.label, '4*lovasz')} over 4*lovasz"
    assert header.startswith(
        f"Search for a loss for miou verdict {findings.conclusion}. {findings.label} gains {best} and {over} in miou "
        f"(held-out, %, reduced by the guards; mean [95% interval] of 5 paired fresh seeds). {study.screen.headroom}."
    )
    rivals = part(text, "rivals")
    mean = screened(tmp_path, "lovasz")
    assert f"lovasz 4 {interval(mean)} {interval(np.subtract(mean, screened(tmp_path)).tolist(), '+')}" in plain(rivals)
    assert f"★ <b>{100 * np.mean(mean):.1f}</b>" in rivals
    assert str(study.screen.headroom) in plain(rivals)
    assert re.findall(r'<section aria-labelledby="(\w+)">', text)[:2] == ["rivals", "search"]
    course = part(text, "search")
    assert "The policy, coordinate by coordinate" in course
    assert [f"seed {seed}" in course for seed in findings.seeds] == [True] * 5
    in_heats = {trial["seed"] for trial in trials_of(tmp_path / "trials.jsonl") if trial["stage"] == "final"}
    assert set(map(int, re.findall(r"seed (\d+)", course))) == in_heats
    shown, folded = part(text, "metrics").split("<details>")
    assert re.findall(r'<tr><th scope="row">(.*?)</th>', shown) == ["target: miou", "dice", "macc", "gacc", "bf1"]
    assert {"fwiou", "precision", "IoU of dot"} <= set(re.findall(r'<tr><th scope="row">(.*?)</th>', folded))


@pytest.mark.parametrize(
    ("changes", "spread", "title"),
    [(NO_STEPS, 0.1, "Recommendation for miou"), ({}, 0.0, "Search for a loss for miou")],
)
def test_the_page_of_a_folder_without_a_search_shows_no_policy(
    page: Any, changes: dict[str, Any], spread: float, title: str
) -> None:
    text, study = page(changes, partial(toy, spread=spread))
    header = plain(text.split("<header>")[1].split("</header>")[0])
    assert header.startswith(f"{title} verdict {'take' if changes else 'no search was made'}")
    assert "policy" not in plain(part(text, "search"))
    assert '<h2 id="search">The finals</h2>' in text
    label = study.findings().label
    assert f"{label} minus cross-entropy" in plain(part(text, "metrics"))
    assert "found loss" not in text
    assert ("so there is no search" in plain(part(text, "rivals")).lower()) is not bool(changes)
