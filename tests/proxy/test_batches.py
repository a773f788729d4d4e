"""Batches: what is drawn, and how images and labels are changed together."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.proxy.batches import BatchPlan, TrainingArrays, _jitter_colours, _scale_and_crop, batch, to_input
from autosegloss.proxy.data import Split

CPU = torch.device("cpu")
unit = st.floats(0, 1, exclude_max=True)


def task(seed: int, images: int = 6, size: tuple[int, int] = (8, 10)) -> Split:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, (images, *size)).astype(np.uint8)
    labels[:, 0] = 255
    return Split(rng.integers(0, 256, (images, 3, *size)).astype(np.uint8), labels)


def test_without_more_a_batch_is_what_it_was_before_there_was_more():
    split, rng = task(0), np.random.default_rng(5)
    order = np.concatenate([rng.permutation(6) for _ in range(2)])[:8].reshape(2, 4)
    flips = rng.random((2, 4)) < 0.5
    assert flips.any()
    draws = BatchPlan.draw(np.random.default_rng(5), 6, iterations=2, batch_size=4)
    images, labels = batch(split, draws, 1, CPU)
    for place, (number, flip) in enumerate(zip(order[1], flips[1], strict=True)):
        step = -1 if flip else 1
        expected = split.images[number, :, :, ::step].astype(np.float32) / 127.5 - 1
        assert np.array_equal(images[place].numpy(), expected)
        assert np.array_equal(labels[place].numpy(), split.labels[number, :, ::step])
    full = BatchPlan.draw(np.random.default_rng(5), 6, iterations=2, batch_size=4, augment="full")
    assert np.array_equal(full.order, draws.order)
    assert np.array_equal(full.flips, draws.flips)


def test_what_is_drawn_depends_on_the_seed_only_and_differs_between_images():
    split = task(1)
    first, again, other = (
        batch(split, BatchPlan.draw(np.random.default_rng(seed), 6, 3, 4, "full"), 2, CPU) for seed in (0, 0, 1)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].is_contiguous(memory_format=torch.channels_last)
    assert (first[1].dtype, first[1].shape) == (torch.int64, (4, 8, 10))
    same = Split(np.repeat(split.images[:1], 6, axis=0), np.repeat(split.labels[:1], 6, axis=0))
    images, _ = batch(same, BatchPlan.draw(np.random.default_rng(0), 6, 1, 4, "full"), 0, CPU)
    assert len({image.numpy().tobytes() for image in images}) == 4


@given(place=st.tuples(st.integers(0, 16), st.integers(0, 20)), seed=st.integers(0, 99))
def test_twice_as_large_is_a_window_of_repeated_labels(place, seed):
    split = task(seed, images=1, size=(16, 20))
    numbers = np.array([[1.0, place[1] / 20, place[0] / 16]])  # scale 2, the upper end; across, down
    images, labels, soft = _scale_and_crop(
        to_input(split.images, CPU),
        torch.from_numpy(split.labels).long(),
        torch.from_numpy(split.images).float(),
        numbers,
    )
    window = slice(place[0], place[0] + 16), slice(place[1], place[1] + 20)
    assert np.array_equal(labels[0].numpy(), split.labels[0].repeat(2, 0).repeat(2, 1)[window])
    assert soft is not None
    assert np.array_equal(soft[0].numpy(), split.images[0].repeat(2, 1).repeat(2, 2)[(slice(None), *window)])
    assert images.abs().max() <= 1


@given(numbers=st.tuples(unit, unit, unit), seed=st.integers(0, 99))
def test_images_and_labels_move_together_and_what_is_beside_them_does_not_count(numbers, seed):
    rng = np.random.default_rng(seed)
    corner = rng.integers(2, 30, 2)
    labels = np.zeros((1, 32, 32), np.uint8)
    labels[0, : corner[0], : corner[1]] = 1
    images = np.repeat(np.where(labels == 1, 255, 32).astype(np.uint8)[:, None], 3, axis=1)
    moved, there, _ = _scale_and_crop(to_input(images, CPU), torch.from_numpy(labels).long(), None, np.array([numbers]))
    outside = there == 255
    assert (moved[:, 0][outside] == 0).all()
    shown = 127.5 * (moved[0, 0] + 1)
    bright, dark = (shown > 254.9) & ~outside[0], (shown < 32.1) & ~outside[0]
    assert (there[0][bright] == 1).all()
    assert (there[0][dark] == 0).all()
    scale = 0.5 + 1.5 * numbers[0]
    assert abs(int((~outside).sum()) - min(1, scale) ** 2 * 1024) <= 2 * 32 * min(1, scale) + 1
    assert (bright | dark).sum() >= (~outside).sum() - 2 * (2 * 32 + 4), "all but the edge is as it was"


def recoloured(colour: tuple[float, float, float], **amounts: float) -> np.ndarray:
    """A colour in 0..1 after changes, whose amounts are given in 0..1; the others are left out."""
    numbers = np.ones((1, 8))
    for name, amount in amounts.items():
        index = ("brightness", "contrast", "saturation", "hue").index(name)
        numbers[0, [index, 4 + index]] = 0, amount
    images = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 2, 2) * 2 - 1
    result = _jitter_colours(images, numbers)
    assert result.shape == (1, 3, 2, 2)
    return (result[0, :, 1, 1].numpy() + 1) / 2


colour = st.tuples(*[st.floats(0.05, 0.95)] * 3)
LUMINANCE = np.array([0.299, 0.587, 0.114])


@given(colour=colour, amount=unit)
def test_each_change_of_colour_is_what_its_name_says(colour, amount):
    given_colour = np.array(colour)
    assert np.allclose(recoloured(colour), given_colour, atol=1e-5)
    brighter = recoloured(colour, brightness=amount)
    assert np.allclose(brighter, np.clip(given_colour + (2 * amount - 1) * 32 / 255, 0, 1), atol=1e-5)
    contrast = recoloured(colour, contrast=amount)
    assert np.allclose(contrast, np.clip((0.5 + amount) * given_colour, 0, 1), atol=1e-5)
    grey = given_colour @ LUMINANCE
    saturated = recoloured(colour, saturation=amount)
    wanted = grey + (0.5 + amount) * (given_colour - grey)
    assert np.allclose(saturated, np.clip(wanted, 0, 1), atol=2e-3)
    level = (colour[0],) * 3
    for change in ("hue", "saturation"):
        assert np.allclose(recoloured(level, **{change: amount}), level, atol=1e-5), "grey has no colour to change"


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.9])
def test_hue_turns_colours_and_keeps_their_luminance(amount):
    for muted in ((0.6, 0.5, 0.45), (0.45, 0.6, 0.5), (0.5, 0.45, 0.6)):
        turned = recoloured(muted, hue=amount)
        assert abs(turned @ LUMINANCE - np.array(muted) @ LUMINANCE) < 1e-3
        before, after = colorsys.rgb_to_hsv(*muted)[0], colorsys.rgb_to_hsv(*turned)[0]
        angle = (360 * (after - before) + 180) % 360 - 180
        # Along the circle of another colour space, hence about; 36 degrees either way at most.
        assert abs(abs(angle) - abs(72 * amount - 36)) < 15
        if amount != 0.5:
            back = recoloured(tuple(turned), hue=1 - amount)
            assert np.allclose(back, muted, atol=1e-5)


def test_half_of_each_change_of_colour_is_made():
    draws = BatchPlan.draw(np.random.default_rng(0), 10, 50, 20, "full")
    made = draws.numbers[:, :, 3:7] < 0.5
    assert np.abs(made.mean(axis=(0, 1)) - 0.5).max() < 0.05


@pytest.mark.parametrize("augment", ["flip", "full"])
def test_batches_of_tensors_are_those_of_arrays(augment):
    """As a GPU holds them; on the CPU the arrays stay where they are."""
    plain = task(2)
    split = Split(plain.images, plain.labels, soft=np.random.default_rng(2).random((6, 4, 8, 10)).astype(np.float16))
    assert TrainingArrays.on(split, CPU).images is split.images
    assert split.soft is not None
    held = TrainingArrays(torch.tensor(split.images), torch.tensor(split.labels), torch.tensor(split.soft))
    before = held.images.clone()
    draws = BatchPlan.draw(np.random.default_rng(0), 6, 3, 4, augment)
    for iteration in range(3):
        pairs = zip(batch(split, draws, iteration, CPU), batch(held, draws, iteration, CPU), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(held.images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_sees_the_batch_of_a_cpu():
    split = task(3, size=(64, 64))
    draws = BatchPlan.draw(np.random.default_rng(0), 6, 1, 6, "full")
    (images, labels), (there, labels_there) = (batch(split, draws, 0, torch.device(name)) for name in ("cpu", "cuda"))
    assert torch.allclose(images, there.cpu(), atol=1e-4)
    assert (labels != labels_there.cpu()).float().mean() < 0.001  # the nearest of two that are equally near
