"""The scale of codes beside the prior's, and the warning of an objective without a maximiser."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import seed
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from gae import Autoencoder, nets, systems
from gae.inference import (
    Amortized,
    Ascent,
    AutoDecoder,
    ClosedForm,
    Detach,
    Inference,
    Langevin,
    Laplace,
    Prior,
    Unroll,
    Zeros,
)
from gae.likelihood import Flat, Gaussian, Likelihood, LinearMixture
from gae.objective import Objective, elbo, joint, laplace_evidence
from gae.training import fit
from gae.training.penalty import SparseActivity

pytestmark = pytest.mark.filterwarnings("error:Training by")
CURE = r"`joint` under a proper prior has no maximiser: .*Use `laplace_evidence` with `Laplace\(engine, samples=None\)`"


@pytest.fixture
def x() -> Tensor:
    seed(0)
    return torch.randn(12, 4)


def network() -> Gaussian:
    return Gaussian(nets.mlp(2, (5,), 4), 2)


def climb() -> Ascent:
    return Ascent(Zeros(), max_steps=2, adjoint=Detach())


def once(model: Autoencoder, x: Tensor, **options: Any) -> None:
    fit(model, x, epochs=2, progress=False, **options)


TRAPS: dict[str, Callable[[], tuple[Likelihood, Inference]]] = {
    "ascent": lambda: (network(), climb()),
    "unrolled": lambda: (network(), Ascent(Zeros(), max_steps=2, adjoint=Unroll())),
    "auto-decoder": lambda: (network(), AutoDecoder(2, climb())),
    "encoder": lambda: (network(), Amortized(nets.mlp(4, (5,), 2))),
    "linear": lambda: (Gaussian(nn.Linear(2, 4), 2), climb()),
}


@pytest.mark.parametrize("name", TRAPS)
def test_an_objective_without_a_maximiser_warns_once(name: str, x: Tensor) -> None:
    model = Autoencoder(*TRAPS[name](), joint)
    with pytest.warns(UserWarning, match=CURE) as caught:
        once(model, x)
    assert len(caught) == 1
    model.accepts_rescaling = True
    once(model, x)


def unit_weights() -> Gaussian:
    return Gaussian(nn.Sequential(orthogonal(nn.Linear(2, 4, bias=False))), 2)


def frozen() -> Gaussian:
    model = network()
    model.decoder.requires_grad_(False)
    return model


FINE: dict[str, Callable[[], tuple[Likelihood, Inference, Objective]]] = {
    "flat prior": lambda: (Gaussian(nets.mlp(2, (5,), 4), 2, prior=Flat(2)), climb(), joint),
    "laplace evidence": lambda: (network(), Laplace(climb(), samples=None), laplace_evidence),
    "elbo": lambda: (network(), Laplace(climb()), elbo),
    "draws": lambda: (network(), Ascent(Prior(), Langevin(0.01), 2, adjoint=Detach()), joint),
    "unit weights": lambda: (unit_weights(), climb(), joint),
    "unit atoms": lambda: (Gaussian(nets.Dictionary(2, (4,)), 2), climb(), joint),
    "frozen decoder": lambda: (frozen(), Amortized(nets.mlp(4, (5,), 2)), joint),
    "closed form": lambda: (LinearMixture(1, 2, (4,)), ClosedForm(), joint),
}


@pytest.mark.parametrize("name", FINE)
def test_training_with_a_fixed_scale_does_not_warn(name: str, x: Tensor) -> None:
    once(Autoencoder(*FINE[name]()), x)  # a warning would be an error


def test_penalties_and_weight_decay_fix_the_scale(x: Tensor) -> None:
    encoder = nn.Sequential(nets.mlp(4, (5,), 2), nn.Sigmoid())
    once(Autoencoder(network(), Amortized(encoder), joint, penalties=[SparseActivity(1.0)]), x)
    once(Autoencoder(network(), climb(), joint), x, optimizer=partial(torch.optim.AdamW, weight_decay=0.1))


def test_joint_rises_without_limit_along_the_direction_that_the_warning_names(x: Tensor) -> None:
    model = Gaussian(nn.Linear(2, 4), 2)
    z, values, evidence = torch.randn(1, 12, 2), [], []
    with torch.no_grad():
        for _ in range(4):
            values.append(float(model.log_joint(x, z).mean()))
            covariance = model.decoder.weight @ model.decoder.weight.mT + torch.eye(4)
            marginal = torch.distributions.MultivariateNormal(model.decoder.bias, covariance)
            evidence.append(float(marginal.log_prob(x).mean()))
            model.decoder.weight *= 4
            z = z / 4
    assert values == sorted(values) and values[3] > values[0] + 0.1
    assert evidence == sorted(evidence, reverse=True)


def test_fit_reports_the_scale_of_codes(x: Tensor) -> None:
    model = systems.build("laplace-gae", (4,), latent=2, hidden=(5,), steps=2)
    scale = fit(model, x, epochs=1, progress=False).code_scale
    assert scale is not None and scale.prior == 2.0
    with torch.no_grad():
        wanted = model.encode(x).z.square().sum(2).mean()
    assert scale.codes == pytest.approx(float(wanted), rel=1e-5)
    assert fit(systems.build("ae", (4,), latent=2, hidden=()), x, epochs=1, progress=False).code_scale is None
    assert fit(systems.build("kmeans", (4,), components=2), x, epochs=1, progress=False).code_scale is None


def test_the_scale_of_densities_is_that_of_the_codes_whose_use_is_measured(x: Tensor) -> None:
    """So that an encoder sees the training data once: two observations to find out what it returns, then all."""
    model = systems.build("vae", (4,), latent=2, hidden=(5,))
    seen: list[Tensor] = []
    model.inference.guide.network.register_forward_hook(
        lambda module, given, output: None if model.training else seen.append(output.detach())
    )
    history = fit(model, x, epochs=1, progress=False)
    assert [len(output) for output in seen[-2:]] == [2, len(x)] and len(seen) == 3  # before training: two, too
    assert history.usage is not None and history.code_scale is not None
    loc, log_scale = seen[-1].chunk(2, 1)
    assert torch.allclose(history.usage.variance, loc.var(0), rtol=1e-5)
    expected = loc.square() + (2 * log_scale).exp()
    spread = (2 * (2 * log_scale).exp().square() + 4 * loc.square() * (2 * log_scale).exp()).sum().sqrt()
    assert abs(history.code_scale.codes - float(expected.sum(1).mean())) < 5 * float(spread) / len(x)
