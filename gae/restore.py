"""Photographs restored by a network's weights alone (deep image prior): denoise, inpaint, superresolve."""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gae import nets
from gae.inference import Adam, Ascent, Detach, Initial, Progress, RunningVariance
from gae.inference.solver import Watch
from gae.likelihood import Crop, Downsample, Gaussian, Likelihood, Mask, Observed, WeightLikelihood
from gae.memory import free_memory

INPUTS = 32  # channels of the network's input, drawn from U(0, 0.1)
SCALE = 25 / 255  # standard deviation of the observation noise; Adam's steps do not depend on it


@dataclass(frozen=True)
class Task:
    """How one kind of restoration is run. Jitter is the standard deviation of the noise on the network's input."""

    jitter: float
    steps: int


TASKS = {"denoise": Task(0.05, 3000), "inpaint": Task(0.03, 3000), "superresolve": Task(0.03, 2000)}


@dataclass(frozen=True)
class Network:
    """The size of ``nets.skip``; the paper's is 128 channels on 5 scales, with 4 channels in each skip connection."""

    channels: int = 32
    scales: int = 4

    def __post_init__(self) -> None:
        if self.channels < 1 or self.scales < 1:
            raise ValueError(f"Need channels >= 1 and scales >= 1, got {self.channels} and {self.scales}.")

    def build(self, outputs: int) -> nn.Module:
        """The network for images of so many channels."""
        width = (self.channels,) * self.scales
        return nets.skip(INPUTS, outputs, width, width, (4,) * self.scales)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size that the network can paint and that covers an image."""
        unit = 2**self.scales
        high, wide = (max(2, math.ceil(side / unit)) * unit for side in (height, width))
        return high, wide


@dataclass(frozen=True)
class Restoration:
    """What came of R runs on one image of C channels."""

    image: Float[Tensor, "C H W"]  # the average of the runs, in [0, 1]
    runs: Float[Tensor, "R C H W"]
    steps: list[int]  # taken by each run
    settled: list[bool]  # whether a run's rule stopped it, before the last step
    loss: list[list[float]]  # T lists of R: squared error per measured value before each step
    interrupted: bool


def restore(
    image: Float[Tensor, "C h w"],
    task: str = "denoise",
    *,
    mask: Bool[Tensor, "h w"] | None = None,
    factor: int = 4,
    steps: int | None = None,
    runs: int = 1,
    network: Network | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Restoration:
    """Restores an image with values in [0, 1] by ascending the weights of untrained networks, which it is shown once.

    Each run stops by itself (``RunningVariance``), and its running average of outputs is its result; several runs are
    averaged. The same seed gives the same picture. Ctrl-C ends the work and returns what the runs had reached.

    Args:
        image: of any size; the network paints a canvas that may be larger.
        task: ``"denoise"``, ``"inpaint"`` (``mask`` is True where a pixel is seen), or ``"superresolve"`` (the image is
            taken for a Lanczos-filtered one of ``factor`` times its height and width).
        steps: at most; a number for each task unless given.
        runs: R, networks with initial weights of their own.
        network: its size.
        watch: called after each step; its signals (R, 1, C, H, W) are those of the image.

    Raises:
        ValueError: an unknown task, a mask missing, needless, of another size or that hides everything, values outside
            [0, 1] or not finite, or too little memory for this size.

    >>> found = restore(torch.rand(1, 9, 12), steps=2, network=Network(channels=2, scales=1))
    >>> found.image.shape, found.steps
    (torch.Size([1, 9, 12]), [2])
    """
    network = network or Network()
    limit = TASKS[_known(task)].steps if steps is None else steps
    if limit < 1 or runs < 1:
        raise ValueError(f"Need steps >= 1 and runs >= 1, got {limit} and {runs}.")
    _check(image, task, mask, factor)
    grown = factor if task == "superresolve" else 1
    _afford(network, image, grown, runs)
    with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
        torch.manual_seed(seed)
        likelihood, seen = pose(image, task, mask=mask, factor=factor, network=network)
        network.build(
            len(image)
        )  # these draws precede those of the runs, so that a seed's picture stays that of earlier versions
        log = _Log(seen.numel(), image.shape[1] * grown, image.shape[2] * grown, watch)
        try:
            with torch.no_grad():
                self_stopping(limit, runs, log).infer(likelihood, seen.unsqueeze(0))
        except KeyboardInterrupt:
            if log.latest is None:
                raise
            log.interrupted = True
    return log.restoration()


def pose(
    image: Float[Tensor, "C h w"],
    task: str,
    *,
    mask: Bool[Tensor, "h w"] | None = None,
    factor: int = 4,
    network: Network | None = None,
) -> tuple[Likelihood, Float[Tensor, "..."]]:
    """The likelihood of a task, a network's weights seen through an operator, and what of the image is observed.

    Weights and the network's input are drawn by torch's global generator. For the errors see ``restore``.

    >>> likelihood, seen = pose(torch.rand(1, 8, 8), "superresolve", factor=2, network=Network(2, 1))
    >>> likelihood.event_shape, seen.shape
    (torch.Size([1, 8, 8]), torch.Size([1, 8, 8]))
    """
    network = network or Network()
    _check(image, _known(task), mask, factor)
    channels, height, width = image.shape
    grown = factor if task == "superresolve" else 1
    _afford(network, image, grown, runs=1)
    canvas = (channels, *network.canvas(height * grown, width * grown))
    net = network.build(channels).to(image)
    noise = 0.1 * torch.rand(INPUTS, *canvas[1:], dtype=image.dtype, device=image.device)
    head = partial(Gaussian, scale=SCALE)
    likelihood: Likelihood = WeightLikelihood(net, noise, head, jitter=TASKS[task].jitter)
    operators: list[nn.Module] = []
    if canvas[1:] != (height * grown, width * grown):
        operators.append(Crop(canvas, height * grown, width * grown))
    seen = image
    if mask is not None:
        operators.append(Mask(mask.to(image.device), image.shape))
        seen = operators[-1](image)
    if grown > 1:
        operators.append(Downsample((channels, height * grown, width * grown), factor))
    return (Observed(likelihood, nn.Sequential(*operators)) if operators else likelihood), seen


def self_stopping(steps: int, runs: int = 1, watch: Watch | None = None) -> Ascent:
    """Adam on the weights of so many networks, each of which stops by itself, at most after so many steps."""
    return Ascent(Initial(runs), Adam(0.01), steps, backprop=Detach(), stop=RunningVariance(), watch=watch)


class _Log:
    """What the solve showed after each step, cut to the image: all that is left of one that was interrupted."""

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
        assert progress.signal is not None and progress.average is not None
        signal, average = (t[..., : self.height, : self.width] for t in (progress.signal, progress.average))
        self.latest = progress._replace(signal=signal, average=average)
        if self.watch is not None:
            self.watch(self.latest)

    def restoration(self) -> Restoration:
        assert self.latest is not None and self.latest.signal is not None and isinstance(self.taken, Tensor)
        runs = self.latest.signal[:, 0].clone()
        settled = (~self.latest.running[:, 0]).tolist()
        return Restoration(runs.mean(0), runs, self.taken.tolist(), settled, self.loss, self.interrupted)


def memory(network: Network, channels: int, height: int, width: int, runs: int = 1) -> int:
    """Bytes that the runs need at their peak, about, for a result of this size.

    Counted are the activations that are kept for the gradient (by a pass without data), gradients of the widest layer,
    weights with the state of Adam, the networks' inputs and the recent outputs.

    >>> 4 * memory(Network(), 3, 128, 128) > memory(Network(), 3, 256, 256) > 2 * memory(Network(), 3, 128, 128)
    True
    """
    high, wide = network.canvas(height, width)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.device("meta"), torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        net = network.build(channels)
        output = net(torch.zeros(1, INPUTS, high, wide))
    del output
    weights = sum(parameter.numel() for parameter in net.parameters())
    activations = sum(storage.nbytes() for storage in kept.values()) - 4 * weights
    recent = channels * (RunningVariance().window // RunningVariance().every)
    working = INPUTS + runs * (INPUTS + 4 * network.channels + recent)
    return runs * (activations + 4 * 10 * weights) + 4 * high * wide * working


def _afford(network: Network, image: Tensor, factor: int, runs: int) -> None:
    """Raises ValueError where the runs need more memory than is free, and names what would fit."""
    channels, height, width = image.shape
    needed, free = memory(network, channels, factor * height, factor * width, runs), free_memory(image.device)
    if free is None or needed <= free:
        return

    def fits(network: Network, share: float, factor: int, runs: int) -> bool:
        high, wide = (factor * max(1, int(share * side)) for side in (height, width))
        return memory(network, channels, high, wide, runs) <= free

    share = math.sqrt(free / needed)
    halved = [network.channels >> i for i in range(1, network.channels.bit_length())]
    narrower = next((c for c in halved if fits(replace(network, channels=c), 1.0, factor, runs)), None)
    smaller = next((f for f in range(factor - 1, 1, -1) if fits(network, 1.0, f, runs)), None)
    remedies = ["one run at a time"] if runs > 1 and fits(network, 1.0, factor, 1) else []
    remedies += [f"factor {smaller}"] if smaller else []
    remedies += [f"{narrower} channels instead of {network.channels}"] if narrower else []
    if fits(network, share, factor, runs):
        remedies += [f"a crop of about {int(share * height)} × {int(share * width)} pixels"]
    raise ValueError(
        f"Painting {factor * height} × {factor * width} pixels needs about {_bytes(needed)} of memory, and "
        f"{_bytes(free)} are free. Take {', or '.join(remedies or ['a smaller network'])}."
    )


def _bytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _known(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}. Choose one of {', '.join(TASKS)}.")
    return task


def _check(image: Tensor, task: str, mask: Tensor | None, factor: int) -> None:
    if image.dim() != 3 or not image.numel():
        raise ValueError(f"The image must have shape (C, H, W) and pixels, got {tuple(image.shape)}.")
    for what, bad in (("finite", ~torch.isfinite(image)), ("in [0, 1]", (image < 0) | (image > 1))):
        if bool(bad.any()):
            index = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"Pixels must be {what}, got {image[index].item():g} at (channel, row, column) {index} "
                f"({int(bad.sum())} such values). Repair or rescale the image."
            )
    if (mask is not None) != (task == "inpaint"):
        raise ValueError(f"A mask is for inpainting, and inpainting needs one; the task is {task!r}.")
    if mask is not None and mask.shape != image.shape[1:]:
        raise ValueError(f"The mask has {_size(mask.shape)} pixels, but the image has {_size(image.shape[1:])}.")
    if task == "superresolve" and factor < 2:
        raise ValueError(f"factor must be at least 2, got {factor}.")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {shape[1]}"
