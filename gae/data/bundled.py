"""Data sets that are bundled or synthetic, and need no file."""

import numpy as np

from gae.data.arrays import Arrays


def read_bundled(name: str, seed: int) -> Arrays:
    """The digits of scikit-learn, or draws of ``"swiss-roll"``, ``"circles"`` or ``"linear-gaussian"``."""
    match name:
        case "digits":
            from sklearn.datasets import load_digits

            digits = load_digits()
            return Arrays(digits.images[:, None] / 16, digits.target)
        case "swiss-roll":
            from sklearn.datasets import make_swiss_roll

            points, angle = make_swiss_roll(2000, noise=0.05, random_state=seed)
            return Arrays(points, np.floor((angle / (1.5 * np.pi) - 1) * 5).astype(int))  # angle in 1.5 π … 4.5 π
        case "circles":
            from sklearn.datasets import make_circles

            return Arrays(*make_circles(2000, noise=0.05, factor=0.5, random_state=seed))
    return Arrays(draw_linear_gaussian(2000, 2, 10, 0.5, seed)[0])


def draw_linear_gaussian(
    n: int, latent: int, dim: int, scale: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, mean and loadings of ``gae.data.linear_gaussian``."""
    if not (0 <= latent <= dim and dim >= 1 and scale > 0):
        raise ValueError(f"Need 0 <= latent <= dim, dim >= 1 and scale > 0, got {latent=}, {dim=}, {scale=}.")
    random = np.random.default_rng(seed)
    mean, loadings = random.normal(size=dim), random.normal(size=(latent, dim))
    return mean + random.normal(size=(n, latent)) @ loadings + scale * random.normal(size=(n, dim)), mean, loadings
