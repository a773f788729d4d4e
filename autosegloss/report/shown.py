"""A loss as text: its row in the map of losses, and the curve of each of its slots."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from autosegloss.loss import Loss, MixedLoss, Slot, SurrogateLoss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.loss.curve import Curve
from autosegloss.loss.known import known_as
from autosegloss.proxy.trial import TARGET
from autosegloss.report.plots import curves_of, formula, text_plot
from autosegloss.search.content import CROSS_ENTROPY, bare_content


def loss_text(loss: Loss) -> str:
    """What a loss is made of; of a sum the scale, and each part with its share.

    Identity curves are not drawn, and a curve that two parts have on the same slot is drawn once.
    """
    drawn: dict[Slot, Curve] = {}
    lines = [*_head(loss)]
    if isinstance(loss, MixedLoss | SurrogateLoss):
        lines.append(_line("scale", f"{loss.scale:.4g}"))
    lines += _body(loss, drawn)
    if isinstance(loss, MixedLoss):
        for share, part in zip(loss.shares, loss.parts, strict=True):
            if share:
                lines += ["", _line("share", f"{share:.4g}"), *_head(part), *_body(part, drawn)]
    return "\n".join(lines)


def loss_line(loss: Loss) -> str:
    """The scale of a loss, the shares of its parts and its curves in one line, without the text of its metric."""
    scale = loss.scale if isinstance(loss, MixedLoss | SurrogateLoss) else 1.0
    shares = loss.shares if isinstance(loss, MixedLoss) else (1.0,)
    parts = [
        f"{share:.3g} {_short(part)}" if len(shares) > 1 else _short(part)
        for share, part in zip(shares, loss.parts if isinstance(loss, MixedLoss) else (loss,), strict=True)
        if share
    ]
    curves = [
        f"{slot} {' '.join(f'({u:.3g}, {v:.3g})' for u, v in curve.points)}"
        for slot, curve in curves_of(loss)
        if not curve.is_identity
    ]
    return f"scale {scale:.3g}: {' + '.join(parts)}" + (f"; curves: {', '.join(curves)}" if curves else "")


def provenance_lines(provenance: Mapping[str, Any], indent: str = "  ") -> Iterator[str]:
    """A line for each entry of a provenance; tables are opened, and of the scores of a loss the target is shown."""
    for key, value in provenance.items():
        if not isinstance(value, dict):
            yield f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value)}"
        elif TARGET in value:
            more = f"  (and {len(value) - 1} more in the file)" if len(value) > 1 else ""
            yield f"{indent}{key}: {TARGET} {json.dumps(value[TARGET])}{more}"
        elif any(isinstance(each, dict) for each in value.values()):
            yield f"{indent}{key}:"
            yield from provenance_lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {json.dumps(value)}"


def _short(loss: Loss) -> str:
    """A part of a sum by its logic, or by its name."""
    if isinstance(loss, SurrogateLoss):
        return loss.logic
    if isinstance(loss, CrossEntropy) and loss.class_power:
        return f"cross-entropy (class_power {loss.class_power:.3g})"
    return "cross-entropy" if bare_content(loss) == CROSS_ENTROPY else formula(loss)


def _head(loss: Loss) -> Iterator[str]:
    yield _line("loss", formula(loss))
    if (called := known_as(loss)) is not None:
        yield _line("known as", called)


def _body(loss: Loss, drawn: dict[Slot, Curve]) -> Iterator[str]:
    """The lines of a surrogate; other losses have no more than their formula."""
    if not isinstance(loss, SurrogateLoss):
        return
    yield _line("logic", loss.logic)
    if loss.extension is not None:
        for part in loss.extension.parts:
            yield _line("extended", str(part.node))
        for reason in loss.extension.left.values():
            yield _line("product", f"{reason[0].upper()}{reason[1:]}.")
    yield _line("classes", loss.classes)
    yield _line("curve", loss.curve)
    for slot, curve in loss.curves.items():
        if curve.is_identity or drawn.get(slot) == curve:
            yield f"\n{slot}: {'identity' if curve.is_identity else 'as above'}"
            continue
        drawn[slot] = curve
        points = "  ".join(f"({u:.4g}, {v:.4g})" for u, v in curve.points)
        yield f"\n{slot}\ncontrol points: {points}\n{textwrap.indent(text_plot(curve), '  ')}"


def _line(name: str, value: str) -> str:
    return f"{name:10}{value}"
