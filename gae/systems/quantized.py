"""Autoencoders with discrete codes of neural decoders."""

from collections.abc import Sequence

from gae import nets
from gae.autoencoder import Autoencoder
from gae.inference import VectorQuantizer
from gae.likelihood import Codebook
from gae.objective import joint
from gae.systems.parts import Shape, decoder_of, encoder_network
from gae.systems.table import System
from gae.training.penalty import Commitment


@System(
    likelihood="neural head",
    prior="uniform over codebook vectors",
    inference="VectorQuantizer",
    objective="joint + commitment",
    source="van den Oord et al. 2017",
    reads={"missing": "missing"},
)
def vq_vae(
    event_shape: Shape,
    positions: int = 8,
    vectors: int = 64,
    width: int = 8,
    hidden: Sequence[int] = (128, 128),
    head: str = "gaussian",
    commitment: float = 0.25,
    decay: float = 0.99,
    scale: float | None = None,
    learn: str = "scalar",
    *,
    missing: bool = False,
) -> Autoencoder:
    """Vector-quantised autoencoder (van den Oord et al. 2017); ``scale``, ``learn`` and ``missing`` as in ``vae``.

    A code has ``positions`` positions, each of which holds one of the ``vectors`` vectors (of length ``width``) of a
    codebook: the one nearest to the encoder's output, to which the gradient passes straight through. The vectors are
    moving averages with the given ``decay``, and ``commitment`` weighs the penalty that keeps the outputs close to
    them. The loss without it is in nats: minus log of a mass, which bounds -log p(x) from above. On the same decoder,
    ``gae.inference.IteratedConditionalModes`` searches for better codes than the encoder's.
    """
    prior = Codebook(vectors, positions, width, decay)
    shape = (positions, width)
    network = nets.mlp(shape, hidden[::-1], event_shape)
    decoder = decoder_of(network, shape, event_shape, head, scale, learn, prior, missing=missing)
    encoder = encoder_network(event_shape, lambda inputs: nets.mlp(inputs, hidden, shape), missing)
    return Autoencoder(decoder, VectorQuantizer(encoder), joint, penalties=[Commitment(commitment)])
