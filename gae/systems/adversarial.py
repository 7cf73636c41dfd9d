"""Generative adversarial networks, with codes by inversion."""

from collections.abc import Sequence
from functools import partial

import torch

from gae import nets
from gae.inference import LBFGS, Ascent, Detach, Prior
from gae.systems.parts import Shape, decoder_of
from gae.systems.table import System
from gae.training.adversarial import Adversarial
from gae.training.corruption import GaussianNoise


@System(
    likelihood="Gaussian head",
    prior="N(0, I)",
    inference="Ascent(Prior, L-BFGS, restarts)",
    objective="adversarial",
    source="Goodfellow et al. 2014",
)
def gan(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (256, 256),
    scale: float | None = None,
    gamma: float = 0.1,
    restarts: int = 8,
    steps: int = 100,
) -> Adversarial:
    """Generative adversarial network (Goodfellow et al. 2014) with R1 regularisation (Mescheder et al. 2018).

    The generator's noise with the given ``scale`` makes q_r(x|z) a density; the discriminator sees data with the same
    noise. ``scale`` is in data units; the default is a fifth of the data's unit (``nets.InDataUnits``). Codes are
    inferred by inversion: the best of L-BFGS runs from ``restarts`` samples of the prior. The default optimiser of
    ``fit`` is Adam without momentum and with rate 2e-3.
    """
    generator = decoder_of(
        nets.mlp(latent, hidden, event_shape), latent, event_shape, scale=scale, learn="fixed", default=0.2
    )
    invert = Ascent(Prior(), LBFGS(), steps, restarts=restarts, adjoint=Detach())
    discriminator = nets.Standardized(nets.mlp(event_shape, hidden[::-1], 1), event_shape)
    noise = nets.InDataUnits(GaussianNoise(0.2), event_shape) if scale is None else GaussianNoise(scale)
    model = Adversarial(generator, invert, discriminator, gamma, corruption=noise)
    model.optimizer = partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99))
    return model
