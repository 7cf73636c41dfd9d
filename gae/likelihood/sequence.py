"""Likelihoods of padded sequences of classes: q_r(x|z) = prod_t q(x_t | x_1 ... x_{t-1}, z)."""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Num
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import pad

from gae.data.checks import refuse
from gae.likelihood.base import Likelihood
from gae.likelihood.door import need_no_component
from gae.likelihood.priors import StandardNormal
from gae.nets import as_size, first_tensor

Logits = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


@runtime_checkable
class StepwiseDecoder(Protocol):
    """Sequence decoder that also evaluates one step, from the state after the steps before.

    ``step(z, before, state)`` maps codes (N, *Z), the class before (N,), which is 0 at the first step, and the state,
    which is None there, to logits (N, C - 1) and the next state.
    """

    def step(self, z: Tensor, before: Tensor, state: Any) -> tuple[Tensor, Any]: ...


class SequenceDistribution(TorchDistribution):
    """Autoregressive distribution over sequences (T,) of the classes 1 ... C-1, as whole floats padded with 0.

    After the class ``end`` only padding follows, with probability 1, so that the probabilities of all sequences of up
    to T steps sum to 1; a sequence that does not end by step T is truncated. Without ``end``, the length is given, not
    modelled: the probabilities of all sequences of one length sum to 1.

    Args:
        logits: maps classes (*L, t) to logits (*L, t, C - 1) of the classes 1 ... C-1; those of a step depend only on
            the classes before it.
        batch_shape: L.
        steps: T.
        end: the class that ends a sequence, or None.
        like: a tensor with the dtype and device of the samples.
        step: maps the class before (*L,), 0 at first, and a state, None at first, to logits (*L, C - 1) and the next
            state. By default, each step of a sample evaluates ``logits`` on all classes before it.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        logits: Logits,
        batch_shape: Size,
        steps: int,
        end: int | None,
        like: Tensor,
        step: Step | None = None,
    ):
        self.logits, self.end, self.like, self.step = logits, end, like, step
        super().__init__(Size(batch_shape), Size((steps,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SequenceDistribution":
        return SequenceDistribution(self.logits, Size(batch_shape), self.event_shape[0], self.end, self.like, self.step)

    def log_prob(self, value: Num[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Log probability in nats; a padded step adds exactly 0."""
        tokens = value.long().expand(*torch.broadcast_shapes(value.shape[:-1], self.batch_shape), -1)
        chosen = (tokens - 1).clamp_min(0).unsqueeze(-1)
        density = self.logits(tokens).log_softmax(-1).gather(-1, chosen).squeeze(-1)
        return torch.where(tokens > 0, density, 0).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Ancestral sampling, step by step."""
        return self._generate(
            Size(sample_shape), lambda logits: torch.distributions.Categorical(logits=logits).sample()
        )

    def greedy(self) -> Float[Tensor, "..."]:
        """Greedy decoding, (*L, T). The mode if the steps are independent and have no end."""
        return self._generate(Size(), lambda logits: logits.argmax(-1))

    @torch.no_grad()
    def _generate(self, sample_shape: Size, pick: Callable[[Tensor], Tensor]) -> Tensor:
        tokens = torch.zeros(self._extended_shape(sample_shape), dtype=torch.long, device=self.like.device)
        ended = torch.zeros(tokens.shape[:-1], dtype=torch.bool, device=tokens.device)
        token, state, step = torch.zeros_like(ended, dtype=torch.long), None, self.step or self._on_the_prefix
        for t in range(tokens.shape[-1]):
            logits, state = step(token, state)
            token = (pick(logits) + 1).masked_fill(ended, 0)
            tokens[..., t] = token
            ended |= token == self.end
            if bool(ended.all()):
                break
        return tokens.to(self.like.dtype)

    def _on_the_prefix(self, before: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """A step whose state is all classes before it."""
        seen = before.new_zeros(*before.shape, 0) if state is None else torch.cat([state, before.unsqueeze(-1)], -1)
        return self.logits(pad(seen, (0, 1)))[..., -1, :], seen


class CategoricalSequence(Likelihood):
    """Autoregressive sequence likelihood q_r(x|z) = prod_t q(x_t | x_1 ... x_{t-1}, z) (Bowman et al. 2016).

    x (B, T) holds whole floats: the classes 1 ... C-1 of the sequence, then 0 for padding, which adds exactly 0 nats.
    Scoring evaluates the decoder once, on the observed classes (teacher forcing). Sampling and reconstruction evaluate
    each step of a ``StepwiseDecoder`` once, and any other decoder on all classes so far at every step. If the decoder
    ignores the classes, the steps are independent given z.

    Args:
        decoder: maps codes (N, *Z) and integer classes (N, t) to logits (N, t, C - 1) of the classes 1 ... C-1; those
            of a step depend on z and the classes before it. See ``gae.nets.sequence``.
        latent_shape: Z, or an int for vectors.
        steps: T, the length of an observation, including padding.
        classes: C, including padding.
        end: the class that ends a sequence. With it, probabilities of sequences of up to T steps sum to 1; without it
            (None), those of sequences of a given length.
        prior: see ``Likelihood``; defaults to N(0, I).

    Raises:
        ValueError: for sizes out of range, or a decoder whose logits have another shape.

    >>> from gae.nets.sequence import LSTMDecoder
    >>> model = CategoricalSequence(LSTMDecoder(2, classes=4), 2, steps=6, classes=4, end=1)
    >>> x = torch.tensor([[2.0, 3.0, 3.0, 1.0, 0.0, 0.0]])
    >>> model.log_joint(x, torch.zeros(5, 1, 2)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        decoder: nn.Module,
        latent_shape: int | tuple[int, ...] | Size,
        steps: int,
        classes: int,
        end: int | None = None,
        prior: nn.Module | None = None,
    ):
        shape = as_size(latent_shape)
        if steps < 1 or classes < 2:
            raise ValueError(f"Need at least 1 step and 2 classes, of which 0 is padding, got {steps} and {classes}.")
        if end is not None and not 1 <= end < classes:
            raise ValueError(f"end must be one of the classes 1 ... {classes - 1} or None, got {end}.")
        like = first_tensor(decoder)
        super().__init__(shape, (steps,), StandardNormal(*shape).to(like) if prior is None else prior)
        self.decoder, self.steps, self.classes, self.end = decoder, steps, classes, end
        with torch.no_grad():
            logits = self(like.new_zeros(1, *shape)).logits(torch.zeros(1, 1, dtype=torch.long, device=like.device))
        if logits.shape != (1, 1, classes - 1):
            raise ValueError(
                f"The decoder must return logits (N, t, C - 1) of the classes 1 ... {classes - 1}, without padding: "
                f"for one code and one step {(1, 1, classes - 1)}, got {tuple(logits.shape)}."
            )

    def forward(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> SequenceDistribution:
        need_no_component(self, k)

        def logits(tokens: Tensor) -> Tensor:
            lead, latent = tokens.shape[:-1], self.latent_shape
            codes = z.expand(*lead, *latent).reshape(-1, *latent)
            output = self.decoder(codes, tokens.reshape(-1, tokens.shape[-1]))
            return output.reshape(*tokens.shape, *output.shape[2:])

        batch_shape = z.shape[: z.dim() - len(self.latent_shape)]
        step = _step_of(self.decoder, z, self.latent_shape) if isinstance(self.decoder, StepwiseDecoder) else None
        return SequenceDistribution(logits, batch_shape, self.steps, self.end, z, step)

    def point(self, decoded: SequenceDistribution) -> Float[Tensor, "..."]:  # type: ignore[override]
        """Greedy decoding, (*L, T), since classes have no mean."""
        return decoded.greedy()

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.classes - 1)

    @property
    def support_text(self) -> str:  # type: ignore[override]
        return f"the classes 0 ... {self.classes - 1}"

    support_remedy = "Number the tokens 1, 2, ..., with 0 for padding, and set `classes` to their number plus 1."

    def check_support(self, x: Num[Tensor, "B T"]) -> None:
        super().check_support(x)
        padded = x == 0
        if self.end is None:
            started = padded.cumsum(1) > 0
            refuse(x, padded & (torch.arange(self.steps, device=x.device) == 0), "A sequence needs a first token", "")
            refuse(x, ~padded & started, "Padding must follow the tokens", "Move it to the end of each sequence.")
            return
        ends = (x == self.end).cumsum(1)
        ended = ends - (x == self.end).long() > 0
        what = f"Every sequence needs the class {self.end} that ends it before its padding, and only padding after it"
        refuse(x, padded != ended, what, "Add the end, or build the model with end=None.")


def _step_of(decoder: StepwiseDecoder, z: Float[Tensor, "..."], latent_shape: Size) -> Step:
    """The decoder's step for classes (*L,), with z expanded to them."""

    def step(before: Tensor, state: Any) -> tuple[Tensor, Any]:
        codes = z.expand(*before.shape, *latent_shape).reshape(-1, *latent_shape)
        output, state = decoder.step(codes, before.reshape(-1), state)
        return output.reshape(*before.shape, output.shape[-1]), state

    return step
