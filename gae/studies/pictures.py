"""Arrays for the figures of a comparison: reconstructions, interpolations, samples, codes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gae.analysis.metrics import PointEncodings, encode
from gae.analysis.traversal import attribute, interpolate, traverse
from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.likelihood.geometry import explained, principal_components
from gae.studies.engines import Configuration

if TYPE_CHECKING:
    import numpy as np

IMAGES, PAIRS, STEPS, DRAWS, CODES, AXES = 12, 2, 12, 24, 1000, 3


def pictures(
    models: dict[str, Autoencoder],
    baselines: dict[str, Autoencoder],
    data: Dataset,
    configuration: Configuration,
    known: Mapping[str, PointEncodings],
) -> "dict[str, np.ndarray]":
    """Arrays for the figures, named ``kind/model``.

    ``originals`` (12, *X), ``reconstruction/…`` (12, *X) and ``interpolation/…`` (12 steps, 2 pairs, *X) are of the
    first test samples; ``sample/…`` (24, *X) are decoder means at draws from the prior, with the same seed;
    ``codes/…`` (M, 2) are the first two principal components of the first 1000 test codes, ``explained/…`` their
    share of the variance, and ``labels`` (M,) their labels, if there are any. ``traversal/…`` (3, 12 steps, *X) moves
    the code of the first test sample along the axes of largest variance, up to two standard deviations to either
    side; ``attribute/…`` (2 pairs, 12 steps, *X) adds up to 1.5 times the direction from the codes of the first
    label to those of the second (``gae.analysis.traversal.attribute``).
    """
    x, labels = data.test[:CODES], None if data.test_labels is None else data.test_labels[:CODES]
    pairs = min(PAIRS, len(x) // 2)
    arrays = {"originals": x[:IMAGES]}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, model in models.items():
            torch.manual_seed(configuration.seed)  # the same random numbers for every decoder
            arrays[f"sample/{name}"] = model.sample(DRAWS, mean=True)
        for name, model in {**models, **baselines}.items():
            points = known.get(name) or encode(model, data.test, configuration.effort)
            codes = points.z[:CODES]
            arrays[f"reconstruction/{name}"] = points.mean[:IMAGES]
            if name in models:
                arrays[f"codes/{name}"], arrays[f"explained/{name}"] = plane(codes)
                arrays[f"traversal/{name}"] = _traversals(model, codes)
                if pairs:
                    ends = codes[:pairs], codes[pairs : 2 * pairs]
                    arrays[f"interpolation/{name}"] = interpolate(model, *ends, STEPS)
                if labels is not None and len(labels.unique()) > 1:
                    arrays[f"attribute/{name}"] = _attribute(model, codes, labels)
    if labels is not None:
        arrays["labels"] = labels
    return {name: value.numpy() for name, value in arrays.items()}


def plane(codes: Tensor) -> tuple[Tensor, Tensor]:
    """First two principal components (the second is 0 for codes of width 1), and their share of the variance."""
    if codes.shape[1] == 0:
        return codes.new_zeros(len(codes), 2), codes.new_zeros(())
    scores, size, _ = principal_components(codes)
    points = torch.nn.functional.pad(scores[:, :2], (0, max(0, 2 - scores.shape[1])))
    return points, explained(size, 2)


def _traversals(model: Autoencoder, codes: Tensor) -> Tensor:
    """Decoder means of the first code moved along the axes of largest variance, (A, T, *X)."""
    spread = codes.std(0, correction=0)
    axes = torch.eye(len(spread)) * spread
    amounts = torch.linspace(-2, 2, STEPS)
    order = spread.argsort(descending=True)[:AXES]
    return torch.stack([traverse(model, codes[:1], axes[i], amounts)[:, 0] for i in order])


def _attribute(model: Autoencoder, codes: Tensor, labels: Tensor) -> Tensor:
    """Decoder means of codes of the lowest label moved towards the next one, (P, T, *X)."""
    first, second = (codes[labels == label] for label in labels.unique()[:2])
    direction = attribute(model, second, first)
    return traverse(model, first[:PAIRS], direction, torch.linspace(0, 1.5, STEPS)).transpose(0, 1)
