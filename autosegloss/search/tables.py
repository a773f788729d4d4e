"""Tables of paired runs: scores, differences to a baseline and verdicts, as JSON, Markdown and LaTeX."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from autosegloss.errors import AutoseglossError, cut, listed
from autosegloss.metric import metric
from autosegloss.metric.settings import CALIBRATION, spec_label
from autosegloss.proxy.trial import CLASS_PREFIX, TARGET, WITH_OFFSETS
from autosegloss.search.statistics import LEVEL, Difference, Estimate, Score, holm, number
from autosegloss.search.tuning import Tuned

VALIDATION = "images that neither training nor search has used; often called the test set"
"""What the validation set is, for where it is first named."""
LEARNED = 0.01
"""The least IoU of a class that counts as learned: predicted everywhere, a rare class has an IoU above 0."""


@dataclass(frozen=True)
class Row:
    """The validation scores of one loss in one setting.

    Args:
        setting: Name of the setting.
        loss: Name of the loss.
        runs: Every metric, one mapping per seed; None where the training failed.
        errors: The error of each failed run.
        scores: An estimate per metric, over the successful runs.
        differences: Difference to the baseline in the setting, per metric; empty for the baseline itself.
        tuned: The step of the loss; None where losses were trained as they are.
    """

    setting: str
    loss: str
    runs: tuple[dict[str, float] | None, ...]
    errors: tuple[str, ...]
    scores: dict[str, Estimate]
    differences: dict[str, Difference | None]
    tuned: Tuned | None = None

    @property
    def name(self) -> str:
        """What the loss is called at its step."""
        return self.loss if self.tuned is None else self.tuned.name

    @classmethod
    def of(
        cls,
        setting: str,
        loss: str,
        runs: Sequence[dict[str, float] | None],
        errors: Sequence[str],
        baseline: Sequence[dict[str, float] | None] | None,
        tuned: Tuned | None = None,
    ) -> Row:
        """The row of a loss from its runs, without verdicts; `baseline` has the runs to compare with, if any."""
        ended = [run for run in runs if run]
        pairs = [(own, other) for own, other in zip(runs, baseline or (), strict=False) if own and other]
        measured = list(ended[0]) if ended else []
        return cls(
            setting=setting,
            loss=loss,
            runs=tuple(runs),
            errors=tuple(errors),
            scores={each: Estimate.of([run[each] for run in ended]) for each in measured},
            differences={
                each: Difference.of([own[each] for own, _ in pairs], [other[each] for _, other in pairs])
                for each in (measured if baseline is not None else [])
            },
            tuned=tuned,
        )


def judged(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows of a setting with verdicts.

    A difference gets a verdict if Holm's procedure rejects at 5% that it is 0, and its interval excludes 0. The family
    consists of the differences of all rows in the given columns; other metrics get no verdict.
    """
    family = {
        (number, name): difference
        for number, row in enumerate(rows)
        for name in columns
        if (difference := row.differences.get(name)) is not None
    }
    adjusted = holm([difference.p for difference in family.values()])
    verdicts = {
        place: _verdict(place[1], difference, p)
        for (place, difference), p in zip(family.items(), adjusted, strict=True)
    }
    return [
        replace(
            row,
            differences={
                name: None if difference is None else replace(difference, verdict=verdicts.get((number, name)))
                for name, difference in row.differences.items()
            },
        )
        for number, row in enumerate(rows)
    ]


def _verdict(name: str, difference: Difference, adjusted: float) -> Literal["better", "worse"] | None:
    if adjusted > LEVEL or difference.low <= 0 <= difference.high:
        return None
    return "better" if (difference.mean > 0) != (name == CALIBRATION) else "worse"


def not_learned(scores: Sequence[Mapping[str, Score]]) -> str:
    """The classes whose mean IoU is below 1% with every loss, and what to try; empty if there are none.

    Args:
        scores: The scores of each loss by metric; empty for a loss whose runs all failed.
    """
    ended = [row for row in scores if row]
    names = [
        f"`{cut(name.removeprefix(CLASS_PREFIX))}`"
        for name in (ended[0] if ended else ())
        if name.startswith(CLASS_PREFIX) and all(row[name].mean < LEARNED for row in ended)
    ]
    if not names:
        return ""
    return (
        f"IoU below {100 * LEARNED:.0f}% with every loss: {', '.join(listed(names))}. Either no validation image has "
        "the class, or no training has learned it: try more iterations, larger images, AdamW (`optimizer: adamw`) "
        "where it is not used yet, or a loss that weighs classes (`inverse_weighted_cross_entropy`)."
    )


def meaning(name: str, target: str | Mapping[str, Any]) -> object:
    """The expression of a measured metric, which may have several names; the name itself if it has no expression.

    Args:
        name: The name under which it was measured.
        target: The metric of the configuration.
    """
    try:
        return metric(target if name == TARGET else name)
    except AutoseglossError:
        return name


@dataclass(frozen=True)
class Table:
    """A finished comparison.

    Args:
        plan: Losses, seeds, columns and settings; for each setting its configuration and the definitions of the losses.
        command: The command line that trains what is in this table, if any.
        target: Label of the metric of the configuration.
        notes: A note on the data of each setting.
        rows: A row for each loss in each setting, in the order given.
        versions: Versions of the packages that determine the results.
        baseline: The loss that the others are compared with; None is the first.
        asked: The metrics that the table was asked for, which are its columns and have verdicts; none: those of the
            plan.
    """

    plan: dict[str, Any]
    command: str
    target: str
    notes: dict[str, str]
    rows: tuple[Row, ...]
    versions: dict[str, str]
    baseline: str | None = None
    asked: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """The loss that the others are compared with."""
        losses: list[str] = self.plan["losses"]
        return losses[0] if self.baseline is None else self.baseline

    @property
    def own(self) -> bool:
        """Whether the numbers are those of a trial of the user's own."""
        configurations: Mapping[str, Any] = self.plan.get("configurations", {})
        return any(each.get("trial") is not None for each in configurations.values())

    @property
    def columns(self) -> list[str]:
        """The metrics shown; of a trial of the user's own all numbers, but the one that is the reward."""
        if self.own and not self.asked:
            return [name for name in self.measured if name != self.target.removeprefix("-").strip()]
        return list(self.asked or self.plan["metrics"])

    @property
    def tested(self) -> list[str]:
        """The metrics that have verdicts."""
        return list(self.asked or self.plan.get("verdicts", self.plan["metrics"]))

    @property
    def metric(self) -> str | dict[str, Any]:
        """The target metric, as the configuration has it: its reward, or its metric without one."""
        configuration: dict[str, Any] = next(iter(self.plan["configurations"].values()))
        found: str | dict[str, Any] = configuration.get("reward") or configuration["metric"]
        return found

    @property
    def measured(self) -> list[str]:
        """Every metric that a run has."""
        return list(dict.fromkeys(name for row in self.rows for name in row.scores)) or list(self.plan["metrics"])

    def tabulated(self, baseline: str | None = None, asked: Sequence[str] = ()) -> Table:
        """This table with another baseline, columns and verdicts; the runs are the same.

        Args:
            baseline: One of the losses; None is the first.
            asked: Some of the metrics measured; none: the columns and verdicts of the plan.
        """
        new = replace(self, baseline=None if baseline == self.plan["losses"][0] else baseline, asked=tuple(asked))
        rows: list[Row] = []
        for setting in self.plan["settings"]:
            runs = {row.loss: row for row in self.rows if row.setting == setting}
            first = runs[new.first].runs
            own = [
                Row.of(setting, loss, row.runs, row.errors, None if loss == new.first else first, row.tuned)
                for loss, row in runs.items()
            ]
            rows += [new._with_target(row) for row in judged(own, new.tested)]
        return replace(new, rows=tuple(rows))

    def _with_target(self, row: Row) -> Row:
        """The row with the verdict on the target if the target was tested under another name."""
        goal = meaning(TARGET, self.metric)
        if TARGET in self.tested or TARGET not in row.differences:
            return row
        same = [row.differences[name] for name in self.tested if meaning(name, self.metric) == goal]
        return replace(row, differences=row.differences | {TARGET: same[0]}) if same else row

    def to_json(self) -> str:
        """The table as JSON; equal tables give equal bytes."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The columns of the plan as Markdown, for each setting: scores, then differences to the first loss."""
        parts = []
        for setting in self.plan["settings"]:
            part = self._part(setting, _MARKDOWN)
            parts += [f"## {part.setting}"] if part.setting else []
            parts += [part.about_scores, _markdown(part.titles, part.scores)]
            parts += [part.about_gains, _markdown(part.titles, part.gains)] if part.gains else []
            parts += part.notes
        parts += [f"Command: {_code(self.full_command)}"] if self.command else []
        return "\n\n".join([*parts, self._origin()]) + "\n"

    def to_latex(self) -> str:
        r"""The same as LaTeX to `\input`: for each setting a tabular, which needs booktabs, and a note below it."""
        head = [r"Needs \usepackage{booktabs}.", *([_line(self.full_command)] if self.command else []), self._origin()]
        parts = ["\n".join(f"% {line}" for line in head)]
        for setting in self.plan["settings"]:
            part = self._part(setting, _LATEX)
            notes = [part.about_scores, *([part.about_gains] if part.gains else []), *part.notes]
            parts += [_tabular(part), rf"{{\footnotesize {' '.join(notes)}\par}}"]
        return "\n\n".join(parts) + "\n"

    @property
    def full_command(self) -> str:
        """The command line that makes this table."""
        options = [] if self.baseline is None else ["--baseline", self.baseline]
        options += ["--metrics", ",".join(self.asked)] if self.asked else []
        return " ".join([self.command, *([shlex.join(options)] if options else [])])

    def _origin(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"Seeds {', '.join(map(str, self.plan['seeds']))}; {versions}."

    def _part(self, setting: str, style: _Style) -> _Part:
        rows = [row for row in self.rows if row.setting == setting]
        columns = [name for name in self.columns if any(name in row.scores for row in rows)] or self.columns
        names = {row.loss: style.code(row.name) for row in rows}
        seeds, first, note = len(self.plan["seeds"]), names[self.first], self.notes[setting]
        over = f"mean [95% t-interval] over {seeds} seeds" if seeds > 1 else "one run"
        what = "What the trial returned" if self.own else f"Validation set ({VALIDATION}), %"
        lower = f" Lower is better for {CALIBRATION}." if CALIBRATION in columns else ""
        zero = not_learned([row.scores for row in rows])
        failed = {row.loss: f"{len(row.errors)} of {seeds} runs failed. {row.errors[0]}" for row in rows if row.errors}
        return _Part(
            setting=style.text(setting),
            titles=["loss", *(style.text(self.title(name)) for name in columns)],
            scores=[
                [names[row.loss], *(_score(row.scores.get(name), style, self.own) for name in columns)] for row in rows
            ],
            gains=[
                [names[row.loss], *(_gain(row.differences.get(name), style, self.own) for name in columns)]
                for row in (rows if seeds > 1 else ())
                if row.loss != self.first
            ],
            first=first,
            about_scores=style.text(f"{what}: {over}.{lower}"),
            about_gains=f"Difference to {first} {style.text('on the same seeds: mean [95% t-interval].')} "
            f"{style.better('Better')} or {style.worse('worse')} only where a paired t-test "
            f"{style.text(self.tests_text(rows, columns))}",
            notes=[
                *self._steps(setting, rows, style),
                *([style.text(self.guards_text)] if self.guards_text else []),
                *(f"{names[loss]}: {style.text(why)}" for loss, why in failed.items()),
                *([style.text(zero)] if zero else []),
                *([style.text(note)] if note else []),
            ],
        )

    def steps_text(self, setting: str) -> str:
        """How the steps of the losses in a setting were chosen; empty where there was nothing to choose."""
        steps = self.plan.get("steps", {}).get(setting, ())
        if len(steps) < 2:
            return ""
        seeds = len(self.plan["tuning_seeds"])
        among = ", ".join(f"{step:.3g}" for step in steps)
        by = "by its reward on other seeds" if self.own else "on held-out images"
        return f"Each loss at the step chosen {by} among {among} ({seeds} seed{'s' * (seeds > 1)} each)."

    @property
    def guards_text(self) -> str:
        """That guards have no part in a comparison; empty without guards."""
        guards = [each.get("guard") for each in self.plan.get("configurations", {}).values()]
        names = ", ".join(
            dict.fromkeys(spec_label(name) for guard in guards if isinstance(guard, dict) for name in guard)
        )
        return f"Guards ({names}) are kept by searches and have no part here: compare the columns." if names else ""

    def _steps(self, setting: str, rows: Sequence[Row], style: _Style) -> list[str]:
        """How the steps were chosen, and the losses whose step is at an end of the ladder or could not be chosen."""
        about = self.steps_text(setting)
        if not about:
            return []
        steps = self.plan["steps"][setting]
        ends: dict[str, list[str]] = {"lowest": [], "highest": [], "none": []}
        for row in rows:
            if row.tuned is None or all(mean is None for mean in row.tuned.heldout):
                ends["none"].append(style.code(row.loss))
            elif row.tuned.step in (steps[0], steps[-1]):
                ends["lowest" if row.tuned.step == steps[0] else "highest"].append(style.code(row.name))
        found = [
            f"{style.text(f'At the {end} step, beyond which another may be better:')} {', '.join(names)}."
            for end, names in ends.items()
            if names and end != "none"
        ]
        if ends["none"]:
            found.append(f"{style.text('Every trial at every step failed:')} {', '.join(ends['none'])}.")
        return [" ".join([style.text(about), *found])]

    def title(self, name: str) -> str:
        """A metric as a reader knows it."""
        return {TARGET: self.target, WITH_OFFSETS: f"{self.target} with offsets"}.get(name, name)

    def tests_text(self, rows: Sequence[Row], columns: Sequence[str]) -> str:
        """Which tests there are in the rows of a setting, and how they are corrected, after "a paired t-test"."""
        tested = [name for name in columns if name in self.tested]
        tests = sum(row.differences.get(name) is not None for row in rows for name in tested)
        if tested == list(columns):
            return f"says so at 5%, with Holm's correction over the tests of this table ({tests})."
        on = ", ".join(listed([self.title(name) for name in tested])) or "the target"
        return f"on {on} says so at 5%, with Holm's correction over these tests ({tests})."


@dataclass(frozen=True)
class _Style:
    """How a file format writes text, code, numbers and verdicts."""

    text: Callable[[str], str]
    code: Callable[[str], str]
    number: Callable[[str], str]
    better: Callable[[str], str]
    worse: Callable[[str], str]


@dataclass(frozen=True)
class _Part:
    """The part of the table for one setting, formatted for one file format."""

    setting: str
    titles: list[str]
    scores: list[list[str]]
    gains: list[list[str]]
    first: str
    about_scores: str
    about_gains: str
    notes: list[str]


def _score(score: Estimate | None, style: _Style, own: bool) -> str:
    if score is None:
        return style.number("-")
    ends = ", ".join(number(end, own, digits=2) for end in (score.low, score.high) if end is not None)
    return style.number(number(score.mean, own, digits=2) + (f" [{ends}]" if ends else ""))


def _gain(gain: Difference | None, style: _Style, own: bool) -> str:
    if gain is None:
        return style.number("-")
    mean, low, high = (number(each, own, "+", digits=2) for each in (gain.mean, gain.low, gain.high))
    text = style.number(f"{mean} [{low}, {high}]")
    return text if gain.verdict is None else style.better(text) if gain.verdict == "better" else style.worse(text)


def _line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Text in which Markdown sees no tag of HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", r"\\<", _line(text))


def _code(text: str) -> str:
    """Code, since the name of a mix of losses has asterisks; its fence is longer than any backticks inside."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{_line(text)}{fence}"


_MARKDOWN = _Style(
    text=_plain,
    code=_code,
    number=str,
    better=lambda text: f"**{text}**",
    worse=lambda text: f"{text} ↓",
)


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "{}$&#%_"},
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)


def _escaped(text: str) -> str:
    return _line(text).translate(_SPECIAL)


_LATEX = _Style(
    text=_escaped,
    code=lambda text: rf"\texttt{{{_escaped(text)}}}",
    number=lambda text: text.replace("-", "$-$"),
    better=lambda text: rf"\textbf{{{text}}}",
    worse=lambda text: rf"{text} $\downarrow$",
)


def _tabular(part: _Part) -> str:
    width = len(part.titles)

    def across(text: str) -> str:
        return rf"\multicolumn{{{width}}}{{l}}{{{text}}} \\"

    def lines(rows: Sequence[Sequence[str]]) -> list[str]:
        return [rf"{' & '.join(row)} \\" for row in rows]

    parts = [[across(part.setting)]] if part.setting else []
    parts += [lines([part.titles]), lines(part.scores)]
    if part.gains:
        parts += [[across(f"Difference to {part.first}"), *lines(part.gains)]]
    inside = "\n\\midrule\n".join("\n".join(each) for each in parts)
    return f"\\begin{{tabular}}{{l{'r' * (width - 1)}}}\n\\toprule\n{inside}\n\\bottomrule\n\\end{{tabular}}"
