"""The prior of discrete codes: each position of a code is one of the vectors of a codebook."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints

from gae.data.checks import at_least_one, fraction
from gae.likelihood.base import parameter_or_buffer
from gae.likelihood.linear.moments import starting_means
from gae.storage import Part

ENUMERABLE = 4096  # most codes K^P that are enumerated


class _Member(constraints.Constraint):
    """Codes whose positions all hold vectors of a codebook."""

    is_discrete = True
    event_dim = 2

    def __init__(self, distribution: "CodebookDistribution"):
        self.distribution = distribution
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.distribution.log_prob(value).isfinite()


class CodebookDistribution(TorchDistribution):
    """Uniform distribution of codes (P, E) whose P positions each hold one of the K vectors (K, E) of a codebook.

    ``log_prob`` is a log mass: -P log K at a code of codebook vectors (more if vectors coincide), else -inf.

    >>> CodebookDistribution(torch.tensor([[0.0], [1.0]]), positions=3).log_prob(torch.tensor([[1.0], [0.0], [0.0]]))
    tensor(-2.0794)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (of torch's base class)
    has_enumerate_support = True

    def __init__(self, vectors: Float[Tensor, "K E"], positions: int, batch_shape: Sequence[int] = ()):
        self.vectors = vectors
        super().__init__(Size(batch_shape), Size((positions, vectors.shape[1])), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return _Member(self)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "CodebookDistribution":
        return CodebookDistribution(self.vectors, self.event_shape[0], batch_shape)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        shape = (*sample_shape, *self.batch_shape, self.event_shape[0])
        return self.vectors.detach()[torch.randint(len(self.vectors), shape, device=self.vectors.device)]

    def log_prob(self, value: Float[Tensor, "*L P E"]) -> Float[Tensor, "*L"]:
        with torch.no_grad():
            rows = value.detach().flatten(0, -2)
            equal = torch.cdist(rows, self.vectors.detach(), p=torch.inf) == 0
            mass = equal.sum(1).to(value.dtype).log().unflatten(0, value.shape[:-1]).sum(-1)
        density = mass - self.event_shape[0] * math.log(len(self.vectors))
        return density.expand(torch.broadcast_shapes(density.shape, self.batch_shape))

    @torch.no_grad()
    def nearest(self, z: Float[Tensor, "*L P E"]) -> Int[Tensor, "*L P"]:
        """Index of the vector nearest to each position of z (Euclidean); of ties, the first."""
        rows = z.detach().flatten(0, -2)
        distance = torch.cdist(rows, self.vectors.detach(), compute_mode="donot_use_mm_for_euclid_dist")
        return distance.argmin(1).unflatten(0, z.shape[:-1])

    @property
    def is_enumerable(self) -> bool:
        """Whether there are at most 4096 codes."""
        return len(self.vectors) ** self.event_shape[0] <= ENUMERABLE

    def enumerate_support(self, expand: bool = True) -> Float[Tensor, "N ..."]:
        """All N = K^P codes, (N, *batch, P, E), or (N, 1, ..., P, E) unless expanded.

        Raises:
            ValueError: for more than 4096 codes.
        """
        size, positions = len(self.vectors), self.event_shape[0]
        number = size**positions
        if not self.is_enumerable:
            raise ValueError(
                f"A code of {positions} positions with {size} vectors each has {number:.3g} values, more than the "
                f"{ENUMERABLE} that can be enumerated. Use `IteratedConditionalModes`, or fewer positions or vectors."
            )
        every = torch.arange(number, device=self.vectors.device)
        places = size ** torch.arange(positions - 1, -1, -1, device=self.vectors.device)
        codes = self.vectors[every.unsqueeze(1) // places % size]
        codes = codes.view(number, *[1] * len(self.batch_shape), *self.event_shape)
        return codes.expand(number, *self.batch_shape, *self.event_shape) if expand else codes


@dataclass(frozen=True)
class CodebookMoments:
    """Sums over the encoder's outputs assigned to each of K vectors; they add over batches.

    ``far`` holds the distinct outputs furthest from their vectors, furthest first: the squared distance and the output
    in each row, padded with rows of distance 0.
    """

    count: Float[Tensor, " K"]
    total: Float[Tensor, "K E"]
    far: Float[Tensor, "K E1"]

    def __add__(self, other: "CodebookMoments") -> "CodebookMoments":
        far = _furthest(torch.cat([self.far, other.far]), len(self.count))
        return CodebookMoments(self.count + other.count, self.total + other.total, far)


class Codebook(Part, nn.Module):
    """The prior of vector-quantised codes (P, E): uniform over the K vectors of one codebook at each of P positions.

    Under this prior ``log_joint`` of a code is the log mass -P log K + log q_r(x|z), so ``joint`` bounds log p(x) from
    below. Infer codes by ``VectorQuantizer``, ``IteratedConditionalModes``, or ``Argmax()`` if K^P is small.

    Args:
        vectors: K, number of vectors.
        positions: P, number of positions of a code.
        width: E, dimension of a vector.
        decay: in training by ``fit``, each vector is the moving average, with this decay for each optimiser step, of
            the encoder's outputs assigned to it (van den Oord et al. 2017, appendix A.1). 0 with one batch for all data
            is the M-step of k-means. None: vectors are parameters, trained by gradients of the decoder.
        dead: with a moving average, a vector whose count is at most this fraction of the mean count moves to the
            encoder's output furthest from its vector.

    >>> Codebook(16, positions=3, width=2)().event_shape
    torch.Size([3, 2])
    """

    vectors: Tensor
    count: Tensor
    total: Tensor
    initialized: Tensor

    def __init__(self, vectors: int, positions: int, width: int, decay: float | None = 0.99, dead: float = 0.03):
        super().__init__()
        for name, value in (("vectors", vectors), ("positions", positions), ("width", width)):
            at_least_one(name, value)
        self.positions = positions
        self.decay = None if decay is None else fraction("decay", decay)
        self.dead = fraction("dead", dead)
        parameter_or_buffer(self, "vectors", torch.randn(vectors, width), learn=decay is None)
        self.register_buffer("count", torch.zeros(vectors))
        self.register_buffer("total", torch.zeros(vectors, width))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self) -> CodebookDistribution:
        return CodebookDistribution(self.vectors, self.positions)

    @torch.no_grad()
    def start(self, outputs: Float[Tensor, "N P E"], seed: int) -> None:
        """Initialises the vectors by k-means++ from an encoder's outputs; does nothing once initialised.

        Raises:
            ValueError: for fewer outputs than vectors.
        """
        if self.initialized:
            return
        points = outputs.flatten(0, 1)
        if len(points) < len(self.vectors):
            raise ValueError(
                f"K={len(self.vectors)} vectors need at least as many encoder outputs to start from, got {len(points)}."
            )
        self.vectors.copy_(starting_means(points, len(self.vectors), seed))
        self.initialized.fill_(True)

    @torch.no_grad()
    def statistics(self, code: Any) -> CodebookMoments | None:
        """Moments of the outputs ``code.encoded`` of an encoder; None for vectors trained by gradients.

        Raises:
            ValueError: for codes of an engine without an encoder.
        """
        if self.decay is None:
            return None
        if code.encoded is None:
            raise ValueError(
                "A codebook of moving averages needs the outputs of an encoder. Train it with `VectorQuantizer`, or "
                "use `Codebook(..., decay=None)`, whose vectors are trained by gradients."
            )
        outputs, index = code.encoded.flatten(0, -2), self().nearest(code.encoded).flatten()
        count = index.bincount(minlength=len(self.vectors)).to(outputs)
        total = torch.zeros_like(self.vectors).index_add_(0, index, outputs)
        square = (outputs - self.vectors[index]).square().sum(1, keepdim=True)
        return CodebookMoments(count, total, _furthest(torch.cat([square, outputs], 1), len(self.vectors)))

    @torch.no_grad()
    def update(self, moments: CodebookMoments) -> None:
        """Moves the vectors to the moving averages of their outputs, and dead ones to the furthest outputs."""
        assert self.decay is not None
        self.count.mul_(self.decay).add_(moments.count, alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(moments.total, alpha=1 - self.decay)
        live = self.count > 0
        self.vectors[live] = self.total[live] / self.count[live].unsqueeze(1)
        mean = self.count.mean()
        dead = (self.count <= self.dead * mean).nonzero().squeeze(1)
        far = moments.far[moments.far[:, 0] > 0, 1:][: len(dead)]
        dead = dead[: len(far)]
        self.vectors[dead], self.count[dead], self.total[dead] = far, mean, mean * far


def _furthest(rows: Float[Tensor, "n E1"], number: int) -> Float[Tensor, "m E1"]:
    """The distinct rows of the largest first element, in order, padded with rows of 0."""
    top = rows[rows[:, 0].topk(min(number, len(rows))).indices].unique(dim=0).flip(0)
    return torch.cat([top, top.new_zeros(number - len(top), top.shape[1])])
