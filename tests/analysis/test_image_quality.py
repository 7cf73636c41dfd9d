"""Peak signal-to-noise ratio and structural similarity: against scikit-image, and in closed form."""

import math

import numpy as np
import pytest
import torch

from gae.analysis.image_quality import psnr, ssim


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 11, 30), (1, 40, 11), (3, 24, 17)])
def test_they_are_those_of_scikit_image(shape: tuple[int, int, int]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    clean = torch.rand(shape, dtype=torch.float64)
    for noise in (0.02, 0.3):
        image = (clean + noise * torch.randn(shape, dtype=torch.float64)).clamp(0, 1)
        pair = clean.numpy(), image.numpy()
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = metrics.structural_similarity(*pair, channel_axis=0, data_range=1.0, **options)
        assert ssim(image, clean) == pytest.approx(expected, abs=1e-6)
        expected = metrics.peak_signal_noise_ratio(*pair, data_range=1.0)
        assert psnr(image, clean) == pytest.approx(expected, abs=1e-9)


def test_constant_images_in_closed_form() -> None:
    """Without variance only the luminance differs: (2 a b + C1) / (a² + b² + C1)."""
    one, other = torch.full((1, 12, 12), 0.25), torch.full((1, 12, 12), 0.75)
    assert ssim(one, other) == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), rel=1e-9)
    assert psnr(one, other) == pytest.approx(-20 * math.log10(0.5), rel=1e-12)
    assert psnr(one, one) == math.inf and ssim(one, one) == 1


@pytest.mark.usefixtures("unchecked_types")
def test_sizes_that_do_not_fit_are_refused() -> None:
    images = {
        shape: torch.from_numpy(np.zeros(shape)) for shape in ((3, 12, 14), (1, 12, 14), (3, 14, 12), (3, 10, 14))
    }
    for shape in ((1, 12, 14), (3, 14, 12)):
        for measure in (psnr, ssim):
            with pytest.raises(ValueError, match=r"The clean image is .*, but the image to measure is 12 × 14 with 3"):
                measure(images[3, 12, 14], images[shape])
    with pytest.raises(ValueError, match="SSIM needs at least 11 × 11 pixels, got 10 × 14 with 3 channels"):
        ssim(images[3, 10, 14], images[3, 10, 14])
