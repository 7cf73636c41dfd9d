"""``gae activate``: activation maximisation of a unit of a fitted encoder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gae.cli.common import (
    AsJson,
    CheckpointPath,
    SameBinarize,
    SplitBy,
    Trust,
    columns,
    in_its_dtype,
    load_like,
    prepared,
    read,
    save_arrays,
)
from gae.cli.completion import data_names
from gae.cli.terminal import print_results, reported
from gae.data.files import check_file


@reported
def activate(
    checkpoint: CheckpointPath,
    unit: Annotated[int, typer.Argument(metavar="UNIT", help="Index from 0; the means of the code come first.")],
    layer: Annotated[
        str | None,
        typer.Option(help="Name of a layer; an unknown name lists them.", show_default="the encoder's output"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Data set (a name or a path) whose training images to compare with.",
            autocompletion=data_names,
        ),
    ] = None,
    split_by: SplitBy = None,
    binarize: SameBinarize = None,
    trust: Trust = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each of 8 ascents.")] = 400,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the random starts.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png or .npz file; includes the most active image of DATA.")
    ] = Path("activation.png"),
    as_json: AsJson = False,
) -> None:
    """Find the image in the data's value range that activates a unit of the encoder most."""
    from gae.analysis.activation import Units, maximise, most_active

    check_file(output, ".png", ".npz")
    model, _ = read(checkpoint, trust)
    units = Units(model, layer)
    units.check(unit)
    images, compared = {}, {}
    if data is not None:
        train = in_its_dtype(model, load_like(model, data, binarize, split_by).epoch(0))
        if not len(train):
            raise ValueError(
                f"{data} holds one image only, so it has no training images. Give at least two, or leave --data out."
            )
        index, highest = most_active(units, unit, train)
        images = {"training_image": train[index].numpy()}
        compared = {"highest activation of a training image": highest, "training image": index}
    value_range = prepared(model).value_range or (0.0, 1.0)
    result = maximise(units, unit, value_range, steps=steps, seed=seed)
    _write(output, {"image": result.image.numpy(), **images}, value_range, columns(model))
    results = {
        "unit": unit,
        "which is the": units.meaning(unit),
        "layer": units.layer,
        "units of the layer": units.size,
        "activation at mid-grey, the first start": result.start,
        "activation at the image found": result.activation,
        **compared,
        "file": str(output),
    }
    print_results(results, as_json)


def _write(path: Path, images: dict[str, Any], value_range: tuple[float, float], names: tuple[str, ...] | None) -> None:
    if path.suffix == ".npz":
        save_arrays(path, images)
        return
    from gae.reports.observations import sheet

    shown = {name.replace("_", " "): image[None] for name, image in images.items()}
    sheet(shown, value_range, path, names)
