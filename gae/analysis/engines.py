"""Inference engines by name, for any model: how its codes are inferred is a choice of the user."""

from collections.abc import Callable

import torch
from jaxtyping import Int, Num
from torch import Tensor

from gae.analysis.inference_gap import one_row
from gae.autoencoder import Autoencoder
from gae.inference import (
    LBFGS,
    Adam,
    Amortized,
    Argmax,
    Ascent,
    Code,
    Detach,
    FullCovariance,
    GaussNewton,
    Inference,
    Laplace,
    MeanField,
    Step,
)
from gae.inference.laws import point_of
from gae.inference.modes import density_step
from gae.inference.starts import DecoderInit, Given
from gae.likelihood import FlatDistribution, Likelihood

TOLERANCE = 1e-5  # nats
RATE = 0.05  # of Adam, in units of the prior's standard deviation
FEW = 4  # steps from an encoder
ASCENTS: dict[str, tuple[Callable[[], Step], int]] = {  # step rule, and the most steps by default
    "lbfgs": (LBFGS, 200),
    "adam": (lambda: Adam(RATE), 1000),
    "gauss-newton": (GaussNewton, 100),
}
SUBJECTS = {  # of sentences on the density of an engine
    **dict.fromkeys(ASCENTS, "the Laplace approximation at the mode"),
    "encoder": "the encoder",
    "refine": "the density refined from the encoder",
}
ENGINES = tuple(SUBJECTS)


def engine_of(
    name: str, model: Autoencoder, steps: int | None = None, density: bool = False, restarts: int = 1
) -> Inference:
    """A named engine for the codes of a model.

    ``"lbfgs"``, ``"adam"`` and ``"gauss-newton"`` climb from 0 to a mode of the joint density; a sample stops when it
    gains at most 1e-5 nats. In a mixture they climb every component, and keep the best. ``"encoder"`` is the encoder of
    the model alone, and ``"refine"`` a few steps of L-BFGS from it (``Refined``).

    Args:
        name: one of ``ENGINES``.
        model: a model; for the last two names, one with an encoder.
        steps: the most steps; by default 200 (L-BFGS), 1000 (Adam), 100 (Gauss–Newton) or 4 (``"refine"``).
        density: whether a density q(z|x) is needed: an ascent is then followed by the Laplace approximation at its
            mode.
        restarts: number of ascents from random codes, the best of which is kept; 1 for one from 0, which may end at a
            mode far below others.

    Raises:
        ValueError: for an unknown name, steps of an encoder, restarts of an engine that starts from one, a model
            without an encoder, or codes that no gradient leads to: discrete ones alone, and those of a non-negative
            factorisation.

    >>> from gae.systems import vae
    >>> engine_of("refine", vae((5,), latent=2))(vae((5,), latent=2).likelihood, torch.randn(3, 5)).point.shape
    torch.Size([3, 2])
    """
    if name not in ENGINES:
        raise ValueError(f"Unknown engine {name!r}. Valid engines: {', '.join(ENGINES)}.")
    if name in ASCENTS:
        _need_gradient(name, model.likelihood)
        ascent = mode_ascent(name, steps, restarts=restarts)
        mode = Argmax(ascent) if model.likelihood.components > 1 else ascent
        return Laplace(mode, "full", "hessian", samples=None) if density else mode
    if restarts > 1:
        raise ValueError(
            f"The engine {name!r} starts from the encoder alone, so it has no restarts. Leave them out, or choose one "
            f"of {', '.join(ASCENTS)}."
        )
    encoder = next((part for part in model.inference.modules() if isinstance(part, Amortized)), None)
    if encoder is None:
        raise ValueError(
            f"The engine {name!r} needs an encoder, but this model is encoded by {type(model.inference).__name__}. "
            f"Choose one of {', '.join(ASCENTS)}, or give a decoder its encoder (--encoder)."
        )
    if name == "encoder":
        if steps is not None:
            raise ValueError("An encoder takes no steps. Leave steps (--steps) out, or choose refine.")
        return encoder
    return Refined(encoder, FEW if steps is None else steps)


def _need_gradient(name: str, likelihood: Likelihood) -> None:
    kind, prior = type(likelihood).__name__, likelihood.prior
    if not likelihood.latent_shape.numel():
        raise ValueError(f"{kind} has discrete codes alone, so {name!r} has nothing to climb. Use the model's engine.")
    if isinstance(prior, FlatDistribution) and prior.nonnegative:
        raise ValueError(
            f"Codes of {kind} are non-negative, which {name!r} does not respect. Use the model's engine, or "
            "`Ascent(step=Projected(Adam(0.05), NonNegative()))`."
        )


def mode_ascent(
    name: str = "lbfgs", steps: int | None = None, start: Inference | None = None, restarts: int = 1
) -> Ascent:
    """Ascent to a mode of the joint density of each code by the named step rule, from 0, a start, or several at random.

    >>> mode_ascent("gauss-newton").max_steps
    100
    """
    build, most = ASCENTS[name]
    most, start = most if steps is None else steps, DecoderInit() if start is None and restarts > 1 else start
    return Ascent(start, build(), most, tol=TOLERANCE, restarts=restarts, adjoint=Detach())


class Refined(Inference):
    """A few steps of L-BFGS from an encoder, for each observation alone.

    Of a density q(z|x), the steps raise the ELBO over normal densities, with the full covariance if the encoder's has
    one; of a point, the joint density.

    Args:
        encoder: the engine to start from.
        steps: the most steps.

    >>> from gae.systems import vae
    >>> model = vae((5,), latent=2)
    >>> Refined(model.inference)(model.likelihood, torch.randn(3, 5)).q.event_shape
    torch.Size([2])
    """

    def __init__(self, encoder: Inference, steps: int = FEW):
        super().__init__()
        self.encoder, self.steps = encoder, steps

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        code = self.encoder.infer(likelihood, x, k)
        if code.q is None:
            return self._ascent(Given(code), LBFGS(), None).infer(likelihood, x, k)
        q = one_row(code.q)
        kind = FullCovariance if isinstance(q, torch.distributions.MultivariateNormal) else MeanField
        family = kind(4 * likelihood.latent_shape.numel(), matched=True)
        start = Given(Code(point_of(q).unsqueeze(0), q=q))
        return self._ascent(start, density_step(likelihood, x), family).infer(likelihood, x, k)

    def _ascent(self, start: Inference, step: LBFGS, family: MeanField | None) -> Ascent:
        return Ascent(start, step, self.steps, tol=TOLERANCE, family=family, adjoint=Detach())
