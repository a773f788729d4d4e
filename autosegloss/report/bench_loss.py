"""What losses cost: time and memory of a forward and a backward pass, as ratios to cross-entropy."""

from __future__ import annotations

import cProfile
import importlib
import json
import math
import os
import pstats
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from autosegloss.errors import InputError
from autosegloss.loss import SurrogateLoss
from autosegloss.loss.named import named_loss
from autosegloss.loss.relax import slots
from autosegloss.metric import METRICS, metric
from autosegloss.proxy.train import one_thread
from autosegloss.report.bench import IGNORED, Spread, digits, label_maps, listed, spread_text, unusable
from autosegloss.report.machine import machine, memory, packages

Loss = Callable[[Tensor, Tensor], Tensor]
"""A scalar of logits (N, C, *S) and labels (N, *S)."""

POINTS: Final = ((0.2, 0.5), (0.4, 0.6), (0.7, 0.9))
"""Control points of every curve: two pieces, far from the identity."""
SIZES: Final = ("8x21x128x128", "8x21x256x256", "8x21x512x512", "4x150x512x512", "2x4x96x96x96")
DTYPES: Final = ("float32", "bfloat16", "float16")
POINTWISE: Final = ("miou", "fwiou", "macc", "gacc", "dice", "tversky")
TURN: Final = 0.05
"""Seconds that a turn of a loss takes at least: it then outlasts what the one before left in the caches."""
_SHRUNK: Final = 4  # times smaller along each axis of the image is what tells the memory to expect
_SHARE: Final = 0.4  # of the memory there is that a loss may take
_LEAST: Final = 0.02  # of the time, that is listed


@dataclass(frozen=True)
class Way:
    """A loss to be measured.

    `start` builds it, which is not timed. `needs` is the package to be installed, `kind` what it is listed under.
    """

    name: str
    kind: str
    start: Callable[[], Loss]
    needs: str = ""
    ignores: bool = True
    """Whether it takes ignored pixels; else they are of class 0."""


def ways() -> tuple[Way, ...]:
    """All losses there are to measure: ours, ours compiled, classics, and those of other packages."""
    names: dict[object, list[str]] = {}
    for name in METRICS:
        names.setdefault(metric(name), []).append(name)
    ours = [Way(" = ".join(same), "autosegloss", partial(surrogate, same[0])) for same in names.values()]
    compiled = [Way(name, "compiled", partial(_compiled, name)) for name in POINTWISE if shutil.which("c++")]
    classics = [
        Way(name, "classic", partial(named_loss, name))
        for name in ("cross_entropy", "focal", "lovasz", "generalized_dice", "jml", "dml")
    ]
    smp, monai = "segmentation_models_pytorch", "monai"
    peers = [
        *(Way(f"{name}Loss", smp, partial(_of_smp, f"{name}Loss"), smp) for name in ("Dice", "Tversky", "Lovasz")),
        Way("JaccardLoss", smp, partial(_of_smp, "JaccardLoss"), smp, ignores=False),
        Way("DiceLoss", monai, partial(_of_monai, "DiceLoss"), monai, ignores=False),
        Way("DiceLoss, jaccard=True", monai, partial(_of_monai, "DiceLoss", jaccard=True), monai, ignores=False),
        Way("TverskyLoss", monai, partial(_of_monai, "TverskyLoss"), monai, ignores=False),
        *(
            Way(name, "kornia", partial(_of_kornia, name, *more), "kornia", ignores=False)
            for name, *more in (("dice_loss",), ("tversky_loss", 0.3, 0.7), ("lovasz_softmax_loss",))
        ),
    ]
    return (*ours, *compiled, *classics, *peers)


def surrogate(name: str) -> SurrogateLoss:
    """The loss of a metric of the catalogue under curves of two pieces."""
    expr = metric(name)
    return SurrogateLoss(expr, [POINTS] * len(slots(expr)), ignore_index=IGNORED)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """What all others are measured by."""
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED)


def _compiled(name: str) -> Loss:
    torch.compiler.reset()
    compiled: Loss = torch.compile(surrogate(name))
    return compiled


def _of_smp(name: str) -> Loss:
    losses: Any = importlib.import_module("segmentation_models_pytorch").losses
    options = {} if name == "JaccardLoss" else {"ignore_index": IGNORED}
    loss: Loss = getattr(losses, name)(mode="multiclass", **options)
    return loss


def _of_monai(name: str, **options: bool) -> Loss:
    losses: Any = importlib.import_module("monai.losses")
    loss: Loss = getattr(losses, name)(softmax=True, to_onehot_y=True, **options)
    return lambda logits, labels: loss(logits, labels.unsqueeze(1))


def _of_kornia(name: str, *options: float) -> Loss:
    loss: Any = getattr(importlib.import_module("kornia").losses, name)
    return lambda logits, labels: loss(logits, labels, *options)


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a loss took, beside cross-entropy.

    `seconds` are those of a forward and a backward pass. `time` is their ratio to those of cross-entropy in the same
    round; None where that is not sure. `memory` is the ratio of the peaks of what is allocated meanwhile, the gradient
    of the logits with it. `failed` says why there is neither. `profile` is where the time goes, in shares by module, of
    a loss that takes longer than a goal.
    """

    kind: str
    name: str
    seconds: Spread | None = None
    time: Spread | None = None
    memory: float | None = None
    failed: str = ""
    profile: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What losses were measured on, and what they took."""

    device: str
    dtype: str
    size: str
    seconds: Spread
    """Of cross-entropy."""
    mebibytes: float
    """Peak of cross-entropy."""
    costs: list[Cost]


@dataclass(frozen=True)
class Goal:
    """Ratios to cross-entropy that were aimed at; the worst of the losses counts."""

    title: str
    device: str
    dtypes: tuple[str, ...]
    size: str
    kind: str
    names: tuple[str, ...]
    time: float
    memory: float

    def counts(self, device: str, dtype: str, size: str, kind: str, name: str) -> bool:
        """Whether a loss under these circumstances is one of those that are aimed at."""
        case = device == self.device and dtype in self.dtypes and size == self.size
        return case and kind == self.kind and not set(name.split(" = ")).isdisjoint(self.names)


_SMALL, _LARGE = "8x21x256x256", "8x21x512x512"
GOALS: Final = (
    Goal("CPU, eager, pointwise", "cpu", ("float32",), _SMALL, "autosegloss", POINTWISE, 3, 1.2),
    Goal("CPU, compiled, pointwise", "cpu", ("float32",), _SMALL, "compiled", POINTWISE, 1.8, 1.2),
    Goal("CPU, eager, BIoU", "cpu", ("float32",), _SMALL, "autosegloss", ("biou",), 4, 2),
    Goal("CPU, eager, BF1", "cpu", ("float32",), _SMALL, "autosegloss", ("bf1",), 12, 4),
    Goal("CUDA, pointwise", "cuda", ("float32", "bfloat16"), _LARGE, "autosegloss", POINTWISE, 0.8, 0.7),
    Goal("CUDA, BF1", "cuda", ("float32", "bfloat16"), _LARGE, "autosegloss", ("bf1",), 4, 3),
)


@dataclass(frozen=True)
class Costs:
    """All that one run of the benchmark found."""

    command: str
    machine: dict[str, str]
    packages: dict[str, str]
    left_out: dict[str, str]
    rounds: int
    cases: list[Case] = field(default_factory=list)

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """All of it as tables to read."""
        return _markdown(self)


def bench_loss(rounds: int, sizes: Sequence[str], dtypes: Sequence[str], names: Sequence[str], out: Path) -> Costs:
    """Time every loss in turn with cross-entropy, measure its memory, and write `loss.json` and `loss.md`.

    Args:
        rounds: How often, 10 or more.
        sizes: Shapes of the logits, as in `8x21x256x256`: images, classes, and two or three axes of 16 pixels or more.
        dtypes: Of the logits, some of `DTYPES`; float16 is measured on CUDA only.
        names: The losses to measure, by the start of their name; none: all.
        out: The folder to write to.

    Raises:
        InputError: An argument is out of range.
    """
    if rounds < 10:
        raise InputError(f"repeats is {rounds}; a median of 10 or more is wanted.")
    shapes = {size: _shape(size) for size in sizes}
    if wrong := set(dtypes) - set(DTYPES):
        raise InputError(f"dtype {', '.join(sorted(wrong))} is not measured; allowed: {', '.join(DTYPES)}.")
    chosen = [way for way in ways() if not names or way.name.startswith(tuple(names))]
    if not chosen:
        raise InputError(f"no loss starts with {', '.join(names)}; there are: {'; '.join(way.name for way in ways())}.")
    left_out = unusable(way.needs for way in chosen)
    if not shutil.which("c++"):
        left_out["torch.compile"] = "no C++ compiler"
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    options = [f"--{key} {x}" for key, some in (("size", sizes), ("dtype", dtypes), ("loss", names)) for x in some]
    allocator = [f"{name}={x}" for name, x in sorted(os.environ.items()) if name.startswith("MALLOC_")]  # of glibc
    about = machine() | {"threads used": "1", "GPU": torch.cuda.get_device_name() if devices[1:] else "none"}
    costs = Costs(
        command=" ".join([*allocator, f"autosegloss bench loss --repeats {rounds}", *options]),
        machine=about,
        packages=packages("autosegloss", "torch", "triton", "segmentation_models_pytorch", "monai", "kornia"),
        left_out=left_out,
        rounds=rounds,
    )
    out.mkdir(parents=True, exist_ok=True)
    usable = [way for way in chosen if way.needs not in left_out]
    for device in devices:
        for dtype in dtypes:
            for size, shape in shapes.items() if (device, dtype) != ("cpu", "float16") else ():
                with one_thread():
                    costs.cases.append(measure(usable, device, dtype, size, shape, rounds))
                (out / "loss.json").write_text(costs.to_json(), encoding="utf-8")
                (out / "loss.md").write_text(costs.to_markdown(), encoding="utf-8")
    return costs


def _shape(size: str) -> tuple[int, ...]:
    numbers = size.split("x")
    if not all(n.isdecimal() for n in numbers) or len(numbers) not in (4, 5):
        raise InputError(f"size {size} is none; one such as {SIZES[1]} is wanted: images x classes x height x width.")
    images, classes, *sides = map(int, numbers)
    if images < 1 or not 2 <= classes <= 254 or min(sides) < 16:
        raise InputError(f"size {size}: an image or more, 2 to 254 classes and sides of 16 or more are wanted.")
    return images, classes, *sides


def measure(ways: Iterable[Way], device: str, dtype: str, size: str, shape: Sequence[int], rounds: int) -> Case:
    """The costs of some losses on one batch.

    Args:
        ways: The losses.
        device: "cpu" or "cuda".
        dtype: Of the logits.
        size: What to call the batch.
        shape: Of the logits, (N, C, *S).
        rounds: How often each is timed.
    """
    kind = getattr(torch, dtype)
    logits, labels = batch(shape, device, kind)
    small = batch((*shape[:2], *(max(16, side // _SHRUNK) for side in shape[2:])), device, kind)
    unit = peak_allocated(cross_entropy, logits, labels)
    small_unit = peak_allocated(cross_entropy, *small)
    times, costs = [], []
    for way in ways:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of theirs
                loss = way.start()
                given = labels if way.ignores else labels.masked_fill(labels == IGNORED, 0)
                little = small[1] if way.ignores else small[1].masked_fill(small[1] == IGNORED, 0)
                peak_allocated(loss, small[0], little)  # loads and compiles what is on first use
                expected = peak_allocated(loss, small[0], little) / small_unit * unit / 2**20
                most = _SHARE * _memory(device)
                if expected > most:
                    raise MemoryError(f"it would take {expected / 1024:.0f} GiB; {most / 1024:.0f} GiB are allowed")
                _seconds(loss, logits, given)
                peak = peak_allocated(loss, logits, given)
                pairs = _rounds(loss, logits, labels, given, rounds)
        except Exception as error:  # of other packages anything
            costs.append(Cost(way.kind, way.name, failed=f"{type(error).__name__}: {str(error).splitlines()[0]}"))
            continue
        times += [own for own, _ in pairs]
        ratio = Spread.of(theirs / own for own, theirs in pairs)
        seconds = Spread.of(theirs for _, theirs in pairs)
        late = any(ratio.median > goal.time for goal in GOALS if goal.counts(device, dtype, size, way.kind, way.name))
        profile = profiled(loss, logits, given) if late else {}
        costs.append(Cost(way.kind, way.name, seconds, ratio if ratio.sure else None, peak / unit, profile=profile))
    times = times or [_seconds(cross_entropy, logits, labels) for _ in range(rounds)]
    return Case(device, dtype, size, Spread.of(times), unit / 2**20, costs)


def batch(shape: Sequence[int], device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits and labels as of a segmentation that is right at most pixels, some of them ignored; always the same."""
    images, classes, *sides = shape
    *depth, height, width = sides
    slices = math.prod(depth)
    maps = label_maps(images * slices, classes, max(height, width))
    guess, labels = (x[:, :height, :width].reshape(images, *sides).contiguous() for x in maps)
    noise = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(1))
    logits = noise.scatter_add_(1, guess.unsqueeze(1), torch.full_like(noise[:, :1], 4.0))
    return logits.to(device, dtype).requires_grad_(), labels.to(device)


def _rounds(loss: Loss, logits: Tensor, labels: Tensor, given: Tensor, rounds: int) -> list[tuple[float, float]]:
    """Seconds of cross-entropy and of the loss, in turn."""
    runs = [(cross_entropy, labels), (loss, given)]
    passes = [math.ceil(TURN / max(1e-9, _seconds(run, logits, y))) for run, y in runs]
    pairs = []
    for _ in range(rounds):
        own, theirs = (
            sum(_seconds(run, logits, y) for _ in range(number)) / number
            for (run, y), number in zip(runs, passes, strict=True)
        )
        pairs.append((own, theirs))
    return pairs


def _seconds(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    """Of a forward and a backward pass: of the processor, or on a GPU from start to end."""
    logits.grad = None
    if logits.is_cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if logits.is_cuda else time.process_time
    begun = clock()
    _pass(loss, logits, labels)
    if logits.is_cuda:
        torch.cuda.synchronize()
    return clock() - begun


def _pass(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    """Forward and backward."""
    value: Any = loss(logits, labels)
    value.backward()


def peak_allocated(loss: Loss, logits: Tensor, labels: Tensor) -> int:
    """Bytes that torch has allocated at the highest, beyond those before, in a forward and a backward pass.

    The gradient of the logits is among them. What other allocators take is not counted.
    """
    logits.grad = None
    if logits.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _pass(loss, logits, labels)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        _pass(loss, logits, labels)
    # `events()` leaves some out; the record below has every block that is taken (+) or given back (-).
    events = recorded.profiler.kineto_results.events()
    total = peak = 0
    for event in sorted((x for x in events if x.name() == "[memory]"), key=lambda x: x.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def profiled(loss: Loss, logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Where the time of both passes goes, in shares by module of this package, the largest first.

    The time of what a module calls outside this package is its own; that of autograd is the engine's.
    """
    _seconds(loss, logits, labels)  # imports on first use are none of it
    recorded = cProfile.Profile()
    recorded.enable()
    for _ in range(3):
        _seconds(loss, logits, labels)
    recorded.disable()
    calls: Any = pstats.Stats(recorded).stats  # type: ignore[attr-defined]  # of typeshed's
    home = Path(__file__).parents[1]

    def owner(function: tuple[str, int, str]) -> str:
        """The module that a function's time belongs to: its own, or the one that it is mostly called from."""
        seen = {function}
        while True:
            path = Path(function[0])
            if path.is_relative_to(home) and path != Path(__file__):
                return path.relative_to(home).as_posix()
            if "run_backward" in function[2]:
                return "autograd"
            if "torchinductor" in function[0]:
                return "compiled code"
            callers = {by: times[3] for by, times in calls[function][4].items() if by not in seen}
            if not callers:
                return "the rest"
            function = max(callers, key=lambda by: callers[by])
            seen.add(function)

    spent: dict[str, float] = {}
    for function, (_, _, seconds, _, callers) in calls.items():
        parts = {by: times[2] for by, times in callers.items()} if function[0] == "~" else {function: seconds}
        for by, part in parts.items():
            name = owner(function if "run_backward" in function[2] else by)
            spent[name] = spent.get(name, 0) + part
    whole = sum(spent.values())
    return {name: seconds / whole for name, seconds in sorted(spent.items(), key=lambda item: -item[1])}


def _memory(device: str) -> float:
    """MiB that there are."""
    return memory() if device == "cpu" else torch.cuda.get_device_properties(0).total_memory / 2**20


# Markdown -------------------------------------------------------------------------------------------------------------


def _markdown(costs: Costs) -> str:
    lines = [
        "# Losses: speed and memory",
        "",
        f"Written by `{costs.command}`.",
        "",
        f"- Machine: {listed(costs.machine)}.",
        f"- Packages: {listed(costs.packages)}.",
        *([f"- Left out: {listed(costs.left_out)}."] if costs.left_out else []),
        "- Data: normal logits, raised by 4 at labels that are right at most pixels; smooth random label maps, 4% of "
        "the pixels ignored (of class 0 for a loss of another package that can't ignore). Every slot has a bezier of "
        "two pieces.",
        f"- Time: a forward and a backward pass, as a ratio to torch's cross-entropy in the same round: medians "
        f"[quartiles] of {costs.rounds} rounds. On the CPU it is that of the processor, on one thread. It is "
        "given where its quartiles lie closer together than half of its median; elsewhere it says unsure.",
        "- Large tensors are fresh memory on every pass, and the kernel's time for it is counted; cross-entropy takes "
        "more of it than most. An allocator that keeps memory spares it: in glibc by the variables "
        "`MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000`.",
        "- Memory: the peak of what torch allocates in both passes beyond the batch, the gradient of the logits with "
        "it, as a ratio to that of cross-entropy; every block is counted.",
        "",
        "## Goals",
        "",
        "The worst counts, of miou, fwiou, macc, gacc, dice and tversky where it says pointwise.",
        "",
        "| | size | time: goal | reached | memory: goal | reached |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for goal in GOALS:
        for dtype in goal.dtypes:
            spent, taken = _reached(goal, dtype, costs.cases)
            lines.append(
                f"| {goal.title}, {dtype} | {goal.size} | {goal.time:g} | {spent} | {goal.memory:g} | {taken} |"
            )
    late = [(case, cost) for case in costs.cases for cost in case.costs if cost.profile]
    if late:
        lines += [
            "",
            "Where the time goes that is above a goal, by the module at work or that calls torch (cProfile):",
            "",
        ]
    for case, cost in late:
        parts = [f"`{name}` {100 * share:.0f}%" for name, share in cost.profile.items() if share >= _LEAST]
        lines.append(f"- {cost.kind}, {cost.name}, {case.device}, {case.dtype}, {case.size}: {', '.join(parts)}.")
    for case in costs.cases:
        lines += [
            "",
            f"## {case.device}, {case.dtype}, {case.size}",
            "",
            f"Cross-entropy: {spread_text(case.seconds, 1e3)} ms, {digits(case.mebibytes)} MiB.",
            "",
            "| | loss | ms | time / cross-entropy | memory / cross-entropy |",
            "|---|---|---:|---:|---:|",
        ]
        for cost in case.costs:
            if cost.seconds is None or cost.memory is None:
                lines.append(f"| {cost.kind} | {cost.name} | - | {cost.failed} | - |")
                continue
            ratio = spread_text(cost.time) if cost.time else "unsure"
            lines.append(
                f"| {cost.kind} | {cost.name} | {digits(1e3 * cost.seconds.median)} | {ratio} | {cost.memory:.2f} |"
            )
    return "\n".join([*lines, ""])


def _reached(goal: Goal, dtype: str, cases: Iterable[Case]) -> tuple[str, str]:
    """The time and the memory reached, each with whether that is the goal."""
    costs = [
        cost
        for case in cases
        if case.dtype == dtype
        for cost in case.costs
        if goal.counts(case.device, dtype, case.size, cost.kind, cost.name)
    ]
    if len(costs) < len(goal.names):
        return "not measured", "not measured"
    times = [(cost.time.median, cost.name) for cost in costs if cost.time]
    memories = [(cost.memory, cost.name) for cost in costs if cost.memory is not None]
    return (
        _verdict(times, goal.time) if len(times) == len(costs) else "unsure",
        _verdict(memories, goal.memory) if len(memories) == len(costs) else "not measured",
    )


def _verdict(found: list[tuple[float, str]], limit: float) -> str:
    value, name = max(found)
    return f"{digits(value)} ({name}): {'yes' if value <= limit else 'no'}"
