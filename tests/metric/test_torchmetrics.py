"""The adapter, with torchmetrics and Lightning themselves; skipped where they are not installed."""

from __future__ import annotations

import copy
import csv
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autosegloss.errors import InputError, InputTypeError
from autosegloss.metric import METRICS, Accumulator, Accumulators, CalibrationError
from tests.metric.test_libraries import batches, exact, library

CLASSES = 4


@pytest.fixture
def adapter() -> Iterator[Any]:
    """The adapter, in float64: it then gives the very values of the accumulators."""
    library("torchmetrics")
    from autosegloss.metric.torchmetrics import TorchMetric

    torch.set_default_dtype(torch.float64)
    yield TorchMetric
    torch.set_default_dtype(torch.float32)


ACCUMULATORS = [
    *(Accumulator(name, CLASSES) for name in METRICS),
    *(CalibrationError(CLASSES, per_image=each) for each in (False, True)),
]


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=repr)
@pytest.mark.slow
def test_the_adapter_has_the_value_of_the_accumulator(adapter: Any, accumulator: Any) -> None:
    data = batches(void=True, absent=True)
    metric = adapter(accumulator)
    for scores, target in data:
        batch = metric(scores, target)
        assert batch.item() == exact(copy.deepcopy(accumulator), [(scores, target)])
    whole = exact(copy.deepcopy(accumulator), data)
    assert metric.compute().item() == whole
    for other in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert other.compute().item() == whole
        other.update(*data[0])
        assert other.compute().item() == exact(copy.deepcopy(accumulator), [*data, data[0]])
    metric.reset()
    metric.update(*data[0])
    assert metric.compute().item() == exact(copy.deepcopy(accumulator), data[:1])


def test_the_adapter_starts_from_nothing_and_leaves_what_it_is_given(adapter: Any) -> None:
    data = batches(void=False, absent=False)
    accumulator = Accumulator("miou_i", CLASSES)
    before = exact(accumulator, data[:1])
    metric = adapter(accumulator)
    with pytest.warns(UserWarning, match="called before the ``update``"):
        assert metric.compute() == 0
    metric.update(*data[1])
    assert metric.compute().item() == exact(Accumulator("miou_i", CLASSES), data[1:2]) != before
    assert accumulator.compute() == before


def test_the_adapter_takes_a_mask(adapter: Any) -> None:
    ((scores, target), *_) = batches(void=False, absent=False)
    mask = target != 1
    metric = adapter(Accumulator("macc", CLASSES))
    metric.update(scores, target, mask=mask)
    expected = Accumulator("macc", CLASSES)
    expected.update(scores, target, mask)
    assert metric.compute().item() == expected.compute()


def test_a_collection_does_not_mix_up_what_agrees_at_first(adapter: Any) -> None:
    """After a first batch without an ignored pixel and without a mistake all of these have counted the same numbers."""
    from torchmetrics import MetricCollection

    members = {
        "miou": Accumulator("miou", CLASSES),
        "macc": Accumulator("macc", CLASSES),
        "miou of another label": Accumulator("miou", CLASSES, ignore_index=0),
        "dice": Accumulator("dice", CLASSES),
    }
    collection = MetricCollection({name: adapter(member) for name, member in members.items()}, compute_groups=True)
    truth = torch.randint(1, CLASSES, (2, 5, 5))
    data = [(truth, truth), *((s.argmax(1), t) for s, t in batches(void=False, absent=False))]
    for guess, target in data:
        collection.update(guess, target)
    for name, value in collection.compute().items():
        assert value.item() == exact(members[name], data), name


def test_a_tracker_knows_which_way_is_better(adapter: Any) -> None:
    from torchmetrics import MetricTracker

    (good, *_) = batches(void=False, absent=False)
    bad = (good[0].flip(1), good[1])
    for accumulator, best in ((Accumulator("miou", CLASSES), 1), (CalibrationError(CLASSES), 1)):
        tracker = MetricTracker(adapter(accumulator))
        for scores, target in (bad, good, bad):
            tracker.increment()
            tracker.update(scores, target)
        assert tracker.best_metric(return_step=True)[1] == best


@pytest.mark.parametrize("given", [3, "miou", Accumulators({"a": "miou"}, 3)])
def test_the_adapter_takes_accumulators_of_one_value(adapter: Any, given: Any) -> None:
    with pytest.raises(InputTypeError) as caught:
        adapter(given)
    assert str(caught.value) == (
        f"accumulator must be an Accumulator or a CalibrationError, got {type(given).__name__}."
    )


def test_a_wrong_batch_counts_nothing(adapter: Any) -> None:
    data = batches(void=False, absent=False)
    metric = adapter(Accumulator("miou_c", CLASSES))
    metric.update(*data[0])
    with pytest.raises(InputError):
        metric.update(data[1][0], data[1][1] + CLASSES)
    assert metric.compute().item() == exact(Accumulator("miou_c", CLASSES), data[:1])


@pytest.mark.filterwarnings("ignore")  # Lightning's hints
@pytest.mark.parametrize("precision", ["32-true", "16-true"])
def test_lightning_logs_it(tmp_path: Path, precision: Any) -> None:
    """The value of the epoch, not a mean over batches, and each epoch by itself."""
    library("torchmetrics")
    lightning = library("lightning.pytorch")
    loggers = library("lightning.pytorch.loggers")
    from autosegloss.metric.torchmetrics import TorchMetric

    accumulators = {
        "miou": Accumulator("miou", CLASSES),
        "miou_i": Accumulator("miou_i", CLASSES),
        "ece": CalibrationError(CLASSES),
    }
    dtype = torch.float32 if precision == "32-true" else torch.float16
    data = [(scores.to(dtype), target) for scores, target in batches(void=True, absent=True)]

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))
            self.scored = torch.nn.ModuleDict({name: TorchMetric(each) for name, each in accumulators.items()})

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return (self.scale * batch[0]).mean()

        def validation_step(self, batch: Any, _: int) -> None:
            for name, metric in self.scored.items():
                metric.update(*batch)
                self.log(f"val/{name}", metric)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = torch.utils.data.DataLoader(data, batch_size=None)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=2,
        logger=loggers.CSVLogger(tmp_path),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    trainer.fit(Module(), loader, loader)
    trainer.logger.save()
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row.get("val/miou")]
    assert len(logged) == 2, "one row an epoch"
    for row in logged:
        for name, accumulator in accumulators.items():
            expected = exact(copy.deepcopy(accumulator), data)
            assert float(row[f"val/{name}"]) == pytest.approx(expected, rel=1e-6), name
            means = [exact(copy.deepcopy(accumulator), [batch]) for batch in data]
            assert expected != pytest.approx(sum(means) / 3, rel=1e-6) or name == "miou_i"
