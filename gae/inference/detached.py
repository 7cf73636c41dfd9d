"""Draws of q(z|x) as constants, for objectives that reach the encoder through its log density."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from gae.inference.base import Code, Inference
from gae.inference.laws import log_density
from gae.likelihood import Likelihood


class DetachedDraws(Inference):
    """An engine whose draws of q(z|x) are constants: gradients reach the encoder through log q(z|x) alone.

    For ``wake_wake``, which scores draws instead of moving them.

    Args:
        inner: an engine with a density q(z|x).
        sleep: whether to simulate a code and an observation of the model for each x, with the same elements missing,
            whenever gradients are recorded: ``Encoding.asleep`` is log q(z|x) of them, for ``wake_sleep``.

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

    def __init__(self, inner: Inference, sleep: bool = False):
        super().__init__()
        self.inner, self.sleep = inner, sleep

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        code = self.inner.infer(likelihood, x, k)
        if code.q is None or code.k is not None:
            raise TypeError(
                f"`DetachedDraws` needs draws of a density q(z|x) over continuous codes, which "
                f"`{type(self.inner).__name__}` does not give here. Use it around `Amortized` with a guide."
            )
        z = code.z.detach()
        asleep = self._asleep(likelihood, x) if self.sleep and torch.is_grad_enabled() else None
        return replace(code, z=z, log_q=log_density(code.q, z).expand(z.shape[:2]), log_joint=None, asleep=asleep)

    def _asleep(self, likelihood: Likelihood, x: Tensor) -> Float[Tensor, "1 B"]:
        """log q(z|x) of draws of the model, as many as there are rows of x."""
        with torch.no_grad():
            simulated, z = likelihood.sample_joint(len(x))
            simulated = torch.where(x.isnan(), x, simulated.to(x.dtype))
        q = self.inner.infer(likelihood, simulated).q
        assert q is not None
        return log_density(q, z.unsqueeze(0)).mean(0, keepdim=True)  # the rows of q are the same
