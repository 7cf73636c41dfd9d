"""Claim: runs of an untrained network, averaged, restore photographs with higher PSNR than classical baselines.

Deep image prior as inference of a network's weights: three tasks on scikit-image's photographs at 128 × 128, a skip
network of 32 channels and 4 scales (small enough for a CPU), 3 seeds, whose results are also averaged. Runs stop by
themselves. Jitter, window and delay of the stopping rule, and the weights of TV and NL-means, were chosen on other
images (coffee, rocket, moon, chelsea). Ground truth is used for reporting only: "best seen" is the result of a perfect
stopping rule.

    python -m experiments.dip

Every run is kept in ``runs/dip``, so the command can be interrupted, resumed and run in several processes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.common import arguments, write
from gae.analysis.restoration import Progress, restore_image
from gae.likelihood import Downsample
from gae.systems.image_prior import Network

KEPT = Path("runs") / "dip"
TASKS = ("denoise", "inpaint", "superresolve")


@dataclass(frozen=True)
class Configuration:
    images: tuple[str, ...] = ("camera", "astronaut", "coins")
    side: int = 128
    sigma: float = 25 / 255
    hidden: float = 0.5
    factor: int = 4
    seeds: tuple[int, ...] = (0, 1, 2)
    channels: int = 32
    scales: int = 4
    every: int = 10


def photograph(name: str, side: int) -> Tensor:
    """The central square of a photograph of scikit-image, (C, side, side) in [0, 1]."""
    from skimage import data, img_as_float, transform

    image = np.atleast_3d(img_as_float(getattr(data, name)()))[..., :3]
    edge = min(image.shape[:2])
    top, left = ((length - edge) // 2 for length in image.shape[:2])
    small = transform.resize(image[top : top + edge, left : left + edge], (side, side), anti_aliasing=True)
    return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))).float()


def measured(clean: Tensor, task: str, configuration: Configuration) -> tuple[Tensor, dict[str, Any]]:
    """The measured image and the options of ``restore_image`` for it; all seeds share one draw of noise or mask."""
    draw = torch.Generator().manual_seed(0)
    if task == "denoise":
        return (clean + configuration.sigma * torch.randn(clean.shape, generator=draw)).clamp(0, 1), {}
    if task == "inpaint":
        return clean, {"mask": torch.rand(clean.shape[1:], generator=draw) >= configuration.hidden}
    return Downsample(clean.shape, configuration.factor)(clean).clamp(0, 1), {"factor": configuration.factor}


def quality(image: Tensor, clean: Tensor) -> dict[str, float]:
    """Peak signal-to-noise ratio (dB) and structural similarity of an image clipped to [0, 1]."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    truth, shown = clean.numpy(), image.clamp(0, 1).numpy()
    similarity = structural_similarity(truth, shown, channel_axis=0, data_range=1.0)
    return {"psnr": float(peak_signal_noise_ratio(truth, shown, data_range=1.0)), "ssim": float(similarity)}


def baselines(given: Tensor, task: str, options: dict[str, Any], configuration: Configuration) -> dict[str, Tensor]:
    """Classical alternatives."""
    from skimage import restoration, transform

    grey = len(given) == 1
    image, axis = (given[0].numpy(), None) if grey else (given.numpy(), 0)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array[None] if grey else array)).float()

    if task == "denoise":
        sigma = configuration.sigma
        means = restoration.denoise_nl_means(image, 5, 6, h=0.6 * sigma, sigma=sigma, channel_axis=axis)
        smooth = restoration.denoise_tv_chambolle(image, weight=0.08, channel_axis=axis)
        return {"noisy": given, "NL-means": tensor(means), "TV": tensor(smooth)}
    if task == "inpaint":
        hidden = ~options["mask"].numpy()
        filled = restoration.inpaint_biharmonic(np.where(hidden, 0.0, image), hidden, channel_axis=axis)
        mean = torch.where(options["mask"], given, given[:, options["mask"]].mean(1)[:, None, None])
        return {"mean": mean, "biharmonic": tensor(filled)}
    size = (len(given), configuration.side, configuration.side)
    return {
        name: torch.from_numpy(transform.resize(given.numpy(), size, order=order, mode="edge", anti_aliasing=False))
        for name, order in (("nearest", 0), ("bicubic", 3))
    }


def run(name: str, task: str, seed: int, configuration: Configuration) -> tuple[dict[str, Any], Tensor]:
    """Summary and image of one restoration, read from its file if it exists."""
    path = KEPT / f"{name}-{task}-{seed}.npz"
    if path.exists():
        with np.load(path) as kept:
            return json.loads(str(kept["account"])), torch.from_numpy(kept["image"])
    clean = photograph(name, configuration.side)
    given, options = measured(clean, task, configuration)
    curve: list[tuple[int, float]] = []

    def report(progress: Progress) -> None:
        if progress.step % configuration.every == configuration.every - 1 and progress.average is not None:
            curve.append((progress.step + 1, quality(progress.average[0, 0], clean)["psnr"]))

    network = Network(configuration.channels, configuration.scales)
    restoration = restore_image(given, task, network=network, seed=seed, watch=report, **options)
    account = quality(restoration.image, clean) | {
        "seed": seed,
        "steps": restoration.steps[0],
        "stopped": restoration.settled[0],
    }
    account |= {"best_seen": max(psnr for _, psnr in curve), "curve": curve}
    KEPT.mkdir(parents=True, exist_ok=True)
    np.savez(path, account=json.dumps(account), image=restoration.image.numpy())
    print(f"{name} {task} seed {seed}: {account['psnr']:.2f} dB after {account['steps']} steps", flush=True)
    return account, restoration.image


def cell(name: str, task: str, configuration: Configuration) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Quality and image of every method, for one image and task."""
    clean = photograph(name, configuration.side)
    given, options = measured(clean, task, configuration)
    pictures = baselines(given, task, options, configuration)
    results: dict[str, Any] = {method: quality(picture, clean) for method, picture in pictures.items()}
    runs = [run(name, task, seed, configuration) for seed in configuration.seeds]
    results["runs"] = [account for account, _ in runs]
    average = torch.stack([image for _, image in runs]).mean(0)
    results["average of runs"] = quality(average, clean)
    return results, pictures | {"deep image prior": runs[0][1], "average of runs": average, "truth": clean}


def summary(results: dict[str, Any]) -> list[str]:
    """The table, one line per image and task."""
    lines = []
    for task in TASKS:
        for name, cells in results.items():
            entry = cells[task]
            shown = {method: value for method, value in entry.items() if method != "runs"}
            text = ", ".join(f"{method} {value['psnr']:.2f} / {value['ssim']:.3f}" for method, value in shown.items())
            runs = "; ".join(f"{r['psnr']:.2f} (best seen {r['best_seen']:.2f}, {r['steps']})" for r in entry["runs"])
            lines.append(f"{task:13}{name:10} {text}; runs {runs}")
    return lines


def draw(pictures: dict[tuple[str, str], dict[str, Tensor]], results: dict[str, Any]) -> Any:
    """Rows of pictures, one per image and task, with their PSNR."""
    from matplotlib.figure import Figure

    width = max(map(len, pictures.values()))
    figure = Figure(figsize=(1.9 * width, 2.1 * len(pictures)), layout="constrained")
    for axes in (grid := figure.subplots(len(pictures), width, squeeze=False)).flat:
        axes.set_axis_off()
    for row, ((name, task), shown) in zip(grid, pictures.items(), strict=True):
        entry = results[name][task]
        psnr = {method: value["psnr"] for method, value in entry.items() if method != "runs"}
        psnr["deep image prior"] = entry["runs"][0]["psnr"]
        for axes, (method, image) in zip(row, shown.items(), strict=False):
            picture = image.clamp(0, 1).numpy().transpose(1, 2, 0)
            axes.imshow(picture[..., 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"{method}\n{psnr[method]:.2f} dB" if method in psnr else f"{method}\n{name}", fontsize=8)
    return figure


def main(configuration: Configuration) -> None:
    results: dict[str, Any] = {}
    pictures: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name in configuration.images:
        for task in TASKS:
            entry, pictures[name, task] = cell(name, task, configuration)
            results.setdefault(name, {})[task] = entry
    print("PSNR (dB) / SSIM", *summary(results), sep="\n")
    write("dip", configuration, results, draw(pictures, results))


if __name__ == "__main__":
    arguments(__doc__)
    main(Configuration())
