"""nnU-Net. The example is `AutosegLossMixin` and a trainer with it: in a file in the folder $nnUNet_extTrainer, run as
`nnUNetv2_train ... -tr ShapesTrainer`.

The test takes real steps of that trainer: nnU-Net's network, optimizer and deep supervision. The batches are handed to
it, so nnU-Net's planning, preprocessing and augmentation are not run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import autosegloss
from tests.integrations.task import CLASSES, LOSS_FILE, Images, assert_improved, score

pytest.importorskip("nnunetv2")
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class FloatLabels(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, logits, target):  # nnU-Net's labels (B, 1, *S) may be floats
        return self.loss(logits, target.long())


class AutosegLossMixin:
    loss_file: Path

    def _build_loss(self):
        if self.label_manager.has_regions:
            raise NotImplementedError("a surrogate loss takes one label a pixel, not regions that overlap")
        ignored = self.label_manager.ignore_label  # None where the data set has none
        options = {} if ignored is None else {"ignore_index": ignored}
        mine = FloatLabels(autosegloss.load_loss(self.loss_file, reduce_over_ranks=True, **options))
        if not self.enable_deep_supervision:
            return mine
        theirs = super()._build_loss()  # a weighted sum over the scales, with nnU-Net's weights
        theirs.loss = mine
        return theirs


class ShapesTrainer(AutosegLossMixin, nnUNetTrainer):
    loss_file = LOSS_FILE


def plans() -> dict:
    """Of a network with three scales, as nnU-Net's planner writes them."""
    stages = 3
    network = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [16, 32, 32],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3]] * stages,
            "strides": [[1, 1], [2, 2], [2, 2]],
            "n_conv_per_stage": [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "plans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 8,
        "patch_size": [64, 64],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 3,
        "use_mask_for_norm": [False] * 3,
        "batch_dice": True,
        "architecture": network,
    }
    return {
        "dataset_name": "Dataset001_Shapes",
        "plans_name": "plans",
        "continue_training": False,  # nnU-Net's run_training adds it
        "configurations": {"2d": configuration},
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
    }


DATASET = {
    "channel_names": {"0": "red", "1": "green", "2": "blue"},
    "labels": {"background": 0, **{f"shape {number}": number for number in range(1, CLASSES)}},
    "file_ending": ".png",
}


class FullSize(nn.Module):
    """The network as the other trainers see theirs: without the outputs of the smaller scales."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nnUNetTrainer:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    cases = tmp_path / "Dataset001_Shapes" / "plans_2d"
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()  # nnU-Net reads the format of the preprocessed cases off their names
    torch.manual_seed(0)
    return ShapesTrainer(plans(), "2d", 0, DATASET, device=torch.device("cpu"))


def test_it_learns(trainer: nnUNetTrainer) -> None:
    trainer.initialize()
    before = score(FullSize(trainer.network))
    for _ in range(2):
        for images, labels in DataLoader(Images("train", 256), batch_size=8, shuffle=True):
            target = labels[:, None].float()
            trainer.train_step({"data": images, "target": [target, target[..., ::2, ::2]]})
    assert_improved(before, score(FullSize(trainer.network)))


def test_the_scales_have_the_weights_of_nnunet(trainer: nnUNetTrainer) -> None:
    trainer.initialize()
    theirs = nnUNetTrainer._build_loss(trainer)
    assert list(trainer.loss.weight_factors) == list(theirs.weight_factors)
    trainer.enable_deep_supervision = False
    logits, labels = torch.randn(2, CLASSES, 8, 8), torch.randint(CLASSES, (2, 1, 8, 8))
    torch.testing.assert_close(trainer._build_loss()(logits, labels.float()), trainer.loss.loss.loss(logits, labels))
