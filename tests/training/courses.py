"""Short trainings of small models that tests repeat, in other processes too: loads without pytest and conftest.py."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from gae import Autoencoder, nets
from gae.analysis.inference_gap import inference_gap
from gae.analysis.rows import codes, scores
from gae.data import load
from gae.inference import HMC, Adam, Amortized, Ascent, Detach, Laplace, Prior, Unroll, Zeros
from gae.likelihood import Gaussian
from gae.objective import elbo
from gae.systems import ae, gmm, kmeans, nmf, savae, vae
from gae.training import Anneal, History, fit
from gae.training.corruption import SaltAndPepper

X = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))

adam = partial(torch.optim.Adam, lr=1e-2)
momentum = partial(torch.optim.SGD, lr=1e-2, momentum=0.9)
lbfgs = partial(torch.optim.LBFGS, max_iter=3, history_size=4, line_search_fn="strong_wolfe")


def noisy() -> Autoencoder:
    """Dropout draws noise, BatchNorm keeps buffers."""
    encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))
    return Autoencoder(Gaussian(nets.mlp(2, [8], (5,)), 2), Amortized(encoder))


def dynamic() -> dict[str, Any]:
    return {"data": load("digits", binarize="dynamic"), "batch_size": 500}


PLANNED = {
    "optimizer": adam,
    "scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5),
    "callbacks": [Anneal("objective.beta", steps=11, start=0.1)],
    "batch_size": 4,
    "accumulate": 2,
    "validation": 0.2,
    "keep": "best",
}

CASES: dict[str, tuple[Callable[[], Autoencoder], dict[str, Any]]] = {
    "adam": (lambda: ae((5,), 2, (8,)), {"optimizer": adam}),
    "momentum": (lambda: ae((5,), 2, (8,)), {"optimizer": momentum, "clip": 0.5}),
    "lbfgs": (lambda: ae((5,), 2, (8,)), {"optimizer": lbfgs}),
    "vae": (lambda: vae((5,), 2, (8,), samples=2, analytic=False), {"optimizer": adam}),
    "savae": (lambda: savae((5,), 2, (8,), steps=2), {"optimizer": adam, "validation": 0.2}),
    "noisy": (noisy, {"optimizer": momentum, "validation": 0.3, "patience": 2}),
    "planned": (lambda: vae((5,), 2, (8,), samples=2, analytic=False), PLANNED),
    "dynamic": (lambda: vae((1, 8, 8), 2, (8,), head="bernoulli"), {"validation": 0.2, "patience": 3}),
    "kmeans": (lambda: kmeans((5,), 6), {"tol": 1e-9}),
    "gmm": (lambda: gmm((5,), 3), {"tol": 1e-9, "validation": X[:20]}),
    "nmf": (lambda: nmf((5,), 3, steps=5), {"tol": 1e-9}),
}
CLOSED = ("kmeans", "gmm", "nmf")


def unrolled() -> Autoencoder:
    """Second order: the gradient goes through the steps of an ascent."""
    engine = Ascent(Zeros(), Adam(0.1), 3, adjoint=Unroll())
    return Autoencoder(Gaussian(nets.mlp(2, [8], (5,)), 2), engine, accepts_rescaling=True)


def sampled() -> Autoencoder:
    """Markov chains from the prior, and corrupted observations."""
    engine = Ascent(Prior(), HMC(0.1, 3), 2, adjoint=Detach())
    return Autoencoder(Gaussian(nets.mlp(2, [8], (5,)), 2), engine, corruption=SaltAndPepper(0.2))


def flow() -> Autoencoder:
    return vae((5,), 2, (8,), posterior="iaf", samples=3, analytic=False)


def laplace() -> Autoencoder:
    """Draws from the Laplace approximation."""
    return Autoencoder(Gaussian(nets.mlp(2, [8], (5,)), 2), Laplace(Ascent(max_steps=2), samples=2), elbo)


SHARED = {
    "unrolled": (unrolled, {"optimizer": adam}),
    "sampled": (sampled, {"optimizer": adam}),
    "flow": (flow, {"optimizer": adam}),
    "laplace": (laplace, {"optimizer": adam}),
}
LEARNERS = ("adam", "gmm", "nmf", "unrolled", "vae", "savae", "sampled", "flow", "laplace")  # by several processes


def course(name: str, out: Path | str, epochs: int = 4, **options: Any) -> tuple[Autoencoder, History]:
    build, own = {**CASES, **SHARED}[name]
    torch.manual_seed(0)
    model = build()
    wanted = {"data": X, "batch_size": 16, **own, **(dynamic() if name == "dynamic" else {}), **options}
    data = wanted.pop("data")
    history = fit(model, data.abs() if name == "nmf" else data, epochs=epochs, out=out, progress=False, **wanted)
    return model, history


UNEVEN = {"data": X[:46], "batch_size": 15}  # shares of 8 and 7, and of the last batch 1 and none


OWN = "--decoder own_models:decoder --latent 2 --scale 0.3 --weights both.pt --encoder own_models:Encoder"
ROWS = {  # commands on files of tests/own.py in the working directory, and a run
    "codes.npz": "encode {run} circles",
    "again.npy": "reconstruct {run} circles",
    "scores.csv": "score {run} circles --by evidence,reconstruction",
    "features.csv": f"transform images.npy {OWN} --engine refine",
}


def rows(run: str, out: str) -> list[list[str]]:
    """The arguments of commands that write rows."""
    return [[*command.format(run=run).split(), "-o", f"{out}/{name}"] for name, command in ROWS.items()]


def sweep(out: str) -> list[str]:
    """The arguments of a sweep by grid.yaml in the working directory: three trainings, one of which fails."""
    return ["sweep", "grid.yaml", "--out", f"{out}/sweep"]


def measured(fabric: Fabric) -> dict[str, torch.Tensor]:
    """Codes of a model with noise, and an inference gap, over blocks of uneven number and size."""
    torch.manual_seed(0)
    model = vae((5,), 2, (8,)).eval()
    coded = list(codes(model, X[:23], batch_size=5, fabric=fabric, seed=3))
    torch.manual_seed(3)
    budget = {"samples": 20, "draws": 8, "steps": 3, "batch_size": 3}
    gap = inference_gap(model.double(), X[:7].double(), ("mean-field",), **budget, fabric=fabric)
    arrays = {
        name: torch.cat([torch.from_numpy(block[name]) for block in coded]) for name in ("z", "log_joint", "log_q")
    }
    scored = scores(model.double(), X[:7].double(), ("evidence", "gap"), 200, 3, fabric=fabric, seed=3)
    arrays |= {f"score {name}": torch.from_numpy(scored[name]) for name in ("log_p", "standard_error", "tight", "gap")}
    return {**arrays, **{f"gap {name}": values.contiguous() for name, values in gap.columns().items()}}
