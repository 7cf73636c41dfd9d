"""Autoencoders of pythae: their decoders and encoders as networks, and as a model with the head of their loss."""

from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Size, Tensor, nn
from torch.distributions import Normal

from gae.adapters.decoders import from_decoder
from gae.autoencoder import Autoencoder

# Models whose prior is N(0, I), whose encoder returns the law of a code, and whose "mse" is ½ ‖x − x̂‖².
SUPPORTED = (
    *("VAE", "BetaVAE", "BetaTCVAE", "DisentangledBetaVAE", "FactorVAE", "INFOVAE_MMD", "IWAE", "MIWAE", "CIWAE"),
    *("PIWAE", "Adversarial_AE"),
)
HEADS = {"mse": "gaussian", "bce": "bernoulli"}  # by pythae's reconstruction loss


class PythaeDecoder(nn.Module):
    """The decoder of a pythae model as a network from codes to reconstructions.

    Args:
        model: a pythae model.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.decoder = model.decoder

    def forward(self, z: Float[Tensor, "N Z"]) -> Tensor:
        return self.decoder(z)["reconstruction"]


class PythaeEncoder(nn.Module):
    """The encoder of a pythae model as a network from observations to a normal law of the code, or to the code.

    Args:
        model: a pythae model.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.encoder = model.encoder

    def forward(self, x: Num[Tensor, "N *X"]) -> Tensor | Normal:
        output = self.encoder(x)
        if "log_covariance" not in output:
            return output["embedding"]
        return Normal(output["embedding"], torch.exp(0.5 * output["log_covariance"]), validate_args=False)


def from_pythae(model: Any, scale: float = 1.0) -> Autoencoder:
    """An autoencoder of a model of pythae, such as its ``VAE``, with its encoder as the engine.

    Its loss says which head the decoder has: ``"mse"``, half the sum of squares, is that of ``Gaussian`` of scale 1;
    ``"bce"`` that of ``Bernoulli``, for data in {0, 1}. The prior is N(0, I). The networks are neither copied nor
    trained; put the model in evaluation mode first.

    Args:
        model: a pythae model with a vector code, a prior N(0, I) and an encoder without a flow.
        scale: standard deviation of the noise of a Gaussian head, in units of the data.

    Raises:
        TypeError: for other models, such as those with a learned prior or a codebook, or an ``AE``, which has none.
        ValueError: for another loss, and as ``from_decoder``.

    >>> from types import SimpleNamespace
    >>> class Decoder(nn.Linear):  # pythae's own return a dictionary likewise
    ...     def forward(self, z):
    ...         return {"reconstruction": super().forward(z).unflatten(1, (1, 4, 4))}
    >>> class Encoder(nn.Linear):
    ...     def forward(self, x):
    ...         mean, log_covariance = super().forward(x.flatten(1)).chunk(2, -1)
    ...         return {"embedding": mean, "log_covariance": log_covariance}
    >>> config = SimpleNamespace(input_dim=(1, 4, 4), latent_dim=2, reconstruction_loss="mse")
    >>> networks = {"decoder": Decoder(2, 16), "encoder": Encoder(16, 4)}
    >>> model = from_pythae(SimpleNamespace(model_name="VAE", model_config=config, **networks))
    >>> model.encode(torch.rand(3, 1, 4, 4)).q.event_shape
    torch.Size([2])
    """
    name = getattr(model, "model_name", None)
    if name not in SUPPORTED:
        raise TypeError(
            f"from_pythae takes models with the prior N(0, I) and a plain encoder ({', '.join(SUPPORTED)}), got "
            f"{name or type(model).__name__}. Say what the noise of another one is: `gae.from_decoder("
            "gae.adapters.PythaeDecoder(model), ...)`."
        )
    config = model.model_config
    loss = getattr(config, "reconstruction_loss", "mse")
    if loss not in HEADS:
        raise ValueError(f"The reconstruction loss {loss!r} is of no head. Use one of {', '.join(HEADS)}.")
    head = HEADS[loss]
    return from_decoder(
        PythaeDecoder(model),
        Size(config.input_dim),
        config.latent_dim,
        head,
        scale if head == "gaussian" else None,
        activated=head == "bernoulli",
        encoder=PythaeEncoder(model),
    )
