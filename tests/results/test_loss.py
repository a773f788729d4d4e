"""The benchmark of losses beside those of other packages: what is refused, the goals, and where the time goes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autosegloss.metric import METRICS
from autosegloss.report.bench import loss as bench_loss
from autosegloss.report.bench.loss import Case, Cost, Spread, batch, measure
from results.bench import loss as script
from results.bench.loss import GOALS, Costs, needs, profiles, ways
from results.bench.metrics import unusable


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loss, "TURN", 1e-9)


def test_all_losses_are_there_and_are_losses() -> None:
    there = ways()
    named = {name for way in there if way.kind == "autosegloss" for name in way.name.split(" = ")}
    assert named == set(METRICS)
    assert len({(way.kind, way.name) for way in there}) == len(there)
    logits, labels = batch((2, 5, 32, 32), "cpu", torch.float32)
    left_out = unusable(map(needs, there))
    for way in there:
        if way.kind != "compiled" and needs(way) not in left_out:
            given = labels if way.ignores else labels.masked_fill(labels == 255, 0)
            value = way.start()(logits, given)
            (gradient,) = torch.autograd.grad(value, logits)
            assert bool(gradient.isfinite().all()), way.name
            assert gradient.norm() > 0, way.name


def cost(name: str, time: float | None, memory: float = 1.0) -> Cost:
    spread = None if time is None else Spread(time, time, time)
    return Cost("autosegloss", name, Spread(1, 1, 1), spread, memory)


def test_the_worst_loss_of_a_goal_counts() -> None:
    goal = GOALS[0]
    costs = [cost(name, 2.0) for name in goal.names]

    def reached(costs: list[Cost]) -> tuple[str, str]:
        case = Case("cpu", "float32", goal.size, Spread(1, 1, 1), 1, costs)
        return script._reached(goal, "float32", [case])

    assert reached([*costs[1:], cost(goal.names[0] + " = other", 3.1, 1.2)]) == (
        f"3.10 ({goal.names[0]} = other): no",
        f"1.20 ({goal.names[0]} = other): yes",
    )
    assert reached([*costs[1:], cost(goal.names[0], None)])[0] == "unsure"
    assert reached(costs[1:]) == ("not measured", "not measured")
    assert reached([*costs[1:], Cost("autosegloss", goal.names[0], failed="it would take 99 GiB")])[0] != "yes"


def test_a_ratio_that_scatters_is_not_shown() -> None:
    assert Spread(2, 1.6, 2.5).sure
    assert not Spread(2, 1.4, 2.5).sure
    case = Case("cpu", "float32", "s", Spread(1, 1, 1), 1, [cost("miou", None)])
    assert "| unsure |" in Costs("c", {}, {}, {}, 10, [case]).to_markdown()


@pytest.mark.usefixtures("fused_path")
def test_where_the_time_goes_is_said_of_a_loss_above_its_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    size = "1x3x128x128"
    goal = replace(GOALS[3], size=size)
    assert goal.names == ("bf1",)
    monkeypatch.setattr(script, "GOALS", (goal,))
    both = [way for way in ways() if way.name in ("bf1", "biou")]
    case = measure(both, "cpu", "float32", size, 10)
    (bf1,) = profiles(case, both)
    assert bf1.name == "bf1"
    assert set(bf1.shares) > {"loss/kernels/blocks.py", "loss/kernels/curves.py", "metric/morphology.py"}
    assert sum(bf1.shares.values()) == pytest.approx(1)
    assert list(bf1.shares.values()) == sorted(bf1.shares.values(), reverse=True)
    assert "loss/kernels/moments_cpu.py" not in bf1.shares
    assert profiles(measure(both, "cpu", "float32", "1x3x64x64", 10), both) == []
    text = Costs("c", {}, {}, {}, 10, [case], [bf1]).to_markdown()
    share = round(100 * bf1.shares["metric/morphology.py"])
    assert f"`metric/morphology.py` {share}%" in text


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "8000000000")
    arguments = ["--size", "1x3x32x32", "--dtype", "bfloat16", "--loss", "macc_i", "--loss", "lovasz"]
    script.main([*arguments, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "loss.md").read_text(encoding="utf-8").strip() in printed
    found = json.loads((tmp_path / "loss.json").read_text(encoding="utf-8"))
    assert found["command"] == (
        "MALLOC_TRIM_THRESHOLD_=8000000000 "
        "python -m results.bench.loss --repeats 10 --size 1x3x32x32 --dtype bfloat16 --loss macc_i --loss lovasz"
    )
    cases = [case for case in found["cases"] if case["device"] == "cpu"]
    assert [(case["dtype"], case["size"]) for case in cases] == [("bfloat16", "1x3x32x32")]
    names = [one["name"] for one in cases[0]["costs"]]
    assert names[0] == "macc_i = recall_i"
    assert "lovasz" in names
    assert cases[0]["costs"][0]["memory"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "9"], "repeats must be 10 or more, got 9"),
        (["--size", "8x21x128"], "size must be images x classes x height x width, such as 8x21x256x256, got 8x21x128"),
        (["--size", "1x300x32x32"], "size 1x300x32x32 must have 1 image or more, 2 to 254 classes"),
        (["--loss", "nothing"], "no loss starts with nothing; there are: gacc"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_bad_input_is_said_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main([*arguments, "--out", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_package_that_lacks_another_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking.py").write_text("import nowhere_to_be_found", encoding="utf-8")
    (tmp_path / "damaged.py").write_text("raise OSError('torn')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert unusable(["lacking", "damaged", "absent_altogether", "json", ""]) == {
        "absent_altogether": "not installed",
        "damaged": "damaged: torn",
        "lacking": "lacks nowhere_to_be_found",
    }
    sys.modules.pop("lacking", None)
