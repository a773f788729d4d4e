"""Pictures of the report page: the predictions of some losses for the same validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from autosegloss.metric import Accumulator, Accumulators, Expr
from autosegloss.proxy.data import Dataset
from autosegloss.proxy.train import LossFunction, predict
from autosegloss.proxy.trial import TARGET, Proxy
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
"""The number of images with the largest gain, with the largest loss, and with the lowest score."""
_TOLERANCE: Final = 1e-9  # of a metric; a training that repeats exactly gives the same bits


@dataclass(frozen=True)
class Trained:
    """A loss to train with again.

    Args:
        name: Its title.
        loss: The loss.
        recorded: The target metric on the validation set that the folder records for the same training.
        rate: The factor of the learning rate.
    """

    name: str
    loss: LossFunction
    recorded: float | None
    rate: float = 1.0


def examples(proxy: Proxy, trained: Sequence[Trained], best: Trained, seed: int, iterations: int | None = None) -> str:
    """Train with some losses; show the validation images whose scores differ most, in both directions, and the lowest.

    Args:
        proxy: What is trained.
        trained: The losses; the first is the baseline.
        best: The one of these whose scores are compared with the baseline's.
        seed: The seed of the trainings, one of those in the folder.
        iterations: Their iterations; None: those of the proxy.

    Returns:
        HTML.
    """
    prepared = proxy.prepare()
    dataset = prepared.dataset
    predictions = {
        each.name: predict(prepared.trained(each.loss, seed, iterations, each.rate), dataset.validation)
        for each in trained
    }
    scores = {name: _image_scores(proxy.target, each, dataset) for name, each in predictions.items()}
    gains = {
        i: after - before
        for i, (before, after) in enumerate(zip(scores[trained[0].name], scores[best.name], strict=True))
        if before is not None and after is not None
    }
    repeated = [_repeated(each, _score(proxy.target, predictions[each.name], dataset), seed) for each in trained]
    classes = "".join(f"<li>{swatch(c)}{escape(name)}</li>" for c, name in enumerate(dataset.classes))
    parts = [
        f'<p class="note">{" ".join(repeated)}</p>',
        f'<ul class="legend" aria-label="classes">{classes}</ul>',
        error_legend(),
    ]
    order = sorted(gains, key=lambda i: -gains[i])
    most = [i for i in order if gains[i] > 0][:NUMBER]
    least = [i for i in reversed(order) if gains[i] < 0][:NUMBER]
    name = escape(best.name)
    lowest = sorted(set(gains) - {*most, *least}, key=lambda i: (scores[best.name][i] or 0.0, i))[:NUMBER]
    for title, chosen in (
        (f"Largest gains of {name}", most),
        (f"Largest losses of {name}", least),
        (f"Lowest scores of {name} among the others", lowest),
    ):
        parts.append(f"<h3>{title}</h3>")
        parts += [_card(i, dataset, predictions, scores, gains[i]) for i in chosen]
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


def _image_scores(expr: Expr, prediction: NDArray[np.int64], dataset: Dataset) -> list[float | None]:
    """The metric of each image alone; None for an image with nothing to score."""
    exact = Accumulators({TARGET: expr}, len(dataset.classes), dataset.ignore_index)
    scores: list[float | None] = []
    for made, labels in zip(prediction, dataset.validation.labels, strict=True):
        exact.reset()
        exact.update(torch.from_numpy(made)[None], torch.from_numpy(labels.astype(np.int64))[None])
        classes = exact.class_values(TARGET)
        counts = (labels != dataset.ignore_index).any() and (classes is None or any(v is not None for v in classes))
        scores.append(exact.values()[TARGET] if counts else None)
    return scores


def _score(expr: Expr, prediction: NDArray[np.int64], dataset: Dataset) -> float:
    exact = Accumulator(expr, len(dataset.classes), dataset.ignore_index)
    labels = torch.from_numpy(np.ascontiguousarray(dataset.validation.labels)).to(torch.int64)
    exact.update(torch.from_numpy(prediction), labels)
    return exact.compute()


def _card(
    index: int,
    dataset: Dataset,
    predictions: Mapping[str, NDArray[np.int64]],
    scores: Mapping[str, Sequence[float | None]],
    gain: float,
) -> str:
    """An image with its label, the predictions and their errors."""
    target = dataset.validation.labels[index].astype(np.int64)
    valid = target != dataset.ignore_index
    present = escape(", ".join(dataset.classes[c] for c in np.unique(target[valid])))
    photo = Image.fromarray(np.ascontiguousarray(dataset.validation.images[index].transpose(1, 2, 0)))
    title = escape(dataset.names[index]) if dataset.names else f"Validation image {index}"
    figures = [
        figure("image", picture(photo), f"validation image {index}"),
        figure("label", label_map(target, valid), f"label of image {index}: {present}"),
    ]
    for name, maps in predictions.items():
        labels, score = maps[index], scores[name][index]
        wrong = valid & (labels != target)
        predicted, by = escape(", ".join(dataset.classes[c] for c in np.unique(labels))), escape(name)
        share = wrong_share(valid, wrong)
        caption = by if score is None else f"{by}: {100 * score:.1f}"
        figures += [
            figure(
                caption, label_map(labels, np.ones_like(valid)), f"prediction of {by} for image {index}: {predicted}"
            ),
            figure(f"errors of {by}", error_map(valid, wrong), f"errors of {by} in image {index}: {share}"),
        ]
    return (
        f'<article><h4>{title}: change of its score {100 * gain:+.1f}</h4><div class="pictures">'
        f"{''.join(figures)}</div></article>"
    )
