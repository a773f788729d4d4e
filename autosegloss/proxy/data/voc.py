"""PASCAL VOC 2012, in its official layout."""

from __future__ import annotations

from pathlib import Path

from autosegloss.proxy.data import IGNORE_INDEX, Read
from autosegloss.proxy.data.description import Pair
from autosegloss.proxy.data.files import Source, path_of
from autosegloss.proxy.data.values import ValueMap

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
CLASSES = tuple(_NAMES.split())
VOID = 255
ADVICE = """\
`root` is the folder VOC2012, with JPEGImages/*.jpg, SegmentationClass/*.png and ImageSets/Segmentation/{train,val}.txt:
the training and validation data (VOCtrainval_11-May-2012.tar) of the PASCAL VOC challenge 2012, from its site.
With ImageSets/Segmentation/trainaug.txt and SegmentationClassAug/*.png beside them, the larger training list of
Hariharan et al., Semantic contours from inverse detectors (the SBD data set), is taken."""


def load(
    root: str,
    size: int | list[int] = 128,
    heldout: int | float = 1500,
    seed: int = 0,
    cache: str | None = None,
) -> Read:
    """Read PASCAL VOC 2012: background and 20 object classes; contours and ambiguous regions are ignored.

    The training list is `trainaug` (10,582 images) if present, otherwise `train` (1,464); the validation list is `val`.

    Args:
        root: The folder VOC2012.
        size: What images are brought to: the sides of squares, or [height, width]; see `autosegloss.proxy.data.cache`.
        heldout: Number of held-out training images for rewards, or their share below 1; 1,500 as published, which needs
            the larger list.
        seed: Decides which ones.
        cache: Folder for the decoded images; by default the user's cache folder.

    Returns:
        A function that decodes the files, whose names are checked.

    Raises:
        DataError: Files are missing or can't be used, or an option is wrong.

    Reference: Everingham et al., The PASCAL visual object classes (VOC) challenge, IJCV 2010.
    """
    labels = {number: number for number in range(len(CLASSES))} | {VOID: IGNORE_INDEX}
    source = Source("voc", ADVICE, CLASSES, ValueMap.of(labels))
    lists = path_of("root", root) / "ImageSets" / "Segmentation"
    name = "trainaug" if (lists / "trainaug.txt").is_file() else "train"
    training, validation = _pairs(source, lists / f"{name}.txt"), _pairs(source, lists / "val.txt")
    note = f"PASCAL VOC 2012, training list `{name}`."
    return source.reader(training, validation, size=size, heldout=heldout, seed=seed, cache=cache, note=note)


def _pairs(source: Source, path: Path) -> list[Pair]:
    """The image and label files of a list."""
    try:
        names = dict.fromkeys(path.read_text(encoding="utf-8").split())
    except OSError as error:
        raise source.missing(f"{path}: can't be read: {error.strerror}.") from None
    root = path.parents[2]
    masks = root / ("SegmentationClassAug" if path.stem == "trainaug" else "SegmentationClass")
    return [(root / "JPEGImages" / f"{name}.jpg", masks / f"{name}.png") for name in names]
