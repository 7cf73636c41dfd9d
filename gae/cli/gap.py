"""``gae gap``: inference gap of a fitted model."""

import json
import math
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
    open_model,
    placed,
    preparation,
    save_arrays,
)
from gae.cli.terminal import command_line, console, echo_json, reported, table
from gae.data.files import check_folder, write_text
from gae.data.progress import progress

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric
    from torch.distributions import Distribution

    from gae.autoencoder import Autoencoder
    from gae.data import Dataset
    from gae.evidence import Evidence
    from gae.reports.gap import Worst

FEW_STEPS, WORST = 4, 8  # steps from the encoder; observations that are named
BATCH_SIZE = 100  # observations per step of the progress bar


@reported
def gap(
    checkpoint: ModelPath,
    data: ModelData = None,
    size: Annotated[int, typer.Option("-n", min=2, help="Number of test samples, from the first.")] = 100,
    samples: Annotated[int, typer.Option(min=2, help="Importance samples per observation.")] = 5000,
    draws: Annotated[int, typer.Option(min=4, help="Draws per bound and observation.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of steps of each local optimisation.")] = 200,
    engine: EngineName = None,
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
    yours, under the prior N(0, I). Several processes share blocks of 100 samples; the first writes the
    folder.
    """
    from gae.analysis.engines import engine_of
    from gae.training import launch

    command, began = command_line(gap, locals()), time.perf_counter()
    check_folder(out)
    _need_digits(precision)
    prepared = preparation(labels, drop, missing, side, crop, channels)
    own = Own(decoder, weights, latent, head, scale, activated, encoder)
    fabric = launch(device, precision, devices, nodes)
    model, source, _ = open_model(checkpoint, data, own, binarize, split_by, seed, trust, prepared)
    if engine is not None:
        model.inference = engine_of(engine, model, density=True)
    dataset = load_like(model, source, binarize, split_by)
    x = dataset.test[:size]
    fabric = placed(model, x, fabric)
    x = in_its_dtype(model, x)
    if own.decoder is not None:
        from gae.adapters import check_curvature

        check_curvature(model, x, products=engine == "gauss-newton")
    columns, family, laws, evidence = _columns(fabric, model, x, seed, samples, draws, steps)
    if not fabric.is_global_zero:
        return None
    model.cpu()
    worst, use = _worst(model, dataset, x.cpu(), columns), _use(model, x.cpu(), family, laws)
    account: dict[str, Any] = {
        "checkpoint": own.decoder or checkpoint,
        "engine": engine or type(model.inference).__name__,
        "data": source,
        "observations": len(x),
        "importance samples": samples,
        "draws of each bound": draws,
        "seed": seed,
        "unit": "nats",
        "answer": _answer(model, x, columns, family, use, engine, worst),
        "use": use,
        "evidence": {"methods": dict(Counter(evidence.method)), "reasons": list(evidence.reason)},
        **_values(columns, worst),
    }
    _write(out, columns, account, worst, command, time.perf_counter() - began)
    if as_json:
        echo_json(account)
    else:
        typer.echo(account["answer"])
        _print(account["results"], len(x), out)
    return out


def _need_digits(precision: str) -> None:
    if precision.endswith("mixed"):
        raise ValueError(
            f"A gap is a difference of large log densities, and --precision {precision} rounds their products to 16 "
            "bits. Use 64 or 32."
        )


def _columns(
    fabric: "Fabric", model: "Autoencoder", x: "torch.Tensor", seed: int, samples: int, draws: int, steps: int
) -> "tuple[dict[str, torch.Tensor], str | None, list[Distribution], Evidence]":
    """Columns of the gap, the encoder's family, its densities by batch (of normal encoders only), and log p(x)."""
    import torch

    from gae.evidence import Evidence
    from gae.training.group import over_blocks

    batches = x.split(BATCH_SIZE)
    total = math.ceil(len(batches) / fabric.world_size)
    with progress("samples, by the hundred", total, shown=fabric.is_global_zero) as advance:

        def work(batch: torch.Tensor) -> "tuple[dict[str, torch.Tensor], str | None, list[Distribution], Evidence]":
            result = _batch_columns(model, batch, samples, draws, steps)
            advance()
            return result

        parts = list(over_blocks(fabric, batches, work, seed))
    columns = {name: torch.cat([part[name] for part, *_ in parts]) for name in parts[0][0]}
    evidence = Evidence.join([part[3] for part in parts])
    return columns, parts[0][1], [law for part in parts for law in part[2]], evidence


def _batch_columns(
    model: "Autoencoder", batch: "torch.Tensor", samples: int, draws: int, steps: int
) -> "tuple[dict[str, torch.Tensor], str | None, list[Distribution], Evidence]":
    from gae.analysis.inference_gap import FAMILIES, inference_gap
    from gae.analysis.matrix import LBFGS_STEPS, refined
    from gae.inference.laws import rearranged
    from gae.inference.modes import density_step

    gaps = inference_gap(model, batch, samples=samples, draws=draws, steps=steps)
    columns, family, laws = gaps.columns(), gaps.family, []
    if gaps.encoder is not None and gaps.encoder.q is not None and family in FAMILIES:
        laws = [rearranged([gaps.encoder.q], lambda values, dimension: values[0].cpu())]
        (moved,) = refined(
            model.likelihood, batch, gaps.encoder.q, family, density_step(model.likelihood, batch), [FEW_STEPS], draws
        )
        columns[f"L[q after {FEW_STEPS} {LBFGS_STEPS} steps]"] = moved.bound.value
    return {name: values.cpu() for name, values in columns.items()}, family, laws, gaps.evidence


def _use(
    model: "Autoencoder", x: "torch.Tensor", family: str | None, laws: "list[Distribution]"
) -> dict[str, Any] | None:
    """Use of the code by normal densities, or by those of another kind that the engine has; None without any."""
    import torch

    from gae.analysis.inference_gap import encoder_density
    from gae.analysis.matrix import code_use, drawn_use
    from gae.inference.laws import rearranged
    from gae.likelihood import CodebookDistribution

    prior = model.likelihood.prior
    if laws:
        try:
            return code_use(rearranged(laws, torch.cat), prior)
        except TypeError:  # the prior's marginals have no closed form, as those of a hierarchical one
            return drawn_use(laws, prior)
    if isinstance(prior, CodebookDistribution):
        return None
    others = [encoder_density(model.inference, model.likelihood, batch) for batch in x.split(BATCH_SIZE)]
    return None if None in others else drawn_use([law for law in others if law is not None], prior)


def _answer(
    model: "Autoencoder",
    x: "torch.Tensor",
    columns: "dict[str, torch.Tensor]",
    family: str | None,
    use: dict[str, Any] | None,
    engine: str | None,
    worst: "Worst",
) -> str:
    """The sentences on the cost of the encoder or the named engine, and on the observations that lose most."""
    from gae.analysis.costs import gap_costs
    from gae.analysis.engines import SUBJECTS
    from gae.analysis.inference_gap import FAMILIES, ONE_CODE
    from gae.analysis.metrics import codebook_perplexity
    from gae.likelihood import CodebookDistribution
    from gae.reports.answers import codes_answer, families_answer, loss_answer, other_answer
    from gae.reports.gap import lost, sampling_error
    from gae.reports.sentences import answer

    values = {name: column.tolist() for name, column in columns.items()}
    prior = model.likelihood.prior
    if family == ONE_CODE and isinstance(prior, CodebookDistribution):
        z = model.encode(x.cpu()).point
        codes = len(prior.vectors) ** prior.event_shape[0]
        cost = codes_answer(values, codes, len(prior.vectors), codebook_perplexity(prior, z))
    elif use is None:
        cost = families_answer(values)
    elif family in FAMILIES:
        cost = answer(gap_costs(columns, family, use, FEW_STEPS, engine=SUBJECTS[engine or "encoder"]))
    else:
        cost = other_answer(values, use, SUBJECTS[engine or "encoder"])
    total, sample = lost(columns), worst.samples[0]
    error = sampling_error(columns, total, sample)
    return f"{cost} {loss_answer(total, values[total], sample, worst.rows[0], error)}"


def _worst(model: "Autoencoder", dataset: "Dataset", x: "torch.Tensor", columns: "dict[str, torch.Tensor]") -> "Worst":
    """The observations that lose most, with their rows in the data and their reconstructions."""
    import torch

    from gae.reports.gap import Worst, lost
    from gae.reports.observations import drawing

    samples = columns[lost(columns)].argsort(descending=True)[:WORST].tolist()
    with torch.no_grad():
        rebuilt = model.reconstruct(x[samples])
    known = dataset.test_rows
    rows = samples if known is None or len(known) != len(dataset.test) else known[samples].tolist()
    how = drawing(dataset.event_shape, dataset.value_range, dataset.columns)
    return Worst(samples, rows, x[samples].cpu().numpy(), rebuilt.cpu().numpy(), how)


def _values(columns: "dict[str, torch.Tensor]", worst: "Worst") -> dict[str, Any]:
    """The results as JSON: those that lose most, the mean of each column with its error, and what made them."""
    from gae.analysis.metrics import mean_and_error
    from gae.reports.gap import lost
    from gae.reports.pages import origin

    gaps = columns[lost(columns)]
    return {
        "worst": [
            {"sample": sample, "row": row, "gap": float(gaps[sample])}
            for sample, row in zip(worst.samples, worst.rows, strict=True)
        ],
        "results": {name: mean_and_error(values) for name, values in columns.items()},
        **origin(),
    }


def _write(
    out: Path,
    columns: "dict[str, torch.Tensor]",
    account: dict[str, Any],
    worst: "Worst",
    command: str,
    seconds: float,
) -> None:
    from gae.reports import gap as gap_report
    from gae.reports.pages import made_here

    save_arrays(out / "gap.npz", {name: values.cpu().numpy() for name, values in columns.items()})
    write_text(out / "gap.json", json.dumps(account, indent=1, allow_nan=False) + "\n")
    gap_report.write(columns, account, worst, made_here(command, seconds), out)


def _print(results: dict[str, Any], observations: int, out: Path) -> None:
    from rich.text import Text

    from gae.reports.gap import converged, rows

    shown = table("", "mean ± s.e.", "sampling s.e.")
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows(results):
        shown.add_row(Text(row.label), *(cell.text for cell in row.cells))
    shown.caption = f"nats, over {observations} observations"
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
