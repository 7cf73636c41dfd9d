"""Models in standard units against scipy, scikit-learn and the change of variables, from a file to the nats."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cases import seed
from scipy.stats import multivariate_normal, norm
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn

import gae
from gae.analysis.activation import Units, most_active
from gae.data import Dataset, load
from gae.inference import Adam, Ascent, ClosedForm, Zeros
from gae.likelihood import Gaussian, LinearMixture, StandardUnits
from gae.systems import build
from gae.training.layerwise import classifier, pretrain

SCALES, OFFSETS = np.array([1.0, 10.0, 1000.0, 0.1]), np.array([0.0, 5.0, 1e4, -3.0])


@pytest.fixture(scope="module")
def table() -> Dataset:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 2)) @ draw.normal(size=(2, 4)) + 0.5 * draw.normal(size=(60, 4))
    return load(pd.DataFrame(OFFSETS + SCALES * x, columns=list("abcd")), standardize=True)


def scaled(data: Dataset) -> tuple[StandardScaler, np.ndarray, np.ndarray]:
    train, test = data.train.double().numpy(), data.test.double().numpy()
    scaler = StandardScaler().fit(train)
    return scaler, scaler.transform(train), scaler.transform(test)


def test_ppca_is_that_of_standardised_columns(table: Dataset) -> None:
    """scikit-learn's PCA has the closed form of probabilistic PCA, and its likelihood in closed form."""
    scaler, train, test = scaled(table)
    model = gae.ppca(table, latent=2).double()
    gae.fit(model, table.train.double(), progress=False)
    reference = PCA(2).fit(train)
    n = len(train)  # scikit-learn divides by n - 1, maximum likelihood by n
    covariance = reference.get_covariance() * (n - 1) / n
    unit = scaler.scale_
    law = multivariate_normal(scaler.mean_, covariance * np.outer(unit, unit))
    for x in (table.train, table.test):
        log_p = model.log_evidence(x.double()).log_p.detach().numpy()
        np.testing.assert_allclose(log_p, law.logpdf(x.double().numpy()), rtol=1e-6)
    change = multivariate_normal(np.zeros(4), covariance).logpdf(test) - np.log(unit).sum()
    np.testing.assert_allclose(model.log_evidence(table.test.double()).log_p.detach().numpy(), change, rtol=1e-6)


def test_a_single_gaussian_is_that_of_the_units() -> None:
    """N(x; mean, diag(deviation²)), as scipy has it."""
    x = torch.from_numpy(OFFSETS + SCALES * np.random.default_rng(1).normal(size=(50, 4)))
    model = StandardUnits.of(LinearMixture(1, 0, (4,), means=torch.zeros(1, 4)).double()).double()
    model.set_units(x)
    law = multivariate_normal(x.numpy().mean(0), np.diag(x.numpy().var(0)))
    np.testing.assert_allclose(model.log_evidence(x).log_p.detach().numpy(), law.logpdf(x.numpy()), rtol=1e-9)
    decoded = model(torch.zeros(1, 0).double())
    np.testing.assert_allclose(decoded.log_prob(x).detach().numpy(), law.logpdf(x.numpy()), rtol=1e-9)
    np.testing.assert_allclose(decoded.mean[0].detach().numpy(), x.numpy().mean(0))
    np.testing.assert_allclose(decoded.variance[0].detach().numpy(), x.numpy().var(0), rtol=1e-6)


OPTIONS: dict[str, dict[str, Any]] = {
    "gmm": {"components": 3},
    "llgae": {"components": 2, "latent": 1},
    "vae": {"latent": 2, "hidden": (8,)},
    "gon": {"latent": 2, "hidden": (8,)},
    "dae": {"latent": 2, "hidden": (8,)},
    "sparse-ae": {"hidden": (8,)},
}


def with_holes(data: Dataset) -> Dataset:
    """The table with three tenths of its values missing, and a row of which nothing is known."""
    parts = {}
    for i, name in enumerate(("train", "test")):
        x = getattr(data, name)
        hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(i)) < 0.3
        hidden[0] = True
        parts[name] = x.masked_fill(hidden, torch.nan)
    return replace(data, **parts, missing=True)


def in_standard_units(data: Dataset) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """The deviations of the observed training values, and both parts in their units."""
    train, test = data.train.double().numpy(), data.test.double().numpy()
    mean, unit = np.nanmean(train, 0), np.nanstd(train, 0)
    return unit, *(torch.from_numpy((x - mean) / unit).float() for x in (train, test))


@pytest.mark.parametrize("name", ["ppca", "gmm", "llgae", "vae", "gon", "ae"])
def test_a_system_in_standard_units_with_holes_is_that_of_standardised_data(
    name: str, table: Dataset, tmp_path: Path
) -> None:
    """The same training; log densities differ by the Jacobian of the elements that were observed."""
    holes = with_holes(table)
    unit, train, test = in_standard_units(holes)
    options = OPTIONS.get(name, {"latent": 2})
    if name == "llgae":  # a flat prior, under which a row needs as many elements as a chart
        enough = {part: x[(~x.isnan()).sum(1) > 1] for part, x in (("train", holes.train), ("test", holes.test))}
        holes = replace(holes, **enough)
        unit, train, test = in_standard_units(holes)
    models, losses = [], []
    for data, x, more in ((holes, holes, {}), ((4,), train, {"missing": True})):
        seed(0)
        models.append(build(name, data, **options, **more))
        losses.append(gae.fit(models[-1], x, epochs=3, progress=False).rows[-1].train_loss)
    given, standard = (model.eval() for model in models)
    volume = [torch.where(x.isnan(), 0, torch.from_numpy(np.log(unit))).sum(1).float() for x in (train, test)]
    assert losses[0] == pytest.approx(losses[1] + float(volume[0].mean()), rel=1e-3)
    encodings = []
    for model, x in ((given, holes.test), (standard, test)):
        seed(1)
        with torch.no_grad():
            encodings.append(model.encode(x))
    one, other = encodings
    torch.testing.assert_close(one.log_joint, other.log_joint - volume[1], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(given.likelihood.log_joint(holes.test, one.z, one.k), one.log_joint)
    bound = given.likelihood.bind(holes.test)(one.z, one.k)
    torch.testing.assert_close(bound, one.log_joint, rtol=1e-4, atol=1e-4)
    assert bool(given.reconstruct(holes.test).isfinite().all())
    again = gae.load(given.save(tmp_path / "model"))
    assert again.preparation is not None and again.preparation.standardize and again.preparation.missing


def test_ppca_with_holes_in_standard_units_has_the_density_of_scipy(table: Dataset) -> None:
    """log p of what was observed, in data units, and the elementwise law of x given a code."""
    holes = with_holes(table)
    model = gae.ppca(holes, latent=2).double()
    x = holes.test.double()
    gae.fit(model, holes.train.double(), progress=False)
    units = model.likelihood
    inner, unit, loc = units.likelihood, units.scale.numpy(), units.loc.numpy()
    loadings = inner.loadings[0].detach().numpy() * unit
    noise = unit * float(inner.log_scale.detach().exp())
    mean = loc + unit * inner.means[0].detach().numpy()
    covariance = loadings.T @ loadings + np.diag(noise**2)
    log_p = model.log_evidence(x).log_p.detach().numpy()
    z = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    given, laws = units(z[None].expand(1, len(x), 2)).log_prob(x)[0].detach().numpy(), mean + z[0].numpy() @ loadings
    for i, row in enumerate(x.numpy()):
        seen = ~np.isnan(row)
        if not seen.any():
            assert log_p[i] == given[i] == 0
            continue
        law = multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)])
        assert log_p[i] == pytest.approx(law.logpdf(row[seen]), rel=1e-6)
        assert given[i] == pytest.approx(norm(laws[seen], noise[seen]).logpdf(row[seen]).sum(), rel=1e-6)


def test_columns_with_holes_that_are_constant_are_named() -> None:
    frame = pd.DataFrame({"a": [0.5, np.nan, 1.5, 2.5] * 5, "b": [np.nan, 2.0] * 10, "c": np.full(20, np.nan)})
    with pytest.raises(ValueError, match=r"constant or empty in the training data: 'b', 'c'\."):
        load(frame, standardize=True, missing="mask")
    x = torch.tensor([[1.0, torch.nan], [3.0, torch.nan]])
    with pytest.raises(ValueError, match=r"element \(1,\) is constant, or was never observed"):
        StandardUnits.of(LinearMixture(1, 0, (2,)), x)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_system_in_standard_units_is_that_of_standardised_data(name: str, table: Dataset, tmp_path: Path) -> None:
    """The same training; codes are equal, log densities differ by the Jacobian, reconstructions by the units."""
    scaler, train, test = (part if i == 0 else torch.from_numpy(part).float() for i, part in enumerate(scaled(table)))
    models, losses = [], []
    for data, x in ((table, table), ((4,), train)):
        seed(0)
        models.append(build(name, data, **OPTIONS[name]))
        losses.append(gae.fit(models[-1], x, epochs=3, progress=False).rows[-1].train_loss)
    given, standard = models
    jacobian = float(np.log(scaler.scale_).sum())
    assert losses[0] == pytest.approx(losses[1] + jacobian, rel=1e-3)
    encodings = []
    for model, x in ((given, table.test), (standard, test)):
        seed(1)
        with torch.no_grad():
            encodings.append(model.eval().encode(x))
    one, other = encodings
    torch.testing.assert_close(one.log_joint, other.log_joint - jacobian, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(given.likelihood.log_joint(table.test, one.z, one.k), one.log_joint)
    again = gae.load(given.save(tmp_path / "model"))
    assert again.preparation is not None and again.preparation.standardize
    seed(1)
    first = given.encode(table.test)
    seed(1)
    assert torch.equal(again.encode(table.test).log_joint, first.log_joint)


def test_other_engines_act_in_standard_units(table: Dataset) -> None:
    """An ascent of the same steps as on standardised data, whose trace is in nats of the data as given."""
    _, _, test = scaled(table)
    decoder = Gaussian(nn.Linear(2, 4), 2, scale=0.5)
    likelihood = StandardUnits.of(decoder, table.train)
    engine = Ascent(Zeros(), Adam(0.1), 5)
    one, other = engine(likelihood, table.test), engine(decoder, torch.from_numpy(test).float())
    torch.testing.assert_close(one.z, other.z, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.log_joint, other.log_joint - likelihood.log_volume(table.test), rtol=1e-3, atol=1e-2)


def test_columns_that_are_constant_are_named() -> None:
    frame = pd.DataFrame({"a": np.arange(20) % 7 / 3, "b": 2.0, "c": "x"})
    with pytest.raises(ValueError, match=r"constant or empty .*: 'b', 'c=x'\. Leave them out by drop="):
        load(frame, standardize=True)
    assert load(frame, standardize=True, drop=["b", "c"]).standardize
    with pytest.raises(ValueError, match=r"element \(1,\) is constant"):
        StandardUnits.of(LinearMixture(1, 0, (2,)), torch.tensor([[1.0, 2.0], [3.0, 2.0]]))


def test_what_cannot_be_standardised_is_refused(table: Dataset, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ada\nalan\n")
    for source, said in (("digits", r"observations of shape \(1, 8, 8\)"), (tmp_path / "a.txt", "text")):
        with pytest.raises(ValueError, match=f"standardize=True is for tables .* got {said}"):
            load(source, standardize=True)
    with pytest.raises(ValueError, match=r"takes them as given\. Build it from the data"):
        gae.fit(gae.ppca((4,), latent=1), table, progress=False)
    for name in ("gan", "lle"):
        with pytest.raises(ValueError, match=f"{name} cannot model data in standard units"):
            build(name, table)
    with pytest.raises(TypeError, match="NonNegativeGaussian cannot be put in standard units"):
        gae.nmf(table, latent=2)
    with pytest.raises(ValueError, match="data as they are, not standardised"):
        load(table.train.numpy(), standardize=True, like=load(table.train.numpy()).preparation)


def test_one_row_of_new_data_is_not_constant(table: Dataset) -> None:
    like = table.preparation
    frame = pd.DataFrame(table.test[:1].numpy(), columns=list("abcd"))
    data = load(frame, like=like)
    assert torch.equal(data.test, table.test[:1]) and data.standardize


def test_posterior_of_data_as_given(table: Dataset) -> None:
    """q(z|x) is that of standardised x."""
    model = gae.ppca(table, latent=2)
    gae.fit(model, table, progress=False)
    _, _, test = scaled(table)
    inner: Any = model.likelihood
    one = ClosedForm()(model.likelihood, table.test).q
    other = ClosedForm()(inner.likelihood, torch.from_numpy(test).float()).q
    assert one is not None and other is not None
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-3, atol=1e-3)


def test_the_gap_of_an_exact_posterior_is_zero(table: Dataset) -> None:
    """On both sides the nats of the data as given."""
    model = gae.ppca(table, latent=2)
    gae.fit(model, table, progress=False)
    x = table.test[:3].double()
    gap = gae.inference_gap(model.double(), x, samples=100, draws=8, steps=50)
    assert gap.encoder is not None
    torch.testing.assert_close(gap.evidence.log_p, model.likelihood.log_evidence(x).log_p)
    torch.testing.assert_close(gap.encoder.value, gap.evidence.log_p, rtol=1e-6, atol=1e-6)


def test_layers_are_trained_in_standard_units(table: Dataset) -> None:
    _, train, _ = scaled(table)
    losses = []
    for data, x in ((table, table), ((4,), torch.from_numpy(train).float())):
        seed(0)
        model = build("stacked-ae", data, hidden=(6, 5), latent=2)
        losses.append([history.rows[-1].train_loss for history in pretrain(model, x, epochs=2, progress=False)])
        if data is table:
            with pytest.raises(TypeError, match="A classifier is given data as they are"):
                classifier(model, classes=2)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_units_of_an_encoder_are_given_standardised_data(table: Dataset) -> None:
    model = gae.vae(table, latent=2, hidden=(8,)).eval()
    inner, values = model.likelihood.in_standard_units(table.test)
    assert inner is not model.likelihood
    guide: Any = model.inference.guide
    with torch.no_grad():
        means = guide.density(values).base_dist.loc
    index, highest = most_active(Units(model), 1, table.test)
    assert index == int(means[:, 1].argmax()) and highest == pytest.approx(float(means[:, 1].max()), rel=1e-5)
