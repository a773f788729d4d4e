"""Pictures of the report page: what two losses make of the same validation images."""

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
from autosegloss.report.pages.elements import Colour, class_colour, error_map, figure, label_map, picture, swatch

NUMBER: Final = 3
"""Images of each kind: of the largest gain, and of the largest loss."""
_TOLERANCE: Final = 1e-9  # of a metric; a training that repeats itself gives the same bits

# Of Okabe and Ito, Color Universal Design, 2008: they differ for the usual kinds of colour vision.
_PALETTE: Final[tuple[Colour, ...]] = (
    (43, 48, 56),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


@dataclass(frozen=True)
class Trained:
    """A loss to be trained with once more.

    Args:
        name: What to call it.
        loss: The loss.
        recorded: The target metric on the validation set that the folder has of the same training.
    """

    name: str
    loss: LossFunction
    recorded: float | None


def examples(proxy: Proxy, first: Trained, second: Trained, seed: int) -> str:
    """Train with two losses, and show the validation images for which they differ most, both ways.

    Args:
        proxy: What is trained.
        first: What the second one is compared with.
        second: The other loss.
        seed: Of both trainings, one of those in the folder.

    Returns:
        HTML.
    """
    prepared = proxy.prepare()
    dataset = prepared.dataset
    both = first, second
    predictions = [predict(prepared.trained(each.loss, seed), dataset.validation) for each in both]
    scores = [_scores(each, dataset) for each in predictions]
    gains = np.array([b - a for a, b in zip(*scores, strict=True)])
    exact = proxy.target
    repeated = [
        _repeated(each, _score(exact, made, dataset), seed) for each, made in zip(both, predictions, strict=True)
    ]
    parts = [f'<p class="note">{" ".join(repeated)}</p>', _legend(dataset.classes)]
    order = np.argsort(-gains, kind="stable").tolist()
    best = [i for i in order if gains[i] > 0][:NUMBER]
    worst = [i for i in reversed(order) if gains[i] < 0][:NUMBER]
    name = escape(second.name)
    for title, chosen in ((f"Where {name} gains most", best), (f"Where {name} loses most", worst)):
        parts.append(f"<h3>{title}</h3>")
        parts += [
            _card(i, dataset, {each.name: made[i] for each, made in zip(both, predictions, strict=True)}, scores)
            for i in chosen
        ]
        if not chosen:
            parts.append("<p>There is no such image.</p>")
    return "\n".join(parts)


def colour_of(label: int, classes: int) -> Colour:
    """The colour of a class of so many: one for all kinds of colour vision, as long as there are enough of these."""
    return _PALETTE[label] if classes <= len(_PALETTE) else class_colour(label)


def _repeated(trained: Trained, value: float, seed: int) -> str:
    """Whether a training gave what is on record."""
    said = f"{escape(trained.name)}, seed {seed}: target metric {100 * value:.2f} % on all validation images"
    if trained.recorded is None:
        return f"{said}."
    if abs(value - trained.recorded) <= _TOLERANCE:
        return f"{said}, as on record."
    return (
        f"{said}; <strong>{100 * trained.recorded:.2f} % is on record</strong>: this machine, or these versions, do "
        "not repeat that training exactly."
    )


def _scores(prediction: NDArray[np.int64], dataset: Dataset) -> list[float]:
    """The mean IoU of each image alone."""
    labels = dataset.validation.labels
    return [_score(metric("miou_i"), prediction[i : i + 1], dataset, slice(i, i + 1)) for i in range(len(labels))]


def _score(expr: Expr, prediction: NDArray[np.int64], dataset: Dataset, images: slice = slice(None)) -> float:
    exact = Accumulator(expr, len(dataset.classes), dataset.ignore_index)
    labels = torch.from_numpy(np.ascontiguousarray(dataset.validation.labels[images])).to(torch.int64)
    exact.update(torch.from_numpy(prediction), labels)
    return exact.compute()


def _legend(classes: Sequence[str]) -> str:
    entries = [f"<li>{swatch(colour_of(c, len(classes)))}{escape(name)}</li>" for c, name in enumerate(classes)]
    kinds = [f'<li><i class="swatch {kind}"></i>{kind}</li>' for kind in ("right", "wrong", "ignored")]
    return (
        f'<ul class="legend" aria-label="classes">{"".join(entries)}</ul>\n'
        f'<ul class="legend" aria-label="legend of the error maps"><li>errors:</li>{"".join(kinds)}</ul>'
    )


def _card(
    index: int, dataset: Dataset, predictions: Mapping[str, NDArray[np.int64]], scores: Sequence[Sequence[float]]
) -> str:
    """An image with its label, the predictions and their errors."""
    target = dataset.validation.labels[index].astype(np.int64)
    valid = target != dataset.ignore_index

    def colour(label: int) -> Colour:
        return colour_of(label, len(dataset.classes))

    seen = escape(", ".join(dataset.classes[c] for c in np.unique(target[valid])))
    photo = Image.fromarray(np.ascontiguousarray(dataset.validation.images[index].transpose(1, 2, 0)))
    figures = [
        figure("image", picture(photo), f"validation image {index}"),
        figure("label", label_map(target, valid, colour), f"label of image {index}: {seen}"),
    ]
    for name, labels in predictions.items():
        wrong = valid & (labels != target)
        share = f"{100 * wrong.sum() / max(valid.sum(), 1):.2f} % of the pixels wrong"
        told, by = escape(", ".join(dataset.classes[c] for c in np.unique(labels))), escape(name)
        figures += [
            figure(by, label_map(labels, np.ones_like(valid), colour), f"prediction of {by} for image {index}: {told}"),
            figure(f"errors of {by}", error_map(valid, wrong), f"errors of {by} in image {index}: {share}"),
        ]
    before, after = (row[index] for row in scores)
    return (
        f"<article><h4>Validation image {index}: mIoU of this image {100 * before:.1f} → {100 * after:.1f}"
        f' ({100 * (after - before):+.1f})</h4><div class="pictures">{"".join(figures)}</div></article>'
    )
