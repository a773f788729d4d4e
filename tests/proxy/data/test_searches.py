"""Each reader in a search, from a configuration to a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autosegloss import search
from autosegloss.errors import DataError
from autosegloss.proxy.trial import Proxy
from autosegloss.search.api import as_config
from tests import layouts
from tests.proxy.data.test_readers import MAKE, OPTIONS, needs_nilearn


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
def test_a_search_on_each_layout(tmp_path, name):
    root = MAKE[name](tmp_path / "data")
    data = {"name": name, "root": str(root), "cache": str(tmp_path / "cache"), "size": 32, **OPTIONS[name]}
    check_search(data, tmp_path / "out")


def test_a_search_on_data_of_ones_own(tmp_path):
    check_search({"name": "tests.layouts:squares", "form": "floats"}, tmp_path / "out")


@needs_nilearn
def test_a_search_on_slices_of_a_brain(tmp_path):
    check_search({"name": "mni152"}, tmp_path / "out")


def test_a_search_on_ray_with_all_augmentation_finds_what_one_in_a_process_does(tmp_path, ray_address):
    data = {"name": "folder", "root": str(layouts.folder(tmp_path / "mine")), "cache": str(tmp_path / "cache")}
    settings = config({**data, **OPTIONS["folder"]})
    settings["proxy"]["train"]["augment"] = "full"
    settings["resources"] = {"workers": 2}
    for runner in ("serial", "ray"):
        search(settings, runner=runner, out=tmp_path / runner)  # type: ignore[arg-type]
    assert (tmp_path / "ray" / "loss.json").read_bytes() == (tmp_path / "serial" / "loss.json").read_bytes()


def test_rewards_do_without_the_validation_set(tmp_path):
    other = layouts.folder(tmp_path / "other")
    for path in (other / "images").rglob("*.jpg"):
        path.write_bytes(b"nothing")
    root, cache = layouts.folder(tmp_path / "mine"), tmp_path / "cache"
    data = {"name": "folder", "root": str(root), "validation": str(other), "cache": str(cache), **OPTIONS["folder"]}
    proxy = Proxy.load(as_config(config(data))).prepare()
    assert 0 <= proxy(None, seed=0).reward <= 1
    with pytest.raises(DataError, match=r"files that can't be used \(10\)"):
        proxy(None, seed=0, validate=True)
