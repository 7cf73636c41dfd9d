"""The multinomial distribution of frequencies, whose log mass is a cross-entropy up to a constant."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints

from gae.likelihood.base import LogJoint
from gae.likelihood.counts import Counts
from gae.likelihood.heads import Head

MOST = 65536  # draws whose fractions float32 can tell apart
SLACK = 0.01  # of a count, for the rounding of its fraction


class _Frequencies(constraints.Constraint):
    """Fractions, of a number of draws, of the classes in the last dimension."""

    is_discrete = True
    event_dim = 1

    def __init__(self, total_count: int):
        self.total_count = total_count
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        counts = self.total_count * value
        whole = ((counts - counts.round()).abs() <= SLACK) & (counts.round() >= 0)
        return whole.all(-1) & (counts.round().sum(-1) == self.total_count)


class MultinomialDistribution(TorchDistribution):
    """Multinomial distribution of the frequencies x = counts / n of C classes in n draws.

    log q(x) = log n! / Π (n x_c)! + n Σ x_c log p_c, computed from the divergence KL(x ‖ p), without the cancellation
    of factorials.

    Args:
        total_count: n.
        logits: (*L, C), not normalised.

    >>> q = MultinomialDistribution(3, torch.zeros(2))
    >>> q.log_prob(torch.tensor([1 / 3, 2 / 3])).exp(), q.mean
    (tensor(0.3750), tensor([0.5000, 0.5000]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, total_count: int, logits: Float[Tensor, "..."]):
        self.total_count, self.logits = total_count, logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MultinomialDistribution":
        return MultinomialDistribution(self.total_count, self.logits.expand(*batch_shape, *self.event_shape))

    @property
    def support(self) -> constraints.Constraint:
        return _Frequencies(self.total_count)

    @property
    def mean(self) -> Tensor:
        """The probabilities p of the classes."""
        return self.logits.softmax(-1)

    @property
    def variance(self) -> Tensor:
        """p (1 - p) / n."""
        return self.mean * (1 - self.mean) / self.total_count

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        return _Observed(self.total_count, value).log_prob(self.logits)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        draws = torch.distributions.Multinomial(self.total_count, logits=self.logits, validate_args=False)
        return draws.sample(Size(sample_shape)) / self.total_count


class _Observed:
    """Frequencies x with the part of their log mass that depends only on x, in float64."""

    def __init__(self, total_count: int, x: Num[Tensor, "..."]):
        self.counts = (total_count * x.double()).round()
        each, all_ = Counts(self.counts), Counts(self.counts.new_tensor(float(total_count)))
        self.log = each.log - all_.log  # log x; anything where x is 0
        self.log_mode = each.log_mode.masked_fill(self.counts == 0, 0).sum(-1) - all_.log_mode

    def log_prob(self, logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        excess = self.log - logits.double().log_softmax(-1)
        return (self.log_mode - (self.counts * excess).sum(-1)).to(logits.dtype)


class Multinomial(Head):
    """Multinomial likelihood of frequencies x = counts / n of C classes: cross-entropy as a log mass (ledger D21).

    The last dimension of the decoder's output (*E, C) holds the logits of p, and that of x the fractions of n draws.
    log q(x|z) = -n CE(x, p) + log n! / Π (n x_c)!, and -n KL(x ‖ p) plus another constant in z. The cross-entropy
    itself is no log density of a probability vector x. ``point`` is p, a probability vector.

    Args:
        decoder: see ``Head``.
        latent_shape: see ``Head``.
        total_count: n, at most 65536.
        prior: see ``Head``.

    Raises:
        ValueError: for n out of range, or a decoder with fewer than two classes.

    >>> model = Multinomial(nn.Linear(2, 3), 2, total_count=4)
    >>> model.log_joint(torch.tensor([[0.25, 0.75, 0.0]]), torch.zeros(1, 1, 2)).shape
    torch.Size([1, 1])
    >>> model.check(torch.tensor([[0.3, 0.3, 0.4]]))
    Traceback (most recent call last):
        ...
    ValueError: Multinomial needs x in counts / 4 with sum 1 over the last dimension, got (0.3, 0.3, 0.4) at index \
(0,) (1 such vectors). Set total_count to the number of draws, or draw classes from x and use Categorical.
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent_shape: int | tuple[int, ...] | Size,
        total_count: int,
        prior: nn.Module | None = None,
    ):
        super().__init__(decoder, latent_shape, prior)
        if not 1 <= total_count <= MOST:
            raise ValueError(f"total_count must lie in 1 ... {MOST}, got {total_count}.")
        if not self.event_shape or self.event_shape[-1] < 2:
            raise ValueError(f"The decoder needs logits (..., C) of C ≥ 2 classes, got {tuple(self.event_shape)}.")
        self.total_count = total_count

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return _Frequencies(self.total_count)

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return MultinomialDistribution(self.total_count, output)

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "S B"]:
        return self._over_vectors(_Observed(self.total_count, x).log_prob(output))

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        prior, observed = self.prior, _Observed(self.total_count, x)  # the factorials, once for an inner loop
        return lambda z, k=None: prior.log_prob(z) + self._over_vectors(observed.log_prob(self.sample_outputs(z, k)))

    def _over_vectors(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        vectors = len(self.event_shape) - 1
        return value.sum(tuple(range(-vectors, 0))) if vectors else value

    def check_support(self, x: Num[Tensor, "B *X"]) -> None:
        outside = ~_Frequencies(self.total_count).check(x.detach())
        if outside.any():
            index = tuple(int(i) for i in outside.nonzero()[0])
            shown = ", ".join(f"{value:g}" for value in x[index][:5].tolist()) + ", …" * (x.shape[-1] > 5)
            raise ValueError(
                f"Multinomial needs x in counts / {self.total_count} with sum 1 over the last dimension, got ({shown}) "
                f"at index {index} ({int(outside.sum())} such vectors). Set total_count to the number of draws, or "
                "draw classes from x and use Categorical."
            )
