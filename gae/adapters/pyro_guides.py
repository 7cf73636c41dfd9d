"""Pyro guides as laws of single observations, and engines of those that hold the laws of fixed rows."""

from typing import Any

import torch
from jaxtyping import Int, Num
from pyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from gae.adapters.laws import flat_law, leading_law, rows_of
from gae.adapters.programs import Program, need_plain, unvalidated
from gae.inference import Code, Inference
from gae.inference.laws import is_point, log_density, point_of, rearranged
from gae.likelihood import Likelihood


class PyroGuide(nn.Module):
    """A Pyro guide as a function from x to the law of its latent site.

    Args:
        program: the guide.
        site: its latent site.
        axis: the axis of the observations in the batch shape of the site.
        width: the number of elements of a code.
    """

    def __init__(self, program: Program, site: str, axis: int, width: int):
        super().__init__()
        self.program, self.site, self.axis, self.width = program, site, axis, width

    def forward(self, x: Num[Tensor, "N *X"]) -> Distribution:
        parts = []
        for part, size in self.program.parts(x):
            rows = self.program.filled(x[part])
            law = flat_law(leading_law(self._law(rows), self.axis), len(rows), self.width)
            parts.append(law if size == len(rows) else rows_of(law, torch.arange(size, device=x.device)))
        return parts[0] if len(parts) == 1 else rearranged(parts, torch.cat)

    def _law(self, x: Tensor) -> Any:
        with unvalidated(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            if isinstance(self.program.module, AutoContinuous):
                with self.program._handled():
                    return _of_rows(self.program.module, x, self.width)
            sites = self.program.run(x)
        if (inner := f"{self.site}_unconstrained") in sites and is_point(sites[self.site].law):  # of an AutoNormal
            sites = {self.site: sites[inner]}
        others = [name for name in sites if name != self.site]
        if self.site not in sites or others:
            listed = ", ".join(map(repr, sites)) or "none"
            raise ValueError(f"The guide must have the one sample site {self.site!r} of the model, got {listed}.")
        need_plain(sites[self.site], "guide")
        return sites[self.site].law


def _of_rows(guide: AutoContinuous, x: Tensor, width: int) -> Distribution:
    """The laws of single rows of an autoguide whose normal law is one of all codes together."""
    if not isinstance(guide, AutoDiagonalNormal):
        raise ValueError(
            f"{type(guide).__name__} is one law of the codes of all rows together, so that a row has no density of its "
            "own. Use AutoNormal or AutoDiagonalNormal, or a guide that is a function of x."
        )
    guide(x)  # its first call makes its parameters
    posterior = guide.get_posterior()
    base = posterior.base_dist if isinstance(posterior, Independent) else posterior
    loc, scale = base.loc.reshape(-1, width), base.scale.reshape(-1, width)
    return Independent(Normal(loc, scale, validate_args=False), 1)


class FittedRows(Inference):
    """A guide that holds the laws of the rows that it was fitted to, and no function of x.

    Args:
        guide: returns the laws of all rows.
        x: the rows.

    Raises:
        ValueError: for an observation that is none of the rows.
    """

    x: Tensor

    def __init__(self, guide: PyroGuide, x: Num[Tensor, "N *X"]):
        super().__init__()
        self.guide = guide
        self.register_buffer("x", x.clone())

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        q = self.guide(self.x)
        index = self._index(x)
        if is_point(q):
            return Code(point_of(q)[index].unsqueeze(0))
        q = rows_of(q, index)
        z = q.rsample()
        return Code(z.unsqueeze(0), log_q=log_density(q, z).unsqueeze(0), q=q)

    def _index(self, x: Tensor) -> Int[Tensor, " B"]:
        known = {row.tobytes(): i for i, row in reversed(list(enumerate(self.x.detach().cpu().numpy())))}
        index = [known.get(row.tobytes(), -1) for row in x.detach().cpu().numpy()]
        if min(index) < 0:
            raise ValueError(
                f"The guide holds laws of the {len(self.x)} rows that it was fitted to, not a function of x, and row "
                f"{index.index(-1)} of this batch is none of them. Use a guide that is a function of x, or another "
                "engine, such as `gae.inference.Ascent`."
            )
        return torch.tensor(index, device=x.device)
