"""Markov chains on data, defined by denoising and contractive autoencoders."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Num
from torch import Tensor

from gae.autoencoder import Autoencoder
from gae.data.checks import at_least_one, positive
from gae.likelihood.door import door


@torch.no_grad()
def denoising_walk(
    autoencoder: Autoencoder, x: Num[Tensor, "B *X"], steps: int, corruption: Callable[[Tensor], Tensor] | None = None
) -> Num[Tensor, "T B *X"]:
    """Sampling chain of a denoising autoencoder (Bengio et al. 2013; ledger D29).

    Alternates x̃ ~ C(x̃|x) and x ~ q_r(x | code of x̃) for T steps from x. If q_r is the exact conditional P(x|x̃) and
    the corruption connects all x, the chain converges to p(x).

    Args:
        autoencoder: a denoising autoencoder.
        x: (B, *X), the starting points of B chains.
        steps: the number T of steps.
        corruption: the corruption C; by default the one of the autoencoder.

    Raises:
        ValueError: without a corruption.

    >>> from gae.systems import dae
    >>> denoising_walk(dae((6,), latent=3), torch.zeros(2, 6), steps=4).shape
    torch.Size([4, 2, 6])
    """
    corrupt = corruption or autoencoder.corruption
    if corrupt is None:
        raise ValueError("A denoising walk needs a corruption: give one, or an autoencoder that was trained with one.")
    at_least_one("steps", steps)
    chain = []
    with door(autoencoder.likelihood, x):
        for _ in range(steps):
            x = autoencoder.redraw(corrupt(x))
            chain.append(x)
    return torch.stack(chain)


def contractive_walk(
    autoencoder: Autoencoder, x: Num[Tensor, "B *X"], steps: int, scale: float
) -> Num[Tensor, "T B *X"]:
    """Sampling chain of a contractive autoencoder (Rifai et al. 2012).

    Iterates x ← decode(z + J Jᵀ ε) for T steps, with z the code of x, J = ∂z/∂x and ε ~ N(0, scale² I): each step moves
    the code along the directions in which the encoder responds to its input.

    Raises:
        ValueError: for codes that do not depend on x, or arguments out of range.

    >>> from gae.systems import cae
    >>> contractive_walk(cae((6,), latent=3), torch.zeros(2, 6), steps=4, scale=0.1).shape
    torch.Size([4, 2, 6])
    """
    at_least_one("steps", steps)
    positive("scale", scale)
    chain = []
    with door(autoencoder.likelihood, x):
        for _ in range(steps):
            z, jacobian = _linearised(autoencoder, x)
            noise = scale * torch.randn_like(z)
            pulled = torch.einsum("bzx,bz->bx", jacobian, noise)
            moved = z + torch.einsum("bzx,bx->bz", jacobian, pulled)
            with torch.no_grad():
                decoded = autoencoder.decode(moved.unflatten(1, autoencoder.likelihood.latent_shape))
                x = autoencoder.likelihood.point(decoded)
            chain.append(x)
    return torch.stack(chain)


def _linearised(autoencoder: Autoencoder, x: Tensor) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z X"]]:
    """Codes of x and their Jacobians with respect to x, flattened."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        z = autoencoder.inference.infer(autoencoder.likelihood, leaf).z[0].flatten(1)
        if not z.requires_grad:
            raise ValueError(
                "A contractive walk needs codes that depend on x. Use an encoder, or `Ascent` with `Unroll`."
            )
        rows = [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0].flatten(1) for column in z.unbind(1)]
    return z.detach(), torch.stack(rows, 1)
