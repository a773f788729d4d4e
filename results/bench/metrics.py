"""Speed and memory of the exact metrics, beside other libraries and the published formulas, in one run."""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import multiprocessing
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from autosegloss.errors import AutoseglossError, InputError
from autosegloss.metric import METRICS, Accumulators, metric
from autosegloss.proxy.train import one_thread
from autosegloss.report.bench.loss import IGNORED, VOID, Spread, digits, label_maps, spread_text
from autosegloss.report.environment import machine, packages
from results.common.script import run, script

Evaluate = Callable[[Tensor, Tensor], dict[str, float]]
"""Values by the name of the metric, of predicted and true labels (N, H, W)."""
Bools = npt.NDArray[np.bool_]

MODULE = "results.bench.metrics"
RADIUS: Final = 5
"""Tolerance of the boundary metrics, in pixels: the default of the catalogue."""
CLASSES: Final = 21
MEMORY_CLASSES: Final = 150
IMAGES: Final = 2
_STATUS, PEAKS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TURN: Final = 0.1
"""Seconds that a turn of a job takes at least: it then outlasts what the job before left in the caches."""
TOLERANCE: Final = 1e-5
"""How far the values of one task may lie apart: some peers divide in float32."""


@dataclass(frozen=True)
class Job:
    """One way to do a task.

    `start` takes the number of classes and builds what counts, which is not timed; what it returns is. `differs` says
    why the values are others than ours; where it is empty they must be equal. `needs` is the package to be installed.
    """

    name: str
    start: Callable[[int], Evaluate]
    differs: str = ""
    needs: str = ""


@dataclass(frozen=True)
class Task:
    """Metrics to be found, and the ways to find them; ours is the first."""

    title: str
    jobs: tuple[Job, ...]
    memory: bool = False


# The jobs -------------------------------------------------------------------------------------------------------------


def _ours(*names: str, **options: object) -> Callable[[int], Evaluate]:
    def start(num_classes: int) -> Evaluate:
        accumulators = Accumulators({name: metric(name, **options) for name in names}, num_classes, IGNORED)

        def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
            accumulators.update(prediction, target)
            return accumulators.values()

        return evaluate

    return start


# The evaluator published with Auto Seg-Loss: its formulas, on the CPU, image by image as there.


def _published_miou(num_classes: int) -> Evaluate:
    def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
        confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        for labels, truth in zip(prediction, target, strict=True):
            valid = truth < num_classes
            confusion += _confusion(labels[valid], truth[valid], num_classes)
        return {"miou": float(_ious(confusion).nanmean())}

    return evaluate


def _published_biou(num_classes: int) -> Evaluate:
    def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
        confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        for labels, truth in zip(torch.split(prediction, 1), torch.split(target, 1), strict=True):
            near = _pooled_dilation(_pooled_boundary(_one_hot(truth, num_classes)))
            region = (truth < num_classes) & near[:, 1:].amax(1).bool()
            confusion += _confusion(labels[region], truth[region], num_classes)
        return {"biou": float(_ious(confusion).nanmean())}

    return evaluate


def _published_bf1(num_classes: int) -> Evaluate:
    def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
        said, true, said_right, true_found = torch.zeros(4, num_classes)
        for labels, truth in zip(torch.split(prediction, 1), torch.split(target, 1), strict=True):
            edge = _pooled_boundary(_one_hot(labels, num_classes))
            true_edge = _pooled_boundary(_one_hot(truth, num_classes))
            said += edge.sum((0, 2, 3))
            true += true_edge.sum((0, 2, 3))
            said_right += (edge * _pooled_dilation(true_edge)).sum((0, 2, 3))
            true_found += (true_edge * _pooled_dilation(edge)).sum((0, 2, 3))
        precision, recall = said_right / (said + 1e-8), true_found / true
        f1 = 2 * precision * recall / (precision + recall + 1e-8)
        return {"bf1": float(f1[1:].nanmean())}

    return evaluate


def _confusion(labels: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixels by true class (rows) and predicted class, int64."""
    return torch.bincount(num_classes * truth + labels, minlength=num_classes**2).view(num_classes, num_classes)


def _ious(confusion: Tensor) -> Tensor:
    """IoU of each class, NaN for a class in neither map."""
    return confusion.diag() / (confusion.sum(0) + confusion.sum(1) - confusion.diag())


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Maps (N, C, H, W) of 0 and 1 in float32; an ignored pixel is 0 in all."""
    maps = torch.zeros(len(labels), num_classes + 1, *labels.shape[1:])
    return maps.scatter_(1, labels.clamp(max=num_classes).unsqueeze(1), 1.0)[:, :-1]


def _pooled_boundary(maps: Tensor) -> Tensor:
    """Pixels of a map that are not its mean over the 3x3 around them."""
    return maps * (maps != avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False))


def _pooled_dilation(maps: Tensor) -> Tensor:
    return max_pool2d(maps, 2 * RADIUS + 1, stride=1, padding=RADIUS)


# Other libraries, and what their formulas are.


def _histograms(prediction: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels right, predicted and true of each image and class, by three histograms as mmsegmentation and smp do."""

    def histogram(labels: Tensor) -> Tensor:
        return torch.histc(labels.float(), bins=num_classes, min=0, max=num_classes - 1)

    rows = []
    for labels, truth in zip(prediction, target, strict=True):
        valid = truth != IGNORED
        labels, truth = labels[valid], truth[valid]
        rows.append(torch.stack([histogram(labels[labels == truth]), histogram(labels), histogram(truth)]))
    right, said, true = torch.stack(rows, dim=1)
    return right, said, true


def _histogram_miou(num_classes: int) -> Evaluate:
    def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
        right, said, true = (rows.sum(0) for rows in _histograms(prediction, target, num_classes))
        return {"miou": float((right / (said + true - right)).nanmean())}

    return evaluate


def _histogram_miou_per_image(num_classes: int) -> Evaluate:
    def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
        right, said, true = _histograms(prediction, target, num_classes)
        iou = torch.where(true > 0, right / (said + true - right), torch.nan)
        return {"miou_i": float(iou.nanmean(1).nanmean()), "miou_c": float(iou.nanmean(0).nanmean())}

    return evaluate


def _torchmetrics(validate_args: bool) -> Callable[[int], Evaluate]:
    def start(num_classes: int) -> Evaluate:
        jaccard: Any = importlib.import_module("torchmetrics").JaccardIndex(
            task="multiclass",
            num_classes=num_classes,
            ignore_index=IGNORED,
            average="macro",
            validate_args=validate_args,
        )

        def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
            jaccard.update(prediction, target)
            return {"miou": float(jaccard.compute())}

        return evaluate

    return start


def _monai_confusion(num_classes: int) -> Evaluate:
    confusion: Any = importlib.import_module("monai.metrics").ConfusionMatrixMetric(
        metric_name="threat score", reduction="sum_batch", ignore_index=IGNORED
    )

    def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
        confusion(_one_hot(prediction, num_classes), _one_hot(target, num_classes))
        return {"miou": float(confusion.aggregate()[0].nanmean())}

    return evaluate


def _monai_iou(num_classes: int) -> Evaluate:
    iou: Any = importlib.import_module("monai.metrics").MeanIoU(get_not_nans=True, ignore_index=IGNORED)

    def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
        iou(_one_hot(prediction, num_classes), _one_hot(target, num_classes))
        classes, images = iou.aggregate("mean_batch")
        return {"miou_i": float(iou.aggregate("mean")[0]), "miou_c": float(classes[images > 0].mean())}

    return evaluate


def _monai_surface(distance: str) -> Callable[[int], Evaluate]:
    def start(num_classes: int) -> Evaluate:
        surface: Any = importlib.import_module("monai.metrics").SurfaceDiceMetric(
            class_thresholds=[float(RADIUS)] * (num_classes - 1), distance_metric=distance
        )

        def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of each class that an image does not have
                surface(_one_hot(prediction, num_classes), _one_hot(target, num_classes))
            return {"bf1": float(surface.aggregate("mean"))}

        return evaluate

    return start


# Distance transforms, of the classes that an image has.


def _distance_biou(num_classes: int) -> Evaluate:
    def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
        confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        for labels, truth in zip(prediction, target, strict=True):
            edges = np.zeros(truth.shape, bool)
            for number in range(1, num_classes):
                edges |= _eroded_boundary((truth == number).numpy())
            region = torch.from_numpy(_near(edges, _chessboard)) & (truth != IGNORED)
            confusion += _confusion(labels[region], truth[region], num_classes)
        return {"biou": float(_ious(confusion).nanmean())}

    return evaluate


def _distance_bf1(distance: Callable[[Bools], npt.NDArray[Any]]) -> Callable[[int], Evaluate]:
    def start(num_classes: int) -> Evaluate:
        def evaluate(prediction: Tensor, target: Tensor) -> dict[str, float]:
            said, true, said_right, true_found = np.zeros((4, num_classes))
            for labels, truth in zip(prediction.numpy(), target.numpy(), strict=True):
                for number in range(1, num_classes):
                    edge, true_edge = _eroded_boundary(labels == number), _eroded_boundary(truth == number)
                    said[number] += edge.sum()
                    true[number] += true_edge.sum()
                    said_right[number] += (edge & _near(true_edge, distance)).sum()
                    true_found[number] += (true_edge & _near(edge, distance)).sum()
            precision, recall = said_right / np.maximum(said, 1), true_found / np.maximum(true, 1)
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            return {"bf1": float(f1[true > 0].mean())}

        return evaluate

    return start


def _eroded_boundary(mask: Bools) -> Bools:
    if not mask.any():
        return mask
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3), bool), border_value=1)


def _near(edges: Bools, distance: Callable[[Bools], npt.NDArray[Any]]) -> Bools:
    near: Bools = distance(~edges) <= RADIUS if edges.any() else edges
    return near


def _euclidean(outside: Bools) -> npt.NDArray[Any]:
    distances: npt.NDArray[Any] = ndimage.distance_transform_edt(outside)
    return distances


def _chessboard(outside: Bools) -> npt.NDArray[Any]:
    distances: npt.NDArray[Any] = ndimage.distance_transform_cdt(outside, metric="chessboard")
    return distances


_SURFACE = (
    "a boundary pixel has one of 4 neighbours outside its class, and the image border is outside; Dice of the two "
    "boundaries in place of F1, per image and class, then averaged"
)
TASKS: Final = (
    Task(
        "mIoU over the data set (miou)",
        (
            Job("autosegloss", _ours("miou")),
            Job("published evaluator's formula: bincount of pairs", _published_miou),
            Job("formula of mmsegmentation and smp: three histc", _histogram_miou),
            Job("torchmetrics JaccardIndex", _torchmetrics(validate_args=True), needs="torchmetrics"),
            Job("torchmetrics JaccardIndex, validate_args=False", _torchmetrics(False), needs="torchmetrics"),
            Job("monai ConfusionMatrixMetric, with its one-hot", _monai_confusion, needs="monai"),
        ),
        memory=True,
    ),
    Task(
        "mIoU per image and per class (miou_i, miou_c)",
        (
            Job("autosegloss", _ours("miou_i", "miou_c")),
            Job("formula of mmsegmentation and smp: three histc", _histogram_miou_per_image),
            Job("monai MeanIoU, with its one-hot", _monai_iou, needs="monai"),
        ),
    ),
    Task(
        f"Trimap IoU, radius {RADIUS} (biou)",
        (
            Job("autosegloss", _ours("biou")),
            Job("published evaluator's formula: pooling", _published_biou),
            Job("scipy: a chessboard distance transform an image", _distance_biou),
        ),
    ),
    Task(
        f"Boundary F1, radius {RADIUS}, chessboard distance (bf1)",
        (
            Job("autosegloss", _ours("bf1")),
            Job("published evaluator's formula: pooling", _published_bf1),
            Job("scipy: two chessboard distance transforms a class", _distance_bf1(_chessboard)),
            Job(
                "monai SurfaceDiceMetric, with its one-hot",
                _monai_surface("chessboard"),
                differs=_SURFACE,
                needs="monai",
            ),
        ),
        memory=True,
    ),
    Task(
        f"Boundary F1, radius {RADIUS}, Euclidean distance (bf1)",
        (
            Job("autosegloss", _ours("bf1", shape="disk")),
            Job("scipy: two Euclidean distance transforms a class", _distance_bf1(_euclidean)),
            Job(
                "monai SurfaceDiceMetric, with its one-hot",
                _monai_surface("euclidean"),
                differs=_SURFACE,
                needs="monai",
            ),
        ),
    ),
    Task(f"All {len(METRICS)} names of the catalogue at once", (Job("autosegloss", _ours(*METRICS)),), memory=True),
)


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """What one job took.

    `seconds` are those of the processor for one image. `ratio` is the time of the job over that of ours in the same
    round; None where that is not decided, and for ours.
    """

    name: str
    values: dict[str, float]
    differs: str
    seconds: Spread
    ratio: Spread | None


@dataclass(frozen=True)
class Setting:
    """What was measured on."""

    repeats: int
    images: int
    side: int
    classes: int
    classes_in_an_image: float
    ignored: float
    memory_classes: int


@dataclass(frozen=True)
class Benchmark:
    """All that one run of the benchmark found."""

    command: str
    machine: dict[str, str]
    packages: dict[str, str]
    left_out: dict[str, str]
    setting: Setting
    tasks: dict[str, list[Timing]]
    memory_mib: dict[str, dict[str, float]]

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """All of it as tables to read."""
        return _markdown(self)


def bench_metrics(repeats: int, side: int, out: Path) -> Benchmark:
    """Time every job in turn, measure the memory of some, and write `metrics.json` and `metrics.md`.

    Args:
        repeats: Rounds, 2 or more; a round does each job of a task once, one after another.
        side: Height and width of the images in pixels, 16 or more.
        out: The folder to write to.

    Raises:
        InputError: An argument is out of range.
        AutoseglossError: A job that should give our values gives others; nothing is written then.
    """
    if repeats < 2:
        raise InputError(f"repeats must be 2 or more, got {repeats}: quartiles need as many.")
    if side < 16:
        raise InputError(f"side must be 16 pixels or more, got {side}.")
    left_out = unusable(job.needs for task in TASKS for job in task.jobs)
    tasks = [Task(t.title, tuple(j for j in t.jobs if j.needs not in left_out), t.memory) for t in TASKS]
    prediction, target = label_maps(IMAGES, CLASSES, side)
    present = sum(len(set(labels.unique().tolist()) - {IGNORED}) for labels in target) / IMAGES
    with one_thread():
        timings = {task.title: time_task(task, prediction, target, CLASSES, repeats) for task in tasks}
    benchmark = Benchmark(
        command=f"python -m {MODULE} --repeats {repeats} --side {side}",
        machine=machine() | {"threads used": "1"},
        packages=packages("autosegloss", "torch", "numpy", "scipy", "torchmetrics", "monai"),
        left_out=left_out,
        setting=Setting(repeats, IMAGES, side, CLASSES, present, VOID, MEMORY_CLASSES),
        tasks=timings,
        memory_mib=_memory(tasks, side),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(benchmark.to_json(), encoding="utf-8")
    (out / "metrics.md").write_text(benchmark.to_markdown(), encoding="utf-8")
    return benchmark


def time_task(task: Task, prediction: Tensor, target: Tensor, num_classes: int, repeats: int) -> list[Timing]:
    """Check that the jobs of a task agree, then time them in turn, each against ours in the same round.

    Processor time is what counts, on one thread: it leaves out the time in which another process had the core.
    """
    values = agreed_values(task, prediction, target, num_classes)
    passes = [math.ceil(TURN / _seconds(job, prediction, target, num_classes)) for job in task.jobs]
    seconds: list[list[float]] = [[] for _ in task.jobs]
    for _ in range(repeats):
        for job, times, number in zip(task.jobs, seconds, passes, strict=True):
            turn = [_seconds(job, prediction, target, num_classes) for _ in range(number)]
            times.append(sum(turn) / number / len(target))
    timings = []
    for job, times in zip(task.jobs, seconds, strict=True):
        ratio = Spread.of(theirs / own for theirs, own in zip(times, seconds[0], strict=True))
        shown = ratio if decided(ratio) and job is not task.jobs[0] else None
        timings.append(Timing(job.name, values[job.name], job.differs, Spread.of(times), shown))
    return timings


def decided(ratio: Spread) -> bool:
    """Whether a ratio says something: its quartiles lie closer together than its median lies to 1."""
    return ratio.high / ratio.low < max(ratio.median, 1 / ratio.median)


def _seconds(job: Job, prediction: Tensor, target: Tensor, num_classes: int) -> float:
    evaluate = job.start(num_classes)
    begun = time.process_time()
    evaluate(prediction, target)
    return time.process_time() - begun


def agreed_values(task: Task, prediction: Tensor, target: Tensor, num_classes: int) -> dict[str, dict[str, float]]:
    """The values that each job of a task finds.

    Raises:
        AutoseglossError: They are not ours, and the job does not say why.
    """
    values = {job.name: job.start(num_classes)(prediction, target) for job in task.jobs}
    own = values[task.jobs[0].name]
    for job in task.jobs:
        for name, value in values[job.name].items():
            if not job.differs and not math.isclose(value, own[name], rel_tol=0, abs_tol=TOLERANCE):
                raise AutoseglossError(
                    f"{task.title}: {job.name} gives {name} = {value:.6f}, and {task.jobs[0].name} {own[name]:.6f}. "
                    "They do not do the same; nothing is written."
                )
    return values


def unusable(needed: Iterable[str]) -> dict[str, str]:
    """Those of the packages needed that can't be imported, with the reason; an empty name needs none."""
    left_out = {}
    for package in sorted(set(needed) - {""}):
        try:
            importlib.import_module(package)
        except Exception as error:  # a damaged dependency of theirs raises anything
            absent = error.name if isinstance(error, ModuleNotFoundError) else None
            left_out[package] = (
                "not installed" if absent == package else f"lacks {absent}" if absent else f"damaged: {error}"
            )
    return left_out


def _memory(tasks: Iterable[Task], side: int) -> dict[str, dict[str, float]]:
    """MiB that one update needs beyond its input, by task and job; empty where the system does not tell."""
    if not PEAKS.exists():
        return {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([MODULE])
    measured: dict[str, dict[str, float]] = {}
    for task in tasks:
        for job in task.jobs if task.memory else ():
            with ProcessPoolExecutor(1, context) as process:  # a fresh one: no memory of another job to reuse
                peak = process.submit(_job_memory, task.title, job.name, side).result()
            measured.setdefault(task.title, {})[job.name] = peak
    return measured


def peak_memory(work: Callable[[], object]) -> float:
    """MiB by which the resident memory of this process rises during some work, at its highest; on Linux only.

    The kernel's own high-water mark is set back to the present memory first (`ru_maxrss` can't be, and holds the peak
    of the imports). It counts what PyTorch, NumPy and SciPy take alike.
    """
    PEAKS.write_text("5", encoding="ascii")
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None  # every Linux has both
    return int(found[1])


def _job_memory(title: str, name: str, side: int) -> float:
    job = next(job for task in TASKS if task.title == title for job in task.jobs if job.name == name)
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, 2**16)
    with one_thread():
        job.start(MEMORY_CLASSES)(*label_maps(1, MEMORY_CLASSES, 16))  # loads what is loaded on first use
        prediction, target = label_maps(1, MEMORY_CLASSES, side)
        evaluate = job.start(MEMORY_CLASSES)
        return peak_memory(lambda: evaluate(prediction, target))


_M_MMAP_THRESHOLD: Final = -3
"""Of glibc's `mallopt`: larger blocks go back to the system once free. Kept back, they would be used again unseen."""
# Markdown -------------------------------------------------------------------------------------------------------------


def _markdown(benchmark: Benchmark) -> str:
    setting = benchmark.setting
    size = f"{setting.side} x {setting.side}"
    lines = [
        "# Exact metrics: speed and memory",
        "",
        f"Written by `{benchmark.command}`.",
        "",
        f"- Machine: {listed(benchmark.machine)}.",
        f"- Packages: {listed(benchmark.packages)}.",
        *([f"- Left out: {listed(benchmark.left_out)}."] if benchmark.left_out else []),
        f"- Data: a batch of {setting.images} pairs of smooth random label maps (int64), {size}, {setting.classes} "
        f"classes of which an image has {setting.classes_in_an_image:.1f}, {setting.ignored:.0%} ignored.",
        f"- Time: of the processor, on one thread, from labels to value; medians [quartiles] of {setting.repeats} "
        "rounds, in each of which all ways of a task took their turn.",
        "- time / ours: taken round by round; above 1 ours is the faster. It is given where its quartiles lie closer "
        "together (as a ratio) than its median lies to 1; elsewhere it is not decided.",
        f"- The values of a task agree to {TOLERANCE:g}, which was checked before the timing; where a way means "
        "something else, a note says what.",
        "- Formulas of others are in words of our own: the published evaluator's (Auto Seg-Loss; there on a GPU), and "
        "that of mmsegmentation and segmentation_models_pytorch. Distance transforms skip classes an image does not "
        "have.",
    ]
    for title, timings in benchmark.tasks.items():
        lines += ["", f"## {title}", ""]
        lines += ["| | images / s | ms an image | time / ours | value |", "|---|---:|---:|---:|---|"]
        notes: list[str] = []
        for place, timing in enumerate(timings):
            if timing.differs:
                notes.append(f"{len(notes) + 1}. {timing.differs}.")
            mark = f" ({len(notes)})" if timing.differs else ""
            ratio = "1" if place == 0 else spread_text(timing.ratio) if timing.ratio else "not decided"
            values = ", ".join(f"{value:.4f}" for value in timing.values.values()) if len(timing.values) < 4 else "-"
            lines.append(
                f"| {timing.name}{mark} | {digits(1 / timing.seconds.median)} | "
                f"{spread_text(timing.seconds, 1e3)} | {ratio} | {values} |"
            )
        lines += ["", *notes] if notes else []
    lines += ["", "## Peak memory of one update", ""]
    if not benchmark.memory_mib:
        return "\n".join([*lines, "Not measured: it takes Linux.", ""])
    lines += [
        "MiB by which the resident memory rises above the input, at its highest during update and compute, of one "
        f"image {size} with {setting.memory_classes} classes; a fresh process each (the kernel's high-water mark, set "
        "back before; the allocator keeps nothing that is free).",
        "",
        "| task | | MiB |",
        "|---|---|---:|",
    ]
    for title, peaks in benchmark.memory_mib.items():
        lines += [f"| {title} | {name} | {peak:.1f} |" for name, peak in peaks.items()]
    return "\n".join([*lines, ""])


def listed(items: Mapping[str, str]) -> str:
    """Names and what they stand for, in a line."""
    return ", ".join(f"{name} {value}" for name, value in items.items())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "Exact metrics, beside torchmetrics, monai and published formulas.")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="rounds; default: 10")
    parser.add_argument("--side", type=int, default=512, metavar="PIXELS", help="size of the images; default: 512")
    run(parser, lambda given: bench_metrics(given.repeats, given.side, given.out).to_markdown(), arguments)


if __name__ == "__main__":
    main()
