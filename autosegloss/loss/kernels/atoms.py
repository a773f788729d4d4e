"""What the kernels sum: functions of the probability of a class."""

from __future__ import annotations

from dataclasses import dataclass

from autosegloss.loss.curve import Curve

Atom = tuple[Curve, ...]
"""Curves that are applied to a probability one after another; none: the probability itself."""


@dataclass(frozen=True)
class Atoms:
    """The atoms that are summed for each image and class: at the pixels of the class, and at those of other classes."""

    inside: tuple[Atom, ...] = ()
    outside: tuple[Atom, ...] = ()
