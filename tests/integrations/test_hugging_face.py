"""Hugging Face Trainer. The example is `loss_function`, passed as `compute_loss_func`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

import autosegloss
from tests.integrations.task import CLASSES, LOSS_FILE, Images, assert_improved, score


def loss_function(loss_file):
    loss = autosegloss.load_loss(loss_file, ignore_index=255)

    def compute_loss(outputs, labels, num_items_in_batch=None):
        # SegFormer's logits are a quarter of the size.
        logits = functional.interpolate(outputs.logits, size=labels.shape[-2:], mode="bilinear")
        # The trainer adds up what it is given over the batches of a step (gradient_accumulation_steps).
        share = 1 if num_items_in_batch is None else labels.numel() / num_items_in_batch
        return share * loss(logits, labels)

    return compute_loss


class FullSize(nn.Module):
    """The model as the other trainers see theirs: from images to logits of the same size."""

    def __init__(self, model: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return functional.interpolate(self.model(images).logits, size=images.shape[-2:], mode="bilinear")


def segformer() -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=CLASSES,
            depths=[1, 1, 1, 1],
            hidden_sizes=[16, 32, 32, 32],
            num_attention_heads=[1, 1, 1, 1],
            decoder_hidden_size=32,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
        )
    )


def train(model: nn.Module, data: list[Any], folder: Path, **arguments: Any) -> Trainer:
    settings = TrainingArguments(
        folder,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
        **arguments,
    )
    samples = [{"pixel_values": image, "labels": labels} for image, labels in data]
    trainer = Trainer(model, settings, train_dataset=samples, compute_loss_func=loss_function(LOSS_FILE))
    trainer.train()
    return trainer


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    model = segformer()
    before = score(FullSize(model))
    data = list(Images("train", 256))
    train(model, data, tmp_path, num_train_epochs=4, per_device_train_batch_size=8, learning_rate=3e-3)
    assert_improved(before, score(FullSize(model)))


@pytest.mark.slow
def test_accumulated_batches_weigh_as_one(tmp_path: Path) -> None:
    """A step of 2 batches of 4 copies of an image has the gradient of a step of 8 copies."""
    image = Images("train", 1)[0]
    norms = []
    for accumulated in (1, 2):
        trainer = train(
            segformer(),
            [image] * 8,
            tmp_path,
            max_steps=1,
            logging_steps=1,
            per_device_train_batch_size=8 // accumulated,
            gradient_accumulation_steps=accumulated,
        )
        norms.append(float(trainer.state.log_history[0]["grad_norm"]))
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
