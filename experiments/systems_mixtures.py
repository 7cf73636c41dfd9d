"""Checks of mixture variants that take minutes: MNIST, shortlists of charts, divergent codes.

python -m experiments.systems_mixtures
"""

import json
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from experiments.common import arguments, mnist
from gae import Autoencoder
from gae.data import load
from gae.inference import Argmax, Ascent, ClosedForm, Encoding, GradientAscent, Shortlist, Zeros
from gae.likelihood import GaussianKernel, LinearMixture
from gae.systems import ggae, kmeans, knn, llgae, pca, smooth_llgae
from gae.training import fit

CHARTS, WIDTH, TRAINED, HELD_OUT = (10, 100, 400), 5, 10_000, 2_000
STEPS = (30, 300, 3000, 10_000)
GOAL_LOST = 0.05  # share of the gain of LLGAE over one chart that a shortlist may lose
Row = dict[str, Any]


def run() -> dict[str, Row]:
    """Rows of this part: measured value, goal, and whether it is met."""
    torch.set_num_threads(1)
    rows = {"knn, MNIST": nearest(), "smooth-llgae, digits": smooth(), "ggae, digits": kernel(), "ggae, b = 0": drift()}
    return rows | shortlists()


@torch.no_grad()
def nearest() -> Row:
    """k-NN over 10,000 images of MNIST, against scikit-learn by brute force in the same run."""
    from sklearn.neighbors import NearestNeighbors

    data = mnist()
    train, test = data.train[:TRAINED], data.test[:HELD_OUT]
    model = knn(data.event_shape, components=TRAINED)
    fit(model, train, epochs=3, progress=False)
    component, ours = timed(lambda: model.encode(test).component)
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train.flatten(1).numpy())
    wanted, theirs = timed(lambda: search.kneighbors(test.flatten(1).numpy(), return_distance=False)[:, 0])
    value = {
        "equal neighbours": float(np.mean(component.numpy() == wanted)),
        "training error": float((model.reconstruct(train) - train).square().sum()),
        "seconds": ours,
        "seconds of scikit-learn": theirs,
    }
    holds = value["equal neighbours"] == 1.0 and value["training error"] == 0.0
    return row("encode = sk NearestNeighbors(1); error 0 on the training set", value, "1 and 0", holds)


def smooth() -> Row:
    """Smooth LLGAE by gradient at three temperatures, compared with hierarchical LLGAE in closed form."""
    data = load("digits")
    hierarchical = Autoencoder(
        LinearMixture(10, 8, data.event_shape, flat_prior=True, scale=0.5**0.5), Argmax(ClosedForm())
    )
    fit(hierarchical, data, epochs=20, progress=False)
    gaps, errors = {}, {}
    for temperature in (1.0, 0.1, 1e-6):
        blend = smooth_llgae(data.event_shape, temperature=temperature, steps=50)
        blend.likelihood.means.data.copy_(hierarchical.likelihood.means)
        blend.likelihood.loadings.data.copy_(hierarchical.likelihood.loadings)
        gaps[temperature] = abs(nats(blend, data.test) - nats(hierarchical, data.test) - math.log(10))
        torch.manual_seed(0)
        learned = smooth_llgae(data.event_shape, temperature=temperature)
        fit(learned, data, epochs=20, optimizer=partial(torch.optim.Adam, lr=1e-3), progress=False)
        errors[temperature] = error(learned, data.test)
    value = {"gap to hierarchical, nats": gaps, "test error learned": errors, "llgae": error(hierarchical, data.test)}
    holds = gaps[1e-6] < 1e-3 < gaps[0.1] < gaps[1.0]
    return row("→ hierarchical as the temperature → 0, on the same charts", value, "gap falls, below 1e-3 nats", holds)


def kernel() -> Row:
    """GGAE with b > 0 after learning: norm of its longest code by number of steps, and its error against k-means."""
    data = load("digits")
    torch.manual_seed(0)
    model = ggae(data.event_shape)
    fit(model, data, epochs=30, optimizer=partial(torch.optim.Adam, lr=1e-2), progress=False)
    centres = kmeans(data.event_shape)
    fit(centres, data, epochs=50, progress=False)
    codes = {steps: furthest(model.likelihood, data.test, steps) for steps in STEPS}
    norms = {steps: norm for steps, (norm, _) in codes.items()}
    value = {
        "largest norm": norms,
        "largest norm of a centre": float(model.likelihood.centres.detach().norm(dim=1).max()),
        "largest share of the bound": max(share for _, share in codes.values()),
        "test error": error(model, data.test),
        "kmeans": error(centres, data.test),
    }
    holds = norms[10_000] - norms[3000] < 1e-3 and value["largest share of the bound"] <= 1
    return row("codes stay bounded with b = 0.1", value, "within the bound; norm at rest after 3000 steps", holds)


def drift() -> Row:
    """The same after learning with b = 0: norm against steps, and its slope per decade."""
    data = load("digits")
    torch.manual_seed(0)
    model = ggae(data.event_shape, absorbing=0.0)
    fit(model, data, epochs=30, optimizer=partial(torch.optim.Adam, lr=1e-2), progress=False)
    norms = {steps: furthest(model.likelihood, data.test, steps)[0] for steps in STEPS}
    values = list(norms.values())
    holds = all(after > before + 0.05 for before, after in pairwise(values))
    return row(
        "with b = 0 the norm grows without bound", {"largest norm": norms}, "grows with every bound on the steps", holds
    )


@torch.no_grad()
def furthest(likelihood: GaussianKernel, x: Tensor, steps: int) -> tuple[float, float]:
    """Over 100 images, in float64: the largest ‖z‖, and the largest share of its bound that a code's distance takes."""
    options = {"absorbing": likelihood.absorbing, "learn_scale": True}
    model = GaussianKernel(
        len(likelihood.centres), *likelihood.latent_shape, likelihood.event_shape, **options
    ).double()
    model.load_state_dict(likelihood.state_dict())
    x = x[:100].double()
    z = Ascent(Zeros(), GradientAscent(0.05), steps)(model, x).z
    if not model.absorbing:
        return float(z.norm(dim=-1).max()), 0.0
    gain = model.log_components(x).amax(1) - model.log_joint(x, torch.zeros_like(z))[0]
    bound = (math.log(len(model.centres) / model.absorbing) + gain).sqrt()
    share = torch.cdist(z[0], model.centres).amin(1) / bound
    return float(z.norm(dim=-1).max()), float(share.max())


def shortlists() -> dict[str, Row]:
    """LLGAE on MNIST: loss from searching only m of K charts, for each number of probed cells.

    Images are pooled to 14 x 14: 400 scatter matrices of 784 x 784 would take 2 GB, and their eigenvectors most of an
    hour.
    """
    data = mnist()
    train, test = (avg_pool2d(x, 2) for x in (data.train[:TRAINED], data.test[:HELD_OUT]))
    shape = train.shape[1:]
    one = pca(shape, WIDTH)
    fit(one, train, progress=False)
    rows = {}
    for count in CHARTS:
        model = llgae(shape, WIDTH, count)
        fit(model, train, epochs=5, progress=False)
        rows[f"shortlist, MNIST at 14 x 14, K = {count}"] = shortlist(model, test, error(one, test))
    return rows


@torch.no_grad()
def shortlist(model: Autoencoder, x: Tensor, single: float) -> Row:
    """One table: the same charts, encoded by all of them and by shortlists."""
    assert isinstance(model.likelihood, LinearMixture)
    count = model.likelihood.components
    exact, seconds = timed(lambda: model.encode(x, Argmax(ClosedForm())))
    whole, cells = squared(model, exact, x), math.ceil(math.sqrt(count))
    table = [{"m": float(count), "equal k": 1.0, "nats lost": 0.0, "error ratio": 1.0, "gain lost": 0.0, "s": seconds}]
    for probes in sorted({1, 2, 4, 8, cells}):
        if probes > cells:
            continue
        engine = Shortlist(ClosedForm(), probes)
        engine.infer(model.likelihood, x[:1])  # builds the cells, which all batches share
        encoding, seconds = timed(lambda engine=engine: model.encode(x, engine))
        near = squared(model, encoding, x)
        table.append(
            {
                "probes": probes,
                "cells": cells,
                "m": float(engine.compared(model.likelihood, x).double().mean()),
                "equal k": float((encoding.k == exact.k).double().mean()),
                "nats lost": float((exact.log_joint - encoding.log_joint).mean()),
                "error ratio": near / whole,
                "gain lost": (near - whole) / (single - whole),
                "s": seconds,
            }
        )
    cheap = [line for line in table[1:] if line["m"] <= 0.5 * count]
    best = min(line["gain lost"] for line in cheap) if cheap else math.inf
    goal = f"at most {GOAL_LOST:.0%} of the gain over one chart lost at m <= K/2; nothing at all cells"
    holds = best <= GOAL_LOST and table[-1]["equal k"] == 1.0
    return row("share of equal k, mean nats lost, squared error ratio, charts per sample m", table, goal, holds)


def squared(model: Autoencoder, encoding: Encoding, x: Tensor) -> float:
    """Mean squared error per image of the decoded code."""
    mean = model.likelihood.point(model.decode(encoding.point, encoding.component))
    return float((mean - x).square().flatten(1).sum(1).mean())


@torch.no_grad()
def error(model: Autoencoder, x: Tensor) -> float:
    return squared(model, model.encode(x), x)


@torch.no_grad()
def nats(model: Autoencoder, x: Tensor) -> float:
    return float(model.encode(x).log_joint.double().mean())


def timed(compute: Callable[[], Any]) -> tuple[Any, float]:
    """The value, and the shortest of three times in seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        value = compute()
        times.append(time.perf_counter() - start)
    return value, min(times)


def row(check: str, value: Any, goal: str, holds: bool) -> Row:
    return {"check": check, "value": value, "goal": goal, "holds": bool(holds)}


if __name__ == "__main__":
    arguments(__doc__)
    print(json.dumps(run(), indent=1))
