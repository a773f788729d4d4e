"""Weights from files: those of a whole network, or of its encoder alone. Nothing in such a file is run."""

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
    """The tensors by name in a file of `torch.save` (without pickled objects) or in a .safetensors file.

    Where they lie under `state_dict` or `model`, as training scripts write them, they are taken from there.

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
    """The weights in a file that are those of a network, or of a part of it, under the network's names.

    All of them must be there and have the network's shapes; others in the file are left out (the classifier of a
    network that was trained on ImageNet). In the file their names are those of the network, or the same without a
    beginning that all names of the part share (of an encoder on its own).

    Args:
        file: See `read_weights`.
        network: Whose weights they are to be.
        part: What the names of the part begin with; nothing for the whole network.
        source: What to call the file in messages.

    Raises:
        InputError: A weight is missing or has another shape.
    """
    # The counts of batches are left to the network: old files lack them, and nothing reads them.
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
    return found
