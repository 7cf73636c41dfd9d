"""Generative adversarial networks: a decoder trained against a discriminator instead of from codes."""

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

    Without a link from x to z, the variational objective is a constant minus a divergence between the data distribution
    and the marginal q(x) = ∫ q_w(z) q_r(x|z) dz (ledger D01). A GAN minimises a divergence between the same two
    distributions, estimated by a classifier: at the optimal discriminator the value of the game is
    2 JS(p_data, q) - 2 log 2. Training needs neither a density nor codes and never runs the inference engine; the
    engine only encodes data after training, by inversion of the generator.

    In training mode ``forward(x)`` is one scalar, the sum of two losses in nats per sample, x̃ ~ q_r(x|z), z ~ q_w(z):

        discriminator: E softplus(-D(x)) + E softplus(D(x̃)) + gamma/2 E ‖∇D(x)‖²  (R1, Mescheder et al. 2018, eq. 9),
        generator:     E softplus(-D(x̃)),  the non-saturating loss.

    The first uses a detached x̃, the second a detached D: each player's parameters receive the gradient of their own
    loss, and one optimiser step updates both players simultaneously. The value does not measure sample quality: it is
    3 log 2 at equilibrium, and may be above or below it before. In evaluation mode ``forward(x)`` is minus the
    objective of the inferred codes, as for every ``Autoencoder``.

    Args:
        likelihood: the generator; its samples must be reparameterised (as those of ``Gaussian``, whose noise gives it
            a density), and its prior must support sampling.
        inference: the engine that encodes observations once the generator is trained.
        discriminator: maps observations (N, *X) to logits (N,) or (N, 1) of being data; it must not couple samples.
        gamma: weight of R1; without it (0) simultaneous steps need not converge, even close to the optimum.
        objective: the objective of a sample's codes in evaluation mode.
        aggregate: reduces the samples' objectives to one number, in evaluation mode.
        corruption: applied in training to the data that the discriminator sees (``gae.training.corruption``); the
            marginal is then compared with the distribution of corrupted data. The likelihood's own noise as corruption
            gives a density to data on few grey levels or dimensions (instance noise, Sønderby et al. 2017).

    Raises:
        ValueError: for a negative gamma; in training, for a discriminator without one logit per observation, or a
            likelihood whose samples are not reparameterised (``Bernoulli``).
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
        """Always True: the training loss differs from the objective of the codes."""
        return True

    def forward(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, ""]:
        """The sum of both losses in training mode; minus the aggregated objective in evaluation mode; in nats."""
        if not self.training:
            return super().forward(x)
        drawn = self.draw(len(x))
        corrupted = x if self.corruption is None else self.corruption(x)
        return self.discriminator_loss(corrupted, drawn) + self.generator_loss(drawn)

    def draw(self, n: int) -> Float[Tensor, "n *X"]:
        """n samples x̃ ~ q_r(x|z), z ~ q_w(z), differentiable in the likelihood's parameters."""
        decoded = self.likelihood(self.likelihood.prior.sample(Size((n,))))
        if not decoded.has_rsample:
            raise ValueError(
                f"Samples of {type(self.likelihood).__name__} carry no gradient to the generator. Use a likelihood "
                "with reparameterised samples, such as `Gaussian` with a small scale."
            )
        return decoded.rsample()

    def discriminator_loss(self, x: Num[Tensor, "B *X"], drawn: Num[Tensor, "N *X"]) -> Float[Tensor, ""]:
        """The discriminator's cross-entropy on data and generated samples (detached), plus R1 on the data."""
        grad_enabled = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_(self.gamma > 0)
            real = _check_logits(self.discriminator(x), len(x))
            false = _check_logits(self.discriminator(drawn.detach()), len(drawn))
            loss = softplus(-real).mean() + softplus(false).mean()
            if self.gamma > 0:
                (gradient,) = torch.autograd.grad(real.sum(), x, create_graph=grad_enabled)
                loss = loss + 0.5 * self.gamma * gradient.square().sum() / len(x)
        return loss if grad_enabled else loss.detach()

    def generator_loss(self, drawn: Num[Tensor, "N *X"]) -> Float[Tensor, ""]:
        """-E log sigmoid D(x̃), with the discriminator's parameters detached."""
        detached = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return softplus(-_check_logits(functional_call(self.discriminator, detached, (drawn,)), len(drawn))).mean()


def _check_logits(output: Tensor, n: int) -> Tensor:
    if output.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"The discriminator must return one logit per observation, shape ({n},) or ({n}, 1), got "
            f"{tuple(output.shape)}."
        )
    return output.reshape(n)
