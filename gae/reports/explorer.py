"""Interactive HTML page of a plane of codes and their decoded means."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from gae.analysis.metrics import EvaluationBudget, encode
from gae.autoencoder import Autoencoder
from gae.data.images import as_image, channels_last, mosaic
from gae.likelihood.geometry import explained, principal_components
from gae.reports.figures import LABELS
from gae.reports.pages import embed, write_page

BARS = 24  # height in pixels of an observation that is not an image


@dataclass(frozen=True)
class Plane:
    """A plane in the space of codes, with the coordinates of some codes in it.

    ``explained`` is the share of the codes' variance in the plane; 1 for codes of two elements.
    """

    origin: Float[Tensor, " Z"]
    axes: Float[Tensor, "2 Z"]
    points: Float[Tensor, "N 2"]
    explained: float

    @property
    def corners(self) -> tuple[Float[Tensor, " 2"], Float[Tensor, " 2"]]:
        """Lowest and highest coordinates, with a margin of 5 %."""
        low, high = self.points.amin(0), self.points.amax(0)
        margin = 0.05 * (high - low).clamp_min(1e-6)
        return low - margin, high + margin

    def grid(self, size: int) -> Float[Tensor, "G G Z"]:
        """Evenly spaced codes; the first row is the top one (the highest second coordinate)."""
        low, high = self.corners
        across = torch.linspace(0, 1, size).to(low)
        x, y = low[0] + across * (high[0] - low[0]), high[1] - across * (high[1] - low[1])
        coordinates = torch.stack([x.expand(size, size), y.unsqueeze(1).expand(size, size)], -1)
        return self.origin + coordinates @ self.axes


def plane_of(codes: Float[Tensor, "N Z"]) -> Plane:
    """The two axes of two-dimensional codes, or the plane of the first two principal components of wider ones.

    Raises:
        ValueError: for codes of fewer than two elements, or fewer than three codes.

    >>> plane = plane_of(torch.randn(50, 2))
    >>> plane.axes, plane.explained
    (tensor([[1., 0.],
            [0., 1.]]), 1.0)
    """
    if codes.shape[1] < 2 or len(codes) < 3:
        raise ValueError(f"A plane needs at least 3 codes of 2 elements, got {len(codes)} of {codes.shape[1]}.")
    if codes.shape[1] == 2:
        return Plane(codes.new_zeros(2), torch.eye(2).to(codes), codes, 1.0)
    origin = codes.mean(0)
    scores, size, directions = principal_components(codes)
    return Plane(origin, directions[:2], scores[:, :2], float(explained(size, 2)))


@torch.no_grad()
def explore(
    autoencoder: Autoencoder,
    x: Num[Tensor, "N *X"],
    path: Path,
    labels: Int[Tensor, " N"] | None = None,
    value_range: Sequence[float] = (0.0, 1.0),
    size: int = 25,
    title: str = "",
    columns: Sequence[str] | None = None,
) -> Plane:
    """Writes an HTML page that needs no server: decoder means on a grid of codes, with the codes of x.

    Args:
        autoencoder: an autoencoder without a discrete code.
        x: samples whose codes are shown; a few hundred are enough.
        path: path of the page.
        labels: digits drawn at the codes.
        value_range: range of the grey values or colours.
        size: number of decoded points along each side.
        title: title of the page.
        columns: names of the features of a table, each of which is shown as a bar, from its least to its greatest value
            in x.

    Raises:
        ValueError: for a mixture, whose components share no axes; for codes of one element or fewer than 3 samples.
    """
    likelihood = autoencoder.likelihood
    if likelihood.components > 1:
        raise ValueError("Codes of different components share no axes. Explore a system without a discrete code.")
    if size < 2:
        raise ValueError(f"size must be at least 2, got {size}.")
    likelihood.check(x)
    plane = plane_of(encode(autoencoder, x, EvaluationBudget()).z.flatten(1))
    codes = plane.grid(size).flatten(0, 1)
    decoded = [likelihood.point(likelihood(part.unflatten(1, likelihood.latent_shape))) for part in codes.split(256)]
    ranges: Any = value_range if columns is None else (x.amin(0).cpu().numpy(), x.amax(0).cpu().numpy())
    _write(path, plane, torch.cat(decoded).cpu().numpy(), x.cpu().numpy(), labels, ranges, size, title, columns)
    return plane


def _write(
    path: Path,
    plane: Plane,
    decoded: np.ndarray,
    x: np.ndarray,
    labels: Tensor | None,
    value_range: Sequence[Any],
    size: int,
    title: str,
    columns: Sequence[str] | None,
) -> None:
    low, high = plane.corners
    across = int(np.ceil(np.sqrt(len(x))))
    facts: dict[str, Any] = {
        "size": size,
        "across": across,
        "low": low.tolist(),
        "high": high.tolist(),
        "points": [[round(float(value), 5) for value in point] for point in plane.points],
        "labels": None if labels is None else labels.tolist(),
        "colours": LABELS,
    }
    write_page(
        path,
        "explore.html",
        title=title,
        facts=json.dumps(facts, allow_nan=False).replace("</", "<\\/"),
        grid=_sprite(decoded, size, value_range),
        samples=_sprite(x, across, value_range),
        count=len(x),
        size=size,
        explained=plane.explained,
        width=plane.axes.shape[1],
        columns=columns,
    )


def _sprite(images: np.ndarray, across: int, value_range: Sequence[Any]) -> str:
    """Sprite sheet of all images, row by row, as a PNG in base64."""
    from PIL import Image

    tiles = [_pixels(image, *value_range) for image in images]
    rows = [tiles[start : start + across] for start in range(0, len(tiles), across)]
    stream = io.BytesIO()
    Image.fromarray(mosaic(rows, background=np.uint8(0))).save(stream, format="png")
    return embed(stream.getvalue())


def _pixels(x: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """Image (H, W) or (H, W, 3) of bytes; any other observation is drawn as vertical bars."""
    image = as_image(x, low, high)
    if image.shape != x.shape:
        image = np.broadcast_to(image, (1, BARS, x.size))
    return channels_last(np.round(255 * image).astype(np.uint8))
