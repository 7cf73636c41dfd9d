"""Network builders: shapes for any sizes, and what an unrolled ascent needs of them."""

from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gae import nets

shapes = st.integers(1, 5) | st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
widths = st.lists(st.integers(1, 5), max_size=3)
images = st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 11))

NETWORKS = {
    "mlp": lambda: nets.mlp((2, 3), (5, 4), (1, 6, 6)),
    "conv-encoder": lambda: nets.conv_encoder((2, 7, 6), 3, (4, 5)),
    "conv-decoder": lambda: nets.conv_decoder(3, (2, 7, 6), (5, 4)),
}
INPUTS = {"mlp": (2, 3), "conv-encoder": (2, 7, 6), "conv-decoder": (3,)}

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
