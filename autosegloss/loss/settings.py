"""The section `relaxation` of a configuration."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from autosegloss.config.section import Section, misplaced
from autosegloss.config.yaml12 import show
from autosegloss.loss.curve import MOST_PIECES

_LOGICS = ("product", "godel", "lovasz")


def _number(low: float, high: float, value: object) -> float | str:
    """A number, or the word for one that is searched; one message for both kinds."""
    if isinstance(value, str) and value in ("searched", "auto"):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"must be a number from {low:g} to {high:g}, `searched` or `auto`, got {show(value)}")
    return float(value)


def _number_schema(low: float, high: float) -> dict[str, Any]:
    return {"anyOf": [{"type": "number", "minimum": low, "maximum": high}, {"enum": ["searched", "auto"]}]}


def _logic(value: object) -> str | list[str]:
    """A logic, or a list of several; one message for both kinds."""
    if isinstance(value, str) and value in ("auto", *_LOGICS):
        return value
    if isinstance(value, list) and len(value) > 1 and all(each in _LOGICS and value.count(each) == 1 for each in value):
        return list(value)
    raise ValueError(
        f"must be one of auto, {', '.join(_LOGICS)}, or a list of different ones such as [product, lovasz], "
        f"got {show(value)}"
    )


_LOGIC_SCHEMA = {
    "anyOf": [
        {"enum": ["auto", *_LOGICS]},
        {"type": "array", "items": {"enum": [*_LOGICS]}, "minItems": 2, "uniqueItems": True},
    ]
}

Scale: TypeAlias = Annotated[
    float | Literal["searched", "auto"],
    PlainValidator(partial(_number, 1e-3, 1e3)),
    WithJsonSchema(_number_schema(1e-3, 1e3)),
]
Share: TypeAlias = Annotated[
    float | Literal["searched", "auto"], PlainValidator(partial(_number, 0, 1)), WithJsonSchema(_number_schema(0, 1))
]
ClassPower: TypeAlias = Annotated[
    float | Literal["searched", "auto"], PlainValidator(partial(_number, -2, 2)), WithJsonSchema(_number_schema(-2, 2))
]
Logic: TypeAlias = Annotated[
    Literal["auto", "product", "godel", "lovasz"] | list[Literal["product", "godel", "lovasz"]],
    PlainValidator(_logic),
    WithJsonSchema(_LOGIC_SCHEMA),
]


class RelaxationConfig(Section):
    """How the metric becomes a family of losses: what is fixed in them, and what is searched."""

    curve: Literal["auto", "bezier", "linear", "log", "identity"] = "auto"
    """The curve on each operand: piecewise quadratic `bezier`, piecewise `linear`, `log`, whose one coordinate reaches
    from the identity to cross-entropy, or `identity`, which is not searched. `auto` is `log`, but `bezier`
    if the best rivals have the metric under identity curves alone."""
    pieces: Annotated[int, Field(ge=1, le=MOST_PIECES)] = 2
    """Pieces of each `bezier` or `linear` curve; more pieces, more coordinates to search."""
    logic: Logic = "auto"
    """The differentiable AND and OR: `product` (Auto Seg-Loss), `godel` (minimum and maximum, the JDT losses) or
    `lovasz` (the Lovász extension of the metric's errors, for hard labels); of a list the sum, with the same curves and
    searched shares. `auto` is `[product, lovasz]` for a metric that can be extended and hard labels, `godel` for soft
    labels, else `product`; of these the logics in which the best rivals have the metric, if they have it at all."""
    share_curves: bool = False
    """One curve an operator (as the paper's text has it) instead of one an operand (as its code has it)."""
    classes: Literal["metric", "all", "present"] = "metric"
    """The classes a class mean of the loss counts: those of the metric, `all`, or those `present` in the target."""
    scale: Scale = "auto"
    """What the whole loss is multiplied by, from 0.001 to 1000; under SGD it is a factor of the learning rate. `auto`
    is `searched`, from 1/4 to 64."""
    cross_entropy: Share = "auto"
    """The share of cross-entropy in the loss, from 0 to 1. `auto` is `searched`."""
    class_power: ClassPower = "auto"
    """The p with which a class weighs (its pixels in the batch) ** -p in the cross-entropy, from -2 to 2. `auto` is
    `searched`, from -0.25 to 1.25, if there is cross-entropy."""

    @model_validator(mode="after")
    def _fitting(self) -> RelaxationConfig:
        """Refuse a power of classes without the cross-entropy in which they weigh, and cross-entropy alone."""
        if self.cross_entropy == 0 and self.class_power not in (0, "auto"):
            raise misplaced(
                f"must be 0 or `auto` while `cross_entropy` is 0, got {show(self.class_power)}", "class_power"
            )
        if self.cross_entropy == 1:
            raise misplaced("must be below 1: at 1 nothing of the metric is left to search", "cross_entropy")
        return self
