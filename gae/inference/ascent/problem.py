"""One solve: a deterministic objective per sample, with everything but u bound."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torch.func import vjp

from gae.inference.ascent.family import Family
from gae.inference.decoder import transformed
from gae.likelihood import DecoderLikelihood, Likelihood
from gae.likelihood.base import LogJoint


class Evaluation(NamedTuple):
    """An objective at one point u; a row is usable if the point, its value and its gradient are finite.

    In a graph the square of the value must be finite too, or derivatives of the gradient would overflow.
    """

    value: Float[Tensor, "S B"]
    grad: Float[Tensor, "S B *U"]
    norm: Float[Tensor, "S B"]  # ‖grad‖₂, without a graph
    usable: Bool[Tensor, "S B"]
    reconstruction: Float[Tensor, "S B *X"] | None = (
        None  # what the decoder put out, without a graph, where it was asked for
    )


@dataclass(frozen=True)
class Problem:
    """u (S, B, *U) -> objective (S, B) in nats, for one x, k and noise. Rows are its S · B separate problems."""

    likelihood: Likelihood
    family: Family
    x: Num[Tensor, "B *X"]
    k: Int[Tensor, "S _"] | None
    noise: Float[Tensor, "S B M *Z"] | None
    log_joint: LogJoint = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_joint", self.likelihood.bind(self.x))

    def __call__(self, u: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B"]:
        return self.family.objective(u, self.noise, lambda z: self.log_joint(z, self.k))

    def evaluate_with_output(self, u: Float[Tensor, "S B *Z"]) -> Evaluation:
        """``evaluate`` at point codes without a graph, and the decoder's signal from the same pass."""
        likelihood = self.likelihood
        assert isinstance(likelihood, DecoderLikelihood)
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            output = likelihood.sample_outputs(leaf, self.k)
            value = likelihood.prior.log_prob(leaf) + likelihood.log_likelihood(self.x, output, self.k)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        value, norm = value.detach(), torch.linalg.vector_norm(grad.flatten(2), dim=2)
        with torch.no_grad():
            reconstruction = likelihood.reconstruction(output.detach())
        return Evaluation(value, grad, norm, finite(u, value + norm), reconstruction)

    def evaluate(self, u: Float[Tensor, "S B *U"], create_graph: bool) -> Evaluation:
        """The objective and its gradient in u, summed over no samples: each row is its own function.

        A row that is not usable is no part of the graph: 0 · NaN would reach every parameter.
        """
        value, grad = self._differentiated(u, create_graph)
        norm = torch.linalg.vector_norm(grad.detach().flatten(2), dim=2)
        plain = value.detach()
        usable = finite(u, (plain.square() if create_graph else plain) + norm)
        if not create_graph or bool(usable.all()):
            return Evaluation(value if create_graph else plain, grad, norm, usable)
        value, grad = self.only(usable, (plain, grad.detach()), (u,), lambda part, at: part.evaluate(at, True)[:2])
        return Evaluation(value, grad, norm, usable)

    def only(
        self,
        kept: Bool[Tensor, "S B"],
        known: tuple[Tensor, ...],
        inputs: tuple[Tensor, ...],
        compute: Callable[..., tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """``compute`` of these rows alone, the problem of them and their inputs; the other rows are as known."""
        index = kept.flatten().nonzero().squeeze(1)
        if not len(index):
            return known
        part = self.rows(index, (kept.shape[0], kept.shape[1]))
        parts = compute(part, *(value.flatten(0, 1)[index].unsqueeze(0) for value in inputs))
        return tuple(
            old.flatten(0, 1).index_copy(0, index, new.squeeze(0)).view_as(old)
            for old, new in zip(known, parts, strict=True)
        )

    def _differentiated(self, u: Float[Tensor, "S B *U"], create_graph: bool) -> tuple[Tensor, Tensor]:
        """The objective and its gradient; by ``torch.func`` inside of its transforms, which know no other way."""
        with torch.enable_grad():
            if not transformed():
                leaf = u if u.requires_grad and create_graph else u.detach().requires_grad_()
                value = self(leaf)
                return value, torch.autograd.grad(value.sum(), leaf, create_graph=create_graph)[0]
            value, pull = vjp(self, u if create_graph else u.detach())  # type: ignore[misc]
            (grad,) = pull(torch.ones_like(value))
        return (value, grad) if create_graph else (value.detach(), grad.detach())

    def rebind(self) -> "Problem":
        """The same problem with x bound anew, under the present gradient mode."""
        return Problem(self.likelihood, self.family, self.x, self.k, self.noise)

    def rows(self, index: Int[Tensor, " n"], shape: tuple[int, int]) -> "Problem":
        """The problem of some of the S · B rows alone, as S = 1 and B = n."""
        k = None if self.k is None else self.k.expand(shape).flatten()[index].unsqueeze(0)
        noise = None if self.noise is None else self.noise.flatten(0, 1)[index].unsqueeze(0)
        return Problem(self.likelihood, self.family, self.x[index % shape[1]], k, noise)

    def parameters(self) -> list[Tensor]:
        """The tensors that a gradient can flow back to from the objective, besides u."""
        found: list[Tensor] = [p for p in self.likelihood.parameters() if p.requires_grad]
        return [*found, self.x] if self.x.requires_grad else found


def finite(u: Float[Tensor, "S B *U"], values: Float[Tensor, "S B"]) -> Bool[Tensor, "S B"]:
    """Where a value and all elements of a point are finite: a sum is not if a term is not."""
    return torch.isfinite(values.detach() + 0 * u.detach().flatten(2).sum(2))


def rounding(value: Float[Tensor, "S B"]) -> Float[Tensor, "S B"]:
    """How far rounding may move an objective, in nats: its terms are larger than a sum that happens to vanish."""
    return 10 * torch.finfo(value.dtype).eps * (10 + value.abs())


def expand_rows(rows: Tensor, like: Num[Tensor, "S B *_"]) -> Tensor:
    """One value per row (S, B) with as many trailing dimensions of size 1 as ``like`` has beyond those."""
    return rows.reshape(*rows.shape, *[1] * (like.dim() - 2))
