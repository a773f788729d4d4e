"""The report page of a search."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from autosegloss.errors import InputError
from autosegloss.loss import Loss
from autosegloss.metric.settings import spec_label
from autosegloss.proxy.trial import CLASS_PREFIX, TARGET
from autosegloss.report.pages import figures, sections
from autosegloss.report.pages.elements import details, table, text_block
from autosegloss.report.pages.examples import Trained, examples
from autosegloss.report.rivals import (
    NOT_SEARCHED,
    closing_text,
    difference,
    gates,
    guards_text,
    reward_title,
    screen_lines,
    titles,
    where_text,
)
from autosegloss.report.shown import loss_line
from autosegloss.report.tables import main_metrics, same_metrics
from autosegloss.search.api import Status, status
from autosegloss.search.content import CROSS_ENTROPY
from autosegloss.search.findings import Final, Findings, Screen
from autosegloss.search.folder import CONFIG_FILE, JOURNAL_FILE, LOSS_FILE, resume_command
from autosegloss.search.guard import guarded
from autosegloss.search.jobs import Job, Outcome
from autosegloss.search.objective import proxy_of
from autosegloss.search.rivals import BASELINE, Tried
from autosegloss.search.seeds import final_seeds
from autosegloss.search.settings import StudyConfig
from autosegloss.search.space import LossFamily
from autosegloss.search.statistics import Difference, Estimate, number


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
            f"with: {resume_command(config.command, folder)}."
        )
    loss, findings = found.loss, study.findings()
    compared = {title: findings.compared[name] for name, title in titles(findings).items()}
    scores = {title: _scores(final) for title, final in compared.items()}
    name = [*compared][-1]
    rivals, data = [], []
    if findings.screen is not None:
        rivals.append(sections.Section("rivals", "The rivals", _rivals(findings.screen, config)))
    if config.trial is None:
        bars = sections.zero_classes(scores.values()) + sections.class_bars(scores)
        data.append(sections.Section("classes", "Classes", bars))
        data.append(sections.Section("images", "Images", _images(config, findings, name, images)))
    return sections.page(
        f"{'Search for a loss' if config.search.steps else 'Recommendation'} for {config.title}",
        _summary(found, findings, loss, compared, scores),
        [
            *rivals,
            sections.Section("search", "The search" if findings.steps else "The finals", _course(found, findings)),
            sections.Section("curves", "The curves found" if findings.steps else "Its curves", sections.curves(loss)),
            sections.Section("surfaces", "Loss surfaces", sections.surfaces({name: loss})),
            sections.Section("metrics", "Metrics", _metrics(compared, scores, config, len(findings.seeds))),
            *data,
            sections.Section("provenance", "Provenance", _provenance(folder, found, findings, loss)),
        ],
    )


def _summary(
    found: Status, findings: Findings, loss: Loss, compared: Mapping[str, Final], scores: sections.Scores
) -> dict[str, str]:
    study, config = found.study, found.config
    own = config.trial is not None
    name, last = [*compared.items()][-1]
    row = [*scores.values()]
    theirs, ours = (sections.mean_text(each.get(TARGET), own) for each in (row[0], row[-1]))
    gain = _difference(last, findings.finals[0], TARGET)
    by = f", cross-entropy {theirs}" if len(compared) > 1 else ""
    by += f"; difference {sections.gain_text(gain, own=own)}" if gain and len(compared) > 1 else ""
    rate = "" if findings.rate == 1 else f"; learning rate x {findings.rate:.3g}"
    steps = "none"
    if study.step_count:
        steps = f"{escape(config.search.algorithm)}, {study.step_count} step{'s' * (study.step_count > 1)}"
    return {
        **({} if findings.screen is None else {"verdict": _verdict(findings, findings.screen, config)}),
        **({} if own else {"parts of the data": sections.parts()}),
        "returned" if findings.theta is None else "found": f"{escape(findings.label)}, reward "
        f"{number(findings.reward, own)} over {len(findings.seeds)} fresh seeds",
        "its loss": escape(loss_line(loss)) + rate,
        **({"guards": escape(guards)} if (guards := guards_text(findings, own)) else {}),
        "what the trial returned" if own else "validation set": f"{escape(spec_label(config.goal))}"
        f"{'' if own else ', %'}: {escape(name)} {ours}{by} (mean [95% interval])",
        "search": f"{steps}; {study.done} trials with the finals, {study.failed} failed; {study.seconds:.0f} s of "
        "training",
        **_trainer(config),
    }


def _verdict(findings: Findings, screen: Screen, config: StudyConfig) -> str:
    """What is returned and why, what it gains on whom, and whether there was anything to gain."""
    own, winner, rival = config.trial is not None, findings.winner, findings.best_rival
    others = {BASELINE: findings.finals[0]}
    if rival is not None and findings.theta is not None:
        others |= {rival.label: rival}
    gains = {
        name: difference(winner.rewards, other.rewards) for name, other in others.items() if name != findings.label
    }
    over = [f"{sections.gain_text(gain, own=own)} over {escape(name)}" for name, gain in gains.items() if gain]
    text = f"<strong>{escape(closing_text(findings, config))}.</strong>"
    if over and config.search.steps:
        text += (
            f" {escape(findings.label)} gains {' and '.join(over)} in {escape(reward_title(config))} "
            f"({where_text(config)}; mean "
            f"[95% interval] of {len(findings.seeds)} paired fresh seeds)."
        )
    return "".join([text, *(f"<br>{escape(line)}." for line in gates(screen, own))]).replace("\n", "<br>")


def _trainer(config: StudyConfig) -> dict[str, str]:
    """What trained with the losses."""
    if config.trial is not None:
        return {"trial": f"<code>{escape(config.trial)}</code>"}
    network, data = config.proxy.network.name, config.proxy.data.name
    return {"proxy": f"{escape(network)} on {escape(data)}, {config.proxy.train.iterations} iterations"}


# The rivals -----------------------------------------------------------------------------------------------------------


def _rivals(screen: Screen, config: StudyConfig) -> str:
    """Every rival at every step tried, and the best of them on all seeds."""
    own, screened = config.trial is not None, screen.screened
    steps = sorted({each.arm.step for each in screened.tried})
    best = screened.best[0].arm if screened.best else None
    cells = {(each.arm.rival, each.arm.step): _tried(each, each.arm == best, own) for each in screened.tried}
    names = dict.fromkeys(each.arm.rival for each in sorted(screened.tried, key=lambda each: -each.reward))
    grid = table(
        ["rival", *(f"step {step:.3g}" for step in steps)],
        [[escape(name), *(cells.get((name, step), "") for step in steps)] for name in names],
        "every rival at every step tried",
    )
    rows = [
        [
            escape(line.rival),
            f"{line.step:.3g}",
            sections.mean_text(line.reward, own),
            sections.gain_text(line.gain, own=own) if line.gain else "-",
        ]
        for line in screen_lines(screen)
    ]
    titles = ["rival", "step", "mean reward", "gain over cross-entropy"]
    what = f"{escape(_reward_text(config))}{'' if own else ', %'}"
    a_step = "scale of the loss" if config.proxy.train.optimizer == "sgd" else "factor of the learning rate"
    searched = "" if screen.searched or not config.search.steps else f"<p>{escape(NOT_SEARCHED).capitalize()}.</p>\n"
    said = "".join(f"<p>{escape(line)}.</p>\n" for line in gates(screen, own))
    return (
        f'<p class="note">What people would use for this metric, screened before the search. Rewards are {what}, on '
        f"{screened.seeds} paired seeds, with their 95% intervals; a step is the {a_step}.</p>\n"
        f"{table(titles, rows, 'the rivals')}\n{said}{searched}"
        f'<h3>Every step tried</h3>\n<p class="note">Of one seed, but for bold means over all {screened.seeds}; ★ '
        f"marks the best. Cross-entropy at step 1 is in every round.</p>\n{grid}"
    )


def _tried(tried: Tried, best: bool, own: bool) -> str:
    """A cell: the mean reward, bold if it is one over several seeds."""
    if None in tried.rewards:
        return "failed"
    text = number(tried.reward, own)
    return f"{'★ ' if best else ''}<b>{text}</b>" if len(tried.rewards) > 1 else f"{'★ ' if best else ''}{text}"


# The search -----------------------------------------------------------------------------------------------------------


def _course(found: Status, findings: Findings) -> str:
    """Rewards and coordinates over the steps, and the finals."""
    note = (
        f"The reward is {_reward_text(found.config)}. "
        f"{'All trials of a step share a seed; the' if findings.steps else 'The'} finals use {len(findings.seeds)} "
        "fresh seeds."
    )
    members = [_members(findings.finals, findings.seeds)]
    if findings.heats:
        used = {step.seed for step in findings.steps} | set(findings.screen.seeds if findings.screen else ())
        heats = final_seeds(found.config.search.seed, len(findings.heats[0].rewards), used)
        members = [
            "<p>First part, which decides who goes on to the test:</p>",
            _members(findings.heats, heats),
            "<p>The test:</p>",
            *members,
        ]
    numbers = details("The finals in numbers", "\n".join(members))
    steps, guards = _steps(found), _guards(findings, found.config.trial is not None)
    if not steps:
        return f'<p class="note">{note}</p>\n{guards}{numbers}'
    return (
        f'<p class="note">{note}</p>\n{_rewards(findings, steps)}\n{guards}{numbers}\n'
        f"{_coordinates(found, findings, steps)}"
    )


def _members(finals: Sequence[Final], seeds: Sequence[int]) -> str:
    """The rewards of the members of the finals."""
    return table(
        ["member of the finals", "mean reward", *(f"seed {seed}" for seed in seeds)],
        [[escape(final.label), *map(_reward, (final.reward, *final.rewards))] for final in finals],
        "the finals in numbers",
    )


def _rewards(findings: Findings, steps: Sequence[Sequence[tuple[Job, Outcome]]]) -> str:
    """The figure of the rewards over the steps."""
    rewards = [[outcome.reward for _, outcome in step] for step in steps]
    lines = {"cross-entropy": findings.finals[0].reward, "winner": findings.reward}
    figure = figures.rewards(
        rewards,
        [step.mean for step in findings.steps],
        [_spread(step) for step in rewards],
        [step.start for step in findings.steps],
        {name: value for name, value in lines.items() if value is not None},
    )
    winner = "found loss" if findings.theta is not None or findings.screen is None else escape(findings.label)
    legend = {
        "dot": "a trial",
        **({"failed": "a failed trial"} if any(None in step for step in rewards) else {}),
        "line mean": "mean of the step, ± standard deviation of its trials",
        "line best": "best so far",
        "line start": "the start of the search, with the seed of each step",
        "line cross-entropy": "cross-entropy in the finals",
        "line winner": f"{winner} in the finals",
    }
    return f'<figure class="wide">{figure}</figure>\n{_legend(legend)}'


def _reward_text(config: StudyConfig) -> str:
    """What the reward is."""
    less = ", reduced by the guards" if config.guard else ""
    if config.trial is not None:
        return f"{escape(spec_label(config.goal))}{less or ', as the trial returns it'}"
    what = "the target metric" if config.reward is None else escape(spec_label(config.reward))
    offsets = " with offsets" if config.search.offsets else ""
    return f"{what}{offsets} on the held-out part of the training set{less}"


def _guards(findings: Findings, own: bool) -> str:
    """The guards of every member of the finals: what was asked, measured and kept."""
    rows = [
        [
            escape(final.label),
            escape(check.metric),
            escape(check.asked(own)),
            f"<b>{check.measured(own)}</b> {'kept' if check.kept else 'broken'}",
        ]
        for final in findings.finals
        for check in final.guards
    ]
    if not rows:
        return ""
    titles = ["member of the finals", "guard", "at least", "measured"]
    note = f"{'What the trial returned' if own else 'On the held-out part, %'}: mean over the seeds of the finals."
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
    return {name: Estimate.of(values) for name, values in final.scored.items()}


def _difference(ours: Final, first: Final, name: str) -> Difference | None:
    """The paired difference over the seeds on which both have the metric; None where it has no interval."""
    pairs = [(a, b) for a, b in zip(ours.validation, first.validation, strict=True) if name in a and name in b]
    return Difference.of([a[name] for a, _ in pairs], [b[name] for _, b in pairs])


def _metrics(compared: Mapping[str, Final], scores: sections.Scores, config: StudyConfig, seeds: int) -> str:
    """The metrics of the losses, and the gains of the last on the others: first the main ones, all others folded."""
    own, (*others, last) = config.trial is not None, compared
    titles = ["" if own else "%", *map(escape, compared), *(f"{escape(last)} minus {escape(name)}" for name in others)]

    def rows(groups: Sequence[Sequence[str]]) -> list[list[str]]:
        return [
            [
                sections.metric_title(names, spec_label(config.goal)),
                *(sections.mean_text(row.get(names[0]), own) for row in scores.values()),
                *(_marked(_difference(compared[last], compared[name], names[0]), own) for name in others),
            ]
            for names in groups
        ]

    measured = sections.measured(scores.values())
    main = main_metrics(measured, config)
    main = [name for name in main if not name.startswith(CLASS_PREFIX)]
    rest = [names for names in same_metrics(measured) if not set(names) & {*main}]
    note = (
        f"{'What the trial returned' if own else 'Validation set, %'}: mean [95% t-interval of the mean] over {seeds} "
        "fresh seeds; differences are paired by seed. ▲ and ▼ mark intervals that exclude 0; there is no correction "
        "for the number of metrics, so some are marked by chance."
        f"{'' if own else ' The t-interval is not clipped to 0..100. No decision of the search used these numbers.'}"
    )
    first = table(titles, rows([[name] for name in main]), "the main metrics of the losses")
    more = details("All other metrics", table(titles, rows(rest), "all other metrics of the losses")) if rest else ""
    return f'<p class="note">{note}</p>\n{first}\n{more}'


def _marked(value: Difference | None, own: bool) -> str:
    if value is None:
        return "-"
    return sections.gain_text(value, "▲" if value.low > 0 else "▼" if value.high < 0 else "", own)


def _images(config: StudyConfig, findings: Findings, name: str, images: bool) -> str:
    """What the loss found and cross-entropy predict."""
    seed = findings.seeds[0]
    first, last = findings.finals[0], findings.winner
    recorded = [final.validation[0].get(TARGET) if final.validation[0] else None for final in (first, last)]

    def make() -> str:
        proxy = proxy_of(config)
        both = [Trained(BASELINE, proxy.loss(CROSS_ENTROPY), recorded[0])]
        if last.label != BASELINE:
            both.append(Trained(name, proxy.loss(findings.loss), recorded[1], findings.rate))
        return examples(proxy, both, both[-1], seed, config.finalists.iterations)

    return sections.images(make, images, escape(name))


def _provenance(folder: Path, found: Status, findings: Findings, loss: Loss) -> str:
    recorded = loss.provenance.get("versions")
    facts = {
        "command": f"<code>autosegloss {found.config.command} config.yaml</code>, with the configuration below",
        "seed of the search": str(found.config.search.seed),
        **({} if findings.screen is None else {"seeds of the screening": ", ".join(map(str, findings.screen.seeds))}),
        **({"seeds of the steps": ", ".join(str(step.seed) for step in findings.steps)} if findings.steps else {}),
        "seeds of the finals": ", ".join(map(str, findings.seeds)),
        "versions": sections.versions_text(recorded if isinstance(recorded, Mapping) else {}),
    }
    configuration = text_block((folder / CONFIG_FILE).read_text(encoding="utf-8"), "configuration")
    return sections.provenance(facts, folder, (CONFIG_FILE, JOURNAL_FILE, LOSS_FILE)) + details(
        "The configuration, as resolved", configuration
    )
