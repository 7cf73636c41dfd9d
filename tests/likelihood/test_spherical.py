"""The von Mises-Fisher head against mpmath, scipy, Pyro, closed forms of low dimensions and moments of samples."""

import math

import mpmath as mp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from cases import net, sphere
from pyro.distributions import VonMises3D
from torch import Tensor, nn

from gae import Autoencoder, nets, systems
from gae.inference import Ascent, GaussNewton, Zeros
from gae.likelihood import Flat, Mask, Measured, VonMisesFisher, VonMisesFisherDistribution, WeightLikelihood
from gae.likelihood.bessel import log_bessel
from gae.likelihood.spherical import log_area

CONCENTRATIONS = torch.logspace(-3, 5, 33, dtype=torch.float64)
WIDTHS = [2, 3, 4, 5, 10, 59, 61, 62, 63, 200, 784]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_scaled_bessel_function_is_that_of_scipy(width: int) -> None:
    order = width / 2 - 1
    kappa = CONCENTRATIONS.numpy()
    ive = scipy.special.ive(order, kappa)
    known = ive > 1e-290  # scipy's value underflows for a high order of a small argument
    assert known.sum() >= 12
    value, ratio = log_bessel(order, CONCENTRATIONS)
    wanted = np.log(ive[known]) - order * np.log(kappa[known])
    np.testing.assert_allclose(value.numpy()[known], wanted, rtol=1e-12, atol=1e-12)
    higher = scipy.special.ive(order + 1, kappa)[known]
    np.testing.assert_allclose((ratio.numpy() * kappa)[known], higher / ive[known], rtol=1e-10)


@pytest.mark.parametrize("width", [2, 3, 62, 784])
def test_the_scaled_bessel_function_is_that_of_mpmath_where_scipy_underflows(width: int) -> None:
    order = width / 2 - 1
    with mp.workdps(40):
        for kappa in (1e-3, 0.3, 40.0, 1e5):
            scaled = mp.besseli(order, kappa) / mp.mpf(kappa) ** order
            value, ratio = log_bessel(order, torch.tensor(kappa, dtype=torch.float64))
            assert float(value) == pytest.approx(float(mp.log(scaled) - kappa), rel=1e-13, abs=1e-13)
            wanted = mp.besseli(order + 1, kappa) / mp.besseli(order, kappa) / kappa
            assert float(ratio) == pytest.approx(float(wanted), rel=1e-11)


@pytest.mark.parametrize("width", [2, 3, 10, 784])
def test_the_normaliser_has_the_mean_length_as_its_derivative(width: int) -> None:
    kappa = torch.tensor([0.0, 1e-3, 1.0, 30.0, 1e4], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_area(kappa, width).sum(), kappa, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), kappa)
    length = (kappa * log_bessel(width / 2 - 1, kappa)[1]).detach()
    torch.testing.assert_close(slope.detach() + 1, length, rtol=1e-10, atol=1e-12)
    known = kappa.detach()[:4]  # A' = 1 - A² - (D - 1) A / κ (Mardia & Jupp 2000, appendix 1), which cancels beyond
    wanted = 1 - length[1:4].square() - (width - 1) * length[1:4] / known[1:]
    torch.testing.assert_close(curvature[1:4], wanted, rtol=1e-6, atol=1e-9)
    assert curvature[0] == pytest.approx(1 / width)


def test_at_zero_the_area_is_that_of_the_sphere() -> None:
    for width in WIDTHS:
        wanted = math.log(2) + width / 2 * math.log(math.pi) - math.lgamma(width / 2)
        assert float(log_area(torch.zeros((), dtype=torch.float64), width)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("kappa", [0.5, 7.0])
def test_densities_are_those_of_pyro_and_scipy(kappa: float) -> None:
    loc, x = sphere((4, 3)), sphere((6, 1, 3))
    found = VonMisesFisherDistribution(loc, torch.tensor(kappa).double()).log_prob(x)
    torch.testing.assert_close(found, VonMises3D(kappa * loc).log_prob(x.expand(6, 4, 3)), rtol=1e-10, atol=1e-10)
    loc, x = sphere((1, 12)), sphere((6, 12))
    wanted = scipy.stats.vonmises_fisher(loc[0].numpy(), kappa).logpdf(x.numpy())
    found = VonMisesFisherDistribution(loc, torch.tensor(kappa).double()).log_prob(x)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)


def test_the_density_of_a_circle_integrates_to_one() -> None:
    angle = torch.arange(400, dtype=torch.float64) * (2 * math.pi / 400)
    points = torch.stack([angle.cos(), angle.sin()], 1)
    q = VonMisesFisher(net(2, 2), 2, 8.0).double()(torch.randn(2, dtype=torch.float64))
    assert float(q.log_prob(points).exp().detach().mean()) * 2 * math.pi == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize(("width", "kappa"), [(2, 0.0), (2, 3.0), (3, 0.5), (7, 40.0), (300, 100.0), (4, 1e6)])
def test_samples_have_the_moments_of_the_distribution(width: int, kappa: float) -> None:
    n = 4000
    loc = sphere((1, width))[0]
    q = VonMisesFisherDistribution(loc, torch.tensor(kappa, dtype=torch.float64))
    x = q.sample((n,))
    torch.testing.assert_close(x.norm(dim=1), torch.ones(n).double(), rtol=1e-12, atol=1e-12)
    # fall = 1 - μ·x: its mean and variance are derivatives of log_area, which mpmath and scipy check
    at = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_area(at, width), at, create_graph=True)
    (variance,) = torch.autograd.grad(slope, at)
    fall = 0.5 * (x - loc).square().sum(1)
    assert abs(float(fall.mean() + slope.detach())) < 5 * math.sqrt(float(variance) / n)
    kurtosis = float(((fall - fall.mean()) / fall.std()).pow(4).mean())
    assert float(fall.var()) == pytest.approx(float(variance), rel=5 * math.sqrt(kurtosis / n))
    sideways = (x - (x @ loc)[:, None] * loc).mean(0).norm()  # tangents are uniform, so their mean is near 0
    assert float(sideways) < 5 * math.sqrt(float((1 - (x @ loc).square()).mean()) / n)


def test_it_is_the_cosine_loss_up_to_a_constant() -> None:
    """Ledger D21: losses of two outputs differ as κ times their cosine similarities."""
    model = VonMisesFisher(nn.Identity(), 6, concentration=3.0, learn="fixed", prior=Flat(6))
    model.log_concentration = torch.tensor(3.0).log()
    x, outputs = sphere((5, 6)).float(), torch.randn(4, 5, 6)
    cosine = torch.nn.functional.cosine_similarity(x.expand_as(outputs), outputs, dim=-1)
    found = model.log_joint(x, outputs)
    torch.testing.assert_close(found - found[:1], 3 * (cosine - cosine[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_the_length_of_an_output_does_not_matter(factor: float) -> None:
    model = VonMisesFisher(nn.Identity(), 4, prior=Flat(4), learn="fixed")
    x, output = sphere((3, 4)).float(), torch.randn(1, 3, 4)
    torch.testing.assert_close(model.log_joint(x, factor * output), model.log_joint(x, output))


def test_an_output_of_zero_is_a_direction() -> None:
    model = VonMisesFisher(nn.Identity(), 4, prior=Flat(4))
    z = torch.zeros(1, 2, 4, requires_grad=True)
    value = model.log_joint(sphere((2, 4)).float(), z)
    assert value.isfinite().all() and model(z).mode.norm(dim=-1).allclose(torch.ones(()))
    assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()


def test_an_event_of_any_shape_is_one_vector() -> None:
    image, x = VonMisesFisher(net(2, (1, 2, 3)), 2).double(), sphere((5, 1, 2, 3))
    flat = VonMisesFisher(nn.Sequential(image.decoder, nn.Flatten()), 2).double()
    z = torch.randn(2, 5, 2, dtype=torch.float64)
    torch.testing.assert_close(image.log_joint(x, z), flat.log_joint(x.flatten(1), z))
    assert image(z).sample().shape == (2, 5, 1, 2, 3)


def test_concentrated_densities_keep_their_digits_in_float32() -> None:
    model = VonMisesFisher(nn.Identity(), 3, 1e6, prior=Flat(3), learn="fixed")
    x = VonMisesFisherDistribution(torch.tensor([0.6, 0.0, 0.8]), torch.tensor(1e6)).sample((50,))
    z = torch.tensor([0.6, 0.0, 0.8]).expand(1, 50, 3)
    found, wanted = model.log_joint(x, z), model.double().log_joint(x.double(), z.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


def test_learning_finds_the_concentration() -> None:
    """The maximum of the likelihood has the mean length of the data (Mardia & Jupp 2000, 10.3.2)."""
    x = VonMisesFisherDistribution(torch.tensor([0.0, 1.0, 0.0]).double(), torch.tensor(6.0).double()).sample((200,))
    model = VonMisesFisher(nn.Linear(1, 3), 1, concentration=2.0, prior=Flat(1)).double()
    code = torch.zeros(1, 200, 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=60, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -model.log_joint(x, code).mean()
        value.backward()
        return value

    optimizer.step(loss)
    resultant = float(x.mean(0).norm())
    kappa = float(model.concentration.detach())
    assert 1 / math.tanh(kappa) - 1 / kappa == pytest.approx(resultant, abs=1e-5)


def test_gauss_newton_fits_a_direction() -> None:
    model = VonMisesFisher(nets.mlp(2, (5,), 4), 2, 20.0).double()
    x = model.sample_joint(6, mean=True)[0].detach()
    before = model.log_joint(x, torch.zeros(1, 6, 2, dtype=torch.float64))
    after = Ascent(Zeros(), GaussNewton(damping=0.1), max_steps=10)(model, x).log_joint
    assert (after >= before).all()


def test_vectors_of_another_norm_are_refused() -> None:
    model = Autoencoder(VonMisesFisher(net(2, 3), 2), Zeros())
    with pytest.raises(ValueError, match=r"needs x of norm 1, got 0 at observation \(1,\).*Divide each observation"):
        model.encode(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_a_part_of_a_direction_has_no_density_of_its_own() -> None:
    model, mask = VonMisesFisher(net(2, 3), 2), Mask(torch.tensor([True, True, False]), (3,))
    with pytest.raises(TypeError, match="The distribution of VonMisesFisher does not fit measurements"):
        Measured(model, mask)
    assert Measured(model, mask, scale=0.1).event_shape == (2,)


def test_one_element_has_no_direction() -> None:
    with pytest.raises(ValueError, match="A direction needs at least 2 elements"):
        VonMisesFisher(nn.Linear(2, 1), 2)


def test_directions_drawn_by_a_network_of_weights() -> None:
    model = WeightLikelihood(net(1, 3), torch.ones(1), VonMisesFisher, jitter=0.1)
    outputs = model.sample_outputs(model.initial(2)[None])
    torch.testing.assert_close(outputs.norm(dim=-1), torch.ones(1, 2))


def test_a_system_takes_the_head_by_name() -> None:
    x = sphere((20, 6)).float()
    loss = systems.build("vae", (6,), latent=2, hidden=(5,), head="von-mises-fisher")(x)
    assert loss.isfinite()
