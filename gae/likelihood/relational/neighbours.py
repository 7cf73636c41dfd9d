"""Relations among the points of a data set: perplexity affinities, nearest neighbours, barycentric weights."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gae.likelihood.geometry import squared_distances

TOLERANCE = 1e-10  # of the entropy, in nats
LARGEST = 200.0  # of |log precision|, for squared distances of mean 1
DIGITS = 1e-9  # relative rounding error above which a squared distance is recomputed from differences
BLOCK = 2**18  # elements per chunk of rows, sized for a processor's cache


def chunks(rows: int, others: int, block: int = BLOCK) -> list[slice]:
    """Chunks of at most ``block`` elements of the rows of a matrix with ``others`` elements per row, as slices."""
    size = max(1, block // max(others, 1))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def affinities(x: Float[Tensor, "B N D"], perplexity: float) -> Float[Tensor, "B N N"]:
    """Joint probabilities of t-SNE, p_ij = (p_j|i + p_i|j) / 2N (van der Maaten & Hinton 2008, eqs. 1 and 3.1).

    p_j|i ∝ exp(-β_i ‖x_i - x_j‖²), with β_i such that the entropy of p_.|i is log perplexity. They sum to 1 over all
    ordered pairs. A point with more exact copies than the perplexity has no such β_i: its p_.|i is uniform over them.
    Computed in float64, in chunks of rows; returned in the dtype of x, and differentiable in x.

    >>> affinities(torch.eye(4).unsqueeze(0), 2.0)[0, 0]  # four points at equal distances: 1 / 12 for each pair
    tensor([0.0000, 0.0833, 0.0833, 0.0833])
    """
    batch, points = x.shape[:2]
    wide = x.double()
    rows = [_conditional(wide, part, math.log(perplexity)).to(x.dtype) for part in chunks(points, batch * points)]
    conditional = torch.cat(rows, 1)
    return (conditional + conditional.mT) / (2 * points)


def _conditional(x: Tensor, part: slice, entropy: float) -> Tensor:
    """Conditional probabilities p_j|i (B, n, N) for the rows i in a slice."""
    index = torch.arange(part.start, part.stop, device=x.device)
    own = index[:, None] == torch.arange(x.shape[1], device=x.device)
    square = _without_cancellation(squared_distances(x[:, part], x), x, part, own)
    unit = square.detach().mean(-1, keepdim=True)
    shortest = square.detach().masked_fill(own, torch.inf).amin(-1, keepdim=True)
    square = (square - shortest) / torch.where(unit > 0, unit, 1.0)  # the shift cancels, and keeps entropies exact
    log_precision = _search(square.detach(), own, entropy)
    if square.requires_grad:  # one Newton step at the solution has the derivative of the solution
        _, value, slope = _entropy(square, own, log_precision)
        steep = slope.detach() > TOLERANCE
        gap = torch.where(steep, value - entropy, 0.0)
        log_precision = log_precision + gap / torch.where(steep, slope.detach(), 1.0)
    return _entropy(square, own, log_precision)[0]


def _without_cancellation(square: Tensor, x: Tensor, part: slice, own: Tensor) -> Tensor:
    """Recomputes rows of a slice from differences if points are close relative to the extent of the data set."""
    size = (x.detach() - x.detach().mean(1, keepdim=True)).square().sum(-1)
    reach = size[:, part].unsqueeze(-1) + size.unsqueeze(1)
    close = ((square.detach() * DIGITS <= torch.finfo(x.dtype).eps * reach) & ~own).any(-1)
    correction = torch.zeros_like(square)
    for batch, rows in enumerate(close):
        if bool(rows.any()):
            points = x[batch].detach()
            exact = torch.cdist(points[part][rows], points, compute_mode="donot_use_mm_for_euclid_dist").square()
            correction[batch, rows] = exact - square[batch, rows].detach()
    return square + correction


def _search(square: Tensor, own: Tensor, entropy: float) -> Tensor:
    """log β (B, n, 1) by Newton's method, with bisection if a step leaves the bracket."""
    log_precision = torch.zeros_like(square[..., :1])
    low, high = log_precision - LARGEST, log_precision + LARGEST
    for _ in range(100):
        _, value, slope = _entropy(square, own, log_precision)
        gap = value - entropy
        done = gap.abs() < TOLERANCE
        if bool(done.all()):
            break
        low, high = torch.where(gap > 0, log_precision, low), torch.where(gap < 0, log_precision, high)
        newton = log_precision + gap / slope
        inside = (newton > low) & (newton < high)
        log_precision = torch.where(done, log_precision, torch.where(inside, newton, (low + high) / 2))
    return log_precision


def _entropy(square: Tensor, own: Tensor, log_precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights ∝ exp(-β d) over other points, their entropy (nats), and minus its derivative in log β."""
    precision = log_precision.exp()
    energy = (-precision * square).masked_fill(own, -torch.inf)
    log_mass = energy.logsumexp(-1, keepdim=True)
    weights = (energy - log_mass).exp()
    mean = (weights * square).sum(-1, keepdim=True)
    variance = (weights * (square - mean).square()).sum(-1, keepdim=True)
    return weights, log_mass + precision * mean, precision.square() * variance


def nearest(
    x: Float[Tensor, "B N D"], count: int, new: Float[Tensor, "B M D"] | None = None
) -> Int[Tensor, "B M count"]:
    """Indices of the ``count`` nearest points of x to each new point, or to each other point of x.

    Near ties are resolved by differences, exact ties by order.
    """
    points = x if new is None else new
    square = squared_distances(points, x).detach()
    if new is None:
        square.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    closest = square.topk(count, largest=False)
    centre = x.mean(-2, keepdim=True)
    size = (points - centre).square().sum(-1).detach() + (x - centre).square().sum(-1).amax(-1, keepdim=True).detach()
    limit = closest.values[..., -1] + 64 * torch.finfo(x.dtype).eps * size
    index = closest.indices.clone()
    for batch, row in ((square <= limit.unsqueeze(-1)).sum(-1) > count).nonzero().tolist():  # near ties: differences
        rivals = (square[batch, row] <= limit[batch, row]).nonzero().squeeze(1)
        exact = (x[batch, rivals] - points[batch, row]).square().sum(-1)
        index[batch, row] = rivals[exact.argsort(stable=True)[:count]]
    return index


def barycentric_weights(
    x: Float[Tensor, "B N D"], new: Float[Tensor, "B M D"], index: Int[Tensor, "B M count"], reg: float
) -> Float[Tensor, "B M count"]:
    """Weights that sum to 1 and minimise ‖new_i - Σ_j w_ij x_j‖² over the given neighbours j (Roweis & Saul 2000).

    The Gram matrix is regularised by reg · trace on its diagonal (or reg if the trace is 0), since the minimum is not
    unique with more neighbours than dimensions.

    >>> line = torch.tensor([[[0.0], [1.0], [3.0]]])
    >>> barycentric_weights(line, torch.tensor([[[2.0]]]), torch.tensor([[[1, 2]]]), 1e-3)
    tensor([[[0.5000, 0.5000]]])
    """
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    edges = x[rows, index] - new.unsqueeze(2)
    gram = edges @ edges.mT
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    ridge = reg * torch.where(trace > 0, trace, 1.0)
    gram = gram + torch.diag_embed(ridge.unsqueeze(-1).expand(index.shape))
    weights = torch.linalg.solve(gram, torch.ones_like(gram[..., 0]))
    return weights / weights.sum(-1, keepdim=True)
