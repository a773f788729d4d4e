"""The sections of a configuration that belong to the search, and `StudyConfig`, which joins all sections."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)

from autosegloss.config.reading import read_file, read_mapping
from autosegloss.config.section import Keys, Positive, Section, merged, misplaced
from autosegloss.config.yaml12 import Dumper, show
from autosegloss.errors import AutoseglossError, ConfigError, listed
from autosegloss.loss.settings import RelaxationConfig
from autosegloss.metric import metric
from autosegloss.metric.expr import has_class_names
from autosegloss.metric.settings import (
    SHARES,
    Columns,
    Guards,
    MetricSpec,
    RewardSpec,
    guard_metrics,
    guard_with_numbers,
    spec_label,
    with_numbers,
)
from autosegloss.proxy.imports import use_folder
from autosegloss.proxy.settings import BatchSize, Iterations, LabelsConfig, ProxyConfig, TrainConfig
from autosegloss.search.algorithms import ALGORITHMS
from autosegloss.search.statistics import LEAST_RANKS, LEVEL


def _settings(value: dict[str, SettingConfig]) -> dict[str, SettingConfig]:
    """Refuse an empty mapping."""
    if not value:
        raise ValueError("must name at least one setting; omit `settings` to compare in the configuration as it is")
    return value


_OPTIONS = {
    name: tuple(field.name for field in fields(algorithm) if field.name not in ("start", "samples", "seed"))
    for name, algorithm in ALGORITHMS.items()
}
"""The options of each algorithm."""


def _algorithm(name: str) -> str:
    """Refuse a name that is not an algorithm's."""
    if name not in ALGORITHMS:
        raise ValueError(f"must be one of {', '.join(ALGORITHMS)}, not {show(name)}")
    return name


def _steps(value: list[float] | None) -> list[float] | None:
    """Refuse a ladder that is empty, long, or does not ascend."""
    if value is not None and not 1 <= len(value) <= 16:
        raise ValueError(f"must have 1 to 16 steps, got {len(value)}")
    if value is not None and value != sorted(set(value)):
        raise ValueError(f"must ascend, each step once, got {show(value)}")
    return value


Steps: TypeAlias = Annotated[list[Annotated[float, Field(ge=0.001, le=1_000)]] | None, AfterValidator(_steps)]
"""The steps at which losses are tried, ascending; None: those of `LADDERS` for the optimizer."""
WIDE: Final = 0.2
"""The default standard deviation of a policy that starts from nowhere in particular."""
NEAR: Final = 0.1
"""The same for one that starts at or between rivals."""


class RivalsConfig(Section):
    """The rivals: what people would use, screened before the search, which starts between the best."""

    losses: list[str] | None = None
    """Names of losses, as for `load_loss`, and of loss files; `identity` and `log` are the metric itself as a loss,
    under identity curves and under log curves. Default: what people would use; `[]`: no screening."""
    steps: Steps = None
    """The steps at which each rival is tried, ascending: its scale under SGD, a factor of the learning rate under
    AdamW. Default: 1, 2, 4, 8, 16 under SGD; 1/3, 1, 3 under AdamW."""
    seeds: Annotated[int, Field(ge=1, le=1_000)] = 3
    """Paired seeds on which the best rivals are trained; at least 3 to tell them apart."""
    guard: bool = False
    """Whether `guard` compares with the rival that is best on the guarded metric, instead of cross-entropy."""


class SearchConfig(Section):
    """The search: `steps` times `samples` trials, and in each step one of the start and one of the centre."""

    algorithm: Annotated[
        str, AfterValidator(_algorithm), WithJsonSchema({"enum": list(ALGORITHMS), "type": "string"})
    ] = "ppo2"
    """The search algorithm: `ppo2` (proximal policy optimisation of a truncated normal), `snes` (natural evolution
    strategies: the same policy with a learned spread), `random`, `cma_es`, `tpe`, or `tune`, a searcher of Ray
    Tune; the last three need the extra `algorithms`."""
    steps: Annotated[int, Field(ge=0, le=10_000)] = 12
    """Updates of the policy; 0 ends after the screening, with the best rival."""
    samples: Annotated[int, Field(ge=2, le=10_000)] = 32
    """Trials per step; at least 2, since they are compared with each other."""
    always: bool = False
    """Whether to search even where the best rivals can't be told apart."""
    offsets: bool = False
    """Whether the reward is the metric after offsets of the logits, one per class, as `autosegloss.fit_offsets` gives
    them: they are fitted on each half of the held-out part and scored on the other. The metrics of the trials and the
    guard stay without offsets."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the search, from which the seeds of all trials derive."""
    lag: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Number of steps that may be unfinished when the next one begins. Above 0, no worker waits for the slowest trial
    of a step, and the algorithm learns of rewards that many steps later."""
    std: Positive | None = None
    """Standard deviation of the truncated normal, in units of the range of theta; for `snes` and `cma_es` the
    initial one. Default: 0.1 where the search starts at or between rivals, whose neighbours it tries, else 0.2."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Clip range of the probability ratio."""
    updates: Annotated[int, Field(ge=1, le=10_000)] = 60
    """Gradient updates of the policy's mean per step."""
    learning_rate: Positive = 0.2
    """Learning rate of these updates (Adam, on the logit of the mean)."""
    ratio: Literal["coordinate", "joint"] = "coordinate"
    """Ratio and clipping per `coordinate` (the published code) or of the `joint` density (the paper)."""
    baseline: Literal["mean", "mu"] = "mean"
    """Baseline of the rewards: the `mean` reward of the step, or the reward of the policy's mean `mu`."""
    searcher: str | None = None
    """For `tune`: `module:function`, a function from a seed to a searcher without space, metric or mode."""

    def takes(self, option: str) -> bool:
        """Whether the algorithm has an option."""
        return option in _OPTIONS[self.algorithm]

    @property
    def options(self) -> dict[str, Any]:
        """The options of the algorithm, without its start."""
        found = self.model_dump(include={"samples", "seed", *_OPTIONS[self.algorithm]})
        return {name: value for name, value in found.items() if name != "std" or value is not None}

    @model_validator(mode="after")
    def _fitting(self) -> SearchConfig:
        """Refuse options of other algorithms, which would have no effect."""
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
    """The finals: the best losses of the search race the best rivals on fresh seeds."""

    candidates: Annotated[int, Field(ge=1, le=1_000)] = 3
    """Number of losses of the search in the finals, and of rivals; these and the better half of the losses go on to the
    test."""
    seeds: Annotated[int, Field(ge=2, le=1_000)] = 3
    """Fresh seeds per loss; at least 2, for a standard deviation."""
    test_seeds: Annotated[int, Field(ge=LEAST_RANKS, le=1_000)] = 8
    """Further seeds for the test that a loss of the search beats every rival; at least 5, the fewest that can show it.
    Unused without rivals."""
    iterations: Iterations | None = None
    """Iterations of a training in the finals. Default: those of the proxy."""


class ResourcesConfig(Section):
    """The resources of a search; its result does not depend on them."""

    workers: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Number of trials at a time; with `--runner serial`, only on a GPU, which they share."""
    cpus: Annotated[int, Field(ge=1, le=10_000)] = 1
    """CPU cores per trial."""
    gpus: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    """GPUs per trial; a fraction shares a GPU."""
    time_limit: Positive | None = None
    """Seconds per trial; a trial that exceeds them is stopped, retried once, and then counts as failed. The pretraining
    and the training of a teacher, done once before the trials, have as long each time, and end the search beyond it.
    Refused with `--runner serial`, where a process can't stop its own trial."""


class RetrainConfig(TrainConfig):
    """The full training with a loss, for `autosegloss retrain`; a search ignores it."""

    iterations: Iterations = 20_000
    """Iterations of a run."""
    batch_size: BatchSize = 16
    """Images per batch, over all processes."""
    data: dict[str, JsonValue] = {}
    """Options of the data set that replace those of `proxy.data`, such as its size."""
    checkpoint_every: Iterations = 500
    """Iterations between two checkpoints."""


class SettingConfig(Section):
    """Changes to the configuration in one setting of a comparison."""

    proxy: ProxyConfig = Field(default_factory=ProxyConfig)
    """Merged key by key; a new `name` of data, labels or network replaces that section with its options."""


class CompareConfig(Section):
    """The comparison of losses, for `autosegloss compare`; a search ignores it."""

    losses: list[str] = []
    """Names of losses, presets, mixes, paths of loss files, or functions of your own (`module:function`); each is
    compared with the first, or with that of `--baseline`."""
    seeds: Annotated[int, Field(ge=2, le=1_000)] = 5
    """Runs of each loss in each setting; at least 2, for an interval."""
    steps: Steps = None
    """The steps at which every loss is trained first, to be compared at the one that is best on the held-out images:
    factors of its scale, or of the learning rate under `adamw` and for functions of your own. Default: 1, 2, 4, 8 and
    16, or 1/3, 1 and 3 under `adamw`. `[1]` compares the losses as they are."""
    tuning_seeds: Annotated[int, Field(ge=1, le=1_000)] = 2
    """Runs of each loss at each of these steps."""
    offsets: bool = False
    """Whether to fit offsets of the logits on the held-out images of each run, for a column with the target after them.
    A fit costs as much as some evaluations, or many for metrics of images or boundaries."""
    metrics: Columns | None = None
    """The columns of the tables besides the target: metrics as for `metric`, or `ece`, the expected calibration error.
    There are verdicts on the target and on these, with Holm's correction over all. By default the columns are
    `miou`, `miou_i`, `miou_c` and `ece`, and there are verdicts on the target alone. The JSON also has every metric of
    the catalogue."""
    settings: Annotated[dict[str, SettingConfig], AfterValidator(_settings)] = Field(
        default_factory=lambda: {"": SettingConfig()}
    )
    """The settings by name, each with its changes to the configuration; every loss is trained in each setting. Default:
    one unnamed setting without changes."""

    @field_serializer("settings")
    def _as_written(self, settings: dict[str, SettingConfig]) -> dict[str, Any]:
        """Omit unset keys: they take the values of the configuration, not the defaults."""
        return {name: setting.model_dump(exclude_unset=True) for name, setting in settings.items()}


def _leaves(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their keys, as `train.iterations`."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _leaves(item, f"{prefix}{key}.") if isinstance(item, Mapping) and item else {f"{prefix}{key}": item}
    return found


class StudyConfig(Section):
    """A study: one metric in, one loss out. Every key except `metric` has a default."""

    metric: MetricSpec
    """The target metric: a name, a mapping such as {name: biou, radius: 3}, a text expression such as iou(symptom), or
    a name for one, {name: symptom, expression: iou(2)}."""
    reward: RewardSpec | None = None
    """What the search maximises, if that is not the metric, which the loss relaxes: another metric, or with `trial` the
    name of a number that it returns; after a minus sign, as in `-hd95`, what it minimises. By default the metric, or
    with `trial` the number of its name."""
    relaxation: RelaxationConfig = RelaxationConfig()
    proxy: ProxyConfig = ProxyConfig()
    trial: str | None = None
    """A trainer of your own in place of the proxy: `module:function`, called with a loss, a seed and the share of the
    schedule of the finals to train for; it returns a mapping of names to numbers. The share is 1, or with
    `finalists.iterations` outside the finals `proxy.train.iterations` divided by them."""
    rivals: RivalsConfig = RivalsConfig()
    search: SearchConfig = SearchConfig()
    guard: Guards = {}
    """Metrics that must not fall below a share of their value under cross-entropy, e.g. {miou: 0.9, iou(symptom): 0.8},
    or with a name {symptom: {expression: iou(2), share: 0.8}}; the reward of a loss that violates this is reduced. With
    a trial of your own, numbers that it returns."""
    finalists: FinalistsConfig = FinalistsConfig()
    resources: ResourcesConfig = ResourcesConfig()
    retrain: RetrainConfig = RetrainConfig()
    compare: CompareConfig = CompareConfig()
    modules: str | None = None
    """The folder where the modules of `module:function` are found, besides Python's path; relative to the
    configuration. Default: the folder of the configuration."""
    _folder: str = PrivateAttr(default_factory=os.getcwd)

    @field_validator("guard", mode="wrap")
    @classmethod
    def _guarded(cls, value: Any, of_metrics: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        """Take the numbers of a trial of the user's own, which need not be metrics."""
        return of_metrics(value) if info.data.get("trial") is None else SHARES.validate_python(value)

    @field_validator("compare", mode="before")
    @classmethod
    def _compared(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse columns next to a trial of the user's own, which need not be metrics, before they are read as such."""
        if info.data.get("trial") is not None and isinstance(value, Mapping) and value.get("metrics") is not None:
            raise misplaced(
                "can't be chosen next to `trial` before it runs, all of whose numbers are columns. Choose some "
                "afterwards: autosegloss compare DIR --metrics NAME,NAME",
                "metrics",
            )
        return value

    @model_validator(mode="after")
    def _fitting(self) -> StudyConfig:
        """Refuse a reward that is no metric of a proxy, and next to a trial of the user's own what only a proxy has."""
        if self.trial is None:
            try:
                metric(self.goal)
            except AutoseglossError as error:
                raise misplaced(
                    f"must be a metric, as there is no `trial` that returns numbers: {error}", "reward"
                ) from error
            return self
        if isinstance(self.reward, dict):
            raise misplaced("must be the name of a number that `trial` returns, such as map50 or -hd95", "reward")
        minimised = str(self.reward or "").removeprefix("-").strip()
        if str(self.reward).startswith("-") and minimised in self.guard:
            raise misplaced(
                "is better where less of it is, as `reward` says, and a guard asks for more; guard another number",
                "guard",
                minimised,
            )
        if has_class_names(metric(self.metric)):
            raise misplaced("must have numbers for classes next to `trial`, as no data tells their names", "metric")
        if self.search.offsets:
            raise misplaced(
                "needs the proxy's logits, which a `trial` of your own does not return", "search", "offsets"
            )
        compared, by_default = self.compare.model_dump(), CompareConfig().model_dump()
        for key, why in {
            "offsets": "needs the proxy's logits, which a `trial` of your own does not return",
            "settings": "changes the proxy, which `trial` replaces",
        }.items():
            if compared[key] != by_default[key]:
                raise misplaced(why, "compare", key)
        own, defaults = (_leaves(each.model_dump()) for each in (self.proxy, ProxyConfig()))
        if self.finalists.iterations is not None:
            del own["train.iterations"], defaults["train.iterations"]  # their ratio is the budget of a trial
        if changed := [f"proxy.{key}" for key in own | defaults if own.get(key) != defaults.get(key)]:
            keys = ", ".join(listed(changed))
            raise misplaced(f"`trial` replaces the proxy, so {keys} would have no effect; remove one of them", "trial")
        return self

    @property
    def goal(self) -> str | dict[str, Any]:
        """What the search maximises, as it was written: the reward, or the metric without one."""
        return self.metric if self.reward is None else self.reward

    @property
    def title(self) -> str:
        """The metric that the loss relaxes, and the reward if that is something else."""
        label = spec_label(self.metric)
        return label if self.reward is None else f"{label} (reward: {spec_label(self.reward)})"

    @property
    def command(self) -> str:
        """The command that runs this configuration: `search`, or without steps `recommend`."""
        return "search" if self.search.steps else "recommend"

    @property
    def folder(self) -> str:
        """The absolute path of `modules`, relative to the file that was read, or to the current folder without one."""
        return os.path.normpath(os.path.join(self._folder, self.modules or ""))

    def recorded_modules(self, losses: Sequence[str] = ()) -> str | None:
        """`modules` for the record of a run elsewhere: an absolute path, None if nothing is a `module:function`.

        Args:
            losses: Names of losses besides those of `compare`.
        """
        proxies = (self.proxy, *(self.in_setting(name).proxy for name in self.compare.settings))
        names = [name for proxy in proxies for name in (proxy.data.name, proxy.network.name)]
        names += [*self.compare.losses, *losses, self.search.searcher or "", self.trial or ""]
        own = any(":" in name and not name.startswith(("smp:", "transformers:")) for name in names)
        return self.folder if own else None

    @model_validator(mode="after")
    def _something(self) -> StudyConfig:
        """Refuse neither rivals nor steps, rivals that guard nothing, a test that can't pass, and too short finals."""
        if self.search.steps == 0 and self.rivals.losses == []:
            raise misplaced("must be at least 1 where there are no rivals", "search", "steps")
        if self.rivals.guard and not self.guard:
            raise misplaced("has no effect without `guard`; name the guarded metrics there", "rivals", "guard")
        tested = math.ceil(self.finalists.candidates / 2)
        needed = math.ceil(math.log2(tested / LEVEL))
        if self.search.steps and self.rivals.losses != [] and self.finalists.test_seeds < needed:
            raise misplaced(
                f"must be at least {needed}, as on fewer seeds the best of {tested} losses can't be shown to beat the "
                f"rivals at 5%; got {self.finalists.test_seeds}",
                "finalists",
                "test_seeds",
            )
        least = self.proxy.train.iterations
        if self.finalists.iterations is not None and self.finalists.iterations < least:
            raise misplaced(
                f"must be at least those of the search, proxy.train.iterations, which are {least}; "
                f"got {self.finalists.iterations}",
                "finalists",
                "iterations",
            )
        return self

    def __eq__(self, other: object) -> bool:
        """Whether all keys are equal but `modules`, which is a place, wherever they were read."""
        place = {"modules"}
        return isinstance(other, StudyConfig) and self.model_dump(exclude=place) == other.model_dump(exclude=place)

    def in_setting(self, name: str) -> StudyConfig:
        """The configuration in a setting of the comparison."""
        changes = self.compare.settings[name].model_dump(exclude_unset=True).get("proxy", {})
        proxy = ProxyConfig.model_validate(merged(ProxyConfig, self.proxy.model_dump(), changes))
        return self.model_copy(update={"proxy": proxy})

    @property
    def names_classes(self) -> bool:
        """Whether a metric of the proxy has a class by name, which only the data can tell the number of."""
        if self.trial is not None:
            return False
        metrics = (metric(self.metric), metric(self.goal), *guard_metrics(self.guard).values())
        return any(map(has_class_names, metrics))

    def with_class_numbers(self, class_names: Sequence[str]) -> StudyConfig:
        """The configuration with class numbers in place of names in its metrics, so that it needs no data.

        Raises:
            InputError: A class is unknown.
        """
        own, guard = with_numbers(self.metric, class_names), guard_with_numbers(self.guard, class_names)
        reward = None if self.reward is None else with_numbers(self.reward, class_names)
        return self.model_copy(update={"metric": own, "reward": reward, "guard": guard})

    def late_mistakes(self) -> Iterator[tuple[Keys, ValidationError]]:
        """Errors of a setting in combination with the configuration."""
        for name in self.compare.settings:
            try:
                self.in_setting(name)
            except ValidationError as error:
                yield ("compare", "settings", name, "proxy"), error


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> StudyConfig:
    """See `autosegloss.load_config`."""
    config = read_file(StudyConfig, path, overrides)
    config._folder = str(Path(path).resolve().parent)
    return config


def as_config(source: StudyConfig | Mapping[str, Any] | str | os.PathLike[str]) -> StudyConfig:
    """The configuration from any of its forms: a StudyConfig, a mapping with its keys, or the path of a YAML file.

    The modules beside it are found from here on; see `use_folder`.

    Raises:
        ConfigError: The configuration is invalid; all errors are listed.
    """
    config = _read(source)
    use_folder(config.folder)
    return config


def _read(source: StudyConfig | Mapping[str, Any] | str | os.PathLike[str]) -> StudyConfig:
    if isinstance(source, StudyConfig):
        return source
    if isinstance(source, Mapping):
        return read_mapping(StudyConfig, source)
    if not isinstance(source, str | os.PathLike):
        raise ConfigError(f"config must be a path, a mapping or a StudyConfig, got {type(source).__name__}.")
    return load_config(source)


def dump_config(config: StudyConfig) -> str:
    """The resolved configuration as YAML with a fixed order of keys, which `load_config` reads back from any folder."""
    content = config.model_dump() | {"modules": config.recorded_modules()} | _of_trial(config)
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, width=120)


_LATER = {
    ("rivals",): RivalsConfig(losses=[]),
    ("search", "always"): False,
    ("search", "offsets"): False,
    ("finalists", "iterations"): None,
    ("relaxation", "scale"): 1,
    ("relaxation", "cross_entropy"): 0,
    ("relaxation", "class_power"): 0,
    ("proxy", "labels"): LabelsConfig(),
    ("proxy", "start", "weights"): None,
    ("proxy", "train", "head_multiplier"): 1,
    ("proxy", "train", "auxiliary_weight"): 0.4,
    ("proxy", "train", "precision"): "float32",
    ("proxy", "train", "augment"): "flip",
    ("search", "lag"): 0,
    ("search", "searcher"): None,
    ("reward",): None,
    ("trial",): None,
}
"""Keys added after version 0.1, and the values that keep the earlier behaviour."""


def fingerprint(config: StudyConfig) -> dict[str, Any]:
    """The part of the configuration that determines the result: all but resources, retraining, comparison, modules.

    Keys of `_LATER` are left out at the values that keep the earlier behaviour, so that earlier results and journals
    still match their configurations; and so are the seeds of the test where there is none, without rivals.
    """
    content = config.model_dump(exclude={"resources", "retrain", "compare", "modules"})
    for (*sections, key), earlier in _LATER.items():
        settings, inner = config, content
        for name in sections:
            settings, inner = getattr(settings, name), inner[name]
        if getattr(settings, key) == earlier:
            del inner[key]
    if config.rivals.losses == []:
        del content["finalists"]["test_seeds"]
        if config.search.std is None:
            content["search"]["std"] = WIDE
    return content | _of_trial(config)


def _of_trial(config: StudyConfig) -> dict[str, Any]:
    """What is left of the proxy next to a trial of the user's own, which replaces it: the lengths of its budget."""
    if config.trial is None:
        return {}
    return {"proxy": {"train": {"iterations": config.proxy.train.iterations}} if config.finalists.iterations else {}}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for completion and checks in editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **StudyConfig.model_json_schema()}
