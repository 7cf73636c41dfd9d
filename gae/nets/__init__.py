"""Neural networks, without distributions: feedforward, convolutional, skip and sequence networks."""

from gae.nets.networks import (
    BottomUp,
    ChannelNorm,
    Dictionary,
    InDataUnits,
    Leading,
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
    with_mask,
)

__all__ = [
    "BottomUp",
    "ChannelNorm",
    "Dictionary",
    "InDataUnits",
    "Leading",
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
    "with_mask",
]
