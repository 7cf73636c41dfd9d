"""Warm starts: codes that closed-form learning carries on from epoch to epoch."""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from gae.inference.base import Code, Inference
from gae.likelihood import Likelihood, MonotoneCodes


class WarmStart(Inference):
    """An engine whose training codes go on from those of the epoch before, in closed-form learning.

    ``inner`` infers the codes of new data, and of the training data in the first epoch. In every later epoch a few
    sweeps of the likelihood's own update rule improve them, so that codes and parameters alternate as in the usual
    algorithms of matrix factorisation (Lee & Seung 2001; Cichocki & Phan 2009). The learner keeps the codes, also in
    its checkpoints; the model has none.

    Args:
        inner: the engine for new data, such as ``Ascent`` with ``MonotoneAscent``.
        sweeps: of the update rule in each later epoch.

    >>> from gae.inference import Ascent, Constant, MonotoneAscent
    >>> from gae.likelihood import NonNegativeGaussian
    >>> engine = WarmStart(Ascent(Constant(torch.ones(2)), MonotoneAscent(), 50))
    >>> model, x = NonNegativeGaussian(2, (3,)), torch.rand(4, 3)
    >>> found = engine.infer(model, x).z
    >>> torch.allclose(engine.resume(model, x, found).z, found, atol=1e-3)
    True
    """

    def __init__(self, inner: Inference, sweeps: int = 2):
        super().__init__()
        if sweeps < 1:
            raise ValueError(f"sweeps must be at least 1, got {sweeps}.")
        self.inner, self.sweeps = inner, sweeps

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        return self.inner.infer(likelihood, x, k)

    @torch.no_grad()
    def resume(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B *Z"]) -> Code:
        """Codes after a few sweeps from z, whose ``log_joint`` is at least that of z.

        Raises:
            TypeError: for a likelihood without an update rule (``MonotoneCodes``).
        """
        if not isinstance(likelihood, MonotoneCodes):
            raise TypeError(
                f"`WarmStart` needs a likelihood with an update rule, which {type(likelihood).__name__} does not have. "
                f"Use `{type(self.inner).__name__}` without it."
            )
        return Code(likelihood.update_codes(x, z, sweeps=self.sweeps))
