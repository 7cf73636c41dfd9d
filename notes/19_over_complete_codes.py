"""Checks of ``19_over_complete_codes.md``: codes that are wider than the data, and the identity."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from gae.ledger.claims import Check, at_most, check, equal
from gae.likelihood import Flat, Gaussian


@check
def check_D34() -> Check:
    """Maps trained by BFGS, with losses and slopes of gae's ``Gaussian``, against closed forms from second moments."""
    x, noise, decay, identity = torch.randn(40, 4) * torch.tensor([1.2, 1.0, 0.9, 0.3]), 0.5, 0.2, torch.eye(4)
    moments = x.T @ x / len(x)
    plain, noisy, light = _trained(x, 6), _trained(x, 6, noise=noise), _trained(x, 6, decay=decay)
    upper = _trained(x @ plain.encoder.T, 8)
    flat = x[:, :2] @ torch.randn(2, 4)
    thin = _trained(flat, 6)
    stack = plain.decoder @ upper.whole @ plain.encoder
    slopes = torch.cat([maps.slopes for maps in (plain, noisy, light, upper, thin)])

    wiener, (sizes, axes) = _wiener(moments, noise), torch.linalg.eigh(moments)
    shrunk = (axes * (1 - decay / sizes).clamp_min(0)) @ axes.T
    small, large = plain.encoder / 8, plain.decoder * 8
    along = torch.linalg.svd(plain.encoder, full_matrices=False).Vh[0]  # the encoder's longest direction
    twice = torch.outer(along, along)
    stretched, shrinking = plain.encoder @ (identity + twice), (identity - twice / 2) @ plain.decoder
    evaded = (x - x @ small.T @ large.T).square().sum(1).mean() + small.square().sum()
    return Check(
        claim=[
            equal("trained without noise or penalty: decoder ∘ encoder = I", plain.whole, identity, 1e-5),
            equal("its loss = 0", plain.loss, 0.0),
        ],
        without=[
            equal("noise σ = ½: decoder ∘ encoder = I", noisy.whole, identity, 1e-6),
            equal("noise σ = ½: loss = 0", noisy.loss, 0.0),
            equal("weight decay: decoder ∘ encoder = I", light.whole, identity, 1e-6),
            equal("data of rank 2 in 4 dimensions: decoder ∘ encoder = I", thin.whole, identity, 1e-5),
        ],
        correction=[
            equal("gae's training loss has no slope at any of them", slopes, 0.0, 1e-6),
            at_most(
                "one direction stretched twice: no isometry, condition number ≥ 2", 2.0, torch.linalg.cond(stretched)
            ),
            equal("its decoder shrinks it again: loss = 0", x @ stretched.T @ shrinking.T, x, 1e-5),
            equal("a second layer, trained on the codes of the first: stack = I", stack, identity, 1e-5),
            equal("data of rank 2: loss = 0", thin.loss, 0.0),
            equal("data of rank 2: the identity on their span", flat @ thin.whole.T, flat, 1e-5),
            equal("noise: decoder ∘ encoder = S(S + σ²I)⁻¹", noisy.whole, wiener, 1e-6),
            equal("noise: loss = tr(S − S(S + σ²I)⁻¹S)", noisy.loss, (moments - wiener @ moments).trace()),
            equal("noise: scikit-learn's ridge regression of x on x", noisy.whole, _ridge(x, noise), 1e-6),
            equal("weight decay: decoder ∘ encoder = U max(0, 1 − λ/s) Uᵀ", light.whole, shrunk, 1e-6),
            equal(
                "(A/8, 8B): loss 0, 1/64 of the penalty ‖∂h/∂x‖²_F",
                evaded,
                (plain.encoder.T @ plain.encoder).trace() / 64,
            ),
        ],
    )


class _Maps(NamedTuple):
    """Encoder A (H, D), decoder B (D, H), their loss, and its slopes in all weights."""

    encoder: Tensor
    decoder: Tensor
    loss: Tensor
    slopes: Tensor

    @property
    def whole(self) -> Tensor:
        return self.decoder @ self.encoder


def _wiener(covariance: Tensor, noise: float) -> Tensor:
    """S(S + σ²I)⁻¹, which is symmetric."""
    return torch.linalg.solve(covariance + noise**2 * torch.eye(len(covariance)), covariance)


def _trained(x: Tensor, hidden: int, noise: float = 0.0, decay: float = 0.0) -> _Maps:
    """Encoder A and decoder B at a minimum of E‖BA(x + σε) − x‖² + λ(‖A‖² + ‖B‖²), by BFGS from random weights."""
    width, moments = x.shape[1], (x.T @ x / len(x)).numpy()

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        encoder, decoder = weights.reshape(2, -1)
        encoder, decoder = encoder.reshape(hidden, width), decoder.reshape(width, hidden)
        error = decoder @ encoder - np.eye(width)
        slope = 2 * error @ moments + 2 * noise**2 * decoder @ encoder
        slopes = np.concatenate([(decoder.T @ slope).ravel(), (slope @ encoder.T).ravel()]) + 2 * decay * weights
        spread = noise**2 * np.square(decoder @ encoder).sum() + decay * np.square(weights).sum()
        return (error @ moments * error).sum() + spread, slopes

    start = torch.randn(2 * hidden * width).numpy() / math.sqrt(hidden)
    best = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    encoder, decoder = torch.as_tensor(best).chunk(2)
    return _measured(x, encoder.reshape(hidden, width), decoder.reshape(width, hidden), noise, decay)


def _measured(x: Tensor, encoder: Tensor, decoder: Tensor, noise: float, decay: float) -> _Maps:
    """The same loss through gae's ``Gaussian``, with automatic differentiation for its slopes."""
    hidden, width = encoder.shape
    layer = nn.Linear(hidden, width, bias=False)
    layer.weight.data, weights = decoder.contiguous(), [encoder.requires_grad_(), layer.weight]
    points = noise * math.sqrt(width) * torch.cat([torch.eye(width), -torch.eye(width)])  # these have ε's covariance
    surprise = -Gaussian(layer, hidden, prior=Flat(hidden)).log_joint(x, (x + points[:, None]) @ encoder.T).mean()
    loss = 2 * surprise - width * math.log(2 * math.pi) + decay * sum(w.square().sum() for w in weights)
    slopes = torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, weights)])
    return _Maps(encoder.detach(), decoder, loss.detach(), slopes)


def _ridge(x: Tensor, noise: float) -> Tensor:
    """Regression of x on itself with the penalty N σ²."""
    return torch.as_tensor(Ridge(alpha=len(x) * noise**2, fit_intercept=False).fit(x.numpy(), x.numpy()).coef_)
