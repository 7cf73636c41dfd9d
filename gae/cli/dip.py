"""``gae dip``: image restoration by a deep image prior."""

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.common import Device, Precision
from gae.cli.terminal import console, print_results, reported
from gae.data.files import check_folder, write_text

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress as Bar

    from gae.analysis.restoration import Restoration
    from gae.inference import Progress

ImagePath = Annotated[Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG or TIFF, grey or colour, of any size.")]


@reported
def dip(
    image: ImagePath,
    task: Annotated[str, typer.Option(help="denoise, inpaint or superresolve.")] = "denoise",
    mask: Annotated[Path | None, typer.Option(help="For inpaint: an image, bright where pixels are known.")] = None,
    factor: Annotated[int, typer.Option(help="For superresolve: scale factor.")] = 4,
    steps: Annotated[int | None, typer.Option(help="Maximum number of steps; the default depends on the task.")] = None,
    runs: Annotated[int, typer.Option(help="Number of independent networks whose results are averaged.")] = 1,
    channels: Annotated[int, typer.Option(help="Channels of the network; the paper has 128.")] = 32,
    scales: Annotated[int, typer.Option(help="Scales of the network; the paper has 5.")] = 4,
    preview: Annotated[int, typer.Option(help="Write preview.png at this interval of steps; 0 for never.")] = 100,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the network's input, weights and noise.")
    ] = 0,
    device: Device = "auto",
    precision: Precision = "32",
    out: Annotated[Path | None, typer.Option(help="A new folder.", show_default="runs/dip-NAME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> Path:
    """Restore a photograph with an untrained network (deep image prior); Ctrl-C keeps the best image so far."""
    import torch

    from gae.analysis.restoration import restore_image
    from gae.data.images import read_mask, read_photo
    from gae.systems.image_prior import TASKS, Network
    from gae.training.devices import computes_in_float64, dtype_of, placed, precision_of, single

    photo = read_photo(image)
    known = None if mask is None else torch.from_numpy(read_mask(mask))
    folder = out or Path("runs") / f"dip-{image.stem}"
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty. Name another folder with --out.")
    fabric = single(device, precision)
    pixels = torch.from_numpy(photo).to(dtype_of(precision_of(fabric)))
    start = partial(restore_image, pixels, task, mask=known, factor=factor, network=Network(channels, scales), steps=1)
    chosen = placed(fabric.device, lambda: computes_in_float64(start), "This restoration")
    with _bar() as bar, fabric.autocast():
        show = _Live(bar, folder, steps or (TASKS[task].steps if task in TASKS else 0), preview)
        began = time.perf_counter()
        restoration = restore_image(
            pixels.to(chosen),
            task,
            mask=known,
            factor=factor,
            steps=steps,
            runs=runs,
            network=Network(channels, scales),
            seed=seed,
            watch=show,
        )
        seconds = time.perf_counter() - began
    settings = {"image": str(image), "task": task, "mask": str(mask) if mask else None, "factor": factor, "runs": runs}
    settings |= {"channels": channels, "scales": scales, "seed": seed, "device": str(chosen), "precision": precision}
    results = _written(restoration, photo, None if known is None else known.numpy(), folder, settings, seconds)
    print_results(results, as_json)
    return folder


class _Live:
    """Shows the objective and the remaining time, and writes previews."""

    def __init__(self, bar: "Bar", folder: Path, steps: int, preview: int):
        self.bar, self.folder, self.preview = bar, folder, preview
        self.task = bar.add_task("ascending", total=steps, objective="")

    def __call__(self, progress: "Progress") -> None:
        from gae.data.images import write_photo

        nats = float(progress.objective.mean())
        self.bar.update(self.task, advance=1, objective=f"log joint {nats:,.0f} nats")
        if self.preview and progress.step % self.preview == self.preview - 1 and progress.reconstruction is not None:
            write_photo(progress.reconstruction.mean(0)[0].cpu().numpy(), self.folder / "preview.png")


def _bar() -> "Bar":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[objective]}"),
    )
    left = (TimeElapsedColumn(), TextColumn("at most"), TimeRemainingColumn(), TextColumn("left"))
    return Progress(*columns, *left, console=console(stderr=True), transient=True)


def _written(
    restoration: "Restoration",
    photo: "np.ndarray",
    mask: "np.ndarray | None",
    folder: Path,
    settings: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Writes result, comparison, curve and summary into the folder, and returns the summary."""
    import json

    import numpy as np

    from gae.data.images import write_photo
    from gae.reports.photographs import loss_curve, side_by_side

    restored = restoration.image.cpu().numpy()
    write_photo(restored, folder / "result.png")
    shown = photo if mask is None else np.where(mask, photo, 0.5)
    side_by_side({"given": shown, "restored": restored}, folder / "side_by_side.png")
    loss_curve(restoration.loss, folder / "curve.png")
    summary = {
        **settings,
        "size": "{2} × {1}, {0} channels".format(*restored.shape),
        "steps": restoration.steps,
        "stopped by its rule": restoration.settled,
        "interrupted": restoration.interrupted,
        "last squared error per measured value": restoration.loss[-1],
        "seconds": round(seconds, 1),
        "result": str(folder / "result.png"),
    }
    write_text(
        folder / "result.json", json.dumps({**summary, "loss": restoration.loss}, indent=1, allow_nan=False) + "\n"
    )
    return summary
