"""What `autosegloss show` prints of a loss: its formula, what it is called, logic, curves, scale and parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from autosegloss import MixedLoss, SurrogateLoss, cli, load_loss
from autosegloss.loss.classic import CrossEntropy, Focal
from autosegloss.report.plots import text_plot
from autosegloss.report.shown import loss_text

IOU = "class_mean(total(pred & target) / (x1 := total(pred | target)), where=x1)"
IDENTITIES = "\n\nand[0] of pred & target: identity\n\nor[0] of pred | target: identity"


def test_a_loss_with_a_scale(capsys: pytest.CaptureFixture[str]) -> None:
    for name, scale, formula in (("lovasz", 1, f"1 - {IOU}"), ("8*lovasz", 8, f"8 * (1 - {IOU})")):
        assert cli.main(["show", name]) == 0
        shown, _, provenance = capsys.readouterr().out.partition("\n\nprovenance\n")
        assert shown == (
            f"loss      {formula}\n"
            "known as  Lovász-Softmax (Berman et al., CVPR 2018)\n"
            f"scale     {scale}\n"
            "logic     lovasz\n"
            "extended  total(pred & target) / total(pred | target)\n"
            "classes   present\n"
            f"curve     identity{IDENTITIES}"
        )
        assert provenance.startswith("  name: lovasz\n")


def test_a_loss_that_is_a_name_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name, shown in {
        "cross_entropy": "cross_entropy\nknown as  cross-entropy",
        "cross_entropy(class_power=0.5)": "cross_entropy(class_power=0.5)\n"
        "known as  root-weighted cross-entropy (by the pixels of the batch)",
        "cross_entropy(class_power=0.7)": "cross_entropy(class_power=0.7)",
        "focal(gamma=3)": "focal(gamma=3.0)",
    }.items():
        assert cli.main(["show", name]) == 0
        assert capsys.readouterr().out == f"loss      {shown}\n"


def test_a_sum_has_its_scale_and_the_share_of_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "6*lovasz + 2*cross_entropy(class_power=0.5)"]) == 0
    assert capsys.readouterr().out == (
        f"loss      6 * (1 - {IOU}) + 2 * cross_entropy(class_power=0.5)\n"
        "scale     8\n\n"
        "share     0.75\n"
        f"loss      1 - {IOU}\n"
        "known as  Lovász-Softmax (Berman et al., CVPR 2018)\n"
        "logic     lovasz\n"
        "extended  total(pred & target) / total(pred | target)\n"
        "classes   present\n"
        f"curve     identity{IDENTITIES}\n\n"
        "share     0.25\n"
        "loss      cross_entropy(class_power=0.5)\n"
        "known as  root-weighted cross-entropy (by the pixels of the batch)\n"
    )
    assert cli.main(["show", "soft_dice + cross_entropy"]) == 0
    assert "\nknown as  Dice + CE\nscale     2\n\nshare     0.5\n" in capsys.readouterr().out


def test_a_curve_of_two_parts_is_drawn_once() -> None:
    points = [[(0.2, 0.5)], []]
    parts = [SurrogateLoss("miou", points, "product"), SurrogateLoss("miou", points, "lovasz")]
    text = loss_text(MixedLoss([(4.5, parts[0]), (4.5, parts[1]), (1, CrossEntropy(label_smoothing=0.2))]))
    plot = text_plot(parts[0].curves[next(iter(parts[0].curves))])
    assert text.split("\n\n") == [
        f"loss      4.5 * (1 - {IOU}) + 4.5 * (1 - {IOU}) + cross_entropy(label_smoothing=0.2)\nscale     10",
        f"share     0.45\nloss      1 - {IOU}\nlogic     product\nclasses   metric\ncurve     bezier",
        "and[0] of pred & target\ncontrol points: (0.2, 0.5)\n  " + plot.replace("\n", "\n  "),
        "or[0] of pred | target: identity",
        f"share     0.45\nloss      1 - {IOU}\nlogic     lovasz\n"
        "extended  total(pred & target) / total(pred | target)\nclasses   metric\ncurve     bezier",
        "and[0] of pred & target: as above",
        "or[0] of pred | target: identity",
        "share     0.1\nloss      cross_entropy(label_smoothing=0.2)",
    ]


def test_what_the_logic_lovasz_leaves_to_products_is_said() -> None:
    loss = SurrogateLoss("0.5 * miou + 0.5 * boundary_iou", logic="lovasz")
    text = loss_text(loss)
    assert text.startswith("loss      1 - (0.5 * class_mean(")
    lines = [line for line in text.splitlines() if line.startswith(("extended", "product"))]
    assert lines[0] == "extended  total(pred & target) / total(pred | target)"
    assert len(lines) > 1
    assert all(line.startswith("product   `total(") for line in lines[1:])
    assert lines[1].endswith(" sees pred outside `pred & target` and `pred | target`.")
    assert loss.extension is not None
    assert len(loss.extension.left) == len(lines) - 1
    assert SurrogateLoss("miou").extension is None


def test_a_part_without_a_share_is_left_out() -> None:
    assert "share     0\n" not in loss_text(MixedLoss(load_loss("jml"), 0.0))


def test_a_file_with_the_name_of_a_loss_takes_the_name_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("focal").write_text("no loss")
    Path("dml").mkdir()
    load_loss("jml").save("cross_entropy")
    assert loss_text(Focal()) == "loss      focal"
    assert loss_text(CrossEntropy()) == "loss      cross_entropy"
    assert "known as  JML (" in loss_text(load_loss("cross_entropy"))
    assert "known as  DML (" in loss_text(load_loss("dml"))
