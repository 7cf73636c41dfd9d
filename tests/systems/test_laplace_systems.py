"""Systems with the Laplace approximation: exact for linear decoders, and codes at the scale of the prior."""

import math
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from cases import seed
from margins import within
from torch import Tensor

from gae import Autoencoder, fit, systems
from gae.analysis.inference_gap import lower_bound, one_row
from gae.inference import Amortized, Ascent, Detach, GaussNewton, Inference, Laplace, Zeros
from gae.likelihood import Gaussian
from gae.objective import Objective, elbo, joint, laplace_evidence

VARIANCES = torch.tensor([9.0, 4.0, 0.3, 0.25, 0.2], dtype=torch.float64)


def linear(model: Autoencoder) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and scales (one for each element) of a decoder without hidden layers."""
    assert isinstance(model.likelihood, Gaussian)
    origin = torch.zeros(1, 2, dtype=torch.float64)
    bias = model.likelihood.decoder(origin)[0]
    weight = torch.autograd.functional.jacobian(lambda z: model.likelihood.decoder(z)[0], origin)[:, 0]
    return weight, bias, model.likelihood.scale


def test_vlae_of_a_linear_decoder_is_exact_after_one_step() -> None:
    seed(0)
    model = systems.build("vlae", (5,), latent=2, hidden=(), steps=1, scale=0.7, samples=3).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    weight, bias, scale = linear(model)
    pull = (weight / scale.square().unsqueeze(1)).mT
    precision = torch.eye(2) + pull @ weight
    encoding = model.encode(x)
    mean = torch.linalg.solve(precision, pull @ (x - bias).mT).mT
    torch.testing.assert_close(encoding.q.mean[0], mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.linalg.inv(encoding.q.covariance_matrix[0, 1]), precision, rtol=1e-8, atol=1e-8)
    marginal = torch.distributions.MultivariateNormal(bias, weight @ weight.mT + scale.square().diag())
    torch.testing.assert_close(elbo(encoding), marginal.log_prob(x), rtol=1e-8, atol=1e-8)
    untouched = systems.build("vlae", (5,), latent=2, hidden=(), steps=0, scale=0.7).double()
    untouched.load_state_dict(model.state_dict())
    assert isinstance(model.inference, Laplace) and isinstance(model.inference.inner, Ascent)
    assert isinstance(model.inference.inner.init, Amortized)
    assert torch.equal(untouched.encode(x).point, model.inference.inner.init(model.likelihood, x).point)


def code_square(objective: Objective, inference: Inference, hidden: Sequence[int], x: Tensor) -> float:
    """The mean square of the codes after training by L-BFGS, relative to the prior's."""
    seed(1)
    likelihood = systems.build("vae", (5,), latent=2, hidden=hidden, scale=0.5, learn="fixed").likelihood.double()
    model = Autoencoder(likelihood, inference, objective)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=25 if hidden else 100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(model.encode(x).point.detach().square().sum(1).mean()) / 2


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (8,)], ids=["linear", "neural"])
def test_codes_keep_the_scale_of_the_prior(hidden: Sequence[int]) -> None:
    """Under N(0, I), ``joint`` shrinks them. Probabilistic PCA has E z_i² = 1 - σ² / λ_i."""
    seed(2)
    x = torch.randn(30, 5, dtype=torch.float64) * VARIANCES.sqrt()
    climb = Ascent(Zeros(), GaussNewton(), 3 if not hidden else 6, adjoint=Detach())
    kept = code_square(laplace_evidence, Laplace(climb, samples=None), hidden, x)
    shrunk = code_square(joint, climb, hidden, x)
    values = torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0)[:2]
    if not hidden:
        assert kept == pytest.approx(float((1 - 0.25 / values).mean()), rel=1e-3)
    assert 0.5 < kept < 1.5
    assert shrunk < 0.1


@pytest.mark.usefixtures("unchecked_types")
def test_steps_of_vlae_raise_the_bound_of_its_encoder() -> None:
    """On a closed curve, hardly trained: steps from the encoder's mean win many nats, up to log p(x) by quadrature."""
    seed(3)
    angle = 2 * torch.pi * torch.rand(40)
    x = 2 * torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (3 * angle).sin()], 1) + 0.1 * torch.randn(40, 4)
    model = systems.build("vlae", (4,), latent=2, hidden=(8,), steps=2, scale=0.7, learn="fixed")
    fit(model, x, epochs=8, batch_size=40, optimizer=partial(torch.optim.Adam, lr=0.02), progress=False)
    model(x).backward()
    encoder = [p.grad for p in model.inference.parameters() if p.requires_grad]
    assert all(grad is not None and bool((grad != 0).any()) for grad in encoder)  # through the steps
    model, x = model.double(), x.double()
    assert isinstance(model.inference, Laplace) and isinstance(model.inference.inner, Ascent)
    side = torch.arange(-5.0, 5.0, 0.05, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).unsqueeze(1)
    engines = Laplace(model.inference.inner.init), model.inference
    with torch.no_grad():
        laws = [engine.infer(model.likelihood, x).q for engine in engines]
        start, end = (lower_bound(model.likelihood, x, one_row(q), 200) for q in laws if q is not None)
        rows = [model.likelihood.log_joint(part, grid).logsumexp(0) for part in x[:5].split(1)]
    truth = torch.cat(rows) + 2 * math.log(0.05)
    gain = end.value - start.value
    within("gain in standard errors over observations", gain.mean() / gain.std() * len(x) ** 0.5, above=0)
    assert (end.value[:5] < truth + 4 * end.standard_error[:5] + 1e-3).all()
    within("bound below log p(x)", (truth - end.value[:5]).mean(), below=float(gain.mean()) / 2)
