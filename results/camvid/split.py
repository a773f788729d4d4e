"""Lists of CamVid for a search: held-out images of a drive of their own; validation is the test list.

`python -m results.camvid.split SPLIT.json OUT.json`, from the lists of train, val and test.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

HELD_OUT = "0006R0"
"""The drive that is held out. No other list has frames of it."""


def main(arguments: Sequence[str]) -> None:
    """Write the lists."""
    source, out = map(Path, arguments)
    given = json.loads(source.read_text())
    lists = {
        "train": [name for name in given["train"] if not name.startswith(HELD_OUT)],
        "heldout": [name for name in given["train"] if name.startswith(HELD_OUT)],
        "val": given["test"],
    }
    out.write_text(json.dumps(lists, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
