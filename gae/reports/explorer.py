"""Interactive HTML page of a plane of codes: their decoded means, and ascents over the joint density."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from gae.analysis.landscape import ascent_of, follow
from gae.analysis.metrics import EvaluationBudget, encode
from gae.autoencoder import Autoencoder
from gae.data.images import as_image, channels_last, mosaic
from gae.likelihood.geometry import explained, principal_components
from gae.reports.figures import LABELS
from gae.reports.pages import embed, write_page

BARS = 24  # height in pixels of an observation that is not an image
NAMED = 100  # features of a table that are shown by name and value; of more, only as bars
ASCENTS = 10  # samples whose ascents are shown, if there are no more labels
FRAMES = 30  # decoded points of an ascent, at most
CONTOURS = 41  # points of the joint density along each side
DEEPEST = 1e5  # nats below the highest value, which no contour shows
# Tol's "light" colours for labels on a dark page, in the order of ``LABELS``.
LABELS_ON_DARK = (
    "#99aaff",
    "#ee8866",
    "#44bb77",
    "#eedd88",
    "#99ddff",
    "#ff88aa",
    "#66ddcc",
    "#dd99ee",
    "#ffcc66",
    "#dddddd",
)


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

    def coordinates(self, z: Float[Tensor, "P Z"]) -> Float[Tensor, "P 2"]:
        """The coordinates of codes, projected on the plane."""
        return (z - self.origin) @ self.axes.mT

    def grid(self, size: int, through: Float[Tensor, " Z"] | None = None) -> Float[Tensor, "G G Z"]:
        """Evenly spaced codes; the first row is the top one (the highest second coordinate).

        With ``through``, the codes lie on the parallel plane through that code, at the same coordinates.
        """
        low, high = self.corners
        across = torch.linspace(0, 1, size).to(low)
        x, y = low[0] + across * (high[0] - low[0]), high[1] - across * (high[1] - low[1])
        coordinates = torch.stack([x.expand(size, size), y.unsqueeze(1).expand(size, size)], -1)
        origin = self.origin
        if through is not None:
            origin = through - self.coordinates(through.unsqueeze(0))[0] @ self.axes
        return origin + coordinates @ self.axes


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
    classes: Sequence[str] | None = None,
) -> Plane:
    """Writes an HTML page that needs no server: the codes of x, decoder means on a grid of codes, and some ascents.

    The ascents are those of the first sample of each label, or of the first samples, as ``landscape`` follows them.
    Their contours are those of the joint density on the plane through the end of the ascent, parallel to the map.

    Args:
        autoencoder: an autoencoder without a discrete code.
        x: samples whose codes are shown; a few hundred are enough.
        path: path of the page.
        labels: numbers drawn at the codes.
        value_range: range of the grey values or colours.
        size: number of decoded points along each side.
        title: title of the page.
        columns: names of the features of a table, which are shown by name and value.
        classes: names of the labels.

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
    try:
        ascents, reason = [_ascent(autoencoder, x, plane, i) for i in _followed(len(x), labels)], ""
    except (TypeError, ValueError) as error:  # an engine says why it cannot climb this model
        ascents, reason = [], str(error)
    steps = torch.cat([z for _, z in ascents]) if ascents else plane.points.new_zeros(0, plane.axes.shape[1])
    decoded = {
        "grid": _decoded(autoencoder, plane.grid(size).flatten(0, 1)),
        "samples": x.cpu().numpy(),
        "steps": _decoded(autoencoder, steps),
    }
    low, high = plane.corners
    facts: dict[str, Any] = {
        "size": size,
        "across": int(np.ceil(np.sqrt(len(x)))),
        "low": low.tolist(),
        "high": high.tolist(),
        "points": [[round(float(value), 5) for value in point] for point in plane.points],
        "labels": None if labels is None else labels.tolist(),
        "classes": None if classes is None else list(classes),
        "colours": {"light": LABELS, "dark": LABELS_ON_DARK},
        "ascents": [fact for fact, _ in ascents],
        "side": CONTOURS,
        "table": None,
    }
    sprites = {}
    if columns is not None and len(columns) <= NAMED:
        facts["table"] = _table(columns, decoded)
    else:
        ranges = value_range if columns is None else (x.amin(0).cpu().numpy(), x.amax(0).cpu().numpy())
        widths = {"grid": size, "samples": facts["across"], "steps": FRAMES}
        sprites = {name: _sprite(part, widths[name], ranges) for name, part in decoded.items() if len(part)}
    write_page(
        path,
        "explore.html",
        title=title,
        facts=json.dumps(facts, allow_nan=False).replace("</", "<\\/"),
        sprites=sprites,
        count=len(x),
        size=size,
        explained=plane.explained,
        width=plane.axes.shape[1],
        ascents=ascents,
        reason=reason,
        columns=columns,
        table=facts["table"] is not None,
        frames=FRAMES,
    )
    return plane


def _followed(count: int, labels: Tensor | None) -> list[int]:
    """The samples whose ascents are shown."""
    if labels is None:
        return list(range(min(count, ASCENTS)))
    first = {int(label): i for i, label in reversed(list(enumerate(labels)))}
    return [first[label] for label in sorted(first)][:ASCENTS]


def _ascent(
    autoencoder: Autoencoder, x: Tensor, plane: Plane, index: int
) -> tuple[dict[str, Any], Float[Tensor, "F Z"]]:
    """The ascent of one sample as facts of the page, and the codes of its frames."""
    likelihood, one = autoencoder.likelihood, x[index : index + 1]
    ascent, words = ascent_of(autoencoder.inference)
    path = follow(ascent, likelihood, one)
    taken = path.accepted.nonzero().flatten()
    frames = taken[torch.linspace(0, len(taken) - 1, min(len(taken), FRAMES)).round().long()]
    z = path.z[frames].flatten(1)
    codes = plane.grid(CONTOURS, through=z[-1]).flatten(0, 1).unflatten(1, likelihood.latent_shape).unsqueeze(1)
    field = torch.cat([likelihood.log_joint(one, part)[:, 0] for part in codes.split(256)])
    top = max(float(field.max()), float(path.log_joint.max()))
    fact = {
        "index": index,
        "words": words,
        "points": [[round(float(value), 5) for value in point] for point in plane.coordinates(z)],
        "steps": torch.searchsorted(taken, frames).tolist(),
        "nats": [round(float(value), 3) for value in path.log_joint[frames]],
        "below": [round(min(top - float(value), DEEPEST), 2) for value in field],
    }
    return fact, z


def _decoded(autoencoder: Autoencoder, codes: Float[Tensor, "P Z"]) -> np.ndarray:
    """The decoder's mean at codes."""
    likelihood = autoencoder.likelihood
    parts = [
        likelihood.point(likelihood(part.unflatten(1, likelihood.latent_shape)))
        for part in codes.split(256)
        if len(part)
    ]
    return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, *likelihood.event_shape), np.float32)


def _table(columns: Sequence[str], decoded: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Values of a table by feature: names, ranges in the samples, and rows; None for a value that was not observed."""

    def rows(values: np.ndarray) -> list[list[float | None]]:
        return [[None if np.isnan(value) else float(f"{value:.4g}") for value in row] for row in values]

    observed = np.ma.masked_invalid(decoded["samples"])
    low, high = (edge.filled(0.0).tolist() for edge in (observed.min(0), observed.max(0)))
    return {"columns": list(columns), "low": low, "high": high, **{name: rows(part) for name, part in decoded.items()}}


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
