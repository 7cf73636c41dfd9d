"""Neural heads against numpy and scipy formulas, integration, and errors for bad input."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from cases import binary, classes, count, real, unit
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gae import Autoencoder, nets
from gae.inference import Prior, Zeros
from gae.likelihood import Bernoulli, Categorical, ContinuousBernoulli, Flat, Gaussian, Head, Laplace, Poisson

SCALE = 0.7


def bernoulli(output: np.ndarray, x: np.ndarray) -> np.ndarray:
    p = scipy.special.expit(output)
    return x * np.log(p) + (1 - x) * np.log1p(-p)


def continuous_bernoulli(output: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Loaiza-Ganem & Cunningham (2019), eq. 4."""
    slope = 1 - 2 * scipy.special.expit(output)
    return bernoulli(output, x) + np.log(2 * np.arctanh(slope) / slope)


def categorical(output: np.ndarray, x: np.ndarray) -> np.ndarray:
    logits = np.take_along_axis(output, x.astype(int)[..., None], -1)[..., 0]
    return logits - scipy.special.logsumexp(output, -1)


@dataclass(frozen=True)
class HeadCase:
    """``formula(output, x)`` is the elementwise log density; ``support`` what to integrate or to sum over."""

    name: str
    build: Callable[..., Head]
    draw: Callable[[tuple[int, ...]], Tensor]
    formula: Callable[[np.ndarray, np.ndarray], np.ndarray]
    support: tuple[float, float] | range
    lead: tuple[int, ...] = ()


HEADS = [
    HeadCase(
        "gaussian",
        lambda *args: Gaussian(*args, scale=SCALE),
        real,
        lambda output, x: scipy.stats.norm.logpdf(x, output, SCALE),
        (-math.inf, math.inf),
    ),
    HeadCase(
        "laplace",
        lambda *args: Laplace(*args, scale=SCALE),
        real,
        lambda output, x: scipy.stats.laplace.logpdf(x, output, SCALE),
        (-math.inf, math.inf),
    ),
    HeadCase("bernoulli", Bernoulli, binary, bernoulli, range(2)),
    HeadCase("continuous-bernoulli", ContinuousBernoulli, unit, continuous_bernoulli, (0.0, 1.0)),
    HeadCase("poisson", Poisson, count, lambda output, x: scipy.stats.poisson.logpmf(x, np.exp(output)), range(100)),
    HeadCase("categorical", Categorical, classes, categorical, range(4), (4,)),
]

every_head = pytest.mark.parametrize("case", HEADS, ids=[case.name for case in HEADS])
shapes = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


def built(case: HeadCase, latent: tuple[int, ...] = (2,), event: tuple[int, ...] = (3,)) -> Head:
    return case.build(nets.mlp(latent, (5,), (*event, *case.lead)).double(), latent)


@every_head
@given(latent=shapes, event=shapes, samples=st.integers(1, 3), batch=st.integers(1, 3))
def test_log_joint_is_the_formula(
    case: HeadCase, latent: tuple[int, ...], event: tuple[int, ...], samples: int, batch: int
) -> None:
    model = built(case, latent, event)
    x = case.draw((batch, *event)).double()
    z = torch.randn(samples, batch, *latent, dtype=torch.float64)
    found = model.log_joint(x, z).detach()
    assert found.shape == (samples, batch)
    for s in range(samples):
        for b in range(batch):
            output = model.decoder(z[s, b].unsqueeze(0))[0].detach().numpy()
            wanted = case.formula(output, x[b].numpy()).sum() + scipy.stats.norm.logpdf(z[s, b].numpy()).sum()
            assert found[s, b] == pytest.approx(wanted, rel=1e-10, abs=1e-10)


@every_head
def test_density_integrates_to_one(case: HeadCase) -> None:
    model = built(case, event=(1,))
    q = model(torch.randn(2, dtype=torch.float64))

    def density(x: float) -> float:
        return q.log_prob(torch.tensor([x], dtype=torch.float64)).exp().item()

    if isinstance(case.support, range):
        total = sum(density(float(x)) for x in case.support)
    else:
        parts = [case.support[0], q.mean.item(), case.support[1]]  # Laplace has a kink at its mean
        total = sum(scipy.integrate.quad(density, *bounds)[0] for bounds in pairwise(parts))
    assert total == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("logit", [0.0, 1e-9, 1e-3, 0.0199, -0.0201, 5.0, -17.0, 30.0, -100.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_continuous_bernoulli_at_any_logit(logit: float, dtype: torch.dtype, tolerance: float) -> None:
    """Its mass is ∫ exp(logit x) dx = expm1(logit) / logit; torch's own is off near 0 and, in float32, beyond 16."""
    model = ContinuousBernoulli(nn.Linear(1, 1), 1).to(dtype)
    model.decoder.weight.data.zero_()
    model.decoder.bias.data.fill_(logit)
    logit = model.decoder.bias.item()
    log_mass = np.log(np.expm1(logit) / logit) if logit else 0.0
    for x in (0.0, 0.25, 1.0):
        found = model(torch.zeros(1, dtype=dtype)).log_prob(torch.tensor([x], dtype=dtype))
        assert found.item() == pytest.approx(logit * x - log_mass, rel=tolerance, abs=tolerance)
    (slope,) = torch.autograd.grad(found, model.decoder.bias)
    step = 1e-3

    def log_norm(value: float) -> float:
        return float(np.log(np.expm1(value) / value)) if value else 0.0

    wanted = 1 - (log_norm(logit + step) - log_norm(logit - step)) / (2 * step)
    assert slope.item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_scalar_events() -> None:
    """A decoder with one number, or one vector of logits, per code."""
    number = Gaussian(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), 2)
    label = Categorical(nn.Linear(2, 4), 2)
    for model, x in ((number, real((5,))), (label, classes((5,)))):
        assert model.event_shape == ()
        assert Autoencoder(model, Zeros()).encode(x).log_joint.shape == (1, 5)


def test_flat_prior_leaves_the_likelihood_alone() -> None:
    decoder = nets.mlp(2, (5,), 3)
    x, z = torch.randn(4, 3), torch.randn(2, 4, 2)
    flat, proper = Gaussian(decoder, 2, prior=Flat(2)), Gaussian(decoder, 2)
    torch.testing.assert_close(flat.log_joint(x, z), flat(z).log_prob(x))
    torch.testing.assert_close(proper.log_joint(x, z) - flat.log_joint(x, z), proper.prior.log_prob(z))


# Scales.


@pytest.mark.parametrize("head", [Gaussian, Laplace])
@pytest.mark.parametrize(("learn", "shape"), [("fixed", None), ("scalar", ()), ("pixel", (3, 2))])
def test_which_scale_is_a_parameter(head: type[Head], learn: str, shape: tuple[int, ...] | None) -> None:
    model = head(nets.mlp(2, (5,), (3, 2)), 2, scale=SCALE, learn=learn)
    found = {name: parameter.shape for name, parameter in model.named_parameters() if "decoder" not in name}
    assert found == ({} if shape is None else {"log_scale": shape})
    torch.testing.assert_close(model.scale, torch.full(shape or (), SCALE))
    assert "log_scale" in model.state_dict(), "a checkpoint needs the fixed scale too"


@pytest.mark.parametrize(("head", "power"), [(Gaussian, 2), (Laplace, 1)])
@pytest.mark.parametrize("learn", ["scalar", "pixel"])
def test_gradient_in_the_scale(head: type[Head], power: int, learn: str) -> None:
    """d/d log σ of log N is Σ (x - f)² / σ² - 1, of log Laplace Σ |x - f| / b - 1."""
    model = head(nets.mlp(2, (5,), (3, 2)), 2, scale=SCALE, learn=learn).double()
    x, z = torch.randn(4, 3, 2).double(), torch.randn(1, 4, 2).double()
    (found,) = torch.autograd.grad(model.log_joint(x, z).sum(), model.log_scale)
    wanted = ((x - model.decoder(z[0])).abs() / SCALE) ** power - 1
    torch.testing.assert_close(found, wanted.sum(0) if learn == "pixel" else wanted.sum())


@pytest.mark.parametrize(("head", "spread"), [(Gaussian, lambda e: (e**2).mean() ** 0.5), (Laplace, np.mean)])
def test_the_learned_scale_finds_the_residuals(head: type[Head], spread: Callable[[Any], float]) -> None:
    model = head(nets.mlp(2, (5,), 3), 2, learn="scalar").double()
    x, z = torch.randn(50, 3).double(), torch.zeros(1, 50, 2).double()
    optimizer = torch.optim.LBFGS(
        [model.log_scale], max_iter=50, tolerance_grad=1e-9, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -model.log_joint(x, z).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    residual = (x - model.decoder(z[0])).abs().detach().numpy()
    assert model.scale.item() == pytest.approx(spread(residual), rel=1e-6)


@pytest.mark.parametrize("head", [Gaussian, Laplace])
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_must_be_positive(head: type[Head], scale: float) -> None:
    with pytest.raises(ValueError, match=f"scale must be positive, got {scale}"):
        head(nn.Linear(2, 3), 2, scale=scale)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("head", [Gaussian, Laplace])
def test_unknown_learn(head: type[Head]) -> None:
    with pytest.raises(ValueError, match="learn must be 'fixed', 'scalar' or 'pixel', got 'everything'"):
        head(nn.Linear(2, 3), 2, learn="everything")


# The decoder.


def test_a_decoder_that_does_not_take_the_codes() -> None:
    with pytest.raises(ValueError, match=r"decoder does not accept codes of shape \(N, \*\(3,\)\)"):
        Gaussian(nn.Linear(2, 3), 3)


def test_a_prior_for_other_codes() -> None:
    with pytest.raises(ValueError, match=r"prior's event shape is \(3,\), but a code has \(2,\)"):
        Gaussian(nn.Linear(2, 3), 2, prior=Flat(3))


@every_head
def test_a_head_has_no_discrete_code(case: HeadCase) -> None:
    model = built(case)
    x, k = case.draw((4, 3)).double(), torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(
        ValueError, match=f"{type(model).__name__} has no discrete code, got k. Omit k, or use a mixture"
    ):
        model.log_joint(x, torch.zeros(1, 4, 2).double(), k)
    with pytest.raises(ValueError, match="has no discrete code"):
        Zeros()(model, x, k)


def test_looking_at_the_decoder_leaves_it_as_it_was() -> None:
    decoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Sequential(nn.Linear(4, 3)).eval())
    state = {name: value.clone() for name, value in decoder.state_dict().items()}
    modes, generator = [module.training for module in decoder.modules()], torch.get_rng_state()
    Gaussian(decoder, 2)
    assert [module.training for module in decoder.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("learn", ["fixed", "scalar", "pixel"])
def test_a_head_takes_the_decoder_s_dtype(learn: str) -> None:
    model = Gaussian(nets.mlp(2, (5,), 3).double(), 2, learn=learn)
    x = torch.randn(4, 3).double()
    for engine in (Zeros(), Prior()):
        encoding = Autoencoder(model, engine).encode(x)
        assert encoding.z.dtype == encoding.log_joint.dtype == torch.float64


# Over the whole range of float32 outputs.

OUTPUTS = [0.0, *(s * v for v in (1e-30, 1e-4, 1.0, 30.0, 90.0, 1e3, 1e6, 1e30) for s in (1, -1))]


@dataclass(frozen=True)
class Range:
    """``formula(output, x)`` and its two derivatives in the output, in mpmath's numbers; the mean and the variance."""

    name: str
    build: Callable[..., Head]
    x: tuple[float, ...]
    formula: Callable[[Any, Any], tuple[Any, Any, Any]]
    moments: Callable[[Any], tuple[Any, Any]]


def normal_law(log_scale: float) -> Callable[[Any, Any], tuple[Any, Any, Any]]:
    def law(o: Any, x: Any) -> tuple[Any, Any, Any]:
        s = mp.exp(np.float32(log_scale).item())
        return -(((x - o) / s) ** 2) / 2 - mp.log(s * mp.sqrt(2 * mp.pi)), (x - o) / s**2, -1 / s**2

    return law


def laplace_law(log_scale: float) -> Callable[[Any, Any], tuple[Any, Any, Any]]:
    def law(o: Any, x: Any) -> tuple[Any, Any, Any]:
        s = mp.exp(np.float32(log_scale).item())
        return -abs(x - o) / s - mp.log(2 * s), mp.sign(x - o) / s, mp.mpf(0)

    return law


def bernoulli_law(o: Any, x: Any) -> tuple[Any, Any, Any]:
    p = 1 / (1 + mp.exp(-o))
    return x * o - (o + mp.log1p(mp.exp(-o)) if o > 0 else mp.log1p(mp.exp(o))), x - p, -p * (1 - p)


def scaled(head: type[Head], log_scale: float, learn: str) -> Callable[..., Head]:
    def build(decoder: nn.Module, latent: int) -> Head:
        model = head(decoder, latent, learn=learn)
        model.log_scale.data.fill_(log_scale)
        return model

    return build


SCALED = [
    Range(
        f"{head.__name__}-{learn}-{log_scale}",
        scaled(head, log_scale, learn),
        (0.0, 1e-4, 1.0, -1e6, 1e30),
        law(log_scale),
        lambda o, a=log_scale, factor=factor: (o, factor * mp.exp(2 * a)),
    )
    for head, law, factor in ((Gaussian, normal_law, 1), (Laplace, laplace_law, 2))
    for learn, log_scale in (("fixed", 0.0), ("scalar", 50.0), ("scalar", -50.0), ("pixel", 50.0), ("pixel", -50.0))
]
RANGES = [
    *SCALED,
    Range(
        "bernoulli",
        Bernoulli,
        (0.0, 1.0),
        bernoulli_law,
        lambda o: (1 / (1 + mp.exp(-o)), 1 / (1 + mp.exp(-o)) / (1 + mp.exp(o))),
    ),
]


def near(found: Tensor, wanted: Any, least: float = 1e-37) -> bool:
    """To float32's precision, overflow included; its denormal numbers count as 0."""
    with np.errstate(over="ignore"):
        number = float(np.float32(float(wanted)))
    return found.item() == number or abs(found.item() - number) <= 3e-6 * abs(number) + least


@pytest.mark.parametrize("case", RANGES, ids=[case.name for case in RANGES])
def test_heads_over_the_whole_range(case: Range) -> None:
    """Values, both derivatives, mean and variance of each head in float32, against mpmath."""
    model = case.build(nn.Linear(1, 1), 1)
    for value in OUTPUTS:
        output = torch.tensor([[[value]]], requires_grad=True)
        o = mp.mpf(output.item())
        law = model.distribution(output)
        if value or case.name == "bernoulli":
            for found, wanted in zip((law.mean, law.variance), case.moments(o), strict=True):
                assert near(found, wanted)
        for number in case.x:
            x = torch.tensor([[number]])
            density = model.log_likelihood(x, output)
            (slope,) = torch.autograd.grad(density, output, create_graph=True)
            (bend,) = torch.autograd.grad(slope.sum(), output) if slope.requires_grad else (torch.zeros(1),)
            wanted = case.formula(o, mp.mpf(x.item()))
            least = 2e-7 if case.name == "bernoulli" else 1e-37  # sigmoids are subtracted from 1
            assert near(density, wanted[0], 1e-6) and near(law.log_prob(x), wanted[0], 1e-6)
            assert near(slope, wanted[1], least) and near(bend, wanted[2], least)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6, -1e30])
def test_categorical_over_the_whole_range(offset: float) -> None:
    """An offset in the logits changes nothing, also where a float32 logsumexp of them cannot tell them apart."""
    model, logits = Categorical(nn.Linear(1, 4), 1), torch.tensor([0.0, 1.0, -3.0, -90.0]) + offset
    output = logits.clone().requires_grad_()
    exact = scipy.special.log_softmax(logits.double().numpy())
    law = model.distribution(output)
    for label, wanted in enumerate(exact):
        x = torch.tensor([float(label)])
        density = model.log_likelihood(x, output[None, None])
        assert density.item() == pytest.approx(wanted, rel=1e-6)
        (slope,) = torch.autograd.grad(density.sum(), output)
        np.testing.assert_allclose(slope, np.eye(4)[label] - np.exp(exact), atol=2e-7)
    np.testing.assert_allclose(law.probs.detach(), np.exp(exact), rtol=1e-6)
    share, p = torch.bincount(law.sample(torch.Size([4000])), minlength=4).numpy() / 4000, np.exp(exact)
    assert (np.abs(share - p) <= 4 * np.sqrt(p * (1 - p) / 4000) + 1e-3).all()


# Input checks.


@dataclass(frozen=True)
class BadInput:
    name: str
    head: Callable[..., Head]
    x: Callable[[Tensor], Any]
    error: type[Exception]
    messages: tuple[str, ...]


def spoilt(value: float, *index: int) -> Callable[[Tensor], Tensor]:
    def spoil(x: Tensor) -> Tensor:
        x[index] = value
        return x

    return spoil


BAD = [
    BadInput(
        "nan", Gaussian, spoilt(math.nan, 2, 1), ValueError, (r"finite, got nan at index \(2, 1\)", "1 such", "impute")
    ),
    BadInput("inf", Poisson, spoilt(math.inf, 3, 0), ValueError, (r"finite, got inf at index \(3, 0\)",)),
    BadInput("minus-inf", Laplace, spoilt(-math.inf, 0, 2), ValueError, (r"finite, got -inf at index \(0, 2\)",)),
    BadInput("event-shape", Gaussian, lambda x: x[:, :2], ValueError, (r"shape \(B, 3\), got \(4, 2\)", "Reshape")),
    BadInput("one-sample", Gaussian, lambda x: x[0], ValueError, (r"shape \(B, 3\), got \(3,\)",)),
    BadInput("too-deep", Gaussian, lambda x: x.unsqueeze(1), ValueError, (r"shape \(B, 3\), got \(4, 1, 3\)",)),
    BadInput("empty", Gaussian, lambda x: x[:0], ValueError, ("x is empty: a batch needs at least one observation",)),
    BadInput(
        "bytes", Bernoulli, lambda x: (255 * x).byte(), TypeError, ("floating point, got torch.uint8", "divide 0-255")
    ),
    BadInput("integers", Poisson, lambda x: x.long(), TypeError, ("floating point, got torch.int64", r"x.float\(\)")),
    BadInput(
        "double",
        Gaussian,
        lambda x: x.double(),
        TypeError,
        ("x is torch.float64 but the model is torch.float32", r"x.to\("),
    ),
    BadInput("grey", Bernoulli, spoilt(0.5, 1, 0), ValueError, (r"\{0, 1\}, got 0.5 at index \(1, 0\)", "Binarise")),
    BadInput(
        "0-255", Bernoulli, lambda x: 255 * x, ValueError, (r"\{0, 1\}, got 255 at index \(0, 0\)", "12 such", "Binar")
    ),
    BadInput(
        "0-255-grey",
        ContinuousBernoulli,
        lambda x: 255 * x,
        ValueError,
        (r"\[0, 1\], got 255", "Divide 0-255 data by 255"),
    ),
    BadInput("negative", ContinuousBernoulli, spoilt(-0.1, 2, 2), ValueError, (r"got -0.1 at index \(2, 2\)",)),
    BadInput("fraction", Poisson, spoilt(1.5, 0, 1), ValueError, (r"counts 0, 1, 2, ..., got 1.5 at index \(0, 1\)",)),
    BadInput(
        "negative-count", Poisson, spoilt(-1, 0, 1), ValueError, (r"got -1 at index \(0, 1\)", "Round or rescale")
    ),
    BadInput("no-such-class", Categorical, spoilt(4, 3, 2), ValueError, (r"classes 0 ... 3, got 4 at index \(3, 2\)",)),
    BadInput("half-a-class", Categorical, spoilt(0.5, 3, 2), ValueError, (r"classes 0 ... 3, got 0.5 at index",)),
    BadInput("list", Gaussian, lambda x: x.tolist(), TypeError, (r"torch.Tensor of shape \(B, 3\), got list",)),
    BadInput("array", Gaussian, lambda x: x.numpy(), TypeError, (r"torch.Tensor of shape \(B, 3\), got ndarray",)),
]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("case", BAD, ids=[case.name for case in BAD])
def test_bad_input_is_refused_at_the_door(case: BadInput) -> None:
    event = (3, 4) if case.head is Categorical else 3
    likelihood = case.head(nets.mlp(2, (5,), event), 2)
    model, x = Autoencoder(likelihood, Zeros()), torch.ones(4, 3)
    model.encode(x)
    for call in (model.encode, model.reconstruct, model.log_evidence, likelihood.check):
        with pytest.raises(case.error) as caught:
            call(case.x(x.clone()))
        for message in case.messages:
            caught.match(message)


@pytest.mark.parametrize(
    ("decode", "found"),
    [
        (lambda z: z.double(), "a torch.float64 tensor"),
        (lambda z: z.half(), "a torch.float16 tensor"),
        (lambda z: z.long(), "a torch.int64 tensor"),
        (lambda z: (z, z), "tuple"),
        (lambda z: None, "NoneType"),
    ],
)
def test_decoders_that_return_something_else_are_refused(decode: Callable[[Tensor], Any], found: str) -> None:
    class Decoder(nn.Module):
        def forward(self, z: Tensor) -> Any:
            return decode(z)

    with pytest.raises(TypeError, match=rf"The decoder must return a torch\.float32 tensor.*got {found}"):
        Gaussian(Decoder(), 2)


def test_a_table_of_integers_does_not_tell_the_dtype_of_codes() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("order", torch.tensor([1, 0]))
            self.linear = nn.Linear(2, 3)

        def forward(self, z: Tensor) -> Tensor:
            return self.linear(z[..., self.order])

    assert Gaussian(Table(), 2).event_shape == (3,)
