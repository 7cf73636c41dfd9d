"""Claim: test NLL, approximation gap and amortisation gap on MNIST, for decoders trained by six engines.

One architecture and one start (``gap_models``), dynamically binarised MNIST. For each decoder:

- test NLL by importance sampling, S = 5,000, on all test images (semi-amortised and detached: the first 2,000); the
  proposal is the encoder's density, or the Laplace approximation at the MAP code where there is no encoder;
- on the first 100 test and the first 100 training images: log p(x) by importance sampling from the best density of a
  full covariance, L[q*] of both families, L[q] of the encoder, and so the gaps (Cremer et al. 2018).

L[q] of the semi-amortised decoder is that of its encoder, before any step. The gaps are also computed for VAEs whose
encoder or decoder is narrower or wider. For the VAE also log p(x) by AIS on those 100 images, and the bidirectional
sandwich on images simulated by the model.

    python -m experiments.gap_models && python -m experiments.inference_gap

With names as arguments, only these decoders are evaluated and no result is written.

Published: Burda et al. (2016), table 1, one stochastic layer, 3,280 epochs at falling rates: NLL 86.76 (VAE), 85.54
(IWAE-5), 84.78 (IWAE-50). Cremer et al. (2018), for another decoder: log p -89.80, L[q*] -91.23, L[q] -92.57.
"""

import copy
import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.common import arguments, mnist, write
from experiments.gap_models import RUNS, TRAININGS, WIDTHS, train
from gae import Autoencoder
from gae.analysis.inference_gap import inference_gap
from gae.analysis.metrics import mean_and_error
from gae.evidence import ais, importance, laplace_approximation, sandwich
from gae.inference import Amortized
from gae.inference.modes import mode_search
from gae.likelihood import Bernoulli

PUBLISHED = {"vae": 86.76, "iwae5": 85.54, "iwae50": 84.78}
CREMER = {"log p(x)": -89.80, "L[q*], mean-field": -91.23, "L[q]": -92.57}
POINT = ("unrolled", "detached")  # trainings without an encoder
FEWER = ("savae", "detached")  # whose NLL is of fewer images, to save an hour


@dataclass(frozen=True)
class Configuration:
    samples: int = 5000  # of importance sampling
    nll_images: int = 10_000
    fewer_images: int = 2000
    gap_images: int = 100
    draws: int = 1000
    steps: int = 300
    temperatures: int = 500
    chains: int = 16
    simulated: int = 50
    seed: int = 0


@torch.no_grad()
def test_nll(name: str, decoder: Bernoulli, encoder: Any, x: Tensor, configuration: Configuration) -> dict[str, Any]:
    """Importance-sampled -log p(x) in nats per image, with diagnostics of the weights."""
    estimates = []
    for batch in x.split(250):
        if name in POINT:
            mode = mode_search(grad_tol=1e-3)(decoder, batch).point
            proposal: Any = laplace_approximation(decoder, batch, mode, floor=1.0)
        else:
            proposal = Amortized(encoder)
        estimates.append(importance(decoder, batch, proposal, configuration.samples, chunk=50))
    entry = mean_and_error(-torch.cat([part.log_p for part in estimates]))
    error = torch.cat([part.standard_error for part in estimates])
    ess = torch.cat([part.ess for part in estimates])
    return {**entry, "sampling_se": float(error.mean()), "ess": float(ess.mean()), "images": len(x)}


def gaps(name: str, decoder: Bernoulli, encoder: Any, x: Tensor, configuration: Configuration) -> dict[str, Any]:
    """Mean ± standard error over images of every bound and gap, and the bounds of each image, in double precision."""
    decoder, encoder, x = copy.deepcopy(decoder).double(), copy.deepcopy(encoder).double(), x.double()
    model = decoder if name in POINT else Autoencoder(decoder, Amortized(encoder))
    gap = inference_gap(model, x, samples=configuration.samples, draws=configuration.draws, steps=configuration.steps)
    columns = gap.columns()
    return {"table": gap.table(), "images": {name: values.tolist() for name, values in columns.items()}}


@torch.no_grad()
def annealed(decoder: Bernoulli, x: Tensor, configuration: Configuration) -> dict[str, Any]:
    """log p(x) by AIS on given images, and both bounds on simulated ones, for growing numbers of temperatures.

    Each number of temperatures has separate simulated images: compare bounds within a row, not between rows.
    """
    evidence = ais(decoder, x, configuration.temperatures, configuration.chains)
    rows = []
    for temperatures in (10, 30, 100, 300, 1000):
        both = sandwich(decoder, configuration.simulated, temperatures, configuration.chains)
        lower, upper = both.lower.log_p, both.upper.log_p
        rows.append(
            {
                "temperatures": temperatures,
                "lower": mean_and_error(lower),
                "upper": mean_and_error(upper),
                "width": mean_and_error(upper - lower),
            }
        )
        print(f"sandwich, T = {temperatures}: {float((upper - lower).mean()):.3f} nats", flush=True)
    entry = {**mean_and_error(evidence.log_p), "ess": float(evidence.ess.mean())}  # type: ignore[union-attr]
    return {"log_p": entry, "images": evidence.log_p.tolist(), "sandwich": rows}


def evaluate(name: str, data: Any, configuration: Configuration) -> dict[str, Any]:
    """All results of one decoder, kept in a file so that an interrupted run resumes."""
    path = RUNS / name / "evaluation.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    model, encoder = train(name, data)
    decoder = model.likelihood.eval()
    assert isinstance(decoder, Bernoulli)
    torch.manual_seed(configuration.seed)
    images = configuration.gap_images
    training = {**TRAININGS, **WIDTHS}[name]
    results: dict[str, Any] = {
        "label": training.label,
        "epochs": training.epochs,
        "test": gaps(name, decoder, encoder, data.test[:images], configuration),
        "train": gaps(name, decoder, encoder, data.epoch(0)[:images], configuration),
    }
    if name in TRAININGS:
        size = configuration.fewer_images if name in FEWER else configuration.nll_images
        results["nll"] = test_nll(name, decoder, encoder, data.test[:size], configuration)
    if name == "vae":
        results["ais"] = annealed(decoder, data.test[:images], configuration)
    path.write_text(json.dumps(results))
    print(name, {key: entry["mean"] for key, entry in results["test"]["table"].items() if "gap" in key}, flush=True)
    return results


def draw(results: dict[str, Any]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = results["models"]
    figure, panels = pyplot.subplots(3, 2, figsize=(12, 13), constrained_layout=True)
    bars, ladder, trained, closing, wide, spare = panels.flat
    spare.remove()
    _bars(bars, models)
    bars.set(title="Gaps, mean ± s.e. over 100 test images")
    _bars(wide, results["widths"])
    wide.set(title="VAEs of 60 epochs, by width of encoder and decoder")

    columns = models["vae"]["test"]["images"]
    order = sorted(range(len(columns["L[q]"])), key=lambda i: columns["inference gap"][i])
    for name, marker in (("L[q*], full covariance", "^"), ("L[q*], mean-field", "s"), ("L[q]", "o")):
        ladder.plot([columns[name][i] - columns["log p(x)"][i] for i in order], marker, ms=3, ls="", label=name)
    ladder.axhline(0, color="0.3", lw=1, label="log p(x)")
    ladder.set(
        xlabel="test images, ordered", ylabel="bound − log p(x)   (nats)", title="VAE: ladder of bounds, image by image"
    )
    ladder.legend(fontsize=8)

    rows = [
        (model["label"], model["train"]["table"]["inference gap"], model["test"]["table"]["inference gap"])
        for model in models.values()
        if "inference gap" in model["test"]["table"]
    ]
    for i, split in enumerate(("train", "test")):
        trained.bar(
            [j + 0.3 * (i - 0.5) for j in range(len(rows))],
            [row[1 + i]["mean"] for row in rows],
            0.28,
            yerr=[row[1 + i]["se"] for row in rows],
            capsize=3,
            label=split,
        )
    trained.set_xticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
    trained.set(ylabel="nats per image", title="Inference gap on training and on test images")
    trained.legend(fontsize=8)

    series = models["vae"]["ais"]["sandwich"]
    widths = [row["width"] for row in series]
    closing.errorbar(
        [row["temperatures"] for row in series],
        [width["mean"] for width in widths],
        [width["se"] for width in widths],
        marker="o",
        capsize=3,
    )
    closing.set(
        xscale="log",
        yscale="log",
        xlabel="temperatures",
        ylabel="nats per image",
        title="VAE: reverse AIS − AIS, on images that it drew itself",
    )
    return figure


def _bars(axes: Any, models: dict[str, Any]) -> None:
    parts = ("approximation gap, full covariance", "approximation gap, mean-field", "amortisation gap")
    for i, part in enumerate(parts):
        rows = [(j, model["test"]["table"].get(part)) for j, model in enumerate(models.values())]
        known = [(j, entry) for j, entry in rows if entry is not None]
        places, heights = [j + 0.27 * (i - 1) for j, _ in known], [entry["mean"] for _, entry in known]
        axes.bar(places, heights, 0.25, yerr=[entry["se"] for _, entry in known], capsize=3, label=part)
    axes.set_xticks(range(len(models)), [model["label"] for model in models.values()], rotation=20, fontsize=8)
    axes.set(ylabel="nats per test image")
    axes.legend(fontsize=8)


def main(configuration: Configuration, names: list[str]) -> None:
    data = mnist(binarize="dynamic")
    models = {name: evaluate(name, data, configuration) for name in names or [*TRAININGS, *WIDTHS]}
    if names:
        return
    widths = {name: models.pop(name) for name in WIDTHS}
    for name, model in models.items():
        if name in PUBLISHED:
            model["published_nll"] = PUBLISHED[name]
    results = {"data": data.name, "data_hash": data.hash, "published_gaps": CREMER, "models": models, "widths": widths}
    assert all(math.isfinite(model["nll"]["mean"]) for model in models.values())
    write("inference_gap", configuration, results, draw(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Configuration(), arguments(__doc__, [*TRAININGS, *WIDTHS]))
