"""Draws of q(z|x) as constants, for objectives that reach the encoder through its log density."""

from dataclasses import replace

from jaxtyping import Int, Num
from torch import Tensor

from gae.inference.base import Code, Inference
from gae.inference.laws import log_density
from gae.likelihood import Likelihood


class DetachedDraws(Inference):
    """An engine whose draws of q(z|x) are constants: gradients reach the encoder through log q(z|x) alone.

    For ``wake_wake``, which scores draws instead of moving them.

    Raises:
        TypeError: for an engine without a density q(z|x).

    >>> import torch
    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model, x = LinearMixture(1, 2, (5,)), torch.randn(3, 5)
    >>> encoding = DetachedDraws(ClosedForm(samples=4))(model, x)
    >>> encoding.z.requires_grad, encoding.log_q.requires_grad
    (False, True)
    """

    def __init__(self, inner: Inference):
        super().__init__()
        self.inner = inner

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        code = self.inner.infer(likelihood, x, k)
        if code.q is None or code.k is not None:
            raise TypeError(
                f"`DetachedDraws` needs draws of a density q(z|x) over continuous codes, which "
                f"`{type(self.inner).__name__}` does not give here. Use it around `Amortized` with a guide."
            )
        z = code.z.detach()
        return replace(code, z=z, log_q=log_density(code.q, z).expand(z.shape[:2]), log_joint=None)
