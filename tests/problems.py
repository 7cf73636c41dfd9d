"""Models whose answers are known, for the tests of solvers and of the gradients through them, and small data."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gae import nets
from gae.analysis.matrix import MatrixBudget
from gae.data import Dataset
from gae.likelihood import Flat, Gaussian, Likelihood, LinearMixture
from gae.storage.packing import dump, verified

FIRST = 3 + 2 + 1 + 1  # codes that the first ascent on a likelihood decodes to check its decoder and its gradient


def ppca(latent: int = 3, dim: int = 6, scale: float = 0.7) -> LinearMixture:
    """Probabilistic PCA in float64, all of whose parameters are learned and generic."""
    model = LinearMixture(1, latent, (dim,), scale=scale, learn_scale=True).double()
    with torch.no_grad():
        model.means.normal_()
        model.loadings.normal_(std=0.5)
    return model


def posterior(model: LinearMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, Z) and covariance (Z, Z) of q(z|x) under PPCA, written out (Bishop, PRML, eq. 12.42); differentiable."""
    loadings, variance = model.loadings[0], (2 * model.log_scale[0]).exp()
    precision = torch.eye(len(loadings), dtype=x.dtype) + loadings @ loadings.mT / variance
    pulled = (x - model.means[0]) @ loadings.mT / variance
    return torch.linalg.solve(precision, pulled.mT).mT, torch.linalg.inv(precision)


def neural(latent: int = 2, dim: int = 5, scale: float = 0.5, activation: type[nn.Module] = nn.Tanh) -> Gaussian:
    """A small decoder network in float64 with a learned scale."""
    return Gaussian(nets.mlp(latent, [6], dim, activation), latent, scale, learn="scalar").double()


class Landscape(Likelihood):
    """Any objective (x (B, *X), z (S, B, Z)) -> (S, B) in place of a log joint density."""

    def __init__(
        self, objective: Callable[[Tensor, Tensor], Tensor], latent: int = 1, event_shape: Sequence[int] = (1,)
    ):
        super().__init__((latent,), tuple(event_shape), Flat(latent))
        self.objective = objective

    def forward(self, z: Tensor, k: Tensor | None = None) -> torch.distributions.Distribution:
        raise NotImplementedError

    def log_joint(self, x: Tensor, z: Tensor, k: Tensor | None = None) -> Tensor:
        return self.objective(x, z)


class Rows(nn.Module):
    """A decoder that counts the codes it is given."""

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder, self.rows = decoder, 0

    def forward(self, z: Tensor) -> Tensor:
        self.rows += len(z)
        return self.decoder(z)


def difference(loss: Callable[[], Tensor], values: Sequence[Tensor], moves: Sequence[Tensor], step: float) -> float:
    """The central finite difference of a loss along one direction in the given tensors, which it restores."""
    found = []
    with torch.no_grad():
        kept = [value.clone() for value in values]
        for sign in (step, -step):
            for value, start, move in zip(values, kept, moves, strict=True):
                value.copy_(start + sign * move)
            found.append(loss().item())
        for value, start in zip(values, kept, strict=True):
            value.copy_(start)
    return (found[0] - found[1]) / (2 * step)


def part_of(data: Dataset, train: int, test: int) -> Dataset:
    """The first observations of both splits, with their labels."""
    assert data.train_labels is not None and data.test_labels is not None
    return replace(
        data,
        train=data.train[:train],
        test=data.test[:test],
        train_labels=data.train_labels[:train],
        test_labels=data.test_labels[:test],
    )


def tiny_matrix() -> MatrixBudget:
    """Budget of the bounds of a comparison in tests."""
    return MatrixBudget(
        8, importance_samples=200, draws=20, optimum_steps=100, steps=(4,), rates=(0.03,), tuning_samples=4
    )


def written_without(configuration: Path, *names: str) -> None:
    """Takes fields out of the configuration of a job, as of one by a version before these fields."""
    fields = json.loads(configuration.read_text(encoding="utf-8"))
    kept = {name: value for name, value in verified(fields).items() if name not in names}
    assert len(kept) + len(names) == len(fields) - 1, "a name is unknown"
    configuration.write_text(dump(kept), encoding="utf-8")


class Plateau(nn.Module):
    """A decoder that is flat about zero."""

    def forward(self, z: Tensor) -> Tensor:
        return (z.abs() - 0.05).relu().square()


def plateau() -> tuple[Gaussian, Tensor, float]:
    """A posterior with two equal modes, rows of one x, and log p(x) by quadrature; an ascent from zero stays there."""
    model, x = Gaussian(Plateau(), 1, scale=0.1).double(), torch.full((3, 1), 4.0, dtype=torch.float64)
    grid = torch.linspace(-8, 8, 16001, dtype=torch.float64)
    joint = model.log_joint(x[:1], grid.view(-1, 1, 1)).squeeze(1).detach() + math.log(0.001)
    assert float(joint.max() - joint[len(grid) // 2]) > 500
    return model, x, float(joint.logsumexp(0))
