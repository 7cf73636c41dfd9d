"""Claim: from few random measurements, the codes of a trained decoder restore MNIST digits far better than Lasso.

Bora et al. (2017, arXiv 1703.03208) minimise ‖A G(z) - y‖² + λ ‖z‖² over the code z of a VAE's decoder G, where
y = A x + noise, A (m, 784) has entries from N(0, 1/m) and the noise a norm of about 0.1. With a standard normal prior
this is the most probable code of ``Measured(G, A, scale=√λ)``. Here their figure for MNIST becomes a table, of squared
error per pixel against the clean image, over test images. Must hold: the error falls with m, within its errors, and
is below that of Lasso for m ≤ 100. (From m = 400 on Lasso on pixels wins: no code gives the image itself.)

The decoder, 20-500-500-784 with softplus, is theirs, and so is its loss, with one difference: they apply the
cross-entropy of a Bernoulli to grey values. Here the pixels are drawn anew in each epoch with the grey values as
probabilities (the encoder gets the draws too): for a given code the loss is the same in expectation, and the likelihood
is proper. The restored image is the mean, in [0, 1].

λ is chosen for each m, as is Lasso's penalty for each m and basis (and, for pixels, whether coefficients must be
positive), by the error on training images that the decoder was not trained on, under another A and other noise. Lasso
minimises ½‖A Ψ w - y‖² + penalty ‖w‖₁ for Ψ the pixels or the orthonormal 2-D DCT; its images are clipped to [0, 1],
where the decoder's lie anyway. All three methods use the same A and y, with one A for each m: standard errors are over
images. The floor is the error of the best code when the whole image is seen.

    python -m experiments.compressed_sensing

Checkpoints are in ``runs/compressed_sensing``; an interrupted run resumes from them.
"""

import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.common import ROOT, arguments, mnist, write
from gae import Autoencoder, nets
from gae.inference import LBFGS, Adam, Amortized, Ascent, Detach, Encoding, Prior
from gae.likelihood import Bernoulli, GaussianProjection, Likelihood, LinearOperator, Mask, Measured
from gae.objective import elbo
from gae.systems import NormalEncoder
from gae.training import fit

RUNS = ROOT.parent / "runs" / "compressed_sensing"
LABELS = {"decoder": "decoder", "lasso_pixel": "Lasso, pixels", "lasso_dct": "Lasso, DCT"}
Table = list[dict[str, Any]]


@dataclass(frozen=True)
class Configuration:
    latent: int = 20
    hidden: tuple[int, ...] = (500, 500)
    epochs: int = 40
    batch_size: int = 100
    seed: int = 0
    measurements: tuple[int, ...] = (10, 25, 50, 100, 200, 300, 400, 500, 750)
    noise_norm: float = 0.1
    images: int = 200  # the first of the test set
    held_out: int = 1000  # the last of the training set, which the decoder is not trained on
    selection_images: int = 50  # of these
    restarts: int = 10
    steps: int = 500  # of L-BFGS, at most
    tol: float = 1e-3  # nats
    prior_weights: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # λ; the paper's is 0.1
    penalties: tuple[float, ...] = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # the paper's is 0.1
    lasso_sweeps: int = 3000
    lasso_tol: float = 1e-5
    floor_weight: float = 1e-4  # λ where the whole image is seen
    compared: int = 100  # m for which Adam as in the paper is compared with L-BFGS, at its λ
    compared_weight: float = 0.1
    adam_rate: float = 0.01
    adam_steps: int = 1000
    shown: tuple[int, ...] = (25, 100, 400)
    pictures: int = 6


def train(configuration: Configuration) -> Bernoulli:
    """The decoder of a VAE."""
    latent, hidden, seed = configuration.latent, configuration.hidden, configuration.seed
    data = mnist("dynamic")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Bernoulli(nets.mlp(latent, hidden, data.event_shape, nn.Softplus), latent)
        encoder = NormalEncoder(nets.mlp(data.event_shape, hidden, 2 * latent, nn.Softplus))
    kept = replace(data, train=data.train[: -configuration.held_out], train_labels=None)
    model = Autoencoder(decoder, Amortized(encoder), partial(elbo, analytic=True))
    options = {"epochs": configuration.epochs, "batch_size": configuration.batch_size, "seed": seed}
    history = fit(model, kept, **options, out=RUNS, resume=True, progress=False)
    print(f"VAE: {history.rows[-1].train_loss:.2f} nats per training image", flush=True)
    return decoder


@dataclass(frozen=True)
class Measurements:
    """Images (n, 1, 28, 28) and their noisy measurements y (n, m) by A."""

    x: Tensor
    y: Tensor
    operator: LinearOperator


def measure(configuration: Configuration, x: Tensor, m: int, seed: int) -> Measurements:
    operator = GaussianProjection(m, x.shape[1:], seed)
    noise = torch.randn(len(x), m, generator=torch.Generator().manual_seed(seed + 1))
    return Measurements(x, operator(x) + noise * configuration.noise_norm / math.sqrt(m), operator)


def errors(estimate: Tensor, x: Tensor) -> Tensor:
    """Squared error per pixel of each image."""
    return (estimate - x).square().flatten(1).mean(1).double()


@torch.no_grad()
def decoded(
    configuration: Configuration, likelihood: Likelihood, measurements: Measurements, weight: float, rule: str = "lbfgs"
) -> tuple[Tensor, Encoding]:
    """Images of the most probable codes for λ = weight, the best of all restarts, and these codes."""
    step, steps, tol = LBFGS(), configuration.steps, configuration.tol
    if rule == "adam":
        step, steps, tol = Adam(configuration.adam_rate), configuration.adam_steps, None
    engine = Ascent(Prior(), step, steps, tol, restarts=configuration.restarts, adjoint=Detach())
    observed = Measured(likelihood, measurements.operator, scale=math.sqrt(weight))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(configuration.seed)
        encoding = engine(observed, measurements.y)
    return observed.restored(encoding.point), encoding


def lasso(
    configuration: Configuration, measurements: Measurements, basis: str, positive: bool, penalties: tuple[float, ...]
) -> tuple[Tensor, float]:
    """Images (penalties, n, 1, 28, 28) for descending penalties, and the share of unconverged solves at the last."""
    import numpy as np
    from scipy.fft import dctn, idctn
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lasso_path

    m, side = measurements.y.shape[1], measurements.x.shape[1:]
    atoms = measurements.operator.adjoint(torch.eye(m)).flatten(1).double().numpy()
    if basis == "dct":
        atoms = dctn(atoms.reshape(m, *side), axes=(2, 3), norm="ortho").reshape(m, -1)
    options = {"alphas": np.array(penalties) / m, "precompute": atoms.T @ atoms, "positive": positive}
    options |= {"max_iter": configuration.lasso_sweeps, "tol": configuration.lasso_tol}
    paths, late = [], []
    for y in measurements.y.double().numpy():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            _, path, gaps = lasso_path(atoms, y, **options)
        paths.append(path.T)
        late.append(gaps * m > configuration.lasso_tol * (y @ y))
    images = np.stack(paths, 1).reshape(len(penalties), len(paths), *side)
    if basis == "dct":
        images = idctn(images, axes=(3, 4), norm="ortho")
    return torch.from_numpy(images).float().clamp(0, 1), float(np.mean(late, 0)[-1])


def select(configuration: Configuration, likelihood: Likelihood, measurements: Measurements) -> dict[str, Table]:
    """Mean errors on held-out training images, for every weight and penalty."""

    def mean(images: Tensor) -> float:
        return float(errors(images, measurements.x).mean())

    tables: dict[str, Table] = {"decoder": [], "lasso_pixel": [], "lasso_dct": []}
    for weight in configuration.prior_weights:
        images, _ = decoded(configuration, likelihood, measurements, weight)
        tables["decoder"].append({"prior_weight": weight, "error": mean(images)})
    for basis, positive in (("pixel", False), ("pixel", True), ("dct", False)):
        images, _ = lasso(configuration, measurements, basis, positive, configuration.penalties)
        for penalty, some in zip(configuration.penalties, images, strict=True):
            tables[f"lasso_{basis}"].append({"penalty": penalty, "positive": positive, "error": mean(some)})
    return tables


def compare(configuration: Configuration, likelihood: Likelihood, measurements: Measurements) -> dict[str, Any]:
    """L-BFGS compared with the paper's Adam, on held-out training images."""
    results = {}
    for rule in ("lbfgs", "adam"):
        images, encoding = decoded(configuration, likelihood, measurements, configuration.compared_weight, rule)
        assert encoding.solve is not None
        results[rule] = {
            "objective": float(encoding.log_joint.mean()),
            "error": float(errors(images, measurements.x).mean()),
            "decoder_evaluations": float(encoding.solve.evaluations.double().mean()),
        }
    return results


def evaluate(
    configuration: Configuration, likelihood: Likelihood, measurements: Measurements, choices: dict[str, dict[str, Any]]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Images of each method with its selected options, and the share of Lasso solves that did not converge."""
    images = {"decoder": decoded(configuration, likelihood, measurements, choices["decoder"]["prior_weight"])[0]}
    unconverged = {}
    for name in ("lasso_pixel", "lasso_dct"):
        choice = choices[name]
        path = tuple(penalty for penalty in configuration.penalties if penalty >= choice["penalty"])
        restored, unconverged[name] = lasso(configuration, measurements, name[6:], choice["positive"], path)
        images[name] = restored[-1]
    return images, unconverged


def summary(values: Tensor) -> dict[str, float]:
    """Mean over images, and 1.96 standard errors."""
    return {"mean": float(values.mean()), "half_width": 1.96 * float(values.std()) / math.sqrt(len(values))}


def row(m: int, errors_of: dict[str, Tensor], before: dict[str, Tensor] | None) -> dict[str, Any]:
    """Row of the table; differences are paired by image."""
    rival = min(("lasso_pixel", "lasso_dct"), key=lambda name: float(errors_of[name].mean()))
    line: dict[str, Any] = {"m": m} | {name: summary(values) for name, values in errors_of.items()}
    line["decoder_minus_better_lasso"] = summary(errors_of["decoder"] - errors_of[rival])
    line["decoder_minus_fewer_measurements"] = (
        None if before is None else summary(errors_of["decoder"] - before["decoder"])
    )
    text = "  ".join(f"{LABELS[name]} {line[name]['mean']:.5f} ± {line[name]['half_width']:.5f}" for name in LABELS)
    print(f"m = {m:3}  {text}", flush=True)
    return line


def floor(configuration: Configuration, likelihood: Likelihood, x: Tensor) -> Tensor:
    """Errors of the best codes given the whole image without noise."""
    whole = Mask(torch.ones(x.shape[1:], dtype=torch.bool), x.shape[1:])
    whole_image = Measurements(x, whole(x), whole)
    return errors(decoded(configuration, likelihood, whole_image, configuration.floor_weight)[0], x)


def draw(configuration: Configuration, results: dict[str, Any], pictures: dict[int, dict[str, Tensor]]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios = [2.2] + [1] * len(pictures)
    figure, axes = pyplot.subplots(1, len(ratios), figsize=(15, 3.8), width_ratios=ratios, constrained_layout=True)
    table, curve = results["table"], axes[0]
    for name, label in LABELS.items():
        means, widths = ([line[name][part] for line in table] for part in ("mean", "half_width"))
        curve.errorbar([line["m"] for line in table], means, widths, marker="o", markersize=3, capsize=2, label=label)
    curve.axhline(results["floor"]["mean"], color="0.4", linestyle="--", label="decoder, whole image seen")
    curve.set(xscale="log", yscale="log", xlabel="measurements m", ylabel="squared error per pixel")
    curve.set_title(f"MNIST, {configuration.images} test images (mean ± 1.96 s.e.)", fontsize=10)
    curve.legend()
    for axis, (m, images) in zip(axes[1:], pictures.items(), strict=True):
        rows = [torch.cat(list(batch[:, 0]), 1) for batch in images.values()]
        axis.imshow(torch.cat(rows), cmap="gray", vmin=0, vmax=1)
        axis.set_yticks([28 * i + 14 for i in range(len(rows))], ["image", *LABELS.values()], fontsize=8)
        axis.set_xticks([])
        axis.set_title(f"m = {m}", fontsize=10)
    for axis in axes[2:]:
        axis.set_yticks([])
    return figure


def holds(table: Table) -> dict[str, Any]:
    """Whether the error never rises by more than its uncertainty, and the m at which it is below the better Lasso's."""
    gains = [line["decoder_minus_fewer_measurements"] for line in table[1:]]
    gaps = {line["m"]: line["decoder_minus_better_lasso"] for line in table}
    return {
        "monotone": all(gain["mean"] <= gain["half_width"] for gain in gains),
        "below_lasso": [m for m, gap in gaps.items() if gap["mean"] < -gap["half_width"]],
    }


def main(configuration: Configuration) -> None:
    data = mnist()
    likelihood = train(configuration)
    grey = data.test[: configuration.images]
    held = data.train[-configuration.held_out :][: configuration.selection_images]
    results: dict[str, Any] = {"data": data.name, "data_hash": data.hash, "table": [], "selection": {}}
    results["floor"] = summary(floor(configuration, likelihood, grey))
    results["black_image"] = summary(errors(torch.zeros_like(grey), grey))
    results["solvers"] = compare(configuration, likelihood, measure(configuration, held, configuration.compared, 1))
    print(*(f"{name}: {results[name]}" for name in ("floor", "black_image", "solvers")), sep="\n", flush=True)
    before, pictures = None, {}
    for m in configuration.measurements:
        selection = select(configuration, likelihood, measure(configuration, held, m, 10_000 + m))
        choices = {name: min(rows, key=lambda choice: choice["error"]) for name, rows in selection.items()}
        measurements = measure(configuration, grey, m, 20_000 + m)
        images, unconverged = evaluate(configuration, likelihood, measurements, choices)
        errors_of = {name: errors(some, grey) for name, some in images.items()}
        line = row(m, errors_of, before) | {"choices": choices, "lasso_unconverged": unconverged}
        results["table"].append(line)
        results["selection"][m] = selection
        if m in configuration.shown:
            pictures[m] = {name: some[: configuration.pictures] for name, some in ({"image": grey} | images).items()}
        before = errors_of
    results["holds"] = holds(results["table"])
    print(results["holds"], flush=True)
    write("compressed_sensing", configuration, results, draw(configuration, results, pictures))


if __name__ == "__main__":
    arguments(__doc__)
    main(Configuration())
