"""Estimators of the log evidence log p(x), and posterior draws."""

from gae.evidence.annealed import BDMC, ais, inverse_temperatures, reverse_ais, sandwich
from gae.evidence.automatic import estimate
from gae.evidence.base import Evidence, UnreliableWarning, exact
from gae.evidence.importance import importance
from gae.evidence.laplace import laplace, laplace_approximation
from gae.evidence.posterior import PosteriorDraws, nuts

__all__ = [
    "BDMC",
    "Evidence",
    "PosteriorDraws",
    "UnreliableWarning",
    "ais",
    "estimate",
    "exact",
    "importance",
    "inverse_temperatures",
    "laplace",
    "laplace_approximation",
    "nuts",
    "reverse_ais",
    "sandwich",
]
