"""``gae compare``: engines on one decoder, or systems on one data set."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gae.cli.common import (
    UNEQUAL,
    Activated,
    AsJson,
    Binarize,
    Channels,
    Crop,
    DataName,
    Decoder,
    Device,
    Devices,
    Drop,
    EncoderName,
    HeadName,
    Labels,
    Missing,
    Nodes,
    Own,
    Precision,
    Resume,
    Scale,
    Seed,
    Size,
    SplitBy,
    Standardize,
    Weights,
    load,
)
from gae.cli.completion import COMPARED, FLOWS, one_of, several_systems, some_of
from gae.cli.terminal import comparison, console, echo_json, reported, surveyed


@reported
def compare(
    data: DataName,
    engines: Annotated[
        str | None,
        typer.Option(help="Names separated by commas.", show_default="all", autocompletion=some_of(COMPARED)),
    ] = None,
    systems: Annotated[
        str | None,
        typer.Option(
            help="Compare these rows of `gae systems` instead: names separated by commas, or all.",
            autocompletion=several_systems,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="By default chosen by the size of the data.")] = None,
    seed: Seed = 0,
    latent: Annotated[
        str | None,
        typer.Option(help="Width of the code; by default 8, or that of the data if less. With --decoder, its shape."),
    ] = None,
    head: HeadName = None,
    flow: Annotated[
        str | None,
        typer.Option(help="Also a flow: maf, iaf or nsf; minutes for each decoder.", autocompletion=one_of(FLOWS)),
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Also fit encoders of twice the width.")] = False,
    decoder: Decoder = None,
    weights: Weights = None,
    scale: Scale = None,
    activated: Activated = False,
    encoder: EncoderName = None,
    binarize: Binarize = "none",
    missing: Missing = "refuse",
    labels: Labels = None,
    drop: Drop = None,
    standardize: Standardize = False,
    size: Size = None,
    crop: Crop = False,
    channels: Channels = None,
    split_by: SplitBy = None,
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
) -> Path | None:
    """Train a decoder by each engine, freeze it, and tell apart what an encoder, its family and a few steps cost on it.

    With --decoder: the same on your own decoder, frozen, which is not trained; with --encoder, the cost of yours.
    With --systems: fit these systems with their default options, and evaluate each by its own engine. Several processes
    share the trainings; device and precision are those of the trainings.
    """
    from gae.training import launch

    own = Own(decoder, weights, latent, head, scale, activated, encoder)
    if decoder is None:
        Own(weights=weights, scale=scale, activated=activated, encoder=encoder).need_decoder()
    fabric = launch(device, precision, devices, nodes, timeout=UNEQUAL)
    table: Any = {"labels": labels, "drop": drop, "standardize": standardize, "missing": missing}
    dataset = load(data, binarize, split_by, size=size, crop=crop, channels=channels, **table)
    kind = "compare" if systems is None else "systems"
    folder = out or Path("runs") / f"{kind}-{dataset.name}"
    only = {"engines": engines, "latent": latent, "head": head, "flow": flow, "decoder": decoder, "seeds": seeds}
    only |= {"wide": wide or None}
    shared: Any = {"epochs": epochs, "seed": seed, "quick": quick, "resume": resume, "fabric": fabric}
    if systems is None:
        from gae.studies.compare import compare as run

        names = None if engines is None else _names(engines)
        chosen: Any = {"latent": None if latent is None else _width(latent), "head": head}
        if decoder is not None:
            chosen = {"model": own.model(dataset, seed), "reference": own.reference()}
        results = run(dataset, folder, engines=names, seeds=seeds, flow=flow, wide=wide, **chosen, **shared)
    else:
        from gae.studies.survey import survey

        for option in (name for name, value in only.items() if value is not None):
            raise ValueError(f"--{option} is for the comparison of engines. Leave it out, or leave --systems out.")
        results = survey(dataset, folder, systems=None if systems == "all" else _names(systems), **shared)
    if not fabric.is_global_zero:
        return None
    if as_json:
        echo_json(results)
        return folder
    _print(results, is_survey=systems is not None)
    typer.echo(f"Report: {folder / 'report.html'}")
    return folder


def _print(results: dict[str, Any], is_survey: bool) -> None:
    if is_survey:
        console().print(surveyed(results))
        return
    from gae.reports.comparison import highlights

    for sentence in highlights(results):
        typer.echo(sentence)
    console().print(comparison(results))


def _width(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"--latent must be a whole number, the width of the code; got {text!r}.")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
