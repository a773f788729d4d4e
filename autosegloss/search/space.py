"""The family of losses that a search explores: a loss for every point of the unit cube."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeGuard

from autosegloss.errors import InputError, shown
from autosegloss.loss import MixedLoss, SearchSpace, SurrogateLoss, slots
from autosegloss.loss.base import Loss, LossContent
from autosegloss.loss.classic import CrossEntropy
from autosegloss.loss.curve import IDENTITY, CurveKind, number_of_points
from autosegloss.loss.lovasz import Extension
from autosegloss.loss.relax import LogicKind
from autosegloss.loss.settings import RelaxationConfig
from autosegloss.metric import metric
from autosegloss.metric.expr import Expr
from autosegloss.search.content import bare_content, parts_of
from autosegloss.search.settings import StudyConfig

OF_CROSS_ENTROPY: Final = "cross-entropy"
RATE: Final = "learning rate"
_SUM = "the sum"


@dataclass(frozen=True)
class LossFamily:
    """The losses of a configuration, indexed by theta.

    A loss is a scale times a sum of surrogates and cross-entropy, whose shares sum to 1; the surrogates read one metric
    in different logics under the same curves. Of these numbers, those that are searched are coordinates of theta, in
    [0, 1], in this order:

    - the curves, as in `SearchSpace`;
    - the scale: 2 ** (8 a - 2), from 1/4 to 64; or the learning rate, as a factor of the proxy's: 2 ** (4 a - 2), from
      1/4 to 4, where `relaxation.scale` is `auto` and the optimizer is AdamW, on which a scale has no effect;
    - the shares, one coordinate for each surrogate, then cross-entropy, if there are at least two whose shares are
      searched: proportional to 2 ** (12 (a - 1/2)), so that a share below 1% is well inside the cube;
    - class_power, the p with which a class weighs (its pixels in the batch) ** -p in cross-entropy: -1/4 + 3/2 a.

    Args:
        space: The mapping from the first coordinates to curves.
        logics: The logic of each surrogate.
        relaxation: The other settings of the losses.
        searches_rate: Whether the learning rate is searched.
    """

    space: SearchSpace
    logics: tuple[LogicKind, ...]
    relaxation: RelaxationConfig
    searches_rate: bool = False

    @classmethod
    def of(cls, config: StudyConfig, best: Sequence[Loss] = ()) -> LossFamily:
        """The family that a configuration describes.

        Args:
            config: The configuration.
            best: The best rivals, by which `auto` is decided: of the logics that it allows, those in which a rival
                reads the metric (all if there is none); `log` curves, or `bezier` if rivals read the metric under
                identity curves alone.

        Raises:
            InputError: Its logic does not suit its metric or its labels.
        """
        relaxation, expr = config.relaxation, metric(config.metric)
        readings = [part for loss in best for part in parts_of(loss) if is_reading(part, expr)]
        logics = _logics(relaxation, expr, config.proxy.labels.soft)
        if relaxation.logic == "auto":
            seen = {reading.logic for reading in readings}
            logics = tuple(logic for logic in logics if logic in seen) or logics
        kind: CurveKind = _best_curve(readings) if relaxation.curve == "auto" else relaxation.curve
        space = SearchSpace(expr, kind, relaxation.pieces, relaxation.share_curves)
        rate = relaxation.scale == "auto" and config.proxy.train.optimizer == "adamw"
        return cls(space, logics, relaxation, rate)

    def check(self) -> None:
        """Raise InputError if there are no coordinates to search."""
        if not self.names:
            curves = f"{len(self.space.curves)} {self.space.curve} curve(s)"
            pieces = f" of {self.space.pieces} piece(s)" if self.space.curve == "linear" else ""
            raise InputError(
                f"there is nothing to search: {curves}{pieces} have no coordinates, and all other numbers of the loss "
                "are fixed. Choose another relaxation.curve, or `searched` for relaxation.scale or "
                "relaxation.cross_entropy."
            )

    @cached_property
    def groups(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The coordinates by what they belong to: the slots of a curve, or "the sum", with the names of each."""
        curves = [(" and ".join(map(str, group)), _coordinates(self.space)) for group in self.space.curves]
        numbers = [
            *([RATE] if self.searches_rate else ["scale"] if is_searched(self.relaxation.scale) else []),
            *(f"share of {name}" for name in self.shared),
            *(["class_power"] if self._has_class_power and is_searched(self.relaxation.class_power) else []),
        ]
        return tuple((title, names) for title, names in [*curves, (_SUM, tuple(numbers))] if names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The name of each coordinate, such as "and[0] of pred & target: v", "scale" or "share of cross-entropy"."""
        return tuple(name if title == _SUM else f"{title}: {name}" for title, names in self.groups for name in names)

    @property
    def text(self) -> str:
        """The number of coordinates, and what they are."""
        parts = [", ".join(names) + (f" of {title}" if title != _SUM else "") for title, names in self.groups]
        return f"{len(self.names)} coordinates: {'; '.join(parts)}"

    @cached_property
    def start(self) -> tuple[float, ...]:
        """The theta at which a search starts: identity curves, and the middle of the rest."""
        curves = self.space.identity
        return (*curves, *[0.5] * (len(self.names) - len(curves)))

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The parts of the sum whose shares are searched."""
        also = [OF_CROSS_ENTROPY] if is_searched(self.relaxation.cross_entropy) else []
        parts = (*self.logics, *also)
        return parts if len(parts) > 1 else ()

    @property
    def _has_class_power(self) -> bool:
        return self.relaxation.cross_entropy != 0

    def loss(self, theta: Sequence[float]) -> SurrogateLoss | MixedLoss:
        """The loss at a point.

        Args:
            theta: A number in [0, 1] for each of `names`.

        Raises:
            InputError: The number of coordinates or one of them is wrong.
        """
        if len(theta) != len(self.names):
            raise InputError(f"theta has {len(theta)} coordinates; the losses have {len(self.names)}.")
        for i, t in enumerate(theta):
            if isinstance(t, str) or not 0 <= t <= 1:
                raise InputError(f"theta[{i}] must be in [0, 1], got {shown(t)}.")
        relaxation, at = self.relaxation, dict(zip(self.names, theta, strict=True))
        points = self.space.control_points(theta[: self.space.dimension])
        scale = 2 ** (8 * at["scale"] - 2) if "scale" in at else self._fixed_scale
        surrogates = [
            SurrogateLoss(self.space.expr, points, logic, self.space.curve, relaxation.classes) for logic in self.logics
        ]
        if relaxation.cross_entropy == 0 and len(surrogates) == 1:
            surrogates[0].scale = scale
            return surrogates[0]
        parts: dict[str, Loss] = dict(zip(self.logics, surrogates, strict=True))
        if self._has_class_power:
            fixed = relaxation.class_power
            power = -0.25 + 1.5 * at["class_power"] if "class_power" in at else float(fixed)
            parts = {OF_CROSS_ENTROPY: CrossEntropy(class_power=power)} | parts
        shares = self._shares(at)
        return MixedLoss([(scale * shares[name], part) for name, part in parts.items() if shares[name]])

    @property
    def _fixed_scale(self) -> float:
        return 1.0 if self.searches_rate else float(self.relaxation.scale)

    def rate(self, theta: Sequence[float]) -> float:
        """The factor of the learning rate at a point; 1 where it is not searched."""
        at = dict(zip(self.names, theta, strict=True))
        return float(2 ** (4 * at[RATE] - 2)) if RATE in at else 1.0

    def _shares(self, at: Mapping[str, float]) -> dict[str, float]:
        """The share of each part of the sum, given the coordinates by their names."""
        fixed = self.relaxation.cross_entropy
        own = 0.0 if is_searched(fixed) else float(fixed)
        weights = {name: 2 ** (12 * (at[f"share of {name}"] - 0.5)) for name in self.shared} or {self.logics[0]: 1.0}
        total = sum(weights.values())
        return {OF_CROSS_ENTROPY: own} | {name: (1 - own) * weight / total for name, weight in weights.items()}

    def content(self, theta: Sequence[float]) -> LossContent:
        """The loss at a point, as the content of its file."""
        return bare_content(self.loss(theta))


def is_reading(loss: Loss, expr: Expr) -> TypeGuard[SurrogateLoss]:
    """Whether a loss is a surrogate of a metric."""
    return isinstance(loss, SurrogateLoss) and loss.expr == expr


def _best_curve(readings: Sequence[SurrogateLoss]) -> CurveKind:
    return "bezier" if readings and all(reading.curve != "log" for reading in readings) else "log"


def is_searched(value: float | str) -> bool:
    """Whether a number of the configuration is a coordinate."""
    return isinstance(value, str)


def _logics(relaxation: RelaxationConfig, expr: Expr, soft_labels: bool) -> tuple[LogicKind, ...]:
    """The logics of the surrogates.

    Raises:
        InputError: The metric or the labels do not suit the logic.
    """
    given = relaxation.logic
    if given == "auto":
        return ("godel",) if soft_labels else ("product", "lovasz") if _can_be_extended(expr) else ("product",)
    logics: tuple[LogicKind, ...] = (given,) if isinstance(given, str) else tuple(given)
    if "lovasz" in logics:
        if soft_labels:
            raise InputError(
                "relaxation.logic: `lovasz` needs hard labels, and proxy.labels makes soft ones. Choose `godel` or "
                "`auto`."
            )
        _extension(expr)
    return logics


def _can_be_extended(expr: Expr) -> bool:
    """Whether the logic "lovasz" extends a part of a metric."""
    try:
        _extension(expr)
    except InputError:
        return False
    return True


def _extension(expr: Expr) -> Extension:
    """What the logic "lovasz" makes of a metric; raises InputError with the reason if it has nothing to extend."""
    return Extension(expr, dict.fromkeys(slots(expr), IDENTITY))


def _coordinates(space: SearchSpace) -> tuple[str, ...]:
    """The names of the coordinates of a curve: u and v of each control point; of a log curve v alone."""
    if space.curve == "log":
        return ("v",)
    number = number_of_points(space.curve, space.pieces)
    return tuple(f"{axis}{i}" if number > 1 else axis for i in range(1, number + 1) for axis in "uv")
