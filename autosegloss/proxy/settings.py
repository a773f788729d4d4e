"""The section `proxy` of a configuration, and those within it: data, labels, network, start and training."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from autosegloss.config.section import Count, NamedSection, Positive, Section

Augment: TypeAlias = Literal["flip", "full"]
Optimizer: TypeAlias = Literal["sgd", "adamw"]
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]
Regime: TypeAlias = Literal["encoder", "scratch", "checkpoint"]

LEARNING_RATES: dict[Optimizer, float] = {"sgd": 0.1, "adamw": 3e-3}
"""The peak learning rate of each optimizer where none is given."""


class DataConfig(NamedSection):
    """The data set that proxies train on; further keys are its options, which it checks itself."""

    name: str = "shapes"
    """The data set: `shapes` (made on the spot), `nuclei` or `mni152` (real images; need the extra `samples`), `folder`
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
    """`encoder`: a pretrained encoder, fresh decoder and head; `scratch`: nothing; `checkpoint`: all pretrained."""
    iterations: Count = 200
    """Iterations of the pretraining, done once a study; `scratch` has none, nor has a start from a file."""
    weights: str | None = None
    """A file of weights to start from in place of the pretraining, of torch.save or .safetensors: with `encoder` of the
    encoder, alone or within a whole network of any number of classes; with `checkpoint` of all of the network."""

    @model_validator(mode="after")
    def _used(self) -> StartConfig:
        """Refuse a file that nothing would read."""
        if self.weights is not None and self.regime == "scratch":
            raise ValueError("regime `scratch` does not use `weights`; use `encoder` or `checkpoint`")
        return self


class LabelsConfig(NamedSection):
    """What proxies learn from in place of the plain labels; further keys are its options, which it checks itself."""

    name: str = "hard"
    """`hard` (the labels as they are), `smoothed`, `distilled`, `pseudo` (some images have none) or `averaged`."""


class TrainConfig(Section):
    """How a proxy is trained."""

    iterations: Count = 100
    """Iterations of one proxy."""
    batch_size: Count = 8
    """Images in a batch."""
    optimizer: Optimizer = "sgd"
    """`sgd` (Nesterov momentum) or `adamw`."""
    learning_rate: Positive | None = None
    """Peak learning rate; none is the optimizer's own, 0.1 for `sgd` and 0.003 for `adamw`."""
    head_multiplier: Positive = 1.0
    """The learning rate of all that is not the encoder, as a multiple of the encoder's (published: 10)."""
    auxiliary_weight: Annotated[float, Field(ge=0)] = 0.4
    """The weight of the loss of an auxiliary head, where the network has one."""
    precision: Precision = "float32"
    """Of the forward pass: `float32`, or autocast to `bfloat16`, or on a GPU to `float16`. Losses run in float32."""
    augment: Augment = "flip"
    """How images are changed at random: `flip` mirrors half of them; `full` also scales them by 0.5 to 2, crops them to
    their size, and changes brightness, contrast, saturation and hue, in the ranges of the published search."""

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate, or the optimizer's own where none is given."""
        return LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate


class ProxyConfig(Section):
    """The small task whose result is the reward of a loss."""

    data: DataConfig = DataConfig()
    labels: LabelsConfig = LabelsConfig()
    network: NetworkConfig = NetworkConfig()
    start: StartConfig = StartConfig()
    train: TrainConfig = TrainConfig()
