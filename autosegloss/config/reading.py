"""Reading a configuration from YAML and overrides, with the file and line of every error."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autosegloss.config.section import Keys, Section, is_section, section_of_names
from autosegloss.config.yaml12 import CONSTRUCT, TAG, compose, pairs, show, syntax_error
from autosegloss.errors import LISTED, ConfigError, cut, did_you_mean, listed

S = TypeVar("S", bound=Section)
_TOO_DEEP = "lists or mappings are nested too deeply"
_DEEPEST = 40  # levels of lists and mappings; no option needs more than a few
_LARGEST = 32 * 2**10  # bytes of a file, far beyond any configuration; reading them takes part of a second
_EXPLAINED = 100  # errors of which the text is made, since ten are shown


def read_file(root: type[S], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> S:
    """Read a section and its subsections from a YAML file.

    Args:
        root: The class of the whole file.
        path: The file; messages show it as given.
        overrides: Texts `key.sub=value` that override the file; the value is YAML.

    Returns:
        The section, complete with defaults.

    Raises:
        ConfigError: The configuration is invalid; all errors are listed, each with its file and line or its override.
    """
    name = cut(str(path))
    draft = _Draft(name)
    draft.read(_text(Path(path), name))
    for override in overrides:
        draft.override(override)
    return draft.build(root)


def _text(path: Path, name: str) -> str:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"{name}: must be a file, not a pipe or a device")
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ConfigError(f"{name}: has more than {_LARGEST} bytes; a configuration has a few thousand")
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:  # the latter of a name with a null byte
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name}: can't be read: {getattr(error, 'strerror', None) or error}") from error


def read_mapping(root: type[S], values: Mapping[str, Any]) -> S:
    """Read a section and its subsections from a mapping with the keys of the file.

    Raises:
        ConfigError: The configuration is invalid; all errors are listed.
    """
    return _Draft("configuration", data=dict(values)).build(root)


@dataclass(frozen=True, order=True)
class _Origin:
    """Where a value was written; origins sort by line, overrides last."""

    override: int
    line: int
    text: str


@dataclass
class _Draft:
    """Plain values before validation, the origin of each, and the errors found so far."""

    source: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, _Origin] = field(default_factory=dict)
    mistakes: list[tuple[_Origin, str]] = field(default_factory=list)
    wrong: set[Keys] = field(default_factory=set)
    overrides: int = 0
    unexplained: int = 0

    def read(self, text: str) -> None:
        """Read the values of a YAML file."""
        try:
            root = compose(text)
        except yaml.YAMLError as error:
            line, problem = syntax_error(error)
            raise ConfigError(f"{self._at(line).text}: invalid YAML: {problem}") from error
        except RecursionError:
            raise ConfigError(f"{self.source}: {_TOO_DEEP}") from None
        if root is None:
            raise ConfigError(f"{self.source}: is empty; it needs at least a metric, e.g. `metric: miou`")
        if not isinstance(root, yaml.MappingNode):
            line = root.start_mark.line + 1
            raise ConfigError(f"{self._at(line).text}: must be a mapping, e.g. `metric: miou`")
        self.data = self._plain(root, (), None)

    def override(self, text: str) -> None:
        """Set one value from `key.sub=value`."""
        self.overrides += 1
        origin = _Origin(self.overrides, 0, f"--set {cut(text)}")
        key, equals, value = text.partition("=")
        keys = tuple(key.split("."))
        if len(text) > _LARGEST or len(keys) > _DEEPEST:
            self._mistake(origin, (), "is too long")
            return
        if not equals or not all(keys):
            self._mistake(origin, (), "must read key.sub=value, e.g. `--set search.steps=4`")
            return
        try:
            node = compose(value[: _LARGEST + 1])
        except yaml.YAMLError as error:
            self._mistake(origin, keys, f"invalid YAML: {syntax_error(error)[1]}")
            return
        except RecursionError:
            self._mistake(origin, keys, _TOO_DEEP)
            return
        section = self.data
        for depth, name in enumerate(keys[:-1], start=1):
            self.origins.setdefault(keys[:depth], origin)
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                self._mistake(origin, keys, f"`{'.'.join(keys[:depth])}` is {show(section)}, which has no keys")
                return
        self.origins[keys] = origin
        section[keys[-1]] = None if node is None else self._plain(node, keys, origin)

    def build(self, root: type[S]) -> S:
        """Validate everything and build the section."""
        section = None
        try:
            section = root.model_validate(self.data)
        except ValidationError as error:
            self._refused(root, error)
        else:
            for above, late in section.late_mistakes():
                self._refused(root, late, above)
        if section is not None and not self.mistakes:
            return section
        lines = [line for _, line in sorted(self.mistakes)]
        found = len(lines) + self.unexplained
        title = [f"{found} errors in the configuration:"] if found > 1 else []
        short = [line.replace(f"{self.source}:", f"{Path(self.source).name}:", 1) for line in lines]
        fitting = lines if sum(map(len, lines)) < LISTED else short  # a long path would hide the causes
        mistakes = ConfigError("\n".join([*title, *listed(fitting, self.unexplained)]))
        mistakes.mistakes, mistakes.rest = short, self._rest(root)
        raise mistakes

    def _rest(self, root: type[Section]) -> dict[str, Any]:
        """The values without those that are wrong, and without those that are wrong then."""
        rest, wrong = copy.deepcopy(self.data), self.wrong
        while any([_remove(rest, keys) for keys in sorted(wrong, key=_numbered, reverse=True)]):
            try:
                late = list(root.model_validate(rest).late_mistakes())
            except ValidationError as error:
                late = [((), error)]
            wrong = {keys for above, error in late for keys, _ in _located(root, error, above)}
        return rest

    def _refused(self, root: type[BaseModel], error: ValidationError, above: Keys = ()) -> None:
        located = _located(root, error, above)
        self.unexplained += len(located[_EXPLAINED:])
        self.wrong.update(keys for keys, _ in located)
        for keys, details in located[:_EXPLAINED]:
            self._mistake(self._origin(keys), keys, _explain(root, details, keys))

    def _at(self, line: int) -> _Origin:
        return _Origin(0, line, f"{self.source}:{line}" if line else self.source)

    def _origin(self, keys: Keys) -> _Origin:
        while keys and keys not in self.origins:
            keys = keys[:-1]
        if not keys:
            return self._at(0)
        inside = (at for at in self.origins if at[: len(keys)] == keys and self.origins[at].override)
        return max(self.origins[at] for at in (keys, *inside))

    def _mistake(self, origin: _Origin, keys: Keys, problem: str) -> None:
        self.wrong.add(keys)
        where = f"{origin.text}: {cut('.'.join(keys))}: " if keys else f"{origin.text}: "
        self.mistakes.append((origin, where + problem.replace("\n", "\n    ")))

    def _plain(self, node: yaml.Node, keys: Keys, override: _Origin | None) -> Any:
        """The plain value of a node; notes where each key was written."""
        origin = override or self._at(node.start_mark.line + 1)
        if len(keys) > _DEEPEST:
            self._mistake(origin, keys[:2], _TOO_DEEP)
            return None
        if isinstance(node, yaml.MappingNode):
            section: dict[str, Any] = {}
            for key, value in pairs(node):
                at = (*keys, str(key.value))
                origin = override or self._at(key.start_mark.line + 1)
                if not isinstance(key, yaml.ScalarNode):
                    self._mistake(origin, keys, "keys must be plain text")
                    continue
                if key.value in section:
                    first = self.origins[at]
                    self._mistake(origin, at, "given twice" if override else f"given twice, first on line {first.line}")
                self.origins[at] = origin
                section[key.value] = self._plain(value, at, override)
            return section
        if isinstance(node, yaml.SequenceNode):
            items = [((*keys, str(number)), item) for number, item in enumerate(node.value)]
            self.origins |= {at: override or self._at(item.start_mark.line + 1) for at, item in items}
            return [self._plain(item, at, override) for at, item in items]
        try:
            return CONSTRUCT[node.tag.removeprefix(TAG)](node.value)
        except (KeyError, ValueError):
            if node.tag == f"{TAG}int" and len(node.value) > _DEEPEST:
                self._mistake(origin, keys, f"the number has {len(node.value)} digits, which is too many")
                return 0
            self._mistake(origin, keys, f"the tag `{node.tag}` is not allowed here; write a plain value")
            return node.value


def _located(root: type[BaseModel], error: ValidationError, above: Keys) -> list[tuple[Keys, ErrorDetails]]:
    """The errors of a validation, each with the keys of the value that is wrong."""
    found = []
    for details in error.errors(include_url=False):
        at = details.get("ctx", {}).get("at", ())
        inside = (str(key) for key in (*details["loc"], *at) if key != "[key]")
        found.append((_written(root, (*above, *inside)), details))
    return found


def _numbered(keys: Keys) -> tuple[tuple[int, str], ...]:
    """By this the items of a list are in the order of their numbers."""
    return tuple((int(key) if key.isdecimal() else -1, key) for key in keys)


def _remove(data: Any, keys: Keys) -> bool:
    """Remove the value at the keys, or the innermost one around it; False if there is none."""
    if not keys:
        return False
    key: Any = int(keys[0]) if isinstance(data, list) and keys[0].isdecimal() else keys[0]
    if not (key in data if isinstance(data, dict) else isinstance(data, list) and key in range(len(data))):
        return False
    if not _remove(data[key], keys[1:]):
        del data[key]
    return True


_PROBLEMS = {
    "missing": "missing; give the target metric, e.g. `metric: miou`",
    "model_type": "must be a mapping, got {given}",
    "dict_type": "must be a mapping, got {given}",
    "string_type": "must be text, got {given}",
    "list_type": "must be a list, got {given}",
    "bool_type": "must be true or false, got {given}",
    "int_type": "must be an integer, got {given}",
    "float_type": "must be a number, got {given}",
    "finite_number": "must be a finite number, got {given}",
    "greater_than": "must be greater than {gt:g}, got {given}",
    "greater_than_equal": "must be at least {ge:g}, got {given}",
    "less_than": "must be less than {lt:g}, got {given}",
    "less_than_equal": "must be at most {le:g}, got {given}",
    "value_error": "{error}",
    "misplaced": "{problem}",
}


def _explain(root: type[BaseModel], details: ErrorDetails, keys: Keys) -> str:
    """The message of an error: what is wrong, what was given and what is allowed."""
    if details["type"] == "extra_forbidden":
        return f"unknown key{_suggest_key(root, keys)}"
    given = show(details["input"])
    if details["type"] == "literal_error":
        allowed = get_args(_section_of(root, keys).model_fields[keys[-1]].annotation)
        return f"must be one of {', '.join(allowed)}, got {given}"
    if details["type"] in _PROBLEMS:
        return _PROBLEMS[details["type"]].format(given=given, **details.get("ctx", {}))
    return f"{details['msg']}, got {given}"


def _written(root: type[BaseModel], keys: Keys) -> Keys:
    """The keys as in the file: inside an option, pydantic appends the types that it tried."""
    section, inside = _innermost(root, keys)
    above = len(keys) - len(inside)
    for depth, key in enumerate(inside, start=above + 1):
        if key not in section.model_fields:
            return keys[:depth]
        inner = section.model_fields[key].annotation
        if not is_section(inner):
            break
        section = inner
    return keys


def _section_of(root: type[BaseModel], keys: Keys) -> type[BaseModel]:
    """The section that holds the last of the keys."""
    section, inside = _innermost(root, keys)
    for key in inside[:-1]:
        inner = section.model_fields[key].annotation
        assert is_section(inner)
        section = inner
    return section


def _innermost(root: type[BaseModel], keys: Keys) -> tuple[type[BaseModel], Keys]:
    """The innermost section below names that the user chose, and the keys from there."""
    section = root
    for depth, key in enumerate(keys):
        found = section.model_fields.get(key)
        if found is None:
            break
        if is_section(found.annotation):
            section = found.annotation
            continue
        named = section_of_names(found.annotation)
        if named is not None and len(keys) > depth + 2:
            return _innermost(named, keys[depth + 2 :])
        break
    return root, keys


def _suggest_key(root: type[BaseModel], keys: Keys) -> str:
    """A hint to the intended key: a similar key here, the same key elsewhere, or all keys here."""
    known = list(_section_of(root, keys).model_fields)
    if hint := did_you_mean(keys[-1], known):
        return hint
    elsewhere = [f"`{'.'.join(path)}`" for path in _all_keys(_innermost(root, keys)[0]) if path[-1] == keys[-1]]
    return f" (did you mean {' or '.join(elsewhere)}?)" if elsewhere else f"; allowed: {', '.join(known)}"


def _all_keys(section: type[BaseModel], above: Keys = ()) -> Iterator[Keys]:
    for name, field_info in section.model_fields.items():
        yield (*above, name)
        if is_section(field_info.annotation):
            yield from _all_keys(field_info.annotation, (*above, name))
