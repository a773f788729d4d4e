"""The benchmark of search algorithms: its toys are what they say, and the table repeats itself to the byte."""

import json
from pathlib import Path

import numpy as np
import pytest

from autosegloss.cli import main
from autosegloss.report.bench_algorithms import Valley, bench_algorithms
from autosegloss.search.journal import Job


def test_a_toy_has_its_optimum_inside_and_noise_of_the_trial_alone() -> None:
    toy = Valley(6, seed=3, noise=0.05)
    grid = np.linspace(0, 1, 101)
    best = [float(grid[np.argmin([toy.regret([0.5] * i + [x] + [0.5] * (5 - i)) for x in grid])]) for i in range(6)]
    assert all(0.09 <= x <= 0.91 for x in best)
    assert toy.regret(best) < 1e-3 < toy.regret([0.5] * 6)
    job = Job("search", 0, 0, tuple(best), 1)
    rewards = [toy(Job("search", 0, 0, tuple(best), seed)).reward for seed in range(200)]
    assert toy(job).reward == toy(job).reward == rewards[1]
    assert np.std(rewards) == pytest.approx(0.05, rel=0.2)


def test_the_table_repeats_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "first"
    assert main(["bench", "algorithms", "--algorithm", "random", "--seeds", "2", "--out", str(out)]) == 0
    cells = json.loads((out / "toys.json").read_text())
    assert [(cell["dimensions"], cell["noise"]) for cell in cells] == [
        (d, n) for d in (6, 12, 24) for n in (0, 0.05, 0.2)
    ]
    for cell in cells:
        assert len(cell["regrets"]) == 2
        assert cell["low"] <= cell["mean"] <= cell["high"]
        assert cell["mean"] == pytest.approx(np.mean(cell["regrets"]))
    assert (out / "toys.md").read_text() in capsys.readouterr().out
    bench_algorithms(tmp_path / "second", seeds=2, contestants=["random"])
    for name in ("toys.json", "toys.md"):
        assert (tmp_path / "second" / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--seeds", "1"], "seeds is 1"), (["--algorithm", "cma"], "unknown: cma; known: ppo2;")]
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "algorithms", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
