"""One k-means iteration on 60,000 × 784, and a whole fit of 30, by ``gae.fit`` against scikit-learn's Lloyd algorithm.

Both start at the same centres and run a fixed number of iterations, before either would stop. The time of one
iteration is that of 30 minus that of 5, over 25: what a fit does once (checks, copies, a last assignment) is left out.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from benchmarks.common import Row, agree, first_line, mnist, report, row, take_turns
from gae import Autoencoder
from gae.inference import Argmax
from gae.likelihood import LinearMixture
from gae.training import fit

COMPONENTS = (10, 100)
LONG, SHORT = 30, 5


def ours(x: Float[Tensor, "N D"], start: Float[Tensor, "K D"], iterations: int) -> Float[Tensor, "K D"]:
    """Centres after some iterations of alternating Argmax and closed-form M-steps."""
    likelihood = LinearMixture(len(start), 0, (x.shape[1],), means=start)
    history = fit(Autoencoder(likelihood, Argmax()), x, epochs=iterations, tol=1e-30, progress=False)
    assert len(history.rows) == iterations
    return likelihood.means.detach()


def theirs(x: np.ndarray, start: np.ndarray, iterations: int) -> np.ndarray:
    """Centres after some iterations of scikit-learn."""
    model = KMeans(len(start), init=start, n_init=1, algorithm="lloyd", max_iter=iterations, tol=0).fit(x)
    assert model.n_iter_ == iterations
    return model.cluster_centers_


def inertia(x: Float[Tensor, "N D"], centres: Float[Tensor, "K D"]) -> float:
    """Σ_n min_k ‖x_n - centre_k‖², in float64."""
    centres = centres.double()
    return sum(float(torch.cdist(rows.double(), centres).square().amin(1).sum()) for rows in x.split(10_000))


def compare(x: Float[Tensor, "N D"], components: int) -> list[Row]:
    """The rows of one K."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    start = x[order[:components]]
    array, begin = x.numpy(), start.numpy()
    for iterations in (1, LONG):
        mine, reference = ours(x, start, iterations), torch.from_numpy(theirs(array, begin, iterations))
        agree(f"inertia of {iterations} iterations, K={components}", inertia(x, mine), inertia(x, reference), 1e-4)
    short, long, their_short, their_long = take_turns(
        lambda: ours(x, start, SHORT),
        lambda: ours(x, start, LONG),
        lambda: theirs(array, begin, SHORT),
        lambda: theirs(array, begin, LONG),
        rounds=5,
    )
    one = row(f"one iteration, K={components}", _each(long, short), _each(their_long, their_short), 1.0)
    return [one, row(f"fit of {LONG} iterations, K={components}", long, their_long, 1.0)]


def _each(long: Sequence[float], short: Sequence[float]) -> list[float]:
    return [(a - b) / (LONG - SHORT) for a, b in zip(long, short, strict=True)]


def main() -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)  # from scikit-learn, since the number of iterations is fixed
    name, images = mnist()
    x = images.flatten(1)
    rows = [line for components in COMPONENTS for line in compare(x, components)]
    report("P5", "time of ours / time of scikit-learn", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
