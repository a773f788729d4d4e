"""Each reader in a search, from a configuration to a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autosegloss import load_loss, search
from autosegloss.cli import main
from autosegloss.proxy.data import nuclei
from tests import layouts
from tests.proxy.data.test_readers import MAKE, OPTIONS, needs_nilearn
from tests.proxy.test_data import needs_samples


def config(data: dict[str, Any]) -> dict[str, Any]:
    """The smallest search on a data set."""
    return {
        "metric": "miou",
        "proxy": {"data": data, "start": {"iterations": 1}, "train": {"iterations": 2, "batch_size": 2}},
        "search": {"steps": 1, "samples": 2},
        "finalists": {"candidates": 1, "seeds": 2},
    }


def check_search(data: dict[str, Any], out: Path) -> None:
    result = search(config(data), runner="serial", out=out)
    assert (out / "loss.json").is_file()
    assert 0 <= result.scores["found"]["target"].mean <= 1


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.slow
def test_a_search_on_each_layout(tmp_path, name):
    root = MAKE[name](tmp_path / "data")
    data = {"name": name, "root": str(root), "cache": str(tmp_path / "cache"), "size": 32, **OPTIONS[name]}
    check_search(data, tmp_path / "out")


def test_a_search_on_data_of_ones_own(tmp_path):
    check_search({"name": "tests.layouts:squares", "form": "floats"}, tmp_path / "out")


@needs_nilearn
@pytest.mark.slow
def test_a_search_on_slices_of_a_brain(tmp_path):
    check_search({"name": "mni152"}, tmp_path / "out")


MINE = """\
metric: miou
proxy:
  data:
    name: folder
    root: my_data
    classes: [background, interior, border]
search: {steps: 6, samples: 12}
finalists: {candidates: 3, seeds: 5}
"""


@needs_samples
@pytest.mark.slow
def test_a_folder_of_ones_own_goes_from_nothing_to_a_loss(tmp_path, monkeypatch):
    image, numbered = nuclei._read("img2d.tif"), nuclei._read("mask2d.tif")
    for kind, whole in (("images", image.astype(np.uint8)), ("masks", nuclei._classes(numbered))):
        for row, column in np.ndindex(4, 4):
            tile = whole[64 * row : 64 * row + 64, 64 * column : 64 * column + 64]
            layouts.write(tmp_path / "my_data" / kind / f"{row}{column}.png", tile)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine.yaml").write_text(MINE)
    short = ("proxy.start.iterations=2", "proxy.train.iterations=3", "search.steps=1", "search.samples=2")
    changes = [part for change in (*short, "finalists.seeds=2") for part in ("--set", change)]
    assert main(["search", "mine.yaml", "--runner", "serial", *changes]) == 0
    loss = load_loss(tmp_path / "results/mine/loss.json", ignore_index=255)
    assert torch.isfinite(loss(torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8, dtype=torch.int64)))
