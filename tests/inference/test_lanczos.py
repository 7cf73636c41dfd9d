"""Log determinants by Lanczos' recursion: dense linear algebra, all sign vectors at once, and finite differences."""

import itertools
import math
from typing import Any

import pytest
import torch
from cases import seed
from margins import within
from problems import difference, neural, ppca
from torch import Tensor, nn

from gae import nets
from gae.evidence import laplace_approximation
from gae.inference import (
    LBFGS,
    Amortized,
    Ascent,
    Constant,
    Detach,
    Encoding,
    GaussNewton,
    LanczosLaplace,
    Laplace,
    Unroll,
    Zeros,
)
from gae.inference.lanczos import lanczos
from gae.inference.laws import NotFiniteError
from gae.likelihood import Gaussian, LinearMixture, Poisson
from gae.objective import elbo, laplace_evidence


def newton(**options: Any) -> Ascent:
    """One Gauss–Newton step, which ends at the mode of a linear decoder."""
    return Ascent(Zeros(), GaussNewton(), 2, **options)


@pytest.fixture
def all_signs(monkeypatch: pytest.MonkeyPatch) -> int:
    """All 8 sign vectors of 3 elements in place of random ones: their mean of vᵀ A v is tr A without an error."""
    vectors = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=torch.float64)

    def draw(rows: int, like: Tensor) -> Tensor:
        return vectors.view(len(vectors), 1, 3).expand(rows, *like.shape)

    monkeypatch.setattr("gae.inference.laplace.signs", draw)
    return len(vectors)


def test_the_recursion_against_dense_matrices() -> None:
    seed(0)
    factor = torch.randn(4, 6, 6, dtype=torch.float64)
    matrix = factor @ factor.mT + 0.1 * torch.eye(6)
    matrix[3] = torch.diag(torch.tensor([1.0, 1, 1, 4, 4, 4]))  # two eigenvalues: the recursion ends after two steps
    start = torch.randn(3, 4, 6, dtype=torch.float64)
    krylov = lanczos(lambda v: torch.einsum("bij,rbj->rbi", matrix, v), start, 6)
    values, vectors = torch.linalg.eigh(matrix)
    logarithm = vectors @ values.log().diag_embed() @ vectors.mT
    wanted = torch.einsum("rbi,bij,rbj->rb", start, logarithm, start)
    torch.testing.assert_close(krylov.log_form, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(krylov.solution, torch.linalg.solve(matrix, start.unsqueeze(3)).squeeze(3))
    torch.testing.assert_close(krylov.lowest, values[:, 0].expand(3, 4))
    assert krylov.steps[:, 3].tolist() == [2, 2, 2] and (krylov.steps[:, :3] == 6).all()


def test_the_residual_is_that_of_the_solution() -> None:
    seed(1)
    factor = torch.randn(2, 30, 30, dtype=torch.float64)
    matrix = factor @ factor.mT / 30 + torch.eye(30)
    start = torch.randn(5, 2, 30, dtype=torch.float64)

    def product(v: Tensor) -> Tensor:
        return torch.einsum("bij,rbj->rbi", matrix, v)

    for tol, iterations in ((0.0, 4), (1e-3, 30)):
        krylov = lanczos(product, start, iterations, tol)
        residual = (product(krylov.solution) - start).norm(dim=2) / start.norm(dim=2)
        torch.testing.assert_close(krylov.residual, residual, rtol=1e-6, atol=1e-12)
    assert (krylov.residual <= 1e-3).all() and (krylov.steps < 30).all()
    fewer = lanczos(product, start, int(krylov.steps.min()) - 1)
    assert (fewer.residual > 1e-3).any()  # no step was needless


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian"])
def test_over_all_signs_it_is_the_evidence_of_a_linear_model(curvature: Any, all_signs: int) -> None:
    """Value and gradient in all parameters, without a sampling error."""
    model, x = ppca(3, 6), torch.randn(4, 6, dtype=torch.float64)
    parameters = list(model.parameters())
    exact = model.log_evidence(x).log_p
    engine = LanczosLaplace(newton(), curvature, all_signs, tol=1e-12)
    value = laplace_evidence(engine(model, x))
    torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-9)
    wanted = torch.autograd.grad(exact.sum(), parameters)
    for one, other in zip(torch.autograd.grad(value.sum(), parameters), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("normalised", [False, True])
def test_over_all_signs_its_gradient_is_that_through_the_mode(normalised: bool, all_signs: int) -> None:
    """Of a neural decoder: the finite difference of the dense evidence, with the mode that follows the parameters."""
    seed(2)
    model, x = neural(3), torch.randn(4, 5, dtype=torch.float64)
    if normalised:
        model.decoder.insert(1, nn.LayerNorm(model.decoder[0].out_features, dtype=torch.float64))
    parameters = list(model.parameters())
    moves = [torch.randn_like(p) for p in parameters]
    climb = Ascent(Zeros(), LBFGS(), 80, grad_tol=1e-11)
    dense = Laplace(climb, curvature="hessian", samples=None)
    wanted = difference(lambda: laplace_evidence(dense(model, x)).sum(), parameters, moves, 1e-5)

    def slope(adjoint: Any) -> float:
        engine = LanczosLaplace(
            Ascent(Zeros(), LBFGS(), 80, grad_tol=1e-11, adjoint=adjoint), "hessian", all_signs, tol=1e-12
        )
        grads = torch.autograd.grad(laplace_evidence(engine(model, x)).sum(), parameters)
        return float(sum((g * m).sum() for g, m in zip(grads, moves, strict=True)))

    assert slope(Unroll()) == pytest.approx(wanted, rel=1e-5)
    assert slope(Detach()) != pytest.approx(wanted, rel=1e-4)


def wide() -> LinearMixture:
    """40 distinct eigenvalues of the curvature between 1 and about 40."""
    model = LinearMixture(1, 40, (50,), scale=0.7).double()
    nn.init.normal_(model.loadings, std=0.3)
    return model


def test_the_error_is_known() -> None:
    """Of 300 independent estimates for one observation, the deviation is what each says of itself."""
    model = ppca(3, 6)
    x = torch.randn(1, 6, dtype=torch.float64).expand(300, -1)
    encoding = LanczosLaplace(newton(), probes=20)(model, x)
    assert encoding.volume_error is not None and not encoding.volume_error.requires_grad
    error = (laplace_evidence(encoding) - model.log_evidence(x).log_p).detach()
    ratio = error.std() / encoding.volume_error.square().mean().sqrt()
    within("deviation of estimates, by their error", ratio, above=0.75, below=1.25)
    within("mean error, in standard errors", error.mean().abs() / error.std() * 300**0.5, below=4.5)


def test_large_codes() -> None:
    """Codes of 40 elements end early, at the residual asked for; images and single precision are codes, too."""
    model, x = wide(), torch.randn(3, 50, dtype=torch.float64)
    bare = newton()(model, x)
    encoding = LanczosLaplace(newton(), probes=30, tol=1e-3)(model, x)
    assert encoding.solve is not None and bare.solve is not None and encoding.volume_error is not None
    products = encoding.solve.evaluations - bare.solve.evaluations
    assert ((products >= 30 * 3) & (products < 30 * 40)).all()
    error = laplace_evidence(encoding) - model.log_evidence(x).log_p
    assert (error.abs() < 5 * encoding.volume_error).all()
    image = Gaussian(nets.mlp((2, 3, 3), (), 6), (2, 3, 3), 0.5)
    flat = Gaussian(nn.Sequential(nn.Unflatten(1, (2, 3, 3)), image.decoder), 18, 0.5)
    y = torch.randn(4, 6)
    for inner in (Ascent(Zeros(), GaussNewton(), 2), Amortized(nets.mlp(6, (), (2, 3, 3)))):
        encoding = LanczosLaplace(inner, probes=30)(image, y)
        code = encoding.z[0].detach()
        dense = laplace_evidence(Laplace(Constant(code.flatten(1)), samples=None)(flat, y))
        assert encoding.z.shape == (1, 4, 2, 3, 3) and encoding.volume_error is not None
        assert ((laplace_evidence(encoding) - dense).abs() < 5 * encoding.volume_error + 1e-3).all()


def test_encodings_are_cut_and_joined() -> None:
    encoding = LanczosLaplace(newton())(wide(), torch.randn(5, 50, dtype=torch.float64))
    again = Encoding.join([encoding.rows(0, 2), encoding.rows(2, 5)])
    assert torch.equal(laplace_evidence(again), laplace_evidence(encoding))
    assert again.volume_error is not None and torch.equal(again.volume_error, encoding.volume_error)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = wide(), torch.randn(3, 50, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"2 Lanczos steps leave a relative residual of .*Raise `iterations` or `tol`"):
        LanczosLaplace(newton(), iterations=2)(model, x)
    with pytest.raises(ValueError, match="it returns no density"):
        elbo(LanczosLaplace(newton())(model, x))
    with pytest.raises(ValueError, match=r"Need probes >= 2 and iterations >= 1, got 1 and 100"):
        LanczosLaplace(newton(), probes=1)
    with pytest.raises(TypeError, match=r"Cannot use `LanczosLaplace\(curvature='gauss-newton'\)` with a summed-out"):
        LanczosLaplace(Zeros())(LinearMixture(3, 2, (6,)), torch.zeros(2, 6))
    charts = LinearMixture(3, 2, (50,)).double()
    with pytest.raises(ValueError, match="laplace_evidence` with `LanczosLaplace`: it needs one code"):
        laplace_evidence(LanczosLaplace(newton())(charts, x, ALL))
    monkeypatch.setenv("GAE_MAX_BYTES", str(8 * 3 * 40**2 - 1))
    with pytest.raises(ValueError, match=r"of 3 codes of 40 elements takes 38,400 bytes.*use `LanczosLaplace`"):
        Laplace(newton(), samples=None)(model, x)
    with pytest.raises(ValueError, match=r"of 3 codes of 40 elements takes 38,400 bytes.*curvature='lanczos'"):
        laplace_approximation(model, x, torch.zeros(3, 40, dtype=torch.float64))
    assert Laplace(newton(), samples=None)(model, x[:2]).log_joint.isfinite().all()


ALL = torch.arange(3).unsqueeze(1)


class Bowl(nn.Module):
    """|z|², whose least squares have a saddle or a summit at 0 for positive data."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * z.square().sum(1, keepdim=True).expand(-1, 5)


def test_curvatures_that_have_no_log_determinant() -> None:
    model, x = Gaussian(Bowl(), 2).double(), torch.full((3, 5), 4.0, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"sample 0 is not positive definite.*3 such samples.*'gauss-newton'"):
        LanczosLaplace(Zeros(), "hessian")(model, x)
    flat = laplace_evidence(LanczosLaplace(Zeros())(model, x))  # J = 0: the prior's curvature alone
    torch.testing.assert_close(flat, model.log_joint(x, torch.zeros(1, 3, 2).double())[0] + math.log(2 * math.pi))
    overflowing = Poisson(nn.Linear(1, 1), 1).double()
    with torch.no_grad():
        overflowing.decoder.weight.fill_(1.0)  # type: ignore[operator, union-attr]
    z = torch.tensor([[0.0], [800.0]], dtype=torch.float64)
    with pytest.raises(NotFiniteError, match="curvature of sample 1 is not finite"):
        LanczosLaplace(Constant(z))(overflowing, torch.ones(2, 1, dtype=torch.float64))
