"""Step rules, the wrappers around them, and projections, each against an independent answer."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from problems import Landscape, neural, posterior, ppca
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from gae.inference import (
    LBFGS,
    Adam,
    Ascent,
    Box,
    Clipped,
    Code,
    Constant,
    Delta,
    Detach,
    Family,
    FullCovariance,
    GaussNewton,
    GradientAscent,
    Langevin,
    MeanField,
    Momentum,
    MonotoneAscent,
    NonNegative,
    Projected,
    ProximalAscent,
    Scheduled,
    Simplex,
    Step,
    UnitSphere,
    Whiten,
    Zeros,
)
from gae.inference.ascent.problem import Problem
from gae.inference.ascent.steps.gauss_newton import mean_curvature
from gae.inference.starts import Given
from gae.likelihood import Flat, Gaussian, LinearMixture


def solve(step: Step, max_steps: int, **options: Any) -> Ascent:
    return Ascent(options.pop("init", Zeros()), step, max_steps, adjoint=Detach(), **options).double()


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
    """On -½(z - x)² one step of rate r goes the fraction r of the way; the last rate is used from there on."""
    step = GradientAscent(0.5, learn=True, steps=2, shape=(2,))
    rates = torch.tensor([[0.5, 0.1], [0.25, 0.2]])
    assert step.log_rate is not None
    step.log_rate.data.copy_(rates.log())
    x = torch.tensor([[1.0, -2.0]])
    found = Ascent(Zeros(), step, 3, adjoint=Detach())(quadratic(torch.ones(2)), x).z[0]
    left = (1 - rates[0]) * (1 - rates[1]) ** 2
    assert torch.allclose(found, x * (1 - left))


def test_adam_has_a_finite_derivative_at_zero_gradient() -> None:
    """√v has none at v = 0: a code that starts at its optimum would make every parameter NaN."""
    x = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    engine = Ascent(Zeros(), Adam(0.1), 3).double()
    code = engine(quadratic(torch.ones(2, dtype=torch.float64)), x)
    (gradient,) = torch.autograd.grad(code.z.sum() + code.log_joint.sum(), x)
    assert bool(torch.isfinite(gradient).all()) and bool((code.z == 0).all())


# The searching rules.


@pytest.mark.parametrize("flat_prior", [False, True])
@pytest.mark.parametrize("dense", [True, False])
def test_gauss_newton_solves_ppca_in_three_iterations(dense: bool, flat_prior: bool) -> None:
    """No code loses more than rounding of its log joint, which decides between the points that a search has seen."""
    latent = 6
    model = LinearMixture(1, latent, (9,), scale=0.3, flat_prior=flat_prior).double()
    x = torch.randn(20, 9, dtype=torch.float64)
    with torch.no_grad():
        model.means.normal_()
        model.loadings.normal_()
        exact, covariance = posterior(model, x)
        precision = torch.linalg.inv(covariance)
        if flat_prior:
            exact = torch.linalg.lstsq(model.loadings[0].mT, (x - model.means[0]).mT, driver="gelsd").solution.mT
            precision -= torch.eye(latent)
    start = Constant(10 * torch.randn(20, latent, dtype=torch.float64))
    found = solve(GaussNewton(dense=dense), 3, init=start)(model, x)
    error = found.z[0] - exact
    loss = 0.5 * (error @ precision * error).sum(1)
    assert bool((loss < 1e-13 * (1 + found.log_joint[0].abs())).all())


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_gauss_newton_steps_by_its_formula(damping: float) -> None:
    """(G + shift I)⁻¹ ∇ at random codes, with G = JᵀJ / σ² + I from each code's own Jacobian, dense and matrix-free.

    The shift is relative to the mean of G's diagonal, or to its curvature along the gradient.
    """
    model, x, z = neural(), torch.randn(6, 5, dtype=torch.float64), torch.randn(1, 6, 2, dtype=torch.float64)
    problem = Problem(model, Delta(), x, None, None)
    value, grad = problem.evaluate(z, create_graph=False)[:2]
    jacobian = torch.stack([torch.func.jacrev(model.decoder)(code) for code in z[0]]).detach()
    identity = torch.eye(2, dtype=torch.float64)
    matrix = jacobian.mT @ jacobian * (-2 * model.log_scale).exp().detach() + identity
    along = torch.einsum("bi,bij,bj->b", grad[0], matrix, grad[0]) / grad[0].square().sum(1)
    for dense, level in ((True, matrix.diagonal(dim1=1, dim2=2).mean(1)), (False, along)):
        step = GaussNewton(dense=dense)
        state = step.start(problem, z) | {"damping": torch.full_like(value, 10 * damping)}  # a tenth after success
        moved, after = step(problem, z, value, grad, state, 0)
        assert torch.allclose(after["damping"], torch.full_like(value, damping))
        wanted = torch.linalg.solve(matrix + damping * level.view(-1, 1, 1) * identity, grad[0].unsqueeze(2))
        assert torch.allclose((moved - z)[0], wanted.squeeze(2), rtol=1e-6)


def test_matrix_free_and_dense_gauss_newton_agree_on_a_network() -> None:
    """Where no trial fails, as their damping differs: under wide noise, which leaves the prior's curvature."""
    model, x = neural(scale=3.0), torch.randn(6, 5, dtype=torch.float64)
    dense, free = (solve(GaussNewton(dense=d), 6)(model, x) for d in (True, False))
    assert torch.allclose(dense.z, free.z, atol=1e-7)
    assert dense.solve is not None and bool((dense.solve.grad_norm < 1e-6).all())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dense", [True, False])
def test_gauss_newton_damps_what_would_overshoot(dense: bool, scale: float) -> None:
    """A decoder of vanishing slope far out: the undamped step from there leaves every finite range.

    Damping is relative to the curvature, so that the data's unit makes no difference.
    """

    class Bend(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.atan(z)

    model, x = Gaussian(Bend(), 1, scale, prior=Flat(1)).double(), torch.zeros(1, 1, dtype=torch.float64)
    start = Constant(torch.tensor([3.0]))
    found = solve(GaussNewton(dense), 30, init=start, grad_tol=1e-6 / scale**2)(model, x)
    assert found.solve is not None and found.solve.summary() == "converged: 1"
    assert abs(found.z.item()) < 1e-5


def test_gauss_newton_needs_point_codes_and_a_decoder_output() -> None:
    x = torch.zeros(2, 5, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"MeanField.*Use `LBFGS`"):
        solve(GaussNewton(), 2, family=MeanField())(neural(), x)
    with pytest.raises(TypeError, match=r"Landscape.*Use `LBFGS`"):
        solve(GaussNewton(), 2)(quadratic(torch.ones(5)), x)


@pytest.mark.parametrize("latent", [1, 2, 8, 20])
def test_lbfgs_solves_ppca_within_its_budget_of_evaluations(latent: int) -> None:
    model = ppca(latent, 2 * latent + 1, scale=0.5)
    x = torch.randn(10, 2 * latent + 1, dtype=torch.float64)
    found = solve(LBFGS(), 6 * latent + 20)(model, x)
    assert found.solve is not None and int(found.solve.evaluations.max()) <= 6 * latent + 20
    assert float((found.z[0] - posterior(model, x)[0]).norm(dim=1).max().detach()) < 1e-8


def test_lbfgs_first_tries_a_step_of_length_one_or_the_gradient_if_that_is_shorter() -> None:
    """By the objective before its second step, of -½ ‖z - x‖² from 0: the gradient there is x."""
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [1e6, 0.0]], dtype=torch.float64)
    solve_ = solve(LBFGS(), 2, trace=True)(quadratic(torch.ones(2)), x).solve
    assert solve_ is not None and solve_.trace is not None
    left = torch.tensor([4.0, 0.0, 0.0, 1e6 - 1], dtype=torch.float64)
    assert torch.allclose(solve_.trace[1, 0], -0.5 * left.square(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("latent", [2, 6])
def test_lbfgs_converges_on_quadratics_of_condition_number_a_million(latent: int) -> None:
    curvature = torch.logspace(0, 6, latent, dtype=torch.float64)
    x = torch.randn(8, latent, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(latent, latent, dtype=torch.float64))[0]
    model = Landscape(lambda x, z: -0.5 * (curvature * ((z - x) @ rotation).square()).sum(2), latent, (latent,))
    found = solve(LBFGS(), 500, grad_tol=1e-5)(model, x)
    assert found.solve is not None and found.solve.summary() == "converged: 8"
    assert float((found.z[0] - x).abs().max()) < 1e-5


def test_lbfgs_under_a_known_curvature_takes_newton_s_step() -> None:
    """On PPCA the mean curvature is the posterior precision, and its first step ends at the posterior mean."""
    model, x = ppca(), torch.randn(7, 6, dtype=torch.float64)
    mean, covariance = (t.detach() for t in posterior(model, x))
    metric = mean_curvature(model, x, torch.randn(7, 3, dtype=torch.float64))
    assert torch.allclose(metric, torch.linalg.inv(covariance))
    found = solve(LBFGS(curvature=metric), 3, grad_tol=1e-8)(model, x)
    assert found.solve is not None and found.solve.summary() == "converged: 7"
    assert bool((found.solve.evaluations == 2).all()) and torch.allclose(found.z[0], mean, atol=1e-10)
    with pytest.raises(ValueError, match="The curvature must be positive definite"):
        LBFGS(curvature=-metric)


NORMALS = {"mean-field": MeanField, "full covariance": FullCovariance}


@pytest.mark.parametrize("name", NORMALS)
def test_the_curvature_of_a_density_s_objective_is_known_where_log_joint_is_quadratic(name: str) -> None:
    """At the optimum, ``rescaled`` inverts the Hessian of -objective by automatic differentiation."""
    model, x = ppca(), torch.randn(1, 6, dtype=torch.float64)
    mean, covariance = (t.detach() for t in posterior(model, x))
    family = NORMALS[name](8, matched=True)
    best = MultivariateNormal(mean, covariance)
    if name == "mean-field":
        best = Independent(Normal(mean, torch.linalg.inv(covariance).diagonal().rsqrt()), 1)
    u = family.start(Given.density(best).code)
    noise, log_joint = family.noise(u), model.bind(x)
    flat = u.flatten().detach()
    hessian = -torch.func.hessian(lambda v: family.objective(v.view_as(u), noise, log_joint).sum())(flat).detach()
    metric = family.metric(u, torch.linalg.cholesky(covariance).expand(1, 1, -1, -1))
    free = hessian.abs().sum(0) > 1e-12  # the factor has no entries above its diagonal
    assert int(free.sum()) == (6 if name == "mean-field" else 3 + 6)
    for row in torch.eye(len(flat), dtype=flat.dtype)[free]:
        back = family.rescaled((hessian @ row).view(1, 1, -1), metric)
        assert torch.allclose(back.flatten(), row, atol=1e-8)


@pytest.mark.parametrize("family", [Delta, *(partial(normal, 8, matched=True) for normal in NORMALS.values())])
def test_lbfgs_under_the_curvature_of_each_row_finds_the_best_density_of_a_linear_decoder_sooner(
    family: Callable[[], Family],
) -> None:
    """A code takes Newton's step; a density, whose scale starts far from its optimum, takes fewer than without.

    There are more rows than one block of curvatures has.
    """
    model, x = ppca(), torch.randn(90, 6, dtype=torch.float64)
    mean, covariance = (t.detach() for t in posterior(model, x))
    member = family()
    found, plain = (
        solve(step, 60, grad_tol=1e-6, family=member)(model, x) for step in (LBFGS(curvature="gauss-newton"), LBFGS())
    )
    assert found.solve is not None and found.solve.summary() == "converged: 90"
    assert plain.solve is not None
    assert found.solve.evaluations.double().mean() < plain.solve.evaluations.double().mean()
    if isinstance(member, Delta):
        assert bool((found.solve.evaluations == 3 + 2).all())  # the curvature, and both ends of the step
    assert torch.allclose(found.point, mean, atol=1e-6)
    if isinstance(member, FullCovariance):
        assert isinstance(found.q, MultivariateNormal)
        assert torch.allclose(found.q.covariance_matrix[0], covariance.expand(90, -1, -1), atol=1e-6)
    elif isinstance(member, MeanField):
        assert found.q is not None
        assert torch.allclose(
            found.q.stddev[0], torch.linalg.inv(covariance).diagonal().rsqrt().expand(90, -1), atol=1e-6
        )


class First(nn.Module):
    """A decoder of the first element of a code; its slope is infinite where the second is 1."""

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :1] * torch.where(z[:, 1:] == 1, torch.inf, 1.0)


def test_rows_without_a_positive_or_finite_curvature_still_ascend() -> None:
    """A flat code with an element that the decoder ignores; one row starts where nothing is finite."""
    model = Gaussian(First(), 2, 0.5, prior=Flat(2)).double()
    start = torch.tensor([[0.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    x = torch.ones(2, 1, dtype=torch.float64)
    step = LBFGS(curvature="gauss-newton")
    found = solve(step, 20, grad_tol=1e-8, init=Given(Code(start.unsqueeze(0))))(model, x)
    assert found.solve is not None and found.solve.summary() == "converged: 1, nonfinite: 1"
    assert torch.allclose(found.z[0, 0], torch.tensor([1.0, 0.0]).double())


@pytest.mark.parametrize("components", [2, 3])
def test_the_curvature_of_a_row_needs_one_decoder_output(components: int) -> None:
    model = LinearMixture(components, 2, (4,)).double()
    with pytest.raises(TypeError, match=r"needs a decoder output, and no component.*Use `LBFGS\(\)`"):
        solve(LBFGS(curvature="gauss-newton"), 2)(model, torch.randn(3, 4).double())
    with pytest.raises(ValueError, match="curvature must be a matrix, 'gauss-newton' or None, got 'hessian'"):
        LBFGS(curvature="hessian")  # type: ignore[arg-type]


def test_lbfgs_climbs_out_of_rosenbrock_s_valley_as_scipy_does() -> None:
    def objective(x: Tensor, z: Tensor) -> Tensor:
        return -(100 * (z[..., 1] - z[..., 0] ** 2) ** 2 + (x[:, 0] - z[..., 0]) ** 2)

    x = torch.tensor([[1.0], [-0.5], [2.0]], dtype=torch.float64)
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found = solve(LBFGS(), 300, grad_tol=1e-7, init=Constant(start))(Landscape(objective, 2), x)
    assert found.solve is not None and found.solve.summary() == "converged: 3"
    assert torch.allclose(found.z[0], torch.cat([x, x**2], 1), atol=1e-6)
    for target, evaluations in zip(x.flatten().tolist(), found.solve.evaluations[0].tolist(), strict=True):
        reference = minimize(
            lambda z, a=target: 100 * (z[1] - z[0] ** 2) ** 2 + (a - z[0]) ** 2,
            start.numpy(),
            jac=lambda z, a=target: np.array(
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
    """Its gradient may be finite; the search continues from the last point before the wall."""

    class Wall(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z + 1e20 * (z > 5)

    model, x = Gaussian(Wall(), 1, prior=Flat(1)), torch.tensor([[10.0], [3.0]])
    found = Ascent(step=step, max_steps=100, adjoint=Detach())(model, x)
    assert 4.9 < found.z[0, 0].item() <= 5 and abs(found.z[0, 1].item() - 3) < 1e-5
    assert found.solve is not None and found.solve.summary() == "max_steps: 2"


# Langevin dynamics: many independent chains as one batch.


@pytest.mark.parametrize("adjusted, rate, steps", [(False, 0.02, 225), (True, 0.15, 90)])
def test_langevin_samples_the_posterior_of_ppca(adjusted: bool, rate: float, steps: int) -> None:
    """Mean and covariance within 5 % of the posterior's scale; by the number of chains, four standard errors."""
    model = ppca(latent=2, dim=4, scale=1.0)
    x = torch.randn(1, 4, dtype=torch.float64)
    mean, covariance = (t.detach() for t in posterior(model, x))
    chains = 24_000
    rate = rate / float(torch.linalg.eigvalsh(torch.linalg.inv(covariance)).max())
    steps = math.ceil(steps * float(torch.linalg.cond(covariance)))
    start = Constant(mean[0] + torch.linalg.cholesky(covariance).sum(1))
    z = solve(Langevin(rate, adjusted), steps, init=start)(model, x.expand(chains, 4)).z[0]
    scale = covariance.diagonal().sqrt()
    assert bool(((z.mean(0) - mean[0]).abs() < 0.05 * scale).all())
    assert bool(((z.mT.cov() - covariance).abs() < 0.05 * torch.outer(scale, scale)).all())


# Wrappers.


def test_clipped_bounds_each_row_s_gradient() -> None:
    """A step of rate 1 under a gradient of norm 5 clipped at 2 moves 2 towards x; one within is left alone.

    Of norm 1.75 as well, whose square is more than 2.
    """
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [1.05, 1.4]]).double()
    wanted = torch.tensor([[1.2, 1.6], [0.3, 0.4], [1.05, 1.4]]).double()
    step = Clipped(GradientAscent(1.0), norm=2.0)
    assert torch.allclose(solve(step, 1)(quadratic(torch.ones(2)), x).z[0], wanted, atol=1e-6)


def test_scheduled_scales_the_moves() -> None:
    """On -½(z - x)² with rate 1 the fraction factor(t) of the rest is left behind at step t."""
    x = torch.tensor([[1.0], [-4.0]], dtype=torch.float64)
    step = Scheduled(GradientAscent(1.0), lambda t: (0.5, 0.25, 0.0)[t])
    found = solve(step, 3)(quadratic(torch.ones(1)), x).z[0]
    assert torch.allclose(found, x * (1 - 0.5 * 0.75), atol=1e-6)


@pytest.mark.parametrize("around", [lambda s: Clipped(s, 1.0), lambda s: Scheduled(s, lambda t: 1.0), None])
@pytest.mark.parametrize("step", [LBFGS(), GaussNewton(), Langevin(0.1, adjusted=True)])
def test_wrappers_refuse_rules_that_test_their_own_points(around: Callable[[Step], Step] | None, step: Step) -> None:
    with pytest.raises(TypeError, match=f"the points that `{type(step).__name__}` tests.*Use it with `GradientAscent`"):
        (around or (lambda s: Projected(s, NonNegative())))(step)


def test_wrappers_nest_and_keep_the_state_of_the_rule_inside() -> None:
    """Without clipping, with a constant schedule and a box that is never reached: plain Adam."""
    model, x = neural(), torch.randn(3, 5, dtype=torch.float64)
    nested = Projected(Scheduled(Clipped(Adam(0.05), 1e9), lambda t: 1.0), Box(-1e9, 1e9))
    assert torch.allclose(solve(nested, 6)(model, x).z, solve(Adam(0.05), 6)(model, x).z)


def constrained(step: Step, onto: torch.nn.Module, start: Tensor, model: LinearMixture, x: Tensor) -> Tensor:
    return solve(Projected(step, onto), 400, init=Constant(start))(model, x).z[0]


ON_THE_SIMPLEX = {"type": "eq", "fun": lambda z: z.sum() - 1}


@pytest.mark.parametrize(
    "step, onto, bounds, constraints",
    [
        (GradientAscent(0.05), NonNegative(), [(0, None)] * 3, ()),
        (Momentum(0.02, 0.5), Box(-0.3, 0.2), [(-0.3, 0.2)] * 3, ()),
        (GradientAscent(0.05), Simplex(), [(0, None)] * 3, (ON_THE_SIMPLEX,)),
    ],
    ids=["nonnegative", "box by momentum", "simplex"],
)
def test_projected_ascent_reaches_the_constrained_optimum(
    step: Step, onto: torch.nn.Module, bounds: Any, constraints: Any
) -> None:
    """Against SciPy's sequential quadratic programming on the exact quadratic of PPCA."""
    model, x = ppca(), 2 * torch.randn(5, 6, dtype=torch.float64)
    found = constrained(step, onto, torch.full((3,), 0.1, dtype=torch.float64), model, x)
    mean, covariance = (t.detach().numpy() for t in posterior(model, x))
    precision = np.linalg.inv(covariance)
    bound = 0
    for code, centre in zip(found.numpy(), mean, strict=True):
        reference = minimize(
            lambda z, c=centre: 0.5 * (z - c) @ precision @ (z - c),
            np.full(3, 1 / 3),
            jac=lambda z, c=centre: precision @ (z - c),
            bounds=bounds,
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert np.abs(code - reference.x).max() < 1e-5
        bound += int(np.abs(code - centre).max() > 1e-2)
    assert bound > 0, "no constraint is active: nothing is tested"


def test_projected_ascent_on_the_sphere_is_stationary_along_it() -> None:
    model, x = ppca(), 2 * torch.randn(5, 6, dtype=torch.float64)
    z = constrained(GradientAscent(0.05), UnitSphere(), torch.tensor([1.0, 0.0, 0.0]).double(), model, x)
    mean, covariance = (t.detach() for t in posterior(model, x))
    gradient = (mean - z) @ torch.linalg.inv(covariance)
    radial = (gradient * z).sum(1, keepdim=True)
    assert torch.allclose(z.norm(dim=1), torch.ones(5).double())
    assert float((gradient - radial * z).norm(dim=1).max()) < 1e-6
    assert float(gradient.norm(dim=1).min()) > 1e-2  # the free maximum is elsewhere


# Projections alone: z is the nearest point of the set.


@pytest.mark.parametrize("width", [1, 2, 7])
def test_simplex_meets_its_optimality_conditions(width: int) -> None:
    """p = (z - θ)₊ with sum 1: θ the same for all positive p, and at least z where p is 0 (Duchi et al. 2008)."""
    z = 3 * torch.randn(200, width, dtype=torch.float64)
    z[0] = 0.7  # ties
    z[1] = torch.eye(width, dtype=torch.float64)[0]  # on the simplex already
    p = Simplex()(z)
    assert bool((p >= 0).all()) and torch.allclose(p.sum(1), torch.ones(200).double())
    threshold = (z - p).masked_fill(p == 0, -math.inf).amax(1, keepdim=True)
    assert torch.allclose((z - threshold)[p > 0], p[p > 0])
    assert bool(((z - threshold)[p == 0] <= 1e-12).all())
    assert torch.allclose(p[1], z[1])


@pytest.mark.parametrize("width", [1, 2, 3, 1000])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4, 3e7, 1e20, 3e38])
def test_simplex_holds_for_numbers_of_any_size_in_single_precision(width: int, size: float) -> None:
    """Against the threshold that bisection finds in float64, where z - θ of the largest z is at most 1."""
    z = (size * torch.randn(20, width).clamp(-1, 1)).contiguous()
    z[0] = size  # ties
    z[1, 0] = -size
    z[2] = size * (torch.arange(width) % 2)
    p = Simplex()(z)
    exact = z.double()
    high = exact.amax(1, keepdim=True)
    low = high - 1
    for _ in range(100):
        middle = (low + high) / 2
        above = (exact - middle).clamp_min(0).sum(1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    wanted = (exact - exact.amax(1, keepdim=True) - (low - exact.amax(1, keepdim=True))).clamp_min(0)
    if size < 1e16:  # beyond, 1 is lost in float64 too, and equal largest elements share it
        assert torch.allclose(p.double(), wanted, atol=1e-6)
    largest = z == z.amax(1, keepdim=True)
    if size > 1e8:
        assert torch.allclose(p, largest / largest.sum(1, keepdim=True).float())
    assert bool((p >= 0).all()) and torch.allclose(p.sum(1), torch.ones(20), atol=1e-5)


@pytest.mark.parametrize("onto", [Simplex(), UnitSphere(), Whiten()], ids=["simplex", "sphere", "whiten"])
def test_what_is_not_a_number_has_no_projection_and_leaves_other_rows_alone(onto: torch.nn.Module) -> None:
    z = torch.randn(6, 4, 2)
    z[0, 0, 0], z[1, 1, 1], z[2] = math.nan, math.inf, -math.inf
    projected = onto(z)
    assert bool(projected[0].isnan().any()) and bool(projected[1].isnan().any()) and bool(projected[2].isnan().all())
    assert torch.equal(projected[3:], onto(z[3:]))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 3e38])
def test_the_sphere_is_met_from_any_distance_in_single_precision(size: float) -> None:
    """The square of 1e20 overflows and that of 1e-30 vanishes, but the direction is known; its slope: (I - ppᵀ)/‖z‖."""
    unit = torch.nn.functional.normalize(torch.randn(10, 3).double(), dim=1)
    z = (size * unit / 2).float().requires_grad_()
    p = UnitSphere()(z)
    assert torch.allclose(p.double(), unit, atol=1e-6)
    (gradient,) = torch.autograd.grad(p[:, 0].sum(), z)
    wanted = torch.eye(3).double()[0] - unit[:, :1] * unit
    assert torch.allclose(gradient.double() * size / 2, wanted, atol=1e-5)


PROJECTIONS = {"nonnegative": NonNegative(), "box": Box(-1.0, 2.0), "sphere": UnitSphere(), "simplex": Simplex()}


@pytest.mark.parametrize("family", [MeanField(), FullCovariance()], ids=["mean-field", "full-covariance"])
@pytest.mark.parametrize("name", [*PROJECTIONS, "whiten", "nested", "proximal", "monotone"])
def test_steps_that_move_codes_are_refused_under_densities(name: str, family: MeanField) -> None:
    """A projection would also act on logarithms of scales, and leave draws outside the set."""
    steps: dict[str, Step] = {name: Projected(Adam(), onto) for name, onto in PROJECTIONS.items()}
    steps |= {"whiten": Projected(Adam(), Whiten()), "nested": Scheduled(Clipped(steps["box"], 1.0), lambda t: 0.5)}
    steps |= {"proximal": ProximalAscent(0.1), "monotone": MonotoneAscent()}
    with pytest.raises(TypeError, match=r"moves codes, got `(MeanField|FullCovariance)`.*Use `Delta\(\)`"):
        Ascent(step=steps[name], family=family)
    engine = Ascent(step=steps[name])
    engine.family = family
    with pytest.raises(TypeError, match="moves codes"):
        engine(neural(), torch.zeros(1, 5).double())


@pytest.mark.parametrize("name", PROJECTIONS)
def test_codes_of_several_dimensions_end_inside_of_the_set(name: str) -> None:
    """Row by row of the last dimension, from any start, also at rates that overflow; a failed code is ``nonfinite``."""
    model = Gaussian(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4)), (2, 3))
    x, start = torch.randn(8, 4), torch.randn(8, 2, 3) * torch.logspace(-2, 15, 8).view(8, 1, 1)
    for rate in (0.05, 1e12, 1e38):
        found = Ascent(Constant(start), Projected(GradientAscent(rate), PROJECTIONS[name]), 4, adjoint=Detach())(
            model, x
        )
        assert found.solve is not None
        assert bool(found.z.isfinite().all()) and bool(found.log_joint.isfinite().all())
        assert torch.allclose(PROJECTIONS[name](found.z), found.z, atol=1e-6)


def test_elementwise_projections_and_the_sphere_are_nearest_points() -> None:
    z = torch.tensor([[-2.0, 0.5], [0.0, 0.0], [3.0, 4.0]])
    assert torch.equal(NonNegative()(z), torch.tensor([[0.0, 0.5], [0.0, 0.0], [3.0, 4.0]]))
    assert torch.equal(Box(-1.0, 1.0)(z), torch.tensor([[-1.0, 0.5], [0.0, 0.0], [1.0, 1.0]]))
    on = UnitSphere()(z)
    assert torch.allclose(on, torch.stack([z[0] / z[0].norm(), torch.tensor([1.0, 0.0]), z[2] / 5]))
    leaf = torch.zeros(1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(UnitSphere()(leaf).sum(), leaf)
    assert bool(torch.isfinite(gradient).all())
    with pytest.raises(ValueError, match="low must be below high"):
        Box(1.0, 1.0)


def test_whiten_gives_the_nearest_codes_of_identity_covariance() -> None:
    """Nearest by enumeration: no other set of white codes, got by rotating these, is closer."""
    z = torch.randn(50, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64) + 2
    white = Whiten()(z)
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(white.mean(0), torch.zeros(3).double(), atol=1e-12)
    assert torch.allclose(white.mT.cov(correction=0), identity, atol=1e-10)
    assert torch.allclose(Whiten()(white), white, atol=1e-10)
    centred = z - z.mean(0)
    for _ in range(50):
        turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
        assert (white - centred).norm() <= (white @ turn - centred).norm() + 1e-12


def test_projected_steps_are_differentiable() -> None:
    """One step onto the box: the derivative is that of the step inside the box, and zero at its boundary."""
    x = torch.tensor([[0.4, 3.0]], dtype=torch.float64, requires_grad=True)
    engine = Ascent(Zeros(), Projected(GradientAscent(0.5), Box(-1.0, 1.0)), 1).double()
    (gradient,) = torch.autograd.grad(engine(quadratic(torch.ones(2)), x).z.sum(), x)
    assert torch.allclose(gradient, torch.tensor([[0.5, 0.0]]).double())


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda: GradientAscent(0.0), "rate must be positive, got 0.0"),
        (lambda: GradientAscent(0.1, steps=0), "steps must be at least 1, got 0"),
        (lambda: Momentum(0.1, 1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: Adam(math.nan), "rate must be positive, got nan"),
        (lambda: Adam(0.1, (0.9, -0.1)), r"betas must lie in \[0, 1\)"),
        (lambda: LBFGS(history=0), "history must be at least 1, got 0"),
        (lambda: GaussNewton(iterations=0), "iterations >= 1"),
        (lambda: GaussNewton(damping=0.0), "damping > 0"),
        (lambda: Langevin(-1.0), "rate must be positive, got -1.0"),
        (lambda: Clipped(GradientAscent(0.1), 0.0), "norm must be positive"),
    ],
)
def test_senseless_settings_are_refused(build: Callable[[], Step], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()
