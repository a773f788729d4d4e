"""The sections of a configuration that are of the search, and `StudyConfig`, which joins those of all rooms."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    ValidationError,
    WithJsonSchema,
    field_serializer,
    model_validator,
)

from autosegloss.config.reading import read_file, read_mapping
from autosegloss.config.section import Count, Keys, Positive, Section, merged, misplaced
from autosegloss.config.yaml12 import Dumper, show
from autosegloss.errors import ConfigError
from autosegloss.loss.settings import RelaxationConfig
from autosegloss.metric.settings import CALIBRATION, CatalogueName, Columns, MetricSpec
from autosegloss.proxy.settings import ProxyConfig, TrainConfig
from autosegloss.search.algorithms import ALGORITHMS


def _settings(value: dict[str, SettingConfig]) -> dict[str, SettingConfig]:
    """Refuse a comparison in no setting."""
    if not value:
        raise ValueError("must name at least one setting; omit `settings` to compare in the configuration as it is")
    return value


_OPTIONS = {
    name: tuple(field.name for field in fields(algorithm) if field.name not in ("start", "samples", "seed"))
    for name, algorithm in ALGORITHMS.items()
}
"""The options of each algorithm."""


def _algorithm(name: str) -> str:
    """Refuse the name of no algorithm."""
    if name not in ALGORITHMS:
        raise ValueError(f"must be one of {', '.join(ALGORITHMS)}, not {show(name)}")
    return name


class SearchConfig(Section):
    """The search over the curves: `steps` times `samples` trials."""

    algorithm: Annotated[
        str, AfterValidator(_algorithm), WithJsonSchema({"enum": list(ALGORITHMS), "type": "string"})
    ] = "ppo2"
    """The search algorithm: `ppo2` (proximal policy optimisation of a truncated normal), `snes` (natural evolution
    strategies: the same policy, whose spread is learned too), `random`, `cma_es`, `tpe`, or `tune`, a searcher of Ray
    Tune; the last three need the extra `algorithms`."""
    steps: Count = 12
    """Updates of the policy."""
    samples: Annotated[int, Field(ge=2)] = 32
    """Trials a step; they are compared with one another, so at least 2."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the search and, with step and index, of each trial."""
    lag: Annotated[int, Field(ge=0)] = 0
    """Steps that may be unfinished when the next one begins; above 0, no worker waits for the slowest trial of a step,
    and the algorithm learns that many steps later."""
    std: Positive = 0.2
    """Standard deviation of the truncated normal, in units of the range of theta; of `snes` and `cma_es` the first
    one."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Clip range of the probability ratio."""
    updates: Count = 60
    """Gradient updates of the policy's mean a step."""
    learning_rate: Positive = 0.2
    """Learning rate of these updates (Adam, on the logit of the mean)."""
    ratio: Literal["coordinate", "joint"] = "coordinate"
    """Ratio and clip per `coordinate` (the published code) or on the `joint` density (the paper)."""
    baseline: Literal["mean", "mu"] = "mean"
    """What a reward is compared with: the `mean` of the step's rewards, or the reward of the policy's mean `mu`."""
    searcher: str | None = None
    """Of `tune`: `module:function`, a function from a seed to a searcher without space, metric or mode."""

    @property
    def options(self) -> dict[str, Any]:
        """What the algorithm takes beside its start."""
        return self.model_dump(include={"samples", "seed", *_OPTIONS[self.algorithm]})

    @model_validator(mode="after")
    def _fitting(self) -> SearchConfig:
        """Refuse an option of another algorithm, which would do nothing."""
        problems: dict[str, str] = {}
        for name in sorted({name for names in _OPTIONS.values() for name in names} - {*_OPTIONS[self.algorithm]}):
            if getattr(self, name) != type(self).model_fields[name].default:
                owners = " and ".join(f"`{owner}`" for owner, names in _OPTIONS.items() if name in names)
                problems[name] = f"`{name}` is an option of {owners}, not of `{self.algorithm}`"
        if self.algorithm == "tune" and self.lag:
            problems["lag"] = "`tune` does not support `lag`: Ray Tune needs the rewards of a step before the next one"
        if self.algorithm == "tune" and self.searcher is None:
            problems["algorithm"] = "`tune` needs the option `searcher`, e.g. `searcher: my_module:my_function`"
        if problems:
            raise misplaced("; ".join(problems.values()), next(iter(problems)))
        return self


class FinalistsConfig(Section):
    """The best losses of the search, trained again before one is chosen."""

    candidates: Count = 3
    """Losses that enter the final."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """Fresh seeds that each of them is trained with; a spread needs at least 2."""


class ResourcesConfig(Section):
    """What may be used at a time; the result does not depend on it."""

    workers: Count = 2
    """Trials that run side by side; with `--runner serial`, only where they have a GPU, which they share."""
    cpus: Count = 1
    """CPU cores a trial."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs a trial; a fraction shares one."""
    time_limit: Positive | None = None
    """Seconds a trial may take; one that takes longer is ended, tried once more, and then counts as failed. Not with
    `--runner serial`."""


class RetrainConfig(TrainConfig):
    """The full training with a loss, by `autosegloss retrain`; a search does not read it."""

    iterations: Count = 20_000
    """Iterations of a run."""
    batch_size: Count = 16
    """Images in a batch, of all processes together."""
    data: dict[str, JsonValue] = {}
    """Options of the data set in place of those of `proxy.data`, such as its size."""
    checkpoint_every: Count = 500
    """Iterations between two checkpoints."""


class SettingConfig(Section):
    """What a setting of a comparison has in place of the configuration: what is not written stays."""

    proxy: ProxyConfig = Field(default_factory=ProxyConfig)
    """Merged key by key; a new `name` of data, labels or network replaces that section, options and all."""


class CompareConfig(Section):
    """The comparison of losses, by `autosegloss compare`; a search does not read it."""

    losses: list[str] = []
    """Names of losses, presets, mixes, or paths of loss files; others are compared with the first."""
    seeds: Annotated[int, Field(ge=2)] = 5
    """Runs of each loss in each setting; an interval needs at least 2."""
    metrics: Columns = ["miou", "miou_i", "miou_c", CALIBRATION]
    """The columns of the tables beside the target: metrics as for `metric`, or `ece`, the expected calibration error.
    Verdicts are on these; the JSON has every metric of the catalogue besides."""
    settings: Annotated[dict[str, SettingConfig], AfterValidator(_settings)] = Field(
        default_factory=lambda: {"": SettingConfig()}
    )
    """Names, and what differs from the configuration there: every loss is trained in each of them. Without this key
    there is one setting, without a name: the configuration as it is."""

    @field_serializer("settings")
    def _as_written(self, settings: dict[str, SettingConfig]) -> dict[str, Any]:
        """What was left out is that of the configuration, not a default."""
        return {name: setting.model_dump(exclude_unset=True) for name, setting in settings.items()}


class StudyConfig(Section):
    """A study: one metric in, one loss out. Every key has a default but `metric`."""

    metric: MetricSpec
    """The metric to search a loss for: a name, a mapping such as {name: biou, radius: 3}, or a text expression."""
    relaxation: RelaxationConfig = RelaxationConfig()
    proxy: ProxyConfig = ProxyConfig()
    search: SearchConfig = SearchConfig()
    guard: dict[CatalogueName, Annotated[float, Field(gt=0, le=1)]] = {}
    """Metrics of the catalogue that must not fall below a share of what cross-entropy has, e.g. {miou: 0.9}: the reward
    of a loss that lets them is reduced."""
    finalists: FinalistsConfig = FinalistsConfig()
    resources: ResourcesConfig = ResourcesConfig()
    retrain: RetrainConfig = RetrainConfig()
    compare: CompareConfig = CompareConfig()

    def in_setting(self, name: str) -> StudyConfig:
        """The configuration as it is in a setting of the comparison."""
        changes = self.compare.settings[name].model_dump(exclude_unset=True).get("proxy", {})
        proxy = ProxyConfig.model_validate(merged(ProxyConfig, self.proxy.model_dump(), changes))
        return self.model_copy(update={"proxy": proxy})

    def late_mistakes(self) -> Iterator[tuple[Keys, ValidationError]]:
        """Keys of a setting that do not go with those of the configuration."""
        for name in self.compare.settings:
            try:
                self.in_setting(name)
            except ValidationError as error:
                yield ("compare", "settings", name, "proxy"), error


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a configuration from a YAML file.

    Args:
        path: The file; messages show it as given.
        overrides: Texts `key.sub=value` that win over the file; the value is YAML, as in the file.

    Returns:
        The configuration, complete with defaults.

    Raises:
        ConfigError: All mistakes at once, each with its file and line or with the override it comes from.
    """
    return read_file(StudyConfig, path, overrides)


def as_config(source: StudyConfig | Mapping[str, Any] | str | os.PathLike[str]) -> StudyConfig:
    """The configuration in any of its forms: built, as a mapping with the keys of the file, or the path of a file.

    Raises:
        ConfigError: All mistakes at once.
    """
    if isinstance(source, StudyConfig):
        return source
    if isinstance(source, Mapping):
        return read_mapping(StudyConfig, source)
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(f"config must be a path, a mapping or a StudyConfig, got {type(source).__name__}.")
    return load_config(source)


def dump_config(config: StudyConfig) -> str:
    """The resolved configuration as YAML, in a fixed order of keys; `load_config` gives it back."""
    return yaml.dump(config.model_dump(), Dumper=Dumper, sort_keys=False, width=120)


_LATER = (
    ("relaxation", "cross_entropy"),
    ("proxy", "labels"),
    ("proxy", "start", "weights"),
    ("proxy", "train", "head_multiplier"),
    ("proxy", "train", "auxiliary_weight"),
    ("proxy", "train", "precision"),
    ("proxy", "train", "augment"),
    ("search", "lag"),
    ("search", "searcher"),
)
"""Keys that joined the configuration after version 0.1, whose defaults do what was done before there was the key."""


def fingerprint(config: StudyConfig) -> dict[str, Any]:
    """What determines the result of a study: the resolved configuration less resources, retraining and comparison.

    A key of `_LATER` stands in it only where it is not at its default, so that results and journals of before go on to
    name the configuration that they come from.
    """
    content = config.model_dump(exclude={"resources", "retrain", "compare"})
    for *sections, key in _LATER:
        settings, inner = config, content
        for name in sections:
            settings, inner = getattr(settings, name), inner[name]
        if getattr(settings, key) == type(settings).model_fields[key].default:
            del inner[key]
    return content


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, from which an editor completes, explains and checks."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **StudyConfig.model_json_schema()}
