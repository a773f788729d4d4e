"""Pictures of the report page: the predictions of two losses for the same validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from autosegloss.metric import Accumulator, Expr, metric
from autosegloss.proxy.data import Dataset
from autosegloss.proxy.train import LossFunction, predict
from autosegloss.proxy.trial import Proxy
from autosegloss.report.pages.elements import (
    error_legend,
    error_map,
    figure,
    label_map,
    picture,
    swatch,
    wrong_share,
)

NUMBER: Final = 3
"""The number of images with the largest gain, and with the largest loss."""
_TOLERANCE: Final = 1e-9  # of a metric; a training that repeats exactly gives the same bits


@dataclass(frozen=True)
class Trained:
    """A loss to train with again.

    Args:
        name: Its title.
        loss: The loss.
        recorded: The target metric on the validation set that the folder records for the same training.
    """

    name: str
    loss: LossFunction
    recorded: float | None


def examples(proxy: Proxy, first: Trained, second: Trained, seed: int) -> str:
    """Train with two losses, and show the validation images whose scores differ most, in both directions.

    Args:
        proxy: What is trained.
        first: The baseline.
        second: The loss that is compared with it.
        seed: The seed of both trainings, one of those in the folder.

    Returns:
        HTML.
    """
    prepared = proxy.prepare()
    dataset = prepared.dataset
    both = first, second
    predictions = {each.name: predict(prepared.trained(each.loss, seed), dataset.validation) for each in both}
    scores = [_image_scores(each, dataset) for each in predictions.values()]
    gains = np.subtract(scores[1], scores[0])
    repeated = [_repeated(each, _score(proxy.target, predictions[each.name], dataset), seed) for each in both]
    classes = "".join(f"<li>{swatch(c)}{escape(name)}</li>" for c, name in enumerate(dataset.classes))
    parts = [
        f'<p class="note">{" ".join(repeated)}</p>',
        f'<ul class="legend" aria-label="classes">{classes}</ul>',
        error_legend(),
    ]
    order = np.argsort(-gains, kind="stable").tolist()
    best = [i for i in order if gains[i] > 0][:NUMBER]
    worst = [i for i in reversed(order) if gains[i] < 0][:NUMBER]
    name = escape(second.name)
    for title, chosen in ((f"Largest gains of {name}", best), (f"Largest losses of {name}", worst)):
        parts.append(f"<h3>{title}</h3>")
        parts += [_card(i, dataset, predictions, scores) for i in chosen]
        if not chosen:
            parts.append("<p>There is no such image.</p>")
    return "\n".join(parts)


def _repeated(trained: Trained, value: float, seed: int) -> str:
    """Whether a training gave the recorded value again."""
    text = f"{escape(trained.name)}, seed {seed}: target metric {100 * value:.2f} % on all validation images"
    if trained.recorded is None:
        return f"{text}."
    if abs(value - trained.recorded) <= _TOLERANCE:
        return f"{text}, as recorded."
    return (
        f"{text}; <strong>{100 * trained.recorded:.2f} % is recorded</strong>: this machine, or these versions, do not "
        "repeat that training exactly."
    )


def _image_scores(prediction: NDArray[np.int64], dataset: Dataset) -> list[float]:
    """The mean IoU of each image alone."""
    return [_score(metric("miou_i"), prediction[i : i + 1], dataset, slice(i, i + 1)) for i in range(len(prediction))]


def _score(expr: Expr, prediction: NDArray[np.int64], dataset: Dataset, images: slice = slice(None)) -> float:
    exact = Accumulator(expr, len(dataset.classes), dataset.ignore_index)
    labels = torch.from_numpy(np.ascontiguousarray(dataset.validation.labels[images])).to(torch.int64)
    exact.update(torch.from_numpy(prediction), labels)
    return exact.compute()


def _card(
    index: int, dataset: Dataset, predictions: Mapping[str, NDArray[np.int64]], scores: Sequence[Sequence[float]]
) -> str:
    """An image with its label, the predictions and their errors."""
    target = dataset.validation.labels[index].astype(np.int64)
    valid = target != dataset.ignore_index
    present = escape(", ".join(dataset.classes[c] for c in np.unique(target[valid])))
    photo = Image.fromarray(np.ascontiguousarray(dataset.validation.images[index].transpose(1, 2, 0)))
    figures = [
        figure("image", picture(photo), f"validation image {index}"),
        figure("label", label_map(target, valid), f"label of image {index}: {present}"),
    ]
    for name, maps in predictions.items():
        labels = maps[index]
        wrong = valid & (labels != target)
        predicted, by = escape(", ".join(dataset.classes[c] for c in np.unique(labels))), escape(name)
        share = wrong_share(valid, wrong)
        figures += [
            figure(by, label_map(labels, np.ones_like(valid)), f"prediction of {by} for image {index}: {predicted}"),
            figure(f"errors of {by}", error_map(valid, wrong), f"errors of {by} in image {index}: {share}"),
        ]
    before, after = (row[index] for row in scores)
    return (
        f"<article><h4>Validation image {index}: mIoU of this image {100 * before:.1f} → {100 * after:.1f}"
        f' ({100 * (after - before):+.1f})</h4><div class="pictures">{"".join(figures)}</div></article>'
    )
