"""Whatever a configuration or a command line holds: one short message, soon, and no traceback."""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.cli import main
from autosegloss.errors import MESSAGE, ConfigError, RefusedError, SearchError
from autosegloss.search.objective import proxy_of
from autosegloss.search.runners import choose_runner
from autosegloss.search.runners.base import limited
from autosegloss.search.settings import as_config, load_config
from tests.examples import examples

CONFIGS = sorted((Path(__file__).parent.parent / "search_configs").glob("*.yaml"))
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
HOSTILE = {
    "bytes": bytes(range(256)) * 10,
    "huge": b"metric: miou\nx: " + b"y" * 50_000_000,
    "many keys": b"".join(b"k%d: 1\n" % i for i in range(100_000)),
    "keys": b"metric: miou\n" + b"".join(b"k%d: 1\n" % i for i in range(3_000)),
    "twice": b"metric: miou\n" * 2_000,
    "brackets": b"metric: " + b"[" * 30_000,
    "deep": b"metric: miou\nproxy: {data: {x: " + b"[" * 60 + b"]" * 60 + b"}}",
    "laughs": LAUGHS.encode(),
    "digits": b"metric: miou\nsearch: {steps: " + b"9" * 400 + b"}",
    "more digits": b"metric: miou\nsearch: {steps: " + b"9" * 10_000 + b"}",
    "hex": b"metric: miou\nsearch: {steps: 0x" + b"f" * 10_000 + b"}",
    "long metric": b"metric: " + b"m" * 30_000,
    "long key": b"metric: miou\n? " + b"k" * 30_000 + b"\n: 1",
    "long list": b"metric: miou\nsearch: {steps: [" + b"1, " * 9_000 + b"]}",
    "list of names": b"metric: miou\nguard: {" + b"".join(b"n%d: 1, " % i for i in range(2_000)) + b"}",
    "nothing": b"",
    "null": b"\0",
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert len(error) <= MESSAGE + len("ConfigError: \n")
    return error


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_configuration_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value)) <= MESSAGE
    assert path.name in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in {
        str(tmp_path / "pipe"): "must be a file, not a pipe or a device",
        str(tmp_path): "Is a directory",
        "/dev/null/x": "Not a directory",
        "n" * 300: "File name too long",
        "a\0b": "null byte",
    }.items():
        assert why in refused(["search", name], capsys)


def test_names_of_any_length_and_pipes_in_place_of_losses_folders_and_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    long, deep = "n" * 300, "/".join(["d" * 200] * 30)
    for name in ("pipe", long, deep):
        for command in (["show"], ["export", "--out", "x.json"], ["report"], ["status"]):
            refused([*command, name], capsys)
        refused(["evaluate", "--pred", name, "--target", name, "--num-classes", "2", "--metric", "miou"], capsys)
    refused(
        ["evaluate", "--pred", ".", "--target", ".", "--num-classes", "2", "--metric", "miou", "--json", long], capsys
    )
    refused(["bench", "loss", "--size", "1000000x21x1000x1000"], capsys)


def test_a_disk_that_fails_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    (tmp_path / "c.yaml").write_text("metric: miou")
    assert main(["search", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out"), "--runner", "serial"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "OSError: Input/output error."


def test_long_overrides_are_refused_in_a_short_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("metric: miou")
    for override in ("x" * 100_000, "x=" + "y" * 60_000, ".".join("a" * 5000) + "=1", "search.steps=" + "9" * 5000):
        refused(["search", str(tmp_path / "c.yaml"), "--set", override], capsys)


def test_counts_have_upper_bounds() -> None:
    with pytest.raises(ConfigError, match=r"relaxation\.pieces: must be at most 64, got `65`"):
        as_config({"metric": "miou", "relaxation": {"pieces": 65}})
    for section in ({"search": {"samples": 10**6}}, {"resources": {"workers": 10**6}}, {"compare": {"seeds": 10**6}}):
        with pytest.raises(ConfigError, match="must be at most"):
            as_config({"metric": "miou", **section})


def test_the_time_limit_is_for_what_is_done_once_too_and_never_for_serial_runs() -> None:
    exceeded = r"the pretraining exceeded resources\.time_limit, 0\.05 s"
    with pytest.raises(SearchError, match=exceeded), limited(0.05, "the pretraining"):
        time.sleep(60)
    with limited(60, "x"), limited(None, "x"):
        pass
    hanging = {"network": {"name": "tests.networks:Hanging"}}
    with pytest.raises(SearchError, match=r"the network, on a single image, exceeded resources\.time_limit, 0\.05 s"):
        proxy_of(as_config({"metric": "miou", "proxy": hanging, "resources": {"time_limit": 0.05}}))
    with pytest.raises(RefusedError, match=r"resources\.time_limit is 5 s, but with the runner serial"):
        choose_runner("serial", as_config({"metric": "miou", "resources": {"time_limit": 5}}).resources)


WORDS = ["search", "compare", "retrain", "status", "report", "export", "show", "metrics", "evaluate", "bench", "schema"]
WORDS += ["--set", "--out", "--loss", "--metric", "--pred", "--target", "--num-classes", "--json", "--worst", "loss"]
WORDS += ["--seeds", "--workers", "--runner", "ray", "x=1", "metric=", "miou", "-1", "\0", "é" * 300, "no/such", "-"]


@examples(60)
@given(words=st.lists(st.sampled_from(WORDS) | st.text(max_size=12), max_size=6))
def test_a_wrong_command_line_is_one_message(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.getbasetemp())
        assert main(words) in (0, 2)


@st.composite
def mutated(draw: Any) -> str:
    """A configuration of ours with a few characters or lines changed."""
    text = draw(st.sampled_from(CONFIGS)).read_text(encoding="utf-8")
    rng = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(rng.randint(1, 4)):
        i, j = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        piece = rng.choice([rng.choice("{}[]:,-&*!|>'\"%@`#?0~ \n\t"), text[i : min(j, i + 40)], "9" * 40, "null"])
        text = text[:i] + piece + text[rng.choice([i, i + 1, min(j, i + 30)]) :]
    return text


@examples(60)
@given(text=mutated() | st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_short_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    found = ""
    try:
        load_config(path)
    except ConfigError as error:
        found = str(error)
    assert len(found) <= MESSAGE
