"""`search: {offsets: true}`: the reward of a trial after offsets that its images had no part in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

import autosegloss as asl
from autosegloss.errors import ConfigError, DataError
from autosegloss.proxy.data import Split
from autosegloss.proxy.train import to_input
from autosegloss.proxy.trial import TARGET, WITH_OFFSETS, Proxy
from autosegloss.report.tables import main_metrics
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import StudyConfig, as_config, fingerprint
from tests.faulty import TINY

CONFIG = TINY | {"metric": "miou"}


def configured(offsets: bool) -> StudyConfig:
    return as_config(CONFIG | {"search": {"steps": 1, "samples": 2, "offsets": offsets}})


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    return proxy_of(configured(True)).prepare()


def test_a_reward_is_of_halves_with_the_offsets_of_the_other_half(proxy: Proxy) -> None:
    network = proxy.trained(proxy.loss(CROSS_ENTROPY), seed=3)
    classes, heldout, validation = len(proxy.dataset.classes), proxy.dataset.heldout, proxy.dataset.validation

    def logits(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return network.eval()(to_input(split.images, torch.device("cpu"))), torch.from_numpy(split.labels)

    def score(offsets: asl.Offsets, scores: torch.Tensor, labels: torch.Tensor) -> float:
        accumulator = asl.Accumulator("miou", classes)
        accumulator.update(offsets.apply(scores), labels)
        return accumulator.compute()

    scores, labels = logits(heldout)
    even, odd = ((scores[start::2], labels[start::2]) for start in (0, 1))
    assert len(odd[0]) >= 1
    of_even, of_odd = (asl.fit_offsets("miou", [half], classes) for half in (even, odd))
    expected = fmean([score(of_odd, *even), score(of_even, *odd)])
    assert proxy.reward(network) == pytest.approx(expected, abs=1e-6)
    assert not of_even.values.equal(of_odd.values)

    whole = asl.fit_offsets("miou", [(scores, labels)], classes)
    assert proxy.offsets_of(network).values.tolist() == pytest.approx(whole.values.tolist(), abs=1e-6)
    assert proxy.with_offsets(network) == pytest.approx(score(whole, *logits(validation)), abs=1e-6)


def test_a_trial_differs_by_its_reward_and_a_further_value_alone(proxy: Proxy) -> None:
    plain = replace(proxy, offsets=False)
    with_, without = proxy(CROSS_ENTROPY, 5, validate=True), plain(CROSS_ENTROPY, 5, validate=True)
    assert with_.metrics == without.metrics
    assert without.reward == without.metrics["miou"] != with_.reward
    assert list(with_.validation)[:2] == [TARGET, WITH_OFFSETS]
    assert main_metrics(list(with_.validation), configured(True))[:2] == [TARGET, WITH_OFFSETS]
    assert {name: value for name, value in with_.validation.items() if name != WITH_OFFSETS} == without.validation
    assert proxy(CROSS_ENTROPY, 5) == replace(with_, validation={})


def test_offsets_need_two_held_out_images(proxy: Proxy) -> None:
    heldout = Split(
        *(np.ascontiguousarray(maps[:1]) for maps in (proxy.dataset.heldout.images, proxy.dataset.heldout.labels))
    )
    one = replace(proxy.dataset, heldout=heldout)
    assert not proxy_of(configured(False), one).offsets
    with pytest.raises(
        DataError, match=r"search.offsets: the held-out part has 1 of the two images .* search.offsets=f"
    ):
        proxy_of(configured(True), one)


def test_the_key_is_part_of_a_study_only_where_it_is_set(tmp_path: Path) -> None:
    assert fingerprint(configured(True))["search"]["offsets"] is True
    assert "offsets" not in fingerprint(configured(False))["search"]
    with pytest.raises(ConfigError, match=r"search\.offsets: needs the proxy's logits, which a `trial` of your own"):
        as_config({"metric": "miou", "trial": "own:trial", "search": {"offsets": True}})
