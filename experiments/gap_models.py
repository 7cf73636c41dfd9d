"""The decoders of ``inference_gap``: one architecture, trained by six engines.

The architecture is that of Burda et al. (2016, arXiv 1509.00519) with one stochastic layer: an encoder
784-200-200-(2 × 50) and a decoder 50-200-200-784 with tanh, N(0, I) and Bernoulli pixels, on dynamically binarised
MNIST. All start from the same weights. Their schedule takes 3,280 epochs; ours is given in each row and far shorter.

    python -m experiments.gap_models [NAME ...]

trains the named decoders (all by default). An interrupted run resumes from its checkpoints in
``runs/inference_gap``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from experiments.common import ROOT, arguments, mnist
from gae import Autoencoder, nets
from gae.data import Dataset
from gae.inference import Adam, Adjoint, Amortized, Ascent, Detach, Inference, MeanField, Unroll, Zeros
from gae.likelihood import Bernoulli
from gae.objective import Objective, elbo, iwae, joint
from gae.systems import NormalEncoder
from gae.training import fit

RUNS = ROOT.parent / "runs" / "inference_gap"
SHAPE, LATENT = (1, 28, 28), 50


@dataclass(frozen=True)
class Training:
    """Training of one decoder: engine, objective, and epochs at each rate of Adam."""

    label: str
    engine: Callable[[NormalEncoder], Inference]
    objective: Objective
    stages: tuple[tuple[float, int], ...]
    encoder_width: int = 200
    decoder_width: int = 200
    batch_size: int = 100

    @property
    def epochs(self) -> int:
        return sum(epochs for _, epochs in self.stages)


def map_ascent(adjoint: Adjoint, steps: int, rate: float) -> Ascent:
    """MAP codes by Adam from zero, as the decoders are trained with them.

    Unrolled, 10 steps of rate 0.3 are enough, since the decoder adapts to them. Detached, it came to ignore
    its code under these within two epochs; 25 smaller steps keep it.
    """
    return Ascent(Zeros(), Adam(rate, (0.8, 0.9)), steps, adjoint=adjoint)


def refinement(encoder: NormalEncoder, steps: int = 5, samples: int = 2) -> Ascent:
    """Ascent on the ELBO of a mean-field normal, from the encoder's density (Kim et al. 2018)."""
    return Ascent(Amortized(encoder), Adam(0.02, (0.8, 0.9)), steps, family=MeanField(samples), adjoint=Unroll())


TRAININGS = {
    "vae": Training("amortised ELBO", Amortized, partial(elbo, analytic=True), ((1e-3, 200), (3e-4, 70), (1e-4, 30))),
    "iwae5": Training("IWAE, k = 5", partial(Amortized, samples=5), iwae, ((1e-3, 60), (3e-4, 30), (1e-4, 15))),
    "iwae50": Training("IWAE, k = 50", partial(Amortized, samples=50), iwae, ((1e-3, 14), (3e-4, 6), (1e-4, 4))),
    "savae": Training(
        "semi-amortised ELBO", refinement, partial(elbo, analytic=True), ((1e-3, 16), (3e-4, 8), (1e-4, 4))
    ),
    "unrolled": Training(
        "unrolled MAP", lambda encoder: map_ascent(Unroll(), 10, 0.3), joint, ((1e-3, 14), (3e-4, 7), (1e-4, 4))
    ),
    "detached": Training(
        "detached MAP", lambda encoder: map_ascent(Detach(), 25, 0.1), joint, ((1e-3, 12), (3e-4, 6), (1e-4, 3))
    ),
}

# VAEs whose networks differ in width only.
WIDTHS = {
    f"encoder{encoder}-decoder{decoder}": Training(
        f"encoder {encoder}, decoder {decoder}",
        Amortized,
        partial(elbo, analytic=True),
        ((1e-3, 40), (3e-4, 20)),
        encoder,
        decoder,
    )
    for encoder, decoder in ((50, 200), (200, 200), (800, 200), (200, 50), (200, 800))
}


def parts(training: Training, data: Dataset, seed: int = 0) -> tuple[Bernoulli, NormalEncoder]:
    """Decoder and encoder, the same for trainings of equal widths; the last bias starts at the mean image's logit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nets.mlp(LATENT, 2 * [training.decoder_width], SHAPE, nn.Tanh)
        encoder = NormalEncoder(nets.mlp(SHAPE, 2 * [training.encoder_width], 2 * LATENT, nn.Tanh))
    last = next(layer for layer in reversed(network) if isinstance(layer, nn.Linear))
    with torch.no_grad():
        last.bias.copy_(data.epoch(0).mean(0).clamp(1e-3, 1 - 1e-3).logit().flatten())
    return Bernoulli(network, LATENT), encoder


def train(name: str, data: Dataset) -> tuple[Autoencoder, NormalEncoder]:
    """The named decoder with its engine, trained, and the encoder (untrained where the engine has none)."""
    training = {**TRAININGS, **WIDTHS}[name]
    decoder, encoder = parts(training, data)
    model = Autoencoder(decoder, training.engine(encoder), training.objective)
    for stage, (rate, epochs) in enumerate(training.stages):
        fit(
            model,
            data,
            epochs=epochs,
            batch_size=training.batch_size,
            optimizer=partial(torch.optim.Adam, lr=rate),
            clip=200.0,
            seed=stage,
            out=RUNS / name / f"stage{stage}",
            resume=True,
            progress=False,
        )
    return model, encoder


if __name__ == "__main__":
    chosen = arguments(__doc__, [*TRAININGS, *WIDTHS])
    torch.set_num_threads(1)
    images = mnist(binarize="dynamic")
    for name in chosen or [*TRAININGS, *WIDTHS]:
        train(name, images)
        print(name, "done", flush=True)
