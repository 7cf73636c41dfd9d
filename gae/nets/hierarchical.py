"""Hierarchical decoders of sequences of classes, which decode one segment at a time."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from gae.nets import need_sizes
from gae.nets.sequence import SequenceDecoder, lstm_state


class HierarchicalLSTMDecoder(SequenceDecoder):
    """MusicVAE's decoder: a conductor LSTM maps z to an embedding per segment, which a lower LSTM decodes.

    The conductor starts from z and has no other input than a constant. The lower LSTM starts every segment anew from
    its embedding, and receives it at every step with the class before, across the borders of segments. What came
    earlier than that class reaches a segment through z alone, and the segments of known classes are evaluated in
    parallel (Roberts et al. 2018, section 3.2).

    Args:
        latent: width of z.
        classes: C, including padding.
        segment: number of steps of a segment; the last one may be shorter.
        embedding: width of the embedding of a class.
        hidden: width of both LSTMs, and of the embedding of a segment.
        autoregressive: whether the logits depend on the class before.
        word_dropout: fraction of these classes hidden in training.

    >>> HierarchicalLSTMDecoder(2, 5, segment=4)(torch.zeros(3, 2), torch.ones(3, 7, dtype=torch.long)).shape
    torch.Size([3, 7, 4])
    """

    def __init__(
        self,
        latent: int,
        classes: int,
        segment: int,
        embedding: int = 32,
        hidden: int = 128,
        autoregressive: bool = True,
        word_dropout: float = 0.0,
    ):
        need_sizes(latent=latent, segment=segment, embedding=embedding, hidden=hidden)
        super().__init__(classes, embedding, autoregressive, word_dropout)
        self.segment = segment
        self.conductor_start = nn.Linear(latent, 2 * hidden)
        self.conductor = nn.LSTM(1, hidden, batch_first=True)
        self.start = nn.Linear(hidden, 2 * hidden)
        self.lstm = nn.LSTM(embedding + hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, classes - 1)

    def forward(self, z: Float[Tensor, "N Z"], tokens: Int[Tensor, "N T"]) -> Float[Tensor, "N T Y"]:
        rows, steps = tokens.shape
        segments = -(-steps // self.segment)
        with torch.backends.cudnn.flags(enabled=False):
            plans, _ = self.conductor(z.new_ones(rows, segments, 1), lstm_state(self.conductor_start(z)))
            plans = plans.flatten(0, 1)
            before = pad(self.before(tokens), (0, 0, 0, segments * self.segment - steps))
            before = before.unflatten(1, (segments, self.segment)).flatten(0, 1)
            inputs = torch.cat([before, plans.unsqueeze(1).expand(-1, self.segment, -1)], 2)
            states, _ = self.lstm(inputs, lstm_state(self.start(plans)))
        return self.out(states).unflatten(0, (rows, segments)).flatten(1, 2)[:, :steps]

    def step(self, z: Float[Tensor, "N Z"], before: Int[Tensor, " N"], state: Any) -> tuple[Float[Tensor, "N Y"], Any]:
        if state is None:
            state = 0, lstm_state(self.conductor_start(z)), None, None
        t, above, plan, lower = state
        with torch.backends.cudnn.flags(enabled=False):
            if t % self.segment == 0:
                plans, above = self.conductor(z.new_ones(len(z), 1, 1), above)
                plan = plans[:, 0]
                lower = lstm_state(self.start(plan))
            states, lower = self.lstm(torch.cat([self.embedded(before), plan], 1).unsqueeze(1), lower)
        return self.out(states[:, 0]), (t + 1, above, plan, lower)
