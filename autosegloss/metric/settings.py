"""Metrics as a configuration names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, PlainValidator, WithJsonSchema

from autosegloss.config.yaml12 import show
from autosegloss.errors import AutoseglossError, did_you_mean
from autosegloss.metric.catalogue import METRICS
from autosegloss.metric.expr import Expr
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
    return dict(value) if isinstance(value, Mapping) else str(value)


def _column(value: object) -> str | dict[str, Any]:
    return CALIBRATION if value == CALIBRATION else _metric(value)


def _columns(value: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
    """Refuse two columns of one metric, whatever their names."""
    first: dict[object, object] = {}
    for spec in value:
        expr = CALIBRATION if spec == CALIBRATION else build_metric(spec)
        if expr in first:
            raise ValueError(f"{show(first[expr])} and {show(spec)} are the same metric; give it once")
        first[expr] = spec
    return value


def _measured(name: str) -> str:
    """Refuse what no trial measures."""
    if name not in METRICS:
        hint = did_you_mean(name, METRICS) or f"; known: {', '.join(METRICS)}"
        raise ValueError(f"is not a metric of the catalogue{hint}")
    return name


_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}
MetricSpec: TypeAlias = Annotated[
    str | dict[str, Any], PlainValidator(_metric), WithJsonSchema({**_SCHEMA, "examples": ["miou"]})
]
"""A name, a name with options, or a text expression, as it was written."""
Columns: TypeAlias = Annotated[
    list[Annotated[str | dict[str, Any], PlainValidator(_column), WithJsonSchema(_SCHEMA)]], AfterValidator(_columns)
]
"""Metrics, and perhaps the calibration error, each once."""
CatalogueName: TypeAlias = Annotated[str, AfterValidator(_measured)]
"""The name of a metric of the catalogue."""


def spec_label(spec: str | Mapping[str, Any]) -> str:
    """A metric as a configuration has it, in few words; one of the catalogue without options is its name."""
    if isinstance(spec, str):
        return " ".join(spec.split())
    options = ", ".join(f"{key}={value}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}({options})" if options else str(spec["name"])
