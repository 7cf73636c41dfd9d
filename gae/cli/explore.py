"""``gae explore``: interactive page of a plane of codes."""

from pathlib import Path
from typing import Annotated

import typer

from gae.cli.common import (
    CheckpointPath,
    DataName,
    SameBinarize,
    SplitBy,
    Trust,
    in_its_dtype,
    load_like,
    prepared,
    read,
)
from gae.cli.terminal import reported
from gae.data.files import check_file


@reported
def explore(
    checkpoint: CheckpointPath,
    data: DataName,
    samples: Annotated[int, typer.Option("-n", min=3, help="Number of test samples shown, from the first.")] = 400,
    size: Annotated[int, typer.Option(min=2, max=60, help="Decoded codes along each side.")] = 25,
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    trust: Trust = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="An .html file.")] = Path("explore.html"),
) -> None:
    """Write an interactive HTML page of a plane of codes and of ascents to them; it needs no server."""
    from gae.reports.explorer import explore as write

    check_file(output, ".html")
    model, name = read(checkpoint, trust)
    dataset = load_like(model, data, binarize, split_by)
    x = in_its_dtype(model, dataset.test[:samples])
    labels = None if dataset.test_labels is None else dataset.test_labels[:samples]
    value_range = prepared(model).value_range or dataset.value_range
    plane = write(
        model, x, output, labels, value_range, size, f"{name} on {dataset.name}", dataset.columns, dataset.classes
    )
    typer.echo(f"{len(x)} codes; the plane holds {plane.explained:.0%} of their variance: {output}")
