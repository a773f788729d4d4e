"""The benchmark of proxies: run for real at a small size, and a rate by hand."""

from pathlib import Path

import pytest
import torch

from autosegloss.cli import main
from autosegloss.report.bench import proxies as bench_proxies


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_proxies, "HELD_OUT", 8)


def test_it_measures_and_prints(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["proxy.data.size=16", "proxy.train.batch_size=4", "proxy.train.iterations=100"]
    changed = [part for each in sets for part in ("--set", each)]
    trials = ["--trials", "1", "--trials", "3", "--iterations", "2"]
    assert main(["bench", "proxies", str(tiny_config), *changed, *trials]) == 0
    printed = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["1", "3"]
    assert all(float(row[1]) > 0 and float(row[3]) > 0 for row in rows)
    assert "100 iterations of 4 images of 16x16, float32; then 8 images" in printed


def test_a_rate_by_hand() -> None:
    assert bench_proxies.hourly(4, 100, 0.5, 10.0) == pytest.approx(3600 * 4 / (50 + 40))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "proxy.data.size must be the side of the images in pixels, got None"),
        (["--set", "proxy.data.size=16", "--trials", "0"], "trials and iterations must be 1 or more, got [0] and 20"),
        (
            ["--set", "proxy.data.size=16", "--iterations", "0"],
            "must be 1 or more, got [1, 4] and 0",
        ),
        (["--set", "proxy.data.size=16", "--set", "resources.gpus=1"], "finds no CUDA device"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "CUDA" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["bench", "proxies", str(tiny_config), *arguments]) == 2
    assert message in capsys.readouterr().err
