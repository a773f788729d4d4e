"""What a data set in files is, and what reading its files has shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from autosegloss.errors import DataError
from autosegloss.proxy.data import IGNORE_INDEX, listing
from autosegloss.proxy.data.values import ValueMap, spans

Pair = tuple[Path, Path]
"""A picture and its label map."""

UNUSABLE = "files that can't be used"


@dataclass
class Survey:
    """What reading files has shown.

    Args:
        values: Number of pixels of each value of the label maps.
        unusable: Files that can't be read, or whose sizes differ.
        coloured: Whether some of these are label maps that hold colours.
        wrong: Label maps with values that the data set does not have.
    """

    values: Counter[int] = field(default_factory=Counter)
    unusable: list[str] = field(default_factory=list)
    coloured: bool = False
    wrong: list[str] = field(default_factory=list)

    @property
    def mistakes(self) -> bool:
        """Whether there are files that can't be used."""
        return bool(self.unusable or self.wrong)

    def add(self, other: Survey) -> None:
        """Take over what another one has."""
        self.values += other.values
        self.unusable += other.unusable
        self.coloured |= other.coloured
        self.wrong += other.wrong


@dataclass(frozen=True)
class Description:
    """What a data set in files is: its names, classes and mask values, and the errors about it.

    Args:
        name: The name of the data set.
        advice: The expected layout of the files and where to get them, for messages.
        classes: Names of the classes, in label order.
        labels: The class of each value or colour that the label maps may hold; `IGNORE_INDEX` for ignored ones.
        stated: Whether the user, or the data set, says what is ignored; else it is a default.
        hint: What to do about label maps with other values or colours, for messages.
    """

    name: str
    advice: str
    classes: tuple[str, ...]
    labels: ValueMap
    stated: bool = True
    hint: str = ""

    def error(self, what: str) -> DataError:
        """An error about the data set."""
        return DataError(f"data set `{self.name}`: {what}")

    def refuse(self, what: str, mistakes: Iterable[str]) -> None:
        """Raise an error that lists the mistakes, if there are any."""
        if lines := sorted(mistakes):
            raise self.error(listing({what: lines}))

    def missing(self, what: str) -> DataError:
        """An error about a missing file."""
        return self.error(f"{what}\n{self.advice}")

    def refuse_files(self, survey: Survey) -> None:
        """Raise an error that lists the files that can't be used, by cause, if there are any."""
        causes = {UNUSABLE: sorted(survey.unusable)} if survey.unusable else {}
        if survey.wrong:
            held = spans((value, value) for value in survey.values)
            allowed = self.labels.spelled(IGNORE_INDEX)
            causes[f"masks hold {held}, but the {len(self.classes)} classes are {allowed}"] = sorted(survey.wrong)
        if causes:
            helps = self.hint and (survey.wrong or survey.coloured)
            raise self.error(listing(causes) + (f"\n{self.hint}" if helps else ""))


def size_text(size: tuple[int, ...]) -> str:
    """A size (height, width) in words."""
    return f"{size[1]} x {size[0]} (width x height)"
