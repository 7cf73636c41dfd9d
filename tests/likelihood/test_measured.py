"""Measurements: adjoints, densities of observed entries, and reconstruction of unobserved ones."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import LIKELIHOODS, LikelihoodCase
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gae import nets
from gae.inference import LBFGS, Ascent, Constant, GaussNewton, Prior
from gae.likelihood import (
    Bernoulli,
    Blur,
    Categorical,
    Crop,
    Downsample,
    Gaussian,
    GaussianProjection,
    LinearMixture,
    LinearOperator,
    Mask,
    Measured,
    Poisson,
)

SHAPE = (2, 8, 12)
OPERATORS: dict[str, Callable[[], LinearOperator]] = {
    "mask": lambda: Mask(torch.rand(8, 12) > 0.5, SHAPE),
    "crop": lambda: Crop(SHAPE, 5, 7),
    "lanczos": lambda: Downsample(SHAPE, 4),
    "average": lambda: Downsample(SHAPE, 2, "average"),
    "blur": lambda: Blur(SHAPE, 1.3),
    "projection": lambda: GaussianProjection(9, SHAPE),
}
MEASURED = [case for case in LIKELIHOODS if isinstance(case.build(), Measured)]
every_operator = pytest.mark.parametrize("name", OPERATORS)


def assert_adjoint(operator: LinearOperator, shape: Sequence[int]) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, and A is linear: its matrix, column by column, gives what A gives."""
    operator = operator.double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    y = torch.randn_like(operator(x))
    left, right = (operator(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    size = math.prod(shape)
    matrix = operator(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T
    torch.testing.assert_close(operator(x).flatten(1), x.flatten(1) @ matrix.T, rtol=1e-12, atol=1e-12)


@every_operator
def test_the_adjoint_is_the_transpose(name: str) -> None:
    assert_adjoint(OPERATORS[name](), SHAPE)


@pytest.mark.parametrize("case", MEASURED, ids=[case.name for case in MEASURED])
def test_the_adjoint_of_a_measured_likelihood_is_the_transpose(case: LikelihoodCase) -> None:
    measured = case.build()
    assert isinstance(measured, Measured) and isinstance(measured.operator, LinearOperator)
    assert_adjoint(measured.operator, measured.likelihood.event_shape)


@every_operator
def test_leading_dimensions_are_kept(name: str) -> None:
    operator, x = OPERATORS[name](), torch.randn(2, 3, *SHAPE)
    found = operator(x)
    assert found.shape[:2] == (2, 3)
    torch.testing.assert_close(found[1, 2], operator(x[1, 2]))


@pytest.mark.parametrize("name", ["lanczos", "average", "blur"])
def test_a_constant_image_stays_constant(name: str) -> None:
    torch.testing.assert_close(*(OPERATORS[name]()(torch.full(SHAPE, v))[0, 0, 0] / v for v in (1.0, 3.0)))
    assert (OPERATORS[name]()(torch.ones(SHAPE)) - 1).abs().max() < 1e-6


def test_averages_are_those_of_torch() -> None:
    x = torch.randn(3, *SHAPE)
    torch.testing.assert_close(Downsample(SHAPE, 4, "average")(x), nn.functional.avg_pool2d(x, 4))


def test_lanczos_is_the_kernel_of_pillow() -> None:
    """Pillow resizes by the same stretched kernel with three lobes; with two, its formula is written out here."""
    place = (torch.arange(-8, 8, dtype=torch.float64) + 0.5) / 4
    weights = torch.sinc(place) * torch.sinc(place / 2)
    x = torch.randn(1, 32, 32, dtype=torch.float64)
    inner = Downsample((1, 32, 32), 4).double()(x)[0, 3, 4]
    wanted = torch.einsum("i,j,ij->", weights, weights, x[0, 6:22, 10:26]) / weights.sum() ** 2
    torch.testing.assert_close(inner, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.4, 1.3, 5.0])
def test_blur_is_that_of_scipy(sigma: float) -> None:
    """Mirrored borders, and a kernel wider than the image."""
    from scipy.ndimage import gaussian_filter

    x = torch.randn(1, 20, 30, dtype=torch.float64)
    expected = gaussian_filter(x[0].numpy(), sigma, mode="reflect", truncate=8.0)
    assert abs(Blur((1, 20, 30), sigma).double()(x)[0].numpy() - expected).max() < 2e-6  # its weights are float32


def test_projections_have_entries_of_variance_one_over_m() -> None:
    matrix = GaussianProjection(200, (50, 10), seed=1).matrix
    assert abs(float(matrix.var()) * 200 - 1) < 4 * (2 / matrix.numel()) ** 0.5
    assert torch.equal(matrix, GaussianProjection(200, (50, 10), seed=1).matrix)
    assert not torch.equal(matrix, GaussianProjection(200, (50, 10)).matrix)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.sampled_from(["lanczos", "average"]))
def test_any_size_can_be_downsampled(high: int, wide: int, factor: int, kernel: Any) -> None:
    shape = (1, high * factor, wide * factor)
    found = Downsample(shape, factor, kernel)(torch.ones(shape))
    torch.testing.assert_close(found, torch.ones(1, high, wide))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Mask(torch.zeros(8, 12, dtype=torch.bool), SHAPE), ValueError, "The mask hides every entry"),
        (lambda: Mask(torch.ones(8, 11, dtype=torch.bool), SHAPE), ValueError, r"shape \(8, 11\), but observations"),
        (lambda: Mask(torch.ones(8, 12), SHAPE), TypeError, "must be boolean .*Use `mask > 0.5`"),
        (
            lambda: Downsample(SHAPE, 3),
            ValueError,
            "got 3 for 8 × 12. Crop the image to 6 × 12",
        ),
        (lambda: Downsample(SHAPE, 2, "cubic"), ValueError, "kernel must be 'lanczos' or 'average'"),
        (lambda: Crop(SHAPE, 9, 4), ValueError, r"Cannot crop \(2, 8, 12\) to 9 × 4"),
        (lambda: Blur(SHAPE, 0.0), ValueError, "sigma must be positive"),
        (lambda: GaussianProjection(0, SHAPE), ValueError, "m must be at least 1"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_operators_refuse_what_does_not_fit(build, error, message: str) -> None:
    with pytest.raises(error, match=message):
        build()


# Densities.


def decoder(*shape: int) -> nn.Module:
    return nets.mlp(2, (6,), shape).double()


def test_hidden_entries_are_summed_out() -> None:
    """The distribution of the observed entries is the marginal: the Bernoulli mass, summed over the others."""
    model = Bernoulli(decoder(4), 2)
    keep = torch.tensor([True, False, True, False])
    seen = Measured(model, Mask(keep, (4,)))
    z, y = torch.randn(3, 1, 2, dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    completions = [torch.tensor([[1.0, a, 0.0, b]], dtype=torch.float64) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    wanted = torch.stack([model.log_joint(x, z) for x in completions]).logsumexp(0)
    torch.testing.assert_close(seen.log_joint(y, z), wanted, rtol=1e-12, atol=1e-12)


def test_measurement_noise_is_that_of_the_measurement() -> None:
    model = Bernoulli(decoder(*SHAPE), 2)
    operator = OPERATORS["lanczos"]().double()
    seen = Measured(model, operator, scale=0.2)
    z = torch.randn(1, 3, 2, dtype=torch.float64)
    y = torch.randn(3, *seen.event_shape, dtype=torch.float64)
    error = (y - operator(model(z[0]).mean)).flatten(1).square().sum(1)
    size = y[0].numel()
    wanted = -error / (2 * 0.04) - 0.5 * size * math.log(2 * math.pi * 0.04) - 0.5 * z[0].square().sum(1)
    torch.testing.assert_close(seen.log_joint(y, z)[0], wanted - math.log(2 * math.pi), rtol=1e-7, atol=1e-7)


def test_map_codes_of_a_projected_linear_decoder_are_ridge_regression() -> None:
    model = LinearMixture(1, 3, (20,)).double()
    operator = GaussianProjection(8, (20,)).double()
    seen = Measured(model, operator, scale=0.3)
    y = torch.randn(4, 8, dtype=torch.float64)
    design = operator.matrix @ model.loadings[0].T
    residual = y - operator(model.means[0])
    wanted = torch.linalg.solve(design.T @ design + 0.09 * torch.eye(3, dtype=torch.float64), design.T @ residual.T).T
    for step in (LBFGS(), GaussNewton()):
        found = Ascent(step=step, max_steps=50, grad_tol=1e-9)(seen, y)
        torch.testing.assert_close(found.z[0], wanted.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen.restored(wanted), model(wanted).mean)


def test_a_trained_decoder_fills_in_what_is_hidden() -> None:
    """Half of the pixels of digits, hidden: PCA's plane through the others beats the mean image."""
    from gae.data import load
    from gae.systems import ppca
    from gae.training import fit

    data = load("digits")
    model = ppca(data.event_shape, latent=8)
    fit(model, data, progress=False)
    mask = Mask(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) > 0.5, data.event_shape)
    x = data.test[:50]
    seen = Measured(model.likelihood, mask, scale=0.15)
    with torch.no_grad():
        codes = Ascent(step=LBFGS(), max_steps=60, grad_tol=1e-2)(seen, mask(x)).z[0]
        error = (seen.restored(codes) - x).square().mean()
        assert error < 0.6 * (data.train.mean(0) - x).square().mean()


def test_restarts_pick_the_best_code() -> None:
    seen = Measured(Gaussian(nets.mlp(2, (8,), 10), 2, 0.1), GaussianProjection(4, (10,)))
    y = torch.randn(3, 4)
    found = Ascent(Prior(), LBFGS(), 20, restarts=4)(seen, y)
    assert (found.log_joint >= seen.log_joint(y, found.z) - 1e-3).all() and (found.solve.spread >= 0).all()


def test_any_callable_measures() -> None:
    seen = Measured(Gaussian(decoder(4), 2, 0.5), lambda x: x.abs().sum(-1, keepdim=True), scale=0.1)
    y = torch.ones(2, 1, dtype=torch.float64)
    assert Ascent(Constant(torch.ones(2)), max_steps=2)(seen, y).log_joint.shape == (1, 2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: Measured(Poisson(decoder(4), 2), Crop((1, 2, 2), 1, 1)),
            TypeError,
            "Crop acts on means.* Give the `scale`",
        ),
        (
            lambda: Measured(LinearMixture(3, 1, (4,)), nn.Identity()),
            TypeError,
            "with 3 components: one decoder output",
        ),
        (lambda: Measured(Gaussian(decoder(4), 2), nn.Identity(), scale=0.0), ValueError, "scale must be positive"),
        (
            lambda: Measured(
                Gaussian(decoder(4), 2, learn="pixel"), Mask(torch.tensor([True, False, True, True]), (4,))
            ),
            TypeError,
            "does not fit measurements of shape",
        ),
        (
            lambda: Measured(Categorical(decoder(3, 4), 2), Mask(torch.tensor([True, False, True]), (3,))),
            TypeError,
            "does not fit measurements of shape",
        ),
    ],
)
def test_laws_that_do_not_fit_are_refused(build, error, message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_the_support_of_what_is_seen_is_checked() -> None:
    seen = Measured(Bernoulli(decoder(4), 2), Mask(torch.tensor([True, False, True, False]), (4,)))
    with pytest.raises(ValueError, match=r"needs x in \{0, 1\}, got 0.5 at index \(0, 1\)"):
        seen.check(torch.tensor([[1.0, 0.5]], dtype=torch.float64))
    bad: Tensor = torch.tensor([[1.0, math.nan]], dtype=torch.float64)
    with pytest.raises(ValueError, match="x must be finite"):
        seen.check(bad)
