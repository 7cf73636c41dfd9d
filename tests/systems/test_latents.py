"""Systems of measurements of a sample, of a network's weights and of a network's input."""

import pytest
import torch
from cases import seed
from conftest import without_type_checks
from torch import Tensor
from torch.nn.functional import interpolate

from gae import Autoencoder
from gae.data import Dataset
from gae.systems import build
from gae.systems.image_prior import Network, build_likelihood, self_stopping
from gae.training import fit

IMAGE, SIZE = (1, 8, 8), 100


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> Autoencoder:
    """A VAE of digits, whose decoder the systems can load."""
    seed(0)
    model = build("vae", IMAGE)
    with without_type_checks():
        fit(model, digits, epochs=30, batch_size=100, optimizer=lambda p: torch.optim.Adam(p, lr=4e-3), progress=False)
    return model


def restored(name: str, trained: Autoencoder, x: Tensor, **options: float) -> tuple[Tensor, Tensor]:
    """The measurements of x, and the whole images decoded from their codes."""
    seed(0)
    model = build(name, IMAGE, **options)
    model.likelihood.likelihood.load_state_dict(trained.likelihood.state_dict())
    y = model.likelihood.operator(x)
    with torch.no_grad():
        return y, model.likelihood.restored(model.encode(y).point)


def error(found: Tensor, x: Tensor) -> float:
    return float((found - x).square().mean())


@pytest.mark.slow
def test_superresolution_beats_bicubic_and_the_mean_image(trained: Autoencoder, digits: Dataset) -> None:
    x = digits.test[:SIZE]
    small, found = restored("superresolution", trained, x)
    assert small.shape == (SIZE, 1, 4, 4)
    bicubic = interpolate(small, scale_factor=2, mode="bicubic")
    assert error(found, x) < 0.8 * error(bicubic, x)
    assert error(found, x) < 0.6 * error(digits.train.mean(0), x)


@pytest.mark.slow
def test_inpainting_beats_the_mean_image_where_nothing_is_seen(trained: Autoencoder, digits: Dataset) -> None:
    x = digits.test[:SIZE]
    seen, found = restored("inpainting", trained, x, seen=0.5)
    assert seen.shape == (SIZE, 32)
    seed(0)
    index = build("inpainting", IMAGE, seen=0.5).likelihood.operator.index
    hidden = torch.ones(64, dtype=torch.bool).index_fill(0, index, False).reshape(IMAGE).expand_as(x)
    mean = digits.train.mean(0).expand_as(x)
    assert error(found[hidden], x[hidden]) < 0.6 * error(mean[hidden], x[hidden])


@pytest.mark.slow
def test_more_measurements_restore_more(trained: Autoencoder, digits: Dataset) -> None:
    x = digits.test[:SIZE]
    errors = [error(restored("compressed-sensing", trained, x, measurements=m)[1], x) for m in (4, 12, 40)]
    assert errors[0] > 1.1 * errors[1] > 1.2 * errors[2]
    assert errors[2] < 0.6 * error(digits.train.mean(0), x)


def test_the_share_that_is_seen() -> None:
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="seen must lie"):
            build("inpainting", IMAGE, seen=share)


def test_the_deep_image_prior_paints_what_restore_does() -> None:
    seed(3)
    image = torch.rand(1, 16, 16)
    seed(5)
    model = build("deep-image-prior", image.shape, channels=4, scales=1, steps=4)
    seed(5)
    likelihood, seen = build_likelihood(image, "denoise", network=Network(4, 1))
    with torch.no_grad():
        seed(9)
        found = model.encode(image.unsqueeze(0))
        seed(9)
        expected = self_stopping(4).infer(likelihood, seen.unsqueeze(0))
    assert torch.equal(found.z, expected.z) and found.solve is not None and expected.solve is not None
    assert found.solve.reconstruction is not None and torch.equal(
        found.solve.reconstruction, expected.solve.reconstruction
    )


def test_maximal_activation_exceeds_every_training_image(digits: Dataset) -> None:
    seed(0)
    classifier = build("ae", IMAGE, latent=10)
    fit(classifier, digits, epochs=5, progress=False)
    model = build("maximal-activation", IMAGE, units=10)
    model.likelihood.decoder.load_state_dict(classifier.inference.guide.state_dict())
    with torch.no_grad():
        found = model.encode(torch.arange(10.0)).point
        reached = model.likelihood.decoder(found).diagonal()
        highest = model.likelihood.decoder(digits.train).amax(0)
    assert found.shape == (10, *IMAGE) and found.min() >= 0 and found.max() <= 1
    assert bool((reached > highest).all())
