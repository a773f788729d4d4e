"""`retrain`: train with losses for a full schedule, in one or more processes, and measure everything.

A run stopped at any point resumes from its last checkpoint; on the CPU its results are byte-identical.
"""

from __future__ import annotations

import gc
import hashlib
import io
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from autosegloss.errors import TrainingDiverged
from autosegloss.files import write_bytes
from autosegloss.loss import Loss
from autosegloss.metric import Accumulators, CalibrationError
from autosegloss.metric.settings import CALIBRATION, spec_label
from autosegloss.proxy.batches import to_input
from autosegloss.proxy.data import Dataset, load_dataset
from autosegloss.proxy.networks.unet import resize
from autosegloss.proxy.settings import StartConfig
from autosegloss.proxy.train import undefined
from autosegloss.proxy.trial import TARGET, Proxy, device_of, measured, validation_values
from autosegloss.search.comparison import (
    FILES,
    PLAN_VERSION,
    Comparison,
    check_losses,
    columns_of,
    losses_of,
    run_comparison,
)
from autosegloss.search.folder import refuse_to_overwrite
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.objective import announce, proxy_of
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import CompareConfig, RetrainConfig, StudyConfig, as_config, fingerprint
from autosegloss.search.space import bare_content
from autosegloss.search.tables import Table

CHECKPOINT_FILE = "checkpoint.pt"
_EVALUATION_BATCH = 8  # images; of full size

Progress = Callable[[Job, int], None]
"""Called at each checkpoint with the job and its number of finished iterations."""


def retrain(
    config: StudyConfig | Mapping[str, Any] | str | os.PathLike[str],
    losses: Sequence[str],
    out: str | os.PathLike[str],
    *,
    seeds: int = 1,
    resume: bool = False,
    command: str = "",
    progress: Progress | None = None,
    on_data: Callable[[Dataset], None] | None = None,
) -> Table | None:
    """Train with losses as the section `retrain` of a configuration says, and measure everything on the validation set.

    Runs use the whole training set, including the held-out part of a search, and start from `proxy.start.weights` or
    from scratch. For each seed, all losses start from the same initial weights and see the same images in the same
    order. The folder receives the weights of each run, `LOSS-SEED.pt`, and the files of `compare`.

    Under torchrun the processes train together: each takes its share of every batch, and losses that support it sum
    over the whole batch. The first process writes; all processes must see the folder.

    Args:
        config: A configuration, a mapping with its keys, or the path of a YAML file.
        losses: Names of losses, presets, mixes, or paths of loss files; each is compared with the first.
        out: The folder to write to.
        seeds: Number of runs of each loss, at least 1.
        resume: Whether to continue the retraining in that folder. Losses and seeds may be appended to those it has.
        command: The command line, for the record.
        progress: Called at each checkpoint, in the first process only.
        on_data: Called with the data set before any training, in the first process only; by default its warnings are
            logged.

    Returns:
        The table of the runs; None in all processes but the first.

    Raises:
        InputError: A loss is unknown or given twice, or the batch can't be split evenly; raised before any training.
        RefusedError: The folder holds another retraining, or the configuration asks for a missing GPU.
    """
    settled = as_config(config)
    check_losses(losses, seeds, least=1)
    folder = Path(out).absolute()
    with _processes(settled) as world:
        if world.rank == 0:
            refuse_to_overwrite(folder, FILES, "retraining")
        proxy = _load(settled, on_data if world.rank == 0 else lambda _: None)
        modules = losses_of(losses, proxy.dataset, reduce_over_ranks=world.ranks > 1)
        proxy.training(modules[0], 0, device=world.device, over_ranks=world.ranks > 1)  # raises what would fail later
        retraining = Retraining(proxy.prepare(), settled.retrain, modules, folder, world, progress)
        if world.rank > 0:
            retraining.follow()
            return None
        plan = _plan(settled, losses, modules, seeds, world)
        table = run_comparison(
            plan,
            folder,
            retraining.lead,
            target=spec_label(settled.metric),
            notes={"": proxy.dataset.note},
            what="retraining",
            resume=resume,
            command=command,
            observer=None,
        )
        retraining.dismiss()
        return table


@dataclass(frozen=True)
class World:
    """The processes that train together: the rank of this one, their number, and the device of this one."""

    rank: int
    ranks: int
    device: torch.device


@contextmanager
def _processes(config: StudyConfig) -> Iterator[World]:
    """Join the processes that torchrun has started, if any."""
    device = device_of(config.resources.gpus)
    gpu = device.type == "cuda"
    if gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    ranks = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    if ranks == 1:
        yield World(0, 1, device)
        return
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield World(dist.get_rank(), ranks, device)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        # A DistributedDataParallel that outlives the group may hang: it joins gloo's threads while holding the GIL, for
        # which they wait. It is part of a reference cycle, so only the garbage collector frees it.
        gc.collect()
        dist.destroy_process_group()


def _load(config: StudyConfig, on_data: Callable[[Dataset], None] | None) -> Proxy:
    """The proxy of a configuration, with the schedule, data and start of the retraining."""
    own, proxy = config.retrain, config.proxy
    start = StartConfig(regime="scratch") if proxy.start.weights is None else proxy.start
    full = config.model_copy(update={"proxy": proxy.model_copy(update={"train": own, "start": start})})
    dataset = load_dataset(proxy.data.name, **{**proxy.data.options, **own.data})
    announce(dataset, on_data)
    return proxy_of(full, replace(dataset, train=dataset.all_training()))


def _plan(
    config: StudyConfig, losses: Sequence[str], modules: Sequence[Loss], seeds: int, world: World
) -> dict[str, Any]:
    """Everything that determines the results, as `plan.json` records it."""
    definitions = {name: bare_content(module) for name, module in zip(losses, modules, strict=True)}
    weights = config.proxy.start.weights
    full = fingerprint(config) | {"retrain": config.retrain.model_dump()}
    return {
        "version": PLAN_VERSION,
        "losses": list(losses),
        "seeds": comparison_seeds(config.search.seed, seeds),
        "metrics": columns_of(config.metric, CompareConfig().metrics)[0],
        "settings": [""],
        "configurations": {"": full},
        "definitions": {"": definitions},
        "weights": None if weights is None else hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        "processes": world.ranks,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True)
class Retraining:
    """The runs, which all processes go through together, one after another."""

    proxy: Proxy
    settings: RetrainConfig
    losses: tuple[Loss, ...]
    folder: Path
    world: World
    progress: Progress | None

    def lead(self, comparison: Comparison) -> None:
        """In the first process: run the unfinished jobs and record their outcomes."""
        while (job := comparison.next_job()) is not None:
            self._broadcast([1, job.step, job.index, job.seed])
            comparison.record(job, self._run(job))

    def dismiss(self) -> None:
        """In the first process: end the others and delete the last checkpoint."""
        (self.folder / CHECKPOINT_FILE).unlink(missing_ok=True)
        self._broadcast([0, 0, 0, 0])

    def follow(self) -> None:
        """In the other processes: take part in each job until dismissed."""
        while (message := self._broadcast([0, 0, 0, 0]))[0]:
            _, step, index, seed = message
            self._run(Job("compare", step, index, bare_content(self.losses[index]), seed))

    def _broadcast(self, numbers: list[int]) -> list[int]:
        """The numbers that the first process gives."""
        if self.world.ranks == 1:
            return numbers
        said = torch.tensor(numbers, device=self.world.device)
        dist.broadcast(said, 0)
        heard: list[int] = said.tolist()
        return heard

    def _run(self, job: Job) -> Outcome:
        start = time.perf_counter()
        try:
            validation = self._measure(self._train(job))
        except TrainingDiverged as error:
            return Outcome.failed(f"{type(error).__name__}: {error}", time.perf_counter() - start)
        return Outcome(validation[TARGET], {}, validation, error=None, seconds=time.perf_counter() - start)

    def _train(self, job: Job) -> nn.Module:
        world, settings = self.world, self.settings
        loss = self.losses[job.index].to(world.device)
        training = self.proxy.training(loss, job.seed, device=world.device, over_ranks=world.ranks > 1)
        path, run = self.folder / CHECKPOINT_FILE, [job.index, job.seed]
        if path.exists():
            kept = torch.load(path, map_location=world.device, weights_only=True)
            if kept["run"] == run:  # otherwise it is of the previous run
                training.load_state_dict(kept["training"])
        while training.iteration < settings.iterations:
            training.advance(training.iteration + settings.checkpoint_every)
            if world.rank == 0:
                _save({"run": run, "training": training.state_dict()}, path)
                if self.progress is not None:
                    self.progress(job, training.iteration)
        if world.rank == 0:
            _save(training.network.state_dict(), self.folder / f"{job.index}-{job.seed}.pt")
        return training.network

    @torch.inference_mode()
    def _measure(self, network: nn.Module) -> dict[str, float]:
        """Every metric on the full-size validation set, with the images split between the processes."""
        world, dataset = self.world, self.proxy.dataset
        scores = Accumulators(measured(self.proxy.target), len(dataset.classes), dataset.ignore_index)
        error = CalibrationError(len(dataset.classes), ignore_index=dataset.ignore_index)
        wrong = torch.zeros((), dtype=torch.int64, device=world.device)
        network.eval()
        for images, labels in _batches(dataset, world):
            output: Tensor | tuple[Tensor, Tensor] = network(to_input(images, world.device))
            target = torch.from_numpy(labels).to(world.device)
            logits = output if isinstance(output, Tensor) else output[0]
            if logits.shape[-2:] != target.shape[-2:]:
                logits = resize(logits, target[:, None])
            if missing := undefined(logits):
                wrong += missing
                continue
            scores.update(logits, target)
            error.update(logits, target)
        if world.ranks > 1:
            dist.all_reduce(wrong)  # all stop, or none
        if wrong:
            raise TrainingDiverged(
                f"training diverged: the trained network's logits are not finite at {int(wrong)} pixels of the "
                "validation set. Try a lower learning rate."
            )
        if world.ranks > 1:
            scores, error = scores.reduce(), error.reduce()
        return validation_values(scores, dataset.classes) | {CALIBRATION: error.compute()}


def _batches(dataset: Dataset, world: World) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Batches of validation images (N, 3, h, w) and labels (N, H, W) of this process, each batch of one size."""
    pairs = dataset.validation_images(world.rank, world.ranks)
    for _, alike in groupby(pairs, lambda pair: (pair[0].shape, pair[1].shape)):
        while part := list(islice(alike, _EVALUATION_BATCH)):
            images, labels = zip(*part, strict=True)
            yield np.stack(images), np.stack(labels)


def _save(content: Mapping[str, Any], path: Path) -> None:
    """Write a file that loads with `weights_only`, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
