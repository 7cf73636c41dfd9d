"""Claim: accuracy and error of dimension reductions by code size, after Fournier & Aloise (2019, arXiv 2103.04874).

PCA, Isomap, an undercomplete autoencoder, a VAE, LLGAE and a gradient origin network, at code sizes 2 … 50, on the
bundled digits and on MNIST. Accuracy of 5 nearest neighbours on the codes of the test set among those of the training
set (for LLGAE, whose charts share no axes, on the decoded means), squared error per pixel of the reconstructions, and
processor seconds of training and encoding on one thread (other processes cost wall-clock time, not these).

Isomap has no decoder, hence no reconstruction, and takes N² memory: on MNIST it uses 5,000 training images. On MNIST
the first 10,000 training codes are the neighbours.

    python -m experiments.dimension_reduction

An interrupted run resumes: finished cells are in ``runs/dimension_reduction``.
"""

import json
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from experiments.common import ROOT, arguments, mnist, write
from gae.analysis.metrics import EvaluationBudget, encode, proportion
from gae.data import Dataset, load
from gae.inference import LBFGS, Ascent, Detach, Zeros
from gae.systems import build
from gae.training import fit

RUNS = ROOT.parent / "runs" / "dimension_reduction"
METHODS = ("pca", "isomap", "ae", "vae", "llgae", "gon")


@dataclass(frozen=True)
class Configuration:
    sizes: tuple[int, ...] = (2, 5, 10, 20, 50)
    hidden: tuple[int, ...] = (256, 256)
    components: int = 11
    epochs: tuple[tuple[str, int], ...] = (("digits", 300), ("mnist", 15))
    closed_epochs: tuple[tuple[str, int], ...] = (("digits", 50), ("mnist", 12))  # of LLGAE at most; PCA needs one
    batch_size: int = 128
    learning_rate: float = 1e-3
    neighbours: int = 10_000
    isomap_images: int = 5000
    seed: int = 0


def accuracy(codes: Tensor, labels: Tensor, queries: Tensor, query_labels: Tensor) -> dict[str, float]:
    """5-NN accuracy and its binomial standard error."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(5).fit(codes.flatten(1).numpy(), labels.numpy())
    return proportion(float(classifier.score(queries.flatten(1).numpy(), query_labels.numpy())), len(queries))


def isomap(data: Dataset, size: int, configuration: Configuration) -> dict[str, Any]:
    from sklearn.manifold import Isomap

    assert data.train_labels is not None and data.test_labels is not None
    train = data.train[: configuration.isomap_images].flatten(1)
    began = time.process_time()
    reduction = Isomap(n_components=size, n_neighbors=5).fit(train.numpy())
    trained = time.process_time()
    test = torch.as_tensor(reduction.transform(data.test.flatten(1).numpy()))
    encoded = time.process_time()
    codes = torch.as_tensor(reduction.embedding_)
    return {
        "accuracy": accuracy(codes, data.train_labels[: len(codes)], test, data.test_labels),
        "error": None,
        "training_seconds": trained - began,
        "encoding_seconds": encoded - trained,
    }


def system(method: str, data: Dataset, size: int, configuration: Configuration) -> dict[str, Any]:
    """Fits a system, and returns codes and reconstructions of the test set."""
    assert data.train_labels is not None and data.test_labels is not None
    options: dict[str, Any] = {"latent": size}
    options |= {"components": configuration.components} if method == "llgae" else {}
    options |= {"hidden": configuration.hidden} if method in ("ae", "vae", "gon") else {}
    torch.manual_seed(configuration.seed)
    model = build(method, data.event_shape, **options)
    closed = method in ("pca", "llgae")
    optimizer = None if closed else partial(torch.optim.Adam, lr=configuration.learning_rate)
    epochs = dict(configuration.closed_epochs if closed else configuration.epochs)[data.name]
    began = time.process_time()
    batch_size = None if closed else configuration.batch_size
    fit(model, data, epochs=epochs, batch_size=batch_size, optimizer=optimizer, seed=configuration.seed, progress=False)
    trained = time.process_time()
    effort = EvaluationBudget()
    with torch.no_grad():
        test = encode(model, data.test, effort)
        encoded = time.process_time()
        known = encode(model, data.train[: configuration.neighbours], effort)
    error = (test.mean - data.test).square().flatten(1).mean(1).double()
    use = (lambda points: points.mean) if method == "llgae" else (lambda points: points.z)
    return {
        "accuracy": accuracy(use(known), data.train_labels[: len(known.z)], use(test), data.test_labels),
        "error": {"mean": float(error.mean()), "se": float(error.std() / math.sqrt(len(error)))},
        "training_seconds": trained - began,
        "encoding_seconds": encoded - trained,
        **({"searched_error": searched(model, data, configuration)} if method == "gon" else {}),
    }


def searched(model: Any, data: Dataset, configuration: Configuration) -> dict[str, float]:
    """Squared error per pixel of 500 test images with codes of a gradient origin network by L-BFGS."""
    x = data.test[:500]
    with torch.no_grad():
        code = model.encode(x, Ascent(Zeros(), LBFGS(), 100, adjoint=Detach()))
        error = (model.likelihood(code.point).mean - x).square().flatten(1).mean(1).double()
    return {"mean": float(error.mean()), "se": float(error.std() / math.sqrt(len(error)))}


def cell(method: str, data: Dataset, size: int, configuration: Configuration) -> dict[str, Any]:
    path = RUNS / f"{data.name}-{method}-{size}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    run = isomap if method == "isomap" else partial(system, method)
    entry = run(data, size, configuration)
    RUNS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entry))
    error = "–" if entry["error"] is None else f"{1000 * entry['error']['mean']:.2f}e-3"
    seconds = entry["training_seconds"]
    print(f"{data.name} {method} {size}: {entry['accuracy']['mean']:.3f}, {error}, {seconds:.1f} s", flush=True)
    return entry


def draw(results: dict[str, Any], configuration: Configuration) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(14, 8), constrained_layout=True)
    for line, (name, methods) in zip(panels, results["data"].items(), strict=True):
        for i, (method, cells) in enumerate(methods.items()):
            style = {"color": f"C{i}", "marker": "osv^Dx"[i], "label": method, "capsize": 2}
            sizes = configuration.sizes
            for axes, key in zip(line[:2], ("accuracy", "error"), strict=True):
                entries = [cells[str(size)][key] for size in sizes]
                if None not in entries:
                    axes.errorbar(sizes, [e["mean"] for e in entries], [e["se"] for e in entries], **style)
            seconds = [cells[str(size)]["training_seconds"] for size in sizes]
            line[2].plot(sizes, seconds, color=style["color"], marker=style["marker"], label=method)
        line[0].set(ylabel=f"{name}: 5-NN accuracy", xlabel="code size")
        line[1].set(ylabel="squared error per pixel", xlabel="code size", yscale="log")
        line[2].set(ylabel="processor seconds of training", xlabel="code size", yscale="log")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def main(configuration: Configuration) -> None:
    tables: dict[str, Any] = {}
    for data in (load("digits"), mnist()):
        cells = {
            method: {str(size): cell(method, data, size, configuration) for size in configuration.sizes}
            for method in METHODS
        }
        tables[data.name] = cells
    results = {"data": tables}
    write("dimension_reduction", configuration, results, draw(results, configuration))


if __name__ == "__main__":
    arguments(__doc__)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main(Configuration())
