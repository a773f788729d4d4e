"""The measurement of many searches beside the best tuned rival: its own figures, by hand."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from autosegloss import MixedLoss, load_loss
from autosegloss.errors import InputError
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import as_config
from results.rivals import middle, offsets, parts, rivals
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


def test_a_loss_is_taken_apart_at_its_scale() -> None:
    found = load_loss("4*lovasz + 3*log_miou + 1*cross_entropy")
    assert isinstance(found, MixedLoss)
    variants = parts.taken_apart(found)
    names = ["lovasz", "product", "cross-entropy"]
    assert [*variants] == [
        "found",
        *(f"without {name}" for name in names),
        *(f"{name} alone" for name in names),
        "without curves",
        "curves on AND alone",
        "curves on OR alone",
    ]
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(2, 4, 6, 5), torch.randint(4, (2, 6, 5))
    lovasz, product, entropy = (load_loss(name)(logits, labels) for name in ("lovasz", "log_miou", "cross_entropy"))
    jml = load_loss("jml")(logits, labels)
    for name, value in {
        "found": 4 * lovasz + 3 * product + entropy,
        "without lovasz": 6 * product + 2 * entropy,
        "without cross-entropy": 8 * (4 * lovasz + 3 * product) / 7,
        "product alone": 8 * product,
        "without curves": 4 * lovasz + 3 * jml + entropy,
        "curves on AND alone": 4 * lovasz + 3 * product + entropy,
        "curves on OR alone": 4 * lovasz + 3 * jml + entropy,
    }.items():
        assert variants[name](logits, labels).item() == pytest.approx(value.item(), rel=1e-5), name


def test_its_parts_are_trained_on_fresh_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.dump(CONFIG))
    loss = load_loss("4*lovasz + 4*log_miou")
    loss.provenance["learning_rate"] = 0.3
    loss.save(tmp_path / "loss.json")
    given = [str(path), str(tmp_path / "loss.json"), "2*lovasz", "2*lovasz@3", "--seeds", "2", "--out", str(tmp_path)]
    parts.main([*given, "--set", "search.offsets=true", "--leave-out", "alone"])
    assert capsys.readouterr().out.removesuffix("\n") == (tmp_path / "tiny_parts.md").read_text()
    summary = json.loads((tmp_path / "tiny_parts.json").read_text())
    proxy = rivals._proxy(str(path), ("search.offsets=true", f"search.seed={FRESH}"))
    names = ["found", "without lovasz", "without product", "without curves", "2*lovasz", "2*lovasz@3"]
    assert [each["name"] for each in summary["losses"]] == names
    found, *_, rival, faster = summary["losses"]
    assert rival["loss"] == faster["loss"]
    assert rival["values"] != faster["values"]
    for row, rate in ((found, 0.3), (rival, 1.0), (faster, 3.0)):
        (score,) = proxy.run_group([row["loss"]], summary["seeds"][1], True, [rate])
        assert not isinstance(score, Exception)
        assert score.validation["target"] == row["values"][1]
        assert score.validation["target with offsets"] == row["target with offsets"][1]
    for loss, rival, message in (
        ("lovasz", "2*lovasz", "lovasz: only a sum of losses can be taken apart"),
        ("lovasz + soft_dice", "2*lovasz@fast", "2*lovasz@fast: 'fast' is no factor of the learning rate"),
        ("lovasz + soft_dice", "2*lovasz@0", "2*lovasz@0: '0' is no factor of the learning rate"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parts.main([str(path), loss, rival, "--out", str(tmp_path)])
        assert message in capsys.readouterr().err
