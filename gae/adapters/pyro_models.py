"""Autoencoders of Pyro models and guides, taken as they are."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from pyro.infer.autoguide import AutoContinuous, AutoGuide
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from gae.adapters.laws import RowsOfSite, elementwise, flat_law, leading_law, rows_of
from gae.adapters.programs import (
    Program,
    Site,
    as_rows,
    from_rows,
    is_real,
    need_plain,
    repeated,
    shared_axes,
    unvalidated,
)
from gae.adapters.pyro_guides import FittedRows, PyroGuide
from gae.analysis.engines import mode_ascent
from gae.autoencoder import Autoencoder
from gae.data import Dataset, training_data
from gae.inference import Amortized, Inference
from gae.inference.laws import is_point, point_of, rearranged
from gae.likelihood import Likelihood
from gae.likelihood.base import LogJoint
from gae.objective import elbo, joint

FEW = 3  # rows on which a program is checked


def from_pyro(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    data: Any,
    site: str | None = None,
) -> Autoencoder:
    """An autoencoder of a Pyro model and guide, as they are: functions of x, modules with such methods, autoguides.

    The model samples one code for each observation, at a site of any name, and observes x at another; plates may be
    nested, at any dimension, and subsampled. Log densities are those of single observations, without the factor of a
    subsampled plate. Codes are vectors: the elements of the site for one observation, in order. Parameters in Pyro's
    global store start from their values there.

    A guide that is no function of x, such as an ``AutoNormal`` or one with a parameter for each row, holds the
    densities of the rows of ``data`` alone, and refuses others.

    Args:
        model: a callable of a batch x (N, *X).
        guide: likewise; None for an ascent by L-BFGS to the mode of each code.
        data: observations, as a tensor, a data set or any source of ``gae.data.load``: a few for a guide that is a
            function of x, and all rows for one that is not.
        site: the latent site; by default the only one of the model.

    Raises:
        ValueError, TypeError: if the model or guide does not fit: for other latent sites, factors, scales or masks, an
            observed site that is not x, codes with constraints, a prior that depends on x, rows that depend on each
            other, a guide of another site or without a density for each row.

    >>> import pyro
    >>> import pyro.distributions as dist
    >>> decoder = nn.Linear(2, 5)
    >>> def model(x):
    ...     pyro.module("decoder", decoder)
    ...     with pyro.plate("images", len(x)):
    ...         latent = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...         pyro.sample("pixels", dist.Normal(decoder(latent), 0.5).to_event(1), obs=x)
    >>> autoencoder = from_pyro(model, None, torch.randn(7, 5))
    >>> autoencoder.encode(torch.randn(4, 5)).point.shape
    torch.Size([4, 2])
    """
    data = data if isinstance(data, Tensor) else training_data(data)
    x = data.train if isinstance(data, Dataset) else data
    for part, name in ((model, "model"), (guide, "guide")):
        if not callable(part) and (part is not None or name == "model"):
            raise TypeError(f"The {name} must be a Pyro program, a callable of x, got {type(part).__name__}.")
    likelihood = PyroLikelihood(model, x[:FEW], site)
    if guide is None:
        return Autoencoder(likelihood, mode_ascent(), joint)
    engine = _engine(guide, likelihood, x)
    return Autoencoder(likelihood, engine, elbo)


class PyroLikelihood(Likelihood):
    """A Pyro model of a batch x, with one latent code for each observation.

    Args:
        model: see ``from_pyro``.
        x: a few observations, on which it is checked.
        site: the latent site.
    """

    example: Tensor

    def __init__(self, model: Callable[..., Any], x: Num[Tensor, "N *X"], site: str | None = None):
        program = Program(model, "model")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            sites = program.attempt(x)
        rows = program.rows or FEW
        latent, observed = _sites(sites, site, repeated(x, rows))
        axes = shared_axes(latent, observed, rows)
        width = as_rows(latent.value, axes[0], len(latent.law.event_shape)).shape[1]
        prior = _SitePrior(program, latent.name, axes[0], x[:1], width)
        super().__init__(Size([width]), x.shape[1:], prior)
        self.site, self.observed = latent.name, observed.name
        self.latent_axis, self.observed_axis = axes
        self.latent_event, self.value_shape = len(latent.law.event_shape), latent.value.shape
        self.register_buffer("example", x[:1].clone(), persistent=False)
        support = elementwise(observed.law.support)
        self.support = support
        self.support_text = f"the support {support} of the site {observed.name!r}"
        _check_rows(self, latent, rows, repeated(x, rows))

    @property
    def program(self) -> Program:
        """The model, with its parameters."""
        return self.latent_prior.program  # type: ignore[return-value]

    def log_joint(
        self, x: Num[Tensor, "B *X"], z: Float[Tensor, "S B W"], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        samples = z.shape[0]
        rows = x.expand(samples, *x.shape).flatten(0, 1)
        codes = z.expand(samples, len(x), z.shape[2]).flatten(0, 1)
        parts = []
        with unvalidated():
            for part, size in self.program.parts(rows):
                sites = self._run(rows[part], codes[part])
                parts.append(sum(self._row_densities(s) for s in sites.values())[:size])  # type: ignore[index]
        return torch.cat(parts).view(samples, len(x))

    def bind(self, x: Num[Tensor, "B *X"]) -> LogJoint:
        return lambda z, k=None: self.log_joint(x, z, k)

    def forward(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Distribution:
        codes = z.reshape(-1, *self.latent_shape)
        rows = self.example.expand(len(codes), *self.event_shape)
        with unvalidated():
            laws = [
                (self._run(rows[part], codes[part])[self.observed].law, size)
                for part, size in self.program.parts(codes)
            ]
        return RowsOfSite(laws, self.observed_axis, z.shape[:-1], self.event_shape)

    def _run(self, x: Tensor, codes: Tensor) -> dict[str, Site]:
        filled = self.program.filled(codes)
        value = from_rows(filled, self.value_shape, self.latent_axis, self.latent_event)
        return self.program.run(self.program.filled(x), {self.site: value})

    def _row_densities(self, site: Site) -> Float[Tensor, " N"]:
        axis = self.latent_axis if site.name == self.site else self.observed_axis
        log_density = site.law.log_prob(site.value)
        return log_density.movedim(axis, 0).flatten(1).sum(1) if log_density.dim() > 1 else log_density


class _SitePrior(nn.Module):
    """The law of one code, as a module; it holds the program."""

    example: Tensor

    def __init__(self, program: Program, site: str, axis: int, x: Tensor, width: int):
        super().__init__()
        self.program, self.site, self.axis, self.width = program, site, axis, width
        self.register_buffer("example", x.clone(), persistent=False)

    def forward(self) -> Distribution:
        rows = self.program.rows or 1
        with unvalidated(), torch.random.fork_rng(devices=[self.example.device] if self.example.is_cuda else []):
            law = self.program.run(repeated(self.example, rows))[self.site].law
        return rearranged(
            [flat_law(leading_law(law, self.axis), rows, self.width)], lambda values, axis: values[0].select(axis, 0)
        )


def _sites(sites: dict[str, Site], name: str | None, x: Tensor) -> tuple[Site, Site]:
    """The latent and the observed site; raises ValueError for a model that has others."""
    for each in sites.values():
        need_plain(each, "model")
    latent = {n: s for n, s in sites.items() if not s.is_observed}
    observed = [s for s in sites.values() if s.is_observed]
    listed = ", ".join(map(repr, latent)) or "none"
    if name is not None and name not in latent:
        raise ValueError(f"The model has no latent site {name!r}. Its latent sites: {listed}.")
    if len(latent) != 1:
        raise ValueError(
            f"The model must have one latent site, a code for each observation, got {listed}. Sum the others out, or "
            "give them fixed values with `pyro.poutine.condition`."
        )
    if len(observed) != 1:
        names = ", ".join(repr(s.name) for s in observed) or "none"
        raise ValueError(f"The model must observe x at one site, got {names}. Pass `obs=x`.")
    (code,), (seen,) = latent.values(), observed
    if not is_real(code.law.support):
        raise ValueError(
            f"A code must be free to take all real values, but the site {code.name!r} has the support "
            f"{code.law.support}. Sample an unconstrained variable and transform it."
        )
    axis = shared_axes(code, seen, len(x))[1]
    values = as_rows(seen.value, axis, len(seen.law.event_shape))
    if values.numel() != x.numel() or not torch.equal(values.to(x), x.flatten(1)):
        raise ValueError(
            f"The site {seen.name!r} must observe x itself, in any shape, got values of shape "
            f"{tuple(seen.value.shape)} for x of shape {tuple(x.shape)}. Transform the data before the model."
        )
    return code, seen


def _check_rows(likelihood: PyroLikelihood, latent: Site, rows: int, x: Tensor) -> None:
    """Raises ValueError unless each observation has its own term, the same each time, with a gradient in its code."""
    z = as_rows(latent.value, likelihood.latent_axis, likelihood.latent_event)
    prior = likelihood.prior
    own = from_rows(z[:1].expand(rows, -1), latent.value.shape, likelihood.latent_axis, likelihood.latent_event)
    density = likelihood._row_densities(replace(latent, value=own))
    if not torch.allclose(density, prior.log_prob(z[:1]).expand(rows), rtol=1e-4, atol=1e-4):
        raise ValueError(
            f"The law of the site {latent.name!r} must be the same for all observations: the prior of a code depends "
            "on neither x nor the row."
        )
    with torch.no_grad():
        whole, again = (likelihood.log_joint(x, z.unsqueeze(0))[0] for _ in range(2))
        turned = likelihood.log_joint(x.flip(0), z.flip(0).unsqueeze(0))[0].flip(0)
        alone = likelihood.log_joint(x[:1], z[:1].unsqueeze(0))[0]
    if not _close(whole, again):
        raise ValueError("The model gives another density each time. Remove dropout and noise: call `.eval()`.")
    if not (_close(whole, turned) and _close(whole[:1], alone)):
        raise ValueError(
            "The density of an observation depends on the rest of its batch. Avoid batch statistics, or call `.eval()`."
        )
    with torch.enable_grad():
        code = z[:1].detach().clone().requires_grad_()
        value = likelihood.log_joint(x[:1], code.unsqueeze(0)) - prior.log_prob(code)
        grad = torch.autograd.grad(value.sum(), code, allow_unused=True)[0] if value.requires_grad else None
    if grad is None or not bool((grad != 0).any()):
        raise ValueError(
            f"No gradient of the density of x reaches the site {latent.name!r}: x does not depend on it, or only "
            "through `detach`, rounding or numpy."
        )


def _close(one: Tensor, other: Tensor) -> bool:
    slack = 1e3 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=slack, atol=slack)


def _engine(guide: Callable[..., Any], likelihood: PyroLikelihood, x: Tensor) -> Inference:
    program, width = Program(guide, "guide"), likelihood.latent_shape.numel()
    law = PyroGuide(program, likelihood.site, likelihood.latent_axis, width)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if isinstance(program.module, AutoGuide):
            first = -likelihood.latent_axis == len(likelihood.value_shape) - likelihood.latent_event
            if isinstance(program.module, AutoContinuous) and not first:
                raise ValueError("An autoguide of all codes together needs the rows along the leftmost plate dim.")
            law(x)
            return FittedRows(law, x)
        program.attempt(x)
        rows = program.rows or FEW
        batch = repeated(x, rows)
        one, other, turned = law(batch), law(batch), law(batch.flip(0))
        if not _same(one, other):
            raise ValueError("The guide gives another law each time. Remove dropout and noise: call `.eval()`.")
        if _same(rows_of(one, torch.arange(rows - 1, -1, -1)), turned):
            return Amortized(law)
        if rows == len(x) and _same(one, turned):
            return FittedRows(law, x)
    raise ValueError("The guide's law of a code depends on the rest of its batch. Avoid batch statistics.")


def _same(one: Distribution, other: Distribution) -> bool:
    slack = 1e-5
    pairs = [(point_of(one), point_of(other))]
    pairs += [] if is_point(one) else [(one.stddev, other.stddev)]
    return all(torch.allclose(a, b, rtol=slack, atol=slack) for a, b in pairs)
