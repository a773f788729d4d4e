"""The losses that are no surrogates in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autosegloss.errors import InputError
from autosegloss.loss.balance import balance
from autosegloss.loss.python.written import WIDTH, Written, finite, function_text, number_text

_AS_MAP = "weight = weight.view(-1, *[1] * (logits.ndim - 2))"


def classic(content: Mapping[str, Any]) -> Written:
    """A loss that is not a surrogate."""
    name, options = content["loss"], dict(content.get("options", {}))
    if name not in _CLASSICS:
        raise InputError(f"loss is {name!r}; allowed: {', '.join(_CLASSICS)}.")
    written = _CLASSICS[name](options)
    if options:
        raise InputError(f"{name} has no option {next(iter(options))!r}.")
    return written


def _cross_entropy(options: dict[str, Any]) -> Written:
    weight, smoothing = _weights(options), finite("label_smoothing", options.pop("label_smoothing", 0))
    power, counts = finite("class_power", options.pop("class_power", 0)), options.pop("counts", None)
    extras = [*(["class weights"] if weight else []), *([f"class power {number_text(power)}"] if power else [])]
    extras += ["label smoothing"] if smoothing else []
    about = f"cross-entropy with {' and '.join(extras)}" if extras else "cross-entropy"
    if not extras:
        return Written(about, "_cross_entropy(logits, target)")
    smooth, weighed = "smooth" if smoothing else "target", "weight * " if weight else ""
    lines = ["log_pred = logits.log_softmax(1)"]
    if power:
        lines += [*_powers(power, counts), "target = weight * target"]
    if smoothing:
        lines += [
            "# A share of each label is spread evenly over all classes.",
            "spread = target.sum(1, keepdim=True) / target.shape[1]",
            f"smooth = {number_text(1 - smoothing)} * target + {number_text(smoothing)} * spread",
        ]
    lines += [
        f"summed = torch.where({smooth} > 0, -{weighed}{smooth} * log_pred, 0.0).sum()",
        f"return _divide(summed, ({weighed}target).sum())" if weight else "return _divide(summed, target.sum())",
    ]
    doc = (
        "Mean over the pixels that count, each weighing as much as its class"
        if weight or power
        else "Mean over the pixels that count"
    )
    function = function_text(
        "_mean_cross_entropy", "logits: Tensor, target: Tensor", f"{doc}; 0 if there is none.", weight + lines
    )
    return Written(about, "_mean_cross_entropy(logits, target)", [function])


def _powers(power: float, counts: Sequence[float] | None) -> list[str]:
    """The lines that make the weights of the classes from their pixels."""
    if counts is not None:
        numbers = balance([finite("counts", count) for count in counts], power)
        return _class_weights(numbers, f"  # (pixels of the class) ** {number_text(-power)}, counted beforehand")
    return [
        "pixels = _total(target.detach()).clamp(min=1)  # of each class",
        f"weight = (pixels / target.detach().sum().clamp(min=1)) ** {number_text(-power)}",
        _AS_MAP,
    ]


def _focal(options: dict[str, Any]) -> Written:
    weight, gamma = _weights(options), finite("gamma", options.pop("gamma", 2))
    title = f"focal loss of gamma {number_text(gamma)}" + (" with class weights" if weight else "")
    lines = [
        "values = torch.where(target > 0, -target * logits.log_softmax(1), 0.0).sum(1)  # -log p of the true class",
        f"weights = {'(weight * target)' if weight else 'target'}.sum(1)  # 0 where a pixel does not count",
        "# 1 - p without cancellation; the bound keeps the slope of a power below 1 finite at p = 1.",
        f"easiness = (-torch.expm1(-values)).clamp(min=1e-12) ** {number_text(gamma)}",
        "return _divide((easiness * values * weights).sum(), weights.sum())",
    ]
    doc = "-(1 - p)^gamma log p, the mean over the pixels that count (Lin et al., ICCV 2017, equation 5)."
    function = function_text("_focal", "logits: Tensor, target: Tensor", doc, weight + lines)
    return Written(title, "_focal(logits, target)", [function], hard=True)


def _boundary_cross_entropy(options: dict[str, Any]) -> Written:
    factor, radius = finite("factor", options.pop("factor", 10)), int(options.pop("radius", 5))
    title = f"cross-entropy, {number_text(factor)} times as heavy within {radius} pixels of a boundary"
    lines = [
        "values = torch.where(target > 0, -target * logits.log_softmax(1), 0.0).sum(1)",
        f"near = _dilate(target, {radius}).sum(1) > 1  # pixels with another class within the distance",
        f"weights = torch.where(near, {number_text(factor)}, 1.0) * target.sum(1)  # 0 where a pixel does not count",
        "return _divide((values * weights).sum(), weights.sum())",
    ]
    doc = "Mean over the pixels that count; those near a boundary of the target weigh more."
    function = function_text("_boundary_cross_entropy", "logits: Tensor, target: Tensor", doc, lines)
    return Written(title, "_boundary_cross_entropy(logits, target)", [function], hard=True)


_CLASSICS = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "boundary_cross_entropy": _boundary_cross_entropy,
}


def _weights(options: dict[str, Any]) -> list[str]:
    """The line that makes the weights of the classes; none without."""
    weight = options.pop("weight", None)
    return [] if weight is None else _class_weights([finite("weight", x) for x in weight])


def _class_weights(numbers: Sequence[float], comment: str = "") -> list[str]:
    texts = [number_text(x) for x in numbers]
    line = f"weight = torch.tensor([{', '.join(texts)}], dtype=logits.dtype, device=logits.device){comment}"
    if len(line) <= WIDTH - 4:
        return [line, _AS_MAP]
    several = f"weights = [{', '.join(texts)}]{comment}"
    lines = [several] if len(several) <= WIDTH - 4 else [f"weights = [{comment}", *(f"    {x}," for x in texts), "]"]
    return [*lines, "weight = torch.tensor(weights, dtype=logits.dtype, device=logits.device)", _AS_MAP]
