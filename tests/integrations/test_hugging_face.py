"""Hugging Face Trainer. The example is `loss_function`, passed as `compute_loss_func`."""

from __future__ import annotations

from pathlib import Path

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
        return loss(logits, labels)

    return compute_loss


class FullSize(nn.Module):
    """The model as the other trainers see theirs: from images to logits of the same size."""

    def __init__(self, model: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return functional.interpolate(self.model(images).logits, size=images.shape[-2:], mode="bilinear")


def test_it_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=CLASSES,
            depths=[1, 1, 1, 1],
            hidden_sizes=[16, 32, 32, 32],
            num_attention_heads=[1, 1, 1, 1],
            decoder_hidden_size=32,
        )
    )
    before = score(FullSize(model))
    arguments = TrainingArguments(
        tmp_path,
        num_train_epochs=4,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    data = [{"pixel_values": image, "labels": labels} for image, labels in Images("train", 256)]
    Trainer(model, arguments, train_dataset=data, compute_loss_func=loss_function(LOSS_FILE)).train()
    assert_improved(before, score(FullSize(model)))
