"""The section `relaxation` of a configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from autosegloss.config.section import Section
from autosegloss.config.yaml12 import show
from autosegloss.loss.curve import MOST_PIECES


def _weight(value: object) -> float | Literal["searched"]:
    """A weight, or the word for one that is searched; one message for both kinds."""
    if value == "searched":
        return "searched"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"must be a number from 0 to 1 or `searched`, got {show(value)}")
    return float(value)


class RelaxationConfig(Section):
    """How the metric becomes a family of losses."""

    curve: Literal["bezier", "linear", "log"] = "bezier"
    """The curve on each operand: piecewise quadratic `bezier`, piecewise `linear`, or `log` of one coordinate."""
    pieces: Annotated[int, Field(ge=1, le=MOST_PIECES)] = 2
    """Pieces of each curve; more pieces, more coordinates to search. A `log` curve has none."""
    logic: Literal["product", "godel"] = "product"
    """The differentiable AND and OR: `product` (Auto Seg-Loss) or `godel` (minimum and maximum, the JDT losses)."""
    share_curves: bool = False
    """One curve an operator (as the paper's text has it) instead of one an operand (as its code has it)."""
    classes: Literal["metric", "all", "present"] = "metric"
    """The classes a class mean of the loss counts: those of the metric, `all`, or those `present` in the target."""
    cross_entropy: Annotated[
        float | Literal["searched"],
        PlainValidator(_weight),
        WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"const": "searched"}]}),
    ] = 0.0
    """The weight of cross-entropy beside the surrogate, from 0 to 1, or `searched`: one more coordinate of the search,
    which starts at 0.25, the weight that the JDT papers advise."""
