"""Checks that an ascent makes of its decoder, by evaluating it, and twice differentiable kernels."""

import warnings
from collections.abc import Callable

import pytest
import torch
from conftest import FULL
from torch import Tensor, nn
from torch.nn import functional

from gae import Autoencoder, check_gradient, nets
from gae.evidence import laplace
from gae.inference import (
    LBFGS,
    Adam,
    Adjoint,
    Ascent,
    CheckpointedUnroll,
    Detach,
    GaussNewton,
    GradientAscent,
    Implicit,
    MeanField,
    Truncate,
    Unroll,
    Zeros,
    decoder,
)
from gae.likelihood import Gaussian, Likelihood, LinearMixture, Measured, StandardNormal, WeightLikelihood

Layer = Callable[[Tensor], Tensor]


class Through(nn.Module):
    """Two linear maps with a function between them, which is not a module."""

    def __init__(self, layer: Layer, hidden: int = 8):
        super().__init__()
        self.into, self.layer, self.out = nn.Linear(2, hidden), layer, nn.Linear(hidden, 5)

    def forward(self, z: Tensor) -> Tensor:
        return self.out(self.layer(self.into(z)))


def noisy(scale: float) -> Layer:
    return lambda h: h.tanh() + scale * torch.randn_like(h)


RANDOM: dict[str, Layer] = {
    "dropout": lambda h: functional.dropout(h.tanh(), 0.3),
    "rare-dropout": lambda h: functional.dropout(h.tanh(), 0.02),
    "noise": noisy(1.0),
    "little-noise": noisy(0.01),
    "rrelu": lambda h: functional.rrelu(h, training=True),
    "gumbel": lambda h: functional.gumbel_softmax(h),
}
COUPLED: dict[str, Layer] = {
    "centred": lambda h: (h - h.mean(0)).tanh(),
    "batch-norm": lambda h: functional.batch_norm(h, None, None, training=True).tanh() if len(h) > 1 else h,
    "softmax-over-batch": lambda h: h.softmax(0),
    "largest": lambda h: h / h.abs().max(),
    "attention-over-batch": lambda h: functional.scaled_dot_product_attention(h[None], h[None], h[None])[0],
    "place-in-batch": lambda h: h.tanh() + torch.arange(len(h)).unsqueeze(1),
    "neighbour": lambda h: (h + h.roll(1, 0)).tanh(),
}
FIXED: dict[str, Layer] = {
    "tanh": torch.tanh,
    "identity": lambda h: h,
    "large": lambda h: 1e6 * h.tanh(),
    "small": lambda h: 1e-6 * h.tanh(),
    "layer-norm": lambda h: functional.layer_norm(h, (8,)),
    "nan": lambda h: h.log(),
    "infinite": lambda h: (1000 * h.square()).exp(),
    "constant": lambda h: 0 * h,
    "same-noise": lambda h: h.tanh() + torch.randn(8, generator=torch.Generator().manual_seed(0)),
}


class Custom(Likelihood):
    """A custom likelihood, which has no decoder output."""

    def __init__(self, layer: Layer):
        super().__init__((2,), (5,), StandardNormal(2))
        self.decoder = Through(layer)

    def forward(self, z: Tensor, k: Tensor | None = None) -> torch.distributions.Distribution:
        mean = self.decoder(z.flatten(0, -2)).unflatten(0, z.shape[:-1])
        return torch.distributions.Independent(torch.distributions.Normal(mean, 1.0, validate_args=False), 1)


def likelihoods(layer: Layer) -> list[Likelihood]:
    whole = Gaussian(Through(layer), 2)
    from gae.likelihood import Mask

    seen = Measured(Gaussian(Through(layer), 2), Mask(torch.tensor([True, True, True, True, False]), (5,)))
    return [whole.eval(), Custom(layer).eval(), seen.eval()]


@pytest.mark.parametrize("layer", RANDOM)
def test_random_decoders_are_refused(layer: str) -> None:
    """In ``eval()`` too, and for single observations; the state of the random generator is restored."""
    for model in likelihoods(RANDOM[layer]):
        x = torch.randn(6, *model.event_shape)
        for batch, engine in ((6, Ascent()), (1, Ascent(adjoint=Detach())), (6, Ascent(family=MeanField()))):
            before = torch.get_rng_state()
            with pytest.raises(
                ValueError, match=r"deterministic decoder; that of \w+ gives a different output each time.*dropout"
            ):
                engine(model, x[:batch])
            assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layer", COUPLED)
def test_decoders_that_look_at_the_batch_are_refused(layer: str) -> None:
    """Also from equal starts, with all codes of the batch the same, and for a batch of one."""
    for model in likelihoods(COUPLED[layer]):
        x = torch.randn(6, *model.event_shape)
        for batch in (6, 1):
            with pytest.raises(ValueError, match=r"does not depend on the rest of its batch.*GroupNorm"):
                Ascent(Zeros(), max_steps=1)(model, x[:batch])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", FIXED)
@pytest.mark.filterwarnings("ignore:The decoder of")
def test_fixed_decoders_pass(layer: str, dtype: torch.dtype) -> None:
    z = torch.randn(2, 6, 2, dtype=dtype)
    for model in likelihoods(FIXED[layer]):
        decoder.need_fixed(model.to(dtype), torch.randn(6, *model.event_shape, dtype=dtype), z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deep_and_wide_decoders_pass(dtype: torch.dtype) -> None:
    """Batches of different sizes use different kernels, with different rounding."""
    deep = nets.mlp(2, [256] * 6, 300)
    for model in (Gaussian(deep, 2), Gaussian(nets.conv_decoder(2, (1, 16, 16), (8, 8)), 2), LinearMixture(1, 2, (9,))):
        x = torch.randn(4, *model.event_shape, dtype=dtype)
        decoder.need_fixed(model.to(dtype), x, torch.randn(1, 4, 2, dtype=dtype))


def test_what_the_library_draws_on_purpose_passes() -> None:
    """Input jitter is noise of the inner loop only; BatchNorm of a network with weights as codes sees one image."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 1, 3, padding=1))
    model = WeightLikelihood(network, torch.rand(1, 4, 4), jitter=0.1)
    x = torch.rand(1, 1, 4, 4)
    Ascent(step=Adam(0.1), max_steps=2, adjoint=Detach())(model, x)
    dropped = WeightLikelihood(nn.Sequential(network, Dropped()), torch.rand(1, 4, 4))
    with pytest.raises(ValueError, match="a different output each time"):
        Ascent(step=Adam(0.1), max_steps=2, adjoint=Detach())(dropped, x)
    normed = Gaussian(nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5)), 2).eval()
    Ascent(max_steps=2)(normed, torch.randn(3, 5))


class Dropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5)


def test_a_mixture_is_decoded_too() -> None:
    charts = LinearMixture(3, 2, (5,), means=torch.randn(3, 5))
    found = Ascent(Zeros(), max_steps=2)(charts, torch.randn(4, 5), torch.zeros(1, 1, dtype=torch.long))
    assert found.z.shape == (1, 4, 2)


def test_zero_steps_decode_nothing() -> None:
    model = likelihoods(RANDOM["noise"])[0]
    assert bool((Ascent(max_steps=0)(model, torch.randn(3, 5)).z == 0).all())


# Piecewise linear decoders.

BENT: dict[str, tuple[Layer, bool]] = {
    "relu": (functional.relu, True),
    "leaky": (functional.leaky_relu, True),
    "abs": (torch.abs, True),
    "hardtanh": (functional.hardtanh, True),
    "max": (lambda h: h.unflatten(1, (4, 2)).amax(2).repeat(1, 2), True),
    "clamp": (lambda h: h.clamp(-0.3, 0.3), True),
    "affine": (lambda h: 2 * h + 1, False),
    "constant": (lambda h: 0 * h, False),
    "tanh": (torch.tanh, False),
    "softplus": (functional.softplus, False),
    "square": (lambda h: h * h.flip(1), False),
    "sine": (torch.sin, False),
}


@pytest.mark.parametrize("layer", BENT)
@pytest.mark.parametrize("adjoint", [Unroll(), CheckpointedUnroll(), Detach()])
def test_piecewise_linear_decoders_warn(layer: str, adjoint: Adjoint) -> None:
    """Zero curvature with varying slopes warns once per engine; an affine decoder does not warn."""
    function, bent = BENT[layer]
    model, engine = Gaussian(Through(function, 8), 2), Ascent(max_steps=1, adjoint=adjoint)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.no_grad():
            engine(model, torch.randn(3, 5))
        assert not caught
        for _ in range(2):
            engine(model, torch.randn(3, 5))
    expected = bent and not isinstance(adjoint, Detach)
    assert [str(warning.message)[:39] for warning in caught] == ["The decoder of Gaussian is piecewise li"] * expected


def test_linear_mixtures_do_not_warn() -> None:
    charts = LinearMixture(3, 2, (5,), means=torch.randn(3, 5))
    Ascent(max_steps=2)(charts, torch.randn(4, 5))
    assert not decoder.is_piecewise_linear(charts, torch.zeros(1, 4, 2))


# Second derivatives of attention and recurrent layers.


class Attention(nn.Module):
    """Codes as queries, keys and values, by each of torch's implementations of attention."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.into, self.out = kind, nn.Linear(2, 12), nn.Linear(12, 5)
        if kind == "module":
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        elif kind == "layer":
            self.attend = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, activation="gelu", batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        h = self.into(z).unflatten(1, (3, 4))
        if self.kind == "function":
            h = functional.scaled_dot_product_attention(h, h, h)
        elif self.kind == "module":
            h = self.attend(h, h, h, need_weights=False)[0]
        else:
            h = self.attend(h)
        return self.out(h.flatten(1))


WAYS: dict[str, Callable[[], Ascent]] = {
    "unroll": lambda: Ascent(step=GradientAscent(0.05), max_steps=3),
    "checkpoint": lambda: Ascent(step=GradientAscent(0.05), max_steps=3, adjoint=CheckpointedUnroll()),
    "truncate": lambda: Ascent(step=GradientAscent(0.05), max_steps=3, adjoint=Truncate(3)),
    "implicit": lambda: Ascent(step=LBFGS(), max_steps=200, grad_tol=1e-12, adjoint=Implicit()),
}


KINDS = ("function", "module", "layer")
BOTH = [
    *((kind, "unroll") for kind in KINDS),
    ("function", "checkpoint"),
    ("module", "truncate"),
    ("function", "implicit"),
]


@pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind in KINDS for way in WAYS] if FULL else BOTH)
def test_attention_can_be_unrolled(kind: str, way: str) -> None:
    """Central differences of the loss are the oracle; the fused kernels have no second derivative."""
    model = Autoencoder(Gaussian(Attention(kind), 2).eval(), WAYS[way]())
    assert check_gradient(model, torch.randn(2, 5), directions=2) < 1e-5


def test_laplace_and_gauss_newton_through_attention() -> None:
    torch.manual_seed(2)
    model = Gaussian(Attention("function"), 2).double()
    x = torch.randn(2, 5).double()
    found = laplace(model, x, curvature="dense").log_p
    assert torch.allclose(found, laplace(model, x, curvature="lanczos", probes=400).log_p, atol=0.2)
    mode = Ascent(step=GaussNewton(), max_steps=300, grad_tol=1e-8, adjoint=Detach())(model, x)
    assert bool((mode.solve.grad_norm < 1e-6).all())  # type: ignore[union-attr]


def test_kernels_are_switched_within_the_solve_alone() -> None:
    """cuDNN's recurrent layers have no second derivative either; without them, convolutions keep cuDNN."""
    seen = []

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 5, batch_first=True)

        def forward(self, z: Tensor) -> Tensor:
            seen.append((torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()))
            return self.rnn(z.unsqueeze(1))[0][:, 0]

    around = torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled()
    model = Gaussian(Recurrent(), 2)
    seen.clear()
    for adjoint in (Unroll(), CheckpointedUnroll(), Implicit(stationary=1e9)):
        found = Ascent(max_steps=2, adjoint=adjoint).infer(model, torch.randn(3, 5))
        found.z.sum().backward()
    assert set(seen) == {(False, False)}
    seen.clear()
    model.outputs(torch.zeros(3, 2))
    assert seen == [around] == [(torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled())]
    plain = Gaussian(Through(lambda h: seen.append(torch.backends.cudnn.enabled) or h.tanh()), 2)  # type: ignore[func-returns-value]
    seen.clear()
    Ascent(max_steps=1)(plain, torch.randn(3, 5))
    assert set(seen) == {around[0]}


class Cut(nn.Module):
    """A decoder that blocks gradients to codes, but not to its own parameters."""

    def __init__(self, cut: Layer):
        super().__init__()
        self.cut, self.linear = cut, nn.Linear(2, 3)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(self.cut(z))


CUTS: dict[str, Layer] = {
    "detach": lambda z: z.detach(),
    "numpy": lambda z: torch.from_numpy(z.detach().numpy()),
    "classes": lambda z: z.long().to(z.dtype),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_decoder_without_a_gradient_is_refused(name: str) -> None:
    """Its codes would be the prior's mode for every x."""
    model, x = Gaussian(Cut(CUTS[name]), 2), torch.randn(4, 3)
    with pytest.raises(ValueError, match="No gradient reaches a code through the decoder of Gaussian"):
        Ascent(Zeros(), LBFGS(), 3, adjoint=Detach())(model, x)
    Ascent(Zeros(), max_steps=0)(model, x)


def test_a_decoder_is_asked_once_for_its_gradient() -> None:
    model, x = Gaussian(nn.Linear(2, 3), 2), torch.randn(4, 3)
    engine = Ascent(Zeros(), GradientAscent(0.1), 2, adjoint=Detach())
    first = engine(model, x).z
    calls = []
    model.decoder.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(engine(model, x).z, first)
    assert len(calls) <= 2 + 2  # the steps and the scores: `need_fixed` has passed too


class Noisy(nn.Module):
    def __init__(self, switch: list[bool]):
        super().__init__()
        self.linear, self.noise, self.switch = nn.Linear(2, 3), False, switch

    def forward(self, z: Tensor) -> Tensor:
        output = self.linear(z)
        return output + torch.randn_like(output) if self.noise or self.switch[0] else output


def test_a_decoder_that_becomes_random_is_refused() -> None:
    """At once where an attribute of a module says so, and otherwise within 16 ascents."""
    switch = [False]
    model, x, engine = Gaussian(Noisy(switch), 2), torch.randn(4, 3), Ascent(max_steps=1)
    engine(model, x)
    model.decoder.noise = True
    for _ in range(2):
        with pytest.raises(ValueError, match="deterministic decoder"):
            engine(model, x)
    model.decoder.noise = False
    engine(model, x)
    switch[0] = True
    with pytest.raises(ValueError, match="deterministic decoder"):
        for _ in range(decoder.AGAIN):
            engine(model, x)
