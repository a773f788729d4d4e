"""The command line: `autosegloss search | recommend | status | compare | report | show | evaluate` and others."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from autosegloss.errors import MESSAGE, AutoseglossError, ConfigError, InputError, brief, cut, note
from autosegloss.files import write_text
from autosegloss.loss import Loss, load_loss, loss_names
from autosegloss.loss.named import FORMS
from autosegloss.metric import METRICS, Expr, metric
from autosegloss.metric.catalogue import OF_CLASSES
from autosegloss.metric.decision import BOUND
from autosegloss.metric.parse import signature_text
from autosegloss.metric.settings import CALIBRATION
from autosegloss.proxy.data import Dataset
from autosegloss.proxy.data.values import ValueMap
from autosegloss.report.bench.loss import DEVICES, DTYPES, LOSSES, ROUNDS, SIZE, bench_loss
from autosegloss.report.bench.proxies import REPEATS, bench_proxies
from autosegloss.report.data import data_text, warn
from autosegloss.report.dry_run import check_rest, dry_run
from autosegloss.report.evaluate import (
    LabelFolders,
    evaluate,
    names_to_evaluate,
    refuse_inputs,
    split_metrics,
    summary,
    value_maps,
)
from autosegloss.report.logs import SCALARS_FOLDER, ComparisonLog, JsonLog, ScalarLog, status_record
from autosegloss.report.offsets import USUAL, SavedScores, fit_folder, fitted_tables
from autosegloss.report.output import Output, interruptible
from autosegloss.report.pages.contact_sheet import contact_sheet
from autosegloss.report.pages.report import report_page
from autosegloss.report.plots import plot_loss, surrogates
from autosegloss.report.progress import ComparisonDisplay, Display, progress_bar, status_text, written_text
from autosegloss.report.shown import loss_text, provenance_lines
from autosegloss.report.tables import values_table, worst_table
from autosegloss.search import search
from autosegloss.search.api import found_loss, status
from autosegloss.search.compare import compare
from autosegloss.search.folder import refuse_results
from autosegloss.search.jobs import Job
from autosegloss.search.retrain import retrain
from autosegloss.search.runners.last_word import last_word
from autosegloss.search.settings import StudyConfig, json_schema, load_config
from autosegloss.search.study import Study
from autosegloss.search.tabulate import tabulate

Commands = Any  # what add_subparsers returns, whose class is private
BAD_INPUT, FAILED = 2, 1
LOSS_HELP = "the folder of a finished search, a loss file, or the name of a loss"
PAGE_FILE = "report.html"
_WORST = 5  # images per list of a contact sheet, by default


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0; 2 for bad input, with one message on standard error; 1 otherwise."""
    output = Output(sys.stdout)
    try:
        with interruptible(), redirect_stdout(output):
            given = _parser().parse_args(arguments)
            trains = given.run in (_search, _recommend, _compare, _retrain) and not getattr(given, "dry_run", False)
            output.needed = not trains  # else the results are files
            given.run(given, Console(highlight=False, soft_wrap=True, emoji=False))
            output.flush()
    except AutoseglossError as error:
        _say(f"{type(error).__name__}: {error}")
        return BAD_INPUT if isinstance(error, ValueError | TypeError) else FAILED
    except BrokenPipeError:  # the reader of standard output has closed it
        return FAILED
    except OSError as error:  # a name that is too long for the system, or a disk that fails
        what = "" if error.filename is None else f"{cut(str(error.filename))}: "
        _say(f"OSError: {what}{error.strerror or error}.")
        return BAD_INPUT if error.filename is not None else FAILED
    except KeyboardInterrupt:
        again = " Finished trials are in the journal; continue with --resume." if not output.needed else ""
        _say(f"Interrupted.{again}")
        return FAILED
    finally:
        output.settle()
    return 0


def _say(message: str) -> None:
    with suppress(OSError):  # standard error is closed, or on a full disk
        print(brief(message, MESSAGE - 1), file=sys.stderr)  # and a line break


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one message."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. See: {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="autosegloss", description="Search for losses for segmentation metrics, and use them.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (
        _add_search,
        _add_recommend,
        _add_compare,
        _add_retrain,
        _add_status,
        _add_report,
        _add_export,
        _add_show,
        _add_losses_list,
        _add_metrics,
        _add_evaluate,
        _add_fit_offsets,
        _add_bench,
        _add_schema,
    ):
        add(commands)
    return parser


# Training: search, compare, retrain -----------------------------------------------------------------------------------


def _add_search(commands: Commands) -> None:
    command = commands.add_parser("search", help="search for the loss that trains best for a metric")
    _add_config(command)
    _add_out(command, "results/<name of the file>")
    _add_runner(command)
    command.add_argument("--dry-run", action="store_true", help="run every part once, estimate the cost, write nothing")
    command.add_argument("--tensorboard", action="store_true", help=f"also write scalars to DIR/{SCALARS_FOLDER}")
    command.set_defaults(run=_search)


def _search(given: argparse.Namespace, console: Console) -> None:
    try:
        config = load_config(given.config, _overrides(given))
    except ConfigError as error:
        if given.dry_run:
            check_rest(error, given.config)
        raise
    if given.dry_run:
        forecast = dry_run(config, given.runner, given.address)
        console.print(forecast.to_text(), markup=False)
        warn(forecast.warnings)
        return
    _run_search(config, given, console, _folder(given))


def _run_search(config: StudyConfig, given: argparse.Namespace, console: Console, folder: Path) -> None:
    """Search, and show it."""
    workers = 1 if given.runner == "serial" else config.resources.workers
    report = JsonLog(_name(given), folder) if given.json_logs else Display(console, config, workers, folder)
    observers = [report, *([ScalarLog(folder / SCALARS_FOLDER)] if given.tensorboard else [])]

    def observe(study: Study) -> None:
        for each in observers:
            each.update(study)

    with ExitStack() as stack:
        for each in observers:
            stack.enter_context(each)
        if given.runner == "ray":
            stack.enter_context(last_word())
        result = search(
            config,
            runner=given.runner,
            out=folder,
            resume=given.resume,
            observer=observe,
            address=given.address,
            on_data=report.data,
        )
    report.end(result)


def _add_recommend(commands: Commands) -> None:
    command = commands.add_parser(
        "recommend",
        help="find the best of the losses that people use, and whether a search may find a better one",
        description="Train with the losses that people use, each at several steps, and with the best of them again on "
        "fresh seeds: a search without steps. The end says which loss to take, what it gains on cross-entropy, and "
        "whether a search has headroom.",
    )
    _add_config(command)
    _add_out(command, "results/recommend/<name of the file>")
    _add_runner(command)
    command.set_defaults(run=_recommend, tensorboard=False)


def _recommend(given: argparse.Namespace, console: Console) -> None:
    changes = [*_overrides(given), "search.steps=0"]
    if load_config(given.config, _overrides(given)).rivals.losses == []:
        note("rivals.losses is empty in this configuration: the losses that people use take its place.")
        changes.append("rivals.losses=null")
    _run_search(load_config(given.config, changes), given, console, _folder(given, "recommend"))


def _add_compare(commands: Commands) -> None:
    command = commands.add_parser(
        "compare",
        help="train with several losses on the same seeds, and tabulate every metric",
        description="Train the proxy of a configuration with each loss on the same fresh seeds, in each setting of its "
        "section `compare`, and compare every loss with the first, or with --baseline, on the validation set. With the "
        "folder of a finished comparison instead of a configuration, tabulate it again without training: "
        "`autosegloss compare DIR --baseline lovasz --metrics 'miou,iou(1)'`.",
    )
    _add_config(command, "CONFIG|DIR", "a YAML file, see search_configs/; or the folder of a finished comparison")
    _add_losses(command, seeds=None)
    command.add_argument("--baseline", metavar="NAME", help="the loss to compare the others with; default: the first")
    columns = "the columns of the table, and the metrics that have verdicts; default: compare.metrics"
    command.add_argument("--metrics", metavar="NAME,...", help=columns)
    _add_out(command, "results/compare/<name of the file>")
    _add_runner(command)
    command.set_defaults(run=_compare)


def _compare(given: argparse.Namespace, console: Console) -> None:
    metrics = split_metrics(given.metrics) if given.metrics is not None else None
    if Path(given.config).is_dir():
        _tabulate(given, metrics, console)
        return
    config, folder = load_config(given.config, _overrides(given)), _folder(given, "compare")
    report = ComparisonLog(_name(given), folder) if given.json_logs else ComparisonDisplay(console, folder)
    with report, last_word() if given.runner == "ray" else nullcontext():
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
            on_data=report.data,
            baseline=given.baseline,
            metrics=metrics,
        )
    report.end(table)


def _tabulate(given: argparse.Namespace, metrics: list[str] | None, console: Console) -> None:
    """Tabulate the folder of a finished comparison again."""
    training = {"--loss": given.loss, "--seeds": given.seeds, "--set": given.set, "--workers": given.workers}
    if unused := [option for option, value in training.items() if value]:
        raise InputError(
            f"{given.config} is a folder, which is tabulated again without training; {', '.join(unused)} can't change "
            "what it holds. Name a configuration to train."
        )
    folder = Path(given.out or given.config)
    table = tabulate(given.config, given.baseline, metrics, folder)
    report = ComparisonLog(Path(given.config).name, folder) if given.json_logs else ComparisonDisplay(console, folder)
    report.end(table)


def _add_retrain(commands: Commands) -> None:
    command = commands.add_parser(
        "retrain",
        help="train with a loss for a full schedule",
        description="Train by the section `retrain` of the configuration, on the whole training set, and measure every "
        "metric on the validation set. Several processes train together under torchrun: `torchrun --nproc-per-node 2 "
        "-m autosegloss.cli retrain ...`.",
    )
    _add_config(command)
    _add_losses(command, seeds=1)
    _add_out(command, "results/retrain/<name of the file>")
    command.set_defaults(run=_retrain)


def _retrain(given: argparse.Namespace, console: Console) -> None:
    config, folder = load_config(given.config, given.set), _folder(given, "retrain")
    total = config.retrain.iterations

    def progress(job: Job, iteration: int) -> None:
        console.print(f"`{given.loss[job.index]}`, seed {job.seed}: {iteration} of {total} iterations", markup=False)

    def show_data(dataset: Dataset) -> None:
        console.print(data_text(dataset), markup=False)
        warn(dataset.warnings)

    table = retrain(
        config,
        given.loss,
        folder,
        seeds=given.seeds,
        resume=given.resume,
        command=_command("retrain", given),
        progress=progress,
        on_data=show_data,
    )
    if table is not None:
        console.print(table.to_markdown(), markup=False)
        console.print(f"{written_text(folder)}; the weights of each run: {folder}/weights-LOSS-SEED.pt", markup=False)


def _add_config(
    command: argparse.ArgumentParser, metavar: str = "CONFIG", what: str = "a YAML file; see search_configs/"
) -> None:
    command.add_argument("config", metavar=metavar, help=what)
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY.SUB=VALUE", help="override a key; repeatable"
    )


def _add_losses(command: argparse.ArgumentParser, seeds: int | None) -> None:
    """The losses and the number of seeds; None: by default those of the section `compare`."""
    losses = "; default: compare.losses" if seeds is None else ""
    command.add_argument(
        "--loss", action="append", default=[], metavar="NAME", help=f"a loss or its file; repeatable{losses}"
    )
    default = "compare.seeds" if seeds is None else seeds
    command.add_argument("--seeds", type=int, default=seeds, metavar="K", help=f"runs per loss; default: {default}")


def _add_out(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--out", metavar="DIR", help=f"the output folder; default: {default}")
    command.add_argument("--resume", action="store_true", help="continue what the output folder holds")


def _add_runner(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", metavar="N", help="number of parallel trials; sets resources.workers")
    command.add_argument("--runner", choices=("ray", "serial"), default="ray", help="default: ray")
    command.add_argument("--address", metavar="HOST:PORT", help="a running Ray cluster to join; default: $RAY_ADDRESS")
    command.add_argument("--json-logs", action="store_true", help="print one JSON object per line instead of text")


def _overrides(given: argparse.Namespace) -> list[str]:
    return [*given.set, *([f"resources.workers={given.workers}"] if given.workers is not None else [])]


def _name(given: argparse.Namespace) -> str:
    return Path(given.config).stem


def _folder(given: argparse.Namespace, *kind: str) -> Path:
    return Path(given.out) if given.out else Path("results", *kind, _name(given))


def _command(name: str, given: argparse.Namespace) -> str:
    """The options that decide the numbers of a table, and no others, so that the same table has the same command."""
    command = ["autosegloss", name, given.config, *_repeated("--loss", given.loss)]
    command += [] if given.seeds is None else ["--seeds", str(given.seeds)]
    return shlex.join([*command, *_repeated("--set", given.set)])


def _repeated(option: str, values: Sequence[object]) -> list[str]:
    return [part for value in values for part in (option, str(value))]


# The folder of a search or a comparison: status, report, export -------------------------------------------------------


def _add_status(commands: Commands) -> None:
    command = commands.add_parser("status", help="show the progress of the search in a folder, running or not")
    command.add_argument("folder", metavar="DIR", help="the folder of the search")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_status)


def _status(given: argparse.Namespace, console: Console) -> None:
    found = status(given.folder)
    if given.json:
        print(json.dumps(status_record(found), allow_nan=False))
    else:
        console.print(status_text(found, given.folder), markup=False)


def _add_report(commands: Commands) -> None:
    command = commands.add_parser(
        "report",
        help="write an HTML report of a finished search, comparison or retraining",
        description="Write one HTML file that needs no other file: the course of a search, curves, loss surfaces, all "
        "metrics with intervals, classes, pictures of validation images, and provenance. For the pictures one training "
        "of each loss is run again.",
    )
    command.add_argument("folder", metavar="DIR", help="the folder of the search, comparison or retraining")
    command.add_argument("--out", metavar="FILE", help=f"the page to write; default: DIR/{PAGE_FILE}")
    command.add_argument("--no-images", action="store_true", help="omit the pictures and train nothing")
    command.set_defaults(run=_report)


def _report(given: argparse.Namespace, console: Console) -> None:
    folder = Path(given.folder)
    if not folder.is_dir():
        raise InputError(f"{cut(str(folder))}: there is no such folder.")
    out = Path(given.out) if given.out else folder / PAGE_FILE
    _check_writable(out)
    what = "drawing" if given.no_images else "training again for the pictures"
    with console.status(what, spinner="line"):
        page = report_page(folder, images=not given.no_images)
    write_text(out, page)
    console.print(f"wrote {out}", markup=False)


def _check_writable(path: Path) -> None:
    """Raise InputError if a file can't be written or belongs to a search, before any work is done for it."""
    refuse_results(path)
    parent = path.absolute().parent
    if path.is_dir() or not parent.is_dir():
        raise InputError(f"{path}: can't be written: it is a folder, or its folder does not exist.")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{path}: can't be written: its folder is read-only.")


def _add_export(commands: Commands) -> None:
    command = commands.add_parser("export", help="write a loss as a loss file, or as a PyTorch module of its own")
    command.add_argument("loss", metavar="DIR|LOSS", help=LOSS_HELP)
    command.add_argument("--out", metavar="FILE", help="the loss file to write")
    command.add_argument("--python", metavar="FILE.py", help="the module to write; it imports only PyTorch")
    command.set_defaults(run=_export)


def _export(given: argparse.Namespace, console: Console) -> None:
    if not given.out and not given.python:
        raise InputError("export: give --out FILE for a loss file, --python FILE.py for a PyTorch module, or both.")
    if given.python and Path(given.python).suffix != ".py":
        raise InputError(f"--python must be the name of a module, which ends in .py, got {given.python}.")
    for path in filter(None, (given.out, given.python)):
        refuse_results(Path(path))
    loss = _loss_of(given.loss)
    for path in filter(None, (given.out, given.python)):
        loss.save(path)
        console.print(f"wrote {path}", markup=False)


def _loss_of(source: str) -> Loss:
    """The loss of a finished search in a folder, of a loss file, or of a name."""
    return found_loss(source) if os.path.isdir(source) else load_loss(source)


# Losses and metrics: show, metrics, evaluate --------------------------------------------------------------------------


def _add_show(commands: Commands) -> None:
    command = commands.add_parser(
        "show", help="print a loss: formula, logic, curves, scale, parts; and what it is called"
    )
    command.add_argument("loss", metavar="DIR|LOSS", help=LOSS_HELP)
    command.add_argument("--plot", metavar="FILE", help="also draw the curves (.png, .svg, .pdf)")
    command.set_defaults(run=_show)


def _show(given: argparse.Namespace, console: Console) -> None:
    loss = _loss_of(given.loss)
    if given.plot:
        refuse_results(Path(given.plot))
        if not surrogates(loss):
            raise InputError(f"{given.loss} has no curves to plot; omit --plot.")
    console.print(loss_text(loss), markup=False)
    if loss.provenance:
        console.print("\n".join(["\nprovenance", *provenance_lines(loss.provenance)]), markup=False)
    if given.plot:
        plot_loss(loss, given.plot)
        console.print(f"\nwrote {given.plot}", markup=False)


def _add_losses_list(commands: Commands) -> None:
    commands.add_parser("losses", help="list the names of losses").set_defaults(run=_losses)


def _losses(given: argparse.Namespace, console: Console) -> None:
    names = loss_names()
    width = max(map(len, names))
    for name, about in names.items():
        console.print(f"{name:{width}}  {about}", markup=False)
    console.print(
        f"The path of a loss file is a loss, too, and so are {FORMS}; compare and retrain also take a function of "
        "yours, as module:function.",
        markup=False,
    )


def _add_metrics(commands: Commands) -> None:
    commands.add_parser("metrics", help="list the metrics with their formulas").set_defaults(run=_metrics)


def _metrics(given: argparse.Namespace, console: Console) -> None:
    names: dict[object, str] = {}
    for name, build in METRICS.items():
        title, expr = f"{name}{signature_text(build)}", build()
        if (same := names.setdefault(expr, name)) != name:
            console.print(f"{title}\n    another name of {same}", markup=False)
            continue
        about = " ".join((inspect.getdoc(build) or "").split("\n\n")[0].split())
        console.print(f"{title}\n    {about}\n    {expr}", markup=False)
    for name, build in OF_CLASSES.items():
        about = " ".join((inspect.getdoc(build) or "").split("\n\n")[0].split())
        console.print(f"{name}{signature_text(build)}\n    {about}", markup=False)
    console.print(
        "Classes are numbers, or names where the data is known: iou(2), miou(classes=[leaf, symptom], weights=[1, 2])\n"
        "For options, ignored pixels, absent classes and sources: help(autosegloss.METRICS[NAME])",
        markup=False,
    )


def _add_evaluate(commands: Commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="evaluate folders of predicted label maps, and list the worst images",
        description="Compare two folders of label maps (PNG, TIFF, BMP, GIF or .npy), including sub-folders. Files are "
        "paired by path without extension. The score of an image is the metric of that image alone.",
    )
    command.add_argument("--pred", required=True, metavar="DIR", help="the predicted labels")
    command.add_argument("--target", required=True, metavar="DIR", help="the true labels")
    command.add_argument(
        "--metric", required=True, action="append", metavar="NAME,...", help='metrics, as in "miou,bf1(radius=3)"'
    )
    _add_classes(command)
    command.add_argument("--pred-values", metavar="MAP", help="likewise of the predictions; default: that of --values")
    _add_pairing(command, "predictions")
    command.add_argument("--worst", type=int, metavar="N", help="list the N worst images per metric and per class")
    command.add_argument("--sheet", metavar="FILE.html", help=f"show the worst images ({_WORST} by default) as a page")
    command.add_argument("--images", metavar="DIR", help="the pictures, shown in the sheet")
    command.add_argument("--json", metavar="FILE", help="write everything as JSON; - for standard output, without text")
    command.set_defaults(run=_evaluate)


def _add_classes(command: argparse.ArgumentParser) -> None:
    """The classes of label maps."""
    command.add_argument("--num-classes", type=int, metavar="C", help="labels are 0 to C - 1")
    command.add_argument("--classes", metavar="NAME,...", help="the names of the classes, in place of their number")
    command.add_argument(
        "--ignore-index",
        type=int,
        metavar="LABEL",
        help="ignored label; default: 255, unless a class has no pixel then",
    )
    command.add_argument(
        "--values",
        metavar="MAP",
        help="the class of each value, range or colour of the label maps, as in '{0: 0, 1..40: 1, \"#ff0000\": 2}'; "
        "`ignore` for ignored pixels",
    )


def _add_pairing(command: argparse.ArgumentParser, what: str) -> None:
    """How label maps and other files are paired, and which of them are taken."""
    command.add_argument("--mask-suffix", default="", metavar="TEXT", help="names of labels: _mask, or gt_{name}")
    command.add_argument("--pred-suffix", default="", metavar="TEXT", help=f"likewise of the {what}")
    command.add_argument("--allow-missing", action="store_true", help="skip files without a partner")
    command.add_argument("--split", metavar="PATH", help="take only the names of a list: .txt, or split.json")
    command.add_argument("--part", metavar="NAME", help="the part of --split: train, val or test")


def _classes(given: argparse.Namespace) -> list[str]:
    """The names of the classes of an evaluation; their numbers where none are given."""
    if given.classes is None and given.num_classes is None:
        raise InputError("name the classes with --classes background,leaf,..., or give their number: --num-classes C.")
    if given.classes is None:
        return [str(label) for label in range(min(given.num_classes, 2**16))]
    names = [name.strip() for name in given.classes.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"--classes must be distinct names separated by commas, got {cut(given.classes)}.")
    if given.num_classes not in (None, len(names)):
        raise InputError(f"--classes has {len(names)} names, but --num-classes is {given.num_classes}; omit one.")
    return names


def _folders(
    given: argparse.Namespace,
    pred: str,
    values: ValueMap | None,
    pred_values: ValueMap | None = None,
    images: Path | None = None,
) -> LabelFolders:
    """The files of an evaluation, paired as the options say."""
    if given.part and not given.split:
        raise InputError("--part: name the lists of names with --split.")
    return LabelFolders(
        Path(pred),
        Path(given.target),
        images,
        mask_suffix=given.mask_suffix,
        pred_suffix=given.pred_suffix,
        values=values,
        pred_values=pred_values,
        only=names_to_evaluate(given.split, given.part) if given.split else None,
    )


def _evaluate(given: argparse.Namespace, console: Console) -> None:
    names = split_metrics(",".join(given.metric))
    if CALIBRATION in names:
        raise InputError(
            f"--metric {CALIBRATION}: the calibration error needs probabilities, and these are label maps; see "
            "autosegloss.CalibrationError, or the column of `compare`."
        )
    classes = _classes(given)
    metrics = {name: metric(name, class_names=classes if given.classes else None) for name in names}
    if given.worst is not None and given.worst < 1:
        raise InputError(f"--worst must be at least 1, got {given.worst}.")
    if given.images and not given.sheet:
        raise InputError("--images: the pictures are shown in the contact sheet; name its file with --sheet FILE.html.")
    json_file = Path(given.json) if given.json not in (None, "-") else None
    sheet_file = Path(given.sheet) if given.sheet else None
    for path in filter(None, (json_file, sheet_file)):
        _check_writable(path)
    if json_file and sheet_file and json_file.resolve() == sheet_file.resolve():
        raise InputError(f"{json_file}: --json and --sheet name the same file.")
    values, pred_values, ignored = value_maps(given.values, given.pred_values, classes, given.ignore_index)
    images = Path(given.images) if given.images else None
    folders = _folders(given, given.pred, values, pred_values, images)
    for path in filter(None, (json_file, sheet_file)):
        refuse_inputs(path, folders, given.split)
    how = ("values", "pred_values", "mask_suffix", "pred_suffix", "split", "part")
    worst = given.worst or (_WORST if given.sheet else 0)
    with progress_bar(Console(stderr=True, emoji=False), "evaluating") as bar:  # standard output may be the JSON
        task = bar.add_task("evaluating", total=len(folders.names))
        evaluation = evaluate(
            folders,
            metrics,
            len(classes) if given.classes else given.num_classes,
            ignored,
            worst,
            given.allow_missing,
            progress=lambda: bar.advance(task),
            class_names=classes if given.classes else None,
        )
    evaluation = replace(evaluation, options={name: getattr(given, name) for name in how if getattr(given, name)})
    warn(evaluation.warnings)
    if json_file:
        write_text(json_file, evaluation.to_json())
    if sheet_file:
        write_text(sheet_file, contact_sheet(evaluation, folders))
    if given.json == "-":
        print(evaluation.to_json(), end="")
        return
    console.print(summary(evaluation), markup=False)
    console.print("Values in %; - if the metric does not count the class:")
    console.print(values_table(evaluation), soft_wrap=False, crop=False)
    if worst:
        console.print("Worst images by their own score in %; for a class, of the images whose label has it:")
        console.print(worst_table(evaluation), soft_wrap=False, crop=False)
    for path in filter(None, (json_file, sheet_file)):
        console.print(f"wrote {path}", markup=False)


def _add_fit_offsets(commands: Commands) -> None:
    command = commands.add_parser(
        "fit-offsets",
        help="fit one offset per class that maximises a metric, on saved scores",
        description="Fit one offset per class, added to the scores before the arg-max, that maximises a metric on "
        "images that were not trained on. The scores of an image are logits or log-probabilities, floats of shape "
        "(C, H, W) in a .npy file with the name of its label map; of probabilities the logarithm is taken.",
    )
    command.add_argument(
        "--metric", required=True, action="append", metavar="NAME", help='a metric, as in "miou" or "bf1(radius=3)"'
    )
    command.add_argument("--scores", required=True, metavar="DIR", help="the scores: NAME.npy")
    command.add_argument("--target", required=True, metavar="DIR", help="the true labels, as `evaluate` reads them")
    _add_classes(command)
    command.add_argument(
        "--guard",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help="keep a metric at no less than this share of its value without offsets; repeatable",
    )
    command.add_argument("--bound", type=float, default=BOUND, help=f"the largest offset; default: {BOUND:g}")
    _add_pairing(command, "scores")
    command.add_argument("--out", metavar="FILE.json", help="write the offsets, for autosegloss.load_offsets")
    command.set_defaults(run=_fit_offsets)


def _share(text: str) -> float:
    """A share in (0, 1]."""
    share = float(text)
    if not 0 < share <= 1:
        raise InputError("The share must be above 0 and at most 1.")
    return share


def _fit_offsets(given: argparse.Namespace, console: Console) -> None:
    classes = _classes(given)
    names = classes if given.classes else None
    text = ",".join(given.metric)
    if len(asked := split_metrics(text)) > 1:
        raise InputError(f"--metric: offsets are fitted for one metric, got {len(asked)}: {cut(text)}.")
    if text == CALIBRATION:
        raise InputError(f"--metric must be a metric of label maps, which offsets can maximise; {CALIBRATION} is none.")
    metrics = {text: metric(text, class_names=names)}
    guards: dict[Expr | str, float] = {}
    for text in given.guard:
        name, equals, share = text.rpartition("=")
        try:
            guards[metric(name, class_names=names)] = _share(share)
        except ValueError as error:
            reason = f" {error}" if equals and isinstance(error, AutoseglossError) else ""
            raise InputError(f"--guard must be NAME=SHARE, as in gacc=0.98, got {cut(text)}.{reason}") from None
        metrics.setdefault(name, metric(name, class_names=names))
    for name in USUAL:
        if metric(name) not in metrics.values():
            metrics[name] = metric(name)
    out = Path(given.out) if given.out else None
    if out:
        _check_writable(out)
    values, _, ignored = value_maps(given.values, None, classes, given.ignore_index)
    folders = _folders(given, given.scores, values)
    if out:
        refuse_inputs(out, folders, given.split)
    with Console(stderr=True, emoji=False).status("fitting", spinner="line"):
        count = len(classes) if given.classes else given.num_classes
        scores = SavedScores(folders, count, ignored, given.allow_missing)
        fitted = fit_folder(scores, metrics, guards, given.bound)
    console.print(f"fitted on {fitted.images} images; values in %, on these images:", markup=False)
    tables = fitted_tables(fitted, classes)
    for table in tables:
        console.print(table, soft_wrap=False, crop=False)
    if out:
        fitted.offsets.save(out)
        console.print(f"wrote {out}", markup=False)


# Measurements and the schema: bench, schema ---------------------------------------------------------------------------


def _add_bench(commands: Commands) -> None:
    command = commands.add_parser("bench", help="measure speed and memory on this machine")
    benches = command.add_subparsers(title="what to measure", required=True, metavar="WHAT")

    command = benches.add_parser("loss", help="measure losses, as ratios to cross-entropy")
    command.add_argument("--size", default=SIZE, metavar="NxCxHxW", help=f"the shape of the logits; default: {SIZE}")
    command.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"of the logits; default: {DTYPES[0]}")
    command.add_argument("--device", choices=DEVICES, default=DEVICES[0], help=f"default: {DEVICES[0]}")
    losses = f"a metric or a loss; repeatable; default: {', '.join(LOSSES)}"
    command.add_argument("--loss", action="append", default=[], metavar="NAME", help=losses)
    command.add_argument("--repeats", type=int, default=ROUNDS, metavar="N", help=f"rounds; default: {ROUNDS}")
    command.set_defaults(run=_bench, measure=_bench_loss)

    command = benches.add_parser("proxies", help="measure proxies per hour on synthetic images, alone and in parallel")
    _add_config(command)
    command.add_argument(
        "--trials", action="append", type=int, metavar="K", help="in parallel; repeatable; default: 1, 4"
    )
    command.add_argument("--iterations", type=int, default=20, metavar="N", help=f"timed {REPEATS} times; default: 20")
    command.set_defaults(run=_bench, measure=_bench_proxies)


def _bench(given: argparse.Namespace, console: Console) -> None:
    with console.status("measuring", spinner="line"):
        table = given.measure(given)
    console.print(table, markup=False)


def _bench_loss(given: argparse.Namespace) -> str:
    return bench_loss(given.loss, given.size, given.dtype, given.device, given.repeats)


def _bench_proxies(given: argparse.Namespace) -> str:
    return bench_proxies(load_config(given.config, given.set), given.trials or (1, 4), given.iterations)


def _add_schema(commands: Commands) -> None:
    command = commands.add_parser("schema", help="print the JSON schema of configuration files, for editors")
    command.set_defaults(run=_schema)


def _schema(given: argparse.Namespace, console: Console) -> None:
    console.print(json.dumps(json_schema(), indent=2), markup=False)


if __name__ == "__main__":
    sys.exit(main())
