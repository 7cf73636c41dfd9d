"""The estimator against scikit-learn's own: its checks of estimators, and its numbers at the same parameters."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from cases import seed
from conftest import FULL
from scipy.optimize import nnls
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal
from sklearn import config_context
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from gae.autoencoder import log_evidence
from gae.evidence import importance
from gae.evidence.base import UnreliableWarning
from gae.inference import LBFGS, Ascent, ClosedForm, GradientAscent, Zeros
from gae.likelihood import FlatDistribution
from gae.sklearn import GenerativeAutoencoder
from gae.sklearn.base import MIXTURES
from gae.systems import SYSTEMS, build
from gae.systems.options import defaults

SMALL: dict[str, Any] = {"latent": 2, "epochs": 1, "options": {"hidden": (8,)}, "importance_samples": 200}
CHECKED = {
    "pca": GenerativeAutoencoder("pca"),
    "ppca": GenerativeAutoencoder("ppca", latent=1),
    "kmeans": GenerativeAutoencoder("kmeans", components=2),
    "gmm": GenerativeAutoencoder("gmm", components=2, epochs=5),
    "llgae": GenerativeAutoencoder("llgae", components=2, latent=1),
    "nmf": GenerativeAutoencoder("nmf", latent=1, options={"steps": 10}, epochs=1),
    "vae": GenerativeAutoencoder("vae", **SMALL),
}


def checks_of(estimator: Any) -> list[tuple[Any, Any]]:
    """Copies of the estimator, and the checks that scikit-learn makes of them."""
    generator = getattr(estimator_checks, "estimator_checks_generator", None)
    if generator is None:  # scikit-learn before 1.6
        return list(estimator_checks.check_estimator(estimator, generate_only=True))
    return list(generator(estimator))


def name_of(check: Any) -> str:
    return getattr(check, "func", check).__name__


# Vectors, a chart with its coordinates, numbers that are not negative, and the densities of an encoder.
EACH_KIND = ("ppca", "llgae", "nmf", "vae")
CHECKS = [
    pytest.param(*pair, id=f"{system}-{i}-{name_of(pair[1])}")
    for system in (CHECKED if FULL else EACH_KIND)
    for i, pair in enumerate(checks_of(CHECKED[system]))
]


@pytest.mark.filterwarnings("ignore:log p.x. of .* a lower bound only")  # models of one epoch
@pytest.mark.usefixtures("unchecked_types")  # a check constructs estimators of anything
@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("system", CHECKED)
def test_no_check_of_pca_is_left_out(system: str) -> None:
    ours, theirs = ({name_of(check) for _, check in checks_of(each)} for each in (CHECKED[system], PCA()))
    arrays = {f"check_array_api_{kind}" for kind in ("input", "mixed_inputs", "same_namespace")}  # other libraries'
    assert theirs - ours <= arrays


COLUMNS = (
    *("check_dataframe_column_names_consistency", "check_get_feature_names_out_error"),
    *("check_transformer_get_feature_names_out", "check_transformer_get_feature_names_out_pandas"),
    *("check_set_output_transform", "check_set_output_transform_pandas", "check_set_output_transform_polars"),
)


@pytest.mark.filterwarnings("ignore:X (does not have|has) (valid )?feature names")  # of which the check is
@pytest.mark.parametrize("system", ["pca", "llgae"])
@pytest.mark.parametrize("check", COLUMNS)
def test_checks_of_columns(system: str, check: str) -> None:
    """Those that scikit-learn makes of its own transformers only."""
    estimator = clone(CHECKED[system])
    getattr(estimator_checks, check)(type(estimator).__name__, estimator)


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    """Three groups, with columns of unequal variance."""
    random = np.random.default_rng(0)
    centres = 6 * random.normal(size=(3, 5))
    return centres[random.integers(3, size=90)] + random.normal(size=(90, 5)) * [2.0, 1.0, 0.7, 0.5, 0.4]


def test_pca(X: np.ndarray) -> None:
    ours, theirs = GenerativeAutoencoder("pca", latent=3).fit(X), PCA(3).fit(X)
    codes, wanted = ours.transform(X), theirs.transform(X)
    sign = np.sign((codes * wanted).sum(0))
    assert np.allclose(sign * codes, wanted, atol=1e-8)
    assert np.allclose(ours.inverse_transform(codes), theirs.inverse_transform(wanted), atol=1e-8)
    assert not hasattr(ours, "score_samples") and not hasattr(ours, "sample") and not hasattr(ours, "predict")


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_score_samples_of_ppca(X: np.ndarray, dtype: Any, tolerance: float) -> None:
    """PCA's probabilistic model divides by N - 1; maximum likelihood divides by N."""
    pca = PCA(2).fit(X)
    pca.explained_variance_ *= (len(X) - 1) / len(X)
    pca.noise_variance_ *= (len(X) - 1) / len(X)
    ours = GenerativeAutoencoder("ppca", latent=2).fit(X.astype(dtype))
    scores = ours.score_samples(X.astype(dtype))
    assert scores.dtype == dtype and np.allclose(scores, pca.score_samples(X), rtol=tolerance)
    assert ours.score(X) == pytest.approx(pca.score(X), rel=tolerance)
    likelihood = ours.model_.likelihood
    factors = FactorAnalysis(2).fit(X)
    factors.mean_ = likelihood.means.detach().double().numpy()[0]
    factors.components_ = likelihood.loadings.detach().double().numpy()[0]
    factors.noise_variance_ = np.full(5, likelihood.log_scale.exp().item() ** 2)
    assert np.allclose(scores, factors.score_samples(X), rtol=tolerance)
    assert np.allclose(ours.transform(X), factors.transform(X), rtol=tolerance, atol=tolerance)


def test_gmm(X: np.ndarray) -> None:
    ours = GenerativeAutoencoder("gmm", components=3, random_state=0).fit(X)
    likelihood = ours.model_.likelihood
    theirs = GaussianMixture(3, covariance_type="spherical")
    theirs.weights_ = likelihood.log_weights.exp().detach().numpy()
    theirs.means_ = likelihood.means.detach().numpy()
    theirs.precisions_cholesky_ = (-likelihood.log_scale).exp().detach().numpy()
    theirs.covariances_ = theirs.precisions_cholesky_**-2.0
    rows = np.concatenate([X, 0.5 * (X + X[::-1])])  # some of them between two groups
    assert np.allclose(ours.score_samples(rows), theirs.score_samples(rows), rtol=1e-9)
    assert np.allclose(ours.predict_proba(rows), theirs.predict_proba(rows), atol=1e-9)
    assert ((ours.predict_proba(rows) > 0.1).sum(1) > 1).any()
    assert (ours.predict(rows) == theirs.predict(rows)).all()
    assert (clone(ours).fit_predict(X) == ours.predict(X)).all()
    assert (ours.transform(X) == np.eye(3)[ours.predict(X)]).all()
    again = clone(theirs).set_params(
        weights_init=theirs.weights_, means_init=theirs.means_, precisions_init=theirs.precisions_cholesky_**2
    )
    assert again.fit(X).score(X) == pytest.approx(ours.score(X), abs=1e-3)  # it had converged
    drawn = ours.sample(20_000, random_state=0)
    error = drawn.std(0) / len(drawn) ** 0.5
    assert (np.abs(drawn.mean(0) - theirs.weights_ @ theirs.means_) < 5 * error).all()


def test_kmeans(X: np.ndarray) -> None:
    X = X / 10  # noise of standard deviation 1 blurs the groups
    ours = GenerativeAutoencoder("kmeans", components=3, random_state=0).fit(X)
    theirs = KMeans(3, init=ours.model_.likelihood.means.detach().numpy(), n_init=1).fit(X)
    codes = ours.transform(X)
    assert (ours.predict(X) == theirs.labels_).all()
    assert np.square(X - ours.inverse_transform(codes)).sum() == pytest.approx(theirs.inertia_, rel=1e-9)
    square = theirs.transform(X) ** 2
    log_joint = -0.5 * square - np.log(3) - 2.5 * np.log(2 * np.pi)
    assert np.allclose(ours.score_samples(X), logsumexp(log_joint, 1), rtol=1e-9)
    assert np.allclose(ours.predict_proba(X), softmax(log_joint, 1), atol=1e-9)


def test_llgae(X: np.ndarray) -> None:
    """The code is the chart with the smallest residual, and the coordinates of the projection onto it."""
    X = X / 10
    ours = GenerativeAutoencoder("llgae", components=3, latent=2, random_state=0).fit(X)
    likelihood = ours.model_.likelihood
    means, loadings = likelihood.means.detach().numpy(), likelihood.loadings.detach().numpy()
    z = np.einsum("nkd,ked->nke", X[:, None] - means, loadings)
    projections = means + np.einsum("nke,ked->nkd", z, loadings)
    square = np.square(X[:, None] - projections).sum(2)
    k = square.argmin(1)
    codes = ours.transform(X)
    assert (codes[:, :3] == np.eye(3)[k]).all() and np.allclose(codes[:, 3:], z[np.arange(len(X)), k], atol=1e-8)
    assert np.allclose(ours.inverse_transform(codes), projections[np.arange(len(X)), k], atol=1e-8)
    assert np.allclose(ours.predict_proba(X), softmax(-0.5 * square, 1), atol=1e-9)
    assert list(ours.get_feature_names_out()) == ["llgae_k0", "llgae_k1", "llgae_k2", "llgae_z0", "llgae_z1"]
    with pytest.raises(ValueError, match="Codes have 5 columns, got 2"):
        ours.inverse_transform(codes[:, :2])


def test_nmf(X: np.ndarray) -> None:
    ours = GenerativeAutoencoder("nmf", latent=2).fit(np.abs(X))
    parts = ours.model_.likelihood.parts.detach().numpy()
    wanted = np.array([nnls(parts.T, row)[0] for row in np.abs(X[:10])])
    assert np.allclose(ours.transform(np.abs(X[:10])), wanted, atol=1e-4)
    with pytest.raises(ValueError, match=r"Negative values in data.*n_samples=90, n_features=5"):
        clone(ours).fit(X)


def test_neighbours_have_as_many_components_as_rows(X: np.ndarray) -> None:
    ours = GenerativeAutoencoder("knn").fit(X)
    assert (ours.predict(X + 1e-6) == np.arange(len(X))).all() and ours.transform(X).shape == (90, 90)
    assert np.allclose(ours.inverse_transform(ours.transform(X)), X)


def linear_vae(X: np.ndarray, **parameters: Any) -> GenerativeAutoencoder:
    options = {"hidden": (), "posterior": "full"}
    return GenerativeAutoencoder("vae", latent=2, options=options, random_state=0, epochs=20, **parameters).fit(X)


def evidence_of(ours: GenerativeAutoencoder, X: np.ndarray) -> np.ndarray:
    """log p(x) of a linear decoder with Gaussian noise, whose columns are read off from the decoder."""
    likelihood = ours.model_.likelihood
    with torch.no_grad():
        origin, *ends = likelihood.decoder(torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()).numpy()
        scale = likelihood(torch.zeros(1, 2).double()).stddev.numpy()[0]
    loadings = np.array(ends) - origin
    return multivariate_normal(origin, loadings.T @ loadings + np.diag(scale**2)).logpdf(X)


@pytest.mark.slow
def test_score_samples_of_a_vae_is_the_evidence_of_its_decoder(X: np.ndarray) -> None:
    ours, rows = linear_vae(X, importance_samples=2000), X[:5]
    scores, x = ours.score_samples(rows), torch.from_numpy(rows)
    with torch.no_grad():
        q = ours.model_.encode(x).q
        assert q is not None
        error = importance(ours.model_.likelihood, x, q, 2000).standard_error.numpy()
    assert (np.abs(scores - evidence_of(ours, rows)) < 6 * error + 0.01).all()
    assert np.array_equal(scores, ours.score_samples(rows))
    assert np.array_equal(scores[1:3], ours.score_samples(rows[1:3]))


def test_a_score_that_is_a_lower_bound_only_says_so(X: np.ndarray) -> None:
    ours = linear_vae(X, importance_samples=2)  # 20 draws around the mode have no effective size of 100
    with pytest.warns(UnreliableWarning, match=r"log p\(x\) of 4 of 4 rows is a lower bound"):
        ours.score_samples(X[:4])


def test_codes_from_a_codebook_have_an_exact_score(X: np.ndarray) -> None:
    options = {"positions": 2, "vectors": 3, "width": 1, "hidden": (4,)}
    ours = GenerativeAutoencoder("vq-vae", options=options, epochs=2, random_state=0).fit(X)
    vectors = ours.model_.likelihood.latent_prior.vectors.detach()
    codes = torch.cartesian_prod(vectors[:, 0], vectors[:, 0]).unsqueeze(2)
    with torch.no_grad():
        heights = ours.model_.likelihood(codes.unsqueeze(1)).log_prob(torch.from_numpy(X[:5])).numpy()
    assert np.allclose(ours.score_samples(X[:5]), logsumexp(heights, 0) - np.log(9), rtol=1e-9)


@pytest.mark.parametrize("engine", ["lbfgs", "gauss-newton", "adam", Ascent(Zeros(), LBFGS(), 100)])
def test_the_engine_is_exchanged_on_the_same_decoder(X: np.ndarray, engine: Any) -> None:
    """A linear-Gaussian posterior has its mode at its mean."""
    standard = StandardScaler().fit_transform(X)
    ours = GenerativeAutoencoder("ppca", engine, latent=2).fit(standard)
    wanted = clone(ours).set_params(engine=None).fit(standard).transform(standard)
    assert np.allclose(ours.transform(standard), wanted, atol=1e-2)  # 1e-5 nats


@pytest.mark.parametrize("engine", ["lbfgs", "gauss-newton"])
def test_the_engine_climbs_every_component_of_a_mixture(X: np.ndarray, engine: str) -> None:
    ours = GenerativeAutoencoder("llgae", components=3, latent=2, random_state=0).fit(X)
    wanted = ours.transform(X)
    assert np.allclose(ours.set_params(engine=engine).transform(X), wanted, atol=1e-2)  # 1e-5 nats


def test_engines_from_the_encoder(X: np.ndarray) -> None:
    """Refined codes are closer to the posterior mean, which is the mode of a linear decoder, than the encoder's."""
    ours = linear_vae(X)
    own, refined, mode = (ours.set_params(engine=name).transform(X) for name in ("encoder", "refine", "lbfgs"))
    assert np.array_equal(own, ours.set_params(engine=None).transform(X))
    assert np.abs(refined - mode).mean() < 0.5 * np.abs(own - mode).mean()


@pytest.mark.parametrize(
    ("engine", "status"), [("adam", "max_steps"), (Ascent(Zeros(), GradientAscent(3.0), 20), "diverged")], ids=str
)
def test_codes_of_an_ascent_that_has_not_converged(X: np.ndarray, engine: Any, status: str) -> None:
    ours = GenerativeAutoencoder("pca", engine, latent=2).fit(1e4 * X)
    with pytest.warns(ConvergenceWarning, match=f"3 of 3 ascents have not converged .*'{status}': 3"):
        ours.transform(1e4 * X[:3])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"system": "kmeens"}, r"Unknown system 'kmeens'. Did you mean 'kmeans'\? Valid systems: pca, "),
        ({"system": "tsne"}, "An observation of tsne is a data set, not a row of X. Use pca, "),
        ({"system": "conv-vae"}, r"needs images .* \(n_samples=90, n_features=5\)"),
        ({"system": "pca", "components": 2}, "pca has no option 'components'. Valid options: latent"),
        ({"latent": 2, "options": {"latent": 3}}, "latent is given twice, as a parameter and in options"),
        ({"system": "pca", "latent": 6}, r"0 <= latent <= 5.*n_features=5"),
        ({"system": "kmeans", "components": 91}, r"K=91 components need at least as many samples.*n_samples=90"),
        ({"system": "pca", "engine": "newton"}, "Unknown engine 'newton'. Valid engines: lbfgs, "),
        ({"system": "pca", "engine": "refine"}, "'refine' needs an encoder, but this model is encoded by ClosedForm"),
        ({"system": "kmeans", "engine": "lbfgs"}, "LinearMixture has discrete codes alone"),
        ({"system": "pca", "lr": 1e-3, "tol": 1e-3}, "tol is for closed-form learning"),
        ({"missing": "impute"}, "Unknown missing 'impute'. Choose one of refuse, mask"),
        ({"options": {"missing": True}}, "missing is no option here. Give it as a parameter"),
        ({"system": "knn", "missing": "mask"}, "knn needs complete observations.*one of pca, ppca"),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit(X: np.ndarray, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerativeAutoencoder(**parameters).fit(X)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_missing_values_are_those_of_the_conditional_normal(X: np.ndarray, dtype: Any) -> None:
    holes = np.where(np.random.default_rng(1).random(X.shape) < 0.2, np.nan, X).astype(dtype)
    holes[0] = np.nan
    ours = GenerativeAutoencoder("ppca", latent=2, missing="mask", epochs=20, tol=1e-2).fit(holes)
    likelihood, tolerance = ours.model_.likelihood, 1e-8 if dtype == np.float64 else 1e-3
    mean, loadings = (each.detach().double().numpy()[0] for each in (likelihood.means, likelihood.loadings))
    covariance = loadings.T @ loadings + likelihood.log_scale.exp().item() ** 2 * np.eye(5)
    scores, codes = ours.score_samples(holes), ours.transform(holes)
    filled = ours.inverse_transform(codes)
    assert scores.dtype == codes.dtype == dtype
    assert scores[0] == 0 and np.allclose(codes[0], 0) and np.allclose(filled[0], mean, atol=tolerance)
    for row, score, guess in zip(holes[1:], scores[1:], filled[1:], strict=True):
        seen = ~np.isnan(row)
        inside = covariance[np.ix_(seen, seen)]
        assert score == pytest.approx(multivariate_normal(mean[seen], inside).logpdf(row[seen]), rel=tolerance)
        wanted = mean + covariance[:, seen] @ np.linalg.solve(inside, row[seen] - mean[seen])
        assert np.allclose(guess[~seen], wanted[~seen], atol=tolerance)


@pytest.mark.parametrize(
    "system", [name for name, row in SYSTEMS.items() if "missing" in row.reads and name != "conv-vae"]
)
def test_every_system_that_takes_missing_values_takes_them_here(X: np.ndarray, system: str) -> None:
    holes = np.abs(X)
    holes[::3, 0] = np.nan
    small = {name: value for name, value in {"hidden": (8,), "latent": 2}.items() if name in defaults(system)}
    ours = GenerativeAutoencoder(system, missing="mask", epochs=1, options=small).fit(holes)
    assert np.isfinite(ours.inverse_transform(ours.transform(holes))).all()
    with pytest.raises(ValueError, match="NaN"):
        GenerativeAutoencoder(system, epochs=1, options=small).fit(holes)


def test_checks_of_scikit_learn_on_missing_values() -> None:
    estimator = GenerativeAutoencoder("gmm", missing="mask", components=2, epochs=2)
    assert estimator.__sklearn_tags__().input_tags.allow_nan
    estimator_checks.check_estimators_pickle("GenerativeAutoencoder", estimator)  # with NaN in X


def test_codes_that_must_not_be_negative_are_climbed_by_their_own_engine(X: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Codes of NonNegativeGaussian are non-negative"):
        GenerativeAutoencoder("nmf", "lbfgs", latent=2).fit(np.abs(X))


def test_an_engine_without_a_component_is_refused(X: np.ndarray) -> None:
    ours = GenerativeAutoencoder("llgae", Ascent(), components=2, latent=1).fit(X)
    with pytest.raises(ValueError, match="`Ascent` returns no component of this mixture"):
        ours.transform(X)


def test_before_fit() -> None:
    for name in ("transform", "inverse_transform", "score_samples", "score"):
        with pytest.raises(NotFittedError):
            getattr(GenerativeAutoencoder("ppca"), name)(np.zeros((2, 2)))
    with pytest.raises(NotFittedError):
        GenerativeAutoencoder("ppca").sample()
    assert not hasattr(GenerativeAutoencoder("ppca"), "predict")
    assert not hasattr(GenerativeAutoencoder("pca"), "score") and not hasattr(GenerativeAutoencoder("nope"), "score")


def test_the_same_seed_is_the_same_estimator(X: np.ndarray) -> None:
    seed(5)
    before = torch.random.get_rng_state()
    first = GenerativeAutoencoder("vae", **SMALL, random_state=0).fit(X)
    again, other = clone(first).fit(X), clone(first).set_params(random_state=1).fit(X)
    assert np.array_equal(first.transform(X), again.transform(X))
    assert np.array_equal(first.score_samples(X[:5]), again.score_samples(X[:5]))
    assert np.array_equal(first.sample(3), again.sample(3))
    assert not np.allclose(first.transform(X), other.transform(X))
    assert not np.array_equal(first.sample(3, random_state=1), first.sample(3))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_data_is_kept(X: np.ndarray, dtype: Any) -> None:
    for ours in (clone(CHECKED["vae"]), clone(CHECKED["gmm"])):
        ours.fit(X.astype(dtype))
        rows = X[:3].astype(dtype)
        outputs = [ours.transform(rows), ours.inverse_transform(ours.transform(rows)), ours.score_samples(rows)]
        outputs += [ours.sample(2), *([ours.predict_proba(rows)] if hasattr(ours, "predict_proba") else [])]
        assert [output.dtype for output in outputs] == [dtype] * len(outputs)
        assert ours.transform(X[:3]).dtype == np.float64  # as given to transform


@pytest.mark.slow
def test_model_selection(X: np.ndarray) -> None:
    """Scores of a search are those of fits by hand; parameters and options can be searched over."""
    folds = KFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(GenerativeAutoencoder("ppca"), {"latent": [1, 2, 3]}, cv=folds).fit(X)
    for latent, found in zip([1, 2, 3], search.cv_results_["mean_test_score"], strict=True):
        fits = [(PCA(latent).fit(X[train]), train, test) for train, test in folds.split(X)]
        for pca, train, _ in fits:
            pca.explained_variance_ *= (len(train) - 1) / len(train)
            pca.noise_variance_ *= (len(train) - 1) / len(train)
        assert found == pytest.approx(np.mean([pca.score(X[test]) for pca, _, test in fits]), rel=1e-6)
    single = cross_val_score(GenerativeAutoencoder("ppca", latent=2), X, cv=folds)
    assert single.mean() == pytest.approx(search.cv_results_["mean_test_score"][1])
    pipeline = make_pipeline(StandardScaler(), GenerativeAutoencoder("vae", **SMALL, random_state=0))
    grid = {"generativeautoencoder__options__hidden": [(2,), (3,)], "generativeautoencoder__lr": [1e-2]}
    best = GridSearchCV(pipeline, grid, cv=2).fit(X).best_estimator_[-1]
    first = best.model_.likelihood.decoder[0]
    assert first.out_features == best.options["hidden"][0] and SMALL["options"] == {"hidden": (8,)}
    assert best.get_params()["options__hidden"] == best.options["hidden"]


def test_columns_have_names(X: np.ndarray) -> None:
    frame = pd.DataFrame(X, columns=list("abcde"), index=range(10, 100))
    ours = GenerativeAutoencoder("ppca", latent=2).fit(frame)
    codes = clone(ours).set_output(transform="pandas").fit_transform(frame)
    assert list(codes.columns) == ["ppca_z0", "ppca_z1"] and codes.index.equals(frame.index)
    assert np.array_equal(codes.to_numpy(), ours.transform(frame))
    with config_context(transform_output="polars"):
        table = ours.transform(frame)
    assert isinstance(table, pl.DataFrame) and table.columns == ["ppca_z0", "ppca_z1"]
    table = pl.DataFrame(X, schema=list("abcde"))
    assert np.allclose(ours.fit(table).transform(table), codes.to_numpy())


def test_a_fitted_estimator_pickles(X: np.ndarray) -> None:
    for engine in ("refine", Ascent(Zeros(), max_steps=3)):
        ours = GenerativeAutoencoder("vae", engine, **SMALL, random_state=0).fit(X)
        again = pickle.loads(pickle.dumps(ours))
        assert np.array_equal(again.transform(X), ours.transform(X))
        assert np.array_equal(again.score_samples(X[:2]), ours.score_samples(X[:2]))


def test_the_model_is_that_of_gae(X: np.ndarray, tmp_path: Any) -> None:
    import gae

    ours = GenerativeAutoencoder("ppca", latent=2).fit(X)
    again = gae.load(ours.model_.save(tmp_path / "model"))
    x = torch.from_numpy(X)
    assert np.array_equal(log_evidence(again, x).log_p.detach().numpy(), ours.score_samples(X))
    assert isinstance(again.inference, ClosedForm) and ours.n_iter_ == len(ours.history_.rows)


TABLES = [name for name, row in SYSTEMS.items() if row.observation == "sample" and name != "conv-vae"]


def test_methods_follow_from_the_system() -> None:
    """Those that an estimator has before it is fitted."""
    models = {name: build(name, (4,)).likelihood for name in TABLES if name not in ("pca", "ppca")}
    mixtures = {name for name, likelihood in models.items() if likelihood.components > 1}
    assert mixtures == set(MIXTURES)
    for name, likelihood in models.items():
        proper = not isinstance(likelihood.prior, FlatDistribution)
        assert hasattr(GenerativeAutoencoder(name), "score_samples") == proper, name


@pytest.mark.parametrize("system", ["glo", "gan", "mcmc-em", "ladder-vae", "sparse-coding", "sparse-ae"])
def test_other_kinds_of_codes(system: str, X: np.ndarray) -> None:
    """Codes of random engines, of several layers, and of none of their own."""
    options = {} if system == "sparse-coding" else {"hidden": (4,)}
    ours = GenerativeAutoencoder(system, latent=None, options=options, epochs=1, random_state=0).fit(X[:12])
    codes = ours.transform(X[:4])
    assert np.isfinite(codes).all() and codes.shape == (4, len(ours.get_feature_names_out()))
    assert np.array_equal(codes, ours.transform(X[:4]))
    assert ours.inverse_transform(codes).shape == (4, 5)
