"""Likelihoods of relations within a data set, with one code per point: t-SNE."""

import copy
import math
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

from gae.data.checks import positive
from gae.likelihood.base import Likelihood, LogJoint, parameter_or_buffer
from gae.likelihood.door import dims, need_no_component
from gae.likelihood.priors import Flat
from gae.likelihood.relational.neighbours import affinities
from gae.likelihood.relational.student_t import pair_log_likelihood


class RelationalDistribution(TorchDistribution):
    """Distribution of a data set given codes z (*L, N, E), with ``log_prob`` of the relation among its points only.

    A relation does not determine the data, so the distribution has no mean and cannot be sampled.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    has_rsample = False

    def __init__(self, likelihood: "Relational", z: Float[Tensor, "*L N E"]):
        self.likelihood, self.z = likelihood, z
        super().__init__(z.shape[:-2], likelihood.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "RelationalDistribution":
        return RelationalDistribution(self.likelihood, self.z.expand(*batch_shape, *self.z.shape[-2:]))

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        lead = value.shape[: value.dim() - len(self.event_shape)]
        relation = self.likelihood.relation(value.reshape(-1, *self.event_shape))
        return self.likelihood.score(relation.reshape(*lead, *relation.shape[1:]), self.z)

    @property
    def mean(self) -> Tensor:
        raise TypeError(self.likelihood.no_way_back)

    def rsample(self, *_: Any, **__: Any) -> Tensor:
        raise TypeError(self.likelihood.no_way_back)

    sample = rsample


class Relational(Likelihood):
    """Base class of likelihoods of a relation (B, N, N) among the points of data sets x (B, N, *F).

    One observation is an entire data set, with codes (S, B, N, E); B data sets are independent. Held-out data must be
    another data set of N points; a single new point cannot be encoded. The prior is flat.

    Args:
        points: N, the number of points of a data set.
        event_shape: F, the shape of one point's features.
        latent: E, the width of each point's code.
    """

    new_point: str  # advice on points that are not in the data set, for messages

    def __init__(self, points: int, event_shape: Size | tuple[int, ...], latent: int):
        if not event_shape or latent < 1 or points <= latent:
            raise ValueError(
                "Need features of at least one dimension and points > latent >= 1, got "
                f"event_shape={tuple(event_shape)}, points={points}, latent={latent}."
            )
        super().__init__((points, latent), (points, *event_shape), Flat(points, latent))

    @abstractmethod
    def relation(self, x: Num[Tensor, "B N *F"]) -> Float[Tensor, "B N N"]:
        """The relation among the points: one number for each ordered pair."""

    @abstractmethod
    def score(self, relation: Float[Tensor, "... N N"], z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The log likelihood of relations (*L', N, N) at codes (*L, N, E), in nats; L' broadcasts to L."""

    def forward(self, z: Float[Tensor, "*L N E"], k: Int[Tensor, "..."] | None = None) -> RelationalDistribution:
        need_no_component(self, k)
        return RelationalDistribution(self, z)

    def log_joint(
        self, x: Num[Tensor, "B N *F"], z: Float[Tensor, "S B N E"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self.bind(x)(z, k)

    def bind(self, x: Num[Tensor, "B N *F"]) -> LogJoint:
        relation = self.relation(x)

        def log_joint(z: Tensor, k: Tensor | None = None) -> Tensor:
            need_no_component(self, k)
            return self.score(relation, z)

        return log_joint

    @property
    def no_way_back(self) -> str:
        """The error message for reconstruction and sampling."""
        name = type(self).__name__
        return (
            f"{name} has no map from codes to data: it models a relation among points, which does not determine them. "
            "Look at the codes, `encode(x).point`; for reconstructions use a likelihood with a decoder, such as `pca`."
        )

    def check_shape(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.shape[1:] != self.event_shape:
            raise ValueError(
                f"One observation of {type(self).__name__} is a whole data set of N = {self.event_shape[0]} points: x "
                f"must have shape (B, {dims(self.event_shape)}), got {tuple(x.shape)}. One data set "
                f"becomes such a batch by `x.unsqueeze(0)`; for another N, build with points=N. {self.new_point}"
            )
        super().check_shape(x)


class TSNE(Relational):
    """t-SNE (van der Maaten & Hinton 2008): a Student-t likelihood of pairs of points given their codes.

    The codes define a distribution over ordered pairs, q_ij ∝ (1 + ‖z_i - z_j‖² / ν)^(-(ν + 1) / 2), i ≠ j. The data
    enter as soft counts of pairs, p_ij (``affinities``), which sum to one pair. So ``log_joint`` = Σ_ij p_ij log q_ij
    is the log likelihood of a Categorical over the N (N - 1) pairs, in nats per pair, without the multinomial
    coefficient (independent of z, and undefined for fractional counts). It is not a log density of the data: x enters
    only through p. With M pairs it would be M times as large, with the same maximiser. The paper minimises
    ``divergence`` = KL(P ‖ Q) = -H(P) - ``log_joint``.

    The affinities are computed once per ``bind(x)``. All N² pairs are evaluated, in chunks of rows. The gradient is 0
    if all codes coincide: start from ``PrincipalComponents()`` or ``DecoderInit()``, never from ``Zeros()``.

    Args:
        points: N, the number of points of a data set.
        event_shape: F, the shape of one point's features.
        latent: E, the width of each point's code.
        perplexity: the effective number of neighbours, between 1 and N - 1.
        degrees: ν, 1 in the paper; E - 1 is another choice (van der Maaten 2009).
        learn_degrees: whether ν is learned (van der Maaten 2009).

    >>> model = TSNE(points=5, event_shape=(3,), perplexity=2.0)
    >>> x = torch.randn(1, 5, 3)
    >>> z = torch.zeros(1, 1, 5, 2)  # all pairs equally likely: -log 20
    >>> model.log_joint(x, z).round(decimals=4)
    tensor([[-2.9957]])
    """

    new_point = (
        "t-SNE has no map for a new point: lay it out together with the others, train a network on (x, z) pairs, or "
        "use `LLE`, whose `transform` places new points."
    )
    log_degrees: Tensor

    def __init__(
        self,
        points: int,
        event_shape: Size | tuple[int, ...],
        latent: int = 2,
        perplexity: float = 30.0,
        degrees: float = 1.0,
        learn_degrees: bool = False,
    ):
        super().__init__(points, event_shape, latent)
        if not 1 < perplexity < points - 1:
            raise ValueError(
                f"perplexity must lie between 1 and N - 1 = {points - 1}, got {perplexity}. It is a number of "
                "neighbours: lower it, or give more points."
            )
        positive("degrees", degrees)
        self.perplexity, self.exaggeration = float(perplexity), 1.0
        parameter_or_buffer(self, "log_degrees", torch.tensor(math.log(degrees)), learn_degrees)

    def relation(self, x: Num[Tensor, "B N *F"]) -> Float[Tensor, "B N N"]:
        """The affinities p_ij, which sum to 1 over ordered pairs."""
        return affinities(x.flatten(2), self.perplexity)

    def score(self, relation: Float[Tensor, "... N N"], z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        lead = torch.broadcast_shapes(relation.shape[:-2], z.shape[:-2])
        p, z = relation.expand(*lead, *relation.shape[-2:]), z.expand(*lead, *z.shape[-2:])
        return pair_log_likelihood(p, z, self.log_degrees.exp(), self.exaggeration)

    def divergence(self, x: Num[Tensor, "B N *F"], z: Float[Tensor, "S B N E"]) -> Float[Tensor, "S B"]:
        """The t-SNE objective KL(P ‖ Q) = Σ_ij p_ij log p_ij / q_ij, in nats."""
        p = self.relation(x)
        if self.exaggeration != 1:
            raise ValueError("An exaggerated model has no divergence. Use the original model.")
        return torch.special.xlogy(p, p).sum((-2, -1)) - self.score(p, z)

    def exaggerated(self, factor: float) -> "TSNE":
        """Early exaggeration: a copy with attractions Σ_ij p_ij log w_ij times a factor. Not a log likelihood."""
        positive("factor", factor)
        other = copy.copy(self)
        other.exaggeration = self.exaggeration * float(factor)
        return other

    def initial(self, n: int) -> Float[Tensor, "n N E"]:
        """n initial codes from N(0, 10⁻⁸ I), as in the paper."""
        return 1e-4 * torch.randn(n, *self.latent_shape, dtype=self.log_degrees.dtype, device=self.log_degrees.device)
