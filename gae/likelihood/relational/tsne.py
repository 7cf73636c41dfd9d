"""One observation is a whole data set, and a code says where each of its points lies: t-SNE."""

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


class RelationalLaw(TorchDistribution):
    """What codes z (*L, N, E) say of a data set: ``log_prob`` of the relation among its points, and nothing else.

    A relation does not determine the data, so there is no mean, and nothing can be drawn.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own declaration)
    has_rsample = False

    def __init__(self, likelihood: "Relational", z: Float[Tensor, "*L N E"]):
        self.likelihood, self.z = likelihood, z
        super().__init__(z.shape[:-2], likelihood.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "RelationalLaw":
        return RelationalLaw(self.likelihood, self.z.expand(*batch_shape, *self.z.shape[-2:]))

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
    """A likelihood of a relation (B, N, N) among the points of data sets x (B, N, *F), given their codes (S, B, N, E).

    One data set is one observation, and B of them are B separate problems. Encoding held-out data means another data
    set of N points; a single new point has no code of its own. The prior is flat.

    Args:
        points: N.
        event_shape: F, the shape of one point's features.
        latent: E, the width of each point's code.
    """

    new_point: str  # what to do about a point that was not in the data set

    def __init__(self, points: int, event_shape: Size | tuple[int, ...], latent: int):
        if not event_shape or latent < 1 or points <= latent:
            raise ValueError(
                "Need features of at least one dimension and points > latent >= 1, got "
                f"event_shape={tuple(event_shape)}, points={points}, latent={latent}."
            )
        super().__init__((points, latent), (points, *event_shape), Flat(points, latent))

    @abstractmethod
    def relation(self, x: Num[Tensor, "B N *F"]) -> Float[Tensor, "B N N"]:
        """What is kept of the data: one number for each ordered pair of points."""

    @abstractmethod
    def score(self, relation: Float[Tensor, "... N N"], z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The log likelihood of relations (*L', N, N) at codes (*L, N, E), in nats; L' broadcasts to L."""

    def forward(self, z: Float[Tensor, "*L N E"], k: Int[Tensor, "..."] | None = None) -> RelationalLaw:
        need_no_component(self, k)
        return RelationalLaw(self, z)

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
        """Why there is neither a reconstruction nor a sample."""
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
    """t-SNE (van der Maaten & Hinton 2008): pairs of points are drawn by a Student-t law of their codes.

    The codes define a law over ordered pairs, q_ij ∝ (1 + ‖z_i - z_j‖² / ν)^(-(ν + 1) / 2), i ≠ j. The data are read
    as soft counts of pairs, p_ij (``affinities``), which add up to one pair. So ``log_joint`` = Σ_ij p_ij log q_ij is
    the log likelihood of a Categorical over the N (N - 1) pairs, in nats per pair, without the multinomial coefficient
    (free of z, and not defined for fractions of counts). It is a log density of no data set: x counts only through p.
    With M pairs it would be M times as large, with the same maximiser. ``divergence`` = KL(P ‖ Q) = -H(P) -
    ``log_joint`` is what the paper minimises.

    The affinities are computed once for each ``given(x)``. All N² pairs are evaluated, in chunks of rows. Codes that
    all coincide have gradient 0: start from ``PrincipalComponents()`` or ``DecoderInit()``, never from ``Zeros()``.

    Args:
        points: N.
        event_shape: F, the shape of one point's features.
        latent: E.
        perplexity: the effective number of neighbours, between 1 and N - 1.
        degrees: ν, 1 in the paper; E - 1 is another choice (van der Maaten 2009).
        learn_degrees: whether ν is learned (van der Maaten 2009), or fixed.

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
        """p_ij, which sum to 1 over ordered pairs."""
        return affinities(x.flatten(2), self.perplexity)

    def score(self, relation: Float[Tensor, "... N N"], z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        lead = torch.broadcast_shapes(relation.shape[:-2], z.shape[:-2])
        p, z = relation.expand(*lead, *relation.shape[-2:]), z.expand(*lead, *z.shape[-2:])
        return pair_log_likelihood(p, z, self.log_degrees.exp(), self.exaggeration)

    def divergence(self, x: Num[Tensor, "B N *F"], z: Float[Tensor, "S B N E"]) -> Float[Tensor, "S B"]:
        """KL(P ‖ Q) = Σ_ij p_ij log p_ij / q_ij, in nats: what t-SNE minimises."""
        p = self.relation(x)
        if self.exaggeration != 1:
            raise ValueError("Exaggerated pair counts are no distribution and have no divergence. Use the original.")
        return torch.special.xlogy(p, p).sum((-2, -1)) - self.score(p, z)

    def exaggerated(self, factor: float) -> "TSNE":
        """The same model with attractions Σ_ij p_ij log w_ij times a factor: early exaggeration. No log likelihood."""
        positive("factor", factor)
        other = copy.copy(self)
        other.exaggeration = self.exaggeration * float(factor)
        return other

    def initial(self, n: int) -> Float[Tensor, "n N E"]:
        """Draws from N(0, 10⁻⁸ I), all points close together, as in the paper."""
        return 1e-4 * torch.randn(n, *self.latent_shape, dtype=self.log_degrees.dtype, device=self.log_degrees.device)
