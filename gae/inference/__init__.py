"""How a code is found: engines, and the parts an ascent is made of."""

from gae.inference.amortized import Amortized, to_pyro
from gae.inference.ascent import Ascent
from gae.inference.backprop import Backprop, Detach, Unroll
from gae.inference.base import Code, Encoding, Inference, Solve, Status
from gae.inference.exact import Argmax, ClosedForm, Enumerate
from gae.inference.family import Delta, Family, MeanField
from gae.inference.starts import Fixed, Prior, Zeros
from gae.inference.steps import Adam, GradientAscent, Momentum, Step

__all__ = [
    "Adam",
    "Amortized",
    "Argmax",
    "Ascent",
    "Backprop",
    "ClosedForm",
    "Code",
    "Delta",
    "Detach",
    "Encoding",
    "Enumerate",
    "Family",
    "Fixed",
    "GradientAscent",
    "Inference",
    "MeanField",
    "Momentum",
    "Prior",
    "Solve",
    "Status",
    "Step",
    "Unroll",
    "Zeros",
    "to_pyro",
]
