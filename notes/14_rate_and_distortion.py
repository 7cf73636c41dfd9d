"""Checks of ``14_rate_and_distortion.md``: what a code costs, what it loses, and a coder that pays exactly that."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from gae.analysis.rate_distortion import rate_distortion
from gae.autoencoder import Autoencoder
from gae.inference import Amortized, ClosedForm, Encoding, Enumerate, Nearest
from gae.ledger.claims import Check, at_most, check, equal, estimate
from gae.likelihood import Categorical, Codebook, Flat, Gaussian, LinearMixture
from gae.objective import elbo
from gae.systems import NormalEncoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLOTS = 64  # of a coding table: its probabilities are multiples of 1/64
CODES, SYMBOLS = 4, 5  # values of z and of x in the tables
SEED_BITS = 64  # of a coder's first state


@check
def check_D48() -> Check:
    """Enumerated tables and a coder with integer states against gae's ``elbo``; quadrature against gae's rates."""
    tables = _random_tables()
    data, q, p = tables.data.double() / SLOTS, tables.encoder.double() / SLOTS, tables.decoder.double() / SLOTS
    marginal = data @ q
    rate = data @ (q * (q * CODES).log()).sum(1)
    loss = -data @ (q * p.T.log()).sum(1)
    kept = data @ (q * (q / marginal).log()).sum(1)
    floor = -(data * data.log()).sum() - kept
    reverse = data[:, None] * q / marginal
    misfit = (data[:, None] * q * (reverse / p.T).log()).sum()
    bound = _table_elbo(tables)
    run = _bits_back(tables, torch.arange(SYMBOLS).repeat_interleave(tables.data).repeat(16))
    controls = (bound[run.x] - bound[run.x].mean()) / math.log(2)  # every x occurs as often as the table says
    coarse, fine = _point_rate(1e-3), _point_rate(1e-6)
    stuck, toll = _equal_symbols(300, fresh=False)[100:], -_table_elbo(_coin()) / math.log(2)

    line, x = LinearMixture(1, 1, (3,), scale=0.6), 1.3 * torch.randn(20, 3)
    line.loadings.data = torch.randn(1, 1, 3)
    exact = rate_distortion(Autoencoder(line, ClosedForm()), x, draws=4)
    posterior = line.posterior(x)
    gaussian_rate = exact.rate.mean()
    information, aggregate = _information(posterior.mean.reshape(-1).detach(), posterior.stddev.reshape(-1).detach())
    rows = line.loadings[0].detach()
    covariance = rows.T @ rows + 0.36 * torch.eye(3)
    own = math.sqrt(3) * torch.linalg.cholesky(covariance).T
    own_rate = rate_distortion(Autoencoder(line, ClosedForm()), own, draws=4).rate.mean()
    evidence = MultivariateNormal(torch.zeros(3), covariance).log_prob(x)
    return Check(
        claim=[
            equal("−ELBO = D + R, tables", -data @ bound, loss + rate),
            equal("−ELBO = D + R, exact Gaussian codes", -exact.bound, -evidence),
            at_most("R ≥ I(x; z), tables", kept, rate),
            at_most("R ≥ I(x; z), Gaussian codes", information, gaussian_rate),
            at_most("lossy: D ≥ H(x) − I(x; z)", floor, loss),
            estimate(
                "bits-back, fresh bits: bits per sample = −ELBO/log 2", run.bits + controls, (loss + rate) / math.log(2)
            ),
            equal("the decoder's x = x", run.decoded, run.x, 0.0),
            equal("and it returns the borrowed bits", float(run.returned), 1.0, 0.0),
        ],
        without=[
            equal("a point code: R at σ = 10⁻³ = R at σ = 10⁻⁶", coarse, fine),
            equal("bits read back as soon as written: bits per sample = −ELBO/log 2", stuck, toll),
        ],
        correction=[
            equal("R − I(x; z) = KL(aggregate ‖ prior), tables", rate - kept, marginal @ (marginal * CODES).log()),
            equal("the same, Gaussian codes", gaussian_rate - information, aggregate, 1e-8),
            equal("D − H(x) + I(x; z) = E KL(q(x|z) ‖ p(x|z))", loss - floor, misfit),
            equal("data of the model: R = I(x; z) = ½ log(1 + ‖w‖²/σ²)", own_rate, _capacity(rows, 0.36)),
            equal(
                "bits of the coder = Σ log₂ q(z|x) − log₂ p(x, z) of its codes", run.bits, _content(tables, run), 1e-9
            ),
            equal("point codes: R rises by −Δ log σ", fine - coarse, 3 * math.log(10), 1e-5),
            equal("q = (¾, ¼), prior and decoder ½: −ELBO/log 2 = ¾ log₂ 3", toll, 0.75 * math.log2(3)),
            equal("bits read back: z stays at 0, at log₂ 3 bits", stuck, math.log2(3), 1e-9),
        ],
    )


@check
def check_D50() -> Check:
    """gae's autoencoder of two written-out ReLU networks against the points, their order, and nearest neighbours."""
    points, width = 24, 8
    x, new = torch.randn(points, width), torch.randn(400, width)
    order, encoder, decoder = _line_through(x)
    head = Gaussian(decoder, 1, prior=Flat(1))
    model = Autoencoder(head, Amortized(encoder))
    stored = Autoencoder(LinearMixture(points, 0, (width,), means=x), Nearest())
    codes, code = model.encode(x).z.detach(), model.encode(new).z[0].detach()
    lookup = head.outputs(code.round()).detach()
    nearest = torch.cdist(new, x).square().amin(1)
    flat, looked_up, direct = (_errors(new, guess).mean() for guess in (x.mean(0), lookup, model.reconstruct(new)))
    middles = head.outputs(torch.arange(1.0, points)[:, None] + 0.5).detach()
    between = (x[order][1:] + x[order][:-1]) / 2
    return Check(
        claim=[
            equal("one number per point: reconstructions = the N points", model.reconstruct(x), x, 1e-6),
            equal("the codes are 1, …, N", codes.flatten().sort().values, torch.arange(1.0, points + 1), 1e-6),
            equal("D11: a model of N means stores the same", stored.reconstruct(x), x),
        ],
        correction=[
            equal("new points: that model gives the nearest neighbour", _errors(new, stored.reconstruct(new)), nearest),
            at_most("new points: no lookup is nearer than the nearest neighbour", nearest, _errors(new, lookup), 1e-6),
            at_most("new points: the training mean has the lower error", flat, looked_up),
            at_most("and than the network's own output", flat, direct),
            equal("a code between two points: the middle of two unrelated points", middles, between, 1e-6),
        ],
    )


def figure_D48() -> "Figure":
    """Bits per sample of the two coders against the bound."""
    from matplotlib.figure import Figure

    count = torch.arange(1, 301)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, colour, fresh in (("fresh bits", "#0072B2", True), ("bits read back", "#D55E00", False)):
        axes.plot(count, _equal_symbols(300, fresh).cumsum(0) / count, color=colour, label=name)
    axes.axhline(0.75 * math.log2(3), color="0.4", ls="--", label="−ELBO/log 2")
    axes.set(xlabel="samples", ylabel="bits per sample", ylim=(0.0, 2.0))
    axes.legend()
    return figure


def _information(mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """I(x; z) and KL(aggregate ‖ prior) of codes N(mean, σ²) of equally likely x, by sums over a grid."""
    z = torch.linspace(-16.0, 16.0, 4001)
    log_q = Normal(mean[:, None], sigma[:, None]).log_prob(z)
    log_aggregate = log_q.logsumexp(0) - math.log(len(mean))
    step = z[1] - z[0]
    information = (log_q.exp() * (log_q - log_aggregate)).sum(1).mean() * step
    return information, (log_aggregate.exp() * (log_aggregate - Normal(0.0, 1.0).log_prob(z))).sum() * step


def _point_rate(sigma: float) -> Tensor:
    """gae's rate of a code with the standard deviation σ in one dimension."""
    network = nn.Linear(3, 2)
    network.weight.data.zero_()
    network.bias.data = torch.tensor([0.3, math.log(sigma)])
    model = Autoencoder(Gaussian(nn.Linear(1, 3), 1), Amortized(NormalEncoder(network)))
    return rate_distortion(model, torch.zeros(1, 3), draws=4).rate


def _capacity(rows: Tensor, variance: float) -> Tensor:
    """½ log det(I + W Wᵀ/σ²)."""
    return 0.5 * torch.logdet(torch.eye(len(rows)) + rows @ rows.T / variance)


class _Tables(NamedTuple):
    """Counts out of SLOTS: p_data(x), q(z|x) (x, z) and p(x|z) (z, x); the prior of z is uniform."""

    data: Tensor
    encoder: Tensor
    decoder: Tensor


def _random_tables() -> _Tables:
    return _Tables(_counts(1, SYMBOLS)[0], _counts(SYMBOLS, CODES), _counts(CODES, SYMBOLS))


def _counts(rows: int, columns: int) -> Tensor:
    """Random positive counts whose rows sum to SLOTS."""
    law = torch.randn(rows, columns).softmax(1)
    extra = law.multinomial(SLOTS - columns, replacement=True)
    return 1 + torch.stack([row.bincount(minlength=columns) for row in extra])


def _table_elbo(tables: _Tables) -> Tensor:
    """gae's ELBO of every x: a ``Categorical`` over codebook vectors, with a code for each slot of q(z|x)."""
    symbols, (codes, values) = len(tables.encoder), tables.decoder.shape
    book = Codebook(codes, 1, codes)
    book.vectors.copy_(torch.eye(codes))
    logits = nn.Linear(codes, values, bias=False)
    logits.weight.data = (tables.decoder.double() / SLOTS).log().T
    model = Categorical(nn.Sequential(nn.Flatten(), logits), (1, codes), prior=book)
    x = torch.arange(float(symbols))
    every = Enumerate()(model, x)
    slots = torch.stack([torch.arange(codes).repeat_interleave(row) for row in tables.encoder], 1)  # (SLOTS, x)
    log_q = (tables.encoder.double() / SLOTS).log().T.gather(0, slots)
    z = every.z[slots, torch.arange(symbols)]
    return elbo(Encoding(z, None, every.log_joint.gather(0, slots), log_q, None, model.prior, "slots")).detach()


def _push(state: int, counts: Sequence[int], symbol: int) -> int:
    """Writes a symbol of probability counts/SLOTS on a stack of bits (asymmetric numeral systems, Duda 2009)."""
    whole, rest = divmod(state, counts[symbol])
    return whole * SLOTS + sum(counts[:symbol]) + rest


def _pop(state: int, counts: Sequence[int]) -> tuple[int, int]:
    """Reads a symbol: the inverse of ``_push``, and a draw of probability counts/SLOTS from a stack of random bits."""
    whole, slot = divmod(state, SLOTS)
    symbol = 0
    while slot >= counts[symbol]:
        slot, symbol = slot - counts[symbol], symbol + 1
    return whole * counts[symbol] + slot, symbol


def _random_bits(count: int) -> int:
    return int("1" + "".join(map(str, torch.randint(2, (count,)).tolist())), 2)


class _Run(NamedTuple):
    """A message of bits-back coding: its symbols, their codes, bits per symbol, and what the decoder returns."""

    x: Tensor
    z: Tensor
    bits: Tensor
    decoded: Tensor
    returned: bool


def _bits_back(tables: _Tables, x: Tensor, fresh: bool = True) -> _Run:
    """Encodes symbols and decodes them again, with codes drawn from fresh bits or from the message written so far."""
    q, p = tables.encoder.tolist(), tables.decoder.tolist()
    prior, source = [SLOTS // len(p)] * len(p), int(fresh)
    stacks = [_random_bits(SEED_BITS), _random_bits(SEED_BITS + 6 * len(x))]  # the message, and bits to borrow
    start, codes, sizes, decoded = list(stacks), [], [sum(map(math.log2, stacks))], []
    for symbol in x.tolist():
        stacks[source], code = _pop(stacks[source], q[symbol])
        stacks[0] = _push(_push(stacks[0], p[code], symbol), prior, code)
        codes.append(code)
        sizes.append(sum(map(math.log2, stacks)))
    for _ in codes:
        stacks[0], code = _pop(stacks[0], prior)
        stacks[0], symbol = _pop(stacks[0], p[code])
        stacks[source] = _push(stacks[source], q[symbol], code)
        decoded.append(symbol)
    bits = torch.tensor(sizes).diff()
    return _Run(x, torch.tensor(codes), bits, torch.tensor(decoded[::-1]), stacks == start)


def _content(tables: _Tables, run: _Run) -> Tensor:
    """log₂ q(z|x) − log₂ p(x, z) of the codes of a message."""
    q, p = tables.encoder[run.x, run.z] / SLOTS, tables.decoder[run.z, run.x] / SLOTS
    return (q / p * len(tables.decoder)).log2()


def _coin() -> _Tables:
    """One value of x, q = (3/4, 1/4), a prior and a decoder of halves."""
    return _Tables(torch.tensor([SLOTS]), torch.tensor([[48, 16]]), torch.full((2, 2), SLOTS // 2))


def _equal_symbols(length: int, fresh: bool) -> Tensor:
    """Bits of each of ``length`` symbols that are all that value."""
    return _bits_back(_coin(), torch.zeros(length, dtype=torch.long), fresh).bits


def _line_through(x: Tensor) -> tuple[Tensor, nn.Module, nn.Module]:
    """The order of points along a random direction, a network to their ranks 1, …, N and one back to the points."""
    project, ranks = nn.Linear(x.shape[1], 1, bias=False), torch.arange(1.0, len(x) + 1)
    places, order = project(x).detach()[:, 0].sort()
    encoder = nn.Sequential(project, *_interpolation(places, ranks[:, None]))
    return order, encoder, _interpolation(ranks, x[order])


def _interpolation(knots: Tensor, values: Tensor) -> nn.Sequential:
    """A network of N ReLU units that is linear between the knots, where it has the values, and constant outside."""
    hidden, output = nn.Linear(1, len(knots)), nn.Linear(len(knots), values.shape[1])
    hidden.weight.data, hidden.bias.data = torch.ones(len(knots), 1), -knots
    slopes = values.diff(dim=0) / knots.diff()[:, None]
    flat = torch.zeros_like(values[:1])
    output.weight.data = torch.cat([flat, slopes, flat]).diff(dim=0).T.contiguous()
    output.bias.data = values[0].clone()
    return nn.Sequential(hidden, nn.ReLU(), output)


def _errors(x: Tensor, reconstruction: Tensor) -> Tensor:
    return (x - reconstruction).square().sum(1).detach()
