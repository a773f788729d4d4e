"""Imports by name: functions that a configuration names as `module:function`, and packages of an extra.

Their modules are found on Python's path, and beside the configuration: `use_folder` adds its folder to the path of a
process, last, so that it hides nothing that is installed.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from autosegloss.errors import AutoseglossError, InputError, SearchError, did_you_mean, shown
from autosegloss.proxy.users_code import users_code


@dataclass(frozen=True)
class _Beside:
    """The folder of the configuration in use, if it was not on Python's path before, and the modules before that."""

    folder: str
    before: frozenset[str]

    def forget(self) -> None:
        """Remove the folder from the path, and the modules that were imported from it."""
        sys.path[:] = [path for path in sys.path if path != self.folder]
        roots = {
            name
            for name, module in list(sys.modules.items())
            if "." not in name and name not in self.before and _lies_in(getattr(module, "__file__", None), self.folder)
        }
        for name in [name for name in sys.modules if name.partition(".")[0] in roots]:
            del sys.modules[name]


_beside: _Beside | None = None


def use_folder(folder: str) -> None:
    """Let `import_function` find the modules in the folder of a configuration, in this process.

    They are found after everything on Python's path. The folder of another configuration is left, with its modules: two
    configurations may each have a module of one name beside them.

    Args:
        folder: An absolute path.
    """
    global _beside
    if _beside is not None and _beside.folder == folder:
        return
    if _beside is not None:
        _beside.forget()
        _beside = None
    if folder not in [os.path.abspath(path) for path in sys.path]:
        _beside = _Beside(folder, frozenset(sys.modules))
        sys.path.append(folder)
    importlib.invalidate_caches()


def import_function(name: str, what: str) -> Callable[..., Any]:
    """Import a function by name.

    Args:
        name: As in "my_package.my_module:my_function".
        what: What the function makes, for messages.

    Raises:
        InputError: The name is malformed, or the function can't be imported; or its module is both beside the
            configuration and elsewhere.
    """
    module, _, function = name.partition(":")
    if not module or not function or module.startswith(".") or "/" in module:
        raise InputError(f"{what} must be `module:function`, got {shown(name)}.")
    owner = f"{what} `{name}`"
    _refuse_ambiguous(module.partition(".")[0], owner)
    with users_code(f"{owner}: can't be imported", passing=SearchError):
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            imported, absent = None, error.name
        found = getattr(imported, function, None)
    if imported is None:
        looked = f" beside the configuration, in {_beside.folder}, or" if _beside is not None else ""
        raise InputError(
            f"{owner}: no module named `{absent}`{looked} on Python's path. Every machine of a cluster needs it."
        )
    if found is None:
        raise InputError(f"{owner}: {module} has no `{function}`{did_you_mean(function, vars(imported))}.")
    if not callable(found):
        raise InputError(f"{owner} must be a function, got {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def source_hash(function: object) -> str:
    """The hash of the file of a function, by which an edited one is known; empty if it has no file."""
    try:
        file = inspect.getsourcefile(function)  # type: ignore[arg-type]
        return "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except (TypeError, OSError):
        return ""


def _refuse_ambiguous(root: str, owner: str) -> None:
    """Raise InputError if a module beside the configuration has the name of another one, which would hide it."""
    if _beside is None:
        return
    beside = next(
        (p for p in (Path(_beside.folder, f"{root}.py"), Path(_beside.folder, root, "__init__.py")) if p.exists()), None
    )
    if beside is None:
        return
    other: str | None
    if root in sys.modules:
        other = _place(sys.modules[root])
    else:
        spec = PathFinder.find_spec(root, [path for path in sys.path if path != _beside.folder])
        other = "Python's own" if root in sys.stdlib_module_names else spec.origin if spec is not None else None
    if other is not None and not _lies_in(other, _beside.folder):
        raise InputError(
            f"{owner}: {beside}, beside the configuration, has the name of another module, {other}. Rename it."
        )


def _place(module: ModuleType) -> str:
    """The file of a module, or the first folder of a package without one."""
    file = getattr(module, "__file__", None)
    return file or next(iter(getattr(module, "__path__", ())), "Python's own")


def _lies_in(file: str | None, folder: str) -> bool:
    """Whether the file is that of a module, or of a package, directly in the folder."""
    if file is None:
        return False
    path = Path(file)
    return str((path.parent if path.name == "__init__.py" else path).parent) == folder


def import_extra(module: str, what: str, extra: str, error: type[AutoseglossError] = InputError) -> Any:
    """Import a module of a package that an extra installs.

    Args:
        module: Name of the module.
        what: What needs it, in the plural, for messages.
        extra: Name of the extra.
        error: The class to raise.

    Raises:
        AutoseglossError: The package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as reason:
        package = module.partition(".")[0]
        raise error(f'{what} need {package} ({reason}): pip install "autosegloss[{extra}]".') from reason
