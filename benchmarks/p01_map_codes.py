"""MAP codes of 1,000 MNIST test images against a tuned loop of ``torch.optim.Adam`` on all codes at once, same start.

Decoder 20-200-200-784 (tanh, Bernoulli, N(0, I)), trained as a VAE. Both sides get the smallest budget with which 99 %
of the samples come within 0.01 nats of the best that any of several long runs from the same start reached: Adam the
best of five rates, ours the better of two tolerances. Ours is L-BFGS whose first metric is the decoder's mean
curvature at 16 prior draws, found within the time; the rows for reference find it once per decoder, beforehand. Both
sides' settings are chosen on the images that are timed. Then the mean distance from that best at equal numbers of
evaluations, against gradient ascent at the best of its rates for each number.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.common import DEVICE, Row, UnequalResults, agree, first_line, report, row, take_turns
from benchmarks.mnist_vae import LATENT, images, trained
from gae.inference import LBFGS, Adam, Ascent, Constant, Detach, GradientAscent, Inference, Prior, Step, Zeros
from gae.inference.ascent.steps.gauss_newton import mean_curvature
from gae.likelihood import Head

SAMPLES, SHARE, CLOSE = 1000, 0.99, 0.01  # CLOSE in nats
RATES, TOLERANCES, GRANULARITY = (0.05, 0.1, 0.15, 0.2, 0.3), (0.2, 0.3), 10
LONG, LONG_RATES, OTHER_STARTS = 300, (0.02, 0.05, 0.1), 4
DRAWS, HISTORY = 16, 6
GOALS = {"from zeros": 10, "from the amortised mean": 8}
BUDGETS, ASCENT_RATES = (4, 8, 16, 32), (0.001, 0.003, 0.01, 0.03)


@dataclass(frozen=True)
class Task:
    """A start, and the objective (nats) that counts as reached from it."""

    likelihood: Head
    x: Float[Tensor, "B D"]
    start: Float[Tensor, "B Z"]
    best: Float[Tensor, " B"]
    metric: Float[Tensor, "Z Z"]

    def share(self, value: Float[Tensor, "... B"]) -> Float[Tensor, "..."]:
        """The share of samples close to the best known."""
        return (self.best - value < CLOSE).float().mean(-1)


def adam(task: Task, rate: float, steps: int) -> Float[Tensor, "B Z"]:
    """The loop that a user would write."""
    z = task.start.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], rate)
    for _ in range(steps):
        optimizer.zero_grad()
        by_hand(task.likelihood, task.x, z).sum().backward()
        optimizer.step()
    return z.detach()


def by_hand(likelihood: Head, x: Float[Tensor, "B D"], z: Float[Tensor, "B Z"]) -> Float[Tensor, " B"]:
    """-log q_w(z) q_r(x|z) up to the prior's constant."""
    reconstruction = binary_cross_entropy_with_logits(likelihood.decoder(z), x, reduction="none").sum(1)
    return reconstruction + 0.5 * z.square().sum(1)


def metric(likelihood: Head, x: Float[Tensor, "B D"]) -> Float[Tensor, "Z Z"]:
    """Mean curvature of the decoder."""
    draws = torch.randn(DRAWS, LATENT, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return mean_curvature(likelihood, x[:DRAWS], draws)


def ours(task: Task, grad_tol: float, steps: int, trace: bool = False) -> Ascent:
    """L-BFGS from the start."""
    step = LBFGS(HISTORY, curvature=task.metric)
    return Ascent(Constant(task.start), step, steps, grad_tol=grad_tol, adjoint=Detach(), trace=trace)


@torch.no_grad()
def codes(task: Task, grad_tol: float, steps: int) -> Float[Tensor, "B Z"]:
    return ours(task, grad_tol, steps)(task.likelihood, task.x).z[0]


def codes_and_metric(task: Task, grad_tol: float, steps: int) -> Float[Tensor, "B Z"]:
    """The same codes, including the computation of the metric."""
    return codes(replace(task, metric=metric(task.likelihood, task.x)), grad_tol, steps)


@torch.no_grad()
def long_run(likelihood: Head, x: Tensor, *engines: Inference) -> Float[Tensor, " B"]:
    """The best objective that any of the engines reaches, each followed by L-BFGS until nothing moves."""
    values = []
    for engine in engines:
        polished = Ascent(engine, LBFGS(), LONG, tol=1e-5, adjoint=Detach())
        values.append(polished(likelihood, x).log_joint[0])
    return torch.stack(values).amax(0)


def task_from(likelihood: Head, x: Tensor, start: Tensor) -> Task:
    """Task whose objective is the best of several long runs from the start."""
    init = Constant(start)
    long = [Ascent(init, Adam(rate), LONG, adjoint=Detach()) for rate in LONG_RATES]
    return Task(likelihood, x, start, long_run(likelihood, x, init, *long), metric(likelihood, x))


@torch.no_grad()
def budget_of_adam(task: Task) -> tuple[float, int]:
    """Best rate, and the smallest sufficient number of steps (a multiple of 10)."""
    budgets = []
    for rate in RATES:
        engine = Ascent(Constant(task.start), Adam(rate), LONG, adjoint=Detach(), trace=True)
        share = task.share(engine(task.likelihood, task.x).solve.trace[:, 0])
        enough = (share[GRANULARITY::GRANULARITY] >= SHARE).nonzero()
        if len(enough):
            budgets.append(((int(enough[0]) + 1) * GRANULARITY, rate))
    steps, rate = min(budgets)
    return rate, steps


@torch.no_grad()
def budget_of_ours(task: Task) -> tuple[float, int]:
    """Tolerance and smallest number of steps with the fewest evaluations."""
    budgets = []
    for grad_tol in TOLERANCES:
        solve = ours(task, grad_tol, 60, trace=True)(task.likelihood, task.x).solve
        enough = (task.share(solve.trace[:, 0].cummax(0).values) >= SHARE).nonzero()
        if len(enough):
            steps = int(enough[0]) + 1
            budgets.append((float(solve.evaluations.clamp(max=steps).float().mean()), grad_tol, steps))
    evaluations, grad_tol, steps = min(budgets)
    print(f"  ours: grad_tol {grad_tol}, at most {steps} steps, {evaluations:.1f} evaluations per sample")
    return grad_tol, steps


@torch.no_grad()
def distances(task: Task, step: Step) -> Float[Tensor, " 4"]:
    """Mean distance in nats from the best known objective after each number of evaluations, the start's included."""
    engine = Ascent(Constant(task.start), step, max(BUDGETS), adjoint=Detach(), trace=True)
    reached = engine(task.likelihood, task.x).solve.trace[:, 0].cummax(0).values
    return (task.best - reached[[budget - 1 for budget in BUDGETS]]).clamp_min(0).mean(1)


def at_equal_evaluations(task: Task, what: str) -> list[Row]:
    """Distances of ours, divided by the smallest of gradient ascent at any of its rates."""
    ours = distances(task, LBFGS(HISTORY, curvature=task.metric))
    theirs = torch.stack([distances(task, GradientAscent(rate)) for rate in ASCENT_RATES]).amin(0)
    rows = []
    for budget, mine, best in zip(BUDGETS, ours.tolist(), theirs.tolist(), strict=True):
        print(f"  after {budget} evaluations: {mine:.3g} nats from the best, gradient ascent {best:.3g}")
        ratio = mine / best
        rows.append(Row(f"{what}, distance after {budget} evaluations / gradient ascent", ratio, ratio, ratio, 1.0))
    return rows


def reached(task: Task, what: str, z: Float[Tensor, "B Z"]) -> None:
    """Raises UnequalResults unless enough codes reach the objective."""
    share = float(task.share(task.likelihood.log_joint(task.x, z.unsqueeze(0))[0]))
    print(f"  {what}: {share:.1%} of the samples within {CLOSE} nats")
    if share < SHARE:
        raise UnequalResults(f"{what} reached {share:.1%}, needed {SHARE:.0%}")


def main() -> None:
    name, train, test = images()
    model = trained(train)
    likelihood, x = model.likelihood, test[:SAMPLES]
    mean = model.inference.guide.density(x).mean
    constant = likelihood.log_joint(x, mean.unsqueeze(0))[0] + by_hand(likelihood, x, mean)
    agree("log joint", constant, likelihood.prior.log_prob(torch.zeros_like(mean)), 1e-4)
    torch.manual_seed(0)
    anywhere = long_run(likelihood, x, Zeros(), Constant(mean), *(Prior() for _ in range(OTHER_STARTS)))
    rows = []
    for what, start in (("from zeros", torch.zeros_like(mean)), ("from the amortised mean", mean)):
        task = task_from(likelihood, x, start)
        higher = float((anywhere - task.best > CLOSE).float().mean())
        print(f"{what}; another start leads higher for {higher:.1%} of the samples")
        rate, steps = budget_of_adam(task)
        print(f"  Adam: rate {rate}, {steps} steps")
        budget = budget_of_ours(task)
        theirs, mine, whole = (
            partial(adam, task, rate, steps),
            *(partial(f, task, *budget) for f in (codes, codes_and_metric)),
        )
        reached(task, "Adam", theirs())
        reached(task, "ours", mine())
        mine_taken, whole_taken, theirs_taken = take_turns(mine, whole, theirs)
        rows.append(row(what, theirs_taken, whole_taken, GOALS[what], at_least=True))
        rows.append(row(f"{what}, the metric found beforehand", theirs_taken, mine_taken, None))
        rows += at_equal_evaluations(task, what)
    report("P1", "time of Adam / time of ours", first_line(__doc__), name, rows)


if __name__ == "__main__":
    main()
