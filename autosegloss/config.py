"""The configuration of a study: strict models, read from YAML with every mistake reported at its file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeGuard, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from autosegloss.errors import AutoseglossError, ConfigError
from autosegloss.metric.catalogue import METRICS
from autosegloss.metric.expr import Expr
from autosegloss.metric.parse import metric as build_metric

Count: TypeAlias = Annotated[int, Field(ge=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
CALIBRATION = "ece"
"""The name under which the expected calibration error stands among the metrics; lower is better."""


def _metric(value: object) -> str | dict[str, Any]:
    """Refuse what is no metric; keep what was written, so that a name stays a name."""
    if not isinstance(value, str | Mapping | Expr):
        raise ValueError(
            f"must be a name, a mapping such as {{name: biou, radius: 3}}, or a text expression, not {_show(value)}"
        )
    try:
        build_metric(value)
    except AutoseglossError as error:
        raise ValueError(str(error)) from error
    return dict(value) if isinstance(value, Mapping) else str(value)


Metric: TypeAlias = Annotated[
    str | dict[str, Any],
    PlainValidator(_metric),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}], "examples": ["miou"]}),
]


def _columns(value: list[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
    """Refuse two columns of one metric, whatever their names."""
    first: dict[object, object] = {}
    for spec in value:
        expr = CALIBRATION if spec == CALIBRATION else build_metric(spec)
        if expr in first:
            raise ValueError(f"{_show(first[expr])} and {_show(spec)} are the same metric; give it once")
        first[expr] = spec
    return value


def _settings(value: dict[str, Setting]) -> dict[str, Setting]:
    """Refuse a comparison in no setting."""
    if not value:
        raise ValueError("there is no setting; give one, or leave `settings` out to compare as the configuration says")
    return value


def _weight(value: object) -> float | Literal["searched"]:
    """A weight, or the word for one that is searched; one message for both kinds."""
    if value == "searched":
        return "searched"
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"must be a number from 0 to 1 or `searched`, not {_show(value)}")
    return float(value)


def _measured(name: str) -> str:
    """Refuse what no trial measures."""
    if name not in METRICS:
        close = difflib.get_close_matches(name, METRICS, n=1)
        hint = f" (did you mean `{close[0]}`?)" if close else f"; known: {', '.join(METRICS)}"
        raise ValueError(f"is not a metric of the catalogue{hint}")
    return name


def _misplaced(problem: str, *keys: str) -> PydanticCustomError:
    """A mistake of a section, to be told at one of its keys."""
    return PydanticCustomError("misplaced", "{problem}", {"problem": problem, "at": keys})


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class _Named(_Section):
    """A section with a name and further keys: the options of what has that name, which checks them itself."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keys beside `name`, passed on as keyword arguments."""
        return dict(self.__pydantic_extra__)


class Relaxation(_Section):
    """How the metric becomes a family of losses."""

    curve: Literal["bezier", "linear"] = "bezier"
    """The curve on each operand: piecewise quadratic `bezier`, or piecewise `linear`."""
    pieces: Count = 2
    """Pieces of each curve; more pieces, more coordinates to search."""
    logic: Literal["product", "godel"] = "product"
    """The differentiable AND and OR: `product` (Auto Seg-Loss) or `godel` (minimum and maximum, the JDT losses)."""
    share_curves: bool = False
    """One curve an operator (as the paper's text has it) instead of one an operand (as its code has it)."""
    classes: Literal["metric", "all", "present"] = "metric"
    """The classes a class mean of the loss counts: those of the metric, `all`, or those `present` in the target."""
    cross_entropy: Annotated[
        float | Literal["searched"],
        PlainValidator(_weight),
        WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"const": "searched"}]}),
    ] = 0.0
    """The weight of cross-entropy beside the surrogate, from 0 to 1, or `searched`: one more coordinate of the search,
    which starts at 0.25, the weight that the JDT papers advise."""


class Data(_Named):
    """The data set that proxies train on; further keys are its options, which it checks itself."""

    name: str = "shapes"
    """The data set: `shapes` (made on the spot), `nuclei` or `mni152` (real images; need the extra `samples`), `folder`
    (images and masks of your own), `voc`, `cityscapes`, `ade20k` (in their official layouts), or `module:function`."""


class Network(_Named):
    """The network that proxies train; further keys are its options."""

    name: str = "unet_small"
    """The network: `unet_small`, about 60 thousand parameters; `smp:ARCHITECTURE/ENCODER` of
    segmentation_models_pytorch, `transformers:segformer` or `transformers:upernet` (extra `networks`); or
    `module:function` for one of your own, (in_channels, num_classes) -> torch.nn.Module."""


class Start(_Section):
    """The weights that a proxy starts from."""

    regime: Literal["encoder", "scratch", "checkpoint"] = "encoder"
    """`encoder`: a pretrained encoder, fresh decoder and head; `scratch`: nothing; `checkpoint`: all pretrained."""
    iterations: Count = 200
    """Iterations of the pretraining, done once a study; `scratch` has none, nor has a start from a file."""
    weights: str | None = None
    """A file of weights to start from in place of the pretraining, of torch.save or .safetensors: with `encoder` of the
    encoder, alone or within a whole network of any number of classes; with `checkpoint` of all of the network."""

    @model_validator(mode="after")
    def _used(self) -> Start:
        """Refuse a file that nothing would read."""
        if self.weights is not None and self.regime == "scratch":
            raise ValueError("regime `scratch` reads no `weights`; take `encoder` or `checkpoint`")
        return self


class Labels(_Named):
    """What proxies learn from in place of the plain labels; further keys are its options, which it checks itself."""

    name: str = "hard"
    """`hard` (the labels as they are), `smoothed`, `distilled`, `pseudo` (some images have none) or `averaged`."""


class Train(_Section):
    """How a proxy is trained."""

    iterations: Count = 100
    """Iterations of one proxy."""
    batch_size: Count = 8
    """Images in a batch."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` (Nesterov momentum) or `adamw`."""
    learning_rate: Positive | None = None
    """Peak learning rate; none is the optimizer's own, 0.1 for `sgd` and 0.003 for `adamw`."""
    head_multiplier: Positive = 1.0
    """The learning rate of all that is not the encoder, as a multiple of the encoder's (published: 10)."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.4
    """The weight of the loss of an auxiliary head, where the network has one."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass: `float32`, or autocast to `bfloat16`, or on a GPU to `float16`. Losses run in float32."""
    augment: Literal["flip", "full"] = "flip"
    """How images are changed at random: `flip` mirrors half of them; `full` also scales them by 0.5 to 2, crops them to
    their size, and changes brightness, contrast, saturation and hue, in the ranges of the published search."""


class Retrain(Train):
    """The full training with a loss, by `autosegloss retrain`; a search does not read it."""

    iterations: Count = 20_000
    """Iterations of a run."""
    batch_size: Count = 16
    """Images in a batch, of all processes together."""
    data: dict[str, JsonValue] = {}
    """Options of the data set in place of those of `proxy.data`, such as its size."""
    checkpoint_every: Count = 500
    """Iterations between two checkpoints."""


class Proxy(_Section):
    """The small task whose result is the reward of a loss."""

    data: Data = Data()
    labels: Labels = Labels()
    network: Network = Network()
    start: Start = Start()
    train: Train = Train()


_OPTIONS = {
    "ppo2": ("std", "clip", "updates", "learning_rate", "ratio", "baseline"),
    "snes": ("std",),
    "random": (),
    "cma_es": ("std",),
    "tpe": (),
    "tune": ("searcher",),
}


class Search(_Section):
    """The search over the curves: `steps` times `samples` trials."""

    algorithm: Literal["ppo2", "snes", "random", "cma_es", "tpe", "tune"] = "ppo2"
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
    def _fitting(self) -> Search:
        """Refuse an option of another algorithm, which would do nothing."""
        problems: dict[str, str] = {}
        for name in sorted({name for names in _OPTIONS.values() for name in names} - {*_OPTIONS[self.algorithm]}):
            if getattr(self, name) != type(self).model_fields[name].default:
                owners = " and ".join(f"`{owner}`" for owner, names in _OPTIONS.items() if name in names)
                problems[name] = f"`{name}` is an option of {owners}, not of `{self.algorithm}`"
        if self.algorithm == "tune" and self.lag:
            problems["lag"] = "`tune` takes no `lag`: a searcher of Ray Tune is told of a step before it is asked again"
        if self.algorithm == "tune" and self.searcher is None:
            problems["algorithm"] = "`tune` needs the option `searcher`, e.g. `searcher: my_module:my_function`"
        if problems:
            raise _misplaced("; ".join(problems.values()), next(iter(problems)))
        return self


class Finalists(_Section):
    """The best losses of the search, trained again before one is chosen."""

    candidates: Count = 3
    """Losses that enter the final."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """Fresh seeds that each of them is trained with; a spread needs at least 2."""


class Resources(_Section):
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


class Setting(_Section):
    """What a setting of a comparison has in place of the configuration: what is not written stays."""

    proxy: Proxy = Field(default_factory=Proxy)
    """Merged key by key; a new `name` of data, labels or network replaces that section, options and all."""


class Compare(_Section):
    """The comparison of losses, by `autosegloss compare`; a search does not read it."""

    losses: list[str] = []
    """Names of losses, presets, mixes, or paths of loss files; others are compared with the first."""
    seeds: Annotated[int, Field(ge=2)] = 5
    """Runs of each loss in each setting; an interval needs at least 2."""
    metrics: Annotated[
        list[
            Annotated[
                str | dict[str, Any],
                PlainValidator(lambda value: value if value == CALIBRATION else _metric(value)),
                WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}),
            ]
        ],
        AfterValidator(_columns),
    ] = ["miou", "miou_i", "miou_c", CALIBRATION]
    """The columns of the tables beside the target: metrics as for `metric`, or `ece`, the expected calibration error.
    Verdicts are on these; the JSON has every metric of the catalogue besides."""
    settings: Annotated[dict[str, Setting], AfterValidator(_settings)] = Field(default_factory=lambda: {"": Setting()})
    """Names, and what differs from the configuration there: every loss is trained in each of them. Without this key
    there is one setting, without a name: the configuration as it is."""

    @field_serializer("settings")
    def _as_written(self, settings: dict[str, Setting]) -> dict[str, Any]:
        """What was left out is that of the configuration, not a default."""
        return {name: setting.model_dump(exclude_unset=True) for name, setting in settings.items()}


class StudyConfig(_Section):
    """A study: one metric in, one loss out. Every key has a default but `metric`."""

    metric: Metric
    """The metric to search a loss for: a name, a mapping such as {name: biou, radius: 3}, or a text expression."""
    relaxation: Relaxation = Relaxation()
    proxy: Proxy = Proxy()
    search: Search = Search()
    guard: dict[Annotated[str, AfterValidator(_measured)], Annotated[float, Field(gt=0, le=1)]] = {}
    """Metrics of the catalogue that must not fall below a share of what cross-entropy has, e.g. {miou: 0.9}: the reward
    of a loss that lets them is reduced."""
    finalists: Finalists = Finalists()
    resources: Resources = Resources()
    retrain: Retrain = Retrain()
    compare: Compare = Compare()

    def in_setting(self, name: str) -> StudyConfig:
        """The configuration as it is in a setting of the comparison."""
        changes = self.compare.settings[name].model_dump(exclude_unset=True).get("proxy", {})
        proxy = Proxy.model_validate(_merged(Proxy, self.proxy.model_dump(), changes))
        return self.model_copy(update={"proxy": proxy})


def _merged(section: type[BaseModel], values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """What a section holds, with changes key by key; options go with the name that they belong to."""
    if issubclass(section, _Named) and changes.get("name", values["name"]) != values["name"]:
        return changes
    merged = values | changes
    for key in changes.keys() & section.model_fields.keys():
        if _is_section(inner := section.model_fields[key].annotation):
            merged[key] = _merged(inner, values[key], changes[key])
    return merged


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a configuration from a YAML file.

    Args:
        path: The file; messages show it as given.
        overrides: Texts `key.sub=value` that win over the file; the value is YAML, as in the file.

    Returns:
        The configuration, complete with defaults.

    Raises:
        ConfigError: All mistakes at once, each with its file and line or with the override it comes from.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    draft = _Draft(str(path))
    draft.read(text)
    for override in overrides:
        draft.override(override)
    return draft.build()


def as_config(source: StudyConfig | Mapping[str, Any] | str | Path) -> StudyConfig:
    """The configuration in any of its forms: built, as a mapping with the keys of the file, or the path of a file.

    Raises:
        ConfigError: All mistakes at once.
    """
    if isinstance(source, StudyConfig):
        return source
    if isinstance(source, Mapping):
        return _Draft("configuration", data=dict(source)).build()
    if not isinstance(source, str | Path):
        raise ConfigError(
            f"the configuration is a {type(source).__name__}; the path of a file, a mapping with its keys, or a "
            "StudyConfig is wanted."
        )
    return load_config(source)


def dump_config(config: StudyConfig) -> str:
    """The resolved configuration as YAML, in a fixed order of keys; `load_config` gives it back."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, width=120)


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


_TAG = "tag:yaml.org,2002:"
# The scalars of YAML 1.2's core schema (section 10.3.2). PyYAML reads YAML 1.1, where `on` is true and 1e-3 is text.
_SCALARS = (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
_CONSTRUCT: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    "float": lambda text: float(re.sub(r"\.(inf|nan)$", r"\1", text.lower())),
}


class _Loader(yaml.SafeLoader):
    """Composes nodes with the scalars of YAML 1.2; builds no objects."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # An alias would have two lines and may contain itself; a configuration is too small to need one.
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # a gap in the stubs
            raise yaml.MarkedYAMLError(problem="aliases (`*name`) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


_TOO_DEEP = "holds lists or mappings within each other more often than can be read"
Keys: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, order=True)
class _Origin:
    """Where a value was written; origins sort in the order in which a user would look."""

    override: int
    line: int
    text: str


@dataclass
class _Draft:
    """Plain values on their way to a configuration, where each was written, and the mistakes found so far."""

    source: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, _Origin] = field(default_factory=dict)
    mistakes: list[tuple[_Origin, str]] = field(default_factory=list)
    overrides: int = 0

    def read(self, text: str) -> None:
        """Take the values of a YAML file."""
        try:
            root = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError as error:
            line, problem = _syntax(error)
            raise ConfigError(f"{self._at(line).text}: is not YAML: {problem}") from error
        except RecursionError:
            raise ConfigError(f"{self.source}: {_TOO_DEEP}") from None
        if root is None:
            raise ConfigError(f"{self.source}: is empty; it needs at least a metric, e.g. `metric: miou`")
        if not isinstance(root, yaml.MappingNode):
            line = root.start_mark.line + 1
            raise ConfigError(f"{self._at(line).text}: must be a mapping with keys, e.g. `metric: miou`")
        self.data = self._plain(root, (), None)

    def override(self, text: str) -> None:
        """Set one value from `key.sub=value`."""
        self.overrides += 1
        origin = _Origin(self.overrides, 0, f"--set {text}")
        key, equals, value = text.partition("=")
        keys = tuple(key.split("."))
        if not equals or not all(keys):
            self._mistake(origin, (), "must read key.sub=value, e.g. `--set search.steps=4`")
            return
        try:
            node = yaml.compose(value, Loader=_Loader)
        except yaml.YAMLError as error:
            self._mistake(origin, keys, f"the value is not YAML: {_syntax(error)[1]}")
            return
        except RecursionError:
            self._mistake(origin, keys, _TOO_DEEP)
            return
        section = self.data
        for depth, name in enumerate(keys[:-1], start=1):
            self.origins.setdefault(keys[:depth], origin)
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                self._mistake(origin, keys, f"`{'.'.join(keys[:depth])}` is {_show(section)}, which has no keys")
                return
        self.origins[keys] = origin
        section[keys[-1]] = None if node is None else self._plain(node, keys, origin)

    def build(self) -> StudyConfig:
        """Check everything."""
        config = None
        try:
            config = StudyConfig.model_validate(self.data)
        except ValidationError as error:
            self._refused(error)
        if config is not None:
            for name in config.compare.settings:
                try:
                    config.in_setting(name)
                except ValidationError as error:  # a key of the setting does not go with one of the configuration
                    self._refused(error, ("compare", "settings", name, "proxy"))
        if config is not None and not self.mistakes:
            return config
        lines = [line for _, line in sorted(self.mistakes)]
        if len(lines) > 1:
            lines.insert(0, f"{len(lines)} mistakes in the configuration:")
        raise ConfigError("\n".join(lines))

    def _refused(self, error: ValidationError, above: Keys = ()) -> None:
        for details in error.errors(include_url=False):
            at = details.get("ctx", {}).get("at", ())
            keys = _written((*above, *(str(key) for key in (*details["loc"], *at) if key != "[key]")))
            self._mistake(self._origin(keys), keys, _explain(details, keys))

    def _at(self, line: int) -> _Origin:
        return _Origin(0, line, f"{self.source}:{line}" if line else self.source)

    def _origin(self, keys: Keys) -> _Origin:
        while keys and keys not in self.origins:
            keys = keys[:-1]
        if not keys:
            return self._at(0)
        inside = (at for at in self.origins if at[: len(keys)] == keys and self.origins[at].override)
        return max(self.origins[at] for at in (keys, *inside))

    def _mistake(self, origin: _Origin, keys: Keys, problem: str) -> None:
        where = f"{origin.text}: {'.'.join(keys)}: " if keys else f"{origin.text}: "
        self.mistakes.append((origin, where + problem.replace("\n", "\n    ")))

    def _plain(self, node: yaml.Node, keys: Keys, override: _Origin | None) -> Any:
        """The plain value of a node; notes where each key was written."""
        origin = override or self._at(node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            section: dict[str, Any] = {}
            for key, value in node.value:
                at = (*keys, str(key.value))
                origin = override or self._at(key.start_mark.line + 1)
                if not isinstance(key, yaml.ScalarNode):
                    self._mistake(origin, keys, "has a key that is not plain text")
                    continue
                if key.value in section:
                    first = self.origins[at]
                    self._mistake(origin, at, "given twice" if override else f"given twice, first on line {first.line}")
                self.origins[at] = origin
                section[key.value] = self._plain(value, at, override)
            return section
        if isinstance(node, yaml.SequenceNode):
            items = [((*keys, str(number)), item) for number, item in enumerate(node.value)]
            self.origins |= {at: override or self._at(item.start_mark.line + 1) for at, item in items}
            return [self._plain(item, at, override) for at, item in items]
        try:
            return _CONSTRUCT[node.tag.removeprefix(_TAG)](node.value)
        except (KeyError, ValueError):
            self._mistake(origin, keys, f"the tag `{node.tag}` is not allowed here; write a plain value")
            return node.value


def _syntax(error: yaml.YAMLError) -> tuple[int, str]:
    """Line (0: unknown) and reason of a YAML error."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        return (mark.line + 1 if mark else 0), reason
    return 0, str(error).replace("\n", " ")


def _show(value: object) -> str:
    """A value as it would stand in the file, cut to a line."""
    try:
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=1000)
    except yaml.YAMLError:
        text = repr(value)
    text = text.removesuffix("...\n").strip().replace("\n", " ")
    return f"`{text[:57]}...`" if len(text) > 60 else f"`{text}`"


_PROBLEMS = {
    "missing": "missing; give the metric to search a loss for, e.g. `metric: miou`",
    "model_type": "must be a mapping with keys, not {given}",
    "dict_type": "must be a mapping with keys, not {given}",
    "string_type": "must be text, not {given}",
    "list_type": "must be a list, not {given}",
    "bool_type": "must be true or false, not {given}",
    "int_type": "must be an integer, not {given}",
    "float_type": "must be a number, not {given}",
    "finite_number": "must be a finite number, not {given}",
    "greater_than": "must be greater than {gt:g}, not {given}",
    "greater_than_equal": "must be at least {ge:g}, not {given}",
    "less_than": "must be less than {lt:g}, not {given}",
    "less_than_equal": "must be at most {le:g}, not {given}",
    "value_error": "{error}",
    "misplaced": "{problem}",
}


def _explain(details: ErrorDetails, keys: Keys) -> str:
    """A mistake in this project's words: what is wrong, what was given and what is allowed."""
    if details["type"] == "extra_forbidden":
        return f"unknown key{_suggest_key(keys)}"
    given = _show(details["input"])
    if details["type"] == "literal_error":
        allowed = get_args(_section_of(keys).model_fields[keys[-1]].annotation)
        return f"must be one of {', '.join(allowed)}, not {given}"
    if details["type"] in _PROBLEMS:
        return _PROBLEMS[details["type"]].format(given=given, **details.get("ctx", {}))
    return f"{details['msg']}, not {given}"


def _written(keys: Keys) -> Keys:
    """The keys as in the file: inside an option, pydantic goes on with the types that it tried."""
    section, inside = _root(keys)
    above = len(keys) - len(inside)
    for depth, key in enumerate(inside, start=above + 1):
        if key not in section.model_fields:
            return keys[:depth]
        inner = section.model_fields[key].annotation
        if not _is_section(inner):
            break
        section = inner
    return keys


def _section_of(keys: Keys) -> type[BaseModel]:
    section, inside = _root(keys)
    for key in inside[:-1]:
        inner = section.model_fields[key].annotation
        assert _is_section(inner)
        section = inner
    return section


def _root(keys: Keys) -> tuple[type[BaseModel], Keys]:
    """The section that keys lead down from, and the keys from there: in a setting, they begin anew."""
    return (Setting, keys[3:]) if keys[:2] == ("compare", "settings") and len(keys) > 3 else (StudyConfig, keys)


def _is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _suggest_key(keys: Keys) -> str:
    """The key that was probably meant: one spelt alike beside it, one of that name elsewhere, or all there are."""
    known = list(_section_of(keys).model_fields)
    alike = difflib.get_close_matches(keys[-1], known, n=1)
    elsewhere = [".".join(path) for path in _all_keys(_root(keys)[0]) if path[-1] == keys[-1]]
    if guess := (alike or elsewhere):
        return f" (did you mean {' or '.join(f'`{name}`' for name in guess)}?)"
    return f"; the keys here are {', '.join(known)}"


def _all_keys(section: type[BaseModel], above: Keys = ()) -> Iterator[Keys]:
    for name, field_info in section.model_fields.items():
        yield (*above, name)
        if _is_section(field_info.annotation):
            yield from _all_keys(field_info.annotation, (*above, name))
