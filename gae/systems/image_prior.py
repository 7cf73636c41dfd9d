"""Deep image prior: the code is the weights of a network whose output is one image."""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Size, Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from gae import nets
from gae.autoencoder import Autoencoder
from gae.data.checks import positive, refuse
from gae.data.memory import free_memory
from gae.inference import ESWMV, Adam, Ascent, DecoderInit, Detach
from gae.inference.ascent.solver import Watch
from gae.likelihood import (
    Blur,
    Crop,
    Downsample,
    Gaussian,
    Likelihood,
    LinearOperator,
    Mask,
    Measured,
    WeightLikelihood,
)
from gae.likelihood.physics import check_operator
from gae.objective import joint
from gae.systems.parts import Shape, need_image
from gae.systems.table import System

INPUTS = 32  # channels of the network's input, sampled from U(0, 0.1)
SCALE = 25 / 255  # standard deviation of the observation noise; Adam's steps do not depend on it


@System(
    likelihood="WeightLikelihood(skip network)",
    prior="flat",
    inference="Ascent(DecoderInit, Adam, self-stopping)",
    objective="joint",
    source="Ulyanov et al. 2018",
    observation="one image",
)
def deep_image_prior(
    event_shape: Shape, channels: int = 32, scales: int = 4, steps: int = 3000, runs: int = 1
) -> Autoencoder:
    """Deep image prior (Ulyanov et al. 2018): the code is the weights of a network with an image (C, H, W) as output.

    See ``gae.analysis.restoration`` for inpainting and super-resolution, and for the running average of outputs.
    """
    need_image("deep-image-prior", event_shape)
    likelihood, _ = build_likelihood(torch.zeros(event_shape), "denoise", network=Network(channels, scales))
    return Autoencoder(likelihood, self_stopping(steps, runs), joint)


@dataclass(frozen=True)
class Task:
    """Settings of a restoration task; ``jitter`` is the standard deviation of the noise on the network's input."""

    jitter: float
    steps: int


TASKS = {"denoise": Task(0.05, 3000), "inpaint": Task(0.03, 3000), "superresolve": Task(0.03, 2000)}


@dataclass(frozen=True)
class Network:
    """Size of the network ``nets.skip``; the paper uses 128 channels, 5 scales and 4 channels per skip connection."""

    channels: int = 32
    scales: int = 4

    def __post_init__(self) -> None:
        if self.channels < 1 or self.scales < 1:
            raise ValueError(f"Need channels >= 1 and scales >= 1, got {self.channels} and {self.scales}.")

    def build(self, outputs: int) -> nn.Module:
        """Builds the network for images with ``outputs`` channels."""
        width = (self.channels,) * self.scales
        return nets.skip(INPUTS, outputs, width, width, (4,) * self.scales)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The smallest output size of the network that covers an image."""
        unit = 2**self.scales
        high, wide = (max(2, math.ceil(side / unit)) * unit for side in (height, width))
        return high, wide


def build_likelihood(
    image: Float[Tensor, "C h w"],
    task: str,
    *,
    mask: Bool[Tensor, "h w"] | None = None,
    factor: int = 4,
    blur: float | None = None,
    operator: LinearOperator | None = None,
    network: Network | None = None,
) -> tuple[Likelihood, Float[Tensor, "..."]]:
    """The likelihood of a task, over the weights of a network, and the observed values of the image.

    Weights and the network's input are sampled with torch's global generator. For the errors see
    ``gae.analysis.restoration.restore_image``.

    >>> likelihood, observed = build_likelihood(torch.rand(1, 8, 8), "superresolve", factor=2, network=Network(2, 1))
    >>> likelihood.event_shape, observed.shape
    (torch.Size([1, 8, 8]), torch.Size([1, 8, 8]))
    """
    network = network or Network()
    shape = restored_shape(image, task, mask=mask, factor=factor, blur=blur, operator=operator)
    check_memory(network, image, shape, runs=1)
    channels, height, width = shape
    canvas = (channels, *network.canvas(height, width))
    net = network.build(channels).to(image)
    noise = 0.1 * torch.rand(INPUTS, *canvas[1:], dtype=image.dtype, device=image.device)
    head = partial(Gaussian, scale=SCALE)
    likelihood: Likelihood = WeightLikelihood(net, noise, head, jitter=TASKS[task].jitter)
    operators: list[nn.Module] = []
    if canvas[1:] != (height, width):
        operators.append(Crop(canvas, height, width))
    if blur is not None:
        operators.append(Blur(shape, blur))
    observed = image
    if mask is not None:
        operators.append(Mask(mask.to(image.device), shape))
        observed = operators[-1](image)
    if task == "superresolve":
        operators.append(Downsample(shape, factor))
    if operator is not None:
        operators.append(operator)
    return (Measured(likelihood, nn.Sequential(*operators)) if operators else likelihood), observed


def restored_shape(
    image: Float[Tensor, "C h w"],
    task: str,
    *,
    mask: Bool[Tensor, "h w"] | None = None,
    factor: int = 4,
    blur: float | None = None,
    operator: LinearOperator | None = None,
) -> Size:
    """Shape (C, H, W) of the restored image, after checks of the measurement; see ``restore_image`` for the errors.

    >>> restored_shape(torch.rand(3, 8, 10), "superresolve", factor=2)
    torch.Size([3, 16, 20])
    """
    check_image(image, known_task(task), mask, factor)
    if blur is not None:
        positive("blur", blur)
    if operator is not None:
        if task != "denoise" or blur is not None:
            raise ValueError("An operator is the whole measurement: leave out blur and tasks other than denoise.")
        return check_operator(operator.to(image), image)
    channels, height, width = image.shape
    grown = factor if task == "superresolve" else 1
    return Size((channels, grown * height, grown * width))


def self_stopping(steps: int, runs: int = 1, watch: Watch | None = None) -> Ascent:
    """Adam on the weights of ``runs`` networks, with early stopping of each, for at most ``steps`` steps."""
    return Ascent(DecoderInit(runs), Adam(0.01), steps, adjoint=Detach(), stop=ESWMV(), watch=watch)


def memory(network: Network, channels: int, height: int, width: int, runs: int = 1) -> int:
    """Approximate peak memory of the runs in bytes, for a result of this size.

    Includes the activations saved for the gradient (counted in a forward pass on the meta device), gradients of the
    widest layer, weights with the state of Adam, the networks' inputs and the recent outputs.

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
    recent = channels * (ESWMV().window // ESWMV().every)
    working = INPUTS + runs * (INPUTS + 4 * network.channels + recent)
    return runs * (activations + 4 * 10 * weights) + 4 * high * wide * working


def check_memory(network: Network, image: Tensor, shape: Size, runs: int) -> None:
    """Raises ValueError if runs for a restored image of this shape need more memory than is free.

    The message suggests settings that fit.
    """
    channels, height, width = shape
    factor = max(1, height // image.shape[1])
    wide, free = image.element_size() / 4, free_memory(image.device)
    needed = int(wide * memory(network, channels, height, width, runs))
    if free is None or needed <= free:
        return

    def fits(network: Network, share: float, factor: int, runs: int) -> bool:
        high, across = (factor * max(1, int(share * side)) for side in image.shape[1:])
        return wide * memory(network, channels, high, across, runs) <= free

    share = math.sqrt(free / needed)
    halved = [network.channels >> i for i in range(1, network.channels.bit_length())]
    narrower = next((c for c in halved if fits(replace(network, channels=c), 1.0, factor, runs)), None)
    smaller = next((f for f in range(factor - 1, 1, -1) if fits(network, 1.0, f, runs)), None)
    remedies = ["one run at a time"] if runs > 1 and fits(network, 1.0, factor, 1) else []
    remedies += [f"factor {smaller}"] if smaller else []
    remedies += [f"{narrower} channels instead of {network.channels}"] if narrower else []
    if fits(network, share, factor, runs):
        remedies += [f"a crop of about {int(share * image.shape[1])} × {int(share * image.shape[2])} pixels"]
    raise ValueError(
        f"Painting {height} × {width} pixels needs about {_bytes(needed)} of memory, and "
        f"{_bytes(free)} are free. Use {', or '.join(remedies or ['a smaller network'])}."
    )


def _bytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def known_task(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}. Choose one of {', '.join(TASKS)}.")
    return task


def check_image(image: Tensor, task: str, mask: Tensor | None, factor: int) -> None:
    if image.dim() != 3 or not image.numel():
        raise ValueError(f"The image must have shape (C, H, W) and pixels, got {tuple(image.shape)}.")
    for what, bad in (("finite", ~torch.isfinite(image)), ("in [0, 1]", (image < 0) | (image > 1))):
        refuse(image, bad, f"Pixels must be {what}", "Repair or rescale the image.", at="(channel, row, column)")
    if (mask is not None) != (task == "inpaint"):
        raise ValueError(f"Inpainting needs a mask, and other tasks take none, got the task {task!r}.")
    if mask is not None and mask.shape != image.shape[1:]:
        raise ValueError(f"The mask has {_size(mask.shape)} pixels, but the image has {_size(image.shape[1:])}.")
    if task == "superresolve" and factor < 2:
        raise ValueError(f"factor must be at least 2, got {factor}.")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} × {shape[1]}"
