"""Reading loss files: small JSON texts that hold a complete loss and no code."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from autosegloss.errors import ExprError, InputError, LossFileError, cut, shown
from autosegloss.files import read_json
from autosegloss.loss.base import FORMAT, Loss, check_flag, check_scale
from autosegloss.loss.classic import PIXEL_LOSSES
from autosegloss.loss.curve import CurveKind
from autosegloss.loss.mixed import MOST_PARTS, SUM_TOLERANCE, MixedLoss
from autosegloss.loss.relax import LogicKind, slots
from autosegloss.loss.surrogate import NEWER, SurrogateLoss
from autosegloss.metric import metric
from autosegloss.metric.interpret import Classes
from autosegloss.metric.labels import check_ignore_index

VERSION = 3
"""The newest version that is read. A file is written in the oldest version that can hold its loss: 1 for a surrogate of
scale 1, 2 for its mix with cross-entropy, 3 for any other surrogate or sum, and for a loss that is no surrogate."""
_HEAD = {"format", "version", "provenance"}
_SURROGATE = {"metric", "logic", "classes", "curve", "slots"}
_PIXEL_LOSS = {"loss", "options"}
_SUM = {"scale", "parts"}
_NEWER_OPTIONS = {"class_power", "counts"}  # younger than version 3, whose first files lack them
LARGEST = 1_000_000
"""Bytes of a loss file: far more than a loss needs, and read in well under a second."""
_PRESETS = Path(__file__).parent / "presets"
_ALIASES = {
    "auto/miou": "shapes/miou",
    "auto/macc": "shapes/macc",
    "auto/biou": "shapes/biou",
    "auto/bf1": "shapes/miou_bf1",
}
"""Other names of presets: what to take for a metric when nothing else is known."""


def presets() -> list[str]:
    """The names of the losses that come with the package, for `load_loss`.

    - `asl/voc/...`: the losses of Auto Seg-Loss, searched on PASCAL VOC.
    - `jml`, `dml`, `ctl`: the JDT losses of Jaccard, Dice and Tversky: the logic "godel" without curves, right for soft
      labels.
    - `soft_jaccard`, `soft_dice`, `soft_tversky`: the usual soft losses, the same with the logic "product". With
      integer labels each equals its JDT twin.

    - `lovasz`: Lovász-softmax, the logic "lovasz" of Jaccard.

    The last seven sum over the batch (form D of the metric). Their forms I (of each image) and C (of each class in each
    image) and mixes of the forms are a line each, by the names of the catalogue: `jaccard_i`, `dice_c`, and so on.

    Example:
        >>> jml_i = SurrogateLoss("jaccard_i", logic="godel", curve="identity", classes="present")
        >>> both = SurrogateLoss("0.5 * miou + 0.5 * miou_i", logic="godel", curve="identity", classes="present")
    """
    files = [path.relative_to(_PRESETS).with_suffix("").as_posix() for path in _PRESETS.rglob("*.json")]
    return sorted([*files, *_ALIASES])


def preset(name: str, ignore_index: int = 255, reduce_over_ranks: bool = False) -> Loss:
    """The loss of one of the names of `presets`."""
    file = _PRESETS / f"{_ALIASES.get(name, name)}.json"
    return read_loss(file.read_bytes(), name, ignore_index, reduce_over_ranks)


def read_loss(data: bytes, name: str, ignore_index: int = 255, reduce_over_ranks: bool = False) -> Loss:
    """The loss in the bytes of a file, which messages call `name`."""
    if len(data) > LARGEST:
        raise LossFileError(f"{name}: more than {LARGEST:,} bytes, and so no loss file.")
    try:
        content = read_json(data)
    except (ValueError, RecursionError) as error:
        raise LossFileError(
            f"{name}: not a JSON file that can be read ({error}). If it was cut off, export it again."
        ) from None
    return build_loss(content, ignore_index, reduce_over_ranks, name)


def build_loss(
    content: Mapping[str, Any], ignore_index: int = 255, reduce_over_ranks: bool = False, name: str = "loss"
) -> Loss:
    """The loss of the content of a file, as `Loss.content` gives it.

    Args:
        content: Plain JSON values.
        ignore_index: The label of ignored pixels in your data.
        reduce_over_ranks: Whether sums of surrogates and of cross-entropy run over the batches of all ranks of
            torch.distributed; the other losses are of a rank's own batch.
        name: What messages call the loss.

    Raises:
        LossFileError: The content is not that of a loss, is of a newer version, or describes an impossible loss.
        InputError: Another argument is wrong.
    """
    check_ignore_index(ignore_index)
    check_flag("reduce_over_ranks", reduce_over_ranks)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise LossFileError(f'{name}: not a loss file; it has no "format": "{FORMAT}".')
    version = content.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise LossFileError(f"{name}: version must be an integer of at least 1, got {shown(version)}.")
    if version >= 100:
        raise LossFileError(f"{name}: version must be an integer from 1 to {VERSION}, got {shown(version)}.")
    if version > VERSION:
        raise LossFileError(
            f"{name}: version {version} is newer than what this package reads ({VERSION}); upgrade autosegloss."
        )
    keys = _HEAD | (_SURROGATE, _SURROGATE | {"cross_entropy"}, _keys(content, {"scale"}))[version - 1]
    _check_keys(content, keys, name)
    provenance = content.get("provenance", {})
    if not isinstance(provenance, dict):
        raise LossFileError(f"{name}: provenance must be a mapping, got {shown(provenance)}.")
    settings = (ignore_index, reduce_over_ranks)
    loss: Loss
    try:
        if "parts" in keys:
            loss = _build_sum(content, name, *settings)
        elif "loss" in keys:
            loss = _build_pixel_loss(content, name, *settings)
        else:
            loss = _build_surrogate(content, name, *settings, version=version)
            if version == 2:
                loss = MixedLoss(loss, content["cross_entropy"])
    except InputError as error:
        raise LossFileError(f"{name}: {error}") from None
    loss.provenance = dict(provenance)
    return loss


def _keys(content: Mapping[str, Any], of_surrogates: set[str]) -> set[str]:
    """The keys, beside the head, of a loss of version 3 of this kind."""
    if "parts" in content:
        return _SUM
    return _PIXEL_LOSS if "loss" in content else _SURROGATE | of_surrogates


def _check_keys(content: Mapping[str, Any], keys: set[str], name: str) -> None:
    if missing := sorted(keys - {"provenance"} - content.keys()):
        raise LossFileError(f"{name}: missing: {', '.join(missing)}.")
    if unknown := sorted(content.keys() - keys):
        raise LossFileError(f"{name}: unknown: {cut(', '.join(unknown))}; allowed: {', '.join(sorted(keys))}.")


def _build_sum(content: Mapping[str, Any], name: str, ignore_index: int, reduce_over_ranks: bool) -> Loss:
    scale, parts = check_scale("scale", content["scale"]), content["parts"]
    if not isinstance(parts, list) or not 1 <= len(parts) <= MOST_PARTS:
        given = f"{len(parts)}" if isinstance(parts, list) else shown(parts)
        raise LossFileError(f"{name}: parts must be a list of 1 to {MOST_PARTS} losses, got {given}.")
    built: list[tuple[float, Loss]] = []
    for i, part in enumerate(parts):
        place = f"{name}: part {i}"
        if not isinstance(part, dict):
            raise LossFileError(f"{place} must be a mapping, got {shown(part)}.")
        if "parts" in part or "cross_entropy" in part:
            raise LossFileError(f"{place} is a sum itself; list its parts in this one, with their shares of the whole.")
        _check_keys(part, _keys(part, set()) | {"share"}, place)
        build = _build_pixel_loss if "loss" in part else _build_surrogate
        try:
            built.append((_share(part["share"]), build(part, place, ignore_index, reduce_over_ranks)))
        except InputError as error:
            raise LossFileError(f"{place}: {error}") from None
    total = math.fsum(share for share, _ in built)
    if abs(total - 1) > SUM_TOLERANCE:
        raise LossFileError(f"{name}: the shares of the parts must sum to 1, got {total:.12g}.")
    return MixedLoss.of_shares(scale, built)


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InputError(f"share must be a number above 0 and at most 1, got {shown(value)}.")
    return float(value)


def _build_pixel_loss(content: Mapping[str, Any], name: str, ignore_index: int, reduce_over_ranks: bool) -> Loss:
    kind, options = content["loss"], content["options"]
    if kind == "lovasz" and isinstance(options, dict) and options.keys() == {"per_image"}:  # as it was written once
        form = "jaccard_i" if check_flag("per_image", options["per_image"]) else "jaccard"
        return SurrogateLoss(form, None, "lovasz", "identity", "present", ignore_index, reduce_over_ranks)
    if not isinstance(kind, str) or kind not in PIXEL_LOSSES:
        raise LossFileError(f"{name}: loss is {shown(kind)}; allowed: {', '.join(PIXEL_LOSSES)}.")
    if not isinstance(options, dict):
        raise LossFileError(f"{name}: options must be a mapping, got {shown(options)}.")
    settings = {"ignore_index": ignore_index, "reduce_over_ranks": reduce_over_ranks}
    parameters = inspect.signature(PIXEL_LOSSES[kind]).parameters
    allowed = [option for option in parameters if option not in settings]
    if missing := [option for option in allowed if option not in options and option not in _NEWER_OPTIONS]:
        raise LossFileError(f"{name}: options of {kind}: missing: {', '.join(missing)}.")
    if unknown := [option for option in options if option not in allowed]:
        raise LossFileError(f"{name}: options of {kind}: unknown: {', '.join(unknown)}; allowed: {', '.join(allowed)}.")
    return PIXEL_LOSSES[kind](**options, **{key: value for key, value in settings.items() if key in parameters})


def _build_surrogate(
    content: Mapping[str, Any], name: str, ignore_index: int, reduce_over_ranks: bool, version: int = VERSION
) -> SurrogateLoss:
    for key, kind in (("logic", LogicKind), ("classes", Classes), ("curve", CurveKind)):
        allowed = [value for value in get_args(kind) if version >= 3 or value not in NEWER]
        if content[key] not in allowed:
            raise LossFileError(f"{name}: {key} is {shown(content[key])}; allowed: {', '.join(allowed)}.")
    if not isinstance(content["metric"], str):
        raise LossFileError(f"{name}: metric must be the text of an expression, got {shown(content['metric'])}.")
    try:
        expr = metric(content["metric"])
    except (ExprError, InputError) as error:
        raise LossFileError(f"{name}: metric: {error}") from None
    given = content["slots"]
    if not isinstance(given, dict):
        raise LossFileError(f"{name}: slots must be a mapping of slot names to control points, got {shown(given)}.")
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
                f"{name}: slot `{slot}`: control points must be a list of pairs of numbers [u, v], got {shown(points)}."
            )
    return SurrogateLoss(
        expr,
        [given[slot] for slot in names],
        logic=content["logic"],
        curve=content["curve"],
        classes=content["classes"],
        ignore_index=ignore_index,
        reduce_over_ranks=reduce_over_ranks,
        scale=content.get("scale", 1.0),
    )
