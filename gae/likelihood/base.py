"""Base classes of decoder-only models: a likelihood q_r(x|z) with a prior q_w(z)."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import Independent
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints

from gae.data.checks import refuse
from gae.data.mapped import blocks, row_mean
from gae.likelihood.door import check_contents, checked, checked_codes, dims, guard, hidden
from gae.likelihood.evidence import Evidence
from gae.likelihood.priors import StandardNormal
from gae.nets import first_tensor
from gae.storage import Part

LogJoint = Callable[..., Tensor]
DENSITIES = ("distribution", "log_likelihood", "log_joint")  # methods that say how elements of the output enter
ROUNDED = 0.1  # noise scales of rounding in an element of x, above which log densities are no longer right


class Likelihood(Part, nn.Module, ABC):
    """Base class of models: a decoder q_r(x|z) and a prior q_w(z), without encoder or loss.

    Shapes: S samples (or branches), B batch, Z latent event, X data event.

    Args:
        latent_shape: Z, the shape of one code.
        event_shape: X, the shape of one observation.
        prior: a module whose call without arguments returns the distribution of z (batch ``()``, event Z); defaults to
            N(0, I).
        components: number of values of a discrete code k; 0 for none.
    """

    support: constraints.Constraint = constraints.real
    support_text = "the real numbers"
    support_remedy = "Rescale the data or choose another likelihood."

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Adds argument checks to the public methods that a subclass defines."""
        super().__init_subclass__(**kwargs)
        guard(cls)

    def __init__(
        self,
        latent_shape: Size | tuple[int, ...],
        event_shape: Size | tuple[int, ...],
        prior: nn.Module | None = None,
        components: int = 0,
    ):
        super().__init__()
        self.latent_shape = Size(latent_shape)
        self.event_shape = Size(event_shape)
        self.components = components
        self.latent_prior = StandardNormal(*self.latent_shape) if prior is None else prior
        shape = self.prior.event_shape
        if shape != self.latent_shape:
            raise ValueError(f"The prior's event shape is {tuple(shape)}, but a code has {tuple(self.latent_shape)}.")

    @property
    def prior(self) -> Distribution:
        """q_w(z): batch ``()``, event Z. It may be improper (flat)."""
        return self.latent_prior()

    @abstractmethod
    def forward(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Distribution:
        """The distribution q_r(x|z) at codes (*L, *Z), of batch L and event X.

        A discrete code k (broadcastable to L) selects a component; without it, components are marginalised.
        """

    def point(self, decoded: Distribution) -> Float[Tensor, "..."]:
        """Point estimate of x under a decoded q_r(x|z): its mean, (*L, *X)."""
        return decoded.mean

    @checked_codes
    def log_joint(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        """log q_w(z) q_r(x|z) (with log q(k) for a given k), a log density in nats with every constant."""
        return self.prior.log_prob(z) + self(z, k).log_prob(x)

    @checked
    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        """The function (z, k) -> ``log_joint(x, z, k)`` that an inner loop calls many times for one x."""
        return lambda z, k=None: self.log_joint(x, z, k)

    bind_is_surrogate: bool = False  # whether ``bind(x)`` is less exact than ``log_joint``; scores use the latter

    def log_volume(self, x: Float[Tensor, "B *X"]) -> Float[Tensor, "..."] | float:
        """Logarithm of the volume of one unit of x in data units, () or (B,): 0, except for ``StandardUnits``."""
        return 0.0

    def in_standard_units(self, x: Float[Tensor, "B *X"]) -> "tuple[Likelihood, Float[Tensor, 'B *X']]":
        """The model and the observations on which engines act: itself and x, except for ``StandardUnits``."""
        return self, x

    def in_data_units(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The inverse of ``in_standard_units`` for observations."""
        return x

    def initial(self, n: int) -> Float[Tensor, "n *Z"]:
        """n initial codes, drawn from the prior with torch's global generator."""
        return self.prior.sample(Size((n,)))

    def sample_joint(self, n: int, mean: bool = False) -> tuple[Float[Tensor, "n *X"], Float[Tensor, "n *Z"]]:
        """Draws n pairs x ~ q_r(x|z), z ~ q_w(z): observations (with ``mean``, the decoder's ``point`` at z) and codes.

        Raises:
            NotImplementedError: under a flat prior.
        """
        z = self.prior.sample(Size((n,)))
        decoded = self(z)
        return (self.point(decoded) if mean else decoded.sample().to(z.dtype)), z

    def check(self, x: Tensor) -> None:
        """Raises ValueError or TypeError unless x is a finite, non-empty batch (B, *X) inside the support."""
        self.check_shape(x)
        check_contents(self, x)

    def check_shape(self, x: Tensor) -> None:
        """Raises TypeError or ValueError unless x is a tensor (B, *X)."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor of shape (B, {dims(self.event_shape)}), got {type(x).__name__}.")
        if x.layout != torch.strided:
            raise TypeError(f"x must be a dense tensor, got layout {x.layout}. Use `x.to_dense()`.")
        if x.shape[1:] != self.event_shape or x.dim() != len(self.event_shape) + 1:
            raise ValueError(
                f"x must have shape (B, {dims(self.event_shape)}), got {tuple(x.shape)}. "
                "Reshape each observation, or build the likelihood for this event shape."
            )

    def check_values(self, x: Tensor) -> None:
        """Raises TypeError or ValueError unless x is non-empty, finite, and of the model's dtype."""
        if len(x) == 0:
            raise ValueError("x is empty: a batch needs at least one observation.")
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}. Use `x.float()`, and divide 0-255 data by 255.")
        like = self._like(x)
        if x.dtype != like.dtype:
            raise TypeError(
                f"x is {x.dtype} but the model is {like.dtype}. Convert one: `x.to({like.dtype})` or "
                f"`model.to({x.dtype})`."
            )
        values = x.detach()
        if not hidden(x) and not bool(torch.isfinite(values.sum())):  # one pass; a sum of finite values may overflow
            refuse(values, ~torch.isfinite(values), "x must be finite", self._remedy_for(values))

    def _remedy_for(self, values: Tensor) -> str:
        remedy = "Remove or impute such values first."
        if not bool(values.isnan().any()):
            return remedy
        return (
            f"{remedy} If NaN means not observed, build the system with `missing=True` (from data, "
            '`load(..., missing="mask")`), or wrap the likelihood in `gae.likelihood.PartiallyObserved`.'
        )

    def check_device(self, x: Tensor) -> None:
        """Raises ValueError unless x is on the model's device."""
        like = self._like(x)
        if x.device != like.device:
            raise ValueError(
                f"x is on {x.device} but the model on {like.device}. Move one: `x.to('{like.device}')` or "
                f"`model.to('{x.device}')`."
            )

    def _like(self, x: Tensor) -> Tensor:
        """A floating-point tensor of the model, or x if it has none."""
        return first_tensor(self, x)

    def check_support(self, x: Num[Tensor, "B *X"]) -> None:
        """Raises ValueError if x lies outside the support of q_r(x|z), naming the first bad index."""
        if self.support is constraints.real:
            return
        inside = self.support.check(x)
        refuse(x, ~inside, f"{type(self).__name__} needs x in {self.support_text}", self.support_remedy)


def positive_scale(value: float) -> float:
    """Returns value, a scale; raises ValueError unless float32 can represent it and its inverse."""
    least = torch.finfo(torch.float32).tiny
    if not value > 0:
        raise ValueError(f"scale must be positive, got {value}.")
    if not least <= value <= 1 / least:
        raise ValueError(f"scale must lie within {least:.1e} ... {1 / least:.1e}, got {value}. Use another data unit.")
    return value


class DecoderLikelihood(Likelihood):
    """Base class of likelihoods that map each code to one decoder output, which parameterises the distribution of x.

    Subclasses implement ``outputs`` and ``distribution``. ``Measured``, and ascents that linearise the decoder's output
    or stop by it, need such a likelihood. Arguments as for ``Likelihood``.
    """

    output_is_mean: bool = False  # whether the decoder's output is the mean of x
    separable: bool = False  # whether log q_r(x|z) is a sum over the elements of the output
    stochastic: bool = False  # whether ``sample_outputs`` is noisy, so that an ascent maximises an expectation

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass whose density is its own, or that of a mix-in, is not ``separable`` unless it says so."""
        super().__init_subclass__(**kwargs)
        own = next(kind for kind in cls.__mro__ if not vars(kind).keys().isdisjoint(("separable", *DENSITIES)))
        if "separable" not in vars(own):
            cls.separable = False

    @abstractmethod
    def outputs(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Float[Tensor, "..."]:
        """The decoder's outputs (*L, ...) at codes (*L, *Z), before they become a distribution."""

    @abstractmethod
    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        """The distribution of x given decoder outputs (*L, ...), of batch (*L, *X) if it is elementwise.

        If elements depend on each other, their dimensions, the last ones of X, are its event.
        """

    def sample_outputs(self, z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None) -> Tensor:
        """``outputs`` for an inner loop: with fresh noise in a ``stochastic`` likelihood."""
        return self.outputs(z, k)

    def reconstruction(self, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The observation (*L, *X) reconstructed from a decoder output, before any measurement."""
        return self.point(self.distribution(output))

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "S B ..."], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        """log q_r(x|z) as a function of the decoder's output, in nats."""
        return self._independent(output).log_prob(x)

    def forward(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Distribution:
        return self._independent(self.outputs(z, k))

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        prior = self.prior
        return lambda z, k=None: prior.log_prob(z) + self.log_likelihood(x, self.sample_outputs(z, k), k)

    def _independent(self, output: Tensor) -> Distribution:
        law = self.distribution(output)
        independent = len(self.event_shape) - len(law.event_shape)
        return Independent(law, independent, validate_args=False) if independent else law


class DecoderWrapper(DecoderLikelihood):
    """Base class of likelihoods with the codes and the decoder outputs of another, and their own distribution of x."""

    likelihood: DecoderLikelihood

    def outputs(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Float[Tensor, "..."]:
        return self.likelihood.outputs(z, k)

    def sample_outputs(self, z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None) -> Tensor:
        return self.likelihood.sample_outputs(z, k)

    def initial(self, n: int) -> Float[Tensor, "n *Z"]:
        return self.likelihood.initial(n)


class NoiseScale:
    """Mix-in for likelihoods with a fixed or learned noise scale, in data units unless ``relative``.

    ``log_scale`` is a parameter if it is learned, and a buffer if it is fixed.
    """

    log_scale: Tensor
    relative: bool = False  # whether the scale is in units of the data; its start then needs no data

    @property
    def learns_scale(self) -> bool:
        """Whether the scale is learned by gradients or an M-step, rather than fixed."""
        return isinstance(self.log_scale, nn.Parameter)

    @torch.no_grad()
    def start_scale(self, x: Num[Tensor, "N *X"]) -> None:
        """Initialises a learned scale in data units to the root mean square deviation of x from its mean."""
        if self.learns_scale and not self.relative:
            mean = row_mean(x)
            deviation = float(row_mean(x, lambda rows: (rows - mean).square()).mean().sqrt())
            self.log_scale.fill_(math.log(max(deviation, 1e-6)))

    @torch.no_grad()
    def warn_of_rounding(self, x: Num[Tensor, "N *X"]) -> None:
        """Warns if the rounding of x itself, next to a fixed noise scale, changes log densities by nats."""
        if self.relative or self.learns_scale:
            return
        largest = max(_largest(block) for _, block in blocks(x))
        scale = float(self.log_scale.exp().amin())
        rounding = torch.finfo(x.dtype).eps / 2 * largest
        if rounding > ROUNDED * scale:
            name = str(x.dtype).removeprefix("torch.")
            warnings.warn(
                f"x reaches {largest:.3g}, where {name} rounds by {rounding:.2g}, and the noise scale is {scale:.2g}: "
                "log densities are wrong by nats. Use precision=64 (--precision 64), or standardise the columns of a "
                "table (standardize=True, --standardize).",
                UserWarning,
                stacklevel=6,
            )


def _largest(x: Num[Tensor, "N *X"]) -> float:
    """The largest absolute value, without NaN, the mark of elements that were not observed."""
    low, high = map(float, x.aminmax())
    return max(-low, high) if low <= high else float(x.abs().nan_to_num(0.0).amax())


def parameter_or_buffer(module: nn.Module, name: str, value: Tensor, learn: bool) -> None:
    """Registers a value as a parameter if it is learned, else as a buffer."""
    if learn:
        setattr(module, name, nn.Parameter(value))
    else:
        module.register_buffer(name, value)


@runtime_checkable
class ExactPosterior(Protocol):
    """A likelihood with a closed-form posterior over codes."""

    def posterior(self, x: Tensor, k: Tensor | None = None) -> Distribution:
        """q(z|x, k): batch (S, B), event Z."""

    def log_responsibilities(self, x: Tensor) -> Tensor:
        """log q(k|x), (B, K)."""

    def log_evidence(self, x: Tensor) -> Evidence:
        """log p(x) in nats, differentiable, without a sampling error."""


@runtime_checkable
class ExactMode(Protocol):
    """A likelihood with a closed-form mode over codes; its posterior may be intractable."""

    def scored_mode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The admissible code of highest ``log_joint``, (B, *Z), and that value, (B,), in nats."""


@runtime_checkable
class MonotoneCodes(Protocol):
    """A likelihood with a monotone update rule for codes, such as a coordinate or multiplicative update."""

    def update_codes(self, x: Tensor, z: Tensor, sweeps: int | None = None) -> Tensor:
        """Updated codes (S, B, *Z), whose ``log_joint`` is at least that of z; rows are independent.

        ``sweeps`` is the number of passes over the elements of a code; by default, what suits an ascent.
        """


@runtime_checkable
class DataDependentInit(Protocol):
    """A likelihood whose parameters are initialised from the training data."""

    def initialize(self, x: Tensor, seed: int) -> None:
        """Initialises the parameters from all training observations; does nothing once initialised."""


@runtime_checkable
class ClosedFormLearning(DataDependentInit, Protocol):
    """A likelihood with a closed-form M-step for its parameters."""

    def statistics(self, x: Tensor, code: Any) -> Any:
        """Sufficient statistics of a batch and its codes, which add over batches with ``+``."""

    def maximize(self, moments: Any) -> float:
        """Raises the objective, if possible to its optimum; returns the largest change of a parameter.

        The change is free of the data's offset and scale.
        """


@runtime_checkable
class OnlineLearning(Protocol):
    """A part of a model that ``fit`` updates in closed form after each step of an optimiser."""

    def statistics(self, code: Any) -> Any:
        """Sufficient statistics of the codes of a batch, which add over parts of it with ``+``; None for no update."""

    def update(self, moments: Any) -> None:
        """Updates the part."""
