"""What the fast evaluators promise beyond being right: which sums they take, what memory, the same bits.

That they are right is what `test_equivalence.py` is about, on Triton too: its kernels run in a process of their own.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autosegloss.loss import SearchSpace, SurrogateLoss, fuse
from autosegloss.metric import METRICS, Expr, class_mean, dilate, erode, interpret, metric, pred, target
from autosegloss.metric import total as sum_of
from autosegloss.report.bench.loss import peak_allocated, surrogate

POINTWISE = [name for name in METRICS if "bf1" not in name and "boundary" not in name]


def loss_of(expr: Expr | str, **options: Any) -> SurrogateLoss:
    """A loss with curves of two uneven pieces each."""
    theta = [0.3, 0.6, 0.4, 0.7, 0.2, 0.55] * len(SearchSpace(metric(expr)).curves)
    return SurrogateLoss.from_theta(expr, theta, **options)


def batch(*shape: int, classes: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (N, C, *S) and labels (N, *S): the last class absent, a tenth ignored."""
    generator = torch.Generator().manual_seed(sum(shape))
    labels = torch.randint(0, max(1, classes - 1), shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.1] = 255
    return (3 * torch.randn(shape[0], classes, *shape[1:], generator=generator, dtype=torch.float64)).to(dtype), labels


def walks(loss: SurrogateLoss) -> tuple[fuse.Walk, ...]:
    return fuse.plan(interpret.statistics(loss.expr, loss.classes), loss.curves)


# The plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POINTWISE)
def test_every_sum_of_a_pointwise_metric_fuses_into_one_walk(name: str) -> None:
    loss = loss_of(name)
    (walk,) = walks(loss)
    assert list(walk.forms) == list(interpret.statistics(loss.expr))
    assert len(walk.atoms.inside) == 1
    assert len(walk.atoms.outside) == (0 if name.startswith(("gacc", "macc", "recall")) else 1)


@pytest.mark.parametrize(
    ("node", "fuses"),
    [
        (sum_of(pred & target), True),
        (sum_of(~pred ^ target), True),
        (sum_of(2 * (pred - target) + 3 * (pred | target)), True),
        (sum_of((pred & target) | target, within=~(pred & target) & target), True),
        (sum_of(pred, within=dilate(target, 1) * target), False),  # a mask of each class
        (sum_of(pred & pred), False),
        (sum_of(pred * (pred | target)), False),
        (sum_of(erode(pred) & target), False),
        (sum_of(target, void="keep"), True),  # 0 at ignored pixels
        (sum_of(pred, void="keep"), False),
    ],
    ids=str,
)
def test_what_fuses(node: Any, fuses: bool) -> None:
    loss = loss_of(class_mean(node + sum_of(pred)))
    assert any(node in walk.forms for walk in walks(loss)) is fuses


# Memory, threads, modes -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fused_path")
def test_threads_change_no_bit() -> None:
    logits, labels = batch(2, 128, 128, classes=9, dtype=torch.float32)
    loss, threads, found = loss_of("miou"), torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            leaf = logits.clone().requires_grad_()
            value = loss(leaf, labels)
            found.append((value, *torch.autograd.grad(value, leaf)))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["miou", "macc", "dice_i", "biou"])
def test_nothing_as_large_as_the_logits_is_kept(name: str) -> None:
    logits, labels = batch(2, 40, 40, classes=9, dtype=torch.float32)
    leaf, kept = logits.requires_grad_(), []
    loss = loss_of(name)

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() != leaf.untyped_storage().data_ptr():
            kept.append(x.numel())
        return x

    for fused in (True, False):
        loss.fused = fused
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss(leaf, labels)
        assert (max(kept) < leaf.numel()) is fused


@pytest.mark.usefixtures("fused_path")
def test_blocks_of_maps_take_little_memory() -> None:
    """A boundary metric keeps what its gradient is made of; all maps at once are several times as many."""
    logits, labels = batch(12, 96, 96, classes=8, dtype=torch.float32)
    loss, logits = surrogate("bf1"), logits.requires_grad_()
    peak = peak_allocated(loss, logits, labels)
    loss.fused = False
    whole = peak_allocated(loss, logits, labels)
    cross_entropy = peak_allocated(functional.cross_entropy, logits, labels.masked_fill(labels == 255, 0))
    assert logits.numel() * 4 < peak < 4 * cross_entropy
    assert whole > 2.5 * peak


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("metric", ["bf1", "boundary_iou", "miou"])
def test_a_loss_may_only_be_looked_at(metric: str, mode: type) -> None:
    loss, labels = surrogate(metric), torch.randint(0, 3, (2, 8, 8))
    logits = torch.nn.Conv2d(3, 3, 1)(torch.randn(2, 3, 8, 8))
    with mode():
        seen = loss(logits, labels)
    assert not seen.requires_grad
    assert seen.item() == loss(logits, labels).item()


@pytest.mark.usefixtures("fused_path")
def test_the_choice_of_the_path_is_copied() -> None:
    loss = SurrogateLoss("miou")
    assert loss.fused
    loss.fused = False
    assert not pickle.loads(pickle.dumps(loss)).fused


# Triton ---------------------------------------------------------------------------------------------------------------


triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@triton
@pytest.mark.parametrize("how", ["interpreted", "native"])
@pytest.mark.slow
def test_laws_of_triton(how: str) -> None:
    """In a process of its own: Triton's interpreter is switched on before the first import, and for all kernels."""
    if how == "native" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    laws = [Path(__file__).with_name(file) for file in ("test_equivalence.py", "triton_laws.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *laws],
        cwd=laws[0].parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1" if how == "interpreted" else "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@triton
@pytest.mark.parametrize("kernel", ["_sum", "_differentiate"])
@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For sm_90, with two chains of two curves on either side and rows of memory that allow wide loads."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from autosegloss.loss.kernels import moments_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(moments_triton, kernel)
    block_c, block_p = moments_triton._block(21)
    sizes = {"insides": 2, "inside_links": 2, "inside_pieces": 2, "outsides": 2, "outside_links": 2}
    constants = {**sizes, "outside_pieces": 2, "block_c": block_c, "block_p": block_p, "pixel_stride": 1}
    constants |= {"gradient_pixel_stride": 1} if kernel == "_differentiate" else {}
    pointers = {"logits": "*bf16", "gradient": "*bf16", "labels": "*i64"}
    pointers |= dict.fromkeys(("inside_table", "outside_table", "partial"), "*fp32")
    pointers |= dict.fromkeys(("inside_gradient", "outside_gradient"), "*fp32")
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in function.arg_names}
    aligned: Any = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind != "constexpr"}
    source = ASTSource(function, signature, constants, aligned)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]
    assert not re.search(r"^\s+(@!?%p\d+ )?(atom|red)\.", compiled.asm["ptx"], re.MULTILINE)  # sums in a fixed order
