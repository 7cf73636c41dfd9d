"""Models that you have already: decoders, Pyro programs, and autoencoders of other libraries."""

from gae.adapters.decoders import GivenEncoder, Shaped, check_curvature, from_decoder
from gae.adapters.networks import ExportedNetwork, load_weights, read_network
from gae.adapters.pyro_models import FittedRows, PyroGuide, PyroLikelihood, from_pyro

__all__ = [
    "ExportedNetwork",
    "FittedRows",
    "GivenEncoder",
    "PyroGuide",
    "PyroLikelihood",
    "Shaped",
    "check_curvature",
    "from_decoder",
    "from_pyro",
    "load_weights",
    "read_network",
]
