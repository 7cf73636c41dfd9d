"""One LLGAE training step on MNIST (batch 128, K=11, E=20, T=5) against the update rule transcribed as written.

The rule is b_t = b_{t-1} + β W_kᵀ(x - μ_k - W_k b_{t-1}), b_0 = 0, k = argmax_k -½‖x - μ_k - W_k b_T‖². Written
with broadcasting it forms the (B, K, D, E) product that ``LinearMixture`` never forms. A step is forward,
backward, Adam.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.common import agree, first_line, mnist, report, row, take_turns, training
from gae import Autoencoder
from gae.inference import Argmax, Ascent, GradientAscent, Unroll, Zeros
from gae.likelihood import LinearMixture

BATCH, COMPONENTS, LATENT, STEPS, RATE = 128, 11, 20, 5, 0.1


class AsWritten(nn.Module):
    """The update rule, term by term."""

    def __init__(self, means: Float[Tensor, "K D"], loadings: Float[Tensor, "K D E"]):
        super().__init__()
        self.means, self.loadings = nn.Parameter(means.clone()), nn.Parameter(loadings.clone())

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """-mean_x max_k -½‖x - μ_k - W_k b_T‖²."""
        b = x.new_zeros(len(x), COMPONENTS, LATENT)
        for _ in range(STEPS):
            residual = self._residual(x, b)
            b = b + RATE * (self.loadings * residual.unsqueeze(-1)).sum(-2)
        return -(-0.5 * self._residual(x, b).square().sum(-1)).amax(1).mean()

    def _residual(self, x: Tensor, b: Tensor) -> Float[Tensor, "B K D"]:
        return x.unsqueeze(1) - self.means - (self.loadings * b.unsqueeze(-2)).sum(-1)


def ours(likelihood: LinearMixture) -> Autoencoder:
    """LLGAE by ascent."""
    return Autoencoder(likelihood, Argmax(Ascent(Zeros(), GradientAscent(RATE), STEPS, adjoint=Unroll())))


def half_square(model: Autoencoder, x: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """The mean of ½‖x - μ_k - W_k z‖² at our codes: the loss without the constants that a density has."""
    encoding = model.encode(x)
    return 0.5 * (x - model.decode(encoding.point, encoding.component).mean).square().sum(1).mean()


def same(model: Autoencoder, likelihood: LinearMixture, rule: AsWritten, x: Float[Tensor, "B D"]) -> None:
    """Losses with and without constants, and gradients."""
    constants = math.log(COMPONENTS) + 0.5 * x.shape[1] * math.log(2 * math.pi)
    loss, written = model(x), rule(x)
    agree("½‖x - x̂‖²", half_square(model, x), written, 1e-6)
    agree("loss", loss, written + constants, 1e-6)
    mine = torch.autograd.grad(loss, [likelihood.means, likelihood.loadings])
    theirs = torch.autograd.grad(written, [rule.means, rule.loadings])
    agree("gradient in μ", mine[0], theirs[0], 1e-4)
    agree("gradient in W", mine[1].mT, theirs[1], 1e-4)


def main() -> None:
    torch.manual_seed(0)
    name, images = mnist()
    images = images.flatten(1)
    x = images[:BATCH]
    likelihood = LinearMixture(COMPONENTS, LATENT, (images.shape[1],), flat_prior=True, means=images[-COMPONENTS:])
    model = ours(likelihood)
    rule = AsWritten(likelihood.means.detach(), likelihood.loadings.detach().mT)
    same(model, likelihood, rule, x)
    mine, theirs = take_turns(
        training(lambda: model(x), model.parameters()), training(lambda: rule(x), rule.parameters())
    )
    rows = [row("LLGAE training step", theirs, mine, 100, at_least=True)]
    report("P3", "time as written / time of ours", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
