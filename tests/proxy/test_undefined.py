"""Logits and weights that are not finite are said, and never counted as a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autosegloss.errors import InputError, SearchError, TrainingDiverged
from autosegloss.proxy.data import Split
from autosegloss.proxy.networks import build_network
from autosegloss.proxy.networks.weights import matching_weights
from autosegloss.proxy.train import predict
from autosegloss.search.compare import compare
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.objective import proxy_of
from autosegloss.search.retrain import retrain
from autosegloss.search.settings import as_config
from tests.searches import short

CONFIG = short("Overflowing")
DIVERGED = "training diverged: the trained network's logits are not finite at"


class Constant(nn.Module):
    """Logits (N, 3, H, W) of three numbers at each pixel."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1, *images.shape[2:])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_without_a_best_class_is_not_class_0(value: float) -> None:
    split = Split(np.zeros((2, 3, 4, 5), np.uint8), np.zeros((2, 4, 5), np.uint8))
    with pytest.raises(TrainingDiverged) as caught:
        predict(Constant(0.0, 1.0, value), split)
    assert str(caught.value) == f"{DIVERGED} 40 of 40 pixels. Try a lower learning rate."
    with pytest.raises(TrainingDiverged):
        predict(Constant(*[-np.inf] * 3), split)
    assert (predict(Constant(0.0, 1.0, -np.inf), split) == 1).all()  # a class that is ruled out


def test_trials_comparisons_and_retrainings_fail_where_logits_are_nan(tmp_path: Path) -> None:
    proxy = proxy_of(as_config(CONFIG))
    for validate in (False, True):
        with pytest.raises(TrainingDiverged, match=DIVERGED):
            proxy(CROSS_ENTROPY, 0, validate)
    network = proxy.trained(proxy.loss(CROSS_ENTROPY), 0)
    with pytest.raises(TrainingDiverged, match=DIVERGED):
        proxy.calibration_error(network)
    failed = rf"all 2 runs failed; .*table\.md has the errors\. First: `cross_entropy`: TrainingDiverged: {DIVERGED}"
    with pytest.raises(SearchError, match=failed):
        compare(CONFIG, ["cross_entropy"], tmp_path / "compare", seeds=2, runner="serial")
    with pytest.raises(SearchError, match=failed):
        retrain(CONFIG, ["cross_entropy"], tmp_path / "retrain", seeds=2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    network = build_network("unet_small", 3, 6)
    state = {name: weight.clone() for name, weight in network.state_dict().items()}
    state["encoder.levels.0.0.weight"][0, 0, 0, :2] = value
    for part in ("", "encoder."):
        with pytest.raises(InputError) as caught:
            matching_weights(state, network, part, "weights.pt")
        assert str(caught.value) == (
            "weights.pt: `encoder.levels.0.0.weight` is NaN or infinite in 2 of its 432 numbers: the training that "
            "wrote this file diverged. Use weights of an earlier checkpoint."
        )
