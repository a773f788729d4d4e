"""The cost of a loss: what is counted, what is refused, and what the command prints."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

import autosegloss
from autosegloss.cli import main
from autosegloss.report import environment
from autosegloss.report.bench import loss as bench_loss
from autosegloss.report.bench.loss import batch, cross_entropy, peak_allocated
from autosegloss.version import VERSION


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
        logits, labels = batch(shape, torch.float32)
        assert logits.shape == shape
        assert labels.shape == (shape[0], *shape[2:])
        again = batch(shape, torch.float32)
        assert torch.equal(logits, again[0])
        assert torch.equal(labels, again[1])
        valid = labels != 255
        assert 0.6 < (logits.argmax(1) == labels)[valid].float().mean() < 0.98
        assert 0 < (~valid).float().mean() < 0.3


def test_what_fails_is_said() -> None:
    def breaks(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no\nway")

    measured = bench_loss.measure({"broken": breaks, "whole": cross_entropy}, "1x3x32x32", "float32", "cpu", 10)
    assert measured[1][0] == {"name": "broken", "failed": "RuntimeError: no"}
    table = bench_loss.to_markdown(*measured).splitlines()
    assert table[-2] == "| broken | - | RuntimeError: no | - |"
    assert table[-1].startswith("| whole | ")


def test_cross_entropy_is_that_of_torch() -> None:
    logits, labels = batch((1, 3, 32, 32), torch.float32)
    assert cross_entropy(logits, labels) == functional.cross_entropy(logits, labels, ignore_index=255)


def test_a_ratio_is_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = [second for scale in range(1, 11) for second in (2.0 * scale, scale)]  # a machine that slows down
    seconds = iter([*range(1, 11), 1.0, *rounds])  # of cross-entropy alone, of a first call, and of both in turn
    monkeypatch.setattr(bench_loss, "seconds", lambda *_: next(seconds))
    unit, (cost,) = bench_loss.measure({"one": cross_entropy}, "1x3x32x32", "float32", "cpu", 10)
    assert unit["seconds"] == [5.5, 3.25, 7.75]
    assert cost["time"] == [2, 2, 2]
    assert cost["seconds"] == [11, 6.5, 15.5]
    assert cost["memory"] == pytest.approx(1)


def test_a_turn_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([0.1, 0.3, 0.2, 9.0])
    monkeypatch.setattr(bench_loss, "seconds", lambda *_: next(spent))
    monkeypatch.setattr(bench_loss, "TURN", 0.6)
    assert bench_loss._turn(cross_entropy, *batch((1, 3, 32, 32), torch.float32)) == pytest.approx(0.2)


def test_the_command_prints_a_row_for_each_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "mine.json")
    autosegloss.SurrogateLoss("miou").save(file)
    names = ["macc_i", "weighted_cross_entropy", "asl/voc/miou", "0.25*cross_entropy + 0.75*jml", file]
    given = [part for name in names for part in ("--loss", name)]
    assert main(["bench", "loss", "--size", "1x3x32x32", "--dtype", "bfloat16", *given]) == 0
    printed = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in printed.splitlines() if line.startswith("| ")][1:] == [
        f"| {name}" for name in names
    ]
    assert "Forward and backward of logits 1x3x32x32 in bfloat16; medians [quartiles] of 10 rounds" in printed


def test_losses_are_chosen_where_none_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "loss", "--size", "1x3x32x32"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {name} | " in printed for name in bench_loss.LOSSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "2"], "repeats must be 3 or more, got 2."),
        (["--size", "8x21x128"], "size must be images x classes x height x width, such as 8x21x256x256, got 8x21x128."),
        (["--size", "1x300x32x32"], "size 1x300x32x32 must have 1 image or more, 2 to 254 classes and sides of 16"),
        (["--loss", "lovas"], "`lovas` is not a loss (did you mean `lovasz`?)"),
        (["--dtype", "int8"], "invalid choice"),
        (["--dtype", "float16"], "float16 is measured on CUDA only"),
        (["--device", "cuda"], "finds no CUDA device"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "CUDA device" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["bench", "loss", "--size", "1x3x32x32", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_version_of_the_package_is_that_of_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of metadata, which an environment that points to a clone may have from an older one."""
    monkeypatch.setattr(environment, "version", lambda package: "0.0.1")
    assert environment.packages("autosegloss", "torch").items() >= {"autosegloss": VERSION, "torch": "0.0.1"}.items()
