"""How many proxies an hour this machine trains, one at a time and several side by side, and what bounds that."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from autosegloss.errors import InputError
from autosegloss.loss import Loss
from autosegloss.proxy.data import IGNORE_INDEX, Dataset, Split
from autosegloss.proxy.settings import StartConfig
from autosegloss.proxy.train import advance_together, one_thread
from autosegloss.proxy.trial import Proxy, device_of
from autosegloss.report.environment import machine, packages
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import StudyConfig
from autosegloss.search.space import LossFamily

CLASSES = 21  # of PASCAL VOC
HELD_OUT = 1500  # images, as published
REPEATS = 3


@dataclass(frozen=True)
class Rate:
    """What was measured of trials side by side.

    Args:
        trials: How many of them.
        iteration: Seconds of an iteration of all of them, median over the repeats.
        evaluation: Seconds of measuring one trained proxy on the held-out images.
        memory: MiB of the GPU at the highest; None on the CPU.
    """

    trials: int
    iteration: float
    evaluation: float
    memory: float | None

    def hourly(self, iterations: int) -> float:
        """Proxies of so many iterations an hour, each measured once."""
        return 3600 * self.trials / (iterations * self.iteration + self.trials * self.evaluation)


@dataclass(frozen=True)
class Proxies:
    """What was measured.

    Args:
        command: What measures it again.
        machine: Where it was measured.
        packages: Versions.
        network: Its name.
        precision: Of its forward pass.
        iterations: Of a proxy.
        batch_size: Images.
        size: Sides of the images.
        timed: Iterations that were timed, in each of the repeats.
        flops: Floating-point operations of an iteration of one proxy, forward and backward.
        traffic: Bytes that an iteration of one proxy moves at the least: what the backward pass needs is written and
            read; weights are read three times and written, gradients and momentum read and written.
        flops_rate: A second, of this device in a product of two large matrices of that precision.
        traffic_rate: Bytes a second, of this device in a copy of a large array.
        rates: By trials side by side.
    """

    command: str
    machine: dict[str, str]
    packages: dict[str, str]
    network: str
    precision: str
    iterations: int
    batch_size: int
    size: int
    timed: int
    flops: float
    traffic: float
    flops_rate: float
    traffic_rate: float
    rates: tuple[Rate, ...]

    @property
    def floor(self) -> float:
        """Seconds of an iteration of one proxy if its arithmetic or its traffic were all, whichever takes longer."""
        return max(self.flops / self.flops_rate, self.traffic / self.traffic_rate)

    def to_markdown(self) -> str:
        """A row for each number of trials side by side, and the floor."""
        lines = [
            "| trials side by side | ms an iteration of one | evaluation, s | proxies an hour | memory, MiB |",
            "|---:|---:|---:|---:|---:|",
        ]
        for rate in self.rates:
            one, memory = 1000 * rate.iteration / rate.trials, "-" if rate.memory is None else f"{rate.memory:.0f}"
            hourly = rate.hourly(self.iterations)
            lines.append(f"| {rate.trials} | {one:.1f} | {rate.evaluation:.1f} | {hourly:.1f} | {memory} |")
        measured = f"{self.iterations:,} iterations of {self.batch_size} images of {self.size}x{self.size}"
        counted = f"{self.flops / 1e9:.1f} GFLOP and {self.traffic / 2**20:.0f} MiB"
        able = f"{self.flops_rate / 1e12:.2f} TFLOP/s in a matrix product and {self.traffic_rate / 1e9:.1f} GB/s"
        least = f"{1000 * self.floor:.1f} ms, {3600 / (self.floor * self.iterations):.1f} proxies an hour"
        about = [*self.machine.items(), *self.packages.items()]
        return "\n".join(
            [
                *lines,
                "",
                f"{self.network}, {measured}, {self.precision}; then {HELD_OUT:,} images are measured. Of {self.timed} "
                f"iterations, median of {REPEATS}.",
                "",
                f"Floor: {counted} an iteration of one proxy. This device does {able} in a copy: {least} without "
                "their evaluation.",
                "",
                f"Command: `{self.command}`. " + ", ".join(f"{name} {value}" for name, value in about) + ".",
                "",
            ]
        )


def bench_proxies(config: StudyConfig, trials: Sequence[int] = (1, 4), timed: int = 20, command: str = "") -> Proxies:
    """Train a few iterations of the proxies of a configuration on made-up images, and time them.

    The images are noise with the classes of VOC in blocks, of the size that `proxy.data.size` says; the weights are
    drawn, whatever `proxy.start` says: neither matters for speed.

    Args:
        config: Its network, its training and `resources.gpus` count.
        trials: How many side by side, one number after another.
        timed: Iterations that are timed, at least 1.
        command: What measures it again.

    Raises:
        InputError: A number is too small, or the configuration has no size.
        RefusedError: There is no GPU and the configuration asks for one.
    """
    size, own = config.proxy.data.options.get("size"), config.proxy.train
    if timed < 1 or min(trials, default=0) < 1:
        raise InputError(f"trials and iterations must be 1 or more, got {list(trials)} and {timed}.")
    if not isinstance(size, int):
        raise InputError(f"proxy.data.size must be the side of the images in pixels, got {size!r}.")
    device = device_of(config.resources.gpus)
    begun = config.proxy.model_copy(update={"start": StartConfig(regime="scratch")})
    proxy = proxy_of(config.model_copy(update={"proxy": begun}), _dataset(size, 4 * own.batch_size))
    family = LossFamily.of(config)
    loss = proxy.loss(family.content(family.start))
    rates = tuple(_rate(proxy, loss, number, timed, device) for number in trials)
    flops, traffic = _counted(proxy, loss)
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    dtype = getattr(torch, own.precision)
    return Proxies(
        command=command,
        machine=machine() | gpu | {"threads": "1"},
        packages=packages("autosegloss", "torch"),
        network=config.proxy.network.name,
        precision=own.precision,
        iterations=own.iterations,
        batch_size=own.batch_size,
        size=size,
        timed=timed,
        flops=flops,
        traffic=traffic,
        flops_rate=_flops_rate(device, dtype),
        traffic_rate=_traffic_rate(device),
        rates=rates,
    )


def _dataset(size: int, images: int) -> Dataset:
    rng = np.random.default_rng(0)
    classes = tuple(map(str, range(CLASSES)))

    def split(number: int) -> Split:
        blocks = rng.integers(0, CLASSES, (number, 4, 4), dtype=np.uint8)
        side = -(-size // 4)
        labels = blocks.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size]
        labels[:, ::side] = IGNORE_INDEX
        return Split(rng.integers(0, 256, (number, 3, size, size), dtype=np.uint8), labels)

    return Dataset("noise", classes, IGNORE_INDEX, split(images), split(HELD_OUT), split(1))


def _rate(proxy: Proxy, loss: Loss, trials: int, timed: int, device: torch.device) -> Rate:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    count = 1 + REPEATS * timed
    trainings = [proxy.training(loss, 0, count) for _ in range(trials)]
    with one_thread():
        for error in advance_together(trainings, 1):  # allocates
            if error is not None:
                raise error
        seconds = [
            _seconds(lambda: advance_together(trainings, trainings[0].iteration + timed), device)
            for _ in range(REPEATS)
        ]
    evaluation = _seconds(lambda: proxy.evaluation(trainings[0].network, validate=False), device)
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return Rate(trials, median(seconds) / timed, evaluation, memory)


def _counted(proxy: Proxy, loss: Loss) -> tuple[float, float]:
    """Floating-point operations and bytes of an iteration, see `Proxies`."""
    training = proxy.training(loss, 0, 2)
    weights = {weight.untyped_storage().data_ptr() for weight in training.network.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        one_thread(),
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        training.advance(1)
    values = sum(weight.numel() * weight.element_size() for weight in training.network.parameters())
    return float(counter.get_total_flops()), float(2 * sum(saved.values()) + 8 * values)


def _flops_rate(device: torch.device, dtype: torch.dtype) -> float:
    side = 8192 if device.type == "cuda" else 1024
    one, other = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: one @ other, device)


def _traffic_rate(device: torch.device) -> float:
    array = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    return 2 * array.nbytes / _best(array.clone, device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    with one_thread():
        return min(_seconds(work, device) for _ in range(1 + REPEATS))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work, with what a GPU still has to do of it."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
