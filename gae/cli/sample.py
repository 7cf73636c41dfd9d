"""``gae sample``: draws from a fitted model, as images, arrays or text."""

from pathlib import Path
from typing import Annotated

import typer

from gae.cli.common import CheckpointPath, Seed, Trust, columns, prepared, read, save_arrays
from gae.cli.terminal import reported
from gae.data.files import check_file, write_text


@reported
def sample(
    checkpoint: CheckpointPath,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of samples.")] = 64,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .png, .txt (for text) or .npz file.", show_default="samples.…"),
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="The decoder's mean at each code, without observation noise.")
    ] = False,
    trust: Trust = None,
    seed: Seed = 0,
) -> None:
    """Draw from the model: z from the prior, x from the decoder."""
    import torch

    model, _ = read(checkpoint, trust)
    vocabulary = prepared(model).vocabulary
    kinds = (".png", ".npz") if vocabulary is None else (".txt", ".npz")
    output = output or Path("samples").with_suffix(kinds[0])
    check_file(output, *kinds)
    torch.manual_seed(seed)
    with torch.no_grad():
        drawn, z = model.likelihood.sample_joint(n, mean)
    if output.suffix == ".npz":
        save_arrays(output, {"x": drawn.numpy(), "z": z.numpy()})
    elif vocabulary is not None:
        write_text(output, "\n".join(vocabulary.decode(drawn)) + "\n")
    else:
        from gae.reports.observations import sheet

        sheet({"samples": drawn.numpy()}, prepared(model).value_range or (0.0, 1.0), output, columns(model))
    typer.echo(f"{n} samples: {output}")
