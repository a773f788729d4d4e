"""The module: what it says of itself, its public function, and the functions that this calls."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from autosegloss.loss import standalone
from autosegloss.loss.python.classics import classic
from autosegloss.loss.python.surrogate import surrogate
from autosegloss.loss.python.written import PRODUCT, SUM, WIDTH, Written, finite, number_text, wrapped

_LONGEST_PROVENANCE = 400  # characters of an entry; a longer one is a table, and stays in the loss file
_LONGEST_VALUE = 105  # of a line that returns it


def source(content: Mapping[str, Any], ignore_index: int = 255) -> str:
    """The module of a loss: `loss(logits, target, mask=None)`, with its formula written out.

    Args:
        content: The content of a loss file, as it is read.
        ignore_index: The label of ignored pixels, `IGNORE_INDEX` of the module.

    Returns:
        The text of the module; the same for the same content.

    Raises:
        InputError: The loss is of a kind, or has an option, that is not known here.
    """
    loss = _written(content)
    about = f"Segmentation loss: {loss.about}{', over a batch' if loss.details else ''}."
    title = "\n\n".join(["\n".join(textwrap.wrap(about, WIDTH - 3)), *loss.details])
    functions = [_loss(loss), *loss.functions]
    functions += _copied(functions)
    callables = ["from collections.abc import Callable"] if any("Callable[" in text for text in functions) else []
    head = [
        f'"""{title}\n\nWritten by `autosegloss export --python`; needs PyTorch and nothing else.\n"""',
        *_provenance(content.get("provenance", {})),
        *callables,
        "import torch\nfrom torch import Tensor",
        f"IGNORE_INDEX = {int(ignore_index)}  # the label of pixels that do not count",
    ]
    return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(functions) + "\n"


def _written(content: Mapping[str, Any]) -> Written:
    if "parts" in content:
        scale = finite("scale", content["scale"])
        return _sum([(scale * finite("share", part["share"]), part) for part in content["parts"]])
    if "cross_entropy" in content:  # version 2
        share = finite("cross_entropy", content["cross_entropy"])
        rest = {key: value for key, value in content.items() if key != "cross_entropy"}
        return _sum([(share, {"loss": "cross_entropy"}), (1 - share, rest)])
    return classic(content) if "loss" in content else surrogate(content)


def _sum(terms: Sequence[tuple[float, Mapping[str, Any]]]) -> Written:
    """A weighted sum; functions of one name get another, unless they are the same."""
    abouts, values, parts = [], [], []
    functions: dict[str, str] = {}
    surrogates = 0
    for weight, content in terms:
        surrogates += "metric" in content
        part = surrogate(content, surrogates) if "metric" in content else classic(content)
        texts = [part.value, *part.functions]
        for name in [_name(text) for text in part.functions]:
            text = next(text for text in texts[1:] if _name(text) == name)
            if functions.get(name, text) != text:
                taken = {*functions, *map(_name, texts[1:])}
                new = next(f"{name}_{i}" for i in range(2, len(taken) + 3) if f"{name}_{i}" not in taken)
                texts = [re.sub(rf"\b{name}\b", new, text) for text in texts]
        functions |= {_name(text): text for text in texts[1:]}
        abouts.append(f"{weight:.4g} * {_grouped(part.about, part.precedence)}")
        values.append(f"{number_text(weight)} * {_grouped(texts[0], part.precedence)}")
        parts.append(part)
    return Written(
        " + ".join(abouts),
        "\n+ ".join(values),
        [*functions.values()],
        [paragraph for part in parts for paragraph in part.details],
        any(part.valid for part in parts),
        any(part.hard for part in parts),
        SUM,
    )


def _name(function: str) -> str:
    """The name of a function, by its text."""
    return function[len("def ") : function.index("(")]


def _grouped(text: str, precedence: int) -> str:
    return text if precedence >= PRODUCT else f"({text})"


def _loss(loss: Written) -> str:
    """The public function."""
    unpacked = "target, valid" if loss.valid else "target, _"
    read = "_label_maps" if loss.hard else "_class_maps"
    check = ""
    if loss.hard:
        check = """
    if target.is_floating_point():
        raise TypeError(f"target has dtype {target.dtype}; this loss takes integer labels")"""
    soft = "" if loss.hard else "; or shares (N, C, *S) that sum to 1"
    about = loss.about if len(loss.about) <= WIDTH - 10 else "the weighted sum of the losses above"
    value, pred = loss.value, ""
    if value.count("logits.softmax(1)") > 1:
        value, pred = value.replace("logits.softmax(1)", "pred"), "\n        pred = logits.softmax(1)"
    if len(value) <= _LONGEST_VALUE:
        value = value.replace("\n", " ")
    elif "\n" in value:
        value = "(\n" + textwrap.indent(value, " " * 12) + "\n        )"
    return f'''def loss(logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """{about[0].upper()}{about[1:]}.

    Args:
        logits: Scores before the softmax, (N, C, *S), of any floating type.
        target: Integer labels, (N, *S) or (N, 1, *S), 0..C-1 or IGNORE_INDEX{soft}.
        mask: True where a pixel counts, boolean (N, *S) or (N, 1, *S); None if all do.

    Returns:
        A scalar, computed in float32 (float64 for float64 logits), also under autocast.
    """{check}
    logits = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    {unpacked} = {read}(logits, target, mask)
    with torch.autocast(logits.device.type, enabled=False):{pred}
        return {value}'''


def _copied(functions: list[str]) -> list[str]:
    """The functions of `standalone` that these call, directly or not, in their order there."""
    texts = {
        name: inspect.getsource(function).rstrip()
        for name, function in vars(standalone).items()
        if inspect.isfunction(function) and function.__module__ == standalone.__name__
    }
    called: set[str] = set()
    left = list(functions)
    while left:
        found = set(re.findall(r"\b_\w+(?=\()", left.pop())) & texts.keys() - called
        called |= found
        left += [texts[name] for name in found]
    return [text for name, text in texts.items() if name in called]


def _provenance(provenance: Mapping[str, Any]) -> list[str]:
    """Comments that say where a loss comes from."""
    lines, tables = [], []
    for key, value in provenance.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) > _LONGEST_PROVENANCE:
            tables.append(str(key))
        else:
            lines += wrapped(f"{key}: {text}", WIDTH - 2, indent="  ")
    if tables:
        lines += wrapped(f"Also in the loss file: {', '.join(tables)}.", WIDTH - 2, indent="  ")
    return ["\n".join(f"# {line}" for line in ["Provenance", "", *lines]).replace("# \n", "#\n")] if lines else []
