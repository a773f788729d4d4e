"""The cache of decoded images: read where it is, made anew where it is not, never torn, shared by all processes."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autosegloss.errors import DataError
from autosegloss.proxy.data import Dataset, Split, load_dataset
from tests import layouts

Read = Callable[..., Dataset]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts.folder(tmp_path / "mine")


@pytest.fixture
def read(tmp_path: Path, root: Path) -> Read:
    def load(**options: Any) -> Dataset:
        given = {"classes": 3, "ignore_index": 9, "cache": str(tmp_path / "cache"), **options}
        return load_dataset("folder", root=str(root), **given)

    return load


def made(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def overwrite(path: Path, keep_time: bool) -> None:
    """Damage a file without changing its size."""
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if keep_time else 1)))


def test_a_second_load_reads_the_cache(read, root, tmp_path):
    first = read()
    digests = [layouts.digest(split) for split in (first.train, first.heldout, first.validation)]
    folders = made(tmp_path / "cache")
    for path in root.rglob("*.*"):
        overwrite(path, keep_time=True)  # reading them again would fail
    again = read(size=[32, 32])
    assert [layouts.digest(split) for split in (again.train, again.heldout, again.validation)] == digests
    assert made(tmp_path / "cache") == folders
    assert len(folders) == 3


def test_a_changed_file_or_setting_makes_it_anew(read, root, tmp_path):
    first = layouts.digest(read().train)
    folders = set(made(tmp_path / "cache"))
    for path in (root / "images").rglob("*.jpg"):
        layouts.write(path, np.zeros((32, 32, 3), np.uint8))
    dataset = read()
    assert not dataset.train.images.any()
    assert layouts.digest(dataset.train) != first
    assert set(made(tmp_path / "cache")) > folders
    assert read(size=16).train.images.shape[2:] == (16, 16)
    path = next((root / "masks").rglob("*.png"))
    overwrite(path, keep_time=False)
    with pytest.raises(DataError, match=f"{path}: not a PNG"):
        read(validation=1, heldout=1, seed=1)


def test_the_validation_set_is_read_when_it_is_asked_for(read, tmp_path):
    other = layouts.folder(tmp_path / "other", images=3)
    damaged = next((other / "masks").rglob("*.png"))
    damaged.write_bytes(b"nothing")
    dataset = pickle.loads(pickle.dumps(read(validation=str(other))))
    assert len(made(tmp_path / "cache")) == 2
    with pytest.raises(DataError, match=f"{damaged}: not a PNG"):
        assert dataset.validation


def test_what_a_process_left_behind_is_no_cache(read, tmp_path):
    expected = layouts.digest(read().train)
    cache = tmp_path / "cache"
    for folder in made(cache):
        (cache / folder).rename(cache / f"{folder}.tmp")
        (cache / f"{folder}.tmp" / "images.npy").write_bytes(b"torn")
    assert layouts.digest(read().train) == expected
    assert len([name for name in made(cache) if not name.endswith(".tmp")]) == 2


PROCESS = """
import os, sys
from autosegloss.proxy.data import files, load_dataset
from tests import layouts

read, seen = files.read_labels, []

def read_or_die(path):
    seen.append(path)
    if len(seen) == 3 and sys.argv[3] == "die":
        os.kill(os.getpid(), 9)
    return read(path)

files.read_labels = read_or_die
print("ready", flush=True)
sys.stdin.readline()
dataset = load_dataset("folder", root=sys.argv[1], cache=sys.argv[2], classes=3, ignore_index=9)
print(layouts.digest(dataset.train), layouts.digest(dataset.validation), flush=True)
"""


@pytest.mark.slow
def test_processes_that_want_it_at_once_make_it_once_even_after_one_was_killed(tmp_path, root, read):
    cache = tmp_path / "cache"
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])}

    def command(fate: str) -> list[str]:
        return [sys.executable, "-c", PROCESS, str(root), str(cache), fate]

    killed = subprocess.run(command("die"), input="\n", text=True, env=here, stdout=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL
    assert [name[-4:] for name in made(cache)] == [".tmp"], "it had begun"
    with subprocess.Popen(command("live"), text=True, env=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        here_too = read()
        digests = f"{layouts.digest(here_too.train)} {layouts.digest(here_too.validation)}\n"
        assert other.stdout.readline() == digests
    names = made(cache)
    assert len(names) == 3
    assert not any(name.endswith(".tmp") for name in names)


def test_a_split_is_pickled_as_the_paths_of_its_files(read):
    split = read().train
    pickled = pickle.dumps(split)
    assert len(pickled) < 1000 < split.images.nbytes
    assert layouts.seen_by(pickle.loads(pickled)) == (layouts.digest(split), True)
    # A part of a mapped array, or a changed copy, is no file.
    part = Split(split.images[2:], split.labels[2:], soft=np.zeros((4, 3, 32, 32), np.float16))
    assert layouts.digest(pickle.loads(pickle.dumps(part))) == layouts.digest(part)


def test_what_is_written_to_an_array_stays_in_the_process(read):
    split = read().train
    before = layouts.digest(split)
    split.images[:] = 0
    assert layouts.digest(read().train) == before != layouts.digest(split)


def test_a_cache_that_is_gone_is_named(read, tmp_path):
    pickled = pickle.dumps(read().train)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match=r"images\.npy: can't be read: No such file.*the same cache folder"):
        pickle.loads(pickled)


def test_a_cache_that_cannot_be_written_is_refused(read, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"the cache .*file/below can't be written: Not a directory. Choose another"):
        read(cache=str(tmp_path / "file" / "below"))


def test_the_cache_is_in_the_users_cache_folder(read, root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    read(cache=None)
    assert len(made(tmp_path / "xdg" / "autosegloss")) == 2


@pytest.mark.slow
def test_a_ray_worker_maps_the_same_bytes(read, ray_address):
    import ray

    split = read().train
    assert ray.get(ray.remote(layouts.seen_by).remote(ray.put(split))) == (layouts.digest(split), True)
