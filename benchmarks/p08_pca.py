"""A closed-form PCA(20) fit on 60,000 × 784 by ``gae.fit`` against scikit-learn's PCA, on the covariance too.

One closed-form step is the optimum. By default ``fit`` takes a second one to detect convergence, which is
shown for reference.
"""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from benchmarks.common import UnequalResults, agree, first_line, mnist, report, row, take_turns
from gae.likelihood import LinearMixture
from gae.systems import pca
from gae.training import fit

LATENT = 20
LARGEST_ANGLE = 1e-3  # radians; both sides take the covariance in float32


def ours(x: Float[Tensor, "N D"], epochs: int) -> LinearMixture:
    """PCA by closed-form M-steps."""
    model = pca(x.shape[1:], LATENT)
    fit(model, x, epochs=epochs, progress=False)
    assert isinstance(model.likelihood, LinearMixture)
    return model.likelihood


def angle(a: Float[Tensor, "E D"], b: Float[Tensor, "E D"]) -> float:
    """The largest principal angle between two row spaces, in radians: its sine is ‖b - P_a b‖₂."""
    a, b = (torch.linalg.qr(rows.double().mT)[0] for rows in (a, b))
    return float(torch.linalg.matrix_norm(b - a @ (a.mT @ b), 2).clamp_max(1).asin())


def same(model: LinearMixture, reference: PCA) -> None:
    """The same mean and the same principal subspace."""
    agree("mean", model.means[0], torch.from_numpy(reference.mean_), 1e-4)  # scikit-learn sums it up in float32
    largest = angle(model.loadings[0].detach(), torch.from_numpy(reference.components_))
    if not largest <= LARGEST_ANGLE:
        raise UnequalResults(f"principal subspaces: angle {largest:.3g} rad, allowed {LARGEST_ANGLE:g}")
    print(f"equal: principal subspaces, largest angle {largest:.1e} rad (allowed {LARGEST_ANGLE:g})")


def main() -> None:
    name, images = mnist()
    x = images.flatten(1)
    array: np.ndarray = x.numpy()
    same(ours(x, 1), PCA(LATENT).fit(array))
    once, twice, theirs = take_turns(lambda: ours(x, 1), lambda: ours(x, 2), lambda: PCA(LATENT).fit(array), rounds=7)
    rows = [
        row("PCA(20) fit, one closed-form step", once, theirs, 1.2),
        row("PCA(20) fit, until nothing changes", twice, theirs, None),
    ]
    report("P8", "time of ours / time of scikit-learn", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
