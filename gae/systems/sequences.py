"""Variational autoencoders of sequences of classes: recurrent networks, flat or hierarchical, and transformers."""

import math
from functools import partial

from torch import nn

from gae.autoencoder import Autoencoder
from gae.inference import Amortized
from gae.likelihood import CategoricalSequence
from gae.nets import hierarchical
from gae.nets import sequence as sequence_nets
from gae.objective import elbo
from gae.systems.parts import NormalEncoder, Shape
from gae.systems.table import System


@System(
    likelihood="CategoricalSequence (LSTM)",
    prior="N(0, I)",
    inference="Amortized (guide)",
    objective="elbo",
    source="Bowman et al. 2016",
    observation="sequence of classes",
    reads={"classes": "classes"},
)
def sequence_vae(
    event_shape: Shape,
    classes: int = 258,
    latent: int = 16,
    embedding: int = 32,
    hidden: int = 128,
    end: int | None = 1,
    autoregressive: bool = True,
    word_dropout: float = 0.7,
    beta: float = 1.0,
) -> Autoencoder:
    """VAE of sequences with LSTMs (Bowman et al. 2016); x (B, T) contains classes, with 0 for padding.

    Args:
        event_shape: (T,), the length of an observation.
        classes: number C of classes, including padding; for text, at least the ``classes`` of its vocabulary.
        latent: width of the code.
        embedding: width of the embedding of a class.
        hidden: width of the LSTMs.
        end: the class that ends a sequence; ``None`` for sequences of fixed length.
        autoregressive: whether the decoder sees the previous classes; otherwise steps are independent given z.
        word_dropout: fraction of the previous classes hidden from the decoder in training mode. With 0, an
            autoregressive decoder learns to ignore z; otherwise inference by ascent needs ``.eval()``.
        beta: weight of the KL; the objective is a bound only for 1.
    """
    (steps,) = _steps(event_shape)
    decoder = sequence_nets.LSTMDecoder(latent, classes, embedding, hidden, autoregressive, word_dropout)
    encoder = sequence_nets.LSTMEncoder(classes, 2 * latent, embedding, hidden)
    return _assembled(decoder, encoder, latent, steps, classes, end, beta)


@System(
    likelihood="CategoricalSequence (transformer)",
    prior="N(0, I)",
    inference="Amortized (guide)",
    objective="elbo",
    source="Vaswani et al. 2017; Bowman et al. 2016",
    observation="sequence of classes",
    reads={"classes": "classes"},
)
def attention_vae(
    event_shape: Shape,
    classes: int = 258,
    latent: int = 16,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    end: int | None = 1,
    autoregressive: bool = True,
    word_dropout: float = 0.7,
    beta: float = 1.0,
) -> Autoencoder:
    """VAE of sequences with transformers (Vaswani et al. 2017); x (B, T) contains classes, with 0 for padding.

    Args:
        event_shape: (T,), the length of an observation.
        classes: number C of classes, including padding; for text, at least the ``classes`` of its vocabulary.
        latent: width of the code.
        width: width of the networks.
        heads: number of heads of each attention layer; must divide the width.
        layers: number of blocks of each network.
        end: the class that ends a sequence; ``None`` for sequences of fixed length.
        autoregressive: whether the decoder sees the previous classes; otherwise steps are independent given z.
        word_dropout: fraction of the previous classes hidden from the decoder in training mode. With 0, an
            autoregressive decoder learns to ignore z; otherwise inference by ascent needs ``.eval()``.
        beta: weight of the KL; the objective is a bound only for 1.
    """
    (steps,) = _steps(event_shape)
    decoder = sequence_nets.TransformerDecoder(latent, classes, width, heads, layers, autoregressive, word_dropout)
    encoder = sequence_nets.TransformerEncoder(classes, 2 * latent, width, heads, layers)
    return _assembled(decoder, encoder, latent, steps, classes, end, beta)


@System(
    likelihood="CategoricalSequence (hierarchical LSTM)",
    prior="N(0, I)",
    inference="Amortized (guide)",
    objective="elbo, KL × 0.2",
    source="Roberts et al. 2018",
    observation="sequence of classes",
    reads={"classes": "classes"},
)
def music_vae(
    event_shape: Shape,
    classes: int = 258,
    latent: int = 16,
    embedding: int = 32,
    hidden: int = 128,
    segment: int | None = None,
    end: int | None = 1,
    autoregressive: bool = True,
    word_dropout: float = 0.0,
    beta: float = 0.2,
) -> Autoencoder:
    """MusicVAE (Roberts et al. 2018): a VAE of sequences decoded one segment at a time; x (B, T) has 0 for padding.

    A conductor LSTM maps the code to an embedding per segment, such as a bar of 16 steps. A lower LSTM, restarted for
    each segment, decodes it, so that only the code carries a pattern across segments. The encoder is a bidirectional
    LSTM.

    Args:
        event_shape: (T,), the length of an observation.
        classes: number C of classes, including padding; for text, at least the ``classes`` of its vocabulary.
        latent: width of the code.
        embedding: width of the embedding of a class.
        hidden: width of the LSTMs, and of the embedding of a segment.
        segment: number of steps of a segment; by default √T, rounded up, as the paper's 16 of 256.
        end: the class that ends a sequence; ``None`` for sequences of fixed length.
        autoregressive: whether the decoder sees the previous class; otherwise steps are independent given z.
        word_dropout: fraction of the previous classes hidden from the decoder in training mode; with more than 0,
            inference by ascent needs ``.eval()``.
        beta: weight of the KL, by default that of the authors' configuration; the objective is a bound only for 1, at
            which the code may collapse.
    """
    (steps,) = _steps(event_shape)
    segment = math.isqrt(steps - 1) + 1 if segment is None else segment
    if segment > steps:
        raise ValueError(f"segment must be at most the length of a sequence, T = {steps}, got {segment}.")
    decoder = hierarchical.HierarchicalLSTMDecoder(
        latent, classes, segment, embedding, hidden, autoregressive, word_dropout
    )
    encoder = sequence_nets.LSTMEncoder(classes, 2 * latent, embedding, hidden, bidirectional=True)
    return _assembled(decoder, encoder, latent, steps, classes, end, beta)


def _steps(event_shape: Shape) -> Shape:
    if len(event_shape) != 1:
        raise ValueError(
            f"A sequence has the event shape (T,), got {tuple(event_shape)}. Load text (`load('names.txt')`), or "
            "encode each observation as a row of classes 1, 2, ..., with 0 for padding."
        )
    return event_shape


def _assembled(
    decoder: nn.Module, encoder: nn.Module, latent: int, steps: int, classes: int, end: int | None, beta: float
) -> Autoencoder:
    likelihood = CategoricalSequence(decoder, latent, steps, classes, end)
    return Autoencoder(likelihood, Amortized(NormalEncoder(encoder)), partial(elbo, beta=beta, analytic=True))
