"""The cost of encoding against N, K, T and D: log-log slopes over a decade each, where linear cost means 1.

LLGAE encodes by T ascent steps on all K charts. It binds x once, a cost that grows with N K D, and each step then costs
N K alone, whatever D is. So T is varied where the steps dominate, and D where they do not. For a neural decoder every
step costs the same. A data set is encoded in batches of 500.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import Row, first_line, report, take_turns
from gae import Autoencoder
from gae.inference import Argmax, Ascent, GradientAscent, Zeros
from gae.likelihood import Bernoulli, LinearMixture
from gae.nets import mlp

POINTS = 6
DEVIATION = 0.1
LATENT, BATCH = 20, 500

Encode = Callable[[], object]


def llgae(n: int = 500, k: int = 11, t: int = 5, d: int = 784) -> Encode:
    """Encoding n observations of d dimensions with k charts and t steps."""
    model = Autoencoder(
        LinearMixture(k, LATENT, (d,), flat_prior=True, means=torch.rand(k, d)),
        Argmax(Ascent(Zeros(), GradientAscent(0.1), t)),
    )
    return partial(_encode, model, torch.rand(n, d))


def neural(n: int = 200, t: int = 10) -> Encode:
    """Encoding n binary images with t steps through a 20-200-200-784 decoder."""
    model = Autoencoder(
        Bernoulli(mlp(LATENT, (200, 200), 784, nn.Tanh), LATENT), Ascent(Zeros(), GradientAscent(0.01), t)
    )
    return partial(_encode, model, (torch.rand(n, 784) > 0.5).float())


@torch.no_grad()
def _encode(model: Autoencoder, x: Tensor) -> None:
    for batch in x.split(BATCH):
        model.encode(batch)


def decade(start: int) -> list[int]:
    """Whole numbers from start to ten times start, evenly spaced in the logarithm."""
    return [round(size) for size in np.geomspace(start, 10 * start, POINTS)]


def scaling(what: str, sizes: list[int], make: Callable[[int], Encode]) -> Row:
    """Distance from 1 of the exponent of the median times, and of the rounds' exponents. The sizes take turns."""
    taken = np.array(take_turns(*[make(size) for size in sizes], rounds=5))
    exponent = _slope(sizes, np.median(taken, axis=1))
    rounds = [abs(_slope(sizes, seconds) - 1) for seconds in taken.T]
    name = f"{what}, {sizes[0]} … {sizes[-1]}: exponent {exponent:.3f}"
    return Row(name, abs(exponent - 1), min(rounds), max(rounds), DEVIATION)


def _slope(sizes: list[int], seconds: np.ndarray) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


VARIED: dict[str, tuple[list[int], Callable[[int], Encode]]] = {
    "N, LLGAE": (decade(500), lambda size: llgae(n=size)),
    "K, LLGAE": (decade(20), lambda size: llgae(k=size)),
    "T, LLGAE": (decade(100), lambda size: llgae(n=128, t=size)),
    "D, LLGAE": (decade(2000), lambda size: llgae(d=size, t=1)),
    "N, neural decoder": (decade(500), lambda size: neural(n=size)),
    "T, neural decoder": (decade(10), lambda size: neural(t=size)),
}


def main() -> None:
    torch.manual_seed(0)
    rows = [scaling(what, sizes, make) for what, (sizes, make) in VARIED.items()]
    report("P10", "|exponent - 1|", first_line(__doc__), "random", rows)


if __name__ == "__main__":
    main()
