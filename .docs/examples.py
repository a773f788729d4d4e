"""What Griffe is told of this project's docstrings."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """`Example:` heads a doctest here; Griffe knows that section in the plural only."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Write the plural."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
