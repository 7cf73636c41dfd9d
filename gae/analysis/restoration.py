"""Image restoration by the deep image prior: denoising, inpainting and super-resolution."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from gae.inference import Progress
from gae.inference.ascent.solver import Watch
from gae.likelihood import LinearOperator
from gae.systems.image_prior import (
    SCALE,
    TASKS,
    Network,
    build_likelihood,
    check_memory,
    known_task,
    restored_shape,
    self_stopping,
)
from gae.training.sampling import isolated


@dataclass(frozen=True)
class Restoration:
    """Result of R runs on one image of C channels."""

    image: Float[Tensor, "C H W"]  # the average of the runs, in [0, 1]
    runs: Float[Tensor, "R C H W"]
    steps: list[int]  # number of steps of each run
    settled: list[bool]  # whether the stopping rule ended a run before the last step
    loss: list[list[float]]  # T lists of R: squared error per measured value before each step
    interrupted: bool


def restore_image(
    image: Float[Tensor, "C h w"],
    task: str = "denoise",
    *,
    mask: Bool[Tensor, "h w"] | None = None,
    factor: int = 4,
    blur: float | None = None,
    operator: LinearOperator | None = None,
    steps: int | None = None,
    runs: int = 1,
    network: Network | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Restoration:
    """Restores an image with values in [0, 1] by fitting untrained networks to this image alone (deep image prior).

    Each run ends by early stopping (``ESWMV``) and returns the running average of its outputs; several runs are
    averaged. The same seed gives the same image. Ctrl-C interrupts the runs and returns their latest result.

    Args:
        image: an image of any size; the network's output may be larger and is cropped.
        task: ``"denoise"``, ``"inpaint"`` (``mask`` is True at observed pixels), or ``"superresolve"`` (the image is
            modelled as a Lanczos-downsampled image of ``factor`` times its height and width).
        blur: standard deviation in pixels of a Gaussian blur of the restored image, before its mask or downsampling.
        operator: any other linear measurement of the restored image, whose size is that of the operator's adjoint; see
            ``gae.likelihood.physics.PhysicsOperator`` for those of deepinv. Only with the task ``"denoise"``.
        steps: maximum number of steps; the default depends on the task.
        runs: number R of networks, with different initial weights.
        network: the size of the network.
        watch: called after each step, with reconstructions (R, 1, C, H, W) cropped to the image.

    Raises:
        ValueError: for an unknown task; a mask that is missing, not needed, of another size or that hides everything;
            values outside [0, 1] or not finite; a blur that is not positive; an operator with a mask, factor or blur,
            of another size, or with a wrong adjoint; or too little memory for this size.
        TypeError: for an operator that is not differentiable.

    >>> restored = restore_image(torch.rand(1, 9, 12), steps=2, network=Network(channels=2, scales=1))
    >>> restored.image.shape, restored.steps
    (torch.Size([1, 9, 12]), [2])
    """
    network = network or Network()
    limit = TASKS[known_task(task)].steps if steps is None else steps
    if limit < 1 or runs < 1:
        raise ValueError(f"Need steps >= 1 and runs >= 1, got {limit} and {runs}.")
    shape = restored_shape(image, task, mask=mask, factor=factor, blur=blur, operator=operator)
    check_memory(network, image, shape, runs)
    with isolated(image.device):
        torch.manual_seed(seed)
        likelihood, observed = build_likelihood(
            image, task, mask=mask, factor=factor, blur=blur, operator=operator, network=network
        )
        network.build(len(image))  # consumes random numbers, so that a seed gives the same image as in earlier versions
        log = _Log(observed.numel(), shape[1], shape[2], watch)
        try:
            with torch.no_grad():
                self_stopping(limit, runs, log).infer(likelihood, observed.unsqueeze(0))
        except KeyboardInterrupt:
            if log.latest is None:
                raise
            log.interrupted = True
    return log.restoration()


def degraded(
    image: Float[Tensor, "C h w"], mask: Bool[Tensor, "h w"] | None, height: int, width: int
) -> Float[Tensor, "C H W"]:
    """The degraded image in the size of its restoration, for comparison: hidden pixels are grey, others interpolated.

    Interpolation is bicubic, and only to another size.

    >>> degraded(torch.zeros(3, 4, 4), None, 8, 8).shape
    torch.Size([3, 8, 8])
    """
    shown = image if mask is None else torch.where(mask, image, 0.5)
    if shown.shape[1:] == (height, width):
        return shown
    return interpolate(shown[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


class _Log:
    """Log of the ascent after each step, cropped to the image; holds the result of an interrupted run."""

    def __init__(self, values: int, height: int, width: int, watch: Watch | None):
        self.values, self.height, self.width, self.watch = values, height, width, watch
        self.interrupted = False
        self.loss: list[list[float]] = []
        self.taken: Tensor | int = 0
        self.latest: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        nats = -progress.objective[:, 0] / self.values
        square = 2 * SCALE**2 * (nats - math.log(SCALE) - 0.5 * math.log(2 * math.pi))
        self.loss.append(square.tolist())
        self.taken = self.taken + progress.running[:, 0]
        assert progress.reconstruction is not None and progress.average is not None
        reconstruction, average = (
            t[..., : self.height, : self.width] for t in (progress.reconstruction, progress.average)
        )
        self.latest = progress._replace(reconstruction=reconstruction, average=average)
        if self.watch is not None:
            self.watch(self.latest)

    def restoration(self) -> Restoration:
        assert self.latest is not None and self.latest.reconstruction is not None and isinstance(self.taken, Tensor)
        runs = self.latest.reconstruction[:, 0].clone()
        settled = (~self.latest.running[:, 0]).tolist()
        return Restoration(runs.mean(0), runs, self.taken.tolist(), settled, self.loss, self.interrupted)
