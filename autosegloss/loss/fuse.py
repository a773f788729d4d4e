"""Which sums of a metric need no maps, and what they are made of: the plan of the fused path of `SurrogateLoss`.

With hard labels a map in which each pixel stands for itself has at class c one of two values: f1(p_c) where the label
is c and f0(p_c) where it is another class. The target is 1 or 0 there, so an AND, OR or XOR with it is 0, 1, a curve of
p_c or 1 minus that, and both f are linear in a few functions of p_c, the *atoms*. All sums then follow from the sums of
the atoms, the *moments*, which one walk over the logits gives without making a map. The plan is read off the expression
alone, so any metric gains; a sum that does not fuse (a boundary, a product of two predictions) is left to its maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor

from autosegloss.loss.curve import IDENTITY, Curve
from autosegloss.loss.kernels import moments_cpu
from autosegloss.loss.kernels.atoms import Atom, Atoms
from autosegloss.loss.relax import Slot
from autosegloss.metric import expr as e
from autosegloss.metric import interpret
from autosegloss.metric.interpret import Sums, TruthMaps


@dataclass(frozen=True)
class Linear:
    """`constant` + the sum of coefficient * atom over the `terms`: a function of a probability."""

    constant: float
    terms: Mapping[Atom, float] = field(default_factory=dict)

    @property
    def is_zero(self) -> bool:
        """True if the function is identically zero."""
        return not self.constant and not self.terms

    def __add__(self, other: Linear) -> Linear:
        terms = {atom: self.terms.get(atom, 0) + other.terms.get(atom, 0) for atom in {**self.terms, **other.terms}}
        return Linear(self.constant + other.constant, {atom: x for atom, x in terms.items() if x})

    def __rmul__(self, factor: float) -> Linear:
        return Linear(factor * self.constant, {atom: factor * x for atom, x in self.terms.items()} if factor else {})


Forms = tuple[Linear, Linear]
"""The values of a map where the target is 0 and where it is 1."""


@dataclass(frozen=True)
class Walk:
    """Sums that one walk over the logits gives.

    Args:
        mask: What all of them are `within`, a map of the target alone without a class axis; None: all valid pixels.
        forms: What each sums at a pixel.
    """

    mask: e.Expr | None
    forms: Mapping[e.Sum, Forms]

    @cached_property
    def atoms(self) -> Atoms:
        """The atoms that the sums are made of."""
        outside, inside = (
            tuple(dict.fromkeys(atom for forms in self.forms.values() for atom in forms[target].terms))
            for target in (0, 1)
        )
        return Atoms(inside, outside)

    def sums(self, moments: tuple[Tensor, Tensor, Tensor]) -> Sums:
        """The sums from the moments of the `atoms`, as `moments` gives them."""
        inside, outside, pixels = moments
        others = pixels.sum(1, keepdim=True) - pixels
        sums: Sums = {}
        for node, (f0, f1) in self.forms.items():
            x = f0.constant * others + f1.constant * pixels
            for atom, factor in f0.terms.items():
                x = x + factor * outside[..., self.atoms.outside.index(atom)]
            for atom, factor in f1.terms.items():
                x = x + factor * inside[..., self.atoms.inside.index(atom)]
            sums[node] = x if node.per_image else x.sum(0, keepdim=True)
        return sums


def plan(nodes: tuple[e.Sum, ...], curves: Mapping[Slot, Curve]) -> tuple[Walk, ...]:
    """The walks over the logits that give all sums that fuse, for hard labels under any logic.

    Args:
        nodes: The sums of an expression.
        curves: The curve of each slot.

    Returns:
        One walk for each mask that sums are `within`; a sum that none of them has needs its maps.
    """
    walks: dict[e.Expr | None, dict[e.Sum, Forms]] = {}
    for node in nodes:
        mask, pixel = node.within, node.map
        if mask is not None and (mask.soft or "class" in mask.axes):
            pixel, mask = pixel * mask, None  # a factor like any other
        forms = tuple(_form(pixel, target, curves) for target in (0, 1))
        # An ignored pixel has no class: it counts as one of another class, which is nothing new if those are 0.
        if None not in forms and (node.void == "skip" or cast("Linear", forms[0]).is_zero):
            walks.setdefault(mask, {})[node] = cast("Forms", forms)
    return tuple(Walk(mask, forms) for mask, forms in walks.items())


def _form(map: e.Expr, target: int, curves: Mapping[Slot, Curve]) -> Linear | None:
    """The value of a map where the target is 0 or 1; None if it is not linear in atoms."""
    done: dict[e.Expr, Linear | None] = {}
    for node in map.walk():
        operands = [done[operand] for operand in node.operands]
        done[node] = None if None in operands else _step(node, cast("list[Linear]", operands), target, curves)
    return done[map]


def _step(node: e.Expr, operands: list[Linear], target: int, curves: Mapping[Slot, Curve]) -> Linear | None:
    match node:
        case e.Leaf():
            return Linear(0, {(): 1}) if node.soft else Linear(target)
        case e.Number():
            return Linear(node.value)
        case e.Not():
            return Linear(1) + -1 * operands[0]
        case e.Arithmetic(op="*"):
            return _times(*operands)
        case e.Arithmetic():
            return operands[0] + (1 if node.op == "+" else -1) * operands[1]
        case e.Logic(op="&"):
            return _times(*_curved("and", node, operands, curves))
        case e.Logic(op="|"):
            return _either(*_curved("or", node, operands, curves))
        case e.Logic():
            either = _either(*_curved("or", node, operands, curves))
            both = _times(*_curved("and", node, operands, curves))
            return None if either is None or both is None else either + -1 * both
        case _:
            return None


def _times(a: Linear | None, b: Linear | None) -> Linear | None:
    if a is None or b is None or (a.terms and b.terms):
        return None
    return b.constant * a if a.terms else a.constant * b


def _either(a: Linear | None, b: Linear | None) -> Linear | None:
    both = _times(a, b)
    return None if a is None or b is None or both is None else a + b + -1 * both


def _curved(
    operator: str, node: e.Logic, operands: list[Linear], curves: Mapping[Slot, Curve]
) -> tuple[Linear | None, Linear | None]:
    left, right = (
        _under(curves.get(Slot(operator, i, node), IDENTITY), operand)  # type: ignore[arg-type]
        for i, operand in enumerate(operands)
    )
    return left, right


def _under(curve: Curve, x: Linear) -> Linear | None:
    """A truth value under a curve: 0 and 1 stay, an atom is a longer atom, and g(1 - x) = 1 - (1 - g(1 - x))."""
    if curve.is_identity or not x.terms:
        return x
    if len(x.terms) > 1:
        return None
    ((atom, factor),) = x.terms.items()
    if (x.constant, factor) == (0, 1):
        return Linear(0, {(*atom, curve): 1})
    if (x.constant, factor) == (1, -1):
        return Linear(1, {(*atom, curve.mirrored): -1})
    return None


def sums(walks: tuple[Walk, ...], logits: Tensor, labels: Tensor) -> Sums:
    """The relaxed sums of a batch with hard labels that fuse; differentiable once by the logits.

    Args:
        walks: Of `plan`.
        logits: Scores before the softmax, (N, C, *S) floating.
        labels: (N, *S) int64, 0..C-1, or negative where a pixel is ignored.

    Returns:
        What `interpret.sums` gives for the sums of the walks with `RelaxedMaps` of the softmax.
    """
    found: Sums = {}
    rows = logits.unsqueeze(-1).flatten(2)
    for walk in walks:
        counted = labels if walk.mask is None else within(walk.mask, labels, logits.shape[1])
        found |= walk.sums(moments(rows, counted.unsqueeze(-1).flatten(1), walk.atoms))
    return found


def within(mask: e.Expr, labels: Tensor, classes: int) -> Tensor:
    """Labels, negative outside a mask of the target without a class axis too; made image by image."""
    small = torch.uint8 if classes < 255 else torch.int32
    numbers = torch.arange(classes, dtype=small, device=labels.device)
    parts = []
    for some in torch.split(labels, 1):
        truth = some.masked_fill(some < 0, classes).to(small)
        inside = interpret.pixel_map(mask, TruthMaps(truth, truth, numbers), {})
        parts.append(some.masked_fill(~inside.squeeze(1), -1))
    return torch.cat(parts)


def moments(logits: Tensor, labels: Tensor, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over pixels of functions of the softmax, without its maps; differentiable once by the logits.

    Args:
        logits: (N, C, P) floating.
        labels: (N, P) int64, 0..C-1, or negative where a pixel is ignored.
        atoms: The atoms to sum.

    Returns:
        For each image, class and atom its sum over the pixels of the class, (N, C, len(atoms.inside)), and over the
        other pixels that are not ignored, (N, C, len(atoms.outside)); and the pixels of each class, (N, C). In
        float32, float64 for float64 logits.

    On a GPU Triton sums atoms whose curves are made of pieces; other curves, and float64, take the steps of torch.
    """
    pieces = not any(curve.logarithm for atom in (*atoms.inside, *atoms.outside) for curve in atom)
    if logits.is_cuda and logits.dtype != torch.float64 and pieces and find_spec("triton"):
        from autosegloss.loss.kernels import moments_triton  # Triton is optional

        return moments_triton.moments(logits, labels, atoms)
    return moments_cpu.moments(logits, labels, atoms)
