"""Closed-form PCA(20) and PPCA(20) fits on 60,000 × 784, whole calls of ``gae.fit``, against scikit-learn's PCA.

scikit-learn's PCA is that of the covariance too, and holds the noise variance of probabilistic PCA.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from benchmarks.common import UnequalResults, agree, first_line, mnist, report, row, take_turns
from gae import Autoencoder
from gae.likelihood import LinearMixture
from gae.systems import pca, ppca
from gae.training import fit

LATENT = 20
LARGEST_ANGLE = 1e-3  # radians; both sides take the covariance in float32


def ours(x: Float[Tensor, "N D"], system: Callable[..., Autoencoder]) -> LinearMixture:
    """The fit, until it has converged."""
    model = system(x.shape[1:], LATENT)
    fit(model, x, progress=False)
    assert isinstance(model.likelihood, LinearMixture)
    return model.likelihood


def angle(a: Float[Tensor, "E D"], b: Float[Tensor, "E D"]) -> float:
    """The largest principal angle between two row spaces, in radians: its sine is ‖b - P_a b‖₂."""
    a, b = (torch.linalg.qr(rows.double().mT)[0] for rows in (a, b))
    return float(torch.linalg.matrix_norm(b - a @ (a.mT @ b), 2).clamp_max(1).asin())


def same(name: str, model: LinearMixture, reference: PCA) -> None:
    """The same mean, principal subspace and, if it is learned, noise."""
    agree(f"{name}: mean", model.means[0], torch.from_numpy(reference.mean_), 1e-4)  # scikit-learn sums it in float32
    largest = angle(model.loadings[0].detach(), torch.from_numpy(reference.components_))
    if not largest <= LARGEST_ANGLE:
        raise UnequalResults(f"{name}: principal subspaces: angle {largest:.3g} rad, allowed {LARGEST_ANGLE:g}")
    print(f"equal: {name}: principal subspaces, largest angle {largest:.1e} rad (allowed {LARGEST_ANGLE:g})")
    if model.learn_scale:
        agree(f"{name}: noise variance", (2 * model.log_scale[0]).exp(), float(reference.noise_variance_), 1e-3)


def main() -> None:
    name, images = mnist()
    x = images.flatten(1)
    array: np.ndarray = x.numpy()
    for system in (pca, ppca):
        same(system.__name__, ours(x, system), PCA(LATENT).fit(array))
    sides = (lambda: ours(x, pca), lambda: ours(x, ppca), lambda: PCA(LATENT).fit(array))
    one, other, theirs = take_turns(*sides, rounds=7)
    rows = [row("PCA(20) fit, whole call", one, theirs, 1.0), row("PPCA(20) fit, whole call", other, theirs, 1.0)]
    report("P8", "time of ours / time of scikit-learn", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
