"""The report page of a search."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from autosegloss.errors import InputError
from autosegloss.loss import Loss
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.trial import TARGET
from autosegloss.report.pages import figures, sections
from autosegloss.report.pages.elements import details, table, text_block
from autosegloss.report.pages.examples import Trained, examples
from autosegloss.report.shown import loss_line
from autosegloss.report.tables import LOSSES, same_metrics
from autosegloss.search.api import Status, status
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.findings import Final, Findings
from autosegloss.search.folder import CONFIG_FILE, JOURNAL_FILE, LOSS_FILE
from autosegloss.search.guard import guarded
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.objective import proxy_of
from autosegloss.search.settings import StudyConfig
from autosegloss.search.space import LossFamily
from autosegloss.search.statistics import Difference, Estimate


def search_page(folder: Path, images: bool) -> str:
    """The page of a finished search; see `report_page`."""
    found = status(folder)
    study, config = found.study, found.config
    if found.damage:
        raise InputError(f"{found.damage}.")
    if found.loss is None:
        what = "is still running: wait for its end" if found.running else "is not finished"
        raise InputError(
            f"{folder}: the search {what}; {study.done} of {study.total} trials are done. Continue a stopped search "
            f"with: autosegloss search CONFIG --out {folder} --resume."
        )
    loss, findings = found.loss, study.findings()
    compared = {LOSSES[name]: final for name, final in findings.compared.items()}
    scores = {title: _scores(final) for title, final in compared.items()}
    metrics = _metrics(compared, scores, config, len(findings.seeds))
    data = []
    if config.trial is None:
        bars = sections.zero_classes(scores.values()) + sections.class_bars(scores)
        data.append(sections.Section("classes", "Classes", bars))
        data.append(sections.Section("images", "Images", _images(config, findings, compared, images)))
    return sections.page(
        f"Search for a loss for {config.title}",
        _summary(found, findings, loss, compared, scores),
        [
            sections.Section("search", "The search", _course(found, findings)),
            sections.Section("curves", "The curves found", sections.curves(loss)),
            sections.Section("surfaces", "Loss surfaces", sections.surfaces({"found loss": loss})),
            sections.Section("metrics", "All metrics", metrics),
            *data,
            sections.Section("provenance", "Provenance", _provenance(folder, found, findings, loss)),
        ],
    )


def _summary(
    found: Status, findings: Findings, loss: Loss, compared: Mapping[str, Final], scores: sections.Scores
) -> dict[str, str]:
    study, config = found.study, found.config
    own = config.trial is not None
    first, _, last = compared.values()
    theirs, _, ours = (sections.mean_text(row.get(TARGET), own) for row in scores.values())
    gain = _difference(last, first, TARGET)
    by = f"; difference {sections.gain_text(gain, own=own)}" if gain else ""
    return {
        **({} if own else {"parts of the data": sections.parts()}),
        "found": f"{escape(findings.label)}, reward {findings.reward:.4f} over {len(findings.seeds)} fresh seeds",
        "its loss": escape(loss_line(loss)),
        **({"guards": f"on held-out images: {escape(findings.about_guards)}"} if findings.about_guards else {}),
        "what the trial returned" if own else "validation set": f"{escape(spec_label(config.goal))}"
        f"{'' if own else ', %'}: found loss {ours}, cross-entropy {theirs}{by} (mean [95 % interval])",
        "search": f"{escape(config.search.algorithm)}, {study.step_count} steps, {study.done} trials with the finals, "
        f"{study.failed} failed; {study.seconds:.0f} s of training",
        **_trainer(config),
    }


def _trainer(config: StudyConfig) -> dict[str, str]:
    """What trained with the losses."""
    if config.trial is not None:
        return {"trial": f"<code>{escape(config.trial)}</code>"}
    network, data = config.proxy.network.name, config.proxy.data.name
    return {"proxy": f"{escape(network)} on {escape(data)}, {config.proxy.train.iterations} iterations"}


# The search -----------------------------------------------------------------------------------------------------------


def _course(found: Status, findings: Findings) -> str:
    """Rewards and coordinates over the steps, and the finals."""
    steps = _steps(found)
    rewards = [[outcome.reward for _, outcome in step] for step in steps]
    finals = {final.label: final.reward for final in findings.finals}
    lines = {"cross-entropy": finals["cross-entropy"], "winner": findings.reward}
    figure = figures.rewards(
        rewards,
        [step.mean for step in findings.steps],
        [_spread(step) for step in rewards],
        [step.start for step in findings.steps],
        {name: value for name, value in lines.items() if value is not None},
    )
    legend = {
        "dot": "a trial",
        **({"failed": "a failed trial"} if any(None in step for step in rewards) else {}),
        "line mean": "mean of the step, ± standard deviation of its trials",
        "line best": "best so far",
        "line start": "the start of the search, with the seed of each step",
        "line cross-entropy": "cross-entropy in the finals",
        "line winner": "found loss in the finals",
    }
    note = (
        f"The reward is {_reward_text(found.config)}"
        f"{', reduced by the guard' if found.config.guard else ''}. All trials of a step share a seed; the finals use "
        f"{len(findings.seeds)} fresh seeds."
    )
    members = table(
        ["member of the finals", "mean reward", *(f"seed {seed}" for seed in findings.seeds)],
        [[escape(final.label), *map(_reward, (final.reward, *final.rewards))] for final in findings.finals],
        "the finals in numbers",
    )
    return (
        f'<p class="note">{note}</p>\n<figure class="wide">{figure}</figure>\n{_legend(legend)}\n'
        f"{_guards(findings)}{details('The finals in numbers', members)}\n{_coordinates(found, findings, steps)}"
    )


def _reward_text(config: StudyConfig) -> str:
    """What the reward is."""
    if config.trial is not None:
        return f"{escape(spec_label(config.goal))}, as the trial returns it"
    what = "the target metric" if config.reward is None else escape(spec_label(config.reward))
    return f"{what} on the held-out part of the training set"


def _guards(findings: Findings) -> str:
    """The guards of every member of the finals: what was asked, measured and kept."""
    rows = [
        [
            escape(final.label),
            escape(check.metric),
            f"{100 * check.least:.2f} ({check.share:g} of {100 * check.baseline:.2f})",
            f"<b>{100 * check.value:.2f}</b> {'kept' if check.kept else 'broken'}",
        ]
        for final in findings.finals
        for check in final.guards
    ]
    if not rows:
        return ""
    titles = ["member of the finals", "guard", "at least", "measured"]
    note = "On the held-out part, %: mean over the seeds of the finals. At least: a share of cross-entropy's value."
    return f'<h3>Guards</h3>\n<p class="note">{note}</p>\n{table(titles, rows, "the guards")}\n'


def _legend(entries: Mapping[str, str]) -> str:
    """The legend of a figure, by the class of its marks."""

    def mark(kind: str) -> str:
        if kind.startswith("line"):
            return f'<path class="{kind}" d="M1 7H27"/>'
        if kind == "failed":
            return '<path class="failed" d="M11 4l6 6m0 -6l-6 6"/>'
        return f'<circle class="{kind}" cx="14" cy="7" r="3"/>'

    items = "".join(
        f'<li><svg class="key" viewBox="0 0 28 14" aria-hidden="true">{mark(kind)}</svg>{text}</li>'
        for kind, text in entries.items()
    )
    return f'<ul class="legend" aria-label="legend">{items}</ul>'


def _coordinates(found: Status, findings: Findings, steps: Sequence[Sequence[tuple[Job, Outcome]]]) -> str:
    """Every coordinate of theta over the steps."""
    family = found.study.losses
    if not isinstance(family, LossFamily):
        return ""
    centres, spreads = [step.mu for step in findings.steps], [step.std for step in findings.steps]
    parts, first = [], 0
    for title, names in family.groups:
        panels = []
        for i, name in enumerate(names, first):
            figure = figures.coordinate(
                f"{title}, {name}",
                _column(centres, i),
                _column(spreads, i),
                [[job.theta[i] for job, _ in step if job.theta is not None] for step in steps],
            )
            panels.append(f"<figure>{figure}<figcaption>{name}</figcaption></figure>")
        parts.append(f'<h4>{escape(title)}</h4>\n<div class="panels">{"".join(panels)}</div>')
        first += len(names)
    algorithm = f"<code>{escape(found.config.search.algorithm)}</code>"
    if None in centres:
        how = f"Dots: the samples; {algorithm} has no centre."
    elif None in spreads:
        how = f"Line: the centre of {algorithm}, whose spread is unknown; dots: samples."
    else:
        how = f"Line: the centre of {algorithm}; band: one standard deviation before truncation; dots: samples."
    curves = (
        "Of a log curve, v is its height at 1/2."
        if family.space.curve == "log"
        else "Of a curve, a coordinate is the share of the remaining distance to (1, 1), in u or in v, that a control "
        "point covers from the point before it."
    )
    numbers = (
        "A coordinate x of the sum stands for a scale of 2<sup>8 x - 2</sup>, for a share in proportion to "
        "2<sup>12 x</sup>, or for a class_power of 1.5 x - 0.25."
    )
    note = " ".join([how, curves, numbers] if len(family.names) > family.space.dimension else [how, curves])
    return f'<h3>The policy, coordinate by coordinate</h3>\n<p class="note">{note}</p>\n' + "\n".join(parts)


def _steps(found: Status) -> list[list[tuple[Job, Outcome]]]:
    """The samples of each step in their order, with the rewards that the search used."""
    places = {job.place: (job, outcome) for job, outcome in found.trials if job.stage == "search"}
    steps: list[list[tuple[Job, Outcome]]] = [[] for _ in found.study.steps]
    for _, (job, outcome) in sorted(places.items()):
        steps[job.step].append((job, outcome))
    decided = [guarded(dict(step), found.study.guards) for step in steps]
    return [[(job, outcome) for job, outcome in step.items() if job.index < found.study.asked] for step in decided]


def _spread(rewards: Sequence[float | None]) -> float:
    """The standard deviation of the rewards of a step; a failed trial counts as the lowest, as in its mean."""
    ended = [reward for reward in rewards if reward is not None]
    values = [min(ended) if reward is None else reward for reward in rewards]
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _column(vectors: Sequence[tuple[float, ...] | None], index: int) -> list[float] | None:
    column = [vector[index] for vector in vectors if vector is not None]
    return column if len(column) == len(vectors) else None


def _reward(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4f}"


# The finals -----------------------------------------------------------------------------------------------------------


def _scores(final: Final) -> dict[str, Estimate]:
    """Every metric over the seeds whose training ended."""
    runs = [run for run in final.validation if run]
    return {name: Estimate.of([run[name] for run in runs]) for name in (runs[0] if runs else {})}


def _difference(ours: Final, first: Final, name: str) -> Difference | None:
    """The paired difference over the seeds on which both trainings ended; None where it has no interval."""
    pairs = [(a, b) for a, b in zip(ours.validation, first.validation, strict=True) if a and b]
    return Difference.of([a[name] for a, _ in pairs], [b[name] for _, b in pairs])


def _metrics(compared: Mapping[str, Final], scores: sections.Scores, config: StudyConfig, seeds: int) -> str:
    """Every metric of the three losses, and the gains of the found loss on the other two."""
    first, before, last = compared.values()
    own = config.trial is not None
    rows = []
    for names in same_metrics(sections.measured(scores.values())):
        name = names[0]
        rows.append(
            [
                sections.metric_title(names, spec_label(config.goal)),
                *(sections.mean_text(row.get(name), own) for row in scores.values()),
                *(_marked(_difference(last, other, name), own) for other in (first, before)),
            ]
        )
    titles = ["" if own else "%", *map(escape, compared), *(f"found minus {escape(name)}" for name in [*compared][:2])]
    note = (
        f"{'What the trial returned' if own else 'Validation set, %'}: mean [95 % t-interval of the mean] over {seeds} "
        "fresh seeds; differences are paired by seed. ▲ and ▼ mark intervals that exclude 0; there is no correction "
        "for the number of metrics, so some are marked by chance."
        f"{'' if own else ' The t-interval is not clipped to 0..100. No decision of the search used these numbers.'}"
    )
    return f'<p class="note">{note}</p>\n' + table(titles, rows, "all metrics of the three losses")


def _marked(value: Difference | None, own: bool) -> str:
    if value is None:
        return "-"
    return sections.gain_text(value, "▲" if value.low > 0 else "▼" if value.high < 0 else "", own)


def _images(config: StudyConfig, findings: Findings, compared: Mapping[str, Final], images: bool) -> str:
    seed = findings.seeds[0]
    first, _, last = compared.values()
    recorded = [final.validation[0].get(TARGET) if final.validation[0] else None for final in (first, last)]

    def make() -> str:
        proxy = proxy_of(config)
        both = (
            Trained("cross-entropy", proxy.loss(CROSS_ENTROPY), recorded[0]),
            Trained("found loss", proxy.loss(findings.loss), recorded[1]),
        )
        return examples(proxy, both, both[1], seed)

    return sections.images(make, images, "the found loss")


def _provenance(folder: Path, found: Status, findings: Findings, loss: Loss) -> str:
    recorded = loss.provenance.get("versions")
    facts = {
        "command": "<code>autosegloss search config.yaml</code>, with the configuration below",
        "seed of the search": str(found.config.search.seed),
        "seeds of the steps": ", ".join(str(step.seed) for step in findings.steps),
        "seeds of the finals": ", ".join(map(str, findings.seeds)),
        "versions": sections.versions_text(recorded if isinstance(recorded, Mapping) else {}),
    }
    configuration = text_block((folder / CONFIG_FILE).read_text(encoding="utf-8"), "configuration")
    return sections.provenance(facts, folder, (CONFIG_FILE, JOURNAL_FILE, LOSS_FILE)) + details(
        "The configuration, as resolved", configuration
    )
