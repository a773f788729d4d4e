"""Lists of CamVid for a search: the last quarter of each drive is held out; validation is the test list.

Single frames would neighbour those that are trained on, and there are only three drives, of which a whole one that is
held out may be unlike the test list.

`python -m results.camvid.split SPLIT.json OUT.json`, from the lists of train, val and test.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

HELD_OUT = 4
"""One frame of so many is held out, at the end of each drive."""


def lists_of(train: Sequence[str], test: Sequence[str]) -> dict[str, list[str]]:
    """The lists of a search from the train and the test list; names are a drive, an underscore and a frame."""
    drives = [list(frames) for _, frames in groupby(sorted(train), key=lambda name: name.partition("_")[0])]
    ends = [len(frames) - len(frames) // HELD_OUT for frames in drives]
    return {
        "train": [name for frames, end in zip(drives, ends, strict=True) for name in frames[:end]],
        "heldout": [name for frames, end in zip(drives, ends, strict=True) for name in frames[end:]],
        "val": list(test),
    }


def main(arguments: Sequence[str]) -> None:
    """Write the lists."""
    source, out = map(Path, arguments)
    given = json.loads(source.read_text())
    out.write_text(json.dumps(lists_of(given["train"], given["test"]), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
