"""Corruptions, penalties, sparse codes, and Markov chains of denoising and contractive autoencoders."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import without_type_checks
from margins import within
from sklearn.decomposition import SparseCoder
from sklearn.linear_model import Lasso
from torch import Tensor, nn
from torch.distributions import Bernoulli as Coin
from torch.distributions import kl_divergence

from gae import Autoencoder, nets, systems
from gae.analysis.chains import contractive_walk, denoising_walk
from gae.data import Dataset
from gae.inference import (
    Amortized,
    Ascent,
    ClosedForm,
    Delta,
    Detach,
    GradientAscent,
    ProximalAscent,
    Status,
    Unroll,
    Zeros,
)
from gae.inference.ascent.problem import Problem
from gae.inference.ascent.solver import Solver
from gae.likelihood import Flat, Gaussian, LaplacePrior, LinearMixture
from gae.objective import joint
from gae.training import fit
from gae.training.corruption import GaussianNoise, MaskingNoise, SaltAndPepper, Walkback
from gae.training.learners import has_closed_form
from gae.training.penalty import Contractive, SparseActivation, SparseActivity

train = partial(fit, progress=False)
Adam = partial(torch.optim.Adam, lr=3e-3)


def model(encoder: nn.Module, width: int = 3, dim: int = 4, **options: object) -> Autoencoder:
    decoder = Gaussian(nn.Linear(width, dim), width, 0.7, prior=Flat(width))
    return Autoencoder(decoder, Amortized(encoder), joint, **options).double()  # type: ignore[arg-type]


# Corruptions.


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_gaussian_noise(scale: float) -> None:
    x = torch.randn(20_000, 2).double()
    noise = GaussianNoise(scale)(x) - x
    assert float(noise.mean()) == pytest.approx(0, abs=4 * scale / 200)
    assert float(noise.var()) == pytest.approx(scale**2, rel=0.03)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_masking_noise(rate: float) -> None:
    x = torch.rand(20_000, 2).double() + 1
    masked = MaskingNoise(rate, value=-3.0)(x)
    hidden = masked == -3
    assert torch.equal(masked[~hidden], x[~hidden])
    assert float(hidden.double().mean()) == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_salt_and_pepper(rate: float) -> None:
    x = torch.rand(20_000, 2).double() * 0.5 + 0.25
    found = SaltAndPepper(rate, low=-1.0, high=2.0)(x)
    for value in (-1.0, 2.0):
        assert float((found == value).double().mean()) == pytest.approx(rate / 2, abs=0.01)
    kept = (found != -1) & (found != 2)
    assert torch.equal(found[kept], x[kept])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianNoise(0.0), "scale must be positive"),
        (lambda: MaskingNoise(1.1), r"rate must lie in \(0, 1\]"),
        (lambda: Walkback(GaussianNoise(1.0), 1.0), r"rate must lie in \[0, 1\)"),
        (lambda: SaltAndPepper(0.0), r"rate must lie in \(0, 1\]"),
        (lambda: SaltAndPepper(0.1, 1.0, 1.0), "low < high"),
        (lambda: Contractive(0.0), "weight must be positive"),
        (lambda: SparseActivity(1.0, 1.0), "rho must lie"),
        (lambda: SparseActivation(1.0, 0.0), "rho must lie"),
        (lambda: LaplacePrior(2, rate=0.0), "rate must be positive"),
    ],
)
def test_numbers_out_of_range(build: partial[nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_clean_x_is_scored() -> None:
    """Training: the encoder sees x̃, the density is that of x. Evaluation: no corruption."""
    encoder = nn.Linear(4, 3)
    autoencoder, x = model(encoder, corruption=GaussianNoise(0.5)), torch.randn(6, 4).double()
    torch.manual_seed(1)
    seen = GaussianNoise(0.5)(x)
    wanted = -autoencoder.likelihood.log_joint(x, encoder(seen).unsqueeze(0)).mean()
    torch.manual_seed(1)
    assert torch.allclose(autoencoder(x), wanted)
    clean = -autoencoder.likelihood.log_joint(x, encoder(x).unsqueeze(0)).mean()
    assert torch.allclose(autoencoder.eval()(x), clean)
    assert torch.allclose(autoencoder.train().encode(x).z[0], encoder(x))


def test_a_score_of_the_corrupted_x_is_not_used() -> None:
    """An ascent stores the log density of its code, for the x that it received."""
    likelihood = LinearMixture(1, 2, (4,), flat_prior=True).double()
    engine = Ascent(Zeros(), GradientAscent(0.1), 3)
    autoencoder, x = Autoencoder(likelihood, engine, joint, corruption=MaskingNoise(1.0)), torch.randn(5, 4).double()
    code = engine.infer(likelihood, torch.zeros_like(x))
    assert torch.allclose(autoencoder(x), -likelihood.log_joint(x, code.z).mean())


def test_closed_forms_do_not_learn_what_is_regularised() -> None:
    linear = LinearMixture(1, 2, (4,))
    assert has_closed_form(Autoencoder(linear, ClosedForm()))
    assert not has_closed_form(Autoencoder(linear, ClosedForm(), corruption=MaskingNoise(0.5)))


# Penalties.


def test_contractive_penalty_of_a_linear_encoder() -> None:
    encoder = nn.Linear(4, 3)
    plain, contracted = model(encoder), model(encoder, penalties=[Contractive(0.3)])
    contracted.likelihood.load_state_dict(plain.likelihood.state_dict())
    x = torch.randn(7, 4).double()
    assert torch.allclose(contracted(x) - plain(x), 0.3 * encoder.weight.square().sum())


def test_contractive_penalty_of_a_curved_encoder() -> None:
    """h = tanh(Wx + b): Σ_i (1 - h_i²)² ‖W_i‖², the mean over x; its gradient reaches the weights."""
    layer = nn.Linear(4, 3).double()
    autoencoder, x = model(nn.Sequential(layer, nn.Tanh()), penalties=[Contractive(1.0)]), torch.randn(9, 4).double()
    h = torch.tanh(layer(x))
    wanted = ((1 - h.square()).square() @ layer.weight.square().sum(1)).mean()
    found = autoencoder(x) - autoencoder.eval()(x)
    assert torch.allclose(found, wanted)
    ours, theirs = (torch.autograd.grad(value, layer.weight, retain_graph=True)[0] for value in (found, wanted))
    assert torch.allclose(ours, theirs)


def test_contractive_penalty_through_an_unrolled_ascent() -> None:
    """Any engine whose codes depend on x: here z = W(x - μ)/2 after one step from zero."""
    likelihood = LinearMixture(1, 2, (4,), flat_prior=True).double()
    engine = Ascent(Zeros(), GradientAscent(0.5), 1, adjoint=Unroll())
    autoencoder = Autoencoder(likelihood, engine, penalties=[Contractive(1.0)])
    x = torch.randn(3, 4).double()
    found = autoencoder(x) - autoencoder.eval()(x)
    assert torch.allclose(found, 0.25 * likelihood.loadings.square().sum())
    cut = Autoencoder(likelihood, Ascent(Zeros(), max_steps=1, adjoint=Detach()), penalties=[Contractive(1.0)])
    with pytest.raises(ValueError, match="codes that depend on x"):
        cut(x)


def test_activity_penalty_is_the_divergence_of_two_coins() -> None:
    encoder = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    autoencoder, x = model(encoder, penalties=[SparseActivity(2.0, rho=0.1)]), torch.randn(50, 4).double()
    activity = encoder(x).mean(0)
    wanted = 2 * kl_divergence(Coin(torch.tensor(0.1).double()), Coin(activity)).sum()
    assert torch.allclose(autoencoder(x) - autoencoder.eval()(x), wanted)


def test_the_penalty_of_each_activation_is_the_divergence_of_its_coin() -> None:
    """Ledger D31: the source's form, with the slope logit z - logit ρ, over the number of observations."""
    encoder = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    autoencoder, x = model(encoder, penalties=[SparseActivation(2.0, rho=0.1)]), torch.randn(50, 4).double()
    z = encoder(x)
    wanted = 2 * kl_divergence(Coin(z), Coin(torch.tensor(0.1).double())).sum(1).mean()
    penalty = autoencoder(x) - autoencoder.eval()(x)
    assert torch.allclose(penalty, wanted)
    logit = encoder[0](x)
    slope = (2 / 50 * (logit - math.log(0.1 / 0.9)) * z * (1 - z)).sum(0)  # dz / d logit = z (1 - z)
    assert torch.allclose(torch.autograd.grad(penalty, encoder[0].bias)[0], slope)


def test_a_saturated_activation_has_a_finite_penalty() -> None:
    encoder = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
    nn.init.constant_(encoder[0].bias, -2000.0)
    autoencoder = model(encoder, penalties=[SparseActivation(1.0, 0.1)])
    loss = autoencoder(torch.randn(5, 4).double())
    gradient = torch.autograd.grad(loss, encoder[0].weight)[0]
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("penalty", [SparseActivity, SparseActivation])
def test_activities_outside_the_unit_interval(penalty: type[nn.Module]) -> None:
    autoencoder = model(nn.Linear(4, 3), penalties=[penalty(1.0)])
    with pytest.raises(ValueError, match=r"must lie in .*sigmoid"):
        autoencoder(10 * torch.ones(5, 4).double())


# Sparse codes.


def dictionary(latent: int = 12, dim: int = 8, scale: float = 0.5, rate: float = 2.0) -> Gaussian:
    return Gaussian(nets.Dictionary(latent, dim), latent, scale, prior=LaplacePrior(latent, rate=rate)).double()


@pytest.mark.parametrize("accelerated", [False, True])
def test_proximal_ascent_finds_the_lasso(accelerated: bool) -> None:
    """scikit-learn's objective is ‖x - Az‖²/(2n) + α ‖z‖₁; ours is ‖x - Az‖²/(2σ²) + λ ‖z‖₁."""
    likelihood, x = dictionary(dim=16), 2 * torch.randn(6, 16).double()
    directions = torch.linalg.qr(torch.randn(16, 12).double())[0].T
    # nearly orthogonal, so that the rate of convergence, 1 - 1/κ, is fast for any draw
    likelihood.decoder.atoms.data = directions + 0.05 * torch.randn(12, 16).double()  # type: ignore[union-attr]
    atoms = nn.functional.normalize(likelihood.decoder.atoms, dim=1).detach()  # type: ignore[union-attr, arg-type]
    largest = float(torch.linalg.eigvalsh(atoms @ atoms.T)[-1]) / 0.25
    with torch.no_grad():
        code = Ascent(Zeros(), ProximalAscent(1 / largest, accelerated), 300)(likelihood, x).z[0]
    lasso = Lasso(alpha=2.0 * 0.25 / 16, fit_intercept=False, tol=1e-14, max_iter=100_000)
    wanted = np.stack([lasso.fit(atoms.T.numpy(), row).coef_.copy() for row in x.numpy()])
    assert np.allclose(code.numpy(), wanted, atol=1e-6)
    assert ((code == 0).numpy() == (wanted == 0)).all()  # exact zeros
    assert 0 < (wanted == 0).mean() < 0.5


def alike(latent: int, dim: int, spread: float) -> Gaussian:
    """A dictionary whose atoms are nearly equal: its largest curvature is near latent / scale²."""
    likelihood = dictionary(latent, dim)
    likelihood.decoder.atoms.data = torch.ones(dim).double() + spread * torch.randn(latent, dim).double()  # type: ignore[union-attr]
    return likelihood


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("accelerated", [False, True])
def test_backtracking_converges_where_atoms_are_alike(accelerated: bool, dtype: torch.dtype) -> None:
    """Within the bounds of Beck & Teboulle (2009, theorems 3.1 and 4.4) around the lasso by coordinate descent.

    The step that assumes a curvature of √Z / scale² diverges here.
    """
    likelihood, x = alike(40, 10, 0.3), 2 * torch.randn(12, 10).double()
    x[0] = 0  # its code is 0, and nothing can be measured there
    atoms = nn.functional.normalize(likelihood.decoder.atoms, dim=1).detach()  # type: ignore[union-attr, arg-type]
    largest = float(torch.linalg.eigvalsh(atoms @ atoms.T)[-1]) / 0.25
    assert largest > 0.8 * 40 / 0.25
    lasso = Lasso(alpha=2.0 * 0.25 / 10, fit_intercept=False, tol=1e-10, max_iter=100_000)
    wanted = torch.from_numpy(np.stack([lasso.fit(atoms.T.numpy(), row).coef_.copy() for row in x.numpy()]))
    best = likelihood.log_joint(x, wanted.unsqueeze(0))[0].detach()
    steps, back = 300, 20  # moves taken, and at most so many taken back
    with torch.no_grad():
        found = Ascent(Zeros(), ProximalAscent(None, accelerated), steps + back)(likelihood.to(dtype), x.to(dtype))
        gap = best - likelihood.double().log_joint(x, found.z.double())[0]
        fixed = Ascent(Zeros(), ProximalAscent(0.25 / 40**0.5, accelerated), 50)(likelihood, x)
    bound = 1.1 * largest * wanted.square().sum(1) * (2 / (steps + 1) ** 2 if accelerated else 1 / (2 * steps))
    assert (gap <= bound + 1e-4).all() and gap.min() > -1e-4
    assert (found.z == 0).double().mean() > 0.3
    assert found.solve is not None and (found.solve.status == Status.max_steps).all()
    assert (fixed.log_joint[0] < best - 1e6).double().mean() > 0.7  # but for codes that are 0


def test_backtracking_ends_near_the_largest_curvature() -> None:
    """It begins with the curvature along the first gradient, by the atoms' own inner products; never falls, and ends at
    most 1.1 times the largest: any move meets at most that."""
    likelihood, x = alike(40, 10, 0.3), 2 * torch.randn(12, 10).double()
    atoms = nn.functional.normalize(likelihood.decoder.atoms, dim=1).detach()  # type: ignore[union-attr, arg-type]
    largest = float(torch.linalg.eigvalsh(atoms @ atoms.T)[-1]) / 0.25
    solver = Solver(Problem(likelihood, Delta(), x, None, None), ProximalAscent(accelerated=True), 60)
    curvatures = [solver.run(solver.start(torch.zeros(1, 12, 40).double()), 0, n, False) for n in (1, 3, 60)]
    first, early, last = (solver.state(at)["curvature"] for at in curvatures)
    gradient = x @ atoms.T / 0.25  # at 0
    along = (gradient @ atoms).square().sum(1) / gradient.square().sum(1) / 0.25
    assert torch.allclose(first[0], along, rtol=1e-6)
    assert (first <= early).all() and (early <= last).all()
    assert (last <= 1.1 * largest * (1 + 1e-9)).all()


def test_backtracking_survives_a_decoder_that_is_not_finite_far_out() -> None:
    class Steep(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.where(z.abs() < 1.5, z, torch.inf)

    likelihood = Gaussian(Steep(), 2, 0.1, prior=LaplacePrior(2))
    with torch.no_grad():
        found = Ascent(Zeros(), ProximalAscent(), 100)(likelihood, torch.tensor([[1.0, -1.2]]))
    assert torch.allclose(found.z[0], torch.tensor([[0.99, -1.19]]), atol=1e-3)


def test_acceleration_is_faster() -> None:
    likelihood, x = dictionary(latent=30), torch.randn(20, 8).double()
    values = []
    for accelerated in (False, True):
        with torch.no_grad():
            values.append(Ascent(Zeros(), ProximalAscent(0.02, accelerated), 60)(likelihood, x).log_joint.mean())
    assert values[1] > values[0]


def test_plain_proximal_ascent_never_falls() -> None:
    likelihood, x = dictionary(), torch.randn(10, 8).double()
    with torch.no_grad():
        solve = Ascent(Zeros(), ProximalAscent(0.02), 50, trace=True)(likelihood, x).solve
    assert solve is not None and solve.trace is not None
    assert (solve.trace.diff(dim=0) > -1e-10).all()


def test_proximal_ascent_needs_a_laplace_prior() -> None:
    likelihood = Gaussian(nn.Linear(2, 3), 2)
    with pytest.raises(TypeError, match="needs a Laplace prior"):
        Ascent(step=ProximalAscent(0.1), max_steps=1)(likelihood, torch.zeros(1, 3))


def test_atoms_have_unit_length() -> None:
    network = nets.Dictionary(5, (2, 3)).double()
    network.atoms.data *= 7
    assert torch.allclose(network(torch.eye(5).double()).flatten(1).norm(dim=1), torch.ones(5).double())


# The systems.


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
def test_sparse_autoencoder_reaches_its_activity(digits: Dataset) -> None:
    torch.manual_seed(0)
    autoencoder = systems.build("sparse-ae", digits.event_shape, latent=64, rho=0.05, weight=300.0)
    train(autoencoder, digits, epochs=60, optimizer=Adam)
    with torch.no_grad():
        activity = autoencoder.encode(digits.epoch(0)).z[0].mean(0)
    within("error of the mean activity", abs(float(activity.mean()) - 0.05), below=0.01)
    within("mean error of activities", (activity - 0.05).abs().mean(), below=0.01)


def test_l1_is_the_loss_of_sparse_coding_at_the_encoders_code() -> None:
    """Ledger D31: ‖x - Az‖²/2σ² + λ Σ|z| up to constants, with unit atoms A and σ of 0.4 in units of the data."""
    autoencoder = systems.build("sparse-ae", (4,), latent=6, weight=3.0, penalty="l1").double()
    x = torch.randn(7, 4).double()
    with torch.no_grad():
        encoding = autoencoder.encode(x)
        z, error = encoding.z[0], x - autoencoder.reconstruct(x)
        found = autoencoder(x)
    wanted = (error.square().sum(1) / 0.32 + 3 * z.abs().sum(1)).mean()
    constant = 4 * math.log(0.4 * math.sqrt(2 * math.pi)) - 6 * math.log(3 / 2)
    assert float(found) == pytest.approx(float(wanted) + constant, rel=1e-6)


def test_a_higher_rate_makes_the_codes_smaller(digits: Dataset) -> None:
    sizes = []
    for rate in (0.1, 10.0):
        torch.manual_seed(0)
        autoencoder = systems.build("sparse-ae", digits.event_shape, latent=32, weight=rate, penalty="l1")
        train(autoencoder, digits.train[:300], epochs=20, batch_size=50, optimizer=Adam)
        with torch.no_grad():
            sizes.append(float(autoencoder.encode(digits.train[:300]).z.abs().mean()))
    within("size of the codes at the higher rate, by that at the lower", sizes[1] / sizes[0], below=0.5)


def test_each_activation_comes_close_to_its_target(digits: Dataset) -> None:
    torch.manual_seed(0)
    autoencoder = systems.build("sparse-ae", digits.event_shape, latent=16, rho=0.2, weight=300.0, penalty="each")
    train(autoencoder, digits.train[:300], epochs=20, batch_size=50, optimizer=Adam)
    with torch.no_grad():
        z = autoencoder.encode(digits.train[:300]).z
    within("root mean square distance from the target", (z - 0.2).square().mean().sqrt(), below=0.1)


def test_options_of_the_sparse_autoencoder() -> None:
    with pytest.raises(ValueError, match=r"Unknown penalty 'l2'\. Valid penalties: mean, each, l1"):
        systems.build("sparse-ae", (4,), penalty="l2")
    with pytest.raises(ValueError, match=r"has no target activity: rho=0\.1"):
        systems.build("sparse-ae", (4,), penalty="l1", rho=0.1)


@pytest.mark.usefixtures("unchecked_types")
def test_sparse_coding_solves_the_lasso_of_its_learned_dictionary(digits: Dataset) -> None:
    """Optimal by a dual certificate, by the conditions of Karush, Kuhn and Tucker, and by scikit-learn's solver."""
    torch.manual_seed(0)
    autoencoder = systems.build("sparse-coding", digits.event_shape, latent=96, rate=5.0, steps=30)
    start = nn.functional.normalize(autoencoder.likelihood.decoder.atoms.detach(), dim=1)  # type: ignore[union-attr, arg-type]
    history = train(autoencoder, digits.train[:200], epochs=2, batch_size=50, optimizer=partial(Adam, lr=1e-2))
    assert history.rows[1].train_loss < history.rows[0].train_loss
    likelihood, images = autoencoder.likelihood.double(), digits.test[:20].double()
    atoms = nn.functional.normalize(likelihood.decoder.atoms, dim=1).detach()  # type: ignore[union-attr, arg-type]
    assert not torch.allclose(atoms.float(), start, atol=1e-2)
    with torch.no_grad():
        codes = Ascent(Zeros(), ProximalAscent(accelerated=True), 500)(likelihood, images).z[0]
    x, variance, rate = images.flatten(1), 0.1**2, 5.0

    def objective(z: Tensor) -> Tensor:
        return (x - z @ atoms).square().sum(1) / (2 * variance) + rate * z.abs().sum(1)

    # any y with ‖Ay‖∞ <= λ bounds the least objective from below
    residual = (x - codes @ atoms) / variance
    pull = residual @ atoms.T
    y = residual * (rate / pull.abs().amax(1, keepdim=True)).clamp_max(1)
    bound = (y * x).sum(1) - variance / 2 * y.square().sum(1)
    assert (objective(codes) - bound <= 1e-3 * bound).all()
    used = codes.abs() > 1e-3
    assert torch.allclose(pull[used], rate * codes[used].sign(), rtol=1e-2)
    assert (codes[pull.abs() < 0.99 * rate] == 0).all()
    coder = SparseCoder(atoms.numpy(), transform_algorithm="lasso_cd", transform_alpha=0.05, transform_max_iter=20_000)
    assert torch.allclose(objective(codes), objective(torch.from_numpy(coder.transform(x.numpy()))), rtol=1e-5)


def psnr(error: Tensor) -> float:
    return -10 * math.log10(float(error.square().mean()))


@pytest.fixture(scope="module")
def denoising(digits: Dataset) -> Autoencoder:
    """Trained long enough to walk: one that is trained less walks away."""
    torch.manual_seed(0)
    autoencoder = systems.build("dae", digits.event_shape, latent=32, hidden=(128,), amount=0.3)
    with without_type_checks():
        train(autoencoder, digits, epochs=120, optimizer=Adam)
    return autoencoder


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
def test_denoising_autoencoder_beats_the_plain_one_on_noisy_digits(denoising: Autoencoder, digits: Dataset) -> None:
    torch.manual_seed(0)
    plain = systems.build("ae", digits.event_shape, latent=32, hidden=(128,))
    train(plain, digits, epochs=30, optimizer=Adam)
    noisy = digits.test + 0.3 * torch.randn_like(digits.test)
    found = []
    for autoencoder in (plain, denoising):
        with torch.no_grad():
            found.append(psnr(autoencoder.reconstruct(noisy) - digits.test))
    within("gain in dB", found[1] - found[0], above=1)


def jacobian_norm(autoencoder: Autoencoder, x: Tensor) -> float:
    leaf = x.clone().requires_grad_()
    return float(Contractive(1.0)(leaf, autoencoder.encode(leaf)).detach())


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
def test_contraction_lowers_the_jacobian(digits: Dataset) -> None:
    norms = []
    for name, options in (("ae", {}), ("cae", {"weight": 50.0})):
        torch.manual_seed(0)
        autoencoder = systems.build(name, digits.event_shape, latent=16, hidden=(64,), **options)
        train(autoencoder, digits, epochs=10, optimizer=Adam)
        norms.append(jacobian_norm(autoencoder, digits.test[:100]))
    within("norm of the Jacobian, by the plain one's", norms[1] / norms[0], below=0.5)


@pytest.mark.parametrize("corruption", systems.CORRUPTIONS)
def test_every_corruption_has_a_name(corruption: str, digits: Dataset) -> None:
    autoencoder = systems.build("dae", digits.event_shape, corruption=corruption, amount=0.2)
    assert bool(autoencoder(digits.train[:5]).detach().isfinite())


def test_unknown_corruption() -> None:
    with pytest.raises(ValueError, match=r"Unknown corruption 'blur'\. Valid corruptions: gaussian, masking"):
        systems.build("dae", (4,), corruption="blur")


# Chains.


def gaussian_denoiser(spread: float, noise: float, corruption: nn.Module) -> Autoencoder:
    """The optimal denoiser of data N(0, s²) with noise σ²: x given x̃ is N(c x̃, c σ²), c = s²/(s² + σ²)."""
    share = spread**2 / (spread**2 + noise**2)
    decoder = nn.Linear(1, 1, bias=False).double()
    decoder.weight.data.fill_(share)
    likelihood = Gaussian(decoder, 1, math.sqrt(share) * noise, prior=Flat(1))
    return Autoencoder(likelihood, Amortized(nn.Identity()), corruption=corruption)


def test_the_denoising_walk_of_a_gaussian() -> None:
    """Data N(0, s²), noise σ²: the optimal denoiser is x̃ s²/(s²+σ²) with variance s²σ²/(s²+σ²); the chain keeps s²."""
    spread, noise = 1.5, 1.0
    autoencoder = gaussian_denoiser(spread, noise, GaussianNoise(noise))
    chain = denoising_walk(autoencoder, torch.full((4000, 1), 5.0).double(), steps=30)[-1]
    assert float(chain.mean()) == pytest.approx(0, abs=4 * spread / math.sqrt(4000))
    assert float(chain.var()) == pytest.approx(spread**2, abs=4 * spread**2 * math.sqrt(2 / 4000))


class Recorded(GaussianNoise):
    """Noise that keeps what it returned."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [*getattr(self, "seen", []), super().forward(x)]
        return self.seen[-1]


def test_inputs_of_walk_back_training_are_those_of_the_chain() -> None:
    """After t returns an input is Gaussian, of a known mean and variance, and a fraction pᵗ of the chains get there."""
    spread, noise, rate, n = 1.5, 1.0, 0.6, 20_000
    walk = Walkback(Recorded(noise), rate)
    autoencoder = gaussian_denoiser(spread, noise, walk)
    clean, seen = walk.pairs(autoencoder.redraw, torch.full((n, 1), 5.0).double())
    steps = walk.corruption.seen  # type: ignore[union-attr]
    assert torch.equal(torch.cat(steps), seen) and bool((clean == 5).all()) and len(clean) == len(seen)
    share, mean, variance = spread**2 / (spread**2 + noise**2), 5.0, noise**2
    for before, step in pairwise([torch.empty(round(n / rate)), *steps[:5]]):
        expected = rate * len(before)
        assert len(step) == pytest.approx(expected, abs=4.5 * math.sqrt(expected * (1 - rate)))
        assert float(step.mean()) == pytest.approx(mean, abs=4.5 * math.sqrt(variance / len(step)))
        assert float(step.var()) == pytest.approx(variance, abs=4.5 * variance * math.sqrt(2 / len(step)))
        mean, variance = share * mean, share**2 * variance + share * noise**2 + noise**2


def test_walk_back_training_scores_the_start_of_each_chain() -> None:
    autoencoder = gaussian_denoiser(1.5, 1.0, Walkback(GaussianNoise(1.0), 0.5))
    x = torch.randn(9, 1).double()
    torch.manual_seed(1)
    clean, seen = autoencoder.corruption.pairs(autoencoder.redraw, x)  # type: ignore[union-attr, operator]
    assert len(clean) > 9 and set(clean.flatten().tolist()) <= set(x.flatten().tolist())
    torch.manual_seed(1)
    assert torch.allclose(autoencoder(x), -autoencoder.likelihood.log_joint(clean, seen.unsqueeze(0)).mean())
    plain = -autoencoder.likelihood.log_joint(x, x.unsqueeze(0)).mean()
    assert torch.allclose(autoencoder.eval()(x), plain)
    torch.manual_seed(1)
    first = denoising_walk(autoencoder, x, steps=3)
    torch.manual_seed(1)
    assert torch.equal(first, denoising_walk(autoencoder, x, steps=3, corruption=GaussianNoise(1.0)))


def test_a_denoising_autoencoder_learns_from_its_own_chains(digits: Dataset) -> None:
    torch.manual_seed(0)
    autoencoder = systems.build("dae", digits.event_shape, latent=8, hidden=(16,), walkback=0.5)
    history = train(autoencoder, digits.train[:200], epochs=4, batch_size=50, optimizer=Adam)
    assert history.rows[-1].train_loss < history.rows[0].train_loss
    with pytest.raises(ValueError, match=r"walkback must lie in \[0, 1\), got 1"):
        systems.build("dae", (4,), walkback=1.0)


def test_the_contractive_walk_of_a_linear_encoder() -> None:
    """z = Wx, x' = z: one step from x is N(Wx, scale² (WWᵀ)²)."""
    encoder, decoder = nn.Linear(2, 2, bias=False).double(), nn.Linear(2, 2, bias=False).double()
    decoder.weight.data = torch.eye(2).double()
    autoencoder = Autoencoder(Gaussian(decoder, 2, 1.0, prior=Flat(2)), Amortized(encoder))
    start = torch.tensor([[0.5, -1.0]]).double().expand(20_000, 2)
    moved = contractive_walk(autoencoder, start, steps=1, scale=0.7)[0]
    weight = encoder.weight.detach()
    gram = weight @ weight.T
    assert torch.allclose(moved.mean(0), start[0] @ weight.T, atol=0.03)
    assert torch.allclose(moved.T.cov(), 0.49 * gram @ gram, atol=0.03)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
def test_walks_stay_among_digits(denoising: Autoencoder, digits: Dataset) -> None:
    chain = denoising_walk(denoising, digits.test[:40], steps=20)
    assert chain.shape == (20, 40, 1, 8, 8) and chain.isfinite().all()
    distance = torch.cdist(chain[-1].flatten(1), digits.train.flatten(1)).amin(1).mean()
    noise = torch.cdist(torch.rand(40, 64), digits.train.flatten(1)).amin(1).mean()
    within("distance from digits, by that of noise", distance / noise, below=0.7)


def test_bad_arguments_of_walks() -> None:
    autoencoder, x = model(nn.Linear(4, 3)), torch.zeros(2, 4).double()
    with pytest.raises(ValueError, match="needs a corruption"):
        denoising_walk(autoencoder, x, steps=2)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        contractive_walk(autoencoder, x, steps=0, scale=1.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        contractive_walk(autoencoder, x, steps=1, scale=0.0)
    cut = Autoencoder(autoencoder.likelihood, Ascent(max_steps=1, adjoint=Detach()))
    with pytest.raises(ValueError, match="codes that depend on x"):
        contractive_walk(cut, x, steps=1, scale=1.0)
