"""Tables of paired runs: scores, differences to the first loss and verdicts, as JSON, Markdown and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from autosegloss.metric.settings import CALIBRATION
from autosegloss.proxy.trial import TARGET
from autosegloss.search.statistics import Difference, Estimate, holm

LEVEL = 0.05
"""The significance level of the tests."""


@dataclass(frozen=True)
class Row:
    """The validation scores of one loss in one setting.

    Args:
        setting: Name of the setting.
        loss: Name of the loss.
        runs: Every metric, one mapping per seed; None where the training failed.
        errors: The error of each failed run.
        scores: An estimate per metric, over the successful runs.
        differences: Difference to the first loss of the setting, per metric; empty for the first loss itself.
    """

    setting: str
    loss: str
    runs: tuple[dict[str, float] | None, ...]
    errors: tuple[str, ...]
    scores: dict[str, Estimate]
    differences: dict[str, Difference | None]


def judged(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """The rows of a setting with verdicts.

    A difference gets a verdict if Holm's procedure rejects at 5% that it is 0, and its interval excludes 0. The family
    consists of the differences of all rows in the shown columns; other metrics get no verdict.
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


@dataclass(frozen=True)
class Table:
    """A finished comparison.

    Args:
        plan: Losses, seeds, columns and settings; for each setting its configuration and the definitions of the losses.
        command: The command line that makes this table, if any.
        target: Label of the metric of the configuration.
        notes: A note on the data of each setting.
        rows: A row for each loss in each setting, in the order given.
        versions: Versions of the packages that determine the results.
    """

    plan: dict[str, Any]
    command: str
    target: str
    notes: dict[str, str]
    rows: tuple[Row, ...]
    versions: dict[str, str]

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
        parts += [f"Command: `{self.command}`"] if self.command else []
        return "\n\n".join([*parts, self._origin()]) + "\n"

    def to_latex(self) -> str:
        r"""The same as LaTeX to `\input`: for each setting a tabular, which needs booktabs, and a note below it."""
        head = [r"Needs \usepackage{booktabs}.", *([_line(self.command)] if self.command else []), self._origin()]
        parts = ["\n".join(f"% {line}" for line in head)]
        for setting in self.plan["settings"]:
            part = self._part(setting, _LATEX)
            notes = [part.about_scores, *([part.about_gains] if part.gains else []), *part.notes]
            parts += [_tabular(part), rf"{{\footnotesize {' '.join(notes)}\par}}"]
        return "\n\n".join(parts) + "\n"

    def _origin(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"Seeds {', '.join(map(str, self.plan['seeds']))}; {versions}."

    def _part(self, setting: str, style: _Style) -> _Part:
        rows = [row for row in self.rows if row.setting == setting]
        columns = [name for name in self.plan["metrics"] if any(name in row.scores for row in rows)]
        seeds, first, note = len(self.plan["seeds"]), style.code(rows[0].loss), self.notes[setting]
        over = f"mean [95% t-interval] over {seeds} seeds" if seeds > 1 else "one run"
        lower = f" Lower is better for {CALIBRATION}." if CALIBRATION in columns else ""
        tests = sum(row.differences.get(name) is not None for row in rows for name in columns)
        failed = {row.loss: f"{len(row.errors)} of {seeds} runs failed. {row.errors[0]}" for row in rows if row.errors}
        return _Part(
            setting=style.text(setting),
            titles=["loss", *(style.text(self.target if name == TARGET else name) for name in columns)],
            scores=[[style.code(row.loss), *(_score(row.scores.get(name), style) for name in columns)] for row in rows],
            gains=[
                [style.code(row.loss), *(_gain(row.differences.get(name), style) for name in columns)]
                for row in (rows[1:] if seeds > 1 else ())
            ],
            first=first,
            about_scores=style.text(f"Validation set, %: {over}.{lower}"),
            about_gains=f"Difference to {first} {style.text('on the same seeds: mean [95% t-interval].')} "
            f"{style.better('Better')} or {style.worse('worse')} only where a paired t-test says so at "
            f"{style.text('5%')}, with Holm's correction over the tests of this table ({tests}).",
            notes=[
                *(f"{style.code(loss)}: {style.text(why)}" for loss, why in failed.items()),
                *([style.text(note)] if note else []),
            ],
        )


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


def _score(score: Estimate | None, style: _Style) -> str:
    if score is None:
        return style.number("-")
    interval = "" if score.low is None or score.high is None else f" [{100 * score.low:.2f}, {100 * score.high:.2f}]"
    return style.number(f"{100 * score.mean:.2f}{interval}")


def _gain(gain: Difference | None, style: _Style) -> str:
    if gain is None:
        return style.number("-")
    text = style.number(f"{100 * gain.mean:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]")
    return text if gain.verdict is None else style.better(text) if gain.verdict == "better" else style.worse(text)


def _line(text: str) -> str:
    return " ".join(text.split())


_MARKDOWN = _Style(
    text=_line,
    code=lambda text: f"`{text}`",  # code, since the name of a mix of losses has asterisks
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
