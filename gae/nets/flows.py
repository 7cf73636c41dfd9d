"""Conditional normalizing flows of the package ``zuko``, an optional dependency."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.distributions import Distribution

from gae.data.extras import optional
from gae.nets.networks import ActivationType, need_sizes
from gae.storage import recorded

REMEDY = 'Full-covariance encoders (`posterior="full"`) and flows of `pyro.distributions.transforms` need nothing more.'


@recorded
def maf(
    features: int,
    context: int,
    transforms: int = 3,
    hidden: Sequence[int] = (64, 64),
    activation: ActivationType = nn.SiLU,
) -> nn.Module:
    """A masked autoregressive flow (Papamakarios et al. 2017), whose transforms are affine: ``zuko.flows.MAF``.

    The density of a given code takes one pass of each transform's network, a draw as many as it has elements.

    Args:
        features: number of elements of a vector.
        context: number of elements of the vector on which the flow is conditioned.
        transforms: number of transforms, of alternating order of the elements.
        hidden: widths of the hidden layers of each transform's network.
        activation: the activation between them.

    Raises:
        ImportError: without zuko.
    """
    return _flow("MAF", features, context, transforms, hidden, activation)


@recorded
def iaf(
    features: int,
    context: int,
    transforms: int = 3,
    hidden: Sequence[int] = (64, 64),
    activation: ActivationType = nn.SiLU,
) -> nn.Module:
    """An inverse autoregressive flow (Kingma et al. 2016): ``maf`` in the opposite direction.

    A draw takes one pass of each transform's network, and its density none; the density of another code takes as many
    passes as it has elements. Encoders draw, so that this is the faster of the two in training.

    Args:
        features: number of elements of a vector.
        context: number of elements of the vector on which the flow is conditioned.
        transforms: number of transforms, of alternating order of the elements.
        hidden: widths of the hidden layers of each transform's network.
        activation: the activation between them.

    Raises:
        ImportError: without zuko.
    """
    lazy, flow = _zuko().lazy, _flow("MAF", features, context, transforms, hidden, activation)
    reversed_flow: nn.Module = lazy.Flow(lazy.LazyInverse(flow.get_submodule("transform")), flow.get_submodule("base"))
    return reversed_flow


@recorded
def nsf(
    features: int,
    context: int,
    transforms: int = 3,
    hidden: Sequence[int] = (64, 64),
    activation: ActivationType = nn.SiLU,
    bins: int = 8,
) -> nn.Module:
    """A neural spline flow (Durkan et al. 2019), of monotonic splines on [-5, 5]: ``zuko.flows.NSF``.

    Args:
        features: number of elements of a vector.
        context: number of elements of the vector on which the flow is conditioned.
        transforms: number of transforms, of alternating order of the elements.
        hidden: widths of the hidden layers of each transform's network.
        activation: the activation between them.
        bins: number of pieces of each spline.

    Raises:
        ImportError: without zuko.
    """
    need_sizes(bins=bins)
    return _flow("NSF", features, context, transforms, hidden, activation, bins=bins)


def _flow(
    name: str,
    features: int,
    context: int,
    transforms: int,
    hidden: Sequence[int],
    activation: ActivationType,
    **options: Any,
) -> nn.Module:
    need_sizes(features=features, context=context, transforms=transforms, hidden=hidden)
    build = getattr(_zuko().flows, name)
    flow: nn.Module = build(
        features, context, transforms=transforms, hidden_features=tuple(hidden), activation=activation, **options
    )
    return flow


def _zuko() -> Any:
    """The package zuko, whose import would switch off torch's checks of the arguments of distributions."""
    validate: bool = Distribution._validate_args
    try:
        return optional("zuko", "flows", "A MAF, IAF or NSF flow", REMEDY)
    finally:
        Distribution.set_default_validate_args(validate)
