"""Claim: compute that an encoder by ascent needs to overtake an amortised one on the same decoder, and its gain.

Four decoders of one architecture (``gap_models``), trained by the ELBO of an encoder, by a semi-amortised ELBO, and by
unrolled and detached MAP. On each, the first 100 test images of MNIST are encoded by

- the encoder alone (where there is one), and MAP ascent by L-BFGS from zeros, from a prior draw, and from the
  encoder's mean;
- mean-field ascent from the encoder's density (semi-amortised), with increasing numbers of steps, few and many draws;
- adjusted Langevin dynamics from zeros, with increasing numbers of steps.

A point code defines no bound. It is evaluated by the ELBO of the Laplace approximation at the code, so that all
engines share one quantity: a lower bound of log p(x), in nats, by fresh draws. Its curvature takes 50 further
decoder derivatives, which are counted. For every engine: bound, decoder evaluations and seconds per image.

    python -m experiments.gap_models && python -m experiments.encoders_by_compute
"""

import copy
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from experiments.common import arguments, mnist, write
from experiments.gap_models import TRAININGS, train
from gae.analysis.inference_gap import inference_gap, lower_bound, one_row
from gae.analysis.metrics import mean_and_error
from gae.evidence import laplace_approximation
from gae.inference import LBFGS, Adam, Amortized, Ascent, Detach, Inference, Langevin, MeanField, Prior, Zeros
from gae.likelihood import Bernoulli
from gae.systems import NormalEncoder

DECODERS = ("vae", "savae", "unrolled", "detached")
STYLES = {
    "encoder": ("k", "*"),
    "MAP from zeros": ("tab:blue", "o"),
    "MAP from the prior": ("tab:cyan", "s"),
    "MAP from the encoder": ("tab:green", "^"),
    "mean field from the encoder, 8 draws": ("tab:orange", "<"),
    "mean field from the encoder, 100 matched draws": ("tab:red", "v"),
    "Langevin from zeros": ("tab:purple", "x"),
}


@dataclass(frozen=True)
class Configuration:
    images: int = 100
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    langevin_rate: float = 2e-2
    draws: int = 300
    samples: int = 5000
    floor: float = 1.0  # of the Laplace approximation's precision: that of the prior
    seed: int = 0


def engines(encoder: NormalEncoder | None, configuration: Configuration, steps: int) -> dict[str, Inference]:
    """Every engine with a given number of steps."""
    climb = partial(Ascent, step=LBFGS(), max_steps=steps, adjoint=Detach())
    choices: dict[str, Inference] = {"MAP from zeros": climb(Zeros()), "MAP from the prior": climb(Prior())}
    noise = Langevin(configuration.langevin_rate, adjusted=True)
    choices["Langevin from zeros"] = Ascent(Zeros(), noise, steps, adjoint=Detach())
    if encoder is not None:
        choices["MAP from the encoder"] = climb(Amortized(encoder))
        for name, family in {"8 draws": MeanField(8), "100 matched draws": MeanField(100, matched=True)}.items():
            rule = Adam(0.02, (0.8, 0.9))
            refined = Ascent(Amortized(encoder), rule, steps, family=family, adjoint=Detach())
            choices[f"mean field from the encoder, {name}"] = refined
    return choices


def measured(decoder: Bernoulli, x: Tensor, engine: Inference, configuration: Configuration) -> dict[str, Any]:
    """Bound, evaluations and seconds per image of one engine."""
    torch.manual_seed(configuration.seed)
    began = time.perf_counter()
    encoding = engine(decoder, x)
    solve = encoding.solve
    evaluations = 0.0 if solve is None else float(solve.evaluations.double().mean())
    q: Distribution
    if encoding.q is None:
        q = laplace_approximation(decoder, x, encoding.point, configuration.floor)
        evaluations += decoder.latent_shape.numel()
    else:
        q = one_row(encoding.q)
    seconds = (time.perf_counter() - began) / len(x)
    bound = lower_bound(decoder, x, q, configuration.draws)
    entry = mean_and_error(bound.value)
    return {**entry, "evaluations": max(evaluations, 1.0), "seconds": seconds, "bounds": bound.value.tolist()}


def curves(name: str, data: Any, configuration: Configuration) -> dict[str, Any]:
    model, trained = train(name, data)
    decoder = model.likelihood.eval()
    assert isinstance(decoder, Bernoulli)
    encoder = None if name in ("unrolled", "detached") else trained
    x = data.test[: configuration.images]
    curves: dict[str, list[dict[str, Any]]] = {}
    with torch.no_grad():
        if encoder is not None:
            curves["encoder"] = [{"steps": 0, **measured(decoder, x, Amortized(encoder), configuration)}]
        for steps in configuration.steps:
            for label, engine in engines(encoder, configuration, steps).items():
                row = {"steps": steps, **measured(decoder, x, engine, configuration)}
                curves.setdefault(label, []).append(row)
                print(f"{name}, {label}, {steps} steps: {row['mean']:.2f}", flush=True)
        double = copy.deepcopy(decoder).double()
        log_p = inference_gap(double, x.double(), ("full covariance",), samples=configuration.samples).evidence
    return {
        "label": TRAININGS[name].label,
        "curves": curves,
        "crossings": crossings(curves),
        "log_p": {**mean_and_error(log_p.log_p), "ess": float(log_p.ess.mean())},  # type: ignore[union-attr]
    }


def crossings(curves: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """For each engine, the fewest steps whose bound is above the encoder's by more than 2 s.e. of the difference."""
    if "encoder" not in curves:
        return {}
    reference = torch.tensor(curves["encoder"][0]["bounds"])
    result: dict[str, Any] = {}
    for label, rows in curves.items():
        for row in rows:
            gain = mean_and_error(torch.tensor(row["bounds"]) - reference)
            if label != "encoder" and gain["mean"] > 2 * gain["se"]:
                result[label] = {key: row[key] for key in ("steps", "evaluations", "seconds")} | {"gain": gain}
                break
    return result


def draw(results: dict[str, Any]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    decoders = results["decoders"]
    figure, panels = pyplot.subplots(len(decoders), 2, figsize=(9, 3 * len(decoders)), constrained_layout=True)
    for pair, decoder in zip(panels, decoders.values(), strict=True):
        for axes, quantity in zip(pair, ("evaluations", "seconds"), strict=True):
            top = decoder["log_p"]["mean"]
            best = max(row["mean"] for rows in decoder["curves"].values() for row in rows)
            for label, rows in decoder["curves"].items():
                colour, marker = STYLES[label]
                axes.errorbar(
                    [row[quantity] for row in rows],
                    [row["mean"] for row in rows],
                    [row["se"] for row in rows],
                    color=colour,
                    marker=marker,
                    ms=12 if marker == "*" else 5,
                    lw=1,
                    elinewidth=0.5,
                    label=label,
                )
            axes.axhline(top, color="0.3", ls="--", lw=1, label="log p(x)")
            axes.set(xscale="log", xlabel=f"{quantity} per image", ylim=(min(top, best) - 60, top + 8))
            axes.set_title(f"decoder trained by {decoder['label']}", fontsize=10)
            axes.xaxis.set_minor_formatter(NullFormatter())
        pair[0].set_ylabel("lower bound of log p(x)   (nats)", fontsize=9)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main(configuration: Configuration) -> None:
    data = mnist(binarize="dynamic")
    decoders = {name: curves(name, data, configuration) for name in DECODERS}
    results = {"data": data.name, "data_hash": data.hash, "decoders": decoders}
    write("encoders_by_compute", configuration, results, draw(results))


if __name__ == "__main__":
    arguments(__doc__)
    torch.set_num_threads(1)
    main(Configuration())
