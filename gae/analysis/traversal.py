"""Latent space traversals: interpolation, attribute vectors, and steps along a direction, decoded."""

import torch
from jaxtyping import Float
from torch import Tensor

from gae.autoencoder import Autoencoder
from gae.likelihood.door import dims


@torch.no_grad()
def interpolate(
    model: Autoencoder,
    start: Float[Tensor, "B *Z"],
    end: Float[Tensor, "B *Z"],
    steps: int = 8,
    spherical: bool = False,
) -> Float[Tensor, "steps B *X"]:
    """Decoded linear or spherical interpolation between two batches of codes, including both ends.

    Args:
        model: the autoencoder whose decoder is used.
        start: codes, such as ``model.encode(x).point``.
        end: the same number of codes.
        steps: number of points, at least 2.
        spherical: interpolate directions along the great circle and norms linearly (Shoemake 1985). Unlike the line,
            this keeps the norms typical of samples from N(0, I) in many dimensions.

    Raises:
        ValueError: for a mixture, whose charts have no common line; for codes of another shape or number; for fewer
            than two steps.

    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model = Autoencoder(LinearMixture(1, 2, (5,)), ClosedForm())
    >>> z = model.encode(torch.randn(6, 5)).point
    >>> interpolate(model, z[:3], z[3:], steps=7, spherical=True).shape
    torch.Size([7, 3, 5])
    """
    _check(model, "Interpolations", start, end)
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}.")
    if len(start) != len(end):
        raise ValueError(f"start and end must have the same number of codes, got {len(start)} and {len(end)}.")
    weights = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).reshape(-1, *[1] * start.dim())
    path = _arc(start, end, weights) if spherical else torch.lerp(start, end, weights)
    return model.likelihood.point(model.decode(path))


@torch.no_grad()
def attribute(model: Autoencoder, having: Float[Tensor, "N *Z"], lacking: Float[Tensor, "M *Z"]) -> Float[Tensor, "*Z"]:
    """Attribute vector: the mean code of observations with an attribute minus the mean code of those without.

    ``traverse`` adds multiples of it to codes.

    Raises:
        ValueError: for a mixture, whose charts share no axes; for codes of another shape, or empty batches.
    """
    _check(model, "Attributes", having, lacking)
    return having.mean(0) - lacking.mean(0)


@torch.no_grad()
def traverse(
    model: Autoencoder,
    z: Float[Tensor, "B *Z"],
    direction: Float[Tensor, "*Z"],
    amounts: Float[Tensor, " T"],
) -> Float[Tensor, "T B *X"]:
    """Decoded traversal of the latent space: codes plus multiples of a direction, such as an attribute or an axis.

    Raises:
        ValueError: for a mixture; for codes or a direction of another shape.

    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model = Autoencoder(LinearMixture(1, 2, (5,)), ClosedForm())
    >>> z = model.encode(torch.randn(3, 5)).point
    >>> traverse(model, z, torch.tensor([1.0, 0.0]), torch.linspace(-2, 2, 7)).shape
    torch.Size([7, 3, 5])
    """
    _check(model, "Directions", z)
    if direction.shape != model.likelihood.latent_shape:
        raise ValueError(f"A direction has shape {tuple(model.likelihood.latent_shape)}, got {tuple(direction.shape)}.")
    moves = amounts.reshape(-1, *[1] * (direction.dim() + 1)).to(direction) * direction
    return model.likelihood.point(model.decode(z + moves))


def _check(model: Autoencoder, what: str, *batches: Tensor) -> None:
    latent_shape = model.likelihood.latent_shape
    if model.likelihood.components > 1:
        raise ValueError(f"{what} need one space of codes; those of different components have no common axes.")
    for codes in batches:
        if codes.shape[1:] != latent_shape or not len(codes):
            raise ValueError(
                f"{what} need codes of shape (N, {dims(latent_shape)}) with N >= 1, such as `model.encode(x).point`; "
                f"got {tuple(codes.shape)}."
            )


def _arc(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation of directions, with linearly interpolated norms (Shoemake 1985)."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    norm_a, norm_b = flat_a.norm(dim=1), flat_b.norm(dim=1)
    cosine = ((flat_a * flat_b).sum(1) / (norm_a * norm_b).clamp_min(1e-12)).clamp(-1 + 1e-7, 1 - 1e-7)
    shape = [-1, *[1] * (a.dim() - 1)]
    angle = cosine.acos().reshape(shape)
    unit_a, unit_b = a / norm_a.clamp_min(1e-12).reshape(shape), b / norm_b.clamp_min(1e-12).reshape(shape)
    direction = (((1 - weights) * angle).sin() * unit_a + (weights * angle).sin() * unit_b) / angle.sin()
    length = direction.flatten(-a.dim() + 1).norm(dim=-1).clamp_min(1e-12)  # 1, but for rounding between opposite ends
    direction = direction / length.reshape(*length.shape, *[1] * (a.dim() - 1))
    return direction * torch.lerp(norm_a.reshape(shape), norm_b.reshape(shape), weights)
