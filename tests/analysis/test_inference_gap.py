"""The inference gap, against closed forms on linear models and quadrature on a curved one."""

import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import plateau
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal
from typer.testing import CliRunner

from gae import Autoencoder, nets
from gae.analysis.inference_gap import inference_gap, lower_bound
from gae.cli.main import app
from gae.data import load
from gae.inference import (
    LBFGS,
    Amortized,
    Argmax,
    Ascent,
    ClosedForm,
    Detach,
    FullCovariance,
    IteratedConditionalModes,
    MeanField,
    Zeros,
)
from gae.likelihood import Bernoulli, Flat, Gaussian, LinearMixture
from gae.systems import NormalEncoder, ladder_vae, vq_vae
from gae.training import fit


def linear(latent: int = 3, dim: int = 6) -> LinearMixture:
    model = LinearMixture(1, latent, (dim,), scale=0.7).double()
    model.loadings.data.normal_()
    model.means.data.normal_()
    return model


def precision(model: LinearMixture) -> Tensor:
    loadings = model.loadings.detach()[0]
    return torch.eye(len(loadings)).double() + loadings @ loadings.T / 0.49


class Shifted(nn.Module):
    """The exact mean-field optimum of a linear model, moved by a known amount."""

    def __init__(self, model: LinearMixture, shift: float):
        super().__init__()
        self.model, self.shift = [model], shift

    def forward(self, x: Tensor) -> Distribution:
        mean = self.model[0].posterior(x).mean[0].detach()
        return Independent(Normal(mean + self.shift, precision(self.model[0]).diagonal().rsqrt().expand_as(mean)), 1)


@pytest.mark.parametrize("latent", [1, 3, 5])
def test_gaps_of_a_linear_model(latent: int) -> None:
    """0 for a full covariance; ½(log det diag Λ - log det Λ) for mean field; ½ δᵀΛδ for a mean that is off by δ."""
    model = linear(latent)
    x = torch.randn(7, 6).double()
    gap = inference_gap(Autoencoder(model, Amortized(Shifted(model, 0.2))), x)
    matrix = precision(model)
    approximation = 0.5 * (matrix.diagonal().log().sum() - torch.logdet(matrix))
    shift = torch.full((latent,), 0.2).double()
    assert gap.approximation("full covariance").abs().max() < 1e-5
    assert (gap.approximation("mean-field") - approximation).abs().max() < 1e-5
    assert gap.amortisation is not None
    assert (gap.amortisation - 0.5 * shift @ matrix @ shift).abs().max() < 1e-5
    assert not gap.suspicious.any()
    parts = gap.columns()
    assert torch.allclose(parts["inference gap"], gap.approximation("mean-field") + gap.amortisation)
    assert (parts["converged, mean-field"] == 1).all() and (parts["converged, full covariance"] == 1).all()


def test_the_best_densities_of_a_linear_model() -> None:
    model = linear()
    x = torch.randn(4, 6).double()
    gap = inference_gap(model, x)
    mean, matrix = model.posterior(x).mean[0], precision(model)
    full, field = gap.best["full covariance"].q, gap.best["mean-field"].q
    assert isinstance(full, MultivariateNormal) and field is not None
    assert torch.allclose(full.mean, mean, atol=1e-3) and torch.allclose(field.mean, mean, atol=1e-3)
    assert torch.allclose(full.covariance_matrix, torch.linalg.inv(matrix).expand(4, 3, 3), atol=1e-3)
    assert torch.allclose(field.variance, (1 / matrix.diagonal()).expand(4, 3), rtol=1e-2)


@pytest.mark.parametrize("engine", [ClosedForm(), None])
def test_batches_bound_the_memory_and_nothing_else(engine: ClosedForm | None) -> None:
    """For a linear model all quantities are exact for any random draws."""
    model, x = linear(), torch.randn(5, 6).double()
    subject = model if engine is None else Autoencoder(model, engine)
    whole, joined = inference_gap(subject, x), inference_gap(subject, x, batch_size=2)
    assert joined.best["mean-field"].q is None and joined.columns().keys() == whole.columns().keys()
    for name, values in joined.columns().items():
        assert torch.allclose(values, whole.columns()[name], atol=1e-5), name


def curved() -> Bernoulli:
    return Bernoulli(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5)).double(), 2)


def test_gaps_of_a_curved_model() -> None:
    """log p(x) by quadrature; L[q*] ≤ log p(x), full covariance ≥ mean field, and both gaps are small."""
    model = curved()
    with torch.no_grad():
        x = model(torch.randn(10, 2).double()).sample()
    gap = inference_gap(model, x, draws=4000)
    grid = torch.cartesian_prod(*[torch.linspace(-8, 8, 321).double()] * 2)
    truth = model.log_joint(x, grid.unsqueeze(1).expand(-1, 10, -1)).logsumexp(0).detach() + 2 * math.log(0.05)
    assert ((gap.evidence.log_p - truth).abs() < 4 * gap.evidence.standard_error + 1e-9).all()
    full, field = gap.best["full covariance"], gap.best["mean-field"]
    for bound in (full, field):
        assert (bound.value < truth + 4 * bound.standard_error).all()
        assert (truth - bound.value).max() < 0.2
    slack = 4 * (full.standard_error.square() + field.standard_error.square()).sqrt()
    assert (full.value > field.value - slack - 2e-3).all()
    assert gap.encoder is None and gap.amortisation is None and "L[q]" not in gap.columns()


def test_the_best_density_without_an_encoder_is_not_where_an_ascent_from_zero_stays() -> None:
    """A normal can cover one of the two modes: log p(x), by quadrature, less log 2."""
    model, x, truth = plateau()
    gap = inference_gap(model, x, draws=500)
    for bound in gap.best.values():
        assert (truth - math.log(2) - bound.value).abs().max() < 0.02
    assert (gap.evidence.log_p - truth).abs().max() < 0.05


def test_bounds_are_unbiased() -> None:
    """The control variate changes the error of an ELBO, not its mean: against quadrature over q."""
    model = curved()
    x = torch.tensor([[1.0, 0, 1, 1, 0]]).double()
    factor = torch.tensor([[0.8, 0.0], [0.5, 0.4]]).double()
    q = MultivariateNormal(torch.tensor([[0.3, -0.2]]).double(), scale_tril=factor.unsqueeze(0))
    grid = torch.cartesian_prod(*[torch.linspace(-7, 7, 561).double()] * 2).unsqueeze(1)
    log_q = q.log_prob(grid)
    wanted = float((log_q.exp() * (model.log_joint(x, grid).detach() - log_q)).sum() * 0.025**2)
    rows = x.expand(2000, -1)
    many = MultivariateNormal(q.mean.expand(2000, -1), scale_tril=factor.expand(2000, 2, 2))
    for draws in (4, 50):
        found = lower_bound(model, rows, many, draws)
        error = float(found.value.std()) / math.sqrt(2000)
        assert abs(float(found.value.mean()) - wanted) < 4 * error
        if draws == 50:
            assert float(found.standard_error.mean()) == pytest.approx(float(found.value.std()), rel=0.2)
            plain = model.log_joint(rows, many.sample(torch.Size((50,)))).detach().std(0).mean() / math.sqrt(50)
            assert float(found.value.std()) < 0.7 * float(plain)


def test_bounds_of_other_laws() -> None:
    """A density that is not normal: plain averages of log q(x, z) - log q(z)."""
    model = linear(1)
    x = torch.randn(3, 6).double()
    q = Independent(torch.distributions.Laplace(torch.zeros(3, 1).double(), 0.5), 1)
    found = lower_bound(model, x, q, draws=20_000)
    z = torch.linspace(-12, 12, 4801).double().reshape(-1, 1, 1).expand(-1, 3, 1)
    log_q = q.log_prob(z)
    wanted = (log_q.exp() * (model.log_joint(x, z) - log_q)).sum(0) * 0.005
    assert ((found.value - wanted).abs() < 4 * found.standard_error).all()
    with pytest.raises(ValueError, match="draws must be at least 4"):
        lower_bound(model, x, q, draws=3)


def test_a_failed_optimisation_is_said() -> None:
    """No steps from the density of a good encoder, with too wide an initial family: nothing converged."""
    model = linear()
    x = torch.randn(5, 6).double()
    gap = inference_gap(model, x, steps=1)
    assert gap.columns()["converged, full covariance"].sum() == 0


def test_densities_below_their_start_are_suspicious() -> None:
    from dataclasses import replace

    model = linear()
    gap = inference_gap(Autoencoder(model, Amortized(Shifted(model, 0.0))), torch.randn(3, 6).double())
    best = gap.best["mean-field"]
    lower = replace(best, value=best.value - torch.tensor([0.0, 1.0, 0.0]).double())
    worse = replace(gap, best={**gap.best, "mean-field": lower})
    assert worse.suspicious.tolist() == [False, True, False]
    assert gap.encoder is not None
    errors = [torch.full((3,), error).double() for error in (0.03, 0.04)]  # together 0.05, of which four are allowed
    values = [gap.encoder.value - torch.tensor([0.19, 0.21, 0.0]).double(), gap.encoder.value]
    bounds = [replace(best, value=v, standard_error=e) for v, e in zip(values, errors, strict=True)]
    noisy = replace(gap, best={"mean-field": bounds[0]}, encoder=bounds[1])
    assert noisy.suspicious.tolist() == [False, True, False]
    assert worse.columns()["q* below q"].sum() == 1


def test_encoders_of_a_user() -> None:
    """Plain modules: a decoder under a head, an encoder under a guide; float32."""
    decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 9))
    encoder = NormalEncoder(nets.mlp(9, (16,), 4))
    x = torch.rand(6, 9)
    model = Autoencoder(Gaussian(decoder, 2, 0.3), Amortized(encoder))
    gap = inference_gap(model, x, samples=500, draws=200)
    assert gap.family == "mean-field" and gap.amortisation is not None
    assert (gap.amortisation > -1e-2).all()
    assert gap.encoder is not None and gap.encoder.value.dtype is torch.float32
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_encoder_of_another_law_has_no_amortisation_gap() -> None:
    """Its bound and the whole inference gap are still estimated."""
    model = linear(2)

    def encode(x: Tensor) -> Distribution:
        return Independent(torch.distributions.Laplace(model.posterior(x).mean[0].detach(), 0.3), 1)

    gap = inference_gap(Autoencoder(model, Amortized(encode)), torch.randn(3, 6).double())
    assert gap.encoder is not None and gap.family is None and gap.amortisation is None
    columns = gap.columns()
    assert "amortisation gap" not in columns and (columns["inference gap"] > 0).all()


@pytest.mark.parametrize("engine", [ClosedForm(), Ascent(max_steps=2)])
def test_engines_with_and_without_a_density(engine: ClosedForm | Ascent) -> None:
    gap = inference_gap(Autoencoder(linear(), engine), torch.randn(2, 6).double())
    assert (gap.encoder is None) == isinstance(engine, Ascent)
    if gap.encoder is not None:
        assert gap.family == "full covariance"


def test_bad_arguments() -> None:
    model, x = linear(), torch.randn(2, 6).double()
    with pytest.raises(ValueError, match=r"Unknown family flow\. Valid names: mean-field, full covariance"):
        inference_gap(model, x, families=("flow",))
    with pytest.raises(ValueError, match="Unknown family"):
        inference_gap(model, x, families=())
    with pytest.raises(ValueError, match="flat prior"):
        inference_gap(Gaussian(nn.Linear(2, 6).double(), 2, prior=Flat(2)), x)
    with pytest.raises(ValueError, match="samples >= 2"):
        inference_gap(model, x, samples=1)
    with pytest.raises(ValueError, match="vector codes"):
        inference_gap(Gaussian(nn.Sequential(nn.Flatten(), nn.Linear(4, 6)).double(), (2, 2)), x)
    with pytest.raises(ValueError, match="must be finite"):
        inference_gap(model, x * torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="Matched noise needs an even number"):
        inference_gap(model, x, noise=5)


def test_the_gap_of_a_codebook_is_that_of_an_enumeration() -> None:
    """All nine codes by hand: their sum is log p(x), and the encoder's code is compared with the best of them."""
    model, x = vq_vae((4,), positions=2, vectors=3, width=1, hidden=(5,)).double(), torch.randn(30, 4).double()
    model.likelihood.prior.vectors.data.copy_(torch.tensor([[-1.0], [0.2], [1.5]]))
    gap = inference_gap(model, x, batch_size=20)
    vectors = model.likelihood.prior.vectors.detach()[:, 0].tolist()
    heights = []
    for code in itertools.product(vectors, repeat=2):
        z = torch.tensor(code).double().view(1, 2, 1)
        mean = model.likelihood.decoder(z).detach().numpy()
        scale = model.likelihood.scale.detach().numpy()
        heights.append(stats.norm(mean, scale).logpdf(x.numpy()).sum(1) - math.log(9))
    outputs = model.inference.encoder(x).detach()[..., 0].numpy()
    nearest = np.abs(outputs[..., None] - np.array(vectors)).argmin(-1)
    chosen = np.array(heights)[3 * nearest[:, 0] + nearest[:, 1], np.arange(30)]
    log_p, best = logsumexp(heights, 0), np.max(heights, 0)
    columns = gap.columns()
    for name, wanted in {
        "log p(x)": log_p,
        "L[q*], one code": best,
        "L[q]": chosen,
        "approximation gap, one code": log_p - best,
        "amortisation gap": best - chosen,
        "inference gap": log_p - chosen,
        "converged, one code": np.ones(30),
        "tight log p(x)": np.ones(30),
    }.items():
        assert np.allclose(columns[name].detach().numpy(), wanted, atol=1e-9), name
    assert (best > chosen + 1e-6).any() and not gap.suspicious.any()
    exact = inference_gap(Autoencoder(model.likelihood, IteratedConditionalModes(model.inference)), x)
    assert exact.amortisation is not None and (gap.amortisation >= exact.amortisation - 1e-9).all()
    assert inference_gap(model.likelihood, x[:3]).encoder is None
    large = vq_vae((4,), positions=8, vectors=64)
    with pytest.raises(ValueError, match=r"8 positions of 64 vectors .* `IteratedConditionalModes\(engine\)`"):
        inference_gap(large, x.float())


def test_mixtures_have_gaps_too() -> None:
    """A discrete code is summed out; its engine has no density over z alone."""
    model = LinearMixture(2, 2, (4,), means=torch.randn(2, 4)).double()
    gap = inference_gap(Autoencoder(model, Argmax(ClosedForm())), torch.randn(3, 4).double())
    assert gap.encoder is None
    error = gap.best["full covariance"].standard_error
    assert (gap.approximation("full covariance") > -5 * error - 1e-5).all()


def test_matched_noise_has_exact_moments() -> None:
    for family in (MeanField(8, matched=True), FullCovariance(8, matched=True)):
        u = torch.zeros(2, 3, 2, 4).double() if type(family) is MeanField else torch.zeros(2, 3, 5, 4).double()
        noise = family.noise(u)
        assert noise.shape == (2, 3, 8, 4)
        assert noise.mean(2).abs().max() < 1e-12
        assert torch.allclose(noise.mT @ noise / 8, torch.eye(4).double().expand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="vector codes"):
        Ascent(family=FullCovariance())(
            Gaussian(nn.Sequential(nn.Flatten(), nn.Linear(4, 6)), (2, 2)), torch.zeros(1, 6)
        )


def test_matched_noise_is_whitened_row_by_row() -> None:
    """Each row's noise is a linear map of that row's own draws: the span of the others never enters."""
    torch.manual_seed(0)
    noise = MeanField(12, matched=True).noise(torch.zeros(1, 3, 2, 4).double())
    torch.manual_seed(0)
    draws = torch.stack([torch.randn(1, 3, 4, dtype=torch.float64) for _ in range(6)], 2)
    for row in range(3):
        found, drawn = noise[0, row, :6], draws[0, row]
        mixing = torch.linalg.lstsq(drawn, found, driver="gelsd").solution
        assert torch.allclose(drawn @ mixing, found)


def test_full_covariance_starts_from_a_density() -> None:
    """An ascent of no steps returns the density it began with."""
    model = linear()
    x = torch.randn(4, 6).double()
    for engine in (ClosedForm(), Amortized(Shifted(model, 0.1))):
        q = Ascent(engine, LBFGS(), 0, family=FullCovariance(2), adjoint=Detach())(model, x).q
        wanted = engine(model, x).q
        assert q is not None and wanted is not None
        assert torch.allclose(q.mean.squeeze(0), wanted.mean.reshape(4, 3))
        assert torch.allclose(q.variance.squeeze(0), wanted.variance.reshape(4, 3))
    fresh = Ascent(Zeros(), max_steps=0, family=FullCovariance(2, scale=0.3))(model, x).q
    assert fresh is not None and torch.allclose(fresh.stddev, torch.tensor(0.3).double())


def test_command(tmp_path: Path) -> None:
    runner = CliRunner()
    small = ("--option", "latent=2", "--option", "hidden=8,8", "--quiet", "--epochs", "1")
    assert runner.invoke(app, ["fit", "vae", "digits", *small, "--out", str(tmp_path / "vae")]).exit_code == 0
    few = ["-n", "12", "--samples", "50", "--draws", "20", "--steps", "5"]
    options = ["gap", str(tmp_path / "vae"), "digits", *few, "--out", str(tmp_path / "gap")]
    done = runner.invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "L[q*], mean-field" in done.output and "amortisation gap" in done.output and "converged" in done.output
    account = json.loads((tmp_path / "gap" / "gap.json").read_text())
    with np.load(tmp_path / "gap" / "gap.npz") as stored:
        assert stored["L[q]"].shape == (12,)
        assert account["results"]["L[q]"]["mean"] == pytest.approx(float(stored["L[q]"].mean()), rel=1e-5)
    page = (tmp_path / "gap" / "gap.html").read_text(encoding="utf-8")
    assert "amortisation gap" in page and "data:image/png" in page and (tmp_path / "gap" / "gap.png").exists()
    assert account["use"]["width"] == 2 and account["versions"]["torch"] and account["machine"]["threads"] >= 1
    assert "commit" in account and sum(account["evidence"]["methods"].values()) == 12
    assert len(account["evidence"]["reasons"]) == 12
    again = json.loads(runner.invoke(app, [*options, "--json"]).stdout)
    assert again["results"] == account["results"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", [(), ("--engine", "lbfgs")])
def test_command_leads_with_the_collapse_of_a_hierarchical_code(engine: tuple[str, ...], tmp_path: Path) -> None:
    """Neither the encoder's densities nor the prior's marginals are normal."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 9)).astype("float32"))
    data = load(tmp_path / "x.npy")
    model = ladder_vae(data, latent=2, top=1, hidden=(8,))
    fit(model, data, epochs=1, progress=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-3)  # neither network sees its input
    model.save(tmp_path / "ladder")
    few = ["-n", "6", "--samples", "200", "--draws", "20", "--steps", "2", "--out", str(tmp_path / "gap")]
    done = CliRunner().invoke(app, ["gap", str(tmp_path / "ladder"), str(tmp_path / "x.npy"), *few, *engine])
    assert done.exit_code == 0, done.output
    account = json.loads((tmp_path / "gap" / "gap.json").read_text())
    assert "the code has collapsed (0 of 3 units active" in account["answer"]
    assert account["use"]["active"] == 0 and account["use"]["width"] == 3


@pytest.mark.slow
def test_command_gives_errors_over_trainings(tmp_path: Path) -> None:
    """From those of each training alone: the mean of means, and the standard deviation of means / √3."""
    run = partial(CliRunner().invoke, app)
    small = ["--option", "latent=2", "--option", "hidden=8", "--quiet", "--epochs", "1"]
    few = ["-n", "6", "--samples", "50", "--draws", "20", "--steps", "3"]
    runs, alone = [str(tmp_path / f"vae-{seed}") for seed in range(3)], []
    for seed, folder in enumerate(runs):
        assert run(["fit", "vae", "digits", *small, "--seed", str(seed), "--out", folder]).exit_code == 0
        assert run(["gap", folder, "digits", *few, "--out", f"{folder}-gap"]).exit_code == 0
        alone.append(dict(np.load(f"{folder}-gap/gap.npz")))
    also = [word for folder in runs[1:] for word in ("--also", folder)]
    done = run(["gap", runs[0], "digits", *few, *also, "--out", str(tmp_path / "all")])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "(s.e. over 3 trainings)" in said and "over 3 trainings, means of 6 observations" in said
    account = json.loads((tmp_path / "all" / "gap.json").read_text())
    for name, entry in account["results"].items():
        means = np.array([columns[name].astype(float).mean() for columns in alone])
        if not name.startswith("sampling s.e."):
            assert entry["mean"] == pytest.approx(means.mean(), rel=1e-9)
            assert entry["se"] == pytest.approx(means.std(ddof=1) / 3**0.5, rel=1e-9, abs=1e-12)
    each = np.load(tmp_path / "all" / "gap.npz")["L[q]"]
    assert np.array_equal(each, [columns["L[q]"] for columns in alone])
    sampling = np.load(tmp_path / "all" / "gap.npz")["sampling s.e. of L[q]"]
    expected = (np.sqrt((sampling**2).sum(0)) / 3).mean()
    assert account["results"]["sampling s.e. of L[q]"]["mean"] == pytest.approx(expected, rel=1e-9)
    assert account["use"]["active"] == min(_use(f"{folder}-gap")["active"] for folder in runs)
    assert account["use"]["kl"] == pytest.approx(np.mean([_use(f"{folder}-gap")["kl"] for folder in runs]))


def _use(folder: str) -> dict[str, Any]:
    return dict(json.loads(Path(folder, "gap.json").read_text())["use"])


def test_trainings_on_other_data_are_refused(tmp_path: Path) -> None:
    run = partial(CliRunner().invoke, app)
    small = ["fit", "ppca", "--option", "latent=2", "--quiet", "--epochs", "1"]
    assert run([*small, "digits", "--out", str(tmp_path / "one")]).exit_code == 0
    assert run([*small, "digits", "--binarize", "threshold", "--out", str(tmp_path / "two")]).exit_code == 0
    few = ["-n", "4", "--samples", "50", "--draws", "20", "--steps", "3", "--out", str(tmp_path / "gap")]
    done = run(["gap", str(tmp_path / "one"), "digits", *few, "--also", str(tmp_path / "two")])
    assert done.exit_code == 2 and "are not those of the first checkpoint" in done.output
    wide = [word.replace("latent=2", "latent=3") for word in small]
    assert run([*wide, "digits", "--out", str(tmp_path / "wide")]).exit_code == 0
    done = run(["gap", str(tmp_path / "one"), "digits", *few, "--also", str(tmp_path / "wide")])
    assert done.exit_code == 2 and "the first has a code of shape (2,), and" in " ".join(done.output.split())
    for posterior in ("diagonal", "full"):
        vae = ["fit", "vae", "digits", "--option", f"posterior={posterior}", "--option", "hidden=4", "--epochs", "1"]
        assert run([*vae, "--quiet", "--out", str(tmp_path / posterior)]).exit_code == 0
    done = run(["gap", str(tmp_path / "diagonal"), "digits", *few, "--also", str(tmp_path / "full")])
    assert done.exit_code == 2 and "first are mean-field, and those of" in " ".join(done.output.split())
    done = run(["gap", "digits", "--decoder", "models:decoder", "--latent", "2", *few, "--also", str(tmp_path / "two")])
    assert done.exit_code == 2 and "Leave it out with --decoder" in done.output


def test_command_refuses_flat_priors(tmp_path: Path) -> None:
    runner = CliRunner()
    runner.invoke(app, ["fit", "pca", "digits", "--option", "latent=2", "--quiet", "--out", str(tmp_path / "pca")])
    done = runner.invoke(app, ["gap", str(tmp_path / "pca"), "digits", "--out", str(tmp_path / "gap")])
    assert done.exit_code == 2 and "flat prior" in done.output
