"""Interpolations, attribute vectors and traversals against decoders whose outputs are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from gae import Autoencoder
from gae.analysis.traversal import attribute, interpolate, traverse
from gae.data import Dataset
from gae.inference import Argmax, ClosedForm, Zeros
from gae.likelihood import Gaussian, LinearMixture
from gae.systems import build
from gae.training import fit


class Identity(nn.Module):
    """A decoder that returns the code."""

    def forward(self, z: Tensor) -> Tensor:
        return z


def showing(*latent: int) -> Autoencoder:
    return Autoencoder(Gaussian(Identity(), latent), Zeros())


def neural(latent: tuple[int, ...]) -> Autoencoder:
    return Autoencoder(Gaussian(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(latent), 4)), latent), Zeros())


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("latent", [(2,), (3, 1)])
def test_interpolation_starts_and_ends_at_the_codes(spherical: bool, latent: tuple[int, ...]) -> None:
    model, start, end = neural(latent).double(), torch.randn(5, *latent).double(), torch.randn(5, *latent).double()
    path = interpolate(model, start, end, steps=6, spherical=spherical)
    assert path.shape == (6, 5, 4) and not path.requires_grad
    assert torch.allclose(path[[0, -1]], model.decode(torch.stack([start, end])).mean, atol=1e-12)


def test_linear_interpolation_is_a_line_of_codes() -> None:
    start, end = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    path = interpolate(showing(2).double(), start, end)
    assert len(path) == 8
    for t, codes in enumerate(path):
        assert torch.allclose(codes, start + t / 7 * (end - start), atol=1e-12)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle between vectors of three elements, accurate for small ones too."""
    return torch.atan2(torch.linalg.cross(*torch.broadcast_tensors(a, b)).norm(dim=-1), (a * b).sum(-1))


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_spherical_interpolation_is_an_arc(steps: int) -> None:
    """Equal angles between neighbours, all in the plane of the ends, and norms that change evenly."""
    path = interpolate(showing(3), torch.randn(20, 3), 2 * torch.randn(20, 3), steps, spherical=True).double()
    norms = path.norm(dim=-1)
    even = torch.linspace(0, 1, steps).double()[:, None]
    assert torch.allclose(norms, (1 - even) * norms[0] + even * norms[-1], atol=1e-5)
    units = path / norms[..., None]
    whole, angles = angle(units[0], units[-1]), angle(units[1:], units[:-1])
    assert torch.allclose(
        angles, (whole / (steps - 1)).expand_as(angles), atol=1e-4
    )  # opposite ends nearly have no arc
    assert torch.linalg.cross(units[:1], units[-1:]).mul(units).sum(-1).abs().max() < 1e-5


SPECIAL = {
    "same": ([1.0, 0.0], [1.0, 0.0]),
    "parallel": ([1.0, 0.0], [3.0, 0.0]),
    "opposite": ([1.0, 0.0], [-2.0, 0.0]),
    "from zero": ([0.0, 0.0], [1.0, 2.0]),
    "zero": ([0.0, 0.0], [0.0, 0.0]),
}


@pytest.mark.parametrize("case", SPECIAL)
def test_spherical_interpolation_without_a_unique_arc(case: str) -> None:
    """Finite, exact at both ends, and never longer than the longer end; a line where the directions agree."""
    start, end = (torch.tensor([code]) for code in SPECIAL[case])
    path = interpolate(showing(2), start, end, 5, spherical=True)
    assert torch.allclose(path[0], start, atol=1e-6) and torch.allclose(path[-1], end, atol=1e-6)
    assert path.norm(dim=-1).max() <= max(start.norm(), end.norm()) + 1e-5
    if case in ("same", "parallel", "zero"):
        assert torch.allclose(path, torch.lerp(start, end, torch.linspace(0, 1, 5).reshape(5, 1, 1)), atol=1e-5)


def test_an_attribute_moves_a_mean_onto_another() -> None:
    having, lacking = torch.randn(7, 2), torch.randn(4, 2)
    model = showing(2)
    moved = traverse(model, lacking, attribute(model, having, lacking), torch.tensor([0.0, 1.0]))
    assert torch.equal(moved[0], lacking)
    assert torch.allclose(moved[1].mean(0), having.mean(0), atol=1e-6)


def test_attributes_of_digits_add_up(digits: Dataset) -> None:
    """On held-out digits: a code of a 3 plus the direction from 3 to 8 decodes to an image nearest to an 8."""
    x, labels = digits.train, digits.train_labels
    model = build("pca", digits.event_shape, latent=16)
    fit(model, digits, progress=False)
    assert labels is not None and digits.test_labels is not None
    z = model.encode(x).point
    threes = model.encode(digits.test[digits.test_labels == 3]).point
    turned = traverse(model, threes, attribute(model, z[labels == 8], z[labels == 3]), torch.ones(1))[0].flatten(1)
    centres = torch.stack([x[labels == digit].mean(0).flatten() for digit in range(10)])
    assert (torch.cdist(turned, centres).argmin(1) == 8).float().mean() > 0.8


@pytest.mark.parametrize("latent", [(2,), (3, 1)])
def test_a_traversal_moves_along_one_direction(latent: tuple[int, ...]) -> None:
    model, z, direction, amounts = (
        neural(latent),
        torch.randn(5, *latent),
        torch.randn(latent),
        torch.tensor([-1.0, 0.0, 2.5]),
    )
    path = traverse(model, z, direction, amounts)
    assert path.shape == (3, 5, 4) and not path.requires_grad
    for amount, images in zip(amounts, path, strict=True):
        assert torch.allclose(images, model.decode(z + amount * direction).mean, atol=1e-6)


@pytest.mark.usefixtures("unchecked_types")
def test_what_does_not_fit_is_refused() -> None:
    model, z, one = showing(2), torch.randn(5, 2), torch.ones(1)
    for steps in (-1, 0, 1):
        with pytest.raises(ValueError, match=f"steps must be at least 2, got {steps}"):
            interpolate(model, z, z, steps)
    with pytest.raises(ValueError, match="start and end must have the same number of codes, got 5 and 3"):
        interpolate(model, z, z[:3])
    for direction in (torch.zeros(7), torch.zeros(1, 2)):
        with pytest.raises(ValueError, match=r"A direction has shape \(2,\)"):
            traverse(model, z, direction, one)
    for bad in (z[:0], z[0], torch.randn(5, 3)):
        message = rf"need codes of shape \(N, 2\) with N >= 1, .* got \({bad.shape[0]},"
        with pytest.raises(ValueError, match="Interpolations " + message):
            interpolate(model, bad, bad)
        with pytest.raises(ValueError, match="Attributes " + message):
            attribute(model, z, bad)
        with pytest.raises(ValueError, match="Directions " + message):
            traverse(model, bad, z[0], one)


def test_mixtures_have_no_line_between_charts() -> None:
    model, z = Autoencoder(LinearMixture(3, 2, (4,)), Argmax(ClosedForm())), torch.randn(5, 2)
    with pytest.raises(ValueError, match=r"Interpolations .* different components have no common axes"):
        interpolate(model, z, z)
    with pytest.raises(ValueError, match="Attributes need one space of codes"):
        attribute(model, z, z)
    with pytest.raises(ValueError, match="Directions need one space of codes"):
        traverse(model, z, z[0], torch.zeros(1))
