"""Keras 3 on torch. The example is `keras_loss`."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import autosegloss
from tests.integrations.task import CLASSES, LOSS_FILE, Images, assert_improved, score

os.environ["KERAS_BACKEND"] = "torch"  # read once, by the first import
keras = pytest.importorskip("keras")


def keras_loss(loss_file):
    loss = autosegloss.load_loss(loss_file, ignore_index=255)

    def call(y_true, y_pred):  # labels (N, H, W), which Keras has made floats, and logits (N, H, W, C)
        return loss(y_pred.movedim(-1, 1), y_true.long())

    return call


class ChannelsFirst(nn.Module):
    """The model as the other trainers see theirs."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.movedim(1, -1), training=self.training).movedim(-1, 1)


def small_model() -> keras.Model:
    """Two scales, added."""
    layers = keras.layers

    def block(maps: keras.KerasTensor, filters: int, strides: int = 1) -> keras.KerasTensor:
        maps = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(maps)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(maps))

    images = keras.Input((64, 64, 3))
    fine = block(block(images, 16), 16)
    coarse = block(block(block(fine, 32, strides=2), 32, strides=2), 16)
    both = layers.Concatenate()([fine, layers.UpSampling2D(4, interpolation="bilinear")(coarse)])
    return keras.Model(images, layers.Conv2D(CLASSES, 1)(block(both, 16)))


def test_it_learns() -> None:
    keras.utils.set_random_seed(0)
    model = small_model()
    before = score(ChannelsFirst(model))
    model.compile(keras.optimizers.AdamW(3e-3), loss=keras_loss(LOSS_FILE))
    data = Images("train", 256)
    model.fit(data.images.movedim(1, -1).numpy(), data.labels.numpy(), batch_size=8, epochs=2, verbose=0)
    assert_improved(before, score(ChannelsFirst(model)))


def test_it_is_the_loss_of_the_same_logits() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, CLASSES, 5, 7), torch.randint(CLASSES, (2, 5, 7))
    labels[0, 0, 0] = 255
    got = keras_loss(LOSS_FILE)(labels.float(), logits.movedim(1, -1))
    np.testing.assert_allclose(got, autosegloss.load_loss(LOSS_FILE)(logits, labels), rtol=1e-6)
