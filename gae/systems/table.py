"""The table: every named system as a composition of likelihood, inference and objective."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gae import nets
from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.storage import recorded
from gae.systems.adversarial import gan
from gae.systems.autoencoders import ae, cae, dae, overcomplete_ae, sparse_ae, stacked_ae
from gae.systems.decoders import glo, gon, short_run, sparse_coding
from gae.systems.factors import nmf
from gae.systems.image_prior import deep_image_prior
from gae.systems.latents import compressed_sensing, inpainting, maximal_activation, superresolution
from gae.systems.linear import gmm, kmeans, llgae, pca, ppca
from gae.systems.mixtures import ggae, knn, smooth_llgae
from gae.systems.parts import Shape
from gae.systems.relational import linear_regression, lle, tsne
from gae.systems.sequences import attention_vae, sequence_vae
from gae.systems.variational import conv_vae, importance_weighted, savae, vae
from gae.training.learners import MakeOptimizer


@dataclass(frozen=True)
class System:
    """One row of the table, and the function that builds it for an event shape.

    Attributes:
        observation: what one x is: a sample of the event shape, unless something else is observed.
        optimizer: what ``fit`` trains it by, where its own choice will not do.
    """

    build: Callable[..., Autoencoder]
    likelihood: str
    prior: str
    inference: str
    objective: str
    source: str
    observation: str = "sample"
    optimizer: MakeOptimizer | None = None


SYSTEMS: dict[str, System] = {
    "pca": System(pca, "LinearMixture(K=1)", "flat", "ClosedForm", "joint", "Pearson 1901; GAE note, LGAE"),
    "ppca": System(ppca, "LinearMixture(K=1)", "N(0, I)", "ClosedForm", "elbo (tight)", "Tipping & Bishop 1999"),
    "kmeans": System(kmeans, "LinearMixture(E=0)", "uniform k", "Argmax", "joint", "Lloyd 1982; GAE note"),
    "gmm": System(gmm, "LinearMixture(E=0)", "learned k", "Enumerate", "logsumexp (exact)", "Dempster et al. 1977"),
    "llgae": System(
        llgae, "LinearMixture(K, E)", "uniform k, flat z", "Argmax(ClosedForm or Ascent)", "joint", "GAE note"
    ),
    "ae": System(ae, "neural head", "flat", "Amortized (deterministic)", "joint", "Hinton & Salakhutdinov 2006"),
    "vae": System(vae, "neural head", "N(0, I)", "Amortized (guide)", "elbo", "Kingma & Welling 2014"),
    "conv-vae": System(conv_vae, "neural head", "N(0, I)", "Amortized (guide)", "elbo", "Kingma & Welling 2014"),
    "gon": System(gon, "Gaussian head", "flat", "Ascent(Zeros, 1 step)", "joint", "Bond-Taylor & Willcocks 2021"),
    "overcomplete-ae": System(
        overcomplete_ae, "neural head", "flat", "Amortized (deterministic)", "joint", "ledger D34"
    ),
    "sparse-ae": System(sparse_ae, "neural head", "flat", "Amortized (sigmoid)", "joint + activity penalty", "Ng 2011"),
    "sparse-coding": System(
        sparse_coding, "Gaussian, unit atoms", "Laplace", "Ascent(Zeros, FISTA)", "joint", "Olshausen & Field 1996"
    ),
    "dae": System(
        dae, "neural head", "flat", "Amortized (corrupted input)", "joint of the clean x", "Vincent et al. 2010"
    ),
    "cae": System(cae, "neural head", "flat", "Amortized (deterministic)", "joint + ‖∂z/∂x‖²", "Rifai et al. 2011"),
    "iwae": System(importance_weighted, "neural head", "N(0, I)", "Amortized (guide), S", "iwae", "Burda et al. 2016"),
    "short-run": System(
        short_run,
        "Gaussian head",
        "N(0, I)",
        "Ascent(Prior, Langevin)",
        "joint",
        "Han et al. 2017; Nijkamp et al. 2019",
    ),
    "stacked-ae": System(
        stacked_ae,
        "neural head in layers",
        "flat",
        "Amortized (deterministic)",
        "joint",
        "Hinton & Salakhutdinov 2006; Bengio et al. 2007",
    ),
    "glo": System(
        glo, "neural head", "N(0, I)", "AutoDecoder(Ascent)", "joint", "Bojanowski et al. 2018; Park et al. 2019"
    ),
    "nmf": System(
        nmf,
        "NonNegativeGaussian or NonNegativePoisson",
        "flat, z >= 0",
        "Ascent(MonotoneAscent)",
        "joint",
        "Lee & Seung 1999, 2001",
    ),
    "savae": System(savae, "neural head", "N(0, I)", "Ascent(Amortized, MeanField)", "elbo", "Kim et al. 2018"),
    "deep-image-prior": System(
        deep_image_prior,
        "WeightLikelihood(skip network)",
        "flat",
        "Ascent(DecoderInit, Adam, self-stopping)",
        "joint",
        "Ulyanov et al. 2018",
        "one image",
    ),
    "maximal-activation": System(
        maximal_activation,
        "Activation(network)",
        "flat, in [0, 1]",
        "Ascent(Adam in a box)",
        "joint",
        "GAE note",
        "a unit",
    ),
    "compressed-sensing": System(
        compressed_sensing,
        "Measured(head, projections)",
        "N(0, I)",
        "Ascent(Prior, L-BFGS, restarts)",
        "joint",
        "Bora et al. 2017",
        "projections of a sample",
    ),
    "inpainting": System(
        inpainting,
        "Measured(head, mask)",
        "N(0, I)",
        "Ascent(Prior, L-BFGS, restarts)",
        "joint",
        "Bora et al. 2017",
        "seen elements of a sample",
    ),
    "superresolution": System(
        superresolution,
        "Measured(head, downsampling)",
        "N(0, I)",
        "Ascent(Prior, L-BFGS, restarts)",
        "joint",
        "Bora et al. 2017",
        "a smaller image",
    ),
    "gan": System(
        gan,
        "Gaussian head",
        "N(0, I)",
        "Ascent(Prior, L-BFGS, restarts)",
        "adversarial",
        "Goodfellow et al. 2014",
        optimizer=partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99)),
    ),
    "linear-regression": System(
        linear_regression,
        "LinearRegression (design)",
        "flat or N(0, s² I)",
        "ClosedForm",
        "joint",
        "Legendre 1805",
        "targets of a design",
    ),
    "tsne": System(
        tsne,
        "TSNE (pairs of points)",
        "flat",
        "Ascent(Exaggerated, DeltaBarDelta)",
        "joint",
        "van der Maaten & Hinton 2008",
        "data set",
    ),
    "lle": System(
        lle, "LLE (neighbour weights)", "flat", "Mode", "joint, whitened codes", "Roweis & Saul 2000", "data set"
    ),
    "knn": System(knn, "LinearMixture(E=0, K=N)", "uniform k", "Nearest", "joint", "GAE note; ledger D11"),
    "smooth-llgae": System(
        smooth_llgae, "BlendedCharts", "flat", "Ascent(ChartGate, z alone)", "joint", "GAE note; ledger D15"
    ),
    "ggae": System(
        ggae, "GaussianKernel (absorbing)", "flat", "Ascent(Zeros)", "joint (sub-density)", "GAE note; ledger D17, D18"
    ),
    "sequence-vae": System(
        sequence_vae,
        "CategoricalSequence (LSTM)",
        "N(0, I)",
        "Amortized (guide)",
        "elbo",
        "Bowman et al. 2016",
        "sequence of classes",
    ),
    "attention-vae": System(
        attention_vae,
        "CategoricalSequence (transformer)",
        "N(0, I)",
        "Amortized (guide)",
        "elbo",
        "Vaswani et al. 2017; Bowman et al. 2016",
        "sequence of classes",
    ),
}


@recorded
def build(name: str, event_shape: Shape, **options: Any) -> Autoencoder:
    """The named system for observations of the given shape.

    Raises:
        ValueError: for an unknown name or option (the valid ones are listed), and a size that is too small.

    >>> type(build("vae", (1, 8, 8), latent=2).inference).__name__
    'Amortized'
    """
    row = named(name)
    accepted = option_names(name)
    own = inspect.signature(row.build).parameters
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}. Valid options: {', '.join(accepted)}.")
    for option, value in options.items():
        if own[option].annotation in (int, int | None, Sequence[int]) and option != "end" and value is not None:
            nets.need_sizes(0 if option.endswith("steps") else 1, **{option: value})
    return row.build(event_shape, **options)


def describe(name: str, options: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """JSON-able facts about a system fitted to data, from which it can be built again and its draws be shown."""
    return {
        "system": name,
        "options": options,
        "data": data.name,
        "data_hash": data.hash,
        **data.preparation.note(),
    }


def options_of(name: str, data: Dataset) -> dict[str, Any]:
    """The options of a system that the data decide: of text, the number of classes."""
    return {"classes": data.vocabulary.classes} if data.vocabulary and "classes" in option_names(name) else {}


def named(name: str) -> System:
    """A row of the table; ValueError lists the valid names."""
    if name not in SYSTEMS:
        raise ValueError(f"Unknown system {name!r}. Valid systems: {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]


def option_names(name: str) -> list[str]:
    """The keyword options of a system."""
    return list(inspect.signature(named(name).build).parameters)[1:]
