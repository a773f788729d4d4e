"""Tables of finished comparisons and retrainings on disk: read, and tabulated again without training."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from autosegloss.errors import AutoseglossError, InputError, RefusedError, cut, did_you_mean, listed
from autosegloss.loss.base import LossContent
from autosegloss.loss.file import build_loss
from autosegloss.proxy.own_loss import is_own
from autosegloss.proxy.trial import CLASS_PREFIX
from autosegloss.search.comparison import PLAN_VERSION, UNTUNED_VERSION, check_runs, write_table
from autosegloss.search.folder import CONFIG_FILE, JOURNAL_FILE, LOSS_FILE, PLAN_FILE, TABLE_FILE
from autosegloss.search.tables import Row, Table, meaning

_NAMES = 450  # characters of the metrics named in a message
_AGAIN = "Write it again with the command that made it and --resume."


def tabulate(
    folder: str | os.PathLike[str],
    baseline: str | None = None,
    metrics: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Table:
    """Write the table of a finished comparison or retraining again, without training.

    Args:
        folder: The folder of the comparison.
        baseline: The loss that the others are compared with; None is the first.
        metrics: The columns, among the metrics measured; verdicts are on these, with Holm's correction over them. None:
            the columns and verdicts of the comparison.
        out: The folder to write to; None is the folder of the comparison.

    Returns:
        The table.

    Raises:
        InputError: The comparison is not finished or is damaged, has no such loss, or did not measure a metric.
        RefusedError: The other folder holds a search or a comparison.
        SearchError: Every run failed; raised after the table with the errors is written.
    """
    source = Path(folder).absolute()
    place = source if out is None else Path(out).absolute()
    table = read_table(source)
    check_baseline(baseline, table.plan["losses"])
    again = table.tabulated(baseline, resolved(metrics or (), table.measured, table.metric))
    if place.resolve() != source.resolve():
        there = [name for name in (JOURNAL_FILE, PLAN_FILE, LOSS_FILE, CONFIG_FILE) if (place / name).exists()]
        if there:
            raise RefusedError(f"{place} already holds {' and '.join(there)}. Choose another folder for the table.")
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{place}: this folder can't be made: {error.strerror}.") from None
    write_table(again, place)
    check_runs(again, place)
    return again


def read_table(folder: Path) -> Table:
    """The table of a finished comparison or retraining.

    Raises:
        InputError: There is none, it is damaged, or the plan beside it is damaged or has been extended.
    """
    path, planned = folder / TABLE_FILE, folder / PLAN_FILE
    if not path.exists():
        what = f"what {PLAN_FILE} plans is not finished" if planned.exists() else "it holds no comparison"
        raise InputError(
            f"{folder}: no {TABLE_FILE} in this folder: {what}. Continue a comparison or a retraining with the command "
            "that began it and --resume."
        )
    try:
        table = TypeAdapter(Table).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}.") from None
    except ValueError:
        table = None
    if table is None or not _sound(table):
        raise InputError(f"{path}: this file is damaged, or of another version. {_AGAIN}")
    if planned.exists():
        plan = _plan(planned)
        if plan is None:
            raise InputError(f"{planned}: this file is damaged, or of another version. {_AGAIN}")
        if any(plan[key] != table.plan[key] for key in ("losses", "seeds")):
            raise InputError(
                f"{folder}: {PLAN_FILE} has other losses or seeds than {TABLE_FILE}: the comparison was extended and "
                "is not finished. Continue it with the command that extended it and --resume."
            )
    return table


def _sound(table: Table) -> bool:
    """Whether the parts of a table fit together, and all its numbers are finite."""
    try:
        plan = table.plan
        pairs = [(setting, loss) for setting in plan["definitions"] for loss in plan["losses"]]
        return (
            len(pairs) > 0
            and sorted((row.setting, row.loss) for row in table.rows) == sorted(pairs)
            and table.notes.keys() == plan["definitions"].keys()
            and all(isinstance(name, str) for name in (*table.columns, *table.tested))
            and all(_is_loss(plan["definitions"][setting][loss]) for setting, loss in pairs)
            and all(_is_tuned(row, plan) for row in table.rows)
            and all(len(row.runs) == len(plan["seeds"]) for row in table.rows)
            and all(not run or run.keys() == row.scores.keys() for row in table.rows for run in row.runs)
            and all(math.isfinite(x) for row in table.rows for run in row.runs if run for x in run.values())
            and table.first in plan["losses"]
        )
    except (AutoseglossError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return False


def _plan(path: Path) -> dict[str, Any] | None:
    """A plan; None if the file is none of this version."""
    try:
        plan = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(plan, dict) and plan.get("version") in (UNTUNED_VERSION, PLAN_VERSION)
    return plan if known and {"losses", "seeds"} <= plan.keys() else None


def check_baseline(baseline: str | None, losses: Sequence[str]) -> None:
    """Raise InputError unless the baseline is one of the losses, or None."""
    if baseline is not None and baseline not in losses:
        raise InputError(
            f"baseline must be one of the losses compared, got `{cut(baseline)}`{did_you_mean(baseline, losses)}; "
            f"compared: {', '.join(listed([f'`{cut(name, 60)}`' for name in losses]))}."
        )


def resolved(asked: Sequence[str], measured: Sequence[str], target: str | Mapping[str, Any]) -> list[str]:
    """The names under which metrics were measured, each metric once.

    Args:
        asked: Metrics: the name of a column, the IoU of a class by its name or number (`iou(cell)`, `iou(1)`), or an
            expression.
        measured: The names of what was measured.
        target: The metric of the configuration.

    Raises:
        InputError: A metric was not measured.
    """
    known: dict[object, str] = {}
    for name in measured:
        known.setdefault(meaning(name, target), name)
    classes = [name for name in measured if name.startswith(CLASS_PREFIX)]
    found: dict[object, str] = {}
    for text in asked:
        name = " ".join(text.split())
        if one := re.fullmatch(r"iou\((?:classes=)?\[?[\"']?(.*?)[\"']?\]?\)", name):
            named = CLASS_PREFIX + one[1]
            numbered = dict(zip(map(str, range(len(classes))), classes, strict=True)).get(one[1], named)
            name = named if named in classes else numbered
        what = meaning(name, target)
        if name not in measured and what not in known:
            raise InputError(
                f"`{cut(text)}` was not measured{did_you_mean(text, measured)}; measured: {_names(measured)}. To "
                "measure it, add it to compare.metrics and compare anew in another folder."
            )
        found.setdefault(what, name if name in measured else known[what])
    return list(found.values())


def _names(names: Sequence[str]) -> str:
    """As many names as fit into a message, and how many there are beyond them."""
    shown: list[str] = []
    for name in names:
        if sum(map(len, shown)) > _NAMES:
            return f"{', '.join(shown)}, ... and {len(names) - len(shown)} more"
        shown.append(cut(name, 60))
    return ", ".join(shown)


def _is_tuned(row: Row, plan: Mapping[str, Any]) -> bool:
    """Whether the step of a row is one of the plan's, with a mean for each where there was one to choose."""
    if row.tuned is None:
        return "steps" not in plan
    steps, means = plan["steps"][row.setting], row.tuned.heldout
    tried = len(steps) if len(steps) > 1 else 0
    return (
        row.tuned.step in steps and len(means) == tried and all(mean is None or math.isfinite(mean) for mean in means)
    )


def _is_loss(content: LossContent) -> bool:
    return is_own(content) or build_loss(content) is not None
