"""Families of densities × inference engines on one fixed decoder: bounds on log p(x), in nats."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Num
from torch import Tensor
from torch.distributions import Distribution

from gae.analysis.best_flow import DRAWS, RATE, best_flow
from gae.analysis.gap import Bound
from gae.analysis.inference_gap import FAMILIES, FLOW, flow_start, lower_bound, one_row, widened
from gae.analysis.metrics import Entry
from gae.evidence import Evidence, estimate
from gae.evidence.usage import code_usage, kl_per_dimension, total_correlation
from gae.inference import Adam, Ascent, Detach, Family, Inference, Laplace, Status, Step
from gae.inference.ascent.problem import expand_rows, finite
from gae.inference.ascent.solver import Iterate, Solver
from gae.inference.flows import NormalizingFlow
from gae.inference.laws import codes_from
from gae.inference.modes import density_step, mode_search
from gae.inference.starts import Given
from gae.likelihood import Likelihood

ENCODER, OPTIMUM, LAPLACE = "encoder", "local optimum q*", "Laplace at the mode"
WIDE = "encoder of twice the width"
DIAGONAL, FULL = "mean-field", "full covariance"
LBFGS_STEPS, GRADIENT_STEPS = "L-BFGS", "gradient"
USE_DRAWS = 64  # of a density without a closed-form KL
TIGHT = 0.99  # share of samples with a tight estimate of log p(x), above which gaps to it are quoted


@dataclass(frozen=True)
class MatrixBudget:
    """Budget of a matrix of bounds.

    Attributes:
        samples: number of test samples, from the first.
        importance_samples: draws per sample for log p(x), where it has no closed form.
        draws: draws per sample of each bound, with a control variate.
        optimum_steps: most L-BFGS steps to a local optimum q*.
        steps: numbers of steps from the encoder's density.
        rates: Adam's rates for the gradient steps; the best on validation samples is used.
        tuning_samples: most validation samples, on which the rate is chosen: the first training samples, which no
            training uses, and at most a fifth of them.
    """

    samples: int = 64
    importance_samples: int = 2000
    draws: int = 100
    optimum_steps: int = 200
    steps: tuple[int, ...] = (4, 16)
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    tuning_samples: int = 32


@dataclass(frozen=True)
class Cell:
    """The bound of one engine in one family, and the decoder evaluations per sample that its density took."""

    bound: Bound
    evaluations: Num[Tensor, " B"]

    def entry(self) -> Entry:
        """As JSON: one value per sample; the share of solves that converged where an optimum was sought."""
        status = self.bound.status
        return {
            "values": self.bound.value.tolist(),
            "sampling_se": float(self.bound.standard_error.mean()),
            "converged": None if status is None else float(torch.eq(status, Status.converged).double().mean()),
            "evaluations": float(self.evaluations.double().mean()),
        }


def after(steps: int, rule: str) -> str:
    """Name of the engine that takes steps from the encoder's density.

    >>> after(4, "L-BFGS")
    'encoder + 4 L-BFGS steps'
    """
    return f"{ENCODER} + {steps} {rule} step" + ("s" if steps > 1 else "")


@torch.no_grad()
def bound_matrix(
    likelihood: Likelihood,
    x: Num[Tensor, "B *X"],
    encoders: Mapping[str, Distribution],
    tuning: tuple[Num[Tensor, "T *X"], Mapping[str, Distribution]],
    budget: MatrixBudget,
) -> Entry:
    """The matrix of bounds on log p(x) of a fixed decoder, and log p(x) with the evidence that it is tight.

    Every family holds the density of its own encoder, that density after a few steps of L-BFGS and of Adam, the local
    optimum q* that L-BFGS reaches from it, and the Laplace approximation at the mode (of the diagonal family: the
    precision's diagonal). All bounds are estimated from fresh draws by ``lower_bound``.

    L-BFGS runs under the decoder's curvature at its start (``density_step``), which its evaluations include.

    A flow has no density of L-BFGS steps, which would fit fixed draws, and none of Laplace; its optimum is the end of a
    fixed number of Adam steps (``best_flow``).

    Args:
        likelihood: the decoder and a proper prior, in double precision: in single precision a solve stalls.
        x: (B, *X).
        encoders: the densities q(z|x) of batch shape (B,) of each family's encoder, by names in ``FAMILIES``, and by
            ``FLOW`` if there is one.
        tuning: observations that are not x, and the encoders' densities there, on which the rate is chosen.
        budget: numbers of samples, draws and steps.
    """
    cells, rates = {}, {}
    normals = {family: q for family, q in encoders.items() if family in FAMILIES}
    mode = Given(mode_search(Given.density(next(iter(normals.values())))).infer(likelihood, x))
    for family, q in normals.items():
        row = {ENCODER: Cell(lower_bound(likelihood, x, q, budget.draws), x.new_zeros(len(x)))}
        rates[family] = tuned_rate(likelihood, tuning[0], tuning[1][family], family, budget)
        gradient = Adam(rates[family]["rate"])
        step, marks = density_step(likelihood, x), (*budget.steps, budget.optimum_steps)
        *searched, optimum = refined(likelihood, x, q, family, step, marks, budget.draws, tol=1e-5)
        moved = refined(likelihood, x, q, family, gradient, budget.steps, budget.draws)
        for rule, cells_of in ((LBFGS_STEPS, searched), (GRADIENT_STEPS, moved)):
            row |= {after(steps, rule): cell for steps, cell in zip(budget.steps, cells_of, strict=True)}
        row[OPTIMUM] = optimum
        row[LAPLACE] = around(mode, likelihood, x, family, budget.draws)
        cells[family] = row
    best = max((row[OPTIMUM].bound for row in cells.values()), key=lambda bound: float(bound.value.mean()))
    log_p = log_evidence_entry(likelihood, x, best, budget.importance_samples)
    flow = encoders.get(FLOW)
    if isinstance(flow, NormalizingFlow):
        rates[FLOW] = tuned_rate(likelihood, tuning[0], tuning[1][FLOW], FLOW, budget)
        cells[FLOW] = _flow_row(likelihood, x, flow, best, rates[FLOW]["rate"], budget)
    return {
        "cells": {family: {name: cell.entry() for name, cell in row.items()} for family, row in cells.items()},
        "rates": rates,
        "log_p": log_p,
    }


def _flow_row(
    likelihood: Likelihood, x: Tensor, q: NormalizingFlow, normal: Bound, rate: float, budget: MatrixBudget
) -> dict[str, Cell]:
    """The bounds of a flow encoder, of some gradient steps from it, and of the best flow of each observation."""
    assert normal.q is not None
    row = {ENCODER: Cell(lower_bound(likelihood, x, q, budget.draws), x.new_zeros(len(x)))}
    for steps in budget.steps:
        row[after(steps, GRADIENT_STEPS)] = _moved_flow(likelihood, x, q, steps, rate, budget.draws)
    start = flow_start(likelihood, x, q, normal.q, budget.draws)
    row[OPTIMUM] = _moved_flow(likelihood, x, start, 2 * budget.optimum_steps, RATE, budget.draws)
    return row


def _moved_flow(likelihood: Likelihood, x: Tensor, q: NormalizingFlow, steps: int, rate: float, draws: int) -> Cell:
    moved = best_flow(likelihood, x, q, steps=steps, rate=rate)
    return Cell(lower_bound(likelihood, x, moved, draws), x.new_full((len(x),), DRAWS * steps))


class Stops(Detach):
    """A solve without a graph that records its solution and its decoder evaluations after some numbers of steps.

    A point that is not finite is replaced by the best one before it.
    """

    def __init__(self, steps: Sequence[int]):
        super().__init__()
        self.steps = tuple(steps)
        self.ends: list[tuple[Tensor, Tensor]] = []

    def forward(self, solver: Solver, start: Iterate) -> Iterate:
        at, begin = start.detach(), 0
        for end in self.steps:
            at = at if solver.finished(at) else solver.run(at, begin, end, False)
            u = solver.point(at)
            self.ends.append((torch.where(expand_rows(finite(u, at["value"]), u), u, at["best"]), at["evaluations"]))
            begin = end
        return at


def refined(
    likelihood: Likelihood,
    x: Num[Tensor, "B *X"],
    q: Distribution,
    family: str,
    step: Step,
    steps: Sequence[int],
    draws: int,
    tol: float | None = None,
    noise: int = 4,
) -> list[Cell]:
    """The bounds of the densities after each of some increasing numbers of steps of one solve from q.

    Its noise, ``noise`` draws for each element of a code, is matched in its first two moments. With ``tol`` the last is
    an optimum that was sought, and its cell says which solves converged; those that end earlier take fewer steps.
    """
    member: Family = FAMILIES[family](noise * likelihood.latent_shape.numel(), matched=True)
    stops = Stops(steps)
    code = Ascent(Given.density(q), step, steps[-1], tol=tol, family=member, adjoint=stops).infer(likelihood, x)
    assert code.solve is not None
    cells = []
    for u, evaluations in stops.ends:
        density = member.code(likelihood, u, member.draw(u)).q
        assert density is not None
        cells.append(Cell(lower_bound(likelihood, x, one_row(density), draws), evaluations[0]))
    if tol is not None:
        last = cells.pop()
        cells.append(replace(last, bound=replace(last.bound, status=code.solve.status[0])))
    return cells


def around(mode: Inference, likelihood: Likelihood, x: Num[Tensor, "B *X"], family: str, draws: int) -> Cell:
    """The bound of the Laplace approximation at a mode, of the exact Hessian or, for mean-field, its diagonal."""
    code = Laplace(mode, "full" if family == FULL else "diagonal", "hessian", samples=None).infer(likelihood, x)
    assert code.q is not None and code.solve is not None
    bound = lower_bound(likelihood, x, one_row(code.q), draws)
    return Cell(replace(bound, status=code.solve.status[0]), code.solve.evaluations[0])


def tuned_rate(
    likelihood: Likelihood, x: Num[Tensor, "T *X"], q: Distribution, family: str, budget: MatrixBudget
) -> Entry:
    """Adam's rate of the grid with the highest bound after the fewest steps, and whether it is an edge."""
    steps = budget.steps[0]

    def after_steps(rate: float) -> Cell:
        if isinstance(q, NormalizingFlow):
            return _moved_flow(likelihood, x, q, steps, rate, budget.draws)
        return refined(likelihood, x, q, family, Adam(rate), [steps], budget.draws, noise=2)[0]

    bounds = [float(after_steps(rate).bound.value.mean()) for rate in budget.rates]
    best = max(range(len(bounds)), key=bounds.__getitem__)
    return {"rate": budget.rates[best], "edge": best in (0, len(bounds) - 1), "steps": steps, "samples": len(x)}


def log_evidence_entry(likelihood: Likelihood, x: Num[Tensor, "B *X"], best: Bound, samples: int) -> Entry:
    """log p(x) per sample by the rule of ``gae.evidence.estimate``, with a wider copy of the best density as proposal.

    ``tight`` says whether it is log p(x) and not merely a lower bound: for 99 % of the samples the estimate is.
    """
    q = best.q
    assert q is not None
    evidence = estimate(likelihood, x, lambda _: widened(q), samples, batch_size=len(x))
    return {"values": evidence.log_p.tolist(), **reliability(evidence, samples)}


def reliability(evidence: Evidence, samples: int) -> Entry:
    """Method, error and reason of an estimate of log p(x), and whether it is tight.

    Effective sample size and Pareto k are those of the importance sampling, without annealed samples; None if there
    are none.
    """
    assert evidence.tight is not None
    counts = Counter(evidence.method)
    share = float(evidence.tight.double().mean())
    if counts["exact"] == len(evidence.log_p):
        return {"method": "exact", "tight": True}
    assert evidence.ess is not None and evidence.pareto_k is not None
    weighted = torch.tensor([method == "importance" for method in evidence.method])
    ess, shapes = evidence.ess[weighted], evidence.pareto_k[weighted]
    known = shapes[shapes.isfinite()]
    return {
        "method": "importance sampling",
        "methods": dict(counts),
        "reasons": list(evidence.reason),
        "draws": samples,
        "ess": float(ess.mean()) if len(ess) else None,
        "least_ess": float(ess.min()) if len(ess) else None,
        "largest_pareto_k": float(known.max()) if len(known) and not bool(shapes.isposinf().any()) else None,
        "sampling_se": float(evidence.standard_error.mean()),
        "reliable": share,
        "tight": share >= TIGHT,
    }


def code_use(q: Distribution, prior: Distribution) -> Entry:
    """Use of the code by the densities q(z|x) of a test set (B,), where collapse is visible.

    ``active`` counts the active units (``code_usage``), and is None for a single observation, which has no variance;
    ``kl_per_unit`` is KL(q(z_d|x) ‖ prior) of each element's marginal, in nats per sample, and ``kl`` that of the whole
    code, which is larger for a full covariance;
    ``square`` is E‖z‖² under q, ``prior_square`` that under the prior.

    >>> from torch.distributions import Independent, Normal
    >>> q = Independent(Normal(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.ones(2)), 1)
    >>> use = code_use(q, Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
    >>> use["active"], use["kl_per_unit"], use["square"]
    (1, [0.5, 0.0], 3.0)
    """
    per_unit = kl_per_dimension(q, prior).mean(0)
    return {
        "width": q.event_shape.numel(),
        "active": int(code_usage([q], prior).active.sum()) if len(q.mean) > 1 else None,
        "kl": float(per_unit.sum()) + float(total_correlation(q).mean()),
        "kl_per_unit": per_unit.tolist(),
        "square": float((q.mean.square() + q.variance).sum(-1).mean()),
        "prior_square": float((prior.mean.square() + prior.variance).sum()),
    }


@torch.no_grad()
def drawn_use(laws: Sequence[Distribution], prior: Distribution) -> Entry:
    """``width``, ``active`` and ``kl`` of ``code_use``, for densities q(z|x) of any kind in batches (B,).

    The KL is estimated from 64 draws of each density.

    >>> from torch.distributions import Independent, Normal
    >>> q = Independent(Normal(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.ones(2)), 1)
    >>> drawn_use([q], Independent(Normal(torch.zeros(2), torch.ones(2)), 1))["active"]
    1
    """
    draws = [(q, codes_from(q, USE_DRAWS)) for q in laws]
    kl = torch.cat([(q.log_prob(z) - prior.log_prob(z)).mean(0) for q, z in draws])
    return {
        "width": prior.event_shape.numel(),
        "active": int(code_usage(laws, prior).active.sum()) if len(kl) > 1 else None,
        "kl": float(kl.mean()),
    }
