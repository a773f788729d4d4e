"""The section `proxy` of a configuration, and its subsections: data, labels, network, start and training."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from autosegloss.config.section import NamedSection, Positive, Section

Augment: TypeAlias = Literal["flip", "full"]
Optimizer: TypeAlias = Literal["sgd", "adamw"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]
Regime: TypeAlias = Literal["encoder", "scratch", "checkpoint"]

Iterations: TypeAlias = Annotated[int, Field(ge=1, le=10**9)]
BatchSize: TypeAlias = Annotated[int, Field(ge=1, le=100_000)]

LEARNING_RATES: dict[Optimizer, float] = {"sgd": 0.1, "adamw": 3e-3}
"""The default peak learning rate of each optimizer."""


class DataConfig(NamedSection):
    """The data set that proxies train on; further keys are its options."""

    name: str = "shapes"
    """The data set: `shapes` (generated), `nuclei` or `mni152` (real images; need the extra `samples`), `folder`
    (images and masks of your own), `voc`, `cityscapes`, `ade20k` (in their official layouts), or `module:function`."""


class NetworkConfig(NamedSection):
    """The network that proxies train; further keys are its options."""

    name: str = "unet_small"
    """The network: `unet_small`, about 60 thousand parameters; `smp:ARCHITECTURE/ENCODER` of
    segmentation_models_pytorch, `transformers:segformer` or `transformers:upernet` (extra `networks`); or
    `module:function` for one of your own, (in_channels, num_classes) -> torch.nn.Module."""


class StartConfig(Section):
    """The weights that a proxy starts from."""

    regime: Regime = "encoder"
    """`encoder`: pretrained encoder, random decoder and head; `scratch`: all random; `checkpoint`: all pretrained."""
    iterations: Iterations = 200
    """Iterations of the pretraining, once per study; unused by `scratch` and with `weights`."""
    weights: str | None = None
    """A file of weights that replaces the pretraining, from torch.save or .safetensors: with `encoder` those of the
    encoder, alone or within a network for any number of classes; with `checkpoint` those of the whole network."""

    @model_validator(mode="after")
    def _used(self) -> StartConfig:
        """Refuse weights that would not be used."""
        if self.weights is not None and self.regime == "scratch":
            raise ValueError("regime `scratch` does not use `weights`; use `encoder` or `checkpoint`")
        return self


class LabelsConfig(NamedSection):
    """The labels that proxies train on; further keys are the options of the kind."""

    name: str = "hard"
    """`hard` (the original labels), `smoothed`, `distilled`, `pseudo` (some images unlabelled) or `averaged`."""

    @property
    def soft(self) -> bool:
        """Whether the labels are shares of the classes, for some images at least."""
        return self.name != "hard"


class TrainConfig(Section):
    """How a proxy is trained."""

    iterations: Iterations = 100
    """Iterations of one proxy."""
    batch_size: BatchSize = 8
    """Images per batch."""
    optimizer: Optimizer = "sgd"
    """`sgd` (Nesterov momentum) or `adamw`."""
    learning_rate: Positive | None = None
    """Peak learning rate; by default 0.1 for `sgd` and 0.003 for `adamw`."""
    head_multiplier: Positive = 1.0
    """Learning rate of all weights outside the encoder, as a multiple of the encoder's (published: 10)."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.4
    """Weight of the loss of the auxiliary head, if the network has one."""
    precision: Precision = "float32"
    """Precision of the forward pass: `float32`, autocast to `bfloat16`, or on a GPU to `float16`. Losses run in
    float32."""
    augment: Augment = "flip"
    """Random augmentation: `flip` mirrors half of the images; `full` also scales them by 0.5 to 2, crops them to their
    size, and changes brightness, contrast, saturation and hue, in the ranges of the published search."""

    @property
    def peak_learning_rate(self) -> float:
        """The peak learning rate, with the optimizer's default."""
        return LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate


class ProxyConfig(Section):
    """The small task whose result is the reward of a loss."""

    data: DataConfig = DataConfig()
    labels: LabelsConfig = LabelsConfig()
    network: NetworkConfig = NetworkConfig()
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()
