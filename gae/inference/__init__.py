"""How a code is found: engines, and the parts an ascent is made of."""

from gae.inference.amortized import Amortized, to_pyro
from gae.inference.ascent import Ascent
from gae.inference.backprop import Backprop, Checkpoint, Detach, OneStep, Truncate, Unroll
from gae.inference.base import Code, Encoding, Inference, LearnsData, Solve, Status
from gae.inference.exact import Argmax, ClosedForm, Enumerate, Mode
from gae.inference.family import Delta, Family, FullCovariance, MeanField
from gae.inference.free import FreeCodes
from gae.inference.gates import ChartGate
from gae.inference.gauss_newton import GaussNewton
from gae.inference.implicit import Implicit
from gae.inference.langevin import Langevin
from gae.inference.lbfgs import LBFGS
from gae.inference.monotone import MonotoneAscent
from gae.inference.nearest import Nearest, Shortlist
from gae.inference.proximal import ProximalAscent
from gae.inference.solver import Progress
from gae.inference.starts import Exaggerated, Fixed, Initial, PrincipalComponents, Prior, Zeros
from gae.inference.steps import Adam, DeltaBarDelta, GradientAscent, Momentum, Step
from gae.inference.stopping import RunningVariance, Stopping, Verdict
from gae.inference.wrappers import Box, Clipped, NonNegative, Partial, Projected, Scheduled, Simplex, UnitSphere, Whiten

__all__ = [
    "LBFGS",
    "Adam",
    "Amortized",
    "Argmax",
    "Ascent",
    "Backprop",
    "Box",
    "ChartGate",
    "Checkpoint",
    "Clipped",
    "ClosedForm",
    "Code",
    "Delta",
    "DeltaBarDelta",
    "Detach",
    "Encoding",
    "Enumerate",
    "Exaggerated",
    "Family",
    "Fixed",
    "FreeCodes",
    "FullCovariance",
    "GaussNewton",
    "GradientAscent",
    "Implicit",
    "Inference",
    "Initial",
    "Langevin",
    "LearnsData",
    "MeanField",
    "Mode",
    "Momentum",
    "MonotoneAscent",
    "Nearest",
    "NonNegative",
    "OneStep",
    "Partial",
    "PrincipalComponents",
    "Prior",
    "Progress",
    "Projected",
    "ProximalAscent",
    "RunningVariance",
    "Scheduled",
    "Shortlist",
    "Simplex",
    "Solve",
    "Status",
    "Step",
    "Stopping",
    "Truncate",
    "UnitSphere",
    "Unroll",
    "Verdict",
    "Whiten",
    "Zeros",
    "to_pyro",
]
