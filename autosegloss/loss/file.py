"""Loss files: small JSON texts that hold a whole loss and nothing that runs."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any, get_args

from autosegloss.errors import ExprError, InputError, InputTypeError, LossFileError, WriteError
from autosegloss.files import write_text
from autosegloss.loss.curve import CurveKind
from autosegloss.loss.mixed import MixedLoss
from autosegloss.loss.relax import LogicKind, slots
from autosegloss.loss.surrogate import SurrogateLoss, check_reduce_over_ranks
from autosegloss.metric import metric
from autosegloss.metric.interpret import Classes
from autosegloss.metric.labels import check_ignore_index

FORMAT = "autosegloss-loss"
VERSION = 2
"""The newest version that is read. A file has the oldest that can say what it holds: 2 with a cross-entropy part."""
_MIXED = 2
_KEYS = {"format", "version", "metric", "logic", "classes", "curve", "slots", "provenance"}
_PRESETS = Path(__file__).parent / "presets"


def presets() -> list[str]:
    """The names of the losses that come with the package, for `load_loss`.

    - `asl/voc/...`: the losses of Auto Seg-Loss, searched on PASCAL VOC.
    - `jml`, `dml`, `ctl`: the JDT losses of Jaccard, Dice and Tversky: the logic "godel" without curves, right for soft
      labels.
    - `soft_jaccard`, `soft_dice`, `soft_tversky`: the usual soft losses, the same with the logic "product". With
      integer labels each equals its JDT twin.

    The last six sum over the batch (form D of the metric). Their forms I (of each image) and C (of each class in each
    image) and mixes of the forms are a line each, by the names of the catalogue: `jaccard_i`, `dice_c`, and so on.

    Example:
        >>> jml_i = SurrogateLoss("jaccard_i", logic="godel", curve="identity", classes="present")
        >>> both = SurrogateLoss("0.5 * miou + 0.5 * miou_i", logic="godel", curve="identity", classes="present")
    """
    return sorted(path.relative_to(_PRESETS).with_suffix("").as_posix() for path in _PRESETS.rglob("*.json"))


def load_loss(
    source: str | os.PathLike[str], ignore_index: int = 255, reduce_over_ranks: bool = False
) -> SurrogateLoss | MixedLoss:
    """The loss in a file, or one that comes with the package.

    Args:
        source: The path of a loss file, or the name of a preset (see `presets`).
        ignore_index: The label of ignored pixels in your data.
        reduce_over_ranks: Whether sums run over the batches of all ranks of torch.distributed.

    Returns:
        A loss to call with (logits, target): mixed if the file gives cross-entropy a part.

    Raises:
        LossFileError: There is no such file or preset, or it is damaged, of a newer version, or impossible.
        InputError: Another argument is wrong.

    Example:
        >>> load_loss("asl/voc/macc").classes
        'all'
    """
    if not isinstance(source, str | os.PathLike):
        raise InputTypeError(
            f"the loss is a {type(source).__name__}; the path of a loss file or the name of a preset is wanted."
        )
    check_ignore_index(ignore_index)
    check_reduce_over_ranks(reduce_over_ranks)
    path, name = Path(source), str(source)
    try:
        if path.is_dir():
            raise LossFileError(f"{name} is a folder; the loss of a finished search is its file {path / 'loss.json'}.")
        if path.exists():
            return read_loss(path.read_bytes(), name, ignore_index, reduce_over_ranks)
    except OSError as error:
        raise LossFileError(f"{name}: can't be read: {error.strerror or error}.") from None
    if name in presets():
        return read_loss((_PRESETS / f"{name}.json").read_bytes(), name, ignore_index, reduce_over_ranks)
    close = difflib.get_close_matches(name, presets(), n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise LossFileError(f"{name}: no such file, nor a preset{guess}; presets: {', '.join(presets())}.")


def read_loss(
    data: bytes, name: str, ignore_index: int = 255, reduce_over_ranks: bool = False
) -> SurrogateLoss | MixedLoss:
    """The loss that the bytes of a file hold; `name` is what messages call it."""
    try:
        content = json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates
        )
        json.dumps(content, ensure_ascii=False).encode()  # what can't be written again is not read
    except (ValueError, RecursionError) as error:
        raise LossFileError(
            f"{name}: not a JSON file that can be read ({error}). If it was cut off, export it again."
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise LossFileError(f'{name}: not a loss file; it has no "format": "{FORMAT}".')
    version = content.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise LossFileError(f"{name}: version is {version!r}; a whole number of 1 or more is wanted.")
    if version > VERSION:
        raise LossFileError(
            f"{name}: version {version} is newer than what this package reads ({VERSION}); upgrade autosegloss."
        )
    keys = _KEYS | {"cross_entropy"} if version >= _MIXED else _KEYS
    if missing := sorted(keys - {"provenance"} - content.keys()):
        raise LossFileError(f"{name}: missing: {', '.join(missing)}.")
    if unknown := sorted(content.keys() - keys):
        raise LossFileError(f"{name}: unknown: {', '.join(unknown)}; allowed: {', '.join(sorted(keys))}.")
    for key, kind in (("logic", LogicKind), ("classes", Classes), ("curve", CurveKind)):
        if content[key] not in get_args(kind):
            raise LossFileError(f"{name}: {key} is {content[key]!r}; allowed: {', '.join(get_args(kind))}.")
    provenance = content.get("provenance", {})
    if not isinstance(provenance, dict):
        raise LossFileError(f"{name}: provenance is {provenance!r}; a mapping is wanted.")
    loss = _build(content, name, ignore_index, reduce_over_ranks)
    loss.provenance = provenance
    return loss


def write_loss(loss: SurrogateLoss | MixedLoss, path: Path) -> None:
    """Write a loss file, replacing what is there only when all of it is written.

    Raises:
        LossFileError: The folder is missing or can't be written.
    """
    content = loss_content(loss)
    try:
        text = _json(content) + "\n"
        text.encode()
        faithful = isinstance(loss.provenance, dict) and json.loads(text)["provenance"] == loss.provenance
    except (TypeError, ValueError, RecursionError) as error:
        raise LossFileError(f"{path}: the provenance holds something JSON has no place for: {error}") from None
    if not faithful:
        raise LossFileError(f"{path}: the provenance is a dict of texts, numbers, lists and dicts with texts for keys.")
    try:
        write_text(path, text)
    except WriteError as error:
        raise LossFileError(str(error)) from error


def loss_content(loss: SurrogateLoss | MixedLoss) -> dict[str, Any]:
    """What the file of a loss holds."""
    if isinstance(loss, MixedLoss):
        surrogate, head = loss.surrogate, {"version": _MIXED, "cross_entropy": loss.cross_entropy}
    else:
        surrogate, head = loss, {"version": 1}
    return {
        "format": FORMAT,
        **head,
        "metric": str(surrogate.expr),
        "logic": surrogate.logic,
        "classes": surrogate.classes,
        "curve": surrogate.curve,
        "slots": {str(slot): curve.points for slot, curve in surrogate.curves.items()},
        "provenance": loss.provenance,
    }


def _build(content: dict[str, Any], name: str, ignore_index: int, reduce_over_ranks: bool) -> SurrogateLoss | MixedLoss:
    if not isinstance(content["metric"], str):
        raise LossFileError(f"{name}: metric is {content['metric']!r}; the text of an expression is wanted.")
    try:
        expr = metric(content["metric"])
    except (ExprError, InputError) as error:
        raise LossFileError(f"{name}: metric: {error}") from None
    given = content["slots"]
    if not isinstance(given, dict):
        raise LossFileError(f"{name}: slots is {given!r}; a mapping of slot names to control points is wanted.")
    names = [str(slot) for slot in slots(expr)]
    if missing := [slot for slot in names if slot not in given]:
        raise LossFileError(f"{name}: slot `{missing[0]}` is missing; the metric has: {'; '.join(names)}.")
    if unknown := [slot for slot in given if slot not in names]:
        raise LossFileError(f"{name}: slot `{unknown[0]}` is not one of the metric's: {'; '.join(names)}.")
    for slot in names:
        points = given[slot]
        pairs = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
        if not pairs or not all(isinstance(c, int | float) and not isinstance(c, bool) for p in points for c in p):
            raise LossFileError(
                f"{name}: slot `{slot}`: control points are a list of pairs of numbers [u, v]; given: {points!r}."
            )
    try:
        loss = SurrogateLoss(
            expr,
            [given[slot] for slot in names],
            logic=content["logic"],
            curve=content["curve"],
            classes=content["classes"],
            ignore_index=ignore_index,
            reduce_over_ranks=reduce_over_ranks,
        )
        return MixedLoss(loss, content["cross_entropy"]) if "cross_entropy" in content else loss
    except InputError as error:
        raise LossFileError(f"{name}: {error}") from None


def _json(value: object, indent: str = "") -> str:
    """JSON with a line for each key and none for each number of a list."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if odd := [key for key in value if not isinstance(key, str)]:
        raise TypeError(f"the key {odd[0]!r} is no text")
    inner = indent + "  "
    lines = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_json(item, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands twice in one mapping")
    return content
