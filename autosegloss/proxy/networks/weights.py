"""Weights of a network or of its encoder from files. No code in such a file is executed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from autosegloss.errors import InputError
from autosegloss.proxy.imports import import_extra


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors by name of a file of `torch.save` (without pickled objects) or of a .safetensors file.

    Tensors below the key `state_dict` or `model`, as training scripts write them, are found too.

    Raises:
        InputError: The file can't be read, or holds something else.
    """
    try:
        if str(path).endswith(".safetensors"):
            content: Any = import_extra("safetensors.torch", ".safetensors files", "networks").load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}.") from None
    except Exception as error:  # both libraries raise many kinds on files that are no weights
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a weights file: {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise InputError(
            f"{path}: must hold a mapping from names to tensors, as torch.save(network.state_dict(), path) writes it."
        )
    return dict(content)


def matching_weights(file: Mapping[str, Tensor], network: nn.Module, part: str, source: str) -> dict[str, Tensor]:
    """The weights of a network, or of a part of it, from a file, under the names of the network.

    All weights must be present with the shapes of the network; others in the file are ignored (e.g. an ImageNet
    classifier). The names in the file may lack a prefix that all names of the part share (e.g. of a separate encoder).

    Args:
        file: See `read_weights`.
        network: The network.
        part: Prefix of the names of the part; empty for the whole network.
        source: Name of the file, for messages.

    Raises:
        InputError: A weight is missing, has another shape, or is not finite.
    """
    # Counts of batches are unused, and old files lack them.
    state = {name: weight for name, weight in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    wanted = [name for name in state if name.startswith(part)]
    common = os.path.commonpath([name.replace(".", "/") for name in wanted]).split("/")
    prefixes = ["", *accumulate(f"{each}." for each in common)]
    prefix = max(prefixes, key=lambda each: sum(name.removeprefix(each) in file for name in wanted))
    found = {name: file[name.removeprefix(prefix)] for name in wanted if name.removeprefix(prefix) in file}
    what = f"the network's {part.removesuffix('.')}" if part else "the network"
    if missing := [name for name in wanted if name not in found]:
        raise InputError(
            f"{source}: {len(missing)} of the {len(wanted)} weights of {what} are missing, e.g. `{missing[0]}`; the "
            f"file holds e.g. `{next(iter(file), 'none')}`."
        )
    for name, weight in found.items():
        if weight.shape != state[name].shape:
            raise InputError(
                f"{source}: `{name}` must have the shape of {what}, {tuple(state[name].shape)}, got "
                f"{tuple(weight.shape)}." + ("" if part else " For other classes, use the regime encoder.")
            )
    check_finite(found, source)
    return found


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Raise InputError if a number among the weights of a file is NaN or infinite."""
    for name, weight in weights.items():
        wrong = int((~torch.isfinite(weight)).sum())
        if wrong:
            raise InputError(
                f"{source}: `{name}` is NaN or infinite in {wrong} of its {weight.numel()} numbers: the training that "
                "wrote this file diverged. Use weights of an earlier checkpoint."
            )
