"""The command line: `autosegloss search | status | compare | retrain | report | show | evaluate | bench` and others."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autosegloss.errors import AutoseglossError, InputError, RefusedError
from autosegloss.files import write_text
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss, load_loss, named_loss, presets
from autosegloss.metric import METRICS, metric
from autosegloss.metric.parse import signature_text
from autosegloss.report.bench.loss import DEVICES, DTYPES, LOSSES, ROUNDS, SIZE, bench_loss
from autosegloss.report.bench.proxies import REPEATS, bench_proxies
from autosegloss.report.dry_run import dry_run
from autosegloss.report.evaluate import LabelFolders, evaluate, split_metrics, summary, values_table, worst_table
from autosegloss.report.logs import SCALARS_FOLDER, ComparisonLog, JsonLog, ScalarLog, status_record, together
from autosegloss.report.pages.contact_sheet import contact_sheet
from autosegloss.report.pages.report import READ, report_page
from autosegloss.report.plots import formula, plot_loss, text_plot
from autosegloss.report.progress import ComparisonDisplay, Display, status_text, written_text
from autosegloss.search import search
from autosegloss.search.api import status
from autosegloss.search.compare import compare
from autosegloss.search.folder import JOURNAL_FILE, LOSS_FILE
from autosegloss.search.jobs import Job
from autosegloss.search.retrain import retrain
from autosegloss.search.settings import json_schema, load_config

BAD_INPUT, FAILED = 2, 1
PAGE_FILE = "report.html"
_WORST = 5  # images of each list of a contact sheet, unless said


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0; 2 for bad input, with one message on standard error; 1 otherwise."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names and provenance may hold what it has no place for
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    try:
        given = _parser().parse_args(arguments)
        given.run(given, console)
        sys.stdout.flush()
    except AutoseglossError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ValueError | TypeError) else FAILED
    except BrokenPipeError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print("stopped; what a search has finished is in its journal: continue with --resume.", file=sys.stderr)
        return FAILED
    return 0


def _search(given: argparse.Namespace, console: Console) -> None:
    config = load_config(given.config, _overrides(given))
    if given.dry_run:
        console.print(dry_run(config, given.runner, given.address).to_text(), markup=False)
        return
    name = Path(given.config).stem
    folder = Path(given.out) if given.out else Path("results", name)
    workers = 1 if given.runner == "serial" else config.resources.workers
    report: JsonLog | Display = JsonLog(name, folder) if given.json_logs else Display(console, config, workers, folder)
    scalars = ScalarLog(folder / SCALARS_FOLDER) if given.tensorboard else None
    with ExitStack() as stack:
        stack.enter_context(report)
        observers = [report.update]
        if scalars is not None:
            stack.enter_context(scalars)
            observers.append(scalars.update)
        result = search(
            config,
            runner=given.runner,
            out=folder,
            resume=given.resume,
            observer=together(*observers),
            address=given.address,
        )
    report.end(result)


def _overrides(given: argparse.Namespace) -> list[str]:
    return [*given.set, *([f"resources.workers={given.workers}"] if given.workers is not None else [])]


def _compare(given: argparse.Namespace, console: Console) -> None:
    config = load_config(given.config, _overrides(given))
    name = Path(given.config).stem
    folder = Path(given.out) if given.out else Path("results", "compare", name)
    report = ComparisonLog(name, folder) if given.json_logs else ComparisonDisplay(console, folder)
    with report:
        table = compare(
            config,
            given.loss or None,
            folder,
            seeds=given.seeds,
            runner=given.runner,
            resume=given.resume,
            command=_command("compare", given),
            observer=report.update,
            address=given.address,
        )
    report.end(table)


def _retrain(given: argparse.Namespace, console: Console) -> None:
    config = load_config(given.config, given.set)
    folder = Path(given.out) if given.out else Path("results", "retrain", Path(given.config).stem)
    total = config.retrain.iterations

    def progress(job: Job, iteration: int) -> None:
        console.print(f"`{given.loss[job.index]}`, seed {job.seed}: {iteration} of {total} iterations", markup=False)

    table = retrain(
        config,
        given.loss,
        folder,
        seeds=given.seeds,
        resume=given.resume,
        command=_command("retrain", given),
        progress=progress,
    )
    if table is not None:
        console.print(table.to_markdown(), markup=False)
        console.print(written_text(folder), markup=False)


def _command(name: str, given: argparse.Namespace) -> str:
    """What decides the numbers of a table, and nothing else: the same one wherever and however it is made."""
    command = ["autosegloss", name, given.config, *(part for loss in given.loss for part in ("--loss", loss))]
    command += [] if given.seeds is None else ["--seeds", str(given.seeds)]
    return shlex.join([*command, *(part for key in given.set for part in ("--set", key))])


def _status(given: argparse.Namespace, console: Console) -> None:
    found = status(given.folder)
    if given.json:
        print(json.dumps(status_record(found), allow_nan=False))
    else:
        console.print(status_text(found), markup=False)


def _export(given: argparse.Namespace, console: Console) -> None:
    if not given.out and not given.python:
        raise InputError("export: give --out FILE for a loss file, --python FILE.py for a PyTorch module, or both.")
    if given.python and Path(given.python).suffix != ".py":
        raise InputError(f"--python {given.python}: the name of a module ends in .py.")
    folder = Path(given.loss)
    loss = _found_loss(folder) if folder.is_dir() else named_loss(given.loss)
    for path in filter(None, (given.out, given.python)):
        loss.save(path)
        console.print(f"wrote {path}", markup=False)


def _found_loss(folder: Path) -> Loss:
    """The loss of the finished search in a folder."""
    if not (folder / LOSS_FILE).exists():
        if (folder / JOURNAL_FILE).exists():
            raise RefusedError(
                f"{folder}: the search is not finished. Finish it with: autosegloss search CONFIG --resume."
            )
        raise InputError(f"{folder}: no {LOSS_FILE} in this folder; it is not that of a search.")
    return load_loss(folder / LOSS_FILE)


def _report(given: argparse.Namespace, console: Console) -> None:
    folder = Path(given.folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    out = Path(given.out) if given.out else folder / PAGE_FILE
    _check_writable(out)
    if out.resolve() in [(folder / name).resolve() for name in READ]:
        raise InputError(f"{out}: the page would replace what it is made from; choose another --out.")
    with console.status("training two networks for the pictures", spinner="line") as bar:
        if given.no_images:
            bar.update("drawing")
        page = report_page(folder, images=not given.no_images)
    write_text(out, page)
    console.print(f"wrote {out}", markup=False)


def _check_writable(path: Path) -> None:
    """See that a file can be written, before there is work to be lost."""
    parent = path.absolute().parent
    if path.is_dir() or not parent.is_dir():
        raise InputError(f"{path}: can't be written: it is a folder, or its folder does not exist.")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{path}: can't be written: its folder takes no files.")


def _show(given: argparse.Namespace, console: Console) -> None:
    loaded = load_loss(given.loss)
    loss = loaded.surrogate if isinstance(loaded, MixedLoss) else loaded
    console.print(f"loss      {formula(loaded)}", markup=False)
    if isinstance(loss, SurrogateLoss):
        console.print(f"logic     {loss.logic}\nclasses   {loss.classes}\ncurve     {loss.curve}")
        for slot, curve in loss.curves.items():
            console.print(f"\n{slot}", markup=False)
            points = "  ".join(f"({u:.4g}, {v:.4g})" for u, v in curve.points) or "none: the identity"
            console.print(f"control points: {points}", markup=False)
            console.print(textwrap.indent(text_plot(curve), "  "), markup=False)
    if loss.provenance:
        console.print("\nprovenance", markup=False)
        console.print(textwrap.indent(_summary(loss), "  "), markup=False)
    if given.plot:
        if not isinstance(loss, SurrogateLoss):
            raise InputError(f"{given.loss} has no curves to plot; leave --plot out.")
        plot_loss(loss, given.plot)
        console.print(f"\nwrote {given.plot}", markup=False)


def _summary(loss: Loss) -> str:
    """The provenance, a line for each thing it says."""
    return "\n".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in loss.provenance.items()
    )


def _metrics(given: argparse.Namespace, console: Console) -> None:
    names: dict[object, str] = {}
    for name, build in METRICS.items():
        title, expr = f"{name}{signature_text(build)}", build()
        if (same := names.setdefault(expr, name)) != name:
            console.print(f"{title}\n    {same} by its other name", markup=False)
            continue
        summary = " ".join((inspect.getdoc(build) or "").split("\n\n")[0].split())
        console.print(f"{title}\n    {summary}\n    {expr}", markup=False)
    console.print("Ignored pixels, absent classes, options, source: help(autosegloss.METRICS[NAME])", markup=False)


def _evaluate(given: argparse.Namespace, console: Console) -> None:
    metrics = {name: metric(name) for name in split_metrics(given.metric)}
    if given.worst is not None and given.worst < 1:
        raise InputError(f"--worst {given.worst}: the number of images a list shows is 1 or more.")
    if given.images and not given.sheet:
        raise InputError("--images: the pictures are shown in the contact sheet; name its file with --sheet FILE.html.")
    json_file = Path(given.json) if given.json not in (None, "-") else None
    sheet_file = Path(given.sheet) if given.sheet else None
    for path in filter(None, (json_file, sheet_file)):
        _check_writable(path)
    if json_file and sheet_file and json_file.resolve() == sheet_file.resolve():
        raise InputError(f"{json_file}: --json and --sheet name the same file.")
    folders = LabelFolders(Path(given.pred), Path(given.target), Path(given.images) if given.images else None)
    worst = given.worst or (_WORST if given.sheet else 0)
    with Progress(
        TextColumn("evaluating"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, emoji=False),  # standard output may be the JSON
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as bar:
        task = bar.add_task("evaluating", total=len(folders.names))
        evaluation = evaluate(
            folders,
            metrics,
            given.num_classes,
            given.ignore_index,
            worst,
            given.allow_missing,
            progress=lambda: bar.advance(task),
        )
    outputs = {json_file: evaluation.to_json()} if json_file else {}
    if sheet_file:
        outputs[sheet_file] = contact_sheet(evaluation, folders)
    for path, text in outputs.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: can't be written: {error.strerror}.") from None
    if given.json == "-":
        print(evaluation.to_json(), end="")
        return
    console.print(summary(evaluation), markup=False)
    console.print("values in %; - where a class does not count:")
    console.print(values_table(evaluation), soft_wrap=False, crop=False)
    if worst:
        console.print("worst images by their own score in %, of a class among those whose label has it:")
        console.print(worst_table(evaluation), soft_wrap=False, crop=False)
    for path in outputs:
        console.print(f"wrote {path}", markup=False)


def _bench_loss(given: argparse.Namespace) -> str:
    return bench_loss(given.loss, given.size, given.dtype, given.device, given.repeats)


def _bench_proxies(given: argparse.Namespace) -> str:
    config, trials = load_config(given.config, given.set), given.trials or [1, 4]
    command = ["autosegloss", "bench", "proxies", given.config, *(part for key in given.set for part in ("--set", key))]
    command += [part for number in trials for part in ("--trials", str(number))]
    return bench_proxies(config, trials, given.iterations, shlex.join(command)).to_markdown()


def _bench(given: argparse.Namespace, console: Console) -> None:
    with console.status("measuring", spinner="line"):
        table = given.measure(given)
    console.print(table, markup=False)


def _schema(given: argparse.Namespace, console: Console) -> None:
    console.print(json.dumps(json_schema(), indent=2), markup=False)


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one message."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See: {self.prog} --help")


def _add_study(command: argparse.ArgumentParser, what: str, out: str) -> None:
    """The arguments of a command that trains the proxy of a configuration."""
    command.add_argument("config", metavar="CONFIG", help="a YAML file; see search_configs/")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY.SUB=VALUE", help="override a key of the file"
    )
    command.add_argument("--out", metavar="DIR", help=f"where to write; default: {out}")
    command.add_argument("--resume", action="store_true", help=f"continue the {what} in that folder")


def _add_losses(command: argparse.ArgumentParser, seeds: int | None) -> None:
    """The arguments of a command that trains with losses; seeds are the default, None that of the configuration."""
    losses = "; default: compare.losses" if seeds is None else ""
    command.add_argument(
        "--loss",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a loss by name, or a loss file; give it again{losses}",
    )
    default = "compare.seeds" if seeds is None else seeds
    command.add_argument("--seeds", type=int, default=seeds, metavar="K", help=f"runs of each loss; default: {default}")


def _add_runner(command: argparse.ArgumentParser) -> None:
    """The arguments of a command that runs trials."""
    command.add_argument("--workers", metavar="N", help="trials side by side (resources.workers)")
    command.add_argument("--runner", choices=("ray", "serial"), default="ray", help="default: ray")
    command.add_argument("--address", metavar="HOST:PORT", help="a running Ray cluster to join; default: $RAY_ADDRESS")
    command.add_argument("--json-logs", action="store_true", help="one JSON object a line on standard output")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="autosegloss", description="Search losses for segmentation metrics, and use them.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("search", help="search the loss that trains best for a metric")
    _add_study(command, "search", "results/<name of the file>")
    _add_runner(command)
    command.add_argument(
        "--dry-run", action="store_true", help="check everything, measure one iteration, tell the cost, write nothing"
    )
    command.add_argument("--tensorboard", action="store_true", help=f"scalars for TensorBoard, in DIR/{SCALARS_FOLDER}")
    command.set_defaults(run=_search)

    command = commands.add_parser(
        "compare",
        help="train with several losses on the same seeds, and tabulate every metric",
        description="Train the proxy of a configuration with each loss on the same fresh seeds, in each setting of its "
        "section `compare`, and compare all with the first on the validation set.",
    )
    _add_losses(command, seeds=None)
    _add_study(command, "comparison", "results/compare/<name of the file>")
    _add_runner(command)
    command.set_defaults(run=_compare)

    command = commands.add_parser(
        "retrain",
        help="train with a loss to the end of a full schedule",
        description="Train as the section `retrain` of the configuration says, on the whole training set, and measure "
        "every metric on the validation set. Under torchrun, as `torchrun --nproc-per-node 2 -m autosegloss.cli "
        "retrain ...`, its processes train together.",
    )
    _add_losses(command, seeds=1)
    _add_study(command, "retraining", "results/retrain/<name of the file>")
    command.set_defaults(run=_retrain)

    command = commands.add_parser("status", help="where the search in a folder stands, running or not")
    command.add_argument("folder", metavar="DIR", help="the folder a search writes to")
    command.add_argument("--json", action="store_true", help="as one JSON object")
    command.set_defaults(run=_status)

    command = commands.add_parser(
        "report",
        help="one HTML file of a finished search, comparison or retraining",
        description="One HTML file that needs nothing else: the course of a search, curves, loss surfaces, all metrics "
        "with intervals, classes, pictures of validation images, and provenance. For the pictures two of the trainings "
        "are run once more.",
    )
    command.add_argument("folder", metavar="DIR", help="the folder of the search, comparison or retraining")
    command.add_argument("--out", metavar="FILE", help=f"the page to write; default: DIR/{PAGE_FILE}")
    command.add_argument("--no-images", action="store_true", help="leave the pictures out, and train nothing")
    command.set_defaults(run=_report)

    command = commands.add_parser("export", help="write a loss to a file: as JSON, or as a PyTorch module of its own")
    command.add_argument(
        "loss", metavar="DIR|LOSS", help="the folder of a finished search, a loss file, or a loss by name"
    )
    command.add_argument("--out", metavar="FILE", help="the loss file to write")
    command.add_argument("--python", metavar="FILE.py", help="the module to write; it imports nothing but PyTorch")
    command.set_defaults(run=_export)

    command = commands.add_parser("show", help="a loss: formula, slots, control points, curves")
    command.add_argument("loss", metavar="LOSS", help=f"a loss file, or one of: {', '.join(presets())}")
    command.add_argument("--plot", metavar="FILE", help="draw it as a picture (.png, .svg, .pdf)")
    command.set_defaults(run=_show)

    command = commands.add_parser("metrics", help="the catalogue of metrics, with their formulas")
    command.set_defaults(run=_metrics)

    command = commands.add_parser(
        "evaluate",
        help="metrics of predicted label maps, and the images that score worst",
        description="Compare folders of PNG label maps (grey or palette; sub-folders too), paired by path without "
        "ending. A score of an image is the metric of that image alone.",
    )
    command.add_argument("--pred", required=True, metavar="DIR", help="the predicted labels")
    command.add_argument("--target", required=True, metavar="DIR", help="the true labels")
    command.add_argument("--num-classes", required=True, type=int, metavar="C", help="labels are 0 to C - 1")
    command.add_argument(
        "--metric", required=True, metavar="NAME,...", help='names or expressions, as in "miou,bf1(radius=3)"'
    )
    command.add_argument(
        "--ignore-index", type=int, default=255, metavar="LABEL", help="label of pixels that do not count; default: 255"
    )
    command.add_argument("--worst", type=int, metavar="N", help="list the N worst images per metric and per class")
    command.add_argument(
        "--sheet", metavar="FILE.html", help=f"show them as a page (the {_WORST} worst, unless --worst says)"
    )
    command.add_argument("--images", metavar="DIR", help="the pictures, shown in the sheet")
    command.add_argument("--json", metavar="FILE", help="write it all as JSON; - for standard output, and nothing else")
    command.add_argument("--allow-missing", action="store_true", help="leave out files that have no partner")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("bench", help="measure speed and memory on this machine")
    benches = command.add_subparsers(title="what to measure", required=True, metavar="WHAT")

    command = benches.add_parser("loss", help="losses, as ratios to cross-entropy")
    command.add_argument("--size", default=SIZE, metavar="NxCxHxW", help=f"of the logits; default: {SIZE}")
    command.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of the logits; default: {DTYPES[0]}")
    command.add_argument("--device", choices=DEVICES, default=DEVICES[0], help=f"default: {DEVICES[0]}")
    command.add_argument(
        "--loss",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a metric, a loss by name, or a loss file; give it again; default: {', '.join(LOSSES)}",
    )
    command.add_argument("--repeats", type=int, default=ROUNDS, metavar="N", help=f"rounds; default: {ROUNDS}")
    command.set_defaults(run=_bench, measure=_bench_loss)

    command = benches.add_parser(
        "proxies", help="proxies an hour, one at a time and several side by side, on made-up images"
    )
    command.add_argument("config", metavar="CONFIG", help="a YAML file, such as search_configs/voc.yaml")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY.SUB=VALUE", help="override a key of the file"
    )
    command.add_argument(
        "--trials", action="append", type=int, metavar="K", help="side by side; give it again; default: 1, then 4"
    )
    command.add_argument("--iterations", type=int, default=20, metavar="N", help=f"timed, {REPEATS} times; default: 20")
    command.set_defaults(run=_bench, measure=_bench_proxies)

    command = commands.add_parser("schema", help="the JSON schema of configuration files, for editors")
    command.set_defaults(run=_schema)
    return parser


if __name__ == "__main__":
    sys.exit(main())
