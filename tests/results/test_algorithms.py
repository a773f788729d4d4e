"""The benchmark of search algorithms: its toys are what they say, and the table repeats itself to the byte."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from autosegloss.search.jobs import Job, Outcome
from results.algorithms import algorithms as bench
from results.algorithms.algorithms import (
    CONTESTANTS,
    SETTINGS,
    RealProxy,
    Toy,
    Valley,
    bench_algorithms,
    main,
    searched,
)
from results.algorithms.courses import plot_courses


@pytest.mark.parametrize(("width", "poor"), [(None, 0.01), (0.08, 0.3)])
def test_a_toy_has_its_optimum_inside_and_noise_of_the_trial_alone(width: float | None, poor: float) -> None:
    toy = Valley(6, seed=3, noise=0.05, width=width)
    grid = np.linspace(0, 1, 101)
    best = [float(grid[np.argmin([toy.regret([0.5] * i + [x] + [0.5] * (5 - i)) for x in grid])]) for i in range(6)]
    assert all(0.09 <= x <= 0.91 for x in best)
    assert 0 <= toy.regret(best) < poor / 10 < poor < toy.regret([0.5] * 6) <= 1
    job = Job("search", 0, 0, {}, 1, tuple(best))
    rewards = [toy(Job("search", 0, 0, {}, seed, tuple(best))).reward for seed in range(200)]
    assert toy(job).reward == toy(job).reward == rewards[1]
    assert np.std(rewards) == pytest.approx(0.05, rel=0.2)


def test_every_setting_has_a_name_of_its_own() -> None:
    for settings in SETTINGS.values():
        assert len({setting.name for setting in settings}) == len(settings)


def test_the_table_repeats_itself_interrupted_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {**SETTINGS, "lag": [Toy("valley", 3, noise, 3, 6, lag) for noise, lag in ((0, 0), (0.05, 0), (0.05, 1))]}
    monkeypatch.setattr(bench, "SETTINGS", small)
    out = tmp_path / "first"
    main(["--on", "lag", "--algorithm", "snes", "--seeds", "2", "--out", str(out)])
    rows = [json.loads(line) for line in (out / "lag.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(small["lag"])
    picture = ElementTree.parse(out / "lag.svg").getroot()
    texts = {"".join(text.itertext()) for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"snes", "trials", *(setting.name for setting in small["lag"])} <= texts
    table = (out / "lag.md").read_text()
    assert table in capsys.readouterr().out
    for setting in small["lag"]:
        regrets = [-row["score"] for row in rows if row["setting"] == setting.name]
        assert f"| {setting.name} | {np.mean(regrets):.3f} [" in table

    torn = tmp_path / "torn"
    torn.mkdir()
    first, *others = (out / "lag.jsonl").read_text().splitlines(keepends=True)
    older = {key: value for key, value in json.loads(first).items() if key != "course"}
    text = json.dumps(older) + "\n" + "".join(others)
    (torn / "lag.jsonl").write_text(text[: len(text) // 2])
    bench_algorithms(torn, "lag", seeds=2, contestants=["snes"])
    for name in ("lag.jsonl", "lag.json", "lag.md", "lag.svg"):
        assert (torn / name).read_bytes() == (out / name).read_bytes()


def test_the_legend_of_a_single_panel_is_not_cut_off(tmp_path: Path) -> None:
    courses = {name: [[1.0, 1.0]] * 3 for name in CONTESTANTS}
    plot_courses({"one": {"trials": [1, 2], "courses": courses}}, tmp_path / "one.svg")
    picture = ElementTree.parse(tmp_path / "one.svg").getroot()
    width = float(picture.attrib["viewBox"].split()[2])
    legend = next(group for group in picture.iter() if group.get("id") == "legend_1")
    ends = [
        float(x) for path in legend.iter() if "d" in path.attrib for x in re.findall(r"[ML] (\S+)", path.get("d", ""))
    ]
    assert len(ends) >= 2 * len(CONTESTANTS)
    assert all(0 <= x <= width for x in ends), ends


def test_contestants_get_equal_numbers_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(CONTESTANTS, 0)
    plain = Valley.__call__

    def counted(self: Valley, job: Job) -> Outcome:
        counts[name] += job.stage == "search"
        return plain(self, job)

    monkeypatch.setattr(Valley, "__call__", counted)
    for name in CONTESTANTS:
        searched(name, Toy("valley", 2, 0.0, steps=2, samples=5), 0)
    assert counts == dict.fromkeys(CONTESTANTS, 10)


def test_the_course_of_a_search_follows_what_has_earned_most_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[tuple[int, float, float]] = []  # step, reward, score
    plain = Valley.__call__

    def noted(self: Valley, job: Job) -> Outcome:
        outcome = plain(self, job)
        if job.stage == "search" and job.theta is not None and outcome.reward is not None:
            trials.append((job.step, outcome.reward, -self.regret(job.theta)))
        return outcome

    monkeypatch.setattr(Valley, "__call__", noted)
    search = searched("snes", Toy("valley", 3, 0.2, steps=8, samples=8), 1)
    expected = [max(trial[1:] for trial in trials if trial[0] <= step)[1] for step in range(8)]
    assert search.course == expected
    assert len(set(expected)) > 1
    assert expected != sorted(expected)  # with noise, what earned more may be worse


def test_a_search_on_a_real_proxy_finds_what_scores_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"data": {"name": "shapes"}, "start": {"iterations": 2}, "train": {"iterations": 2, "batch_size": 2}}
    monkeypatch.setattr(bench, "PROXIES", {"shapes": {"metric": "miou", "proxy": small}})
    monkeypatch.setattr(RealProxy, "FRESH_SEEDS", 2)
    bench._reward_of.cache_clear()
    setting = replace(RealProxy("shapes"), steps=1, samples=2)
    search = searched("random", setting, seed=0)
    assert 0 < search.score < 1
    assert search.score == pytest.approx(np.mean([bench._reward_of("shapes")(search.theta, s) for s in (0, 1)]))
    bench._reward_of.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--seeds", "1"], "seeds is 1"), (["--algorithm", "cma"], "unknown: cma; known: ppo2;")]
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
