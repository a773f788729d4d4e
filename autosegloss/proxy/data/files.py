"""Data sets in files: pairs of a picture and a label map, decoded and resized once into a cache that workers share."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autosegloss.errors import DataError, shown
from autosegloss.files import locked
from autosegloss.proxy.data import IGNORE_INDEX, Contents, Dataset, MaskValue, Read, Split, listing, open_array
from autosegloss.proxy.data.pictures import (
    ColoursError,
    files_by_name,
    picture_size,
    read_labels,
    read_picture,
    spelled,
    suffix_between,
)
from autosegloss.proxy.data.splits import draw_groups
from autosegloss.proxy.data.values import ValueMap, spans

Pair = tuple[Path, Path]
"""A picture and its label map."""

_FORMAT = 4  # of what is in the cache; a new one leaves the old to be deleted
_IMAGES, _LABELS, _CONTENTS = "images.npy", "labels.npy", "contents.json"
_DENSE = 2**16  # values below it are counted without sorting
_LARGEST_SIDE = 2**14  # pixels: a picture of 16,384 x 16,384 takes a gigabyte
_DECODED = 64  # pairs at a time, which bounds the memory
_LOCK = re.compile(r"(.+-[0-9a-f]{24})\.lock")
UNUSABLE = "files that can't be used"


@dataclass(frozen=True)
class Source:
    """A data set in files.

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
            number, checked = _amount(owner, option, len(pairs), amount, seed)
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
            examples = "".join(f"\n  {_shape(size)}, e.g. {path}" for size, path in sorted(sizes.items()))
            raise self.error(
                f"the pictures have {len(sizes)} different sizes; set the option `size` to resize them:{examples}"
            )
        return next(iter(sizes), (1, 1))


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The names of files inside the folder that all of them are in."""
    if not paths:
        return ()
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return tuple(str(path.relative_to(common)) for path in paths)


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
    number, seed = _amount(owner, option, total, amount, seed)
    order = np.random.default_rng(seed).permutation(total)
    rest, part = np.sort(order[number:]).tolist(), np.sort(order[:number]).tolist()
    return rest, part


def _amount(owner: str, option: str, total: int, amount: object, seed: object) -> tuple[int, int]:
    """The number of images that an option asks for, and the seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"{owner}: seed must be a non-negative integer, got {shown(seed)}.")
    number = 0
    if isinstance(amount, float) and 0 < amount < 1:
        number = round(amount * total)
    elif isinstance(amount, int) and not isinstance(amount, bool):
        number = amount
    if not 0 < number < total:
        raise DataError(
            f"{owner}: {option} must leave images on both sides, as a number of the {total} images or a share below 1, "
            f"got {shown(amount)}."
        )
    return number, seed


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
        labels = self.source.labels
        text = json.dumps([_FORMAT, self.size, labels.ranges, labels.colours, files])
        return self.cache / f"{self.source.name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def split(self) -> Split:
        """The memory-mapped arrays, created if necessary.

        Raises:
            DataError: Files can't be used; the error lists them. Or the cache can't be written.
        """
        survey = Survey()
        split = self.read(survey)
        self.source.refuse_files(survey)
        assert split is not None  # refused above
        return split

    def read(self, survey: Survey) -> Split | None:
        """The memory-mapped arrays, created if necessary, and the values of the masks; None if files can't be used.

        Args:
            survey: Receives the values of the masks and the mistakes.

        Raises:
            DataError: The cache can't be written.
        """
        if (split := self._found(survey)) is not None:
            return split
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            with locked(self.folder.with_suffix(".lock")) as alone:
                if (split := self._found(survey)) is not None:  # another process has created the folder meanwhile
                    return split
                if alone:
                    _delete_unfinished(self.folder)
                if not self._made(survey):
                    return None
                if (split := self._found(survey)) is None:
                    raise OSError("what was written can't be read back")
                return split
        except OSError as error:
            size = len(self.pairs) * 4 * self.size[0] * self.size[1] / 2**20
            raise self.source.error(
                f"the cache {self.cache} can't be written: {error.strerror or error}. Decoded, these {len(self.pairs)} "
                f"images take {size:.3g} MiB. Choose another folder with the option `cache`."
            ) from None

    def _found(self, survey: Survey) -> Split | None:
        """The arrays in the cache; None if there are none, or if they are damaged."""
        try:
            known = json.loads((self.folder / _CONTENTS).read_bytes())
            split = Split(open_array(self.folder / _IMAGES), open_array(self.folder / _LABELS))
            values = Counter({int(value): int(pixels) for value, pixels in known["values"].items()})
            if split.contents.digest != known["sha256"]:
                return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, DataError):
            return None
        survey.values += values
        return split

    def _made(self, survey: Survey) -> bool:
        """Create the folder, unless files can't be used; whether it is there then."""
        draft = self.folder.with_suffix(f".{secrets.token_hex(4)}.tmp")
        draft.mkdir()
        try:
            found = self._write(draft)
            if found.mistakes:
                survey.add(found)
                return False
            try:
                draft.rename(self.folder)
            except OSError:
                if not self.folder.is_dir():
                    raise
                if self._found(Survey()) is None:  # else, without locks, another process has been faster
                    damaged = draft.with_suffix(".old.tmp")
                    self.folder.rename(damaged)
                    draft.rename(self.folder)
                    shutil.rmtree(damaged, ignore_errors=True)
            return True
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _write(self, folder: Path) -> Survey:
        """Decode all files into two arrays in a folder.

        The arrays are written plainly, not through a memory map, in which a full disk ends the process.
        """
        survey, count = Survey(), len(self.pairs)
        with (
            (folder / _IMAGES).open("wb") as images,
            (folder / _LABELS).open("wb") as labels,
            ThreadPoolExecutor() as threads,  # Pillow releases the GIL while it decodes and resizes
        ):
            for file, channels in ((images, (3,)), (labels, ())):
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *channels, *self.size)}
                np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, count, _DECODED):
                for picture, classes, found in threads.map(self._decoded, range(start, min(start + _DECODED, count))):
                    survey.add(found)
                    if not survey.mistakes:
                        images.write(picture)
                        labels.write(classes)
        if not survey.mistakes:
            written = Contents.of(Split(open_array(folder / _IMAGES), open_array(folder / _LABELS)))
            known = {"values": survey.values, "sha256": written.digest}
            (folder / _CONTENTS).write_text(json.dumps(known), encoding="ascii")
        return survey

    def _decoded(self, index: int) -> tuple[bytes, bytes, Survey]:
        """A picture (3, H, W) and its classes (H, W) of the arrays; empty if the files can't be used."""
        survey = Survey()
        if (found := self._pair(index, survey)) is None:
            return b"", b"", survey
        picture, classes = found
        resized = np.asarray(_covering(picture, self.size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        return (
            resized.tobytes(),
            _covering(Image.fromarray(classes), self.size, Image.Resampling.NEAREST).tobytes(),
            survey,
        )

    def full_size(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """A picture scaled as in the arrays but not cropped, (3, h, w), and its original labels, (H, W).

        Raises:
            DataError: The files can't be used.
        """
        survey = Survey()
        found = self._pair(index, survey)
        self.source.refuse_files(survey)
        assert found is not None  # refused above
        picture, labels = found
        height, width = self.size
        scale = max(height / picture.height, width / picture.width)
        size = round(scale * picture.width), round(scale * picture.height)
        return np.asarray(picture.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1), labels

    def _pair(self, index: int, survey: Survey) -> tuple[Image.Image, NDArray[np.uint8]] | None:
        """A picture and the classes of its pixels, (H, W), at the original size; None if the files can't be used."""
        image, mask = self.pairs[index]
        picture = values = None
        try:
            picture = read_picture(image)
        except DataError as error:
            survey.unusable.append(f"{image}: {error}")
        try:
            values = read_labels(mask, self.source.labels.colours)
        except DataError as error:
            survey.unusable.append(f"{mask}: {error}")
            survey.coloured |= isinstance(error, ColoursError)
        if values is None:
            return None
        seen, pixels = _counted(values)
        survey.values.update(dict(zip(seen.tolist(), pixels.tolist(), strict=True)))
        if picture is not None and values.shape != picture.size[::-1]:
            survey.unusable.append(
                f"{mask}: must be {_shape(picture.size[::-1])}, like its picture, got {_shape(values.shape)}"
            )
        found = [self.source.labels.get(value) for value in seen.tolist()]
        if wrong := [value for value, label in zip(seen.tolist(), found, strict=True) if label is None]:
            held = spans((value, value) for value in wrong)
            survey.wrong.append(f"{mask}: {held} at {pixels[np.isin(seen, wrong)].sum()} of {values.size} pixels")
        if picture is None or survey.mistakes:
            return None
        classes = np.array(found, np.uint8)
        if seen[-1] < _DENSE and seen[0] >= 0:
            table = np.zeros(seen[-1] + 1, np.uint8)
            table[seen] = classes
            return picture, table[values]
        return picture, classes[np.searchsorted(seen, values)]


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


def _counted(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct values, ascending, and how many pixels have each."""
    if values.min() < 0 or values.max() >= _DENSE:
        seen, pixels = np.unique(values, return_counts=True)
        return seen, pixels
    pixels = np.bincount(values.ravel())
    seen = np.flatnonzero(pixels)
    return seen, pixels[seen]


def sweep(cache: Path) -> None:
    """Delete what killed processes have left in a cache; what another process is making stays."""
    with suppress(OSError):  # no such folder yet, or one that can't be written
        for lock in cache.iterdir():
            if name := _LOCK.fullmatch(lock.name):
                with suppress(OSError), locked(lock, wait=False) as alone:
                    if alone:
                        _delete_unfinished(lock.with_name(name[1]))


def _delete_unfinished(folder: Path) -> None:
    for draft in folder.parent.glob(f"{folder.name}.*.tmp"):
        shutil.rmtree(draft, ignore_errors=True)


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


def _covering(picture: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """A picture scaled to cover (height, width), and centre-cropped."""
    height, width = size
    scale = min(picture.height / height, picture.width / width)
    across, down = min(scale * width, picture.width), min(scale * height, picture.height)  # rounding may exceed them
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    return picture.resize((width, height), how, box=(left, top, left + across, top + down))


def _shape(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]} (width x height)"
