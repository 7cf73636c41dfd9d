"""A given decoder in a comparison, frozen, with its encoder if it has one."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal

from gae.adapters import GivenEncoder, Shaped, check_curvature
from gae.analysis.matrix import DIAGONAL, FULL
from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.inference import Amortized
from gae.likelihood import HEADS, Head, StandardUnits
from gae.studies.engines import Configuration, configure
from gae.systems.parts import Encoder

GIVEN = "given"  # in place of the engine that trained a decoder


@dataclass(frozen=True)
class GivenModel:
    """Copies of a decoder and its encoder, on the CPU, in the precision of the trainings and without gradients.

    Attributes:
        likelihood: the decoder with its head and prior.
        encoder: its encoder, if it has a normal density q(z|x).
        family: the family of that density.
        name: the class of the decoder network.
    """

    likelihood: Head
    encoder: Encoder | None
    family: str | None
    name: str

    @classmethod
    def of(cls, model: Autoencoder, data: Dataset, dtype: torch.dtype = torch.float32) -> "GivenModel":
        """The parts of a model, checked on data in this precision and in double precision.

        Raises:
            TypeError: for a likelihood that is not a head by name, or an encoder without a normal density.
            ValueError: for codes that are not vectors, data of another shape, or networks of one precision.
        """
        if isinstance(model.likelihood, StandardUnits):
            raise ValueError(
                "A comparison on a given decoder needs one of the data as given, got one in standard units "
                "(standardize=True, --standardize). Put the units into the decoder's last layer, or use "
                "`gae.inference_gap`."
            )
        if type(model.likelihood) not in HEADS.values():
            raise TypeError(
                f"A comparison needs a decoder under one of the heads {', '.join(HEADS)}, got "
                f"{type(model.likelihood).__name__}. Use `gae.inference_gap`."
            )
        if len(model.likelihood.latent_shape) != 1:
            raise ValueError(f"A comparison needs vector codes, got {tuple(model.likelihood.latent_shape)}.")
        kept = copy.deepcopy(model).to("cpu", dtype).requires_grad_(False)
        x = data.test[:3].to(dtype)
        for each in (kept, copy.deepcopy(kept).double()):
            check_curvature(each, x.to(each.likelihood._like(x)))
        likelihood, network = kept.likelihood, kept.likelihood.decoder
        assert isinstance(likelihood, Head) and isinstance(network, nn.Module)
        name = type(network.network if isinstance(network, Shaped) else network).__name__
        if not isinstance(network, Shaped):  # keeps its mode while encoders are fitted
            likelihood.decoder = Shaped(network, likelihood.latent_shape, likelihood.event_shape)
        if not isinstance(kept.inference, Amortized):
            return cls(likelihood, None, None, name)
        encoder = kept.inference.guide
        if not isinstance(encoder, Encoder):
            raise TypeError(
                "A comparison needs an encoder with a density q(z|x), got one that returns codes. Return a "
                "distribution, such as `torch.distributions.Normal(mean, deviation)`, or leave the encoder out."
            )
        return cls(likelihood, encoder, _family(encoder, x), name)

    def digest(self) -> str:
        """SHA-256 (hex) of the parameters and buffers."""
        digest = sha256()
        for part in (self.likelihood, self.encoder):
            for name, value in ({} if part is None else part.state_dict()).items():
                digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


def _family(encoder: Encoder, x: torch.Tensor) -> str:
    with torch.no_grad():
        q = encoder.density(x)
    if isinstance(q, MultivariateNormal):
        return FULL
    if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
        return DIAGONAL
    raise TypeError(f"A comparison needs an encoder with a normal density q(z|x), got {type(q).__name__}.")


def configure_given(
    data: Dataset,
    given: GivenModel,
    reference: str,
    epochs: int | None,
    hidden: Sequence[int],
    seed: int,
    quick: bool,
) -> Configuration:
    """Configuration of a comparison on a given decoder; its epochs are those of the encoders that are fitted to it."""
    head = next(name for name, kind in HEADS.items() if type(given.likelihood) is kind)
    latent = given.likelihood.latent_shape.numel()
    chosen = configure(data, ("amortised",), epochs, latent, hidden, head, seed, quick)
    facts = {
        "decoder": given.name,
        "encoder": None if given.encoder is None else _name(given.encoder),
        "family": given.family,
        "reference": reference,
        "sha256": given.digest(),
    }
    return replace(chosen, engines=(GIVEN,), training_epochs={}, given=facts)


def _name(encoder: Encoder) -> str:
    return type(encoder.network if isinstance(encoder, GivenEncoder) else encoder).__name__
