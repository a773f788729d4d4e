"""The modules of a room import one another in one direction; imports in functions and for type checkers count too."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autosegloss"
ROOMS = [path.name for path in sorted(PACKAGE.iterdir()) if (path / "__init__.py").exists()]

Graph = dict[str, set[str]]


def sources(folder: Path, name: str) -> dict[str, str]:
    """The text of each module of a package, by its full name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = [name, *path.relative_to(folder).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(modules: Mapping[str, str]) -> Graph:
    """Which of some modules each of them imports anywhere in its text."""
    graph: Graph = {}
    for module, text in modules.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: a relative import, which this test does not follow"
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    names.add(inner if inner in modules else str(node.module))
        graph[module] = (names & modules.keys()) - {module}
    return graph


def cycle(graph: Graph) -> list[str] | None:
    """The modules of one cycle, the first one again at the end; None if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


@pytest.mark.parametrize("room", ROOMS)
def test_no_cycle_of_imports_inside_a_room(room: str) -> None:
    modules = sources(PACKAGE / room, f"autosegloss.{room}")
    assert len(modules) > 1
    assert cycle(imports(modules)) is None


def test_the_imports_of_a_room_are_found() -> None:
    graph = imports(sources(PACKAGE / "loss", "autosegloss.loss"))
    assert "autosegloss.loss.kernels.moments_triton" in graph["autosegloss.loss.fuse"]  # in a function
    assert "autosegloss.loss.curve" in graph["autosegloss.loss.relax"]


@pytest.mark.parametrize(
    "back",
    [
        "from room.a import x",
        "import room.a",
        "from room import a",
        "def f():\n    from room.a import x",
        "if TYPE_CHECKING:\n    from room.a import x",
        "try:\n    import room.a\nexcept ImportError:\n    pass",
    ],
)
def test_a_cycle_is_found(back: str) -> None:
    modules = {"room": "", "room.a": "from room import b", "room.b": "from room.c import y", "room.c": back}
    found = cycle(imports(modules))
    assert found is not None
    assert found[0] == found[-1]
    assert {*found} == {"room.a", "room.b", "room.c"}
    assert cycle(imports(modules | {"room.c": "import torch"})) is None


def test_a_package_that_is_imported_by_its_own_module_is_a_cycle() -> None:
    assert cycle(imports({"room": "from room.a import x", "room.a": "from room import x"})) is not None
