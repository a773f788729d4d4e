"""Scaled surrogates and weighted sums of any losses: their values, their canonical form and their files."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autosegloss.errors import InputError, InputTypeError, LossFileError
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss, build_loss, load_loss
from autosegloss.loss.classic import CrossEntropy, Focal
from autosegloss.report.pages import sections
from autosegloss.report.plots import curves_of, formula, plot_loss, surrogates
from tests import strategies
from tests.examples import examples

weights = st.floats(1e-2, 1e2)
losses: st.SearchStrategy[Loss] = st.one_of(
    strategies.pixel_losses(),
    st.builds(lambda scale: SurrogateLoss("miou", curve="identity", ignore_index=7, scale=scale), weights),
    st.builds(lambda share: MixedLoss(SurrogateLoss("biou", ignore_index=7), share), st.floats(0, 1)),
)
sums = st.lists(st.tuples(weights, losses), min_size=1, max_size=5)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (2, 3, 6, 5) that have a gradient, and labels (2, 6, 5), some of them 7."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 6, 5), generator=generator)
    labels[:, 0] = 7
    return torch.randn(2, 3, 6, 5, generator=generator, dtype=dtype).requires_grad_(), labels


def value_and_gradient(loss: Any, *others: Any) -> tuple[float, Tensor]:
    logits, labels = batch()
    value = loss(logits, *(others or (labels,)))
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient


def assert_close(one: tuple[float, Tensor], other: tuple[float, Tensor]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-12)
    torch.testing.assert_close(one[1], other[1], rtol=1e-9, atol=1e-12)


# Values ---------------------------------------------------------------------------------------------------------------


@examples(20)
@given(terms=sums)
def test_a_sum_is_the_sum_and_its_file_holds_it(terms: list[tuple[float, Loss]]) -> None:
    loss = MixedLoss(terms)
    seen = value_and_gradient(loss)
    assert_close(seen, value_and_gradient(lambda x, y: sum(weight * part(x, y) for weight, part in terms)))
    assert sum(loss.shares) == pytest.approx(1, abs=1e-12)
    assert not [part for part in loss.parts if isinstance(part, MixedLoss) or getattr(part, "scale", 1) != 1]

    content = json.loads(json.dumps(loss.content()))
    again = build_loss(content, ignore_index=7)
    assert again.content() == content
    assert isinstance(again, MixedLoss)
    assert (again.scale, again.shares) == (loss.scale, loss.shares)
    once_more = value_and_gradient(again)
    assert once_more[0] == seen[0]
    assert torch.equal(once_more[1], seen[1])
    assert repr(again) == repr(loss)
    of_sums = MixedLoss([(2, loss), (1, CrossEntropy(ignore_index=7))])
    assert_close(
        value_and_gradient(of_sums),
        value_and_gradient(lambda x, y: 2 * loss(x, y) + CrossEntropy(ignore_index=7)(x, y)),
    )


@pytest.mark.parametrize("fused", [True, False])
def test_a_scale_multiplies_value_and_gradient(fused: bool) -> None:
    plain, scaled = (SurrogateLoss.from_theta("miou", [0.3] * 12, ignore_index=7, scale=scale) for scale in (1.0, 0.3))
    plain.fused = scaled.fused = fused
    assert_close(value_and_gradient(scaled), value_and_gradient(lambda x, y: 0.3 * plain(x, y)))
    _, labels = batch()
    exact = torch.where(torch.nn.functional.one_hot(labels % 7, 3).movedim(-1, 1) > 0, 1e4, -1e4)
    assert SurrogateLoss("miou", scale=5)(-exact, labels % 7).item() == pytest.approx(
        5 * SurrogateLoss("miou")(-exact, labels % 7).item()
    )
    assert scaled.content()["scale"] == 0.3
    assert "scale=0.3" in repr(scaled)


def test_a_sum_in_its_other_uses() -> None:
    """Soft labels, masks, half precision, compiled, copied, pickled, with another label of ignored pixels."""
    jml = load_loss("jml")
    loss = MixedLoss([(3, jml), (0.5, CrossEntropy(label_smoothing=0.1))])
    logits, _ = batch()
    soft = torch.randn(logits.shape, dtype=torch.float64).softmax(1)
    mask = torch.rand(2, 6, 5) < 0.7

    def by_hand(*arguments: Tensor) -> Tensor:
        value: Tensor = 3 * jml(*arguments) + 0.5 * CrossEntropy(label_smoothing=0.1)(*arguments)
        return value

    assert_close(value_and_gradient(loss, soft, mask), value_and_gradient(by_hand, soft, mask))
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(logits.bfloat16(), soft).dtype == torch.float32
    with pytest.raises(InputTypeError, match="not defined for soft labels"):
        MixedLoss([(1, jml), (1, Focal())])(logits, soft)

    loss.ignore_index = 7
    assert {part.ignore_index for part in loss.parts} == {loss.ignore_index} == {7}
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), torch.compile(loss, backend="eager")):
        assert_close(value_and_gradient(again), value_and_gradient(loss))


def test_the_canonical_form() -> None:
    surrogate, plain = SurrogateLoss("miou", scale=2), CrossEntropy()
    surrogate.provenance = {"name": "mine"}
    loss = MixedLoss([(3, surrogate), (2, MixedLoss([(1, plain), (4, Focal())]))])
    assert (loss.scale, loss.shares) == (16, (6 / 16, 2 / 16, 8 / 16))
    assert [type(part) for part in loss.parts] == [SurrogateLoss, CrossEntropy, Focal]
    assert surrogate.scale == 2, "that of the caller stays"
    assert loss.provenance == {}
    assert not hasattr(loss, "cross_entropy")
    assert not hasattr(loss, "surrogate")
    assert "weights=(6, 2, 8)" in repr(loss)
    assert "Focal(gamma=2.0, weight=None, ignore_index=255)" in repr(loss)

    # One surrogate and plain cross-entropy of weight 1 is the old form, however it is made.
    old = MixedLoss(SurrogateLoss("miou"), 0.1)
    for same in (
        MixedLoss([(0.1, plain), (0.9, SurrogateLoss("miou"))]),
        MixedLoss([(0.45, surrogate), (0.1, plain)]),
        MixedLoss([(1, old)]),
    ):
        assert same.content() | {"provenance": {}} == old.content()
        assert (same.cross_entropy, same.surrogate.scale) == (0.1, 1)
    assert MixedLoss(surrogate, 0.25).scale == 1.75
    assert [type(part) for part in MixedLoss(surrogate, 0).parts] == [SurrogateLoss]
    assert MixedLoss(surrogate, 0.25).provenance == {"name": "mine"}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: SurrogateLoss("miou", scale=0), "scale must be a number above 0 and at most 1,000,000, got 0."),
        (lambda: SurrogateLoss("miou", scale=2e6), "scale must be a number above 0 and at most 1,000,000, got 2000000"),
        (lambda: SurrogateLoss("miou", scale=float("nan")), "scale must be a number above 0"),
        (lambda: SurrogateLoss("miou", scale=True), "scale must be a number above 0"),
        (lambda: SurrogateLoss("miou", scale=10**400), "scale must be a number above 0"),
        (lambda: SurrogateLoss("miou", scale=cast("Any", "1")), "scale must be a number above 0"),
        (lambda: MixedLoss([]), "a sum must have 1 to 16 parts, got none."),
        (lambda: MixedLoss([(1, CrossEntropy())] * 17), "a sum must have 1 to 16 parts, got more."),
        (lambda: MixedLoss([(1, MixedLoss(SurrogateLoss("miou")))] * 9), "a sum must have 1 to 16 parts, got more."),
        (lambda: MixedLoss([(1, CrossEntropy()), (0, Focal())]), "the weight of part 1 must be a number above 0"),
        (lambda: MixedLoss([(-1, CrossEntropy())]), "the weight of part 0 must be a number above 0"),
        (lambda: MixedLoss([(1e6, CrossEntropy()), (1, Focal())]), "the sum of the weights must be a number above 0"),
        (lambda: MixedLoss([(5e-324, CrossEntropy()), (10, Focal())]), "the weight 4.94066e-324 is too small beside"),
        (
            lambda: MixedLoss([(1, CrossEntropy()), (1, Focal(ignore_index=7))]),
            "the parts of a sum must have one ignore_index, got 7, 255.",
        ),
        (lambda: MixedLoss(cast("Any", [CrossEntropy()])), "part 0 must be a pair (weight, Loss), got CrossEntropy."),
        (
            lambda: MixedLoss(cast("Any", [(CrossEntropy(), 1)])),
            "part 0 must be a pair (weight, Loss), got (CrossEntropy, 1).",
        ),
        (
            lambda: MixedLoss(cast("Any", [(1, torch.nn.ReLU())])),
            "part 0 must be a pair (weight, Loss), got (1, ReLU).",
        ),
        (
            lambda: MixedLoss(cast("Any", "jml")),
            "a sum must be a list of pairs (weight, loss), or one SurrogateLoss, got 'jml'.",
        ),
        (lambda: MixedLoss([(1, CrossEntropy())], 0.5), "cross_entropy is for one surrogate"),
    ],
)
def test_mistakes_in_the_arguments(build: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        build()
    assert str(caught.value).startswith(expected)


def test_a_sum_is_shown_with_each_part_and_its_weight(tmp_path: Path) -> None:
    """In formulas, pictures and pages; curves that two surrogates share are drawn once."""
    loss = MixedLoss([(2, SurrogateLoss("miou")), (6, SurrogateLoss("miou", logic="godel")), (0.5, CrossEntropy())])
    loss = MixedLoss([(1, loss), (1, Focal())])
    iou = "class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)"
    assert formula(loss) == (f"2 * (1 - {iou}) + 6 * (1 - {iou}) + 0.5 * cross-entropy + focal")
    assert formula(SurrogateLoss("miou", scale=3)) == f"3 * (1 - {iou})"
    assert len(surrogates(loss)) == 2
    assert [str(slot) for slot, _ in curves_of(loss)] == ["and[0] of pred & target", "or[0] of pred | target"]
    page = sections.curves(loss)
    assert page.count("<figure>") == 2
    assert "(<code>product</code>, <code>godel</code>)" in page
    assert "has no curves" in sections.curves(MixedLoss([(1, Focal()), (2, CrossEntropy())]))
    picture = tmp_path / "curves.png"
    plot_loss(loss, picture)
    assert picture.exists()


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_files_are_those_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "loss.json"
    slots = '"slots": {\n{}  "and[0] of pred & target": [],\n{}  "or[0] of pred | target": []\n{}}'
    metric = '"class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)"'
    head = '{\n  "format": "autosegloss-loss",\n  "version": 3,\n'
    loss: Loss = SurrogateLoss("miou", scale=8)
    loss.save(path)
    assert path.read_text() == (
        f'{head}  "scale": 8.0,\n  "metric": {metric},\n  "logic": "product",\n  "classes": "metric",\n'
        f'  "curve": "bezier",\n  {slots.replace("{}", "  ", 2).replace("{}}", "  }")},\n  "provenance": {{}}\n}}\n'
    )
    assert load_loss(path).content() == loss.content()
    loss = MixedLoss([(2, SurrogateLoss("miou")), (6, Focal())])
    loss.provenance = {"seeds": [{"a": 1}, 2]}
    loss.save(path)
    assert path.read_text() == (
        f'{head}  "scale": 8.0,\n  "parts": [\n    {{\n      "share": 0.25,\n      "metric": {metric},\n'
        '      "logic": "product",\n      "classes": "metric",\n      "curve": "bezier",\n'
        f"      {slots.replace('{}', '      ', 2).replace('{}}', '      }')}\n    }},\n"
        '    {\n      "share": 0.75,\n      "loss": "focal",\n      "options": {\n        "gamma": 2.0,\n'
        '        "weight": null\n'
        '      }\n    }\n  ],\n  "provenance": {\n    "seeds": [{"a": 1}, 2]\n  }\n}\n'
    )
    again = load_loss(path, ignore_index=7, reduce_over_ranks=True)
    assert again.content() == loss.content()
    assert isinstance(again, MixedLoss)
    assert [part.ignore_index for part in again.parts] == [7, 7]
    assert isinstance(again.parts[0], SurrogateLoss)
    assert again.parts[0].reduce_over_ranks


PIXEL = {"share": 1, "loss": "focal", "options": {"gamma": 2, "weight": None}}
SURROGATE = {key: SurrogateLoss("miou").content()[key] for key in ("metric", "logic", "classes", "curve", "slots")}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"scale": 0}, "scale must be a number above 0 and at most 1,000,000, got 0."),
        ({"scale": 1e7}, "scale must be a number above 0 and at most 1,000,000, got 10000000.0."),
        ({"scale": None}, "scale must be a number above 0 and at most 1,000,000, got None."),
        ({"parts": {}}, "parts must be a list of 1 to 16 losses, got {}."),
        ({"parts": []}, "parts must be a list of 1 to 16 losses, got 0."),
        ({"parts": [PIXEL] * 17}, "parts must be a list of 1 to 16 losses, got 17."),
        ({"parts": [PIXEL, 3]}, "part 1 must be a mapping, got 3."),
        ({"parts": [PIXEL | {"share": 0}]}, "part 0: share must be a number above 0 and at most 1, got 0."),
        ({"parts": [PIXEL | {"share": "1"}]}, "part 0: share must be a number above 0 and at most 1, got '1'."),
        ({"parts": [PIXEL | {"share": 0.5}]}, "the shares of the parts must sum to 1, got 0.5."),
        ({"parts": [PIXEL, PIXEL]}, "the shares of the parts must sum to 1, got 2."),
        ({"parts": [{"share": 1, "scale": 1, "parts": [PIXEL]}]}, "part 0 is a sum itself; list its parts"),
        ({"parts": [SURROGATE | {"share": 1, "cross_entropy": 0.5}]}, "part 0 is a sum itself; list its parts"),
        ({"parts": [{"share": 1}]}, "part 0: missing: classes, curve, logic, metric, slots."),
        ({"parts": [SURROGATE]}, "part 0: missing: share."),
        (
            {"parts": [SURROGATE | {"share": 1, "scale": 2}]},
            "part 0: unknown: scale; allowed: classes, curve, logic, metric, share, slots.",
        ),
        ({"parts": [PIXEL | {"provenance": {}}]}, "part 0: unknown: provenance; allowed: loss, options, share."),
        ({"parts": [PIXEL | {"loss": "lovas"}]}, "part 0: loss is 'lovas'; allowed: cross_entropy, "),
        ({"parts": [PIXEL | {"options": {}}]}, "part 0: options of focal: missing: gamma, weight."),
        ({"parts": [SURROGATE | {"share": 1, "logic": "or"}]}, "part 0: logic is 'or'; allowed: product, godel"),
        ({"parts": [SURROGATE | {"share": 1, "slots": {}}]}, "part 0: slot `and[0] of pred & target` is missing"),
        ({"metric": "miou"}, "unknown: metric; allowed: format, parts, provenance, scale, version."),
        (SURROGATE | {"parts": None, "scale": -1}, "scale must be a number above 0 and at most 1,000,000, got -1."),
    ],
)
def test_an_impossible_sum(changed: dict[str, Any], expected: str) -> None:
    content = {"format": "autosegloss-loss", "version": 3, "scale": 2, "parts": [PIXEL], "provenance": {}} | changed
    if "slots" in content:  # a surrogate
        del content["parts"]
    with pytest.raises(LossFileError) as caught:
        build_loss(content)
    assert str(caught.value).startswith("loss: part" if expected.startswith("part ") else "loss: ")
    assert str(caught.value).removeprefix("loss: ").startswith(expected)


@pytest.mark.parametrize(("key", "value"), [("logic", "lovasz"), ("curve", "log")])
def test_what_is_younger_than_a_version_is_not_read_from_it(key: str, value: str) -> None:
    for version, more in ((1, {}), (2, {"cross_entropy": 0.5})):
        content = SurrogateLoss("miou").content() | {"version": version, key: value} | more
        with pytest.raises(LossFileError, match=f"loss: {key} is '{value}'; allowed: ") as caught:
            build_loss(content)
        assert value not in str(caught.value).partition("allowed")[2]
