from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import autosegloss as asl
from autosegloss.errors import InputTypeError, LossFileError, shown
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss, build_loss, load_loss, named_loss, presets
from autosegloss.loss.classic import CLASSICS, CrossEntropy
from tests import strategies
from tests.examples import examples

ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "autosegloss" / "loss" / "presets"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def example(**changes: Any) -> SurrogateLoss:
    options: dict[str, Any] = {"logic": "godel", "classes": "all", "curve": "linear"}
    loss = SurrogateLoss("miou", [[(0.1, 0.7)], [(1 / 3, 0.2), (1.0, 0.30000000000000004)]], **(options | changes))
    loss.provenance = {"name": "é", "seeds": [1, 2], "reward": 0.1 + 0.2, "nested": {"deep": [{"a": None}, True]}}
    return loss


def message(function: Any, *arguments: Any) -> str:
    with pytest.raises(LossFileError) as caught:
        function(*arguments)
    assert type(caught.value) is LossFileError
    return str(caught.value)


def refusal(path: str) -> str:
    """Why the file is refused; the start of a reason if it loads. Any error but LossFileError comes through."""
    try:
        load_loss(path)
    except LossFileError as error:
        return str(error)
    return f"{path}: "


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


# Round trips ----------------------------------------------------------------------------------------------------------


@examples(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    loss=strategies.losses(classes=st.sampled_from(["metric", "all", "present"])),
    provenance=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), json_values, max_size=3),
    ignored=st.sampled_from([255, 0, -100]),
    labels=strategies.labels(),
)
@pytest.mark.slow
def test_a_saved_loss_is_the_same_loss(
    loss: SurrogateLoss, provenance: dict[str, Any], ignored: int, labels: strategies.Labels
) -> None:
    loss.provenance = provenance
    loss.save("first.json")
    again = load_loss("first.json", ignored)
    assert isinstance(again, SurrogateLoss)
    assert again.expr is loss.expr
    assert again.control_points == loss.control_points  # equal floats, not close ones
    assert (again.logic, again.curve, again.classes) == (loss.logic, loss.curve, loss.classes)
    assert again.ignore_index == ignored
    assert again.provenance == provenance
    again.save("second.json")
    assert Path("second.json").read_bytes() == Path("first.json").read_bytes()
    loss.ignore_index = ignored
    truth = labels.tensors()[1].remainder(5).remainder(labels.num_classes)
    logits = torch.randn(len(truth), labels.num_classes, *truth.shape[1:], generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(logits, truth), loss(logits, truth))


def test_the_file_is_that_of_the_format() -> None:
    example().save("loss.json")
    assert Path("loss.json").read_text(encoding="utf-8") == (
        "{\n"
        '  "format": "autosegloss-loss",\n'
        '  "version": 1,\n'
        '  "metric": "class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)",\n'
        '  "logic": "godel",\n'
        '  "classes": "all",\n'
        '  "curve": "linear",\n'
        '  "slots": {\n'
        '    "and[0] of pred & target": [[0.1, 0.7]],\n'
        '    "or[0] of pred | target": [[0.3333333333333333, 0.2], [1.0, 0.30000000000000004]]\n'
        "  },\n"
        '  "provenance": {\n'
        '    "name": "é",\n'
        '    "seeds": [1, 2],\n'
        '    "reward": 0.30000000000000004,\n'
        '    "nested": {\n'
        '      "deep": [{"a": null}, true]\n'
        "    }\n"
        "  }\n"
        "}\n"
    )


def test_a_mix_is_a_file_of_version_2() -> None:
    MixedLoss(example(), 0.1 + 0.2).save("mixed.json")
    example().save("loss.json")
    lines = Path("loss.json").read_text(encoding="utf-8").splitlines(keepends=True)
    lines[2] = '  "version": 2,\n  "cross_entropy": 0.30000000000000004,\n'
    assert Path("mixed.json").read_text(encoding="utf-8") == "".join(lines)
    loss = load_loss("mixed.json", ignore_index=7, reduce_over_ranks=True)
    assert isinstance(loss, MixedLoss)
    assert loss.cross_entropy == 0.1 + 0.2
    assert (loss.surrogate.ignore_index, loss.surrogate.reduce_over_ranks) == (7, True)
    assert loss.provenance == example().provenance
    loss.save("again.json")
    assert Path("again.json").read_bytes() == Path("mixed.json").read_bytes()


@pytest.mark.parametrize("name", [*CLASSICS, "jml", "asl/voc/bf1", "0.25*cross_entropy + 0.75*shapes/miou"])
def test_every_named_loss_is_rebuilt_from_its_content(name: str) -> None:
    loss = named_loss(name, ignore_index=7, counts=[30, 20, 5])
    loss.provenance = {"name": name}
    content = loss.content()
    assert json.loads(json.dumps(content)) == content  # plain JSON values
    again = build_loss(content, ignore_index=7)
    assert type(again) is type(loss)
    assert (again.content(), again.ignore_index, again.provenance) == (content, 7, {"name": name})
    assert_equal(again, loss)
    loss.save("loss.json")
    assert load_loss("loss.json").content() == content
    assert repr(again) == repr(loss)


@examples(60)
@given(loss=strategies.pixel_losses(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_loss_that_is_no_surrogate_is_rebuilt_to_the_last_bit(loss: Loss, dtype: torch.dtype) -> None:
    content = json.loads(json.dumps(loss.content()))
    assert content["version"] == 3
    assert_equal(build_loss(content, ignore_index=7), loss, dtype)


def assert_equal(one: Loss, other: Loss, dtype: torch.dtype = torch.float32) -> None:
    """Equal values and gradients on a batch of 3 classes, with 7 for ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 6, 5), generator=generator)
    labels[:, 0] = 7
    seen = []
    for loss in (one, other):
        logits = torch.randn(2, 3, 6, 5, generator=generator.manual_seed(1), dtype=dtype).requires_grad_()
        value = loss(logits, labels)
        value.backward()
        seen.append((value.detach(), logits.grad))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


def test_equal_losses_are_told_from_others() -> None:
    with pytest.raises(AssertionError):
        assert_equal(CrossEntropy([1, 2, 3], ignore_index=7), CrossEntropy([1, 2, 4], ignore_index=7))


def test_a_loss_that_is_no_surrogate_is_a_file_of_version_3() -> None:
    loss = CrossEntropy([1, 0.1 + 0.2], label_smoothing=0.1, reduce_over_ranks=True)
    loss.provenance = {"name": "é"}
    loss.save("loss.json")
    assert Path("loss.json").read_text(encoding="utf-8") == (
        "{\n"
        '  "format": "autosegloss-loss",\n'
        '  "version": 3,\n'
        '  "loss": "cross_entropy",\n'
        '  "options": {\n'
        '    "weight": [1.0, 0.30000000000000004],\n'
        '    "label_smoothing": 0.1\n'
        "  },\n"
        '  "provenance": {\n'
        '    "name": "é"\n'
        "  }\n"
        "}\n"
    )
    again = load_loss("loss.json", reduce_over_ranks=True)
    assert isinstance(again, CrossEntropy)
    assert again.reduce_over_ranks
    assert not load_loss("loss.json").reduce_over_ranks


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        ("focus", {}, "loss is 'focus'; allowed: cross_entropy, focal, boundary_cross_entropy."),
        (["focal"], {}, "loss is ['focal']; allowed: cross_entropy, focal, boundary_cross_entropy."),
        ("focal", [], "options must be a mapping, got []."),
        ("focal", {"weight": None}, "options of focal: missing: gamma."),
        (
            "focal",
            {"gamma": 2, "weight": None, "alpha": 1, "ignore_index": 0},
            "options of focal: unknown: alpha, ignore_index; allowed: gamma, weight.",
        ),
        ("focal", {"gamma": -1, "weight": None}, "gamma must be a number of at least 0, got -1."),
        ("focal", {"gamma": "2", "weight": None}, "gamma must be a number of at least 0, got '2'."),
        ("focal", {"gamma": None, "weight": None}, "gamma must be a number of at least 0, got None."),
        (
            "focal",
            {"gamma": 10**400, "weight": None},
            "gamma must be a finite number, got an integer too large for a float.",
        ),
        (
            "focal",
            {"gamma": 2, "weight": [1, -1]},
            "weight must be finite and at least 0 for each class, got [1.0, -1.0].",
        ),
        (
            "cross_entropy",
            {"weight": None, "label_smoothing": 1.5},
            "label_smoothing must be a number from 0 to 1, got 1.5.",
        ),
        *(
            (
                "cross_entropy",
                {"weight": weight, "label_smoothing": 0},
                f"weight must be a list of numbers, one for each class, got {shown(weight)}.",
            )
            for weight in ("1", [True, 1.0], [None], ["1"], {"a": 1}, [10**400])
        ),
        ("lovasz", {"per_image": 1}, "per_image must be True or False, got 1."),
        ("lovasz", {}, "loss is 'lovasz'; allowed: cross_entropy, focal, boundary_cross_entropy."),
        ("boundary_cross_entropy", {"factor": True, "radius": 5}, "factor must be a number of at least 0, got True."),
        (
            "boundary_cross_entropy",
            {"factor": 10, "radius": 1.5},
            "radius must be an integer of at least 0 pixels, got 1.5.",
        ),
    ],
)
def test_an_impossible_file_of_version_3(loss: Any, options: Any, expected: str) -> None:
    content = {"format": "autosegloss-loss", "version": 3, "loss": loss, "options": options, "provenance": {}}
    Path("loss.json").write_text(json.dumps(content))
    assert message(load_loss, "loss.json") == f"loss.json: {expected}"
    assert message(build_loss, content) == f"loss: {expected}"


def test_a_content_that_is_no_mapping() -> None:
    assert message(build_loss, [1]) == 'loss: not a loss file; it has no "format": "autosegloss-loss".'


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("auto/miou", "shapes/miou"),
        ("auto/macc", "shapes/macc"),
        ("auto/biou", "shapes/biou"),
        ("auto/bf1", "shapes/miou_bf1"),
    ],
)
def test_what_is_recommended_for_a_metric_is_the_loss_of_a_data_set(alias: str, name: str) -> None:
    assert {alias, name} <= {*presets()}
    assert load_loss(alias).content() == load_loss(name).content()  # provenance included
    assert not (PRESETS / f"{alias}.json").exists()


def test_the_loss_of_a_data_set_is_that_of_its_search() -> None:
    searched = load_loss(ROOT / "results/searches/shapes_miou.json")
    assert load_loss("auto/miou").content()["slots"] == searched.content()["slots"]


@pytest.mark.parametrize("name", [name for name in presets() if not name.startswith("auto/")])
def test_presets_load_and_are_written_as_we_write(name: str) -> None:
    loss = load_loss(name)
    assert isinstance(loss, SurrogateLoss)
    loss.save("loss.json")
    assert Path("loss.json").read_bytes() == (PRESETS / f"{name}.json").read_bytes()
    again = asl.load_loss(name, ignore_index=0, reduce_over_ranks=True)
    assert isinstance(again, SurrogateLoss)
    assert (again.ignore_index, again.reduce_over_ranks) == (0, True)
    assert isinstance(loss, SurrogateLoss)
    assert (loss.ignore_index, loss.reduce_over_ranks) == (255, False)


def test_paths_may_be_paths() -> None:
    example().save(Path("loss.json"))
    assert load_loss(Path("loss.json")).control_points == example().control_points
    Path("asl/voc").mkdir(parents=True)
    example().save("asl/voc/miou")
    assert load_loss("asl/voc/miou").logic == "godel"  # a file goes before a preset


def test_the_order_of_keys_and_slots_does_not_matter() -> None:
    example().save("loss.json")
    content = json.loads(Path("loss.json").read_text(encoding="utf-8"))
    content["slots"] = dict(reversed(content["slots"].items()))
    Path("other.json").write_text(json.dumps(dict(reversed(content.items()))), encoding="utf-8")
    assert load_loss("other.json").control_points == example().control_points


def test_a_file_without_provenance() -> None:
    example().save("loss.json")
    content = json.loads(Path("loss.json").read_text(encoding="utf-8"))
    del content["provenance"]
    Path("loss.json").write_text(json.dumps(content), encoding="utf-8")
    assert load_loss("loss.json").provenance == {}


# Damaged files: the text is golden ------------------------------------------------------------------------------------


def content() -> dict[str, Any]:
    example().save("loss.json")
    read: dict[str, Any] = json.loads(Path("loss.json").read_text(encoding="utf-8"))
    return read


def broken(change: dict[str, Any], *, drop: tuple[str, ...] = ()) -> str:
    changed = {key: value for key, value in (content() | change).items() if key not in drop}
    Path("loss.json").write_text(json.dumps(changed), encoding="utf-8")
    return message(load_loss, "loss.json")


AND, OR = "and[0] of pred & target", "or[0] of pred | target"
PAIRS = f"loss.json: slot `{AND}`: control points must be a list of pairs of numbers [u, v], got "


def slot(points: Any) -> dict[str, Any]:
    return {"slots": {AND: points, OR: []}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "other"}, 'loss.json: not a loss file; it has no "format": "autosegloss-loss".'),
        (
            {"version": 4},
            "loss.json: version 4 is newer than what this package reads (3); upgrade autosegloss.",
        ),
        ({"version": 2}, "loss.json: missing: cross_entropy."),
        ({"version": 3}, "loss.json: missing: scale."),
        (
            {"cross_entropy": 0.25},
            "loss.json: unknown: cross_entropy; allowed: classes, curve, format, logic, metric, provenance, slots, "
            "version.",
        ),
        (
            {"version": 2, "cross_entropy": 1.5},
            "loss.json: cross_entropy must be a number from 0 to 1, got 1.5.",
        ),
        (
            {"version": 2, "cross_entropy": "searched"},
            "loss.json: cross_entropy must be a number from 0 to 1, got 'searched'.",
        ),
        (
            {"version": 2, "cross_entropy": True},
            "loss.json: cross_entropy must be a number from 0 to 1, got True.",
        ),
        ({"version": "1"}, "loss.json: version must be an integer of at least 1, got '1'."),
        ({"version": 0}, "loss.json: version must be an integer of at least 1, got 0."),
        ({"version": True}, "loss.json: version must be an integer of at least 1, got True."),
        (
            {"version": 4, "shape": "new"},
            "loss.json: version 4 is newer than what this package reads (3); upgrade autosegloss.",
        ),
        (
            {"shape": 1, "colour": 2},
            "loss.json: unknown: colour, shape; allowed: classes, curve, format, logic, metric, provenance, slots, "
            "version.",
        ),
        ({"logic": "fuzzy"}, "loss.json: logic is 'fuzzy'; allowed: product, godel."),
        ({"logic": ["product"]}, "loss.json: logic is ['product']; allowed: product, godel."),
        ({"classes": None}, "loss.json: classes is None; allowed: metric, all, present."),
        ({"curve": "besier"}, "loss.json: curve is 'besier'; allowed: identity, bezier, linear."),
        ({"provenance": [1]}, "loss.json: provenance must be a mapping, got [1]."),
        ({"metric": 3}, "loss.json: metric must be the text of an expression, got 3."),
        ({"slots": []}, "loss.json: slots must be a mapping of slot names to control points, got []."),
        (
            {"slots": {AND: []}},
            f"loss.json: slot `{OR}` is missing; the metric has: {AND}; {OR}.",
        ),
        (
            {"slots": {AND: [], OR: [], "xor": []}},
            f"loss.json: slot `xor` is not one of the metric's: {AND}; {OR}.",
        ),
        (slot(None), PAIRS + "None."),
        (slot({}), PAIRS + "{}."),
        (slot([0.5, 0.5]), PAIRS + "[0.5, 0.5]."),
        (slot([[0.5]]), PAIRS + "[[0.5]]."),
        (slot([[0.5, 0.5, 0.5]]), PAIRS + "[[0.5, 0.5, 0.5]]."),
        (slot([["0.5", "0.5"]]), PAIRS + "[['0.5', '0.5']]."),
        (slot([[True, 0.5]]), PAIRS + "[[True, 0.5]]."),
        (
            slot([[0.5, 0.5], [0.4, 0.6]]),
            f"loss.json: slot `{AND}`: control point 1 (0.4, 0.6) falls below control point 0 (0.5, 0.5); "
            "a curve must not fall.",
        ),
        (
            slot([[0.5, 0.5], [0.6, 0.4]]),
            f"loss.json: slot `{AND}`: control point 1 (0.6, 0.4) falls below control point 0 (0.5, 0.5); "
            "a curve must not fall.",
        ),
        (
            slot([[0.5, 1.5]]),
            f"loss.json: slot `{AND}`: control point 0 must have both coordinates in [0, 1], got (0.5, 1.5).",
        ),
        (
            {"curve": "bezier", **slot([[0.1, 0.1], [0.2, 0.2]])},
            f"loss.json: slot `{AND}`: 2 control points; a bezier of n pieces has 2 n - 1 (1, 3, 5, ...).",
        ),
        (
            {"curve": "identity", **slot([[0.1, 0.1]])},
            f"loss.json: slot `{AND}`: 1 control points; an identity curve has none.",
        ),
        (
            {"metric": "mioo"},
            "loss.json: metric: unknown metric `mioo` (did you mean `miou`?).",
        ),
        (
            {"metric": "total(pred & truth)"},
            "loss.json: metric: unknown name `truth`; the leaves are pred and target.\n"
            "  total(pred & truth)\n"
            "               ^",
        ),
        (
            {"metric": "__import__('os').system('true')"},
            "loss.json: metric: this has no place in an expression; allowed: pred, target, & | ^ ~ + - * /, calls, "
            "numbers\n  __import__('os').system('true')\n  ^",
        ),
        (
            {"metric": "total(pred)"},
            "loss.json: metric: a metric is one number, but\n  total(pred) is a per-class total.\n"
            "Reduce it with class_mean(...) or class_sum(...).",
        ),
    ],
)
def test_an_impossible_file(change: dict[str, Any], expected: str) -> None:
    assert broken(change) == expected


@pytest.mark.parametrize(
    ("drop", "expected"),
    [
        (("format",), 'loss.json: not a loss file; it has no "format": "autosegloss-loss".'),
        (("version",), "loss.json: version must be an integer of at least 1, got None."),
        (("metric", "slots", "logic"), "loss.json: missing: logic, metric, slots."),
    ],
)
def test_missing_keys(drop: tuple[str, ...], expected: str) -> None:
    assert broken({}, drop=drop) == expected


def test_every_truncated_file_is_refused() -> None:
    example().save("loss.json")
    whole = Path("loss.json").read_bytes()
    for length in range(len(whole.rstrip())):
        Path("loss.json").write_bytes(whole[:length])
        text = message(load_loss, "loss.json")
        assert text.startswith("loss.json: not a JSON file that can be read (")
        assert text.endswith("). If it was cut off, export it again.")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"\xff\xfe", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 1, "a": 2}', "a key occurs twice in one mapping"),
        (b'{"a": [{"b": 1, "b": 2}]}', "a key occurs twice in one mapping"),
        (b"{} {}", "Extra data: line 1 column 4 (char 3)"),
    ],
)
def test_what_is_no_json(text: bytes, reason: str) -> None:
    Path("loss.json").write_bytes(text)
    assert (
        message(load_loss, "loss.json")
        == f"loss.json: not a JSON file that can be read ({reason}). If it was cut off, export it again."
    )


def test_a_control_point_that_is_no_number() -> None:
    text = json.dumps(content() | slot([["NUMBER", 0.5]]))
    Path("loss.json").write_text(text.replace('"NUMBER"', "NaN"), encoding="utf-8")
    assert "NaN is not a number" in message(load_loss, "loss.json")
    for huge in ("1e999", "1" + "0" * 400, "1" + "0" * 9000):
        Path("loss.json").write_text(text.replace('"NUMBER"', huge), encoding="utf-8")
        assert message(load_loss, "loss.json").startswith("loss.json: ")


@pytest.mark.parametrize("text", ["3", "[]", "null", '"loss"', "[" * 100_000])
def test_other_json_is_refused(text: str) -> None:
    Path("loss.json").write_text(text, encoding="utf-8")
    assert message(load_loss, "loss.json").startswith("loss.json: not a ")


@examples(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_loads_or_is_refused(data: st.DataObject) -> None:
    example().save("loss.json")
    whole = Path("loss.json").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    Path("loss.json").write_bytes(
        whole[:at] + data.draw(st.binary(max_size=3)) + whole[at + data.draw(st.integers(0, 3)) :]
    )
    assert refusal("loss.json").startswith("loss.json: ")


@examples(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["format", "version", "metric", "logic", "classes", "curve", "slots", "provenance"]),
    value=json_values,
)
def test_any_other_value_of_a_key_loads_or_is_refused(key: str, value: Any) -> None:
    Path("loss.json").write_text(json.dumps(content() | {key: value}), encoding="utf-8")
    assert refusal("loss.json").startswith("loss.json: ")


# Where there is nothing to load ---------------------------------------------------------------------------------------


def test_neither_a_file_nor_a_preset() -> None:
    names = "`autosegloss losses` lists the names."
    assert message(load_loss, "absent.json") == f"absent.json: no such file, nor a loss of that name. {names}"
    assert message(load_loss, "asl/voc/mioo") == (
        f"asl/voc/mioo: no such file, nor a loss of that name (did you mean `asl/voc/miou`?). {names}"
    )
    assert message(load_loss, "../presets/asl/voc/miou").startswith("../presets/asl/voc/miou: no such file")
    assert message(load_loss, "a" * 5000 + ".json").startswith("aaa")


@pytest.mark.parametrize("source", [None, 5, ["jml"]])
def test_what_is_no_path(source: Any) -> None:
    with pytest.raises(InputTypeError, match="must be the path of a loss file or the name of a loss, got"):
        load_loss(source)


def test_a_wrong_argument_is_not_blamed_on_the_file() -> None:
    for arguments in ({"ignore_index": None}, {"reduce_over_ranks": 1}):
        with pytest.raises(InputTypeError, match=next(iter(arguments))):
            load_loss("jml", **arguments)


def test_a_provenance_that_can_not_be_written_again_is_not_read() -> None:
    text = json.dumps(content() | {"provenance": {"a": 0}})
    for value in ('"\\ud800"', "[" * 5000 + "]" * 5000):
        Path("loss.json").write_text(text.replace('{"a": 0}', f'{{"a": {value}}}'))
        assert message(load_loss, "loss.json").startswith("loss.json: not a JSON file that can be read (")


def test_a_folder() -> None:
    Path("study").mkdir()
    assert message(load_loss, "study") == (
        f"study is a folder; the loss of a finished search is its file {Path('study', 'loss.json')}."
    )


# A failing save leaves the old file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "provenance",
    [
        {"a": float("nan")},
        {"a": float("inf")},
        {"a": object()},
        {"a": {1, 2}},
        {"a": b"bytes"},
        {"a": torch.zeros(2)},
        {"a": [{"b": Path("x")}]},
        {"a": "\ud800"},
        {1: 2},
        {None: 2},
        {"a": {1: 2}},
        {"a": [{1: 2}]},
        [1],
        None,
    ],
)
def test_a_provenance_that_is_no_json_is_refused_and_the_old_file_stays(provenance: Any) -> None:
    example().save("loss.json")
    before = Path("loss.json").read_bytes()
    loss = example(logic="product")
    loss.provenance = provenance
    with pytest.raises(LossFileError, match="provenance"):
        loss.save("loss.json")
    assert Path("loss.json").read_bytes() == before
    assert os.listdir() == ["loss.json"]


def test_the_text_of_a_refused_provenance() -> None:
    loss = example()
    loss.provenance = {"a": float("nan")}
    text = message(loss.save, "loss.json")
    assert text.startswith("loss.json: the provenance can't be written as JSON: ")
    assert os.listdir() == []


def test_places_that_cannot_be_written() -> None:
    Path("folder").mkdir()
    assert message(example().save, "folder") == "folder: can't be written: Is a directory."
    path = Path("absent", "loss.json")
    assert message(example().save, path) == f"{path}: can't be written: No such file or directory."
    assert os.listdir() == ["folder"]
    assert os.listdir("folder") == []


def test_a_full_disk_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    example().save("loss.json")
    before = Path("loss.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert (
        message(example(logic="product").save, "loss.json") == "loss.json: can't be written: No space left on device."
    )
    assert Path("loss.json").read_bytes() == before
    assert os.listdir() == ["loss.json"]


def test_the_file_can_be_read_by_others() -> None:
    mask = os.umask(0o022)
    try:
        example().save("loss.json")
    finally:
        os.umask(mask)
    assert Path("loss.json").stat().st_mode & 0o777 == 0o644


def test_saving_does_not_change_the_loss() -> None:
    loss = example()
    before = copy.deepcopy(loss.provenance), loss.control_points
    loss.save("loss.json")
    assert (loss.provenance, loss.control_points) == before


# Elsewhere ------------------------------------------------------------------------------------------------------------

WITHOUT_RAY = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError("Ray is not installed here")

sys.meta_path.insert(0, Blocked())

import torch
import autosegloss as asl

assert not [name for name in sys.modules if name.partition(".")[0] == "ray"]
loss = asl.load_loss("loss.json")
preset = asl.load_loss("asl/voc/miou")
torch.manual_seed(0)
network = torch.nn.Conv2d(3, 2, 3, padding=1)
optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
images = torch.randn(2, 3, 8, 8)
labels = (images[:, 0] > 0).long()
values = []
for _ in range(20):
    optimizer.zero_grad()
    value = loss(network(images), labels) + preset(network(images), labels)
    value.backward()
    optimizer.step()
    values.append(value.item())
assert values[-1] < values[0] - 0.2, values
try:
    import ray
except ImportError:
    print("trained without Ray")
"""


def python(script: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.slow
def test_a_saved_loss_loads_and_trains_where_ray_is_not_installed() -> None:
    SurrogateLoss("miou", [[(0.0, 0.7)], [(0.6, 0.3)]]).save("loss.json")
    done = python(WITHOUT_RAY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "trained without Ray\n"


@pytest.mark.slow
def test_the_import_does_not_bring_ray() -> None:
    done = python("import autosegloss, sys; assert 'ray' not in sys.modules; print(autosegloss.presets()[0])")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "asl/voc/bf1\n"
