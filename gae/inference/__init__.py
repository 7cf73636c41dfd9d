"""Inference engines, which encode x as codes z, and the components of gradient ascent."""

from gae.inference.amortized import Amortized, to_pyro
from gae.inference.ascent.engine import Ascent
from gae.inference.ascent.family import Delta, Family, FullCovariance, MeanField
from gae.inference.ascent.gradients.implicit import Implicit
from gae.inference.ascent.gradients.unrolled import Adjoint, CheckpointedUnroll, Detach, OneStep, Truncate, Unroll
from gae.inference.ascent.solver import Progress
from gae.inference.ascent.steps.first_order import Adam, DeltaBarDelta, GradientAscent, Momentum, Step
from gae.inference.ascent.steps.gauss_newton import GaussNewton
from gae.inference.ascent.steps.hamiltonian import HMC
from gae.inference.ascent.steps.langevin import Langevin
from gae.inference.ascent.steps.lbfgs import LBFGS
from gae.inference.ascent.steps.learned import IterativeAmortized
from gae.inference.ascent.steps.monotone import MonotoneAscent
from gae.inference.ascent.steps.proximal import ProximalAscent
from gae.inference.ascent.steps.wrappers import (
    Box,
    Clipped,
    MaskedStep,
    NonNegative,
    Projected,
    Scheduled,
    Simplex,
    UnitSphere,
    Whiten,
)
from gae.inference.ascent.stopping import ESWMV, Stopping, StoppingDecision
from gae.inference.auto_decoder import AutoDecoder
from gae.inference.base import Code, Encoding, Inference, LearnsData, Solve, Status
from gae.inference.detached import DetachedDraws
from gae.inference.exact import Argmax, ClosedForm, Enumerate, Mode
from gae.inference.laplace import LanczosLaplace, Laplace
from gae.inference.mcmc import MCMC
from gae.inference.nearest import Nearest, Shortlist
from gae.inference.quantized import IteratedConditionalModes, VectorQuantizer
from gae.inference.starts import ChartGate, Constant, DecoderInit, EarlyExaggeration, PrincipalComponents, Prior, Zeros
from gae.inference.warm_start import WarmStart

__all__ = [
    "ESWMV",
    "HMC",
    "LBFGS",
    "MCMC",
    "Adam",
    "Adjoint",
    "Amortized",
    "Argmax",
    "Ascent",
    "AutoDecoder",
    "Box",
    "ChartGate",
    "CheckpointedUnroll",
    "Clipped",
    "ClosedForm",
    "Code",
    "Constant",
    "DecoderInit",
    "Delta",
    "DeltaBarDelta",
    "Detach",
    "DetachedDraws",
    "EarlyExaggeration",
    "Encoding",
    "Enumerate",
    "Family",
    "FullCovariance",
    "GaussNewton",
    "GradientAscent",
    "Implicit",
    "Inference",
    "IteratedConditionalModes",
    "IterativeAmortized",
    "LanczosLaplace",
    "Langevin",
    "Laplace",
    "LearnsData",
    "MaskedStep",
    "MeanField",
    "Mode",
    "Momentum",
    "MonotoneAscent",
    "Nearest",
    "NonNegative",
    "OneStep",
    "PrincipalComponents",
    "Prior",
    "Progress",
    "Projected",
    "ProximalAscent",
    "Scheduled",
    "Shortlist",
    "Simplex",
    "Solve",
    "Status",
    "Step",
    "Stopping",
    "StoppingDecision",
    "Truncate",
    "UnitSphere",
    "Unroll",
    "VectorQuantizer",
    "WarmStart",
    "Whiten",
    "Zeros",
    "to_pyro",
]
