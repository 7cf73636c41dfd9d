"""Checks of ``11_temperature.md``: smooth minima over the data, and point codes as cold posteriors."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.func import jacrev

from gae import nets
from gae.inference import Argmax, ClosedForm, Encoding
from gae.ledger.claims import Check, Relation, at_most, check, equal
from gae.likelihood import Gaussian, LinearMixture
from gae.objective import elbo, joint, mean, minimum, soft_minimum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BETAS = (0.1, 1.0, 10.0, 100.0)


@check
def check_D07() -> Check:
    """Distances to centres, written out, against gae's aggregates of gae's ``joint``."""
    mixture, x = LinearMixture(5, 0, (3,), means=torch.randn(5, 3)), 2 * torch.randn(40, 3)
    values = joint(Argmax()(mixture, x)).detach()
    d = 0.5 * torch.cdist(x, mixture.means).square().amin(1).detach() + math.log(5) + 1.5 * math.log(2 * math.pi)
    softened = torch.stack([soft_minimum(beta)(values) for beta in BETAS])
    summed = torch.stack([-(beta * d).logsumexp(0) / beta for beta in BETAS])
    direct = [-np.log(np.mean(np.exp(beta * d.numpy()))) / beta for beta in BETAS[:3]]
    drop = mean(values) - soft_minimum(1e-6)(values)

    hot, room = torch.tensor([1000.0, 2.0]), math.log(40)
    written = -(hot[:, None] * d).logsumexp(1)
    averaged, excess = written + room, hot * minimum(values) - written
    leaf = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(soft_minimum(2.0)(leaf), leaf)
    return Check(
        claim=[
            equal("−(1/β) log Σ exp(βd) = min(−d), β = 10⁶", -(1e6 * d).logsumexp(0) / 1e6, minimum(values), 1e-5),
            equal("−(1/β) log E exp(βd) = min(−d), β = 10⁶", soft_minimum(1e6)(values), -d.max(), 1e-5),
            at_most("−(1/β) log Σ exp(βd) ≤ min(−d)", summed, minimum(values)),
            at_most("min(−d) ≤ −(1/β) log E exp(βd)", -d.max(), softened),
            equal("the two are log N/β apart", softened - summed, room / torch.tensor(BETAS)),
        ],
        without=[
            *(
                equal(f"as printed: −log Σ exp(βd) = min(−d), β = {b:g}", w, minimum(values))
                for b, w in zip(hot, written, strict=True)
            ),
            equal("as printed: −log E exp(βd) = min(−d), β = 1000", averaged[0], minimum(values)),
        ],
        correction=[
            at_most("−(1/β) log E exp(βd) ≤ E(−d)", softened, mean(values)),
            equal("gae's soft_minimum = −(1/β) log E exp(βd), by plain sums", softened[:3], torch.tensor(direct)),
            at_most("it is non-increasing in β", softened[1:], softened[:-1]),
            equal("(E(−d) + (1/β) log E exp(βd))/β = ½ Var d, β = 10⁻⁶", drop / 1e-6, 0.5 * d.var(correction=0), 1e-3),
            equal(
                "−log E exp(βd) = β × soft_minimum",
                averaged,
                hot * torch.stack([soft_minimum(b)(values) for b in (1e3, 2)]),
            ),
            equal(
                "β min(−d) + log Σ exp(βd) = log Σ exp(β (d − max d))",
                excess,
                (hot[:, None] * (d - d.max())).exp().sum(1).log(),
            ),
            at_most("... from 0", 0.0, excess),
            at_most("... to log N", excess, room),
            equal("∂/∂d of the printed form = β × that of the corrected", -2 * (2 * d).softmax(0), -2 * slope),
        ],
    )


@check
def check_D33() -> Check:
    """Sums over components and closed forms for Gaussians against gae's engines and ``elbo`` of narrow densities."""
    return Check([*_discrete(), *_cold_continuous(), *_shrinking(), _curved()], correction=_negative_temperatures())


def figure_D07() -> "Figure":
    """The written form leaves the minimum; the corrected ones close in on it from both sides."""
    from matplotlib.figure import Figure

    d = torch.tensor([0.6, 1.0, 1.3, 1.7, 2.4])
    betas = torch.logspace(-1, 2, 100)
    summed = -torch.logsumexp(betas[:, None] * d, 1)
    softened = torch.stack([soft_minimum(float(beta))(-d) for beta in betas])
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(betas, summed, color="#CC79A7", ls=":", label="−log Σ exp(βd), as written")
    axes.semilogx(betas, summed / betas, color="#D55E00", ls="--", label="−(1/β) log Σ exp(βd)")
    axes.semilogx(betas, softened, color="#0072B2", label="−(1/β) log E exp(βd)")
    axes.axhline(float(-d.max()), color="black", lw=0.8, label="min(−d)")
    axes.axhline(float(-d.mean()), color="#009E73", ls="-.", label="E(−d)")
    axes.set(xlabel="β", ylabel="L", ylim=(-8, 1))
    axes.legend(fontsize="small", ncols=2)
    return figure


def _discrete() -> list[Relation]:
    model, x = LinearMixture(6, 0, (3,), learn_weights=True, means=torch.randn(6, 3)), torch.randn(20, 3)
    model.logits.data = torch.randn(6)
    heights = model.logits.log_softmax(0)[:, None] + Normal(model.means[:, None], 1.0).log_prob(x).sum(2)
    best, share = Argmax()(model, x), model.log_responsibilities(x)
    top, room = joint(best), math.log(6) / torch.tensor(BETAS)[:, None]
    soft, level = (
        torch.stack([(beta * h).logsumexp(0) / beta for beta in BETAS]) for h in (heights, heights[:1].expand(6, -1))
    )

    cold = 50 / heights.sort(0).values.diff(dim=0)[-1]  # 50 over the lead of the best component
    return [
        equal("(1/β) log Σ_k exp(βH_k) = max_k H_k, β = 10⁶", (1e6 * heights).logsumexp(0) / 1e6, top, 1e-5),
        at_most("max_k H_k ≤ (1/β) log Σ_k exp(βH_k)", top, soft),
        at_most("(1/β) log Σ_k exp(βH_k) ≤ max_k H_k + log K/β", soft, top + room),
        equal("which is attained where all H_k are equal", level, heights[0] + room),
        equal("β = 1: log p(x)", soft[1], model.log_evidence(x).log_p),
        equal("softmax(βH) at gae's argmax = 1, β = 50/lead", (cold * heights).softmax(0).gather(0, best.k), 1.0),
        equal("ELBO of softmax(βH) = max_k H_k, β = 50/lead", _bound(heights, cold), top),
        equal("ELBO of softmax(βH) = log p(x), β = 1", _bound(heights, torch.ones(20)), model.log_evidence(x).log_p),
        equal("max_k H_k = log p(x) + max_k log q(k|x)", top, model.log_evidence(x).log_p + share.amax(1)),
    ]


def _negative_temperatures() -> list[Relation]:
    """Tempered laws of a discrete code on the way to T = 1/β = −∞, and to T = 0 from below."""
    heights = 3 * torch.randn(6, 20)
    least, gap = heights.argmin(0, keepdim=True), heights.sort(0).values.diff(dim=0)[0]
    return [
        equal("T = −10⁹: softmax(H/T) is uniform", (heights / -1e9).softmax(0), 1 / 6, 1e-7),
        equal(
            "T → 0 from below: softmax(H/T) at argmin_k H = 1", (-50 / gap * heights).softmax(0).gather(0, least), 1.0
        ),
    ]


def _bound(heights: Tensor, beta: Tensor) -> Tensor:
    """Σ_k q(k) (H_k − log q(k)) for q = softmax(βH): the ELBO of a tempered posterior."""
    log_q = (beta * heights).log_softmax(0)
    return (log_q.exp() * (heights - log_q)).sum(0)


def _cold_continuous() -> list[Relation]:
    """The integral over a continuous code on a grid that narrows with β, against the peak and its curvature."""
    model, x, _, precision = _linear(3)
    best = ClosedForm()(model, x)
    side = torch.arange(-9.0, 9.0, 0.15)
    plane = torch.cartesian_prod(side, side)[:, None]
    soft, laplace, betas = [], [], (1.0, 100.0, 1e6)
    for beta in betas:
        heights = model.log_joint(x, best.z + plane / math.sqrt(beta))
        soft.append(((beta * heights).logsumexp(0) + 2 * math.log(0.15 / math.sqrt(beta))) / beta)
        laplace.append(joint(best) + (math.log(2 * math.pi / beta) - 0.5 * torch.logdet(precision)) / beta)
    return [
        equal("continuous z: (1/β) log ∫ exp(βH) dz = max_z H, β = 10⁶", soft[-1], joint(best), 1e-4),
        equal("the gap: (d/2β) log(2π/β) − (1/2β) log det Λ", torch.stack(soft), torch.stack(laplace)),
        equal("β = 1: log p(x)", soft[0], model.log_evidence(x).log_p),
    ]


def _shrinking() -> list[Relation]:
    """q = N(m, σ²I) around any m, in two dimensions: its entropy is log 2πeσ²."""
    model, x, rows, precision = _linear(10)
    centre, mean = torch.randn(10, 2), model.means[0].detach()
    at_centre = Normal(mean + centre @ rows, 0.5).log_prob(x).sum(1) + Normal(0.0, 1.0).log_prob(centre).sum(1)
    posterior = MultivariateNormal(torch.linalg.solve(precision, 4 * (x - mean) @ rows.T, left=False), None, precision)
    evidence = MultivariateNormal(mean, rows.T @ rows + 0.25 * torch.eye(4)).log_prob(x)

    scales = torch.tensor([1.0, 0.1, 1e-2, 1e-4, 1e-5])
    bounds = torch.stack([elbo(_narrow(model, x, centre, float(scale))) for scale in scales])
    expected = bounds - (2 * math.pi * math.e * scales**2).log()[:, None]
    divergence = [kl_divergence(MultivariateNormal(centre, scale**2 * torch.eye(2)), posterior) for scale in scales]
    lost = 0.5 * scales[:, None] ** 2 * precision.trace()
    return [
        equal("E_q log q(x, z) = log q(x, m), σ = 10⁻⁵", expected[-1], at_centre, 1e-7),
        equal("E_q log q(x, z) = log q(x, m) − ½σ² tr Λ, any σ", expected, at_centre - lost, 1e-9),
        equal("ELBO = log p(x) − KL(q ‖ p(z|x))", bounds, evidence - torch.stack(divergence), 1e-9),
        equal("ELBO falls by d log 10 from σ = 10⁻⁴ to 10⁻⁵", bounds[-2] - bounds[-1], 2 * math.log(10), 1e-5),
    ]


def _curved() -> Relation:
    """A decoder with tanh units, its expectation by Gauss–Hermite quadrature."""
    model, x, centre = Gaussian(nets.mlp(2, [6], 4, nn.Tanh), 2, 0.5), torch.randn(1, 4), torch.randn(2)
    nodes, weights = (torch.as_tensor(side) for side in np.polynomial.hermite_e.hermegauss(8))
    weight = torch.outer(weights, weights).flatten()

    def height(z: Tensor) -> Tensor:
        return model.log_joint(x, z.reshape(-1, 1, 2))[:, 0]

    expected = height(centre + 1e-3 * torch.cartesian_prod(nodes, nodes)) @ weight / weight.sum()
    curvature = jacrev(jacrev(lambda z: height(z)[0]))(centre).trace()
    rate = (expected - height(centre)) / 1e-6
    return equal("curved decoder: (E_q log q(x, z) − log q(x, m))/σ² = ½ Δ log q(x, m)", rate, 0.5 * curvature, 1e-4)


def _linear(size: int) -> tuple[LinearMixture, Tensor, Tensor, Tensor]:
    """A linear decoder with noise ½, data, the rows of its loadings, and Λ = −∇² log q(x, z)."""
    model = LinearMixture(1, 2, (4,), scale=0.5)
    model.means.data, model.loadings.data = torch.randn(1, 4), model.loadings * (0.5 + torch.rand(2, 1))
    rows = model.loadings[0].detach()
    return model, torch.randn(size, 4), rows, torch.eye(2) + 4 * rows @ rows.T


def _narrow(model: LinearMixture, x: Tensor, centre: Tensor, scale: float) -> Encoding:
    """N(centre, scale² I) by four points with its mean and covariance: exact for quadratic log densities."""
    shifts = scale * math.sqrt(2) * torch.cat([torch.eye(2), -torch.eye(2)])
    q, z = Independent(Normal(centre, scale), 1), centre + shifts[:, None]
    return Encoding(z, None, model.log_joint(x, z), q.log_prob(z), q, model.prior, "four points")
