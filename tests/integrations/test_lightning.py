"""Lightning. The examples are `Segmenter`, and `train`, which makes it the trial of a search."""

from __future__ import annotations

from functools import cache

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

import autosegloss
from autosegloss.metric.torchmetrics import TorchMetric
from autosegloss.search.jobs import Job
from autosegloss.search.own_trial import TrialObjective
from autosegloss.search.settings import as_config
from tests.integrations.task import CLASSES, LOSS_FILE, Images, assert_improved, score, small_network


class Segmenter(lightning.LightningModule):
    def __init__(self, network, loss_file, num_classes):
        super().__init__()
        self.network = network
        self.loss = autosegloss.load_loss(loss_file, ignore_index=255, reduce_over_ranks=True)
        self.miou = TorchMetric(autosegloss.Accumulator("miou", num_classes, ignore_index=255))

    def training_step(self, batch, index):
        images, labels = batch
        return self.loss(self.network(images), labels)

    def validation_step(self, batch, index):
        images, labels = batch
        self.miou.update(self.network(images), labels)
        self.log("miou", self.miou, on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def train(loss, seed, budget):
    lightning.seed_everything(seed, verbose=False)
    model = Segmenter(small_network(seed), "cross_entropy", CLASSES)
    model.loss = loss
    epochs = max(1, round(budget * EPOCHS))
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="auto", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, *loaders())
    return trainer.callback_metrics  # {"miou": tensor(0.71)}


EPOCHS = 1


@cache
def loaders():
    return DataLoader(Images("train", 16), batch_size=8, shuffle=True), DataLoader(Images("heldout", 8), batch_size=8)


# Lightning advises workers for the data, which so few images do not need.
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")  # its own use
@pytest.mark.slow
def test_it_learns() -> None:
    network = small_network()
    before = score(network)
    model = Segmenter(network, LOSS_FILE, CLASSES)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(
        model,
        DataLoader(Images("train", 256), batch_size=8, shuffle=True),
        DataLoader(Images("heldout", 32), batch_size=8),
    )
    assert_improved(before, score(network))
    assert trainer.callback_metrics["miou"].item() == pytest.approx(score(network)[1], abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
@pytest.mark.slow
def test_it_is_a_trial() -> None:
    trial = TrialObjective.of(as_config({"metric": "miou", "trial": f"{__name__}:train"}))
    job = Job("search", 0, 0, autosegloss.load_loss("jml").content(), seed=3)
    outcome = trial(job).checked()
    assert outcome.error is None
    assert outcome.metrics == {"miou": outcome.reward}
    assert trial(job).metrics == outcome.metrics, "the same arguments give the same numbers"
