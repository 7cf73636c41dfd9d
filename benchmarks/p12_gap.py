"""The best normal densities of 100 MNIST test images, of both families, against Adam on each image's own parameters.

The decoder of P1, and both sides from its encoder's densities. Ours is the optimisation inside ``gae.inference_gap``.
The loop by hand optimises one image after the other, as published scripts do (Cremer et al. 2018): 16 fresh draws for
each step, a rate that falls to 0 by a cosine, the better of two first rates, and the fewest of some numbers of steps
whose mean bound comes within 0.05 nats of ours. It is timed on 20 images, times five. For reference, the same loop on
all images at once.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from benchmarks.common import Row, UnequalResults, first_line, report, row, take_turns
from benchmarks.mnist_vae import LATENT, images, trained
from gae.analysis.inference_gap import best_normal, encoder_density, lower_bound
from gae.likelihood import Head

IMAGES, SOME, FRESH = 100, 20, 2000  # FRESH: draws of the bound that is compared
DRAWS, DRAWS_BY_HAND = 4 * LATENT, 16
RATES, STEPS, CLOSE = (0.01, 0.03), (50, 100, 200, 400, 800), 0.05
FULL = "full covariance"


def by_hand(
    likelihood: Head, x: Float[Tensor, "B D"], start: Distribution, full: bool, rate: float, steps: int
) -> MultivariateNormal:
    """Adam on the mean and the scale of each image, with fresh draws at every step."""
    mean = start.mean.clone().requires_grad_()
    raw = start.stddev.expm1().log().diag_embed().requires_grad_()  # softplus of it is the scale
    optimizer = torch.optim.Adam([mean, raw], rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        tril = _tril(raw, full)
        z = mean + (torch.randn(DRAWS_BY_HAND, len(x), LATENT, device=x.device).unsqueeze(-2) @ tril.mT).squeeze(-2)
        misfit = binary_cross_entropy_with_logits(
            likelihood.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2]),
            x.expand(DRAWS_BY_HAND, -1, -1),
            reduction="none",
        ).sum(-1)
        joint = -misfit - 0.5 * z.square().sum(-1)
        (-(joint.mean(0) + tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)).sum()).backward()
        optimizer.step()
        schedule.step()
    return MultivariateNormal(mean.detach(), scale_tril=_tril(raw, full).detach(), validate_args=False)


def _tril(raw: Tensor, full: bool) -> Tensor:
    scale = softplus(raw.diagonal(dim1=-2, dim2=-1)).diag_embed()
    return scale + raw.tril(-1) if full else scale


def one_by_one(likelihood: Head, x: Tensor, start: Distribution, full: bool, rate: float, steps: int) -> None:
    """The loop by hand, for one image after the other."""
    for i in range(len(x)):
        row = torch.distributions.Normal(start.mean[i : i + 1], start.stddev[i : i + 1])
        by_hand(likelihood, x[i : i + 1], row, full, rate, steps)


def mean_bound(likelihood: Head, x: Tensor, q: Distribution) -> float:
    """The mean bound, of the same draws for each density."""
    torch.manual_seed(1)
    return float(lower_bound(likelihood, x, q, FRESH).value.mean())


def budget(likelihood: Head, x: Tensor, start: Distribution, full: bool, needed: float) -> tuple[float, int]:
    """The rate and the fewest steps of the loop by hand with which the mean bound is reached."""
    for steps in STEPS:
        for rate in RATES:
            torch.manual_seed(0)
            if mean_bound(likelihood, x, by_hand(likelihood, x, start, full, rate, steps)) >= needed:
                return rate, steps
    raise UnequalResults(f"Adam does not reach {needed:.3f} nats in {STEPS[-1]} steps at any of the rates {RATES}")


def main() -> None:
    name, train, test = images()
    model = trained(train)
    likelihood, x = model.likelihood, test[:IMAGES]
    assert isinstance(likelihood, Head)
    start = encoder_density(model.inference, likelihood, x)
    assert start is not None
    rows: list[Row] = []
    for family in ("mean-field", FULL):
        ours = partial(best_normal, family, likelihood, x, start, DRAWS, 200)
        reached = mean_bound(likelihood, x, ours()[0])
        rate, steps = budget(likelihood, x, start, family == FULL, reached - CLOSE)
        arguments = (likelihood, x, start, family == FULL, rate, steps)
        print(f"{family}: {reached:.3f} nats; by hand within {CLOSE} of it: Adam({rate}), {steps} steps")
        mine, together, single = take_turns(
            ours, partial(by_hand, *arguments), partial(one_by_one, *arguments), rounds=5
        )
        rows.append(row(f"{family}, image by image", single, mine, 5, at_least=True))
        rows.append(row(f"{family}, all images at once", together, mine, None))
    report("P12", "time of Adam / time of ours", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
