"""The interface of inference engines, x -> code, and their results."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Num
from torch import Size, Tensor, nn
from torch.distributions import Distribution

from gae.display import axes_for, html_table
from gae.inference.laws import is_point, need_density, point_of, rearranged
from gae.likelihood import AcceptsMissing, Likelihood
from gae.likelihood.door import check_components, door
from gae.likelihood.geometry import principal_components
from gae.storage import Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Status(IntEnum):
    """How the solve of one sample ended."""

    max_steps = 0  # still moving after the last step
    converged = 1  # gradient norm, or change of the objective and the gain of a step, within tolerance
    diverged = 2  # ended below the objective of its start
    nonfinite = 3  # met a non-finite objective or gradient; the best finite point is returned, as a constant

    # With gradients, an objective whose square is not finite also counts, since its derivatives would overflow.


@dataclass(frozen=True)
class Solve:
    """Per-sample report of an iterative solve; tensors are (S, B) unless noted otherwise."""

    status: Int[Tensor, "S B"]
    steps: Int[Tensor, "S B"]
    evaluations: Int[Tensor, "S B"]  # decoder evaluations that the solve cost
    grad_norm: Float[Tensor, "S B"]  # ‖∇ objective‖₂ at the last point where it was evaluated; NaN without gradients
    trace: Float[Tensor, "T S B"] | None = None  # objective (nats) before each step; -inf where it was not finite
    path: Float[Tensor, "T S B"] | None = None  # the trace in the graph of an ascent with ``Unroll``; see ``MCMC``
    reconstruction: Float[Tensor, "S B *X"] | None = (
        None  # running average of the decoder's output, at the point chosen by a stopping rule
    )
    spread: Float[Tensor, "S B"] | None = None  # best minus worst objective (nats) over restarts; inf if one failed
    acceptance: Float[Tensor, "S B"] | None = None  # mean acceptance probability of a chain's transitions; see ``HMC``

    def choose(self, best: Int[Tensor, "S B"], objective: Float[Tensor, "R S B"] | None = None) -> "Solve":
        """Selects run ``best`` (S, B) of the R runs (R · S, B) for each row; evaluations are summed over runs."""
        shape = (-1, *best.shape)

        def pick(value: Tensor) -> Tensor:
            return value.reshape(shape).gather(0, best.unsqueeze(0)).squeeze(0)

        trace, path = (
            None if record is None else torch.stack([pick(values) for values in record])
            for record in (self.trace, self.path)
        )
        spread = None
        if objective is not None:
            top = objective.amax(0)
            spread = torch.where(torch.isfinite(top), top - objective.amin(0), torch.inf)
        evaluations = self.evaluations.reshape(shape).sum(0)
        acceptance = None if self.acceptance is None else pick(self.acceptance)
        picked = pick(self.status), pick(self.steps), evaluations, pick(self.grad_norm)
        return Solve(*picked, trace, path, spread=spread, acceptance=acceptance)

    def summary(self) -> str:
        """Counts of each status, as one line."""
        counts = Counter(Status(code).name for code in self.status.flatten().tolist())
        return ", ".join(f"{name}: {counts[name]}" for name in sorted(counts))


@dataclass(frozen=True)
class Code:
    """The output of an engine, before the model scores it.

    ``log_joint`` is given if the engine has computed it already, say from sufficient statistics.
    """

    z: Float[Tensor, "S B *Z"]
    k: Int[Tensor, "S B"] | None = None
    log_q: Float[Tensor, "S B"] | None = None
    q: Distribution | None = None
    solve: Solve | None = None
    log_joint: Float[Tensor, "S B"] | None = None
    encoded: Float[Tensor, "S B *Z"] | None = None  # an encoder's output, before it was quantised to z
    log_volume: Float[Tensor, "S B"] | None = None  # log of ∫ exp(-½ (z' - z)ᵀ Λ (z' - z)) dz', with Λ the curvature
    volume_error: Float[Tensor, "S B"] | None = None  # standard error of ``log_volume``
    asleep: Float[Tensor, "1 B"] | None = None  # log q(z|x) of draws (z, x) of the model; see ``DetachedDraws``

    def expand_components(self, k: Int[Tensor, "S _"]) -> "Code":
        """The same code for every given component k (S, 1) or (S, B)."""
        if len(self.z) != 1:
            raise ValueError(
                f"Only one code per sample can be repeated for every component, got S={len(self.z)}. Use `samples=1`."
            )
        shape = (len(k), self.z.shape[1])
        log_q = None if self.log_q is None else self.log_q.expand(shape)
        q = None if self.q is None else self.q.expand(Size(shape))
        return replace(self, z=self.z.expand(*shape, *self.z.shape[2:]), k=k.expand(shape), log_q=log_q, q=q)


@dataclass(frozen=True)
class Encoding:
    """Codes of a batch and their log densities, in nats, differentiable in the decoder.

    Shapes: S samples, restarts or branches; B batch; Z one code.
    """

    z: Float[Tensor, "S B *Z"]
    k: Int[Tensor, "S B"] | None  # discrete code of a mixture
    log_joint: Float[Tensor, "S B"]  # log q_w(z) q_r(x|z), with log q(k) for a discrete code k
    log_q: Float[Tensor, "S B"] | None  # log q(z|x) of the drawn code; None for a point estimate
    q: Distribution | None  # for analytic KL terms and proposals
    prior: Distribution
    engine: str
    solve: Solve | None = None
    encoded: Float[Tensor, "S B *Z"] | None = None  # an encoder's output, before it was quantised to z
    log_volume: Float[Tensor, "S B"] | None = None  # see ``LanczosLaplace``
    volume_error: Float[Tensor, "S B"] | None = None  # standard error of ``log_volume``, in nats
    asleep: Float[Tensor, "1 B"] | None = None  # log q(z|x) of draws (z, x) of the model; see ``DetachedDraws``

    def __post_init__(self) -> None:
        lead = self.log_joint.shape
        tensors = {"z": self.z, "k": self.k, "log_q": self.log_q}
        bad = {name: tuple(t.shape) for name, t in tensors.items() if t is not None and t.shape[:2] != lead}
        if len(lead) != 2 or bad:
            raise ValueError(
                f"log_joint must have shape (S, B), and z, k and log_q begin with it, got {tuple(lead)} and {bad}."
            )

    @property
    def log_prior(self) -> Float[Tensor, "S B"]:
        """log q_w(z), in nats."""
        return self.prior.log_prob(self.z)

    @property
    def point(self) -> Float[Tensor, "B *Z"]:
        """One code per sample, the same at every call: the point of q for one continuous code, else the best of S.

        The point is the mean of q, or for a flow the image of its base's mean (``gae.inference.laws.point_of``).
        """
        if self.k is None and self.q is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.z.requires_grad):  # a flow maps its base now
                point = point_of(self.q)
            return point[0] if point.dim() == self.z.dim() else point
        return self.z[self.best, torch.arange(self.z.shape[1], device=self.z.device)]

    @property
    def best(self) -> Int[Tensor, " B"]:
        """The index over S with the highest ``log_joint``."""
        return self.log_joint.argmax(0)

    @property
    def component(self) -> Int[Tensor, " B"] | None:
        """The discrete code of ``point``."""
        return None if self.k is None else self.k[self.best, torch.arange(self.k.shape[1], device=self.k.device)]

    def rows(self, start: int, stop: int) -> "Encoding":
        """The encoding of the observations from ``start`` to ``stop``, as a slice has them.

        Raises:
            TypeError: for a law q(z|x) that cannot be cut (``gae.inference.laws.rearranged``).
        """
        if start <= 0 and stop >= self.log_joint.shape[1]:
            return self
        return _rearranged(
            [self], lambda values, dimension: values[0].movedim(dimension, 0)[start:stop].movedim(0, dimension)
        )

    @staticmethod
    def join(parts: "Sequence[Encoding]") -> "Encoding":
        """The encoding of all observations from those of batches of them, in order.

        Raises:
            TypeError: for laws q(z|x) that cannot be joined (``gae.inference.laws.rearranged``).
        """
        return _rearranged(parts, lambda values, dimension: torch.cat(values, dimension))

    def summary(self) -> str:
        """Engine, shapes and, for an iterative engine, how many samples ended in which status."""
        samples, batch = self.log_joint.shape
        text = f"{self.engine}: S={samples}, B={batch}, mean log_joint {self.log_joint.detach().mean().item():.4f} nats"
        return text if self.solve is None else f"{text}; {self.solve.summary()}"

    def plot(self, ax: "Axes | None" = None, labels: Int[Tensor, " B"] | None = None) -> "Axes":
        """Draws the code of every sample, ``point``: a cloud, a histogram, or the numbers of the discrete codes.

        Codes of more than two elements are seen in the plane of their first two principal components.

        Args:
            ax: axes; new ones of pyplot by default.
            labels: integers that colour the cloud.
        """
        ax, z = axes_for(ax), self.point.detach().flatten(1).cpu()
        if not z.shape[1]:
            assert self.component is not None
            counts = self.component.cpu().bincount().tolist()
            ax.bar(range(len(counts)), counts)
            ax.set(xlabel="component", ylabel="samples")
        elif z.shape[1] == 1:
            ax.hist(z[:, 0].numpy(), 30)
            ax.set(xlabel="z", ylabel="samples")
        else:
            _cloud(ax, z, labels)
        return ax

    def _repr_html_(self) -> str:
        columns = {"log q(x, z)": self.log_joint, "log q(z|x)": self.log_q}
        rows: list[tuple[str, object]] = [("z", f"{tuple(self.z.shape)}: S samples, B observations, a code")]
        rows += [] if self.k is None else [("k", f"{tuple(self.k.shape)}: discrete codes")]
        for name, values in columns.items():
            if values is not None:
                rows.append((f"{name}, mean (nats)", float(values.detach().mean())))
        rows += [] if self.q is None else [("q(z|x)", type(self.q).__name__)]
        rows += [] if self.solve is None else [("solves", self.solve.summary())]
        return html_table(f"Encoding by {self.engine}", rows)


def _cloud(ax: "Axes", z: Float[Tensor, "B Z"], labels: Int[Tensor, " B"] | None) -> None:
    """Codes of two elements or more, in a plane."""
    names = ["z₁", "z₂"]
    if z.shape[1] > 2:
        z, size, _ = principal_components(z)
        shares = (size.square() / size.square().sum()).tolist()
        names = [f"principal component {i + 1} ({shares[i]:.0%} of the variance)" for i in range(2)]
    for label in [None] if labels is None else labels.unique().tolist():
        points = (z if labels is None else z[labels.cpu() == label]).numpy()
        ax.scatter(points[:, 0], points[:, 1], s=8, label=label)
    if labels is not None:
        ax.legend(title="label", fontsize=8, ncols=2)
    ax.set(xlabel=names[0], ylabel=names[1])


def _rearranged(parts: Sequence[Encoding], combine: Callable[[list[Tensor], int], Tensor]) -> Encoding:
    """One encoding out of several, with ``combine(tensors, dimension of the observations)`` for each of its tensors."""

    def tensor(owners: Sequence[Any], name: str, dimension: int = 1) -> Any:
        values = [getattr(owner, name) for owner in owners]
        return None if values[0] is None else combine(values, dimension)

    first, solves = parts[0], [part.solve for part in parts if part.solve is not None]
    q = None if first.q is None else rearranged([part.q for part in parts if part.q is not None], combine)
    solve = None
    if solves:
        longest = max(0 if one.trace is None else len(one.trace) for one in solves)
        solves = [one if one.trace is None else replace(one, trace=_prolonged(one.trace, longest)) for one in solves]
        names = ("status", "steps", "evaluations", "grad_norm", "reconstruction", "spread", "acceptance")
        solve = Solve(**{name: tensor(solves, name) for name in names}, trace=tensor(solves, "trace", 2))
    fields = ("z", "k", "log_joint", "log_q", "encoded", "log_volume", "volume_error", "asleep")
    columns = {name: tensor(parts, name) for name in fields}
    return Encoding(**columns, q=q, prior=first.prior, engine=first.engine, solve=solve)


def _prolonged(trace: Float[Tensor, "T S B"], length: int) -> Float[Tensor, "L S B"]:
    """A trace of more steps: a row that has stopped repeats its last value."""
    return torch.cat([trace, trace[-1:].expand(length - len(trace), *trace.shape[1:])])


@runtime_checkable
class LearnsData(Protocol):
    """Protocol of modules that need the training data before they are fitted."""

    def initialize(self, likelihood: Likelihood, x: Tensor, seed: int) -> None:
        """Prepares for all training observations x (N, *X); ``fit`` calls it before it creates the optimiser."""


Sweep = Callable[[], tuple[Float[Tensor, ""], Any]]  # the sum of a bound over all x, and sufficient statistics


class Inference(Part, nn.Module, ABC):
    """Base class of inference engines, which never touch the likelihood's parameters, inputs, or torch's defaults.

    Calling an engine or its ``infer`` checks x and k first (``gae.likelihood.door``). A ``Delta`` returned as q(z|x)
    counts as a point estimate, without a density.
    """

    is_sampler: bool = False  # whether its codes are draws of the posterior without a density, rather than modes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "infer" in vars(cls):
            cls.infer = _checked(cls.infer)  # type: ignore[method-assign]

    @abstractmethod
    def infer(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Code:
        """Codes of x; with k (S, 1) or (S, B), continuous codes given that component."""

    def forward(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], k: Int[Tensor, "S _"] | None = None) -> Encoding:
        """Codes of x from ``infer``, with their exact log density."""
        with door(likelihood, x):
            return self.scored(likelihood, x, self.infer(likelihood, x, k))

    def sweep(self, likelihood: Likelihood, x: Num[Tensor, "N *X"], bound: str) -> Sweep | None:
        """A pass over all training observations for closed-form learning, perhaps reusing the last; None: no such.

        It stands for ``infer``, an objective (``bound``: "joint" or "logsumexp") and the likelihood's ``statistics`` on
        every batch, with the same results.
        """
        return None

    def scored(self, likelihood: Likelihood, x: Num[Tensor, "B *X"], code: Code) -> Encoding:
        """The encoding of a code, with its log density at x."""
        known = None if likelihood.bind_is_surrogate else code.log_joint
        log_joint = likelihood.log_joint(x, code.z, code.k) if known is None else known
        parts = code.z, code.k, log_joint, code.log_q, code.q, likelihood.prior, type(self).__name__
        return Encoding(*parts, code.solve, code.encoded, code.log_volume, code.volume_error, code.asleep)


def need_mask(likelihood: Likelihood, x: Num[Tensor, "B *X"], encoded: Float[Tensor, "..."] | None) -> None:
    """Raises ValueError if an encoder's output is NaN (or None: it failed) for an x with missing elements."""
    if not isinstance(likelihood, AcceptsMissing) or not bool(x.isnan().any()):
        return
    if encoded is None or bool(encoded.isnan().any()):
        raise ValueError(
            "x has missing elements (NaN), and the encoder returns NaN for them: it takes no mask. Build it as "
            "`nets.Standardized(network, X, missing=True)`, with a network of inputs of the shape `nets.with_mask(X)`, "
            "or infer codes without an encoder: `Ascent(...)`, or for mixtures `ClosedForm()`."
        )


def _in_data_units(code: Code, likelihood: Likelihood, x: Tensor) -> Code:
    """A code of x that was inferred in standard units, with its log densities and reconstruction in data units."""
    volume, solve = likelihood.log_volume(x), code.solve
    if solve is not None:
        trace, path = (None if record is None else record - volume for record in (solve.trace, solve.path))
        reconstruction = None if solve.reconstruction is None else likelihood.in_data_units(solve.reconstruction)
        solve = replace(solve, trace=trace, path=path, reconstruction=reconstruction)
    return replace(code, solve=solve, log_joint=None if code.log_joint is None else code.log_joint - volume)


def _checked(infer: Callable[..., Code]) -> Callable[..., Code]:
    """``infer`` with its arguments checked, in the model's units. x may lie outside the support, if it is corrupted."""

    @wraps(infer)
    def guarded(self: Inference, likelihood: Likelihood, x: Tensor, k: Tensor | None = None) -> Code:
        with door(likelihood, x, support=False) as outermost:
            if k is not None:
                check_components(likelihood, k, len(x), outermost)
            model, values = likelihood.in_standard_units(x)
            code = infer(self, model, values, k)
            code = code if model is likelihood else _in_data_units(code, likelihood, x)
        if code.q is None:
            return code
        if is_point(code.q):
            return replace(code, q=None, log_q=None)
        need_density(code.q)
        return code

    return guarded
