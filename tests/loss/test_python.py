"""A loss written as a module: it needs torch alone, and has the values and gradients of the loss it is made from."""

from __future__ import annotations

import ast
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from autosegloss.errors import InputError
from autosegloss.loss import Loss, MixedLoss, SurrogateLoss, load_loss, named_loss, presets
from autosegloss.loss.classic import BoundaryCrossEntropy, CrossEntropy, Focal
from autosegloss.loss.kernels import histograms
from autosegloss.loss.python import source
from autosegloss.metric import (
    METRICS,
    Expr,
    boundary,
    class_mean,
    class_sum,
    dilate,
    erode,
    image_mean,
    interpret,
    metric,
    pred,
    target,
    total,
)
from autosegloss.metric.expr import ClassMean
from tests import strategies
from tests.examples import examples

Batch = tuple[Tensor, Tensor, Tensor | None]

SORTED = ["lovasz", "lovasz, images", "lovasz, near", "lovasz, sum"]
"""The module sorts errors, the package puts them into bins."""
SOFT_REFUSED = {*SORTED, "focal", "focal, weighted", "boundary", "boundary, near", "sum of labels"}
MASK = dilate(boundary(target), 1)
NEAR = class_mean(total(pred & target, within=MASK) / total(pred | target, within=MASK))
WEIGHT = [0.5, 2, 1.25, 0, 1e-3]


def losses() -> dict[str, Loss]:
    """Every preset, every classic with its options, and what no preset has."""
    return {
        **{name: load_loss(name) for name in presets()},
        "cross_entropy": CrossEntropy(),
        "cross_entropy, weighted": CrossEntropy(WEIGHT),
        "cross_entropy, smooth": CrossEntropy(label_smoothing=0.1),
        "cross_entropy, both": CrossEntropy(WEIGHT, 0.25),
        "focal": Focal(),
        "focal, weighted": Focal(0.5, WEIGHT),
        "boundary": BoundaryCrossEntropy(),
        "boundary, near": BoundaryCrossEntropy(2.5, 1),
        "class power": CrossEntropy(class_power=0.5),
        "class power, smooth": CrossEntropy(label_smoothing=0.2, class_power=-1.5),
        "class power, counts": CrossEntropy(label_smoothing=0.2, class_power=1, counts=[100, 20, 0.5, 0, 3]),
        "scaled": SurrogateLoss("dice", scale=8),
        "sum": sum_of_many(),
        "sum of labels": load_loss("2*focal + 0.5*jml + shapes/miou + 3*boundary_cross_entropy(radius=1)"),
        "generalized_dice": named_loss("generalized_dice"),
        "lovasz, images": SurrogateLoss("0.5 * dice_i + 0.5 * biou(radius=1)", None, "lovasz", "identity", "all"),
        "lovasz, near": SurrogateLoss(NEAR, [((0.2, 0.5),), ((0.9, 0.6),)], "lovasz"),
        "lovasz, sum": load_loss("8*lovasz + 2*jml"),
        "mix": named_loss("0.25*cross_entropy + 0.75*jml"),
        "mix of boundaries": MixedLoss(load_loss("asl/voc/bf1"), 0.1),
        "boundary_iou": SurrogateLoss("boundary_iou", logic="godel", classes="all"),
        "worst": SurrogateLoss("miou_i(worst=0.5)", classes="present"),
        "classes": SurrogateLoss("miou_i(classes=[1, 3])", classes="present"),
        "weights": SurrogateLoss("dice(classes=[0, 2, 3], weights=[1, 0, 2])"),
        "all weights": SurrogateLoss("miou(weights=[1, 0, 2, 0.5, 3])"),
        "disk": SurrogateLoss(metric("bf1_i", radius=2, shape="disk")),
        "linear": SurrogateLoss.from_theta("0.5 * miou + 0.5 * miou_c", [0.3, 0.6] * 4, 3, curve="linear"),
        "log": SurrogateLoss.from_theta("miou", [0.85, 0.3], curve="log"),
    }


def sum_of_many() -> MixedLoss:
    """Functions of one name: metrics, their curves, and cross-entropy; two have the same curves, and share them."""
    points = [[(0.1, 0.7)], [(0.3, 0.2)]]
    return MixedLoss(
        [
            (4.7, SurrogateLoss("miou", points, curve="linear")),
            (1.25, SurrogateLoss("miou", points, curve="linear", logic="godel")),
            (0.1, CrossEntropy()),
            (0.2, CrossEntropy(WEIGHT)),
            (0.3, CrossEntropy(class_power=1)),
            (5, load_loss("asl/voc/bf1")),
            (1, load_loss("asl/voc/miou")),
        ]
    )


LOSSES = losses()
COMPILED = ["asl/voc/bf1", "mix"]
COMPILED_BATCHES = ["labels", "soft, mask"]


def batches() -> dict[str, Batch]:
    """Logits in float64, a target, and a mask; labels have class 2 nowhere, and 3 not in the first image."""
    generator = torch.Generator().manual_seed(5)

    def logits(*sides: int) -> Tensor:
        return 3 * torch.randn(3, 5, *sides, generator=generator, dtype=torch.float64)

    def labels(*sides: int) -> Tensor:
        x = torch.randint(0, 5, (3, *sides), generator=generator)
        x = x.masked_fill(x == 2, 1)
        x[0] = x[0].masked_fill(x[0] == 3, 4)
        return x.masked_fill(torch.rand(x.shape, generator=generator) < 0.2, 255)

    def mask(*sides: int) -> Tensor:
        return torch.rand(3, *sides, generator=generator) < 0.7

    sides = (9, 8)
    return {
        "labels": (logits(*sides), labels(*sides), None),
        "with channel": (logits(*sides), labels(*sides).unsqueeze(1).to(torch.uint8), None),
        "mask": (logits(*sides), labels(*sides), mask(*sides)),
        "image ignored": (logits(*sides), labels(*sides).index_fill(0, torch.tensor([1]), 255), None),
        "all ignored": (logits(*sides), torch.full((3, *sides), 255), None),
        "all masked": (logits(*sides), labels(*sides), torch.zeros(3, 1, *sides, dtype=torch.bool)),
        "1-D": (logits(11), labels(11), None),
        "3-D": (logits(4, 5, 3), labels(4, 5, 3), None),
        "soft": (logits(*sides), logits(*sides).softmax(1), None),
        "soft, mask": (logits(*sides), logits(*sides).softmax(1), mask(*sides)),
    }


BATCHES = batches()
READINGS: dict[str, tuple[torch.dtype, bool, float]] = {
    "float64": (torch.float64, False, 1e-9),
    "float32": (torch.float32, False, 1e-5),
    "autocast": (torch.float32, True, 1e-5),
    "bfloat16": (torch.bfloat16, True, 2**-7),  # to which the gradient is rounded
}
"""The dtype of the logits, whether autocast is on, and how near value and gradient are."""

CALL = """
import importlib.util
import sys

import torch


def call(loss, logits, target, mask, dtype, autocast):
    leaf = logits.detach().clone().to(dtype).requires_grad_()
    target = target.to(dtype) if target.is_floating_point() else target
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(leaf, target, mask)
    return value.detach(), torch.autograd.grad(value, leaf)[0]
"""
RUN = """
sys.modules["autosegloss"] = None  # its import fails
torch.set_num_threads(1)
folder = sys.argv[1]
asked = torch.load(f"{folder}/asked.pt")
found = {}
for name, path, wrapped in asked["losses"]:
    spec = importlib.util.spec_from_file_location("my_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = torch.compile(module.loss, fullgraph=True, backend="aot_eager") if wrapped else module.loss
    for kind, batch in asked["batches"].items():
        if kind.startswith("soft") and name in asked["hard"] or wrapped and kind not in asked["compiled"]:
            continue
        for reading, (dtype, autocast, _) in asked["readings"].items():
            if not wrapped or reading == "float64":
                found[name, kind, reading, wrapped] = call(loss, *batch, dtype, autocast)
assert [name for name in sys.modules if name.startswith("autosegloss")] == ["autosegloss"]
torch.save(found, f"{folder}/found.pt")
"""
scope: dict[str, Any] = {}
exec(CALL, scope)
call: Callable[..., tuple[Tensor, Tensor]] = scope["call"]

Found = dict[tuple[str, str, str, bool], tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module of each loss, by its number."""
    folder = tmp_path_factory.mktemp("written")
    for i, loss in enumerate(LOSSES.values()):
        loss.save(folder / f"loss_{i}.py")
    return folder


@pytest.fixture(scope="module")
def found(written: Path) -> Found:
    """What the written modules compute in an interpreter that can't import the package."""
    files = [(name, str(written / f"loss_{i}.py")) for i, name in enumerate(LOSSES)]
    asked = {
        "losses": [
            (*file, wrapped) for file in files for wrapped in (False, True) if not wrapped or file[0] in COMPILED
        ],
        "batches": BATCHES,
        "readings": READINGS,
        "hard": SOFT_REFUSED,
        "compiled": COMPILED_BATCHES,
    }
    torch.save(asked, written / "asked.pt")
    (written / "run.py").write_text(CALL + RUN)
    done = subprocess.run([sys.executable, "-I", "run.py", str(written)], cwd=written, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results: Found = torch.load(written / "found.pt")
    return results


def assert_near(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], near: float) -> None:
    (value, gradient), (wanted, slope) = found, expected
    assert (value.dtype, gradient.dtype) == (wanted.dtype, slope.dtype)
    assert gradient.isfinite().all()
    torch.testing.assert_close(value, wanted, rtol=near, atol=near / 10)  # 1 - metric: rounded as 1 is
    assert (gradient - slope).abs().max() <= near * slope.abs().max()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.slow
def test_a_written_loss_is_the_same_loss(name: str, found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histograms, "BINS", {False: 2**15, True: 2**13})
    loss = LOSSES[name]
    parts = len(loss.parts) if isinstance(loss, MixedLoss) else 1  # of each, the gradient is rounded
    kinds = [kind for kind in BATCHES if not (kind.startswith("soft") and name in SOFT_REFUSED)]
    for kind in kinds:
        for reading, (dtype, autocast, near) in READINGS.items():
            expected = call(loss, *BATCHES[kind], dtype, autocast)
            value = found[name, kind, reading, False][0].item()
            assert value == pytest.approx(expected[0].item(), rel=max(near, 1e-6)), "also where the gradient is nearer"
            assert_near(found[name, kind, reading, False], expected, 0.02 if name in SORTED else parts * near)
            if kind in ("all ignored", "all masked"):
                assert not expected[1].any()
    assert found[name, "labels", "float64", False][1].any()


@pytest.mark.parametrize("name", COMPILED)
def test_a_written_loss_compiles_as_one_graph(name: str, found: Found) -> None:
    for kind in COMPILED_BATCHES:
        assert_near(found[name, kind, "float64", True], call(LOSSES[name], *BATCHES[kind], torch.float64, False), 1e-9)


def test_a_comparison_that_fails() -> None:
    value, gradient = call(LOSSES["jml"], *BATCHES["labels"], torch.float64, False)
    for wrong in ((value + 1e-6, gradient), (value, gradient * (1 + 1e-6)), (value.float(), gradient)):
        with pytest.raises(AssertionError):
            assert_near(wrong, (value, gradient), 1e-9)


# What the text is -----------------------------------------------------------------------------------------------------


def function_of(loss: Loss) -> Callable[..., Tensor]:
    """The function of the module of a loss, in this process."""
    scope: dict[str, Any] = {}
    exec(compile(source(loss.content(), loss.ignore_index), "my_loss.py", "exec", dont_inherit=True), scope)
    function: Callable[..., Tensor] = scope["loss"]
    return function


@pytest.mark.parametrize("name", LOSSES)
def test_a_module_imports_torch_alone_and_has_one_public_function(name: str) -> None:
    tree = ast.parse(source(LOSSES[name].content(), ignore_index=-100))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - {"collections.abc"} == {"torch"}
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [function for function in functions if not function.startswith("_")] == ["loss"]
    constants = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    assert constants == ["IGNORE_INDEX = -100"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_module_has_no_dead_code(name: str) -> None:
    tree = ast.parse(source(LOSSES[name].content()))
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert set(functions) - {"loss"} <= set(names)
    for function in tree.body:
        if isinstance(function, ast.FunctionDef):
            loads = {
                node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
            }
            stores = {
                node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            assert stores - {"_"} <= loads
            arguments = {argument.arg for argument in function.args.args}
            assert arguments <= loads or function.name.startswith("_score")  # of all three sums, whatever it needs


def test_modules_are_formatted_and_pass_ruff(written: Path) -> None:
    options = ["--isolated", "--line-length", "120", "--target-version", "py310", "--no-cache"]
    files = sorted(str(path) for path in written.glob("loss_*.py"))
    for command in (["format", "--diff"], ["check", "--extend-select", "E501,I"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options, *files], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_text_of_a_module() -> None:
    loss = SurrogateLoss("miou", [[(0.25, 0.5)], []], curve="bezier", classes="present")
    loss.provenance = {"name": "mine", "rewards": list(range(1000))}
    text = source(loss.content())
    assert text == source(loss.content())
    assert text.startswith(
        '"""Segmentation loss: 1 - metric, over a batch.\n\n'
        "    metric = class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)\n\n"
        "Made differentiable: pred is the softmax of the logits, a & b is a b, a | b is a + b - a b, where a and b go "
        "through\nmonotone curves. A class mean counts the classes in the target.\n\n"
    )
    assert '"""\n\n# Provenance\n#\n# name: mine\n# Also in the loss file: rewards.\n\nimport torch\n' in text
    assert (
        "    # class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)\n"
        "    intersection = _total(_curve(pred) * _curve(target) * valid)\n"
        "    union = _total(_soft_or(pred, target) * valid)\n"
        "    iou = _divide(intersection, union)\n"
        "    target_size = _total(target * valid)\n"
        "    return _class_mean(iou, where=target_size)\n\n\n"
        "def _curve(x: Tensor) -> Tensor:\n"
        '    """Curve of the AND in pred & target."""\n'
        "    return _bezier(x, [((0, 0), (0.25, 0.5), (1, 1))])\n"
    ) in text
    assert "_erode" not in text


ADVERSARIAL = [
    '"""\nimport os\nos.system("boom")\n"""',
    "'''\nboom()\n'''",
    "\nboom()",
    "\rboom()",
    "\x0cboom()\x0b\x1c\x85\u2028\u2029boom()",
    "\\",
    "\\\nboom()",
    "\x00\ud800",
    "coding: utf-7\n+AGIAbwBvAG0-()",
    "x # \u202e)(moob",
]


@examples(60)
@given(
    keys=st.lists(st.text(max_size=20) | st.sampled_from(ADVERSARIAL), max_size=3, unique=True),
    values=st.lists(
        st.text(max_size=300) | st.sampled_from(ADVERSARIAL) | st.lists(st.sampled_from(ADVERSARIAL)), min_size=3
    ),
)
@pytest.mark.slow
def test_no_provenance_becomes_code(keys: list[str], values: list[Any]) -> None:
    content = load_loss("jml").content()
    plain = source({**content, "provenance": {}})
    text = source({**content, "provenance": dict(zip(keys, values, strict=False))})
    assert ast.dump(ast.parse(text.encode())) == ast.dump(ast.parse(plain))
    assert all(line.startswith("#") or line in plain.splitlines() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"loss": "hinge", "options": {}}, "loss is 'hinge'; allowed: cross_entropy, focal"),
        ({"loss": "focal", "options": {"gamma": "boom()"}}, "gamma is 'boom()'; must be a finite number"),
        ({"loss": "focal", "options": {"weight": ["boom()"]}}, "weight is 'boom()'; must be a finite number"),
        ({"loss": "focal", "options": {"alpha": 1}}, "focal has no option 'alpha'"),
    ],
)
def test_an_unknown_loss_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        source(content)
    assert str(caught.value).startswith(message)


def test_wrong_shapes_are_refused() -> None:
    loss, focal = function_of(LOSSES["jml"]), function_of(LOSSES["focal"])
    logits, labels, _ = BATCHES["labels"]
    for wrong in (labels[:, :-1], labels[:2], labels.float(), labels.unsqueeze(1).repeat(1, 2, 1, 1)):
        with pytest.raises(ValueError, match=r"(has|have) shape"):
            loss(logits, wrong)
    with pytest.raises(ValueError, match="mask has shape"):
        loss(logits, labels, labels[:, 1:] == 0)
    for label in (-1, logits.shape[1]):
        with pytest.raises(ValueError, match="target has labels that are neither 0 to 4 nor 255"):
            loss(logits, labels.masked_fill(labels == 0, label))
    with pytest.raises(TypeError, match="takes integer labels"):
        focal(logits, logits.softmax(1))


# Laws -----------------------------------------------------------------------------------------------------------------


def rounding_decides(loss: SurrogateLoss, logits: Tensor, truth: Tensor) -> bool:
    """Whether what counts in a mean hangs on a number that is 0 but for rounding, as 1 - (p + 1 - p)."""
    sums = loss._statistics(logits, truth, None, torch.float64)
    wheres = [where for node in loss.expr.walk() if (where := getattr(node, "where", None)) is not None]
    values = [interpret._value(where, sums, loss.classes, {}) for where in wheres]
    return any(bool(((x != 0) & (x.abs() < 1e-9)).any()) for x in values)


@examples(150)
@given(
    drawn=strategies.losses_of_labels(classes=st.sampled_from(["metric", "all", "present"]), moderate=True),
    soft=st.booleans(),
    seed=strategies.seeds,
)
@pytest.mark.slow
def test_any_loss_can_be_written(drawn: tuple[SurrogateLoss, strategies.Labels], soft: bool, seed: int) -> None:
    loss, labels = drawn
    generator = torch.Generator().manual_seed(seed)
    _, truth = labels.tensors()
    shape = (len(truth), labels.num_classes, *truth.shape[1:])
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    if soft:
        truth = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(1)
    loss.fused = False
    assume(not rounding_decides(loss, logits, truth))
    function = function_of(loss)
    leaf, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected, value = loss(leaf, truth), function(other, truth)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    if expected.requires_grad:
        slope, gradient = torch.autograd.grad(expected, leaf)[0], torch.autograd.grad(value, other)[0]
        assert gradient.isfinite().all()
        assert (gradient - slope).abs().max() <= 1e-9 * (1 + slope.abs().max())


@examples(60)
@given(expr=strategies.expressions())
@pytest.mark.slow
def test_any_expression_becomes_a_module(expr: Any) -> None:
    """Also one that is ill conditioned; its text is Python and its names are all there."""
    expr = total(expr) if expr.is_map else expr
    expr = class_sum(expr) if "class" in expr.axes else expr
    expr = image_mean(expr) if "image" in expr.axes else expr
    means = [node for node in expr.walk() if isinstance(node, ClassMean)]
    assume(expr.soft and not any(mean.class_names or (mean.weights and not mean.classes) for mean in means))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function_of(SurrogateLoss(expr, curve="identity"))(*BATCHES["labels"])


def test_a_long_name_of_a_slot_stays_in_its_docstring() -> None:
    eroded: Expr = target
    for _ in range(25):
        eroded = erode(eroded)
        loss = SurrogateLoss(class_sum(total(pred & eroded)) / class_sum(total(target)), [[(0.3, 0.6)]])
        expected = call(loss, *BATCHES["soft"], torch.float64, False)
        assert_near(call(function_of(loss), *BATCHES["soft"], torch.float64, False), expected, 1e-9)


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.slow
def test_every_metric_of_the_catalogue(name: str) -> None:
    for logic in ("product", "godel"):
        loss = SurrogateLoss(name, logic=logic)  # type: ignore[arg-type]
        for kind in ("labels", "soft, mask"):
            expected = call(loss, *BATCHES[kind], torch.float64, False)
            assert_near(call(function_of(loss), *BATCHES[kind], torch.float64, False), expected, 1e-9)


@examples(150)
@given(shape=strategies.shapes(), seed=strategies.seeds)
@pytest.mark.slow
def test_curves_are_the_same(shape: strategies.Shape, seed: int) -> None:
    curve = shape.curve
    loss = SurrogateLoss("gacc", [list(curve.points)], curve=shape.kind)
    scope: dict[str, Any] = {}
    exec(source(loss.content()), scope)
    if curve.is_identity:
        assert "_curve" not in scope
        return
    ends = [float(u) for u, _ in curve.points]
    tiny = [1e-300, 1e-12, 1e-9, 1e-6]
    random = torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.cat([random, torch.tensor([0, 1, -1e-17, 1 + 1e-15, *ends, *tiny, *(1 - t for t in tiny)]).double()])
    for dtype in (torch.float64, torch.float32):
        leaf, other = x.to(dtype).requires_grad_(), x.to(dtype).requires_grad_()
        expected, y = curve(leaf), scope["_curve"](other)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=0)
        slope, found = (torch.autograd.grad(a.sum(), b)[0] for a, b in ((expected, leaf), (y, other)))
        torch.testing.assert_close(found, slope, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=0)


def test_a_nan_is_seen() -> None:
    for name in ("asl/voc/miou", "worst", "linear", "mix"):
        logits, labels, _ = BATCHES["labels"]
        logits = logits.clone()
        logits[0, 0, 0, 0] = torch.nan
        labels = labels.clone()
        labels[0, 0, 0] = 0
        assert function_of(LOSSES[name])(logits, labels).isnan()
