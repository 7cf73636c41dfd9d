"""One VAE training step through a Pyro guide (784-200-200-(2×50) / 50-200-200-784, Bernoulli) against plain torch.

Both sides take the same step: the same parameters and noise give the same loss and gradients, then Adam. Pyro's own
SVI takes it too, for reference. With the analytic KL the hand-written loss is the usual one; with the sampled KL it
is log q_r(x|z) + log q_w(z) - log q(z|x) at one draw.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Independent, Normal
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.common import DEVICE, Row, Side, agree, first_line, mnist, report, row, take_turns, training
from gae import Autoencoder
from gae.inference import Amortized, to_pyro
from gae.likelihood import Bernoulli
from gae.nets import mlp
from gae.objective import elbo

DATA, LATENT, HIDDEN = 784, 50, (200, 200)
GOALS = {128: 1.10, 20: 1.25}


@dataclass(frozen=True)
class Nets:
    """One encoder and one decoder; each side trains its own copy."""

    encoder: nn.Module
    decoder: nn.Module

    def parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.decoder.parameters()]


class Guide(PyroModule):
    """A guide as a PyroModule."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Float[Tensor, "B D"]) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", density(self.encoder(x)))


def function(encoder: nn.Module) -> Callable[[Tensor], Any]:
    """A guide as a plain callable."""

    def guide(x: Tensor) -> Tensor:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", density(encoder(x)))

    return guide


def density(output: Float[Tensor, "B Z2"]) -> Independent:
    """N(loc, scale²) from an encoder's output, as a user writes it."""
    loc, log_scale = output.chunk(2, -1)
    return Independent(Normal(loc, log_scale.exp()), 1)


def by_hand(nets: Nets, x: Float[Tensor, "B D"], analytic: bool) -> Float[Tensor, ""]:
    """The negative ELBO per sample, in plain torch."""
    loc, log_scale = nets.encoder(x).chunk(2, -1)
    scale = log_scale.exp()
    noise = torch.normal(torch.zeros_like(loc), torch.ones_like(loc))  # the generator's stream that Pyro's Normal uses
    z = loc + scale * noise
    negative = binary_cross_entropy_with_logits(nets.decoder(z), x, reduction="sum")
    if analytic:
        kl = 0.5 * (scale.square() + loc.square() - 1 - 2 * log_scale).sum()
    else:
        half_log = 0.5 * math.log(2 * math.pi)
        log_q = (-0.5 * ((z - loc) / scale).square() - log_scale - half_log).sum()
        kl = log_q - (-0.5 * z.square() - half_log).sum()
    return (negative + kl) / len(x)


def ours(nets: Nets, guide: Callable[[Tensor], Any], analytic: bool) -> Autoencoder:
    """The same loss as likelihood, inference and objective."""
    return Autoencoder(Bernoulli(nets.decoder, LATENT), Amortized(guide), partial(elbo, analytic=analytic))


def svi(nets: Nets, analytic: bool, x: Tensor) -> Side:
    """The step of pyro.infer.SVI on the same model and guide."""
    likelihood = Bernoulli(nets.decoder, LATENT)
    loss = TraceMeanField_ELBO() if analytic else Trace_ELBO()
    engine = SVI(to_pyro(likelihood), function(nets.encoder), PyroOptim(torch.optim.Adam, {"lr": 1e-4}), loss)
    return lambda: engine.step(x)


def same(name: str, loss: Callable[[], Tensor], nets: Nets, hand: Callable[[], Tensor], theirs: Nets) -> None:
    """The same loss and gradients from the same noise."""
    values, gradients = [], []
    for compute, side in ((loss, nets), (hand, theirs)):
        torch.manual_seed(1)
        values.append(compute())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(values[-1], side.parameters())]))
    agree(f"{name}: loss", values[0], values[1], 1e-5)
    agree(f"{name}: gradient", gradients[0], gradients[1], 1e-5)


def compare(x: Float[Tensor, "B D"], start: Nets, analytic: bool) -> list[Row]:
    """The rows of one batch size and one form of the KL."""
    goal, kl = GOALS[len(x)], "analytic KL" if analytic else "sampled KL"
    hand = copy.deepcopy(start)
    write = partial(by_hand, hand, x, analytic)
    guides: dict[str, Callable[[nn.Module], Callable[[Tensor], Any]]] = {"callable": function, "PyroModule": Guide}
    sides, names = [training(write, hand.parameters())], []
    for name, guide in guides.items():
        nets = copy.deepcopy(start)
        model = ours(nets, guide(nets.encoder), analytic)
        names.append(f"{name} guide, {kl}, batch {len(x)}")
        same(names[-1], partial(model, x), nets, write, hand)
        sides.append(training(partial(model, x), nets.parameters()))
    pyro.clear_param_store()
    sides.append(svi(copy.deepcopy(start), analytic, x))
    theirs, *mine, reference = take_turns(*sides)
    rows = [row(what, seconds, theirs, goal) for what, seconds in zip(names, mine, strict=True)]
    return [*rows, row(f"Pyro's SVI, {kl}, batch {len(x)}", reference, theirs, None)]


def main() -> None:
    torch.manual_seed(0)
    name, images = mnist(binarised=True)
    encoder, decoder = mlp(DATA, HIDDEN, 2 * LATENT, nn.Tanh), mlp(LATENT, HIDDEN, DATA, nn.Tanh)
    nets = Nets(encoder.to(DEVICE), decoder.to(DEVICE))
    rows = []
    for batch in GOALS:
        x = images[:batch].flatten(1)
        rows += [*compare(x, nets, analytic=True), *compare(x, nets, analytic=False)]
    report("P4", "time of ours / time by hand", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
