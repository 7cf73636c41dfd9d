"""The Laplace approximation against exact posteriors, curvatures by torch's own derivatives, and finite differences."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import seed
from problems import Landscape, difference, neural, posterior, ppca
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.autograd.functional import hessian, jacobian
from torch.distributions import Distribution

from gae import nets
from gae.inference import (
    LBFGS,
    Amortized,
    Ascent,
    ClosedForm,
    Constant,
    Detach,
    Enumerate,
    FullCovariance,
    GaussNewton,
    Implicit,
    Inference,
    LanczosLaplace,
    Laplace,
    MeanField,
    Unroll,
    Zeros,
)
from gae.inference.curvature import raised
from gae.inference.laws import NotFiniteError
from gae.likelihood import (
    Bernoulli,
    CategoricalSequence,
    Gaussian,
    Head,
    Likelihood,
    LinearMixture,
    PartiallyObserved,
    Poisson,
    StandardUnits,
)
from gae.likelihood import Laplace as LaplaceHead
from gae.nets import sequence as sequence_nets
from gae.objective import elbo, iwae, joint, laplace_evidence
from gae.systems import laplace_gae
from gae.training import fit


@pytest.fixture
def x() -> Tensor:
    seed(0)
    return torch.randn(4, 6, dtype=torch.float64)


def newton(steps: int = 1, **options: Any) -> Ascent:
    """So many Gauss–Newton steps; the last of ``max_steps`` only evaluates the point that it has reached."""
    return Ascent(Zeros(), GaussNewton(), steps + 1, **options)


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian"])
def test_one_gauss_newton_step_of_a_linear_decoder_is_exact(curvature: Any, x: Tensor) -> None:
    model = ppca()
    mean, covariance = posterior(model, x)
    encoding = Laplace(newton(), curvature=curvature, samples=5)(model, x)
    assert encoding.q is not None and encoding.log_q is not None
    torch.testing.assert_close(encoding.q.mean[0], mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(encoding.q.covariance_matrix[0, 2], covariance, rtol=1e-10, atol=1e-10)
    wanted = model.log_evidence(x).log_p.expand(5, -1)
    torch.testing.assert_close(encoding.log_joint - encoding.log_q, wanted, rtol=1e-10, atol=1e-10)
    assert encoding.z.std(0).min() > 0.01


def heads() -> dict[str, tuple[Callable[[], Head], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
    """Heads, observations from uniform noise, and the curvature of -log q_r in the outputs."""
    network = partial(nets.mlp, 2, [5], 4, nn.Tanh)
    return {
        "gaussian": (lambda: Gaussian(network(), 2, 0.5), lambda u: u, lambda o: torch.full_like(o, 4.0)),
        "bernoulli": (
            lambda: Bernoulli(network(), 2),
            lambda u: (u > 0.5).double(),
            lambda o: o.sigmoid() * (1 - o.sigmoid()),
        ),
        "poisson": (lambda: Poisson(network(), 2), lambda u: (5 * u).floor(), torch.exp),
    }


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian"])
@pytest.mark.parametrize("head", ["gaussian", "bernoulli", "poisson"])
def test_the_precision_is_the_curvature(head: str, curvature: Any, covariance: Any) -> None:
    build, observe, slope = heads()[head]
    seed(1)
    model = build().double()
    y, start = observe(torch.rand(3, 4, dtype=torch.float64)), torch.randn(3, 2, dtype=torch.float64)
    q = Laplace(Constant(start), covariance, curvature, floor=0.1)(model, y).q
    assert q is not None
    for row in range(3):
        if curvature == "hessian":
            wanted = -hessian(lambda z, row=row: model.log_joint(y[[row]], z.view(1, 1, 2)).sum(), start[row])
        else:
            output = model.decoder(start[[row]])[0]
            slopes = jacobian(lambda z: model.decoder(z.unsqueeze(0))[0], start[row])
            wanted = slopes.mT @ slope(output).diag() @ slopes + torch.eye(2)
        if covariance == "diagonal":
            torch.testing.assert_close(1 / q.variance[0, row], wanted.diagonal().clamp_min(0.1), rtol=1e-7, atol=1e-7)
        else:
            values, vectors = torch.linalg.eigh(wanted)
            precision = torch.linalg.inv(q.covariance_matrix[0, row])  # type: ignore[attr-defined]
            lifted = vectors @ values.clamp_min(0.1).diag() @ vectors.mT
            torch.testing.assert_close(precision, lifted, rtol=1e-7, atol=1e-7)


def test_gauss_newton_is_the_hessian_of_a_piecewise_linear_decoder(x: Tensor) -> None:
    seed(2)
    model = neural(dim=6, activation=nn.ReLU)
    start = Constant(torch.randn(4, 2, dtype=torch.float64))
    one, other = (Laplace(start, curvature=kind)(model, x).q for kind in ("gauss-newton", "hessian"))
    torch.testing.assert_close(one.covariance_matrix, other.covariance_matrix, rtol=1e-10, atol=1e-10)
    smooth = neural(dim=6)
    one, other = (Laplace(start, curvature=kind)(smooth, x).q for kind in ("gauss-newton", "hessian"))
    assert not torch.allclose(one.covariance_matrix, other.covariance_matrix, rtol=1e-3)


def test_ascents_of_densities_start_from_it(x: Tensor) -> None:
    """The best diagonal density of a quadratic has the variance 1 / diag(Λ); the full one is where it should be."""
    model = ppca()
    covariance = posterior(model, x)[1]
    solve = partial(Ascent, step=LBFGS(), max_steps=100, grad_tol=1e-8, adjoint=Detach())
    full = solve(Laplace(newton()), family=FullCovariance(6, matched=True))(model, x)
    assert full.q is not None and full.solve is not None
    assert full.solve.steps.max() == 0  # the start is the optimum
    torch.testing.assert_close(full.q.covariance_matrix[0, 1], covariance, rtol=1e-6, atol=1e-6)
    diagonal = Laplace(newton(), "diagonal")(model, x).q
    best = solve(Laplace(newton()), family=MeanField(6, matched=True))(model, x).q
    torch.testing.assert_close(best.variance, diagonal.variance, rtol=1e-6, atol=1e-6)
    assert (best.variance < 0.999 * covariance.diagonal()).any()  # smaller than the marginal variance


class Saddle(Landscape):
    """log_joint with the given Hessian everywhere; the prior has standard deviations 2."""

    def __init__(self, matrix: Tensor):
        super().__init__(lambda x, z: 0.5 * torch.einsum("sbi,ij,sbj->sb", z, self.matrix, z), len(matrix))
        self.matrix = nn.Parameter(matrix)
        self.latent_prior = Wide()


class Wide(nn.Module):
    def forward(self) -> Distribution:
        return Normal(torch.zeros(3, dtype=torch.float64), 2.0).to_event(1)


SADDLE = torch.tensor([[1.0, 0.5, 0.0], [0.5, -2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("floor", [0.01, 1.0])
def test_curvatures_below_the_floor_are_raised_to_it(floor: float) -> None:
    model, y = Saddle(SADDLE), torch.zeros(2, 1, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(-SADDLE)
    wanted = vectors @ values.clamp_min(floor / 4).diag() @ vectors.mT  # the prior's precision is 1/4
    engine = Laplace(Constant(torch.zeros(3, dtype=torch.float64)), curvature="hessian", floor=floor)
    q = engine(model, y).q
    torch.testing.assert_close(torch.linalg.inv(q.covariance_matrix[0, 1]), wanted, rtol=1e-9, atol=1e-9)
    engine = Laplace(engine.inner, "diagonal", "hessian", floor=floor)
    wanted = (-SADDLE.diagonal()).clamp_min(floor / 4)
    torch.testing.assert_close(engine(model, y).q.variance[0, 1], 1 / wanted, rtol=1e-9, atol=1e-9)


def test_the_derivative_of_raised_eigenvalues() -> None:
    """Also where eigenvalues coincide, where that of ``eigh`` does not exist."""
    seed(3)
    square = torch.randn(3, 4, 4, dtype=torch.float64)
    mixed = square + square.mT - torch.eye(4)
    coinciding = torch.diag(torch.tensor([2.0, 2.0, -1.0, -1.0], dtype=torch.float64)).unsqueeze(0)
    above = square @ square.mT + torch.eye(4)
    for matrix in (mixed, coinciding, above):
        symmetric = lambda m: raised(0.5 * (m + m.mT), 0.3)  # noqa: E731
        assert gradcheck(symmetric, matrix.clone().requires_grad_())
        assert torch.linalg.eigvalsh(symmetric(matrix)).min() > 0.299
    assert torch.equal(raised(above, 0.3), above)


@pytest.mark.parametrize("adjoint", [Unroll, partial(Implicit, damping=1e-12, tol=1e-12), Detach])
def test_gradients_reach_mode_and_covariance_as_the_ascent_lets_them(adjoint: Any, x: Tensor) -> None:
    """Through a converged mode they are those of finite differences; with ``Detach``, those at a constant mode."""
    seed(4)
    model = neural(dim=6)
    solve = Ascent(Zeros(), LBFGS(), 60, grad_tol=1e-11, adjoint=adjoint())
    engine: Inference = Laplace(solve, curvature="hessian", samples=None)
    with torch.no_grad():
        mode = Constant(solve(model, x).z[0])
    probe = Laplace(mode, curvature="hessian", samples=None) if adjoint is Detach else engine
    parameters = list(model.parameters())
    moves = [torch.randn_like(p) for p in parameters]

    def spread(engine: Inference) -> Tensor:
        q = engine(model, x).q
        assert q is not None
        return (q.mean.square().sum() if adjoint is not Detach else 0) + q.covariance_matrix.square().sum()  # type: ignore[attr-defined]

    grads = torch.autograd.grad(spread(engine), parameters, allow_unused=True)
    slope = sum((g * m).sum() for g, m in zip(grads, moves, strict=True) if g is not None)
    assert float(slope) == pytest.approx(difference(lambda: spread(probe), parameters, moves, 1e-5), rel=1e-5)
    if adjoint is Detach:
        assert not engine(model, x).z.requires_grad


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_draws_are_reparameterised(covariance: Any, x: Tensor) -> None:
    """Their derivative in the decoder, at fixed noise, is the finite difference."""
    seed(4)
    model, engine = neural(dim=6), Laplace(Constant(torch.zeros(2)), covariance, samples=3)
    parameters = list(model.parameters())
    moves = [torch.randn_like(p) for p in parameters]

    def square() -> Tensor:
        seed(7)
        return engine(model, x).z.square().sum()

    grads = torch.autograd.grad(square(), parameters, allow_unused=True)
    slope = sum(float((g * m).sum()) for g, m in zip(grads, moves, strict=True) if g is not None)
    assert slope == pytest.approx(difference(square, parameters, moves, 1e-5), rel=1e-6)


def test_training_by_elbo_and_iwae_at_the_exact_posterior_follows_the_evidence(x: Tensor) -> None:
    model = ppca()
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(model.log_evidence(x).log_p.sum(), parameters)
    for objective in (elbo, iwae):
        loss = objective(Laplace(newton(), samples=3)(model, x)).sum()
        for one, other in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_components_have_densities_of_their_own(x: Tensor) -> None:
    model = LinearMixture(3, 2, (6,), means=torch.randn(3, 6)).double()
    encoding = Enumerate(Laplace(newton()))(model, x)
    exact = Enumerate(ClosedForm())(model, x)
    torch.testing.assert_close(encoding.log_joint - encoding.log_q, exact.log_joint - exact.log_q, rtol=1e-8, atol=1e-8)


def test_the_mode_itself_is_no_draw(x: Tensor) -> None:
    model = neural(dim=6)
    engine = Laplace(newton(4), samples=None)
    encoding = engine(model, x)
    assert encoding.log_q is None
    assert encoding.solve is not None
    assert torch.equal(encoding.point, newton(4)(model, x).point)
    assert (encoding.solve.evaluations == newton(4)(model, x).solve.evaluations + 2).all()
    with pytest.raises(ValueError, match="its code is no draw of q"):
        elbo(encoding)
    drawn = Laplace(newton(4), samples=3)(model, x)
    assert torch.equal(drawn.solve.evaluations.sum(0), encoding.solve.evaluations[0])
    guided = Laplace(Amortized(lambda x: Normal(x[:, :2], 1.0).to_event(1)), samples=None)
    assert torch.equal(guided(model, x).z[0], x[:, :2])


def test_the_laplace_evidence_of_a_linear_model_is_its_evidence(x: Tensor) -> None:
    """LinearMixture(1, d): values and gradients in all parameters are those of the closed form."""
    model = ppca()
    parameters = list(model.parameters())
    exact = model.log_evidence(x).log_p
    wanted = torch.autograd.grad(exact.sum(), parameters)
    for engine in (Laplace(newton(2), samples=None), Laplace(newton(2, adjoint=Detach()), samples=None), ClosedForm()):
        value = laplace_evidence(engine(model, x))
        torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-9)
        for one, other in zip(torch.autograd.grad(value.sum(), parameters), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_training_by_the_laplace_evidence_ends_at_probabilistic_pca() -> None:
    """The maximum of the likelihood by eigenvalues of the covariance (Tipping & Bishop 1999, eq. 3.8)."""
    seed(6)
    size, dim, latent = 60, 5, 2
    x = torch.randn(size, dim, dtype=torch.float64) * torch.tensor([3.0, 2.0, 0.6, 0.5, 0.4])
    model = ppca(latent, dim)
    engine = Laplace(newton(), samples=None)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -laplace_evidence(engine(model, x)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    values = torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0)
    noise = values[latent:].mean()
    log_det = values[:latent].log().sum() + (dim - latent) * noise.log()
    best = -0.5 * (dim * math.log(2 * math.pi) + log_det + dim)
    with torch.no_grad():
        assert float(model.log_evidence(x).log_p.mean()) == pytest.approx(float(best), abs=1e-7)
        assert float(model.log_scale.exp().square()) == pytest.approx(float(noise), rel=1e-4)


def test_the_diagonal_laplace_evidence_is_the_elbo_of_the_best_diagonal_density(x: Tensor) -> None:
    model = ppca()
    value = laplace_evidence(Laplace(newton(), "diagonal", samples=None)(model, x))
    covariance = posterior(model, x)[1]
    precision = torch.linalg.inv(covariance)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    torch.testing.assert_close(value, model.log_evidence(x).log_p - gap, rtol=1e-9, atol=1e-9)
    assert gap > 0.01


def test_the_laplace_evidence_at_a_mode_needs_the_gradient_through_it(x: Tensor) -> None:
    """log det Λ depends on the mode to first order: ``Detach`` leaves a part of the gradient out."""
    seed(5)
    model = neural(dim=6)
    parameters = list(model.parameters())
    moves = [torch.randn_like(p) for p in parameters]

    def slope(adjoint: Any) -> float:
        solve = Ascent(Zeros(), LBFGS(), 60, grad_tol=1e-11, adjoint=adjoint)
        engine = Laplace(solve, curvature="hessian", samples=None)
        grads = torch.autograd.grad(laplace_evidence(engine(model, x)).sum(), parameters)
        return float(sum((g * m).sum() for g, m in zip(grads, moves, strict=True)))

    engine = Laplace(Ascent(Zeros(), LBFGS(), 60, grad_tol=1e-11), curvature="hessian", samples=None)
    near, far = (
        difference(lambda: laplace_evidence(engine(model, x)).sum(), parameters, moves, step) for step in (2e-4, 4e-4)
    )
    wanted = (4 * near - far) / 3  # of fourth order
    assert slope(Unroll()) == pytest.approx(wanted, rel=1e-6)
    assert slope(Implicit(damping=1e-12, tol=1e-12)) == pytest.approx(wanted, rel=1e-6)
    assert slope(Detach()) != pytest.approx(wanted, rel=1e-4)


def test_refusals(x: Tensor) -> None:
    model = neural(dim=6)
    with pytest.raises(ValueError, match=r"vector codes \(S, B, Z\), got codes of shape \(2, 2\)"):
        Laplace(Zeros())(Gaussian(nets.mlp((2, 2), (), 6), (2, 2)).double(), x)
    with pytest.raises(ValueError, match=r"got samples=2 and 3 codes from `Constant`"):
        Laplace(Constant(torch.zeros(2)), samples=2).infer(charts := LinearMixture(3, 2, (6,)).double(), x, ALL)
    with pytest.raises(TypeError, match="with a summed-out component"):
        Laplace(Zeros())(charts, x)
    with pytest.raises(TypeError, match="CategoricalSequence, which has no single decoder output"):
        Laplace(Zeros())(CategoricalSequence(sequence_nets.LSTMDecoder(2, 4, 2, 3), 2, 4, 4), torch.ones(1, 4))
    noisy = Gaussian(nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5)), 2).double().train()
    with pytest.raises(ValueError, match="A curvature needs a deterministic decoder"):
        Laplace(Zeros())(noisy, x)
    with pytest.raises(ValueError, match="laplace_evidence` with `Laplace`: it needs one code"):
        laplace_evidence(Laplace(Zeros())(model, x))
    with pytest.raises(ValueError, match="laplace_evidence` with `Zeros`"):
        laplace_evidence(Zeros()(model, x))


@pytest.mark.parametrize("option", ["covariance", "curvature"])
def test_bad_options(option: str, unchecked_types: None) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .* or .*, got 'low-rank'"):
        Laplace(Zeros(), **{option: "low-rank"})


ALL = torch.arange(3).unsqueeze(1)


def test_a_curvature_that_overflows_is_an_error() -> None:
    model = Poisson(nn.Linear(1, 1), 1).double()
    with torch.no_grad():
        model.decoder.weight.fill_(1.0)
    y, z = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[0.0], [800.0]], dtype=torch.float64)
    with pytest.raises(NotFiniteError, match="curvature of sample 1 is not finite"):
        Laplace(Constant(z))(model, y)


def through(layer: nn.Module) -> Gaussian:
    """A smooth decoder with a layer between two linear ones."""
    return Gaussian(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), layer, nn.Tanh(), nn.Linear(8, 6)), 2, 0.5).double()


class _Rows(nn.Module):
    """A layer for (N, C, L), applied to vectors."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h.view(-1, 2, 4)).reshape(-1, 8)


LAYERS = {
    "layer norm": lambda: nn.LayerNorm(8),
    "layer norm, no weights": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "instance norm": lambda: _Rows(nn.InstanceNorm1d(2, affine=True)),
    "instance norm, no weights": lambda: _Rows(nn.InstanceNorm1d(2)),
    "fixed instance norm": lambda: _Rows(nn.InstanceNorm1d(2, affine=True, track_running_stats=True).eval()),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "group norm, no weights": lambda: nn.GroupNorm(4, 8, affine=False),
    "batch norm": lambda: nn.BatchNorm1d(8).eval(),
    "attention": lambda: _Rows(nn.TransformerEncoderLayer(4, 2, 8, 0.0, "gelu", batch_first=True)),
    **{name: getattr(nn, name) for name in ("CELU", "ELU", "GELU", "SELU", "SiLU", "Softplus", "Softsign")},
}


@pytest.mark.parametrize(
    "inference",
    [
        partial(Laplace, curvature="hessian", samples=None),
        partial(Laplace, curvature="gauss-newton", samples=None),
        lambda start: Ascent(start, GaussNewton(), 2),
    ],
    ids=["hessian", "gauss-newton", "unrolled Gauss–Newton"],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_of_curvatures_through_layers(layer: str, inference: Callable[..., Inference], x: Tensor) -> None:
    """They take the decoder's third derivatives, which torch has wrong for some layers."""
    model = through(LAYERS[layer]())
    engine = inference(Constant(torch.randn(4, 2, dtype=torch.float64)))
    objective = joint if isinstance(engine, Ascent) else laplace_evidence

    def loss() -> Tensor:
        torch.manual_seed(3)
        return objective(engine(model, x)).sum()

    parameters = [p for p in model.parameters() if p.requires_grad]
    moves = [torch.randn_like(p) for p in parameters]
    grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
    slope = sum((g * m).sum() for g, m in zip(grads, moves, strict=True) if g is not None)
    assert float(slope) == pytest.approx(difference(loss, parameters, moves, 1e-6), rel=1e-6)


@pytest.mark.parametrize("engine", [Laplace, LanczosLaplace])
@pytest.mark.parametrize("units", [False, True])
def test_a_log_density_without_curvature_is_refused(engine: type[Inference], units: bool) -> None:
    """Of a Laplace head the Gauss–Newton matrix is the prior's: as an objective, the joint density and a constant."""
    head: Likelihood = LaplaceHead(nn.Linear(2, 5), 2)
    x = torch.randn(6, 5)
    if units:
        head = StandardUnits.of(head)
        head.set_units(x)
    with pytest.raises(TypeError, match="has no curvature in the decoder's output"):
        engine(Ascent(max_steps=2))(head, x)
    with pytest.raises(TypeError, match="has no curvature in the decoder's output"):
        fit(laplace_gae((5,), latent=2, hidden=(4,), head="laplace"), x, epochs=1, progress=False)


def test_rows_without_observed_elements_have_the_density_of_the_prior() -> None:
    model = PartiallyObserved(Gaussian(nn.Linear(2, 5), 2))
    q = Laplace(Ascent(max_steps=2))(model, torch.full((3, 5), torch.nan)).q
    assert q is not None and torch.allclose(q.stddev, torch.ones(()))
