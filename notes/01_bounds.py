"""Checks of ``01_bounds.md``: bounds on the evidence of a decoder-only model."""

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import normalize

from gae import likelihood
from gae.inference import Argmax, Ascent, ClosedForm, Encoding, Enumerate, GaussNewton
from gae.inference.base import Code
from gae.inference.starts import Given
from gae.ledger.claims import Check, at_most, check, equal, estimate
from gae.likelihood import Flat, LinearMixture
from gae.objective import iwae, joint, logsumexp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (3, 4, 6)  # values of z in the random tables
SYMBOLS = 5  # values of x


@check
def check_D01() -> Check:
    """A table of x and y, summed entry by entry, against expectations through gae's ``Categorical`` decoder."""
    with_link, without_link, game = [], [], []
    for size in SIZES:
        data, decoder = _table(SYMBOLS), _table(size, SYMBOLS)
        encoder, prior = _table(SYMBOLS, size), _table(size)
        with_link.append((_negative_divergence(data, encoder @ decoder), data @ _recoded(encoder, decoder)))
        entropy = -(data * data.log()).sum()
        marginal = (data * (data / (prior @ decoder)).log()).sum()
        same_encoder = prior.expand(SYMBOLS, size)
        without_link.append((_negative_divergence(data, same_encoder @ decoder), -entropy - marginal))
        game.append(_game(data, prior @ decoder))
    return Check(
        [
            equal("−KL of the self-map = E log Σ_z q_e(z|x) q_r(x|z)", *_columns(with_link)),
            equal("without a link x→z: −H(p_data) − KL(p_data ‖ q)", *_columns(without_link)),
            equal("a GAN of the same two laws: max_D = 2 JS(p_data, q) − 2 log 2", *_columns(game)),
        ]
    )


@check
def check_D02() -> Check:
    """Discrete codes by ``Argmax`` against a sum written out; the continuous case by ascent against quadrature."""
    mixture, x = LinearMixture(5, 0, (3,), means=torch.randn(5, 3)), 1.5 * torch.randn(40, 3)
    centres = torch.stack([Normal(mean, 1.0).log_prob(x).sum(1) - math.log(5) for mean in mixture.means])

    example, seen = _example(), torch.tensor([[0.5, 0.7]])
    grid = torch.linspace(-3, 3, 4001)
    heights = example.log_joint(seen, grid.reshape(-1, 1, 1)).squeeze(1)
    integral = heights.logsumexp(0) + math.log(float(grid[1] - grid[0]))

    wide, dim = LinearMixture(1, 3, (6,), scale=4.0), 6
    narrow = LinearMixture(1, 3, (6,), scale=0.3)
    y = torch.randn(20, dim)
    return Check(
        claim=[
            at_most("max_k log q(k) q(x|k) ≤ log Σ_k", joint(Argmax()(mixture, x)), centres.logsumexp(0)),
            equal("gae's log p(x) = the sum written out", mixture.log_evidence(x).log_p, centres.logsumexp(0)),
        ],
        without=[at_most("continuous z: max_z log q(z) q(x|z) ≤ log p(x)", _highest(example, seen), integral)],
        correction=[
            equal("log p(x) = max + d/2 log 2π − ½ log det Λ", _dense_evidence(narrow, y), _laplace(narrow, y), 1e-9),
            equal("the same of the example", integral, _laplace(example, seen), 1e-9),
            equal("log p(x) of the example, by a dense covariance", integral, _dense_evidence(example, seen), 1e-9),
            at_most("the bound where that correction is ≥ 0", _highest(wide, y), _dense_evidence(wide, y)),
        ],
    )


@check
def check_D04() -> Check:
    """Partial sums over the branches of ``Enumerate``; importance weights by exhaustive enumeration and by sampling."""
    mixture, x = LinearMixture(6, 0, (2,), means=torch.randn(6, 2)), torch.randn(30, 2)
    branches = Enumerate()(mixture, x)
    log_joint = branches.log_joint.sort(0, descending=True).values
    partial = log_joint.logcumsumexp(0)
    evidence = torch.stack([Normal(m, 1.0).log_prob(x).sum(1).exp() / 6 for m in mixture.means]).sum(0).log()
    copies = log_joint[:1].expand(7, -1).logsumexp(0)

    model, seen = LinearMixture(1, 2, (4,), scale=0.5), torch.randn(4)
    draws = _importance_bounds(model, seen, samples=500, replicates=100)
    unweighted = model.log_joint(seen.unsqueeze(0), torch.randn(10_000, 1, 2)).logsumexp(0)
    weights = log_joint[:3, 0].exp()
    expected, log_p = _exact_iwae(weights), weights.sum().log()
    uniform = torch.full((3,), 1 / 3)
    divergence = (uniform * (uniform / (weights / weights.sum())).log()).sum()
    return Check(
        claim=[
            equal("all K distinct codes: logsumexp = log p(x)", logsumexp(branches), evidence),
            at_most("non-decreasing in n", partial[:-1], partial[1:], 0.0),
            at_most("≥ max", joint(Argmax()(mixture, x)), partial[1], 0.0),
        ],
        without=[
            at_most("seven copies of one code ≤ log p(x)", copies, evidence),
            at_most(
                "10,000 draws of a continuous z ≤ log p(x)", unweighted, model.log_evidence(seen.unsqueeze(0)).log_p
            ),
        ],
        correction=[
            at_most("E[L_n] non-decreasing, enumerated", expected[:-1], expected[1:]),
            at_most("E[L_n] ≤ log p(x), enumerated", expected, log_p),
            equal("E[L_1] = log p(x) − KL(proposal ‖ q(z|x))", expected[0], log_p - divergence),
            estimate("E[L_n] → log p(x), n = 500", draws, _dense_evidence(model, seen.unsqueeze(0))),
        ],
    )


@check
def check_D06() -> Check:
    """Finite tables with parameters; gradients of both sides by autodiff through different expressions."""
    data = _table(SYMBOLS)
    prior = torch.randn(4, requires_grad=True)
    decoder = (torch.randn(4, SYMBOLS) + 4 * torch.eye(4, SYMBOLS)).requires_grad_()  # codes can be told from x
    log_joint = prior.log_softmax(0)[:, None] + decoder.log_softmax(1)  # (Z, X)
    log_x = log_joint.logsumexp(0)
    log_posterior = log_joint - log_x

    encoder = _table(SYMBOLS, 4)
    log_self = encoder.T.log() + decoder.log_softmax(1)  # log q(y=x, z|x)
    log_hit = torch.stack([torch.log(encoder[i] @ decoder.softmax(1)[:, i]) for i in range(SYMBOLS)])
    self_bound, self_posterior = log_self.amax(0), (log_self - log_self.logsumexp(0)).amax(0)

    bound, shortened = data @ log_joint.amax(0), data @ log_posterior.amax(0)
    dropped = _gradient(shortened - bound, prior, decoder)
    fisher = (log_posterior.detach().exp() * log_joint).sum(0)  # has the gradient of log q(x), by Fisher's identity
    return Check(
        claim=[
            equal("E max_z log q(y=x, z|x) = E max_z log q(z|x)", data @ self_bound, shortened),
            at_most("so that E max_z log q(z|x) ≤ L", shortened, data @ log_hit),
            equal("∇c = 0", dropped, 0.0),
        ],
        correction=[
            at_most("E max_z log q(y=x, z|x) ≤ L", data @ self_bound, data @ log_hit),
            equal(
                "per x: max_z log q(y=x, z|x) = max_z log q(z|x, y=x) + log q(y=x|x)",
                self_bound,
                self_posterior + log_hit,
            ),
            at_most("so the step to the posterior is a ≤", self_bound, self_posterior),
            equal("∇c = −∇ E log q(x)", dropped, -_gradient(data @ fisher, prior, decoder)),
            equal("E max_z log q(x, z) = E max_z log q(z|x) + E log q(x)", bound, shortened + data @ log_x),
            at_most("a bound of the other view: E max_z log q(x, z) ≤ E log q(x)", bound, data @ log_x),
            equal("the table is one: Σ_x q(x) = 1", log_x.exp().sum(), 1.0),
        ],
    )


@check
def check_D08() -> Check:
    """gae's mixture with weights f gives LEOP; EOL, LOE and both gaps are written out."""
    means, f, x = torch.randn(4, 3), torch.rand(4).softmax(0), 2 * torch.randn(50, 3)
    centre, log_parts = f @ means, _log_parts(x, means)
    leop, eol, loe = _mixture(means, f).log_evidence(x).log_p, f @ log_parts, _log_normal(x, centre)
    eop = leop.exp()
    divergence = f @ (f[:, None] / (f.log()[:, None] + log_parts).softmax(0)).log()
    spread = 0.5 * f @ (means - centre).square().sum(1)
    alone = LinearMixture(1, 0, (3,), means=means[2:3])

    far, precision = 10 * x, torch.tensor([4.0, 1.0, 0.5, 0.25])
    printed, far_eol = -_square(far - centre), f @ _log_parts(far, means)
    heavy = ((f * precision) @ means / (f @ precision)).requires_grad_()
    (slope,) = torch.autograd.grad(f @ _log_parts(heavy[None], means, precision**-0.5), heavy)
    beyond = (centre + 1e5 * (heavy.detach() - centre))[None]
    unequal = f @ _log_parts(beyond, means, precision**-0.5)

    a = 1.5 + 2.5 * torch.rand(())
    pair = a * normalize(torch.randn(1, 3)) * torch.tensor([[1.0], [-1.0]])
    even = torch.tensor([0.5, 0.5])
    places = torch.stack([torch.zeros(3), pair[0]])
    midway, at_centre = _mixture(pair, even).log_evidence(places).log_p
    loe_midway, loe_at_centre = _log_normal(places, even @ pair)
    return Check(
        claim=[
            at_most("EOL ≤ LEOP", eol, leop),
            at_most("EOL ≤ LOE", eol, loe),
            at_most("EOL ≤ EOP", eol, eop),
        ],
        without=[
            at_most("constants in EOL but not in LOE: EOL ≤ LOE", far_eol, printed),
            at_most("unequal scales: EOL ≤ LOE", unequal, _log_normal(beyond, centre, (f @ precision) ** -0.5)),
        ],
        correction=[
            equal("EOP = Σ_k f_k N(x; A_k, I)", eop, f @ log_parts.exp()),
            equal("LEOP − EOL = KL(f ‖ q(k|x))", leop - eol, divergence),
            equal("LOE − EOL = ½ Σ_k f_k ‖A_k − Σ_j f_j A_j‖²", loe - eol, spread),
            equal(
                "EOL − printed LOE = ½‖x − Σ_k f_k A_k‖² − ½ Σ_k f_k ‖A_k − Σ_j f_j A_j‖² − (D/2) log 2π",
                far_eol - printed,
                0.5 * _square(far - centre) - spread - 1.5 * math.log(2 * math.pi),
            ),
            equal("unequal scales: EOL is greatest at the mean weighted by f_k/σ_k²", slope, 0.0),
            equal("all equal at a vertex of the simplex", log_parts[2], alone.log_evidence(x).log_p),
            equal("centres ±a, x = 0: LOE is larger by ½a²", loe_midway - midway, 0.5 * a**2),
            equal(
                "centres ±a, x = a: LEOP is larger by ½a² + log ½(1 + e^(−2a²))",
                at_centre - loe_at_centre,
                0.5 * a**2 + ((1 + (-2 * a**2).exp()) / 2).log(),
            ),
        ],
    )


@check
def check_D51() -> Check:
    """gae's ascent from n starts; E[L_n] of gae's ``iwae`` by quadrature, and by an integral for any n."""
    model, x, counts = LinearMixture(1, 2, (4,), scale=0.5), torch.randn(12, 4), (2, 8)
    restarts = [Ascent(Given(Code(torch.randn(n, 12, 2))), GaussNewton(), max_steps=3)(model, x) for n in counts]
    sums = torch.stack([code.log_joint.logsumexp(0) for code in restarts])
    evidence, rows = _dense_evidence(model, x), model.loadings.detach()[0]
    excess = sums - evidence
    refused = torch.tensor([_refused(code) for code in (*restarts, Enumerate()(LinearMixture(3, 0, (4,)), x))])
    highest = evidence - math.log(2 * math.pi) + 0.5 * torch.logdet(torch.eye(2) + 4 * rows @ rows.T)  # by D02

    narrow, seen = LinearMixture(1, 1, (3,), scale=0.5), torch.randn(1, 3)
    exact = ClosedForm()(narrow, seen).q
    assert isinstance(exact, MultivariateNormal)
    posterior = Normal(exact.mean.flatten(), exact.stddev.flatten())
    proposal = Normal(posterior.loc + 0.3 * posterior.scale, 1.5 * posterior.scale)
    log_p = _dense_evidence(narrow, seen)
    few = torch.stack([_expected_iwae(narrow, seen, proposal, n) for n in (1, 2, 3)])
    sizes = torch.tensor([1, 2, 3, 10, 30, 100, 200])
    gaps = _gaps(narrow, seen, proposal, log_p, sizes)
    scaled = (sizes * gaps)[-2:]
    variance = _second_moment(posterior, proposal) - 1
    return Check(
        claim=[
            equal("codes of 8 starts: logsumexp = log p(x)", sums[1], evidence),
            at_most("8 starts come nearer than 2", excess[1].abs(), excess[0].abs()),
        ],
        correction=[
            equal(
                "logsumexp = max + log n: nothing but the count",
                excess,
                highest + torch.tensor(counts).log()[:, None] - evidence,
            ),
            equal("gae's logsumexp refuses them, and no enumeration", refused, torch.tensor([1.0, 1.0, 0.0])),
            equal(
                "log p(x) − E[L_n] of gae's iwae = ∫ (E exp(−t w̄) − exp(−t)) dt/t, n = 1, 2, 3",
                log_p - few,
                gaps[:3],
                2e-5,
            ),
            equal("log p(x) − E[L_1] = KL(proposal ‖ q(z|x))", gaps[0], kl_divergence(proposal, posterior)),
            at_most("E[L_n] increases, n = 1 … 200", gaps[1:], gaps[:-1]),
            at_most("E[L_n] ≤ log p(x)", 0.0, gaps),
            equal(
                "n (log p(x) − E[L_n]) → ½ Var(w)/p(x)², extrapolated from n = 100 and 200",
                2 * scaled[1] - scaled[0],
                0.5 * variance,
                1e-5,
            ),
        ],
    )


def figure_D02() -> "Figure":
    """The joint density of the counterexample rises above its own integral."""
    from matplotlib.figure import Figure

    model, x = _example().float(), torch.tensor([[0.5, 0.7]])
    z = torch.linspace(0.15, 0.6, 400)
    with torch.no_grad():
        heights, evidence = model.log_joint(x, z.reshape(-1, 1, 1)).squeeze(1), float(model.log_evidence(x).log_p)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(z, heights, color="#0072B2", label="log q(z) q(x|z)")
    axes.axhline(evidence, color="#D55E00", ls="--", label="log p(x) = log ∫ q(z) q(x|z) dz")
    axes.set(xlabel="z", ylabel="nats", ylim=(-6, 2))
    axes.legend()
    return figure


def _table(*shape: int) -> Tensor:
    """A random probability table: its last dimension sums to 1."""
    return torch.randn(*shape).softmax(-1)


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    left, right = zip(*pairs, strict=True)
    return torch.stack(left), torch.stack(right)


def _negative_divergence(data: Tensor, mapped: Tensor) -> Tensor:
    """−KL(p(x) δ(y|x) ‖ p(x) q(y|x)) over the whole table of pairs, with 0 log 0 = 0."""
    truth, model = torch.diag(data), data[:, None] * mapped
    return (torch.special.xlogy(truth, model) - torch.special.xlogy(truth, truth)).sum()


def _game(data: Tensor, model: Tensor) -> tuple[Tensor, Tensor]:
    """The value of the best classifier, found by Newton's method on its logits, and 2 JS(data, model) − 2 log 2."""
    logits = torch.zeros_like(data)
    for _ in range(50):
        found = logits.sigmoid()
        logits = logits + (data - (data + model) * found) / ((data + model) * found * (1 - found))
    value = data @ logits.sigmoid().log() + model @ (-logits).sigmoid().log()
    middle = (data + model) / 2
    divergence = 0.5 * (data @ (data / middle).log() + model @ (model / middle).log())
    return value, 2 * divergence - 2 * math.log(2)


def _recoded(encoder: Tensor, decoder: Tensor) -> Tensor:
    """log Σ_z q_e(z|x) q_r(x|z) for every x, with one-hot codes through gae's ``Categorical``."""
    network = nn.Linear(len(decoder), SYMBOLS, bias=False)
    network.weight.data = decoder.log().T
    model = likelihood.Categorical(network, len(decoder), Flat(len(decoder)))
    codes = torch.eye(len(decoder)).unsqueeze(1).expand(-1, SYMBOLS, -1)
    return (encoder.log().T + model.log_joint(torch.arange(float(SYMBOLS)), codes)).logsumexp(0)


def _example() -> LinearMixture:
    """x = (1, 2)ᵀ z + 0.1 ε."""
    model = LinearMixture(1, 1, (2,), scale=0.1)
    model.loadings.data = torch.tensor([[[1.0, 2.0]]])
    return model


def _highest(model: LinearMixture, x: Tensor) -> Tensor:
    """max_z log q(z) q(x|z), by ascent."""
    return joint(Ascent(step=GaussNewton(), max_steps=2)(model, x))


def _dense_evidence(model: LinearMixture, x: Tensor) -> Tensor:
    """log N(x; mean, WWᵀ + σ² I) by the D × D covariance."""
    rows = model.loadings[0].detach()
    covariance = rows.T @ rows + (2 * model.log_scale[0]).exp() * torch.eye(rows.shape[1])
    return MultivariateNormal(model.means[0].detach(), covariance).log_prob(x)


def _laplace(model: LinearMixture, x: Tensor) -> Tensor:
    """The maximum and the volume of its peak, with Λ by autodiff."""
    precision = -torch.autograd.functional.hessian(
        lambda z: model.log_joint(x[:1], z.reshape(1, 1, -1)).sum(), torch.zeros(model.latent_shape)
    )
    return _highest(model, x) + 0.5 * len(precision) * math.log(2 * math.pi) - 0.5 * torch.logdet(precision)


def _importance_bounds(model: LinearMixture, x: Tensor, samples: int, replicates: int) -> Tensor:
    """Independent values of L_n (replicates,), by gae's ``iwae`` under a proposal wider than the posterior."""
    with torch.no_grad():
        exact = ClosedForm()(model, x.expand(replicates, -1)).q
        wide = MultivariateNormal(exact.mean + 0.1, scale_tril=1.3 * exact.scale_tril)
        z = wide.sample((samples,)).flatten(0, 1)
        log_joint, log_q = model.log_joint(x.expand(replicates, -1), z), wide.log_prob(z.unflatten(0, (samples, 1)))
        return iwae(Encoding(z, None, log_joint, log_q.flatten(0, 1), wide, model.prior, "proposal"))


def _exact_iwae(weights: Tensor) -> Tensor:
    """E[L_n] for n = 1 … 4, over a discrete z with joint probabilities ``weights`` and a uniform proposal."""
    size, expected = len(weights), []
    for n in range(1, 5):
        draws = torch.tensor(list(itertools.product(range(size), repeat=n)))
        expected.append((weights[draws] * size).mean(1).log().mean())
    return torch.stack(expected)


def _expected_iwae(model: LinearMixture, x: Tensor, proposal: Normal, n: int) -> Tensor:
    """E[L_n] of gae's ``iwae`` by Gauss–Hermite quadrature over the n draws of a one-dimensional code."""
    nodes, weights = (torch.as_tensor(side) for side in np.polynomial.hermite_e.hermegauss(16))
    z = (proposal.loc + proposal.scale * torch.cartesian_prod(*[nodes] * n)).reshape(-1, n).T
    weight = torch.cartesian_prod(*[weights / weights.sum()] * n).reshape(-1, n).prod(1)
    return weight @ iwae(_drawn(model, x, proposal, z))


def _gaps(model: LinearMixture, x: Tensor, proposal: Normal, log_p: Tensor, n: Tensor) -> Tensor:
    """log p(x) − E[L_n] from log S = ∫ (e^(−t) − e^(−tS)) dt/t, by trapezoidal rules in log t and in the code."""
    spots = torch.linspace(-12, 12, 801)
    code = _drawn(model, x, proposal, (proposal.loc + proposal.scale * spots)[None])
    assert code.log_q is not None
    ratio, density = (code.log_joint - code.log_q - log_p).exp()[0], Normal(0.0, 1.0).log_prob(spots).exp()
    t = torch.arange(-30, 40, 0.25).exp()
    transform = (-t[:, None] * ratio).exp() @ density / density.sum()  # E exp(−t w / p(x)), for one draw
    return 0.25 * (transform ** n[:, None] - (-n[:, None] * t).exp()).sum(1)


@torch.no_grad()
def _drawn(model: LinearMixture, x: Tensor, proposal: Normal, z: Tensor) -> Encoding:
    """Codes z (S, B) of one observation as gae's encoding of B of them."""
    log_joint = model.log_joint(x.expand(z.shape[1], -1), z.unsqueeze(2))
    return Encoding(z.unsqueeze(2), None, log_joint, proposal.log_prob(z), None, model.prior, "proposal")


def _second_moment(posterior: Normal, proposal: Normal) -> Tensor:
    """E_q[(p/q)²] for normal p and wider normal q: the integral of p²/q, a Gaussian in closed form."""
    p, q = posterior.scale.square(), proposal.scale.square()
    return q / (p * (2 * q - p)).sqrt() * ((posterior.loc - proposal.loc).square() / (2 * q - p)).exp()


def _refused(code: Encoding) -> bool:
    try:
        logsumexp(code)
    except ValueError:
        return True
    return False


def _mixture(means: Tensor, weights: Tensor) -> LinearMixture:
    model = LinearMixture(len(means), 0, means.shape[1:], means=means, learn_weights=True)
    model.logits.data = weights.log()
    return model


def _log_normal(x: Tensor, mean: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    return Normal(mean, scale).log_prob(x).sum(1)


def _log_parts(x: Tensor, means: Tensor, scales: Tensor | None = None) -> Tensor:
    """log N(x; A_k, σ_k² I), (K, B)."""
    scales = torch.ones(len(means)) if scales is None else scales
    return torch.stack([_log_normal(x, mean, scale) for mean, scale in zip(means, scales, strict=True)])


def _square(x: Tensor) -> Tensor:
    return x.square().sum(1)


def _gradient(value: Tensor, *parameters: Tensor) -> Tensor:
    found = torch.autograd.grad(value, parameters, retain_graph=True)
    return torch.cat([part.flatten() for part in found])
