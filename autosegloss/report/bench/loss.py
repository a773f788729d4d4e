"""What losses cost on this machine: time and memory of a forward and a backward pass, beside cross-entropy."""

from __future__ import annotations

import math
import shlex
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from autosegloss.errors import InputError, RefusedError
from autosegloss.loss import SurrogateLoss
from autosegloss.loss.named import named_loss
from autosegloss.loss.relax import slots
from autosegloss.metric import METRICS, metric
from autosegloss.proxy.train import one_thread
from autosegloss.report.environment import machine, memory, packages

Loss = Callable[[Tensor, Tensor], Tensor]
"""A scalar of logits (N, C, *S) and labels (N, *S)."""

SIZE: Final = "8x21x256x256"
DTYPES: Final = ("float32", "bfloat16", "float16")
DEVICES: Final = ("cpu", "cuda")
LOSSES: Final = ("miou", "dice", "biou", "bf1", "soft_dice", "lovasz", "focal")
"""What is measured unless losses are given."""
ROUNDS: Final = 10
IGNORED: Final = 255
VOID: Final = 0.04
"""Share of the labels that are ignored: about that of PASCAL VOC."""
POINTS: Final = ((0.2, 0.5), (0.4, 0.6), (0.7, 0.9))
"""Control points of the curves of a metric's loss: two pieces, far from the identity."""
TURN: Final = 0.05
"""Seconds that a turn of a loss takes at least: it then outlasts what the one before left in the caches."""
_SHRUNK: Final = 4  # times smaller along each axis of the image is what tells the memory to expect
_SHARE: Final = 0.4  # of the memory there is that a loss may take


@dataclass(frozen=True)
class Way:
    """A loss to be measured.

    Args:
        name: What to call it.
        start: Builds it, which is not timed.
        kind: The group that it is listed in.
        ignores: Whether it takes ignored pixels; else they are of class 0.
    """

    name: str
    start: Callable[[], Loss]
    kind: str = ""
    ignores: bool = True


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of two or more values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @property
    def sure(self) -> bool:
        """Whether its quartiles lie closer together than half of its median."""
        return self.high - self.low < self.median / 2


@dataclass(frozen=True)
class Cost:
    """What a loss took, beside cross-entropy.

    Args:
        kind: Its group.
        name: Its name.
        seconds: Of a forward and a backward pass.
        time: The ratio of these to those of cross-entropy in the same round; None where that is not sure.
        memory: The ratio of the peaks of what is allocated meanwhile, the gradient of the logits with it.
        failed: Why nothing was measured.
    """

    kind: str
    name: str
    seconds: Spread | None = None
    time: Spread | None = None
    memory: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Case:
    """What losses were measured on, and what they took.

    Args:
        device: "cpu" or "cuda".
        dtype: Of the logits.
        size: Of the logits, as in `8x21x256x256`.
        seconds: Of cross-entropy.
        mebibytes: Peak of cross-entropy.
        costs: Of the losses.
    """

    device: str
    dtype: str
    size: str
    seconds: Spread
    mebibytes: float
    costs: list[Cost]

    def to_markdown(self) -> str:
        """A row for each loss."""
        named = any(cost.kind for cost in self.costs)
        lines = [
            f"Cross-entropy: {spread_text(self.seconds, 1e3)} ms, {digits(self.mebibytes)} MiB.",
            "",
            f"|{' |' if named else ''} loss | ms | time / cross-entropy | memory / cross-entropy |",
            f"|{'---|' if named else ''}---|---:|---:|---:|",
        ]
        for cost in self.costs:
            row = f"| {cost.kind} | {cost.name}" if named else f"| {cost.name}"
            if cost.seconds is None or cost.memory is None:
                lines.append(f"{row} | - | {cost.failed} | - |")
                continue
            ratio = spread_text(cost.time) if cost.time else "unsure"
            lines.append(f"{row} | {digits(1e3 * cost.seconds.median)} | {ratio} | {cost.memory:.2f} |")
        return "\n".join(lines)


def bench_loss(
    names: Sequence[str] = (), size: str = SIZE, dtype: str = "float32", device: str = "cpu", rounds: int = ROUNDS
) -> str:
    """Time losses in turn with cross-entropy, and measure their memory.

    Args:
        names: Losses as `named_loss` takes them, or metrics of the catalogue; none: `LOSSES`.
        size: Shape of the logits, as in `8x21x256x256`: images, classes, and two or three axes of 16 pixels or more.
        dtype: Of the logits, one of `DTYPES`; float16 is for CUDA only.
        device: One of `DEVICES`.
        rounds: How often each is timed, 10 or more.

    Returns:
        A table, as Markdown.

    Raises:
        InputError: An argument is out of range, or there is no such loss.
        RefusedError: There is no CUDA device.
    """
    if rounds < ROUNDS:
        raise InputError(f"repeats must be {ROUNDS} or more, got {rounds}.")
    shape = parse_size(size)
    if device == "cuda" and not torch.cuda.is_available():
        raise RefusedError(f"torch {torch.__version__} finds no CUDA device in this process; take --device cpu.")
    if (device, dtype) == ("cpu", "float16"):
        raise InputError("float16 is measured on CUDA only; on a CPU take float32 or bfloat16.")
    losses = {name: _named(name, shape[1]).to(device) for name in names or LOSSES}
    ways = [Way(name, partial(lambda loss: loss, loss)) for name, loss in losses.items()]
    with one_thread():
        case = measure(ways, device, dtype, size, rounds)
    command = ["autosegloss", "bench", "loss", "--size", size, "--dtype", dtype, "--device", device]
    command += [*(part for name in names for part in ("--loss", name)), "--repeats", str(rounds)]
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    about = [*(machine() | gpu).items(), *packages("autosegloss", "torch", "triton").items()]
    return "\n".join(
        [
            case.to_markdown(),
            "",
            f"Forward and backward of logits {size} in {dtype}; medians [quartiles] of {rounds} rounds, on a CPU of "
            "the processor's time on one thread. Memory is the peak of what torch allocates, with the gradient of the "
            "logits. The curves of a metric's loss have two pieces.",
            "",
            f"Command: `{shlex.join(command)}`. " + ", ".join(f"{name} {value}" for name, value in about) + ".",
            "",
        ]
    )


def _named(name: str, classes: int) -> torch.nn.Module:
    if name in METRICS:
        return surrogate(name)
    return named_loss(name, ignore_index=IGNORED, counts=[1] * classes)  # what is counted does not change the cost


def surrogate(name: str) -> SurrogateLoss:
    """The loss of a metric of the catalogue under curves of two pieces."""
    expr = metric(name)
    return SurrogateLoss(expr, [POINTS] * len(slots(expr)), ignore_index=IGNORED)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """What all others are measured by."""
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED)


def parse_size(size: str) -> tuple[int, ...]:
    """The shape of logits written as `8x21x256x256`."""
    numbers = size.split("x")
    if not all(n.isdecimal() for n in numbers) or len(numbers) not in (4, 5):
        raise InputError(f"size must be images x classes x height x width, such as {SIZE}, got {size}.")
    images, classes, *sides = map(int, numbers)
    if images < 1 or not 2 <= classes <= 254 or min(sides) < 16:
        raise InputError(f"size {size} must have 1 image or more, 2 to 254 classes and sides of 16 or more.")
    return images, classes, *sides


def measure(ways: Iterable[Way], device: str, dtype: str, size: str, rounds: int) -> Case:
    """The costs of some losses on one batch.

    Args:
        ways: The losses.
        device: "cpu" or "cuda".
        dtype: Of the logits.
        size: Of the logits, see `parse_size`.
        rounds: How often each is timed.
    """
    shape, kind = parse_size(size), getattr(torch, dtype)
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
                seconds(loss, logits, given)
                peak = peak_allocated(loss, logits, given)
                pairs = _rounds(loss, logits, labels, given, rounds)
        except Exception as error:  # of other packages anything
            costs.append(Cost(way.kind, way.name, failed=f"{type(error).__name__}: {str(error).splitlines()[0]}"))
            continue
        times += [own for own, _ in pairs]
        ratio = Spread.of(theirs / own for own, theirs in pairs)
        taken = Spread.of(theirs for _, theirs in pairs)
        costs.append(Cost(way.kind, way.name, taken, ratio if ratio.sure else None, peak / unit))
    times = times or [seconds(cross_entropy, logits, labels) for _ in range(rounds)]
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


def label_maps(images: int, num_classes: int, side: int) -> tuple[Tensor, Tensor]:
    """Smooth random label maps, as of a segmentation that is right at most pixels; the same on every call.

    A label is the highest of random fields of about 64 pixels a blob, with a few classes favoured in each image; the
    prediction adds finer fields. A share `VOID` of the target is ignored, in blobs.

    Returns:
        Predicted and true labels, (images, side, side) int64.
    """
    generator = torch.Generator().manual_seed(0)

    def fields(channels: int, cells: int) -> Tensor:
        noise = torch.randn(images, channels, cells, cells, generator=generator)
        return functional.interpolate(noise, (side, side), mode="bicubic", align_corners=False)

    cells = max(2, side // 64)
    truth = fields(num_classes, cells) + 1.5 * torch.randn(images, num_classes, 1, 1, generator=generator)
    prediction = (truth + 0.3 * fields(num_classes, 4 * cells)).argmax(1)
    target = truth.argmax(1)
    holes = fields(1, cells).squeeze(1)
    lowest = holes.flatten(1).quantile(VOID, dim=1).view(-1, 1, 1)
    return prediction, target.masked_fill(holes < lowest, IGNORED)


def _rounds(loss: Loss, logits: Tensor, labels: Tensor, given: Tensor, rounds: int) -> list[tuple[float, float]]:
    """Seconds of cross-entropy and of the loss, in turn."""
    runs = [(cross_entropy, labels), (loss, given)]
    passes = [math.ceil(TURN / max(1e-9, seconds(run, logits, y))) for run, y in runs]
    pairs = []
    for _ in range(rounds):
        own, theirs = (
            sum(seconds(run, logits, y) for _ in range(number)) / number
            for (run, y), number in zip(runs, passes, strict=True)
        )
        pairs.append((own, theirs))
    return pairs


def seconds(loss: Loss, logits: Tensor, labels: Tensor) -> float:
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


def _memory(device: str) -> float:
    """MiB that there are."""
    return memory() if device == "cpu" else torch.cuda.get_device_properties(0).total_memory / 2**20


def spread_text(spread: Spread, unit: float = 1.0) -> str:
    """Median and quartiles in a unit."""
    return f"{digits(unit * spread.median)} [{digits(unit * spread.low)}, {digits(unit * spread.high)}]"


def digits(value: float) -> str:
    """Three digits, never as a power of ten."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
