"""The losses that a search explores: what is a point of the space, and what a configuration makes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import autosegloss as asl
from autosegloss.errors import ConfigError, InputError
from autosegloss.loss import MixedLoss, SurrogateLoss, slots
from autosegloss.loss.classic import CrossEntropy
from autosegloss.loss.file import build_loss
from autosegloss.report.shown import loss_line
from autosegloss.search.content import bare_content
from autosegloss.search.points import start_of
from autosegloss.search.settings import as_config, load_config
from autosegloss.search.space import LossFamily
from tests.faulty import TINY
from tests.journals import trials_of
from tests.searches import COMMANDS, ROOT, configuration

INTERSECTION, UNION = "and[0] of pred & target", "or[0] of pred | target"
FIXED = {"curve": "bezier", "pieces": 1, "logic": "product", "scale": 1, "cross_entropy": 0}
SHARES = ["share of product", "share of lovasz", "share of cross-entropy"]


def family(metric: Any = "miou", labels: str = "hard", **relaxation: Any) -> LossFamily:
    return LossFamily.of(as_config({"metric": metric, "relaxation": relaxation, "proxy": {"labels": {"name": labels}}}))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores and labels of 4 classes, of different frequencies, of which the last is absent."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 4, 9, 9, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 162, replacement=True, generator=generator)
    return logits.requires_grad_(), labels.view(2, 9, 9)


# The coordinates.


@pytest.mark.parametrize(
    ("relaxation", "names"),
    [
        ({}, [f"{INTERSECTION}: v", f"{UNION}: v", "scale", *SHARES, "class_power"]),
        (FIXED, [f"{INTERSECTION}: u", f"{INTERSECTION}: v", f"{UNION}: u", f"{UNION}: v"]),
        ({"curve": "linear", "pieces": 3} | dict.fromkeys(("scale", "cross_entropy"), 0.5) | {"logic": "godel"},
         [*(f"{slot}: {x}" for slot in (INTERSECTION, UNION) for x in ("u1", "v1", "u2", "v2")), "class_power"]),
        ({"curve": "identity", "logic": "lovasz"}, ["scale", *SHARES[1:], "class_power"]),
        ({"curve": "identity", "cross_entropy": 0.25, "class_power": 0.5}, ["scale", *SHARES[:2]]),
        ({"curve": "identity", "cross_entropy": 0, "logic": "product"}, ["scale"]),
    ],
)  # fmt: skip
def test_what_is_fixed_is_no_coordinate(relaxation: dict[str, Any], names: list[str]) -> None:
    found = family(**relaxation)
    assert list(found.names) == names
    assert found.start == (0.5,) * len(names) or relaxation.get("curve") == "linear"
    assert found.text.startswith(f"{len(names)} coordinates: ")
    assert all(name.split(": ")[-1] in found.text for name in names)
    found.check()


def test_a_curve_of_several_slots_has_all_their_names() -> None:
    found = family("bf1", share_curves=True)
    assert len({name for name in found.names if name.endswith(": v")}) == len(found.space.curves)
    assert " and " in found.names[0]


@pytest.mark.parametrize(
    ("metric", "labels", "logics"),
    [
        ("miou", "hard", ("product", "lovasz")),
        ("macc", "hard", ("product", "lovasz")),
        ("0.5 * miou + 0.5 * bf1(radius=2)", "hard", ("product", "lovasz")),
        ("bf1", "hard", ("product",)),
        ("miou", "smoothed", ("godel",)),
        ("miou", "pseudo", ("godel",)),
        ("bf1", "averaged", ("godel",)),
    ],
)
def test_auto_takes_what_suits_the_metric_and_the_labels(metric: str, labels: str, logics: tuple[str, ...]) -> None:
    found = family(metric, labels)
    assert found.logics == logics
    assert found.space.curve == "log"
    logits, target = batch()
    if labels != "hard":
        target = (torch.nn.functional.one_hot(target, 4).movedim(-1, 1) * 0.8 + 0.05).double()
    assert found.loss(found.start)(logits, target) > 0


def test_the_configurations_that_found_the_losses_we_keep_search_curves_alone() -> None:
    for path in (ROOT / "search_configs").glob("*.yaml"):
        found = LossFamily.of(load_config(path))
        alone = len(found.names) == found.space.dimension
        assert alone == (path.stem != "quickstart"), path
    found = LossFamily.of(load_config(ROOT / "search_configs/quickstart.yaml"))
    assert found.names == family().names


# The losses.


def test_the_numbers_of_a_sum_are_those_of_the_formulas() -> None:
    theta = [0.6, 0.3, 0.75, 0.25, 0.5, 0.75, 0.9]
    loss = family().loss(theta)
    assert isinstance(loss, MixedLoss)
    weights = [2.0**3, 2.0**-3, 1.0]  # cross-entropy, product, lovasz
    assert loss.scale == pytest.approx(2**4)
    assert loss.shares == pytest.approx([weight / sum(weights) for weight in weights])
    entropy, product, lovasz = loss.parts
    assert isinstance(entropy, CrossEntropy)
    assert entropy.class_power == pytest.approx(1.1)
    for part, logic in ((product, "product"), (lovasz, "lovasz")):
        assert isinstance(part, SurrogateLoss)
        assert (part.logic, part.control_points) == (logic, [[(0.5, 0.6)], [(0.5, 0.3)]])
    assert loss_line(loss) == (
        "scale 16: 0.877 cross-entropy (class_power 1.1) + 0.0137 product + 0.11 lovasz; curves: "
        f"{INTERSECTION} (0.5, 0.6), {UNION} (0.5, 0.3)"
    )
    assert bare_content(loss) == family().content(theta)

    fixed = family(curve="identity", cross_entropy=0.2, class_power=0, scale=2).loss([0.5, 0.5])
    assert isinstance(fixed, MixedLoss)
    assert (fixed.scale, fixed.shares) == (2, pytest.approx([0.2, 0.4, 0.4]))
    alone = family(curve="identity", logic="lovasz", cross_entropy=0).loss([0.75])
    assert isinstance(alone, SurrogateLoss)
    assert loss_line(alone) == "scale 16: lovasz"
    found = CrossEntropy()
    found.provenance = {"found": "cross-entropy"}
    assert loss_line(found) == "scale 1: cross-entropy"
    with pytest.raises(ConfigError, match="must be below 1: at 1 nothing of the metric is left to search"):
        family(cross_entropy=1)


def test_the_losses_we_keep_are_the_points_that_their_searches_found() -> None:
    """But those of a searched share of cross-entropy, which was one coordinate and is two."""
    for path, command in COMMANDS.items():
        loss, found = asl.load_loss(path), LossFamily.of(configuration(command))
        theta: Any = loss.provenance["theta"]
        if "cross_entropy=searched" in command:
            assert len(theta) == len(found.names) - 1, path
        else:
            assert found.content(theta) == bare_content(loss), path


@given(share=st.floats(0, 1, exclude_max=True), theta=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_with_all_fixed_the_losses_are_those_of_before(share: float, theta: list[float]) -> None:
    plain = SurrogateLoss.from_theta("miou", theta, 1)
    assert family(**FIXED).content(theta) == bare_content(plain)
    mixed = family(**FIXED | {"cross_entropy": share, "class_power": 0}).content(theta)
    assert mixed == bare_content(MixedLoss(plain, share) if share else plain)


@pytest.mark.parametrize("theta", [[0.5] * 6, [0.5] * 8, [0.5] * 6 + [1.5], [0.5, math.nan] + [0.5] * 5])
def test_what_is_no_point_is_refused(theta: list[float]) -> None:
    with pytest.raises(InputError, match=r"theta has [68] coordinates; the losses have 7|theta\[[16]\] must be in"):
        family().loss(theta)


# What can't be.


@pytest.mark.parametrize(
    ("metric", "labels", "relaxation", "message"),
    [
        ("miou", "smoothed", {"logic": "lovasz"}, "`lovasz` needs hard labels, and proxy.labels makes soft ones"),
        ("miou", "pseudo", {"logic": ["product", "lovasz"]}, "`lovasz` needs hard labels"),
        ("bf1", "hard", {"logic": ["godel", "lovasz"]}, "the logic lovasz has nothing to extend in the metric"),
        ("miou", "hard", FIXED | {"curve": "identity"}, "there is nothing to search: 2 identity curve"),
        ("miou", "hard", FIXED | {"curve": "linear"}, r"there is nothing to search: 2 linear curve\(s\) of 1 piece"),
    ],
)
def test_what_does_not_suit_the_metric_or_the_labels_is_refused_before_the_data_is_read(
    metric: str, labels: str, relaxation: dict[str, Any], message: str, tmp_path: Path
) -> None:
    proxy = {"labels": {"name": labels}, "data": {"name": "folder", "root": "nowhere"}}
    config = {"metric": metric, "relaxation": relaxation, "proxy": proxy}
    with pytest.raises(InputError, match=message):
        asl.search(config, runner="serial", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("power", [0.5, "searched"])
def test_a_power_of_classes_needs_cross_entropy(power: Any) -> None:
    with pytest.raises(ConfigError, match=r"relaxation\.class_power: must be 0 or `auto` while `cross_entropy` is 0"):
        as_config({"metric": "miou", "relaxation": {"cross_entropy": 0, "class_power": power}})
    assert "class_power" not in family(cross_entropy=0).names
    assert family(cross_entropy=0, class_power=0).names == family(cross_entropy=0).names


# A real search.


def test_a_search_in_the_whole_space_returns_the_loss_of_its_theta(tmp_path: Path) -> None:
    config = TINY | {"metric": "miou", "relaxation": {}, "search": {"steps": 1, "samples": 2}}
    result = asl.search(config, runner="serial", out=tmp_path / "out")
    assert result.findings.screen is None
    theta = result.findings.theta
    trials = trials_of(tmp_path / "out" / "trials.jsonl")
    assert theta is not None
    assert {len(trial["theta"]) for trial in trials if trial["theta"]} == {len(theta)} == {7}
    assert all(trial["reward"] is not None for trial in trials)

    loss = asl.load_loss(tmp_path / "out" / "loss.json")
    found = LossFamily.of(as_config(config))
    assert bare_content(loss) == found.content(theta)
    configuration: Any = loss.provenance["configuration"]
    assert configuration["relaxation"]["logic"] == "auto"
    assert {len(slots(asl.metric("miou")))} == {len(found.space.curves)}
    network = torch.nn.Conv2d(3, 6, 3, padding=1)
    loss(network(torch.rand(2, 3, 8, 8)), torch.randint(0, 6, (2, 8, 8))).backward()
    assert network.weight.grad is not None
    assert network.weight.grad.abs().sum() > 0


def test_a_search_starts_between_its_best_rivals_and_returns_one_or_better(tmp_path: Path) -> None:
    """The whole path with two rivals; in two iterations nothing is learned, so which is best is luck."""
    rivals = {"losses": ["cross_entropy", "8*lovasz"], "steps": [1, 2], "seeds": 2}
    changes = {"search": {"steps": 1, "samples": 2, "always": True}, "finalists": TINY["finalists"] | {"test_seeds": 5}}
    config = TINY | {"metric": "miou", "relaxation": {}, "rivals": rivals} | changes
    findings = asl.search(config, runner="serial", out=tmp_path / "out").findings
    loss = asl.load_loss(tmp_path / "out" / "loss.json")
    assert bare_content(loss) == findings.loss
    assert loss.provenance["conclusion"] == findings.conclusion
    assert findings.screen is not None
    screened = findings.screen.screened
    family = LossFamily.of(as_config(config), [build_loss(each.arm.loss) for each in screened.best])
    (step,) = findings.steps
    assert step.mu == start_of(family, screened)
    assert findings.theta is None or findings.verdict is not None
    validation: Any = loss.provenance["validation"]
    assert {*validation} == {"cross-entropy", "rival", "found"}
    with pytest.raises(InputError, match="is the same loss as `lovasz`; name each once"):
        asl.search(config | {"rivals": {"losses": ["lovasz", "1*lovasz"]}}, runner="serial", out=tmp_path / "no")
    assert not (tmp_path / "no").exists()
