"""What losses cost on this machine: time and memory of a forward and a backward pass, beside cross-entropy."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from autosegloss.errors import InputError, RefusedError, cut
from autosegloss.loss import SurrogateLoss
from autosegloss.loss.named import loss_for_data
from autosegloss.loss.relax import slots
from autosegloss.metric import METRICS, metric
from autosegloss.proxy.train import one_thread
from autosegloss.report.environment import about

Loss = Callable[[Tensor, Tensor], Tensor]  # a scalar of logits (N, C, *S) and labels (N, *S)
Cost = dict[str, Any]

SIZE: Final = "8x21x256x256"
DTYPES: Final = ("float32", "bfloat16", "float16")
DEVICES: Final = ("cpu", "cuda")
LOSSES: Final = ("miou", "dice", "biou", "bf1", "soft_dice", "lovasz", "0.5*lovasz + 0.5*jml", "focal")
"""What is measured unless other losses are given."""
ROUNDS: Final = 10
LARGEST: Final = 2**31  # logits
MIN_ROUNDS: Final = 3  # a median with quartiles needs as many
IGNORED: Final = 255
VOID: Final = 0.04  # share of the labels that are ignored: about that of PASCAL VOC
POINTS: Final = ((0.2, 0.5), (0.4, 0.6), (0.7, 0.9))  # two pieces, far from the identity
TURN: Final = 0.05  # seconds of a turn, at least: it outlasts what the loss before left in the caches


def bench_loss(
    names: Sequence[str] = (), size: str = SIZE, dtype: str = "float32", device: str = "cpu", rounds: int = ROUNDS
) -> str:
    """Time losses in turn with cross-entropy, and measure their memory.

    Args:
        names: Losses as `load_loss` takes them, or metrics of the catalogue; none: `LOSSES`.
        size: Shape of the logits, as in `8x21x256x256`: images, classes, and two or three axes of 16 pixels or more.
        dtype: Of the logits, one of `DTYPES`; float16 is for CUDA only.
        device: One of `DEVICES`.
        rounds: How often each is timed, 3 or more.

    Returns:
        A table, as Markdown.

    Raises:
        InputError: An argument is out of range, or there is no such loss.
        RefusedError: There is no CUDA device.
    """
    _, classes, *_ = checked(size, dtype, device, rounds)
    counts = [1] * classes  # what is counted does not change the cost
    losses: dict[str, Loss] = {}
    for name in names or LOSSES:
        loss = surrogate(name) if name in METRICS else loss_for_data(name, counts, IGNORED)
        losses[name] = loss.to(device)
    return (
        f"{to_markdown(*measure(losses, size, dtype, device, rounds))}\n\n"
        f"Forward and backward of logits {size} in {dtype}; medians [quartiles] of {rounds} rounds, on a CPU of the "
        "processor's time on one thread. Memory is the peak of what torch allocates, with the gradient of the logits. "
        "The curves of a metric's loss have two pieces.\n\n"
        f"{about(device, 'autosegloss', 'torch', 'triton')}.\n"
    )


def checked(size: str, dtype: str, device: str, rounds: int) -> tuple[int, ...]:
    """The shape of the logits; raises what `bench_loss` does."""
    numbers = size.split("x")
    if not all(n.isdecimal() for n in numbers) or len(numbers) not in (4, 5):
        raise InputError(f"size must be images x classes x height x width, such as {SIZE}, got {size}.")
    images, classes, *sides = map(int, numbers)
    if images < 1 or not 2 <= classes <= 254 or min(sides) < 16:
        raise InputError(f"size {size} must have 1 image or more, 2 to 254 classes and sides of 16 or more.")
    if math.prod((images, classes, *sides)) >= LARGEST:
        raise InputError(f"size {cut(size)} has {LARGEST:,} logits or more, which is more than the kernels index.")
    if rounds < MIN_ROUNDS:
        raise InputError(f"repeats must be {MIN_ROUNDS} or more, got {rounds}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise RefusedError(f"torch {torch.__version__} finds no CUDA device in this process; take --device cpu.")
    if (device, dtype) == ("cpu", "float16"):
        raise InputError("float16 is measured on CUDA only; on a CPU take float32 or bfloat16.")
    return images, classes, *sides


def surrogate(name: str) -> SurrogateLoss:
    """The loss of a metric of the catalogue under curves of two pieces."""
    expr = metric(name)
    return SurrogateLoss(expr, [POINTS] * len(slots(expr)), ignore_index=IGNORED)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss that all others are compared with."""
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED)


def batch(shape: Sequence[int], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Logits and labels as of a segmentation that is right at most pixels, some of them ignored; always the same."""
    images, classes, *sides = shape
    generator = torch.Generator().manual_seed(0)

    def fields(channels: int, cells: int) -> Tensor:
        noise = torch.randn(images, channels, *[cells] * len(sides), generator=generator)
        return functional.interpolate(noise, sides, mode="bilinear" if len(sides) == 2 else "trilinear")

    cells = max(2, max(sides) // 64)  # blobs of about 64 pixels, and a few classes favoured in each image
    truth = fields(classes, cells) + 1.5 * torch.randn(images, classes, *[1] * len(sides), generator=generator)
    guess = (truth + 0.3 * fields(classes, 4 * cells)).argmax(1, keepdim=True)
    logits = torch.randn(tuple(shape), generator=generator).scatter_add_(1, guess, torch.full(guess.shape, 4.0))
    holes = fields(1, cells)[:, 0]
    labels = truth.argmax(1).masked_fill(holes < holes.quantile(VOID), IGNORED)
    return logits.to(device, dtype).requires_grad_(), labels.to(device)


def measure(losses: Mapping[str, Loss], size: str, dtype: str, device: str, rounds: int) -> tuple[Cost, list[Cost]]:
    """The costs of losses on one batch, on one thread.

    Returns:
        The `seconds` (median and quartiles) and `mebibytes` of cross-entropy; then of each loss its `name`, `seconds`,
        and `time` and `memory` as ratios to cross-entropy (time: in the same round), or why it `failed`.
    """
    logits, labels = batch(checked(size, dtype, device, rounds), getattr(torch, dtype), device)
    costs: list[Cost] = []
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        unit = peak_allocated(cross_entropy, logits, labels)
        own = _spread([_turn(cross_entropy, logits, labels) for _ in range(rounds)])
        for name, loss in losses.items():
            try:
                seconds(loss, logits, labels)  # loads and compiles what is on first use
                peak = peak_allocated(loss, logits, labels)
                pairs = [(_turn(loss, logits, labels), _turn(cross_entropy, logits, labels)) for _ in range(rounds)]
            except Exception as error:  # a loss of another package may raise anything
                costs.append({"name": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
                continue
            taken, ratio = _spread([theirs for theirs, _ in pairs]), _spread([theirs / ours for theirs, ours in pairs])
            costs.append({"name": name, "seconds": taken, "time": ratio, "memory": peak / unit})
    return {"seconds": own, "mebibytes": unit / 2**20}, costs


def to_markdown(unit: Cost, costs: Sequence[Cost]) -> str:
    """The table of what was measured, a row for each loss."""
    lines = [
        f"Cross-entropy: {_text(unit['seconds'], 1e3)} ms, {_digits(unit['mebibytes'])} MiB.",
        "",
        "| loss | ms | time / cross-entropy | memory / cross-entropy |",
        "|---|---:|---:|---:|",
    ]
    for cost in costs:
        if "failed" in cost:
            lines.append(f"| {cost['name']} | - | {cost['failed']} | - |")
            continue
        figures = _digits(1e3 * cost["seconds"][0]), _text(cost["time"]), f"{cost['memory']:.2f}"
        lines.append(f"| {cost['name']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _turn(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    """Seconds of a pass, the mean of as many as take `TURN` seconds."""
    spent: list[float] = []
    while sum(spent) < TURN:
        spent.append(seconds(loss, logits, labels))
    return statistics.fmean(spent)


def seconds(loss: Loss, logits: Tensor, labels: Tensor) -> float:
    """Of a forward and a backward pass: of the processor, or on a GPU from start to end."""
    clock = time.perf_counter if logits.is_cuda else time.process_time
    wait: Callable[[], object] = torch.cuda.synchronize if logits.is_cuda else lambda: None
    logits.grad = None
    wait()
    begun = clock()
    _pass(loss, logits, labels)
    wait()
    return clock() - begun


def _pass(loss: Loss, logits: Tensor, labels: Tensor) -> None:
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


def _spread(values: Sequence[float]) -> list[float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return [median, low, high]


def _text(spread: Sequence[float], unit: float = 1.0) -> str:
    return "{} [{}, {}]".format(*(_digits(unit * value) for value in spread))


def _digits(value: float) -> str:
    """Three digits, never as a power of ten."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
