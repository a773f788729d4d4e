"""The tuning of a comparison: every loss at its best step of one ladder, whoever runs it and however often it stops."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosegloss.errors import AutoseglossError, InputError, RefusedError
from autosegloss.loss import named_loss
from autosegloss.loss.file import build_loss
from autosegloss.proxy.own_loss import is_own
from autosegloss.report.pages.report import report_page
from autosegloss.search.compare import compare
from autosegloss.search.comparison import PLAN_VERSION, Comparison, _rows, run_comparison
from autosegloss.search.content import bare_content
from autosegloss.search.head import Head
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.journal import Journal
from autosegloss.search.objective import proxy_of
from autosegloss.search.runners.serial import SerialRunner
from autosegloss.search.seeds import comparison_seeds, final_seeds, step_seed, tuning_seeds
from autosegloss.search.settings import as_config
from autosegloss.search.tables import Table
from autosegloss.search.tabulate import tabulate
from autosegloss.search.tuning import Ladder, Tuning
from tests.journals import rewrite, trials_of
from tests.searches import short

OWN = {"format": "autosegloss-function", "function": "a:b", "source": "", "counts": [1], "provenance": {}}
LOSSES = {"jml": bare_content(named_loss("jml")), "lovasz": bare_content(named_loss("lovasz")), "a:b": OWN}
LADDERS = {"sgd": Ladder((1.0, 2.0, 4.0)), "adamw": Ladder((1 / 3, 1.0, 3.0), "adamw")}
BEST = {("sgd", 0): 2.0, ("sgd", 1): 4.0, ("sgd", 2): 1.0, ("adamw", 0): 1 / 3, ("adamw", 1): 1.0, ("adamw", 2): 3.0}
"""The step with the highest reward, by setting and place of the loss."""
TUNING_SEEDS = (11, 12)


@dataclass(frozen=True)
class Toy:
    """The further the step of a job from the best one, the lower its reward; a function of the job alone.

    Args:
        losses: The number of losses.
        flat: Whether all rewards are equal.
        failing: The steps at which `jml` fails under SGD while it is tuned.
    """

    flat: bool = False
    failing: tuple[float, ...] = ()

    def __call__(self, job: Job) -> Outcome:
        setting = list(LADDERS)[job.index % 2]
        scale = 1.0 if is_own(job.loss) else build_loss(job.loss).scale  # type: ignore[attr-defined]
        step = scale * job.rate
        assert 1 in (scale, job.rate)
        if job.stage == "tune" and job.index == 0 and step in self.failing:
            raise RuntimeError("diverged")
        reward = 0.5 if self.flat else math.exp(-abs(math.log(step / BEST[setting, job.index // 2])))
        reward += 0 if self.flat else job.seed % 7 / 100
        return Outcome(reward, {}, {"target": reward} if job.stage == "compare" else {}, None, 0.0)


def made(folder: Path, names: Sequence[str], seeds: int = 2, objective: Toy = Toy(), resume: bool = False) -> Table:
    """The table of a toy comparison, run serially."""
    plan = {
        "version": PLAN_VERSION,
        "losses": list(names),
        "seeds": comparison_seeds(0, seeds),
        "metrics": ["target"],
        "verdicts": ["target"],
        "settings": list(LADDERS),
        "steps": {setting: list(ladder.steps) for setting, ladder in LADDERS.items()},
        "tuning_seeds": list(TUNING_SEEDS),
        "configurations": {setting: {"metric": "miou"} for setting in LADDERS},
        "definitions": {setting: {name: LOSSES[name] for name in names} for setting in LADDERS},
    }
    return run_comparison(
        plan,
        folder,
        lambda comparison: SerialRunner().run(comparison, objective),
        target="miou",
        notes=dict.fromkeys(LADDERS, ""),
        what="comparison",
        resume=resume,
        head=Head.here({}),
        command="",
        observer=None,
        tuning=Tuning(LADDERS, TUNING_SEEDS),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("plan.json", "table.json", "table.md", "table.tex")}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    made(folder, list(LOSSES))
    return folder


@given(st.lists(st.none() | st.sampled_from([0.25, 0.5, 0.75]), min_size=4, max_size=4))
def test_the_best_step_has_the_highest_mean_and_of_equals_is_nearest_to_1(means: list[float | None]) -> None:
    steps = (0.25, 1.0, 2.0, 16.0)
    found = [(mean, step) for mean, step in zip(means, steps, strict=True) if mean is not None]
    top = [step for mean, step in found if mean == max(found)[0]] or list(steps)
    nearest = next(step for step in (1.0, 2.0, 0.25, 16.0) if step in top)
    assert steps[Ladder(steps).best(means)] == nearest


def test_every_loss_is_compared_at_its_best_step_with_seeds_of_its_own(done: Path) -> None:
    """The scale under SGD; the learning rate under AdamW, and for functions of the user's own."""
    trials = trials_of(done / "trials.jsonl")
    tuned, compared = ([line for line in trials if line["stage"] == stage] for stage in ("tune", "compare"))
    assert trials == [*tuned, *compared]
    assert (len(tuned), len(compared)) == (2 * 6 * 3, 2 * 6)
    assert {line["seed"] for line in tuned} == set(TUNING_SEEDS)
    assert all(not line["validation"] for line in tuned)
    for index in range(6):
        setting, place = ("sgd", "adamw")[index % 2], index // 2
        content = list(LOSSES.values())[place]
        if by_rate := setting == "adamw" or is_own(content):
            assert all(line["loss"] == content for line in trials if line["index"] == index)
        steps = {
            stage: [
                line["rate"] if by_rate else build_loss(line["loss"]).scale * (line["rate"] == 1)  # type: ignore[attr-defined]
                for line in lines
                if line["index"] == index
            ]
            for stage, lines in (("tune", tuned), ("compare", compared))
        }
        assert steps == {"tune": [*LADDERS[setting].steps] * 2, "compare": [BEST[setting, place]] * 2}
    table = json.loads((done / "table.json").read_text())
    assert [row["tuned"]["name"] for row in table["rows"]] == [
        "2*jml", "4*lovasz", "a:b", "jml (learning rate x 0.333)", "lovasz", "a:b (learning rate x 3)",
    ]  # fmt: skip
    for row in table["rows"]:
        index = 2 * list(LOSSES).index(row["loss"]) + list(LADDERS).index(row["setting"])
        rewards = [line["reward"] for line in tuned if line["index"] == index]
        assert row["tuned"]["heldout"] == [fmean(pair) for pair in zip(rewards[:3], rewards[3:], strict=True)]
        assert row["tuned"]["step"] == BEST[row["setting"], index // 2]


def test_the_seeds_are_those_of_nothing_else() -> None:
    tuning, compared = set(tuning_seeds(3, 20)), set(comparison_seeds(3, 20))
    searched = {step_seed(3, step) for step in range(20)} | set(final_seeds(3, 20, ()))
    assert len(tuning) == 20
    assert not tuning & (compared | searched)


def test_the_tables_name_the_losses_at_their_steps(done: Path, tmp_path: Path) -> None:
    text, latex = (done / "table.md").read_text(), (done / "table.tex").read_text()
    sgd, adamw = text.split("## ")[1:]
    assert "| `2*jml` | " in sgd
    assert "Difference to `2*jml` on the same seeds" in sgd
    assert (
        "Each loss at the step chosen on held-out images among 1, 2, 4 (2 seeds each). At the lowest step, beyond "
        "which another may be better: `a:b`. At the highest step, beyond which another may be better: `4*lovasz`.\n"
        in sgd
    )
    assert "among 0.333, 1, 3 (2 seeds each). At the lowest" in adamw
    assert r"\texttt{4*lovasz} & " in latex
    assert "among 1, 2, 4 (2 seeds each)." in latex
    tabulate(done, "lovasz", out=tmp_path)  # by the name that was given
    assert "Difference to `4*lovasz`" in (tmp_path / "table.md").read_text()


def test_it_may_stop_after_any_trial(done: Path, tmp_path: Path) -> None:
    lines = (done / "trials.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 48
    for kept in (1, 5, 18, 35, 36, 37, 47):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "trials.jsonl").write_bytes(b"".join(lines[: 1 + kept]) + lines[1 + kept][:30])
        (folder / "plan.json").write_bytes((done / "plan.json").read_bytes())
        made(folder, list(LOSSES), resume=True)
        assert files(folder) == files(done)
        assert len((folder / "trials.jsonl").read_bytes().splitlines()) == len(lines)


def test_a_loss_and_a_seed_that_are_added_leave_the_others_and_the_loss_is_tuned(done: Path, tmp_path: Path) -> None:
    made(tmp_path, ["jml", "lovasz"])
    before = (tmp_path / "trials.jsonl").read_bytes()
    made(tmp_path, list(LOSSES), seeds=3, resume=True)
    assert (tmp_path / "trials.jsonl").read_bytes().startswith(before)
    whole = tmp_path / "whole"
    made(whole, list(LOSSES), seeds=3)
    assert files(tmp_path) == files(whole)
    assert sum(line["stage"] == "tune" for line in trials_of(tmp_path / "trials.jsonl")) == 36


def test_jobs_that_wait_for_a_step_are_not_handed_out(tmp_path: Path) -> None:
    """In any order of the outcomes; a loss whose step is known does not wait for the others."""
    with Journal(tmp_path / "trials.jsonl") as journal:
        comparison = Comparison({"sgd": LOSSES}, [1], journal, tuning=Tuning({"sgd": LADDERS["sgd"]}, (5,)))
        assert (comparison.total, comparison.done) == (9 + 3, 0)
        jobs = [comparison.next_job() for _ in range(9)]
        assert comparison.next_job() is None
        toy = Toy(flat=True)
        for job in reversed(jobs[3:6]):
            assert job is not None
            comparison.record(job, toy(job))
        second = comparison.next_job()
        assert second is not None
        assert (second.stage, second.index, second.loss) == ("compare", 1, LOSSES["lovasz"])  # equal means: step 1
        assert comparison.next_job() is None
        with pytest.raises(InputError, match="is not due"):
            comparison.record(replace(second, index=0), toy(second))
        assert not comparison.finished


def test_a_step_where_every_run_failed_is_out(tmp_path: Path) -> None:
    table = made(tmp_path / "best", ["jml"], objective=Toy(failing=(2.0,)))
    row = table.rows[0]
    assert row.tuned is not None
    assert row.tuned.step == 1  # as good as 4, and nearer to 1
    assert row.tuned.heldout[1] is None
    everywhere = made(tmp_path / "all", ["jml"], objective=Toy(failing=(1.0, 2.0, 4.0)))
    assert (everywhere.rows[0].name, everywhere.rows[0].runs[0] is None) == ("jml", False)
    assert "4 (2 seeds each). Every trial at every step failed: `jml`." in everywhere.to_markdown()
    assert tabulate(tmp_path / "all").rows == everywhere.rows
    lines = trials_of(tmp_path / "best" / "trials.jsonl")
    assert (lines[0]["stage"], lines[0]["index"]) == ("tune", 0)
    lines[0]["reward"] = 0.0  # at step 1
    rewrite(tmp_path / "best" / "trials.jsonl", lines, tmp_path / "best" / "trials.jsonl")
    with pytest.raises(RefusedError, match="does not belong"):  # it was compared at another step
        made(tmp_path / "best", ["jml"], objective=Toy(), resume=True)


def test_two_losses_with_one_name_at_their_steps_are_told_apart(tmp_path: Path) -> None:
    double = bare_content(build_loss(LOSSES["jml"] | {"version": 3, "scale": 2.0}))
    losses = {"sgd": {"jml": LOSSES["jml"], "2*jml": double}}
    with Journal(tmp_path / "trials.jsonl") as journal:
        comparison = Comparison(losses, [1, 2], journal, tuning=Tuning({"sgd": LADDERS["sgd"]}, (5,)))
        while (job := comparison.next_job()) is not None:
            scale = build_loss(job.loss).scale  # type: ignore[attr-defined]
            comparison.record(job, Outcome(-abs(scale - 2), {}, {"target": 0.5}, None, 0.0))
        rows = _rows(comparison, {"settings": ["sgd"], "losses": ["jml", "2*jml"]}, tuned=True)
    assert [row.name for row in rows] == ["2*jml (given as jml)", "2*jml"]


CONFIG = short("Plain")
CONFIG["compare"] = {"metrics": ["miou"], "steps": [1, 3], "tuning_seeds": 1}
CONFIG["proxy"]["train"]["optimizer"] = "adamw"


def test_a_real_comparison_trains_at_the_step_that_the_held_out_part_prefers(tmp_path: Path) -> None:
    """By hand: the reward of a training of its own at each step; the page repeats the trainings at the same steps."""
    table = compare(CONFIG, ["cross_entropy", "8*jml"], tmp_path, seeds=2, runner="serial")
    config = as_config(CONFIG)
    proxy = proxy_of(config).prepare()
    (seed,) = table.plan["tuning_seeds"]
    assert (table.plan["version"], table.plan["steps"]) == (4, {"": [1, 3]})
    for row in table.rows:
        own = table.plan["definitions"][""][row.loss]
        rewards = tuple(proxy.reward(proxy.trained(proxy.loss(own), seed, rate=rate)) for rate in (1.0, 3.0))
        assert row.tuned is not None
        assert row.tuned.heldout == rewards
        step = (1.0, 3.0)[rewards.index(max(rewards))]
        assert row.tuned.step == step
        first = proxy.evaluation(proxy.trained(proxy.loss(own), table.plan["seeds"][0], rate=step), validate=True)
        assert row.runs[0] is not None
        assert row.runs[0]["miou"] == first.validation["miou"]
    page = report_page(tmp_path)
    assert page.count("as recorded.") == 2
    assert "Each loss at the step chosen on held-out images among 1, 3 (1 seed each)." in page
    assert any(row.name != row.loss and row.name in page for row in table.rows)
    for change, message in (
        ({"tuning_seeds": 2}, r"tuning_seeds: \[\d+\] there, \[\d+, \d+\] now"),
        ({"steps": [1, 2]}, r"steps: \[1\.0, 3\.0\] there, \[1\.0, 2\.0\] now"),
    ):
        other = CONFIG | {"compare": CONFIG["compare"] | change}
        with pytest.raises(RefusedError, match=message):
            compare(other, ["cross_entropy", "8*jml"], tmp_path, seeds=2, runner="serial", resume=True)
    plan = tmp_path / "plan.json"
    earlier = {key: each for key, each in json.loads(plan.read_text()).items() if key not in ("steps", "tuning_seeds")}
    plan.write_text(json.dumps(earlier | {"version": 3}))
    with pytest.raises(RefusedError, match="an earlier version of autosegloss, which did not tune the steps of losses"):
        compare(CONFIG, ["cross_entropy", "8*jml"], tmp_path, seeds=2, runner="serial", resume=True)
    assert tabulate(tmp_path, out=tmp_path / "again").rows == table.rows


def test_a_step_that_a_loss_cannot_have_is_refused_before_any_training(tmp_path: Path) -> None:
    config = short("Plain") | {"compare": {"steps": [1, 1000]}}
    with pytest.raises(AutoseglossError, match=r"`2000\*jml` at step 1000: .*scale"):
        compare(config, ["jml", "2000*jml"], tmp_path / "out", seeds=2, runner="serial")
    assert not (tmp_path / "out").exists()


def test_a_table_that_was_not_tuned_prints_as_before(done: Path) -> None:
    table = tabulate(done, out=done / "again")
    plan = {key: each for key, each in table.plan.items() if key not in ("steps", "tuning_seeds")}
    before = replace(table, plan=plan, rows=tuple(replace(row, tuned=None) for row in table.rows))
    assert "step" not in before.to_markdown()
    alone = replace(table, plan=table.plan | {"steps": {"sgd": [1.0], "adamw": [1.0]}, "tuning_seeds": []})
    as_given = [replace(row, tuned=replace(row.tuned, name=row.loss, heldout=())) for row in table.rows if row.tuned]
    assert replace(alone, rows=tuple(as_given)).to_markdown() == before.to_markdown()
