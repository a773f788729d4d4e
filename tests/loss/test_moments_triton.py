"""The Triton kernels hold their laws (`triton_laws.py`), and Triton compiles them for a GPU where there is none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@pytest.mark.parametrize("how", ["interpreted", "native"])
def test_laws(how: str) -> None:
    """In a process of its own: Triton's interpreter is switched on before the first import, and for all kernels."""
    if how == "native" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    laws = Path(__file__).with_name("triton_laws.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", laws],
        cwd=laws.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1" if how == "interpreted" else "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize("kernel", ["_sum", "_differentiate"])
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
