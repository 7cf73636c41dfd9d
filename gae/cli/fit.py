"""``gae fit``: trains a system on a data set and writes its checkpoints."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.common import (
    Activated,
    AsJson,
    Binarize,
    Channels,
    CodeShape,
    Crop,
    Decoder,
    Device,
    Devices,
    Drop,
    EncoderName,
    HeadName,
    Labels,
    LearnScale,
    Missing,
    ModelData,
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
from gae.cli.completion import KEEP, SCHEDULES, TRAINERS, one_of, system_names
from gae.cli.terminal import print_results, reported
from gae.studies.repeat import keep_options

if TYPE_CHECKING:
    from gae.autoencoder import Autoencoder
    from gae.data import Dataset
    from gae.training import Callback
    from gae.training.callbacks import TrainingRun


@reported
def fit(
    system: Annotated[
        str,
        typer.Argument(
            metavar="SYSTEM",
            help="A name from `gae systems`. Left out with --decoder.",
            autocompletion=system_names,
        ),
    ],
    data: ModelData = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the system; repeatable.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="By default, enough for 1000 optimiser steps, and at least 30; in closed form at most 100, or 1000 "
            "short ones (nmf)."
        ),
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
    decoder: Decoder = None,
    weights: Weights = None,
    latent: CodeShape = None,
    head: HeadName = None,
    scale: Scale = None,
    learn: LearnScale = None,
    activated: Activated = False,
    encoder: EncoderName = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            help="Training of --decoder: encoder (its ELBO), refine (the ELBO after a few steps from it), or "
            "gauss-newton (the Laplace evidence at the mode, without an encoder).",
            show_default="encoder, if there is one",
            autocompletion=one_of(TRAINERS),
        ),
    ] = None,
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
    channels: Channels = None,
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
    """Train a system, print its test results, and write checkpoints for `encode`, `sample` and the other commands.

    With --decoder: train your own decoder, and its encoder, from their weights or those of --weights. The other
    commands then need --trust with each function of your own. With --standardize both networks and --scale are in
    standard units; with --missing mask the encoder is given NaN.
    """
    from gae.studies.single import TrainingOptions, fit_model, held_out_results
    from gae.training import launch

    own = Own(decoder, weights, latent, head, scale, activated, encoder, learn)
    source = _source(system, data, own, engine, option)
    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"--lr must be positive and finite, got {lr}. Adam's usual rate is 1e-3.")
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
    dataset = load(source, binarize, split_by, size=size, crop=crop, channels=channels, **table)
    if own.decoder is None:
        name, (model, described) = system, _system(system, option or [], dataset, seed)
    else:
        name, (model, described) = _short(own.decoder), _own(own, engine, dataset, seed)
    folder = out or Path("runs") / f"{name}-{dataset.name}"
    board = board_in(folder) if tensorboard else None
    run: Any = {"out": folder, "resume": resume, "progress": not quiet, "logger": board, "fabric": fabric}
    run["callbacks"] = [_keeping_options(folder)]
    history = fit_model(model, dataset, described, training, seed, **run)
    if not fabric.is_global_zero:
        return None
    if board is not None:
        board.finalize("success")
    last, sizes = history.rows[-1], history.code_scale
    results: dict[str, Any] = {
        **{key: described[key] for key in ("system", "decoder", "options") if key in described},
        "data": dataset.name,
        "data hash": dataset.hash,
        "split": dataset.split,
        "epochs": len(history.rows),
        "training loss (nats)": last.train_loss,
        "validation loss (nats)": last.validation_loss,
        **({} if history.usage is None else {"code": history.usage.summary()}),
        **({} if sizes is None else {"E‖z‖² of codes": sizes.codes, "E‖z‖² of the prior": sizes.prior}),
        **held_out_results(model, dataset, seed),
        "checkpoint": str(folder),
    }
    print_results(results, as_json)
    return folder


def _source(system: str, data: str | None, own: Own, engine: str | None, option: list[str] | None) -> str:
    """The name of the data; raises ValueError for arguments that do not belong together.

    The two positional arguments are a system and data, or the data alone with ``--decoder``.
    """
    if own.decoder is None:
        own.need_decoder()
        if engine is not None:
            raise ValueError(
                "--engine is for a decoder of your own (--decoder): a system has its engine. Leave it out."
            )
        if data is None:
            raise ValueError(
                f"Give a system and data, or --decoder and data. Got {system} alone. The system is a name from "
                "`gae systems`, as in `vae digits`."
            )
        return data
    if data is not None:
        raise ValueError(f"--decoder takes the place of a system: leave {system} out.")
    if option:
        raise ValueError(f"--option is for a system, got {option[0]} with --decoder. Leave it out.")
    return system


def _system(system: str, option: list[str], dataset: "Dataset", seed: int) -> "tuple[Autoencoder, dict[str, Any]]":
    """A system, and the facts that its checkpoints keep."""
    import torch

    from gae.systems.options import build, describe, parse

    options = parse(system, option)
    described = describe(system, options, dataset)
    torch.manual_seed(seed)
    return build(system, dataset, **options), described


def _own(own: Own, engine: str | None, dataset: "Dataset", seed: int) -> "tuple[Autoencoder, dict[str, Any]]":
    """A model of your own decoder in training, and the facts that its checkpoints keep."""
    from gae.adapters import trainable
    from gae.storage.models import structure

    model = trainable(own.model(dataset, seed), engine)
    reason = structure(model)["unrecorded"]
    if reason is not None:
        raise ValueError(
            f"A checkpoint of this model could not be loaded: {reason}. Name functions or classes of a module that "
            "make the networks."
        )
    trained = f"{own.reference()} --engine {engine}" if engine else own.reference()
    facts = {"decoder": own.decoder, "options": trained, "data": dataset.name, "data_hash": dataset.hash}
    return model, {**facts, **dataset.preparation.note()}


def _short(reference: str) -> str:
    """A name for folders: that of the function, or of the file.

    >>> _short("my_models:build.small"), _short("exports/decoder.pt2")
    ('build.small', 'decoder')
    """
    return reference.rpartition(":")[2] if ":" in reference else Path(reference).stem


def _keeping_options(folder: Path) -> "Callback":
    """A callback that writes the options of the command when training starts, so that a killed run has them."""
    from gae.training import Callback

    class KeepOptions(Callback):
        is_recorded = False

        def on_train_start(self, run: "TrainingRun") -> None:
            keep_options(folder)

    return KeepOptions()


def board_in(folder: Path) -> Any:
    """A logger that writes ``folder/tensorboard``; raises ImportError if TensorBoard is not installed."""
    from importlib.util import find_spec

    from lightning_fabric.loggers import TensorBoardLogger

    if not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise ImportError("--tensorboard needs TensorBoard: pip install 'gae[tensorboard]'. Or leave the option out.")
    return TensorBoardLogger(folder, name="tensorboard", version="")
