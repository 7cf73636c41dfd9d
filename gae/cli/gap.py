"""``gae gap``: inference gap of a fitted model."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.common import (
    Activated,
    AsJson,
    Channels,
    CodeShape,
    Crop,
    Decoder,
    Device,
    Devices,
    Drop,
    EncoderName,
    EngineName,
    EngineRestarts,
    HeadName,
    Labels,
    Missing,
    ModelData,
    ModelPath,
    Nodes,
    Own,
    SameBinarize,
    Scale,
    Size,
    SplitBy,
    Trust,
    Weights,
    in_its_dtype,
    load_like,
    need_engine,
    open_model,
    placed,
    preparation,
    save_arrays,
)
from gae.cli.terminal import command_line, console, echo_json, reported, table
from gae.data.files import check_folder, write_text

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from gae.autoencoder import Autoencoder
    from gae.data import Dataset
    from gae.reports.gap import Worst
    from gae.studies.gaps import GapMeasurement

WORST = 8  # observations that are named


@reported
def gap(
    checkpoint: ModelPath,
    data: ModelData = None,
    size: Annotated[int, typer.Option("-n", min=2, help="Number of test samples, from the first.")] = 100,
    samples: Annotated[int, typer.Option(min=2, help="Importance samples per observation.")] = 5000,
    draws: Annotated[int, typer.Option(min=4, help="Draws per bound and observation.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of steps of each local optimisation.")] = 200,
    engine: EngineName = None,
    restarts: EngineRestarts = 1,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="CHECKPOINT", help="Another training of the system (repeatable): errors over trainings."),
    ] = None,
    decoder: Decoder = None,
    weights: Weights = None,
    latent: CodeShape = None,
    head: HeadName = None,
    scale: Scale = None,
    activated: Activated = False,
    encoder: EncoderName = None,
    labels: Labels = None,
    drop: Drop = None,
    missing: Missing = "refuse",
    side: Size = None,
    crop: Crop = False,
    channels: Channels = None,
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    trust: Trust = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for gap.html, gap.json and gap.npz (per sample).")] = Path("gap"),
    device: Device = "cpu",
    precision: Annotated[str, typer.Option(help="64 or 32; in 32 bits, many optimisations do not converge.")] = "64",
    devices: Devices = None,
    nodes: Nodes = None,
    as_json: AsJson = False,
) -> Path | None:
    """Split log p(x) - ELBO into approximation and amortisation gap, per test sample and on average.

    L[q] is the bound of the model's own engine, or of --engine: of an ascent (lbfgs, adam, gauss-newton), the Laplace
    approximation at its mode; of the encoder; or of its density after a few steps (refine). With --decoder the model is
    yours, under the prior N(0, I). With --also, errors are over trainings, for each of which gap.npz has a row. Several
    processes share blocks of 100 samples; the first writes the folder.
    """
    from gae.reports.pages import origin
    from gae.studies.gaps import GapMeasurement, gap_answer, gap_results, measure_gap, over_trainings, shared_use
    from gae.training import launch

    command, began = command_line(gap, locals()), time.perf_counter()
    check_folder(out)
    _need_digits(precision)
    need_engine(engine, restarts=restarts)
    prepared = preparation(labels, drop, missing, side, crop, channels)
    own = Own(decoder, weights, latent, head, scale, activated, encoder)
    if own.decoder is not None and also:
        raise ValueError("--also names further checkpoints. Leave it out with --decoder.")
    fabric = launch(device, precision, devices, nodes)
    trainings: list[GapMeasurement] = []
    for each in (checkpoint, *(also or ())):
        model, source, _ = open_model(each, data, own, binarize, split_by, seed, trust, prepared)
        dataset, x, on = _prepared(model, source, binarize, split_by, size, engine, restarts, own, fabric)
        _need_same(trainings, model, x, each)
        trainings.append(measure_gap(on, model, x, samples=samples, draws=draws, steps=steps, seed=seed))
        _need_alike(trainings, each)
    if not fabric.is_global_zero:
        return None
    columns = over_trainings(trainings)
    worst = _worst(trainings[0], dataset, columns)
    account: dict[str, Any] = {
        "checkpoint": own.decoder or checkpoint,
        "also": also or [],
        "engine": engine or type(model.inference).__name__,
        "data": source,
        "observations": len(x),
        "trainings": len(trainings),
        "importance samples": samples,
        "draws of each bound": draws,
        "seed": seed,
        "unit": "nats",
        "answer": f"{gap_answer(trainings, engine)} {_loss(columns, worst)}",
        "use": shared_use(trainings),
        "evidence": _evidence(trainings),
        "worst": _losses(columns, worst),
        "results": gap_results(trainings),
        **origin(),
    }
    _write(out, trainings, account, worst, command, time.perf_counter() - began)
    if as_json:
        echo_json(account)
    else:
        typer.echo(account["answer"])
        _print(account, out)
    return out


def _need_digits(precision: str) -> None:
    if precision.endswith("mixed"):
        raise ValueError(
            f"A gap is a difference of large log densities, and --precision {precision} rounds their products to 16 "
            "bits. Use 64 or 32."
        )


def _prepared(
    model: "Autoencoder",
    source: str,
    binarize: str | None,
    split_by: str | None,
    size: int,
    engine: str | None,
    restarts: int,
    own: Own,
    fabric: "Fabric",
) -> "tuple[Dataset, torch.Tensor, Fabric]":
    """The data, the observations that are measured, and the Fabric on whose device the model is, with its engine."""
    from gae.analysis.engines import engine_of

    if engine is not None:
        model.inference = engine_of(engine, model, density=True, restarts=restarts)
    dataset = load_like(model, source, binarize, split_by)
    x = dataset.test[:size]
    on = placed(model, x, fabric)
    x = in_its_dtype(model, x)
    if own.decoder is not None:
        from gae.adapters import check_curvature

        check_curvature(model, x, products=engine == "gauss-newton")
    return dataset, x, on


def _need_same(trainings: "list[GapMeasurement]", model: "Autoencoder", x: "torch.Tensor", checkpoint: str) -> None:
    """Raises ValueError for a further training on other test samples, or of a model of other parts."""
    import torch

    if not trainings:
        return
    first = trainings[0].model
    for part, old, new in (
        ("a code of shape", tuple(first.likelihood.latent_shape), tuple(model.likelihood.latent_shape)),
        ("the engine", type(first.inference).__name__, type(model.inference).__name__),
    ):
        if old != new:
            raise ValueError(
                f"--also names further trainings of one system, but the first has {part} {old}, and {checkpoint} {new}."
            )
    if not torch.equal(trainings[0].x, x.cpu()):
        raise ValueError(
            f"The test samples of {checkpoint} are not those of the first checkpoint: it prepares or splits the data "
            "otherwise. Errors over trainings need trainings on the same data; give --split-by, or leave it out."
        )


def _need_alike(trainings: "list[GapMeasurement]", checkpoint: str) -> None:
    if trainings[-1].family != trainings[0].family:
        raise ValueError(
            f"--also names further trainings of one system, but the densities of the first are {trainings[0].family}, "
            f"and those of {checkpoint} {trainings[-1].family}."
        )


def _evidence(trainings: "list[GapMeasurement]") -> dict[str, Any]:
    """How log p(x) was found: numbers of observations, and the reason for each, training by training."""
    methods = Counter(method for training in trainings for method in training.evidence.method)
    reasons = [reason for training in trainings for reason in training.evidence.reason]
    return {"methods": dict(methods), "reasons": reasons}


def _worst(training: "GapMeasurement", dataset: "Dataset", columns: "dict[str, torch.Tensor]") -> "Worst":
    """The observations that lose most, with their rows in the data and their reconstructions by one training."""
    import torch

    from gae.reports.gap import Worst, lost
    from gae.reports.observations import drawing

    samples = columns[lost(columns)].argsort(descending=True)[:WORST].tolist()
    with torch.no_grad():
        rebuilt = training.model.reconstruct(training.x[samples])
    known = dataset.test_rows
    rows = samples if known is None or len(known) != len(dataset.test) else known[samples].tolist()
    how = drawing(dataset.event_shape, dataset.value_range, dataset.columns)
    return Worst(samples, rows, training.x[samples].numpy(), rebuilt.numpy(), how)


def _loss(columns: "dict[str, torch.Tensor]", worst: "Worst") -> str:
    """The sentence on the observations that lose most."""
    from gae.reports.answers import loss_answer
    from gae.reports.gap import lost, sampling_error

    total, sample = lost(columns), worst.samples[0]
    return loss_answer(total, columns[total].tolist(), sample, worst.rows[0], sampling_error(columns, total, sample))


def _losses(columns: "dict[str, torch.Tensor]", worst: "Worst") -> list[dict[str, Any]]:
    from gae.reports.gap import lost

    gaps, pairs = columns[lost(columns)], zip(worst.samples, worst.rows, strict=True)
    return [{"sample": sample, "row": row, "gap": float(gaps[sample])} for sample, row in pairs]


def _write(
    out: Path,
    trainings: "list[GapMeasurement]",
    account: dict[str, Any],
    worst: "Worst",
    command: str,
    seconds: float,
) -> None:
    """Writes the numbers and the page; with several trainings, arrays have one row for each."""
    import torch

    from gae.reports import gap as gap_report
    from gae.reports.pages import made_here
    from gae.studies.gaps import over_trainings

    columns = over_trainings(trainings)
    each = {name: torch.stack([training.columns[name] for training in trainings]).numpy() for name in columns}
    save_arrays(out / "gap.npz", {name: values if len(values) > 1 else values[0] for name, values in each.items()})
    write_text(out / "gap.json", json.dumps(account, indent=1, allow_nan=False) + "\n")
    gap_report.write(columns, account, worst, made_here(command, seconds), out)


def _print(account: dict[str, Any], out: Path) -> None:
    from rich.text import Text

    from gae.reports.gap import converged, population, rows

    results = account["results"]

    shown = table("", "mean ± s.e.", "sampling s.e.")
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows(results):
        shown.add_row(Text(row.label), *(cell.text for cell in row.cells))
    shown.caption = f"nats, over {population(account)}"
    console().print(shown)
    for name, share in converged(results).items():
        typer.echo(f"Best {name} density: its optimisation converged for {share:.0%} of the samples.")
    if "L[q]" in results and "amortisation gap" not in results:
        typer.echo("The best density of the encoder's own family is not computed, so the amortisation gap is unknown.")
    if results.get("q* below q", {"mean": 0})["mean"]:
        typer.echo(
            f"For {results['q* below q']['mean']:.0%} of the samples the optimised density q* has a lower bound than "
            "the encoder's q: give more --steps."
        )
    if "effective sample size" in results:
        typer.echo(
            f"Importance sampling: effective sample size {results['effective sample size']['mean']:.0f} on average."
        )
        if share := results["unreliable weights"]["mean"]:
            typer.echo(
                f"For {share:.0%} of the samples a few importance weights outweigh all others, and the s.e. of their "
                "log p(x) is too small: give more --samples."
            )
    typer.echo(f"Report: {out / 'gap.html'}")
