"""Cityscapes, in its official layout."""

from __future__ import annotations

from autosegloss.proxy.data import IGNORE_INDEX, Read
from autosegloss.proxy.data.files import Source, path_of
from autosegloss.proxy.data.values import ValueMap

# The classes and their label ids that are trained and evaluated, in the order of their train ids.
_NAMES = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
)
CLASSES = tuple(_NAMES.split(", "))
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
LABELS = {number: IGNORE_INDEX for number in (*range(34), 255)} | {number: label for label, number in enumerate(IDS)}
ADVICE = """\
`root` is the folder with leftImg8bit/{train,val}/<city>/*_leftImg8bit.png and
gtFine/{train,val}/<city>/*_gtFine_labelIds.png: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, from the site
of the Cityscapes data set, which asks for a registration."""


def load(
    root: str,
    size: int | list[int] = 128,
    heldout: int | float = 500,
    seed: int = 0,
    cache: str | None = None,
) -> Read:
    """Read Cityscapes with fine annotations: 2,975 training and 500 validation images, 19 classes.

    Args:
        root: The folder of leftImg8bit and gtFine.
        size: What images are brought to: the sides of squares, or [height, width]; see `autosegloss.proxy.data.cache`.
            The images are 1024 x 2048: a square is the middle half of each.
        heldout: Number of held-out training images for rewards, or their share below 1; 500 as published.
        seed: Decides which ones.
        cache: Folder for the decoded images; by default the user's cache folder.

    Returns:
        A function that decodes the files, whose names are checked.

    Raises:
        DataError: Files are missing or can't be used, or an option is wrong.

    Reference: Cordts et al., The Cityscapes dataset for semantic urban scene understanding, CVPR 2016.
    """
    source = Source("cityscapes", ADVICE, CLASSES, ValueMap.of(LABELS))
    folder = path_of("root", root)
    train, validation = source.pairs(
        [(folder / "leftImg8bit" / part, folder / "gtFine" / part) for part in ("train", "val")],
        ("_leftImg8bit.png",),
        ("_gtFine_labelIds.png",),
    )
    return source.reader(train, validation, size=size, heldout=heldout, seed=seed, cache=cache)
