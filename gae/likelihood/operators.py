"""Linear measurement operators on images, with their adjoints."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Size, Tensor, nn

from gae.data.checks import at_least_one, positive
from gae.storage import Part


class LinearOperator(Part, nn.Module, ABC):
    """Base class of linear maps from observations (*L, *X) to measurements (*L, *Y), with an adjoint."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Aᵀ y, (*L, *X)."""


class Mask(LinearOperator):
    """Selects the observed entries of x (*L, *X), as a vector (*L, n).

    Args:
        keep: True for observed entries; of shape X, or its last dimensions (one mask (H, W) for all channels).
        event_shape: X.

    Raises:
        TypeError: for a mask that is not boolean.
        ValueError: for a mask of another shape, or one without observed entries.

    >>> Mask(torch.tensor([True, False, True]), (3,))(torch.tensor([1.0, 2.0, 3.0]))
    tensor([1., 3.])
    """

    index: Tensor

    def __init__(self, keep: Bool[Tensor, "..."], event_shape: Size | tuple[int, ...]):
        super().__init__()
        shape = Size(event_shape)
        if keep.dtype != torch.bool:
            raise TypeError(f"A mask must be boolean (True for observed entries), got {keep.dtype}. Use `mask > 0.5`.")
        if keep.shape != shape[len(shape) - keep.dim() :]:
            raise ValueError(f"The mask has shape {tuple(keep.shape)}, but observations have {tuple(shape)}.")
        if not bool(keep.any()):
            raise ValueError("The mask hides every entry. Keep at least one.")
        self.event_shape = shape
        self.register_buffer("index", keep.expand(shape).flatten().nonzero().squeeze(1))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "*L n"]:
        return x.flatten(x.dim() - len(self.event_shape)).index_select(-1, self.index)

    def adjoint(self, y: Float[Tensor, "*L n"]) -> Float[Tensor, "..."]:
        flat = y.new_zeros(*y.shape[:-1], self.event_shape.numel())
        return flat.index_copy(-1, self.index, y).unflatten(-1, self.event_shape)


class Crop(LinearOperator):
    """Crops images (*L, C, H, W) to their upper left (height, width).

    >>> Crop((1, 8, 8), 5, 6)(torch.zeros(1, 8, 8)).shape
    torch.Size([1, 5, 6])
    """

    def __init__(self, image_shape: Size | tuple[int, ...], height: int, width: int):
        super().__init__()
        _, high, wide = image_shape
        if not (0 < height <= high and 0 < width <= wide):
            raise ValueError(f"Cannot crop {tuple(image_shape)} to {height} × {width}.")
        self.height, self.width, self.rest = height, width, (high - height, wide - width)

    def forward(self, x: Float[Tensor, "*L C H W"]) -> Float[Tensor, "*L C h w"]:
        return x[..., : self.height, : self.width]

    def adjoint(self, y: Float[Tensor, "*L C h w"]) -> Float[Tensor, "*L C H W"]:
        return nn.functional.pad(y, (0, self.rest[1], 0, self.rest[0]))


class _Separable(LinearOperator):
    """Separable operator: rows x columnsᵀ for each channel of images (*L, C, H, W)."""

    rows: Tensor
    columns: Tensor

    def __init__(self, rows: Float[Tensor, "h H"], columns: Float[Tensor, "w W"]):
        super().__init__()
        dtype = torch.get_default_dtype()
        self.register_buffer("rows", rows.to(dtype))
        self.register_buffer("columns", columns.to(dtype))

    def forward(self, x: Float[Tensor, "*L C H W"]) -> Float[Tensor, "*L C h w"]:
        return self.rows @ x @ self.columns.mT

    def adjoint(self, y: Float[Tensor, "*L C h w"]) -> Float[Tensor, "*L C H W"]:
        return self.rows.mT @ y @ self.columns


class Downsample(_Separable):
    """Downsamples images (*L, C, H, W) by an integer factor, to (*L, C, H / factor, W / factor).

    ``"average"`` averages factor × factor pixels. ``"lanczos"`` applies the Lanczos kernel of two lobes, stretched by
    the factor, as in the deep-image-prior paper; pixels are mirrored at the border.

    Raises:
        ValueError: if the factor does not divide both sides.

    >>> Downsample((3, 8, 8), 4)(torch.ones(3, 8, 8))[0]
    tensor([[1., 1.],
            [1., 1.]])
    """

    def __init__(
        self, image_shape: Size | tuple[int, ...], factor: int, kernel: Literal["lanczos", "average"] = "lanczos"
    ):
        _, high, wide = image_shape
        if kernel not in ("lanczos", "average"):
            raise ValueError(f"kernel must be 'lanczos' or 'average', got {kernel!r}.")
        if factor < 1 or high % factor or wide % factor:
            raise ValueError(
                f"factor must divide both sides of the image, got {factor} for {high} × {wide}. "
                f"Crop the image to {high - high % max(factor, 1)} × {wide - wide % max(factor, 1)}."
            )
        profile = _lanczos if kernel == "lanczos" else _box
        super().__init__(*(_resampling(side, factor, profile, 2.0 * factor) for side in (high, wide)))


class Blur(_Separable):
    """Gaussian blur of images (*L, C, H, W), with sigma in pixels and mirrored borders.

    >>> Blur((1, 8, 8), 1.5)(torch.ones(1, 8, 8)).std() < 1e-6
    tensor(True)
    """

    def __init__(self, image_shape: Size | tuple[int, ...], sigma: float):
        positive("sigma", sigma)
        _, high, wide = image_shape

        def bell(distance: Tensor, factor: int) -> Tensor:
            return (-0.5 * (distance / sigma).square()).exp()

        super().__init__(*(_resampling(side, 1, bell, 8 * sigma + 1) for side in (high, wide)))


class GaussianProjection(LinearOperator):
    """Random projection of x (*L, *X) to (*L, m), with seeded matrix entries from N(0, 1/m).

    >>> GaussianProjection(20, (1, 8, 8))(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 20])
    """

    matrix: Tensor

    def __init__(self, m: int, event_shape: Size | tuple[int, ...], seed: int = 0):
        super().__init__()
        at_least_one("m", m)
        self.event_shape = Size(event_shape)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("matrix", torch.randn(m, self.event_shape.numel(), generator=generator) / math.sqrt(m))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "*L m"]:
        return x.flatten(x.dim() - len(self.event_shape)) @ self.matrix.mT

    def adjoint(self, y: Float[Tensor, "*L m"]) -> Float[Tensor, "..."]:
        return (y @ self.matrix).unflatten(-1, self.event_shape)


def _resampling(
    side: int, factor: int, profile: Callable[[Tensor, int], Tensor], reach: float
) -> Float[Tensor, "small side"]:
    """The matrix that resamples one axis to side / factor pixels, with weights by distance between pixel centres.

    Rows sum to 1; weights past the border are added to the mirrored pixel.
    """
    count, span = side // factor, math.ceil(reach) + factor
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) * factor - 0.5
    places = torch.arange(-span, side + span, dtype=torch.float64)
    weights = profile((places - centres.unsqueeze(1)).abs(), factor)
    folded = places.long().remainder(2 * side)
    inside = torch.where(folded < side, folded, 2 * side - 1 - folded)
    matrix = torch.zeros(count, side, dtype=torch.float64).index_add(1, inside, weights)
    return matrix / matrix.sum(1, keepdim=True)


def _box(distance: Tensor, factor: int) -> Tensor:
    return (distance < factor / 2).to(distance.dtype)


def _lanczos(distance: Tensor, factor: int, lobes: int = 2) -> Tensor:
    place = distance / factor
    return torch.where(place < lobes, torch.sinc(place) * torch.sinc(place / lobes), 0.0)
