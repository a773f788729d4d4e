"""A loss of the user's own, which a comparison or a retraining names as `module:function`.

Only a command line or a configuration names one. The content of its jobs is no loss file: `load_loss` and `build_loss`
refuse it, so that a file never imports anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from autosegloss.errors import InputError
from autosegloss.loss import Loss
from autosegloss.loss.base import LossContent
from autosegloss.loss.named import loss_for_data
from autosegloss.proxy.imports import import_function, source_hash
from autosegloss.proxy.users_code import parameters_of, users_code

FUNCTION_FORMAT = "autosegloss-function"
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class OwnLoss(Loss):
    """The loss that a function builds: a callable (logits, target) -> scalar.

    The function takes what it needs by name: `ignore_index`, `num_classes`, and `counts`, the pixels of each class in
    the training part. The callable gets what `LossFunction` of `autosegloss.proxy.train` says; it may be a module.

    Args:
        name: The function, as "module:function".
        counts: The pixels of each class.
        ignore_index: The label of ignored pixels.

    Raises:
        InputError: The function can't be imported, asks for something else, fails, or returns no loss.
    """

    def __init__(self, name: str, counts: Sequence[int], ignore_index: int) -> None:
        super().__init__()
        self.name, self.counts, self.ignore_index, self.provenance = name, list(counts), ignore_index, {}
        function = import_function(name, "loss")
        self._source = source_hash(function)
        offered = {"ignore_index": ignore_index, "num_classes": len(counts), "counts": list(counts)}
        arguments = _chosen(name, function, offered)
        with users_code(f"loss `{name}`"):
            loss = function(**arguments)
        if not callable(loss) or isinstance(loss, type):
            raise InputError(
                f"loss `{name}`: the function must return the loss, a callable (logits, target), got "
                f"{type(loss).__name__}."
            )
        if isinstance(loss, nn.Module) and (learned := [each for each, _ in loss.named_parameters()]):
            raise InputError(
                f"loss `{name}` has parameters (`{learned[0]}`), which nothing trains here; make them buffers."
            )
        self._loss = loss

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Raises:
            InputError: The user's code fails, or returns no scalar that depends on the logits.
        """
        with users_code(f"loss `{self.name}`"):
            value = self._loss(logits, target) if mask is None else self._loss(logits, target, mask)
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"loss `{self.name}` must return a scalar tensor, got {given}.")
        if logits.requires_grad and not value.requires_grad:
            raise InputError(
                f"loss `{self.name}` has no gradient: its value must depend on the logits by differentiable operations "
                "(no argmax, detach, item or NumPy)."
            )
        return value.reshape(())

    def content(self) -> LossContent:
        return {
            "format": FUNCTION_FORMAT,
            "function": self.name,
            "source": self._source,
            "counts": self.counts,
            "provenance": self.provenance,
        }

    def _text(self, path: Path) -> str:
        raise InputError(f"loss `{self.name}` is a function of yours, which a loss file can't hold.")


def is_own(content: Mapping[str, Any]) -> bool:
    """Whether a job's content is that of a user's own loss."""
    return content.get("format") == FUNCTION_FORMAT


def own_loss(content: Mapping[str, Any], ignore_index: int) -> OwnLoss:
    """The user's own loss of a job.

    Raises:
        InputError: See `OwnLoss`; or the file of the function is another than when the job was made.
    """
    loss = OwnLoss(content["function"], content["counts"], ignore_index)
    if loss.content()["source"] != content["source"]:
        raise InputError(f"loss `{loss.name}`: its file has changed since the comparison began.")
    return loss


def is_function(name: str) -> bool:
    """Whether a name of a loss is that of a function, `module:function`."""
    return bool(_NAME.fullmatch(name)) and not Path(name).exists()


def any_loss(name: str, *, counts: Sequence[int], ignore_index: int = 255, reduce_over_ranks: bool = False) -> Loss:
    """The loss of a name of `load_loss`, or a user's own, named as `module:function`."""
    if is_function(name):
        return OwnLoss(name, counts, ignore_index)
    return loss_for_data(name, counts, ignore_index, reduce_over_ranks)


def _chosen(name: str, function: Any, offered: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a function among those that are offered."""
    parameters = parameters_of(function) or []
    others = [
        each.name
        for each in parameters
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and (each.name not in offered or each.kind is each.POSITIONAL_ONLY)
    ]
    if others:
        function_name = name.partition(":")[2]
        raise InputError(
            f"loss `{name}`: the function must build the loss from what it takes by name of {', '.join(offered)}; it "
            f"also requires {', '.join(others)}. If it is the loss itself, name a function that returns it: "
            f"def build(): return {function_name}."
        )
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return dict(offered)
    return {key: value for key, value in offered.items() if key in [each.name for each in parameters]}
