"""Likelihoods with a network's weights or input as the latent: deep image prior, activation maximisation."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Size, Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, vmap
from torch.nn.functional import logsigmoid

from gae.likelihood.base import DecoderLikelihood
from gae.likelihood.heads import Categorical, Gaussian, Head
from gae.likelihood.priors import Flat
from gae.nets import as_size


class WeightDecoder(nn.Module):
    """Maps weights (N, P) to outputs (N, *X): N networks of one architecture on a common input.

    Args:
        net: the architecture; it is copied, and its weights are ignored.
        input: one input, without a batch dimension; the network receives a batch of one.
        together: whether to evaluate all N networks at once, with ``vmap``. Defaults to True, except for convolutional
            networks on the CPU, where sequential evaluation is faster unless images are small.
    """

    input: Tensor

    def __init__(self, net: nn.Module, input: Float[Tensor, "..."], together: bool | None = None):
        super().__init__()
        self.net = copy.deepcopy(net)
        self.named = {name: parameter.shape for name, parameter in self.net.named_parameters()}
        _freeze(self.net)
        self.register_buffer("input", input.detach().clone())
        self.together = together
        self.sizes = [shape.numel() for shape in self.named.values()]
        self.convolves = any(isinstance(module, nn.modules.conv._ConvNd) for module in self.net.modules())
        if not self.sizes:
            raise ValueError(f"{type(net).__name__} has no parameters, so there are no weights to infer.")

    def forward(self, weights: Float[Tensor, "N P"], jitter: float = 0.0) -> Float[Tensor, "N ..."]:
        """Outputs (N, *X); jitter is the standard deviation of Gaussian input noise, shared by all networks."""
        inputs = self.input + jitter * torch.randn_like(self.input) if jitter else self.input
        inputs = inputs.unsqueeze(0)
        together = self.together if self.together is not None else not (self.convolves and weights.device.type == "cpu")
        if together and len(weights) > 1:
            return vmap(partial(self._one, inputs))(weights)
        if inputs.dim() == 4:  # a batch of one image: convolutions are faster with channels last
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return torch.stack([self._one(inputs, row) for row in weights.unbind(0)])

    def _one(self, inputs: Tensor, weights: Float[Tensor, " P"]) -> Float[Tensor, "..."]:
        parts = weights.split(self.sizes)
        named = {name: part.view(shape) for (name, shape), part in zip(self.named.items(), parts, strict=True)}
        return functional_call(self.net, named, (inputs,)).squeeze(0)

    def initial(self, n: int) -> Float[Tensor, "n P"]:
        """n weight vectors drawn by the network's initialisation (``reset_parameters``).

        Raises:
            TypeError: if a module with parameters has no ``reset_parameters``.
        """
        net = copy.deepcopy(self.net)
        return torch.stack([self._draw(net) for _ in range(n)])

    def _draw(self, net: nn.Module) -> Float[Tensor, " P"]:
        for name, module in net.named_modules():
            if not any(f"{name}.{own}".lstrip(".") in self.named for own, _ in module.named_buffers(recurse=False)):
                continue
            if not callable(reset := getattr(module, "reset_parameters", None)):
                raise TypeError(
                    f"{type(module).__name__} ({name!r}) has parameters but no `reset_parameters`, so fresh weights "
                    "cannot be drawn. Give it one, or start from `Constant(weights)`."
                )
            reset()
        weights = dict(net.named_buffers())
        return torch.cat([weights[name].flatten() for name in self.named])


def _freeze(net: nn.Module) -> None:
    """Replaces parameters by non-persistent buffers of zeros, neither trained nor saved: only their shapes matter."""
    buffers: dict[nn.Parameter, Tensor] = {}
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            zeros = buffers.setdefault(parameter, torch.zeros_like(parameter, requires_grad=False))
            module.register_buffer(name, zeros, persistent=False)


class WeightLikelihood(DecoderLikelihood):
    """Likelihood x ~ head(f_θ(input)) with a network's weights θ as the latent (deep image prior; ledger D19).

    A code is the flat vector θ (P,) of all parameters. A batch of B observations is B independent networks.

    Args:
        net: f, such as ``nets.skip``; it is copied.
        input: the fixed input of f, without a batch dimension.
        head: builds the likelihood of x from a decoder, such as ``Gaussian`` or ``partial(Gaussian, scale=0.1)``.
        prior: prior of θ; defaults to flat.
        jitter: standard deviation of input noise in inner loops, redrawn at each step and shared by all networks
            (Ulyanov et al. 2018). An ascent then maximises the expectation of ``log_joint`` over this noise;
            ``log_joint`` is noise-free.
        together: see ``WeightDecoder``.

    >>> from gae import nets
    >>> model = WeightLikelihood(nets.mlp(2, [8], 3), torch.ones(2))
    >>> model.latent_shape, model.event_shape
    (torch.Size([51]), torch.Size([3]))
    """

    def __init__(
        self,
        net: nn.Module,
        input: Float[Tensor, "..."],
        head: Callable[..., Head] = Gaussian,
        prior: nn.Module | None = None,
        jitter: float = 0.0,
        together: bool | None = None,
    ):
        if not jitter >= 0:
            raise ValueError(f"jitter must not be negative, got {jitter}.")
        decoder = WeightDecoder(net, input, together)
        size = sum(decoder.sizes)
        likelihood = head(decoder, size, prior=Flat(size) if prior is None else prior)
        super().__init__(likelihood.latent_shape, likelihood.event_shape, likelihood.latent_prior)
        self.head, self.jitter = likelihood, jitter
        self.stochastic = self.bind_is_surrogate = jitter > 0
        self.support = likelihood.support
        self.output_is_mean = likelihood.output_is_mean

    @property
    def decoder(self) -> WeightDecoder:
        """The decoder of weights."""
        return self.head.decoder  # type: ignore[return-value]

    def forward(self, z: Float[Tensor, "*L P"], k: Int[Tensor, "..."] | None = None) -> Distribution:
        return self.head(z, k)

    def outputs(self, z: Float[Tensor, "*L P"], k: Int[Tensor, "..."] | None = None) -> Float[Tensor, "..."]:
        return self.head.outputs(z, k)

    def sample_outputs(self, z: Float[Tensor, "S B P"], k: Int[Tensor, "S _"] | None = None) -> Tensor:
        return self.head.parameter_of(self.decoder(z.flatten(0, -2), self.jitter).unflatten(0, z.shape[:-1]))

    def distribution(self, output: Float[Tensor, "..."]) -> Distribution:
        return self.head.distribution(output)

    def log_likelihood(
        self, x: Num[Tensor, "B *X"], output: Float[Tensor, "..."], k: Int[Tensor, "S _"] | None = None
    ) -> Float[Tensor, "S B"]:
        return self.head.log_likelihood(x, output, k)

    def point(self, decoded: Distribution) -> Float[Tensor, "..."]:
        return self.head.point(decoded)

    def check_support(self, x: Num[Tensor, "B *X"]) -> None:
        self.head.check_support(x)

    def initial(self, n: int) -> Float[Tensor, "n P"]:
        """n weight vectors drawn by the network's initialisation, with torch's global generator."""
        return self.decoder.initial(n)


class Activation(Categorical):
    """Activation of a unit as a likelihood: the latent is a network's input, and x () is the index of the active unit.

    ``"log_prob"``: units are classes, and log q(x|z) is the log softmax of the outputs (N, U). ``"logit"``: each output
    is the logit of a binary unit; one of the U units is inspected at random, and x is its index if it is on, or U if it
    is off. Then log q(x|z) = log σ(output x - threshold) - log U increases with the activation of unit x regardless of
    the other units; under a flat prior both have the same maximisers. Far below the threshold it equals the activation
    up to a constant; above, it saturates, and an ascent stops. ``"channel"``: the same for channel means, from outputs
    (N, U, ...). Data and latent are swapped relative to an autoencoder (ledger D20).

    Args:
        net: maps inputs (N, *Z) to outputs (N, U) or (N, U, ...).
        latent_shape: Z, the shape of one input.
        kind: see above.
        prior: prior of the input; defaults to flat.
        threshold: the activation at which a binary unit is on with probability ½.

    >>> model = Activation(nn.Linear(4, 10), (4,))
    >>> model.classes, model.event_shape
    (10, torch.Size([]))
    """

    def __init__(
        self,
        net: nn.Module,
        latent_shape: int | tuple[int, ...] | Size,
        kind: Literal["log_prob", "logit", "channel"] = "log_prob",
        prior: nn.Module | None = None,
        threshold: float = 0.0,
    ):
        if kind not in ("log_prob", "logit", "channel"):
            raise ValueError(f"kind must be 'log_prob', 'logit' or 'channel', got {kind!r}.")
        shape = as_size(latent_shape)
        decoder = nn.Sequential(net, _ChannelMean()) if kind == "channel" else net
        if kind == "log_prob" and threshold:
            raise ValueError(f"threshold is for kind='logit' or 'channel', got {threshold} with kind='log_prob'.")
        super().__init__(decoder, shape, Flat(*shape) if prior is None else prior)
        self.kind, self.threshold = kind, threshold
        if len(self.output_shape) != 1:
            raise ValueError(
                "The network's outputs must have shape (N, U), one number per unit, got "
                f"(N, *{tuple(self.output_shape)}). Use kind='channel' for the means of channels."
            )

    @property
    def classes(self) -> int:
        """The number of values of x: one per unit, plus one for "off" with binary units."""
        return self.output_shape[-1] + (self.kind != "log_prob")

    def distribution(self, output: Float[Tensor, "*L U"]) -> Distribution:
        if self.kind == "log_prob":
            return super().distribution(output)
        output = output - self.threshold
        off = logsigmoid(-output).logsumexp(-1, keepdim=True)
        return super().distribution(torch.cat([logsigmoid(output), off], -1))  # normalised by U


def channel_mean(output: Float[Tensor, "N U ..."]) -> Float[Tensor, "N U"]:
    """The mean of each channel over its positions; outputs without positions are unchanged."""
    return output.flatten(2).mean(2) if output.dim() > 2 else output


class _ChannelMean(nn.Module):
    def forward(self, output: Float[Tensor, "N U ..."]) -> Float[Tensor, "N U"]:
        return channel_mean(output)
