"""What README and the pages show runs, and what results/ and search_configs/ hold loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import autosegloss
from autosegloss.loss import named_loss
from autosegloss.loss.python import source
from tests.searches import COMMANDS, ROOT, configuration

SOFT = ROOT / "results/soft_labels"
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in (ROOT / ".docs/pages").glob("*.md")}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_loading_example_trains() -> None:
    network = torch.nn.Conv2d(3, 6, 3, padding=1)
    loader = [(torch.rand(2, 3, 8, 8), torch.randint(0, 6, (2, 8, 8)))]
    code = blocks("python")[0].replace("results/quickstart/loss.json", str(ROOT / "results/searches/quickstart.json"))
    scope: dict[str, Any] = {"network": network, "loader": loader}
    exec(code, scope)  # our own README
    assert network.weight.grad is not None
    assert network.weight.grad.abs().sum() > 0


def test_the_custom_metric_is_exact_and_a_loss() -> None:
    scope: dict[str, Any] = {}
    exec(blocks("python")[1], scope)
    labels = torch.randint(0, 6, (2, 8, 8))
    scope["exact"].update(labels, labels)
    assert scope["exact"].compute() == 1
    hard = 50 * torch.nn.functional.one_hot(labels, 6).movedim(-1, 1).float()
    assert scope["loss"](hard, labels).item() == pytest.approx(0, abs=1e-6)


def test_the_metric_as_text_is_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(blocks("yaml")[0])
    assert autosegloss.load_config(path).metric == "0.5 * miou + 0.5 * bf1(radius=3)"


def test_the_comparison_is_a_configuration_of_losses_that_there_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(blocks("yaml")[2])
    config = autosegloss.load_config(path)
    assert list(config.compare.settings) == ["shapes, encoder", "shapes, scratch", "nuclei"]
    assert config.in_setting("shapes, scratch").proxy.train.iterations == 200
    for name in config.compare.losses:
        assert named_loss(str(ROOT / name) if name.endswith(".json") else name)


def test_the_configuration_for_a_folder_is_the_one_that_is_tried() -> None:
    assert blocks("yaml")[1] in (ROOT / "tests/proxy/data/test_searches.py").read_text()


def test_the_command_of_every_result_is_in_the_table() -> None:
    assert set(COMMANDS) == {*(ROOT / "results/searches").glob("*.json"), *SOFT.glob("*/searched.json")}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_result_loads_and_names_what_it_was_measured_with(path: Path) -> None:
    loss = autosegloss.load_loss(path)
    assert loss.provenance.keys() >= {"theta", "validation", "seeds", "configuration", "versions"}
    assert loss.provenance["configuration"] == configured(path)


def configured(path: Path) -> dict[str, Any]:
    from autosegloss.search.settings import fingerprint

    return fingerprint(configuration(COMMANDS[path]))


def test_the_exact_metrics_of_two_batches() -> None:
    labels = torch.randint(0, 21, (2, 8, 8))
    scope: dict[str, Any] = {"batches": [(torch.randn(2, 21, 8, 8), labels)] * 2}
    exec(blocks("python", PAGES["metrics"])[0], scope)
    assert scope["everywhere"].keys() == {"miou", "worst 5%"}
    assert 0 < scope["calibration"].compute() < 1


def test_the_offsets_are_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", PAGES["offsets"])
    exec(code, {})


def test_the_page_shows_the_module_of_a_loss() -> None:
    (shown,) = blocks("py", PAGES["trainers"])
    assert f"\n\n{shown}\n\n" in source(named_loss("soft_jaccard").content())


def test_the_trainers_are_those_of_the_tests() -> None:
    shown = blocks("python", PAGES["trainers"])
    tested = "".join(path.read_text() for path in (ROOT / "tests/integrations").glob("test_*.py"))
    assert len(shown) >= 4
    for example in shown:
        assert example in tested


@pytest.mark.parametrize("use", ["annotators", "boundary", "distillation", "semi", "smoothing"])
def test_the_tables_of_soft_labels_are_those_shown(use: str) -> None:
    table = json.loads((SOFT / use / "scores.json").read_text())
    plan = table["plan"]
    searched = autosegloss.load_loss(SOFT / use / "searched.json")
    assert isinstance(searched, autosegloss.MixedLoss)
    assert (
        searched.provenance["configuration"] == plan["configurations"][""] == configured(SOFT / use / "searched.json")
    )
    (points,) = plan["definitions"][""][table["rows"][3]["loss"]]["control_points"]
    assert points == json.loads(json.dumps(searched.surrogate.control_points))
    assert len(plan["seeds"]) == 10
    for metric in ("miou", "ece"):
        scores = [row["scores"][metric] for row in table["rows"]]
        cells = [f"{100 * score['mean']:.1f} ± {100 * score['sd']:.1f}" for score in scores]
        best = f"**{cells[-1]}**" if metric == "miou" else cells[-1]
        assert f"| {' | '.join([*cells[:-1], best])} |" in PAGES["soft_labels"]


def test_the_table_of_searches_is_that_of_the_files() -> None:
    rows = re.findall(r"^\| `((?:shapes|nuclei|mni152)_\w+)`.*? \| (.*) \|$", PAGES["evidence"], flags=re.MULTILINE)
    kept = {path.stem for path in (ROOT / "results/searches").glob("*.json")}
    assert {name for name, _ in rows} == kept - {"quickstart", "camvid"}
    for name, cells in rows:
        of = autosegloss.load_loss(ROOT / f"results/searches/{name}.json").provenance["validation"]
        wanted = [(loss, "target") for loss in ("cross-entropy", "identity", "found")]
        wanted += [(loss, "miou") for loss in ("cross-entropy", "found")]
        shown = [
            f"{100 * of[loss][metric]['mean']:.1f} ± {100 * of[loss][metric]['sd']:.1f}" for loss, metric in wanted
        ]
        assert cells.replace("*", "").split(" | ") == shown, name


COMPARED = ROOT / "results/evidence"


@pytest.mark.parametrize("name", ["shapes", "nuclei", "mni152", "networks"])
def test_the_evidence_shown_is_that_of_its_tables(name: str) -> None:
    config = autosegloss.load_config(ROOT / f"search_configs/evidence_{name}.yaml")
    table = (COMPARED / name / "table.md").read_text()
    assert f"autosegloss compare search_configs/evidence_{name}.yaml" in table
    for loss in config.compare.losses:
        assert table.count(f"| `{loss}` |") >= len(config.compare.settings), loss  # its scores, and its differences
    lines = [line for line in PAGES["evidence"].splitlines() if line.startswith(f"| {name}, ")]
    shown = [line.split(" | ")[1:] for line in lines]
    assert shown
    for cell in (cell for cells in shown for cell in re.findall(r"\d+\.\d+ \[.*?\]", " | ".join(cells))):
        assert cell in table, cell


def test_every_fault_of_the_table_has_its_tests() -> None:
    rows = [line for line in PAGES["reliability"].splitlines() if re.match(r"\| (?!fault \|)", line)]
    assert len(rows) >= 14
    tested = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row.split(" | ")[-1])
        files = re.findall(r"`(tests/[\w/]+\.py)`", row.split(" | ")[-1])
        assert names or files or row.endswith(" | the same |"), row  # as the row above
        assert all((ROOT / file).is_file() for file in files), row
        for name in names:
            assert f"def {name}(" in tested, name
