"""The benchmarks of what is known of a reward early: scores by hand, and small runs of the real thing."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from autosegloss.cli import main
from autosegloss.report.bench_algorithms import PROXIES, RealProxy
from autosegloss.report.bench_filter import Score
from autosegloss.report.bench_prune import CONTESTANTS, Run, searched


def test_scores_by_hand() -> None:
    rng = np.random.default_rng(0)
    rewards, noise = rng.random((2, 20)), rng.random((2, 20))
    perfect, useless = Score(2 * rewards + 1, 1.1, 0.1), Score(noise, 1.0, 0.0)
    assert perfect.correlation(rewards) == pytest.approx(1)
    assert useless.correlation(rewards) == pytest.approx(np.mean([spearmanr(noise[s], rewards[s])[0] for s in (0, 1)]))
    assert Score(np.ones((2, 20)), 1, 0).correlation(rewards) == 0
    assert (perfect.lost(rewards), Score(-rewards, 1, 0).lost(rewards)) == (0, 1)
    # Rewards that repeat themselves: who sees them before draws more, and finds more; who sees noise does not.
    same = np.stack([rewards[0], rewards[0]])
    plain = Score(same, 1.0, 1.0, share=0.0)
    usual = plain.found(same, plain.afforded, rng)
    assert (plain.afforded, Score(same, 1.0, 0.0).afforded, Score(same, 1.5, 0.5).afforded) == (16, 32, 16)
    assert Score(same, 1.0, 0.0).found(same, 32, rng) > usual + 0.01
    assert Score(same, 1.0, 0.0).found(same, 16, rng) == pytest.approx(usual, abs=0.02)
    assert Score(-same, 1.0, 0.0).found(same, 32, rng) < usual - 0.01


def test_searches_are_compared_at_equal_training() -> None:
    run = searched(0, RealProxy("shapes", steps=2, samples=4), "by metric")
    assert (run.data, run.contestant, run.seed, run.trials) == ("shapes", "by metric", 0, 10)
    assert 0 <= run.pruned <= 5
    assert run.trainings == pytest.approx(10 - 0.67 * run.pruned)
    assert 0 < run.found < 1


def test_searches_that_are_there_are_not_run_again(tmp_path: Path) -> None:
    rows = [
        Run(data, name, seed, 100 + 10 * place, 50 * place, 100.0, 0.5 + 0.1 * place + 0.02 * seed * (place == 1))
        for data in PROXIES
        for place, name in enumerate(CONTESTANTS)
        for seed in range(2)
    ]
    (tmp_path / "prune.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    assert main(["bench", "prune", "--seeds", "2", "--out", str(tmp_path)]) == 0
    table = [line.split(" | ") for line in (tmp_path / "prune.md").read_text().splitlines() if line.startswith("| ")]
    assert [line[0] for line in table[1:]] == [f"| {data}" for data in PROXIES for _ in CONTESTANTS]
    half = 12.706 * 0.0141421 / 2**0.5 * 100  # a t-interval of the differences 10 and 12
    for plain, logits, by_metric in (table[1:4], table[4:7]):
        assert (plain[5], plain[6]) == ("50.0 [50.0, 50.0]", " |")
        assert logits[2:4] == ["110", "50"]
        assert logits[6] == f"+11.0 [{11 - half:+.1f}, {11 + half:+.1f}] |"
        assert by_metric[6] == "+20.0 [+20.0, +20.0] |"


def test_what_was_seen_stands_beside_the_rewards(tiny_config: Path, tmp_path: Path) -> None:
    assert main(["bench", "filter", str(tiny_config), "--thetas", "5", "--out", str(tmp_path)]) == 0
    ((name, records),) = json.loads((tmp_path / "filter.json").read_text()).items()
    assert (name, len(records)) == ("tiny", 10)
    for record in records:
        assert len(record["theta"]) == 4
        assert len(record["rewards"]) == len(record["early"]) == 2
        assert {len(rise) for rise in record["rises"].values()} == {21}
    assert (tmp_path / "filter.md").read_text().count("| ") > 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["filter", "CONFIG", "--thetas", "4"], "thetas is 4"),
        (["filter", "nowhere.yaml"], "cannot be read"),
        (["prune", "--seeds", "1"], "seeds is 1"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tiny_config) if argument == "CONFIG" else argument for argument in arguments]
    assert main(["bench", *given, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
