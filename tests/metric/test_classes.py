"""Metrics of some classes: how they are written, what they are worth, and what is said where they can't be meant."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from autosegloss.errors import AutoseglossError, InputError, LossFileError
from autosegloss.loss import SurrogateLoss, load_loss
from autosegloss.loss.file import build_loss
from autosegloss.metric import METRICS, Accumulator, Expr, class_mean, metric, parse, pred, target, total
from autosegloss.metric.expr import has_class_names, with_class_names

NAMES = ["background", "leaf", "symptom", "grey matter", "target"]
EITHER = total(pred | target)
IOU = total(pred & target) / EITHER
SYMPTOM = class_mean(IOU, where=EITHER, classes=[2])

TRUE = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 3, 3]])
GUESS = torch.tensor([[0, 1, 0, 1, 3, 2, 2, 1, 3, 0]])
SHARES = [2 / 4, 1 / 4, 2 / 3, 1 / 3]  # the IoU of each class


def value(spec: str | Expr | Mapping[str, object], classes: int = 4) -> float:
    accumulator = Accumulator(metric(spec), classes)
    accumulator.update(GUESS, TRUE)
    return accumulator.compute()


def said(spec: Any) -> str:
    with pytest.raises(AutoseglossError) as caught:
        metric(spec, class_names=NAMES)
    return str(caught.value)


def test_spellings_of_the_iou_of_one_class() -> None:
    assert metric("class_mean(total(pred & target) / (u := total(pred | target)), u, classes=2)") is METRICS["miou"](
        classes=[2]
    )
    for spec in (
        "iou(symptom)",
        'iou("symptom")',
        "iou(2)",
        "iou([symptom])",
        "iou(classes=[2])",
        "iou(classes=symptom)",
        "miou(classes=2)",
        "miou(classes=[symptom])",
        "jaccard(classes=(symptom,))",
        {"name": "iou", "class": "symptom"},
        {"name": "iou", "classes": 2},
        {"name": "miou", "class": 2},
        {"name": "miou", "classes": ["symptom"]},
        {"name": "symptom", "expression": "iou(symptom)"},
    ):
        assert metric(spec, class_names=NAMES) is SYMPTOM, spec
    assert metric("iou", classes="grey matter", class_names=NAMES) is metric("iou(3)")
    assert metric('iou("target")', class_names=NAMES) is metric("iou(4)")
    assert metric("iou([leaf, symptom])", class_names=NAMES) is metric("miou(classes=[1, 2])")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("iou", "`iou` needs a class, as in iou(2) or iou(name)."),
        ("iou()", "`iou` needs a class, as in iou(2) or iou(name).\n  iou()\n  ^"),
        ("iou + 1", "`iou` needs a class, as in iou(2) or iou(name)\n  iou + 1\n  ^"),
        ("iou_2", "unknown metric `iou_2` (did you mean `iou(2)`?)."),
        ("iou2", "unknown metric `iou2` (did you mean `iou(2)`?)."),
        ("iou symptom", "this is no expression (did you mean `iou(symptom)`?)\n"),
        ("IoU: symptom", "this is no expression (did you mean `iou(symptom)`?)\n"),
        ("mIoU.2", "this is no expression (did you mean `miou(classes=2)`?)\n"),
        ("symptom iou", "this is no expression (did you mean `iou(symptom)`?)\n"),
        ("symptom_iou", "unknown metric `symptom_iou` (did you mean `iou(symptom)`?)."),
        ("1 - miou_symptom", "unknown name `miou_symptom` (did you mean `miou(classes=symptom)`?); the leaves are "),
        ("iou[2]", "this has no place in an expression; write iou(2)\n  iou[2]\n  ^"),
        ("iou.symptom", "this has no place in an expression; write iou(symptom)\n"),
        ('miou["grey matter"]', 'this has no place in an expression; write miou(classes="grey matter")\n'),
        ("IoU(symptom)", "unknown function `IoU` (did you mean `iou`?).\n"),
        ("IoU of grey matter", 'this is the name of a column; as a metric, write iou("grey matter")\n'),
        ("iou(class=2)", "`class` is a word of Python; write iou(2)\n  iou(class=2)\n      ^"),
        ("dice(class='symptom')", "`class` is a word of Python; write dice(classes=symptom)\n"),
        ("dice(symptom)", "this is no option of dice; if it names a class, write dice(classes=symptom)\n"),
        ("miou([1, 2])", "this is no option of miou; if it names a class, write miou(classes=[1, 2])\n"),
        ("iou(leaf, symptom)", "this is no option of iou; if it names a class, write iou([leaf, symptom])\n"),
        (
            "iou(grey matter)",
            'this can\'t be read; names of classes with spaces or other characters are quoted, as in "grey matter"\n',
        ),
        (
            "iou(grey-matter)",
            'a class is its number, 0 or more, or its name; other names are quoted, as in "grey matter"\n'
            "  iou(grey-matter)\n      ^",
        ),
        ("iou(-1)", "a class is its number, 0 or more, or its name; "),
        ("iou(2.0)", "a class is its number, 0 or more, or its name; "),
        ("iou(True)", "a class is its number, 0 or more, or its name; "),
        ("iou(target)", '`target` has a meaning already; a class of this name is quoted: "target"\n'),
        ("iou(total)", '`total` has a meaning already; a class of this name is quoted: "total"\n'),
        ("miou(only=[1])", "miou: unknown option `only`; allowed: background, classes, weights.\n"),
        ("gacc(classes=1)", "gacc: unknown option `classes` (it does not average over classes); allowed: none.\n"),
        ({"iou": "symptom"}, "a metric with options needs a name, as in {name: biou, radius: 3}, got {'iou': "),
        (
            "iou(sympton)",
            "unknown class `sympton` (did you mean `symptom`?); the classes of the data are 0 `background`, 1 `leaf`, "
            "2 `symptom`, 3 `grey matter`, 4 `target`.",
        ),
        ("iou(5)", "class 5 does not exist; the classes of the data are 0 `background`, 1 `leaf`, "),
        ("miou(classes=[symptom, 2])", "class_mean: classes has 2 twice; give each class once."),
        ("miou(classes=[a, a])", "class_mean: classes has `a` twice; give each class once.\n"),
        ("miou(classes=[])", "class_mean: classes is empty; name at least one class.\n"),
        ('iou("")', "class_mean: '' can't be the name of a class; it has characters that are not printed, or none. "),
        ("iou(" + "9" * 4000 + ")", "class_mean: a number above 2^31 is no class; "),
        ("miou(weights=[1, 2])", "class_mean: there are 2 weights for 5 classes; give one weight per class, or "),
        ("miou(classes=[1, 2], weights=[1])", "class_mean: there are 1 weights for 2 classes; give one per class.\n"),
        ("miou(weights=2)", "class_mean: weights is 2; it is a list with a number per class.\n"),
        ("miou(weights=[0, 0])", "class_mean: all weights are 0; at least one class must count.\n"),
        ("miou(weights=[1, -1])", "class_mean: -1 is no weight of a class; a weight is 0, or from 1e-6 to 1e6.\n"),
        ("miou(weights=['a'])", "class_mean: 'a' is no weight of a class; a weight is 0, or from 1e-6 to 1e6.\n"),
        (
            "miou(classes=[0, 1], background=False)",
            "class_mean: class 0 is in classes, but background=False leaves it out; set background=True, or leave 0 out"
            " of classes.\n",
        ),
        ("miou(classes=[background], background=False)", "class_mean: class 0 is in classes, but background=False "),
        (
            "bf1(weights=[1, 1, 1, 1, 1])",
            "class_mean: class 0 has a weight, but background=False leaves it out; set background=True, or the weight "
            "to 0.\n",
        ),
        ({"name": "a", "expression": "iou(2)", "radius": 3}, "metric `a`: radius can't stand beside `expression`; "),
        ({"name": "a", "expression": 3}, "metric `a`: expression must be a text such as iou(2), got 3."),
        ({"name": "miou", "expression": "iou(2)"}, "the name `miou` belongs to another metric of the catalogue; "),
        ({"name": "iou", "expression": "iou(2)"}, "the name `iou` belongs to another metric of the catalogue; "),
        ({"name": "a" * 61, "expression": "iou(2)"}, "a metric's name must be 1 to 60 printable characters, got "),
    ],
)
def test_what_is_said(spec: Any, expected: str) -> None:
    message = said(spec)
    assert message[: len(expected)] == expected
    assert expected.endswith((" ", "\n")) or message == expected
    assert len(message) <= 1000


def test_values_by_hand() -> None:
    for number, share in enumerate(SHARES):
        assert value(f"iou({number})") == pytest.approx(share)
    assert value("iou(4)", classes=5) == 0  # in neither map
    assert value("miou(classes=[1, 4])", classes=5) == SHARES[1]  # class 4 does not count
    assert value("miou(classes=[1, 2], weights=[1, 3])") == pytest.approx((SHARES[1] + 3 * SHARES[2]) / 4)
    assert value("miou(classes=[2, 1], weights=[3, 1])") == value("miou(classes=[1, 2], weights=[1, 3])")
    assert value("miou(weights=[0, 1, 3, 2])") == pytest.approx((SHARES[1] + 3 * SHARES[2] + 2 * SHARES[3]) / 6)
    assert value("miou(weights=[0, 1, 3, 2], background=False)") == value("miou(weights=[0, 1, 3, 2])")
    assert value("miou(weights=[1, 1, 3, 2, 9])", classes=5) == value("miou(weights=[1, 1, 3, 2])")
    assert value("miou(classes=[1, 2, 3])") == pytest.approx(value("miou(background=False)"))
    assert value("bf1(radius=1, classes=[0, 1, 2, 3])") == pytest.approx(value("bf1(radius=1, background=True)"))
    assert value("miou_c(classes=[2])") == value("miou_i(classes=[2])") == value("iou(2)")  # there is one image


def test_an_image_counts_where_its_target_has_one_of_the_classes() -> None:
    accumulator = Accumulator("miou_i(classes=[1, 2], weights=[1, 2])", 3)
    accumulator.update(torch.tensor([[0, 0], [1, 0], [1, 2]]), torch.tensor([[0, 0], [1, 1], [1, 2]]))
    assert accumulator.compute() == pytest.approx((1 / 2 + 1) / 2)  # not the first image


def test_values_of_classes_are_of_those_that_count() -> None:
    accumulator = Accumulator("miou(classes=[1, 2, 3], weights=[1, 0, 2])", 4)
    accumulator.update(GUESS, TRUE)
    assert accumulator.class_values("metric") == [None, SHARES[1], None, pytest.approx(SHARES[3])]


def test_classes_and_weights_are_part_of_the_metric() -> None:
    expr = class_mean(IOU, classes=[2, 1, 'a "b" \\c'], weights=[3, 0.5, 1])
    assert str(expr) == (
        "class_mean(total(pred & target) / total(pred | target), "
        'classes=[1, 2, "a \\"b\\" \\\\c"], weights=[0.5, 3, 1])'
    )
    assert parse(str(expr)) is expr
    assert pickle.loads(pickle.dumps(expr)) is expr
    assert class_mean(IOU, classes=(1, 2)) is class_mean(IOU, classes=[2, 1])
    assert class_mean(IOU, classes=[1], background=False) is class_mean(IOU, classes=1)
    assert has_class_names(expr)
    found = with_class_names(expr, ['a "b" \\c', "x", "y"])
    assert found is class_mean(IOU, classes=[0, 1, 2], weights=[1, 0.5, 3])
    assert not has_class_names(found)


def test_a_name_is_refused_where_names_are_not_known() -> None:
    expected = (
        "class `symptom` is given by name, but the names of the classes are not known here; give its number, or the "
        "names of all classes: metric(..., class_names=[...])."
    )
    builds = [lambda: Accumulator("iou(symptom)", 3), lambda: SurrogateLoss("1 - iou(symptom)")]
    for build in builds:
        with pytest.raises(InputError) as caught:
            build()
        assert str(caught.value) == expected
    content = SurrogateLoss("iou(1)").content()
    with pytest.raises(LossFileError, match="class `symptom` is given by name"):
        build_loss({**content, "metric": str(metric("iou(symptom)"))})


def test_classes_that_the_data_does_not_have_are_refused(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"^class 3 does not exist; the data has the classes 0 to 2\.$"):
        Accumulator("miou(classes=[1, 3])", 3)
    with pytest.raises(InputError, match="there are 2 weights for 3 classes; give one weight per class, or name the"):
        Accumulator("0.5 * miou + 0.5 * dice(weights=[1, 2])", 3)
    loss = SurrogateLoss("0.5 * miou + 0.5 * miou_i(classes=[1, 3])")
    logits, labels = torch.zeros(1, 3, 4), torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(InputError, match=r"^class 3 does not exist; the data has the classes 0 to 2\.$"):
        loss(logits, labels)
    loss.save(tmp_path / "loss.json")
    again = load_loss(tmp_path / "loss.json")
    wider = torch.zeros(1, 4, 4)
    assert again.content() == loss.content()
    assert again(wider, labels) == loss(wider, labels)
    assert "weights" not in str(loss.content()["metric"])
    loss.save(tmp_path / "loss.py")
    module: dict[str, Any] = {}
    exec((tmp_path / "loss.py").read_text(), module)
    assert module["loss"](wider, labels) == loss(wider, labels)
    with pytest.raises(ValueError, match="the metric is of class 3, but the logits have 3 classes"):
        module["loss"](logits, labels)
