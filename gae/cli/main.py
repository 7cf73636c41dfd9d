"""The ``gae`` command. Heavy packages are imported inside functions, so that ``--help`` is fast."""

import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.activate import activate
from gae.cli.common import (
    AsJson,
    Binarize,
    CheckpointPath,
    DataName,
    Resume,
    SameBinarize,
    Seed,
    in_its_dtype,
    load,
    load_like,
    read,
    save_arrays,
)
from gae.cli.dip import dip
from gae.cli.explore import explore
from gae.cli.gap import gap
from gae.cli.notes import notes
from gae.cli.sample import sample
from gae.cli.terminal import comparison, console, echo_json, plain, print_results, reported, surveyed, table
from gae.data.files import check_file

if TYPE_CHECKING:
    from gae.autoencoder import Autoencoder
    from gae.data import Dataset

app = typer.Typer(
    help="Autoencoders without an encoder: a decoder and a prior are the model, encoding is inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script, safe for closed standard streams and characters they cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the end)
        else:
            stream.reconfigure(errors="backslashreplace")
    app()


def _version(requested: bool) -> bool:
    if requested:
        from gae import __version__

        typer.echo(f"gae {__version__}")
        raise typer.Exit
    return requested


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
@reported
def systems(
    name: Annotated[str | None, typer.Argument(metavar="SYSTEM", help="Show this system with its options.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the table of systems: observation, likelihood, prior, inference, objective and source."""
    from gae import systems as available  # lazy: the table alone needs no torch

    columns = ("observation", "likelihood", "prior", "inference", "objective", "source")
    chosen = available.SYSTEMS if name is None else {name: available.named(name)}
    rows = [{"system": each, **{c: getattr(row, c) for c in columns}} for each, row in chosen.items()]
    if as_json:
        echo_json([{**row, "options": available.defaults(row["system"])} for row in rows])
    elif name is None:
        shown = table("system", *columns)
        for row in rows:
            shown.add_row(*row.values())
        console().print(shown)
    else:
        options = {f"option {key}": plain(value) for key, value in available.defaults(name).items()}
        print_results({**rows[0], **options}, as_json=False)


@app.command()
@reported
def fit(
    system: Annotated[str, typer.Argument(help="A name from `gae systems`.")],
    data: DataName,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the system; repeatable.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="By default, enough for 1000 optimiser steps, and at least 30; in closed form at most 100."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="128 by default.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of Adam; by default the system's own or 1e-3. Turns closed forms off."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints.", show_default="runs/SYSTEM-DATA")] = None,
    resume: Resume = False,
    binarize: Binarize = "none",
    validation: Annotated[float | None, typer.Option(help="Fraction of the training data to hold out.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after this many epochs without a lower validation loss.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a system, print its test results, and write checkpoints for `encode`, `sample` and the other commands."""
    import torch

    from gae.systems import build, describe
    from gae.systems.options import parse
    from gae.training import fit as train

    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"--lr must be positive and finite, got {lr}.")
    options = parse(system, option or [])
    dataset = load(data, binarize)
    described = describe(system, options, dataset)
    folder = out or Path("runs") / f"{system}-{dataset.name}"
    torch.manual_seed(seed)
    model = build(system, dataset, **options)
    history = train(
        model,
        dataset,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=None if lr is None else partial(torch.optim.Adam, lr=lr),
        validation=validation,
        patience=patience,
        seed=seed,
        out=folder,
        resume=resume,
        progress=not quiet,
        describe=described,
    )
    last, scale = history.rows[-1], history.code_scale
    results = {
        "system": system,
        "options": described["options"],
        "data": dataset.name,
        "data hash": dataset.hash,
        "epochs": len(history.rows),
        "training loss (nats)": last.train_loss,
        "validation loss (nats)": last.validation_loss,
        **({} if history.usage is None else {"code": history.usage.summary()}),
        **({} if scale is None else {"E‖z‖² of codes": scale.codes, "E‖z‖² of the prior": scale.prior}),
        **_test_results(model, dataset, seed),
        "checkpoint": str(folder),
    }
    print_results(results, as_json)


@app.command()
@reported
def encode(
    checkpoint: CheckpointPath,
    data: DataName,
    output: Annotated[Path, typer.Option("--output", "-o", help="An .npz file.")] = Path("codes.npz"),
    split: Annotated[str, typer.Option(help="train, test or all.")] = "all",
    binarize: SameBinarize = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Write the codes of data in order: z, k, log_joint and log_q (nats, at the code), and the status of each solve.

    The file also holds index (the row of the source from 0, or the line of text; a predefined split counts through
    its training part and then its test part), split (train or test), labels, and the file names of images.
    """
    import torch

    from gae.analysis.metrics import codes

    check_file(output, ".npz")
    model, _ = read(checkpoint)
    rows = load_like(model, data, binarize).rows(split)
    torch.manual_seed(seed)
    arrays = {**codes(model, in_its_dtype(model, rows.x)), "index": rows.row.numpy(), "split": rows.split}
    if rows.labels is not None:
        arrays["labels"] = rows.labels.numpy()
    if rows.files is not None:
        arrays["files"] = rows.files
    save_arrays(output, arrays)
    results = {f"{name} {array.shape}": str(array.dtype) for name, array in arrays.items()}
    print_results({"file": str(output), "mean log_joint (nats)": float(arrays["log_joint"].mean()), **results}, as_json)


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """Train a decoder by each engine, freeze it, and tell apart what an encoder, its family and a few steps cost on it.

    With --systems: fit these systems with their default options, and evaluate each by its own engine.
    """
    dataset = load(data, binarize)
    kind = "compare" if systems is None else "systems"
    folder = out or Path("runs") / f"{kind}-{dataset.name}"
    only = {"engines": engines, "latent": latent, "head": head, "seeds": seeds}
    shared: Any = {"epochs": epochs, "seed": seed, "quick": quick, "resume": resume}
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


app.command()(sample)
app.command()(activate)
app.command()(dip)
app.command()(explore)
app.command()(gap)
app.command()(notes)


def _test_results(model: "Autoencoder", data: "Dataset", seed: int) -> dict[str, Any]:
    import torch

    from gae.analysis.metrics import EvaluationBudget, codebook_perplexity, encode, mean_and_error
    from gae.data.text import PADDING
    from gae.likelihood import CodebookDistribution

    torch.manual_seed(seed)
    model.eval()
    with torch.no_grad():
        loss = sum(float(model(batch)) * len(batch) for batch in data.test.split(1000)) / len(data.test)
        points = encode(model, data.test, EvaluationBudget())
    restored, prior = points.mean, model.likelihood.prior
    if data.vocabulary is not None:  # differences of classes are meaningless
        right = (restored == data.test)[data.test != PADDING].double().mean()
        return {"test loss (nats)": loss, "test tokens restored": float(right)}
    error = (restored - data.test).square().flatten(1).mean(1)
    results = {"test loss (nats)": loss, "test squared error per element": mean_and_error(error)}
    if isinstance(prior, CodebookDistribution):
        results[f"codebook perplexity, of {len(prior.vectors)}"] = codebook_perplexity(prior, points.z)
    return results
