"""Amortised inference: Pyro guides, networks that return a distribution, and deterministic encoders."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from jaxtyping import Int, Num
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to, constraints

from gae.data.checks import at_least_one
from gae.inference.base import Code, Inference, need_mask
from gae.inference.flows import with_base
from gae.inference.laws import codes_from, is_point, log_density, need_density
from gae.likelihood import Likelihood
from gae.likelihood.door import door


class Amortized(Inference):
    """Amortised inference: one function from x to a code or a density q(z|x), shared by all data.

    Args:
        guide: one of

            - a Pyro guide: a callable or ``PyroModule`` taking x (B, *X), with one sample site ``"z"`` of batch
              (B,) and event Z. Parameters that a plain callable declares (``pyro.param``, ``pyro.module``) become
              parameters of this module at its first call; from then on it cannot be copied or pickled, since a copy
              would train the same networks. Pyro's global parameter store is not changed;
            - a module or callable that returns a torch or Pyro distribution, or a flow of zuko, of batch (B,) and
              event Z. A distribution without a batch is that of every observation;
            - a module or callable that returns codes (B, *Z): a deterministic encoder, for which ``log_q`` is None. A
              Pyro ``Delta`` counts as one too, such as that of ``AutoDelta``.
        samples: S, reparameterised draws per observation.

    Raises:
        ValueError: if the guide's output does not fit the likelihood's codes, is a distribution without a density over
            all their elements (discrete, on a simplex or a sphere), or has a density at its own draws that is not
            finite (a scale of 0 or NaN) or unknown (a transform that is not a bijection).
        TypeError: on copying or pickling if the guide is a plain callable with parameters.

    >>> from gae.likelihood import Gaussian
    >>> from pyro.distributions import Normal
    >>> encode = nn.Linear(3, 2)
    >>> def guide(x):
    ...     pyro.module("encode", encode)
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", Normal(encode(x), 1.0).to_event(1))
    >>> Amortized(guide, samples=4)(Gaussian(nn.Linear(2, 3), 2), torch.zeros(5, 3)).log_q.shape
    torch.Size([4, 5])
    """

    def __init__(self, guide: Callable[[Tensor], Any], samples: int = 1):
        super().__init__()
        at_least_one("samples", samples)
        self.guide = guide
        self.samples = samples
        self.declared = nn.ParameterDict()

    def __getstate__(self) -> Any:
        if len(self.declared) and not isinstance(self.guide, nn.Module):
            raise TypeError(
                "This guide is a plain function whose networks are not part of the model: a copy would share them, and "
                "training one would change both. Make the guide an `nn.Module` or a `PyroModule`."
            )
        return super().__getstate__()

    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        site = _Site(self)
        try:
            with site, pyro.get_param_store().scope():  # a PyroModule registers its parameters in the store as it runs
                output = self._output(x)
        except ValueError:  # of a distribution with NaN among its parameters
            need_mask(likelihood, x, None)
            raise
        if site.q is not None:
            need_mask(likelihood, x, site.z)
            code = self._from_density(site.q, site.z, likelihood)
        elif isinstance(output, Distribution):
            q = with_base(output)
            q = q if q.batch_shape else q.expand(x.shape[:1])  # Pyro's conditional flows have no batch until they draw
            z = self._sample(q)
            need_mask(likelihood, x, z)
            code = self._from_density(q, z, likelihood)
        elif isinstance(output, Tensor):
            need_mask(likelihood, x, output)
            code = self._deterministic(output)
        else:
            raise TypeError(
                'The guide must have a sample site "z", or return a distribution or a tensor of codes; '
                f"got {type(output).__name__} and no site."
            )
        _check_codes(code, likelihood, x)
        return code if k is None else code.expand_components(k)

    def _output(self, x: Tensor) -> Any:
        if self.samples == 1:
            return self.guide(x)
        with pyro.plate("gae_samples", self.samples, dim=-2):
            return self.guide(x)

    def _sample(self, q: Distribution) -> Tensor:
        return codes_from(q, self.samples) if q.has_rsample else q.sample()

    def _from_density(self, q: Distribution, z: Tensor, likelihood: Likelihood) -> Code:
        if not q.has_rsample:
            raise ValueError(f"q(z|x) must have reparameterised samples, and {type(q).__name__} has none.")
        if len(q.event_shape) != len(likelihood.latent_shape):
            raise ValueError(
                f"q(z|x) has batch shape {tuple(q.batch_shape)} and event shape {tuple(q.event_shape)}, but one "
                "density per sample is needed. Declare the code dimensions as event, with `.to_event(n)` or "
                "`Independent(q, n)`."
            )
        if is_point(q):
            log_q = q.log_prob(z)
        else:
            need_density(q)
            log_q = log_density(q, z)
        if log_q.dim() == 1:
            z, log_q = z.unsqueeze(0), log_q.unsqueeze(0)
        return Code(z, log_q=log_q, q=q)

    def _deterministic(self, z: Tensor) -> Code:
        if self.samples != 1:
            raise ValueError(f"A deterministic encoder has one code per sample, got samples={self.samples}.")
        return Code(z.unsqueeze(0))


class Declarations(Messenger):
    """Keeps the parameters that a Pyro program declares in a module instead of Pyro's global store.

    Args:
        declared: where they are kept, unconstrained, by name.
        is_module: whether the program is a module, or a method of one, that holds its ``nn.Parameter``s itself.
        stored: unconstrained values of the global store, from which parameters start instead of their own values.
    """

    def __init__(self, declared: nn.ParameterDict, is_module: bool, stored: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.declared, self.is_module, self.stored = declared, is_module, stored or {}

    def _pyro_param(self, message: Any) -> None:
        if len(message["args"]) < 2:  # a PyroParam, which its module holds already
            return
        name, start = message["args"]
        message["value"] = self._parameter(name, start, message["kwargs"].get("constraint") or constraints.real)
        message["done"] = True

    def _parameter(self, name: str, start: Any, constraint: Any) -> Tensor:
        if isinstance(start, nn.Parameter) and self.is_module:
            return start
        declared, key, transform = self.declared, name.replace(".", "/"), biject_to(constraint)
        if key not in declared:
            value = start() if callable(start) and not isinstance(start, Tensor) else start
            if isinstance(value, nn.Parameter) and constraint is constraints.real:
                declared[key] = value
            else:
                free = self.stored[name] if name in self.stored else transform.inv(value.detach())
                declared[key] = nn.Parameter(free.detach().clone())
        value = transform(declared[key])
        value.unconstrained = weakref.ref(declared[key])
        return value


class _Site(Declarations):
    """Records the sample site "z" of a guide."""

    def __init__(self, owner: Amortized):
        super().__init__(owner.declared, isinstance(owner.guide, nn.Module))
        self.q: Distribution | None = None
        self.z: Tensor = torch.empty(0)

    def _pyro_post_sample(self, message: Any) -> None:
        if site_is_subsample(message):  # a plate
            return
        if message["name"] != "z":
            raise ValueError(
                f'The guide must have the one sample site "z", got a site {message["name"]!r}. With a Pyro model of '
                "that site, use `gae.from_pyro(model, guide, data)`."
            )
        self.q, self.z = message["fn"], message["value"]


def _check_codes(code: Code, likelihood: Likelihood, x: Tensor) -> None:
    expected = (len(x), *likelihood.latent_shape)
    if code.z.shape[1:] != torch.Size(expected):
        raise ValueError(
            f"The guide's codes have shape {tuple(code.z.shape[1:])}, but the likelihood needs {expected}. "
            "Check the encoder's output width."
        )
    if code.z.dtype != x.dtype:
        raise TypeError(f"The guide's codes are {code.z.dtype}, but x is {x.dtype}. Return codes of the dtype of x.")


def to_pyro(likelihood: Likelihood) -> Callable[[Tensor], Tensor]:
    """A Pyro model x -> z with sites ``"z"`` and ``"x"`` in a plate ``"data"``, for any ``Likelihood``.

    Use it with ``SVI``, ``RenyiELBO``, ``NUTS`` and the rest of Pyro. A discrete code is summed out; a flat prior
    works wherever Pyro does not sample from it. x is checked at each call (``gae.likelihood.door``).

    >>> from gae.likelihood import Gaussian
    >>> model = to_pyro(Gaussian(nn.Linear(2, 3), 2))
    >>> trace = pyro.poutine.trace(model).get_trace(torch.zeros(5, 3))
    >>> trace.nodes["z"]["value"].shape
    torch.Size([5, 2])
    """

    def model(x: Tensor) -> Tensor:
        pyro.module("likelihood", likelihood)
        with door(likelihood, x), pyro.plate("data", len(x)):
            z = pyro.sample("z", likelihood.prior.expand([len(x)]))
            pyro.sample("x", likelihood(z), obs=x)
        return z

    return model
