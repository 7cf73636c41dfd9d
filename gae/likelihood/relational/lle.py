"""Locally linear embedding: codes reconstructed from their neighbours with the weights of the data."""

import math
import warnings

import torch
from jaxtyping import Float, Num
from torch import Size, Tensor

from gae.likelihood.base import parameter_or_buffer, positive_scale
from gae.likelihood.relational.neighbours import barycentric_weights, nearest
from gae.likelihood.relational.spectrum import smoothest, spread
from gae.likelihood.relational.tsne import Relational


class LLE(Relational):
    """Locally linear embedding (Roweis & Saul 2000): z_i ~ N(Σ_j w_ij z_j, scale²), weights fitted to x first.

    The weights w_i. (sum 1) reconstruct x_i from its nearest neighbours with the least squared error. The model is of
    the residual of each code: ``log_joint`` = log N(0; (I - W) z, scale² I), in nats with every constant, is the log
    density of N · E residuals observed to be 0, given W. It is a density of these residuals, neither of x, which enters
    only through W, nor of z: constant codes have residual 0, so its integral over z diverges, and its maximum over all
    z is at z = 0. Therefore codes are whitened: centred, with identity covariance. Under that constraint ``mode`` is
    the best code in closed form, the bottom eigenvectors of (I - W)ᵀ(I - W); an ascent needs
    ``Projected(step, Whiten())``.

    Args:
        points: N.
        event_shape: F, the shape of one point's features.
        latent: E.
        neighbours: number of neighbours that reconstruct a point.
        reg: see ``barycentric_weights``.
        scale: standard deviation of the residuals, or its initial value if it is learned.
        learn_scale: whether the scale is learned.

    >>> line = torch.arange(6.0).reshape(1, 6, 1)
    >>> model = LLE(points=6, event_shape=(1,), latent=1, neighbours=2, reg=1e-6)
    >>> z = model.mode(line).flatten()
    >>> bool((z.diff() * z.diff()[0] > 0).all())  # in the order of the line
    True
    """

    new_point = "A new point is placed among the codes of a data set by `LLE.transform(x, z, new)`."
    log_scale: Tensor

    def __init__(
        self,
        points: int,
        event_shape: Size | tuple[int, ...],
        latent: int = 2,
        neighbours: int = 5,
        reg: float = 1e-3,
        scale: float = 1.0,
        learn_scale: bool = False,
    ):
        super().__init__(points, event_shape, latent)
        if not 1 <= neighbours < points:
            raise ValueError(f"Need 1 <= neighbours < points = {points}, got {neighbours}.")
        if not (reg > 0 and scale > 0):
            raise ValueError(f"reg and scale must be positive, got {reg} and {scale}.")
        self.neighbours, self.reg = neighbours, reg
        parameter_or_buffer(self, "log_scale", torch.tensor(math.log(positive_scale(scale))), learn_scale)

    def relation(self, x: Num[Tensor, "B N *F"]) -> Float[Tensor, "B N N"]:
        """The weights W, whose rows sum to 1."""
        return spread(*self._fit(x), x.shape[1]).to(x.dtype)

    def _fit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the neighbours of each point, and their indices, (B, N, neighbours)."""
        flat = x.flatten(2).double()
        index = nearest(flat, self.neighbours)
        return barycentric_weights(flat, flat, index, self.reg), index

    def score(self, relation: Float[Tensor, "... N N"], z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        square = ((z - relation @ z) / self.log_scale.exp()).square().sum((-2, -1))  # scale² may underflow or overflow
        constant = self.latent_shape.numel() * (self.log_scale + 0.5 * math.log(2 * math.pi))
        return -0.5 * square - constant

    def mode(self, x: Num[Tensor, "B N *F"]) -> Float[Tensor, "B N E"]:
        """The whitened codes of highest ``log_joint``: √N times eigenvectors, in order of their eigenvalues.

        Unique up to the signs of its columns, and up to rotations for equal eigenvalues. Warns if the graph of
        neighbours is disconnected.
        """
        return self.scored_mode(x)[0]

    def scored_mode(self, x: Num[Tensor, "B N *F"]) -> tuple[Float[Tensor, "B N E"], Float[Tensor, " B"]]:
        """``mode`` and its ``log_joint``, in nats, with the weights fitted once."""
        weights, index = self._fit(x)
        columns, is_split = smoothest(weights, index, self.latent_shape[-1])
        if is_split:
            warnings.warn(
                f"With {self.neighbours} neighbours the graph of a data set is disconnected: the codes only separate "
                "its components. Increase neighbours.",
                stacklevel=2,
            )
        z = (x.shape[1] ** 0.5 * columns).to(x.dtype)
        return z, self.score(spread(weights, index, x.shape[1]).to(x.dtype), z)

    def transform(
        self, x: Num[Tensor, "B N *F"], z: Float[Tensor, "... B N E"], new: Num[Tensor, "B M *F"]
    ) -> Float[Tensor, "..."]:
        """Codes (*S, B, M, E) of new points: the codes z of their neighbours in x, with barycentric weights."""
        self.check(x)
        if new.shape[2:] != x.shape[2:] or len(new) != len(x):
            raise ValueError(
                f"new must have shape (B, M, *F) = ({len(x)}, M, {', '.join(map(str, x.shape[2:]))}), got "
                f"{tuple(new.shape)}."
            )
        flat, points = x.flatten(2).double(), new.flatten(2).double()
        index = nearest(flat, self.neighbours, points)
        weights = barycentric_weights(flat, points, index, self.reg)
        return spread(weights, index, flat.shape[1]).to(z.dtype) @ z
