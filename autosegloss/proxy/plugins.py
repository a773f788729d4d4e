"""Functions of the user's own, named in a configuration as `module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from autosegloss.errors import InputError


def function_of(name: str, what: str) -> Callable[..., Any]:
    """The function of a name.

    Args:
        name: As in "my_package.my_module:my_function"; the module is imported.
        what: What it is to make, for messages.

    Raises:
        InputError: There is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{what} `{name}`: {error}.") from error
    if not callable(found):
        raise InputError(f"{what} `{name}` is no function; `module:function` is wanted.")
    return found  # type: ignore[no-any-return]
