"""``gae gap``: inference gap of a fitted model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.common import AsJson, CheckpointPath, DataName, SameBinarize, load_like, read, save_arrays
from gae.cli.terminal import console, echo_json, reported, table
from gae.data.files import check_folder, write_text

if TYPE_CHECKING:
    import torch

    from gae.autoencoder import Autoencoder

BATCH_SIZE = 100  # observations per step of the progress bar


@reported
def gap(
    checkpoint: CheckpointPath,
    data: DataName,
    size: Annotated[int, typer.Option("-n", min=2, help="Number of test samples, from the first.")] = 100,
    samples: Annotated[int, typer.Option(min=2, help="Importance samples per observation.")] = 5000,
    draws: Annotated[int, typer.Option(min=4, help="Draws per bound and observation.")] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of steps of each local optimisation.")] = 200,
    binarize: SameBinarize = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for gap.html, gap.json and gap.npz (per sample).")] = Path("gap"),
    as_json: AsJson = False,
) -> None:
    """Split log p(x) - ELBO into approximation and amortisation gap, per test sample and on average."""
    import torch

    from gae.analysis.metrics import mean_and_error
    from gae.reports import gap as gap_report

    check_folder(out)
    model, _ = read(checkpoint)
    model.double()  # in single precision, an optimisation stalls before it has converged
    x = load_like(model, data, binarize).test[:size].double()
    torch.manual_seed(seed)
    columns = _columns(model, x, samples, draws, steps)
    account: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "data": data,
        "observations": len(x),
        "importance samples": samples,
        "draws of each bound": draws,
        "seed": seed,
        "unit": "nats",
        "results": {name: mean_and_error(values) for name, values in columns.items()},
    }
    save_arrays(out / "gap.npz", {name: values.cpu().numpy() for name, values in columns.items()})
    write_text(out / "gap.json", json.dumps(account, indent=1, allow_nan=False) + "\n")
    gap_report.write(columns, account, out)
    if as_json:
        echo_json(account)
    else:
        _print(account["results"], len(x), out)


def _columns(
    model: "Autoencoder", x: "torch.Tensor", samples: int, draws: int, steps: int
) -> "dict[str, torch.Tensor]":
    import torch
    from rich.progress import track

    from gae.analysis.inference_gap import inference_gap

    parts = [
        inference_gap(model, batch, samples=samples, draws=draws, steps=steps).columns()
        for batch in track(x.split(BATCH_SIZE), "samples", console=console(stderr=True), transient=True)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _print(results: dict[str, Any], observations: int, out: Path) -> None:
    from rich.text import Text

    from gae.reports.gap import converged, rows

    shown = table("", "mean", "± s.e.", "sampling s.e.")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, *numbers in rows(results):
        shown.add_row(Text(name), *numbers)
    shown.caption = f"nats, over {observations} observations"
    console().print(shown)
    for name, share in converged(results).items():
        typer.echo(f"Local optimisation, {name}: {share:.0%} converged.")
    if "L[q]" in results and "amortisation gap" not in results:
        typer.echo("The best member of the encoder's own family is not computed, so there is no amortisation gap.")
    if results.get("q* below q", {"mean": 0})["mean"]:
        typer.echo(f"For {results['q* below q']['mean']:.0%} of the samples q* came out below q: try more --steps.")
    if "effective sample size" in results:
        typer.echo(f"Importance weights: effective sample size {results['effective sample size']['mean']:.0f}.")
        if share := results["unreliable weights"]["mean"]:
            typer.echo(f"For {share:.0%} of the samples a few weights outweigh all others: their s.e. is too small.")
    typer.echo(f"Report: {out / 'gap.html'}")
