"""``gae picture``: inference for one observation, seen over the plane of its codes."""

from pathlib import Path
from typing import Annotated

import typer

from gae.cli.common import CheckpointPath, DataName, SameBinarize, Seed, SplitBy, Trust, load_like, read
from gae.cli.terminal import reported


@reported
def picture(
    checkpoint: CheckpointPath,
    data: DataName,
    index: Annotated[int, typer.Option("--index", min=0, help="Number of the test observation, from 0.")] = 0,
    engine: Annotated[
        str | None,
        typer.Option(
            help="The ascent, from 0: lbfgs, adam or gauss-newton.",
            show_default="the model's, or lbfgs from its encoder",
        ),
    ] = None,
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    trust: Trust = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option("--output", "-o", "--out", help="A .png or .svg file.")] = Path("picture.svg"),
) -> None:
    """Draw inference for one test observation: the joint density over codes, an ascent, and the posterior.

    For codes of two elements, with the evidence by quadrature. Wider codes are seen on a slice through their mode.
    """
    import torch

    from gae.analysis.landscape import landscape
    from gae.data.files import check_file
    from gae.reports.landscape import SUFFIXES, sentence, write

    check_file(output, *SUFFIXES)
    model, name = read(checkpoint, trust)
    dataset = load_like(model, data, binarize, split_by)
    if index >= len(dataset.test):
        raise ValueError(f"--index must be below the number of test observations, {len(dataset.test)}, got {index}.")
    torch.manual_seed(seed)
    seen = landscape(model.double(), dataset.test[index : index + 1].double(), engine)
    write(seen, output, f"{name} on {dataset.name}, test observation {index}")
    typer.echo(f"{sentence(seen)}\n{output}")
