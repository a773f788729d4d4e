"""What losses cost, beside those of other packages, and in which modules the time goes."""

from __future__ import annotations

import argparse
import cProfile
import importlib
import json
import os
import pstats
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

import autosegloss
from autosegloss.files import write_text
from autosegloss.loss import MixedLoss, SurrogateLoss
from autosegloss.loss.named import named_loss
from autosegloss.loss.relax import LogicKind
from autosegloss.metric import METRICS, metric
from autosegloss.proxy.train import one_thread
from autosegloss.report.bench import loss as bench_loss
from autosegloss.report.bench.loss import IGNORED, Loss, batch, checked, measure, seconds, surrogate
from autosegloss.report.environment import about
from results.common.script import run, script

MODULE = "results.bench.loss"
NAMED: Final = (
    "cross_entropy",
    "cross_entropy(class_power=0.5)",
    "focal",
    "lovasz",
    "generalized_dice",
    "jml",
    "dml",
    "0.5*lovasz + 0.5*jml",
)
COMPILED: Final = ("miou", "fwiou", "macc", "gacc", "dice", "tversky")
PROFILED: Final = ("miou", "biou", "bf1")
LEAST: Final = 0.02
"""Share of the time from which on a module is listed."""


def of_this_package() -> dict[str, Loss]:
    """Every metric of the catalogue, some also compiled, in another logic or under other curves; losses by name."""
    names: dict[object, list[str]] = {}
    for name in METRICS:
        names.setdefault(metric(name), []).append(name)
    losses: dict[str, Loss] = {" = ".join(same): surrogate(same[0]) for same in names.values()}
    if shutil.which("c++"):
        losses |= {f"{name}, compiled": torch.compile(surrogate(name)) for name in COMPILED}
    both = MixedLoss([(0.5, _under_log_curves("product")), (0.5, _under_log_curves("lovasz"))])
    losses |= {
        "miou, log curves": _under_log_curves("product"),
        "miou, lovasz, log curves": _under_log_curves("lovasz"),
        "miou, product + lovasz, log curves": both,
        "miou_i, lovasz, no curves": SurrogateLoss("miou_i", logic="lovasz", classes="present", ignore_index=IGNORED),
    }
    return losses | {name: named_loss(name, ignore_index=IGNORED) for name in NAMED}


def _under_log_curves(logic: LogicKind) -> SurrogateLoss:
    return SurrogateLoss("miou", [[(0.5, 0.75)], [(0.5, 0.25)]], logic, "log", ignore_index=IGNORED)


def of_others() -> tuple[dict[str, Loss], list[str]]:
    """The losses of other packages, and the packages that can't be imported."""
    losses: dict[str, Loss] = {}
    left_out = []
    for package, build in PEERS.items():
        try:
            module = importlib.import_module(f"{package}.losses")
        except Exception:  # a damaged dependency of theirs raises anything
            left_out.append(package)
            continue
        losses |= {f"{package} {name}": loss for name, loss in build(module).items()}
    return losses, left_out


def _of_smp(module: Any) -> dict[str, Loss]:
    names = ("DiceLoss", "TverskyLoss", "LovaszLoss")
    losses = {name: getattr(module, name)(mode="multiclass", ignore_index=IGNORED) for name in names}
    return losses | {"JaccardLoss": _filled(module.JaccardLoss(mode="multiclass"))}


def _of_monai(module: Any) -> dict[str, Loss]:
    dice, options = module.DiceLoss, {"softmax": True, "to_onehot_y": True}
    losses = {
        "DiceLoss": dice(**options),
        "DiceLoss, jaccard=True": dice(jaccard=True, **options),
        "TverskyLoss": module.TverskyLoss(**options),
    }

    def channel(loss: Loss) -> Loss:
        return lambda logits, labels: loss(logits, labels.unsqueeze(1))

    return {name: _filled(channel(loss)) for name, loss in losses.items()}


def _of_kornia(module: Any) -> dict[str, Loss]:
    return {
        "dice_loss": _filled(module.dice_loss),
        "tversky_loss": _filled(lambda logits, labels: module.tversky_loss(logits, labels, 0.3, 0.7)),
        "lovasz_softmax_loss": _filled(module.lovasz_softmax_loss),
    }


def _filled(loss: Loss) -> Loss:
    """A loss that can't ignore pixels: they are of class 0."""
    return lambda logits, labels: loss(logits, labels.masked_fill(labels == IGNORED, 0))


PEERS: Final[Mapping[str, Callable[[Any], dict[str, Loss]]]] = {
    "segmentation_models_pytorch": _of_smp,
    "monai": _of_monai,
    "kornia": _of_kornia,
}


def bench(out: Path, size: str, dtype: str, device: str, rounds: int) -> str:
    """Measure all losses, and write `loss.json` and `loss.md`; the arguments are those of `autosegloss bench loss`."""
    shape = checked(size, dtype, device, rounds)
    peers, left_out = of_others()
    losses = {name: x.to(device) if isinstance(x, torch.nn.Module) else x for name, x in of_this_package().items()}
    unit, costs = measure(losses | peers, size, dtype, device, rounds)
    logits, labels = batch(shape, getattr(torch, dtype), device)
    with one_thread():
        shares = {name: profiled(surrogate(name).to(device), logits, labels) for name in PROFILED}
    allocator = [f"{name}={x}" for name, x in sorted(os.environ.items()) if name.startswith("MALLOC_")]  # of glibc
    options = f"--repeats {rounds} --size {size} --dtype {dtype}" + (" --device cuda" if device == "cuda" else "")
    summary = {
        "command": " ".join([*allocator, f"python -m {MODULE} {options}"]),
        "about": about(device, "autosegloss", "torch", "triton", *PEERS),
        "left_out": left_out,
        "case": f"{device}, {dtype}, {size}",
        "rounds": rounds,
        "unit": unit,
        "costs": costs,
        "shares": shares,
    }
    table = to_markdown(summary)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "loss.json", json.dumps(summary, indent=1) + "\n")
    write_text(out / "loss.md", table)
    return table


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


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The table of a summary."""
    lines = [
        f"What losses cost: {summary['case']}.",
        "",
        bench_loss.to_markdown(summary["unit"], summary["costs"]),
        "",
        "Time: a forward and a backward pass, as a ratio to torch's cross-entropy in the same round: medians "
        f"[quartiles] of {summary['rounds']} rounds, on the CPU of the processor's time on one thread. Memory: the "
        "peak of what torch allocates in both passes beyond the batch, the gradient of the logits with it. Data: "
        "normal logits, raised by 4 at labels that are right at most pixels; smooth random label maps, 4% of the "
        "pixels ignored (of class 0 for a loss that can't ignore). Every slot of a metric has a bezier of two "
        "pieces where nothing else is said.",
        "",
        "Large tensors are fresh memory on every pass, and the kernel's time for it is counted; cross-entropy takes "
        "more of it than most. An allocator that keeps memory spares it: in glibc by the variables "
        "`MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000`.",
        "",
        "Where the time goes, by the module at work or that calls torch (cProfile):",
        "",
    ]
    for name, shares in summary["shares"].items():
        parts = [f"`{module}` {100 * share:.0f}%" for module, share in shares.items() if share >= LEAST]
        lines.append(f"- {name}: {', '.join(parts)}")
    missing = f" Not installed: {', '.join(summary['left_out'])}." if summary["left_out"] else ""
    return "\n".join([*lines, "", f"Command: `{summary['command']}`. {summary['about']}.{missing}", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = script(MODULE, "Losses, as ratios to cross-entropy, beside those of other packages.")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="rounds; default: 10")
    parser.add_argument("--size", default=bench_loss.SIZE, help=f"of the logits; default: {bench_loss.SIZE}")
    parser.add_argument("--dtype", default="float32", choices=bench_loss.DTYPES, help="default: float32")
    parser.add_argument("--device", default="cpu", choices=bench_loss.DEVICES, help="default: cpu")

    def measured(given: argparse.Namespace) -> str:
        return bench(given.out, given.size, given.dtype, given.device, given.repeats)

    run(parser, measured, arguments)


if __name__ == "__main__":
    main()
