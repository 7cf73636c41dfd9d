"""What the figures of a comparison show, as plain arrays: reconstructions, interpolations, samples, codes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.engines import Configuration
from gae.measure import encode

if TYPE_CHECKING:
    import numpy as np

IMAGES, PAIRS, STEPS, DRAWS, CODES = 12, 2, 12, 24, 1000


def pictures(
    models: dict[str, Autoencoder], baselines: dict[str, Autoencoder], data: Dataset, configuration: Configuration
) -> "dict[str, np.ndarray]":
    """Arrays named ``kind/model``.

    ``originals`` (12, *X), ``reconstruction/…`` (12, *X) and ``interpolation/…`` (12 steps, 2 pairs, *X) are of the
    first test samples; ``sample/…`` (24, *X) are decoder means at draws from the prior, the same for all;
    ``codes/…`` (M, 2) are the first two principal components of the first 1000 test codes, ``explained/…`` their
    share of the variance, and ``labels`` (M,) their labels, if there are any.
    """
    x = data.test[:CODES]
    pairs = min(PAIRS, len(x) // 2)
    found = {"originals": x[:IMAGES]}
    along = torch.linspace(0, 1, STEPS)[:, None, None]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(configuration.seed)
        drawn = torch.randn(DRAWS, configuration.latent)
        for name, model in {**models, **baselines}.items():
            points = encode(model, x, configuration.effort)
            found[f"reconstruction/{name}"] = points.mean[:IMAGES]
            if name in models:
                line = torch.lerp(points.z[:pairs], points.z[pairs : 2 * pairs], along)
                found[f"interpolation/{name}"] = model.likelihood.point(model.decode(line))
                found[f"sample/{name}"] = model.likelihood.point(model.decode(drawn))
                found[f"codes/{name}"], found[f"explained/{name}"] = plane(points.z)
    if data.test_labels is not None:
        found["labels"] = data.test_labels[:CODES]
    return {name: value.numpy() for name, value in found.items()}


def plane(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The first two principal components (the second is 0 for codes of width 1), and their share of the variance."""
    centred = codes - codes.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].mT
    if plane.shape[1] < 2:
        plane = torch.nn.functional.pad(plane, (0, 2 - plane.shape[1]))
    return plane, values[:2].square().sum() / values.square().sum().clamp_min(1e-30)
