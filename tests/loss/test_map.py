"""The map of losses in the documentation: what it calls equal is equal, and what it calls a limit is one.

Each row of its table is built as written there and compared, in value and gradient, with the formula of its source in
plain torch, which shares no code with the package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autosegloss.loss import Loss, MixedLoss, SurrogateLoss, load_loss
from autosegloss.loss.classic import CrossEntropy
from autosegloss.loss.kernels.histograms import BINS
from autosegloss.loss.known import KNOWN, known_as
from autosegloss.metric import metric
from tests.searches import ROOT

COUNTS = [50, 20, 5, 10]
PAGE = (ROOT / ".docs/pages/losses.md").read_text(encoding="utf-8")
SUMS = {"I": "total(pred & target)", "U": "total(pred | target)", "T": "total(target)"}


class Row(NamedTuple):
    """A row of the table."""

    called: str
    metric: str
    logic: str
    curve: str
    written: str
    here: str

    def build(self, **limit: float) -> Loss:
        """The loss as it is written: a text, or Python."""
        text = self.written.strip("`")
        if not re.match(r"(Surrogate|Mixed)Loss\(", text):
            return load_loss(text, counts=COUNTS if text.endswith("weighted_cross_entropy") else None)
        names = {"SurrogateLoss": SurrogateLoss, "MixedLoss": MixedLoss, "CrossEntropy": CrossEntropy, "log": math.log}
        built: Loss = eval(text, names | limit)  # our own page
        return built


def rows() -> dict[str, Row]:
    """The rows by what the loss is called, without its source."""
    table = PAGE.partition("## A map of losses")[2]
    lines = [re.split(r" \| ", line.strip("| ")) for line in table.splitlines() if line.startswith("| ")]
    found = [Row(*cells) for cells in lines[1:]]
    return {row.called.partition(" (")[0]: row for row in found}


ROWS = rows()
EQUAL = {name: row for name, row in ROWS.items() if row.here.startswith("equal")}
LIMITS = {name: row for name, row in ROWS.items() if row.here.startswith("limit")}


# Formulas, of probabilities p and one-hot labels t (N, C, H, W), both 0 where a pixel is ignored ----------------------


class Batch(NamedTuple):
    p: Tensor
    t: Tensor
    valid: Tensor
    """(N, 1, H, W)"""
    raw: Tensor
    """The probabilities, ignored pixels included."""


Formula = Callable[[Batch], Tensor]
PIXELS, ALL = (2, 3), (0, 2, 3)


def over_classes(values: Tensor, of: Tensor) -> Tensor:
    return values[of > 0].mean()


def pixelwise(value: Callable[[Tensor], Tensor], weight: Callable[[Batch], Tensor] | None = None) -> Formula:
    """The weighted mean over the pixels of a function of the label's probability."""

    def formula(x: Batch) -> Tensor:
        of_label = (x.raw * x.t).sum(1)[x.valid[:, 0]]
        weights = torch.ones_like(of_label) if weight is None else weight(x)[x.valid[:, 0]]
        return (weights * value(of_label)).sum() / weights.sum()

    return formula


def power_of(pixels: Tensor, power: float) -> Tensor:
    return pixels.clamp(min=1).double() ** power


def powers(power: float) -> Callable[[Batch], Tensor]:
    """The weight of each pixel: a power of the pixels of its class in the batch."""
    return lambda x: (x.t * power_of(x.t.sum(ALL), power).view(-1, 1, 1)).sum(1)


def by_counts(x: Batch) -> Tensor:
    """The weight of each pixel: the inverse root of the pixels of its class in the data, in float32."""
    weights = power_of(torch.tensor(COUNTS), -0.5)
    return (x.t * (weights / weights.mean()).float().view(-1, 1, 1)).sum(1)


def near_boundary(x: Batch, radius: int) -> Tensor:
    """Whether a pixel of another class is near, (N, H, W)."""
    near = functional.max_pool2d(x.t, 2 * radius + 1, 1, radius)
    return ((near * (1 - x.t)).sum(1) > 0) & x.valid[:, 0]


def cross_entropy(x: Batch) -> Tensor:
    return pixelwise(lambda p: -p.log())(x)


def smoothed(x: Batch) -> Tensor:
    shares = 0.9 * x.t + 0.1 / x.t.shape[1]
    return -(shares * x.raw.log() * x.valid).sum() / x.valid.sum()


def index(alpha: float, beta: float) -> Formula:
    """1 - the mean Tversky index of the classes present, with sums of products."""

    def formula(x: Batch) -> Tensor:
        hits, extra, missed = (y.sum(ALL) for y in (x.p * x.t, x.p * (1 - x.t), (1 - x.p) * x.t))
        return 1 - over_classes(hits / (hits + alpha * extra + beta * missed), x.t.sum(ALL))

    return formula


def by_norms(alpha: float, beta: float) -> Formula:
    """The same with the norms of the JDT losses."""

    def formula(x: Batch) -> Tensor:
        both = (x.p.abs() + x.t.abs() - (x.p - x.t).abs()).sum(ALL) / 2
        rest = alpha * (x.p.sum(ALL) - both) + beta * (x.t.sum(ALL) - both)
        return 1 - over_classes(both / (both + rest), x.t.sum(ALL))

    return formula


def v_net(x: Batch) -> Tensor:
    return 1 - over_classes(2 * (x.p * x.t).sum(ALL) / ((x.p**2).sum(ALL) + (x.t**2).sum(ALL)), x.t.sum(ALL))


def monai(x: Batch) -> Tensor:
    """The mean over images and classes, whether there or not; its small constants are left out."""
    return 1 - (2 * (x.p * x.t).sum(PIXELS) / (x.p.sum(PIXELS) + x.t.sum(PIXELS))).mean()


def generalised_dice(x: Batch) -> Tensor:
    size = x.t.sum(ALL)
    weight = torch.where(size > 0, 1 / size.clamp(min=1) ** 2, 0.0)
    return 1 - 2 * (weight * (x.p * x.t).sum(ALL)).sum() / (weight * (x.p + x.t).sum(ALL)).sum()


def nnu_net(x: Batch) -> Tensor:
    """Of Dice, the mean over all classes but the background, whether there or not."""
    dice = 2 * (x.p * x.t).sum(ALL) / (x.p.sum(ALL) + x.t.sum(ALL))
    return 1 - dice[1:].mean() + cross_entropy(x)


def lovasz(x: Batch) -> Tensor:
    """Lovász-Softmax by sorting, Berman et al., algorithm 1."""
    values = []
    for c in range(x.t.shape[1]):
        mine = x.t[:, c][x.valid[:, 0]]
        if not mine.any():
            continue
        errors, order = (mine - x.raw[:, c][x.valid[:, 0]]).abs().sort(descending=True)
        assert (
            errors.detach().mul(BINS[len(x.p) == 1]).long().unique().numel() == errors.numel()
        )  # each has a bin to itself
        left, either = mine.sum() - mine[order].cumsum(0), mine.sum() + (1 - mine[order]).cumsum(0)
        jaccard = 1 - left / either
        values.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    return torch.stack(values).mean()


def each_image(formula: Formula) -> Formula:
    def mean(x: Batch) -> Tensor:
        return torch.stack([formula(Batch(*(y[n : n + 1] for y in x))) for n in range(len(x.p))]).mean()

    return mean


def plus(*terms: tuple[float, Formula]) -> Formula:
    return lambda x: torch.stack([weight * formula(x) for weight, formula in terms]).sum()


def log_iou(x: Batch, e: float = 0.1) -> Tensor:
    """1 - mean IoU under a logarithm on the AND, over the classes in either map: all, as no probability is 0."""
    both = torch.log1p(x.p / e) / math.log1p(1 / e) * x.t
    return 1 - (both.sum(ALL) / (x.p + x.t - x.p * x.t).sum(ALL)).mean()


def bezier(x: Tensor, points: Any) -> Tensor:
    """A piecewise quadratic curve: its parameter by bisection, and a step of Newton for the slope."""
    knots = torch.tensor([[0.0, 0.0], *points, [1.0, 1.0]], dtype=torch.float64)
    y = torch.zeros_like(x)
    for a, b, c in zip(knots[:-2:2], knots[1:-1:2], knots[2::2], strict=True):

        def at(s: Tensor, i: int, a: Tensor = a, b: Tensor = b, c: Tensor = c) -> Tensor:
            return (1 - s) ** 2 * a[i] + 2 * s * (1 - s) * b[i] + s**2 * c[i]

        low, high = torch.zeros_like(x), torch.ones_like(x)
        for _ in range(50):
            middle = (low + high) / 2
            short = at(middle, 0) < x
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        high = high.detach()
        slope = 2 * (1 - high) * (b[0] - a[0]) + 2 * high * (c[0] - b[0])
        s = high + (x - at(high, 0)) / slope
        y = torch.where((x > a[0]) & (x <= c[0]), at(s, 1), y)
    return y


def auto_seg_loss(x: Batch) -> Tensor:
    g_and, g_or = (lambda p, points=points: bezier(p, points) for points in _published("asl/voc/miou"))
    either = g_or(x.raw) + x.t - g_or(x.raw) * x.t
    return 1 - ((g_and(x.raw) * x.t).sum(ALL) / (either * x.valid).sum(ALL)).mean()


def _published(name: str) -> list[Any]:
    loss = load_loss(name)
    assert isinstance(loss, SurrogateLoss)
    return loss.control_points


def eroded(x: Tensor, outside: float) -> Tensor:
    return -functional.max_pool2d(-functional.pad(x, (1, 1, 1, 1), value=outside), 3, 1)


def edges(x: Tensor, outside: float = 1.0) -> Tensor:
    """The relaxed XOR of a map and its erosion."""
    inner = eroded(x, outside)
    return x + inner - 2 * x * inner


def dilated(x: Tensor, radius: int) -> Tensor:
    return functional.max_pool2d(x, 2 * radius + 1, 1, radius)


def trimap_iou(x: Batch) -> Tensor:
    near = dilated(edges(x.t)[:, 1:].amax(1, keepdim=True), 5)
    both, either = (x.p * x.t * near).sum(ALL), ((x.p + x.t - x.p * x.t) * near).sum(ALL)
    return 1 - over_classes(both / either, either)


def boundary_f1(x: Batch) -> Tensor:
    counted = edges(x.t).sum(ALL) > 0
    counted[0] = False  # the background
    found, true = edges(x.raw)[:, counted], edges(x.t)[:, counted]
    precision = (found * dilated(true, 5)).sum(ALL) / found.sum(ALL)
    recall = (true * dilated(found, 5)).sum(ALL) / true.sum(ALL)
    return 1 - (2 * precision * recall / (precision + recall)).mean()


def boundary_f1_of_images(x: Batch) -> Tensor:
    """Bokhovkin and Burnaev: a boundary is what an erosion takes, dilated by 2; the mean over images and classes."""
    found, true = (y - eroded(y, 1.0) for y in (x.p, x.t))
    size = true.sum(PIXELS)
    precision = (found * dilated(true, 2)).sum(PIXELS) / found.sum(PIXELS)
    recall = (true * dilated(found, 2) * x.valid).sum(PIXELS) / size.clamp(min=1)
    f1 = 2 * precision * recall / torch.where(size > 0, precision + recall, 1.0)
    return 1 - f1.mean()


def boundary_iou(x: Batch) -> Tensor:
    found, true = edges(x.p, 0.0), edges(x.t, 0.0)
    return 1 - ((found * true).sum(ALL) / (found + true - found * true).sum(ALL)).mean()


FORMULAS: dict[str, Formula] = {
    "cross-entropy": cross_entropy,
    "root-weighted cross-entropy": pixelwise(lambda p: -p.log(), powers(-0.5)),
    "inverse-weighted cross-entropy": pixelwise(lambda p: -p.log(), powers(-1)),
    "weighted cross-entropy": pixelwise(lambda p: -p.log(), by_counts),
    "label smoothing": smoothed,
    "focal loss": pixelwise(lambda p: -((1 - p) ** 2) * p.log()),
    "boundary-weighted cross-entropy": pixelwise(
        lambda p: -p.log(), lambda x: torch.where(near_boundary(x, 5), 10.0, 1.0).double()
    ),
    "soft Jaccard, soft IoU": index(1, 1),
    "soft Dice": index(0.5, 0.5),
    "Dice of V-Net": v_net,
    "Dice of MONAI": monai,
    "generalised Dice": generalised_dice,
    "Tversky loss": index(0.3, 0.7),
    "JML": by_norms(1, 1),
    "DML": by_norms(0.5, 0.5),
    "CTL": by_norms(0.3, 0.7),
    "Lovász-Softmax": lovasz,
    "Lovász-Softmax per image": each_image(lovasz),
    "Dice + CE": plus((1, index(0.5, 0.5)), (1, cross_entropy)),
    "Dice + CE of nnU-Net": nnu_net,
    "JML + CE": plus((0.75, by_norms(1, 1)), (0.25, cross_entropy)),
    "Lovász + CE": plus((1, lovasz), (1, cross_entropy)),
    "Lovász + weighted CE": plus((1, lovasz), (1, pixelwise(lambda p: -p.log(), powers(-0.5)))),
    "Lovász + soft Jaccard": plus((4, lovasz), (4, index(1, 1))),
    "mIoU of Auto Seg-Loss": auto_seg_loss,
    "log-curve mIoU": log_iou,
    "trimap IoU": trimap_iou,
    "boundary F1": boundary_f1,
    "boundary F1 of images": boundary_f1_of_images,
    "boundary IoU": boundary_iou,
}
LIMIT_FORMULAS: dict[str, Formula] = {
    "accuracy with a log curve": cross_entropy,
    "mean accuracy with a log curve": FORMULAS["inverse-weighted cross-entropy"],
}


def batch(rows: int, columns: int, classes: int = 4, seed: int = 11) -> tuple[Tensor, Tensor]:
    """Logits and labels of two images: the last class is in neither, the one before not in the second."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(2, classes, rows, columns, generator=generator, dtype=torch.float64)
    cell = 4 if rows > 8 else 1
    labels = torch.randint(0, classes - 1, (2, rows // cell, columns // cell), generator=generator)
    labels = labels.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    labels[1].clamp_(max=classes - 3)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return logits.requires_grad_(), labels


def of_formula(formula: Formula, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    raw, valid = logits.softmax(1), (labels != 255).unsqueeze(1)
    t = torch.stack([labels == c for c in range(logits.shape[1])], 1).double()
    value = formula(Batch(raw * valid, t, valid, raw))
    return value.detach(), torch.autograd.grad(value, logits)[0]


def of_loss(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(logits, labels)
    return value.detach(), torch.autograd.grad(value, logits)[0]


# Each row -------------------------------------------------------------------------------------------------------------


def test_each_row_is_held_to_a_formula_or_says_why_there_is_none() -> None:
    assert len(ROWS) > 35
    assert EQUAL.keys() == FORMULAS.keys()
    assert LIMITS.keys() == LIMIT_FORMULAS.keys()
    for name, row in ROWS.items() - EQUAL.items() - LIMITS.items():
        assert re.fullmatch("no: .+", row.here), name
        assert row[1:5] == ("-",) * 4, name


@pytest.mark.parametrize("name", FORMULAS)
def test_what_is_equal_is_equal_in_value_and_gradient(name: str) -> None:
    loss = EQUAL[name].build()
    for seed, shape in ((0, (24, 20)), (8, (4, 5))):
        if "lovasz" in EQUAL[name].logic and shape == (24, 20):
            continue  # so many errors share bins
        logits, labels = batch(*shape, seed=seed)
        expected, ours = of_formula(FORMULAS[name], logits, labels), of_loss(loss, logits, labels)
        for mine, theirs in zip(ours, expected, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)
        assert expected[1].norm() > 1e-3


@pytest.mark.parametrize("name", LIMIT_FORMULAS)
def test_a_limit_is_approached_at_its_order(name: str) -> None:
    row = LIMITS[name]
    order = re.search(r"to order (\d) in e", row.here)
    assert order is not None
    logits, labels = batch(4, 5, seed=8)
    expected = of_formula(LIMIT_FORMULAS[name], logits, labels)
    errors = []
    for e in (1e-4, 1e-5):
        ours = of_loss(row.build(e=e, v=math.log1p(1 / (2 * e)) / math.log1p(1 / e)), logits, labels)
        errors.append([(mine - theirs).norm().item() for mine, theirs in zip(ours, expected, strict=True)])
    for before, after in zip(*errors, strict=True):
        assert 0 < before < 0.05
        assert before / after == pytest.approx(10 ** int(order[1]), rel=0.05)


@pytest.mark.parametrize("name", EQUAL | LIMITS)
def test_metric_logic_and_curve_are_those_of_the_loss_that_is_written(name: str) -> None:
    row = ROWS[name]
    loss = row.build(e=0.1, v=0.7)
    parts = loss.parts if isinstance(loss, MixedLoss) else (loss,)
    surrogates = [part for part in parts if isinstance(part, SurrogateLoss)]
    assert [part.logic for part in surrogates] == [each for each in row.logic.split(", ") if each != "-"]
    assert {part.curve for part in surrogates} == {row.curve} - {"-"}
    text = re.sub(r"\b[IUT]\b", lambda symbol: SUMS[symbol[0]], row.metric.strip("`"))
    assert {part.expr for part in surrogates} == ({metric(text)} if text != "-" else set())


def test_what_is_known_by_its_text_is_called_as_in_the_table() -> None:
    texts = {row.written.strip("`"): row.called for row in EQUAL.values()}
    own = {text: called for text, called in texts.items() if "(" not in text.replace("(class_power", "")}
    assert own.pop("weighted_cross_entropy")  # has the counts of some data
    assert own == KNOWN
    assert known_as(load_loss("8*soft_dice")) == KNOWN["soft_dice"]
    assert known_as(load_loss("3*soft_dice + 3*cross_entropy")) == KNOWN["soft_dice + cross_entropy"]
    assert known_as(load_loss("3*soft_dice + 2*cross_entropy")) is None
    assert known_as(SurrogateLoss("miou")) is None


def test_the_three_ways_to_write_a_loss_are_one_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_loss("soft_dice").save("found.json")
    cells = re.findall(r"^\| (?:text|Python|\[file\]).* \| `(.*)` \|$", PAGE, flags=re.MULTILINE)
    text, python, file = cells
    loss = load_loss(text)
    names = {"MixedLoss": MixedLoss, "CrossEntropy": CrossEntropy, "load_loss": load_loss}
    assert eval(python, names).content() == loss.content()
    content = loss.content()
    numbers = [content["version"], content["scale"], *(round(part["share"], 4) for part in content["parts"][:2])]
    assert re.findall(r"\d[\d.]*", file) == [f"{number:g}" for number in numbers]
