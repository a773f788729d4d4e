"""Other libraries as second witnesses: where they mean the same they agree, and where not it says why.

Each test is skipped where its library is not installed.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autosegloss.metric import Accumulator, parse

CLASSES = 4


def library(name: str) -> Any:
    """A module, or a skip; what warns while it is imported is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def batches(*, void: bool, absent: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Three batches of scores (2, C, 7, 9) and labels (2, 7, 9); in each another class may be absent."""
    random = np.random.default_rng(0)
    found = []
    for batch in range(3):
        target = random.integers(0, CLASSES, (2, 7, 9))
        if absent:
            target[target == batch] = CLASSES - 1
        scores = 2 * np.eye(CLASSES)[target].transpose(0, 3, 1, 2) + random.normal(size=(2, CLASSES, 7, 9))
        target[(random.random(target.shape) < 0.2) & void] = 255
        found.append((torch.from_numpy(scores), torch.from_numpy(target)))
    return found


def exact(accumulator: Any, data: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """What an accumulator makes of the data."""
    for prediction, target in data:
        accumulator.update(prediction, target)
    return float(accumulator.compute())


def ours(expr: str, data: list[tuple[torch.Tensor, torch.Tensor]], classes: int = CLASSES, ignored: int = 255) -> float:
    return exact(Accumulator(parse(expr) if "(" in expr else expr, classes, ignored), data)


# torchmetrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize(
    ("average", "expr"),
    [
        ("macro", "miou"),
        ("weighted", "fwiou"),
        ("micro", "class_sum(total(pred & target)) / class_sum(total(pred | target))"),
    ],
)
def test_torchmetrics_jaccard_agrees(average: Any, expr: str, void: bool) -> None:
    index = library("torchmetrics").JaccardIndex
    data = batches(void=void, absent=True)
    theirs = index(task="multiclass", num_classes=CLASSES, average=average, ignore_index=255 if void else None)
    for scores, target in data:
        theirs.update(scores, target)
    assert ours(expr, data) == pytest.approx(theirs.compute().item(), rel=1e-6)  # theirs divides in float32


def test_torchmetrics_jaccard_and_absent_classes() -> None:
    """A class in neither map does not count, here as there. An ignored class differs.

    Where `ignore_index` is one of the classes torchmetrics leaves that class out of the mean. Here only its pixels do
    not count: predicted at other pixels it is a class predicted in vain, with an IoU of 0.
    """
    index = library("torchmetrics").JaccardIndex
    guess = torch.tensor([[0, 0, 1, 1, 2, 2]])
    truth = torch.tensor([[0, 1, 1, 1, 2, 1]])
    of_five = index(task="multiclass", num_classes=5)(guess, truth).item()
    assert of_five == pytest.approx((1 / 2 + 2 / 4 + 1 / 2) / 3)
    assert ours("miou", [(guess, truth)], 5) == pytest.approx((1 / 2 + 2 / 4 + 1 / 2) / 3)

    ignored = torch.tensor([[0, 1, 1, 1, 2, 0]])
    without_0 = index(task="multiclass", num_classes=3, ignore_index=0)(guess, ignored).item()
    assert without_0 == pytest.approx((2 / 3 + 1) / 2)
    assert ours("miou", [(guess, ignored)], 3, ignored=0) == pytest.approx((0 + 2 / 3 + 1) / 3)
    without_background = "class_mean(total(pred & target) / total(pred | target), total(pred | target), False)"
    assert ours(without_background, [(guess, ignored)], 3, ignored=0) == pytest.approx((2 / 3 + 1) / 2)


def test_torchmetrics_mean_iou_is_of_images_and_batches() -> None:
    """`segmentation.MeanIoU` averages over images: it is no mIoU of a data set, and it has no ignored label.

    With all classes in every target it is `miou_i`.
    """
    mean_iou = library("torchmetrics.segmentation").MeanIoU
    data = batches(void=False, absent=False)
    theirs = mean_iou(num_classes=CLASSES, input_format="index")
    for scores, target in data:
        theirs.update(scores.argmax(1), target)
    assert ours("miou_i", data) == pytest.approx(theirs.compute().item(), rel=1e-6)
    assert ours("miou", data) != pytest.approx(theirs.compute().item(), rel=1e-4)


# MONAI ----------------------------------------------------------------------------------------------------------------


def one_hot(labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Maps (N, C, *S) as MONAI takes them; ignored pixels are in no class of either map."""
    return ((labels[:, None] == torch.arange(CLASSES).view(-1, 1, 1)) & valid[:, None]).double()


@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize(
    ("name", "reduction", "expr"),
    [
        ("MeanIoU", "mean", "miou_i"),
        ("MeanIoU", "mean_batch", "miou_c"),
        (
            "DiceMetric",
            "mean",
            "image_mean(class_mean(2 * per_image(pred & target) / (per_image(pred) + per_image(target)), "
            "where=per_image(target)), where=class_sum(per_image(target)))",
        ),
        (
            "DiceMetric",
            "mean_batch",
            "class_mean(image_mean(2 * per_image(pred & target) / (per_image(pred) + per_image(target)), "
            "where=per_image(target)), where=total(target))",
        ),
    ],
)
def test_monai_agrees(name: str, reduction: str, expr: str, void: bool) -> None:
    """MONAI's means are per image; a class counts in the images whose target has it (`ignore_empty`), as here.

    "mean" is over classes, then images; "mean_batch" over images, one value per class, whose mean is ours.
    """
    metric = getattr(library("monai.metrics"), name)(reduction=reduction)
    data = batches(void=void, absent=True)
    for scores, target in data:
        metric(one_hot(scores.argmax(1), target != 255), one_hot(target, target != 255))
    assert ours(expr, data) == pytest.approx(metric.aggregate().mean().item(), rel=1e-6)


def test_monai_has_no_mean_over_the_data_set() -> None:
    data = batches(void=False, absent=True)
    metric = library("monai.metrics").MeanIoU(reduction="mean", ignore_empty=False)  # what is in neither map scores 1
    for scores, target in data:
        everywhere = torch.ones_like(target, dtype=torch.bool)
        metric(one_hot(scores.argmax(1), everywhere), one_hot(target, everywhere))
    for expr in ("miou", "miou_i", "miou_c"):
        assert ours(expr, data) != pytest.approx(metric.aggregate().item(), rel=1e-3)


# segmentation_models_pytorch ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smp() -> Any:
    """Its functions of counts, from their file: the package itself does not import without torchvision."""
    found = importlib.util.find_spec("segmentation_models_pytorch")
    if found is None or not found.submodule_search_locations:
        pytest.skip("segmentation_models_pytorch is not installed")
    path = Path(next(iter(found.submodule_search_locations))) / "metrics" / "functional.py"
    spec = importlib.util.spec_from_file_location("smp_functional", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize(
    ("score", "reduction", "expr"),
    [
        ("iou_score", "macro", "miou"),
        ("f1_score", "macro", "dice"),
        ("sensitivity", "macro", "macc"),
        ("sensitivity", "micro", "gacc"),
        ("iou_score", "micro", "class_sum(total(pred & target)) / class_sum(total(pred | target))"),
        (
            "iou_score",
            "micro-imagewise",
            "image_mean(class_sum(per_image(pred & target)) / class_sum(per_image(pred | target)))",
        ),
    ],
)
def test_smp_agrees(smp: Any, score: str, reduction: str, expr: str, void: bool) -> None:
    data = batches(void=void, absent=True)
    stats = [
        smp.get_stats(
            scores.argmax(1), target, mode="multiclass", num_classes=CLASSES, ignore_index=255 if void else None
        )
        for scores, target in data
    ]
    counts = [torch.cat(parts) for parts in zip(*stats, strict=True)]
    theirs = getattr(smp, score)(*counts, reduction=reduction)
    assert ours(expr, data) == pytest.approx(theirs.item(), rel=1e-6)


def test_smp_counts_absent_classes(smp: Any) -> None:
    """A class in neither map has the value `zero_division` in smp and counts in its mean; here it does not count."""
    guess, truth = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 1]])
    counts = smp.get_stats(guess, truth, mode="multiclass", num_classes=4)
    for value in (0.0, 1.0):
        theirs = smp.iou_score(*counts, reduction="macro", zero_division=value).item()
        assert theirs == pytest.approx((1 / 2 + 2 / 3 + 2 * value) / 4)
    assert ours("miou", [(guess, truth)]) == pytest.approx((1 / 2 + 2 / 3) / 2)
