"""``gae dip``: image restoration by a deep image prior."""

import time
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gae.cli.common import Device, Precision
from gae.cli.completion import FORMATS, TASKS, one_of
from gae.cli.terminal import command_line, finite, plain, print_results, reported
from gae.data.files import check_folder, write_text
from gae.data.progress import Advance, progress

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from gae.analysis.restoration import Restoration
    from gae.data.photographs import Photograph
    from gae.inference import Progress
    from gae.likelihood import LinearOperator

ImagePath = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG, TIFF or WebP, grey or colour, of any size.")
]
KEEP = "keep"
QUALITY = ("PSNR (dB)", "SSIM")


@reported
def dip(
    image: ImagePath,
    task: Annotated[
        str, typer.Option(help="denoise, inpaint or superresolve.", autocompletion=one_of(TASKS))
    ] = "denoise",
    mask: Annotated[Path | None, typer.Option(help="For inpaint: an image, bright where pixels are known.")] = None,
    factor: Annotated[int, typer.Option(help="For superresolve: scale factor.")] = 4,
    background: Annotated[
        str | None, typer.Option(help="For transparent photographs: the colour to flatten over, a name or #rrggbb.")
    ] = None,
    alpha: Annotated[
        str | None, typer.Option(help="For transparent photographs: keep carries the alpha channel over to the result.")
    ] = None,
    blur: Annotated[
        float | None, typer.Option(help="The photograph is blurred: standard deviation of the Gaussian, in pixels.")
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(
            help="How the photograph was measured: module:function, called with its shape (C, H, W), which returns a "
            "linear physics of deepinv, or another object with A(x) and A_adjoint(y)."
        ),
    ] = None,
    clean: Annotated[
        Path | None, typer.Option(help="The photograph without degradation, to measure PSNR and SSIM against.")
    ] = None,
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
    suffix: Annotated[
        str,
        typer.Option(
            "--format", help="Format of the result: png, tiff or webp (lossless).", autocompletion=one_of(FORMATS)
        ),
    ] = "png",
    bits: Annotated[
        int | None,
        typer.Option(help="Bits per channel of the result: 8 or 16.", show_default="those of the photograph"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder.", show_default="runs/dip-NAME")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> Path:
    """Restore a photograph with an untrained network (deep image prior); Ctrl-C keeps the best image so far."""
    command = command_line(dip, locals())
    import torch

    from gae.analysis.restoration import degraded, restore_image
    from gae.data.photographs import Photograph, read_mask
    from gae.systems.image_prior import TASKS, Network, restored_shape

    photo = _read(image, background, alpha)
    known = None if mask is None else torch.from_numpy(read_mask(mask))
    given = torch.from_numpy(photo.colours)
    measurement: dict[str, Any] = {
        "mask": known,
        "factor": factor,
        "blur": blur,
        "operator": _operator(operator, given),
    }
    shape = restored_shape(given, task, **measurement)
    _check_result(photo, shape, suffix, bits or photo.bits)
    truth = None if clean is None else _clean(clean, background, alpha, shape)
    folder = out or Path("runs") / f"dip-{image.stem}"
    _check_new(folder)
    restore: Any = partial(restore_image, task=task, network=Network(channels, scales), **measurement)
    fabric, pixels = _placed(given, device, precision, partial(restore, steps=1))
    most = steps or (TASKS[task].steps if task in TASKS else 0)
    began = time.perf_counter()
    with progress("ascent, at most", most, alone=True) as advance, fabric.autocast():
        restoration = restore(pixels, steps=steps, runs=runs, seed=seed, watch=_Live(advance, folder, preview))
    seconds = time.perf_counter() - began
    restored = Photograph(restoration.image.float().cpu().numpy(), photo.alpha, bits or photo.bits).rounded()
    restored.write(folder / f"result.{suffix}")
    pictures = {"degraded": degraded(given, known, *shape[1:]), "restored": torch.from_numpy(restored.colours)}
    summary = {
        **{"image": str(image), "task": task, "mask": str(mask) if mask else None, "factor": factor},
        **{"blur": blur, "operator": operator, "runs": runs},
        **{"channels": channels, "scales": scales, "seed": seed, "background": background, "alpha": alpha},
        **{"bits": restored.bits, "clean": str(clean) if clean else None},
        **{"device": str(pixels.device), "precision": precision},
        **_outcome(restoration),
        **({} if truth is None else _quality(pictures, truth)),
        **{"seconds": round(seconds, 1), "result": str(folder / f"result.{suffix}")},
    }
    if truth is not None:
        pictures["clean"] = truth
    _write(summary, restoration, pictures, command, folder)
    print_results(summary, as_json)
    return folder


def _placed(
    image: "Tensor", device: str, precision: str, start: "Callable[[Tensor], Restoration]"
) -> "tuple[Fabric, Tensor]":
    """The Fabric that restores, and the image in its precision; on the CPU if its device lacks a float64 in use."""
    from gae.training.devices import computes_in_float64, dtype_of, placed, precision_of, single

    fabric = single(device, precision)
    image = image.to(dtype_of(precision_of(fabric)))
    chosen = placed(fabric.device, lambda: computes_in_float64(partial(start, image)), "This restoration")
    return fabric, image.to(chosen)


def _read(path: Path, background: str | None, alpha: str | None) -> "Photograph":
    """Reads a photograph, whose alpha channel is flattened over a background or kept."""
    from gae.data.photographs import Photograph

    if alpha not in (None, KEEP):
        raise ValueError(f"--alpha must be {KEEP}, got {alpha!r}. To flatten it, name a --background.")
    if background and alpha:
        raise ValueError("--background flattens the alpha channel, which --alpha keeps. Leave out one of them.")
    photo = Photograph.read(path)
    if photo.alpha is None and (background or alpha):
        raise ValueError(f"{path} has no alpha channel. Leave out --background and --alpha.")
    if photo.alpha is not None and not (background or alpha):
        raise ValueError(
            f"{path} has an alpha channel. Flatten it over a colour, as by `--background white`, or carry it over to "
            f"the result by `--alpha {KEEP}`."
        )
    return photo.flatten(background) if background else photo


def _operator(reference: str | None, photo: "Tensor") -> "LinearOperator | None":
    """The measurement that a ``module:function`` builds for a photograph (C, H, W)."""
    from gae.likelihood import LinearOperator
    from gae.likelihood.physics import PhysicsOperator
    from gae.storage.references import imported, working_directory

    if reference is None:
        return None
    build = imported(reference)
    if not (callable(build) and _takes_one(build)):
        what = f"takes the arguments {signature(build)}" if callable(build) else f"is of type {type(build).__name__}"
        raise TypeError(f"{reference} {what}. Name a function that takes a shape (C, H, W) and returns a physics.")
    with working_directory():
        physics = build(tuple(photo.shape))
    return physics if isinstance(physics, LinearOperator) else PhysicsOperator(physics)


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        signature(function).bind(())
    except TypeError:
        return False
    return True


def _check_result(photo: "Photograph", shape: tuple[int, ...], suffix: str, bits: int) -> None:
    """Checks that a format, and the alpha channel of the photograph, fit the result."""
    from gae.data.photographs import check_writable

    check_writable(suffix, bits, shape[0] + (photo.alpha is not None), *shape[1:])
    if photo.alpha is not None and photo.alpha.shape != shape[1:]:
        raise ValueError(
            f"`--alpha keep` needs a result of the photograph's size, {photo.alpha.shape[0]} × {photo.alpha.shape[1]}, "
            f"but it is {shape[1]} × {shape[2]}. Name a --background instead."
        )


def _check_new(folder: Path) -> None:
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} exists and is not empty. Name another folder with --out.")


def _clean(path: Path, background: str | None, alpha: str | None, shape: tuple[int, ...]) -> "Tensor":
    """Reads the clean photograph, whose alpha channel is treated like that of the degraded one."""
    import torch

    from gae.analysis.image_quality import check_clean
    from gae.data.photographs import Photograph

    photo = Photograph.read(path)
    if photo.alpha is not None and not (background or alpha):
        raise ValueError(f"{path} has an alpha channel, and the photograph to restore has none. Flatten it first.")
    image = torch.from_numpy((photo.flatten(background) if photo.alpha is not None and background else photo).colours)
    check_clean(image, shape)
    return image


def _quality(images: "dict[str, Tensor]", clean: "Tensor") -> dict[str, Any]:
    from gae.analysis.image_quality import psnr, ssim

    return {
        title: {name: measure(image, clean) for name, image in images.items()}
        for title, measure in zip(QUALITY, (psnr, ssim), strict=True)
    }


class _Live:
    """Shows the objective, and writes previews."""

    def __init__(self, advance: Advance, folder: Path, preview: int):
        self.advance, self.folder, self.preview = advance, folder, preview

    def __call__(self, progress: "Progress") -> None:
        from gae.data.photographs import write_photo

        nats = float(progress.objective.mean())
        self.advance(f"log joint {nats:,.0f} nats")
        if self.preview and progress.step % self.preview == self.preview - 1 and progress.reconstruction is not None:
            write_photo(progress.reconstruction.mean(0)[0].cpu().numpy(), self.folder / "preview.png")


def _outcome(restoration: "Restoration") -> dict[str, Any]:
    return {
        "size": "{2} × {1}, {0} channels".format(*restoration.image.shape),
        "steps": restoration.steps,
        "stopped by its rule": restoration.settled,
        "interrupted": restoration.interrupted,
        "last squared error per measured value": restoration.loss[-1],
    }


def _write(
    summary: dict[str, Any], restoration: "Restoration", pictures: "dict[str, Tensor]", command: str, folder: Path
) -> None:
    """Writes figures, page and record into the folder."""
    import json

    from gae.reports.pages import made_here
    from gae.reports.photographs import loss_curve, side_by_side, write_restoration

    images = {name: image.numpy() for name, image in pictures.items()}
    side_by_side({"given": images["degraded"], "restored": images["restored"]}, folder / "side_by_side.png")
    loss_curve(restoration.loss, folder / "curve.png")
    quality = {name: summary[name] for name in QUALITY if name in summary}
    said: dict[object, str] = {True: "yes", False: "no"}
    told = {name: value for name, value in summary.items() if value is not None and name not in QUALITY}
    facts = {name: said[value] if isinstance(value, bool) else plain(value) for name, value in told.items()}
    title, made = Path(summary["image"]).name, made_here(command, summary["seconds"])
    write_restoration(folder / "result.html", title, images, restoration.loss, quality, facts, made)
    record = finite({**summary, "loss": restoration.loss})
    write_text(folder / "result.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
