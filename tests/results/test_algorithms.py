"""The benchmark of search algorithms: its toys are what they say, and the table what its rows say."""

import json
from dataclasses import replace
from pathlib import Path

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
    main,
    searched,
)


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


@pytest.mark.slow
def test_the_table_has_the_mean_regrets_of_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {**SETTINGS, "lag": [Toy("valley", 3, noise, 3, 6, lag) for noise, lag in ((0, 0), (0.05, 0), (0.05, 1))]}
    monkeypatch.setattr(bench, "SETTINGS", small)
    out = tmp_path / "first"
    main(["--on", "lag", "--algorithm", "snes", "--seeds", "2", "--out", str(out)])
    rows = [json.loads(line) for line in (out / "lag.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(small["lag"])
    table = (out / "lag.md").read_text()
    assert table in capsys.readouterr().out
    for setting in small["lag"]:
        regrets = [-row["score"] for row in rows if row["setting"] == setting.name]
        assert f"| {setting.name} | {np.mean(regrets):.3f} [" in table


def test_contestants_get_equal_numbers_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dict.fromkeys(CONTESTANTS, 0)
    plain = Valley.__call__

    def counted(self: Valley, job: Job) -> Outcome:
        counts[name] += job.stage == "search" and job.index < 5  # after these comes the start, of which none is told
        return plain(self, job)

    monkeypatch.setattr(Valley, "__call__", counted)
    for name in CONTESTANTS:
        searched(name, Toy("valley", 2, 0.0, steps=2, samples=5), 0)
    assert counts == dict.fromkeys(CONTESTANTS, 10)


def test_a_search_on_a_real_proxy_finds_what_scores_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"data": {"name": "shapes"}, "start": {"iterations": 2}, "train": {"iterations": 2, "batch_size": 2}}
    monkeypatch.setattr(bench, "PROXIES", {"shapes": {"metric": "miou", "proxy": small}})
    monkeypatch.setattr(RealProxy, "FRESH_SEEDS", 2)
    bench._cheap_proxy.cache_clear()
    bench._reward.cache_clear()
    setting = replace(RealProxy("shapes"), steps=1, samples=2)
    theta = searched("random", setting, seed=0)
    score = setting.score(theta, 0)
    assert 0 < score < 1
    assert score == pytest.approx(np.mean([bench._reward("shapes", theta, seed) for seed in (0, 1)]))
    bench._cheap_proxy.cache_clear()
    bench._reward.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seeds", "1"], "seeds must be 2 or more, got 1"), (["--algorithm", "cma"], "invalid choice")],
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
