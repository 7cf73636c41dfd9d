"""The module a user holds: a likelihood, an engine that encodes for it, and what is maximised."""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.distributions import Distribution

from gae.data.preparation import Preparation
from gae.evidence import Evidence, exact, importance, laplace_approximation
from gae.evidence.base import need_proper
from gae.inference import Code, Encoding, Inference
from gae.likelihood import ExactPosterior, Likelihood
from gae.likelihood.door import door
from gae.objective import Aggregate, Objective, joint, mean
from gae.storage import Part, models
from gae.storage.checkpoint import PathLike
from gae.storage.recipe import Call


class Autoencoder(Part, nn.Module):
    """likelihood + inference + objective: swapping the engine leaves the model as it is.

    Calling it with x (B, *X) gives the scalar training loss, -aggregate(objective(encoding)), in nats per sample.

    Args:
        likelihood: what the model is.
        inference: how codes are found.
        objective: what is maximised, per sample.
        aggregate: how the samples' values become one number.
        corruption: what the engine sees of x in training (``gae.training.corruption``); the clean x is scored.
        penalties: terms of the training loss besides (``gae.training.penalty``).

    Attributes:
        optimizer: parameters -> the optimiser that ``fit`` takes unless given another; None: ``fit`` chooses.

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
    ):
        super().__init__()
        self.likelihood = likelihood
        self.inference = inference
        self.objective = objective
        self.aggregate = aggregate
        self.corruption = corruption
        self.penalties = nn.ModuleList(penalties)
        self.preparation: Preparation | None = None  # of the data set that ``fit`` was given

    def calls(self) -> list[Call]:
        """The call that built it, or where a part was exchanged since, that of its class with the parts of now."""
        names = inspect.signature(type(self)).parameters
        parts = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return [*super().calls(), Call(type(self), (), parts)]

    def save(self, path: PathLike) -> Path:
        """Writes the model into a new folder: tensors in safetensors, and how it is built as calls by reference.

        Noted are the system of the table with its options, or else the class and the arguments of every part. Parts
        of gae note them by themselves, also subclasses of ``Likelihood``, ``Inference`` and ``Step`` that a user
        wrote; for a function that makes a network, decorate it with ``gae.storage.recorded``. It must be importable.

        Raises:
            FileExistsError: if there is anything at the path.
            OSError: where it cannot be written.

        Warns:
            UserWarning: where a part is made by no recorded call, or a setting was changed since: ``gae.load`` will
                need a function that builds the model.

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

        Corruption and penalties act in training mode only; in evaluation mode the loss is that of clean data.

        Raises:
            ValueError, TypeError: as ``encode`` does.
        """
        with door(self.likelihood, x):
            return self._regularised(x) if self.training and self.regularised else self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        return -self.aggregate(self.objective(self.inference(self.likelihood, x)))

    def _regularised(self, x: Tensor) -> Tensor:
        seen = x if self.corruption is None else self.corruption(x)
        if self.penalties and not seen.requires_grad:
            seen = seen.detach().requires_grad_()
        code = replace(self.inference.infer(self.likelihood, seen), log_joint=None)
        encoding = self.inference.scored(self.likelihood, x, code)
        loss = -self.aggregate(self.objective(encoding))
        return sum((penalty(seen, encoding) for penalty in self.penalties), loss)

    @property
    def regularised(self) -> bool:
        """Whether the training loss is another than that of the objective."""
        return self.corruption is not None or len(self.penalties) > 0

    def encode(
        self, x: Num[Tensor, "B *X"], inference: Inference | None = None, *, batch_size: int | None = None
    ) -> Encoding:
        """Codes of x, by this model's engine or by another one on the same decoder.

        Differentiable in parameters and x unless called under ``torch.no_grad()``.

        Args:
            x: observations.
            inference: the engine; the model's own unless given.
            batch_size: find the codes of so many observations at a time, in the order of x and without gradients, so
                that memory is bounded. Codes do not depend on their batch, but those of random engines (draws of a
                q(z|x), random starts, Langevin dynamics) are other draws than those of the whole. An observation is
                never split, so a likelihood of whole data sets (t-SNE, LLE) takes each data set at once.

        Raises:
            ValueError, TypeError: for x of a wrong shape, dtype or device, empty, non-finite or outside the support.
                With ``batch_size``, for a law q(z|x) that cannot be joined.

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
        """The objective of codes already found, (B,) in nats, from the engine's own score where it kept one."""
        with door(self.likelihood, x):
            log_joint = self.likelihood.log_joint(x, code.z, code.k) if code.log_joint is None else code.log_joint
        name = type(self.inference).__name__
        return self.objective(Encoding(code.z, code.k, log_joint, code.log_q, code.q, self.likelihood.prior, name))

    def decode(self, z: Float[Tensor, "..."], k: Int[Tensor, "..."] | None = None) -> Distribution:
        """q_r(x|z): codes (*L, *Z) give batch L, event X."""
        return self.likelihood(z, k)

    def reconstruct(self, x: Num[Tensor, "B *X"]) -> Float[Tensor, "B *X"]:
        """The decoder's mean (for classes: the most probable ones) at ``encode(x).point``."""
        encoding = self.encode(x)
        return self.likelihood.point(self.decode(encoding.point, encoding.component))

    @torch.no_grad()
    def sample(self, n: int, mean: bool = False) -> Float[Tensor, "n *X"]:
        """n draws x ~ q_r(x|z), z ~ q_w(z), or with ``mean`` the decoder's means at draws of z.

        Raises NotImplementedError under a flat prior.
        """
        return self.likelihood.sample_joint(n, mean)[0]

    def log_evidence(self, x: Num[Tensor, "B *X"], samples: int = 500, encoding: Encoding | None = None) -> Evidence:
        """log p(x) in nats: exact where the likelihood knows it, else by importance sampling.

        The proposal is the engine's own q(z|x); for a point estimate, the Laplace approximation at the code. It is that
        of ``encoding`` where the codes of x are known already.
        """
        with door(self.likelihood, x):
            if isinstance(self.likelihood, ExactPosterior):
                return exact(self.likelihood, x)
            need_proper(self.likelihood)
            if encoding is None:
                with torch.no_grad():
                    encoding = self.inference(self.likelihood, x)
            return importance(self.likelihood, x, proposal(self.likelihood, x, encoding), samples)


def log_evidence(model: Autoencoder, x: Num[Tensor, "N *X"], samples: int = 500, batch_size: int = 100) -> Evidence:
    """log p(x) of a model in nats, by ``Autoencoder.log_evidence`` in batches, which bound the memory.

    Args:
        samples: importance samples per observation, where log p(x) is not known exactly.

    Raises:
        ValueError: under a flat prior, where p(x) does not exist.

    >>> from gae.systems import ppca
    >>> log_evidence(ppca((5,), latent=2), torch.randn(7, 5), batch_size=3).log_p.shape
    torch.Size([7])
    """
    return Evidence.join([model.log_evidence(batch, samples) for batch in x.split(batch_size)])


def load(
    path: PathLike, *, trusted: Collection[str] = (), build: Callable[[], Autoencoder] | None = None
) -> Autoencoder:
    """The model that ``Autoencoder.save``, ``fit(out=...)``, ``gae fit`` or ``gae compare`` wrote, on the processor.

    Only parts of gae are called by what a file says, and functions that ``trusted`` names. What ``save`` wrote has the
    modes that the model had, what ``fit`` wrote is in evaluation mode and has the parameters that ``fit`` would return.
    Checkpoints of gae 0.1.0 are converted (``gae.storage.conversion``).

    Args:
        path: a model's folder, a run's, whose newest good checkpoint is taken, or one checkpoint in it.
        trusted: references such as ``"my_package.models:decoder"`` that may be imported and called.
        build: makes a model of the same structure, instead of the calls that were noted.

    Raises:
        FileNotFoundError: for a path that does not exist, or holds no checkpoint.
        ValueError: for what is damaged, not ours, or of a newer version; for a part that is not trusted or cannot be
            imported; for parameters that do not fit the model.
    """
    return load_with_facts(path, trusted=trusted, build=build)[0]


def load_with_facts(
    path: PathLike, *, trusted: Collection[str] = (), build: Callable[[], Autoencoder] | None = None
) -> tuple[Autoencoder, dict[str, Any]]:
    """``load``, and the facts that were noted with the model, such as ``fit(describe=...)``."""
    model, facts = models.load(path, trusted, build)
    if not isinstance(model, Autoencoder):
        raise ValueError(f"{path} holds a {type(model).__name__}, which is no Autoencoder.")
    return model, facts


def proposal(likelihood: Likelihood, x: Num[Tensor, "B *X"], encoding: Encoding) -> Distribution:
    """A density over codes to draw from: the encoding's q, or for a point estimate its Laplace approximation."""
    return laplace_approximation(likelihood, x, encoding.point) if encoding.q is None else encoding.q
