"""Score matching: learning a density by its score ∇ log p(x), without its normaliser (Hyvärinen 2005; Vincent 2011).

The losses are functions (score, x) -> (B,), to be minimised. In expectation over data from p, the explicit loss
½‖s(x) - ∇ log p(x)‖² is the implicit one up to a constant in s; and that of the noisy data p_σ is the denoising loss up
to another (ledger D45).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Num
from torch import Tensor

from gae.autoencoder import Autoencoder
from gae.data.checks import positive
from gae.inference import Inference
from gae.likelihood import ExactPosterior, Likelihood
from gae.objective import Aggregate, Objective, joint, mean

__all__ = ["ScoreMatching", "denoiser_score", "denoising_loss", "evidence_score", "explicit_loss", "implicit_loss"]

Score = Callable[[Tensor], Tensor]


def evidence_score(likelihood: Likelihood) -> Score:
    """The score x -> ∇ log p(x) of a model with a closed-form evidence, differentiable in x and the parameters.

    Raises:
        TypeError: for a likelihood without a closed-form evidence.
        ValueError: when called, under a flat prior, or for discrete x.

    >>> from gae.likelihood import LinearMixture
    >>> normal = LinearMixture(1, 0, (2,), means=torch.zeros(1, 2))
    >>> evidence_score(normal)(torch.ones(3, 2))[0]
    tensor([-1., -1.], grad_fn=<SelectBackward0>)
    """
    if not isinstance(likelihood, ExactPosterior):
        raise TypeError(
            f"log p(x) of {type(likelihood).__name__} has no closed form, so that its score is not known. Use a "
            "`LinearMixture`, or a denoising autoencoder, whose score is `denoiser_score`."
        )

    def score(x: Num[Tensor, "B *X"]) -> Float[Tensor, "B *X"]:
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(likelihood.log_evidence(leaf).log_p.sum(), leaf, create_graph=True)[0]

    return score


def denoiser_score(autoencoder: Autoencoder, scale: float) -> Score:
    """The score x̃ -> (r(x̃) - x̃) / σ² of a denoising autoencoder r trained with Gaussian noise of the given scale σ.

    For the best r it is the score of the noisy data, p(x) convolved with N(0, σ² I), at every σ (ledger D28). Training
    ``dae`` with a Gaussian head is then denoising score matching.

    >>> from gae.systems import dae
    >>> denoiser_score(dae((6,), latent=3, amount=0.5), 0.5)(torch.zeros(2, 6)).shape
    torch.Size([2, 6])
    """
    variance = positive("scale", scale) ** 2
    return lambda noisy: (autoencoder.reconstruct(noisy) - noisy) / variance


def explicit_loss(score: Score, x: Num[Tensor, "B *X"], target: Num[Tensor, "B *X"]) -> Float[Tensor, " B"]:
    """Explicit score matching ½‖s(x) - target‖², for a known score of the data at x (Vincent 2011, eq. 5)."""
    return 0.5 * (score(x) - target).flatten(1).square().sum(1)


def implicit_loss(score: Score, x: Num[Tensor, "B *X"]) -> Float[Tensor, " B"]:
    """Implicit score matching ½‖s(x)‖² + tr ∂s/∂x, which needs no score of the data (Hyvärinen 2005, eq. 4).

    Costs one backward pass per element of x. The expectations differ by a constant from those of ``explicit_loss`` if
    p(x) s(x) vanishes at infinity; densities on a bounded set are no such p.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = score(leaf)
        columns = value.flatten(1).unbind(1)
        rows = [torch.autograd.grad(column.sum(), leaf, create_graph=True)[0].flatten(1) for column in columns]
    trace = sum((row[:, i] for i, row in enumerate(rows)), torch.zeros_like(columns[0]))
    return 0.5 * value.flatten(1).square().sum(1) + trace


def denoising_loss(
    score: Score, x: Num[Tensor, "B *X"], noisy: Num[Tensor, "B *X"], scale: float
) -> Float[Tensor, " B"]:
    """Denoising score matching ½‖s(x̃) - (x - x̃) / σ²‖² at x̃ ~ N(x, σ² I) (Vincent 2011, eq. 9)."""
    return explicit_loss(score, noisy, (x - noisy) / positive("scale", scale) ** 2)


class ScoreMatching(Autoencoder):
    """A model with a closed-form evidence that is trained by score matching instead of maximum likelihood.

    In evaluation mode ``forward(x)`` is minus the objective of the inferred codes, as for every ``Autoencoder``. The
    training loss is no log density: it has the unit 1 / x², and compares models of the same data only.

    Args:
        likelihood: a model with a closed-form evidence and a proper prior, such as ``LinearMixture``.
        inference: the engine that encodes observations.
        noise: the standard deviation σ of the noise of ``denoising_loss``, by which the model learns the density of the
            noisy data; None for ``implicit_loss``.
        objective: the objective of a sample's codes in evaluation mode.
        aggregate: reduces the samples' values to one number.

    Raises:
        TypeError: in training, for a likelihood without a closed-form evidence.
        ValueError: for noise that is not positive; in training, under a flat prior.

    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model = ScoreMatching(LinearMixture(1, 2, (5,), learn_scale=True), ClosedForm())
    >>> model(torch.randn(7, 5)).shape
    torch.Size([])
    """

    def __init__(
        self,
        likelihood: Likelihood,
        inference: Inference,
        noise: float | None = None,
        objective: Objective = joint,
        aggregate: Aggregate = mean,
    ):
        super().__init__(likelihood, inference, objective, aggregate)
        self.noise = None if noise is None else positive("noise", noise)

    @property
    def regularised(self) -> bool:
        """Always True: the training loss differs from the objective of the codes."""
        return True

    def _regularised(self, x: Tensor) -> Tensor:
        score = evidence_score(self.likelihood)
        if self.noise is None:
            return -self.aggregate(-implicit_loss(score, x))
        return -self.aggregate(-denoising_loss(score, x, x + self.noise * torch.randn_like(x), self.noise))
