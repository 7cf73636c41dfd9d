"""Autoencoders of Hugging Face diffusers: the decoder and encoder of an ``AutoencoderKL``, with weights of your own."""

from typing import Any

from jaxtyping import Float, Num
from torch import Size, Tensor, nn
from torch.distributions import Normal

from gae.adapters.decoders import from_decoder
from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.systems.constructor import shape_or_data
from gae.systems.parts import Shape


class DiffusersDecoder(nn.Module):
    """The decoder of an ``AutoencoderKL`` as a network from scaled codes to images in the units of the data.

    Codes are those of a latent diffusion model, ``scaling_factor`` · (latent - ``shift_factor``), whose variance is
    about 1 (Rombach et al. 2022, section D.1).

    Args:
        vae: the model.
        value_range: the values of the data that the network's -1 and 1 stand for.
    """

    def __init__(self, vae: Any, value_range: tuple[float, float] = (0.0, 1.0)):
        super().__init__()
        self.vae, self.value_range = vae, value_range

    def forward(self, z: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C H W"]:
        factor, shift = _scaling(self.vae)
        low, high = self.value_range
        return low + 0.5 * (high - low) * (self.vae.decode(z / factor + shift).sample + 1)


class DiffusersEncoder(nn.Module):
    """The encoder of an ``AutoencoderKL`` as a network from images to the law of scaled codes.

    Args:
        vae: the model.
        value_range: the values of the data that the network's -1 and 1 stand for.
    """

    def __init__(self, vae: Any, value_range: tuple[float, float] = (0.0, 1.0)):
        super().__init__()
        self.vae, self.value_range = vae, value_range

    def forward(self, x: Num[Tensor, "N C H W"]) -> Normal:
        factor, shift = _scaling(self.vae)
        low, high = self.value_range
        law = self.vae.encode(2 * (x - low) / (high - low) - 1).latent_dist
        return Normal(factor * (law.mean - shift), factor * law.std, validate_args=False)


def _scaling(vae: Any) -> tuple[float, float]:
    return vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0


def code_shape(vae: Any, event_shape: Shape) -> Size:
    """The shape (C, h, w) of the codes of images (C, H, W), each block but the last halving the sides.

    Raises:
        ValueError: for images of other channels, or sides that the blocks do not divide.
    """
    config = vae.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    if len(event_shape) != 3 or event_shape[0] != config.in_channels or any(side % factor for side in event_shape[1:]):
        raise ValueError(
            f"This AutoencoderKL takes images ({config.in_channels}, H, W) with sides divisible by {factor}, got "
            f"{tuple(event_shape)}. Convert or crop the images."
        )
    return Size([config.latent_channels, *(side // factor for side in event_shape[1:])])


def from_diffusers(vae: Any, data: Any, scale: float, value_range: tuple[float, float] = (0.0, 1.0)) -> Autoencoder:
    """An autoencoder of an ``AutoencoderKL`` of diffusers, with its encoder as the engine.

    Codes are vectors of the elements of the scaled latents (C, h, w) in order, under the prior N(0, I). The networks
    are neither copied nor trained.

    Args:
        vae: the model, in evaluation mode, in float32 or float64.
        data: images, a data set or any source of ``gae.data.load``, or their shape (C, H, W).
        scale: standard deviation of the Gaussian noise of a pixel, in units of the data.
        value_range: the values of the data that the network's -1 and 1 stand for.

    Raises:
        TypeError: for a model without the configuration of an ``AutoencoderKL``.
        ValueError: for images that do not fit, and as ``from_decoder``.

    >>> from diffusers import AutoencoderKL
    >>> blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    >>> sizes = {"in_channels": 1, "out_channels": 1, "block_out_channels": (4, 4), "norm_num_groups": 2}
    >>> vae = AutoencoderKL(**blocks, **sizes, latent_channels=1)  # its weights are random
    >>> model = from_diffusers(vae.eval(), (1, 4, 4), scale=0.1)
    >>> model.likelihood.latent_shape, model.likelihood.sample_joint(3)[0].shape
    (torch.Size([4]), torch.Size([3, 1, 4, 4]))
    """
    if not hasattr(getattr(vae, "config", None), "scaling_factor"):
        raise TypeError(
            f"from_diffusers takes an AutoencoderKL, got {type(vae).__name__}. Give another decoder to "
            "`gae.from_decoder`."
        )
    data = shape_or_data("from_diffusers", data)
    event_shape = data.event_shape if isinstance(data, Dataset) else data
    return from_decoder(
        DiffusersDecoder(vae, value_range),
        data,
        code_shape(vae, event_shape),
        scale=scale,
        encoder=DiffusersEncoder(vae, value_range),
    )
