"""The classes that a mean over classes counts, and their weights."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from typing import cast

from autosegloss.errors import InputError, cut, did_you_mean, shown

Class = int | str
"""A class by its number, or by its name where the names of the data are not known yet."""
Classes = tuple[Class, ...] | None
Weights = tuple[float, ...] | None


def selection(classes: object, weights: object, background: bool) -> tuple[Classes, Weights, bool]:
    """The options of a mean, checked and in one form: the classes in order, each with its weight.

    Raises:
        InputError: They can't be meant.
    """
    names, shares = _numbers_or_names(classes), _weights(weights)
    if names is not None and shares is not None and len(names) != len(shares):
        raise InputError(f"class_mean: there are {len(shares)} weights for {len(names)} classes; give one per class.")
    if names is not None:
        by_class = sorted(
            zip(names, shares or names, strict=True), key=lambda pair: (isinstance(pair[0], str), pair[0])
        )
        names = tuple(name for name, _ in by_class)
        shares = None if shares is None else tuple(cast("float", share) for _, share in by_class)
    if not background and (names is not None or shares is not None):
        if names is not None and 0 in names:
            raise InputError(
                "class_mean: class 0 is in classes, but background=False leaves it out; set background=True, or leave "
                "0 out of classes."
            )
        if names is None and shares is not None and shares[0] > 0:
            raise InputError(
                "class_mean: class 0 has a weight, but background=False leaves it out; set background=True, or the "
                "weight to 0."
            )
        background = names is None or not any(isinstance(each, str) for each in names)  # a name may yet be of class 0
    return names, shares, background


def class_weights(classes: Classes, weights: Weights, background: bool, num_classes: int) -> tuple[float, ...]:
    """The weight of each class of the data; 0 for a class that is not in the mean.

    Args:
        classes: As `selection` gives them, without names.
        weights: Likewise.
        background: Likewise.
        num_classes: The number of classes of the data.

    Raises:
        InputError: A class is out of range, or there are not as many weights as classes.
    """
    if classes is None:
        each = weights if weights is not None else (1.0,) * num_classes
        if len(each) != num_classes:
            raise InputError(
                f"class_mean: there are {len(each)} weights for {num_classes} classes; give one weight per class, or "
                "name the classes that the weights are for: classes=[...]."
            )
        return each if background else (0.0, *each[1:])
    highest = max(each for each in classes if isinstance(each, int))
    if highest >= num_classes:
        raise InputError(f"class {highest} does not exist; the data has the classes 0 to {num_classes - 1}.")
    given = dict(zip(classes, weights if weights is not None else (1.0,) * len(classes), strict=True))
    return tuple(given.get(number, 0.0) for number in range(num_classes))


def _numbers_or_names(classes: object) -> tuple[Class, ...] | None:
    """The classes of a mean as a tuple; None for all."""
    if classes is None:
        return None
    several = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str | bytes) else [classes]
    found = tuple(map(_class, several))
    if not found:
        raise InputError("class_mean: classes is empty; name at least one class.")
    if twice := [each for each, count in Counter(found).items() if count > 1]:
        raise InputError(f"class_mean: classes has {quoted(twice[0])} twice; give each class once.")
    return found


def _class(value: object) -> Class:
    if isinstance(value, str):
        if not value.strip() or not value.isprintable():
            raise InputError(
                f"class_mean: {shown(value)} can't be the name of a class; it has characters that are not "
                "printed, or none. Give the number of the class."
            )
        return value
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 2**31:
        given = shown(value) if number < 0 else "a number above 2^31"
        raise InputError(f"class_mean: {given} is no class; a class is its number, 0 or more, or its name.")
    return number


def class_number(given: Class, class_names: Sequence[str]) -> int:
    """The number of a class.

    Raises:
        InputError: The data has no such class.
    """
    known = ", ".join(f"{number} {quoted(name)}" for number, name in enumerate(class_names[:10]))
    known += f", and {len(class_names) - 10} more" if len(class_names) > 10 else ""
    if isinstance(given, str):
        if given in class_names:
            return class_names.index(given)
        raise InputError(
            f"unknown class {quoted(given)}{did_you_mean(given, class_names)}; the classes of the data are {known}."
        )
    if given >= len(class_names):
        raise InputError(f"class {given} does not exist; the classes of the data are {known}.")
    return given


def quoted(given: Class) -> str:
    """A class in a message."""
    return str(given) if isinstance(given, int) else f"`{cut(given, 60)}`"


def _weights(weights: object) -> tuple[float, ...] | None:
    if weights is None:
        return None
    if not isinstance(weights, Sequence) or isinstance(weights, str | bytes) or not weights:
        raise InputError(f"class_mean: weights is {shown(weights)}; it is a list with a number per class.")
    for each in weights:
        number = isinstance(each, int | float) and not isinstance(each, bool)
        if not number or not (each == 0 or 1e-6 <= each <= 1e6):
            raise InputError(f"class_mean: {shown(each)} is no weight of a class; a weight is 0, or from 1e-6 to 1e6.")
    if not any(weights):
        raise InputError("class_mean: all weights are 0; at least one class must count.")
    return tuple(float(each) + 0.0 for each in weights)  # -0 and 0 are one weight
