"""How many proxies an hour this machine trains, one at a time and several side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from autosegloss.errors import InputError, shown
from autosegloss.loss import Loss
from autosegloss.proxy.data import IGNORE_INDEX, Dataset, Split
from autosegloss.proxy.settings import StartConfig
from autosegloss.proxy.train import advance_together, one_thread
from autosegloss.proxy.trial import Proxy, device_of
from autosegloss.report.environment import about
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import StudyConfig
from autosegloss.search.space import LossFamily

CLASSES = 21  # of PASCAL VOC
HELD_OUT = 1500  # images, as published
REPEATS = 3


def bench_proxies(config: StudyConfig, trials: Sequence[int] = (1, 4), timed: int = 20) -> str:
    """Train a few iterations of the proxies of a configuration on made-up images, and time them.

    The images are noise with the classes of VOC in blocks, of the size that `proxy.data.size` says; the weights are
    drawn, whatever `proxy.start` says: neither matters for speed.

    Args:
        config: Its network, its training and `resources.gpus` count.
        trials: How many side by side, one number after another.
        timed: Iterations that are timed, at least 1.

    Returns:
        A table, as Markdown.

    Raises:
        InputError: A number is too small, or the configuration has no size.
        RefusedError: There is no GPU and the configuration asks for one.
    """
    size, train = config.proxy.data.options.get("size"), config.proxy.train
    if timed < 1 or min(trials, default=0) < 1:
        raise InputError(f"trials and iterations must be 1 or more, got {list(trials)} and {timed}.")
    if not isinstance(size, int):
        raise InputError(f"proxy.data.size must be the side of the images in pixels, got {shown(size)}.")
    device = device_of(config.resources.gpus)
    scratch = config.proxy.model_copy(update={"start": StartConfig(regime="scratch")})
    proxy = proxy_of(config.model_copy(update={"proxy": scratch}), _dataset(size, 4 * train.batch_size))
    family = LossFamily.of(config)
    loss = proxy.loss(family.content(family.start))
    lines = [
        "| trials side by side | ms an iteration of one | evaluation, s | proxies an hour | memory, MiB |",
        "|---:|---:|---:|---:|---:|",
    ]
    for number in trials:
        iteration, evaluation, memory = _rate(proxy, loss, number, timed, device)
        rate = hourly(number, train.iterations, iteration, evaluation)
        lines.append(f"| {number} | {1000 * iteration / number:.1f} | {evaluation:.1f} | {rate:.1f} | {memory} |")
    return "\n".join(
        [
            *lines,
            "",
            f"{config.proxy.network.name}, {train.iterations:,} iterations of {train.batch_size} images of "
            f"{size}x{size}, {train.precision}; then {HELD_OUT:,} images are measured. Of {timed} iterations, median "
            f"of {REPEATS}, on one thread.",
            "",
            f"{about(device.type, 'autosegloss', 'torch')}.",
            "",
        ]
    )


def hourly(trials: int, iterations: int, iteration: float, evaluation: float) -> float:
    """Proxies an hour, each measured once, from the seconds of an iteration of all trials and of one evaluation."""
    return 3600 * trials / (iterations * iteration + trials * evaluation)


def _dataset(size: int, images: int) -> Dataset:
    rng = np.random.default_rng(0)

    def split(number: int) -> Split:
        blocks = rng.integers(0, CLASSES, (number, 4, 4), dtype=np.uint8)
        side = -(-size // 4)
        labels = blocks.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size]
        labels[:, ::side] = IGNORE_INDEX
        return Split(rng.integers(0, 256, (number, 3, size, size), dtype=np.uint8), labels)

    return Dataset("noise", tuple(map(str, range(CLASSES))), IGNORE_INDEX, split(images), split(HELD_OUT), split(1))


def _rate(proxy: Proxy, loss: Loss, trials: int, timed: int, device: torch.device) -> tuple[float, float, str]:
    """Seconds of an iteration of all trials and of one evaluation, and the peak memory of the GPU in MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trainings = [proxy.training(loss, 0, 1 + REPEATS * timed) for _ in range(trials)]
    with one_thread():
        for error in advance_together(trainings, 1):  # allocates
            if error is not None:
                raise error
        ends = (1 + timed * (repeat + 1) for repeat in range(REPEATS))
        seconds = [_seconds(lambda: advance_together(trainings, next(ends)), device) for _ in range(REPEATS)]
    evaluation = _seconds(lambda: proxy.evaluation(trainings[0].network, validate=False), device)
    memory = f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f}" if device.type == "cuda" else "-"
    return median(seconds) / timed, evaluation, memory


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work, with what a GPU still has to do of it."""
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
