"""Networks over sequences of classes, where class 0 is padding: LSTMs and transformers.

Transformers and decoders can be differentiated twice, as unrolled ascents require. Fused attention kernels and the LSTM
of cuDNN cannot, and are disabled there.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from torch.nn.modules.dropout import _DropoutNd

from gae.nets import need_sizes
from gae.storage import Part

KeysAndValues = tuple[Float[Tensor, "N H _ D"], Float[Tensor, "N H _ D"]]  # of H heads at the positions so far


class LSTMEncoder(Part, nn.Module):
    """LSTM encoder of sequences x (N, T) to vectors (N, outputs), from the state at the last token before padding.

    A bidirectional one joins it to the state at the first token of a second LSTM, which reads from the last token
    backwards.

    >>> LSTMEncoder(classes=5, outputs=4)(torch.tensor([[3.0, 1.0, 0.0]])).shape
    torch.Size([1, 4])
    """

    def __init__(self, classes: int, outputs: int, embedding: int = 32, hidden: int = 128, bidirectional: bool = False):
        super().__init__()
        need_sizes(classes=classes, outputs=outputs, embedding=embedding, hidden=hidden)
        self.embed = nn.Embedding(classes, embedding)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.backwards = nn.LSTM(embedding, hidden, batch_first=True) if bidirectional else None
        self.out = nn.Linear(2 * hidden if bidirectional else hidden, outputs)

    def forward(self, x: Num[Tensor, "N T"]) -> Float[Tensor, "N Y"]:
        tokens = x.long()
        last = (x > 0).sum(1).clamp_min(1) - 1
        ends = [self._end(self.lstm, tokens, last)]
        if self.backwards is not None:
            order = last.unsqueeze(1) - torch.arange(x.shape[1], device=x.device)
            ends.append(self._end(self.backwards, tokens.gather(1, order.clamp_min(0)), last))
        return self.out(torch.cat(ends, 1))

    def _end(self, lstm: nn.LSTM, tokens: Int[Tensor, "N T"], last: Int[Tensor, " N"]) -> Float[Tensor, "N H"]:
        """The state after the last token of each sequence."""
        states, _ = lstm(self.embed(tokens))
        return states[torch.arange(len(tokens), device=tokens.device), last]


class TransformerEncoder(Part, nn.Module):
    """Transformer encoder of sequences x (N, T) to vectors (N, outputs), with mean pooling; padding is masked.

    Vaswani et al. 2017, with pre-layer normalisation (Xiong et al. 2020) and sinusoidal positions.

    >>> TransformerEncoder(classes=5, outputs=4)(torch.tensor([[3.0, 1.0, 0.0]])).shape
    torch.Size([1, 4])
    """

    def __init__(self, classes: int, outputs: int, width: int = 64, heads: int = 4, layers: int = 2):
        super().__init__()
        need_sizes(classes=classes, outputs=outputs, width=width)
        self.embed = nn.Embedding(classes, width)
        self.blocks = _blocks(width, heads, layers)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Num[Tensor, "N T"]) -> Float[Tensor, "N Y"]:
        embedded = self.embed(x.long())
        hidden = self.blocks(embedded + positions(embedded), src_key_padding_mask=x == 0)
        mask = (x > 0).to(hidden.dtype)
        return self.out((hidden * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True).clamp_min(1))


class WordDropout(_DropoutNd):
    """In training, replaces each class by 0 (unknown) with probability p (Bowman et al. 2016)."""

    def forward(self, tokens: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
        if not self.training or self.p == 0:
            return tokens
        return tokens.masked_fill(torch.rand(tokens.shape, device=tokens.device) < self.p, 0)


class SequenceDecoder(Part, nn.Module):
    """Base class of sequence decoders: codes (N, Z) and classes (N, T) to logits (N, T, C - 1) of classes 1 ... C-1.

    The logits of step t depend on z and the classes before t; the first step receives class 0. A parallel decoder
    receives class 0 at every step, so that the steps are independent given z. No logit depends on T. ``step`` returns
    the logits (N, C - 1) of one step and the state for the next one, so that sampling evaluates each step once.

    Args:
        classes: C, including padding.
        width: width of the embedding.
        autoregressive: whether the logits depend on the classes before t.
        word_dropout: fraction of these classes hidden in training, so that the decoder does not ignore z.
    """

    def __init__(self, classes: int, width: int, autoregressive: bool, word_dropout: float):
        super().__init__()
        need_sizes(at_least=2, classes=classes)
        need_sizes(width=width)
        if not 0 <= word_dropout <= 1:
            raise ValueError(f"word_dropout must lie in [0, 1], got {word_dropout}.")
        self.embed = nn.Embedding(classes, width)
        self.autoregressive = autoregressive
        self.word_dropout = WordDropout(word_dropout)

    def before(self, tokens: Int[Tensor, "N T"]) -> Float[Tensor, "N T Y"]:
        """Embeddings of the preceding class at each step."""
        return self.embedded(pad(tokens, (1, 0))[:, :-1])

    def embedded(self, before: Int[Tensor, "*N"]) -> Float[Tensor, "*N Y"]:
        """Embeddings of preceding classes."""
        return self.embed(self.word_dropout(before) if self.autoregressive else torch.zeros_like(before))


class LSTMDecoder(SequenceDecoder):
    """LSTM decoder with z as initial state and as input to every step (Bowman et al. 2016).

    >>> LSTMDecoder(2, classes=5)(torch.zeros(3, 2), torch.ones(3, 7, dtype=torch.long)).shape
    torch.Size([3, 7, 4])
    """

    def __init__(
        self,
        latent: int,
        classes: int,
        embedding: int = 32,
        hidden: int = 128,
        autoregressive: bool = True,
        word_dropout: float = 0.0,
    ):
        need_sizes(latent=latent, embedding=embedding, hidden=hidden)
        super().__init__(classes, embedding, autoregressive, word_dropout)
        self.start = nn.Linear(latent, 2 * hidden)
        self.lstm = nn.LSTM(embedding + latent, hidden, batch_first=True)
        self.out = nn.Linear(hidden, classes - 1)

    def forward(self, z: Float[Tensor, "N Z"], tokens: Int[Tensor, "N T"]) -> Float[Tensor, "N T Y"]:
        inputs = torch.cat([self.before(tokens), z.unsqueeze(1).expand(-1, tokens.shape[1], -1)], 2)
        with torch.backends.cudnn.flags(enabled=False):
            states, _ = self.lstm(inputs, lstm_state(self.start(z)))
        return self.out(states)

    def step(self, z: Float[Tensor, "N Z"], before: Int[Tensor, " N"], state: Any) -> tuple[Float[Tensor, "N Y"], Any]:
        inputs = torch.cat([self.embedded(before), z], 1).unsqueeze(1)
        with torch.backends.cudnn.flags(enabled=False):
            states, state = self.lstm(inputs, lstm_state(self.start(z)) if state is None else state)
        return self.out(states[:, 0]), state


class TransformerDecoder(SequenceDecoder):
    """Transformer decoder with causal self-attention, and a linear map of z added to the input of every step.

    >>> TransformerDecoder(2, classes=5)(torch.zeros(3, 2), torch.ones(3, 7, dtype=torch.long)).shape
    torch.Size([3, 7, 4])
    """

    def __init__(
        self,
        latent: int,
        classes: int,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        autoregressive: bool = True,
        word_dropout: float = 0.0,
    ):
        need_sizes(latent=latent)
        super().__init__(classes, width, autoregressive, word_dropout)
        self.code = nn.Linear(latent, width)
        self.blocks = _blocks(width, heads, layers)
        self.out = nn.Linear(width, classes - 1)

    def forward(self, z: Float[Tensor, "N Z"], tokens: Int[Tensor, "N T"]) -> Float[Tensor, "N T Y"]:
        inputs = self.before(tokens)
        inputs = inputs + positions(inputs) + self.code(z).unsqueeze(1)
        later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=z.device).triu(1)
        return self.out(self.blocks(inputs, mask=later, is_causal=True))

    def step(self, z: Float[Tensor, "N Z"], before: Int[Tensor, " N"], state: Any) -> tuple[Float[Tensor, "N Y"], Any]:
        inputs = self.embedded(before).unsqueeze(1)
        t = 0 if state is None else state[0][0].shape[2]
        inputs = inputs + positions(inputs.expand(-1, t + 1, -1))[t] + self.code(z).unsqueeze(1)
        hidden, state = self.blocks.step(inputs, state)
        return self.out(hidden[:, 0]), state


def lstm_state(start: Float[Tensor, "N Y"]) -> tuple[Float[Tensor, "1 N H"], Float[Tensor, "1 N H"]]:
    """The initial hidden and cell state of an LSTM: the hyperbolic tangent of a vector of twice its width."""
    hidden, cell = start.tanh().unsqueeze(0).chunk(2, -1)
    return hidden.contiguous(), cell.contiguous()


def positions(like: Float[Tensor, "N T Y"]) -> Float[Tensor, "T Y"]:
    """Sinusoidal position encodings, with wavelengths from 2 π to 20000 π (Vaswani et al. 2017, section 3.5).

    >>> positions(torch.zeros(1, 2, 4))
    tensor([[0.0000, 0.0000, 1.0000, 1.0000],
            [0.8415, 0.0100, 0.5403, 0.9999]])
    """
    steps, width = like.shape[1:]
    rates = torch.exp(-math.log(10000.0) / (width // 2) * torch.arange(width // 2, device=like.device))
    angles = torch.arange(steps, device=like.device).unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)


class _Blocks(nn.TransformerEncoder):
    """``nn.TransformerEncoder`` with the only attention implementation that has a second derivative."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return super().forward(*args, **kwargs)

    def step(
        self, x: Float[Tensor, "N 1 Y"], cache: list[KeysAndValues] | None
    ) -> tuple[Float[Tensor, "N 1 Y"], list[KeysAndValues]]:
        """The next position under a causal mask, given the keys and values of each layer at the positions before."""
        seen = []
        for i, layer in enumerate(self.layers):
            attended, now = _attention_step(layer.self_attn, layer.norm1(x), None if cache is None else cache[i])
            x = x + attended
            x = x + layer.linear2(layer.activation(layer.linear1(layer.norm2(x))))
            seen.append(now)
        assert self.norm is not None
        return self.norm(x), seen


def _attention_step(
    attention: nn.MultiheadAttention, x: Float[Tensor, "N 1 Y"], cache: KeysAndValues | None
) -> tuple[Float[Tensor, "N 1 Y"], KeysAndValues]:
    """Self-attention of one position to itself and to those before it."""
    projected = linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = (part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, 2))
    if cache is not None:
        key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
    with sdpa_kernel(SDPBackend.MATH):
        mixed = scaled_dot_product_attention(query, key, value)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2)), (key, value)


def _blocks(width: int, heads: int, layers: int) -> _Blocks:
    """Transformer layers without dropout, which would make the objective of an ascent random."""
    need_sizes(width=width, heads=heads, layers=layers)
    if width % 2 or width % heads:
        raise ValueError(f"width must be even and a multiple of heads, got width={width} and heads={heads}.")
    block = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return _Blocks(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
