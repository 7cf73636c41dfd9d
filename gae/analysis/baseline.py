"""Baselines of every bound: the model without a code, and the training samples themselves."""

import math
from collections.abc import Callable
from copy import deepcopy

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from gae.likelihood import Bernoulli, Head, Likelihood, VonMisesFisher
from gae.likelihood.door import door
from gae.nets import Rescaled

ITERATIONS = 200  # of the fit of the constant output
HELD_OUT = 300  # training samples, each left out in turn, on which the width of a kernel is chosen
WIDTHS = 30  # grid of widths
AT_ONCE = 100  # observations whose distances to all training samples are in memory


def without_code(
    likelihood: Likelihood, train: Num[Tensor, "M *X"], x: Num[Tensor, "N *X"], batch_size: int = 1000
) -> Float[Tensor, " N"]:
    """log p(x) of the model without a code: the head with one constant output for all x, fitted to training data.

    Output and learned noise scale have maximum likelihood, by L-BFGS. A bound that is not above it gains nothing from
    its code.

    Raises:
        TypeError: for a likelihood that is not a head. For sequences, train a model whose decoder ignores z.

    >>> from gae.likelihood import Gaussian
    >>> head = Gaussian(nn.Linear(2, 3), 2)
    >>> without_code(head, torch.zeros(4, 3), torch.zeros(1, 3))  # three standard normals at their mean
    tensor([-2.7568])
    """
    head, values = likelihood.in_standard_units(train)
    if head is not likelihood:
        return without_code(head, values, likelihood.in_standard_units(x)[1], batch_size) - likelihood.log_volume(x)
    if not isinstance(likelihood, Head):
        raise TypeError(
            f"A model without a code is known for heads only, and {type(likelihood).__name__} is none. Train a model "
            "of the same decoder without its latent as the baseline."
        )
    with door(likelihood, train):
        constant = _constant(likelihood, train, batch_size)
    with door(likelihood, x), torch.no_grad():
        return torch.cat([_scores(constant, batch) for batch in x.split(batch_size)])


class _ConstantOutput(nn.Module):
    """A decoder that ignores its code: start + unit · shift, with the shift as its parameter."""

    def __init__(self, start: Tensor, unit: Tensor):
        super().__init__()
        self.start, self.unit = start, unit
        self.shift = nn.Parameter(torch.zeros_like(start))

    def forward(self, z: Tensor) -> Tensor:
        return (self.start + self.unit * self.shift).expand(len(z), *self.start.shape)


def _constant(likelihood: Head, train: Tensor, batch_size: int) -> Head:
    head = deepcopy(likelihood)
    with torch.no_grad():
        start = likelihood.outputs(train.new_zeros(1, *head.latent_shape))[0]
    units = [part.scale for part in head.decoder.modules() if isinstance(part, Rescaled)]
    head.decoder = _ConstantOutput(start.clone(), units[-1] if units else torch.ones_like(start))
    parameters = [parameter for parameter in head.parameters(recurse=False) if parameter.requires_grad]
    optimizer = torch.optim.LBFGS(
        [*parameters, *head.decoder.parameters()],
        max_iter=ITERATIONS,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64, device=train.device)
        for batch in train.split(batch_size):
            loss = -_scores(head, batch).sum() / len(train)
            loss.backward()
            total += loss.detach()
        return total

    optimizer.step(closure)
    return head


def _scores(head: Head, x: Tensor) -> Float[Tensor, " B"]:
    z = x.new_zeros(1, 1, *head.latent_shape)
    return head.log_likelihood(x, head.outputs(z).expand(1, len(x), *head.output_shape))[0]


def kernel_density(
    likelihood: Likelihood, train: Num[Tensor, "M *X"], x: Num[Tensor, "N *X"]
) -> Float[Tensor, " N"] | None:
    """log p(x) of a kernel density estimate: a mixture with a component of equal weight at each training sample.

    The kernel is a normal, or for a Bernoulli head flips each element with one probability. Its width, or the
    probability, maximises the log density of training samples, each by all others. In high dimensions the sum is that
    of the nearest neighbours. A decoder that is not above it has learned no more than the training samples show.

    Returns:
        None for likelihoods of other data (counts, directions, sequences).

    >>> from gae.likelihood import Gaussian
    >>> from torch import nn
    >>> train = torch.randn(200, 1, dtype=torch.float64)
    >>> values = kernel_density(Gaussian(nn.Linear(2, 1), 2).double(), train, torch.zeros(1, 1, dtype=torch.float64))
    >>> -1.4 < values.item() < -0.6  # near -0.92, that of the standard normal at its mode
    True
    """
    head, values = likelihood.in_standard_units(train)
    if head is not likelihood:
        inner = kernel_density(head, values, likelihood.in_standard_units(x)[1])
        return None if inner is None else inner - likelihood.log_volume(x)
    binary = isinstance(head, Bernoulli)
    if not isinstance(head, Head) or isinstance(head, VonMisesFisher) or (head.support.is_discrete and not binary):
        return None
    rows, queries = (part.flatten(1).double() for part in (train, x))
    kernel = _flips(rows.shape[1]) if binary else _normals(rows.shape[1])
    width = _width(rows, kernel, binary)
    parts = [kernel(_squares(part, rows), width).logsumexp(1) for part in queries.split(AT_ONCE)]
    return (torch.cat(parts) - math.log(len(rows))).to(x)


Kernel = Callable[[Tensor, float], Tensor]  # squared distances and the logarithm of a width to log densities


def _normals(size: int) -> Kernel:
    return lambda square, width: -0.5 * square * math.exp(-2 * width) - size * (width + 0.5 * math.log(2 * math.pi))


def _flips(size: int) -> Kernel:
    return lambda square, width: square * width + (size - square) * math.log1p(-math.exp(width))


def _width(rows: Float[Tensor, "M D"], kernel: Kernel, binary: bool) -> float:
    """The logarithm of the width of a kernel, by the log density of training samples that are left out in turn."""
    from scipy.optimize import minimize_scalar

    left_out = torch.arange(0, len(rows), max(1, len(rows) // HELD_OUT), device=rows.device)
    square = torch.cat([_squares(rows[part], rows) for part in left_out.split(AT_ONCE)])
    itself = torch.zeros_like(square, dtype=torch.bool)
    itself[torch.arange(len(left_out)), left_out] = True

    def loss(width: float) -> float:
        return -float(kernel(square, width).masked_fill(itself, -torch.inf).logsumexp(1).mean())

    low, high = (-12.0, math.log(0.5)) if binary else _range(square.masked_fill(itself, torch.inf).amin(1), rows)
    step = (high - low) / WIDTHS
    best = min((low + step * i for i in range(WIDTHS + 1)), key=loss)
    bounds = max(low, best - step), min(high, best + step)
    return float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


def _range(nearest: Float[Tensor, " H"], rows: Float[Tensor, "M D"]) -> tuple[float, float]:
    """Logarithms of a width below that of the nearest neighbours, and of one above the spread of the data."""
    least = nearest[nearest > 0].median() if bool((nearest > 0).any()) else nearest.new_tensor(1e-6)
    spread = rows.var(0, correction=0).mean().clamp_min(1e-12)
    return 0.5 * math.log(float(least) / rows.shape[1]) - 3, 0.5 * math.log(float(spread)) + 1


def _squares(x: Float[Tensor, "N D"], rows: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    return torch.cdist(x, rows, compute_mode="use_mm_for_euclid_dist").square()
