"""Neural networks, without distributions: feedforward, convolutional, skip and sequence networks."""

from gae.nets.networks import (
    ChannelNorm,
    Dictionary,
    InDataUnits,
    Rescaled,
    Skip,
    Standardized,
    as_size,
    conv_decoder,
    conv_encoder,
    first_tensor,
    mlp,
    need_sizes,
    skip,
)

__all__ = [
    "ChannelNorm",
    "Dictionary",
    "InDataUnits",
    "Rescaled",
    "Skip",
    "Standardized",
    "as_size",
    "conv_decoder",
    "conv_encoder",
    "first_tensor",
    "mlp",
    "need_sizes",
    "skip",
]
