"""Every named system: one function each, and the table of them."""

from gae.systems.autoencoders import CORRUPTIONS, ae, cae, dae, overcomplete_ae, sparse_ae, stacked_ae
from gae.systems.decoders import glo, gon, short_run, sparse_coding
from gae.systems.factors import nmf
from gae.systems.linear import gmm, kmeans, llgae, pca, ppca
from gae.systems.parts import HEADS, NormalEncoder
from gae.systems.table import SYSTEMS, System, build, option_names
from gae.systems.variational import conv_vae, importance_weighted, savae, vae

__all__ = [
    "CORRUPTIONS",
    "HEADS",
    "SYSTEMS",
    "NormalEncoder",
    "System",
    "ae",
    "build",
    "cae",
    "conv_vae",
    "dae",
    "glo",
    "gmm",
    "gon",
    "importance_weighted",
    "kmeans",
    "llgae",
    "nmf",
    "option_names",
    "overcomplete_ae",
    "pca",
    "ppca",
    "savae",
    "short_run",
    "sparse_ae",
    "sparse_coding",
    "stacked_ae",
    "vae",
]
