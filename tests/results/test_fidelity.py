"""The benchmark of proxies: rank correlations by hand, what each arm trains, and a table that repeats itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import as_config
from results.algorithms.algorithms import crops
from results.fidelity import fidelity
from results.fidelity.fidelity import (
    NAMED,
    SEEDS,
    Arm,
    agreement,
    arms,
    bench_fidelity,
    main,
    rank_correlation,
    signal_and_noise,
)

pytestmark = pytest.mark.usefixtures("small_and_here")

CONFIG: dict[str, Any] = {
    "metric": "miou",
    "proxy": {"start": {"iterations": 2}, "train": {"iterations": 9, "batch_size": 2}},
}
Done = tuple[Path, Path, list[dict[str, Any]]]


def test_rank_correlations_are_spearmans() -> None:
    a, b = np.random.default_rng(0).integers(6, size=(2, 30))  # with ties
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b)[0])
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(np.stack([a, b, a]), np.stack([b, b, np.ones(30)])) == pytest.approx(
        [spearmanr(a, b)[0], 1, 0]
    )


def test_agreement_is_the_mean_over_seeds_with_an_interval_over_losses() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(30)
    rewards = truth + 0.2 * rng.standard_normal((2, 30))
    mean, low, high = agreement(rewards, truth)
    assert mean == pytest.approx(np.mean([spearmanr(each, truth)[0] for each in rewards]))
    assert low < mean < high
    # Fisher's interval, of one seed, is about as wide.
    ends = np.tanh(np.arctanh(mean) + 1.96 / 27**0.5 * np.array([-1, 1]))
    assert high - low == pytest.approx(ends[1] - ends[0], rel=0.4)
    assert agreement(rewards[:, :5], truth[:5])[1] < low
    assert agreement(np.stack([truth, truth]), truth) == pytest.approx((1, 1, 1))
    pairs = agreement(rewards, rewards[::-1])[0]
    assert pairs == pytest.approx(spearmanr(*rewards)[0])


def test_signal_and_noise_by_hand() -> None:
    signal, noise = signal_and_noise(np.array([[1.0, 3.0, 5.0], [3.0, 5.0, 7.0]]))
    assert (signal, noise) == pytest.approx((2, 2**0.5))


def test_arms_train_what_they_say() -> None:
    assert len(arms()) == len({arm.name for arm in arms()}) == 4 * 2 * 3 + 2
    proxy = proxy_of(as_config(CONFIG))
    half = Arm("checkpoint", True, 25).of(proxy)
    assert half.settings.start.regime == "checkpoint"
    assert half.dataset.train.images.shape == (4 * 12, 3, 32, 32)
    assert half.dataset.heldout.labels.shape == (4 * 6, 32, 32)
    whole = proxy.dataset.train.labels[7]
    parts = half.dataset.train.labels[7::12]  # the quarters of image 7, row by row
    assert (np.block([[parts[0], parts[1]], [parts[2], parts[3]]]) == whole).all()
    full = Arm("scratch", False, 600, full=True).of(proxy)
    assert full.settings.start.regime == "scratch"
    assert full.dataset.heldout is proxy.dataset.validation
    assert full.dataset.train is proxy.dataset.train
    assert crops(proxy.dataset.train, 40, 30).labels.shape == (12 * 2, 40, 30)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, small_and_here: None) -> Done:
    out = tmp_path_factory.mktemp("fidelity")
    config = out / "tiny.yaml"
    config.write_text(json.dumps(CONFIG))
    bench_fidelity(out / "out", config, 4, [2], 3)
    return config, out / "out", [json.loads(line) for line in (out / "out/tiny.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_loss_is_trained_in_every_way(done: Done) -> None:
    _, out, rows = done
    drawn = ["anywhere 0", "anywhere 1", "first step 0", "first step 1"]
    assert [(row["loss"], row["seed"]) for row in rows] == [(n, s) for n in sorted([*drawn, *NAMED]) for s in SEEDS]
    ways = arms([2], 3)
    assert all(list(row["rewards"]) == [way.name for way in ways] for row in rows)
    table = (out / "tiny.md").read_text()
    for way in ways:
        rewards = np.array([[row["rewards"][way.name] for row in rows if row["seed"] == seed] for seed in SEEDS])
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {' | '.join(way.cells)} |")]
        signal, noise = signal_and_noise(100 * rewards)
        ratio = f"{signal / noise:.1f}" if noise else "-"
        assert line.endswith(f"| {signal:.1f} | {noise:.1f} | {ratio} |")
    assert len({row["rewards"]["encoder, half, 2"] for row in rows}) > len(SEEDS)  # the loss matters too


def test_a_reward_is_that_of_a_trial(done: Done) -> None:
    _, _, rows = done
    config = as_config(CONFIG)
    proxy = proxy_of(config).prepare()
    (row,) = [row for row in rows if (row["loss"], row["seed"]) == ("first step 1", 2)]
    ((_, loss),) = [drawn for drawn in fidelity._drawn(config, proxy, 2) if drawn[0] == "first step 1"]
    assert row["rewards"]["encoder, full, 2"] == proxy.reward(proxy.trained(loss, 2, iterations=2))
    scores = proxy.evaluation(proxy.trained(loss, 4, iterations=3), validate=True).validation
    assert row["rewards"]["encoder, full, 3, validation"] == scores["target"]


@pytest.mark.slow
def test_what_is_there_is_not_trained_again_and_a_torn_line_is(done: Done) -> None:
    config, out, rows = done
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    bench_fidelity(out, config, 4, [2], 3)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    lines = kept["tiny.jsonl"].splitlines(keepends=True)
    (out / "tiny.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:-20])
    bench_fidelity(out, config, 4, [2], 3)
    again = [json.loads(line) for line in (out / "tiny.jsonl").read_text().splitlines()]
    assert [row | {"seconds": 0} for row in again] == [row | {"seconds": 0} for row in rows]
    assert (out / "tiny.jsonl").read_bytes().splitlines(keepends=True)[:-1] == lines[:-1]
    config.write_text(json.dumps(CONFIG | {"metric": "gacc"}))
    assert "gacc" in bench_fidelity(out, config, 4, [2], 3)
    both = [json.loads(line) for line in (out / "tiny.jsonl").read_text().splitlines()]
    assert len({row["study"] for row in both}) == 2


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        ("hard", ["--thetas", "3"], "thetas must be 4 or more, got 3"),
        ("smoothed", [], "proxy.labels.name must be `hard`"),
    ],
)
def test_bad_input_is_refused(
    labels: str, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(CONFIG | {"proxy": {"labels": {"name": labels}}}))
    with pytest.raises(SystemExit, match="2"):
        main([str(config), *arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
