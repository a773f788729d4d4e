"""Pictures and label maps in files, decoded and resized once into arrays that the processes of a machine share."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autosegloss.errors import DataError, cut
from autosegloss.files import locked
from autosegloss.proxy.data import Contents, Split, open_array
from autosegloss.proxy.data.description import Description, Pair, Survey, size_text
from autosegloss.proxy.data.pictures import ColoursError, read_labels, read_picture
from autosegloss.proxy.data.values import spans

_FORMAT = 4  # of what is in the cache; a new one leaves the old to be deleted
_IMAGES, _LABELS, _CONTENTS = "images.npy", "labels.npy", "contents.json"
_DENSE = 2**16  # values below it are counted without sorting
_DECODED = 64  # pairs at a time, which bounds the memory
_LOCK = re.compile(r"(.+-[0-9a-f]{24})\.lock")


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

    source: Description
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
                f"the cache {cut(str(self.cache))} can't be written: {error.strerror or error}. Decoded, these "
                f"{len(self.pairs)} images take {size:.3g} MiB. Choose another folder with the option `cache`."
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
                f"{mask}: must be {size_text(picture.size[::-1])}, like its picture, got {size_text(values.shape)}"
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


def _covering(picture: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """A picture scaled to cover (height, width), and centre-cropped."""
    height, width = size
    scale = min(picture.height / height, picture.width / width)
    across, down = min(scale * width, picture.width), min(scale * height, picture.height)  # rounding may exceed them
    left, top = (picture.width - across) / 2, (picture.height - down) / 2
    return picture.resize((width, height), how, box=(left, top, left + across, top + down))
