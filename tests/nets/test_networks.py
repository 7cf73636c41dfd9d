"""Network builders: shapes for any sizes, and the requirements of unrolled ascents."""

from collections.abc import Callable
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gae import nets
from gae.nets import sequence as sequence_nets
from gae.nets.hierarchical import HierarchicalLSTMDecoder

shapes = st.integers(1, 5) | st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
widths = st.lists(st.integers(1, 5), max_size=3)
images = st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 11))

NETWORKS = {
    "mlp": lambda: nets.mlp((2, 3), (5, 4), (1, 6, 6)),
    "conv-encoder": lambda: nets.conv_encoder((2, 7, 6), 3, (4, 5)),
    "conv-decoder": lambda: nets.conv_decoder(3, (2, 7, 6), (5, 4)),
}
INPUTS = {"mlp": (2, 3), "conv-encoder": (2, 7, 6), "conv-decoder": (3,)}

SKIP = {"down": (4, 5), "up": (6, 7), "narrow": (2, 0)}

every_network = pytest.mark.parametrize("name", NETWORKS)


def full(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else shape


@given(inputs=shapes, hidden=widths, outputs=shapes, batch=st.integers(1, 3))
def test_mlp_connects_any_two_shapes(
    inputs: int | tuple[int, ...], hidden: list[int], outputs: int | tuple[int, ...], batch: int
) -> None:
    network = nets.mlp(inputs, hidden, outputs)
    assert network(torch.randn(batch, *full(inputs))).shape == (batch, *full(outputs))
    sizes = [prod(full(inputs)), *hidden, prod(full(outputs))]
    assert sum(p.numel() for p in network.parameters()) == sum((a + 1) * b for a, b in pairwise(sizes))
    assert sum(isinstance(module, nn.SiLU) for module in network) == len(hidden)


@given(image=images, channels=st.lists(st.integers(1, 3), min_size=1, max_size=3), latent=st.integers(1, 4))
def test_convolutions_fit_any_image(image: tuple[int, int, int], channels: list[int], latent: int) -> None:
    x = torch.randn(2, *image)
    code = nets.conv_encoder(image, latent, channels)(x)
    assert code.shape == (2, latent)
    assert nets.conv_decoder(latent, image, channels[::-1])(code).shape == x.shape


@every_network
def test_samples_do_not_see_each_other(name: str) -> None:
    network, x = NETWORKS[name]().double(), torch.randn(4, *INPUTS[name], dtype=torch.float64)
    alone = torch.cat([network(row.unsqueeze(0)) for row in x])
    torch.testing.assert_close(network(x), alone, rtol=1e-12, atol=1e-12)
    assert not any(isinstance(module, _NormBase | nn.Dropout) for module in network.modules())


@every_network
def test_outputs_have_a_second_derivative(name: str) -> None:
    network, x = NETWORKS[name]().double(), torch.randn(1, *INPUTS[name], dtype=torch.float64)

    def output(x: Tensor) -> Tensor:
        return network(x).sum()

    assert torch.autograd.functional.hessian(output, x).abs().max() > 1e-6


@every_network
def test_no_activation_after_the_last_layer(name: str) -> None:
    """A head needs outputs of either sign and any size."""
    network = NETWORKS[name]()
    last = [module for module in network if not isinstance(module, nn.Unflatten)][-1]
    assert isinstance(last, nn.Linear | nn.ConvTranspose2d)


@pytest.mark.parametrize("activation", [nn.ELU, nn.Tanh])
def test_the_activation_is_a_choice(activation: type[nn.Module]) -> None:
    built = (
        nets.mlp(2, (5,), 3, activation),
        nets.conv_encoder((1, 4, 4), 3, (2,), activation),
        nets.conv_decoder(3, (1, 4, 4), (2,), activation),
    )
    for network in built:
        assert sum(isinstance(module, activation) for module in network) == 1
        assert not any(isinstance(module, nn.SiLU) for module in network)


@pytest.mark.parametrize("shape", [(8,), (8, 8), (1, 2, 8, 8)])
def test_convolutions_need_images(shape: tuple[int, ...]) -> None:
    for build in (lambda: nets.conv_encoder(shape, 3), lambda: nets.conv_decoder(3, shape)):
        with pytest.raises(ValueError, match=r"needs images \(C, H, W\), got shape .* Use `mlp`"):
            build()


def paper() -> nn.Module:
    """The network of the deep-image-prior paper, as its authors wrote it, for one image: batch normalisation."""

    class Join(nn.Module):
        def __init__(self, narrow: nn.Module | None, deep: nn.Module):
            super().__init__()
            self.narrow, self.deep = narrow, deep

        def forward(self, x: Tensor) -> Tensor:
            deep = self.deep(x)
            return deep if self.narrow is None else torch.cat([self.narrow(x), deep], 1)

    def block(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, padding_mode="reflect")
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2))

    def level(scale: int, inputs: int) -> nn.Module:
        channels, narrow, outputs = (SKIP[name][scale] for name in ("down", "narrow", "up"))
        deep = nn.Sequential(block(inputs, channels, 3, 2), block(channels, channels, 3))
        below = channels
        if scale == 0:
            deep.append(level(1, channels))
            below = SKIP["up"][1]
        deep.append(nn.Upsample(scale_factor=2, mode="bilinear"))
        join = Join(block(inputs, narrow, 1) if narrow else None, deep)
        rest = (nn.BatchNorm2d(narrow + below), block(narrow + below, outputs, 3), block(outputs, outputs, 1))
        return nn.Sequential(join, *rest)

    return nn.Sequential(level(0, 3), nn.Conv2d(6, 2, 1), nn.Sigmoid())


def test_skip_is_the_network_of_the_paper() -> None:
    ours, theirs = nets.skip(3, 2, **SKIP).double(), paper().double()
    mine, yours = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert sorted(p.shape for p in mine.values()) == sorted(p.shape for p in yours.values())
    for source, parameter in zip(_by_use(theirs), _by_use(ours), strict=True):
        parameter.data = source.data + 0.1 * torch.randn_like(source)
        source.data = parameter.data
    x = torch.randn(1, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)
    x = torch.randn(3, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), torch.cat([theirs(row) for row in x.split(1)]), rtol=1e-10, atol=1e-10)


def _by_use(network: nn.Module) -> list[nn.Parameter]:
    """Parameters in the order in which modules run."""
    found: list[nn.Parameter] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: found.extend(module.parameters(recurse=False)))
        for module in network.modules()
    ]
    network(torch.zeros(1, 3, 8, 12, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("images", [2, 3])
def test_channels_are_normalised_image_by_image(images: int) -> None:
    norm, x = nets.networks.ChannelNorm(4), torch.randn(images, 4, 5, 6)
    centred = x - x.mean((2, 3), keepdim=True)
    expected = centred / (centred.square().mean((2, 3), keepdim=True) + norm.eps).sqrt()
    assert torch.allclose(norm(x), expected, atol=1e-5)
    assert torch.allclose(torch.cat([norm(one) for one in x.split(1)]), expected, atol=1e-5)


def test_skip_has_as_many_parameters_as_the_paper_says() -> None:
    assert sum(p.numel() for p in nets.skip().parameters()) == 2_217_831
    with pytest.raises(ValueError, match="one entry per scale, got 2, 1 and 2"):
        nets.skip(down=(4, 4), up=(4,), narrow=(4, 4))


# The unit of the data.


def table() -> Tensor:
    """Five columns of scales from 1e-3 to 4e3, with offsets; one is constant."""
    x = torch.randn(200, 5, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 30.0, 4e3, 0.0])
    return x + torch.tensor([5.0, -3.0, 1e4, 0.0, 7.0])


def test_columns_of_a_table_have_units_of_their_own() -> None:
    x = table()
    encoder = nets.Standardized(nn.Identity(), (5,)).double()
    encoder.initialize(None, x, seed=0)
    wanted = StandardScaler().fit_transform(x[:, :4].numpy())
    assert torch.allclose(encoder(x)[:, :4], torch.from_numpy(wanted))
    assert float(encoder.scale[4]) == pytest.approx(float(x[:, :4].std(0, unbiased=False).median()))
    encoder.initialize(None, 2 * x, seed=0)  # once is enough
    assert torch.allclose(encoder(x)[:, :4], torch.from_numpy(wanted))


@pytest.mark.parametrize("shape", [(1, 4, 4), (16,), ()])
def test_elements_of_one_kind_share_a_unit(shape: tuple[int, ...]) -> None:
    x = 255 * torch.rand(50, *shape, dtype=torch.float64)
    decoder = nets.Rescaled(nn.Identity(), shape).double()
    decoder.initialize(None, x, seed=0)
    unit = (x - x.mean(0)).square().mean().sqrt()
    y = torch.randn(3, *shape, dtype=torch.float64)
    assert torch.allclose(decoder(y), x.mean(0) + unit * y)


def test_a_network_in_data_units_is_the_identity_at_its_ends() -> None:
    x, network = table(), nets.InDataUnits(nn.Identity(), (5,)).double()
    network.initialize(None, x, seed=0)
    assert torch.allclose(network(x), x, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_units_beyond_float32_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"standard deviations of the data lie between .* in another unit"):
        nets.Rescaled(nn.Identity(), (5,)).initialize(None, scale * torch.randn(20, 5), seed=0)


def test_constant_data_keep_the_unit_one() -> None:
    encoder = nets.Standardized(nn.Identity(), (3,))
    encoder.initialize(None, torch.full((10, 3), 1e4), seed=0)
    assert torch.equal(encoder(torch.full((2, 3), 1e4)), torch.zeros(2, 3))


@pytest.mark.parametrize("bad", [0, -1])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda n: nets.mlp(n, [4], 3), "inputs"),
        (lambda n: nets.mlp(3, [4, n], 3), "hidden"),
        (lambda n: nets.mlp(3, [4], (1, n)), "outputs"),
        (lambda n: nets.Dictionary(n, 3), "latent"),
        (lambda n: nets.Dictionary(3, (n, 2)), "outputs"),
        (lambda n: nets.conv_encoder((1, 8, 8), n), "outputs"),
        (lambda n: nets.conv_encoder((1, 8, 8), 2, [4, n]), "channels"),
        (lambda n: nets.conv_encoder((1, n, 8), 2), "image"),
        (lambda n: nets.conv_decoder(n, (1, 8, 8)), "latent"),
        (lambda n: nets.conv_decoder(2, (1, 8, 8), [n]), "channels"),
        (lambda n: nets.skip(n), "inputs"),
        (lambda n: nets.skip(2, n), "outputs"),
        (lambda n: nets.skip(2, 1, [4, n], [4, 4], [1, 1]), "down"),
        (lambda n: nets.skip(2, 1, [4], [n], [1]), "up"),
        (lambda n: nets.skip(2, 1, [4], [4], [n - 1]), "narrow"),
        (lambda n: sequence_nets.LSTMEncoder(n, 2), "classes"),
        (lambda n: sequence_nets.LSTMEncoder(5, 2, hidden=n), "hidden"),
        (lambda n: sequence_nets.TransformerEncoder(5, n), "outputs"),
        (lambda n: sequence_nets.TransformerEncoder(5, 2, heads=n), "heads"),
        (lambda n: sequence_nets.TransformerEncoder(5, 2, layers=n), "layers"),
        (lambda n: sequence_nets.LSTMDecoder(n, 5), "latent"),
        (lambda n: sequence_nets.LSTMDecoder(2, n + 1), "classes"),
        (lambda n: HierarchicalLSTMDecoder(2, 5, n), "segment"),
        (lambda n: sequence_nets.TransformerDecoder(n, 5), "latent"),
        (lambda n: sequence_nets.TransformerDecoder(2, 5, width=n), "width"),
    ],
)
def test_sizes_of_networks_are_checked(build: Callable[[int], object], name: str, bad: int) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .* of at least \d, got .*\d"):
        build(bad)


def test_a_convolutional_network_needs_a_layer() -> None:
    with pytest.raises(ValueError, match="channels needs one entry per convolution, got none"):
        nets.conv_decoder(2, (1, 8, 8), [])
