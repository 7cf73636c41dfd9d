"""Operators with ``A`` and ``A_adjoint``: stand-ins of three of deepinv's physics, and themselves if installed."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gae.likelihood.physics import PhysicsOperator, check_operator

SHAPE = (3, 12, 16)  # of the measurement


class CircularBlur(nn.Module):
    """Convolution of each channel with a kernel, periodic at the border: ``deepinv.physics.Blur``."""

    def __init__(self) -> None:
        super().__init__()
        bell = (-0.5 * torch.arange(-2.0, 3.0).square()).exp()
        bell[0] *= 2  # not symmetric, so that the adjoint differs from A
        self.register_buffer("filter", torch.outer(bell, bell) / bell.sum() ** 2)

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        padded = functional.pad(x, (2, 2, 2, 2), mode="circular")
        return functional.conv2d(padded, kernel.expand(x.shape[1], 1, 5, 5), groups=x.shape[1])

    def A(self, x: Tensor, filter: Tensor | None = None, **kwargs: Any) -> Tensor:
        return self._convolve(x, self.filter)

    def A_adjoint(self, y: Tensor, filter: Tensor | None = None, **kwargs: Any) -> Tensor:
        return self._convolve(y, self.filter.flip(0, 1))


class Masking(nn.Module):
    """Hidden pixels are zero, and the size stays: ``deepinv.physics.Inpainting``."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.arange(12 * 16) % 3 > 0).float().view(1, 1, 12, 16))

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x * self.mask

    A_adjoint = A


class Decimation(CircularBlur):
    """A blur, and every second pixel of it: ``deepinv.physics.Downsampling``."""

    def A(self, x: Tensor, filter: Tensor | None = None, **kwargs: Any) -> Tensor:
        return super().A(x)[..., ::2, ::2]

    def A_adjoint(self, y: Tensor, filter: Tensor | None = None, **kwargs: Any) -> Tensor:
        x = y.new_zeros(*y.shape[:2], 2 * y.shape[2], 2 * y.shape[3])
        x[..., ::2, ::2] = y
        return super().A_adjoint(x)


STANDINS = {"blur": CircularBlur, "inpainting": Masking, "downsampling": Decimation}


def of_deepinv(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        physics = pytest.importorskip("deepinv.physics", exc_type=ImportError)
        from deepinv.physics.blur import gaussian_blur

    if name == "blur":
        return physics.Blur(filter=gaussian_blur(1.0), padding="circular")
    if name == "inpainting":
        return physics.Inpainting(img_size=SHAPE, mask=0.5)
    return physics.Downsampling(img_size=(3, 24, 32), filter="gaussian", factor=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", STANDINS)
@pytest.mark.parametrize("build", [lambda name: STANDINS[name](), of_deepinv], ids=["stand-in", "deepinv"])
def test_the_adjoint_is_the_transpose(name: str, build: Any) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩ in float64, with leading dimensions that A itself does not take."""
    physics = build(name)
    operator = PhysicsOperator(physics).double()
    y = torch.randn(2, 4, *SHAPE, dtype=torch.float64)
    back = operator.adjoint(y)
    x = torch.randn_like(back)
    left, right = ((a * b).flatten(2).sum(2) for a, b in ((operator(x), y), (x, back)))
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(operator(x)[1, 2], physics.A(x[1, 2][None])[0])
    assert check_operator(operator, y[0, 0]) == back.shape[2:]
    assert back.shape[2:] == ((3, 24, 32) if name == "downsampling" else SHAPE)


class Wrong(CircularBlur):
    """A blur with the adjoint of another one."""

    def A_adjoint(self, y: Tensor, filter: Tensor | None = None, **kwargs: Any) -> Tensor:
        return self.A(y)


class Random(Masking):
    """A mask that is drawn anew."""

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x * (torch.rand_like(self.mask) > 0.5)


class Detached(Masking):
    """Values without gradients."""

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return (x * self.mask).detach()


class Grey(nn.Module):
    """One channel from three."""

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x.mean(1, keepdim=True)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return y.expand(-1, 3, -1, -1) / 3


class Pair(Masking):
    def A(self, x: Tensor, **kwargs: Any) -> Any:
        return [x, x]


@pytest.mark.parametrize(
    ("build", "channels", "error", "message"),
    [
        (Wrong, 3, ValueError, "Wrong is not linear, is random, or its adjoint is not that of A"),
        (Random, 3, ValueError, "Random is not linear, is random, or its adjoint is not that of A"),
        (Detached, 3, TypeError, "Gradients do not flow through Detached"),
        (Grey, 1, ValueError, r"Grey does not map images of the size of its adjoint, \(3, 12, 16\), to .* \(1, 12, 16"),
        (Pair, 3, TypeError, "An operator must return one tensor, got list"),
        (nn.Identity, 3, TypeError, r"Identity has no A and no A_adjoint. Give a linear physics of deepinv"),
    ],
)
def test_what_is_no_linear_operator_is_refused(build: Any, channels: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        check_operator(PhysicsOperator(build()), torch.rand(channels, 12, 16))
