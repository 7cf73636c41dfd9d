"""Checks of systems whose observation is a whole data set against scikit-learn, on all bundled digits."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression as SkLinear
from sklearn.linear_model import Ridge
from sklearn.manifold import TSNE as SkTSNE
from sklearn.manifold import LocallyLinearEmbedding, trustworthiness
from torch import Tensor

from experiments.common import arguments
from gae import data, systems
from gae.autoencoder import Autoencoder
from gae.inference import LBFGS, Ascent, PrincipalComponents
from gae.likelihood import LLE, TSNE

SEED = 0
PERPLEXITY = 30.0
NEIGHBOURS = 15
JITTER = 1e-3  # breaks ties between distances of digits, which would make neighbours ambiguous


def run() -> dict[str, Any]:
    """All checks, by name of the row in the table of systems."""
    torch.manual_seed(SEED)
    digits = data.load("digits")
    x = torch.cat([digits.train, digits.test])
    return {"linear regression (MLR)": regression(), "t-SNE": tsne(x), "LLE": lle(x)}


@torch.no_grad()
def regression() -> dict[str, Any]:
    """Least squares and ridge on the diabetes data (442 targets, 10 inputs), in closed form and by ascent."""
    inputs, targets = load_diabetes(return_X_y=True)
    inputs, targets = inputs / inputs.std(0), (targets - targets.mean()) / targets.std()
    design, y = torch.as_tensor(inputs), torch.as_tensor(targets).unsqueeze(0)
    errors = {}
    for name, prior_scale, oracle in (("least squares", None, SkLinear()), ("ridge", 0.2, Ridge(alpha=25.0))):
        wanted = oracle.fit(inputs, targets).coef_
        model = systems.build("linear-regression", (len(targets),), design=design, prior_scale=prior_scale).double()
        climb = Ascent(step=LBFGS(), max_steps=1000, grad_tol=1e-9)
        for way, engine in (("closed form", None), ("ascent", climb)):
            coefficients = model.encode(y, engine).point[0, 1:].numpy()
            errors[f"{name}, {way}"] = float(np.abs(coefficients - wanted).max())
    return {
        "check": "largest difference of a coefficient to scikit-learn's",
        "value": errors,
        "goal": "<= 1e-6",
        "holds": max(errors.values()) <= 1e-6,
    }


@torch.no_grad()
def tsne(x: Tensor) -> dict[str, Any]:
    """All digits at perplexity 30, from the principal components."""
    model = systems.build("tsne", tuple(x.shape[1:]), points=len(x), perplexity=PERPLEXITY)
    likelihood, one = _likelihood(model, TSNE), x.unsqueeze(0)
    z = model.encode(one).z
    flat, start = x.flatten(1).numpy(), PrincipalComponents()(likelihood, one).z[0, 0].numpy()
    oracle = SkTSNE(perplexity=PERPLEXITY, method="exact", init=start)
    layout = oracle.fit_transform(flat.astype(np.float64))
    value = {
        "divergence": float(likelihood.divergence(one, z)),
        "divergence, scikit-learn": float(oracle.kl_divergence_),
        "trustworthiness": float(trustworthiness(flat, z[0, 0].numpy())),
        "trustworthiness, scikit-learn": float(trustworthiness(flat, layout)),
    }
    return {
        "check": "KL(P || Q) in nats and trustworthiness, beside scikit-learn's exact method from the same start",
        "value": value,
        "goal": "KL <= 1.02 of scikit-learn's, trustworthiness >= scikit-learn's - 0.005",
        "holds": value["divergence"] <= 1.02 * value["divergence, scikit-learn"]
        and value["trustworthiness"] >= value["trustworthiness, scikit-learn"] - 0.005,
    }


@torch.no_grad()
def lle(x: Tensor) -> dict[str, Any]:
    """Embeds all digits but 100, and then places these."""
    x = x.double() + JITTER * torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED)).double()
    known, new = x[:-100], x[-100:]
    model = systems.build("lle", tuple(x.shape[1:]), points=len(known), neighbours=NEIGHBOURS).double()
    embedding = model.encode(known.unsqueeze(0)).point[0].numpy()
    oracle = LocallyLinearEmbedding(n_neighbors=NEIGHBOURS, eigen_solver="dense").fit(known.flatten(1).numpy())
    theirs = torch.as_tensor(oracle.embedding_).unsqueeze(0)
    placed = _likelihood(model, LLE).transform(known.unsqueeze(0), theirs, new.unsqueeze(0))[0].numpy()
    a, b = (np.linalg.qr(codes)[0] for codes in (embedding, oracle.embedding_))
    value = {
        "sine of the largest principal angle": float(np.linalg.norm(a - b @ (b.T @ a), 2)),
        "largest difference of a new point's code": float(np.abs(placed - oracle.transform(new.flatten(1))).max()),
    }
    return {
        "check": "span of the codes, and codes of new points, beside scikit-learn's",
        "value": value,
        "goal": "<= 1e-4",
        "holds": max(value.values()) <= 1e-4,
    }


def _likelihood(model: Autoencoder, kind: type[Any]) -> Any:
    assert isinstance(model.likelihood, kind)
    return model.likelihood


if __name__ == "__main__":
    arguments(__doc__)
    torch.set_num_threads(1)
    for row, result in run().items():
        print(row, result)
