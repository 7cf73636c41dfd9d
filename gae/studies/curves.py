"""Bounds against decoder evaluations: ascents of increasing length on one decoder, from several starts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Num
from torch import Tensor

from gae.analysis.metrics import Entry, encode, mean_and_error, mean_elbo, mean_log_evidence
from gae.autoencoder import Autoencoder
from gae.inference import Amortized, Inference
from gae.likelihood import Likelihood
from gae.studies.engines import Configuration
from gae.systems import NormalEncoder

Engines = Callable[[int], Inference]
PILOT = 5  # the pilot that chooses a proposal takes one in so many draws


def bound_curves(
    decoder: Likelihood, encoder: NormalEncoder, x: Num[Tensor, "N *X"], configuration: Configuration
) -> Entry:
    """Curves of the joint log density at the code (MAP ascent) and of the ELBO (mean-field ascent), and log p(x).

    Each point is a separate solve with that many steps, from the same seed. Its value is recomputed at the final code
    or density, in nats (mean over x and standard error). Evaluations are per sample.
    """
    c, warm = configuration, Amortized(encoder)
    settings: list[tuple[str, str, Engines, Sequence[int]]] = [
        ("from 0", "joint", c.ascent, c.bound_steps),
        ("from the encoder", "joint", partial(c.ascent, init=warm), c.bound_steps),
        ("encoder alone", "elbo", lambda steps: warm, (0,)),
    ]
    for draws in c.bound_draws:
        refinement = partial(c.refinement, encoder, draws=draws)
        settings.append((f"from the encoder, {draws} draws a step", "elbo", refinement, c.bound_steps))
    curves = []
    for label, quantity, engines, steps in settings:
        points = [_point(Autoencoder(decoder, engines(count)), quantity, x, c) for count in steps]
        columns = {key: [point[key] for point in points] for key in ("evaluations", "mean", "se")}
        curves.append({"label": label, "quantity": quantity, **columns})
    return {"curves": curves, "log_p": _evidence(decoder, encoder, x, c)}


def _evidence(decoder: Likelihood, encoder: NormalEncoder, x: Tensor, configuration: Configuration) -> Entry:
    """log p(x) by importance sampling around MAP codes or from refined densities, whichever is higher in a pilot.

    The estimate uses fresh draws, so it is a lower bound in expectation; the maximum of two estimates would not be.
    """
    c, steps = configuration, max(configuration.bound_steps)
    engines = (c.ascent(steps, init=Amortized(encoder)), c.refinement(encoder, steps, max(c.bound_draws)))
    few = replace(c.effort, importance_samples=max(c.effort.importance_samples // PILOT, 2))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(c.seed)
        models = [Autoencoder(decoder, engine) for engine in engines]
        points = [encode(model, x, few) for model in models]
        pilots = [mean_log_evidence(model, x, codes, few)["mean"] for model, codes in zip(models, points, strict=True)]
        best = max(range(len(models)), key=lambda i: -math.inf if pilots[i] is None else pilots[i])
        return mean_log_evidence(models[best], x, points[best], c.effort)


def _point(model: Autoencoder, quantity: str, x: Tensor, configuration: Configuration) -> Entry:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(configuration.seed)
        points = encode(model, x, configuration.effort)
        value = (
            mean_and_error(points.joint) if quantity == "joint" else mean_elbo(model, x, points, configuration.effort)
        )
    return {**value, "evaluations": float(points.evaluations.mean())}
