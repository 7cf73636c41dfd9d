"""Inference engines by name, for the decoder of a trained model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gae.inference.amortized import Amortized
from gae.inference.ascent.engine import Ascent
from gae.inference.ascent.gradients.unrolled import Detach
from gae.inference.ascent.steps.first_order import Adam, Step
from gae.inference.ascent.steps.gauss_newton import GaussNewton
from gae.inference.ascent.steps.lbfgs import LBFGS
from gae.inference.base import Inference
from gae.inference.exact import Argmax
from gae.inference.starts import Zeros
from gae.likelihood import FlatDistribution, Likelihood


@dataclass(frozen=True)
class _Climb:
    """An ascent on the log joint density: its step rule, the most steps, and the tolerance in nats."""

    step: Callable[[], Step]
    steps: int
    tol: float


CLIMBS = {
    "lbfgs": _Climb(LBFGS, 200, 1e-9),
    "adam": _Climb(partial(Adam, 0.05), 1000, 1e-6),
    "gauss-newton": _Climb(GaussNewton, 100, 1e-9),
    "refine": _Climb(LBFGS, 200, 1e-9),
}
NAMES = (*CLIMBS, "encoder")


def named_engine(name: str, likelihood: Likelihood, own: Inference) -> Inference:
    """The engine of a name, for the decoder of a trained model.

    ``"lbfgs"``, ``"adam"`` and ``"gauss-newton"`` climb to a mode of log q(x, z) from the zero code, and ``"refine"``
    climbs by L-BFGS from the code of the model's encoder, which ``"encoder"`` returns as it is. In a mixture, every
    component is climbed, and the best is kept.

    Args:
        name: one of ``NAMES``.
        likelihood: the decoder and its prior.
        own: the engine of the model, which may contain an encoder.

    Raises:
        ValueError: for an unknown name; for a model without an encoder, if the name needs one; for codes that no
            gradient leads to: discrete ones alone, and those of a non-negative factorisation.

    >>> from gae.likelihood import LinearMixture
    >>> from gae.inference import ClosedForm
    >>> named_engine("lbfgs", LinearMixture(1, 2, (5,)), ClosedForm()).step
    LBFGS()
    """
    if name not in NAMES:
        raise ValueError(f"Unknown engine {name!r}. Valid engines: {', '.join(NAMES)}.")
    if name == "encoder":
        return _encoder(name, own)
    _need_gradient(name, likelihood)
    start = _encoder(name, own) if name == "refine" else Zeros()
    climb = CLIMBS[name]
    ascent = Ascent(start, climb.step(), climb.steps, tol=climb.tol, adjoint=Detach())
    return Argmax(ascent) if likelihood.components > 1 else ascent


def _encoder(name: str, own: Inference) -> Amortized:
    """The encoder in an engine, which may be its start."""
    for part in own.modules():
        if isinstance(part, Amortized):
            return part
    raise ValueError(
        f"The engine {name!r} needs an encoder, and `{type(own).__name__}`, the engine of this model, contains none. "
        f"Use one of {', '.join(other for other in CLIMBS if other != 'refine')}."
    )


def _need_gradient(name: str, likelihood: Likelihood) -> None:
    kind, prior = type(likelihood).__name__, likelihood.prior
    if not likelihood.latent_shape.numel():
        raise ValueError(f"{kind} has discrete codes alone, so {name!r} has nothing to climb. Use the model's engine.")
    if isinstance(prior, FlatDistribution) and prior.nonnegative:
        raise ValueError(
            f"Codes of {kind} are non-negative, which {name!r} does not respect. Use the model's engine, or "
            "`Ascent(step=Projected(Adam(0.05), NonNegative()))`."
        )
