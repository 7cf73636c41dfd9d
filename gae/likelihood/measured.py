"""A decoder seen through a measurement: y = A(x̂) with noise, for inpainting, super-resolution, compressed sensing."""

from collections.abc import Callable
from itertools import chain

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Distribution

from gae.likelihood.base import DecoderLikelihood, Likelihood, positive_scale
from gae.likelihood.distributions import Normal
from gae.likelihood.operators import Mask

Operator = Callable[[Tensor], Tensor]


class Measured(DecoderLikelihood):
    """A likelihood whose x is seen through an operator A: y (B, *Y) in the place of x (B, *X); z and its prior stay.

    With ``scale``, y ~ N(A(x̂), scale²) for the decoder's mean x̂. Without it, the likelihood's own law holds for y, at
    A(decoder output): with a ``Mask`` that is the law of the entries seen, whatever the head; otherwise the output must
    be the mean itself (``Gaussian``, ``Laplace``), and its noise is then that of the measurement.

    Args:
        likelihood: a trained decoder, a network's weights, or any other likelihood with a decoder output.
        operator: a ``LinearOperator``, or any callable from (*L, *X) to (*L, *Y) that torch can differentiate.
        scale: standard deviation of the measurement noise, in units of y.

    Raises:
        TypeError: for a likelihood without a decoder output, or whose output is no mean and no ``scale`` is given.

    >>> from gae.likelihood import Gaussian, GaussianProjection
    >>> decoder = Gaussian(nn.Linear(2, 64), 2, scale=0.1)
    >>> Measured(decoder, GaussianProjection(10, (64,))).event_shape
    torch.Size([10])
    """

    scale: Tensor | None

    def __init__(self, likelihood: Likelihood, operator: Operator, scale: float | None = None):
        if not isinstance(likelihood, DecoderLikelihood) or likelihood.components > 1:
            raise TypeError(
                f"Cannot observe {type(likelihood).__name__} with {likelihood.components} components: one decoder "
                "output per code is needed. Take a neural head, or a `LinearMixture` of one component."
            )
        if scale is None and not (likelihood.output_is_mean or isinstance(operator, Mask)):
            raise TypeError(
                f"{type(operator).__name__} acts on means, but the output of {type(likelihood).__name__} is none. "
                "Give the `scale` of the measurement noise."
            )
        tensors = chain(likelihood.parameters(), likelihood.buffers())
        tensor = next((t for t in tensors if t.is_floating_point()), torch.empty(()))
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
        self._need_law(tensor)

    @torch.no_grad()
    def _need_law(self, like: Tensor) -> None:
        """Tries the law once: it may not fit what the operator leaves of an output."""
        try:
            law = self(like.new_zeros(1, *self.latent_shape))
            fits = law.batch_shape == (1,) and law.event_shape == self.event_shape
        except RuntimeError:
            fits = False
        if not fits:
            raise TypeError(
                f"The law of {type(self.likelihood).__name__} does not fit measurements of shape "
                f"{tuple(self.event_shape)}: it is of one element each. Give the `scale` of the measurement noise."
            )

    def outputs(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Float[Tensor, "..."]:
        return self.likelihood.outputs(z, k)

    def sample_outputs(self, z: Float[Tensor, "S B *Z"], k: Int[Tensor, "S _"] | None = None) -> Tensor:
        return self.likelihood.sample_outputs(z, k)

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        if self.scale is None:
            return self.likelihood.distribution(self.operator(output))
        mean = self.operator(self.likelihood.reconstruction(output))
        return Normal(mean, self.scale.expand_as(mean), validate_args=False)

    def reconstruction(self, output: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The decoder's own x̂, of which y is a measurement."""
        return self.likelihood.reconstruction(output)

    def initial(self, n: int) -> Float[Tensor, "n *Z"]:
        return self.likelihood.initial(n)

    def restored(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The whole observation that a code stands for: what was hidden, blurred or projected away included."""
        return self.reconstruction(self.outputs(z))
