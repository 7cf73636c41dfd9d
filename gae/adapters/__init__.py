"""Models that you have already: decoders, Pyro programs, and autoencoders of other libraries."""

from gae.adapters.decoders import GivenEncoder, Shaped, check_curvature, from_decoder
from gae.adapters.networks import ExportedNetwork, load_weights, read_network

__all__ = [
    "ExportedNetwork",
    "GivenEncoder",
    "Shaped",
    "check_curvature",
    "from_decoder",
    "load_weights",
    "read_network",
]
