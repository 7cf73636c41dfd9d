"""``gae fit``: trains a system on a data set and writes its checkpoints."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.common import (
    AsJson,
    Binarize,
    Crop,
    DataName,
    Device,
    Devices,
    Drop,
    Labels,
    Missing,
    Nodes,
    Precision,
    Resume,
    Seed,
    Size,
    SplitBy,
    Standardize,
    load,
)
from gae.cli.completion import KEEP, SCHEDULES, one_of, system_names
from gae.cli.config import keep_options
from gae.cli.terminal import print_results, reported

if TYPE_CHECKING:
    from gae.training import Callback
    from gae.training.callbacks import TrainingRun


@reported
def fit(
    system: Annotated[str, typer.Argument(help="A name from `gae systems`.", autocompletion=system_names)],
    data: DataName,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the system; repeatable.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="By default, enough for 1000 optimiser steps, and at least 30; in closed form at most 100."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Number of optimiser steps, instead of --epochs; rounded up to whole epochs.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="128 by default.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches whose gradients are added up for one step of the optimiser.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of Adam; by default the system's own or 1e-3. Turns closed forms off."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Learning-rate schedule over the whole run: cosine or linear, to 0.",
            autocompletion=one_of(SCHEDULES),
        ),
    ] = None,
    beta_warm_up: Annotated[
        int | None, typer.Option(help="Optimiser steps over which the weight of the KL rises from 0 to its value.")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Maximum norm of the gradient.")] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for checkpoints.", show_default="runs/SYSTEM-DATA")] = None,
    resume: Resume = False,
    binarize: Binarize = "none",
    missing: Missing = "refuse",
    labels: Labels = None,
    drop: Drop = None,
    standardize: Standardize = False,
    size: Size = None,
    crop: Crop = False,
    split_by: SplitBy = None,
    validation: Annotated[float | None, typer.Option(help="Fraction of the training data to hold out.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after this many epochs without a lower validation loss.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="best or last: the parameters at the end; by default the best with --patience.",
            autocompletion=one_of(KEEP),
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log to TensorBoard in the output folder.")
    ] = False,
    device: Device = "cpu",
    precision: Precision = "32",
    devices: Devices = None,
    nodes: Nodes = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: AsJson = False,
) -> Path | None:
    """Train a system, print its test results, and write checkpoints for `encode`, `sample` and the other commands."""
    from gae.studies.single import TrainingOptions, fit_system, held_out_results
    from gae.systems.options import describe, parse
    from gae.training import launch

    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"--lr must be positive and finite, got {lr}. Adam's usual rate is 1e-3.")
    options = parse(system, option or [])
    training = TrainingOptions(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        schedule=schedule,
        beta_warm_up=beta_warm_up,
        clip=clip,
        validation=validation,
        patience=patience,
        keep=keep,
    )
    fabric = launch(device, precision, devices, nodes)
    table: Any = {"labels": labels, "drop": drop, "standardize": standardize, "missing": missing}
    dataset = load(data, binarize, split_by, size=size, crop=crop, **table)
    folder = out or Path("runs") / f"{system}-{dataset.name}"
    board = board_in(folder) if tensorboard else None
    run: Any = {"out": folder, "resume": resume, "progress": not quiet, "logger": board, "fabric": fabric}
    run["callbacks"] = [_keeping_options(folder)]
    model, history = fit_system(system, dataset, options, training, seed, **run)
    if not fabric.is_global_zero:
        return None
    if board is not None:
        board.finalize("success")
    last, scale = history.rows[-1], history.code_scale
    results = {
        "system": system,
        "options": describe(system, options, dataset)["options"],
        "data": dataset.name,
        "data hash": dataset.hash,
        "split": dataset.split,
        "epochs": len(history.rows),
        "training loss (nats)": last.train_loss,
        "validation loss (nats)": last.validation_loss,
        **({} if history.usage is None else {"code": history.usage.summary()}),
        **({} if scale is None else {"E‖z‖² of codes": scale.codes, "E‖z‖² of the prior": scale.prior}),
        **held_out_results(model, dataset, seed),
        "checkpoint": str(folder),
    }
    print_results(results, as_json)
    return folder


def _keeping_options(folder: Path) -> "Callback":
    """A callback that writes the options of the command when training starts, so that a killed run has them."""
    from gae.training import Callback

    class KeepOptions(Callback):
        is_recorded = False

        def on_train_start(self, run: "TrainingRun") -> None:
            if run.fabric.is_global_zero:
                keep_options(folder)

    return KeepOptions()


def board_in(folder: Path) -> Any:
    """A logger that writes ``folder/tensorboard``; raises ImportError if TensorBoard is not installed."""
    from importlib.util import find_spec

    from lightning_fabric.loggers import TensorBoardLogger

    if not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise ImportError("--tensorboard needs TensorBoard: pip install 'gae[tensorboard]'. Or leave the option out.")
    return TensorBoardLogger(folder, name="tensorboard", version="")
