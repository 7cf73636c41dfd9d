"""Checks of factorisations, sparse codes, auto-decoders and stacked autoencoders, on the bundled digits.

    python -m experiments.systems_factor

prints each row; ``run`` returns them. All runs are seeded and use one thread.
"""

import json
import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import NMF, SparseCoder
from sklearn.decomposition._nmf import _beta_divergence
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from experiments.common import arguments
from gae import systems
from gae.data import Dataset, load
from gae.inference import Ascent, Detach, ProximalAscent, Zeros
from gae.inference.auto_decoder import training_rows
from gae.training import fit
from gae.training.corruption import GaussianNoise
from gae.training.layerwise import classifier, labelled, predict, pretrain

RANK, SEEDS, NOISE = 16, 5, 0.2
LAWS = {"gaussian": (1.0, "frobenius", "cd"), "poisson": (16.0, "kullback-leibler", "mu")}
RUNS: dict[str, dict[str, float]] = {"default": {}, "to 1e-7, at most 2000 steps": {"tol": 1e-7, "max_iter": 2000}}

train = partial(fit, progress=False)
Adam = partial(torch.optim.Adam, lr=2e-3)
Row = dict[str, Any]


def nmf(digits: Dataset, head: str) -> Row:
    """Objective and held-out codes over scikit-learn's, from the same NNDSVD start."""
    factor, loss, solver = LAWS[head]
    x, held_out = factor * digits.train, factor * digits.test
    torch.manual_seed(0)
    model = systems.build("nmf", digits.event_shape, latent=RANK, head=head)
    train(model, x)
    with torch.no_grad():
        codes, new = (model.encode(part).z[0].double().numpy() for part in (x, held_out))
    parts = model.likelihood.parts.detach().flatten(1).double().numpy()
    data, test = (part.flatten(1).double().numpy() for part in (x, held_out))
    ours, ratios = _beta_divergence(data, codes, parts, loss), {}
    for name, options in RUNS.items():
        oracle = NMF(RANK, init="nndsvda", solver=solver, beta_loss=loss, random_state=0, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            theirs = oracle.fit_transform(data)
            ratios[name] = float(ours / _beta_divergence(data, theirs, oracle.components_, loss))
            oracle.components_ = parts
            codes_of = oracle.transform(test)
        ratios[f"held-out codes, {name}"] = float(
            _beta_divergence(test, new, parts, loss) / _beta_divergence(test, codes_of, parts, loss)
        )
    ratios["least entry"] = least = float(min(codes.min(), new.min(), parts.min()))
    return {
        "check": f"objective over scikit-learn's NMF ({solver}), rank {RANK}, same start; codes over transform's",
        "value": ratios,
        "goal": "objectives <= 1.01, held-out codes <= 1.01 of its defaults, no negative entry",
        "holds": max(ratios[name] for name in (*RUNS, "held-out codes, default")) <= 1.01 and least >= 0,
    }


def sparse_coding(digits: Dataset) -> Row:
    """A dictionary with an unstable step 1 / √Z: backtracking compared with that step and scikit-learn's lasso."""
    torch.manual_seed(0)
    model = systems.build("sparse-coding", digits.event_shape, latent=128, rate=10.0, scale=0.1)
    train(model, digits, epochs=5, optimizer=partial(torch.optim.Adam, lr=1e-2))
    likelihood, x = model.likelihood.double(), digits.test[:100].double()
    atoms = nn.functional.normalize(likelihood.decoder.atoms, dim=1).detach()  # type: ignore[union-attr, arg-type]
    coder = SparseCoder(
        atoms.numpy(), transform_algorithm="lasso_cd", transform_alpha=10.0 * 0.01, transform_max_iter=20_000
    )
    theirs = torch.from_numpy(coder.transform(x.flatten(1).numpy()))

    def objective(z: Tensor) -> float:
        return float((50 * (x.flatten(1) - z @ atoms).square().sum(1) + 10 * z.abs().sum(1)).mean())

    def of(rate: float | None, steps: int) -> float:
        with torch.no_grad():
            engine = Ascent(Zeros(), ProximalAscent(rate, accelerated=True), steps, adjoint=Detach())
            return objective(engine(likelihood, x).z[0]) / objective(theirs) - 1

    excesses = {
        "largest curvature times scale²": float(torch.linalg.eigvalsh(atoms @ atoms.T)[-1]),
        "assumed before": math.sqrt(128),
        "excess, 50 steps": of(None, 50),
        "excess, 300 steps": of(None, 300),
        "excess of the assumed step, 300 steps": of(0.01 / math.sqrt(128), 300),
    }
    return {
        "check": "lasso objective of FISTA's codes over SparseCoder's, less 1, on a dictionary learned for 5 epochs",
        "value": excesses,
        "goal": "<= 1e-3 in 300 steps",
        "holds": excesses["excess, 300 steps"] <= 1e-3,
    }


def glo(digits: Dataset) -> Row:
    """Mean squared error per pixel of an auto-decoder, with its stored codes and by ascent."""
    torch.manual_seed(0)
    model = systems.build("glo", digits.event_shape, latent=16)
    train(model, digits, epochs=100, optimizer=partial(torch.optim.Adam, lr=1e-2))

    def error(x: Tensor) -> float:
        with torch.no_grad():
            return (model.reconstruct(x) - x).square().mean().item()

    with training_rows(model, torch.arange(len(digits.train))):
        errors = {"training, free codes": error(digits.train)}
    model.eval()
    errors |= {"training, ascent": error(digits.train), "held out, ascent": error(digits.test)}
    errors["mean image"] = (digits.test - digits.train.mean(0)).square().mean().item()
    return {
        "check": "squared error per pixel: free codes, and codes by ascent of training and held-out digits",
        "value": errors,
        "goal": "held out below a quarter of the mean image's, and below 1.3 of training's by the same ascent",
        "holds": errors["held out, ascent"] < min(0.25 * errors["mean image"], 1.3 * errors["training, ascent"]),
    }


def stacked(digits: Dataset) -> list[Row]:
    """Accuracy and reconstruction after equal fine-tuning, from layer-wise pre-training and from random weights."""
    corruption = GaussianNoise(NOISE)
    rows = labelled(digits.train, digits.train_labels)
    accuracy, error = np.zeros((2, SEEDS)), np.zeros((2, SEEDS))
    for seed in range(SEEDS):
        for i, layerwise in enumerate((True, False)):
            torch.manual_seed(seed)
            model = systems.build("stacked-ae", digits.event_shape)
            if layerwise:
                options = {"optimizer": Adam, "corruption": corruption, "progress": False}
                pretrain(model, digits, epochs=15, seed=seed, **options)
            start = {name: value.clone() for name, value in model.state_dict().items()}
            train(model, digits, epochs=10, optimizer=Adam, seed=seed)
            with torch.no_grad():
                error[i, seed] = (model.reconstruct(digits.test) - digits.test).square().mean()
            model.load_state_dict(start)
            head = classifier(model, 10, corruption)
            train(head, rows, epochs=40, batch_size=32, optimizer=partial(torch.optim.Adam, lr=1e-3), seed=seed)
            accuracy[i, seed] = (predict(head, digits.test) == digits.test_labels).double().mean()
    best = float(accuracy[0].mean())
    return [
        {
            "check": f"test accuracy of pre-training and 40 epochs of fine-tuning, mean of {SEEDS} seeds",
            "value": {"mean": best, **{f"seed {seed}": float(value) for seed, value in enumerate(accuracy[0])}},
            "goal": ">= 0.97",
            "holds": best >= 0.97,
        },
        {
            "check": f"layer-wise pre-training against random weights, equal fine-tuning, {SEEDS} seeds, mean ± s.e.",
            "value": {
                "accuracy, layer-wise": _mean(accuracy[0]),
                "accuracy, random": _mean(accuracy[1]),
                "accuracy, paired difference": _mean(accuracy[0] - accuracy[1]),
                "squared error per pixel after 10 epochs, layer-wise": _mean(error[0]),
                "squared error per pixel after 10 epochs, random": _mean(error[1]),
                "squared error, paired difference": _mean(error[0] - error[1]),
            },
            "goal": "report whichever wins",
            "holds": True,
        },
    ]


def run() -> dict[str, Row]:
    """Every row of this part: {name: {"check", "value", "goal", "holds"}}."""
    torch.set_num_threads(1)
    digits = load("digits")
    accuracy, against = stacked(digits)
    return {
        "nmf, gaussian": nmf(digits, "gaussian"),
        "nmf, poisson": nmf(digits, "poisson"),
        "sparse-coding, backtracking": sparse_coding(digits),
        "glo": glo(digits),
        "stacked-ae, accuracy": accuracy,
        "stacked-ae, pre-training": against,
    }


def _mean(values: np.ndarray) -> list[float]:
    return [float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))]


if __name__ == "__main__":
    arguments(__doc__)
    print(json.dumps(run(), indent=1))
