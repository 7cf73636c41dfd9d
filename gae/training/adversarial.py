"""A decoder that learns from a classifier instead of from codes: generative adversarial networks."""

import torch
from jaxtyping import Float, Num
from torch import Size, Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from gae.autoencoder import Autoencoder
from gae.inference import Inference
from gae.likelihood import Likelihood
from gae.objective import Aggregate, Objective, joint, mean


class Adversarial(Autoencoder):
    """An autoencoder whose decoder is a generator, trained against a discriminator (Goodfellow et al. 2014).

    Without a link from x to z, the variational objective is a constant minus a divergence of the data from the marginal
    q(x) = ∫ q_w(z) q_r(x|z) dz (ledger D01). A GAN lowers a divergence of the same two laws, estimated by a classifier:
    at the optimal discriminator the value of the game is 2 JS(p_data, q) - 2 log 2. So training needs neither a density
    nor codes, and never runs the engine, which is there to encode afterwards: by inversion.

    In training mode ``forward(x)`` is one scalar, the sum of two losses in nats per sample, x̃ ~ q_r(x|z), z ~ q_w(z):

        discriminator: E softplus(-D(x)) + E softplus(D(x̃)) + gamma/2 E ‖∇D(x)‖²  (R1, Mescheder et al. 2018, eq. 9),
        generator:     E softplus(-D(x̃)),  the non-saturating loss.

    The first sees a detached x̃, the second a detached D: each player's parameters get the gradient of their own loss,
    and one optimiser step is a simultaneous step of both. The value does not tell how good the samples are: it is
    3 log 2 at equilibrium, and may lie on either side of it before. In evaluation mode ``forward(x)`` is minus the
    objective of the codes found, as for every ``Autoencoder``.

    Args:
        likelihood: the generator; its draws must be reparameterised (such as ``Gaussian``, whose noise makes it a
            density), and its prior one that can be sampled.
        inference: how codes are found once the generator is trained.
        discriminator: observations (N, *X) -> logits (N,) or (N, 1) of being data; it must not couple samples.
        gamma: weight of R1; without it (0) simultaneous steps need not converge, even close to the optimum.
        objective: what evaluation mode maximises, per sample.
        aggregate: how the samples' values become one number, in evaluation mode.
        corruption: what the discriminator sees of the data in training (``gae.training.corruption``); the law of
            that is then what the marginal is compared with. With the noise that the likelihood itself adds, data on few
            grey levels or dimensions have a density to compare (instance noise, Sønderby et al. 2017).

    Raises:
        ValueError: for a negative gamma; in training, for a discriminator without one logit per observation, or a
            likelihood whose draws carry no gradient (``Bernoulli``).
        NotImplementedError: in training, for a prior that cannot be sampled (``Flat``).

    >>> from gae import nets
    >>> from gae.inference import LBFGS, Ascent, Detach, Prior
    >>> from gae.likelihood import Gaussian
    >>> invert = Ascent(Prior(), LBFGS(), restarts=4, adjoint=Detach())
    >>> model = Adversarial(Gaussian(nets.mlp(2, [8], 3), 2, 0.1), invert, nets.mlp(3, [8], 1))
    >>> model(torch.randn(5, 3)).shape, model.eval().reconstruct(torch.randn(5, 3)).shape
    (torch.Size([]), torch.Size([5, 3]))
    """

    discriminator: nn.Module

    def __init__(
        self,
        likelihood: Likelihood,
        inference: Inference,
        discriminator: nn.Module,
        gamma: float = 0.1,
        objective: Objective = joint,
        aggregate: Aggregate = mean,
        corruption: nn.Module | None = None,
    ):
        super().__init__(likelihood, inference, objective, aggregate, corruption)
        if not gamma >= 0:
            raise ValueError(f"gamma must not be negative, got {gamma}.")
        self.discriminator, self.gamma = discriminator, gamma

    @property
    def regularised(self) -> bool:
        """Always: what is learned in training is not the objective of codes."""
        return True

    def forward(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, ""]:
        """Both players' losses in training mode, minus the aggregated objective of codes in evaluation; in nats."""
        if not self.training:
            return super().forward(x)
        drawn = self.draw(len(x))
        seen = x if self.corruption is None else self.corruption(x)
        return self.discriminator_loss(seen, drawn) + self.generator_loss(drawn)

    def draw(self, n: int) -> Float[Tensor, "n *X"]:
        """n draws x̃ ~ q_r(x|z), z ~ q_w(z), differentiable in the likelihood's parameters."""
        decoded = self.likelihood(self.likelihood.prior.sample(Size((n,))))
        if not decoded.has_rsample:
            raise ValueError(
                f"Draws of {type(self.likelihood).__name__} carry no gradient to the generator. Use a likelihood with "
                "reparameterised draws, such as `Gaussian` with a small scale."
            )
        return decoded.rsample()

    def discriminator_loss(self, x: Num[Tensor, "B *X"], drawn: Num[Tensor, "N *X"]) -> Float[Tensor, ""]:
        """The classifier's cross-entropy on data and draws (a constant here), plus R1 on the data."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_(self.gamma > 0)
            real = _one_each(self.discriminator(x), len(x))
            false = _one_each(self.discriminator(drawn.detach()), len(drawn))
            loss = softplus(-real).mean() + softplus(false).mean()
            if self.gamma > 0:
                (slope,) = torch.autograd.grad(real.sum(), x, create_graph=wanted)
                loss = loss + 0.5 * self.gamma * slope.square().sum() / len(x)
        return loss if wanted else loss.detach()

    def generator_loss(self, drawn: Num[Tensor, "N *X"]) -> Float[Tensor, ""]:
        """-E log sigmoid D(x̃), with a discriminator that is held constant."""
        held = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return softplus(-_one_each(functional_call(self.discriminator, held, (drawn,)), len(drawn))).mean()


def _one_each(output: Tensor, n: int) -> Tensor:
    if output.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"The discriminator must return one logit per observation, shape ({n},) or ({n}, 1), got "
            f"{tuple(output.shape)}."
        )
    return output.reshape(n)
