"""Networks of users that can't be trained: refused before any training, with the place in the user's file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from autosegloss.errors import DataError, InputError
from autosegloss.proxy.data import load_dataset
from autosegloss.proxy.networks import build_network
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import as_config

MODULE = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, channels, classes, how):
        super().__init__()
        self.how = how
        self.layer = nn.Conv2d(channels, classes + (how == "channels"), 1)

    def forward(self, images):
        logits = self.layer(images)
        if self.how == "raises" or self.how == "late" and self.training:
            raise KeyError("no such layer")
        if self.how == "exits":
            raise SystemExit(0)
        return {"list": [logits], "shape": logits[..., ::2, ::2]}.get(self.how, logits)

class Odd(BaseException): ...  # which has no signature

def network(channels, classes, how):
    if how == "quits":
        raise SystemExit
    if how == "unbuilt":
        raise TypeError("no such option")
    if how == "nothing":
        return nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 32, 32)))
    return Network(channels, classes, how)
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (
            "raises",
            r"fails on images of shape \(1, 3, \d+, \d+\): \S*users_network\.py:14: KeyError: 'no such layer'\.",
        ),
        ("exits", r"fails on images of shape .*: \S*users_network\.py:16: SystemExit: 0\."),
        ("quits", r"can't be built with how='quits': \S*users_network\.py:23: SystemExit\."),
        ("list", r"must return logits of shape \(1, \d+, \d+, \d+\), one channel per class, got list\."),
        ("shape", r"must return logits of shape .*, got a tensor of shape "),
        ("channels", r"must return logits of shape .*, got a tensor of shape "),
        ("nothing", r"has no parameters to train\."),
        ("unbuilt", r"can't be built with how='unbuilt': \S*users_network\.py:25: TypeError: no such option\."),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(
    how: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=f"^network `users_network:network` {expected}"):
        proxy_of(_config(how, tmp_path, monkeypatch))


def test_a_class_of_exceptions_is_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _config("", tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"^network `users_network:Odd` must be a torch\.nn\.Module, got Odd\."):
        build_network("users_network:Odd", 3, 2)
    with pytest.raises(DataError, match=r"^data set `users_network:Odd`: the function must return a mapping"):
        load_dataset("users_network:Odd")


def test_a_network_that_fails_in_pretraining_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = proxy_of(_config("late", tmp_path, monkeypatch))
    with pytest.raises(InputError, match=r"^the pretraining of network .* failed: \S*users_network\.py:14: KeyError"):
        proxy.prepare()


@pytest.mark.parametrize("line", ["1 / 0", "raise SystemExit(3)", "import no_such_package", "def"])
def test_a_module_that_raises_on_import_is_named(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"users_{abs(hash(line))}"
    (tmp_path / f"{name}.py").write_text(f"\n{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = as_config({"metric": "miou", "proxy": {"network": {"name": f"{name}:network"}}})
    with pytest.raises(InputError, match=re.escape(f"{name}.py:2: ")):
        proxy_of(config)


def _config(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    (folder / "users_network.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "users_network", raising=False)
    network = {"name": "users_network:network", "how": how}
    return as_config({"metric": "miou", "proxy": {"network": network, "start": {"regime": "checkpoint"}}})
