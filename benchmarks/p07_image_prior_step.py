"""One step of a deep image prior at 128×128 against the same network in plain torch, with channels first.

The other side is the paper's loop: batch normalisation, ``torch.optim.Adam``, noise on the input drawn anew at each
step. Both sides take turns step by step, within one run of our ascent: its ``watch`` takes the other's step.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import parameters_to_vector

from benchmarks.common import DEVICE, Rounds, Row, agree, finished, report, row
from gae import nets
from gae.inference import ESWMV, Adam, Ascent, Constant, Detach, Progress
from gae.likelihood import Gaussian, WeightLikelihood

SIDE, RATE, JITTER, SCALE = 128, 0.01, 0.05, 25 / 255
EQUAL, WARM, BLOCK, BLOCKS = 10, 4, 5, 9  # steps compared; steps before timing; steps per round; rounds


class Scale(nn.Module):
    """One scale of the paper's network; its parts are in the order of ``nets.Skip``, so that weights can be copied."""

    def __init__(self, inputs: int, channels: int, inner: "Scale | None"):
        super().__init__()
        self.narrow = block(inputs, 4, 1)
        self.down = nn.Sequential(block(inputs, channels, 3, 2), block(channels, channels, 3))
        self.inner = inner
        self.join = nn.Sequential(nn.BatchNorm2d(4 + channels), block(4 + channels, channels, 3))
        self.mix = block(channels, channels, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 D H W"]:
        low = self.down(x)
        low = low if self.inner is None else self.inner(low)
        return self.mix(self.join(torch.cat([self.narrow(x), self.up(low)], 1)))


def block(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, padding_mode="reflect")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2))


def plain(channels: int, scales: int) -> nn.Sequential:
    inner: Scale | None = None
    for scale in reversed(range(scales)):
        inner = Scale(32 if scale == 0 else channels, channels, inner)
    assert inner is not None
    return nn.Sequential(inner, nn.Conv2d(channels, 1, 1), nn.Sigmoid())


def by_hand(network: nn.Module, inputs: Tensor, x: Tensor, eps: float = 1e-8) -> Callable[[float], float]:
    """Step of the paper's loop; returns the squared error before the step.

    It is scaled as our density is: Adam's ε, next to the gradient of a mean over pixels, would be another rule.
    """
    optimizer = torch.optim.Adam(network.parameters(), RATE, eps=eps)

    def step(noise: float) -> float:
        optimizer.zero_grad()
        loss = mse_loss(network(inputs.unsqueeze(0) + noise * torch.randn_like(inputs)), x)
        (loss * x.numel() / (2 * SCALE**2)).backward()
        optimizer.step()
        return loss.item()

    return step


def verify(channels: int, scales: int, name: str) -> None:
    """The same loss curve, without noise, in float64, and with an ε that matters to neither side.

    Our ε stands inside the root; and in float32 Adam blows rounding up by each step.
    """
    x, inputs = noise(torch.float64)
    theirs = plain(channels, scales).to(x)
    start = parameters_to_vector(theirs.parameters()).detach()
    engine = Ascent(Constant(start), Adam(RATE, eps=1e-15), EQUAL, adjoint=Detach(), trace=True)
    with torch.no_grad():
        nats = -engine.infer(ours(channels, scales, inputs, 0.0), x).solve.trace.flatten() / x.numel()
    step = by_hand(theirs, inputs, x, eps=1e-15)
    losses = 2 * SCALE**2 * (nats - math.log(SCALE) - 0.5 * math.log(2 * math.pi))
    agree(f"loss of {EQUAL} steps, {name}", losses, torch.tensor([step(0.0) for _ in range(EQUAL)]).to(losses), 1e-6)


def noise(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A random image, and the network's fixed input."""
    x, inputs = torch.rand(1, 1, SIDE, SIDE), 0.1 * torch.rand(32, SIDE, SIDE)
    return x.to(DEVICE, dtype), inputs.to(DEVICE, dtype)


def ours(channels: int, scales: int, inputs: Tensor, jitter: float) -> WeightLikelihood:
    network = nets.skip(32, 1, (channels,) * scales, (channels,) * scales, (4,) * scales)
    return WeightLikelihood(network.to(inputs), inputs, partial(Gaussian, scale=SCALE), jitter=jitter).to(inputs)


def compare(channels: int, scales: int, ruled: bool) -> Row:
    """The ratio for one size of the network; ``ruled`` adds our stopping rule, which the other side lacks."""
    torch.manual_seed(0)
    name = f"{channels} channels, {scales} scales" + (", with our stopping rule" if ruled else "")
    if not ruled:
        verify(channels, scales, name)
    x, inputs = noise(torch.float32)
    theirs = plain(channels, scales).to(x)
    start = parameters_to_vector(theirs.parameters()).detach()
    step = by_hand(theirs, inputs, x)
    taken: tuple[list[float], list[float]] = ([], [])
    since = [finished()]

    def turn(progress: Progress) -> None:
        now = finished()
        taken[0].append(now - since[0])
        with torch.enable_grad():
            step(JITTER)
        since[0] = finished()
        taken[1].append(since[0] - now)

    steps = WARM + BLOCK * BLOCKS
    stop = ESWMV() if ruled else None
    engine = Ascent(Constant(start), Adam(RATE), steps, adjoint=Detach(), stop=stop, watch=turn)
    with torch.no_grad():
        engine.infer(ours(channels, scales, inputs, JITTER), x)
    mine, others = (Rounds(sum(side[i : i + BLOCK]) / BLOCK for i in range(WARM, steps, BLOCK)) for side in taken)
    return row(name, mine, others, None if ruled else 0.9)


def main() -> None:
    rows = [compare(*size, ruled) for size in ((32, 4), (128, 5)) for ruled in (False, True)]
    compared = "a step of Ascent on WeightLikelihood(nets.skip) against the paper's network and loop in plain torch"
    report("P7", "time ours / time plain", compared, f"random image {SIDE} × {SIDE}", rows)


if __name__ == "__main__":
    main()
