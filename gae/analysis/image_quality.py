"""Quality of an image against a clean one: peak signal-to-noise ratio and structural similarity."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW, SIGMA = 11, 1.5  # side and standard deviation of the Gaussian window, in pixels
K1, K2 = 0.01, 0.03


def check_clean(clean: Float[Tensor, "C H W"], shape: tuple[int, ...]) -> None:
    """Raises ValueError unless images of a shape (C, H, W) can be measured against a clean one."""
    if clean.shape != shape:
        raise ValueError(f"The clean image is {_size(clean.shape)}, but the image to measure is {_size(shape)}.")
    if min(shape[1:]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} × {WINDOW} pixels, got {_size(shape)}.")


def psnr(image: Float[Tensor, "C H W"], clean: Float[Tensor, "C H W"]) -> float:
    """Peak signal-to-noise ratio in dB of an image with values in [0, 1]; infinite for equal images.

    Raises:
        ValueError: for images of different sizes.

    >>> round(psnr(torch.full((1, 2, 2), 0.5), torch.full((1, 2, 2), 0.6)), 4)
    20.0
    """
    if image.shape != clean.shape:
        check_clean(clean, image.shape)
    error = float((image.double() - clean.double()).square().mean())
    return -10 * math.log10(error) if error else math.inf


def ssim(image: Float[Tensor, "C H W"], clean: Float[Tensor, "C H W"]) -> float:
    """Structural similarity of an image with values in [0, 1] (Wang et al. 2004, equation 13), at most 1.

    Statistics are those of a Gaussian window of 11 × 11 pixels with a standard deviation of 1.5 pixels; the mean is
    over the channels and all windows within the image.

    Raises:
        ValueError: for images of different sizes, or smaller than a window.

    >>> image = torch.rand(3, 12, 15)
    >>> round(ssim(image, image), 6)
    1.0
    """
    check_clean(clean, image.shape)
    x, y = image.double().unsqueeze(1), clean.double().unsqueeze(1)
    bell = (-0.5 * ((torch.arange(WINDOW, device=x.device).double() - WINDOW // 2) / SIGMA).square()).exp()
    weights = torch.outer(bell, bell).div(bell.sum() ** 2)[None, None]

    def mean(values: Tensor) -> Tensor:
        return conv2d(values, weights)

    at_x, at_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - at_x.square(), mean(y * y) - at_y.square()
    covariance = mean(x * y) - at_x * at_y
    luminance = (2 * at_x * at_y + K1**2) / (at_x.square() + at_y.square() + K1**2)
    structure = (2 * covariance + K2**2) / (var_x + var_y + K2**2)
    return float((luminance * structure).mean())


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} × {shape[2]} with {shape[0]} channel{'s' * (shape[0] > 1)}"
