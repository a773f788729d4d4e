"""ADE20K in the layout of the scene parsing challenge."""

from __future__ import annotations

from pathlib import Path

from autosegloss.proxy.data import IGNORE_INDEX, Read
from autosegloss.proxy.data.files import Source, path_of
from autosegloss.proxy.data.values import ValueMap

NUMBER = 150
ADVICE = """\
`root` is the folder ADEChallengeData2016, with images/{training,validation}/*.jpg and
annotations/{training,validation}/*.png: ADEChallengeData2016.zip, from the site of the MIT scene parsing benchmark."""


def load(
    root: str,
    size: int | list[int] = 128,
    heldout: int | float = 2000,
    seed: int = 0,
    cache: str | None = None,
) -> Read:
    """Read ADE20K: 20,210 training and 2,000 validation images, 150 classes; label 0, "other", is ignored.

    Args:
        root: The folder ADEChallengeData2016. Class names come from its objectInfo150.txt; without that file
            they are numbers.
        size: What images are brought to: the sides of squares, or [height, width]; see `autosegloss.proxy.data.cache`.
        heldout: Number of held-out training images for rewards, or their share below 1; 2,000 as in validation.
        seed: Decides which ones.
        cache: Folder for the decoded images; by default the user's cache folder.

    Returns:
        A function that decodes the files, whose names are checked.

    Raises:
        DataError: Files are missing or can't be used, or an option is wrong.

    Reference: Zhou et al., Scene parsing through ADE20K dataset, CVPR 2017.
    """
    folder = path_of("root", root)
    labels = {0: IGNORE_INDEX} | {value: value - 1 for value in range(1, NUMBER + 1)}
    source = Source("ade20k", ADVICE, _names(folder / "objectInfo150.txt"), ValueMap.of(labels))
    train, validation = source.pairs(
        [(folder / "images" / part, folder / "annotations" / part) for part in ("training", "validation")], (".jpg",)
    )
    return source.reader(train, validation, size=size, heldout=heldout, seed=seed, cache=cache)


def _names(path: Path) -> tuple[str, ...]:
    """The last column of a tab-separated file with a header."""
    numbers = tuple(str(number) for number in range(1, NUMBER + 1))
    if not path.is_file():
        return numbers
    rows = [line.rstrip("\n").split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    names = tuple(row[-1].split(",")[0].strip() for row in rows if row != [""])
    return names if len(names) == len(set(names)) == NUMBER else numbers
