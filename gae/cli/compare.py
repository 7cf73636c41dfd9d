"""``gae compare``: engines on one decoder, or systems on one data set."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from gae.cli.common import AsJson, Binarize, DataName, Device, Devices, Nodes, Precision, Resume, Seed, load
from gae.cli.terminal import comparison, console, echo_json, reported, surveyed

UNEQUAL = timedelta(days=7)  # for which processes wait, whose trainings take unequal times


@reported
def compare(
    data: DataName,
    engines: Annotated[str | None, typer.Option(help="Names separated by commas.", show_default="all")] = None,
    systems: Annotated[
        str | None, typer.Option(help="Compare these rows of `gae systems` instead: names separated by commas, or all.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="By default chosen by the size of the data.")] = None,
    seed: Seed = 0,
    latent: Annotated[
        int | None, typer.Option(help="Width of the code; by default 8, or that of the data if less.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="Distribution of the decoder; gaussian by default.")] = None,
    binarize: Binarize = "none",
    seeds: Annotated[
        int | None, typer.Option(help="Trainings of each engine; errors are then over trainings. 1 by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer epochs and samples.")] = False,
    out: Annotated[Path | None, typer.Option(help="A new folder.", show_default="runs/compare-DATA")] = None,
    resume: Resume = False,
    device: Device = "cpu",
    precision: Precision = "32",
    devices: Devices = None,
    nodes: Nodes = None,
    as_json: AsJson = False,
) -> None:
    """Train a decoder by each engine, freeze it, and tell apart what an encoder, its family and a few steps cost on it.

    With --systems: fit these systems with their default options, and evaluate each by its own engine. Several processes
    share the trainings; device and precision are those of the trainings.
    """
    from gae.training import launch

    fabric = launch(device, precision, devices, nodes, timeout=UNEQUAL)
    dataset = load(data, binarize)
    kind = "compare" if systems is None else "systems"
    folder = out or Path("runs") / f"{kind}-{dataset.name}"
    only = {"engines": engines, "latent": latent, "head": head, "seeds": seeds}
    shared: Any = {"epochs": epochs, "seed": seed, "quick": quick, "resume": resume, "fabric": fabric}
    if systems is None:
        from gae.studies.compare import compare as run
        from gae.studies.engines import ENGINES

        names = list(ENGINES) if engines is None else _names(engines)
        chosen: Any = {
            name: value for name, value in (("latent", latent), ("head", head), ("seeds", seeds)) if value is not None
        }
        results = run(dataset, folder, engines=names, **chosen, **shared)
    else:
        from gae.studies.survey import survey

        for option in (name for name, value in only.items() if value is not None):
            raise ValueError(f"--{option} is for the comparison of engines. Leave it out, or leave --systems out.")
        results = survey(dataset, folder, systems=None if systems == "all" else _names(systems), **shared)
    if not fabric.is_global_zero:
        return
    if as_json:
        echo_json(results)
        return
    if systems is None:
        from gae.reports.comparison import highlights

        for sentence in highlights(results):
            typer.echo(sentence)
    console().print(comparison(results) if systems is None else surveyed(results))
    typer.echo(f"Report: {folder / 'report.html'}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
