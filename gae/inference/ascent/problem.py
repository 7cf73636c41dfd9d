"""The problem of one solve: a deterministic objective per sample, as a function of u alone."""

from collections.abc import Callable, Mapping
from copy import copy
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
    """The objective at one point u; a row is usable if the point, its value and its gradient are finite.

    In a graph the square of the value must be finite too, or derivatives of the gradient would overflow.
    """

    value: Float[Tensor, "S B"]
    grad: Float[Tensor, "S B *U"]
    norm: Float[Tensor, "S B"]  # ‖grad‖₂, without a graph
    usable: Bool[Tensor, "S B"]
    reconstruction: Float[Tensor, "S B *X"] | None = None  # decoder output, without a graph, if requested


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
        return self.family.objective(u, self.noise, self._log_joint_of)

    def _log_joint_of(self, z: Float[Tensor, "T B *Z"]) -> Float[Tensor, "T B"]:
        """log q(x, z) of a multiple T of the S codes of each sample."""
        return self.log_joint(z, self.k if self.k is None else self.k.repeat(len(z) // len(self.k), 1))

    def evaluate_with_output(self, u: Float[Tensor, "S B *Z"]) -> Evaluation:
        """``evaluate`` at point codes without a graph, with the reconstruction from the same pass."""
        likelihood = self.likelihood
        assert isinstance(likelihood, DecoderLikelihood)
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            output = likelihood.sample_outputs(leaf, self.k)
            value = likelihood.prior.log_prob(leaf) + likelihood.log_likelihood(self.x, output, self.k)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        value, norm = value.detach(), row_norm(grad)
        with torch.no_grad():
            reconstruction = likelihood.reconstruction(output.detach())
        return Evaluation(value, grad, norm, finite(u, value + norm), reconstruction)

    def evaluate(self, u: Float[Tensor, "S B *U"], create_graph: bool) -> Evaluation:
        """The objective and its gradient in u, for each row separately.

        Unusable rows are left out of the graph, since 0 · NaN would reach every parameter.
        """
        value, grad = self._value_and_grad(u, create_graph)
        norm = row_norm(grad)
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
        """``compute`` on the problem and inputs of the kept rows only; the other rows are those of ``known``."""
        index = kept.flatten().nonzero().squeeze(1)
        if not len(index):
            return known
        part = self.rows(index, (kept.shape[0], kept.shape[1]))
        parts = compute(part, *(value.flatten(0, 1)[index].unsqueeze(0) for value in inputs))
        return tuple(
            old.flatten(0, 1).index_copy(0, index, new.squeeze(0)).view_as(old)
            for old, new in zip(known, parts, strict=True)
        )

    def _value_and_grad(self, u: Float[Tensor, "S B *U"], create_graph: bool) -> tuple[Tensor, Tensor]:
        """The objective and its gradient, by ``torch.func`` inside its transforms, which support nothing else."""
        with torch.enable_grad():
            if not transformed():
                leaf = u if u.requires_grad and create_graph else u.detach().requires_grad_()
                value = self(leaf)
                return value, torch.autograd.grad(value.sum(), leaf, create_graph=create_graph)[0]
            value, pull = vjp(self, u if create_graph else u.detach())  # type: ignore[misc]
            (grad,) = pull(torch.ones_like(value))
        return (value, grad) if create_graph else (value.detach(), grad.detach())

    def rebind(self) -> "Problem":
        """The same problem with x bound again, under the current gradient mode."""
        return Problem(self.likelihood, self.family, self.x, self.k, self.noise)

    def with_noise(self, noise: Float[Tensor, "S B M *Z"]) -> "Problem":
        """The same problem under other noise, with x bound as it is."""
        other = copy(self)
        object.__setattr__(other, "noise", noise)
        return other

    def rows(self, index: Int[Tensor, " n"], shape: tuple[int, int]) -> "Problem":
        """The problem of some of the S · B rows alone, as S = 1 and B = n."""
        k = None if self.k is None else self.k.expand(shape).flatten()[index].unsqueeze(0)
        noise = None if self.noise is None else self.noise.flatten(0, 1)[index].unsqueeze(0)
        return Problem(self.likelihood, self.family, self.x[index % shape[1]], k, noise)

    def parameters(self) -> list[Tensor]:
        """The tensors besides u that the gradient of the objective reaches."""
        parameters: list[Tensor] = [p for p in self.likelihood.parameters() if p.requires_grad]
        return [*parameters, self.x] if self.x.requires_grad else parameters


def finite(u: Float[Tensor, "S B *U"], values: Float[Tensor, "S B"]) -> Bool[Tensor, "S B"]:
    """Whether a value and all elements of a point are finite, tested by their sum."""
    return torch.isfinite(values.detach() + 0 * u.detach().flatten(2).sum(2))


def rounding(value: Float[Tensor, "S B"]) -> Float[Tensor, "S B"]:
    """Bound on the rounding error of an objective, in nats; its terms may be large where their sum vanishes."""
    return 10 * torch.finfo(value.dtype).eps * (10 + value.abs())


def row_dot(a: Float[Tensor, "S B *U"], b: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B"]:
    """The inner product of each row."""
    product = a * b
    return (product if product.dim() == 3 else product.flatten(2)).sum(2)


def row_norm(a: Float[Tensor, "S B *U"]) -> Float[Tensor, "S B"]:
    """The Euclidean norm of each row, without a graph."""
    return torch.linalg.vector_norm(a.detach().flatten(2), dim=2)


def choose_rows(
    rows: Bool[Tensor, "S B"], chosen: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors (S, B, ...) by name: ``chosen`` in the given rows, ``others`` elsewhere."""
    return {name: torch.where(expand_rows(rows, new), new, others[name]) for name, new in chosen.items()}


def expand_rows(rows: Tensor, like: Num[Tensor, "S B *_"]) -> Tensor:
    """Values (S, B) with trailing dimensions of size 1, to broadcast against ``like``."""
    return rows.reshape(*rows.shape, *[1] * (like.dim() - 2))
