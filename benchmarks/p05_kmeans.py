"""Fits of k-means on 60,000 × 784 by ``gae.fit`` against the faster of scikit-learn's Lloyd and Elkan algorithms.

All start at the same centres. A fit runs 30 iterations, or until no assignment changes, which are as many for all.
"""

import statistics
import warnings
from functools import partial

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

COMPONENTS, ITERATIONS, ENDLESS = (10, 100), 30, 1000
CLOSE = 1e-3  # relative difference of inertia at convergence, where other roundings may lead to another optimum
GOAL = 0.5


def ours(x: Float[Tensor, "N D"], start: Float[Tensor, "K D"], iterations: int) -> Float[Tensor, "K D"]:
    """Centres by alternating Argmax and closed-form M-steps, at most so many times."""
    likelihood = LinearMixture(len(start), 0, (x.shape[1],), means=start)
    fit(Autoencoder(likelihood, Argmax()), x, epochs=iterations, tol=1e-30, progress=False)
    return likelihood.means.detach()


def theirs(x: np.ndarray, start: np.ndarray, algorithm: str, iterations: int) -> np.ndarray:
    """Centres by scikit-learn."""
    model = KMeans(len(start), init=start, n_init=1, algorithm=algorithm, max_iter=iterations, tol=0).fit(x)
    return model.cluster_centers_


def inertia(x: Float[Tensor, "N D"], centres: Float[Tensor, "K D"]) -> float:
    """Σ_n min_k ‖x_n - centre_k‖², in float64."""
    centres = centres.double()
    return sum(float(torch.cdist(rows.double(), centres).square().amin(1).sum()) for rows in x.split(10_000))


def compare(x: Float[Tensor, "N D"], components: int, iterations: int) -> Row:
    """The row of one K and one number of iterations."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    start = x[order[:components]]
    array, begin = x.numpy(), start.numpy()
    what = f"fit of {iterations} iterations" if iterations < ENDLESS else "fit until nothing changes"
    mine, reference = ours(x, start, iterations), torch.from_numpy(theirs(array, begin, "lloyd", iterations))
    tolerance = 1e-4 if iterations < ENDLESS else CLOSE
    agree(f"inertia, {what}, K={components}", inertia(x, mine), inertia(x, reference), tolerance)
    sides = [partial(theirs, array, begin, algorithm, iterations) for algorithm in ("lloyd", "elkan")]
    taken, *others = take_turns(lambda: ours(x, start, iterations), *sides, rounds=5)
    return row(f"{what}, K={components}", taken, min(others, key=statistics.median), GOAL)


def main() -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)  # from scikit-learn, of a fixed number of iterations
    name, images = mnist()
    x = images.flatten(1)
    rows = [compare(x, components, iterations) for components in COMPONENTS for iterations in (ITERATIONS, ENDLESS)]
    report("P5", "time of ours / time of the faster of scikit-learn's", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
