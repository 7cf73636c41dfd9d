"""Arguments, readers and writers shared by the commands."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.completion import BINARIZATIONS, ENGINES, HEADS, LEARNS, MISSING, SPLITS, data_names, one_of
from gae.data.files import whole
from gae.training.processes import is_first

UNEQUAL = timedelta(days=7)  # for which processes wait, whose trainings take unequal times

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from gae.autoencoder import Autoencoder
    from gae.data import Dataset
    from gae.data.preparation import Preparation

DataName = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="digits, mnist, swiss-roll, …, or a path: .npy, .npz, .csv, .parquet, .h5ad, .txt, a folder of images.",
        autocompletion=data_names,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Binarize = Annotated[str, typer.Option(help="none, threshold or dynamic.", autocompletion=one_of(BINARIZATIONS))]
SameBinarize = Annotated[
    str | None,
    typer.Option(
        "--binarize",
        help="By default as the model's training data; other values are refused.",
        autocompletion=one_of(BINARIZATIONS),
    ),
]
Missing = Annotated[
    str,
    typer.Option(
        help="refuse NaN, or mask: NaN marks values that were not observed, and the model uses the others.",
        autocompletion=one_of(MISSING),
    ),
]
Labels = Annotated[
    str | None, typer.Option("--labels", metavar="COLUMN", help="Column of a table with the labels; it is not learnt.")
]
Drop = Annotated[
    list[str] | None, typer.Option("--drop", metavar="COLUMN", help="Column of a table to leave out; repeatable.")
]
Standardize = Annotated[
    bool,
    typer.Option("--standardize", help="Model columns of a table in standard units; nats are of the data as given."),
]
Size = Annotated[
    str | None,
    typer.Option("--size", metavar="SIDE|HxW", help="Resize the images of a folder, of any size and mode, to this."),
]
Crop = Annotated[bool, typer.Option("--crop", help="Crop images about their centre to the ratio of --size first.")]
Channels = Annotated[
    str | None,
    typer.Option(
        "--channels",
        help="first or last: the channel axis of images in an array, (N, C, H, W) or (N, H, W, C), if its shape is "
        "ambiguous.",
        autocompletion=one_of(("first", "last")),
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, data order and noise.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]
Split = Annotated[str, typer.Option(help="train, test or all.", autocompletion=one_of(SPLITS))]
SplitBy = Annotated[
    str | None,
    typer.Option(
        "--split-by",
        help="Rule for the test set: fraction:0.2, column:NAME, column:NAME=VALUE, or file:PATH (train or test in each "
        "line, or the rows of the test set). By default that of the model, or fraction:0.2.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto for the fastest that is there.")]
Precision = Annotated[
    str, typer.Option(help="32, 64, bf16-mixed or 16-mixed (matrix products in 16 bits, all else in 32).")
]
Devices = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processes on each node, one for each device.", show_default="1, or those of torchrun or srun"
    ),
]
Nodes = Annotated[
    int | None, typer.Option(min=1, help="Number of nodes.", show_default="1, or those of torchrun or srun")
]
CheckpointPath = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, or a checkpoint in it.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="REFERENCE",
        help="Function of your own that a checkpoint calls, such as my_models:decoder, looked up in the working "
        "directory first; repeatable.",
    ),
]
ModelPath = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, or a checkpoint in it. Left out with --decoder.")
]
ModelData = Annotated[
    str | None,
    typer.Argument(metavar="DATA", help="Name or path of the data.", show_default=False, autocompletion=data_names),
]

Decoder = Annotated[
    str | None,
    typer.Option(
        "--decoder",
        metavar="REFERENCE",
        help="Your own decoder: module:function, looked up in the working directory first, which returns the network; "
        "or a .pt2 file of torch.export.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="state_dict of the decoder, or of both (decoder.*, encoder.*): .safetensors or .pt."
    ),
]
CodeShape = Annotated[
    str | None,
    typer.Option("--latent", help="Shape of a code in the decoder, such as 8 or 4,8,8; a .pt2 file knows it."),
]
HeadName = Annotated[
    str | None,
    typer.Option("--head", help="Distribution of the decoder; gaussian by default.", autocompletion=one_of(HEADS)),
]
Scale = Annotated[
    float | None,
    typer.Option("--scale", help="Scale of the decoder's noise (gaussian, laplace), in units of the data."),
]
LearnScale = Annotated[
    str | None,
    typer.Option(
        "--learn",
        help="Train --scale too, from its value on: scalar, or pixel (one for each element). By default it is fixed.",
        show_default=False,
        autocompletion=one_of(LEARNS),
    ),
]
Activated = Annotated[
    bool, typer.Option("--activated", help="The decoder returns probabilities (bernoulli) or rates (poisson).")
]
EncoderName = Annotated[
    str | None,
    typer.Option(
        "--encoder", metavar="REFERENCE", help="Encoder of the decoder, likewise; returns a distribution or codes."
    ),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="lbfgs, adam, gauss-newton, encoder or refine.",
        show_default="the model's own",
        autocompletion=one_of(ENGINES),
    ),
]
EngineSteps = Annotated[int | None, typer.Option("--steps", min=0, help="Most steps of --engine.")]
EngineRestarts = Annotated[
    int, typer.Option("--restarts", min=1, help="Ascents of --engine from random codes, the best of which is kept.")
]


SHARED = ("latent", "head", "scale")  # names of options of a model of your own that systems have too


@dataclass(frozen=True)
class Own:
    """The options of a model of your own."""

    decoder: str | None = None
    weights: Path | None = None
    latent: str | None = None
    head: str | None = None
    scale: float | None = None
    activated: bool = False
    encoder: str | None = None
    learn: str | None = None

    def need_decoder(self) -> None:
        """Raises ValueError for an option without a decoder."""
        for name, value in vars(self).items():
            if value not in (None, False):
                also = f" (a system's own option is --option {name}={value})" if name in SHARED else ""
                raise ValueError(f"--{name} is for a model of your own. Give --decoder too, or leave it out{also}.")

    def reference(self) -> str:
        """The options as they are given on a command line."""
        given = {option.name: getattr(self, option.name) for option in fields(self)}
        texts = (
            (name, [] if value is True else [str(value)]) for name, value in given.items() if value not in (None, False)
        )
        return shlex.join(part for name, value in texts for part in (f"--{name}", *value))

    def model(self, data: "Dataset", seed: int = 0) -> "Autoencoder":
        """The model, in evaluation mode, checked against the data that it is for."""
        import torch

        from gae.adapters import from_decoder, load_weights, read_network

        torch.manual_seed(seed)
        assert self.decoder is not None
        networks = {"decoder": read_network(self.decoder)}
        if self.encoder is not None:
            networks["encoder"] = read_network(self.encoder, "encoder")
        if self.weights is not None:
            load_weights(networks, self.weights)
        model = from_decoder(
            networks["decoder"],
            data,
            None if self.latent is None else sizes(self.latent),
            self.head or "gaussian",
            self.scale,
            self.activated,
            networks.get("encoder"),
            learn=self.learn or "fixed",
        )
        model.preparation = data.preparation
        return model.eval()


def sizes(text: str) -> tuple[int, ...]:
    """A shape, such as ``8`` or ``4,8,8``.

    >>> sizes("4, 8,8")
    (4, 8, 8)
    """
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise ValueError(
            f"--latent must be whole numbers separated by commas, such as 8 or 4,8,8; got {text!r}."
        ) from None


def open_model(
    checkpoint: str,
    data: str | None,
    own: Own,
    binarize: str | None,
    split: str | None,
    seed: int,
    trust: Sequence[str] | None,
    prepared: Mapping[str, Any],
) -> "tuple[Autoencoder, str, str]":
    """The model of a checkpoint, or of your own decoder, the name of the data, and that of the model.

    The two positional arguments are a checkpoint and data, or the data alone with ``--decoder``, whose preparation is
    then ``prepared`` (``preparation``).
    """
    if own.decoder is None:
        own.need_decoder()
        for option in prepared:
            raise ValueError(
                f"--{option} is for data of a model of your own (--decoder). A checkpoint prepares data as those "
                "that it was trained on: leave it out."
            )
        if data is None:
            raise ValueError(
                f"Give a checkpoint and data, or --decoder and data. Got {checkpoint} alone. The checkpoint is the "
                "folder of a run, as in `runs/vae-digits digits`."
            )
        model, name = read(Path(checkpoint), trust)
        return model, data, name
    if trust:
        raise ValueError("--trust is for functions that a checkpoint calls. Leave it out with --decoder.")
    if data is not None:
        raise ValueError(f"--decoder takes the place of a checkpoint: leave {checkpoint} out.")
    return own.model(load(checkpoint, binarize or "none", split, **prepared), seed), checkpoint, own.decoder


def need_engine(engine: str | None, steps: int | None = None, restarts: int = 1) -> None:
    """Raises ValueError for options of an engine that is not named."""
    for option, given in (("steps", steps is not None), ("restarts", restarts > 1)):
        if engine is None and given:
            raise ValueError(f"--{option} is for an engine by name. Give --engine too, such as --engine lbfgs.")


def preparation(
    labels: str | None,
    drop: Sequence[str] | None,
    missing: str,
    size: str | None,
    crop: bool,
    channels: str | None,
) -> dict[str, Any]:
    """The options that prepare data, where they are given.

    >>> preparation("kind", None, "refuse", None, False, None)
    {'labels': 'kind'}
    """
    options = {"labels": labels, "drop": drop, "size": size, "crop": crop, "channels": channels}
    given = {name: value for name, value in options.items() if value}
    return given if missing == "refuse" else {**given, "missing": missing}


def load(
    name: str,
    binarize: str,
    split: str | None = None,
    *,
    labels: str | None = None,
    drop: Sequence[str] | None = None,
    standardize: bool = False,
    size: str | None = None,
    crop: bool = False,
    channels: str | None = None,
    missing: str = "refuse",
) -> "Dataset":
    """Loads a data set by name or path, and prints how it was converted on standard error."""
    from gae import data

    table: Any = {"labels": labels, "drop": drop or (), "standardize": standardize, "missing": missing}
    images: Any = {"size": pixels(size), "crop": crop, "channels": channels}
    return _announced(data.load(name, binarize=binarize, split=split, **table, **images))


def load_like(model: "Autoencoder", name: str, binarize: str | None = None, split: str | None = None) -> "Dataset":
    """Loads a data set, prepared like the training data of the model."""
    from gae import data

    return _announced(data.load(name, binarize=binarize, split=split, like=prepared(model)))


def _announced(dataset: "Dataset") -> "Dataset":
    for note in dataset.notes if is_first() else ():
        typer.echo(f"{dataset.name}: {note}", err=True)
    return dataset


def pixels(size: str | None) -> tuple[int, ...] | None:
    """A size in pixels, ``64`` or ``48x64`` (height x width).

    >>> pixels("64"), pixels("48x64")
    ((64, 64), (48, 64))
    """
    if size is None:
        return None
    sides = size.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"--size must be a number of pixels or HEIGHTxWIDTH, such as 64 or 48x64, got {size!r}.")
    return tuple(map(int, sides * (3 - len(sides))))


def prepared(model: "Autoencoder") -> "Preparation":
    """Preparation of the model's training data; only shape and missing values if ``fit`` was given a tensor."""
    from gae.data.preparation import Preparation
    from gae.likelihood import AcceptsMissing

    missing = isinstance(model.likelihood, AcceptsMissing)
    return model.preparation or Preparation(model.likelihood.event_shape, None, None, None, missing=missing)


def columns(model: "Autoencoder") -> tuple[str, ...] | None:
    """Names of the features of a table, if the model was fitted to one."""
    table = prepared(model).table
    return None if table is None else table.features


def read(path: Path, trust: Sequence[str] | None = None) -> "tuple[Autoencoder, str]":
    """Loads a model in evaluation mode, and its name; ``trust`` has references that it may call."""
    from gae.autoencoder import load_with_facts

    model, facts = load_with_facts(path, trusted=trust or ())
    known = (facts.get(key) for key in ("system", "engine", "decoder"))
    name = next(filter(None, known), type(model.likelihood).__name__)
    return model.eval(), name


def placed(model: "Autoencoder", x: "Tensor", fabric: "Fabric") -> "Fabric":
    """Moves a model to the Fabric's device, in its precision; to the CPU if the device lacks a float64 that it uses.

    Args:
        x: some observations, to find out.

    Returns:
        The Fabric on whose device the model is.
    """
    from gae.analysis.rows import codes
    from gae.training import devices

    precision = devices.precision_of(fabric)
    double = precision == "64-true"
    if double:
        model.double()

    def uses_float64() -> bool:
        return double or devices.computes_in_float64(lambda: list(codes(model, in_its_dtype(model, x[:2]))))

    device = devices.placed(fabric.device, uses_float64, "This model's engine")
    model.to(device)
    return fabric if device == fabric.device else devices.single(device, precision)


def in_its_dtype(model: "Autoencoder", x: "Tensor") -> "Tensor":
    """Converts x to the dtype of the model; data sets are float32."""
    return x.to(model.likelihood._like(x).dtype)


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file and creates its folder if missing."""
    import numpy as np

    with whole(path) as temporary:
        np.savez(temporary, **arrays)
