"""The cache of decoded images: read where it is, made anew where it is not, never torn, shared by all processes."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autosegloss.errors import DataError
from autosegloss.files import locked
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


def test_all_parts_are_checked_before_anything_is_done(read, tmp_path):
    other = layouts.folder(tmp_path / "other", images=3)
    damaged = next((other / "masks").rglob("*.png"))
    damaged.write_bytes(b"nothing")
    with pytest.raises(DataError, match=f"{damaged}: not a PNG"):
        read(validation=str(other))
    damaged.unlink()
    (other / "images" / damaged.relative_to(other / "masks").with_suffix(".jpg")).unlink()
    assert len(pickle.dumps(read(validation=str(other)))) < 20_000, "the arrays are files"


def test_what_a_process_left_behind_is_swept(read, tmp_path):
    expected = layouts.digest(read().train)
    cache = tmp_path / "cache"
    for folder in made(cache)[1:]:
        (cache / folder).rename(cache / f"{folder}.0123.tmp")
        (cache / f"{folder}.0123.tmp" / "images.npy").write_bytes(b"torn")
        (cache / f"{folder}.lock").touch()
    other = cache / f"folder-{'0' * 24}"
    other.with_suffix(".45.tmp").mkdir()
    other.with_suffix(".lock").touch()
    (cache / "mine.lock").touch()
    assert layouts.digest(read().train) == expected
    assert {path.suffix for path in cache.iterdir()} == {"", ".lock"}
    assert [path.name for path in cache.glob("*.lock")] == ["mine.lock"]
    with locked(other.with_suffix(".lock")) as alone:  # by a process that is at work
        other.with_suffix(".45.tmp").mkdir()
        assert alone
        read()
        assert other.with_suffix(".45.tmp").exists()


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "contents.json"])
def test_a_damaged_cache_is_made_anew(read, tmp_path, name):
    expected = layouts.digest(read().train)
    rng = np.random.default_rng(0)
    for damage in ("cut", "empty", "gone", "a folder", *["bits"] * 12, *["header"] * 12):
        for folder in made(tmp_path / "cache"):
            path = tmp_path / "cache" / folder / name
            data = bytearray(path.read_bytes())
            if damage == "gone":
                path.unlink()
            elif damage == "a folder":
                path.unlink()
                path.mkdir()
            else:
                data = data[: {"cut": len(data) - 1, "empty": 0}.get(damage, len(data))]
                if damage in ("bits", "header"):
                    data[rng.integers(len(data) if damage == "bits" else min(len(data), 128))] ^= 1 << rng.integers(8)
                path.write_bytes(data)
        dataset = read()
        assert layouts.digest(dataset.train) == expected, damage
        assert (len(dataset.values), len(made(tmp_path / "cache"))) == (4, 3)


def test_a_damaged_cache_is_named_where_it_cannot_be_made_anew(read, tmp_path):
    pickled = pickle.dumps(read().train)
    for path in (tmp_path / "cache").rglob("images.npy"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"images\.npy: damaged: .* Run the command again"):
        pickle.loads(pickled)


@pytest.mark.parametrize("limit", [0, 100, 3000, 30_000])
def test_a_full_disk_is_said_and_leaves_nothing(read, tmp_path, limit):
    """The closest to one: the system refuses to let a file grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(
            DataError, match=r"the cache .*/cache can't be written: File too large\. .* images take .* MiB"
        ):
            read(size=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert made(tmp_path / "cache") == []
    assert read(size=100).train.images.shape[2:] == (100, 100)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.EBADF])
def test_a_file_system_without_locks_is_used_without_them(read, tmp_path, monkeypatch, number):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    first = read()
    assert layouts.digest(read().train) == layouts.digest(first.train)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_two_writers_without_locks_do_not_tear_a_cache(read, tmp_path, monkeypatch):
    expected = layouts.digest(read().train)
    shutil.rmtree(tmp_path / "cache")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def rename(path: Path, to: Path) -> Path:
        try:
            return Path(os.rename(path, to) or to)
        finally:
            time.sleep(0.02)  # for the others to see what is there in between

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr(Path, "rename", rename)
    with ThreadPoolExecutor(4) as threads:
        assert {layouts.digest(each.train) for each in threads.map(lambda _: read(), range(8))} == {expected}
    assert not [name for name in made(tmp_path / "cache") if name.endswith(".tmp")]


PROCESS = """
import os, sys
from autosegloss.proxy.data import cache, load_dataset
from tests import layouts

read, seen = cache.read_labels, []

def read_or_die(path, *how):
    seen.append(path)
    if len(seen) == 3 and sys.argv[3] == "die":
        os.kill(os.getpid(), 9)
    return read(path, *how)

cache.read_labels = read_or_die
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
    with pytest.raises(DataError, match=r"the cache .*file/below can't be written: Not a directory\. .*Choose another"):
        read(cache=str(tmp_path / "file" / "below"))


def test_a_finished_cache_on_a_read_only_disk_is_used(read, tmp_path, monkeypatch):
    """The closest for a user who may write everywhere: no file can be locked."""
    expected = layouts.digest(read().train)

    def locked_(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("autosegloss.proxy.data.cache.locked", locked_)
    (tmp_path / "cache" / f"folder-{'0' * 24}.lock").touch()  # can't be swept
    assert layouts.digest(read().train) == expected
    with pytest.raises(DataError, match=r"the cache .* can't be written: Read-only file system\."):
        read(size=8)


def test_the_cache_is_in_the_users_cache_folder(read, root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    read(cache=None)
    assert len(made(tmp_path / "xdg" / "autosegloss")) == 3


@pytest.mark.slow
def test_a_ray_worker_maps_the_same_bytes(read, ray_address):
    import ray

    split = read().train
    assert ray.get(ray.remote(layouts.seen_by).remote(ray.put(split))) == (layouts.digest(split), True)
