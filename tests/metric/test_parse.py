from __future__ import annotations

import ast
import builtins
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import autosegloss as asl
from autosegloss.errors import AutoseglossError, ExprError, InputError, ParseError
from autosegloss.metric import METRICS, Expr, class_mean, class_sum, metric, parse, pred, target, total
from autosegloss.metric.expr import BUILDERS, Leaf, Number, band
from tests import strategies
from tests.examples import examples

NAMES = {"pred": pred, "target": target, **BUILDERS}


def message(text: Any, kind: type[Exception] = ParseError) -> str:
    with pytest.raises(kind) as caught:
        parse(text)
    assert type(caught.value) is kind
    return str(caught.value)


def read(text: str) -> Expr | str:
    """The expression, or why the text is refused; any error but ParseError comes through."""
    try:
        return parse(text)
    except ParseError as error:
        return str(error)


def outcome(spec: Any, **options: Any) -> Expr | AutoseglossError:
    """A metric, or why it is refused; any error that is not of the package comes through."""
    try:
        return metric(spec, **options)
    except AutoseglossError as error:
        return error


# The text of an expression reads back as the same expression


@examples(200)
@given(expr=strategies.expressions())
def test_the_text_reads_back_as_the_same_node(expr: Expr) -> None:
    assert parse(str(expr)) is expr


@examples(100)
@given(expr=strategies.metrics())
@pytest.mark.slow
def test_the_text_of_a_metric_reads_back_as_the_same_node(expr: Expr) -> None:
    assert parse(str(expr)) is expr
    assert metric(str(expr)) is expr


@examples(100)
@given(expr=strategies.expressions())
def test_the_text_is_one_line_of_python_for_the_same_expression(expr: Expr) -> None:
    text = str(expr)
    assert text.isprintable()
    tree = ast.parse(text, mode="eval")
    value = eval(compile(tree, "<text>", "eval"), {"__builtins__": {}, **NAMES})  # the text was made here
    assert value is expr or Number(float(value)) is expr


@examples(100)
@given(expr=strategies.expressions())
def test_each_part_is_printed_once(expr: Expr) -> None:
    tree = ast.parse(str(expr), mode="eval")
    printed = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp | ast.Call) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert))
    ]
    parts = [node for node in expr.walk() if not isinstance(node, Leaf | Number)]
    assert len(printed) == len(parts)


def test_a_part_is_named_only_when_it_is_shared() -> None:
    shared = total(pred & target)
    assert str(class_mean(shared / (shared + total(pred)), where=total(target))) == (
        "class_mean((x1 := total(pred & target)) / (x1 + total(pred)), where=total(target))"
    )
    assert "x1" not in str(class_mean(total(pred & target) / total(pred | target)))


def test_a_tower_of_shared_parts_stays_short() -> None:
    expr: Expr = pred
    for _ in range(60):
        expr = expr & ~expr
    text = str(expr)
    assert len(text) < 1500
    assert parse(text) is expr


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (pred | target ^ pred & target, "pred | target ^ pred & target"),
        ((pred | target) ^ pred, "(pred | target) ^ pred"),
        (pred & (target & pred), "pred & (target & pred)"),
        (~(pred & target), "~(pred & target)"),
        (~pred & target, "~pred & target"),
        (~~pred, "~~pred"),
        (pred - (target - pred), "pred - (target - pred)"),
        (pred - target - pred, "pred - target - pred"),
        ((pred - target) * pred, "(pred - target) * pred"),
        (pred * (target * pred), "pred * (target * pred)"),
        (pred * target & target, "pred * target & target"),
        (-1.5 * pred, "-1.5 * pred"),
        (pred - -2, "pred - -2"),
        (1e-7 * pred, "1e-07 * pred"),
        (1e20 * pred, "1e+20 * pred"),
        (12345 * pred, "12345 * pred"),
        (total(pred, void="keep"), 'total(pred, void="keep")'),
        (total(pred, within=target & pred), "total(pred, within=target & pred)"),
        (class_mean(total(pred), background=False), "class_mean(total(pred), background=False)"),
        (asl.any_class(pred, background=False), "any_class(pred, background=False)"),
        (asl.erode(pred, 2), "erode(pred, radius=2)"),
        (asl.erode(pred, border=True), "erode(pred, border=True)"),
        (asl.erode(pred, 0.5, True), "erode(pred, radius=0.5, border=True)"),
        (asl.dilate(pred, 2, "disk"), 'dilate(pred, radius=2, shape="disk")'),
        (asl.dilate(pred, 0.0075), "dilate(pred, radius=0.0075)"),
        (asl.image_worst(asl.per_image(pred), 1), "image_worst(per_image(pred), fraction=1)"),
        (asl.image_worst(asl.per_image(pred), 0.05), "image_worst(per_image(pred), fraction=0.05)"),
    ],
)
def test_the_text_has_no_parenthesis_too_many(expr: Expr, text: str) -> None:
    assert str(expr) == text
    assert parse(text) is expr


# What else a text may be


def test_metrics_of_the_catalogue_are_names_and_functions() -> None:
    assert parse("miou") is METRICS["miou"]()
    assert parse("biou(3, background=True)") is METRICS["biou"](radius=3, background=True)
    assert parse("band(pred, 3) & band(target)") is band(pred, width=3) & band(target, 0.02)
    assert parse("fbeta_i(beta=2, worst=0.05)") is METRICS["fbeta_i"](2, worst=0.05)
    mixed = parse("0.5 * miou + 0.5 * bf1(radius=3)")
    assert mixed is 0.5 * METRICS["miou"]() + 0.5 * METRICS["bf1"](radius=3)


def test_a_text_may_run_over_lines_and_name_parts() -> None:
    text = """
        class_mean(
            (both := total(pred & target))   # what is right
            / (both + total(pred ^ target)),
            where=total(target),
        )
    """
    both = total(pred & target)
    assert parse(text) is class_mean(both / (both + total(pred ^ target)), where=total(target))


def test_numbers() -> None:
    assert parse("3") is Number(3.0)
    assert parse("-3") is Number(-3.0)
    assert parse("--0x10 / 4") is Number(4.0)
    assert parse("1_000 * total(pred)") is 1000 * total(pred)
    assert parse("-total(pred)") is -1 * total(pred)


# Mistakes: the text is golden, the caret stands below the place


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "class_mean(total(pred & truth) / total(target))",
            "unknown name `truth`; the leaves are pred and target.\n"
            "  class_mean(total(pred & truth) / total(target))\n"
            "                          ^",
        ),
        (
            "pred & targett",
            "unknown name `targett` (did you mean `target`?); the leaves are pred and target.\n"
            "  pred & targett\n"
            "         ^",
        ),
        (
            "prédé &\n   pred | targét",
            "unknown name `prédé` (did you mean `pred`?); the leaves are pred and target.\n  prédé &\n  ^",
        ),
        (
            "(é := pred) & truth",
            "unknown name `truth`; the leaves are pred and target.\n  (é := pred) & truth\n                ^",
        ),
        (
            "pred\n  & (target |\n     truth)",
            "unknown name `truth`; the leaves are pred and target.\n  truth)\n  ^",
        ),
        (
            "class_mean(total(pred) & target)",
            "`&` joins two pixel maps, but\n"
            "  total(pred) is a per-class total and target is a pixel map.\n"
            "Move the sum outside: total(pred & target).\n"
            "  class_mean(total(pred) & target)\n"
            "             ^",
        ),
        ("total", "`total` is a function; call it: total(...)\n  total\n  ^"),
        (
            "1 + totale(pred)",
            "unknown function `totale` (did you mean `total`?).\n  1 + totale(pred)\n      ^",
        ),
        (
            "1 + sums(pred)",
            "unknown function `sums`; known: total, per_image, class_mean, class_sum, image_mean, image_worst, erode, "
            "dilate, boundary, band, any_class, and the metrics, which `autosegloss metrics` lists."
            "\n  1 + sums(pred)\n      ^",
        ),
        (
            "dilate(pred)",
            "dilate(map, radius, shape='square'): missing a required argument: 'radius'.\n  dilate(pred)\n  ^",
        ),
        ("boundary(pred, 1)", "boundary(map): too many positional arguments.\n  boundary(pred, 1)\n  ^"),
        (
            "total(pred, withn=target)",
            "total: unknown option `withn` (did you mean `within`?); allowed: map, within, void.\n"
            "  total(pred, withn=target)\n"
            "  ^",
        ),
        (
            "0.5 * biou(radius=-1)",
            "dilate: radius is -1; it is a whole number of pixels from 0 to 10000, or a share of the image's diagonal "
            "in (0, 1).\n  0.5 * biou(radius=-1)\n        ^",
        ),
        ("(pred := target)", "`pred` has a meaning already; choose another name.\n  (pred := target)\n   ^"),
        ("(miou := target)", "`miou` has a meaning already; choose another name.\n  (miou := target)\n   ^"),
        ("total('pred')", "'pred' is neither an expression nor a number.\n  total('pred')\n  ^"),
        ("pred & 'target'", "'target' is neither an expression nor a number\n  pred & 'target'\n         ^"),
        ("pred & True", "True is neither an expression nor a number\n  pred & True\n         ^"),
        ("'pred'", "'pred' is neither an expression nor a number\n  'pred'\n  ^"),
        ("True", "True is neither an expression nor a number\n  True\n  ^"),
        ("1 / 0", "1 is divided by the constant 0.\n  1 / 0\n  ^"),
        ("total(pred, **x)", "`**` has no place in an expression\n  total(pred, **x)\n  ^"),
        (
            "pred &",
            "invalid syntax\n  pred &\n        ^",
        ),
        ("pred & (target", "'(' was never closed\n  pred & (target\n                ^"),
        ("", "an expression is missing: the text is empty."),
        ("x" * 20_001, "the expression has 20001 characters; at most 20000 are read."),
        (" \n\t", "an expression is missing: the text is empty."),
        (None, "an expression must be a string, got NoneType."),
        (b"pred", "an expression must be a string, got bytes."),
    ],
)
def test_mistakes(text: Any, expected: str) -> None:
    assert message(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "pred.data",
        "pred.__class__.__mro__",
        "pred[0]",
        "pred ** 2",
        "pred // 2",
        "pred % 2",
        "pred @ target",
        "pred << 1",
        "+pred",
        "not pred",
        "pred and target",
        "pred < target",
        "pred == target",
        "pred if 1 else target",
        "lambda: pred",
        "(lambda: pred)()",
        "total(lambda: pred)",
        "[pred]",
        "(pred, target)",
        "{pred}",
        "{'pred': target}",
        "[x for x in 'ab']",
        "(x for x in 'ab')",
        "total(*[pred])",
        "f'{pred}'",
        "total(f'{__import__(\"os\")}')",
        "b'pred'",
        "None",
        "...",
        "1j",
        "await pred",
        "(yield pred)",
        "total(pred)(target)",
        "pred.__and__(target)",
        "METRICS['miou']()",
    ],
)
def test_no_other_syntax_has_a_place(text: str) -> None:
    assert "this has no place in an expression" in message(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('made')",
        "__import__('os')",
        "open('made', 'w')",
        "eval('1')",
        "exec('import os')",
        "total(pred, within=open('made', 'w'))",
        "total(pred, within=[open('made', 'w') for _ in 'a'])",
        "(x := open('made', 'w'))",
        "class_mean(total(pred), where=__import__('os').mkdir('made'))",
        "print(pred)",
        "().__class__.__bases__[0].__subclasses__()",
        "breakpoint()",
        "import os",
        "pred; import os",
        "pred\nimport os",
        "pred) + __import__('os').mkdir('made'",
        "del pred",
        "x = pred",
        "globals()",
        "_Reader('x')",
        "as_expr(3)",
        "Leaf('pred')",
    ],
)
def test_nothing_is_executed(text: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran: list[str] = []
    for name in ("eval", "exec", "open", "print", "breakpoint"):
        monkeypatch.setattr(builtins, name, lambda *_, name=name: ran.append(name))
    with pytest.raises(ParseError):
        parse(text)
    monkeypatch.undo()
    assert ran == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "pred & target) | (pred",
        "pred)",
        "(pred",
        "pred) & (target",
        "pred target",
        "total(pred, void='skip', void='keep')",
        "dilate(pred, 1, radius=2)",
        "total(map=pred, within=)",
        "x1 & (x1 := pred)",
        "pred\0",
        "\0",
        "pred \ud800",
        "\ufeffpred & \u2028",
        "pred &\r\r\r\r targett",
        "pred &\r\n\r\n targett",
        "pred &\x0c targett",
        "'",
        '"""',
        "\\",
        "# only a comment",
        "1e999 * total(pred)",
        "1e308 * 10 * total(pred)",
        "1" + "0" * 400,
        "total(pred) * 1" + "0" * 400,
        "-1" + "0" * 400,
        "1" + "0" * 5000,
        "tversky(alpha=1" + "0" * 400 + ")",
        "image_worst(per_image(pred), 1" + "0" * 400 + ")",
    ],
)
def test_a_damaged_or_absurd_text_is_refused(text: str) -> None:
    assert message(text).strip(" :\n^") != ""


@pytest.mark.parametrize("length", [90, 199, 500, 2000, 6000, 9990])
@pytest.mark.parametrize(
    ("before", "middle", "after"),
    [
        ("(", "pred", ")"),
        ("~", "pred", ""),
        ("-", "1", ""),
        ("erode(", "pred", ")"),
        ("", "pred", "&pred"),
        ("pred&(", "pred", ")"),
        ("[", "", "]"),
        ("lambda:", "1", ""),
        ("a.", "b", ""),
        ("1if 1else ", "1", ""),
    ],
)
def test_a_deep_or_long_text_is_read_or_refused(before: str, middle: str, after: str, length: int) -> None:
    text = before * length + middle + after * length
    outcome = read(text)
    if isinstance(outcome, Expr):
        assert len(text) <= 20_000
        assert parse(str(outcome)) is outcome
    else:
        assert outcome.strip(" :\n^") != ""
        assert not outcome.endswith(": ")
        assert len(outcome) < 2000


LONG = {
    "names in names": "".join(f"(x{i} := ~" for i in range(300)) + "pred" + ")" * 300,
    "brackets": "(" * 100_000,
    "brackets below the limit": "(" * 9000 + ")" * 9000,
    "lists": "[" * 9999,
    "a long sum": " + ".join(["miou"] * 2000),
    "a name": "x" * 300,
    "a long name": "x" * 19_000,
    "a function": "x" * 300 + "(pred)",
    "an option": "miou(" + "x" * 9000 + "=1)",
    "a text": "pred & '" + "x" * 9000 + "'",
    "a number": "1" * 19_000,
    "arguments": "miou(" + ",".join(["1"] * 5000) + ")",
    "options": "total(pred," + ",".join(f"a{i}=1" for i in range(2000)) + ")",
    "an index": "iou[" + "x," * 5000 + "]",
    "maps joined with a sum": "total(" + "&".join(["pred"] * 70) + ") & " + "&".join(["target"] * 70),
    "no one number": "erode(" * 90 + "pred" + ")" * 90,
    "null bytes": "\0" * 1000,
    "odd numbers": "1if 1else " * 100 + "1",
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_message_about_a_long_text_is_short(text: str) -> None:
    for spec in (text, {"name": "a", "expression": text}, {"name": text}, {"name": "miou", text: 1}):
        with pytest.raises(AutoseglossError) as caught:
            metric(spec)
        assert len(str(caught.value)) <= 1000
        lines = str(caught.value).splitlines()
        if lines[-1].strip() == "^":
            assert len(lines[-1]) <= 2 + 101  # the line is cut around the place
            assert lines[-2].isprintable()
    for spec in ({"name": text, "expression": "miou"}, {text: 3}, {"name": "iou", "class": text}):
        assert len(str(outcome(spec))) <= 1000 or isinstance(outcome(spec), Expr)


@examples(150)
@given(text=st.text(max_size=30) | st.text("predtag&|^~+-*/()=:,.'x1 \n\\", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    outcome = read(text)
    assert isinstance(outcome, str) or parse(str(outcome)) is outcome


@examples(150)
@given(expr=strategies.metrics(), data=st.data())
@pytest.mark.slow
def test_a_misspelt_metric_is_read_or_refused(expr: Expr, data: st.DataObject) -> None:
    text = str(expr)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 5, len(text))))
    changed = text[:start] + data.draw(st.text("predtag&|^~+-*/()=:,.'x1 \n\\", max_size=4)) + text[end:]
    outcome = read(changed)
    assert isinstance(outcome, str) or parse(str(outcome)) is outcome


WORDS = ["pred", "target", "miou", "iou", "leaf", "total", "class_mean", "bf1", "x1", "classes=", "weights=", "where="]
SIGNS = [
    "(",
    ")",
    "[",
    "]",
    ",",
    " & ",
    " | ",
    " ^ ",
    "~",
    " + ",
    "-",
    " * ",
    " / ",
    ":=",
    "0",
    "2",
    "0.5",
    '"a b"',
    "None",
]


@examples(250)
@given(parts=st.lists(st.sampled_from(WORDS + SIGNS), max_size=12))
def test_any_words_of_the_language_are_read_or_refused(parts: list[str]) -> None:
    found = outcome("".join(parts), class_names=["a b", "leaf", "other"])
    if isinstance(found, Expr):
        assert metric(str(found)) is found
    else:
        assert 0 < len(str(found)) <= 1000


# A metric: a name, a name with options, a text or an expression


def test_ways_to_name_a_metric() -> None:
    miou = METRICS["miou"]()
    assert metric("miou") is miou
    assert metric(" miou\n") is miou
    assert metric(miou) is miou
    assert metric({"name": "miou"}) is miou
    assert metric("miou", background=False) is METRICS["miou"](background=False)
    assert metric({"name": "biou", "radius": 3}) is METRICS["biou"](radius=3)
    assert metric({"name": "biou", "radius": 3}, background=True) is METRICS["biou"](radius=3, background=True)
    assert metric("miou_i(background=True, worst=None)") is METRICS["miou_i"]()  # as `autosegloss metrics` writes it
    assert metric({"name": "1 - miou"}) is 1 - miou
    assert asl.metric("1 - miou") is 1 - miou


@pytest.mark.parametrize(
    ("spec", "options", "kind", "expected"),
    [
        (
            "mioo",
            {},
            InputError,
            "unknown metric `mioo` (did you mean `miou`?).",
        ),
        (
            "unheard_of",
            {},
            InputError,
            "unknown metric `unheard_of`; `autosegloss metrics` lists them, and the IoU of a class is "
            "`iou(unheard_of)`.",
        ),
        ("miou", {"radius": 3}, InputError, "miou: unknown option `radius`; allowed: background, classes, weights."),
        (
            "biou",
            {"radios": 3},
            InputError,
            "biou: unknown option `radios` (did you mean `radius`?); allowed: radius, background, classes, weights.",
        ),
        ("gacc", {"radius": 3}, InputError, "gacc: unknown option `radius`; allowed: none."),
        ({"name": "gacc", "spec": 3}, {}, InputError, "gacc: unknown option `spec`; allowed: none."),
        (
            "bf1",
            {"radius": 1.5},
            InputError,
            "dilate: radius is 1.5; it is a whole number of pixels from 0 to 10000, or a share of the image's diagonal "
            "in (0, 1).",
        ),
        ("fbeta_c", {"beta": -2}, InputError, "fbeta: beta is -2; it is a weight of 0 or more."),
        (
            "miou_i",
            {"worst": 5},
            InputError,
            "image_worst: fraction is 5; it is a share of the images in (0, 1], such as 0.05.",
        ),
        ("miou", {"worst": 0.05}, InputError, "miou: unknown option `worst`; allowed: background, classes, weights."),
        ("dice_i", {"background": 0}, InputError, "class_mean: background is 0; allowed: True, False."),
        ("tversky", {"alpha": -1}, InputError, "tversky: alpha is -1; it is a weight of 0 or more."),
        ("tversky", {"beta": float("inf")}, InputError, "tversky: beta is inf; it is a weight of 0 or more."),
        ("tversky", {"beta": True}, InputError, "tversky: beta is True; it is a weight of 0 or more."),
        (
            {"radius": 3},
            {},
            InputError,
            "a metric with options needs a name, as in {name: biou, radius: 3}, got {'radius': 3}.",
        ),
        (
            METRICS["miou"](),
            {"radius": 3},
            InputError,
            "options (radius) belong to a catalogue metric, not to an expression.",
        ),
        (
            total(pred),
            {},
            ExprError,
            "a metric is one number, but\n  total(pred) is a per-class total.\n"
            "Reduce it with class_mean(...) or class_sum(...).",
        ),
        (
            "class_sum(per_image(pred))",
            {},
            ExprError,
            "a metric is one number, but\n  class_sum(per_image(pred)) is a per-image value.\n"
            "Reduce it with image_mean(...).",
        ),
        (
            "pred & target",
            {},
            ExprError,
            "a metric is one number, but\n  pred & target is a pixel map.\n"
            "Reduce it with total(...) or per_image(...).",
        ),
        (
            class_sum(total(target)),
            {},
            ExprError,
            "a metric depends on the prediction, but\n  class_sum(total(target)) does not: pred is not in it.",
        ),
        (3, {}, ExprError, "a metric is an expression, a name or a text, not int."),
    ],
)
def test_what_is_no_metric(spec: Any, options: dict[str, Any], kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        metric(spec, **options)
    assert type(caught.value) is kind
    assert str(caught.value) == expected
