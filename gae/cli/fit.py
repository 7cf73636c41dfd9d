"""``gae fit``: trains a system on a data set and writes its checkpoints."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.common import AsJson, Binarize, DataName, Device, Devices, Nodes, Precision, Resume, Seed, load
from gae.cli.terminal import print_results, reported

if TYPE_CHECKING:
    from gae.autoencoder import Autoencoder
    from gae.data import Dataset


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
    device: Device = "cpu",
    precision: Precision = "32",
    devices: Devices = None,
    nodes: Nodes = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a system, print its test results, and write checkpoints for `encode`, `sample` and the other commands."""
    import torch

    from gae.systems import build, describe
    from gae.systems.options import parse
    from gae.training import fit as train
    from gae.training import launch

    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"--lr must be positive and finite, got {lr}.")
    options = parse(system, option or [])
    fabric = launch(device, precision, devices, nodes)
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
        fabric=fabric,
        describe=described,
    )
    if not fabric.is_global_zero:
        return
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


def _test_results(model: "Autoencoder", data: "Dataset", seed: int) -> dict[str, Any]:
    import torch

    from gae.analysis.metrics import EvaluationBudget, codebook_perplexity, encode, mean_and_error
    from gae.data.text import PADDING
    from gae.likelihood import CodebookDistribution
    from gae.nets import first_tensor

    torch.manual_seed(seed)
    model.eval()
    x = data.test.to(first_tensor(model, data.test))
    with torch.no_grad():
        loss = sum(float(model(batch)) * len(batch) for batch in x.split(1000)) / len(x)
        points = encode(model, x, EvaluationBudget())
    restored, prior = points.mean, model.likelihood.prior
    if data.vocabulary is not None:  # differences of classes are meaningless
        right = (restored == x)[x != PADDING].float().mean()
        return {"test loss (nats)": loss, "test tokens restored": float(right)}
    error = (restored - x).square().flatten(1).mean(1)
    results = {"test loss (nats)": loss, "test squared error per element": mean_and_error(error)}
    if isinstance(prior, CodebookDistribution):
        results[f"codebook perplexity, of {len(prior.vectors)}"] = codebook_perplexity(prior, points.z)
    return results
