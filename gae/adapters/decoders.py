"""Autoencoders of a given decoder, and of the encoder that belongs to it."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Size, Tensor, nn

from gae.adapters.checks import PROBES, attempt, check_decoder, need_mode, need_parameters, need_rows
from gae.adapters.encoders import GivenEncoder, encoding_engine
from gae.adapters.networks import ExportedNetwork
from gae.analysis.engines import mode_ascent
from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.likelihood import (
    HEADS,
    Bernoulli,
    ContinuousBernoulli,
    Head,
    Likelihood,
    PartiallyObserved,
    Poisson,
    StandardUnits,
)
from gae.nets import as_size, first_tensor
from gae.objective import elbo, joint
from gae.storage import Part
from gae.systems.constructor import shape_or_data
from gae.systems.parts import Shape, has_scale, head_of

LEARNS = ("fixed", "scalar", "pixel")  # of a head's scale


def from_decoder(
    decoder: nn.Module,
    data: Any,
    latent: int | Shape | None = None,
    head: str = "gaussian",
    scale: float | None = None,
    activated: bool = False,
    encoder: nn.Module | None = None,
    prior: nn.Module | None = None,
    learn: str = "fixed",
) -> Autoencoder:
    """An autoencoder of a decoder that you have, with its encoder if you have one.

    Its codes are vectors, whatever their shape in the decoder. Its engine is the encoder, or without one an ascent by
    L-BFGS to the mode of each observation's code. The networks are neither copied nor trained.

    Args:
        decoder: maps codes (N, *Z) to outputs (N, *X), or (N, D) for the D elements of an observation in order.
        data: a data set or any source of ``gae.data.load``, or X, the shape of one observation. Of a data set with
            ``missing``, codes and log densities are those of the observed elements, and the encoder is given NaN for
            the others. With ``standardize``, the networks and the scale are in standard units, by the mean and
            deviation of the training data, and log densities are of the data as given.
        latent: Z, or an int for vectors; of a network of ``torch.export`` it is known.
        head: the distribution that the outputs parametrise, a name from ``gae.likelihood.HEADS``.
        scale: for heads with a scale, the standard deviation (``"gaussian"``) or diversity (``"laplace"``) of the
            noise, in units of the data. A decoder trained by ½ ‖x - decoder(z)‖² has the scale 1.
        activated: whether the decoder ends in the head's activation: the sigmoid of ``"bernoulli"`` and
            ``"continuous-bernoulli"``, whose outputs are probabilities, or the exponential or softplus of
            ``"poisson"``, whose outputs are rates.
        encoder: maps observations (N, *X) to a distribution over codes or to codes (N, *Z).
        prior: see ``Likelihood``; N(0, I) by default.
        learn: for heads with a scale, whether training (``gae.adapters.trainable``) keeps it (``"fixed"``), or learns
            one from this value on (``"scalar"``), or one for each element (``"pixel"``).

    Raises:
        ValueError, TypeError: for a network that does not fit: without parameters, of mixed or half precision, of other
            shapes or dtypes than the codes and data have, random, dependent on the rest of the batch, not
            differentiable or not finite; for a scale that is missing or has no meaning; for probabilities where logits
            are expected; for an encoder that takes no NaN, or a head that takes none, where values are missing.

    >>> decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 64))
    >>> model = from_decoder(decoder, (1, 8, 8), latent=2, scale=0.3)
    >>> model.encode(torch.rand(5, 1, 8, 8)).point.shape
    torch.Size([5, 2])
    """
    data = shape_or_data("from_decoder", data)
    event_shape = data.event_shape if isinstance(data, Dataset) else data
    shape = _latent_shape(decoder, latent)
    likelihood: Likelihood = _likelihood(decoder, shape, event_shape, head, scale, activated, prior, learn)
    if isinstance(data, Dataset):
        likelihood = _prepared(likelihood, data)
    check_decoder(likelihood)
    if encoder is None:
        return Autoencoder(likelihood, mode_ascent(), joint)
    engine = encoding_engine(encoder, *likelihood.in_standard_units(_examples(data, event_shape)))
    return Autoencoder(likelihood, engine, elbo if isinstance(engine.guide, GivenEncoder) else joint)


def _prepared(likelihood: Likelihood, data: Dataset) -> Likelihood:
    """The likelihood of data as they are prepared: with missing elements, or in standard units."""
    prepared = PartiallyObserved(likelihood) if data.missing else likelihood
    if not data.standardize:
        return prepared
    scaled = StandardUnits.of(prepared).to(first_tensor(likelihood))
    scaled.set_units(data.train)
    return scaled


def _examples(data: Dataset | Size, event_shape: Size) -> Float[Tensor, "N *X"]:
    """A few observations, the first with a missing element if the data may have some."""
    if not isinstance(data, Dataset):
        return torch.rand(PROBES, *event_shape, generator=_generator())
    x = data.train[:PROBES].clone()
    if data.missing:
        x[0].view(-1)[0] = torch.nan
    return x


def _latent_shape(decoder: nn.Module, latent: int | Shape | None) -> Size:
    known = decoder.inputs if isinstance(decoder, ExportedNetwork) else None
    if latent is None and known is None:
        raise ValueError("The shape of a code is not known. Give latent, such as 8 for vectors or (4, 8, 8).")
    shape = Size(known or ()) if latent is None else as_size(latent)
    if known is not None and shape != Size(known):
        raise ValueError(f"latent is {tuple(shape)}, but the decoder was exported for codes of shape {tuple(known)}.")
    if not shape.numel():
        raise ValueError(f"latent must be positive, got {tuple(shape)}.")
    return shape


def _likelihood(
    decoder: nn.Module,
    latent: Size,
    event_shape: Size,
    head: str,
    scale: float | None,
    activated: bool,
    prior: nn.Module | None,
    learn: str,
) -> Head:
    scaled = head in HEADS and has_scale(head)
    if learn not in LEARNS:
        raise ValueError(f"learn (--learn) must be one of {', '.join(LEARNS)}, got {learn!r}.")
    if head in HEADS and not scaled and learn != "fixed":
        raise ValueError(f"The head {head!r} has no scale, so there is none to learn. Leave learn (--learn) out.")
    if scaled and scale is None:
        raise ValueError(
            f"The head {head!r} needs the scale of the noise, in units of the data, which log densities depend on. A "
            "decoder trained by ½ ‖x − decoder(z)‖² has the scale 1; by ‖x − decoder(z)‖² it has 0.7071."
        )
    build = head_of(head, scale, learn) if scaled else head_of(head, scale)
    inverse = _inverse_activation(head) if activated else None
    output = _tried(decoder, latent, event_shape)
    if not activated and issubclass(HEADS[head], (Bernoulli, ContinuousBernoulli)) and _is_probability(output):
        raise ValueError(
            f"The head {head!r} takes logits, but all outputs of the decoder lie in [0, 1], as after a sigmoid. Use "
            "activated=True (--activated), or leave the decoder's last sigmoid out."
        )
    return build(Shaped(decoder, latent, event_shape, inverse), latent.numel(), prior=prior)


def _is_probability(output: Tensor) -> bool:
    return bool((output >= 0).all() and (output <= 1).all())


def _inverse_activation(head: str) -> nn.Module:
    kind = HEADS[head]
    if issubclass(kind, (Bernoulli, ContinuousBernoulli)):
        return _Logit()
    if issubclass(kind, Poisson):
        return _Log()
    raise ValueError(
        f"The head {head!r} has no activation to undo: its outputs are locations. Leave activated (--activated) out."
    )


class _Logit(Part, nn.Module):
    """Logits of probabilities, which are kept from 0 and 1 by one rounding."""

    def forward(self, output: Tensor) -> Tensor:
        return torch.logit(output, torch.finfo(output.dtype).eps)


class _Log(Part, nn.Module):
    """Logarithms of rates, which are kept from 0."""

    def forward(self, output: Tensor) -> Tensor:
        return output.clamp_min(torch.finfo(output.dtype).tiny).log()


class Shaped(Part, nn.Module):
    """A given decoder as one of vectors (N, Z), with outputs in the shape of an observation (N, *X).

    Args:
        network: maps codes (N, *latent) to (N, *X) or (N, D).
        latent: the shape of a code in the network.
        event_shape: X.
        inverse: applied to the outputs.
    """

    def __init__(self, network: nn.Module, latent: Shape, event_shape: Shape, inverse: nn.Module | None = None):
        super().__init__()
        self.network, self.latent, self.event_shape, self.inverse = network, Size(latent), Size(event_shape), inverse

    def train(self, mode: bool = True) -> "Shaped":
        """Leaves the network in the mode in which it was given."""
        self.training = mode
        return self

    def forward(self, z: Float[Tensor, "N Z"]) -> Float[Tensor, "N *X"]:
        output = self.network(z.reshape(-1, *self.latent)).reshape(len(z), *self.event_shape)
        return output if self.inverse is None else self.inverse(output)


def _tried(decoder: nn.Module, latent: Size, event_shape: Size) -> Tensor:
    """Outputs of a few codes; raises ValueError or TypeError for a decoder that does not return such observations."""
    like = need_parameters(decoder, "decoder")
    need_mode(decoder, "decoder")
    codes = torch.randn(PROBES, *latent, generator=_generator()).to(like)
    with torch.no_grad(), torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        for batch in (codes[:1], codes):
            given = f"The decoder does not accept a batch of {len(batch)} codes of shape {tuple(latent)}"
            remedy = " (export it with dynamic_shapes)" if isinstance(decoder, ExportedNetwork) else ""
            output = attempt(partial(decoder, batch), given + remedy)
    need_rows(output, codes, "decoder", "outputs")
    got, wanted = output.shape[1:], event_shape
    if got not in (wanted, Size([wanted.numel()])) and _without_ones(got) != _without_ones(wanted):
        raise ValueError(
            f"An observation has shape {tuple(wanted)}, but an output of the decoder has {tuple(got)}. Outputs must "
            f"have the shape of the data, or be vectors of {wanted.numel()} elements; images are (C, H, W)."
        )
    if not bool(output.isfinite().all()):
        raise ValueError("The decoder's output is not finite at codes drawn from N(0, I). Check its weights.")
    return output


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _without_ones(shape: Size) -> list[int]:
    return [size for size in shape if size != 1]
