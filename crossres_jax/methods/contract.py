"""What a method is: plain data and pure functions that the training loop calls.

The loop knows nothing of any paper. It initialises the variables, runs the phases in
their order with one generic train step, embeds query and gallery, and compares them.

Variables are `{"params": ..., "batch_stats": ...}`; the first level below is the
method's *components* (for PS-HRNet `h`, `l` and `restorer`). Without normalisation,
`batch_stats` is there too, and empty.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Variables = Mapping[str, Any]


def check_choice(method: str, option: str, value: Any, known: Sequence) -> None:
    """Raises ValueError if a method's option is none of the known values."""
    if value not in known:
        names = ", ".join(map(str, known))
        raise ValueError(
            f"{method} has no {option} {value!r}; expected one of {names}."
        )


class LossOutput(NamedTuple):
    """What a phase's loss returns.

    Attributes:
      loss: () float32, what is minimised.
      batch_stats: the batch statistics after this step, all components'.
      scalars: name → () array, to be logged.
    """

    loss: Any
    batch_stats: Any
    scalars: Mapping[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """SGD or Adam with coupled weight decay, in the units that papers use.

    Attributes:
      learning_rates: regex over component paths (`"l"`, `"restorer"`) → base rate.
      weight_decay: added to the gradient of every parameter, times the parameter.
      algorithm: "sgd" with momentum, or "adam" or "amsgrad" with the usual moments 0.9
        and 0.999.
      momentum: of SGD.
      nesterov: whether that momentum is Nesterov's.
      milestones: epochs at whose beginning the rates are multiplied by `decay_factor`.
      decay_factor: see `milestones`.
      warmup_epochs: length of the warm-up.
      warmup: "constant", where no rate exceeds `warmup_learning_rate`, or "linear",
        where the rates rise from it to their own.
      warmup_learning_rate: see `warmup`.

    Raises:
      ValueError: if an algorithm or a warm-up is unknown.
    """

    learning_rates: Mapping[str, float]
    weight_decay: float
    algorithm: Literal["sgd", "adam", "amsgrad"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    milestones: Sequence[int] = ()
    decay_factor: float = 0.1
    warmup_epochs: int = 0
    warmup: Literal["constant", "linear"] = "constant"
    warmup_learning_rate: float = 0.0

    def __post_init__(self):
        for name, known in {
            "algorithm": ("sgd", "adam", "amsgrad"),
            "warmup": ("constant", "linear"),
        }.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"expected {name} to be one of {', '.join(known)}, found "
                    f"{getattr(self, name)!r}."
                )


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Attributes:
      name: as logs and `results.json` show it.
      trains: regex over component paths; what it matches is trained, the rest of the
        parameters is frozen and gets no gradient.
      epochs: length of the phase.
      optimizer: how the trained part is optimised.
      loss: `(params, batch_stats, batch, rng) → LossOutput`, pure.
      starts_from: component → component whose parameters and statistics it copies when
        the phase begins. Components not named go on as the earlier phases left them.
      training_rate: the one rate of a batch's synthetic LR copies; 0 for the
        protocol's rates.
    """

    name: str
    trains: str
    epochs: int
    optimizer: Optimizer
    loss: Callable[[Any, Any, Mapping[str, Any], Any], LossOutput]
    starts_from: Mapping[str, str] = field(default_factory=dict)
    training_rate: int = 0


@dataclass(frozen=True)
class Backbone:
    """Which part of a method starts from a published backbone, if there is one.

    Attributes:
      components: component that starts from it → rows (regex of the file's names,
        path in the component), as `crossres_jax.pretrained.tables` has them.
      skip: regex of paths in a component ("params/fc/kernel") that stay as they were
        initialised: a head that the file does not have.
    """

    components: Mapping[str, Sequence[tuple[str, str]]]
    skip: str = ""


@dataclass(frozen=True)
class Method:
    """A paper, ready to train.

    Attributes:
      init: `(rng, batch) → variables` of all components.
      phases: in the order in which they run.
      embed: `(variables, images, *, role, resolution) → pytree of (B, ...) arrays`.
        images (B, H, W, 3) in [0, 1]; role "query" or "gallery"; resolution (B,) in
        (0, 1], 1 for an image that was not down-sampled. With a `gallery_rate` the
        gallery's come with `copies`: the images down-sampled by it and brought back.
      distance: `(query, gallery) → (Q, G)` from two such pytrees.
      squared: whether that is a squared Euclidean distance, up to a factor, as the
        cosine distance is.
      restore: `(variables, images, *, resolution) → images`, both (B, H, W, 3) in
        [0, 1], resolution as in `embed`; None where the method restores nothing.
      backbone: what imported weights fill; None where there is nothing to fill.
      tuples: what a training batch holds, "image" or "cross" tuples (docs/data.md).
      gallery_rate: the rate of the copies of a gallery; 0 for none.
    """

    init: Callable[..., Variables]
    phases: tuple[Phase, ...]
    embed: Callable[..., Any]
    distance: Callable[[Any, Any], Any]
    squared: bool = False
    restore: Callable[..., Any] | None = None
    backbone: Backbone | None = None
    tuples: Literal["image", "cross"] = "image"
    gallery_rate: int = 0


@dataclass(frozen=True)
class Ensemble:
    """Methods that are trained apart, each a run of its own, and compared together.

    Attributes:
      members: name → the options with which `build` gives that member alone, in place
        of those that it got.
      distance: `(query, gallery) → (Q, G)` from two dicts, name → what that member's
        `embed` returned.
    """

    members: Mapping[str, Mapping[str, Any]]
    distance: Callable[[Any, Any], Any]
