"""The measurement of many searches beside the best tuned rival: its own figures, by hand."""

import json
from pathlib import Path

import pytest
import yaml

from autosegloss.errors import InputError
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import as_config
from results.rivals import middle, offsets, rivals
from results.rivals.rivals import FRESH, main, summarize

pytestmark = pytest.mark.usefixtures("small_and_here")

CONFIG = {
    "metric": "miou",
    "rivals": {"losses": ["cross_entropy", "lovasz"], "steps": [1, 4], "seeds": 2},
    "proxy": {"start": {"regime": "scratch"}, "train": {"iterations": 2, "batch_size": 2}},
    "search": {"steps": 1, "samples": 2, "always": True},
    "finalists": {"candidates": 1, "seeds": 2, "test_seeds": 5},
}


def test_each_search_is_beside_the_rival_on_fresh_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "tiny.yaml", tmp_path / "out"
    path.write_text(yaml.dump(CONFIG))
    main([str(path), "--searches", "2", "--seeds", "3", "--out", str(out), "--runner", "serial"])
    page = capsys.readouterr().out.removesuffix("\n")
    summary = json.loads((out / "tiny.json").read_text())
    assert page == (out / "tiny.md").read_text()
    assert f"the best tuned rival, `{summary['rival']['name']}`" in page
    assert summary["seeds"] == comparison_seeds(FRESH, 3)
    assert [row["search"] for row in summary["searches"]] == [100, 101]
    for row in summary["searches"]:
        assert row["gains"] == [a - b for a, b in zip(row["values"], summary["rival"]["values"], strict=True)]
        assert json.loads((out / "work/tiny" / str(row["search"]) / "loss.json").read_text())["version"] >= 1
    rows = (out / "work/tiny/fresh.jsonl").read_text()
    assert summarize(path, [], 2, 3, out / "work/tiny") == summary, "nothing is trained again"
    assert (out / "work/tiny/fresh.jsonl").read_text() == rows
    alone = rivals._proxy(str(path), (f"search.seed={FRESH}",))
    first = json.loads(rows.splitlines()[0])
    loss, rate = json.loads(first["loss"])
    (found,) = alone.run_group([loss], first["seed"], True, [rate])
    assert not isinstance(found, Exception)
    assert found.validation["target"] == first["target"]


def test_a_search_of_another_configuration_is_refused(tmp_path: Path) -> None:
    config = as_config(CONFIG | {"search": {"steps": 0}})
    found = rivals.searched(config, tmp_path, 100, "serial")
    assert rivals.searched(config, tmp_path, 100, "serial") == found
    other = config.model_copy(update={"rivals": config.rivals.model_copy(update={"seeds": 3})})
    with pytest.raises(InputError, match="the search there has another configuration; give the measurement another"):
        rivals.searched(other, tmp_path, 100, "serial")


def test_offsets_in_the_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.dump(CONFIG | {"search": {"steps": 0}}))
    offsets.main([str(path), "--searches", "1", "--seeds", "2", "--out", str(tmp_path), "--runner", "serial"])
    assert capsys.readouterr().out.removesuffix("\n") == (tmp_path / "offsets.md").read_text()
    summary = json.loads((tmp_path / "offsets.json").read_text())
    assert [(row["reward"], row["search"]) for row in summary["losses"]] == [
        (kind, which) for kind in ("without", "with") for which in ("rival", "100")
    ]
    for row in summary["losses"]:
        proxy = rivals._proxy(str(path), ("search.offsets=true", f"search.seed={FRESH}"))
        (found,) = proxy.run_group([row["loss"]], summary["seeds"][1], True, [row["rate"]])
        assert not isinstance(found, Exception)
        assert (found.validation["target"], found.validation["target with offsets"]) == (
            row["target"][1],
            row["target with offsets"][1],
        )


def test_what_lies_between_two_rivals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.dump(CONFIG))
    middle.main([str(path), "8*lovasz", "2*log_miou", "--seeds", "2", "--out", str(tmp_path)])
    summary = json.loads((tmp_path / "middle.json").read_text())
    names = [each["name"] for each in summary["losses"]]
    assert names == ["8*lovasz", "2*log_miou", *(f"{way}% of the way" for way in (0, 25, 50, 75, 100))]
    scales = [each["loss"]["scale"] for each in summary["losses"]]
    assert scales == pytest.approx([8, 2, 8, 8 / 2**0.5, 4, 2 * 2**0.5, 2])
    assert all(len(each["values"]) == 2 for each in summary["losses"])
    assert capsys.readouterr().out.removesuffix("\n") == (tmp_path / "middle.md").read_text()
    with pytest.raises(SystemExit, match="2"):
        middle.main([str(path), "8*lovasz", "focal", "--out", str(tmp_path)])
    assert "`focal` is no point of the losses" in capsys.readouterr().err
