"""Checks of ``19_over_complete_codes.md``: codes that are wider than the data, and the identity."""

import math

import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from gae.ledger.claims import Check, at_most, check, equal
from gae.likelihood import Flat, Gaussian


@check
def check_D34() -> Check:
    """Maps trained through gae's ``Gaussian`` by L-BFGS against closed forms from the second moments of the data."""
    x, noise, decay, identity = torch.randn(40, 4) * torch.tensor([1.2, 1.0, 0.9, 0.3]), 0.5, 0.2, torch.eye(4)
    moments = x.T @ x / len(x)
    encoder, decoder, loss = _trained(x, 6)
    upper_encoder, upper_decoder, _ = _trained(x @ encoder.T, 8)
    thin = x[:, :2] @ torch.randn(2, 4)
    thin_encoder, thin_decoder, thin_loss = _trained(thin, 6)
    partial = thin_decoder @ thin_encoder
    stack = decoder @ upper_decoder @ upper_encoder @ encoder
    noisy_encoder, noisy_decoder, noisy_loss = _trained(x, 6, noise=noise)
    light_encoder, light_decoder, _ = _trained(x, 6, decay=decay)
    denoiser, decayed = noisy_decoder @ noisy_encoder, light_decoder @ light_encoder

    wiener, (sizes, axes) = _wiener(moments, noise), torch.linalg.eigh(moments)
    shrunk = (axes * (1 - decay / sizes).clamp_min(0)) @ axes.T
    small, large = encoder / 8, decoder * 8
    evaded = (x - x @ small.T @ large.T).square().sum(1).mean() + small.square().sum()
    return Check(
        claim=[
            equal("trained without noise or penalty: decoder ∘ encoder = I", decoder @ encoder, identity, 1e-5),
            equal("its loss = 0", loss, 0.0),
        ],
        without=[
            equal("noise σ = ½: decoder ∘ encoder = I", denoiser, identity, 1e-6),
            equal("noise σ = ½: loss = 0", noisy_loss, 0.0),
            equal("weight decay: decoder ∘ encoder = I", decayed, identity, 1e-6),
            equal("data of rank 2 in 4 dimensions: decoder ∘ encoder = I", partial, identity, 1e-5),
        ],
        correction=[
            at_most("the encoder alone is no isometry: 0.1 ≤ ‖AᵀA − I‖", 0.1, (encoder.T @ encoder - identity).norm()),
            equal("a second layer, trained on the codes of the first: stack = I", stack, identity, 1e-5),
            equal("data of rank 2: loss = 0", thin_loss, 0.0),
            equal("data of rank 2: the identity on their span", thin @ partial.T, thin, 1e-5),
            equal("noise: decoder ∘ encoder = S(S + σ²I)⁻¹", denoiser, wiener, 1e-6),
            equal("noise: loss = tr(S − S(S + σ²I)⁻¹S)", noisy_loss, (moments - wiener @ moments).trace()),
            equal("noise: scikit-learn's ridge regression of x on x", denoiser, _ridge(x, noise), 1e-6),
            equal("weight decay: decoder ∘ encoder = U max(0, 1 − λ/s) Uᵀ", decayed, shrunk, 1e-6),
            equal("(A/8, 8B): loss 0, 1/64 of the penalty ‖∂h/∂x‖²_F", evaded, (encoder.T @ encoder).trace() / 64),
        ],
    )


def _wiener(covariance: Tensor, noise: float) -> Tensor:
    """S(S + σ²I)⁻¹, which is symmetric."""
    return torch.linalg.solve(covariance + noise**2 * torch.eye(len(covariance)), covariance)


def _trained(x: Tensor, hidden: int, noise: float = 0.0, decay: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of encoder and decoder that minimise E‖decoder encoder (x + σε) − x‖² + λ ‖weights‖², and the loss."""
    width = x.shape[1]
    encoder, decoder = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
    model, weights = Gaussian(decoder, hidden, prior=Flat(hidden)), [encoder.weight, decoder.weight]
    points = noise * math.sqrt(width) * torch.cat([torch.eye(width), -torch.eye(width)])  # these have ε's covariance
    optimizer = torch.optim.LBFGS(
        weights, max_iter=600, tolerance_grad=1e-11, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        surprise = -model.log_joint(x, encoder(x + points[:, None])).mean()
        total = 2 * surprise - width * math.log(2 * math.pi) + decay * sum(w.square().sum() for w in weights)
        total.backward()
        return total

    optimizer.step(loss)
    return encoder.weight.detach(), decoder.weight.detach(), loss().detach()


def _ridge(x: Tensor, noise: float) -> Tensor:
    """Regression of x on itself with the penalty N σ²."""
    return torch.as_tensor(Ridge(alpha=len(x) * noise**2, fit_intercept=False).fit(x.numpy(), x.numpy()).coef_)
