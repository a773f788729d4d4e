"""The benchmark of losses beside those of other packages: all are there, where the time goes, and what is written."""

import json
from pathlib import Path

import pytest
import torch

from autosegloss.metric import METRICS
from autosegloss.report.bench import loss as bench_loss
from autosegloss.report.bench.loss import batch, surrogate
from results.bench import loss as script


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loss, "TURN", 1e-9)


def test_all_losses_are_there_and_are_losses() -> None:
    ours, (peers, left_out) = script.of_this_package(), script.of_others()
    assert set(METRICS) <= {name for names in ours for name in names.split(" = ")}
    assert {name.split()[0] for name in peers} == set(script.PEERS) - set(left_out)
    logits, labels = batch((2, 5, 32, 32), torch.float32)
    for name, loss in (ours | peers).items():
        if not name.endswith("compiled"):
            (gradient,) = torch.autograd.grad(loss(logits, labels), logits)
            assert bool(gradient.isfinite().all()), name
            assert gradient.norm() > 0, name


@pytest.mark.usefixtures("fused_path")
def test_the_shares_of_the_time_are_of_the_modules_at_work() -> None:
    shares = script.profiled(surrogate("bf1"), *batch((1, 3, 128, 128), torch.float32))
    assert set(shares) > {"loss/kernels/blocks.py", "loss/kernels/curves.py", "metric/morphology.py"}
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert "loss/kernels/moments_cpu.py" not in shares


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "8000000000")
    monkeypatch.setattr(script, "of_this_package", lambda: {"lovasz": script.named_loss("lovasz")})
    script.main(["--size", "1x3x32x32", "--dtype", "bfloat16", "--out", str(tmp_path)])
    assert (tmp_path / "loss.md").read_text(encoding="utf-8") in capsys.readouterr().out
    found = json.loads((tmp_path / "loss.json").read_text(encoding="utf-8"))
    assert found["command"] == (
        "MALLOC_TRIM_THRESHOLD_=8000000000 python -m results.bench.loss --repeats 10 --size 1x3x32x32 --dtype bfloat16"
    )
    assert found["costs"][0]["name"] == "lovasz"
    assert found["costs"][0]["memory"] > 0
    assert set(found["shares"]) == set(script.PROFILED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "2"], "repeats must be 3 or more, got 2"),
        (["--size", "8x21x128"], "size must be images x classes x height x width, such as 8x21x256x256, got 8x21x128"),
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
