"""A loss of the user's own, named as `module:function`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autosegloss.errors import InputError, LossFileError
from autosegloss.loss import build_loss, load_loss
from autosegloss.proxy.own_loss import OwnLoss, any_loss, own_loss
from autosegloss.report.pages.report import report_page
from autosegloss.search.compare import compare
from autosegloss.search.retrain import retrain
from tests.searches import short

CONFIG = short("Plain")

COUNTS = [30, 20]
LOGITS, LABELS = torch.randn(2, 2, 3, 3), torch.zeros(2, 3, 3).long()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, target, ignore_index=255)


def plain() -> object:
    return cross_entropy


def weighted(counts: list[int], *, ignore_index: int, num_classes: int, gamma: float = 2.0) -> nn.Module:
    assert (counts, num_classes) == (COUNTS, len(COUNTS)) or sum(counts) > 1000
    return nn.CrossEntropyLoss(torch.tensor([1.0 / count for count in counts]), ignore_index=ignore_index)


class Everything(nn.Module):
    def __init__(self, ignore_index: int = 0, **others: object) -> None:
        super().__init__()
        assert set(others) == {"num_classes", "counts"}
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return nn.functional.cross_entropy(logits, target, ignore_index=self.ignore_index)[None]


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))


def raising() -> object:
    raise KeyError("no such thing")


def nothing() -> None: ...


def fails() -> object:
    return lambda logits, target: logits.no_such_method()


def pixels() -> object:
    return lambda logits, target: logits.sum(1)


def number() -> object:
    return lambda logits, target: 0.5


def constant() -> object:
    return lambda logits, target: (logits.argmax(1) != target).float().mean()


def test_it_takes_what_it_needs_by_name_and_is_a_loss_like_another() -> None:
    expected = {
        "plain": nn.CrossEntropyLoss(ignore_index=255),
        "weighted": nn.CrossEntropyLoss(torch.tensor([1 / 30, 1 / 20]), ignore_index=255),
        "Everything": nn.CrossEntropyLoss(ignore_index=255),
    }
    for function, reference in expected.items():
        loss = any_loss(f"{__name__}:{function}", counts=COUNTS, ignore_index=255)
        value = loss(LOGITS.requires_grad_(), LABELS)
        assert value.shape == ()
        torch.testing.assert_close(value, reference(LOGITS, LABELS))
        content = json.loads(json.dumps(loss.content()))
        again = own_loss(content, 255)
        assert again.content() == content
        assert again(LOGITS, LABELS).item() == value.item()
        with pytest.raises(InputError, match="has changed since the comparison began"):
            own_loss(content | {"source": "0"}, 255)


def test_no_file_runs_code(tmp_path: Path) -> None:
    loss = OwnLoss(f"{__name__}:plain", COUNTS, 255)
    for ending in ("json", "py"):
        with pytest.raises(InputError, match="a loss file can't hold"):
            loss.save(tmp_path / f"loss.{ending}")
    (tmp_path / "loss.json").write_text(json.dumps(loss.content()))
    for refused in (lambda: load_loss(tmp_path / "loss.json"), lambda: build_loss(loss.content())):
        with pytest.raises(LossFileError, match="not a loss file"):
            refused()
    with pytest.raises(InputError, match="are taken by compare and retrain only"):
        load_loss(f"{__name__}:plain")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            "cross_entropy",
            "the function must build the loss from what it takes by name of ignore_index, num_classes, counts; it also "
            "requires logits, target. If it is the loss itself, name a function that returns it: "
            "def build(): return cross_entropy.",
        ),
        ("raising", "{file}:{line}: KeyError: 'no such thing'."),
        ("nothing", "the function must return the loss, a callable (logits, target), got NoneType."),
    ],
)
def test_what_builds_no_loss_is_said_at_the_start(function: str, expected: str, tmp_path: Path) -> None:
    name = f"{__name__}:{function}"
    for work in (compare, retrain):
        with pytest.raises(InputError) as caught:
            work(CONFIG, [name], tmp_path / "out", seeds=2)
        file = Path(__file__).relative_to(Path.cwd()) if Path(__file__).is_relative_to(Path.cwd()) else __file__
        line = raising.__code__.co_firstlineno + 1
        assert str(caught.value) == f"loss `{name}`: {expected.format(file=file, line=line)}"
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"has parameters \(`temperature`\)"):
        any_loss(f"{__name__}:Learned", counts=COUNTS)


def test_what_is_no_loss_fails_its_runs_and_no_others(tmp_path: Path) -> None:
    wrong = {
        "fails": "AttributeError: ",
        "pixels": "must return a scalar tensor, got a tensor of shape (2, ",
        "number": "must return a scalar tensor, got float.",
        "constant": "has no gradient",
    }
    names = ["jml", *(f"{__name__}:{function}" for function in ("weighted", *wrong))]
    table = compare(CONFIG, names, tmp_path / "out", seeds=2, runner="serial")
    assert [len(row.errors) for row in table.rows] == [0, 0, 2, 2, 2, 2]
    for row, part in zip(table.rows[2:], wrong.values(), strict=True):
        assert part in row.errors[0]
        assert row.loss in row.errors[0]
    assert "test_own_loss.py:" in table.rows[2].errors[0]
    plan = tmp_path / "out" / "plan.json"
    assert json.loads(plan.read_text())["modules"] == str(Path.cwd())
    plan.write_text(plan.read_text().replace(str(Path.cwd()), "/moved"))
    assert compare(CONFIG, names, tmp_path / "out", seeds=2, runner="serial", resume=True).rows == table.rows
    assert f"{__name__}:weighted" in report_page(tmp_path / "out", images=False)
