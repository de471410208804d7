"""What a method is: plain data and pure functions that the training loop calls.

The loop knows nothing of any paper. It initialises the variables, runs the phases in
their order with one generic train step, embeds query and gallery, and compares them.

Variables are `{"params": ..., "batch_stats": ...}`; the first level below is the
method's *components* (for PS-HRNet `h`, `l` and `restorer`). Without normalisation,
`batch_stats` is there too, and empty.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Variables = Mapping[str, Any]


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
    """SGD with momentum and coupled weight decay, in the units that papers use.

    Attributes:
      learning_rates: regex over component paths (`"l"`, `"restorer"`) → base rate.
      momentum: of SGD.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: added to the gradient of every parameter, times the parameter.
      decay_epochs: every so many epochs the rates are multiplied by `decay_factor`.
      decay_factor: see `decay_epochs`.
      warmup_epochs: epochs in which no rate exceeds `warmup_learning_rate`.
      warmup_learning_rate: see `warmup_epochs`.

    Raises:
      ValueError: if `decay_epochs` is less than 1.
    """

    learning_rates: Mapping[str, float]
    momentum: float
    weight_decay: float
    decay_epochs: int
    decay_factor: float
    nesterov: bool = False
    warmup_epochs: int = 0
    warmup_learning_rate: float = 0.0

    def __post_init__(self):
        if self.decay_epochs < 1:
            raise ValueError(
                f"decay_epochs must be at least 1, found {self.decay_epochs}; to keep "
                "the rate, give more than the epochs of the phase."
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
    """

    name: str
    trains: str
    epochs: int
    optimizer: Optimizer
    loss: Callable[[Any, Any, Mapping[str, Any], Any], LossOutput]
    starts_from: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A paper, ready to train.

    Attributes:
      init: `(rng, batch) → variables` of all components.
      phases: in the order in which they run.
      embed: `(variables, images, *, role, resolution) → pytree of (B, ...) arrays`.
        images (B, H, W, 3) in [0, 1]; role "query" or "gallery"; resolution (B,) in
        (0, 1], 1 for an image that was not down-sampled.
      distance: `(query, gallery) → (Q, G)` from two such pytrees.
      restore: `(variables, images) → images`, both (B, H, W, 3) in [0, 1]; None where
        the method restores nothing.
    """

    init: Callable[..., Variables]
    phases: tuple[Phase, ...]
    embed: Callable[..., Any]
    distance: Callable[[Any, Any], Any]
    restore: Callable[..., Any] | None = None
