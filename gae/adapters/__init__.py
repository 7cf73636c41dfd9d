"""Models that you have already: decoders, Pyro programs, and autoencoders of other libraries."""

from gae.adapters.checks import check_curvature, check_networks
from gae.adapters.decoders import Shaped, from_decoder
from gae.adapters.diffusers import DiffusersDecoder, DiffusersEncoder, from_diffusers
from gae.adapters.encoders import GivenEncoder
from gae.adapters.networks import ExportedNetwork, load_weights, read_network
from gae.adapters.pyro_guides import FittedRows, PyroGuide
from gae.adapters.pyro_models import PyroLikelihood, from_pyro
from gae.adapters.pythae import PythaeDecoder, PythaeEncoder, from_pythae
from gae.adapters.trainable import trainable

__all__ = [
    "DiffusersDecoder",
    "DiffusersEncoder",
    "ExportedNetwork",
    "FittedRows",
    "GivenEncoder",
    "PyroGuide",
    "PyroLikelihood",
    "PythaeDecoder",
    "PythaeEncoder",
    "Shaped",
    "check_curvature",
    "check_networks",
    "from_decoder",
    "from_diffusers",
    "from_pyro",
    "from_pythae",
    "load_weights",
    "read_network",
    "trainable",
]
