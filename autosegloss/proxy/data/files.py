"""Data sets in files: pairs of a picture and a label map, decoded and resized once into a cache that workers share."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autosegloss.errors import DataError
from autosegloss.proxy.data import IGNORE_INDEX, Dataset, Split, open_array
from autosegloss.proxy.data.pictures import files_by_name, read_labels, read_picture

Pair = tuple[Path, Path]
"""A picture and its label map."""

_FORMAT = 1  # of what is in the cache; a new one leaves the old to be deleted
_WRONG = -1
UNUSABLE = "files that can't be used"


@dataclass(frozen=True)
class Source:
    """A data set in files.

    Args:
        name: The name of the data set.
        advice: The expected layout of the files and where to get them, for messages.
        classes: Names of the classes, in label order.
        labels: The class of each value that the label maps may hold; `IGNORE_INDEX` for ignored values.
    """

    name: str
    advice: str
    classes: tuple[str, ...]
    labels: Mapping[int, int]

    def error(self, what: str) -> DataError:
        """An error about the data set."""
        return DataError(f"data set `{self.name}`: {what}")

    def refuse(self, what: str, mistakes: Iterable[str]) -> None:
        """Raise an error that lists all mistakes, if there are any."""
        if lines := sorted(mistakes):
            raise self.error(f"{what} ({len(lines)}):" + "".join(f"\n  {line}" for line in lines))

    def missing(self, what: str) -> DataError:
        """An error about a missing file."""
        return self.error(f"{what}\n{self.advice}")

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
        found, alone = [], []
        for images, masks in folders:
            try:
                pictures, labels = files_by_name(images, picture_endings), files_by_name(masks, label_endings)
            except DataError as error:
                raise self.missing(str(error)) from None
            alone += [f"{pictures[name]} has no label map in {masks}" for name in pictures.keys() - labels.keys()]
            alone += [f"{labels[name]} has no picture in {images}" for name in labels.keys() - pictures.keys()]
            found.append([(pictures[name], labels[name]) for name in sorted(pictures.keys() & labels.keys())])
        self.refuse("files without a partner of the same name", alone)
        return found

    def dataset(
        self,
        train: Sequence[Pair],
        validation: Sequence[Pair],
        *,
        size: object,
        heldout: object,
        seed: object,
        cache: object,
        note: str = "",
    ) -> Dataset:
        """The data set of a training and a validation list; validation images are read when first used.

        Args:
            train: The training list, of which a part is held out.
            validation: The validation list.
            size: Height and width in pixels, or one number for squares; None is the common size of the training images.
            heldout: Number of held-out training images, or their share below 1.
            seed: Seed of the random choice of held-out images.
            cache: Folder of the cache; None is the user's cache folder.
            note: See `Dataset`.

        Raises:
            DataError: An option is invalid, or files are missing or can't be used; the error lists all of these.
        """
        wanted, folder = self._size(size), _cache(cache)
        if absent := sorted({str(path) for pair in (*train, *validation) for path in pair if not path.is_file()}):
            raise self.missing(f"missing files ({len(absent)}):" + "".join(f"\n  {path}" for path in absent))
        both = {image for image, _ in train} & {image for image, _ in validation}
        self.refuse("images in the training and in the validation list", map(str, both))
        parts = (*self.draw(train, "heldout", heldout, seed), validation, train)
        shape = wanted or self._one_size(train)
        kept, apart, unseen, whole = (CachedSplit(self, tuple(pairs), shape, folder) for pairs in parts)
        self.refuse(UNUSABLE, [*kept.make(), *apart.make()])
        split = kept.split()
        self._check_classes(split)
        return Dataset(
            self.name,
            self.classes,
            IGNORE_INDEX,
            split,
            apart.split(),
            unseen.split,
            note,
            whole=whole.split,
            full_size=(len(validation), unseen.full_size),
        )

    def draw(self, pairs: Sequence[Pair], option: str, amount: object, seed: object) -> tuple[list[Pair], list[Pair]]:
        """Split a list at random; see `random_split`."""
        rest, part = random_split(f"data set `{self.name}`", option, len(pairs), amount, seed)
        return [pairs[i] for i in rest], [pairs[i] for i in part]

    def _check_classes(self, split: Split) -> None:
        """Refuse labels of a single class, e.g. masks that mark a class by 255, which is ignored."""
        seen: set[int] = set()
        for labels in split.labels:
            seen |= {*np.unique(labels).tolist()} - {IGNORE_INDEX}
            if len(seen) > 1:
                return
        all_are = f"all pixels are `{self.classes[seen.pop()]}`" if seen else "all pixels are ignored"
        ignored = ", ".join(str(value) for value, label in sorted(self.labels.items()) if label == IGNORE_INDEX)
        raise self.error(
            f"the training labels must hold at least two classes, but {all_are}. The values of the masks are "
            f"class numbers 0, 1, 2, ...; ignored: {ignored}."
        )

    def _size(self, size: object) -> tuple[int, int] | None:
        sides = [size, size] if isinstance(size, int) else size
        if sides is None:
            return None
        if isinstance(sides, list | tuple) and [type(side) for side in sides] == [int, int] and min(sides) > 0:
            return sides[0], sides[1]
        raise self.error(f"size must be positive integers, one side or [height, width], got {size!r}.")

    def _one_size(self, pairs: Sequence[Pair]) -> tuple[int, int]:
        """The common size of the pictures; those that can't be opened are reported later."""
        sizes: dict[tuple[int, int], Path] = {}
        for path, _ in pairs:
            with suppress(Exception), Image.open(path) as picture:  # Pillow raises many kinds
                sizes.setdefault(picture.size[::-1], path)
        if len(sizes) > 1:
            examples = "".join(f"\n  {_shape(size)}, e.g. {path}" for size, path in sorted(sizes.items()))
            raise self.error(
                f"the pictures have {len(sizes)} different sizes; set the option `size` to resize them:{examples}"
            )
        return next(iter(sizes), (1, 1))


def random_split(owner: str, option: str, total: int, amount: object, seed: object) -> tuple[list[int], list[int]]:
    """Split the numbers below `total` at random into two ascending lists, the second with `amount` of them.

    Args:
        owner: What the option belongs to, for messages.
        option: The name of the option that gives the amount, for messages.
        total: Number of images.
        amount: The size of the second list, or its share of `total` below 1.
        seed: Non-negative.

    Raises:
        DataError: The amount or the seed is invalid, or one of the lists would be empty.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"{owner}: seed must be a non-negative integer, got {seed!r}.")
    number = 0
    if isinstance(amount, float) and 0 < amount < 1:
        number = round(amount * total)
    elif isinstance(amount, int) and not isinstance(amount, bool):
        number = amount
    if not 0 < number < total:
        raise DataError(
            f"{owner}: {option} must leave images on both sides, as a number of the {total} images or a share below 1, "
            f"got {amount!r}."
        )
    order = np.random.default_rng(seed).permutation(total)
    rest, part = np.sort(order[number:]).tolist(), np.sort(order[:number]).tolist()
    return rest, part


@dataclass(frozen=True)
class CachedSplit:
    """Pictures and label maps in files, decoded into cached arrays.

    A picture and its labels are scaled proportionally to cover `size`, and centre-cropped: pictures bilinearly with
    antialiasing, labels to the nearest. The arrays are cached in a folder named by a hash of everything that determines
    them: paths, sizes and modification times of the files, and the settings. The folder is created atomically, by one
    process if several need it.

    Args:
        source: The data set.
        pairs: The files.
        size: Height and width in pixels.
        cache: Folder of the cache.
    """

    source: Source
    pairs: tuple[Pair, ...]
    size: tuple[int, int]
    cache: Path

    @cached_property
    def folder(self) -> Path:
        """The folder of the arrays, existing or not."""
        try:
            stats = [(str(path), path.stat()) for pair in self.pairs for path in pair]
        except OSError as error:
            raise self.source.missing(f"{error.filename}: can't be read: {error.strerror}.") from None
        files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        text = json.dumps([_FORMAT, self.size, sorted(self.source.labels.items()), files])
        return self.cache / f"{self.source.name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def split(self) -> Split:
        """The memory-mapped arrays, created if necessary.

        Raises:
            DataError: Files can't be used; the error lists all of them.
        """
        self.source.refuse(UNUSABLE, self.make())
        return Split(open_array(self.folder / "images.npy"), open_array(self.folder / "labels.npy"))

    def make(self) -> list[str]:
        """Create the arrays unless they exist; returns the problems with files, in which case nothing is created.

        Raises:
            DataError: The cache can't be written.
        """
        folder = self.folder
        if folder.is_dir():
            return []
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            with _locked(folder.with_suffix(".lock")):
                # Another process may have created the folder meanwhile.
                return [] if folder.is_dir() else self._make(folder)
        except OSError as error:
            raise self.source.error(
                f"the cache {self.cache} can't be written: {error.strerror}. Choose another with the option `cache`."
            ) from None

    def _make(self, folder: Path) -> list[str]:
        unfinished = folder.with_suffix(".tmp")
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
        unfinished.mkdir()
        try:
            if not (mistakes := self._write(unfinished)):
                unfinished.rename(folder)
            return mistakes
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _write(self, folder: Path) -> list[str]:
        """Decode all files into two arrays in a folder; returns the problems with files."""
        images, labels = (
            np.lib.format.open_memmap(folder / name, "w+", np.uint8, (len(self.pairs), *channels, *self.size))
            for name, channels in (("images.npy", (3,)), ("labels.npy", ()))
        )

        def fill(index: int) -> list[str]:
            found = self._pair(index)
            if isinstance(found, list):
                return found
            picture, values = found
            images[index] = np.asarray(_covering(picture, self.size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            labels[index] = np.asarray(_covering(Image.fromarray(values), self.size, Image.Resampling.NEAREST))
            return []

        with ThreadPoolExecutor() as threads:  # Pillow releases the GIL while it decodes and resizes
            found = [line for mistakes in threads.map(fill, range(len(self.pairs))) for line in mistakes]
        for array in (images, labels):
            array.flush()
        return found

    def full_size(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A picture scaled as in the arrays but not cropped, (3, h, w), and its original labels, (H, W).

        Raises:
            DataError: The files can't be used.
        """
        found = self._pair(index)
        self.source.refuse(UNUSABLE, found if isinstance(found, list) else [])
        assert not isinstance(found, list)  # refused above
        picture, labels = found
        height, width = self.size
        scale = max(height / picture.height, width / picture.width)
        size = round(scale * picture.width), round(scale * picture.height)
        return np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1), labels

    def _pair(self, index: int) -> tuple[Image.Image, NDArray[np.uint8]] | list[str]:
        """A picture and the classes of its pixels, (H, W), at the original size; or the problems with the files."""
        image, mask = self.pairs[index]
        mistakes = []
        try:
            picture = read_picture(image)
        except DataError as error:
            mistakes.append(f"{image}: {error}")
        try:
            values = read_labels(mask)
        except DataError as error:
            return [*mistakes, f"{mask}: {error}"]
        if not mistakes and values.shape != picture.size[::-1]:
            mistakes.append(
                f"{mask}: must be {_shape(picture.size[::-1])}, like its picture, got {_shape(values.shape)}"
            )
        mapped = self._known[values]
        if (mapped == _WRONG).any():
            wrong = np.unique(values[mapped == _WRONG]).tolist()
            some = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
            mistakes.append(f"{mask}: values must be {self._allowed()}, got {some}")
        return mistakes or (picture, mapped.astype(np.uint8))

    @cached_property
    def _known(self) -> NDArray[np.int16]:
        """The class of each value that a label map can hold, or `_WRONG`."""
        known = np.full(2**16, _WRONG, np.int16)
        known[list(self.source.labels)] = list(self.source.labels.values())
        return known

    def _allowed(self) -> str:
        ignored = sorted(value for value, label in self.source.labels.items() if label == IGNORE_INDEX)
        counted = sorted(value for value, label in self.source.labels.items() if label != IGNORE_INDEX)
        text = f"{counted[0]}..{counted[-1]}" if len(counted) > 1 else str(counted[0])
        return f"{text}, and {', '.join(map(str, ignored))} (ignored)" if ignored else text


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
        raise DataError(f"proxy.data.{option} must be the path of a folder, got {value!r}.")
    return Path(value).expanduser().absolute()


def _covering(picture: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """A picture scaled to cover (height, width), and centre-cropped."""
    height, width = size
    scale = min(picture.height / height, picture.width / width)
    across, down = min(scale * width, picture.width), min(scale * height, picture.height)  # rounding may exceed them
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    return picture.resize((width, height), how, box=(left, top, left + across, top + down))


def _shape(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]} (width x height)"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock, which ends with the process; the file stays, as other processes may be waiting for it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
