"""The base class of all losses: a module with a provenance that can be written to a file."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from autosegloss.errors import InputError, InputTypeError, LossFileError, WriteError, shown
from autosegloss.files import write_text
from autosegloss.loss.python import source

FORMAT = "autosegloss-loss"
LossContent: TypeAlias = dict[str, Any]
"""What the file of a loss holds: all of the loss, as plain JSON values."""
LARGEST_SCALE = 1e6


class Loss(nn.Module, ABC):
    """A loss to call with (logits, target, mask=None) -> scalar."""

    ignore_index: int
    """The label of ignored pixels in integer targets: a setting of the training run, which no file holds."""
    provenance: dict[str, object]
    """Where the loss comes from: plain JSON values, written to its file and read from it."""

    @abstractmethod
    def content(self) -> LossContent:
        """The complete loss as plain JSON values, as in its file; `build_loss` makes an equal loss of it."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the loss as a small JSON file that `load_loss` reads on any machine.

        A path that ends in .py takes a PyTorch module instead, with the formula written out: it has one function,
        `loss(logits, target, mask=None)`, and needs nothing of this package. The file is replaced as a whole or left
        unchanged.

        Raises:
            LossFileError: The file can't be written, or the provenance is not made of plain JSON values.
        """
        file = Path(path)
        text = self._text(file)
        try:
            write_text(file, text)
        except WriteError as error:
            raise LossFileError(str(error)) from error

    def _text(self, path: Path) -> str:
        """The text of the file at a path."""
        try:
            text = _json(self.content()) + "\n"
            text.encode()
            faithful = isinstance(self.provenance, dict) and json.loads(text)["provenance"] == self.provenance
        except (TypeError, ValueError, RecursionError) as error:
            raise LossFileError(f"{path}: the provenance can't be written as JSON: {error}") from None
        if not faithful:
            raise LossFileError(
                f"{path}: the provenance must be a dict of strings, numbers, lists and dicts, with strings for keys."
            )
        return source(self.content(), self.ignore_index) if path.suffix == ".py" else text


def check_flag(name: str, value: object) -> bool:
    """True or False, or InputTypeError."""
    if not isinstance(value, bool):
        raise InputTypeError(f"{name} must be True or False, got {shown(value)}.")
    return value


def check_scale(name: str, value: float) -> float:
    """A finite number above 0 and at most a million, or InputError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= LARGEST_SCALE:
        raise InputError(f"{name} must be a number above 0 and at most {LARGEST_SCALE:,.0f}, got {shown(value)}.")
    return float(value)


def _json(value: object, indent: str = "") -> str:
    """JSON with a line for each key and none for each number of a list; the parts of a sum are written like a loss."""
    if isinstance(value, list) and indent == "  ":  # a list of the loss itself, not of its provenance
        lines = [f"{indent}  {_json(item, indent + '  ')}" for item in value]
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if odd := [key for key in value if not isinstance(key, str)]:
        raise TypeError(f"the key {shown(odd[0])} is not a string")
    inner = indent + "  "
    lines = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_json(item, inner)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
