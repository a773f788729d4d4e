"""Retraining: what it trains on and measures, stopped by SIGKILL and continued, in one process and in two."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autosegloss import METRICS, CalibrationError, SurrogateLoss, load_loss
from autosegloss.cli import main
from autosegloss.errors import InputError, RefusedError
from autosegloss.loss.file import read_loss
from autosegloss.proxy.data import Split, load_dataset
from autosegloss.proxy.networks import build_network
from autosegloss.proxy.train import initial_network, train
from autosegloss.search.retrain import file_names, retrain
from autosegloss.search.tables import VALIDATION
from autosegloss.search.tabulate import read_table
from tests import layouts

ITERATIONS = 40
CONFIG: dict[str, Any] = {
    "metric": "miou",
    "proxy": {"data": {"name": "nuclei"}, "network": {"name": "tests.networks:Drawing"}},
    "retrain": {"iterations": ITERATIONS, "batch_size": 4, "checkpoint_every": 4, "head_multiplier": 2.0},
}
TINY = CONFIG | {"retrain": CONFIG["retrain"] | {"iterations": 3}}
MIX = "0.25*cross_entropy + 0.75*jml"
WEIGHTS = "weights-0.25-cross_entropy-0.75-jml"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SECONDS = 120  # far beyond what a run takes


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "full.yaml"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SurrogateLoss, "fused", True)  # as in the processes that it is compared with
        retrain(CONFIG, [MIX], folder)
    return folder


def start(config: Path, folder: Path, *more: str, processes: int) -> subprocess.Popen[bytes]:
    launch = TORCHRUN if processes > 1 else []
    arguments = ["-m", "autosegloss.cli", "retrain", str(config), "--loss", MIX, "--out", str(folder), *more]
    return subprocess.Popen(
        [sys.executable, *launch, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(config: Path, folder: Path, *more: str, processes: int) -> str:
    process = start(config, folder, *more, processes=processes)
    output, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, error.decode()
    return output.decode()


def kill_after_a_checkpoint(config: Path, folder: Path, *more: str, processes: int) -> int:
    """The iteration of the checkpoint that is there when the run is killed."""
    process = start(config, folder, *more, processes=processes)
    path = folder / "checkpoint.pt"
    before, end = path.stat().st_mtime_ns if path.exists() else 0, time.monotonic() + SECONDS
    while not (path.exists() and path.stat().st_mtime_ns > before):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end
        time.sleep(0.001)
    # torchrun starts its processes in sessions of their own.
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if processes > 1 else []
    for pid in (process.pid, *map(int, ranks)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    content = path.read_bytes().split(b"\n", 1)[1]  # after its hash
    return torch.load(io.BytesIO(content), weights_only=True)["training"]["iteration"]


def results(folder: Path) -> dict[str, Any]:
    """The weights as bytes, and every number of the table."""
    table = json.loads((folder / "table.json").read_text())
    (seed,) = table["plan"]["seeds"]
    return {
        "runs": table["rows"][0]["runs"],
        "weights": (folder / f"weights-0.25-cross_entropy-0.75-jml-{seed}.pt").read_bytes(),
    }


@pytest.mark.slow
def test_killed_and_continued_it_ends_with_the_same_bytes(config: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    stops = [kill_after_a_checkpoint(config, folder, processes=1)]
    stops += [kill_after_a_checkpoint(config, folder, "--resume", processes=1)]
    assert 0 < stops[0] < stops[1] < ITERATIONS
    assert not list(folder.glob("weights-*.pt"))
    output = finish(config, folder, "--resume", processes=1)
    assert f"{4 * (stops[1] // 4 + 1)} of {ITERATIONS} iterations" in output
    assert f" {stops[0]} of {ITERATIONS} iterations" not in output  # it is not trained again
    assert results(folder) == results(undisturbed)
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.slow
def test_two_processes_killed_and_continued_end_with_the_same_bytes(config: Path, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "out"
    output = finish(config, whole, processes=2)
    assert output.count(f": {ITERATIONS} of {ITERATIONS} iterations") == 1, "the first process speaks alone"
    assert 0 < kill_after_a_checkpoint(config, folder, processes=2) < ITERATIONS
    finish(config, folder, "--resume", processes=2)
    assert results(folder) == results(whole)
    # What the two measured together, measured alone.
    table = json.loads((whole / "table.json").read_text())
    assert table["plan"]["processes"] == 2
    network = build_network("tests.networks:Drawing", 3, 3)
    network.load_state_dict(torch.load(next(whole.glob("weights-*.pt")), weights_only=True))
    scores_by_hand(network, table["rows"][0]["runs"][0])


def scores_by_hand(network: torch.nn.Module, found: dict[str, float]) -> None:
    validation = load_dataset("nuclei").validation
    labels, error = torch.from_numpy(validation.labels), CalibrationError(3)
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(validation.images).float() / 127.5 - 1)
    error.update(logits, labels)
    classes = {f"IoU of {name}" for name in ("background", "interior", "border")}
    assert set(found) == {"target", *METRICS, *classes, "ece"}
    assert found["gacc"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-5)
    assert found["ece"] == pytest.approx(error.compute(), abs=1e-5)


@pytest.mark.usefixtures("fused_path")
def test_it_trains_from_nothing_on_all_training_images_and_writes_all_there_is_to_know(undisturbed: Path) -> None:
    table = json.loads((undisturbed / "table.json").read_text())
    plan = table["plan"]
    (seed,) = plan["seeds"]
    nuclei = load_dataset("nuclei")
    whole = Split(
        np.concatenate([nuclei.train.images, nuclei.heldout.images]),
        np.concatenate([nuclei.train.labels, nuclei.heldout.labels]),
    )
    loss = read_loss(json.dumps(plan["definitions"][""][MIX]).encode(), "the file of the plan")
    network = initial_network("tests.networks:Drawing", 3, "scratch", None, seed=seed)
    train(network, whole, loss, seed=seed, iterations=ITERATIONS, batch_size=4, head_multiplier=2.0)
    written = torch.load(undisturbed / f"{WEIGHTS}-{seed}.pt", weights_only=True)
    assert all(torch.equal(weight, written[name]) for name, weight in network.state_dict().items())
    scores_by_hand(network, table["rows"][0]["runs"][0])
    assert plan["configurations"][""]["retrain"]["iterations"] == ITERATIONS
    assert (plan["processes"], plan["device"], plan["threads"], plan["weights"]) == (1, "cpu", 1, None)
    text = (undisturbed / "table.md").read_text()
    assert text.startswith(f"Validation set ({VALIDATION}), %: one run. Lower is better for ece.\n\n")
    assert "| loss | miou | miou_i | miou_c | ece |" in text
    assert "±" not in text


def test_several_losses_and_seeds_from_weights_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = build_network("tests.networks:Drawing", 3, 3).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    path, folder = tmp_path / "tiny.yaml", tmp_path / "out"
    start = {"regime": "checkpoint", "weights": str(tmp_path / "weights.pt")}
    path.write_text(json.dumps(TINY | {"proxy": TINY["proxy"] | {"start": start}}))
    load_loss("asl/voc/macc").save(tmp_path / "mine.json")
    losses = ["cross_entropy", str(tmp_path / "mine.json")]
    named = [part for loss in losses for part in ("--loss", loss)]
    # With this rate the weights stay those of the file.
    more = ["--seeds", "2", "--set", "retrain.learning_rate=1e-12", "--set", "retrain.precision=bfloat16"]
    assert main(["retrain", str(path), *named, *more, "--out", str(folder)]) == 0
    output = capsys.readouterr().out
    assert output.count(": 3 of 3 iterations\n") == 4
    assert f"Command: `autosegloss retrain {path} --loss cross_entropy --loss {losses[1]} --seeds 2 --set " in output
    table = json.loads((folder / "table.json").read_text())
    assert [row["loss"] for row in table["rows"]] == losses
    assert all(len(row["runs"]) == 2 for row in table["rows"])
    assert len(table["plan"]["weights"]) == 64
    files = sorted(folder.glob("*.pt"))
    mine = str(tmp_path / "mine").strip("/").replace("/", "-")
    assert {file.name for file in files} == {
        f"weights-{file_names([name])[0]}-{seed}.pt" for name in losses for seed in table["plan"]["seeds"]
    }
    assert mine[:60] in files[-1].name
    for file in files:
        for name, weight in torch.load(file, weights_only=True).items():
            if "1." not in name or "encoder" not in name:  # running statistics move
                torch.testing.assert_close(weight, weights[name], atol=1e-6, rtol=0)
    # Finished, it is not trained again; another plan is refused.
    again = main(["retrain", str(path), *named, *more, "--out", str(folder), "--resume"])
    assert again == 0
    assert "of 3 iterations" not in capsys.readouterr().out
    assert main(["retrain", str(path), *named, "--seeds", "1", "--out", str(folder), "--resume"]) == 2
    assert "holds another retraining" in capsys.readouterr().err


@pytest.mark.usefixtures("fused_path")
def test_a_loss_that_is_added_is_trained_alone(undisturbed: Path, tmp_path: Path) -> None:
    folder, told = tmp_path / "out", []
    shutil.copytree(undisturbed, folder)
    table = retrain(CONFIG, [MIX, "jml"], folder, resume=True, progress=lambda job, _: told.append(job.index))
    assert table is not None
    assert set(told) == {1}
    whole = retrain(CONFIG, [MIX, "jml"], tmp_path / "whole")
    assert table == whole
    for name in ("table.json", *(f"weights-{name}-{table.plan['seeds'][0]}.pt" for name in file_names([MIX, "jml"]))):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_weights_of_every_loss_have_a_safe_name_of_their_own() -> None:
    losses = ["jml", "JML", "jml.json", "../x y.json", "", "*", "/", "a" * 300, "a" * 299 + "b", "ü\n<b>", "-rf", ".."]
    names = file_names(losses)
    assert len({name.lower() for name in names}) == len(losses)
    assert names[:4] == ("jml", "JML-2", "jml-3", "x-y")
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,90}", name), name
    for number in range(len(losses)):  # a loss that is appended changes no other name
        assert names[:number] == file_names(losses[:number])


def test_if_every_run_fails_the_table_has_the_errors_and_the_status_is_1(tmp_path: Path, capsys: Any) -> None:
    config, out = tmp_path / "a.yaml", tmp_path / "out"
    config.write_text(json.dumps(TINY | {"retrain": TINY["retrain"] | {"learning_rate": 1e30}}))
    assert main(["retrain", str(config), "--loss", "cross_entropy", "--seeds", "2", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert f"SearchError: all 2 runs failed; {out}/table.md has the errors. First: `cross_entropy`: " in error
    (row,) = read_table(out).rows
    assert row.runs == (None, None)
    assert all(error.startswith("TrainingDiverged: training diverged: ") for error in row.errors)
    assert "2 of 2 runs failed. TrainingDiverged" in (out / "table.md").read_text()
    assert main(["compare", str(out)]) == 1
    assert "all 2 runs failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("losses", "seeds", "changes", "kind", "message"),
    [
        (["cross_entropi"], 1, {}, InputError, "`cross_entropi` is not a loss (did you mean `cross_entropy`?)"),
        ([], 1, {}, InputError, "losses must name at least one loss; give one with --loss NAME."),
        (["jml"], 0, {}, InputError, "seeds must be an integer of at least 1, got 0."),
        (
            ["jml"],
            1,
            {"retrain": {"precision": "float16"}},
            InputError,
            "must be float32 or bfloat16 on the CPU",
        ),
        (["jml"], 1, {"proxy": {"network": {"name": "nope"}}}, InputError, "unknown network `nope`"),
    ],
)
def test_what_cannot_be_retrained_is_refused_and_nothing_is_written(
    tmp_path: Path, losses: list[str], seeds: int, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        retrain(TINY | changes, losses, tmp_path / "out", seeds=seeds)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"resources\.gpus is 1, but torch .* finds no CUDA device"):
        retrain(TINY | {"resources": {"gpus": 1}}, ["jml"], tmp_path / "out")


def test_from_a_folder_in_the_layout_of_voc_to_a_retrained_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = layouts.voc(tmp_path / "VOC2012")
    out, trained, path = tmp_path / "out", tmp_path / "trained", tmp_path / "voc.yaml"
    data = {"name": "voc", "root": str(root), "size": 24, "heldout": 2, "cache": str(tmp_path / "cache")}
    config = {
        "metric": "miou",
        "proxy": {
            "data": data,
            "start": {"iterations": 2},
            "train": {"iterations": 2, "batch_size": 2, "augment": "full"},
        },
        "search": {"steps": 1, "samples": 2},
        "finalists": {"candidates": 1, "seeds": 2},
        "retrain": {"iterations": 3, "batch_size": 2, "data": {"size": 32}},
    }
    path.write_text(json.dumps(config))
    assert main(["search", str(path), "--runner", "serial", "--out", str(out), "--dry-run"]) == 0
    assert (
        "data       voc: 6 training, 2 held-out and 3 validation images of 24x24, 21 classes" in capsys.readouterr().out
    )
    assert main(["search", str(path), "--runner", "serial", "--out", str(out)]) == 0
    assert main(["export", str(out), "--out", str(tmp_path / "mine.json")]) == 0
    assert main(["retrain", str(path), "--loss", str(tmp_path / "mine.json"), "--out", str(trained)]) == 0
    found = json.loads((trained / "table.json").read_text())["rows"][0]["runs"][0]

    # By hand: pictures scaled until they just cover 32x32, their predictions brought to the size of the label maps.
    network = build_network("unet_small", 3, 21)
    network.load_state_dict(torch.load(next(trained.glob("weights-*.pt")), weights_only=True))
    right = counted = 0
    for name in (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split():
        picture = Image.open(root / "JPEGImages" / f"{name}.jpg")
        labels = np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png"))
        scale = 32 / min(picture.size)
        small = picture.resize((round(scale * picture.width), round(scale * picture.height)), Image.Resampling.BILINEAR)
        image = torch.from_numpy(np.asarray(small).copy()).movedim(-1, 0)[None] / 127.5 - 1
        with torch.no_grad():
            logits = torch.nn.functional.interpolate(network.eval()(image), size=labels.shape, mode="bilinear")
        counts = labels != 255
        right += int((logits.argmax(1)[0].numpy() == labels)[counts].sum())
        counted += int(counts.sum())
    assert found["gacc"] == pytest.approx(right / counted, abs=1e-9)
