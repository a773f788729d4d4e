"""Data sets in files: how pictures and label maps are found, paired and drawn into the parts of a data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autosegloss.errors import DataError, listed, shown
from autosegloss.proxy.data import IGNORE_INDEX, Dataset, MaskValue, Read, listing
from autosegloss.proxy.data.cache import CachedSplit, sweep
from autosegloss.proxy.data.description import Description, Pair, Survey, size_text
from autosegloss.proxy.data.pictures import files_by_name, picture_size, spelled, suffix_between
from autosegloss.proxy.data.splits import amount_of, draw_groups, random_split

_LARGEST_SIDE = 2**14  # pixels: a picture of 16,384 x 16,384 takes a gigabyte


class Source(Description):
    """A data set in files, and how its files are found, paired and drawn."""

    def pairs(
        self,
        folders: Sequence[tuple[Path, Path]],
        picture_endings: tuple[str, ...],
        label_endings: tuple[str, ...] = (".png",),
    ) -> list[list[Pair]]:
        """Pair the pictures and label maps of folders by path without ending, sorted by name.

        Raises:
            DataError: A folder is missing or empty, or files are unpaired; the error lists all of these.
        """
        found = [self.files(images, masks, picture_endings, label_endings) for images, masks in folders]
        self.refuse_unpaired(found)
        return [[each.pairs[name] for name in sorted(each.pairs)] for each in found]

    def files(
        self,
        images: Path,
        masks: Path,
        picture_endings: tuple[str, ...],
        label_endings: tuple[str, ...],
        pattern: str = "{name}",
    ) -> Files:
        """The pictures and label maps of two folders, which may be one, by name.

        Args:
            images: The folder of pictures.
            masks: The folder of label maps.
            picture_endings: The endings of pictures.
            label_endings: The endings of label maps.
            pattern: How label maps are named, see `files_by_name`.

        Raises:
            DataError: A folder is missing or empty.
        """
        try:
            labels = files_by_name(masks, label_endings, pattern)
            pictures = files_by_name(images, picture_endings, without=frozenset(labels.values()))
        except DataError as error:
            raise self.missing(str(error)) from None
        pairs = {name: (pictures[name], labels[name]) for name in pictures.keys() & labels.keys()}
        alone = {name: f"{pictures[name]} has no label map in {masks}" for name in pictures.keys() - labels.keys()}
        alone |= {name: f"{labels[name]} has no picture in {images}" for name in labels.keys() - pictures.keys()}
        return Files(pairs, alone, suffix_between(pictures, labels) if alone else "")

    def refuse_unpaired(self, found: Iterable[Files], names: Iterable[str] | None = None, option: str = "") -> None:
        """Raise an error that lists the files without a partner, if there are any.

        Args:
            found: The files.
            names: The names that need a partner; None for all.
            option: The option that says how label maps are named, for the message; empty if there is none.
        """
        wanted = None if names is None else set(names)
        lines = [text for one in found for name, text in one.alone.items() if wanted is None or name in wanted]
        suffixes = {one.suffix for one in found if one.alone}
        what = "files without a partner of the same name"
        if option and len(suffixes) == 1 and suffixes != {""}:
            what += f"; all are paired with `{option}: {shown(*suffixes)[1:-1]}`"
        self.refuse(what, lines)

    def reader(
        self,
        train: Sequence[Pair],
        validation: Sequence[Pair],
        *,
        size: object,
        heldout: object,
        seed: object,
        cache: object,
        note: str = "",
        remarks: tuple[str, ...] = (),
    ) -> Read:
        """A function that reads a training and a validation list: all files are decoded, or found in the cache.

        Args:
            train: The training list, of which a part is held out.
            validation: The validation list.
            size: Height and width in pixels, or one number for squares; None is the common size of the training images.
            heldout: Number of held-out training images, or their share below 1; or a list of some of `train`.
            seed: Seed of the random choice of held-out images.
            cache: Folder of the cache; None is the user's cache folder.
            note: See `Dataset`.
            remarks: See `Dataset`.

        Raises:
            DataError: An option is invalid, or files are missing; the error lists all of these. The function raises it
                if files can't be used.
        """
        wanted, folder = self._size(size), _cache(cache)
        unusable: dict[str, list[str]] = {}
        for path in sorted({path for pair in (*train, *validation) for path in pair if not path.is_file()}):
            what = "folders, pipes or devices in place of files" if path.exists() else "missing files"
            unusable.setdefault(what, []).append(str(path))
        if unusable:
            raise self.missing(listing(unusable, room=300))
        kept, apart = self._held_out(train, heldout, seed)
        real = {os.path.realpath(image): image for image, _ in train}
        both = [real[place] for image, _ in validation if (place := os.path.realpath(image)) in real]
        self.refuse("images in the training and in the validation list", map(str, both))
        if len(real) < len(train):
            counted = Counter(os.path.realpath(image) for image, _ in train)
            self.refuse("images that are given twice", [str(real[each]) for each, n in counted.items() if n > 1])
        return partial(self._dataset, (kept, apart, validation, train), wanted, folder, note, remarks)

    def _dataset(
        self,
        parts: Sequence[Sequence[Pair]],
        wanted: tuple[int, int] | None,
        folder: Path,
        note: str,
        remarks: tuple[str, ...],
    ) -> Dataset:
        *_, validation, train = parts
        shape = wanted or self._one_size(train)
        one, two, unseen, whole = (CachedSplit(self, tuple(pairs), shape, folder) for pairs in parts)
        sweep(folder)
        survey = Survey()
        splits = [each.read(survey) for each in (one, two, unseen)]
        self.refuse_files(survey)
        heard, apart_, seen = (split for split in splits if split is not None)
        return Dataset(
            self.name,
            self.classes,
            IGNORE_INDEX,
            heard,
            apart_,
            seen,
            note,
            whole=whole.split,
            full_size=(len(validation), unseen.full_size),
            values=self._seen(survey),
            remarks=remarks,
            names=_names([image for image, _ in validation]),
            ignore_stated=self.stated,
        )

    def _seen(self, survey: Survey) -> tuple[MaskValue, ...]:
        found = ((value, self.labels.get(value), pixels) for value, pixels in sorted(survey.values.items()))
        return tuple(MaskValue(spelled(value), label, pixels) for value, label, pixels in found if label is not None)

    def _held_out(self, train: Sequence[Pair], heldout: object, seed: object) -> tuple[list[Pair], list[Pair]]:
        if not isinstance(heldout, list):
            return self.draw(train, "heldout", heldout, seed)
        apart = set(heldout)
        return [pair for pair in train if pair not in apart], heldout

    def draw(
        self,
        pairs: Sequence[Pair],
        option: str,
        amount: object,
        seed: object,
        groups: Mapping[Path, str] | None = None,
    ) -> tuple[list[Pair], list[Pair]]:
        """Split a list at random, see `random_split`; with a group for each picture, see `draw_groups`."""
        owner = f"data set `{self.name}`"
        if groups is None:
            rest, part = random_split(owner, option, len(pairs), amount, seed)
        else:
            number, checked = amount_of(owner, option, len(pairs), amount, seed)
            rest, part = draw_groups(owner, option, [groups[image] for image, _ in pairs], number, checked)
        return [pairs[i] for i in rest], [pairs[i] for i in part]

    def _size(self, size: object) -> tuple[int, int] | None:
        sides = [size, size] if isinstance(size, int) else size
        if sides is None:
            return None
        if isinstance(sides, list | tuple) and [type(side) for side in sides] == [int, int]:
            height, width = sides
            if min(sides) > 0 and max(sides) <= _LARGEST_SIDE:
                return height, width
        raise self.error(
            f"size must be integers from 1 to {_LARGEST_SIDE}, one side or [height, width], got {shown(size)}."
        )

    def _one_size(self, pairs: Sequence[Pair]) -> tuple[int, int]:
        """The common size of the pictures; those that can't be opened are reported later."""
        sizes: dict[tuple[int, int], Path] = {}
        for path, _ in pairs:
            with suppress(DataError):
                sizes.setdefault(picture_size(path), path)
        if len(sizes) > 1:
            examples = listed([f"  {size_text(size)}, e.g. {path}" for size, path in sorted(sizes.items())])
            raise self.error(
                f"the pictures have {len(sizes)} different sizes; set the option `size` to resize them:\n"
                + "\n".join(examples)
            )
        return next(iter(sizes), (1, 1))


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The names of files inside the folder that all of them are in."""
    if not paths:
        return ()
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return tuple(str(path.relative_to(common)) for path in paths)


@dataclass(frozen=True)
class Files:
    """The files of two folders by name, the path without ending.

    Args:
        pairs: Pictures with their label maps.
        alone: What is wrong with the other files.
        suffix: What would pair all pictures, see `suffix_between`; empty if nothing does.
    """

    pairs: dict[str, Pair]
    alone: dict[str, str]
    suffix: str = ""


def _cache(folder: object) -> Path:
    """The given cache folder, or by default that of the user."""
    if folder is None:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autosegloss"
    return path_of("cache", folder)


def path_of(option: str, value: object) -> Path:
    """The absolute path of an option, since workers may run in another folder.

    Raises:
        DataError: The value is not a path.
    """
    if not isinstance(value, str | Path):
        raise DataError(f"proxy.data.{option} must be the path of a folder, got {shown(value)}.")
    return Path(value).expanduser().absolute()
