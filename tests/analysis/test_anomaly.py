"""Anomaly scores against scikit-learn and closed forms, on digits with one class held out."""

import math

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from gae import Autoencoder, systems
from gae.analysis.anomaly import anomaly_scores
from gae.data import Dataset
from gae.inference import Amortized, ClosedForm, Zeros
from gae.likelihood import Flat, Gaussian, LinearMixture
from gae.training import fit


def test_digits_of_a_class_that_was_held_out(digits: Dataset) -> None:
    """-log p(x) of probabilistic PCA is that of scikit-learn, and so is its area under the curve."""
    assert digits.train_labels is not None and digits.test_labels is not None
    normal = digits.train[digits.train_labels != 4]
    model = systems.build("ppca", digits.event_shape, latent=16)
    fit(model, normal, progress=False)
    scores = anomaly_scores(model, digits.test, batch_size=200)
    wanted = -PCA(16).fit(normal.flatten(1).double().numpy()).score_samples(digits.test.flatten(1).double().numpy())
    anomalous = digits.test_labels == 4
    area = roc_auc_score(anomalous, scores)
    assert area == pytest.approx(roc_auc_score(anomalous, wanted), abs=0.02) and area > 0.9
    assert roc_auc_score(anomalous, anomaly_scores(model, digits.test, by="reconstruction")) > 0.9


class Shifted(nn.Module):
    """The exact posterior of ``linear()``, moved by a constant."""

    def __init__(self, likelihood: LinearMixture, shift: float):
        super().__init__()
        self.likelihood, self.shift = likelihood, shift

    def forward(self, x: Tensor) -> Independent:
        q = self.likelihood.posterior(x, torch.zeros(1, len(x), dtype=torch.long))
        return Independent(Normal(q.mean[0] + self.shift, q.stddev[0]), 1)


def linear() -> LinearMixture:
    model = LinearMixture(1, 2, (4,), scale=0.5).double()
    model.loadings.data = torch.linalg.qr(torch.randn(4, 2).double())[0].T.unsqueeze(0)  # independent codes
    return model


def test_scores_of_a_linear_model() -> None:
    likelihood, x = linear(), torch.randn(7, 4).double()
    model = Autoencoder(likelihood, ClosedForm())
    torch.testing.assert_close(anomaly_scores(model, x, batch_size=3), -likelihood.log_evidence(x).log_p.detach())
    error = (x - model.reconstruct(x)).square().sum(1).detach() / (2 * 0.25) + 2 * math.log(2 * math.pi * 0.25)
    torch.testing.assert_close(anomaly_scores(model, x, by="reconstruction"), error, rtol=1e-6, atol=1e-6)


def test_the_gap_of_a_misplaced_encoder_is_its_divergence_from_the_posterior() -> None:
    """Normals of the same variance 1/(1 + 1/σ²) = 0.2, a shift of 0.3 apart in both dimensions."""
    likelihood, x = linear(), torch.randn(7, 4).double()
    model = Autoencoder(likelihood, Amortized(Shifted(likelihood, 0.3)))
    found = anomaly_scores(model, x, by="gap")
    torch.testing.assert_close(found, torch.full((7,), 2 * 0.09 / (2 * 0.2)).double(), rtol=1e-6, atol=1e-6)


def test_scores_that_do_not_exist_are_refused() -> None:
    flat = Autoencoder(Gaussian(nn.Linear(2, 4), 2, prior=Flat(2)), Zeros())
    x = torch.zeros(3, 4)
    for by in ("evidence", "gap"):
        with pytest.raises(ValueError, match="does not exist under a flat prior"):
            anomaly_scores(flat, x, by=by)  # type: ignore[arg-type]
    proper = Autoencoder(Gaussian(nn.Linear(2, 4), 2), Zeros())
    with pytest.raises(ValueError, match="needs an encoder with a density"):
        anomaly_scores(proper, x, by="gap")
    with pytest.raises(ValueError, match=r"Unknown score 'error'\. Valid scores: evidence, reconstruction, gap"):
        anomaly_scores(proper, x, by="error")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        anomaly_scores(proper, x, batch_size=0)
