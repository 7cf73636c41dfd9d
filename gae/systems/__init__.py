"""Every named system: one function each, and the table of them."""

from gae.systems.autoencoders import CORRUPTIONS, ae, cae, dae, overcomplete_ae, sparse_ae
from gae.systems.decoders import gon, short_run, sparse_coding
from gae.systems.linear import gmm, kmeans, llgae, pca, ppca
from gae.systems.parts import HEADS, NormalEncoder
from gae.systems.sequences import attention_vae, sequence_vae
from gae.systems.table import SYSTEMS, System, build, option_names
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
    "conv_vae",
    "dae",
    "gmm",
    "gon",
    "importance_weighted",
    "kmeans",
    "llgae",
    "option_names",
    "overcomplete_ae",
    "pca",
    "ppca",
    "savae",
    "sequence_vae",
    "short_run",
    "sparse_ae",
    "sparse_coding",
    "vae",
]
