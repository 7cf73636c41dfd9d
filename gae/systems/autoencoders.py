"""Autoencoders with a deterministic encoder, plain and regularised."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from gae import nets
from gae.autoencoder import Autoencoder
from gae.data.checks import fraction
from gae.inference import Amortized
from gae.likelihood import Flat, LaplacePrior
from gae.objective import joint
from gae.systems.parts import Shape, decoder_of, encoder_network, has_scale, head_of
from gae.systems.table import System
from gae.training.corruption import GaussianNoise, MaskingNoise, SaltAndPepper, Walkback
from gae.training.penalty import Contractive, SparseActivation, SparseActivity

CORRUPTIONS: dict[str, Callable[[float], nn.Module]] = {
    "gaussian": GaussianNoise,
    "masking": MaskingNoise,
    "salt-and-pepper": SaltAndPepper,
}
RHO = 0.05  # the default target of activities
SPARSITY: dict[str, Callable[[float, float], nn.Module]] = {"mean": SparseActivity, "each": SparseActivation}


@System(
    likelihood="neural head",
    prior="flat",
    inference="Amortized (deterministic)",
    objective="joint",
    source="Hinton & Salakhutdinov 2006",
    reads={"missing": "missing"},
)
def ae(
    event_shape: Shape,
    latent: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    scale: float | None = None,
    learn: str = "scalar",
    *,
    missing: bool = False,
) -> Autoencoder:
    """Undercomplete autoencoder with a flat prior and a deterministic encoder; other options as in ``vae``.

    ``learn="pixel"`` has no optimum here: a code can copy a few pixels exactly, whose scales then tend to zero.
    """
    network = nets.mlp(latent, hidden[::-1], event_shape)
    decoder = decoder_of(network, latent, event_shape, head, scale, learn, prior=Flat(latent), missing=missing)
    encoder = encoder_network(event_shape, lambda shape: nets.mlp(shape, hidden, latent), missing)
    return Autoencoder(decoder, Amortized(encoder), joint)


@System(
    likelihood="neural head in layers",
    prior="flat",
    inference="Amortized (deterministic)",
    objective="joint",
    source="Hinton & Salakhutdinov 2006; Bengio et al. 2007",
)
def stacked_ae(
    event_shape: Shape, latent: int = 32, hidden: Sequence[int] = (256, 128), head: str = "gaussian"
) -> Autoencoder:
    """Deep autoencoder with mirrored layers, for greedy pre-training by ``gae.training.layerwise.pretrain``."""
    widths: list[int | Sequence[int]] = [event_shape, *hidden]
    down = [nn.Sequential(nets.mlp(a, (), b), nn.SiLU()) for a, b in pairwise(widths)]
    up = [nn.Sequential(nets.mlp(b, (), a), nn.SiLU()) for a, b in pairwise(hidden)]
    widest = hidden[0] if hidden else latent
    encoder = nn.Sequential(*down, nets.mlp(widths[-1], (), latent))
    encoder[0] = nets.Standardized(encoder[0], event_shape)
    top = [nn.Sequential(nets.mlp(latent, (), hidden[-1]), nn.SiLU())] if hidden else []
    lowest = nets.mlp(widest, (), event_shape)
    lowest = nets.Rescaled(lowest, event_shape) if has_scale(head) else lowest
    likelihood = head_of(head)(nn.Sequential(*top, *reversed(up), lowest), latent, prior=Flat(latent))
    return Autoencoder(likelihood, Amortized(encoder), joint)


@System(
    likelihood="neural head",
    prior="flat",
    inference="Amortized (deterministic)",
    objective="joint",
    source="ledger D34",
    reads={"missing": "missing"},
)
def overcomplete_ae(
    event_shape: Shape, latent: int = 128, hidden: Sequence[int] = (), head: str = "gaussian", *, missing: bool = False
) -> Autoencoder:
    """Overcomplete autoencoder, with a code wider than the data: unconstrained, it learns the identity (ledger D34)."""
    return ae(event_shape, latent, hidden, head, missing=missing)


@System(
    likelihood="neural head",
    prior="flat",
    inference="Amortized (sigmoid)",
    objective="joint + activity penalty",
    source="Ng 2011",
    reads={"missing": "missing"},
)
def sparse_ae(
    event_shape: Shape,
    latent: int = 128,
    hidden: Sequence[int] = (),
    head: str = "gaussian",
    rho: float = RHO,
    weight: float = 1.0,
    penalty: str = "mean",
    *,
    missing: bool = False,
) -> Autoencoder:
    """Sparse autoencoder, with one of three penalties of the given ``weight`` (ledger D31).

    ``penalty="mean"``: activations in (0, 1) with means over the data close to ``rho`` (Ng 2011).
    ``"each"``: every activation close to ``rho``. ``"l1"``: Σ|z| of real-valued codes, a Laplace prior of rate
    ``weight``; the decoder is then linear with atoms of unit length, since larger weights would make up for smaller
    codes, and its noise scale is fixed to 0.4 units of the data, as in ``sparse_coding``.
    """
    if penalty == "l1":
        if rho != RHO:
            raise ValueError(f'penalty="l1" has no target activity: rho={rho} would have no effect. Omit it.')
        return _with_l1(event_shape, latent, hidden, head, weight, missing)
    if penalty not in SPARSITY:
        raise ValueError(f"Unknown penalty {penalty!r}. Valid penalties: {', '.join([*SPARSITY, 'l1'])}.")
    network, prior = nets.mlp(latent, hidden[::-1], event_shape), Flat(latent)
    decoder = decoder_of(network, latent, event_shape, head, prior=prior, missing=missing)
    first = encoder_network(event_shape, lambda shape: nets.mlp(shape, hidden, latent), missing)
    if 0 < rho < 1:  # initial activities equal rho
        nn.init.constant_(first[-1].bias, math.log(rho / (1 - rho)))
    encoder = nn.Sequential(first, nn.Sigmoid())
    return Autoencoder(decoder, Amortized(encoder), joint, penalties=[SPARSITY[penalty](weight, rho)])


def _with_l1(
    event_shape: Shape, latent: int, hidden: Sequence[int], head: str, rate: float, missing: bool
) -> Autoencoder:
    """Sparse coding with an encoder instead of an ascent."""
    atoms, prior = nets.Dictionary(latent, event_shape), LaplacePrior(latent, rate=rate)
    learn = "fixed" if has_scale(head) else "scalar"
    decoder = decoder_of(atoms, latent, event_shape, head, learn=learn, prior=prior, default=0.4, missing=missing)
    encoder = encoder_network(event_shape, lambda shape: nets.mlp(shape, hidden, latent), missing)
    return Autoencoder(decoder, Amortized(encoder), joint)


@System(
    likelihood="neural head",
    prior="flat",
    inference="Amortized (corrupted input)",
    objective="joint of the clean x",
    source="Vincent et al. 2010",
)
def dae(
    event_shape: Shape,
    latent: int = 32,
    hidden: Sequence[int] = (128,),
    head: str = "gaussian",
    corruption: str = "gaussian",
    amount: float | None = None,
    walkback: float = 0.0,
) -> Autoencoder:
    """Denoising autoencoder (Vincent et al. 2010): encodes a corrupted x and scores the clean x.

    ``amount`` is the standard deviation of Gaussian noise, in data units, or the fraction of elements replaced. The
    default is one unit of the data (``nets.InDataUnits``), or the fraction 0.3. Draw samples by
    ``gae.analysis.chains.denoising_walk``; ``walkback``, the probability that a chain goes on, trains the model on its
    own chains (``gae.training.corruption.Walkback``), so that they return to the data.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(f"Unknown corruption {corruption!r}. Valid corruptions: {', '.join(CORRUPTIONS)}.")
    model = ae(event_shape, latent, hidden, head)
    if amount is None:
        noise = (
            nets.InDataUnits(GaussianNoise(1.0), event_shape)
            if corruption == "gaussian"
            else CORRUPTIONS[corruption](0.3)
        )
    else:
        noise = CORRUPTIONS[corruption](amount)
    if fraction("walkback", walkback):
        noise = Walkback(noise, walkback)
    return Autoencoder(model.likelihood, model.inference, joint, corruption=noise)


@System(
    likelihood="neural head",
    prior="flat",
    inference="Amortized (deterministic)",
    objective="joint + ‖∂z/∂x‖²",
    source="Rifai et al. 2011",
)
def cae(
    event_shape: Shape,
    latent: int = 32,
    hidden: Sequence[int] = (128,),
    head: str = "gaussian",
    weight: float = 1.0,
) -> Autoencoder:
    """Contractive autoencoder (Rifai et al. 2011): penalises the derivative of the code with respect to the input.

    ``weight`` is that of the squared derivative per unit of the data (``nets.InDataUnits``), in nats. The decoder is
    free, so the penalty alone can be evaded by small codes (``Contractive``): train with weight decay. Draw samples by
    ``gae.analysis.chains.contractive_walk``.
    """
    model = ae(event_shape, latent, hidden, head)
    return Autoencoder(model.likelihood, model.inference, joint, penalties=[Contractive(weight, event_shape)])
