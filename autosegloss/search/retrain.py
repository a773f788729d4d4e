"""`retrain`: train with losses for a full schedule, in one or more processes, and measure everything.

A run stopped at any point resumes from its last checkpoint; on the CPU its results are byte-identical.
"""

from __future__ import annotations

import gc
import hashlib
import io
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from autosegloss.errors import InputError, RefusedError, TrainingDiverged, cut, note
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
from autosegloss.proxy.users_code import users_code
from autosegloss.search.comparison import (
    UNTUNED_VERSION,
    Comparison,
    check_losses,
    check_runs,
    columns_of,
    losses_of,
    run_comparison,
)
from autosegloss.search.content import bare_content
from autosegloss.search.folder import CHECKPOINT_FILE, COMPARISON_FILES, WEIGHTS, check_folder
from autosegloss.search.head import Head, other_data, other_environment
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.objective import announce, proxy_of
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import RetrainConfig, StudyConfig, as_config, fingerprint
from autosegloss.search.tables import Table

_NAME = 80  # characters of a loss in the names of files
_EVALUATION_BATCH = 8  # images; of full size
_SEAL = 2 * hashlib.sha256().digest_size + 1  # bytes of the hash in a checkpoint

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
    order. The folder receives the weights of each run, `weights-LOSS-SEED.pt`, and the files of `compare`.

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
        SearchError: Every run failed; raised after the table with the errors is written.
    """
    settled = as_config(config)
    if settled.trial is not None:
        raise InputError(
            f"`autosegloss retrain` trains the proxy, which `trial: {cut(settled.trial)}` replaces. Train with your "
            "own trainer, by autosegloss.load_loss(FILE)."
        )
    check_losses(losses, seeds, least=1)
    folder = Path(out).absolute()
    with _processes(settled) as world:
        if world.rank == 0:
            check_folder(folder, COMPARISON_FILES, "retraining", resume)
            if not resume and (folder / CHECKPOINT_FILE).exists():
                raise RefusedError(
                    f"{cut(str(folder))} already holds a retraining with a checkpoint. Continue it with --resume, or "
                    "choose another folder."
                )
        proxy = _load(settled, on_data if world.rank == 0 else lambda _: None)
        modules = losses_of(losses, proxy.dataset, reduce_over_ranks=world.ranks > 1)
        proxy.training(modules[0], 0, device=world.device, over_ranks=world.ranks > 1)  # raises what would fail later
        head = Head.here(proxy.dataset.fingerprint(), settled.resources.gpus)
        retraining = Retraining(
            proxy.prepare(), settled.retrain, modules, file_names(losses), folder, world, head, progress
        )
        if world.rank > 0:
            retraining.follow()
            return None
        plan = _plan(settled, losses, modules, seeds, world)
        table = run_comparison(
            plan,
            folder,
            retraining.lead,
            target=spec_label(settled.goal),
            notes={"": proxy.dataset.note},
            what="retraining",
            resume=resume,
            head=head,
            command=command,
            observer=None,
        )
        retraining.dismiss()
        check_runs(table, folder)
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
    columns, verdicts, _ = columns_of(config.goal, None)
    return {
        "version": UNTUNED_VERSION,
        "losses": list(losses),
        "seeds": comparison_seeds(config.search.seed, seeds),
        "metrics": columns,
        "verdicts": verdicts,
        "settings": [""],
        "configurations": {"": full},
        "definitions": {"": definitions},
        "weights": None if weights is None else hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
        "processes": world.ranks,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def file_names(losses: Sequence[str]) -> tuple[str, ...]:
    """A name for the files of each loss: its letters, digits, dots and underscores; equal ones get a number.

    Names of losses that are appended later leave the others unchanged.

    Example:
        >>> file_names(["cross_entropy", "a/loss.json", "a loss", "0.5*jml + 0.5*lovasz"])
        ('cross_entropy', 'a-loss', 'a-loss-2', '0.5-jml-0.5-lovasz')
    """
    names: list[str] = []
    for loss in losses:
        name = re.sub(r"[^A-Za-z0-9._]+", "-", loss.removesuffix(".json"))[:_NAME].strip("-.") or "loss"
        taken = {each.lower() for each in names}  # some file systems don't tell a from A
        numbered = (f"{name}-{number}" for number in count(2))
        names.append(next(each for each in chain([name], numbered) if each.lower() not in taken))
    return tuple(names)


@dataclass(frozen=True)
class Retraining:
    """The runs, which all processes go through together, one after another."""

    proxy: Proxy
    settings: RetrainConfig
    losses: tuple[Loss, ...]
    names: tuple[str, ...]
    folder: Path
    world: World
    head: Head
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
            with users_code(f"the run of {self.names[job.index]} with seed {job.seed} failed"):
                validation = self._measure(self._train(job))
        except TrainingDiverged as error:
            return Outcome.failed(f"{type(error).__name__}: {error}", time.perf_counter() - start)
        return Outcome(validation[TARGET], {}, validation, error=None, seconds=time.perf_counter() - start)

    def _train(self, job: Job) -> nn.Module:
        world, settings = self.world, self.settings
        loss = self.losses[job.index].to(world.device)
        training = self.proxy.training(loss, job.seed, device=world.device, over_ranks=world.ranks > 1)
        path, run = self.folder / CHECKPOINT_FILE, [job.index, job.seed]
        kept = self._checkpoint(path)
        if kept is not None and kept["run"] == run:  # otherwise it is of the previous run
            training.load_state_dict(kept["training"])
        while training.iteration < settings.iterations:
            training.advance(training.iteration + settings.checkpoint_every)
            if world.rank == 0:
                content = {"run": run, "head": asdict(self.head), "training": training.state_dict()}
                write_bytes(path, _sealed(_saved(content)))
                if self.progress is not None:
                    self.progress(job, training.iteration)
        if world.rank == 0:
            name = f"weights-{self.names[job.index]}-{job.seed}{WEIGHTS}"
            write_bytes(self.folder / name, _saved(training.network.state_dict()))
        return training.network

    def _checkpoint(self, path: Path) -> dict[str, Any] | None:
        """The last checkpoint; None if there is none, or if it is damaged, so that its run starts again."""
        if not path.exists():
            return None
        content = _unsealed(path.read_bytes())
        if content is None:
            if self.world.rank == 0:
                note(f"{cut(str(path))}: the checkpoint is damaged; its run starts again from its beginning.")
            return None
        kept: dict[str, Any] = torch.load(io.BytesIO(content), map_location=self.world.device, weights_only=True)
        before = Head(**kept["head"])
        if changed := before.changed_data(self.head):
            raise RefusedError(other_data(path, "checkpoint", changed))
        if self.world.rank == 0 and (changes := before.changes(self.head)):
            note(other_environment(path, "checkpoint", changes))
        return kept

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


def _saved(content: Mapping[str, Any]) -> bytes:
    """A file that loads with `weights_only`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _sealed(content: bytes) -> bytes:
    """The content of a checkpoint after its hash, since torch does not notice a flipped bit."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _unsealed(data: bytes) -> bytes | None:
    """The content of a checkpoint; None if it is not as it was written."""
    content = data[_SEAL:]
    return content if _sealed(content) == data else None
