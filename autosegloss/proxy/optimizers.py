"""Optimizers of PyTorch in processes that never compile: the same steps, without the import of `torch._dynamo`.

A method of `torch.optim` imports it on its first call, for the case that it is compiled. That takes a processor as long
as `import torch` does, in every process that trains.
"""

from __future__ import annotations

import inspect
from typing import TypeVar, cast

import torch
from torch.optim import Optimizer

_Kind = TypeVar("_Kind", bound=Optimizer)
_METHODS = "add_param_group", "load_state_dict", "state_dict", "zero_grad"


def without_dynamo(optimizer: type[_Kind]) -> type[_Kind]:
    """An optimizer that takes the same steps to the bit, and can't be compiled.

    Args:
        optimizer: A class of `torch.optim`.

    Returns:
        A subclass whose methods are those of PyTorch before they are decorated.
    """
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in _METHODS}
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return cast("type[_Kind]", type(optimizer.__name__, (optimizer,), {**methods, "step": step}))
