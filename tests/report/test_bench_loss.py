"""The benchmark of losses: what is counted, what is refused, and the goals."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from autosegloss.cli import main
from autosegloss.metric import METRICS
from autosegloss.report import bench_loss
from autosegloss.report.bench import Spread, unusable
from autosegloss.report.bench_loss import GOALS, Case, Cost, Costs, Way, batch, cross_entropy, peak_allocated


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loss, "TURN", 1e-9)


def test_every_block_counts_toward_the_peak() -> None:
    logits, labels = torch.randn(2, 5, 64, 64, requires_grad=True), torch.randint(0, 5, (2, 64, 64))
    size = 2 * 5 * 64 * 64 * 4
    # The logarithms of the softmax, their gradient and that of the logits.
    assert peak_allocated(cross_entropy, logits, labels) == pytest.approx(3 * size, rel=0.01)
    assert peak_allocated(lambda x, y: x.sum(), logits, labels) == pytest.approx(size, rel=0.01)
    assert peak_allocated(lambda x, y: (x * x).sum(), logits, labels) >= 2 * size
    assert peak_allocated(lambda x, y: (torch.zeros(10 * size) + x.sum()).sum(), logits, labels) >= 40 * size


def test_the_batch_is_mostly_right_and_the_same_on_every_call() -> None:
    for shape in ((2, 5, 32, 48), (2, 4, 16, 20, 24)):
        logits, labels = batch(shape, "cpu", torch.float32)
        assert logits.shape == shape
        assert labels.shape == (shape[0], *shape[2:])
        again = batch(shape, "cpu", torch.float32)
        assert torch.equal(logits, again[0])
        assert torch.equal(labels, again[1])
        valid = labels != 255
        assert 0.6 < (logits.argmax(1) == labels)[valid].float().mean() < 0.98
        assert 0 < (~valid).float().mean() < 0.3


def test_all_losses_are_there_and_are_losses() -> None:
    ways = bench_loss.ways()
    named = {name for way in ways if way.kind == "autosegloss" for name in way.name.split(" = ")}
    assert named == set(METRICS)
    assert len({(way.kind, way.name) for way in ways}) == len(ways)
    logits, labels = batch((2, 5, 32, 32), "cpu", torch.float32)
    left_out = unusable(way.needs for way in ways)
    for way in ways:
        if way.kind != "compiled" and way.needs not in left_out:
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
        return bench_loss._reached(goal, "float32", [case])

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


def test_what_fails_or_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> bench_loss.Loss:
        raise RuntimeError("no\nway")

    shape = (1, 3, 32, 32)
    large = Way("large", "classic", lambda: cross_entropy)
    monkeypatch.setattr(bench_loss, "_memory", lambda device: 1e-3)
    case = bench_loss.measure([Way("broken", "classic", breaks), large], "cpu", "float32", "s", shape, 10)
    assert [x.failed for x in case.costs] == [
        "RuntimeError: no",
        "MemoryError: it would take 0 GiB; 0 GiB are allowed",
    ]


@pytest.mark.usefixtures("fused_path")
def test_where_the_time_goes_is_said_of_a_loss_above_its_goal() -> None:
    shape, size = (1, 3, 128, 128), GOALS[3].size
    assert GOALS[3].names == ("bf1",)
    both = [way for way in bench_loss.ways() if way.name in ("bf1", "trimap_iou = biou")]
    case = bench_loss.measure(both, "cpu", "float32", size, shape, 10)
    unlike = bench_loss.measure(both, "cpu", "float32", "another size", shape, 10)
    bf1 = case.costs[-1]
    assert bf1.seconds is not None
    assert set(bf1.profile) > {"loss/kernels/blocks.py", "loss/kernels/curves.py", "metric/morphology.py"}
    assert sum(bf1.profile.values()) == pytest.approx(1)
    assert list(bf1.profile.values()) == sorted(bf1.profile.values(), reverse=True)
    assert "loss/kernels/moments_cpu.py" not in bf1.profile
    assert [cost.profile for cost in unlike.costs] == [{}, {}]
    text = Costs("c", {}, {}, {}, 10, [case]).to_markdown()
    share = round(100 * bf1.profile["metric/morphology.py"])
    assert f"`metric/morphology.py` {share}%" in text


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "8000000000")
    arguments = ["--size", "1x3x32x32", "--dtype", "bfloat16", "--loss", "macc_i", "--loss", "lovasz"]
    assert main(["bench", "loss", *arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "loss.md").read_text(encoding="utf-8").strip() in printed
    found = json.loads((tmp_path / "loss.json").read_text(encoding="utf-8"))
    assert found["command"] == (
        "MALLOC_TRIM_THRESHOLD_=8000000000 "
        "autosegloss bench loss --repeats 10 --size 1x3x32x32 --dtype bfloat16 --loss macc_i --loss lovasz"
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
        (["--repeats", "9"], "repeats is 9; a median of 10 or more is wanted."),
        (["--size", "8x21x128"], "size 8x21x128 is none; one such as 8x21x256x256 is wanted"),
        (["--size", "1x300x32x32"], "size 1x300x32x32: an image or more, 2 to 254 classes"),
        (["--loss", "nothing"], "no loss starts with nothing; there are: gacc"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_bad_input_is_said_before_any_work(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "loss", *arguments, "--out", str(tmp_path / "out")]) == 2
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


def test_cross_entropy_is_that_of_torch() -> None:
    logits, labels = batch((1, 3, 32, 32), "cpu", torch.float32)
    assert cross_entropy(logits, labels) == functional.cross_entropy(logits, labels, ignore_index=255)
