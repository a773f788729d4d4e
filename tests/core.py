"""Runs metrics and losses where torch and numpy are all that is installed.

`test_core.py` runs it under a finder that refuses everything else, and `.ci/run` in an environment of these two.

    python tests/core.py loss.json
"""

import sys

import torch

import autosegloss as asl
from autosegloss.loss import named_loss

if __name__ == "__main__":
    labels = torch.tensor([[[0, 1, 1], [2, 2, 255], [0, 0, 0]]])
    for name in asl.METRICS:
        expr = asl.metric(name)
        assert asl.parse(str(expr)) is expr
        accumulator = asl.Accumulator(expr, num_classes=3)
        accumulator.update(labels.where(labels < 255, 0), labels)
        assert 0 < accumulator.compute() <= 1, name
        logits = torch.randn(1, 3, 3, 3).requires_grad_()
        asl.SurrogateLoss(expr, curve="identity")(logits, labels).backward()
        assert logits.grad.isfinite().all()
    for name in asl.presets():
        loss = asl.load_loss(name)
        loss.save(sys.argv[1])
        assert asl.load_loss(sys.argv[1]).content() == loss.content()
        assert loss(torch.randn(1, 3, 3, 3), labels).isfinite()
    for name in ("focal", "lovasz", "boundary_cross_entropy", "0.25*cross_entropy + 0.75*shapes/miou"):
        assert named_loss(name)(torch.randn(1, 3, 3, 3), labels).isfinite()
    offsets = asl.fit_offsets("miou", [(torch.randn(1, 3, 3, 3), labels)], num_classes=3)
    offsets.save(sys.argv[1])
    assert asl.load_offsets(sys.argv[1]).to_json() == offsets.to_json()
    assert callable(asl.search)
    try:
        asl.load_config("study.yaml")
    except ImportError as error:
        print(error)
