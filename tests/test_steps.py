"""Step rules, the wrappers around them, and projections, each against an independent answer."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from problems import Landscape, neural, posterior, ppca
from scipy.optimize import minimize
from torch import Tensor

from gae.inference import (
    LBFGS,
    Adam,
    Ascent,
    Box,
    Clipped,
    Detach,
    Fixed,
    GaussNewton,
    GradientAscent,
    Langevin,
    MeanField,
    Momentum,
    NonNegative,
    Prior,
    Projected,
    Scheduled,
    Simplex,
    Status,
    Step,
    UnitSphere,
    Whiten,
    Zeros,
)
from gae.likelihood import Flat, Gaussian, LinearMixture


def solve(step: Step, max_steps: int, **options: Any) -> Ascent:
    return Ascent(options.pop("init", Zeros()), step, max_steps, backprop=Detach(), **options).double()


def quadratic(curvature: Tensor) -> Landscape:
    """-½ Σ_i curvature_i (z_i - x_i)²."""
    return Landscape(lambda x, z: -0.5 * (curvature * (z - x).square()).sum(2), len(curvature), (len(curvature),))


# The first-order rules, against torch.optim on one sample at a time.


@pytest.mark.parametrize(
    "step, optimizer",
    [
        (GradientAscent(0.05), lambda p: torch.optim.SGD(p, 0.05)),
        (Momentum(0.02, 0.8), lambda p: torch.optim.SGD(p, 0.02, momentum=0.8)),
        (Adam(0.05, (0.8, 0.95)), lambda p: torch.optim.Adam(p, 0.05, (0.8, 0.95))),
    ],
    ids=["gradient", "momentum", "adam"],
)
def test_first_order_rules_are_those_of_torch(step: Step, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
    model, x = neural(), torch.randn(3, 5, dtype=torch.float64)
    found = solve(step, 15)(model, x).z[0]
    for code, sample in zip(found, x, strict=True):
        z = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
        rule = optimizer([z])
        for _ in range(15):
            (z.grad,) = torch.autograd.grad(-model.log_joint(sample.unsqueeze(0), z).sum(), z)
            rule.step()
        assert torch.allclose(code, z[0, 0], rtol=1e-6, atol=1e-7)


def test_rates_by_step_and_element() -> None:
    """On -½(z - x)² one step of rate r goes the fraction r of the way; the last rate holds from there on."""
    step = GradientAscent(0.5, steps=2, shape=(2,))
    rates = torch.tensor([[0.5, 0.1], [0.25, 0.2]])
    step.log_rate.copy_(rates.log())
    x = torch.tensor([[1.0, -2.0]])
    found = Ascent(Zeros(), step, 3, backprop=Detach())(quadratic(torch.ones(2)), x).z[0]
    left = (1 - rates[0]) * (1 - rates[1]) ** 2
    assert torch.allclose(found, x * (1 - left))


def test_adam_has_a_finite_derivative_at_zero_gradient() -> None:
    """√v at v = 0 has none: a code that starts at its optimum would make every parameter NaN."""
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    engine = Ascent(Zeros(), Adam(0.1), 3).double()
    code = engine(quadratic(torch.ones(2, dtype=torch.float64)), x)
    (gradient,) = torch.autograd.grad(code.z.sum() + code.log_joint.sum(), x)
    assert bool(torch.isfinite(gradient).all()) and bool((code.z == 0).all())


# The searching rules.


@pytest.mark.parametrize("flat_prior", [False, True])
@pytest.mark.parametrize("dense", [True, False])
def test_gauss_newton_solves_ppca_in_three_iterations(dense: bool, flat_prior: bool) -> None:
    latent = 6
    model = LinearMixture(1, latent, (9,), scale=0.3, flat_prior=flat_prior).double()
    x = torch.randn(20, 9, dtype=torch.float64)
    with torch.no_grad():
        model.means.normal_()
        model.loadings.normal_()
        exact = posterior(model, x)[0]
        if flat_prior:
            exact = torch.linalg.lstsq(model.loadings[0].mT, (x - model.means[0]).mT).solution.mT
    start = Fixed(10 * torch.randn(20, latent, dtype=torch.float64))
    found = solve(GaussNewton(dense=dense), 3, init=start)(model, x)
    assert float((found.z[0] - exact).abs().max()) < 1e-10


def test_matrix_free_and_dense_gauss_newton_agree_on_a_network() -> None:
    model, x = neural(), torch.randn(6, 5, dtype=torch.float64)
    dense, free = (solve(GaussNewton(dense=d), 6)(model, x) for d in (True, False))
    assert torch.allclose(dense.z, free.z, atol=1e-7)


def test_gauss_newton_damps_what_would_overshoot() -> None:
    """A decoder of vanishing slope far out: the undamped step from there leaves every finite range."""

    class Bend(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.atan(z)

    model, x = Gaussian(Bend(), 1, 0.1, prior=Flat(1)), torch.zeros(1, 1)
    found = Ascent(Fixed(torch.tensor([3.0])), GaussNewton(), 60, grad_tol=1e-4, backprop=Detach())(model, x)
    assert found.solve is not None and found.solve.summary() == "converged: 1"
    assert abs(found.z.item()) < 1e-5


def test_gauss_newton_needs_point_codes_and_a_decoder_output() -> None:
    x = torch.zeros(2, 5, dtype=torch.float64)
    with pytest.raises(TypeError, match="MeanField.*Use `LBFGS`"):
        solve(GaussNewton(), 2, family=MeanField())(neural(), x)
    with pytest.raises(TypeError, match="Landscape.*Use `LBFGS`"):
        solve(GaussNewton(), 2)(quadratic(torch.ones(5)), x)


@pytest.mark.parametrize("latent", [1, 2, 8, 20])
def test_lbfgs_solves_ppca_within_its_budget_of_evaluations(latent: int) -> None:
    model = ppca(latent, 2 * latent + 1, scale=0.5)
    x = torch.randn(10, 2 * latent + 1, dtype=torch.float64)
    found = solve(LBFGS(), 6 * latent + 20)(model, x)
    assert found.solve is not None and int(found.solve.evaluations.max()) <= 6 * latent + 20
    assert float((found.z[0] - posterior(model, x)[0]).norm(dim=1).max().detach()) < 1e-8


@pytest.mark.parametrize("latent", [2, 6])
def test_lbfgs_converges_on_quadratics_of_condition_number_a_million(latent: int) -> None:
    curvature = torch.logspace(0, 6, latent, dtype=torch.float64)
    x = torch.randn(8, latent, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(latent, latent, dtype=torch.float64))[0]
    model = Landscape(
        lambda x, z: -0.5 * (curvature * ((z - x) @ rotation).square()).sum(2), latent, (latent,)
    )
    found = solve(LBFGS(), 500, grad_tol=1e-5)(model, x)
    assert found.solve is not None and found.solve.summary() == "converged: 8"
    assert float((found.z[0] - x).abs().max()) < 1e-5


def test_lbfgs_climbs_out_of_rosenbrock_s_valley_as_scipy_does() -> None:
    def objective(x: Tensor, z: Tensor) -> Tensor:
        return -(100 * (z[..., 1] - z[..., 0] ** 2) ** 2 + (x[:, 0] - z[..., 0]) ** 2)

    x = torch.tensor([[1.0], [-0.5], [2.0]], dtype=torch.float64)
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found = solve(LBFGS(), 300, grad_tol=1e-7, init=Fixed(start))(Landscape(objective, 2), x)
    assert found.solve is not None and found.solve.summary() == "converged: 3"
    assert torch.allclose(found.z[0], torch.cat([x, x**2], 1), atol=1e-6)
    for sample, evaluations in zip(x, found.solve.evaluations[0].tolist(), strict=True):
        reference = minimize(
            lambda z, a=sample.item(): 100 * (z[1] - z[0] ** 2) ** 2 + (a - z[0]) ** 2,
            start.numpy(),
            jac=lambda z, a=sample.item(): np.array(
                [-400 * z[0] * (z[1] - z[0] ** 2) - 2 * (a - z[0]), 200 * (z[1] - z[0] ** 2)]
            ),
            method="L-BFGS-B",
            options={"gtol": 1e-7, "ftol": 0},
        )
        assert evaluations <= 2 * reference.nfev


def test_an_objective_that_vanishes_does_not_stop_a_search() -> None:
    """Rounding is relative to the terms of a sum, not to a sum that happens to be zero at its maximum."""
    model, x = neural(), torch.randn(30, 5, dtype=torch.float64)
    best = solve(LBFGS(), 300, grad_tol=1e-9)(model, x).log_joint[0].detach()
    less = Landscape(lambda x, z: model.log_joint(x[:, :5], z) - x[:, 5], 2, (6,))
    found = solve(LBFGS(), 300, grad_tol=1e-11)(less, torch.cat([x, best.unsqueeze(1)], 1))
    assert found.solve is not None and found.solve.summary() == "converged: 30"


@pytest.mark.parametrize("step", [LBFGS(), GaussNewton()], ids=["lbfgs", "gauss-newton"])
def test_a_trial_of_minus_infinity_is_taken_back(step: Step) -> None:
    """Single precision overflows to -inf with a finite slope; from there the way back is endless."""

    class Steep(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.sinh()

    model, x = Gaussian(Steep(), 1, prior=Flat(1)), torch.tensor([[2.0], [3e4]])
    start = Fixed(torch.tensor([[80.0], [0.0]]))
    found = Ascent(start, step, 200, grad_tol=1e-1, backprop=Detach())(model, x)
    assert found.solve is not None and found.solve.status[0, 1] == Status.converged
    assert torch.allclose(found.z[0, 1], x[1].asinh(), rtol=1e-4)
    assert bool(torch.isfinite(found.log_joint).all())


# Langevin dynamics: many independent chains as one batch.


@pytest.mark.parametrize("adjusted, rate, steps", [(False, 0.01, 500), (True, 0.12, 150)])
def test_langevin_samples_the_posterior_of_ppca(adjusted: bool, rate: float, steps: int) -> None:
    """Mean and covariance within 5 % of the posterior's scale; by the number of chains, five standard errors."""
    model = ppca(latent=2, dim=4, scale=1.0)
    x = torch.randn(1, 4, dtype=torch.float64)
    mean, covariance = (t.detach() for t in posterior(model, x))
    chains = 40_000
    rate = rate / float(torch.linalg.eigvalsh(torch.linalg.inv(covariance)).max())
    steps = math.ceil(steps * float(torch.linalg.cond(covariance)))
    start = Fixed(mean[0] + torch.linalg.cholesky(covariance).sum(1))
    z = solve(Langevin(rate, adjusted), steps, init=start)(model, x.expand(chains, 4)).z[0]
    scale = covariance.diagonal().sqrt()
    assert bool(((z.mean(0) - mean[0]).abs() < 0.05 * scale).all())
    assert bool(((z.mT.cov() - covariance).abs() < 0.05 * torch.outer(scale, scale)).all())
