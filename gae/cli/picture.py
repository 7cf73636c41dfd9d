"""``gae picture``: inference for one observation, seen over its codes."""

from pathlib import Path
from typing import Annotated

import typer

from gae.cli.common import (
    Activated,
    Channels,
    CodeShape,
    Crop,
    Decoder,
    Drop,
    EncoderName,
    HeadName,
    Labels,
    Missing,
    ModelData,
    ModelPath,
    Own,
    SameBinarize,
    Scale,
    Seed,
    Size,
    SplitBy,
    Trust,
    Weights,
    load_like,
    open_model,
    preparation,
)
from gae.cli.terminal import reported


@reported
def picture(
    checkpoint: ModelPath,
    data: ModelData = None,
    index: Annotated[int, typer.Option("--index", min=0, help="Number of the test observation, from 0.")] = 0,
    engine: Annotated[
        str | None,
        typer.Option(
            help="The ascent, from 0: lbfgs, adam or gauss-newton.",
            show_default="the model's, or lbfgs from its encoder",
        ),
    ] = None,
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
    size: Size = None,
    crop: Crop = False,
    channels: Channels = None,
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    trust: Trust = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", "--out", help="A .png or .svg file.")] = Path("picture.svg"),
) -> None:
    """Draw inference for one test observation: the joint density over codes, an ascent, and the posterior.

    For codes of one or two elements, with the evidence by quadrature. Wider codes are seen on a slice through their
    mode. With --decoder the model is yours, under the prior N(0, I).
    """
    import torch

    from gae.analysis.landscape import landscape
    from gae.data.files import check_file
    from gae.reports.landscape import SUFFIXES, sentence, write

    check_file(output, *SUFFIXES)
    prepared = preparation(labels, drop, missing, size, crop, channels)
    own = Own(decoder, weights, latent, head, scale, activated, encoder)
    model, source, name = open_model(checkpoint, data, own, binarize, split_by, seed, trust, prepared)
    dataset = load_like(model, source, binarize, split_by)
    if index >= len(dataset.test):
        raise ValueError(f"--index must be below the number of test observations, {len(dataset.test)}, got {index}.")
    x = dataset.test[index : index + 1].double()
    model.double()
    if own.decoder is not None:
        from gae.adapters import check_curvature

        check_curvature(model, x, products=engine == "gauss-newton")
    torch.manual_seed(seed)
    seen = landscape(model, x, engine)
    write(seen, output, f"{name} on {dataset.name}, test observation {index}")
    typer.echo(f"{sentence(seen)}\n{output}")
