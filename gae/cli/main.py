"""The ``gae`` command. What is heavy is imported where it is used, so that help comes at once."""

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
    """The console script; standard streams that are closed swallow what is printed, and none fails at a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the end)
        else:
            stream.reconfigure(errors="backslashreplace")
    app()


def _version(asked: bool) -> bool:
    if asked:
        from gae import __version__

        typer.echo(f"gae {__version__}")
        raise typer.Exit
    return asked


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
    name: Annotated[str | None, typer.Argument(metavar="SYSTEM", help="One of them, with its options.")] = None,
    as_json: AsJson = False,
) -> None:
    """The table of systems: likelihood × prior × inference × objective, what is observed, and the source."""
    from gae import systems as offered  # lazy: the table alone needs no torch

    columns = ("observation", "likelihood", "prior", "inference", "objective", "source")
    chosen = offered.SYSTEMS if name is None else {name: offered.named(name)}
    rows = [{"system": each, **{c: getattr(row, c) for c in columns}} for each, row in chosen.items()]
    if as_json:
        echo_json([{**row, "options": offered.defaults(row["system"])} for row in rows])
    elif name is None:
        shown = table("system", *columns)
        for row in rows:
            shown.add_row(*row.values())
        console().print(shown)
    else:
        options = {f"option {key}": plain(value) for key, value in offered.defaults(name).items()}
        print_results({**rows[0], **options}, as_json=False)


@app.command()
@reported
def fit(
    system: Annotated[str, typer.Argument(help="A name from `gae systems`.")],
    data: DataName,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the system; repeatable.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="At most.")] = 30,
    batch_size: Annotated[int | None, typer.Option(help="128 unless given.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Of Adam: the system's own or 1e-3 unless given. Asking for one turns closed forms off."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints.", show_default="runs/SYSTEM-DATA")] = None,
    resume: Resume = False,
    binarize: Binarize = "none",
    validation: Annotated[float | None, typer.Option(help="Fraction of the training data to hold out.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a lower validation loss.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a system on data; print its test results; keep checkpoints that `encode` and `sample` read."""
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
    last = history.rows[-1]
    results = {
        "system": system,
        "options": described["options"],
        "data": dataset.name,
        "data hash": dataset.hash,
        "epochs": len(history.rows),
        "training loss (nats)": last.train_loss,
        "validation loss (nats)": last.validation_loss,
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
    """Write codes of data in their order: z, k, log_joint and log_q (nats, at the code), and how each solve ended.

    Beside them: index (the row of the source from 0; of text, the line; where the source has a split of its own,
    through its training part and then its test part), split (train or test), labels, and the files of images.
    """
    import torch

    from gae.analysis.metrics import codes

    check_file(output, ".npz")
    model, _ = read(checkpoint)
    rows = load_like(model, data, binarize).rows(split)
    torch.manual_seed(seed)
    found = {**codes(model, in_its_dtype(model, rows.x)), "index": rows.row.numpy(), "split": rows.split}
    if rows.labels is not None:
        found["labels"] = rows.labels.numpy()
    if rows.files is not None:
        found["files"] = rows.files
    save_arrays(output, found)
    results = {f"{name} {array.shape}": str(array.dtype) for name, array in found.items()}
    print_results({"file": str(output), "mean log_joint (nats)": float(found["log_joint"].mean()), **results}, as_json)


@app.command()
@reported
def compare(
    data: DataName,
    engines: Annotated[str | None, typer.Option(help="Names separated by commas.", show_default="all")] = None,
    systems: Annotated[
        str | None, typer.Option(help="Compare these rows of `gae systems` instead: names with commas, or all.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Chosen by the size of the data unless given.")] = None,
    seed: Seed = 0,
    latent: Annotated[int | None, typer.Option(help="Width of the code: 8, or that of the data if less.")] = None,
    head: Annotated[str | None, typer.Option(help="The decoder's distribution, gaussian unless given.")] = None,
    binarize: Binarize = "none",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer epochs and samples.")] = False,
    out: Annotated[Path | None, typer.Option(help="A new folder.", show_default="runs/compare-DATA")] = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train one decoder by several engines, encode with every engine on each, and report in nats, beside baselines.

    With --systems: fit those systems with their default options, and measure each by its own engine.
    """
    dataset = load(data, binarize)
    kind = "compare" if systems is None else "systems"
    folder = out or Path("runs") / f"{kind}-{dataset.name}"
    only = {"engines": engines, "latent": latent, "head": head}
    shared: Any = {"epochs": epochs, "seed": seed, "quick": quick, "resume": resume}
    if systems is None:
        from gae.studies.compare import compare as run
        from gae.studies.engines import ENGINES

        names = list(ENGINES) if engines is None else _names(engines)
        chosen: Any = {name: value for name, value in (("latent", latent), ("head", head)) if value is not None}
        results = run(dataset, folder, engines=names, **chosen, **shared)
    else:
        from gae.studies.survey import survey

        for option in (name for name, value in only.items() if value is not None):
            raise ValueError(f"--{option} is for the comparison of engines. Leave it out, or leave --systems out.")
        results = survey(dataset, folder, systems=None if systems == "all" else _names(systems), **shared)
    if as_json:
        echo_json(results)
        return
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

    from gae.analysis.metrics import EvaluationBudget, encode, mean_and_error
    from gae.data.text import PADDING

    torch.manual_seed(seed)
    model.eval()
    with torch.no_grad():
        loss = sum(float(model(batch)) * len(batch) for batch in data.test.split(1000)) / len(data.test)
        found = encode(model, data.test, EvaluationBudget()).mean
    if data.vocabulary is not None:  # the difference of two classes means nothing
        right = (found == data.test)[data.test != PADDING].double().mean()
        return {"test loss (nats)": loss, "test tokens restored": float(right)}
    error = (found - data.test).square().flatten(1).mean(1)
    return {"test loss (nats)": loss, "test squared error per element": mean_and_error(error)}
