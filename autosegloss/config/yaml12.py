"""The scalars of YAML 1.2 in PyYAML, which reads YAML 1.1: `on` is text here, and 1e-3 is a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import Any

import yaml

from autosegloss.errors import shown

TAG = "tag:yaml.org,2002:"
# The scalars of YAML 1.2's core schema (section 10.3.2). PyYAML reads YAML 1.1, where `on` is true and 1e-3 is text.
_SCALARS = (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
_SHOWN = 60  # characters of a value in a message
CONSTRUCT: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    "float": lambda text: float(re.sub(r"\.(inf|nan)$", r"\1", text.lower())),
}


class Loader(yaml.SafeLoader):
    """Composes nodes with the scalars of YAML 1.2 and constructs no objects."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # An alias would have two lines and may contain itself; a configuration is too small to need one.
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # a gap in the stubs
            raise yaml.MarkedYAMLError(problem="aliases (`*name`) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would not read as text."""


Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    Loader.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
    Dumper.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def syntax_error(error: yaml.YAMLError) -> tuple[int, str]:
    """Line (0: unknown) and reason of a YAML error."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        return (mark.line + 1 if mark else 0), reason
    return 0, str(error).replace("\n", " ")


def show(value: object) -> str:
    """A value as in the file, shortened to one line."""
    try:
        text = yaml.dump(_start(value), Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=1000)
    except yaml.YAMLError:
        text = shown(value)
    text = text.removesuffix("...\n").strip().replace("\n", " ")
    return f"`{text[: _SHOWN - 3]}...`" if len(text) > _SHOWN else f"`{text}`"


def _start(value: object, depth: int = 0) -> object:
    """The start of a value, with as much of it as `show` may need: a whole one may take seconds to write."""
    if isinstance(value, str):
        return value[: _SHOWN + 1]
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return shown(value)
    if isinstance(value, dict):
        return {_start(key): _start(item, depth + 1) for key, item in islice(value.items(), _SHOWN >> depth)}
    if isinstance(value, list | tuple):
        return [_start(item, depth + 1) for item in value[: _SHOWN >> depth]]
    return value
