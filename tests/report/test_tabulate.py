"""Tables tabulated again: verdicts held to an independent computation, and folders that are not what they should be."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autosegloss.cli import main
from autosegloss.errors import AutoseglossError, InputError
from autosegloss.loss import named_loss
from autosegloss.search.comparison import PLAN_VERSION, write_table
from autosegloss.search.content import bare_content
from autosegloss.search.tables import Row, Table, not_learned
from autosegloss.search.tabulate import read_table, resolved, tabulate
from tests import oracles
from tests.examples import examples

LOSSES = ["cross_entropy", "jml", "lovasz"]
MEASURED = ["target", "miou", "jaccard", "gacc", "IoU of leaf", "IoU of a, b", "bf1(radius=2)", "ece"]
Runs = list[list[dict[str, float] | None]]


def made_up(runs: Runs, metric: str = "miou", seeds: int = 3) -> Table:
    """A table of three losses from runs that nobody trained."""
    plan = {
        "version": PLAN_VERSION,
        "losses": LOSSES,
        "seeds": list(range(seeds)),
        "metrics": ["miou", "gacc", "ece"],
        "verdicts": ["miou"],
        "settings": [""],
        "configurations": {"": {"metric": metric}},
        "definitions": {"": {name: bare_content(named_loss(name)) for name in LOSSES}},
    }
    failed = [["MemoryError: too large" for run in own if run is None] for own in runs]
    rows = [Row.of("", name, own, errors, None) for name, own, errors in zip(LOSSES, runs, failed, strict=True)]
    return Table(plan, "autosegloss compare x.yaml", "miou", {"": ""}, tuple(rows), {}).tabulated()


def random_runs(seed: int, spread: float = 0.1) -> Runs:
    rng = np.random.default_rng(seed)
    levels = rng.uniform(0.3, 0.7, (3, 1, len(MEASURED))) + rng.normal(0, spread, (3, 3, len(MEASURED)))
    runs: Runs = [[dict(zip(MEASURED, values, strict=True)) for values in own] for own in levels.clip(0, 1).tolist()]
    for own in runs:
        for each in own:
            assert each is not None
            each["target"] = each["jaccard"] = each["miou"]
    return runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a finished comparison."""
    table = made_up(random_runs(0, 0.01))
    write_table(table, tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(table.plan))
    return tmp_path


@examples(25)
@given(st.integers(0, 10**6), st.sampled_from(LOSSES), st.sets(st.sampled_from(MEASURED[1:]), min_size=1))
def test_verdicts_are_those_of_paired_tests_by_holm_over_what_is_asked(seed: int, first: str, asked: set[str]) -> None:
    names = sorted(asked - {"jaccard"}) or ["miou"]
    runs = random_runs(seed, 0.02)
    table = made_up(runs).tabulated(first, names)
    values = {
        (loss, name): [run[name] for run in own if run]
        for loss, own in zip(LOSSES, runs, strict=True)
        for name in MEASURED
    }
    family = {
        (loss, name): stats.ttest_rel(values[loss, name], values[first, name])
        for loss in LOSSES
        for name in names
        if loss != first
    }
    adjusted = dict(zip(family, oracles.holm([float(test.pvalue) for test in family.values()]), strict=True))
    for row in table.rows:
        assert (row.differences == {}) == (row.loss == first)
        for name, gain in row.differences.items():
            assert gain is not None
            assert gain.mean == pytest.approx(np.mean(values[row.loss, name]) - np.mean(values[first, name]))
            source = "miou" if name == "target" and "miou" in names else name
            significant = adjusted.get((row.loss, source), 1.0) <= 0.05
            better = (gain.mean > 0) != (name == "ece")
            assert gain.verdict == (("better" if better else "worse") if significant else None)
    assert table.tabulated() == made_up(runs)


def test_by_default_there_is_a_verdict_on_the_target_alone(folder: Path) -> None:
    table = tabulate(folder)
    judged = {name for row in table.rows for name, gain in row.differences.items() if gain and gain.verdict}
    assert judged == {"target", "miou"}
    text = (folder / "table.md").read_text()
    assert "a paired t-test on miou says so at 5%, with Holm's correction over these tests (2)." in text
    assert text.count("**") + text.count("↓") > 3


def test_metrics_are_found_by_every_name_that_they_have() -> None:
    asked = ["IoU of  leaf", "iou(leaf)", "iou(0)", "iou(a, b)", "bf1( radius = 2 )", "jaccard", "miou", "ece"]
    found = ["IoU of leaf", "IoU of a, b", "bf1(radius=2)", "jaccard", "ece"]
    assert resolved(asked, MEASURED, "dice") == found
    assert resolved(["target", "miou"], MEASURED, "miou") == ["target"]
    assert resolved(["iou('leaf')", "iou(classes=[1])"], MEASURED, "miou") == ["IoU of leaf", "IoU of a, b"]
    for name in ("iou(999)", "iou(stem)", "macc", "bf1", "no metric at all", "x" * 5000, "iou(" * 300):
        with pytest.raises(InputError, match="was not measured") as error:
            resolved([name], [*MEASURED, *(f"IoU of class {i}" for i in range(255))], "miou")
        assert "IoU of leaf" in str(error.value)
        assert "compare.metrics" in str(error.value)
        assert len(str(error.value)) < 1000


def changed(name: str, change: Callable[[Any], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no table": (lambda folder: (folder / "table.json").unlink(), "what plan.json plans is not finished"),
    "nothing": (lambda folder: [each.unlink() for each in folder.iterdir()], "it holds no comparison"),
    "cut table": (lambda folder: (folder / "table.json").write_text('{"plan": {'), "table.json: this file is damaged"),
    "cut plan": (lambda folder: (folder / "plan.json").write_text('{"version": '), "plan.json: this file is damaged"),
    "a list": (lambda folder: (folder / "plan.json").write_text("[]"), "plan.json: this file is damaged"),
    "brackets": (lambda folder: (folder / "plan.json").write_text("[" * 100_000), "plan.json: this file is damaged"),
    "extended": (changed("plan.json", lambda plan: plan["losses"].append("focal")), "extended and is not finished"),
    "NaN": (changed("table.json", lambda x: x["rows"][0]["runs"][0].update(miou=math.nan)), "table.json: this file is"),
    "no row": (changed("table.json", lambda x: x["rows"].pop()), "table.json: this file is damaged"),
    "no run": (changed("table.json", lambda x: x["rows"][1]["runs"].pop()), "table.json: this file is damaged"),
    "no metric": (changed("table.json", lambda x: x["rows"][1]["runs"][0].pop("gacc")), "table.json: this file is"),
    "a baseline": (changed("table.json", lambda x: x.update(baseline="x")), "table.json: this file is damaged"),
    "no loss": (changed("table.json", lambda x: x["plan"]["definitions"][""].pop("jml")), "table.json: this file is"),
    "a loss": (changed("table.json", lambda x: x["plan"]["definitions"][""].update(jml={})), "table.json: this file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_and_left_as_it_is(folder: Path, capsys: Any, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["compare", str(folder), "--baseline", "jml"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "--resume" in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_takes_no_options_of_training_and_another_folder_is_not_overwritten(
    folder: Path, tmp_path: Path, capsys: Any
) -> None:
    assert main(["compare", str(folder), "--loss", "jml", "--set", "metric=dice"]) == 2
    assert "--loss, --set can't change what it holds" in capsys.readouterr().err
    other = tmp_path / "search"
    other.mkdir()
    (other / "trials.jsonl").write_text("")
    with pytest.raises(AutoseglossError, match=r"already holds trials\.jsonl"):
        tabulate(folder, out=other)
    assert [path.name for path in other.iterdir()] == ["trials.jsonl"]


def test_runs_that_failed_are_said_and_the_others_are_compared() -> None:
    runs = random_runs(1)
    runs[1][0] = None
    runs[2] = [None, None, None]
    table = made_up(runs)
    assert table.rows[1].differences["miou"] is not None
    text = table.to_markdown()
    assert "`jml`: 1 of 3 runs failed. MemoryError: too large" in text
    assert "`lovasz`: 3 of 3 runs failed. MemoryError: too large" in text
    assert "| `lovasz` | - | - | - |" in text
    assert "over these tests (1)" in text
    against_the_failed = table.tabulated("lovasz").to_markdown()
    assert re.findall(r"^\| `(?:cross_entropy|jml)` \| - \| - \| - \|$", against_the_failed, re.MULTILINE)
    assert "over these tests (0)" in against_the_failed
    nothing = made_up([[None] * 3] * 3)
    assert nothing.measured == ["miou", "gacc", "ece"]
    assert "| `jml` | - | - | - |" in nothing.to_markdown()
    assert nothing.to_latex().count("3 of 3 runs failed") == 3


def test_a_class_that_no_loss_learned_is_said_with_what_to_try() -> None:
    runs = random_runs(2)
    assert "IoU below" not in made_up(runs).to_markdown()
    for own in runs[:2]:
        for run in own:
            run["IoU of leaf"] = 0.009  # type: ignore[index]
    assert "IoU below" not in made_up(runs).to_markdown()  # one loss has learned it
    runs[2] = [None, None, None]
    table = made_up(runs)
    for text in (table.to_markdown(), table.to_latex(), not_learned([row.scores for row in table.rows])):
        assert "IoU below 1% with every loss: `leaf`." in text.replace("\\", "")
        for advice in ("AdamW", "more iterations", "larger images", "weighs classes"):
            assert advice in text
    assert not_learned([{}]) == not_learned([]) == ""


def test_names_are_no_html_in_markdown_and_stay_in_their_cells(tmp_path: Path) -> None:
    names = ["<script>a</script>", "back`tick", "x" * 300 + " | y\nz"]
    table = made_up(random_runs(3))
    plan = table.plan | {"losses": names, "definitions": {"": {key: {} for key in names}}}
    rows = [Row.of("", name, row.runs, (), None) for name, row in zip(names, table.rows, strict=True)]
    table = Table(plan, "compare `a` <b>", "<img src=x>", {"": "<i>"}, tuple(rows), {}).tabulated()
    text = table.to_markdown()
    assert not re.search(r"(?<![\\`])<[a-z/]", re.sub(r"(`+).*?\1", "", text))
    assert all(line.count(" | ") == 3 for line in text.splitlines() if line.startswith("| `"))
    assert "``back`tick``" in text
    write_table(table, tmp_path)
    assert json.loads((tmp_path / "table.json").read_text())["plan"]["losses"] == names
    with pytest.raises(InputError, match="damaged"):  # the definitions of these losses are none
        read_table(tmp_path)
