"""The decoder that several measurements share: 20-200-200-784 tanh, Bernoulli, N(0, I), learned as a VAE on MNIST."""

from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.common import DEVICE, mnist, mnist_folder
from gae import Autoencoder
from gae.data import load
from gae.inference import Amortized
from gae.likelihood import Bernoulli
from gae.nets import mlp
from gae.objective import elbo
from gae.systems import NormalEncoder
from gae.training import fit

DATA, LATENT, HIDDEN, EPOCHS = 784, 20, (200, 200), 8
CACHE = Path(__file__).resolve().parent.parent / "runs" / "mnist-vae"


def images() -> tuple[str, Float[Tensor, "N D"], Float[Tensor, "M D"]]:
    """The name of the data, training and test images, binarised at 0.5."""
    name, train = mnist(binarised=True)
    if not name.startswith("MNIST"):
        return name, train[:-10_000].flatten(1), train[-10_000:].flatten(1)
    test = load("mnist", folder=mnist_folder(), binarize="threshold").test
    return name, train.flatten(1), test.flatten(1).to(DEVICE)


def untrained() -> Autoencoder:
    """The VAE at its initial weights, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = Bernoulli(mlp(LATENT, HIDDEN, DATA, nn.Tanh), LATENT)
        encoder = NormalEncoder(mlp(DATA, HIDDEN, 2 * LATENT, nn.Tanh))
    return Autoencoder(decoder, Amortized(encoder), partial(elbo, analytic=True)).to(DEVICE)


def trained(train: Float[Tensor, "N D"]) -> Autoencoder:
    """The VAE after 8 epochs of Adam(1e-3) in batches of 128. Its weights are kept in ``runs/mnist-vae``."""
    model = untrained()
    fit(model, train, epochs=EPOCHS, out=CACHE, resume=True, progress=False)
    return model.eval().requires_grad_(False)
