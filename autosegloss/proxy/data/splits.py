"""Which images are for training, validation and testing: lists of names, and groups that stay together."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autosegloss.errors import DataError, shown
from autosegloss.proxy.data import examples
from autosegloss.proxy.data.pictures import LABELS, PICTURES

PARTS = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test", "heldout": "heldout"},
}
"""The names of parts in files, and ours for them."""
_FORMS = 'a JSON file such as {"train": ["a", "b"], "val": ["c"]}, or a folder with train.txt, val.txt or test.txt'


def read_split(split: object) -> dict[str, list[str]]:
    """The names of the images of each part: `train`, `val`, `test`, `heldout`.

    Args:
        split: The path of a JSON file that maps parts to lists of names, or of a folder with a list train.txt, val.txt
            or test.txt of a name a line, of which the first word counts; or a mapping from parts to names, or to the
            paths of such lists.

    Raises:
        DataError: Something is missing, misspelt, or named twice.
    """
    where, given = "split", split
    if isinstance(split, str | Path):
        place = Path(split).expanduser()
        where = f"split {place}"
        lists = {part: place / f"{part}.txt" for part in PARTS if _exists(place / f"{part}.txt")}
        given = {part: read_names(file) for part, file in lists.items()} if lists else read_json(place, where)
    if not isinstance(given, Mapping) or not given:
        raise DataError(f"{where}: must be {_FORMS}, got {shown(given)}.")
    parts: dict[str, list[str]] = {}
    for name, names in given.items():
        part = PARTS.get(name)
        if part is None or part in parts:
            why = "given twice" if part else f"unknown part; allowed: {', '.join(PARTS)}"
            raise DataError(f"{where}: {shown(name)}: {why}.")
        if where == "split" and isinstance(names, str) and names.lower().endswith(".txt"):  # not in files
            names = read_names(Path(names).expanduser())
        if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
            path = " or the path of a list (.txt)" if where == "split" else ""
            raise DataError(f"{where}: `{name}` must be a list of names{path}, got {shown(names)}.")
        parts[part] = names
    places: dict[str, list[str]] = defaultdict(list)
    for part, names in parts.items():
        for name in names:
            places[name].append(part)
    if twice := [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]:
        raise DataError(f"{where}: names in two places ({len(twice)}):{examples(twice)}")
    return parts


def read_names(path: Path) -> list[str]:
    """The first word of each line of a text file.

    Raises:
        DataError: The file can't be read.
    """
    return [line.split()[0] for line in _text(path, str(path)).splitlines() if line.strip()]


def pick(names: Sequence[str], known: Iterable[str], where: str) -> list[str]:
    """Find listed names among those of files.

    A listed name may have an ending, and folders above it that the known one lacks, or lack those of the known one.

    Raises:
        DataError: A name has no file or several, or two names have the same; the error lists them.
    """
    find = _finder(known)
    found: dict[str, str] = {}
    mistakes = []
    for given in names:
        matches = find(given)
        if len(matches) != 1:
            mistakes.append(f"{shown(given)}: {'no such image' if not matches else 'several: ' + ', '.join(matches)}")
        elif matches[0] in found:
            mistakes.append(f"{shown(given)}: the same image as {shown(found[matches[0]])}")
        else:
            found[matches[0]] = given
    if mistakes:
        raise DataError(
            f"{where}: names that match no image, or several ({len(mistakes)} of {len(names)}):{examples(mistakes)}"
        )
    return list(found)


def _finder(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A function that finds the known names that a listed one means, see `pick`: the same, or all that end alike."""
    ends: dict[str, list[str]] = defaultdict(list)
    for name in sorted(known):
        ends[name.rpartition("/")[2]].append(name)

    def find(given: str) -> list[str]:
        name = unicodedata.normalize("NFC", given.replace("\\", "/").strip().removeprefix("./"))
        ending = next((each for each in {*PICTURES, *LABELS} if name.lower().endswith(each)), "")
        for spelling in [name, name[: -len(ending)]] if ending else [name]:
            alike = ends.get(spelling.rpartition("/")[2], [])
            if spelling in alike:
                return [spelling]
            if matches := [each for each in alike if _same_end(each, spelling)]:
                return matches
        return []

    return find


def read_groups(groups: object, images: Mapping[Path, str], without: frozenset[Path] = frozenset()) -> dict[Path, str]:
    """The group of each image.

    Args:
        groups: A regular expression that is searched in the name, whose first group, or else the whole match, is the
            group of the name; or the path of a JSON file, or a mapping, from names to groups, or from groups to lists
            of names. Names are as in a split, see `pick`; one without folders is that of all images of this name.
        images: The name of each image: its path in the folder of images, without ending.
        without: The images that need no group.

    Raises:
        DataError: The expression or the file can't be read, or a name has no group or two.
    """
    names = set(images.values())
    if isinstance(groups, str) and not groups.endswith(".json"):
        try:
            pattern = re.compile(groups)
        except (re.error, RecursionError, OverflowError) as error:
            raise DataError(f"groups: {shown(groups)} is no regular expression: {error}.") from None
        matches = {name: pattern.search(name) for name in names}
        found = {name: match[min(1, pattern.groups)] if match else None for name, match in matches.items()}
    else:
        given = read_json(Path(groups).expanduser(), f"groups {groups}") if isinstance(groups, str) else groups
        found = _mapped(given, names)
    needed = {name for image, name in images.items() if image not in without}
    if lacking := sorted(name for name in needed if not found.get(name)):
        raise DataError(f"groups: images without a group ({len(lacking)} of {len(needed)}):{examples(lacking)}")
    return {image: group for image, name in images.items() if (group := found.get(name))}


def _mapped(given: object, names: Iterable[str]) -> dict[str, str | None]:
    """The group of each name by a mapping of names to groups, or of groups to names."""
    members: list[tuple[object, object]] = []
    if isinstance(given, Mapping):
        for key, value in given.items():
            members += [(name, key) for name in value] if isinstance(value, list) else [(key, value)]
    if not members or not all(isinstance(each, str | int) for pair in members for each in pair):
        raise DataError(
            "groups must be a regular expression such as `^[^_]+`, or a JSON file that maps names to groups, or groups "
            f"to lists of names, got {shown(given)}."
        )
    find = _finder(names)
    found: dict[str, str | None] = {}
    by: dict[str, tuple[int, str]] = {}
    for name, group in members:
        place, depth = str(name), str(name).count("/")  # an image in a folder may have a group apart
        for match in find(place):
            other_depth, other = by.get(match, (-1, ""))
            if other_depth == depth and found[match] != str(group):
                both = f"{shown(found[match])} (as {shown(other)}) and {shown(str(group))} (as {shown(place)})"
                raise DataError(f"groups: {shown(match)} is in two groups, {both}.")
            if depth > other_depth:
                found[match], by[match] = str(group), (depth, place)
    return found


def draw_groups(owner: str, option: str, groups: Sequence[str], number: int, seed: int) -> tuple[list[int], list[int]]:
    """Split images at random into two ascending lists of numbers; the images of a group stay together.

    Groups in random order are taken as long as they fit into `number` images; if none does, the smallest is taken.

    Args:
        owner: What the option belongs to, for messages.
        option: The name of the option that gives the number, for messages.
        groups: The group of each image.
        number: Images of the second list.
        seed: Seed of the order.

    Raises:
        DataError: There is one group only.
    """
    sizes = Counter(groups)
    if len(sizes) < 2:
        raise DataError(
            f"{owner}: {option}: all {len(groups)} images are of one group, {shown(groups[0])}; nothing can be drawn "
            "from them that shares no group with the others."
        )
    order = [sorted(sizes)[i] for i in np.random.default_rng(seed).permutation(len(sizes))]
    taken, room = set(), number
    for group in order:
        if sizes[group] <= room:
            taken.add(group)
            room -= sizes[group]
    taken = taken or {min(order, key=lambda group: sizes[group])}
    return [i for i, each in enumerate(groups) if each not in taken], [
        i for i, each in enumerate(groups) if each in taken
    ]


def alike_neighbours(parts: Mapping[str, Sequence[str]]) -> str:
    """A warning if names that differ in their last number only, and by their order are neighbours, are in two parts.

    Args:
        parts: The names in each part.

    Returns:
        The warning; empty if there is no such pair.
    """
    sequences: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for part, names in parts.items():
        for name in names:
            match = re.fullmatch(r"(.*[^\W\d_].*?)(\d{1,18})", name)  # a bare number is no sequence
            if match:
                sequences[match[1]].append((int(match[2]), name, part))
    apart = [
        (one, other)
        for members in sequences.values()
        for one, other in zip(sorted(members), sorted(members)[1:], strict=False)
        if one[2] != other[2]
    ]
    if not apart:
        return ""
    (_, name, part), (_, other, elsewhere) = apart[0]
    more = f", and {len(apart) - 1} more such pairs" if len(apart) > 1 else ""
    advice = " such as '^(.*?)\\d+$', or a JSON file of name and group" if len(sequences) > 1 else ""
    return (
        f"`{name}` ({part}) and `{other}` ({elsewhere}) look like neighbours of one sequence{more}. If neighbours are "
        f"alike (frames of a drive, slices of a patient), results are too good: set `groups`{advice}, which keeps the "
        "images of a group together."
    )


def read_json(path: Path, where: str) -> Any:
    """The value in a JSON file, in which no key is given twice.

    Raises:
        DataError: The file can't be read, or is not JSON.
    """
    text = _text(path, where)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}.") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise ValueError(f"the key {shown(name)} is given twice")
    return found


def _text(path: Path, where: str) -> str:
    try:
        if not path.is_file():
            lists = ", or neither train.txt, val.txt nor test.txt in this folder" if path.is_dir() else ""
            raise DataError(f"{where}: no such file{lists}.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{where}: can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is not UTF-8 text (byte {error.start}).") from None


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name of more than 255 bytes
        return False


def _same_end(one: str, other: str) -> bool:
    """Whether one path ends with the other."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


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
    number, seed = amount_of(owner, option, total, amount, seed)
    order = np.random.default_rng(seed).permutation(total)
    rest, part = np.sort(order[number:]).tolist(), np.sort(order[:number]).tolist()
    return rest, part


def amount_of(owner: str, option: str, total: int, amount: object, seed: object) -> tuple[int, int]:
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
