"""Closed-form learning of a single linear-Gaussian component: PCA and probabilistic PCA."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gae.autoencoder import Autoencoder
from gae.inference import ClosedForm
from gae.likelihood import AcceptsMissing, Likelihood, LinearMixture
from gae.likelihood.linear.moments import Moments
from gae.likelihood.linear.single import MeanScores
from gae.nets import first_tensor
from gae.objective import elbo, joint
from gae.training.learners import Batch, ClosedFormLearner, summed

PRECISE = 1e-5  # least ratio of float32's rounding to the unexplained variance at which its products are too coarse
OBJECTIVES: dict[Any, str] = {joint: "joint", elbo: "elbo"}


class OneStepLearner(ClosedFormLearner):
    """Closed-form learning by one pass over the data, since the first M-step is the optimum.

    The moments of the data give the losses before and after the step too. The second epoch only reports the latter and
    that learning has converged. Products are computed in the dtype of the data if its rounding is small relative to the
    variance that the component leaves unexplained, else once more in float64.
    """

    chunk_bytes = 48 * 2**20  # adding a scatter matrix costs as much as the products of some thousand rows

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.solved: float | None = None  # the loss after the step
        self.x: Tensor | None = None

    def step(self, x: Tensor, batch: Batch, reseed: Callable[[], None], where: str) -> float:
        if self.solved is not None:
            return self.solved
        self.x = x
        return super().step(x, batch, reseed, where)

    def batches(self, n: int, order: torch.Generator) -> Sequence[Batch]:
        return [slice(0, n)]

    def _chunk_loss(self, x: Tensor, batch: Batch, learn: bool) -> float:
        if not learn:
            return super()._chunk_loss(x, batch, learn)
        self.moments = summed(self._moments(x, wide=False), self.fabric)
        return self._loss(self._model.mean_scores(self.moments, self._model.means))

    def finish(self) -> bool:
        if self.solved is not None:
            return True
        model, moments, self.moments = self._model, self.moments, None
        about = model.means.detach().clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scales that rounding may hide, until they are precise
            change = model.maximize(moments)
        scores = model.mean_scores(moments, about)
        if torch.finfo(model.means.dtype).eps > PRECISE * scores.unexplained:
            change = max(change, self._maximize_precisely(model))
        else:
            self.solved = self._loss(scores)
        return change <= self.tol

    def _maximize_precisely(self, model: LinearMixture) -> float:
        """Takes the step again with products in float64; returns the largest change."""
        assert self.x is not None
        about = model.means.detach().clone()
        moments = summed(self._moments(self.x, wide=True), self.fabric)
        change = model.maximize(moments)
        self.solved = self._loss(model.mean_scores(moments, about))
        return change

    @property
    def _model(self) -> LinearMixture:
        model = _in_standard_units(self.autoencoder.likelihood)
        assert isinstance(model, LinearMixture)
        return model

    @torch.no_grad()
    def _moments(self, x: Tensor, wide: bool) -> Moments:
        """The moments of this process's rows about the current mean, chunk by chunk."""
        total = None
        for chunk in x.split(self.batch_size):
            rows = chunk[self.fabric.global_rank :: self.fabric.world_size].to(self.fabric.device)
            model, values = self.autoencoder.likelihood.in_standard_units(rows)
            assert isinstance(model, LinearMixture)
            moments = model.moments_of_one(values, wide)
            if total is None:
                total = moments
            else:
                total += moments
        assert total is not None
        return total

    def _loss(self, scores: MeanScores) -> float:
        assert self.x is not None
        score: float = getattr(scores, OBJECTIVES[self.autoencoder.objective])
        return float(self.autoencoder.likelihood.log_volume(self.x)) - score

    def state(self) -> dict[str, Any]:
        return {"solved": self.solved}

    def load(self, state: dict[str, Any]) -> None:
        self.solved = state.get("solved")


def is_solved_in_one_step(autoencoder: Autoencoder) -> bool:
    """Whether the model is a single linear-Gaussian component whose loss is a mean of quadratic functions of x."""
    model, engine = _in_standard_units(autoencoder.likelihood), autoencoder.inference
    is_single = isinstance(model, LinearMixture) and not isinstance(model, AcceptsMissing) and model.components == 1
    is_exact = isinstance(engine, ClosedForm) and engine.samples is None
    is_quadratic = any(autoencoder.objective is each for each in OBJECTIVES)
    return is_single and is_exact and is_quadratic and bool(model.latent_shape[0])


def _in_standard_units(likelihood: Likelihood) -> Likelihood:
    return likelihood.in_standard_units(torch.zeros(1, *likelihood.event_shape).to(first_tensor(likelihood)))[0]
