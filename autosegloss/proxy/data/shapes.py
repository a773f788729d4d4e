"""Procedural images of noisy, textured shapes: a segmentation task with rare classes that needs no download."""

from __future__ import annotations

from functools import partial

import numpy as np
import scipy
from numpy.typing import NDArray

from autosegloss.errors import DataError, shown
from autosegloss.proxy.data import IGNORE_INDEX, Dataset, Read, Split

SIZE = 64
CLASSES = ("background", "region", "ellipse", "polygon", "curve", "dot")
IMAGES = {"train": 256, "heldout": 128, "validation": 256}

# Mean colour of each class around mid-grey, and how much of its own texture it carries, in grey levels. Chosen such
# that 100 iterations of cross-entropy find the large classes and leave out the curve and the dots.
COLOURS = np.array([[0, 0, 0], [-18, 8, 26], [30, 14, -22], [4, -30, 18], [84, 70, 25], [62, 92, 82]], np.float32)
TEXTURE = np.array([10, 16, 8, 14, 4, 4], np.float32)
NOISE = 10.0

# How far a simulated annotator moves a boundary: standard deviation along each axis, and length over which it varies,
# in pixels. Chosen such that a curve of one pixel seldom has the majority of three annotators.
MOVED, SMOOTH = 1.0, 4.0
MOST_ANNOTATORS = 255  # each takes a megabyte and part of a second

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]


def load(seed: int = 0, annotators: int = 0) -> Read:
    """Draw the shapes: a blob-like region, ellipses, polygons, a thin curve and tiny dots on a textured background.

    On average 75.7% of the pixels are background, 13.9 region, 6.1 ellipse, 3.2 polygon, 0.97 curve and 0.24 dots.

    Args:
        seed: Decides every pixel; non-negative.
        annotators: How many people label the training images, each with boundaries of their own; 0 is none, and the
            labels are the true ones. They are simulated: an annotator's map is the true one, moved by a smooth random
            field of displacements of 1 pixel (standard deviation along each axis). The labels of the training images
            are then the majority vote; of classes with equally many votes, the one of the lowest number wins, which
            leaves a pixel to the background. Held-out and validation labels stay the true ones.

    Returns:
        A function that draws 256 training, 128 held-out and 256 validation images of 64x64.

    Raises:
        DataError: An option is not a non-negative integer, or there are more than 255 annotators.
    """
    for option, value in (("seed", seed), ("annotators", annotators)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise DataError(f"data set `shapes`: {option} must be a non-negative integer, got {shown(value)}.")
    if annotators > MOST_ANNOTATORS:
        raise DataError(f"data set `shapes`: annotators must be at most {MOST_ANNOTATORS}, got {shown(annotators)}.")
    return partial(_dataset, seed, annotators)


def _dataset(seed: int, annotators: int) -> Dataset:
    train, heldout, validation = (
        _draw(np.random.default_rng((seed, number)), count) for number, count in enumerate(IMAGES.values())
    )
    if not annotators:
        return Dataset("shapes", CLASSES, IGNORE_INDEX, train, heldout, validation)
    annotations = np.stack(
        [_annotate(np.random.default_rng((seed, len(IMAGES), who)), train.labels) for who in range(annotators)], axis=1
    )
    train = Split(train.images, majority(annotations, len(CLASSES)), annotations)
    note = (
        f"The {annotators} annotators of the training images are simulated: the true labels with boundaries moved by "
        f"smooth random fields of {MOVED:g} pixel (standard deviation along each axis)."
    )
    return Dataset("shapes", CLASSES, IGNORE_INDEX, train, heldout, validation, note)


def _draw(rng: np.random.Generator, count: int) -> Split:
    labels = np.zeros((count, SIZE, SIZE), np.uint8)
    # From the largest to the smallest, so that later shapes lie on top of earlier ones.
    labels[_regions(rng, count)] = 1
    for _ in range(2):
        labels[_ellipses(rng, count)] = 2
    labels[_polygons(rng, count)] = 3
    labels[_curves(rng, count)] = 4
    labels[_dots(rng, count)] = 5
    return Split(_paint(rng, labels), labels)


def majority(annotations: NDArray[np.uint8], num_classes: int) -> NDArray[np.uint8]:
    """The class with most votes in each pixel of maps (N, A, H, W), the lowest of equals: (N, H, W)."""
    votes = np.stack([(annotations == label).sum(axis=1) for label in range(num_classes)])
    winners: NDArray[np.uint8] = votes.argmax(axis=0).astype(np.uint8)
    return winners


def _annotate(rng: np.random.Generator, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Move every pixel of label maps by a smooth field of displacements; the border of the image is repeated."""
    count = len(labels)
    row, column = (
        np.clip(np.rint(start + MOVED * _smooth(rng, count, SMOOTH)), 0, SIZE - 1).astype(int)
        for start in np.mgrid[:SIZE, :SIZE]
    )
    moved: NDArray[np.uint8] = labels[np.arange(count)[:, None, None], row, column]
    return moved


def _regions(rng: np.random.Generator, count: int) -> Masks:
    field = _smooth(rng, count, sigma=7)
    share = rng.uniform(0.06, 0.25, (count, 1))
    height = np.array([np.quantile(f, 1 - s) for f, s in zip(field, share, strict=True)])
    return field > height[:, :, None]


def _ellipses(rng: np.random.Generator, count: int) -> Masks:
    x, y = _turned(rng, count)
    long, short = rng.uniform(5, 9.5, (count, 1, 1)), rng.uniform(4.5, 8, (count, 1, 1))
    return (x / long) ** 2 + (y / short) ** 2 < 1


def _polygons(rng: np.random.Generator, count: int) -> Masks:
    """Cut each polygon out by three to five straight sides around its centre."""
    x, y = _turned(rng, count)
    sides = rng.integers(3, 6, (count, 1, 1))
    inside = np.ones((count, SIZE, SIZE), bool)
    for side in range(5):
        angle = 2 * np.pi * (side % sides + rng.uniform(-0.2, 0.2, (count, 1, 1))) / sides
        inside &= x * np.cos(angle) + y * np.sin(angle) < rng.uniform(4.2, 7.2, (count, 1, 1))
    return inside


def _curves(rng: np.random.Generator, count: int) -> Masks:
    """Draw one quadratic Bezier curve an image, one pixel wide."""
    ends = SIZE * (rng.uniform(0, 0.25, (1, count, 1, 2)) + rng.uniform(0, 0.75, (3, count, 1, 2)))
    t = np.linspace(0, 1, 2 * SIZE)[:, None]
    column, row = np.moveaxis((1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] + t**2 * ends[2], -1, 0).astype(int)
    mask = np.zeros((count, SIZE, SIZE), bool)
    mask[np.arange(count)[:, None], row, column] = True
    return mask


def _dots(rng: np.random.Generator, count: int) -> Masks:
    """Put two or three dots of 2x2 pixels into each image."""
    mask = np.zeros((count, SIZE, SIZE), bool)
    for dot in range(3):
        drawn = np.flatnonzero(rng.random(count) < (1, 1, 0.5)[dot])
        row, column = rng.integers(0, SIZE - 1, (2, len(drawn)))
        for down, right in np.ndindex(2, 2):
            mask[drawn, row + down, column + right] = True
    return mask


def _turned(rng: np.random.Generator, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates of every pixel in a frame with a random centre and angle, one an image."""
    row, column = np.mgrid[:SIZE, :SIZE]
    centre_row, centre_column = rng.uniform(4, SIZE - 4, (2, count, 1, 1))
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    y, x = row - centre_row, column - centre_column
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _smooth(rng: np.random.Generator, count: int, sigma: float) -> Maps:
    """Draw smooth noise of standard deviation 1."""
    noise = rng.standard_normal((count, SIZE, SIZE), dtype=np.float32)
    smooth: Maps = scipy.ndimage.gaussian_filter(noise, sigma=(0, sigma, sigma), mode="wrap", truncate=3)
    smooth /= smooth.std()
    return smooth


def _paint(rng: np.random.Generator, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colour each class, add its texture, uneven light, blur as of a lens, and noise."""
    count = len(labels)
    jitter = rng.normal(0, 10, (count, len(CLASSES), 3)).astype(np.float32)
    colour = np.moveaxis((COLOURS + jitter)[np.arange(count)[:, None, None], labels], -1, 1)
    texture = TEXTURE[labels] * _smooth(rng, count, sigma=1.5)
    light = 12 * _smooth(rng, count, sigma=12)
    scene = colour + (texture + light)[:, None]
    scene = scipy.ndimage.gaussian_filter(scene, sigma=(0, 0, 0.5, 0.5))
    noise = NOISE * rng.standard_normal(scene.shape, dtype=np.float32)
    return np.clip(np.rint(128 + scene + noise), 0, 255).astype(np.uint8)
