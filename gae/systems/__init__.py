"""Every named system: one function each, and the table of them."""

from gae.systems.adversarial import gan
from gae.systems.autoencoders import CORRUPTIONS, ae, cae, dae, overcomplete_ae, sparse_ae, stacked_ae
from gae.systems.decoders import glo, gon, short_run, sparse_coding
from gae.systems.factors import nmf
from gae.systems.image_prior import deep_image_prior
from gae.systems.latents import compressed_sensing, inpainting, maximal_activation, superresolution
from gae.systems.linear import gmm, kmeans, llgae, pca, ppca
from gae.systems.mixtures import ggae, knn, smooth_llgae
from gae.systems.parts import HEADS, NormalEncoder
from gae.systems.relational import linear_regression, lle, tsne
from gae.systems.sequences import attention_vae, sequence_vae
from gae.systems.table import SYSTEMS, System, build, describe, named, option_names, options_of
from gae.systems.variational import conv_vae, importance_weighted, savae, vae

__all__ = [
    "CORRUPTIONS",
    "HEADS",
    "SYSTEMS",
    "NormalEncoder",
    "System",
    "ae",
    "attention_vae",
    "build",
    "cae",
    "compressed_sensing",
    "conv_vae",
    "dae",
    "deep_image_prior",
    "describe",
    "gan",
    "ggae",
    "glo",
    "gmm",
    "gon",
    "importance_weighted",
    "inpainting",
    "kmeans",
    "knn",
    "linear_regression",
    "lle",
    "llgae",
    "maximal_activation",
    "named",
    "nmf",
    "option_names",
    "options_of",
    "overcomplete_ae",
    "pca",
    "ppca",
    "savae",
    "sequence_vae",
    "short_run",
    "smooth_llgae",
    "sparse_ae",
    "sparse_coding",
    "stacked_ae",
    "superresolution",
    "tsne",
    "vae",
]
