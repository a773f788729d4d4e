"""Short training runs as pure functions of their arguments: the same seed gives byte-identical weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autosegloss.errors import InputError, TrainingDiverged
from autosegloss.proxy.batches import BatchPlan, TrainingArrays, batch, to_input
from autosegloss.proxy.data import IGNORE_INDEX, Split
from autosegloss.proxy.mean_teacher import MeanTeacher, Unlabelled
from autosegloss.proxy.networks import build_network, encoder_prefix
from autosegloss.proxy.optimizers import without_dynamo
from autosegloss.proxy.settings import Regime, TrainConfig

LossFunction = Callable[..., Tensor]
"""From logits (N, C, H, W) and a target to a scalar. The target is int64 labels (N, H, W) where 255 is ignored, or soft
labels like the logits, optionally followed by a boolean mask (N, H, W), True where a pixel counts."""
Weights = dict[str, Tensor]

WEIGHT_DECAY = 1e-4
CHECK_EVERY = 20  # iterations between two checks of the losses; each check synchronises with the GPU
CPU = torch.device("cpu")


class Training:
    """A training run that can stop after any iteration and resume from its state.

    The images and random numbers of an iteration follow from the seed and the iteration alone. So a resumed run
    gives byte-identical weights, on the CPU and with the same number of threads.

    Args:
        network: From images (N, 3, H, W) to logits (N, C, H, W), in training optionally with auxiliary logits; trained
            in place, on its device.
        split: The training images, with their soft labels if there are any.
        loss: See `LossFunction`.
        settings: The section `train` of the configuration.
        seed: Seed of the order of the images, the flips and the random numbers of network and loss; non-negative.
        unlabelled: Further images, as many per iteration, with the labels of a `MeanTeacher`.
        over_ranks: Whether the ranks of `torch.distributed` train together, each on its share of every batch. Their
            losses are equal (see `reduce_over_ranks` of `SurrogateLoss`) or averaged.

    Raises:
        InputError: A head_multiplier needs an encoder, the device does not support the precision, or the ranks
            can't split the batches evenly.
    """

    def __init__(
        self,
        network: nn.Module,
        split: Split,
        loss: LossFunction,
        settings: TrainConfig,
        *,
        seed: int,
        unlabelled: Unlabelled | None = None,
        over_ranks: bool = False,
    ) -> None:
        self.iteration = 0
        """Number of finished iterations."""
        self._rank, self._ranks = (dist.get_rank(), dist.get_world_size()) if over_ranks else (0, 1)
        self._device = next(network.parameters()).device
        if self._ranks > 1 and self._device.type == "cuda":  # not available on the CPU
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        self.network = network
        self._split, self._settings, self._seed = split, settings, seed
        self._peak = settings.peak_learning_rate
        self._losses: dict[int, Tensor] = {}  # unchecked losses, by iteration
        self._loss = partial(_with_auxiliary, loss, settings.auxiliary_weight)
        self._optimizer = _optimizer(network, settings)
        if settings.precision == "float16" and self._device.type == "cpu":
            raise InputError("precision must be float32 or bfloat16 on the CPU, got float16.")
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=settings.precision == "float16")
        if settings.batch_size % self._ranks:
            raise InputError(
                f"batch_size must be a multiple of the number of processes, {self._ranks}, got {settings.batch_size}."
            )
        if self._ranks > 1 and unlabelled is not None:
            raise InputError("training on unlabelled images supports one process only.")
        plan = BatchPlan.draw(
            np.random.default_rng(seed), len(split.images), settings.iterations, settings.batch_size, settings.augment
        )
        self._plan = plan.share(self._rank, self._ranks)
        # A static graph allows weights without a gradient, as some encoders have.
        self._forward = DistributedDataParallel(network, static_graph=True) if self._ranks > 1 else network
        self._teacher: MeanTeacher | None = None
        if unlabelled is not None:
            self._teacher = MeanTeacher(
                network, unlabelled, seed=seed, iterations=settings.iterations, batch_size=settings.batch_size
            )

    def advance(self, until: int | None = None) -> None:
        """Train up to an iteration; None is the last.

        Raises:
            TrainingDiverged: The loss, or a final weight, is not finite.
            InputError: The batch is too small for the network.
        """
        (error,) = advance_together([self], until)
        if error is not None:
            raise error

    def state_dict(self) -> dict[str, Any]:
        """The state needed to resume: tensors, numbers and texts, so that it loads with `weights_only`."""
        return {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "teacher": None if self._teacher is None else self._teacher.average.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the state of a run with the same arguments."""
        self.iteration = state["iteration"]
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._teacher is not None:
            self._teacher.average.load_state_dict(state["teacher"])

    @cached_property
    def _arrays(self) -> TrainingArrays:
        return TrainingArrays.on(self._split, self._device)

    def _attempt(self, batch: tuple[Tensor, ...], last: bool) -> Exception | None:
        """Run the next iteration, and check the losses if it is the last; returns the error that ended the run."""
        try:
            self._step(self.iteration, *batch)
            self.iteration += 1
            if last or self.iteration % CHECK_EVERY == 0:
                self._check_losses()
            if self.iteration == self._settings.iterations:
                self._finish()
        except Exception as error:
            try:
                self._check_losses()
            except TrainingDiverged as before:
                return before  # the cause of the error
            return error
        return None

    def _step(self, iteration: int, images: Tensor, *target: Tensor) -> None:
        torch.manual_seed(int(np.random.SeedSequence((self._seed, self._rank, iteration)).generate_state(1)[0]))
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak * _schedule(iteration, self._settings.iterations) * group["multiplier"]
        with self._autocast():
            try:
                value = self._loss(self._forward(images), *target)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise InputError(
                    f"the network normalises over the batch, and {len(images)} image(s) of {images.shape[-2]}x"
                    f"{images.shape[-1]} are too few for that: {error}. Increase train.batch_size."
                ) from error
            if self._teacher is not None:
                value = value + self._teacher.loss(self._forward, self._loss, iteration)
        self._losses[iteration] = self._over_ranks(value.detach())
        self._optimizer.zero_grad()
        self._scaler.scale(value).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._teacher is not None:
            self._teacher.follow(self.network, iteration)

    def _autocast(self) -> AbstractContextManager[object]:
        # The cache of weights in half precision would hold those of the first iteration to the end wherever an autocast
        # around this one has not ended: one of the caller's, or one that a library forgot to leave.
        enabled = self._settings.precision != "float32"
        dtype = getattr(torch, self._settings.precision) if enabled else None  # some devices warn of float32
        return torch.autocast(self._device.type, dtype, enabled=enabled, cache_enabled=False)

    def _over_ranks(self, value: Tensor) -> Tensor:
        """The sum of the losses of all ranks: if one diverges, all stop."""
        if self._ranks == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def _check_losses(self) -> None:
        """Raise TrainingDiverged if an unchecked loss is not finite."""
        if not self._losses:
            return
        seen = dict(zip(self._losses, torch.stack([*self._losses.values()]).tolist(), strict=True))
        self._losses = {}
        for iteration, value in seen.items():
            if not math.isfinite(value):
                raise self._diverged(f"the loss is {value} at iteration {iteration}")

    def _finish(self) -> None:
        if self._ranks > 1:
            for buffer in self.network.buffers():  # the running statistics differ between ranks
                dist.broadcast(buffer, 0)
        for name, weight in self.network.state_dict().items():
            if not bool(torch.isfinite(weight).all()):
                raise self._diverged(f"`{name}` is not finite after iteration {self.iteration - 1}")

    def _diverged(self, what: str) -> TrainingDiverged:
        settings = self._settings
        return TrainingDiverged(
            f"training diverged: {what} of {settings.iterations} ({settings.optimizer}, learning rate "
            f"{self._peak:g}). Try a lower learning rate."
        )


def advance_together(trainings: Sequence[Training], until: int | None = None) -> list[Exception | None]:
    """Train several networks up to an iteration, preparing each batch once for all of them.

    Each result is that of training alone, bit for bit on the CPU. On a GPU each network uses its own stream.

    Args:
        trainings: Runs of one split with equal seeds and settings, at the same iteration; only their losses and
            networks differ.
        until: The iteration; None is the last.

    Returns:
        For each run the error that ended it, or None.
    """
    first, several = trainings[0], len(trainings) > 1
    device, last = first._device, first._settings.iterations
    stop = last if until is None else min(until, last)
    on_gpu = several and device.type == "cuda"
    streams = [torch.cuda.Stream(device) if on_gpu else None for _ in trainings]  # type: ignore[no-untyped-call]
    errors: list[Exception | None] = [None] * len(trainings)
    for training in trainings:
        training.network.train()
    with _forked(device):
        for iteration in range(first.iteration, stop):
            made = batch(first._arrays, first._plan, iteration, device)
            for number, training in enumerate(trainings):
                if errors[number] is None:
                    with _beside(streams[number], made):
                        # A network may modify its input.
                        own = (made[0].clone(), *made[1:]) if several else made
                        error = training._attempt(own, last=iteration == stop - 1)
                    if error is not None:
                        # Its frames keep memory alive that the others may need.
                        errors[number] = error.with_traceback(None) if several else error
    for stream in filter(None, streams):
        torch.cuda.current_stream(device).wait_stream(stream)
    return errors


@contextmanager
def _beside(stream: torch.cuda.Stream | None, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Use a stream, if there is one, with tensors of the current stream."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield
    for tensor in tensors:
        tensor.record_stream(stream)  # keeps its memory from being reused before this stream is done


def train(
    network: nn.Module,
    split: Split,
    loss: LossFunction,
    *,
    seed: int,
    unlabelled: Unlabelled | None = None,
    **settings: Any,
) -> None:
    """Train a network in place, from the first iteration to the last.

    The run uses one CPU thread, so that the result does not depend on the number of threads set outside.

    Args:
        network: As for `Training`.
        split: As for `Training`.
        loss: As for `Training`.
        seed: As for `Training`.
        unlabelled: As for `Training`.
        **settings: The fields of `TrainConfig`.

    Raises:
        TrainingDiverged: The loss, or in the end a weight, is not finite.
    """
    with one_thread():
        Training(network, split, loss, TrainConfig(**settings), seed=seed, unlabelled=unlabelled).advance()


def predict(network: nn.Module, split: Split, batch_size: int = 64) -> NDArray[np.int64]:
    """Label every pixel with its most probable class.

    Args:
        network: From images (N, 3, H, W) to logits (N, C, H, W).
        split: The images; their labels are not used.
        batch_size: Images per forward pass; it affects the result by rounding only.

    Returns:
        Class numbers, shape (N, H, W).

    Raises:
        TrainingDiverged: Logits are NaN or infinite.
    """
    labels = [logits.argmax(dim=1).cpu() for logits in logits_of(network, split.images, batch_size)]
    result: NDArray[np.int64] = torch.cat(labels).numpy()
    return result


def logits_of(network: nn.Module, images: NDArray[np.uint8], batch_size: int = 64) -> Iterator[Tensor]:
    """The logits of images in batches (n, C, H, W), on the device of the network.

    Raises:
        TrainingDiverged: See `check_logits`.
    """
    device = next(network.parameters()).device
    network.eval()
    for start in range(0, len(images), batch_size):
        with one_thread(), torch.inference_mode():
            output: Tensor | tuple[Tensor, Tensor] = network(to_input(images[start : start + batch_size], device))
        logits = output if isinstance(output, Tensor) else output[0]
        check_logits(logits)
        yield logits


def undefined(logits: Tensor) -> Tensor:
    """The number of pixels of logits (N, C, *S) that have no best class: one is NaN or infinite, or all are -inf."""
    return (~torch.isfinite(logits.amax(dim=1))).sum()


def check_logits(logits: Tensor) -> None:
    """Raise TrainingDiverged if a pixel has no best class: an arg-max would count it as one."""
    if wrong := int(undefined(logits)):
        raise TrainingDiverged(
            f"training diverged: the trained network's logits are not finite at {wrong} of "
            f"{logits.numel() // logits.shape[1]} pixels. Try a lower learning rate."
        )


def pretrain(
    name: str,
    split: Split,
    num_classes: int,
    *,
    seed: int,
    iterations: int = 200,
    options: Mapping[str, Any] = MappingProxyType({}),
    device: torch.device = CPU,
) -> Weights:
    """Train a network from scratch with weighted cross-entropy, as the common start of a study's proxies.

    Each class is weighted by the inverse square root of its share of the pixels, so that rare classes are learned
    without losing frequent ones. All other settings are the defaults of `TrainConfig`.

    Args:
        name: A network that `build_network` knows.
        split: The labelled training images, with hard labels.
        num_classes: Number of classes.
        seed: Seed of the initial weights and of the run.
        iterations: Number of iterations.
        options: Options of the network.
        device: The device to train on.

    Returns:
        The weights, on the CPU, for `initial_network`.

    Raises:
        TrainingDiverged: The loss is not finite.
    """
    # Image by image, since counting takes eight bytes a pixel.
    counts = sum(np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)[:num_classes] for labels in split.labels)
    weights = torch.tensor(1 / np.sqrt(np.maximum(counts, 1)), dtype=torch.float32)
    network = _fresh(name, split.images.shape[1], num_classes, seed, options).to(device)
    loss = nn.CrossEntropyLoss(weight=weights / weights.mean(), ignore_index=IGNORE_INDEX).to(device)
    train(network, split, loss, seed=seed, iterations=iterations)
    return network.to(CPU).state_dict()


def initial_network(
    name: str,
    num_classes: int,
    regime: Regime,
    pretrained: Mapping[str, Tensor] | None,
    *,
    seed: int,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """Build the initial network of a proxy.

    Args:
        name: A network that `build_network` knows.
        num_classes: Number of classes.
        regime: "encoder" uses the pretrained encoder only, "scratch" no pretrained weights, "checkpoint" all.
        pretrained: The weights of `pretrain`; unused by "scratch".
        seed: Seed of the random weights.
        options: Options of the network.

    Returns:
        The network, on the CPU.

    Raises:
        InputError: The regime needs pretrained weights or an encoder, and there are none.
    """
    network = _fresh(name, 3, num_classes, seed, options)
    if regime == "scratch":
        return network
    if pretrained is None:
        raise InputError(f"regime `{regime}` needs pretrained weights; call pretrain first.")
    if regime == "encoder":
        prefix = encoder_prefix(network)
        pretrained = network.state_dict() | {k: v for k, v in pretrained.items() if k.startswith(prefix)}
    network.load_state_dict(pretrained)
    return network


def _fresh(name: str, in_channels: int, num_classes: int, seed: int, options: Mapping[str, Any]) -> nn.Module:
    with _forked(CPU):
        torch.manual_seed(seed)
        return build_network(name, in_channels, num_classes, **options)


def _with_auxiliary(
    loss: LossFunction, weight: float, output: Tensor | tuple[Tensor, Tensor], *target: Tensor
) -> Tensor:
    """The loss of the output in training, plus the weighted loss of auxiliary logits if there are any."""
    if isinstance(output, Tensor):
        return loss(output, *target)
    logits, auxiliary = output
    return loss(logits, *target) + weight * loss(auxiliary, *target)


def _optimizer(network: nn.Module, settings: TrainConfig) -> torch.optim.Optimizer:
    groups = [{"params": list(network.parameters()), "multiplier": 1.0}]
    if settings.head_multiplier != 1:
        prefix, named = encoder_prefix(network), list(network.named_parameters())
        groups = [
            {"params": [weight for name, weight in named if name.startswith(prefix)], "multiplier": 1.0},
            {
                "params": [weight for name, weight in named if not name.startswith(prefix)],
                "multiplier": settings.head_multiplier,
            },
        ]
    options: dict[str, Any] = {"lr": settings.peak_learning_rate, "weight_decay": WEIGHT_DECAY}
    if settings.optimizer == "sgd":
        return without_dynamo(torch.optim.SGD)(groups, momentum=0.9, nesterov=True, **options)
    return without_dynamo(torch.optim.AdamW)(groups, **options)


def _schedule(iteration: int, iterations: int) -> float:
    warm_up = max(1, iterations // 10)
    return float(min(1.0, (iteration + 1) / warm_up) * (1 - iteration / iterations) ** 0.9)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, so that results do not depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _forked(device: torch.device) -> AbstractContextManager[None]:
    """Restore the global generators afterwards."""
    forked: AbstractContextManager[None] = torch.random.fork_rng([device] if device.type == "cuda" else [])
    return forked
