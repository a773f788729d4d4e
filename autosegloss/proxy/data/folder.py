"""Your own images and masks in folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from autosegloss.errors import DataError, shown
from autosegloss.proxy.data import IGNORE_INDEX, Read, class_names
from autosegloss.proxy.data.description import Pair
from autosegloss.proxy.data.files import Files, Source, path_of
from autosegloss.proxy.data.pictures import LABELS, PICTURES, name_pattern
from autosegloss.proxy.data.splits import alike_neighbours, pick, read_groups, read_split
from autosegloss.proxy.data.values import EXAMPLE, ValueMap, read_values

ADVICE = """\
`root` is a folder with the sub-folders images (PNG, JPEG, TIFF, BMP or WebP) and masks (PNG, TIFF, BMP, GIF or .npy,
whose values are the numbers of the classes; else set `values`), or else the options `images` and `masks` name these
two. A picture and its mask have one path in them, but for the ending: images/day1/a.jpg and masks/day1/a.png; if masks
are named otherwise, set `mask_suffix`."""

HINT = f"The option `values` says which value or colour is which class, as in {EXAMPLE}."
OWNER = "data set `folder`"


def load(
    classes: int | list[str],
    root: str | list[str] | None = None,
    images: str | list[str] | None = None,
    masks: str | list[str] | None = None,
    mask_suffix: str = "",
    values: dict[str, int | str] | None = None,
    ignore_index: int | None = None,
    split: str | dict[str, str | list[str]] | None = None,
    groups: str | dict[str, str | list[str]] | None = None,
    validation: str | float | None = None,
    size: int | list[int] | None = None,
    heldout: int | float | str | None = None,
    seed: int = 0,
    cache: str | None = None,
) -> Read:
    """Read images, and masks whose pixels hold classes.

    Args:
        classes: The names of the classes 0, 1, 2, ..., or their number; 2 to 255.
        root: The folder that holds the folders `images` and `masks`; or a list of such folders.
        images: The folder of the images, or a list of folders, instead of `root`; needs `masks`.
        masks: The folder of the masks, or as many as there are of images, instead of `root`; needs `images`.
        mask_suffix: What follows the name of the image in the name of its mask, such as `_mask`; or a pattern such as
            `gt_{name}`. With an ending, as in `_mask.png`, only files of this kind are masks. Files in the folder of
            masks that are named otherwise are skipped.
        values: The class, by number or name, of each value of the masks; `ignore` for ignored pixels. A value is a
            number (`255`), a range (`1..40`, `1..`, `..9`) or a colour (`#ff0000`). None: values are numbers of
            classes. With colours, masks are read as colours; a grey is the same as its value 0..255.
        ignore_index: The value of ignored pixels in the masks; None is 255, unless some class has no pixel then. With
            `values`, None ignores nothing else.
        split: Which images are for what: the path of a JSON file with lists of names for `train`, `val`, `test` and
            `heldout`, or of a folder with train.txt, val.txt and so on; or such a mapping, in which the path of a text
            file (.txt) may stand for a list. A name is the path of an image without folders above it that make no
            difference, and with or without ending. Other images are not used.
        groups: What tells images that belong together, such as frames of a drive, which are then never drawn into
            different parts: a regular expression that is searched in the name (its first group, or else the whole
            match, is the group), or the path of a JSON file from names to groups, or from groups to lists of names.
            Images of a folder `validation` may be without a group, but not of one of the training images.
        validation: A folder like `root`; a share, or number, of the training images, drawn at random; or a part of
            `split`. None is `val` or else `test` of `split`, and without them 0.2.
        size: What images are brought to: the sides of squares, or [height, width]; see `autosegloss.proxy.data.cache`.
            None keeps their size, which must be the same for all.
        heldout: Number of held-out training images for rewards, or their share below 1; or a part of `split`. None is
            `heldout` of `split`, and without it 0.2.
        seed: Seed of the random splits.
        cache: Folder for the decoded images; by default the user's cache folder.

    Returns:
        A function that decodes the files, whose names are checked.

    Raises:
        DataError: Files are missing or can't be used, or an option is wrong.
    """
    names = class_names(OWNER, classes)
    try:
        labels = _labels(names, values, ignore_index)
        stated = ignore_index is not None or values is not None
        source = Source("folder", ADVICE, names, labels, stated, hint=HINT)
        pattern = name_pattern("mask_suffix", mask_suffix)
        found = [source.files(*each, PICTURES, LABELS, pattern) for each in _folders(source, root, images, masks)]
        listed = {} if split is None else read_split(split)
        if validation is None:
            validation = next((part for part in ("val", "test") if part in listed), 0.2)
        if heldout is None:
            heldout = "heldout" if "heldout" in listed else 0.2
        used = ["train", *(part for part in (validation, heldout) if part in listed)]
        if not listed:
            source.refuse_unpaired(found, option="mask_suffix")
            parts = {"train": [each.pairs[name] for each in found for name in sorted(each.pairs)]}
        else:
            parts = {part: _listed(source, part, listed.get(part, []), found) for part in used}
        outside: frozenset[Path] = frozenset()
        if isinstance(validation, str) and validation not in parts:
            folder = path_of("validation", validation)
            found.append(source.files(folder / "images", folder / "masks", PICTURES, LABELS, pattern))
            source.refuse_unpaired(found[-1:], option="mask_suffix")
            parts[validation] = [found[-1].pairs[name] for name in sorted(found[-1].pairs)]
            outside = frozenset(image for image, _ in parts[validation])
        placed = {image: name for each in found for name, (image, _) in each.pairs.items()}
        group = None if groups is None else read_groups(groups, placed, outside)
        training, note = parts["train"], ""
        if isinstance(validation, str):
            unseen = parts[validation]
        else:
            training, unseen = source.draw(training, "validation", validation, seed, group)
            note = f"The {len(unseen)} validation images were drawn from the same folder as the training images."
        if isinstance(heldout, str):
            if heldout not in used[1:] or heldout == validation:
                what = shown(heldout)
                raise DataError(f"heldout must be a number, a share below 1 or another part of `split`, got {what}.")
            kept, apart = training, parts[heldout]
            training = [*kept, *apart]
        else:
            kept, apart = source.draw(training, "heldout", heldout, seed, group)
    except DataError as error:
        raise error if str(error).startswith(OWNER) else DataError(f"{OWNER}: {error}") from None
    every = {"training": kept, "held-out": apart, "validation": unseen}
    in_parts = {part: {image: placed[image] for image, _ in pairs} for part, pairs in every.items()}
    if group is not None:
        held = {part: {group[image] for image in images if image in group} for part, images in in_parts.items()}
        if outside and held["validation"] & (held["training"] | held["held-out"]):
            raise DataError(f"{OWNER}: groups: {_shared(held)}")
        remark = _shared(held)
    else:  # of the parts that were drawn: who lists names has thought of it
        given = {"held-out": heldout, "validation": validation}
        drawn = {part: list(in_parts[part].values()) for part in in_parts if not isinstance(given.get(part), str)}
        remark = alike_neighbours(drawn)
    return source.reader(
        training,
        unseen,
        size=size,
        heldout=apart,
        seed=seed,
        cache=cache,
        note=note,
        remarks=(remark,) if remark else (),
    )


def _labels(classes: Sequence[str], values: object, ignore_index: object) -> ValueMap:
    lowest = len(classes) if values is None else 0
    ignored = IGNORE_INDEX if ignore_index is None else ignore_index
    if type(ignored) is not int or not lowest <= ignored < 2**16:
        above = ", above the classes" if lowest else ""
        raise DataError(f"ignore_index must be an integer from {lowest} to 65535{above}, got {shown(ignored)}.")
    if values is None:
        return ValueMap.of({number: number for number in range(len(classes))} | {ignored: IGNORE_INDEX})
    labels = read_values(values, classes, IGNORE_INDEX, None if ignore_index is None else ignored)
    there = {label for _, _, label in labels.ranges}
    if absent := [name for number, name in enumerate(classes) if number not in there]:
        raise DataError(f"values: no value stands for {', '.join(map(shown, absent[:8]))}.")
    return labels


def _folders(source: Source, root: object, images: object, masks: object) -> list[tuple[Path, Path]]:
    """The pairs of a folder of images and one of masks."""
    if root is not None and images is None and masks is None:
        folders = [(path / "images", path / "masks") for path in _paths("root", root)]
    elif root is None and images is not None and masks is not None:
        pictures, labels = _paths("images", images), _paths("masks", masks)
        if len(pictures) != len(labels):
            raise DataError(f"images names {len(pictures)} folders, but masks {len(labels)}.")
        folders = list(zip(pictures, labels, strict=True))
    else:
        raise source.missing("give either `root`, or both `images` and `masks`.")
    return folders


def _paths(option: str, value: object) -> list[Path]:
    if isinstance(value, list) and not value:
        raise DataError(f"{option} must be the path of a folder, or a list of them, got [].")
    return [path_of(option, each) for each in (value if isinstance(value, list) else [value])]


def _listed(source: Source, part: str, names: Sequence[str], found: Sequence[Files]) -> list[Pair]:
    """The pairs of a part of a split, in its order."""
    if not names:
        raise DataError(f"split: there is no list `{part}`.")
    known = [name for each in found for name in (*each.pairs, *each.alone)]
    chosen = pick(names, known, f"split, `{part}`")
    source.refuse_unpaired(found, chosen, option="mask_suffix")
    return [each.pairs[name] for name in chosen for each in found if name in each.pairs]


def _shared(groups: Mapping[str, set[str]]) -> str:
    """A warning if parts that a user lists share groups; those that are drawn never do."""
    both = {
        group: f"{one} and {other}" for one, other in combinations(groups, 2) for group in groups[one] & groups[other]
    }
    if not both:
        return ""
    group, parts = next(iter(sorted(both.items())))
    more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
    return f"the group {shown(group)}{more} has images in two parts, {parts}: results on the second are too good."
