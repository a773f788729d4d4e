"""A trainer of the user's own as the trial, and a reward that is not the metric of the loss."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autosegloss
from autosegloss.cli import main
from autosegloss.errors import AutoseglossError, ConfigError, InputError, RefusedError, SearchError
from autosegloss.metric import metric
from autosegloss.report.pages import figures
from autosegloss.search.compare import compare
from autosegloss.search.comparison import Comparison
from autosegloss.search.jobs import Job
from autosegloss.search.own_trial import TrialObjective
from autosegloss.search.settings import as_config
from autosegloss.search.study import Study
from tests import own_trials
from tests.faulty import TINY
from tests.journals import trials_of

OWN: dict[str, Any] = {
    "metric": "miou",
    "trial": "tests.own_trials:train",
    "reward": "-cost",
    "rivals": {"losses": []},
    "search": {"steps": 2, "samples": 3},
    "finalists": {"candidates": 1, "seeds": 2},
}


def run(out: Path, **changes: Any) -> bytes:
    autosegloss.search({**OWN, **changes}, runner="serial", out=out)
    return (out / "loss.json").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search from the command line; beside it `own.yaml`, and `told`, what it printed."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.yaml").write_text(json.dumps(OWN))
    own_trials.BUDGETS.clear()
    with redirect_stdout(StringIO()) as told:
        assert main(["search", str(folder / "own.yaml"), "--runner", "serial", "--out", str(folder / "out")]) == 0
    (folder / "told").write_text(told.getvalue())
    return folder / "out"


def test_the_reward_is_a_number_of_the_trial(undisturbed: Path) -> None:
    trials = trials_of(undisturbed / "trials.jsonl")
    assert set(own_trials.BUDGETS) == {1.0}
    for trial in trials:
        cost, miou = trial["metrics"]["cost"], trial["metrics"]["miou"]
        assert trial["metrics"] == {"cost": cost, "miou": 1 - cost, "steps": 6}
        assert trial["reward"] == -cost
        assert trial["validation"] in ({}, {"target": -cost, "cost": cost, "miou": miou, "steps": 6})
        assert bool(trial["validation"]) == (trial["stage"] == "final")
    assert len({trial["reward"] for trial in trials}) > 5, "the losses and the seeds differ"
    loss = autosegloss.load_loss(undisturbed / "loss.json")
    assert loss.provenance["maximised"] == "-cost"
    best = max(loss.provenance["validation"].values(), key=lambda row: row["target"]["mean"])
    assert loss.provenance["validation"]["found"]["cost"]["mean"] == -best["target"]["mean"]


def test_a_trial_is_told_its_name_everywhere(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "surface_values", lambda _: np.eye(3))  # which take seconds
    path, told = undisturbed.parent / "own.yaml", (undisturbed.parent / "told").read_text()
    assert "searching for a loss for miou (reward: -cost); " in told
    assert "target: -cost" in told
    assert "what the trial returned: mean ± sd over 2 fresh seeds" in told.replace("\n", " ")
    assert "-cost: cross-entropy -0." in told, "as it is, not in %"
    assert main(["status", str(undisturbed)]) == 0
    told = capsys.readouterr().out
    assert "miou (reward: -cost): finished" in told
    assert "cost 0." in told
    assert main(["status", str(undisturbed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] == "-cost"
    assert main(["report", str(undisturbed), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "The reward is -cost, as the trial returns it." in page
    assert "What the trial returned: mean" in page
    assert 'id="images"' not in page
    assert 'id="classes"' not in page
    assert "held-out" not in page
    capsys.readouterr()
    assert main(["search", str(path), "--runner", "serial", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "trial      tests.own_trials:train: not run, since one call is a whole trial" in told
    assert "search     15 trials, 1 in parallel" in told


def test_its_guards_are_told_as_the_numbers_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "own.yaml", tmp_path / "out"
    path.write_text(json.dumps({**OWN, "guard": {"steps": 0.5}}))
    assert main(["search", str(path), "--runner", "serial", "--out", str(out)]) == 0
    kept = "kept: steps is 6 where at least 3 was asked (0.5 of cross-entropy's 6)."
    assert f"guards, {kept}" in capsys.readouterr().out.replace("\n", " ")
    provenance = autosegloss.load_loss(out / "loss.json").provenance
    assert provenance["configuration"]["trial"] == "tests.own_trials:train"
    assert not provenance["configuration"]["proxy"], "which was never used"
    assert "proxy: {}" in (out / "config.yaml").read_text()
    assert main(["status", str(out)]) == 0
    assert f"guards, {kept}" in capsys.readouterr().out
    assert main(["status", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["found"]["guards"] == kept
    assert autosegloss.load_loss(out / "loss.json").provenance["guards"] == kept
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    page = unescape((tmp_path / "page.html").read_text())
    assert kept in page
    assert "<td>3 (0.5 of cross-entropy's 6)</td>" in page
    assert "held-out" not in page


def test_a_number_that_only_some_trials_return_is_left_out_of_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "own.yaml", tmp_path / "out"
    path.write_text(json.dumps(OWN | {"trial": "tests.own_trials:varying", "finalists": {"candidates": 1, "seeds": 4}}))
    assert main(["search", str(path), "--runner", "serial", "--out", str(out)]) == 0
    finals = [trial["validation"] for trial in trials_of(out / "trials.jsonl") if trial["stage"] == "final"]
    assert {"more" in each for each in finals} == {True, False}
    for command in ("status", "show", "report"):
        assert main([command, str(out)]) == 0
    assert "more" not in autosegloss.load_loss(out / "loss.json").provenance["validation"]["found"]


def test_resumed_it_gives_the_same_bytes_and_another_file_is_refused(tmp_path: Path) -> None:
    module = tmp_path / "beside_own.py"
    source = Path(own_trials.__file__).read_text()
    module.write_text(source)
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({**OWN, "trial": "beside_own:train"}))
    autosegloss.search(path, runner="serial", out=tmp_path / "expected")

    def stop(study: Study) -> None:
        if study.done == 6:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        autosegloss.search(path, runner="serial", out=out, observer=stop)
    assert len(trials_of(out / "trials.jsonl")) == 6
    module.write_text(source + "\n")
    with pytest.raises(RefusedError, match="the file of the function `trial` has changed since this search began"):
        autosegloss.search(path, runner="serial", out=out, resume=True)
    module.write_text(source)
    torch.manual_seed(1)  # what was drawn before does not matter
    autosegloss.search(out / "config.yaml", runner="serial", out=out, resume=True)  # which knows the module's folder
    assert (out / "loss.json").read_bytes() == (tmp_path / "expected/loss.json").read_bytes()


def test_the_budget_is_that_of_the_finals_or_a_share_of_it() -> None:
    shorter = {"finalists": {"iterations": 400}, "proxy": {"train": {"iterations": 100}}}
    for changes, search in [({}, 1), (shorter, 0.25), ({"finalists": {"iterations": 100}}, 1)]:
        trial = TrialObjective.of(as_config({**OWN, **changes}))
        budgets = [trial.budget(Job(stage, 0, 0, {}, 0)) for stage in ("screen", "search", "fidelity", "final")]
        assert budgets == [search, search, 1, 1]


@pytest.mark.usefixtures("ray_address")
@pytest.mark.slow
def test_ray_gives_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    autosegloss.search(OWN, runner="ray", out=tmp_path / "out")
    assert (tmp_path / "out/loss.json").read_bytes() == (undisturbed / "loss.json").read_bytes()


MAPPING = 'return a mapping of names to numbers, such as {"miou": 0.71}, got '


def test_a_first_trial_that_returns_something_else_ends_the_search(tmp_path: Path) -> None:
    plain = {"reward": None}
    for name, expected, changes in [
        ("nothing", MAPPING + "None.", plain),
        ("empty", MAPPING + "{}.", plain),
        ("unnamed", 'such as {"miou": 0.71}; the name 1 is no text.', plain),
        ("text", MAPPING + "'0.5' for 'miou'.", plain),
        ("several", MAPPING + "tensor([", plain),
        ("target", "`target` stands for the reward in the tables; rename it.", plain),
        (
            "other",
            "(did you mean `mean_iou`?), which `reward` needs. It returned `mean_iou`, `loss`; name one of",
            plain,
        ),
        ("other", "returned no `los` (did you mean `loss`?), which `reward` needs.", {"reward": "-los"}),
        ("train", "which `guard` needs. It returned `cost`, `miou`", {"guard": {"biou": 0.5}}),
    ]:
        with pytest.raises(RefusedError) as caught:
            run(tmp_path / "out", trial=f"tests.own_trials:{name}", **changes)
        assert f"trial `tests.own_trials:{name}`" in str(caught.value)
        assert expected in str(caught.value)
        assert trials_of(tmp_path / "out/trials.jsonl") == []
    run(tmp_path / "out", trial="tests.own_trials:train")  # nothing was left that would have to be resumed


def test_a_trial_that_fails_is_a_failed_trial(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="step 0: 3 of 3 trials failed") as caught:
        run(tmp_path / "raising", trial="tests.own_trials:raising")
    assert "own_trials.py:" in str(caught.value)
    assert "ValueError: no such row" in str(caught.value)
    with pytest.raises(SearchError, match="not finite: miou is nan"):
        run(tmp_path / "undefined", trial="tests.own_trials:undefined", reward=None)
    run(tmp_path / "now_and_then", trial="tests.own_trials:now_and_then")
    failed = [each["error"] for each in trials_of(tmp_path / "now_and_then/trials.jsonl") if each["error"]]
    assert len(failed) == 3
    assert all(MAPPING + "{}" in error for error in failed)


@pytest.mark.parametrize(
    ("changes", "error", "expected"),
    [
        ({"trial": "tests.absent:train"}, InputError, "no module named `tests.absent`"),
        ({"trial": "tests.own_trials:trian"}, InputError, "did you mean `train`"),
        ({"trial": "train"}, InputError, "trial must be `module:function`, got 'train'"),
        (
            {"trial": "tests.own_trials:of_two"},
            InputError,
            "must take (loss, seed, budget), got (loss: 'Any', seed: 'int')",
        ),
        (
            {"proxy": {"data": {"name": "nuclei"}, "train": {"iterations": 9}}},
            ConfigError,
            "`trial` replaces the proxy, so proxy.data.name, proxy.train.iterations would have no effect",
        ),
        ({"reward": {"name": "biou"}}, ConfigError, "reward: must be the name of a number that `trial` returns"),
        ({"reward": "-"}, ConfigError, "reward: must name a number or a metric"),
        ({"search": {"offsets": True}}, ConfigError, "search.offsets: needs the proxy's logits"),
        ({"guard": {"cost": 0.9}}, ConfigError, "guard.cost: is better where less of it is, as `reward` says"),
        ({"guard": {"steps": 2}}, ConfigError, "guard.steps: must be at most 1, got `2`"),
        ({"guard": {"a": {"expression": "miou", "share": 1}}}, ConfigError, "guard.a: must be a number, got `{expr"),
        ({"metric": "iou(cat)"}, ConfigError, "metric: must have numbers for classes next to `trial`"),
        ({"trial": None}, ConfigError, "reward: must be a metric, as there is no `trial` that returns numbers: unkn"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(
    changes: dict[str, Any], error: type[AutoseglossError], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        run(tmp_path / "out", **changes)
    assert expected in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_retraining_refuses_a_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(OWN))
    assert main(["retrain", str(path), "--loss", "jml", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "`autosegloss retrain` trains the proxy, which `trial: tests.own_trials:train` replaces." in told
    assert "autosegloss.load_loss(" in told
    assert not (tmp_path / "out").exists()


# Its comparison.

COMPARED: dict[str, Any] = {
    **OWN,
    "guard": {"steps": 0.5},
    "compare": {"losses": ["cross_entropy", "lovasz"], "seeds": 3, "steps": [1, 4], "tuning_seeds": 2},
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison from the command line; beside it `own.yaml`, and `told`, what it printed."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "own.yaml").write_text(json.dumps(COMPARED))
    with redirect_stdout(StringIO()) as told:
        assert main(["compare", str(folder / "own.yaml"), "--runner", "serial", "--out", str(folder / "out")]) == 0
    (folder / "told").write_text(told.getvalue())
    return folder / "out"


def test_losses_are_compared_at_their_best_step_by_what_the_trial_returns(compared: Path) -> None:
    table = json.loads((compared / "table.json").read_text())
    seeds, tuning, steps = table["plan"]["seeds"], table["plan"]["tuning_seeds"], [1.0, 4.0]
    assert not {*seeds} & {*tuning}

    def cost(name: str, step: float, seed: int) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return float(own_trials.train(autosegloss.load_loss(f"{step}*{name}"), seed, 1.0)["cost"])

    runs = {}
    for row in table["rows"]:
        means = [-np.mean([cost(row["loss"], step, seed) for seed in tuning]) for step in steps]
        assert row["tuned"]["heldout"] == pytest.approx(means)
        assert row["tuned"]["step"] == steps[int(np.argmax(means))]
        costs = [cost(row["loss"], row["tuned"]["step"], seed) for seed in seeds]
        assert [run["cost"] for run in row["runs"]] == pytest.approx(costs)
        assert [run["target"] for run in row["runs"]] == pytest.approx([-each for each in costs])
        runs[row["loss"]] = np.array(costs)
    gain = table["rows"][1]["differences"]["target"]["mean"]
    assert gain == pytest.approx(np.mean(runs["cross_entropy"] - runs["lovasz"]))


def test_a_comparison_tells_numbers_as_they_are(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "surface_values", lambda _: np.eye(3))  # which take seconds
    text = (compared / "table.md").read_text()
    assert text in (compared.parent / "told").read_text()
    assert "What the trial returned: mean [95% t-interval] over 3 seeds." in text
    assert "| loss | -cost | miou | steps |" in text
    assert "Each loss at the step chosen by its reward on other seeds among 1, 4 (2 seeds each)." in text
    assert "Guards (steps) are kept by searches and have no part here: compare the columns." in text
    row = next(line for line in text.splitlines() if "cross_entropy` |" in line)
    mean = json.loads((compared / "table.json").read_text())["rows"][0]["scores"]["miou"]["mean"]
    assert f"| {mean:.4g} [" in row
    assert row.endswith("| 6 [6, 6] |")
    assert main(["report", str(compared), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert f"<b>{mean:.4g}</b>" in page
    for absent in ("held-out", "Validation", "%</th>", 'id="images"', 'id="classes"'):
        assert absent not in page
    assert main(["compare", str(compared), "--metrics", "steps,miou", "--out", str(tmp_path / "again")]) == 0
    assert "| loss | steps | miou |" in (tmp_path / "again/table.md").read_text()


def test_a_comparison_goes_on_where_it_was(compared: Path, tmp_path: Path) -> None:
    def stop(comparison: Comparison) -> None:
        if comparison.done == 5:
            raise KeyboardInterrupt

    out, path = tmp_path / "out", compared.parent / "own.yaml"
    with pytest.raises(KeyboardInterrupt):
        compare(path, None, out, runner="serial", observer=stop)
    assert len(trials_of(out / "trials.jsonl")) == 5
    searching = {"guard": {}, "search": {"steps": 7}, "finalists": {"seeds": 4}, "rivals": {"losses": ["lovasz"]}}
    table = compare(COMPARED | searching, None, out, runner="serial", resume=True)  # which have no part in it
    assert [row["runs"] for row in json.loads((compared / "table.json").read_text())["rows"]] == [
        list(row.runs) for row in table.rows
    ]


@pytest.mark.parametrize(
    ("changes", "metrics", "error", "expected"),
    [
        ({}, ["cost"], InputError, "metrics: what `trial: tests.own_trials:train` returns is not known before it"),
        ({"losses": ["jml", "tests.own_losses:absent"]}, None, InputError, "losses are names, texts of these and loss"),
        ({"losses": ["jml", "lovsz"]}, None, InputError, "did you mean `lovasz`"),
        ({"offsets": True}, None, ConfigError, "compare.offsets: needs the proxy's logits"),
        (
            {"settings": {"a": {}, "b": {}}},
            None,
            ConfigError,
            "compare.settings: changes the proxy, which `trial` replaces",
        ),
        ({"metrics": ["score"]}, None, ConfigError, "compare.metrics: can't be chosen next to `trial` before it runs"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    changes: dict[str, Any], metrics: list[str] | None, error: type[AutoseglossError], expected: str, tmp_path: Path
) -> None:
    config = {**COMPARED, "compare": COMPARED["compare"] | changes}
    with pytest.raises(error) as caught:
        compare(config, None, tmp_path / "out", runner="serial", metrics=metrics)
    assert expected in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_search_and_a_comparison_leave_each_others_folders_alone(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "out")
    for resume in (False, True):
        with pytest.raises(RefusedError, match="holds a comparison or retraining, no search"):
            autosegloss.search(OWN, runner="serial", out=compared, resume=resume)
        with pytest.raises(RefusedError, match="holds a search, no comparison"):
            compare(COMPARED, None, tmp_path / "out", runner="serial", resume=resume)
    reasons = {compared: "it holds a comparison or retraining", tmp_path / "no": "there is no such folder"}
    for folder, why in reasons.items():
        assert main(["status", str(folder)]) == 2
        assert f"{folder}: not the folder of a search: {why}." in capsys.readouterr().err


def test_a_comparison_ends_at_a_first_trial_that_returns_something_else(tmp_path: Path) -> None:
    config = {**COMPARED, "trial": "tests.own_trials:nothing"}
    with pytest.raises(RefusedError, match="must return a mapping of names to numbers"):
        compare(config, None, tmp_path / "out", runner="serial")
    assert trials_of(tmp_path / "out/trials.jsonl") == []


def test_the_reward_of_a_proxy_may_be_another_metric_than_that_of_its_loss(tmp_path: Path) -> None:
    config = {**TINY, "reward": "-iou(border)", "search": {"steps": 1, "samples": 2}}
    autosegloss.search(config, runner="serial", out=tmp_path / "out")
    settled = as_config(tmp_path / "out/config.yaml")
    assert settled.reward == {"name": "-iou(border)", "expression": str(metric("-iou(2)"))}
    assert settled.title == "biou(radius=2) (reward: -iou(border))"
    for trial in trials_of(tmp_path / "out/trials.jsonl"):
        assert trial["reward"] != trial["metrics"]["biou(radius=2)"], "which is measured, too"
        if trial["stage"] == "final":
            assert trial["validation"]["target"] == -trial["validation"]["IoU of border"]
            assert trial["theta"] is None or trial["loss"]["metric"] == str(metric({"name": "biou", "radius": 2}))
    assert autosegloss.load_loss(tmp_path / "out/loss.json").provenance["maximised"] == "-iou(border)"
