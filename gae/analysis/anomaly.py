"""Anomaly scores of observations under a model of normal data."""

from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor

from gae.analysis.inference_gap import encoder_density, lower_bound
from gae.autoencoder import Autoencoder, log_evidence
from gae.data.checks import at_least_one
from gae.data.progress import counted
from gae.evidence.base import need_proper
from gae.likelihood.door import door

Criterion = Literal["evidence", "reconstruction", "gap"]


@torch.no_grad()
def anomaly_scores(
    model: Autoencoder, x: Num[Tensor, "N *X"], by: Criterion = "evidence", batch_size: int = 100
) -> Float[Tensor, " N"]:
    """Anomaly scores in nats: the higher, the less x resembles the data that the model was trained on.

    ``"evidence"``: -log p(x), by ``gae.log_evidence``. ``"reconstruction"``: -log q_r(x|z) at the point code of x; for
    a Gaussian head of one scale the squared error up to constants. ``"gap"``: log p(x) - ELBO of the encoder, which is
    large where the encoder was not trained. No score is a probability of being an anomaly, and a model may give a high
    density to data that are simpler than its own (Nalisnick et al. 2019): compare them on labelled examples.

    Args:
        model: trained on normal data.
        x: (N, *X).
        by: which score.
        batch_size: number of observations at a time.

    Raises:
        ValueError: for an unknown score; for ``"evidence"`` and ``"gap"``, under a flat prior; for ``"gap"``, if the
            engine has no density q(z|x), or codes are not vectors.
        TypeError, ValueError: for x that does not fit the model.

    >>> from sklearn.metrics import roc_auc_score
    >>> from gae.data import load
    >>> from gae.systems import ppca
    >>> from gae.training import fit
    >>> data = load("digits")
    >>> model = ppca(data.event_shape, latent=16)
    >>> history = fit(model, data.train[data.train_labels != 4], progress=False)
    >>> scores = anomaly_scores(model, data.test)
    >>> round(roc_auc_score(data.test_labels == 4, scores), 2)
    0.97
    """
    scores = {"evidence": _evidence, "reconstruction": _reconstruction, "gap": _gap}
    if by not in scores:
        raise ValueError(f"Unknown score {by!r}. Valid scores: {', '.join(scores)}.")
    at_least_one("batch_size", batch_size)
    with door(model.likelihood, x):
        return torch.cat([scores[by](model, batch) for batch in counted(x.split(batch_size), by)])


def _evidence(model: Autoencoder, x: Tensor) -> Tensor:
    return -log_evidence(model, x).log_p


def _reconstruction(model: Autoencoder, x: Tensor) -> Tensor:
    encoding = model.encode(x)
    return -model.decode(encoding.point, encoding.component).log_prob(x)


def _gap(model: Autoencoder, x: Tensor) -> Tensor:
    need_proper(model.likelihood)
    q = encoder_density(model.inference, model.likelihood, x)
    if q is None:
        raise ValueError(
            f"The gap needs an encoder with a density q(z|x), got {type(model.inference).__name__}. Use "
            '`by="evidence"`, or `by="reconstruction"`.'
        )
    return log_evidence(model, x).log_p - lower_bound(model.likelihood, x, q).value
