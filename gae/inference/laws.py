"""Checks of a distribution q(z|x): a density over all elements of a code and, for a proposal, cover of the prior."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Size, Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    TransformedDistribution,
    biject_to,
    constraints,
)
from torch.func import vjp

from gae.inference.decoder import transformed
from gae.inference.flows import PARAMETERS, NormalizingFlow
from gae.likelihood import Likelihood
from gae.likelihood.door import hidden

PROBES = 1000  # draws of the prior that test whether a distribution covers it


def is_point(q: Distribution) -> bool:
    """Whether q has all its mass at one point: Pyro's ``Delta``, also inside wrappers."""
    return isinstance(list(_nested(q))[-1], Delta)


def point_of(q: Distribution) -> Float[Tensor, "..."]:
    """The code that represents q, the same at every call: its mean, or that of its base, transformed.

    The mean of most transformed distributions, such as flows, has no closed form. The image of the base's mean is the
    median where a monotonic function of each element is all that was applied to a symmetric base.

    Raises:
        NotImplementedError: for a distribution without either.

    >>> from torch.distributions import Normal, TanhTransform
    >>> point_of(TransformedDistribution(Normal(torch.tensor([0.5]), 2.0), TanhTransform()))
    tensor([0.4621])
    """
    try:
        return q.mean
    except NotImplementedError:
        inner = getattr(q, "base_dist", None)
    if inner is None:
        raise NotImplementedError(
            f"{type(q).__name__} has no `mean`, the code that represents q(z|x). Use the draws, `z`, or implement "
            "`mean`."
        )
    z = point_of(inner)
    for step in q.transforms if isinstance(q, TransformedDistribution) else ():
        z = step(z)
    return z


def spread_of(q: Distribution) -> Float[Tensor, "..."]:
    """Standard deviations of q: exact, or those of its base, transformed to first order.

    A transformed distribution is linearised by differences between the images of one standard deviation of each element
    of the base in both directions, which is exact for affine transforms.

    Raises:
        NotImplementedError: for a distribution without either.
    """
    try:
        return q.stddev
    except NotImplementedError:
        inner = getattr(q, "base_dist", None)
    if inner is None:
        raise NotImplementedError(f"{type(q).__name__} has no `stddev`. Implement it, or start from another density.")
    if not isinstance(q, TransformedDistribution):
        return spread_of(inner)
    centre, event = point_of(inner), inner.event_shape
    unit = torch.eye(event.numel(), dtype=centre.dtype, device=centre.device)
    move = unit.view(-1, *[1] * len(inner.batch_shape), *event) * spread_of(inner)
    ends = [centre + move, centre - move]
    for step in q.transforms:
        ends = [step(end) for end in ends]
    return (0.5 * (ends[0] - ends[1])).square().sum(0).sqrt()


def codes_from(q: Distribution, n: int) -> Float[Tensor, "n ..."]:
    """n draws of q, (n, *batch, *Z), reparameterised if possible.

    q is expanded to n rows first, since Pyro's mixtures of normals mistake a sample shape for a row index.

    >>> from pyro.distributions import MixtureOfDiagNormals
    >>> q = MixtureOfDiagNormals(torch.tensor([[[0.0]], [[9.0]]]), torch.full((2, 1, 1), 1e-3), torch.zeros(2, 1))
    >>> codes_from(q, 1).round().flatten().abs(), q.rsample((1,)).round().flatten().abs()  # of means 0 and 9
    (tensor([0., 9.]), tensor([0., 0.]))
    """
    try:
        wide = q.expand(Size((n, *q.batch_shape)))
    except NotImplementedError:  # a custom distribution
        return q.rsample(Size((n,))) if q.has_rsample else q.sample(Size((n,)))
    return wide.rsample() if wide.has_rsample else wide.sample()


def need_rows(q: Distribution, likelihood: Likelihood, x: Tensor, batches: str) -> None:
    """Raises ValueError unless q has the event shape of a code and a batch shape of the given kinds.

    Args:
        q: a distribution over codes.
        likelihood: the decoder and its prior.
        x: (B, *X).
        batches: the kinds, of ``"()"``, ``"(B,)"`` and ``"(R, B)"``, as in the error's text.

    >>> from torch.distributions import Normal
    >>> from gae.likelihood import LinearMixture
    >>> model, x, q = LinearMixture(1, 2, (5,)), torch.zeros(4, 5), Independent(Normal(torch.zeros(4, 2), 1.0), 1)
    >>> need_rows(q, model, x, "(B,)")
    >>> need_rows(q, model, x[:3], "(B,)")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: q must have batch shape (B,) with B = 3 and event shape (2,), got (4,) and (2,)....
    """
    kind = "()" if not q.batch_shape else "(R, B)" if len(q.batch_shape) == 2 else "(B,)"
    fits = len(q.batch_shape) < 3 and kind in batches and (kind == "()" or q.batch_shape[-1] == len(x))
    if not fits or q.event_shape != likelihood.latent_shape:
        raise ValueError(
            f"q must have batch shape {batches} with B = {len(x)} and event shape {tuple(likelihood.latent_shape)}, "
            f"got {tuple(q.batch_shape)} and {tuple(q.event_shape)}. Use `Independent` (`.to_event`) to make "
            "dimensions of a batch those of a code."
        )


def need_density(q: Distribution) -> None:
    """Raises ValueError unless q is a density over all elements of a code.

    Discrete distributions, points, distributions on a simplex or a sphere, transforms of fewer random numbers than a
    code has elements, and partly masked distributions have none: their ``log_prob`` cannot enter a bound.
    """
    support = _elementwise(q.support)
    shape = q.batch_shape + q.event_shape
    is_density = not any(isinstance(part, Delta) or _is_masked(part) or _is_degenerate(part) for part in _nested(q))
    if is_density and support is constraints.real:
        return
    try:
        is_density = is_density and not support.is_discrete and biject_to(support).inverse_shape(shape) == shape
    except NotImplementedError:
        is_density = False
    if not is_density:
        raise ValueError(
            f"{type(q).__name__} on {q.support} is not a density over all elements of a code of shape "
            f"{tuple(q.event_shape)}, so its log q(z|x) cannot be compared with the prior. Use one that is, such as "
            "`Normal(...).to_event(1)`; for a point estimate, return the code itself; for a custom support with an "
            "interior, register a bijection with `torch.distributions.biject_to`."
        )


class NotFiniteError(ValueError, FloatingPointError):
    """A density that is not finite at its own draws: a wrong argument, or an encoder that diverged in training."""


def log_density(q: Distribution, z: Tensor) -> Tensor:
    """log q(z) of draws z of q, in nats.

    Raises:
        ValueError: for a distribution whose density cannot be computed.
        NotFiniteError: for draws without a finite density, as with a scale of 0 or NaN.
    """
    with _require_inverses(q):
        log_q = q.log_prob(z)
    if not hidden(log_q) and not bool(torch.isfinite(log_q).all()):
        raise NotFiniteError(
            f"The log density of {type(q).__name__} is not finite at its own draws: a scale is NaN, infinite, 0, or "
            "so small that its square is 0. Use positive scales, or `laplace_approximation(likelihood, x, "
            "code)`."
        )
    return log_q


def score(q: Distribution, z: Float[Tensor, "S B *Z"]) -> Float[Tensor, "S B *Z"]:
    """The gradient ∇_z log q(z) with the parameters of q fixed, in nats per unit of z, as a constant.

    Raises:
        ValueError, NotFiniteError: as ``log_density`` does.

    >>> from torch.distributions import Normal
    >>> score(Normal(torch.zeros(1, 2), 2.0), torch.tensor([[4.0, -8.0]]))
    tensor([[-1.,  2.]])
    """
    if transformed():  # ``torch.autograd.grad`` of a new leaf fails inside the transforms of ``torch.func``
        log_q, pull = vjp(lambda point: log_density(q, point), z.detach())  # type: ignore[misc]
        return pull(torch.ones_like(log_q))[0].detach()
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        return torch.autograd.grad(log_density(q, point).sum(), point)[0]


@contextmanager
def _require_inverses(q: Distribution) -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        names = ", ".join(type(step).__name__ for part in _nested(q) for step in getattr(part, "transforms", ()))
        raise ValueError(
            f"{type(q).__name__} cannot compute log q(z|x) of its own draws: {names or 'a part of it'} has no inverse "
            "or no Jacobian determinant. Use transforms that are bijections and implement both."
        ) from error


def need_cover(q: Distribution, likelihood: Likelihood, x: Tensor) -> None:
    """Raises ValueError if draws of the prior lie outside the support of q.

    The state of the random generator is restored.
    """
    parts = list(_nested(q))
    bounds = [part.support for part in parts]
    bounds += [step.codomain for part in parts if isinstance(part, TransformedDistribution) for step in part.transforms]
    if all(_elementwise(bound) is constraints.real for bound in bounds):
        return
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        z = likelihood.prior.sample(Size((PROBES, *[1] * len(q.batch_shape))))
    with _require_inverses(q):
        is_covered = _covers(q, z.expand(PROBES, *q.batch_shape, *likelihood.latent_shape))
    if not is_covered:
        raise ValueError(
            f"{type(q).__name__} on {q.support} does not cover the prior, so an average over its draws misses a "
            "part of log p(x). Use a distribution on the whole support of the prior, such as "
            "`laplace_approximation(likelihood, x, code)`."
        )


def _covers(q: Distribution, z: Tensor) -> bool:
    """Whether all z lie in the support of q and in the range of each of its transforms."""
    support: Any = q.support
    if isinstance(q, TransformedDistribution):
        for step in reversed(q.transforms):
            codomain: Any = step.codomain
            if not bool(codomain.check(z).all()):
                return False
            z = step.inv(z)
    elif not bool(support.check(z).all()):
        return False
    inner = getattr(q, "base_dist", None)
    return inner is None or _covers(inner, z)


def _nested(q: Distribution) -> Iterator[Distribution]:
    """A distribution and those that it wraps or mixes, outermost first."""
    inner: Distribution | None = q
    while inner is not None:
        yield inner
        inner = getattr(inner, "base_dist", None) or getattr(inner, "component_distribution", None)


def _elementwise(support: Any) -> Any:
    """The constraint on each element."""
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    return support


def _is_masked(q: Distribution) -> bool:
    return isinstance(q, MaskedDistribution) and not bool(torch.as_tensor(q._mask).all())


def _is_degenerate(q: Distribution) -> bool:
    """Whether fewer random numbers are transformed than there are elements."""
    if not isinstance(q, TransformedDistribution):
        return False
    base = q.base_dist
    return (base.batch_shape + base.event_shape).numel() != (q.batch_shape + q.event_shape).numel()


def rearranged(laws: Sequence[Distribution], combine: Callable[[list[Tensor], int], Tensor]) -> Distribution:
    """One law of the kind of several, with ``combine(parameters, dimension of the observations)`` for each parameter.

    Raises:
        TypeError: for a law that is not given by its parameters alone, such as a transformed one.

    >>> from torch.distributions import Independent, Normal
    >>> parts = [Independent(Normal(torch.zeros(size, 2), 1.0), 1) for size in (3, 4)]
    >>> rearranged(parts, torch.cat).batch_shape
    torch.Size([7])
    """
    dimension = len(laws[0].batch_shape) - 1
    if dimension < 0 or any(type(law) is not type(laws[0]) for law in laws):
        raise TypeError("Laws q(z|x) of different kinds, or without a batch, cannot become one.")
    return _rearranged(laws, lambda values: combine(values, dimension))


def _rearranged(laws: Sequence[Distribution], combine: Callable[[list[Tensor]], Tensor]) -> Distribution:
    kind: Any = type(laws[0])
    if isinstance(laws[0], Independent):
        base = _rearranged([law.base_dist for law in laws], combine)  # type: ignore[attr-defined]
        return kind(base, laws[0].reinterpreted_batch_ndims, validate_args=False)
    flows = [law.flow for law in laws if isinstance(law, NormalizingFlow)]
    if flows and all(flow is flows[0] for flow in flows):
        return kind(flows[0], *(combine([getattr(law, name) for law in laws]) for name in PARAMETERS))
    if isinstance(laws[0], MultivariateNormal):
        names = ["loc", "scale_tril"]
    else:
        names = [name for name in laws[0].arg_constraints if name in vars(laws[0])]
    accepted = set(signature(kind).parameters) - {"validate_args"}
    if not names or not accepted <= laws[0].arg_constraints.keys() | set(names):
        raise TypeError(
            f"Laws q(z|x) of the kind {kind.__name__} cannot be cut or joined along the observations. Encode each "
            "batch by itself, without batch_size; for a flow, use `gae.systems.FlowEncoder`."
        )
    return kind(**{name: combine([getattr(law, name) for law in laws]) for name in names}, validate_args=False)
