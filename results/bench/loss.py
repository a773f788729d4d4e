"""What losses cost, beside those of other packages, and whether that is what was aimed at."""

from __future__ import annotations

import argparse
import cProfile
import importlib
import json
import os
import pstats
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

import autosegloss
from autosegloss.errors import InputError
from autosegloss.loss.named import named_loss
from autosegloss.metric import METRICS, metric
from autosegloss.proxy.train import one_thread
from autosegloss.report.bench.loss import (
    DTYPES,
    IGNORED,
    Case,
    Loss,
    Way,
    batch,
    digits,
    measure,
    parse_size,
    seconds,
    surrogate,
)
from autosegloss.report.environment import machine, packages
from results.bench.metrics import listed, unusable
from results.common.script import run, script

MODULE = "results.bench.loss"
SIZES: Final = ("8x21x128x128", "8x21x256x256", "8x21x512x512", "4x150x512x512", "2x4x96x96x96")
POINTWISE: Final = ("miou", "fwiou", "macc", "gacc", "dice", "tversky")
_LEAST: Final = 0.02  # of the time, that is listed


@dataclass(frozen=True)
class PeerWay(Way):
    """A loss of another package, which may not be installed."""

    needs: str = ""


def ways() -> tuple[Way, ...]:
    """All losses there are to measure: ours, ours compiled, classics, and those of other packages."""
    names: dict[object, list[str]] = {}
    for name in METRICS:
        names.setdefault(metric(name), []).append(name)
    ours = [Way(" = ".join(same), partial(surrogate, same[0]), "autosegloss") for same in names.values()]
    compiled = [Way(name, partial(_compiled, name), "compiled") for name in POINTWISE if shutil.which("c++")]
    classics = [
        Way(name, partial(named_loss, name), "classic")
        for name in ("cross_entropy", "focal", "lovasz", "generalized_dice", "jml", "dml")
    ]
    smp, monai = "segmentation_models_pytorch", "monai"
    peers = [
        *(
            PeerWay(f"{name}Loss", partial(_of_smp, f"{name}Loss"), smp, True, smp)
            for name in ("Dice", "Tversky", "Lovasz")
        ),
        PeerWay("JaccardLoss", partial(_of_smp, "JaccardLoss"), smp, False, smp),
        PeerWay("DiceLoss", partial(_of_monai, "DiceLoss"), monai, False, monai),
        PeerWay("DiceLoss, jaccard=True", partial(_of_monai, "DiceLoss", jaccard=True), monai, False, monai),
        PeerWay("TverskyLoss", partial(_of_monai, "TverskyLoss"), monai, False, monai),
        *(
            PeerWay(name, partial(_of_kornia, name, *more), "kornia", False, "kornia")
            for name, *more in (("dice_loss",), ("tversky_loss", 0.3, 0.7), ("lovasz_softmax_loss",))
        ),
    ]
    return (*ours, *compiled, *classics, *peers)


def needs(way: Way) -> str:
    """The package that a loss is of; empty for ours."""
    return way.needs if isinstance(way, PeerWay) else ""


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
class Profile:
    """Where the time goes, in shares by module, of a loss that takes longer than a goal."""

    device: str
    dtype: str
    size: str
    kind: str
    name: str
    shares: dict[str, float]


@dataclass(frozen=True)
class Costs:
    """All that one run of the benchmark found."""

    command: str
    machine: dict[str, str]
    packages: dict[str, str]
    left_out: dict[str, str]
    rounds: int
    cases: list[Case] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)

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
        raise InputError(f"repeats must be 10 or more, got {rounds}.")
    for size in sizes:
        parse_size(size)
    if wrong := set(dtypes) - set(DTYPES):
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {', '.join(sorted(wrong))}.")
    chosen = [way for way in ways() if not names or way.name.startswith(tuple(names))]
    if not chosen:
        raise InputError(f"no loss starts with {', '.join(names)}; there are: {'; '.join(way.name for way in ways())}.")
    left_out = unusable(map(needs, chosen))
    if not shutil.which("c++"):
        left_out["torch.compile"] = "no C++ compiler"
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    options = [f"--{key} {x}" for key, some in (("size", sizes), ("dtype", dtypes), ("loss", names)) for x in some]
    allocator = [f"{name}={x}" for name, x in sorted(os.environ.items()) if name.startswith("MALLOC_")]  # of glibc
    about = machine() | {"threads used": "1", "GPU": torch.cuda.get_device_name() if devices[1:] else "none"}
    costs = Costs(
        command=" ".join([*allocator, f"python -m {MODULE} --repeats {rounds}", *options]),
        machine=about,
        packages=packages("autosegloss", "torch", "triton", "segmentation_models_pytorch", "monai", "kornia"),
        left_out=left_out,
        rounds=rounds,
    )
    out.mkdir(parents=True, exist_ok=True)
    usable = [way for way in chosen if needs(way) not in left_out]
    for device in devices:
        for dtype in dtypes:
            for size in sizes if (device, dtype) != ("cpu", "float16") else ():
                with one_thread():
                    costs.cases.append(measure(usable, device, dtype, size, rounds))
                    costs.profiles.extend(profiles(costs.cases[-1], usable))
                (out / "loss.json").write_text(costs.to_json(), encoding="utf-8")
                (out / "loss.md").write_text(costs.to_markdown(), encoding="utf-8")
    return costs


def profiles(case: Case, ways: Iterable[Way]) -> list[Profile]:
    """Where the time goes of the losses that take longer than a goal."""
    logits, labels = batch(parse_size(case.size), case.device, getattr(torch, case.dtype))
    found, where = [], (case.device, case.dtype, case.size)
    for way, cost in zip(ways, case.costs, strict=True):
        limits = [goal.time for goal in GOALS if goal.counts(*where, cost.kind, cost.name)]
        if cost.time and limits and cost.time.median > min(limits):
            found.append(Profile(*where, cost.kind, cost.name, profiled(way.start(), logits, labels)))
    return found


def profiled(loss: Loss, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Where the time of both passes goes, in shares by module of this package, the largest first.

    The time of what a module calls outside this package is its own; that of autograd is the engine's.
    """
    seconds(loss, logits, labels)  # imports on first use are none of it
    recorded = cProfile.Profile()
    recorded.enable()
    for _ in range(3):
        seconds(loss, logits, labels)
    recorded.disable()
    calls: Any = pstats.Stats(recorded).stats  # type: ignore[attr-defined]  # of typeshed's
    home = Path(autosegloss.__file__).parent

    def owner(function: tuple[str, int, str]) -> str:
        """The module that a function's time belongs to: its own, or the one that it is mostly called from."""
        seen = {function}
        while True:
            path = Path(function[0])
            if path.is_relative_to(home) and not path.is_relative_to(home / "report"):
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
    for function, (_, _, own, _, callers) in calls.items():
        parts = {by: times[2] for by, times in callers.items()} if function[0] == "~" else {function: own}
        for by, part in parts.items():
            name = owner(function if "run_backward" in function[2] else by)
            spent[name] = spent.get(name, 0) + part
    whole = sum(spent.values())
    return {name: part / whole for name, part in sorted(spent.items(), key=lambda item: -item[1])}


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
    if costs.profiles:
        lines += [
            "",
            "Where the time goes that is above a goal, by the module at work or that calls torch (cProfile):",
            "",
        ]
    for late in costs.profiles:
        parts = [f"`{name}` {100 * share:.0f}%" for name, share in late.shares.items() if share >= _LEAST]
        lines.append(f"- {late.kind}, {late.name}, {late.device}, {late.dtype}, {late.size}: {', '.join(parts)}.")
    for case in costs.cases:
        lines += ["", f"## {case.device}, {case.dtype}, {case.size}", "", case.to_markdown()]
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "Losses, as ratios to cross-entropy, beside smp, monai and kornia.")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="rounds; default: 10")
    parser.add_argument(
        "--size",
        action="append",
        metavar="NxCxHxW",
        help=f"of the logits; may be given again, as in {' '.join(SIZES)}; default: {SIZES[1]}",
    )
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, help="of the logits; may be given again; default: float32"
    )
    parser.add_argument(
        "--loss", action="append", default=[], metavar="NAME", help="start of the name of a loss; may be given again"
    )

    def table(given: argparse.Namespace) -> str:
        sizes, dtypes = given.size or SIZES[1:2], given.dtype or DTYPES[:1]
        return bench_loss(given.repeats, sizes, dtypes, given.loss, given.out).to_markdown()

    run(parser, table, arguments)


if __name__ == "__main__":
    main()
