"""``--missing mask``, from a table with holes on disk to codes and imputed values."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command import gae
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.experimental import enable_iterative_imputer  # noqa: F401 (enables the next import)
from sklearn.impute import IterativeImputer

from gae import load
from gae.data import load as load_data
from gae.likelihood import LinearMixture

D, E = 6, 2


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A complete table of a linear-Gaussian model, the same with holes, and a PPCA fitted to that."""
    folder, random = tmp_path_factory.mktemp("missing"), np.random.default_rng(0)
    complete = 3 + 2 * random.normal(size=(400, E)) @ random.normal(size=(E, D)) + 0.3 * random.normal(size=(400, D))
    table = np.where(random.random(complete.shape) < 0.25, np.nan, complete)
    table[5] = np.nan  # nothing was observed
    paths = {name: folder / f"{name}.npy" for name in ("complete", "table")}
    np.save(paths["complete"], complete)
    np.save(paths["table"], table)
    model = folder / "ppca"
    gae("fit", "ppca", paths["table"], "--missing", "mask", "--option", f"latent={E}", "--quiet", "--out", model)
    return {**paths, "model": model, "folder": folder}


def test_nan_is_refused_unless_asked_for(files: dict[str, Path]) -> None:
    said = gae("fit", "ppca", files["table"], "--out", files["folder"] / "never", code=2)
    assert "x must be finite in float32, got nan at index" in said and "`gae fit --missing mask`" in said
    assert not (files["folder"] / "never").exists()
    assert "nmf needs complete observations" in gae(
        "fit", "nmf", files["table"], "--missing", "mask", "--out", files["folder"] / "never", code=2
    )


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def conditional_means(model: LinearMixture, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[z | x_obs] and E[x | x_obs] of each row, from the joint normal of x and z."""
    mean, loadings = (part.detach().double().numpy()[0] for part in (model.means, model.loadings))
    covariance = loadings.T @ loadings + float(model.log_scale.detach().exp()) ** 2 * np.eye(D)
    codes, means = np.zeros((len(x), len(loadings))), np.tile(mean, (len(x), 1))
    for row, values in enumerate(x):
        seen = ~np.isnan(values)
        solved = np.linalg.solve(covariance[np.ix_(seen, seen)], values[seen] - mean[seen])
        codes[row] = loadings[:, seen] @ solved
        means[row] += covariance[:, seen] @ solved
    return codes, means


def test_encode_gives_the_conditional_means_of_a_file_with_holes(files: dict[str, Path]) -> None:
    codes = files["folder"] / "codes.npz"
    gae("encode", files["model"], files["table"], "--output", codes)
    written, x = arrays(codes), np.load(files["table"]).astype(np.float32)
    order = np.argsort(written["index"])
    model = load(files["model"])
    assert model.preparation is not None and model.preparation.missing
    wanted, _ = conditional_means(model.likelihood, x)
    np.testing.assert_allclose(written["z"][order], wanted[np.sort(written["index"])], atol=1e-5)
    assert np.isfinite(written["log_joint"]).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_reconstruct_imputes_as_well_as_scikit_learn(files: dict[str, Path]) -> None:
    x, truth = np.load(files["table"]), np.load(files["complete"])
    hidden = np.isnan(x)
    model = load(files["model"]).double()
    restored = model.reconstruct(torch.from_numpy(x)).detach().numpy()
    assert np.isfinite(restored).all()
    _, wanted = conditional_means(model.likelihood, x)
    np.testing.assert_allclose(restored[hidden], wanted[hidden], rtol=1e-6, atol=1e-6)

    def error(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean((values - truth)[hidden] ** 2)))

    chained = IterativeImputer(max_iter=30, tol=1e-2, random_state=0).fit_transform(x)
    column = np.where(hidden, np.nanmean(x, 0), x)
    assert error(restored) < 1.1 * error(chained) and error(restored) < 0.7 * error(column)


def test_a_vae_is_fitted_to_a_table_with_holes_and_imputes(files: dict[str, Path]) -> None:
    folder = files["folder"] / "vae"
    options = ("--option", f"latent={E}", "--option", "hidden=8", "--epochs", "2", "--quiet")
    said = gae("fit", "vae", files["table"], "--missing", "mask", *options, "--out", folder)
    assert "nan" not in said
    model = load(folder)
    train = load_data(files["table"], missing="mask").train
    for unit in (model.likelihood.likelihood.decoder, model.inference.guide.network):  # of decoder and encoder
        np.testing.assert_allclose(unit.loc, np.nanmean(train, 0), rtol=1e-4, atol=1e-4)
    assert model.reconstruct(train).isfinite().all()
    gae("encode", folder, files["table"], "--output", folder / "codes.npz")
    assert np.isfinite(arrays(folder / "codes.npz")["z"]).all()


@pytest.mark.slow
def test_a_comparison_of_systems_takes_holes_and_one_of_engines_says_why_not(files: dict[str, Path]) -> None:
    out, table = files["folder"] / "systems", files["table"]
    options = ("--missing", "mask", "--quick", "--epochs", "1", "--out", out)
    assert "A comparison of engines needs complete observations" in gae("compare", table, *options, code=2)
    assert not out.exists()
    gae("compare", table, *options, "--systems", "ppca")
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    x = load_data(table, missing="mask").test.double().numpy()
    model = load(out / "checkpoints" / "ppca").likelihood
    mean, loadings = (part.detach().double().numpy()[0] for part in (model.means, model.loadings))
    square = (mean + conditional_means(model, x)[0] @ loadings - x) ** 2
    seen = ~np.isnan(x).all(1)
    assert results["rows"][0]["squared_error"]["mean"] == pytest.approx(np.nanmean(square[seen], 1).mean(), rel=1e-4)


def test_a_model_of_complete_data_takes_no_holes(files: dict[str, Path]) -> None:
    folder = files["folder"] / "complete"
    gae("fit", "ppca", files["complete"], "--option", f"latent={E}", "--quiet", "--out", folder)
    assert "must be finite" in gae("encode", folder, files["table"], code=2)
    like = load(folder).preparation
    with pytest.raises(ValueError, match="was trained on complete observations, got missing='mask'"):
        load_data(files["table"], missing="mask", like=like)


def observed_density(row: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """log p of the elements that were observed, by SciPy."""
    seen = ~np.isnan(row)
    if not seen.any():
        return 0.0
    return float(multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)]).logpdf(row[seen]))


def test_score_and_reconstruct_use_what_was_observed(files: dict[str, Path]) -> None:
    """log p of the observed part in the order of the file, imputed values in a file, and codes by an ascent."""
    folder, x = files["folder"], np.load(files["table"]).astype(np.float32)
    model = load(files["model"]).likelihood
    mean, loadings = (part.detach().double().numpy()[0] for part in (model.means, model.loadings))
    covariance = loadings.T @ loadings + float(model.log_scale.detach().exp()) ** 2 * np.eye(D)
    gae("score", files["model"], files["table"], "-o", folder / "scores.npz")
    wanted = [observed_density(row, mean, covariance) for row in x]
    np.testing.assert_allclose(arrays(folder / "scores.npz")["log_p"], wanted, rtol=1e-4, atol=1e-4)
    gae("reconstruct", files["model"], files["table"], "-o", folder / "whole.npy")
    codes, _ = conditional_means(model, x)
    np.testing.assert_allclose(np.load(folder / "whole.npy"), mean + codes @ loadings, rtol=1e-3, atol=1e-3)
    gae("encode", files["model"], files["table"], "--engine", "lbfgs", "-o", folder / "climbed.npz")
    np.testing.assert_allclose(arrays(folder / "climbed.npz")["z"], codes, atol=5e-3)


def test_a_mixture_scores_what_was_observed(files: dict[str, Path]) -> None:
    folder, x = files["folder"], np.load(files["table"]).astype(np.float32)
    options = ("--missing", "mask", "--option", "components=2", "--epochs", 3, "--quiet", "--out", folder / "gmm")
    gae("fit", "gmm", files["table"], *options)
    gae("score", folder / "gmm", files["table"], "-o", folder / "mixed.npz")
    model = load(folder / "gmm").likelihood.double()
    weights, scales = (part.detach().exp().numpy() for part in (model.log_weights, model.log_scale))
    laws = list(zip(model.means.detach().numpy(), scales, strict=True))
    parts = [[observed_density(row, mean, scale**2 * np.eye(D)) for mean, scale in laws] for row in x[:50]]
    wanted = logsumexp(parts, axis=1, b=weights)
    np.testing.assert_allclose(arrays(folder / "mixed.npz")["log_p"][:50], wanted, rtol=1e-4, atol=1e-4)
