"""The table: every named system as a composition of likelihood, inference and objective."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gae.autoencoder import Autoencoder
from gae.systems.autoencoders import ae, cae, dae, overcomplete_ae, sparse_ae, stacked_ae
from gae.systems.decoders import glo, gon, short_run, sparse_coding
from gae.systems.factors import nmf
from gae.systems.linear import gmm, kmeans, llgae, pca, ppca
from gae.systems.parts import Shape
from gae.systems.variational import conv_vae, importance_weighted, savae, vae


@dataclass(frozen=True)
class System:
    """One row of the table, and the function that builds it for an event shape."""

    build: Callable[..., Autoencoder]
    likelihood: str
    prior: str
    inference: str
    objective: str
    source: str


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
        glo, "neural head", "N(0, I)", "FreeCodes(Ascent)", "joint", "Bojanowski et al. 2018; Park et al. 2019"
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
}


def build(name: str, event_shape: Shape, **options: Any) -> Autoencoder:
    """The named system for observations of the given shape.

    Raises:
        ValueError: for an unknown name or option; the valid ones are listed.

    >>> type(build("vae", (1, 8, 8), latent=2).inference).__name__
    'Amortized'
    """
    if name not in SYSTEMS:
        raise ValueError(f"Unknown system {name!r}. Valid systems: {', '.join(SYSTEMS)}.")
    accepted = option_names(name)
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}. Valid options: {', '.join(accepted)}.")
    return SYSTEMS[name].build(event_shape, **options)


def option_names(name: str) -> list[str]:
    """The keyword options of a system."""
    return list(inspect.signature(SYSTEMS[name].build).parameters)[1:]
