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
_MOST = 20_000  # values, more than a file of the largest size has without aliases
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


class Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would not read as text."""


Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    Loader.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
    Dumper.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML text; aliases share theirs.

    Raises:
        yaml.YAMLError: The text is not YAML, or its aliases contain themselves or stand for too much.
        RecursionError: The text is nested too deeply.
    """
    root = yaml.compose(text, Loader=Loader)
    if root is not None:
        _size(root, {})
    return root


def _size(node: yaml.Node, sizes: dict[yaml.Node, int]) -> int:
    """The number of nodes below a node and itself, with aliases in full; 0 while it is counted."""
    if sizes.get(node) == 0:
        raise yaml.MarkedYAMLError(problem="an alias contains itself", problem_mark=node.start_mark)
    if node not in sizes:
        sizes[node] = 0
        inner = [each for pair in node.value for each in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes[node] = 1 + sum(_size(each, sizes) for each in inner if isinstance(each, yaml.Node))
    if sizes[node] > _MOST:
        raise yaml.MarkedYAMLError(problem=f"aliases stand for more than {_MOST} values", problem_mark=node.start_mark)
    return sizes[node]


def pairs(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """The keys and values of a mapping; `<<: *name` inserts those of another one, except keys that it has itself."""
    own = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
    found: list[tuple[yaml.Node, yaml.Node]] = []
    for key, value in node.value:
        if key.value == "<<" and isinstance(value, yaml.MappingNode):
            found += [(inner, each) for inner, each in pairs(value) if str(inner.value) not in own]
        else:
            found.append((key, value))
    return found


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
