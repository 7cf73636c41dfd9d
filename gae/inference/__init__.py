"""How a code is found: engines, and the parts an ascent is made of."""

from gae.inference.amortized import Amortized, to_pyro
from gae.inference.ascent.engine import Ascent
from gae.inference.ascent.family import Delta, Family, FullCovariance, MeanField
from gae.inference.ascent.gradients.implicit import Implicit
from gae.inference.ascent.gradients.unrolled import Backprop, Checkpoint, Detach, OneStep, Truncate, Unroll
from gae.inference.ascent.solver import Progress
from gae.inference.ascent.steps.first_order import Adam, DeltaBarDelta, GradientAscent, Momentum, Step
from gae.inference.ascent.steps.gauss_newton import GaussNewton
from gae.inference.ascent.steps.langevin import Langevin
from gae.inference.ascent.steps.lbfgs import LBFGS
from gae.inference.ascent.steps.monotone import MonotoneAscent
from gae.inference.ascent.steps.proximal import ProximalAscent
from gae.inference.ascent.steps.wrappers import (
    Box,
    Clipped,
    NonNegative,
    Partial,
    Projected,
    Scheduled,
    Simplex,
    UnitSphere,
    Whiten,
)
from gae.inference.ascent.stopping import RunningVariance, Stopping, Verdict
from gae.inference.auto_decoder import FreeCodes
from gae.inference.base import Code, Encoding, Inference, LearnsData, Solve, Status
from gae.inference.exact import Argmax, ClosedForm, Enumerate, Mode
from gae.inference.gates import ChartGate
from gae.inference.nearest import Nearest, Shortlist
from gae.inference.starts import Exaggerated, Fixed, Initial, PrincipalComponents, Prior, Zeros

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
