"""Classes by name in a configuration: numbers once the data is known, and names wherever people read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autosegloss.cli import main
from autosegloss.errors import InputError
from autosegloss.loss import load_loss
from autosegloss.metric import metric
from autosegloss.metric.settings import guard_metrics, guard_shares, spec_label
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import as_config, load_config
from tests.faulty import TINY

NAMES = ("background", "interior", "border")  # of the nuclei of `TINY`
CONFIG: dict[str, Any] = TINY | {
    "metric": "iou(interior)",
    "guard": {
        "miou": 0.1,
        "iou(border)": 0.2,
        "thin": {"expression": "miou(classes=[border, interior])", "share": 0.3},
    },
    "search": {"steps": 1, "samples": 2},
}


def command(tmp_path: Path, action: str, *more: str, **changes: Any) -> list[str]:
    path = tmp_path / "named.yaml"
    path.write_text(json.dumps(CONFIG | changes))
    return [action, str(path), "--runner", "serial", "--out", str(tmp_path / action), *more]


def test_a_search_for_a_class_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "search")) == 0
    told = capsys.readouterr().out
    assert "searching for a loss for iou(interior); " in told
    out, text = tmp_path / "search", str(metric("iou(1)"))
    thin = str(metric("miou(classes=[1, 2])"))
    kept = load_config(out / "config.yaml")  # with numbers, so that it needs no data
    assert kept.metric == {"name": "iou(interior)", "expression": text}
    assert kept.guard == {
        "miou": 0.1,
        "iou(border)": {"expression": str(metric("iou(2)")), "share": 0.2},
        "thin": {"expression": thin, "share": 0.3},
    }
    assert spec_label(kept.metric) == "iou(interior)"
    content = load_loss(out / "loss.json").content()
    assert content.get("metric", text) == text
    assert content["provenance"]["configuration"]["metric"] == kept.metric  # what was written, too
    outcomes = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    measured = [line["metrics"] for line in outcomes if line.get("metrics")]
    assert measured
    assert all({"iou(border)", "thin", "miou"} <= metrics.keys() for metrics in measured)
    before = (out / "loss.json").read_bytes()
    assert main(command(tmp_path, "search", "--resume")) == 0
    assert (out / "loss.json").read_bytes() == before
    assert main(["status", str(out)]) == 0
    assert "iou(interior): finished" in capsys.readouterr().out


def test_a_comparison_names_its_columns(tmp_path: Path) -> None:
    columns = ["iou(border)", {"name": "thin", "expression": "miou(classes=[border, interior], weights=[1, 2])"}]
    compared = {"losses": ["cross_entropy", "jml"], "seeds": 2, "steps": [1], "metrics": columns}
    assert main(command(tmp_path, "compare", compare=compared)) == 0
    table = json.loads((tmp_path / "compare/table.json").read_text())
    for row in table["rows"]:
        for run in row["runs"]:
            assert run["iou(border)"] == pytest.approx(run["IoU of border"])
            assert run["target"] == pytest.approx(run["IoU of interior"])
            assert run["thin"] == pytest.approx((run["IoU of border"] + 2 * run["IoU of interior"]) / 3)
    assert "| loss | iou(interior) | iou(border) | thin |" in (tmp_path / "compare/table.md").read_text()


KNOWN = "the classes of the data are 0 `background`, 1 `interior`, 2 `border`."


def test_an_unknown_class_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guess = f"unknown class `borders` (did you mean `border`?); {KNOWN}"
    weights = "there are 2 weights for 3 classes"
    for action, changes, expected in [
        ("search", {"metric": "iou(borders)"}, guess),
        ("search", {"guard": {"iou(borders)": 0.5}}, guess),
        ("search", {"metric": "iou(3)"}, f"class 3 does not exist; {KNOWN}"),
        ("search", {"guard": {"iou(3)": 0.5}}, f"`iou(3)`: class 3 does not exist; {KNOWN}"),
        ("search", {"metric": "dice(weights=[1, 2])"}, weights),
        ("compare", {"compare": {"losses": ["jml", "dml"], "metrics": ["iou(borders)"]}}, guess),
        ("retrain", {"metric": "iou(borders)"}, guess),
    ]:
        arguments = command(tmp_path, action, **changes)
        if action == "retrain":
            arguments = [*arguments[:2], "--out", str(tmp_path / action), "--loss", "jml"]
        assert main(arguments) == 2, action
        assert expected in capsys.readouterr().err
        assert not list(tmp_path.glob("*/*.json*")), "nothing was written"
    changes = {
        "metric": "iou(borders)",
        "guard": {"iou(curve)": 1},
        "compare": {"metrics": ["iou(blob)", "iou(border)"]},
    }
    assert main(command(tmp_path, "search", "--dry-run", **changes)) == 2
    told = capsys.readouterr().err
    assert "unknown class `borders`" in told
    assert "unknown class `blob`" in told


def test_a_proxy_resolves_its_target() -> None:
    config = as_config(CONFIG | {"metric": {"name": "small", "expression": "1 - iou(border)"}})
    proxy = proxy_of(config)
    assert proxy.target is metric("1 - iou(2)")
    assert proxy.guarded == {"iou(border)": metric("iou(2)"), "thin": metric("miou(classes=[1, 2])")}
    with pytest.raises(InputError, match="unknown class `borders`"):
        proxy_of(as_config(CONFIG | {"metric": "iou(borders)"}))


def test_what_has_no_names_stays_as_it_is_written() -> None:
    plain = as_config({"metric": {"name": "bf1", "radius": 2}, "guard": {"miou": 0.9, "iou( 2 )": 0.5}})
    assert plain.with_class_numbers(NAMES) == plain
    assert not plain.names_classes
    assert guard_shares(plain.guard) == {"miou": 0.9, "iou( 2 )": 0.5}
    assert list(guard_metrics(plain.guard)) == ["iou( 2 )"]
    config = as_config({"metric": {"name": "dice", "classes": ["border", 1]}})
    assert config.names_classes
    assert spec_label(config.metric) == "dice(classes=[border, 1])"
    found = config.with_class_numbers(NAMES)
    assert metric(found.metric) is metric("dice(classes=[1, 2])")
    assert found.with_class_numbers(NAMES) == found
    assert as_config({"metric": found.metric}).metric == found.metric
    long = as_config({"metric": " + ".join(["0.1 * iou(border)"] * 10)}).with_class_numbers(NAMES)
    assert isinstance(long.metric, str)  # its label would be too long for a name
    assert metric(long.metric) is metric(" + ".join(["0.1 * iou(2)"] * 10))
