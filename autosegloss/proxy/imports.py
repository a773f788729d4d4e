"""Imports by name: functions that a configuration names as `module:function`, and packages of an extra."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from autosegloss.errors import AutoseglossError, InputError, cut
from autosegloss.proxy.users_code import where


def import_function(name: str, what: str) -> Callable[..., Any]:
    """Import a function by name.

    Args:
        name: As in "my_package.my_module:my_function".
        what: What the function makes, for messages.

    Raises:
        InputError: The name is malformed, or the function can't be imported; the message has the file and line of the
            module where it raises.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"{what} must be `module:function`, got `{cut(name)}`.")
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        place = where(error)
        missing = isinstance(error, ImportError | AttributeError) and place.startswith(type(error).__name__)
        raise InputError(f"{what} `{cut(name)}`: {error if missing else place}.") from error
    if not callable(found):
        raise InputError(f"{what} `{cut(name)}` must be a function, got {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


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
