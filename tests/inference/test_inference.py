"""Ascent and its parts (steps, families, adjoints, starts) against closed forms, torch.optim, central differences."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import STEPS, Density, chart, encoder, net
from torch import Tensor, nn

from gae import Autoencoder
from gae.inference import (
    Adam,
    Amortized,
    Argmax,
    Ascent,
    ClosedForm,
    Constant,
    Delta,
    DeltaBarDelta,
    Detach,
    Enumerate,
    GradientAscent,
    Inference,
    MeanField,
    Momentum,
    Prior,
    Status,
    Step,
    Unroll,
    Zeros,
)
from gae.inference.ascent.problem import Problem
from gae.likelihood import Flat, Gaussian, Likelihood, LinearMixture
from gae.objective import elbo, joint

B, D, E, K = 4, 6, 2, 3


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, D)


def linear(components: int = 1, **options: Any) -> LinearMixture:
    """Well-conditioned charts: the curvature of their log joint lies between 1 and 5."""
    model = chart(components, E, (D,), **({"scale": 0.8} | options))
    basis, _ = torch.linalg.qr(torch.randn(components, D, E))
    turn, _ = torch.linalg.qr(torch.randn(components, E, E))
    model.loadings.data = turn @ (torch.linspace(0.5, 1.5, E)[:, None] * basis.mT)
    return model


def curved(flat: bool = False) -> Gaussian:
    return Gaussian(net(E, D), E, scale=0.8, prior=Flat(E) if flat else None)


def posterior(model: LinearMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, E) and precision (E, E) of z given x for one chart (Bishop, PRML, eq. 12.42), by a dense solve."""
    loadings, variance = model.loadings[0].detach(), (2 * model.log_scale[0]).exp().detach()
    precision = loadings @ loadings.T / variance + (0 if model.flat_prior else 1) * torch.eye(E)
    return torch.linalg.solve(precision, loadings @ (x - model.means[0].detach()).T / variance).T, precision


# Converged codes.

CONVERGING: list[Step] = [
    GradientAscent(0.2),
    Momentum(0.1, 0.5),
    Adam(0.3, (0.5, 0.9), eps=1.0),
    DeltaBarDelta(0.05, 0.5),
]


def test_every_step_is_run_to_convergence() -> None:
    assert {type(step) for step in CONVERGING} == {type(part.build()) for part in STEPS}


@pytest.mark.parametrize(
    ("step", "flat_prior"),
    [*((step, False) for step in CONVERGING), (CONVERGING[0], True)],
    ids=lambda value: type(value).__name__ if isinstance(value, Step) else f"flat prior {value}",
)
@torch.no_grad()
def test_a_converged_code_is_the_posterior_mean(step: Step, flat_prior: bool, x: Tensor) -> None:
    model = linear(flat_prior=flat_prior)
    found = Ascent(Constant(torch.randn(E)), step, max_steps=400)(model, x)
    torch.testing.assert_close(found.z[0], posterior(model, x)[0], rtol=0, atol=1e-8)
    assert found.solve is not None and found.solve.grad_norm.max() < 1e-7


@torch.no_grad()
def test_every_branch_of_a_mixture_converges(x: Tensor) -> None:
    model = linear(K)
    found, exact = (Enumerate(inner)(model, x) for inner in (Ascent(step=CONVERGING[0], max_steps=400), ClosedForm()))
    torch.testing.assert_close(found.z, exact.z, rtol=0, atol=1e-8)
    found, exact = (Argmax(inner)(model, x) for inner in (Ascent(step=CONVERGING[0], max_steps=400), ClosedForm()))
    assert torch.equal(found.k, exact.k)
    torch.testing.assert_close(found.z, exact.z, rtol=0, atol=1e-8)


# Single steps: ledger D12, D13, D16 and D03.


def orthonormal() -> LinearMixture:
    """log q_r(x|z) = -‖x - μ - Wz‖² + const, with WᵀW = I."""
    return LinearMixture(1, E, (D,), flat_prior=True, scale=0.5**0.5, means=torch.randn(1, D))


def test_one_step_follows_the_gradient_of_the_squared_error(x: Tensor) -> None:
    """D12: ∂/∂z -‖x - μ - Wz‖² = 2Wᵀ(x - μ - Wz), for any W."""
    model, start = orthonormal(), torch.randn(B, E)
    model.loadings.data = torch.randn(1, E, D)
    found = Ascent(Constant(start), GradientAscent(0.3), max_steps=1)(model, x)
    w = model.loadings[0].T
    gradient = 2 * (x - model.means[0] - start @ w.T) @ w
    torch.testing.assert_close(found.z[0], start + 0.3 * gradient, rtol=1e-12, atol=1e-12)
    assert found.solve is not None
    torch.testing.assert_close(found.solve.grad_norm[0], gradient.norm(dim=1), rtol=1e-12, atol=1e-12)


def test_half_a_step_lands_on_the_projection_from_anywhere(x: Tensor) -> None:
    """D13."""
    model = orthonormal()
    wanted = (x - model.means[0]) @ model.loadings[0].T
    for start in torch.randn(5, B, E):
        found = Ascent(Constant(10 * start), GradientAscent(0.5), max_steps=1)(model, x)
        torch.testing.assert_close(found.z[0], wanted, rtol=1e-12, atol=1e-12)
    again = Ascent(Constant(wanted), GradientAscent(0.5), max_steps=1)(model, x)
    assert again.solve is not None and again.solve.grad_norm.max() < 1e-12


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_llgae_is_the_update_rule_of_the_notes(x: Tensor, steps: int, scale: float) -> None:
    """D16: b_t = b_{t-1} + β W_kᵀ(x - μ_k - W_k b_{t-1}), b_0 = 0; k = argmax_k -½‖x - μ_k - W_k b_T‖²."""
    model = chart(K, E, (D,), flat_prior=True, scale=scale)
    means, loadings, beta = model.means, model.loadings, 0.3
    b = torch.zeros(B, K, E)
    for _ in range(steps):
        residual = x[:, None] - means - torch.einsum("bke,ked->bkd", b, loadings)
        b = b + beta * torch.einsum("bkd,ked->bke", residual, loadings)
    error = (x[:, None] - means - torch.einsum("bke,ked->bkd", b, loadings)).square().sum(2)
    k = error.argmin(1)
    found = Argmax(Ascent(Zeros(), GradientAscent(beta * scale**2), max_steps=steps))(model, x)
    assert found.k is not None and torch.equal(found.k[0], k)
    torch.testing.assert_close(found.z[0], b[torch.arange(B), k], rtol=1e-12, atol=1e-12)
    wanted = -0.5 * error.amin(1) / scale**2 - D * math.log(scale * math.sqrt(2 * math.pi)) - math.log(K)
    torch.testing.assert_close(found.log_joint[0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("factor", "is_monotone"), [(0.1, True), (0.99, True), (1.05, False)])
def test_steps_below_two_over_the_curvature_ascend(x: Tensor, factor: float, is_monotone: bool) -> None:
    """D03, by the recorded objective."""
    model = linear()
    largest = torch.linalg.eigvalsh(posterior(model, x)[1])[-1].item()
    solve = Ascent(Constant(torch.randn(E)), GradientAscent(factor * 2 / largest), max_steps=60, trace=True)(
        model, x
    ).solve
    assert solve is not None and solve.trace is not None
    rises = solve.trace.diff(dim=0)
    assert (rises > -1e-12).all() if is_monotone else (rises[-1] < 0).all()


# The report of a solve.


def test_the_trace_holds_the_objective_before_each_step(x: Tensor) -> None:
    model = curved()
    solve = Ascent(step=GradientAscent(0.05), max_steps=5, trace=True)(model, x).solve
    assert solve is not None and solve.trace is not None
    assert solve.trace.shape == (5, 1, B)
    for t in range(5):
        found = Ascent(step=GradientAscent(0.05), max_steps=t)(model, x)
        torch.testing.assert_close(solve.trace[t], found.log_joint.detach(), rtol=1e-12, atol=1e-12)
    assert (solve.trace.diff(dim=0) > 0).all()


def test_argmax_keeps_the_trace_of_the_branch_it_chose(x: Tensor) -> None:
    model = linear(K)
    every, best = (engine(Ascent(max_steps=4, trace=True))(model, x) for engine in (Enumerate, Argmax))
    assert every.solve is not None and best.solve is not None and best.k is not None
    for name in ("trace", "grad_norm", "status", "steps"):
        value, wanted = getattr(best.solve, name), getattr(every.solve, name)
        assert torch.equal(value[..., 0, :], wanted[..., best.k[0], torch.arange(B)])


def rows_decoded(model: Gaussian, infer: Callable[[], Any]) -> int:
    rows = []
    hook = model.decoder.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    infer()
    hook.remove()
    return sum(rows)


@pytest.mark.parametrize(
    ("engine", "wanted"),
    [
        (Ascent(max_steps=0), 0),
        (Ascent(max_steps=7), 7),
        (Ascent(max_steps=7, adjoint=Detach()), 7),
        (Ascent(max_steps=7, family=MeanField(samples=3)), 21),
        (Ascent(Ascent(max_steps=2), max_steps=3), 5),
    ],
)
def test_decoder_evaluations_are_counted(engine: Ascent, wanted: int, x: Tensor) -> None:
    model = curved()
    solve = engine.infer(model, x).solve
    assert solve is not None
    assert solve.evaluations.tolist() == [[wanted] * B]
    assert solve.steps.tolist() == [[engine.max_steps] * B]
    scorings = 2 if isinstance(engine.init, Ascent) else 1  # of the code found, by each solve
    assert rows_decoded(model, lambda: engine(model, x)) == (wanted + scorings) * B


def test_branches_of_a_mixture_are_counted(x: Tensor) -> None:
    """D16: the cost is K T per sample."""
    solve = Argmax(Ascent(max_steps=5))(linear(K), x).solve
    assert solve is not None
    assert solve.evaluations.tolist() == [[5 * K] * B]


def test_a_diverged_code_is_reported(x: Tensor) -> None:
    x[1] = 0
    model = linear()
    model.means.data.zero_()
    found = Ascent(step=GradientAscent(1e200), max_steps=4)(model, x)
    assert found.solve is not None
    wanted = [Status.nonfinite, Status.max_steps, Status.nonfinite, Status.nonfinite]
    assert found.solve.status.tolist() == [wanted], "only the second sample starts at its optimum"
    assert found.solve.summary() == "max_steps: 1, nonfinite: 3"


@pytest.mark.parametrize("adjoint", [Unroll(), Detach()])
def test_gradient_mode_does_not_change_the_code(adjoint: nn.Module, x: Tensor) -> None:
    model, engine = curved(), Ascent(max_steps=5, adjoint=adjoint)
    with torch.no_grad():
        still = engine(model, x)
    torch.testing.assert_close(engine(model, x).z, still.z, rtol=1e-12, atol=1e-12)


# Gradients through a solve.


def gradients(model: Likelihood, x: Tensor, engine: Inference) -> Tensor:
    loss = Autoencoder(model, engine, joint)(x)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_unrolled_and_detached_gradients_meet(x: Tensor) -> None:
    """D05, the envelope theorem: the difference vanishes at the solver's linear rate."""
    model = linear(learn_scale=True)
    gaps = []
    for steps in (2, 10, 20, 30, 100):
        unrolled, detached = (
            gradients(model, x, Ascent(step=GradientAscent(0.3), max_steps=steps, adjoint=adjoint))
            for adjoint in (Unroll(), Detach())
        )
        gaps.append((unrolled - detached).norm().item())
    assert gaps[0] > 1e-3 and gaps[-1] < 1e-12
    first, second = gaps[2] / gaps[1], gaps[3] / gaps[2]
    assert first < 0.1 and second == pytest.approx(first, rel=0.5)


@pytest.mark.parametrize("step", [part.build() for part in STEPS], ids=[part.name for part in STEPS])
@pytest.mark.parametrize("family", [Delta(), MeanField(samples=2)], ids=["delta", "mean-field"])
def test_unrolled_gradients_are_those_of_many_steps(step: Step, family: nn.Module, x: Tensor) -> None:
    model = curved()
    engine = Autoencoder(
        model, Ascent(step=step, max_steps=12, family=family), elbo if family.evaluations > 1 else joint
    )
    parameters = list(model.parameters())

    def loss() -> Tensor:
        torch.default_generator.manual_seed(0)
        return engine(x)

    found = torch.autograd.grad(loss(), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    ends = []
    for move in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += move * d
            ends.append(loss())
    slope = sum((g * d).sum() for g, d in zip(found, direction, strict=True))
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)


def test_detached_codes_are_constants(x: Tensor) -> None:
    model = curved()
    encoding = Ascent(Amortized(encoder(model)), max_steps=3, adjoint=Detach())(model, x)
    assert not encoding.z.requires_grad and encoding.log_joint.requires_grad


# Steps.

OPTIMIZERS: list[tuple[Step, type[torch.optim.Optimizer], dict[str, Any]]] = [
    (GradientAscent(0.1), torch.optim.SGD, {"lr": 0.1}),
    (Momentum(0.1, 0.7), torch.optim.SGD, {"lr": 0.1, "momentum": 0.7}),
    (Adam(0.1, (0.8, 0.95), 1e-12), torch.optim.Adam, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-12}),
]


@pytest.mark.parametrize(("step", "optimizer", "options"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("steps", [1, 10])
def test_steps_are_those_of_torch_optim(
    step: Step, optimizer: type[torch.optim.Optimizer], options: dict[str, Any], steps: int, x: Tensor
) -> None:
    model, x, start = curved().double(), x.double(), torch.randn(B, E, dtype=torch.float64)
    found = Ascent(Constant(start), step, max_steps=steps)(model, x)
    z = start.clone().requires_grad_()
    other = optimizer([z], maximize=True, **options)
    for _ in range(steps):
        other.zero_grad()
        model.log_joint(x, z.unsqueeze(0)).sum().backward()
        other.step()
    torch.testing.assert_close(found.z[0], z, rtol=1e-6, atol=1e-6)


def test_adam_has_a_derivative_where_the_gradient_is_zero(x: Tensor) -> None:
    problem = Problem(linear(), Delta(), x, None, None)
    u, value = torch.zeros(1, 1, 1), torch.zeros(1, 1)
    gradient = torch.zeros(1, 1, 1, requires_grad=True)
    step = Adam(0.1)
    after, state = step(problem, u, value, gradient, step.start(problem, u), 0)
    after, _ = step(problem, after, value, gradient, state, 1)
    (slope,) = torch.autograd.grad(after.sum(), gradient)
    assert slope.isfinite().all()


def test_adam_unrolls_from_a_stationary_point() -> None:
    model = linear()
    x = model.means.detach().clone()
    found = gradients(model, x, Ascent(step=Adam(0.1), max_steps=3))
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GradientAscent(0.0), "rate must be positive, got 0.0"),
        (lambda: GradientAscent(math.nan), "rate must be positive, got nan"),
        (lambda: Momentum(-1.0), "rate must be positive, got -1.0"),
        (lambda: Momentum(0.1, 1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: Adam(0.1, (0.9, 1.0)), r"betas must lie in \[0, 1\), got 1.0"),
        (lambda: Adam(0.1, eps=0.0), "eps must be positive, got 0.0"),
        (lambda: MeanField(samples=0), "samples >= 1 and scale > 0, got samples=0"),
        (lambda: MeanField(scale=-0.1), "samples >= 1 and scale > 0, got samples=1, scale=-0.1"),
        (lambda: Ascent(max_steps=-1), "max_steps >= 0 and restarts >= 1, got -1 and 1"),
        (lambda: ClosedForm(samples=0), "samples must be at least 1 or None, got 0"),
    ],
)
def test_impossible_settings_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# Families.


@pytest.fixture
def balanced_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two draws per solve, (1, 1) and (1, -1): with their mirror images, noise of mean 0 and covariance I exactly."""

    def draws() -> Iterator[Tensor]:
        while True:
            yield torch.tensor([1.0, 1.0])
            yield torch.tensor([1.0, -1.0])

    rows = draws()
    monkeypatch.setattr(torch, "randn_like", lambda like: next(rows).expand_as(like).clone())


def exact_elbo(model: LinearMixture, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """E_q[log joint] + H(q), (B,), for q = N(loc, diag(scale²)) on one linear chart."""
    _, precision = posterior(model, x)
    expected = model.log_joint(x, loc.unsqueeze(0))[0] - 0.5 * (precision.diagonal() * scale**2).sum(-1)
    return expected + (scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.usefixtures("balanced_noise")
@torch.no_grad()
def test_mean_field_finds_the_variational_optimum(x: Tensor) -> None:
    """For a normal posterior of precision Λ it is N(posterior mean, diag(Λ)⁻¹) (Bishop, PRML, eq. 10.12-10.15)."""
    model = linear()
    mean, precision = posterior(model, x)
    found = Ascent(step=GradientAscent(0.1), max_steps=500, family=MeanField(samples=4))(model, x)
    assert found.q is not None
    torch.testing.assert_close(found.q.mean[0], mean, rtol=0, atol=1e-8)
    wanted = precision.diagonal().rsqrt()
    torch.testing.assert_close(found.q.stddev[0], wanted.expand(B, E), rtol=0, atol=1e-8)
    gap = model.log_evidence(x).log_p - exact_elbo(model, x, found.q.mean[0], found.q.stddev[0])
    exact = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))  # KL of the two normals
    torch.testing.assert_close(gap, exact.expand(B), rtol=0, atol=1e-8)


@torch.no_grad()
def test_mean_field_improves_on_its_start(x: Tensor) -> None:
    """The semi-amortised VAE: never below the encoder under its own noise, and closer to the evidence."""
    model = linear()
    start = Amortized(Density(encoder(model, 2)))
    engine = Ascent(start, GradientAscent(0.02), 40, family=MeanField(samples=16), trace=True)
    found = engine(model, x)
    assert found.q is not None and found.solve is not None and found.solve.trace is not None
    assert (found.solve.trace.diff(dim=0) > 0).all()
    q = start(model, x).q
    assert q is not None
    before, after = (exact_elbo(model, x, p.mean.reshape(B, E), p.stddev.reshape(B, E)) for p in (q, found.q))
    assert (before < after).all() and (after < model.log_evidence(x).log_p).all()


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 2])
def test_the_mean_field_objective_is_an_unbiased_elbo(samples: int) -> None:
    model, n = linear(), 4000
    x, start = torch.randn(1, D).expand(n, D), Constant(torch.randn(E))
    solve = Ascent(start, max_steps=1, family=MeanField(samples, scale=0.3), trace=True)(model, x).solve
    assert solve is not None and solve.trace is not None
    values = solve.trace[0, 0]  # each sample has different noise
    wanted = exact_elbo(model, x[:1], start.z.unsqueeze(0), torch.full((1, E), 0.3)).item()
    assert values.mean().item() == pytest.approx(wanted, abs=4 * values.std().item() / math.sqrt(n))


def test_mean_field_starts_where_it_is_told(x: Tensor) -> None:
    model = curved()
    density = Amortized(Density(encoder(model, 2)))
    q, z = density(model, x).q, torch.randn(E)
    from_density = Ascent(density, max_steps=0, family=MeanField())(model, x).q
    from_point = Ascent(Constant(z), max_steps=0, family=MeanField(scale=0.3))(model, x).q
    assert q is not None and from_density is not None and from_point is not None
    torch.testing.assert_close(from_density.mean[0], q.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(from_density.stddev[0], q.stddev, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(from_point.mean[0], z.expand(B, E), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(from_point.stddev[0], torch.full((B, E), 0.3), rtol=1e-12, atol=1e-12)


def test_mean_field_keeps_its_noise_and_draws_its_code_afresh(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise redrawn at every step would change the objective under the solver; a reused draw would bias the ELBO."""
    drawn: list[Tensor] = []
    original = torch.randn_like

    def recorded(like: Tensor) -> Tensor:
        drawn.append(original(like))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn_like", recorded)
    found = Ascent(max_steps=10, family=MeanField(samples=4))(curved(), x)
    assert len(drawn) == 3, "two antithetic pairs, once for the whole solve, and the code's own"
    assert found.q is not None
    noise = (found.z - found.q.mean) / found.q.stddev
    assert min((noise - draw).abs().min() for draw in drawn[:2]) > 1e-6


def test_mean_field_draws_from_its_density() -> None:
    n = 4000
    found = Ascent(max_steps=2, family=MeanField())(curved(), torch.randn(n, D))
    assert found.q is not None
    noise = ((found.z - found.q.mean) / found.q.stddev)[0]
    assert (noise.mean(0).abs() < 4 / math.sqrt(n)).all()
    assert ((noise.T @ noise / n - torch.eye(E)).abs() < 4 * math.sqrt(2 / n)).all()


# Starts.


def test_an_ascent_starts_at_the_mean_of_an_encoder(x: Tensor) -> None:
    model = curved()
    for samples in (1, 3):
        start = Amortized(Density(encoder(model, 2)), samples)
        q = start(model, x).q
        found = Ascent(start, max_steps=0)(model, x)
        assert q is not None
        torch.testing.assert_close(found.z[0], q.mean)
        assert found.z.shape == (1, B, E)


def test_fixed_codes(x: Tensor) -> None:
    model, each = curved(), torch.randn(B, E)
    assert torch.equal(Constant(each)(model, x).z[0], each)
    assert torch.equal(Constant(each[0])(model, x).z[0], each[0].expand(B, E))
    given = each.clone()
    fixed = Constant(each)
    each.zero_()
    assert torch.equal(fixed(model, x).z[0], given), "it keeps a copy"


@pytest.mark.parametrize("shape", [(), (1,), (E + 1,), (B + 1, E), (1, B, E)])
def test_fixed_codes_of_a_wrong_shape(shape: tuple[int, ...], x: Tensor) -> None:
    wanted = r"needs \(2,\) \(one for all\) or \(4, 2\) \(one each\)"
    with pytest.raises(ValueError, match=f"`Constant` holds codes of shape .*{wanted}"):
        Constant(torch.zeros(shape))(curved(), x)


def test_zeros(x: Tensor) -> None:
    found = Zeros()(linear(), x)
    assert torch.equal(found.z, torch.zeros(1, B, E)) and found.log_q is None


def test_prior_draws_one_code_per_sample() -> None:
    model, n = linear(), 4000
    z = Prior()(model, torch.zeros(n, D)).z[0]
    assert len(z.unique(dim=0)) == n
    assert (z.mean(0).abs() < 4 / math.sqrt(n)).all()
    assert ((z.T @ z / n - torch.eye(E)).abs() < 4 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("engine", [Prior(), Ascent(Prior())])
def test_a_flat_prior_has_no_draws(engine: Inference, x: Tensor) -> None:
    with pytest.raises(
        NotImplementedError, match=r"flat prior is improper and cannot be sampled. Start from `Zeros\(\)`"
    ):
        engine(linear(flat_prior=True), x)


# Errors.


@pytest.mark.parametrize(
    ("engine", "model", "error", "message"),
    [
        (Argmax(), curved, TypeError, "Cannot use `Argmax` with Gaussian: it has no discrete code. Use a mixture"),
        (Enumerate(), curved, TypeError, "Cannot use `Enumerate` with Gaussian: it has no discrete code"),
        (
            ClosedForm(),
            curved,
            TypeError,
            "Cannot use `ClosedForm` with Gaussian: its posterior has no closed form. Use",
        ),
        (
            Argmax(),
            lambda: linear(K),
            ValueError,
            r"`Argmax\(\)` alone finds no continuous code.*`Argmax\(ClosedForm\(\)\)`",
        ),
        (Enumerate(), lambda: linear(K), ValueError, r"`Enumerate\(\)` alone finds no continuous code"),
        (
            Argmax(ClosedForm(3)),
            lambda: linear(K),
            ValueError,
            "`Argmax` needs one code per component, got S=9 for K=3",
        ),
        (Argmax(Argmax()), lambda: linear(K), ValueError, "`Argmax` chooses k itself, got a given k"),
    ],
)
def test_refusals(
    engine: Inference, model: Callable[[], Likelihood], error: type[Exception], message: str, x: Tensor
) -> None:
    with pytest.raises(error, match=message):
        engine(model(), x)


def test_a_given_component_is_not_chosen_again(x: Tensor) -> None:
    with pytest.raises(ValueError, match="`Argmax` chooses k itself, got a given k"):
        Argmax(ClosedForm())(linear(K), x, torch.zeros(1, 1, dtype=torch.long))


def test_several_draws_cannot_be_put_on_every_component(x: Tensor) -> None:
    model = linear(K)
    with pytest.raises(ValueError, match="Only one code per sample can be repeated for every component, got S=3"):
        Argmax(Amortized(Density(encoder(model, 2)), samples=3))(model, x)


def test_exact_draws_given_components(x: Tensor) -> None:
    """S draws on each of K branches: every row carries the component that it was drawn from."""
    model = linear(K)
    code = ClosedForm(samples=2).infer(model, x, torch.arange(K).unsqueeze(1))
    assert code.k is not None and code.log_q is not None
    assert code.z.shape == (2 * K, B, E)
    found = model.log_joint(x, code.z, code.k) - code.log_q
    wanted = model.log_evidence(x).log_p + model.log_responsibilities(x).gather(1, code.k.T).T  # log p(x, k)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("build", [lambda: nn.BatchNorm1d(5), nn.Dropout])
def test_layers_without_a_fixed_objective_are_refused(build: Callable[[], nn.Module], x: Tensor) -> None:
    layer = build()
    model = Gaussian(nn.Sequential(nn.Linear(E, 5), layer, nn.Linear(5, D)), E)
    with pytest.raises(ValueError, match=rf"ascent through {type(layer).__name__} \('decoder.1'\).*Use GroupNorm"):
        Ascent()(model, x)
    assert Ascent()(model.eval(), x).z.isfinite().all()


def test_inference_mode_is_refused(x: Tensor) -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"needs gradients.*Use `torch.no_grad\(\)`"):
        Ascent()(curved(), x)
