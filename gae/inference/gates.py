"""The weights of blended charts: where the ascent of a smooth LLGAE starts."""

import torch
from jaxtyping import Int, Num
from torch import Tensor

from gae.data.checks import positive
from gae.inference.base import Code, Inference
from gae.likelihood import BlendedCharts, Likelihood

GATES = ("residual", "centre")


class ChartGate(Inference):
    """The code (g, 0) of ``BlendedCharts``, whose softargmax weighs the charts by how near they are to x.

    ``by="centre"``, g_k = -‖x - mean_k‖² / temperature, is the note's softargmax at temperature 1. As the temperature
    falls, the blend becomes the chart of the *nearest centre*, which need not be the best one. ``by="residual"``,
    g_k = -min_z ‖x - mean_k - z loadings_k‖² / temperature, becomes the best chart, max_k max_z: the hierarchical
    LLGAE (ledger D15). Both are differentiable in the charts and in x, and follow no labels.

    Args:
        temperature: in squared data units.
        by: what is weighed.

    Raises:
        TypeError: for another likelihood than ``BlendedCharts``.

    >>> model = BlendedCharts(3, 2, (5,))
    >>> ChartGate()(model, torch.randn(4, 5)).z.shape
    torch.Size([1, 4, 5])
    """

    def __init__(self, temperature: float = 1.0, by: str = "residual"):
        super().__init__()
        if by not in GATES:
            raise ValueError(f"Unknown gate {by!r}. Valid gates: {', '.join(GATES)}.")
        self.temperature, self.by = positive("temperature", temperature), by

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        if not isinstance(likelihood, BlendedCharts):
            raise TypeError(
                f"`ChartGate` weighs the charts of `BlendedCharts`, got {type(likelihood).__name__}. "
                "To start another ascent, use `Zeros()` or an encoder."
            )
        if k is not None:
            raise ValueError("`ChartGate` finds weights of all charts, got a given k. `BlendedCharts` has none.")
        distance = likelihood.to_charts(x) if self.by == "residual" else likelihood.to_centres(x)
        gate = -(distance - distance.amin(1, keepdim=True)) / self.temperature  # a softargmax sees differences alone
        return Code(torch.cat([gate.to(x.dtype), x.new_zeros(len(x), likelihood.width)], 1).unsqueeze(0))
