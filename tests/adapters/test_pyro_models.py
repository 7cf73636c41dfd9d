"""Pyro models and guides as they are, against Pyro's own ELBO and log densities of the same programs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from scipy.stats import norm
from torch import Tensor, nn

from gae import Autoencoder, from_pyro, inference_gap, log_evidence
from gae.adapters import FittedRows, PyroLikelihood
from gae.inference import Amortized, Zeros
from gae.objective import elbo

EXACT = {"rtol": 1e-10, "atol": 1e-10}
Program = Callable[..., Any]


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)


def normal_model(x: Tensor) -> None:
    """x ~ N(z + 1, ½²), z ~ N(0.3, 2²): a site that is not called z."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("latent", dist.Normal(torch.full((2,), 0.3), 2.0).to_event(1))
        pyro.sample("seen", dist.Normal(z + 1, 0.5).to_event(1), obs=x)


def normal_guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor([0.4, 0.6]), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("latent", dist.Normal(slope * x, scale).to_event(1))


class ImageVAE(nn.Module):
    """Pyro's tutorial: a module whose methods are model and guide, of images in {0, 1}."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 5), nn.Softplus(), nn.Linear(5, 12), nn.Sigmoid())
        self.encoder = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4))

    def model(self, x: Tensor) -> Tensor:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = x.new_zeros(x.shape[0], 2)
            z = pyro.sample("code", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            image = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(image, validate_args=False).to_event(1), obs=x.reshape(-1, 12))
            return image

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x.reshape(-1, 12)).chunk(2, -1)
            pyro.sample("code", dist.Normal(loc, log_scale.exp()).to_event(1))


class Nested(PyroModule):
    """Plates of codes and pixels, with the data along dim -2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.scale = PyroParam(torch.tensor(0.7), dist.constraints.positive)

    def forward(self, x: Tensor) -> None:
        data = pyro.plate("data", len(x), dim=-2)
        with data, pyro.plate("codes", 2, dim=-1):
            z = pyro.sample("w", dist.Normal(0.0, 1.0))
        with data, pyro.plate("pixels", 3, dim=-1):
            pyro.sample("x", dist.Laplace(z @ self.weight, self.scale), obs=x)


class NestedGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.map = PyroModule[nn.Linear](3, 2)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("codes", 2, dim=-1):
            pyro.sample("w", dist.Normal(self.map(x), 0.3))


def of_images() -> tuple[Program, Program, Tensor]:
    vae = ImageVAE()
    return vae.model, vae.guide, (torch.rand(7, 1, 3, 4) > 0.5).double()


PROGRAMS: dict[str, Callable[[], tuple[Program, Program, Tensor]]] = {
    "normal-normal": lambda: (normal_model, normal_guide, torch.randn(7, 2)),
    "images": of_images,
    "nested plates": lambda: (Nested(), NestedGuide(), torch.randn(7, 3)),
}


def traced(model: Program, guide: Program, x: Tensor) -> tuple[Any, Any]:
    guided = poutine.trace(guide).get_trace(x)
    return poutine.trace(poutine.replay(model, trace=guided)).get_trace(x), guided


def codes(trace: Any, site: str, n: int) -> Tensor:
    return trace.nodes[site]["value"].reshape(n, -1)


@pytest.mark.parametrize("name", PROGRAMS)
def test_densities_and_the_elbo_are_those_of_pyro(name: str) -> None:
    model, guide, x = PROGRAMS[name]()
    pyro.set_rng_seed(0)
    loss = Trace_ELBO().differentiable_loss(model, guide, x)
    pyro.set_rng_seed(0)
    analytic = TraceMeanField_ELBO().loss(model, guide, x) if name != "nested plates" else None
    autoencoder = from_pyro(model, guide, x)
    likelihood = autoencoder.likelihood
    assert isinstance(likelihood, PyroLikelihood) and isinstance(autoencoder.inference, Amortized)
    joint, guided = traced(model, guide, x)
    z = codes(joint, likelihood.site, len(x)).detach()
    ours = likelihood.log_joint(x, z[None])
    torch.testing.assert_close(ours.sum(), joint.log_prob_sum(), **EXACT)
    q = autoencoder.encode(x).q
    assert q is not None
    torch.testing.assert_close(q.log_prob(z).sum(), guided.log_prob_sum(), **EXACT)
    pyro.set_rng_seed(0)
    encoding = autoencoder.encode(x)
    torch.testing.assert_close(-elbo(encoding).sum(), loss, **EXACT)
    if analytic is not None:
        assert -elbo(encoding, analytic=True).sum().item() == pytest.approx(analytic, rel=1e-10)
    torch.testing.assert_close(likelihood.prior.log_prob(z) + likelihood(z).log_prob(x), ours[0], **EXACT)
    torch.testing.assert_close(likelihood.log_joint(x, z.expand(3, -1, -1)), ours.expand(3, -1), **EXACT)


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_are_those_of_pyro(name: str) -> None:
    model, guide, x = PROGRAMS[name]()
    autoencoder = from_pyro(model, guide, x)
    pyro.set_rng_seed(0)
    (-elbo(autoencoder.encode(x)).sum()).backward()
    own = {id(p): None if p.grad is None else p.grad.clone() for p in autoencoder.parameters()}
    if name == "normal-normal":  # whose parameters were declared by name
        pyro.set_rng_seed(0)
        Trace_ELBO().differentiable_loss(model, guide, x).backward()
        store = {n: p.grad for n, p in pyro.get_param_store()._params.items()}
        ours = {n: p.grad for n, p in autoencoder.named_parameters()}
        for parameter, grad in store.items():
            torch.testing.assert_close(next(g for n, g in ours.items() if n.endswith(parameter)), grad, **EXACT)
        return
    autoencoder.zero_grad()
    pyro.set_rng_seed(0)
    Trace_ELBO().differentiable_loss(model, guide, x).backward()
    for parameter in autoencoder.parameters():
        expected = own[id(parameter)]
        assert (expected is None) == (parameter.grad is None)
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected, **EXACT)


def test_the_normal_model_has_the_evidence_and_posterior_of_bayes() -> None:
    x = torch.randn(5, 2)
    model = from_pyro(normal_model, normal_guide, x, site="latent")
    gap = inference_gap(model, x, samples=1000, draws=40)
    marginal = torch.distributions.Normal(1.3, (4 + 0.25) ** 0.5)
    assert torch.allclose(gap.evidence.log_p, marginal.log_prob(x).sum(1), atol=0.02)
    mode = from_pyro(normal_model, None, x).encode(x).point
    assert torch.allclose(mode, (0.3 / 4 + (x - 1) / 0.25) / (1 / 4 + 1 / 0.25), atol=1e-3)
    drawn = model.sample(20_000)
    assert drawn.shape == (20_000, 2)
    assert float((drawn.mean() - 1.3).abs()) < 4 * marginal.stddev / 40_000**0.5
    assert torch.equal(model.likelihood.prior.mean, torch.full((2,), 0.3))


def subsampled(total: int | None, size: int | None, indexed: bool) -> tuple[Program, Program]:
    """Programs whose plate takes some of the rows of x, or stands for more of them."""

    def plate(x: Tensor) -> Any:
        return pyro.plate("data", total or len(x), subsample_size=size or len(x))

    def model(x: Tensor) -> None:
        with plate(x) as index:
            z = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("seen", dist.Normal(z.exp(), 0.5).to_event(1), obs=x[index] if indexed else x)

    def guide(x: Tensor) -> None:
        with plate(x) as index:
            pyro.sample("latent", dist.Normal(0.5 * (x[index] if indexed else x), 0.3).to_event(1))

    return model, guide


@pytest.mark.parametrize(
    "total, size, indexed",
    [(1000, None, False), (1000, 4, False), (None, 4, True), (6, 4, True)],
    ids=["a minibatch of many", "a fixed minibatch", "some rows of x", "some rows of six"],
)
def test_subsampled_plates_have_the_densities_of_each_row(total: int | None, size: int | None, indexed: bool) -> None:
    x = torch.randn(6, 2)
    autoencoder = from_pyro(*subsampled(total, size, indexed), x)
    z = torch.randn(3, 6, 2)
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z.exp(), 0.5).log_prob(x).sum(-1)
    torch.testing.assert_close(autoencoder.likelihood.log_joint(x, z), expected, **EXACT)
    assert torch.equal(autoencoder.encode(x).point, 0.5 * x)
    assert torch.equal(autoencoder.likelihood(z).mean, z.exp())
    if not indexed:  # Pyro's own, of the whole data set, is scaled up from the minibatch
        few = x[: size or 6]
        joint, _ = traced(*subsampled(total, size, indexed), few)
        ours = autoencoder.likelihood.log_joint(few, codes(joint, "latent", len(few))[None]).sum()
        torch.testing.assert_close(joint.log_prob_sum(), 1000 / len(few) * ours, **EXACT)


def test_parameters_start_where_svi_left_them_and_the_store_stays() -> None:
    x = torch.randn(20, 2)
    svi = SVI(normal_model, normal_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step(x)
    store = {name: value.clone() for name, value in pyro.get_param_store().items()}
    autoencoder = from_pyro(normal_model, normal_guide, x)
    q = autoencoder.encode(x).q
    assert q is not None and store["slope"].item() != 0.5
    torch.testing.assert_close(q.mean, store["slope"] * x, **EXACT)
    torch.testing.assert_close(q.stddev, store["scale"].expand(20, 2), **EXACT)
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, pyro.param(name)) for name, value in store.items())


def test_data_from_a_file(tmp_path: Path) -> None:
    """Of x ~ N(1.3, 2² + ½²) in two dimensions, by SciPy's density."""
    x = torch.randn(6, 2)
    np.save(tmp_path / "x.npy", x.numpy())
    torch.set_default_dtype(torch.float32)  # that of data from files
    evidence = log_evidence(from_pyro(normal_model, normal_guide, tmp_path / "x.npy"), x.float())
    wanted = norm(1.3, math.hypot(2, 0.5)).logpdf(x.numpy()).sum(-1)
    assert (np.abs(evidence.log_p.numpy() - wanted) < 5 * evidence.standard_error.numpy() + 1e-3).all()


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal, AutoDelta])
def test_autoguides_have_the_laws_of_their_rows(kind: Any) -> None:
    x = torch.randn(6, 2)
    guide = kind(normal_model)
    svi = SVI(normal_model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(3):
        svi.step(x)
    autoencoder = from_pyro(normal_model, guide, x)
    assert isinstance(autoencoder.inference, FittedRows)
    encoding = autoencoder.encode(x[[4, 1]])
    torch.testing.assert_close(encoding.point, guide.median(x)["latent"][[4, 1]].detach(), **EXACT)
    if kind is not AutoDelta:
        joint, guided = traced(normal_model, guide, x)
        q = autoencoder.encode(x).q
        assert q is not None
        z = codes(joint, "latent", 6)
        torch.testing.assert_close(q.log_prob(z).sum(), guided.log_prob_sum(), **EXACT)
    with pytest.raises(ValueError, match="row 1 of this batch is none of them"):
        autoencoder.encode(torch.cat([x[:1], x[:1] + 1]))


def of(prior: Any = None, seen: Any = None, extra: Any = None, observe: Any = None) -> Program:
    """The normal model with a part of it replaced."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", prior(x) if prior else dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if extra:
                extra(x, z)
            law = seen(x, z) if seen else dist.Normal(z, 0.5).to_event(1)
            pyro.sample("seen", law, obs=observe(x) if observe else x)

    return model


def outside(x: Tensor) -> None:
    z = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("seen", dist.Normal(z, 0.5).to_event(1), obs=x)


def scaled(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        with poutine.scale(scale=0.2):
            z = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("seen", dist.Normal(z, 0.5).to_event(1), obs=x)


MODELS = {
    "no latent": (lambda x: pyro.sample("seen", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1), obs=x), "got none"),
    "two latents": (of(extra=lambda x, z: pyro.sample("other", dist.Normal(0.0, 1.0))), "'latent', 'other'"),
    "a factor": (of(extra=lambda x, z: pyro.factor("penalty", z.sum(-1))), "has a factor 'penalty'"),
    "a scale": (scaled, "'latent' of the model is scaled|'latent' is scaled by 0.2"),
    "a mask": (poutine.mask(of(), mask=torch.tensor(True)), "is masked"),
    "positive codes": (of(prior=lambda x: dist.LogNormal(torch.zeros(2), 1.0).to_event(1)), "free to take all real"),
    "classes": (of(prior=lambda x: dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)), "free to take all real"),
    "a conditional prior": (of(prior=lambda x: dist.Normal(x, 1.0).to_event(1)), "same for all observations"),
    "other data": (of(observe=lambda x: x + 1), "must observe x itself"),
    "noise": (of(seen=lambda x, z: dist.Normal(z + torch.randn(2), 0.5).to_event(1)), "another density each time"),
    "a mean of the batch": (of(seen=lambda x, z: dist.Normal(z - z.mean(0), 0.5).to_event(1)), "rest of its batch"),
    "no gradient": (of(seen=lambda x, z: dist.Normal(z.detach(), 0.5).to_event(1)), "No gradient"),
    "a global code": (outside, "needs one axis for the 3 observations"),
    "other arguments": (lambda x, y: None, "cannot be run on a batch x"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_do_not_fit_are_refused_at_the_door(name: str) -> None:
    model, said = MODELS[name]
    with pytest.raises(ValueError, match=said):
        from_pyro(model, None, torch.randn(6, 2))


def renamed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def narrow(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("latent", dist.Normal(x[:, :1], 1.0).to_event(1))


def coupled(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("latent", dist.Normal(x - x[:1], 1.0).to_event(1))


def noisy(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("latent", dist.Normal(nn.functional.dropout(x, 0.5), 1.0).to_event(1))


@pytest.mark.parametrize(
    "guide, said",
    [
        (renamed, "must have the one sample site 'latent' of the model, got 'z'"),
        (lambda x: None, "got none"),
        (narrow, "One density over 2 elements is needed"),
        (coupled, "depends on the rest of its batch"),
        (AutoMultivariateNormal(normal_model), "one law of the codes of all rows together"),
    ],
    ids=["another name", "no site", "another width", "coupled", "joint"],
)
def test_guides_that_do_not_fit_are_refused_at_the_door(guide: Program, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_pyro(normal_model, guide, torch.randn(6, 2))


def test_a_guide_with_a_parameter_for_each_row_is_one_of_its_rows() -> None:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.arange(12.0).view(6, 2))
        with pyro.plate("data", 6):
            pyro.sample("latent", dist.Normal(loc, 1.0).to_event(1))

    x = torch.randn(6, 2)
    autoencoder = from_pyro(normal_model, guide, x)
    assert isinstance(autoencoder.inference, FittedRows)
    assert torch.equal(autoencoder.encode(x[2:4]).point, torch.tensor([[4.0, 5.0], [6.0, 7.0]]))


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_program_is_refused() -> None:
    x = torch.randn(6, 2)
    with pytest.raises(ValueError, match=r"no latent site 'z'\. Its latent sites: 'latent'"):
        from_pyro(normal_model, normal_guide, x, site="z")
    with pytest.raises(TypeError, match="The model must be a Pyro program"):
        from_pyro(torch.zeros(3), None, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"needs a Likelihood, got function.*`gae.from_pyro`"):
        Autoencoder(normal_model, Zeros())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"needs a Inference, got function"):
        Autoencoder(from_pyro(normal_model, None, x).likelihood, normal_guide)  # type: ignore[arg-type]
    model = from_pyro(normal_model, normal_guide, x)
    with pytest.raises(ValueError, match=r"got a site 'latent'.*gae.from_pyro"):
        Amortized(normal_guide).infer(model.likelihood, x)
