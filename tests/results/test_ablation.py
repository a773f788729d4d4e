"""The ablation: its variants do without the constraints they name and no other, and its table repeats itself."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

import autosegloss as asl
from autosegloss.loss.curve import Curve, identity_theta, points_from_theta
from autosegloss.search.objective import proxy_of
from autosegloss.search.seeds import comparison_seeds
from autosegloss.search.settings import as_config
from autosegloss.search.statistics import t_interval
from results.ablation.ablation import CROSS_ENTROPY, PROBLEMS, Course, Problem, Variant, bench_ablation, main
from results.ablation.free_curves import FreeCurve, FreeLoss, FreeSpace
from tests.searches import found_by

pytestmark = pytest.mark.usefixtures("small_and_here")

X = torch.linspace(0, 1, 401, dtype=torch.float64)
METRICS = {"miou": asl.metric("miou"), "bf1": asl.metric({"name": "bf1", "radius": 2})}


def coordinates(pieces: int, more: int = 0) -> st.SearchStrategy[list[float]]:
    size = 2 * (2 * pieces - 1) + more
    return st.lists(st.floats(0, 1), min_size=size, max_size=size)


def only_curve(loss: FreeLoss) -> FreeCurve:
    return next(iter(loss.curves.values()))  # type: ignore[return-value]


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 8, 8), generator=generator)
    labels[0, 0, :3] = 255
    return logits, labels


@given(st.data(), st.integers(1, 3))
def test_without_the_truth_table_the_ends_are_free_and_the_curve_still_rises(data: st.DataObject, pieces: int) -> None:
    low, height, *inner = data.draw(coordinates(pieces, more=2))
    loss = FreeSpace(METRICS["miou"], "ends", pieces).loss([low, height, *inner] * 2)
    y = only_curve(loss)(X)
    assert y[0].item() == pytest.approx(low, abs=1e-12)
    assert y[-1].item() == pytest.approx(low + height * (1 - low), abs=1e-12)
    assert (y.diff() >= -1e-9).all()
    assert ((y >= -1e-12) & (y <= 1 + 1e-12)).all()


@given(st.data(), st.integers(1, 3))
def test_without_monotonicity_the_ends_are_fixed_and_ordinates_go_anywhere(data: st.DataObject, pieces: int) -> None:
    theta = data.draw(coordinates(pieces))
    curve = only_curve(FreeSpace(METRICS["miou"], "ordinates", pieces).loss(theta * 2))
    assert [v for _, v in curve.knots[1:-1]] == theta[1::2]
    assert [u for u, _ in curve.knots[1:-1]] == [u for u, _ in points_from_theta(theta)]
    y = curve(X)
    assert (y[0].item(), y[-1].item()) == pytest.approx((0, 1), abs=1e-12)
    assert ((y >= -1e-9) & (y <= 1 + 1e-9)).all()


def test_a_falling_curve_is_within_reach_and_is_the_bezier_curve_of_its_points() -> None:
    curve = FreeCurve([(0, 0), (0.3, 0.9), (0.5, 0.7), (0.6, 0.1), (1, 1)])
    s = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    for knots in (curve.knots[:3], curve.knots[2:]):
        p0, p1, p2 = (torch.tensor(knot, dtype=torch.float64) for knot in knots)
        u, v = ((1 - s) ** 2 * p0 + 2 * s * (1 - s) * p1 + s**2 * p2).T
        assert torch.allclose(curve(u), v, atol=1e-9)
    assert curve(X).diff().min() < -1e-4
    x = torch.linspace(0.01, 0.99, 98, dtype=torch.float64).requires_grad_()  # none of them where two pieces meet
    curve(x).sum().backward()
    assert x.grad is not None
    numeric = ((curve(x + 1e-6) - curve(x - 1e-6)) / 2e-6).detach()
    assert torch.allclose(x.grad, numeric, atol=1e-3)


@given(st.data(), st.integers(1, 3))
def test_a_free_curve_within_the_constraints_is_the_curve_of_the_package(data: st.DataObject, pieces: int) -> None:
    points = points_from_theta(data.draw(coordinates(pieces)))
    free = FreeCurve([(0.0, 0.0), *points, (1.0, 1.0)])
    assert torch.allclose(free(X), Curve("bezier", points)(X), atol=1e-9)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("free", "pieces"), [("ends", 1), ("ends", 2), ("ordinates", 2)])
def test_a_search_starts_from_the_identity_loss(name: str, free: Any, pieces: int) -> None:
    space = FreeSpace(METRICS[name], free, pieces)
    assert all(0 < x < 1 for x in space.identity)
    logits, labels = batch()
    plain = asl.SurrogateLoss(METRICS[name], curve="identity")(logits, labels)
    assert space.loss(space.identity)(logits, labels).item() == pytest.approx(plain.item(), abs=1e-6)
    elsewhere = [0.3] * len(space.identity)
    assert abs(space.loss(elsewhere)(logits, labels).item() - plain.item()) > 1e-3


@pytest.mark.parametrize("name", METRICS)
@given(st.data())
def test_a_free_loss_is_the_surrogate_under_its_curves(name: str, data: st.DataObject) -> None:
    places = asl.slots(METRICS[name])
    thetas = [data.draw(coordinates(2)) for _ in places]
    curves = [FreeCurve([(0.0, 0.0), *points_from_theta(theta), (1.0, 1.0)]) for theta in thetas]
    ours = FreeLoss(METRICS[name], curves)
    theirs = asl.SurrogateLoss.from_theta(METRICS[name], [x for theta in thetas for x in theta])
    logits, labels = batch()
    assert ours(logits, labels).item() == pytest.approx(theirs(logits, labels).item(), abs=1e-6)


def test_one_hot_predictions_score_the_metric_but_without_the_truth_table() -> None:
    _, labels = batch()
    labels[labels == 255] = 0
    logits = 200.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
    space = {free: FreeSpace(METRICS["miou"], free, 2) for free in ("ends", "ordinates")}  # type: ignore[arg-type]
    assert space["ordinates"].loss([0.3] * 12)(logits, labels).item() == pytest.approx(0, abs=1e-9)
    assert space["ends"].loss([0.3] * 16)(logits, labels).item() > 0.1


SMALL: dict[str, Any] = {"start": {"iterations": 2}, "train": {"iterations": 2, "batch_size": 2}}
TINY = Problem(
    {"metric": "miou", "proxy": {"data": {"name": "shapes"}, **SMALL}},
    {
        "bezier, 2 pieces": Variant(),
        CROSS_ENTROPY: Variant(searched=False),
        "no curves": Variant(searched=False),
        "no truth table": Variant(free="ends"),
    },
    steps=1,
    samples=2,
    fresh=2,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, small_and_here: None) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("ablation")
    bench_ablation(out, seeds=1, problems=[TINY])
    return out, [json.loads(line) for line in (out / "ablation.jsonl").read_text().splitlines()]


def test_every_variant_is_measured_on_the_same_seeds(done: tuple[Path, list[dict[str, Any]]]) -> None:
    out, rows = done
    assert [row["variant"] for row in rows] == sorted(TINY.variants)
    runs = {row["variant"]: [100 * run["target"] for run in row["runs"]] for row in rows}
    assert len({tuple(each) for each in runs.values()}) > 1
    proxy = proxy_of(as_config(TINY.config)).prepare()
    for row in rows:
        theta = None if row["theta"] is None else tuple(row["theta"])
        loss = Course(proxy, TINY, TINY.variants[row["variant"]]).loss(theta)
        scores = [
            proxy.evaluation(proxy.trained(loss, seed), validate=True).validation for seed in comparison_seeds(0, 2)
        ]
        assert row["runs"] == [{name: each[name] for name in ("target", "miou", "gacc")} for each in scores]
    table = (out / "ablation.md").read_text()
    for name, values in runs.items():
        half = student.ppf(0.975, 1) * stdev(values) / 2**0.5
        interval = f"{fmean(values):.1f} [{fmean(values) - half:.1f}, {fmean(values) + half:.1f}]"
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
        assert interval in line
        gain = fmean(a - b for a, b in zip(values, runs["bezier, 2 pieces"], strict=True))
        assert name == "bezier, 2 pieces" or line.endswith(f"| {gain:+.1f} |")


def test_what_is_there_is_not_run_again_and_a_torn_line_is(done: tuple[Path, list[dict[str, Any]]]) -> None:
    out, rows = done
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    lines = kept["ablation.jsonl"].splitlines(keepends=True)
    (out / "ablation.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    bench_ablation(out, seeds=1, problems=[TINY])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    marked = json.dumps(rows[0] | {"runs": [{"target": 1.0, "miou": 1.0, "gacc": 1.0}] * 2}) + "\n"
    (out / "ablation.jsonl").write_bytes(marked.encode() + b"".join(lines[1:]))
    assert "100.0 [100.0, 100.0]" in bench_ablation(out, seeds=1, problems=[TINY])


def test_a_loss_within_the_constraints_is_that_of_the_package_to_the_bit() -> None:
    proxy = proxy_of(as_config(TINY.config))
    logits, labels = batch()
    rng = np.random.default_rng(0)
    for pieces, share, logic in [(2, False, "product"), (3, True, "product"), (1, False, "godel")]:
        relaxation = {"pieces": pieces, "share_curves": share, "logic": logic}
        course = Course(proxy, TINY, Variant(relaxation))
        assert course.start() == identity_theta("bezier", pieces) * 2
        theta = tuple(rng.random(len(course.start())).tolist())
        plain = asl.SurrogateLoss.from_theta("miou", theta, pieces, share_curves=share, logic=logic)  # type: ignore[arg-type]
        assert torch.equal(course.loss(theta)(logits, labels), plain(logits, labels))


def test_the_real_problems_are_the_shipped_proxies_and_their_variants_differ() -> None:
    proxy = proxy_of(as_config(TINY.config))  # of which a start asks nothing
    sizes: dict[tuple[str, str], int] = {}
    for problem, file in zip(PROBLEMS, ("shapes_miou", "nuclei_bf1"), strict=True):
        shipped, config = found_by(file), as_config(problem.config)
        assert (config.proxy, config.metric) == (shipped.proxy, shipped.metric)
        starts = {name: Course(proxy, problem, variant).start() for name, variant in problem.variants.items()}
        as_shipped = Course(proxy, problem, Variant(shipped.relaxation.model_dump())).start()
        assert next(iter(starts.values())) == as_shipped
        searched = {name: variant for name, variant in problem.variants.items() if variant.searched}
        assert len({str((v.free, v.relaxation)) for v in searched.values()}) == len(searched)
        assert {variant.beside for variant in problem.variants.values()} <= {"", *problem.variants}
        sizes |= {(file, name): len(starts[name]) for name in searched}
    assert sizes["shapes_miou", "bezier, 2 pieces"] == sizes["shapes_miou", "linear, 4 pieces"] == 12
    assert sizes["shapes_miou", "2 pieces, no truth table"] == 16
    assert sizes["nuclei_bf1", "bezier, 1 piece"] == sizes["nuclei_bf1", "linear, 2 pieces"] == 8
    assert sizes["nuclei_bf1", "1 piece, shared"] == 4
    assert sizes["nuclei_bf1", "2 pieces, not monotone"] == sizes["nuclei_bf1", "bezier, 2 pieces"] == 24


def test_an_interval_by_hand() -> None:
    # 2.776 is the quantile of Student's t for 4 degrees of freedom.
    assert t_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3, 3 - 2.776 * 2.5**0.5 / 5**0.5, 4.963), abs=1e-3)


def test_a_diverged_training_scores_nothing(tmp_path: Path) -> None:
    wild = {**SMALL, "train": {"iterations": 8, "learning_rate": 1e30}}
    problem = replace(TINY, config={"metric": "miou", "proxy": wild}, variants={CROSS_ENTROPY: Variant(searched=False)})
    assert "| 0.0 [0.0, 0.0] |" in bench_ablation(tmp_path, problems=[problem])


def test_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--seeds", "0", "--out", str(tmp_path / "out")])
    assert "seeds is 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
