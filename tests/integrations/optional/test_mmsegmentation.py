"""mmsegmentation. The example is `AutosegLoss`; a configuration names it, as `segmentor` does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import autosegloss
from tests.integrations.task import CLASSES, LOSS_FILE, Images, assert_improved, score

pytest.importorskip("mmseg")
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules


@MODELS.register_module()
class AutosegLoss(nn.Module):
    def __init__(self, loss_file, loss_weight=1.0, loss_name="loss_autoseg"):
        super().__init__()
        self.loss = autosegloss.load_loss(loss_file, reduce_over_ranks=True)
        self.loss_weight = loss_weight
        self.loss_name = loss_name  # mmsegmentation trains with all that starts with "loss"

    def forward(self, pred, target, weight=None, ignore_index=255, **kwargs):
        mask = target != ignore_index  # the head's ignore_index, which it passes at each call
        if weight is not None:  # of a pixel sampler: 0 where a pixel is left out
            mask &= weight > 0
        return self.loss_weight * self.loss(pred, target, mask)


def segmentor() -> nn.Module:
    register_all_modules()  # what mmsegmentation's own train.py begins with
    norm = {"type": "BN"}
    return MODELS.build(
        {
            "type": "EncoderDecoder",
            "data_preprocessor": {"type": "SegDataPreProcessor", "size": (64, 64)},
            "backbone": {
                "type": "ResNetV1c",
                "depth": 18,
                "base_channels": 16,
                "strides": (1, 1, 2, 1),
                "norm_cfg": norm,
                "norm_eval": False,
            },
            "decode_head": {
                "type": "FCNHead",
                "in_channels": 128,
                "channels": 32,
                "num_convs": 1,
                "num_classes": CLASSES,
                "norm_cfg": norm,
                "dropout_ratio": 0.0,
                "loss_decode": {"type": "AutosegLoss", "loss_file": str(LOSS_FILE)},
            },
            "test_cfg": {"mode": "whole"},
        }
    )


class FullSize(nn.Module):
    """The segmentor as the other trainers see theirs: from images to logits of the same size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_decode(images, [{"img_shape": images.shape[-2:]}] * len(images))


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = segmentor()
    before = score(FullSize(model))
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=2e-3))
    for _ in range(2):
        for images, labels in DataLoader(Images("train", 256), batch_size=8, shuffle=True):
            samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
            model.train_step({"inputs": list(images), "data_samples": samples}, wrapper)
    assert_improved(before, score(FullSize(model)))


def test_it_leaves_out_what_the_head_says() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, CLASSES, 5, 7), torch.randint(CLASSES, (2, 5, 7))
    weight = torch.ones(2, 5, 7)
    weight[0, 0], labels[0, 1] = 0, 9
    ignored = labels.clone()
    ignored[0, :2] = 255
    loss = AutosegLoss(LOSS_FILE, loss_weight=2.0)
    expected = 2 * autosegloss.load_loss(LOSS_FILE)(logits, ignored)
    torch.testing.assert_close(loss(logits, labels, weight=weight, ignore_index=9), expected)
