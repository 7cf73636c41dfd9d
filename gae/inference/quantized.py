"""Inference of codes whose positions hold vectors of a codebook: an encoder, and a search without one."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from gae.data.checks import at_least_one
from gae.inference.base import Code, Inference, LearnsData, Solve, Status, need_mask
from gae.likelihood import Codebook, CodebookDistribution, Likelihood

STARTING = 2000  # observations whose encoder outputs initialise the codebook
ENTRIES = 2**22  # elements of x decoded at once by a search


class VectorQuantizer(Inference):
    """The codebook vector nearest to an encoder's output at each position (van den Oord et al. 2017).

    A point estimate, which need not have the highest ``log_joint``: ``IteratedConditionalModes`` searches for that.
    The gradient of the codes is passed to the encoder's output (straight through). ``fit`` initialises the codebook by
    k-means++ on the outputs for the training data. ``Encoding.encoded`` holds the outputs.

    Args:
        encoder: maps x (B, *X) to outputs (B, P, E).

    Raises:
        TypeError: for a likelihood whose prior is not a ``Codebook``.
        ValueError: for outputs of another shape; for a given k.

    >>> from gae import nets
    >>> from gae.likelihood import Gaussian
    >>> model = Gaussian(nets.mlp((3, 2), (), 5), (3, 2), prior=Codebook(16, positions=3, width=2))
    >>> code = VectorQuantizer(nets.mlp(5, (), (3, 2)))(model, torch.randn(4, 5))
    >>> code.z.shape, bool(code.log_prior.isfinite().all())
    (torch.Size([1, 4, 3, 2]), True)
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    @torch.no_grad()
    def initialize(self, likelihood: Likelihood, x: Num[Tensor, "N *X"], seed: int) -> None:
        """Initialises the codebook from the outputs for observations spread over x, unless it is initialised."""
        _codebook(self, likelihood, None)
        for part in self.encoder.modules():  # the outputs depend on them
            if isinstance(part, LearnsData):
                part.initialize(likelihood, x, seed)
        if isinstance(likelihood.latent_prior, Codebook):
            likelihood.latent_prior.start(self._outputs(likelihood, x[:: -(-len(x) // STARTING)]), seed)

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        prior = _codebook(self, likelihood, k)
        encoded = self._outputs(likelihood, x)
        z = prior.vectors[prior.nearest(encoded)] + (encoded - encoded.detach())
        return Code(z.unsqueeze(0), encoded=encoded.unsqueeze(0))

    def _outputs(self, likelihood: Likelihood, x: Tensor) -> Float[Tensor, "B P E"]:
        encoded, expected = self.encoder(x), (len(x), *likelihood.latent_shape)
        if encoded.shape != expected:
            raise ValueError(f"The encoder's outputs have shape {tuple(encoded.shape)}, but codes have {expected}.")
        need_mask(likelihood, x, encoded)
        return encoded


class IteratedConditionalModes(Inference):
    """Coordinate ascent over the positions of a code: at each, the vector of highest ``log_joint`` (Besag 1986).

    It needs no encoder, and never ends below its start. A sweep over P positions costs P · K decoder evaluations for
    each code; a code has converged when a sweep changes none of its positions, and is then the best of all codes that
    differ from it in one position. The gradient reaches a codebook that is trained by gradients, but not ``init``.

    Args:
        init: the engine for the first code: ``VectorQuantizer(encoder)``, ``Prior()``, or any whose codes are rounded
            to the nearest vectors.
        sweeps: the most sweeps.

    Raises:
        TypeError: for a likelihood whose prior is not a ``Codebook``.

    >>> from gae import nets
    >>> from gae.inference import Argmax, Zeros
    >>> from gae.likelihood import Gaussian
    >>> model = Gaussian(nets.mlp((1, 2), (), 5), (1, 2), prior=Codebook(16, positions=1, width=2))
    >>> x = torch.randn(4, 5)
    >>> torch.equal(IteratedConditionalModes(Zeros())(model, x).z, Argmax()(model, x).z)  # the best of one position
    True
    """

    def __init__(self, init: Inference, sweeps: int = 10):
        super().__init__()
        self.init, self.sweeps = init, at_least_one("sweeps", sweeps)

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        prior = _codebook(self, likelihood, k)
        with torch.no_grad():
            start = self.init.infer(likelihood, x)
            search = _Search(likelihood, prior, x, prior.nearest(start.z))
            used = torch.zeros(start.z.shape[:2], dtype=torch.long, device=x.device)
            live = torch.ones(len(x), dtype=torch.bool, device=x.device)
            moved = torch.ones_like(used, dtype=torch.bool)
            for _ in range(self.sweeps):
                used += moved
                moved = search.sweep(live) & moved
                live = moved.any(0)
                if not bool(live.any()):
                    break
        evaluations = 1 + used * prior.vectors.shape[0] * prior.event_shape[0]
        if start.solve is not None:
            evaluations = evaluations + start.solve.evaluations
        status = torch.where(moved, Status.max_steps, Status.converged)
        solve = Solve(status, used, evaluations, search.value.new_full(status.shape, torch.nan))
        return Code(prior.vectors[search.index], solve=solve)


@dataclass
class _Search:
    """Codes (S, B, P) as indices of vectors, and their log joint densities."""

    likelihood: Likelihood
    prior: CodebookDistribution
    x: Num[Tensor, "B *X"]
    index: Int[Tensor, "S B P"]

    def __post_init__(self) -> None:
        self.value: Tensor = self.likelihood.bind(self.x)(self.prior.vectors[self.index])

    def sweep(self, live: Bool[Tensor, " B"]) -> Bool[Tensor, "S B"]:
        """Improves each position of the live observations in turn; returns which codes have changed."""
        rows = live.nonzero().squeeze(1)
        index, value = self.index[:, rows], self.value[:, rows]
        log_joint = self.likelihood.bind(self.x[rows])
        before = index.clone()
        every = torch.arange(len(self.prior.vectors), device=index.device)
        step = max(1, ENTRIES // (value.numel() * max(1, self.x[0].numel())))
        for position in range(index.shape[2]):
            scores = []
            for some in every.split(step):
                tried = index.repeat(len(some), 1, 1, 1)
                tried[..., position] = some.view(-1, 1, 1)
                scores.append(log_joint(self.prior.vectors[tried].flatten(0, 1)).unflatten(0, tried.shape[:2]))
            best, choice = torch.cat(scores).max(0)
            better = best > value
            index[..., position] = torch.where(better, choice, index[..., position])
            value = torch.where(better, best, value)
        self.index[:, rows], self.value[:, rows] = index, value
        moved = torch.zeros_like(self.value, dtype=torch.bool)
        moved[:, rows] = (index != before).any(2)
        return moved


def _codebook(engine: Inference, likelihood: Likelihood, k: Tensor | None) -> CodebookDistribution:
    name, prior = type(engine).__name__, likelihood.prior
    if not isinstance(prior, CodebookDistribution):
        raise TypeError(
            f"`{name}` infers codes of codebook vectors, but the prior of this {type(likelihood).__name__} is not a "
            "`Codebook`. Use `Amortized` or `Ascent`, or give the likelihood such a prior."
        )
    if k is not None:
        raise ValueError(f"`{name}` takes no component, got a given k. Use `ClosedForm` or `Ascent` for mixtures.")
    return prior
