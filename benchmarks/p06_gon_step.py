"""One training step of a gradient origin network (MNIST padded to 32×32, batch 64) against the same step by hand.

The generator is that of Bond-Taylor & Willcocks (2021) with nz=32, ngf=16: four transposed convolutions, ELU, a
sigmoid, and no batch normalisation. The code is one ascent step from the origin, and its gradient is unrolled.
"""

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.common import DEVICE, agree, first_line, mnist, report, row, take_turns, training
from gae import Autoencoder
from gae.inference import Ascent, GradientAscent, Unroll, Zeros
from gae.likelihood import Flat, Gaussian

BATCH, LATENT, FEATURES = 64, 32, 16


def generator() -> nn.Sequential:
    """Codes (N, 32, 1, 1) to images (N, 1, 32, 32) in [0, 1]."""
    return nn.Sequential(
        nn.ConvTranspose2d(LATENT, 4 * FEATURES, 4, 1, 0),
        nn.ELU(),
        nn.ConvTranspose2d(4 * FEATURES, 2 * FEATURES, 4, 2, 1),
        nn.ELU(),
        nn.ConvTranspose2d(2 * FEATURES, FEATURES, 4, 2, 1),
        nn.ELU(),
        nn.ConvTranspose2d(FEATURES, 1, 4, 2, 1),
        nn.Sigmoid(),
    )


def ours(network: nn.Module) -> Autoencoder:
    """With scale √½ the log density is -‖x - f(z)‖² up to a constant."""
    likelihood = Gaussian(network, (LATENT, 1, 1), scale=0.5**0.5, prior=Flat(LATENT, 1, 1))
    return Autoencoder(likelihood, Ascent(Zeros(), GradientAscent(1.0), max_steps=1, adjoint=Unroll()))


def by_hand(network: nn.Module, x: Float[Tensor, "B 1 32 32"]) -> Float[Tensor, ""]:
    """The mean of ‖x - f(-∇‖x - f(0)‖²)‖²; the inner loss is summed, so that a code does not depend on its batch."""
    origin = torch.zeros(len(x), LATENT, 1, 1, device=x.device, requires_grad=True)
    inner = (network(origin) - x).square().sum()
    (gradient,) = torch.autograd.grad(inner, origin, create_graph=True)
    return (network(-gradient) - x).square().sum((1, 2, 3)).mean()


def gradient(loss: Tensor, network: nn.Module) -> Float[Tensor, " P"]:
    """∇ loss in all parameters."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])


def main() -> None:
    torch.manual_seed(0)
    name, images = mnist()
    x = nn.functional.pad(images[:BATCH], (2, 2, 2, 2))
    network = generator().to(DEVICE)
    twin = copy.deepcopy(network)
    model = ours(network)
    loss, written = model(x), by_hand(twin, x)
    constant = 0.5 * x[0].numel() * math.log(math.pi)
    agree("loss", loss, written + constant, 1e-6)
    agree("gradient", gradient(loss, network), gradient(written, twin), 1e-5)
    mine, hand = take_turns(
        training(lambda: model(x), network.parameters()), training(lambda: by_hand(twin, x), twin.parameters())
    )
    rows = [row("gradient origin network, training step", mine, hand, 1.05)]
    report("P6", "time of ours / time by hand", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
