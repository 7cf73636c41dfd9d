"""The main computations on a GPU and on the CPU: seconds, memory, and the difference between their results.

python -m benchmarks.gpu            # at most 8 minutes; writes GPU.md and gpu.json here
GAE_BENCHMARK_DEVICE=cpu python -m benchmarks.gpu --smoke    # tiny, the CPU in place of the GPU; writes to runs/gpu

Of each computation both devices first compute quantities that rounding changes little, and then take its time once.
For the former all noise is drawn on the CPU, so that it is the same, and convolutions have all digits of float32; the
times are those of torch's defaults. A difference beyond its tolerance is marked in the table, and makes the exit
status 1.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks import p02_backprop_memory, p06_gon_step, p07_image_prior_step
from benchmarks.common import ROOT, difference, finished, first_line, mnist, peak_bytes, training
from benchmarks.mnist_vae import images, untrained
from benchmarks.run import LIBRARIES, machine
from experiments.common import commit
from gae import Autoencoder, compare, inference_gap
from gae.analysis.inference_gap import Gap
from gae.data import load
from gae.data.environment import versions
from gae.inference import Adam, Ascent, Constant, Detach
from gae.likelihood import LinearMixture
from gae.systems import llgae, pca
from gae.training import fit
from gae.training.devices import known_device, single

FOLDER = Path(__file__).resolve().parent
COMMAND = "python -m benchmarks.gpu"
CPU = torch.device("cpu")
BATCH, UNROLLED = 128, 8  # images of a step; steps of the unrolled ascent
CLOSED_EPOCHS = 3
FIRST = "log joint of 3 steps in float64"

Quantities = dict[str, Tensor]
Work = Callable[[torch.device], Any]


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    images: int = 60_000
    epochs: int = 8
    steps: int = 200
    measured: int = 100  # images of the inference gap
    networks: tuple[tuple[int, int], ...] = ((32, 4), (128, 5))  # channels and scales of the image prior
    prior_steps: int = 50
    latent: int = 20  # of PCA, and of each of LLGAE's charts
    charts: int = 10
    compared: int = 1000  # images of gae.compare
    pixels: int = 1  # interval of its pixels
    engines: tuple[str, ...] | None = None


SMOKE = Size(512, 1, 2, 3, ((4, 2),), 2, 3, 2, 40, 4, ("amortised",))


@dataclass(frozen=True)
class Computation:
    """A computation whose time is taken, and what is compared of it, with the tolerance of each relative difference."""

    what: str
    work: Work
    quantities: Callable[[torch.device], Quantities]
    allowed: dict[str, float]


class CommonNoise(TorchDispatchMode):
    """Random numbers of every device are drawn on the CPU, by its global generator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        target = kwargs.get("device") or (given[0].device if given else CPU)
        here = tree_map_only(Tensor, Tensor.cpu, args)
        drawn = func(*here, **(kwargs | {"device": CPU} if "device" in kwargs else kwargs))
        if func._schema.is_mutable:
            return args[0].copy_(drawn)
        return tree_map_only(Tensor, lambda part: part.to(target), drawn)


@contextmanager
def comparable(device: torch.device) -> Iterator[None]:
    """Noise that is the same on every device, and float32 convolutions without TensorFloat-32."""
    torch.manual_seed(0)
    with CommonNoise():
        if device.type == "cuda":
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                yield
        else:
            yield


def vae(x: Float[Tensor, "N D"], epochs: int) -> Computation:
    """The VAE of P1's decoder, trained by Adam."""

    def quantities(device: torch.device) -> Quantities:
        model = untrained().to(device)
        loss = model(x[:BATCH].to(device))
        gradient = p06_gon_step.gradient(loss, model)
        history = fit(model, x[: 10 * BATCH], epochs=1, device=device, progress=False)
        return {"loss": loss, "gradient": gradient, "loss in 10 steps": torch.tensor(history.rows[0].train_loss)}

    steps = epochs * -(-len(x) // BATCH)
    return Computation(
        f"`fit` of a VAE, {steps} steps of {BATCH} images",
        lambda device: fit(untrained(), x, epochs=epochs, device=device, progress=False),
        quantities,
        {"loss": 1e-5, "gradient": 1e-4, "loss in 10 steps": 1e-5},
    )


def unrolled(what: str, make: Callable[[], Autoencoder], x: Tensor, steps: int) -> Computation:
    """Steps of training through an unrolled ascent."""

    def quantities(device: torch.device) -> Quantities:
        model = make().to(device)
        loss = model(x.to(device))
        return {"loss": loss, "gradient": p06_gon_step.gradient(loss, model)}

    def work(device: torch.device) -> None:
        model, here = make().to(device), x.to(device)
        step = training(lambda: model(here), model.parameters())
        for _ in range(steps):
            step()

    return Computation(f"{what}, {steps} training steps", work, quantities, {"loss": 1e-5, "gradient": 1e-4})


def origin_network() -> Autoencoder:
    """P6's gradient origin network, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return p06_gon_step.ours(p06_gon_step.generator())


def gap(x: Float[Tensor, "N D"], size: Size, device: torch.device) -> Computation:
    """The inference gap of the last images, on a VAE that is trained on the device."""
    model = untrained()
    fit(model, x, epochs=size.epochs, device=device, progress=False)
    model.eval().requires_grad_(False)

    def work(device: torch.device) -> Gap:
        return inference_gap(model.to(device), x[-size.measured :].to(device))

    def quantities(device: torch.device) -> Quantities:
        measured = work(device)
        assert measured.encoder is not None
        best = {f"mean bound, {name}": bound.value.mean() for name, bound in measured.best.items()}
        return {
            "the encoder's bounds": measured.encoder.value,
            **best,
            "mean log p(x)": measured.evidence.log_p.mean(),
        }

    allowed = {"the encoder's bounds": 1e-5, "mean bound, mean-field": 1e-4, "mean bound, full covariance": 1e-4}
    what = f"`inference_gap` of {size.measured} images, both normal families"
    return Computation(what, work, quantities, {**allowed, "mean log p(x)": 1e-4})


def image_prior(channels: int, scales: int, steps: int) -> Computation:
    """Steps of a deep image prior, as in P7. Adam enlarges rounding at each step, so some are compared in float64."""
    side, rate = p07_image_prior_step.SIDE, p07_image_prior_step.RATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, inputs = torch.rand(1, 1, side, side), 0.1 * torch.rand(32, side, side)
        start = torch.nn.utils.parameters_to_vector(p07_image_prior_step.plain(channels, scales).parameters()).detach()

    @torch.no_grad()
    def ascent(device: torch.device, steps: int, jitter: float, dtype: torch.dtype = torch.float32) -> Tensor:
        likelihood = p07_image_prior_step.ours(channels, scales, inputs.to(device, dtype), jitter)
        engine = Ascent(Constant(start.to(device, dtype)), Adam(rate), steps, adjoint=Detach(), trace=True)
        solve = engine.infer(likelihood, x.to(device, dtype)).solve
        assert solve is not None and solve.trace is not None
        return solve.trace.flatten()

    def quantities(device: torch.device) -> Quantities:
        return {"log joint at the start": ascent(device, 1, 0.0), FIRST: ascent(device, 3, 0.0, torch.float64)}

    work = partial(ascent, steps=steps, jitter=p07_image_prior_step.JITTER)
    what = f"deep image prior, {side} × {side}, {channels} channels, {scales} scales, {steps} steps"
    return Computation(what, work, quantities, {"log joint at the start": 1e-5, FIRST: 1e-4})


def closed_form(
    what: str, system: Callable[[], Autoencoder], x: Float[Tensor, "N D"], allowed: dict[str, float]
) -> Computation:
    """A closed-form fit of a linear mixture."""

    def fitted(device: torch.device, epochs: int) -> Autoencoder:
        model = system()
        fit(model, x, epochs=epochs, device=device, progress=False)
        return model

    def quantities(device: torch.device) -> Quantities:
        model = fitted(device, 1)
        assert isinstance(model.likelihood, LinearMixture)
        seen = x[:BATCH].to(device)
        return {"mean": model.likelihood.means, "loss": model(seen), "reconstructions": model.reconstruct(seen)}

    epochs = f"{CLOSED_EPOCHS} epochs, {len(x):,} × {x.shape[1]}"
    return Computation(f"{what}, {epochs}", partial(fitted, epochs=CLOSED_EPOCHS), quantities, allowed)


def comparison(x: Float[Tensor, "N 1 28 28"], engines: Sequence[str] | None) -> Computation:
    """A quick comparison of engines; the results of one epoch of training on a few images are compared."""

    def work(device: torch.device, x: Tensor = x, **options: Any) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            return compare(load(x), out, quick=True, progress=False, fabric=single(device), **options)

    def quantities(device: torch.device) -> Quantities:
        results = work(device, x[:BATCH], engines=("amortised",), epochs=1)
        entry = results["trainings"][0]["decoders"]["amortised"]
        rows = {name: torch.tensor(row["encoder"]["values"]).mean() for name, row in entry["matrix"]["cells"].items()}
        bounds = {f"mean bound of the encoder, {name}": value for name, value in rows.items()}
        return {"training loss": torch.tensor(entry["loss"]), **bounds}

    allowed = dict.fromkeys(("training loss", "mean bound of the encoder, mean-field"), 1e-4)
    return Computation(
        f"`gae.compare(quick=True)`, {len(x):,} images", partial(work, engines=engines), quantities, allowed
    )


def computations(size: Size, device: torch.device) -> Iterator[Callable[[], Computation]]:
    """What is measured, each prepared when it is its turn."""
    binary, grey = images()[1][: size.images].cpu(), mnist()[1][: size.images].cpu()
    flat, padded = grey.flatten(1), torch.nn.functional.pad(grey[: p06_gon_step.BATCH], (2, 2, 2, 2))
    decoder = partial(p02_backprop_memory.model, "Unroll", UNROLLED)
    yield partial(vae, binary, size.epochs)
    yield partial(unrolled, "gradient origin network", origin_network, padded, size.steps)
    what = f"P1's decoder with `Unroll` of {UNROLLED} steps"
    yield partial(unrolled, what, decoder, binary[: p02_backprop_memory.BATCH], size.steps)
    yield partial(gap, binary, size, device)
    for network in size.networks:
        yield partial(image_prior, *network, size.prior_steps)
    shape, allowed = flat.shape[1:], {"mean": 1e-5, "loss": 1e-5, "reconstructions": 1e-4}
    yield partial(closed_form, f"PCA({size.latent})", partial(pca, shape, size.latent), flat, allowed)
    yield partial(comparison, grey[: size.compared, :, :: size.pixels, :: size.pixels], size.engines)
    charts = partial(llgae, shape, size.latent, size.charts)
    yield partial(closed_form, f"LLGAE, {size.charts} charts of {size.latent}", charts, flat, allowed)


def measured(make: Callable[[], Computation], device: torch.device) -> dict[str, Any]:
    """The differences of a computation, then its time and memory; of one that fails, the error."""
    try:
        computation = make()
        compared = differences(computation, device)
        (on_device, peak), (on_cpu, _) = (timed(computation.work, where) for where in (device, CPU))
    except Exception as error:  # so that the others are still measured
        traceback.print_exc()
        name = make.func.__name__ if isinstance(make, partial) else make.__name__
        return {"what": name, "error": f"{type(error).__name__}: {error}", "compared": []}
    return {"what": computation.what, "seconds": [on_device, on_cpu], "peak": peak, "compared": compared}


def differences(computation: Computation, device: torch.device) -> list[dict[str, Any]]:
    """The relative difference of each quantity between the device and the CPU."""
    sides = []
    for where in (device, CPU):
        with comparable(where):
            sides.append({name: value.detach().cpu() for name, value in computation.quantities(where).items()})
    ours, theirs = sides
    compared = []
    for name, allowed in computation.allowed.items():
        relative = difference(name, ours[name], theirs[name])
        compared.append({"quantity": name, "difference": relative, "allowed": allowed, "equal": relative <= allowed})
    return compared


def timed(work: Work, device: torch.device) -> tuple[float, int | None]:
    """Seconds of one call on a device, and on a GPU the most bytes that its tensors took."""
    start = finished(device)
    peak = peak_bytes(partial(work, device), device)
    return finished(device) - start, peak


def page(report: dict[str, Any]) -> Iterator[str]:
    """GPU.md, line by line."""
    where, rows = report["machine"], report["results"]
    yield "# A GPU beside the CPU"
    yield ""
    yield f"Written by `{report['command']}` on {report['date']}, commit {report['commit']}:"
    yield f"{where.get('gpu', 'the CPU in place of a GPU')}, {where['cpu']}, {where['cores']} cores,"
    yield f"{report['threads']} threads, {where['memory_gib']} GiB,"
    yield ", ".join(f"{name} {number}" for name, number in report["versions"].items()) + "."
    yield f"Data: {report['data']}. {report['protocol']}"
    yield ""
    yield "| | GPU (s) | CPU (s) | CPU / GPU | memory of the GPU (MiB) |"
    yield "|---|---:|---:|---:|---:|"
    for row in rows:
        yield f"| {row['what']} | {_cost(row)} |"
    yield ""
    yield "| | quantity | relative difference | allowed | equal |"
    yield "|---|---|---:|---:|---|"
    for row in rows:
        for each in row["compared"]:
            numbers = f"{each['difference']:.1e} | {each['allowed']:.0e} | {'yes' if each['equal'] else '**no**'}"
            yield f"| {row['what']} | {each['quantity']} | {numbers} |"


def _cost(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"**failed**: {' '.join(row['error'].split())[:200]} | | |"
    ours, theirs = row["seconds"]
    peak = "–" if row["peak"] is None else f"{row['peak'] / 2**20:.1f}"
    return f"{ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} | {peak}"


def holds(row: dict[str, Any]) -> bool:
    """Whether a computation ran, and every quantity is the same on both devices."""
    return "error" not in row and all(each["equal"] for each in row["compared"])


def write(report: dict[str, Any], folder: Path) -> None:
    """gpu.json and GPU.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "GPU.md").write_text("\n".join(page(report)) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/, but runs/gpu with --smoke or without a GPU")
    chosen = parser.parse_args(arguments)
    device = known_device(os.environ.get("GAE_BENCHMARK_DEVICE", "cuda"))
    committed = device.type == "cuda" and not chosen.smoke
    assert __doc__ is not None
    report: dict[str, Any] = {
        "command": COMMAND + " --smoke" * chosen.smoke,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "versions": versions(LIBRARIES),
        "data": mnist()[0],
        "protocol": first_line(__doc__.split("\n\n", 2)[2]),
        "results": [],
    }
    for make in computations(SMOKE if chosen.smoke else Size(), device):
        row = measured(make, device)
        report["results"].append(row)
        print(json.dumps(row, ensure_ascii=False), flush=True)
        write(report, chosen.out or (FOLDER if committed else ROOT / "runs" / "gpu"))
    if failed := [row["what"] for row in report["results"] if not holds(row)]:
        sys.exit(f"Failed, or different on the two devices: {'; '.join(failed)}.")


if __name__ == "__main__":
    main()
