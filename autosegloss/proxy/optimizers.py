"""Optimizers of PyTorch without the import of `torch._dynamo`, for processes that never compile.

The methods of `torch.optim` import it on their first call, which takes as long as `import torch` in every process that
trains.
"""

from __future__ import annotations

import inspect
from typing import TypeVar, cast

import torch
from torch.optim import Optimizer

_Kind = TypeVar("_Kind", bound=Optimizer)
_METHODS = "add_param_group", "load_state_dict", "state_dict", "zero_grad"


def without_dynamo(optimizer: type[_Kind]) -> type[_Kind]:
    """An optimizer class that takes bit-identical steps and can't be compiled.

    Args:
        optimizer: A class of `torch.optim`.

    Returns:
        A subclass with the undecorated methods of PyTorch.
    """
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in _METHODS}
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return cast("type[_Kind]", type(optimizer.__name__, (optimizer,), {**methods, "step": step}))
