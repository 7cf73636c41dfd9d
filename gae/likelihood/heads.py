"""Neural heads, which interpret the output of any ``nn.Module`` decoder as parameters of q_r(x|z)."""

import math
from typing import Literal

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Num
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from gae.likelihood import distributions
from gae.likelihood.base import DecoderLikelihood, LogJoint, NoiseScale, parameter_or_buffer, positive_scale
from gae.likelihood.counts import Counts, LogRatePoisson
from gae.likelihood.door import need_no_component
from gae.likelihood.priors import StandardNormal
from gae.nets import Rescaled, as_size, first_tensor

Learn = Literal["fixed", "scalar", "pixel"]

FLOOR = math.log(1e-4)  # of a learned scale relative to the data's unit: float32 leaves three digits of such a residual
SHARPNESS = 10.0  # of the smooth bound, which is negligible above e^2 times the floor


class Head(DecoderLikelihood):
    """Base class of likelihoods whose distribution of x is parameterised by a decoder network.

    Args:
        decoder: maps codes (N, *Z) to outputs (N, ...). It is evaluated once, on a zero code, to infer the event shape.
        latent_shape: Z, or an int for vectors.
        prior: see ``Likelihood``; defaults to N(0, I).
    """

    def __init__(self, decoder: nn.Module, latent_shape: int | tuple[int, ...] | Size, prior: nn.Module | None = None):
        shape = as_size(latent_shape)
        output = _output_shape(decoder, shape)
        prior = StandardNormal(*shape).to(first_tensor(decoder)) if prior is None else prior
        super().__init__(shape, self.event_of(output), prior)
        self.decoder = decoder
        self.output_shape = output

    def event_of(self, output: Size) -> Size:
        """The event shape X for one decoder output of the given shape."""
        return output

    def outputs(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Float[Tensor, "..."]:
        need_no_component(self, k)
        lead = z.shape[: z.dim() - len(self.latent_shape)]
        output = self.decoder(z.reshape(-1, *self.latent_shape))
        return self.parameter_of(output.reshape(*lead, *output.shape[1:]))

    def parameter_of(self, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The network's output as ``outputs`` returns it: unchanged, unless the head constrains it."""
        return output

    def log_joint(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self.prior.log_prob(z) + self.log_likelihood(x, self.outputs(z, k), k)

    def _over_event(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return value.sum(tuple(range(-len(self.event_shape), 0))) if self.event_shape else value


class LocationScaleHead(NoiseScale, Head):
    """Base class of location-scale heads: the output is the location; the scale, in data units, is fixed or learned.

    With a ``nets.Rescaled`` decoder, a learned scale is smoothly bounded from below by 1e-4 of the data's unit:
    otherwise the density of a constant pixel would grow without limit, and the loss would become NaN.

    Args:
        decoder: see ``Head``.
        latent_shape: see ``Head``.
        scale: the scale, or its initial value if it is learned.
        learn: "fixed", "scalar" or "pixel".
        prior: see ``Head``.
        relative: whether the scale is relative to the data's unit, stored in the decoder's ``nets.Rescaled``.
    """

    output_is_mean = True

    def __init__(
        self,
        decoder: nn.Module,
        latent_shape: int | tuple[int, ...] | Size,
        scale: float = 1.0,
        learn: Learn = "fixed",
        prior: nn.Module | None = None,
        relative: bool = False,
    ):
        super().__init__(decoder, latent_shape, prior)
        if learn not in ("fixed", "scalar", "pixel"):
            raise ValueError(f"learn must be 'fixed', 'scalar' or 'pixel', got {learn!r}.")
        shape = self.event_shape if learn == "pixel" else Size()
        log_scale = first_tensor(decoder).new_full(shape, math.log(positive_scale(scale)))
        parameter_or_buffer(self, "log_scale", log_scale, learn != "fixed")
        # in a tuple, so that the layer is registered only in the decoder
        self._rescale = tuple(part for part in decoder.modules() if isinstance(part, Rescaled))[-1:]
        self.relative = relative
        if relative and not self._rescale:
            raise ValueError("relative=True needs a decoder that is `nets.Rescaled`, got none. Wrap the decoder in it.")

    @property
    def scale(self) -> Float[Tensor, "..."]:
        """Standard deviation (Gaussian) or diversity b (Laplace), in data units: ``()`` or X."""
        return self._log_scale().exp()

    def _log_scale(self) -> Float[Tensor, "..."]:
        """Log scale in data units, with its lower bound."""
        if not self._rescale or not (self.learns_scale or self.relative):
            return self.log_scale
        unit = self._rescale[0].scale.log()
        if not self.learns_scale:
            return self.log_scale + unit
        least = FLOOR + unit
        return least + softplus(self.log_scale - (FLOOR if self.relative else least), beta=SHARPNESS)


class Gaussian(LocationScaleHead):
    """Gaussian likelihood x ~ N(decoder(z), scale²), with a fixed, learned scalar or learned per-pixel variance.

    ``scale=c**0.5`` is the decoder variance c of a VAE (Doersch 2016; ledger D26).

    >>> model = Gaussian(nn.Linear(2, 3), latent_shape=2, scale=0.1, learn="scalar")
    >>> model.log_joint(torch.zeros(5, 3), torch.zeros(1, 5, 2)).shape
    torch.Size([1, 5])
    """

    separable = True

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return distributions.Normal(output, self.scale.expand_as(output), validate_args=False)

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "S B"]:
        # One sum of squares: an elementwise log density, differentiated twice, slows a small decoder's step by 10 %.
        scale = self._log_scale()
        size, pixel = self.event_shape.numel(), scale.dim() > 0
        unit = scale if pixel else scale.detach()  # the ratio is squared: scale² may underflow or overflow
        square = self._over_event(((x - output) * (-unit).exp()).square())
        precision = 1.0 if pixel else (2 * (unit - scale)).exp()  # 1, with the gradient of a learned scale
        log_scale = scale.sum() if pixel else size * scale
        return -0.5 * precision * square - (log_scale + 0.5 * math.log(2 * math.pi) * size)


class Laplace(LocationScaleHead):
    """Laplace likelihood x ~ Laplace(decoder(z), scale): absolute error, robust to outliers.

    >>> Laplace(nn.Linear(2, 3), latent_shape=2).event_shape
    torch.Size([3])
    """

    separable = True

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return dist.Laplace(output, self.scale.expand_as(output), validate_args=False)


class Bernoulli(Head):
    """Bernoulli likelihood x ~ Bernoulli(sigmoid(decoder(z))) for x in {0, 1}; grey values are rejected.

    >>> Bernoulli(nn.Linear(2, 3), latent_shape=2).check(torch.tensor([[0.0, 1.0, 0.5]]))
    Traceback (most recent call last):
        ...
    ValueError: Bernoulli needs x in {0, 1}, got 0.5 at index (0, 2) (1 such values). Binarise the data \
(`load(..., binarize="threshold")` or "dynamic"), or use ContinuousBernoulli or Gaussian on values in [0, 1].
    """

    separable = True
    support = constraints.boolean
    support_text = "{0, 1}"
    support_remedy = (
        'Binarise the data (`load(..., binarize="threshold")` or "dynamic"), '
        "or use ContinuousBernoulli or Gaussian on values in [0, 1]."
    )

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return distributions.Bernoulli(logits=output, validate_args=False)

    def check_support(self, x: Num[Tensor, "B *X"]) -> None:
        if not torch.equal(x, x.square()):  # only 0 and 1 equal their square
            super().check_support(x)

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "S B"]:
        # Summed before it is negated: each pass over this tensor, the largest of an ascent, is costly.
        entropy = binary_cross_entropy_with_logits(output, x.expand_as(output), reduction="none")
        return -self._over_event(entropy)


class ContinuousBernoulli(Head):
    """Continuous Bernoulli likelihood for x in [0, 1], with its normaliser (Loaiza-Ganem & Cunningham 2019, eq. 4).

    >>> ContinuousBernoulli(nn.Linear(2, 3), latent_shape=2).event_shape
    torch.Size([3])
    """

    separable = True
    support = constraints.unit_interval
    support_text = "[0, 1]"
    support_remedy = "Divide 0-255 data by 255, or use Gaussian."

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return distributions.ContinuousBernoulli(logits=output, validate_args=False)


class Poisson(Head):
    """Poisson likelihood x ~ Poisson(exp(decoder(z))) for counts x = 0, 1, 2, ...

    Densities are computed from log rates. If a rate overflows, the density is -inf, the mean inf, and sampling raises
    ValueError.

    >>> Poisson(nn.Linear(2, 3), latent_shape=2).event_shape
    torch.Size([3])
    """

    separable = True
    support = constraints.nonnegative_integer
    support_text = "the counts 0, 1, 2, ..."
    support_remedy = "Round or rescale to counts, or use Gaussian."

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return LogRatePoisson(output, validate_args=False)

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "S B"]:
        return self._over_event(Counts(x).log_prob_at(output))

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        prior, counts = self.prior, Counts(x)  # the factorials, once for an inner loop
        return lambda z, k=None: prior.log_prob(z) + self._over_event(counts.log_prob_at(self.sample_outputs(z, k)))


class Categorical(Head):
    """x ~ Categorical(softmax(decoder(z))): the last dimension of the output holds the logits of the C classes.

    A decoder output (*X, C) gives events X of classes 0 ... C-1, given as whole floats.

    >>> model = Categorical(nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (3, 4))), latent_shape=2)
    >>> model.event_shape, model.classes
    (torch.Size([3]), 4)
    """

    def event_of(self, output: Size) -> Size:
        return output[:-1]

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.output_shape[-1]

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        # Normalised relative to the maximum: torch subtracts a logsumexp, which inherits the rounding of large logits.
        return dist.Categorical(logits=output.log_softmax(-1), validate_args=False)

    def point(self, decoded: Distribution) -> Float[Tensor, "..."]:
        """The most probable classes, (*L, *X), since labels have no mean."""
        return decoded.mode.to(first_tensor(self.decoder).dtype)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.classes - 1)

    @property
    def support_text(self) -> str:  # type: ignore[override]
        return f"the classes 0 ... {self.classes - 1}"


def _output_shape(decoder: nn.Module, latent_shape: Size) -> Size:
    modes = [(module, module.training) for module in decoder.modules()]
    codes = first_tensor(decoder).new_zeros(1, *latent_shape)
    decoder.eval()
    try:
        with torch.no_grad():
            output = decoder(codes)
    except RuntimeError as error:
        raise ValueError(f"The decoder does not accept codes of shape (N, *{tuple(latent_shape)}): {error}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(output, Tensor) or output.dtype != codes.dtype:
        kind = f"a {output.dtype} tensor" if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(f"The decoder must return a {codes.dtype} tensor, as its parameters and codes are; got {kind}.")
    return output.shape[1:]
