"""Claim: second-order terms of an unrolled ascent hardly improve the gradient of ``joint`` at the optimum.

For a loss downstream of the code they do, and a short truncation does not replace them.

The gradient of a loss in the decoder's parameters has a direct part, with the code held constant, and a part through
the code, which needs second derivatives of log q_w(z) q_r(x|z). For ``joint`` the second part vanishes at a stationary
point (the envelope theorem), and ``Detach`` becomes exact. For a loss downstream of the code it does not: so each mode
is also compared for the reconstruction term -log q_r(x|z_T) and for the cross-entropy of a fixed linear read-out of
digits from z_T, which has no direct part at all, so that the gradient by ``Detach`` is zero and has no angle.

Every mode is compared with ``Unroll`` after the same T steps (the exact gradient of the T-step loss), and with the
exact gradient at the optimum: ``Implicit`` where L-BFGS, started at the end of the longest ascent, has a gradient norm
of at most 1e-8 nats per unit of z. ``OneStep`` differentiates one more step at z_T: its code is that of T + 1 steps,
and it equals ``Truncate(1)`` there. Float64; a replicate is a VAE decoder learned from its own seed and its own batch.

    python -m experiments.unroll_depth
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.mnist_vae import EPOCHS, images, untrained
from experiments.common import ROOT, arguments, mnist, write
from gae import Autoencoder
from gae.analysis.gradcheck import check_gradient
from gae.inference import LBFGS, Adjoint, Ascent, Detach, Encoding, GradientAscent, Implicit, OneStep, Truncate, Unroll
from gae.likelihood import Likelihood
from gae.training import fit

Loss = Callable[[Encoding], Tensor]
Row = dict[str, Any]

COLOURS = {
    "Unroll": "black",
    "Truncate(16)": "tab:purple",
    "Truncate(4)": "tab:blue",
    "Truncate(1)": "tab:cyan",
    "OneStep": "tab:olive",
    "Implicit": "tab:red",
    "Detach": "tab:orange",
}
MODES: dict[str, Callable[[], Adjoint]] = {
    "Unroll": Unroll,
    "Truncate(16)": lambda: Truncate(16),
    "Truncate(4)": lambda: Truncate(4),
    "Truncate(1)": lambda: Truncate(1),
    "OneStep": OneStep,
    "Implicit": lambda: Implicit(stationary=math.inf),
    "Detach": Detach,
}
TITLES = {
    "joint": "joint: −log q(z) q(x|z)",
    "reconstruction": "reconstruction: −log q(x|z)",
    "read-out": "cross-entropy of a linear read-out",
}


@dataclass(frozen=True)
class Configuration:
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch: int = 64
    rate: float = 0.004  # nats are curved by up to about 400 per squared unit of z: twice this rate diverges
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    read_out_images: int = 5000
    certified_steps: int = 16


def decoder(seed: int, train: Tensor) -> Likelihood:
    """The decoder of ``benchmarks.mnist_vae``, learned from this seed, in float64."""
    model = untrained()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    out = ROOT.parent / "runs" / f"mnist-vae-seed{seed}"
    fit(model, train, epochs=EPOCHS, seed=seed, out=out, resume=True, progress=False)
    return model.likelihood.eval().double()


def read_out(likelihood: Likelihood, x: Tensor, labels: Tensor) -> tuple[nn.Linear, float]:
    """A fixed linear classifier of MAP codes of training images, and its accuracy on them."""
    from sklearn.linear_model import LogisticRegression

    with torch.no_grad():
        codes = Ascent(step=LBFGS(), max_steps=200, tol=1e-3, adjoint=Detach())(likelihood, x).z[0]
    classifier = LogisticRegression(max_iter=1000).fit(codes.numpy(), labels.numpy())
    layer = nn.Linear(codes.shape[1], len(classifier.classes_), dtype=codes.dtype).requires_grad_(False)
    layer.weight.copy_(torch.from_numpy(classifier.coef_))
    layer.bias.copy_(torch.from_numpy(classifier.intercept_))
    return layer, float((layer(codes).argmax(1) == labels).double().mean())


def losses(layer: nn.Linear, labels: Tensor) -> dict[str, Loss]:
    """Per image, (B,) in nats."""
    return {
        "joint": lambda encoding: -encoding.log_joint[0],
        "reconstruction": lambda encoding: encoding.log_prior[0] - encoding.log_joint[0],
        "read-out": lambda encoding: cross_entropy(layer(encoding.z[0]), labels, reduction="none"),
    }


def gradients(likelihood: Likelihood, encoding: Encoding, wanted: dict[str, Loss]) -> dict[str, Tensor]:
    """∇ of each mean loss in all parameters, as one vector."""
    parameters, results = list(likelihood.parameters()), {}
    for name, loss in wanted.items():
        value = loss(encoding).mean()
        parts: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if value.requires_grad:
            parts = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parts, parameters, strict=True)
        results[name] = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
    return results


def angle(a: Tensor, b: Tensor) -> float | None:
    """In degrees, accurate also where it is small (Kahan); None if one of the vectors is zero."""
    if not (bool(a.norm() > 0) and bool(b.norm() > 0)):
        return None
    a, b = a / a.norm(), b / b.norm()
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


def optimum(configuration: Configuration, likelihood: Likelihood, x: Tensor) -> tuple[Encoding, Row]:
    """The point that the ascent approaches, differentiated by the implicit function theorem."""
    ascent = Ascent(step=GradientAscent(configuration.rate), max_steps=configuration.steps[-1], adjoint=Detach())
    implicit = Implicit(tol=1e-10)
    encoding = Ascent(ascent, LBFGS(), 1000, grad_tol=1e-8, adjoint=implicit)(likelihood, x)
    last = ascent(likelihood, x)
    return encoding, {
        "bound": float(encoding.log_joint.detach().mean()),
        "largest_gradient_norm": float(encoding.solve.grad_norm.max()),
        "largest_distance_from_last_step": float((encoding.z - last.z).detach().norm(dim=-1).max()),
        "largest_gap_at_last_step": float((encoding.log_joint - last.log_joint).detach().max()),
        "median_gradient_norm": {},
    }


def certificate(configuration: Configuration, likelihood: Likelihood, x: Tensor, wanted: dict[str, Loss]) -> Row:
    """Relative error of the gradient by ``Unroll`` against finite differences."""
    engine = Ascent(step=GradientAscent(configuration.rate), max_steps=configuration.certified_steps, adjoint=Unroll())
    return {
        name: check_gradient(Autoencoder(likelihood, engine, lambda encoding, loss=loss: -loss(encoding)), x)
        for name, loss in wanted.items()
    }


def compare(configuration: Configuration, likelihood: Likelihood, x: Tensor, wanted: dict[str, Loss]) -> Row:
    """Angles (degrees) and norm ratios for every T, mode and loss."""
    encoding, facts = optimum(configuration, likelihood, x)
    exact = gradients(likelihood, encoding, wanted)
    rows = []
    for steps in configuration.steps:
        unrolled: dict[str, Tensor] = {}
        for mode, adjoint in MODES.items():
            engine = Ascent(step=GradientAscent(configuration.rate), max_steps=steps, adjoint=adjoint())
            encoding = engine(likelihood, x)
            if mode == "Implicit":  # the only mode that takes the gradient at z_T itself
                facts["median_gradient_norm"][steps] = median(encoding.solve.grad_norm.flatten().tolist())
            current = gradients(likelihood, encoding, wanted)
            unrolled = unrolled or current
            for name, gradient in current.items():
                rows.append(
                    {
                        "steps": steps,
                        "mode": mode,
                        "loss": name,
                        "value": float(wanted[name](encoding).detach().mean()),
                        "angle_to_unroll": angle(gradient, unrolled[name]),
                        "norm_to_unroll": float(gradient.norm() / unrolled[name].norm()),
                        "angle_to_exact": angle(gradient, exact[name]),
                        "norm_to_exact": float(gradient.norm() / exact[name].norm()),
                    }
                )
    return {"optimum": facts, "rows": rows}


def summary(replicates: list[Row]) -> list[Row]:
    """Mean and standard error over replicates of every row."""
    table = []
    for rows in zip(*(replicate["rows"] for replicate in replicates), strict=True):
        row = {key: rows[0][key] for key in ("steps", "mode", "loss")}
        for key in ("value", "angle_to_unroll", "norm_to_unroll", "angle_to_exact", "norm_to_exact"):
            values = [other[key] for other in rows if other[key] is not None]
            row[key] = mean(values) if values else None
            row[f"{key}_se"] = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        table.append(row)
    return table


def draw(rows: list[Row], configuration: Configuration) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "angle_to_unroll": "angle to Unroll, same T (degrees)",
        "norm_to_unroll": "norm / norm by Unroll, same T",
        "angle_to_exact": "angle to exact gradient\nat the optimum (degrees)",
        "norm_to_exact": "norm / norm of exact gradient\nat the optimum",
    }
    figure, grid = pyplot.subplots(len(panels), len(TITLES), figsize=(12, 13), sharex=True, constrained_layout=True)
    for i, (key, label) in enumerate(panels.items()):
        for j, (loss, title) in enumerate(TITLES.items()):
            axes, is_angle = grid[i, j], key.startswith("angle")
            for mode, colour in COLOURS.items():
                line = [row for row in rows if row["loss"] == loss and row["mode"] == mode]
                line = [row for row in line if row[key] is not None and (is_angle or row[key] > 0)]
                if mode == "Unroll" and key.endswith("unroll"):
                    continue
                at = [row["steps"] for row in line]
                values = [row[key] for row in line]
                bars = [row[f"{key}_se"] for row in line]
                style = "--" if mode == "OneStep" else "-"
                axes.errorbar(at, values, bars, color=colour, marker=".", linestyle=style, capsize=2, label=mode)
            axes.set_xscale("log", base=2)
            axes.axhline(90 if is_angle else 1, color="0.7", linewidth=0.8)
            if is_angle:
                axes.set_ylim(-3, 100)
            else:
                axes.set_yscale("log")
            if i == 0:
                axes.set_title(title, fontsize=10)
            if i == len(panels) - 1:
                axes.set_xlabel("inner steps T")
            if j == 0:
                axes.set_ylabel(label)
    handles = {
        text: handle for axes in grid.flat for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend([handles[mode] for mode in MODES], list(MODES), loc="outside lower center", ncols=len(handles))
    figure.suptitle(
        f"Parameter gradients of a MNIST decoder after T ascent steps (rate {configuration.rate}) from zeros.\n"
        f"Mean ± s.e. over {len(configuration.seeds)} decoders, {configuration.batch} test images each. "
        "The read-out's gradient by Detach is zero, and not drawn;\n"
        "OneStep's code is that of T + 1 steps; Implicit supposes a stationary point, which small T do not reach."
    )
    return figure


def main(configuration: Configuration) -> None:
    name, train, test = images()
    data = mnist()
    count = configuration.read_out_images
    replicates, certified = [], {}
    for i, seed in enumerate(configuration.seeds):
        likelihood = decoder(seed, train)
        layer, accuracy = read_out(likelihood, train[:count].double(), data.train_labels[:count])
        part = slice(i * configuration.batch, (i + 1) * configuration.batch)
        x, labels = test[part].double(), data.test_labels[part]
        wanted = losses(layer, labels)
        if i == 0:
            certified = certificate(configuration, likelihood, x, wanted)
            print(f"relative error of Unroll against finite differences: {certified}", flush=True)
        replicates.append(
            {"seed": seed, "read_out_accuracy": accuracy, **compare(configuration, likelihood, x, wanted)}
        )
        print(f"seed {seed}: {replicates[-1]['optimum']}", flush=True)
    rows = summary(replicates)
    results = {"data": name, "data_hash": data.hash, "certificate": certified, "summary": rows}
    for replicate in replicates:
        del replicate["rows"]
    write("unroll_depth", configuration, {**results, "replicates": replicates}, draw(rows, configuration))


if __name__ == "__main__":
    arguments(__doc__)
    main(Configuration())
