"""Metrics as a configuration names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, TypeAdapter, WithJsonSchema

from autosegloss.config.section import Section, misplaced
from autosegloss.config.yaml12 import show
from autosegloss.errors import AutoseglossError
from autosegloss.metric.catalogue import METRICS
from autosegloss.metric.expr import Expr
from autosegloss.metric.parse import LONGEST_NAME
from autosegloss.metric.parse import metric as build_metric

CALIBRATION = "ece"
"""The name under which the expected calibration error stands among the metrics; lower is better."""


def _metric(value: object) -> str | dict[str, Any]:
    """Refuse anything that is not a metric; keep what was written, so that a name stays a name."""
    if not isinstance(value, str | Mapping | Expr):
        raise ValueError(
            f"must be a name, a mapping such as {{name: biou, radius: 3}}, or a text expression, got {show(value)}"
        )
    try:
        build_metric(value)
    except AutoseglossError as error:
        raise ValueError(str(error)) from error
    if isinstance(value, Mapping) and (value["name"] in _RESERVED or str(value["name"]).startswith("IoU of ")):
        raise ValueError(f"the name {show(value['name'])} stands for something else in the tables; choose another")
    return dict(value) if isinstance(value, Mapping) else str(value)


def _reward(value: object) -> str | dict[str, Any]:
    """Refuse what is neither a text, which may be no metric but a number that a trial returns, nor a metric."""
    if not isinstance(value, str):
        return _metric(value)
    if not value.strip(" -"):
        raise ValueError(f"must name a number or a metric, got {show(value)}")
    return value.strip()


def _column(value: object) -> str | dict[str, Any]:
    return CALIBRATION if value == CALIBRATION else _metric(value)


def _columns(value: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
    """Refuse two columns of one metric, whatever their names, and two metrics of one name."""
    first: dict[object, object] = {}
    for spec in value:
        expr = CALIBRATION if spec == CALIBRATION else build_metric(spec)
        if expr in first:
            raise ValueError(f"{show(first[expr])} and {show(spec)} are the same metric; give it once")
        if spec_label(spec) in map(spec_label, first.values()):  # type: ignore[arg-type]
            raise ValueError(f"two metrics have the name {show(spec_label(spec))}; choose another")
        first[expr] = spec
    return value


def _guards(value: object) -> dict[str, float | dict[str, Any]]:
    """Check each key that is a metric, and each name with its expression."""
    if not isinstance(value, Mapping):
        _PLAIN.validate_python(value)  # raises
        return {}
    plain = _PLAIN.validate_python({key: share for key, share in value.items() if not isinstance(share, Mapping)})
    own = {key: each for key, each in value.items() if isinstance(each, Mapping)}
    for name, entry in own.items():
        if missing := [key for key in ("expression", "share") if key not in entry]:
            raise misplaced(f"`{missing[0]}` is missing, as in {{expression: iou(2), share: 0.8}}", str(name))
    named = _NAMED.validate_python(own)
    for name, each in named.items():
        try:
            _metric({"name": name, "expression": each.expression})
        except ValueError as error:
            raise misplaced(str(error), name) from error
    found = plain | {name: each.model_dump() for name, each in named.items()}
    return {key: found[key] for key in value}


_RESERVED = ("target", CALIBRATION)
_SHARE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}
_GUARDS = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [
            _SHARE,
            {
                "type": "object",
                "properties": {"expression": {"type": "string"}, "share": _SHARE},
                "required": ["expression", "share"],
                "additionalProperties": False,
            },
        ]
    },
    "default": {},
}
MetricSpec: TypeAlias = Annotated[
    str | dict[str, Any], PlainValidator(_metric), WithJsonSchema({**_SCHEMA, "examples": ["miou"]})
]
"""A name, a name with options, a text expression, or a name for one, as it was written."""
RewardSpec: TypeAlias = Annotated[str | dict[str, Any], PlainValidator(_reward), WithJsonSchema(_SCHEMA)]
"""A metric, or the name of a number that a trial returns, perhaps after a minus sign."""
Columns: TypeAlias = Annotated[
    list[Annotated[str | dict[str, Any], PlainValidator(_column), WithJsonSchema(_SCHEMA)]], AfterValidator(_columns)
]
"""Metrics, and perhaps the calibration error, each once."""
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Guards: TypeAlias = Annotated[dict[str, float | dict[str, Any]], PlainValidator(_guards), WithJsonSchema({**_GUARDS})]
"""The share of each metric: by a name of the catalogue or a text, or by a name of its own, with the expression."""


class _Guarded(Section):
    """A guarded metric that has a name of its own."""

    expression: Annotated[str, AfterValidator(lambda text: _metric(text))]
    share: Share


_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_PLAIN = TypeAdapter(dict[Annotated[str, AfterValidator(lambda text: _metric(text))], Share], config=_STRICT)
_NAMED = TypeAdapter(dict[str, _Guarded])
SHARES = TypeAdapter(dict[str, Share], config=_STRICT)
"""The share of each number that a trial returns."""


def spec_label(spec: str | Mapping[str, Any]) -> str:
    """A metric as a configuration has it, in few words: its own name, or its text; without options its name."""
    if isinstance(spec, str):
        return " ".join(spec.split())
    own = {key: value for key, value in spec.items() if key not in ("name", "expression")}
    options = ", ".join(f"{key}={_option(value)}" for key, value in own.items())
    return f"{spec['name']}({options})" if options else str(spec["name"])


def _option(value: object) -> str:
    return f"[{', '.join(map(_option, value))}]" if isinstance(value, list | tuple) else str(value)


def guard_shares(guard: Mapping[str, Any]) -> dict[str, float]:
    """The least share of each guarded metric, by its label."""
    return {spec_label(key): each["share"] if isinstance(each, Mapping) else each for key, each in guard.items()}


def guard_metrics(guard: Mapping[str, Any]) -> dict[str, Expr]:
    """The guarded metrics by their labels, but those that are names of the catalogue: these are measured anyway."""
    specs = {spec_label(key): each["expression"] if isinstance(each, Mapping) else key for key, each in guard.items()}
    return {label: build_metric(spec) for label, spec in specs.items() if label not in METRICS}


def with_numbers(spec: str | dict[str, Any], class_names: Sequence[str]) -> str | dict[str, Any]:
    """A metric with class numbers in place of class names, under the label that it had; another one as it is.

    Raises:
        InputError: A class is unknown.
    """
    expr = build_metric(spec, class_names=class_names)
    if expr == build_metric(spec):
        return spec
    label = spec_label(spec)
    return {"name": label, "expression": str(expr)} if len(label) <= LONGEST_NAME else str(expr)


def guard_with_numbers(guard: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """The same of a guard."""
    found: dict[str, Any] = {}
    for key, each in guard.items():
        own = isinstance(each, Mapping)
        spec = with_numbers({"name": key, "expression": each["expression"]} if own else key, class_names)
        if isinstance(spec, str):
            found[spec] = each
        else:
            share = each["share"] if own else each
            found[spec["name"]] = {"expression": spec["expression"], "share": share}
    return found
