"""What MkDocs asks of this site: pages under their paths in the repository, and pages made from what the code says.

A page has the path for an address that it has in the repository, so that its links hold on the site and beside the
files. A line `{{ name }}` in a page stands for what the function of that name returns.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

import autosegloss
from autosegloss import METRICS
from autosegloss.cli import _parser
from autosegloss.metric.parse import signature_text
from autosegloss.search.settings import json_schema

ROOT = Path(__file__).parent.parent
PAGES = ".docs/pages/"
MOVED = {  # where a page lies on the site, other than by its path
    "README.md": "index.html",
    ".github/CONTRIBUTING.md": "contributing.html",
    ".github/CHANGELOG.md": "changelog.html",
}
RESULTS = ("*.md", "*.png", "*.json")
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
MADE = re.compile(r"^\{\{ (\w+) \}\}$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put every page and every result at its path in the repository."""
    paths = [*MOVED, *results()]
    for page in files.documentation_pages():
        files.remove(page)
        paths.append(PAGES + page.src_uri)
    for path in paths:
        site = MOVED.get(path) or re.sub(r"\.md$", ".html", path.removeprefix(PAGES))
        files.append(File(path, str(ROOT), config.site_dir, False, dest_uri=site, inclusion=InclusionLevel.INCLUDED))
    return files


def results() -> list[str]:
    """The tables, pictures and figures that are kept."""
    found = (path for ending in RESULTS for path in (ROOT / "results").rglob(ending))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make what a page asks for; links to code, which is not on the site, become text; others are left to the check."""

    def kept(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link[2]))
        return link[1] if files.get_file_from_path(path) is None and (ROOT / path).exists() else link[0]

    made = {"catalogue": catalogue, "commands": commands, "configuration": configuration, "tables": tables}
    return MADE.sub(lambda match: "\n".join(made[match[1]]()), LINK.sub(kept, markdown))


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a reference that lacks a public name."""
    pages = "".join(path.read_text(encoding="utf-8") for path in Path(config.site_dir, "reference").glob("*.html"))
    anchors = {*re.findall(r'id="([\w.]+)"', pages)}
    public = {name: getattr(autosegloss, name) for name in autosegloss.__all__}
    paths = {name: {f"autosegloss.{name}", f"{getattr(of, '__module__', '')}.{name}"} for name, of in public.items()}
    if missing := [name for name in public if not anchors & paths[name]]:
        raise PluginError(f"public names that are on no page of .docs/pages/reference: {', '.join(missing)}")


def catalogue() -> Iterator[str]:
    """Every metric that has a name: its options, what it is, its expression."""
    names: dict[object, str] = {}
    for name, build in METRICS.items():
        expr = build()
        yield f"## `{name}` {{: #{name} }}\n\n`{name}{signature_text(build)}`\n"
        if (same := names.setdefault(expr, name)) != name:
            yield f"[`{same}`](#{same}) by its other name.\n"
        else:
            yield f"{inspect.getdoc(build)}\n\n```python\n{expr}\n```\n"


def commands() -> Iterator[str]:
    """What each command says of itself."""
    os.environ.update(COLUMNS="84", NO_COLOR="1")
    yield from _commands(_parser())


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield f"## {parser.prog}\n\n```text\n{parser.format_help()}```\n"
    for command in inner:
        for each in command.choices.values():
            yield from _commands(each)


def configuration() -> Iterator[str]:
    """Every key of a configuration: what it may be, its default, what it does."""
    schema = json_schema()
    yield from _section("", schema, schema)


def _section(name: str, section: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    keys, inner = [], []
    for key, of in section.get("properties", {}).items():
        whole = f"{name}.{key}".removeprefix(".")
        if "$ref" in of:
            inner.append((whole, schema["$defs"][of["$ref"].rpartition("/")[2]]))
        else:
            default = f"`{json.dumps(of['default'], ensure_ascii=False)}`" if "default" in of else "none: required"
            says = " ".join(of.get("description", "").split()).replace("|", "\\|")
            keys.append(f"| `{key}` | {_allowed(of)} | {default} | {says} |")
    title = f"`{name}` {{: #{name.replace('.', '-')} }}" if name else "The top level"
    yield f"## {title}\n\n{section.get('description', '')}\n"
    if keys:
        yield "\n".join(["| key | is | default | |", "| --- | --- | --- | --- |", *keys, ""])
    for whole, below in inner:
        yield from _section(whole, below, schema)


def _allowed(of: Mapping[str, Any]) -> str:
    """The values a key may have, in words."""
    if "anyOf" in of:
        return " or ".join(_allowed(each) for each in of["anyOf"])
    if "enum" in of or "const" in of:
        return " or ".join(f"`{value}`" for value in of.get("enum", [of.get("const")]))
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    words = [f"{word} {of[limit]:g}" for limit, word in limits.items() if limit in of]
    kinds = {"object": "mapping", "string": "text", "boolean": "true or false", "array": "list", "null": "`null`"}
    return " ".join([kinds.get(of.get("type", ""), of.get("type", "any")), ", ".join(words)]).strip()


def tables() -> Iterator[str]:
    """The results by folder: tables with their first sentence, and losses with their metric."""
    for folder, paths in groupby(results(), key=posixpath.dirname):
        lines = []
        for path in paths:
            link = f"[{posixpath.basename(path)}](../../{path})"
            text = (ROOT / path).read_text(encoding="utf-8") if not path.endswith(".png") else ""
            if path.endswith(".md"):
                lines.append(f"- {link}: {_first_sentence(text)}")
            elif '"autosegloss-loss"' in text[:200]:
                metric = json.loads(text)["provenance"]["configuration"]["metric"]
                lines.append(f"- {link}: a loss for `{metric if isinstance(metric, str) else json.dumps(metric)}`.")
        if lines:
            yield "\n".join([f"## {folder}\n", *lines, ""])


def _first_sentence(text: str) -> str:
    line = next(filter(None, text.splitlines())).lstrip("# ")
    if line.startswith("|"):
        return "a table of " + line.strip("| ").split(" | ")[0] + "."
    return re.split(r"(?<=\.) ", line)[0].removesuffix(".") + "."
