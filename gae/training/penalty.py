"""Penalties of a training loss: functions of the encoder's input and the encoding, to be minimised."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from gae.data.checks import positive
from gae.inference import Encoding
from gae.nets import InDataUnits
from gae.storage import Part

__all__ = ["Commitment", "Contractive", "SparseActivation", "SparseActivity"]


class Commitment(Part, nn.Module):
    """Commitment loss: weight · mean over the batch of Σ ‖encoder's output - its codebook vector‖².

    It keeps the outputs of ``VectorQuantizer``'s encoder near their vectors, which are constants here (van den Oord et
    al. 2017, eq. 3).

    Raises:
        ValueError: when called, for codes of an engine without an encoder.
    """

    def __init__(self, weight: float):
        super().__init__()
        self.weight = positive("weight", weight)

    def forward(self, seen: Num[Tensor, "B *X"], encoding: Encoding) -> Float[Tensor, ""]:
        if encoding.encoded is None:
            raise ValueError(
                f"The commitment loss needs an encoder whose outputs are quantised, got codes of `{encoding.engine}`. "
                "Use `VectorQuantizer`, or omit the penalty."
            )
        square = (encoding.encoded - encoding.z.detach()).square().sum()
        return self.weight * square / encoding.log_joint.numel()


class Contractive(Part, nn.Module):
    """Contractive penalty: weight · mean over the batch of ‖∂z/∂x‖²_F (Rifai et al. 2011).

    The derivative of the code is with respect to the input, not the weights (ledger D30). The cost is one backward pass
    per element of a code. A free decoder can evade the penalty: an encoder A/t with a decoder tB reconstructs as A with
    B does, and pays 1/t² of it (ledger D34, D46). Tied weights or weight decay fix the scale.

    Args:
        weight: in nats.
        event_shape: X, for a derivative per unit of the training data (``InDataUnits``), so that the penalty does not
            change with the unit; None for one per unit of x.

    Raises:
        ValueError: when called, if the code does not depend on x (an ascent with ``Detach``).
    """

    def __init__(self, weight: float, event_shape: int | Sequence[int] | None = None):
        super().__init__()
        self.weight = positive("weight", weight)
        self.units = None if event_shape is None else InDataUnits(nn.Identity(), event_shape)

    def forward(self, seen: Num[Tensor, "B *X"], encoding: Encoding) -> Float[Tensor, ""]:
        code = encoding.z.flatten(2).sum(0)  # (B, Z)
        if not (code.requires_grad and seen.requires_grad):
            raise ValueError(
                "The contractive penalty needs codes that depend on x. Use an encoder, or `Ascent` with `Unroll`."
            )
        square = seen.new_zeros(())
        for column in code.unbind(1):
            (gradient,) = torch.autograd.grad(column.sum(), seen, create_graph=True, allow_unused=True)
            if gradient is not None:
                square = square + (gradient if self.units is None else gradient * self.units.scale).square().sum()
        return self.weight * square / (len(encoding.z) * len(seen))


class SparseActivation(Part, nn.Module):
    """Sparsity penalty of each activation: weight · mean over the batch of Σ_j KL(Bernoulli(z_j) ‖ Bernoulli(ρ)).

    In nats, for codes in (0, 1). It is least for a constant code z = ρ, whereas ``SparseActivity`` allows activations
    that differ (ledger D31).

    Raises:
        ValueError: when called, for codes outside [0, 1].
    """

    def __init__(self, weight: float, rho: float = 0.05):
        super().__init__()
        self.weight, self.rho = positive("weight", weight), _probability(rho)

    def forward(self, seen: Num[Tensor, "B *X"], encoding: Encoding) -> Float[Tensor, ""]:
        inside = _inside(_activations(encoding))
        log_rho, log_rest = math.log(self.rho), math.log1p(-self.rho)
        divergence = inside * (inside.log() - log_rho) + (1 - inside) * ((-inside).log1p() - log_rest)
        return self.weight * divergence.sum() / encoding.log_joint.numel()


class SparseActivity(Part, nn.Module):
    """Sparsity penalty: weight · Σ_j KL(Bernoulli(ρ) ‖ Bernoulli(mean of z_j over the batch)), in nats.

    For codes in (0, 1), such as those of an encoder that ends in a sigmoid (Ng 2011; ledger D31).

    Raises:
        ValueError: when called, for codes outside [0, 1].
    """

    is_mean = False

    def __init__(self, weight: float, rho: float = 0.05):
        super().__init__()
        self.weight, self.rho = positive("weight", weight), _probability(rho)

    def forward(self, seen: Num[Tensor, "B *X"], encoding: Encoding) -> Float[Tensor, ""]:
        mean = _inside(_activations(encoding).flatten(2).mean((0, 1)))
        rho = self.rho
        divergence = rho * (math.log(rho) - mean.log()) + (1 - rho) * (math.log1p(-rho) - (-mean).log1p())
        return self.weight * divergence.sum()


def _probability(rho: float) -> float:
    if not 0 < rho < 1:
        raise ValueError(f"rho must lie in (0, 1), got {rho}.")
    return rho


def _activations(encoding: Encoding) -> Float[Tensor, "S B *Z"]:
    low, high = (float(bound) for bound in encoding.z.detach().aminmax())
    if low < 0 or high > 1:
        raise ValueError(f"Activities must lie in [0, 1], got {low:.3g} … {high:.3g}. End the encoder in a sigmoid.")
    return encoding.z


def _inside(probability: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Probabilities whose logarithms are finite."""
    eps = torch.finfo(probability.dtype).eps
    return probability.clamp(eps, 1 - eps)
