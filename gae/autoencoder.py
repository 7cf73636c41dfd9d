"""The autoencoder: a likelihood, an inference engine and an objective."""

import inspect
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.distributions import Distribution

from gae.data.preparation import Preparation
from gae.display import INK, LINES, axes_for, blank, html_table
from gae.evidence import Evidence, exact, importance, laplace_approximation
from gae.evidence.automatic import ANNEALED, Method, Over, estimate, in_turn
from gae.evidence.base import is_exact, need_proper
from gae.inference import Code, Encoding, Inference
from gae.likelihood import AcceptsMissing, Likelihood
from gae.likelihood.door import door
from gae.objective import Aggregate, Objective, joint, mean
from gae.storage import Part, models
from gae.storage.checkpoint import PathLike
from gae.storage.recipe import Call

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ChainCorruption(Part, nn.Module, ABC):
    """Base class of corruptions that apply the model itself, and give several corrupted inputs of an observation."""

    @abstractmethod
    def pairs(self, redraw: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Clean observations and their corrupted inputs, (M, *X) each; ``redraw`` is ``Autoencoder.redraw``."""


class Autoencoder(Part, nn.Module):
    """An autoencoder: a decoder with a prior (the likelihood), an inference engine that encodes, and an objective.

    The likelihood alone defines the model; exchanging the engine does not change it. Calling the autoencoder with
    x (B, *X) returns the scalar training loss, -aggregate(objective(encoding)), in nats per sample.

    Args:
        likelihood: the decoder and the prior, which define the model.
        inference: the engine that infers codes.
        objective: the objective to be maximised, per sample.
        aggregate: reduces the objectives of a batch to one number: ``mean``, or ``minimum`` and ``soft_minimum(beta)``
            of ``gae.objective`` for the worst samples. It may be replaced afterwards, also in a named system.
        corruption: applied to the engine's input in training (``gae.training.corruption``); the clean x is scored.
        penalties: additional terms of the training loss (``gae.training.penalty``).
        accepts_rescaling: whether training by ``joint`` under a proper prior, which has no maximiser, is intended;
            ``fit`` then does not warn of it.

    Attributes:
        optimizer: callable parameters -> optimiser, the default of ``fit`` for this model; None: ``fit`` chooses.

    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> model = Autoencoder(LinearMixture(1, 2, (5,)), ClosedForm())
    >>> model.reconstruct(torch.randn(3, 5)).shape
    torch.Size([3, 5])
    """

    optimizer: Callable[..., torch.optim.Optimizer] | None = None

    def __init__(
        self,
        likelihood: Likelihood,
        inference: Inference,
        objective: Objective = joint,
        aggregate: Aggregate = mean,
        corruption: nn.Module | None = None,
        penalties: Sequence[nn.Module] = (),
        accepts_rescaling: bool = False,
    ):
        super().__init__()
        for part, kind in ((likelihood, Likelihood), (inference, Inference)):
            if not isinstance(part, kind):
                raise TypeError(
                    f"An autoencoder needs a {kind.__name__}, got {type(part).__name__}. A decoder network becomes a "
                    "model by `gae.from_decoder`, a Pyro model with its guide by `gae.from_pyro`, an encoder an engine "
                    "by `gae.inference.Amortized`."
                )
        self.likelihood = likelihood
        self.inference = inference
        self.objective = objective
        self.aggregate = aggregate
        self.corruption = corruption
        self.penalties = nn.ModuleList(penalties)
        self.accepts_rescaling = accepts_rescaling
        self.preparation: Preparation | None = None  # of the data set passed to ``fit``

    def calls(self) -> list[Call]:
        """The call that built the model, then, in case a part was exchanged, its class with the current parts."""
        names = inspect.signature(type(self)).parameters
        parts = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return [*super().calls(), Call(type(self), (), parts)]

    def save(self, path: PathLike) -> Path:
        """Saves the model to a new folder: tensors as safetensors, and its construction as calls by reference.

        The record is the named system with its options, or else the class and arguments of every part. Parts of gae
        are recorded automatically, including user-defined subclasses of ``Likelihood``, ``Inference`` and ``Step``;
        decorate an importable function that builds a network with ``gae.storage.recorded``.

        Raises:
            FileExistsError: if the path exists and is not an empty folder.
            OSError: if the model cannot be written.

        Warns:
            UserWarning: if a part was not built by a recorded call, or a setting was changed afterwards: ``gae.load``
                will need a function that builds the model.

        >>> from tempfile import TemporaryDirectory
        >>> from gae.inference import ClosedForm
        >>> from gae.likelihood import LinearMixture
        >>> model, x = Autoencoder(LinearMixture(1, 2, (5,)), ClosedForm()), torch.randn(3, 5)
        >>> with TemporaryDirectory() as folder:
        ...     again = load(model.save(f"{folder}/model"))
        >>> torch.equal(again.encode(x).point, model.encode(x).point)
        True
        """
        return models.save(self, path)

    def forward(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, ""]:
        """The training loss, in nats per sample: minus the aggregated objective, plus the penalties.

        Corruption and penalties apply in training mode only; in evaluation mode the loss is that of clean data.

        Raises:
            ValueError, TypeError: as ``encode`` does.
        """
        with door(self.likelihood, x):
            return self._regularised(x) if self.training and self.regularised else self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        return -self.aggregate(self.objective(self.inference(self.likelihood, x)))

    def _regularised(self, x: Tensor) -> Tensor:
        volume = self.likelihood.log_volume(x)
        likelihood, x = self.likelihood.in_standard_units(x)  # units of the corruption and the penalties
        if isinstance(self.corruption, ChainCorruption):
            x, corrupted = self.corruption.pairs(partial(self._redraw, likelihood), x)
        else:
            corrupted = x if self.corruption is None else self.corruption(x)
            if isinstance(self.likelihood, AcceptsMissing):
                corrupted = torch.where(x.isnan(), x, corrupted)  # corruption observes nothing
        if self.penalties and not corrupted.requires_grad:
            corrupted = corrupted.detach().requires_grad_()
        code = replace(self.inference.infer(likelihood, corrupted), log_joint=None)
        encoding = self.inference.scored(likelihood, x, code)
        if likelihood is not self.likelihood:
            encoding = replace(encoding, log_joint=encoding.log_joint - volume)
        loss = -self.aggregate(self.objective(encoding))
        return sum((penalty(corrupted, encoding) for penalty in self.penalties), loss)

    @property
    def regularised(self) -> bool:
        """Whether the training loss differs from the aggregated negative objective."""
        return self.corruption is not None or len(self.penalties) > 0

    @property
    def is_mean(self) -> bool:
        """Whether the training loss of a batch is the mean of those of its parts; a penalty's ``is_mean`` says so too.

        >>> from gae.systems import ae, sparse_ae
        >>> ae((5,)).is_mean, sparse_ae((5,)).is_mean  # the penalty is of the mean activity
        (True, False)
        """
        return self.aggregate is mean and all(getattr(penalty, "is_mean", True) for penalty in self.penalties)

    def parts(self) -> list[tuple[str, str, str, int]]:
        """Role, description, shape and number of parameters of each part, each parameter counted where it occurs first.

        >>> from gae.inference import Ascent
        >>> from gae.likelihood import LinearMixture
        >>> for row in Autoencoder(LinearMixture(1, 2, (5,)), Ascent()).parts():
        ...     print(row)
        ('prior', 'StandardNormal', 'z (2,)', 0)
        ('likelihood', 'LinearMixture', 'z (2,) → x (5,)', 15)
        ('inference', 'Ascent(Zeros, GradientAscent, Delta, Unroll)', 'x (5,) → z (2,)', 0)
        ('objective', 'joint, aggregated by mean', 'nats', 0)
        """
        likelihood = self.likelihood
        z = f"z {tuple(likelihood.latent_shape)}" if likelihood.latent_shape.numel() else ""
        z = " and ".join(
            text for text in (z, f"k of {likelihood.components}" if likelihood.components > 1 else "") if text
        )
        x, counted = f"x {tuple(likelihood.event_shape)}", set[nn.Parameter]()
        extra = [("corruption", self.corruption), *(("penalty", penalty) for penalty in self.penalties)]
        return [
            ("prior", _words(likelihood.latent_prior), z, _count(likelihood.latent_prior, counted)),
            ("likelihood", type(likelihood).__name__, f"{z} → {x}", _count(likelihood, counted)),
            ("inference", _words(self.inference), f"{x} → {z}", _count(self.inference, counted)),
            ("objective", f"{_name(self.objective)}, aggregated by {_name(self.aggregate)}", "nats", 0),
            *((role, _words(part), "training only", _count(part, counted)) for role, part in extra if part is not None),
        ]

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws the parts and how they are connected: x is encoded as z, and z decoded as x."""
        ax = axes_for(ax, 8.0, 2.6)
        prior, likelihood, inference, objective = self.parts()[:4]
        boxes = ((0.2, 0.3, inference, LINES[1]), (0.8, 0.3, likelihood, LINES[0]), (0.5, 0.85, prior, LINES[2]))
        for across, up, (role, words, shape, count), color in boxes:
            lines = [
                role,
                *textwrap.wrap(words.replace("(", " ("), 30),
                shape,
                f"{count:,} parameters" if count else "no parameters",
            ]
            frame = {"boxstyle": "round,pad=0.5", "fc": "white", "ec": color, "lw": 1.6}
            ax.text(across, up, "\n".join(lines), ha="center", va="center", fontsize=8, color=INK, bbox=frame, zorder=3)
        for start, end in (((0.2, 0.3), (0.5, 0.3)), ((0.5, 0.3), (0.8, 0.3)), ((0.5, 0.85), (0.5, 0.3))):
            ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkB": 12}, zorder=2)
        ax.text(0.5, 0.3, "z", ha="center", va="center", fontsize=13, style="italic")
        ax.set(xlim=(0, 1), ylim=(-0.05, 1.1), title=f"objective: {objective[1]}")
        blank(ax)
        return ax

    def _repr_html_(self) -> str:
        rows = [*self.parts(), ("in all", "", "", sum(parameter.numel() for parameter in self.parameters()))]
        return html_table("Autoencoder", rows, ("part", "", "shape", "parameters"))

    def encode(
        self, x: Num[Tensor, "B *X"], inference: Inference | None = None, *, batch_size: int | None = None
    ) -> Encoding:
        """Encodes x by the model's inference engine, or by another engine on the same decoder.

        Differentiable in parameters and x unless called under ``torch.no_grad()``.

        Args:
            x: observations.
            inference: the engine; the model's own by default.
            batch_size: number of observations to encode at a time, in the order of x and without gradients, to bound
                memory. Codes do not depend on their batch, but random engines (samples of q(z|x), random starts,
                Langevin dynamics) draw other random numbers than for the whole x. An observation is never split, so a
                likelihood of whole data sets (t-SNE, LLE) takes each data set at once.

        Raises:
            ValueError, TypeError: for x of a wrong shape, dtype or device, empty, non-finite or outside the support.
                With ``batch_size``, for distributions q(z|x) that cannot be concatenated.

        >>> from gae.inference import ClosedForm
        >>> from gae.likelihood import LinearMixture
        >>> model, x = Autoencoder(LinearMixture(1, 2, (5,)), ClosedForm()), torch.randn(7, 5)
        >>> model.encode(x, batch_size=3).point.shape
        torch.Size([7, 2])
        """
        engine = inference or self.inference
        if batch_size is None:
            return engine(self.likelihood, x)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        with door(self.likelihood, x), torch.no_grad():
            return Encoding.join([engine(self.likelihood, batch) for batch in x.split(batch_size)])

    def score(self, x: Num[Tensor, "B *X"], code: Code) -> Float[Tensor, " B"]:
        """The objective of given codes, (B,) in nats; reuses ``code.log_joint`` if the engine stored it."""
        with door(self.likelihood, x):
            log_joint = self.likelihood.log_joint(x, code.z, code.k) if code.log_joint is None else code.log_joint
        name = type(self.inference).__name__
        return self.objective(Encoding(code.z, code.k, log_joint, code.log_q, code.q, self.likelihood.prior, name))

    def decode(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Distribution:
        """The distribution q_r(x|z) of codes (*L, *Z), with batch shape L and event shape X."""
        return self.likelihood(z, k)

    def reconstruct(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B *X"]:
        """The decoder's mean (for classes, the mode) at ``encode(x).point``."""
        encoding = self.encode(x)
        return self.likelihood.point(self.decode(encoding.point, encoding.component))

    @torch.no_grad()
    def redraw(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B *X"]:
        """One draw of q_r(x|z) at the code of each x: a step of a denoising autoencoder's chain.

        x need not lie in the support, as a corrupted x does not.
        """
        with door(self.likelihood, x, support=False):
            return self._redraw(self.likelihood, x)

    @torch.no_grad()
    def _redraw(self, likelihood: Likelihood, x: Tensor) -> Tensor:
        code = self.inference.infer(likelihood, x)
        return likelihood(code.z[0], None if code.k is None else code.k[0]).sample().to(x.dtype)

    @torch.no_grad()
    def sample(self, n: int, mean: bool = False) -> Float[Tensor, "n *X"]:
        """n samples x ~ q_r(x|z), z ~ q_w(z); with ``mean=True`` the decoder's means at samples of z.

        Raises NotImplementedError for a flat prior.
        """
        return self.likelihood.sample_joint(n, mean)[0]

    def log_evidence(self, x: Num[Tensor, "B *X"], samples: int = 500, encoding: Encoding | None = None) -> Evidence:
        """The log evidence log p(x) in nats: exact if tractable, otherwise by importance sampling.

        The proposal is the engine's q(z|x), or for a point estimate the Laplace approximation at the code. Pass the
        ``encoding`` of x if it is known, to avoid encoding x again.
        """
        with door(self.likelihood, x):
            if is_exact(self.likelihood):
                return exact(self.likelihood, x)
            need_proper(self.likelihood)
            if encoding is None:
                with torch.no_grad():
                    encoding = self.inference(self.likelihood, x)
            return importance(self.likelihood, x, proposal(self.likelihood, x, encoding), samples)


def _words(part: nn.Module) -> str:
    """The class of a part of gae with those of its own parts, such as ``Ascent(Zeros, Adam, Delta, Detach)``."""
    inner = ", ".join(_words(child) for child in part.children() if isinstance(child, Part))
    return f"{type(part).__name__}({inner})" if inner else type(part).__name__


def _count(part: nn.Module, counted: set[nn.Parameter]) -> int:
    """The number of parameters of a part that were not counted before."""
    new = set(part.parameters()) - counted
    counted |= new
    return sum(parameter.numel() for parameter in new)


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def log_evidence(
    model: Autoencoder,
    x: Num[Tensor, "N *X"],
    samples: int = 500,
    batch_size: int = 100,
    method: Method = "auto",
    annealed: int = ANNEALED,
    over: Over = in_turn,
) -> Evidence:
    """log p(x) of a model in nats by the first method that is tight: exact, importance sampling, annealing.

    See ``gae.evidence.automatic.estimate``; ``Evidence.method``, ``reason`` and ``tight`` say for each observation
    which method was taken, why, and whether the value is a lower bound only.

    Args:
        samples: importance samples per observation, where log p(x) is not known exactly.
        batch_size: number of observations at a time, which bounds the memory.
        method: ``"auto"``, or ``"exact"``, ``"importance"`` or ``"ais"`` for all observations.
        annealed: largest number of observations to which ``"auto"`` applies annealed importance sampling.
        over: does the work on the batches; see ``gae.evidence.estimate``.

    Raises:
        ValueError: under a flat prior, where p(x) does not exist; for an unknown method.
        TypeError: with ``"exact"``, for a likelihood without a closed form.

    >>> from gae.systems import ppca
    >>> log_evidence(ppca((5,), latent=2), torch.randn(7, 5), batch_size=3).log_p.shape
    torch.Size([7])
    """

    def propose(batch: Tensor) -> Distribution:
        return proposal(model.likelihood, batch, model.inference(model.likelihood, batch))

    return estimate(model.likelihood, x, propose, samples, method, batch_size, annealed, over)


def load(
    path: PathLike, *, trusted: Collection[str] = (), build: Callable[[], Autoencoder] | None = None
) -> Autoencoder:
    """Loads a model saved by ``Autoencoder.save``, ``fit(out=...)``, ``gae fit`` or ``gae compare``, on the CPU.

    Only parts of gae, and functions named in ``trusted``, are called. A model written by ``save`` has its original
    training and evaluation modes; one written by ``fit`` is in evaluation mode, with the parameters that ``fit`` would
    return. Checkpoints of gae 0.1.0 are converted (``gae.storage.conversion``).

    Args:
        path: a model's folder, a run's folder, whose newest good checkpoint is loaded, or one checkpoint in it.
        trusted: references such as ``"my_package.models:decoder"`` that may be imported and called.
        build: builds a model of the same structure, instead of the recorded calls.

    Raises:
        FileNotFoundError: for a path that does not exist, or contains no checkpoint.
        ValueError: for a file that is damaged, not written by gae, or of a newer version; for a part that is not
            trusted or cannot be imported; for parameters that do not fit the model.
    """
    return load_with_facts(path, trusted=trusted, build=build)[0]


def load_with_facts(
    path: PathLike, *, trusted: Collection[str] = (), build: Callable[[], Autoencoder] | None = None
) -> tuple[Autoencoder, dict[str, Any]]:
    """Loads a model as ``load`` does, with the metadata stored with it, such as ``fit(describe=...)``."""
    model, facts = models.load(path, trusted, build)
    if not isinstance(model, Autoencoder):
        raise ValueError(f"{path} contains a {type(model).__name__}, which is not an Autoencoder.")
    return model, facts


def proposal(likelihood: Likelihood, x: Num[Tensor, "B *X"], encoding: Encoding) -> Distribution:
    """Proposal density over codes: the encoding's q, or for a point estimate its Laplace approximation."""
    return laplace_approximation(likelihood, x, encoding.point) if encoding.q is None else encoding.q
