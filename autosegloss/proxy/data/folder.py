"""Your own images and masks in folders."""

from __future__ import annotations

from autosegloss.proxy.data import IGNORE_INDEX, Dataset, class_names
from autosegloss.proxy.data.files import Source, path_of
from autosegloss.proxy.data.pictures import PICTURES

ADVICE = """\
`root` is a folder with the sub-folders images (PNG, JPEG, TIFF, BMP or WebP) and masks (PNG, grey or palette, whose
values are the numbers of the classes), or else the options `images` and `masks` name these two. A picture and its mask
have one path in them, but for the ending: images/day1/a.jpg and masks/day1/a.png."""


def load(
    classes: int | list[str],
    root: str | None = None,
    images: str | None = None,
    masks: str | None = None,
    ignore_index: int | None = None,
    validation: str | float = 0.2,
    size: int | list[int] | None = None,
    heldout: int | float = 0.2,
    seed: int = 0,
    cache: str | None = None,
) -> Dataset:
    """Read images, and PNG masks of the same names whose pixels hold class numbers.

    Args:
        classes: The names of the classes 0, 1, 2, ..., or their number; 2 to 255.
        root: The folder that holds the folders `images` and `masks`.
        images: The folder of the images, instead of `root`; needs `masks`.
        masks: The folder of the masks, instead of `root`; needs `images`.
        ignore_index: The value of ignored pixels in the masks; None is 255, unless some class has no pixel then.
        validation: A folder like `root`, or a share of all images, drawn at random.
        size: What images are brought to: the sides of squares, or [height, width]; see `autosegloss.proxy.data.files`.
            None keeps their size, which must be the same for all.
        heldout: Number of held-out training images for rewards, or their share below 1.
        seed: Seed of the random splits.
        cache: Folder for the decoded images; by default the user's cache folder.

    Raises:
        DataError: Files are missing or can't be used, or an option is wrong.
    """
    names = class_names("data set `folder`", classes)
    ignored = IGNORE_INDEX if ignore_index is None else ignore_index
    labels = {number: number for number in range(len(names))} | {ignored: IGNORE_INDEX}
    source = Source("folder", ADVICE, names, labels, stated=ignore_index is not None)
    if type(ignored) is not int or not len(names) <= ignored < 2**16:
        raise source.error(
            f"ignore_index must be an integer from {len(names)} to 65535, above the classes, got {ignored!r}."
        )
    if root is not None and images is None and masks is None:
        folders = [(path_of("root", root) / "images", path_of("root", root) / "masks")]
    elif root is None and images is not None and masks is not None:
        folders = [(path_of("images", images), path_of("masks", masks))]
    else:
        raise source.missing("give either `root`, or both `images` and `masks`.")
    if isinstance(validation, str):
        folder = path_of("validation", validation)
        training, unseen = source.pairs([*folders, (folder / "images", folder / "masks")], PICTURES)
        note = ""
    else:
        (together,) = source.pairs(folders, PICTURES)
        training, unseen = source.draw(together, "validation", validation, seed)
        note = f"The {len(unseen)} validation images were drawn from the same folder as the training images."
    return source.dataset(training, unseen, size=size, heldout=heldout, seed=seed, cache=cache, note=note)
