"""Noisy measurements y = A(x̂) of a decoder, for inpainting, super-resolution and compressed sensing."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from gae.likelihood.base import DecoderLikelihood, DecoderWrapper, Likelihood, positive_scale
from gae.likelihood.distributions import Normal
from gae.likelihood.operators import Mask
from gae.nets import first_tensor

Operator = Callable[[Tensor], Tensor]


class Measured(DecoderWrapper):
    """Likelihood of measurements y = A(x) (B, *Y) instead of observations x (B, *X), with the same z and prior.

    With ``scale``, y ~ N(A(x̂), scale²) for the decoder's mean x̂. Without it, y follows the likelihood's distribution
    at A(decoder output). With a ``Mask`` this is the distribution of the observed entries, for any head; otherwise the
    output must be the mean (``Gaussian``, ``Laplace``), and its noise becomes that of the measurement.

    Args:
        likelihood: a trained decoder, a network's weights, or any other likelihood with a decoder output.
        operator: a ``LinearOperator``, or any differentiable callable from (*L, *X) to (*L, *Y).
        scale: standard deviation of the measurement noise, in units of y.

    Raises:
        TypeError: if the likelihood has no decoder output, or ``scale`` is omitted and the output is not a mean.

    >>> from gae.likelihood import Gaussian, GaussianProjection
    >>> decoder = Gaussian(nn.Linear(2, 64), 2, scale=0.1)
    >>> Measured(decoder, GaussianProjection(10, (64,))).event_shape
    torch.Size([10])
    """

    scale: Tensor | None

    def __init__(self, likelihood: Likelihood, operator: Operator, scale: float | None = None):
        if not isinstance(likelihood, DecoderLikelihood) or likelihood.components > 1:
            raise TypeError(
                f"Cannot measure {type(likelihood).__name__} with {likelihood.components} components: one decoder "
                "output per code is needed. Use a neural head, or a `LinearMixture` of one component."
            )
        if scale is None and not (likelihood.output_is_mean or isinstance(operator, Mask)):
            raise TypeError(
                f"{type(operator).__name__} acts on means, but the output of {type(likelihood).__name__} is not one. "
                "Give the `scale` of the measurement noise."
            )
        tensor = first_tensor(likelihood)
        if isinstance(operator, nn.Module):
            operator = operator.to(tensor)
        measured = operator(tensor.new_zeros(1, *likelihood.event_shape))
        super().__init__(likelihood.latent_shape, measured.shape[1:], likelihood.latent_prior)
        self.likelihood, self.operator = likelihood, operator
        self.register_buffer("scale", None if scale is None else tensor.new_tensor(positive_scale(scale)))
        if scale is None:
            self.support, self.support_text = likelihood.support, likelihood.support_text
            self.support_remedy = likelihood.support_remedy
        self.stochastic, self.bind_is_surrogate = likelihood.stochastic, likelihood.bind_is_surrogate
        self.output_is_mean = likelihood.output_is_mean or scale is not None
        self._check_distribution(tensor)

    @torch.no_grad()
    def _check_distribution(self, like: Tensor) -> None:
        """Evaluates the distribution once, to check that it fits the operator's output."""
        try:
            law = self.distribution(self.outputs(like.new_zeros(1, *self.latent_shape)))
            fits = law.batch_shape == (1, *self.event_shape)  # elementwise: a part of x has no law of its own otherwise
        except RuntimeError:
            fits = False
        if not fits:
            raise TypeError(
                f"The distribution of {type(self.likelihood).__name__} does not fit measurements of shape "
                f"{tuple(self.event_shape)}. Give the `scale` of the measurement noise."
            )

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        if self.scale is None:
            return self.likelihood.distribution(self.operator(output))
        mean = self.operator(self.likelihood.reconstruction(output))
        return Normal(mean, self.scale.expand_as(mean), validate_args=False)

    def reconstruction(self, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The decoder's x̂, of which y is a measurement."""
        return self.likelihood.reconstruction(output)

    def restored(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The complete observation decoded from a code, including masked, blurred or projected parts."""
        return self.reconstruction(self.outputs(z))
