"""Autoencoders with a deterministic encoder: plain and regularised."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from gae import nets
from gae.autoencoder import Autoencoder
from gae.corruption import GaussianNoise, MaskingNoise, SaltAndPepper
from gae.inference import Amortized
from gae.likelihood import Flat
from gae.objective import joint
from gae.penalty import Contractive, SparseActivity
from gae.systems.parts import Shape, head_of

CORRUPTIONS: dict[str, Callable[[float], nn.Module]] = {
    "gaussian": GaussianNoise,
    "masking": MaskingNoise,
    "salt-and-pepper": SaltAndPepper,
}


def ae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    scale: float = 1.0,
    learn: str = "scalar",
) -> Autoencoder:
    """The undercomplete autoencoder: a flat prior and a deterministic encoder; ``scale`` and ``learn`` as in ``vae``.

    A scale of its own for each pixel has no optimum here: nothing keeps a code from copying a few pixels exactly.
    """
    decoder = head_of(head, scale, learn)(nets.mlp(latent, hidden[::-1], event_shape), latent, prior=Flat(latent))
    return Autoencoder(decoder, Amortized(nets.mlp(event_shape, hidden, latent)), joint)


def stacked_ae(
    event_shape: Shape, latent: int = 32, hidden: Sequence[int] = (256, 128), head: str = "gaussian"
) -> Autoencoder:
    """A deep autoencoder in layers that mirror each other, for greedy pre-training (``gae.stacked.pretrain``)."""
    widths: list[int | Sequence[int]] = [event_shape, *hidden]
    down = [nn.Sequential(nets.mlp(a, (), b), nn.SiLU()) for a, b in pairwise(widths)]
    up = [nn.Sequential(nets.mlp(b, (), a), nn.SiLU()) for a, b in pairwise(hidden)]
    widest = hidden[0] if hidden else latent
    encoder = nn.Sequential(*down, nets.mlp(widths[-1], (), latent))
    top = [nn.Sequential(nets.mlp(latent, (), hidden[-1]), nn.SiLU())] if hidden else []
    decoder = nn.Sequential(*top, *reversed(up), nets.mlp(widest, (), event_shape))
    likelihood = head_of(head)(decoder, latent, prior=Flat(latent))
    return Autoencoder(likelihood, Amortized(encoder), joint)


def overcomplete_ae(
    event_shape: Shape, latent: int = 128, hidden: Sequence[int] = (), head: str = "gaussian"
) -> Autoencoder:
    """An autoencoder whose code is wider than its data: without a constraint it learns the identity (ledger D34)."""
    return ae(event_shape, latent, hidden, head)


def sparse_ae(
    event_shape: Shape,
    latent: int = 128,
    hidden: Sequence[int] = (),
    head: str = "gaussian",
    rho: float = 0.05,
    weight: float = 1.0,
) -> Autoencoder:
    """A sparse autoencoder: activities in (0, 1) whose means over the data are held near ``rho`` (Ng 2011)."""
    decoder = head_of(head)(nets.mlp(latent, hidden[::-1], event_shape), latent, prior=Flat(latent))
    encoder = nn.Sequential(nets.mlp(event_shape, hidden, latent), nn.Sigmoid())
    return Autoencoder(decoder, Amortized(encoder), joint, penalties=[SparseActivity(weight, rho)])


def dae(
    event_shape: Shape,
    latent: int = 32,
    hidden: Sequence[int] = (128,),
    head: str = "gaussian",
    corruption: str = "gaussian",
    amount: float = 0.3,
) -> Autoencoder:
    """The denoising autoencoder (Vincent et al. 2010): the encoder sees a corrupted x, the clean one is scored."""
    if corruption not in CORRUPTIONS:
        raise ValueError(f"Unknown corruption {corruption!r}. Valid corruptions: {', '.join(CORRUPTIONS)}.")
    model = ae(event_shape, latent, hidden, head)
    return Autoencoder(model.likelihood, model.inference, joint, corruption=CORRUPTIONS[corruption](amount))


def cae(
    event_shape: Shape,
    latent: int = 32,
    hidden: Sequence[int] = (128,),
    head: str = "gaussian",
    weight: float = 0.1,
) -> Autoencoder:
    """The contractive autoencoder (Rifai et al. 2011): a penalty on the derivative of the code by the input."""
    model = ae(event_shape, latent, hidden, head)
    return Autoencoder(model.likelihood, model.inference, joint, penalties=[Contractive(weight)])
