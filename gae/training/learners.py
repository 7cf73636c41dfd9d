"""Parameter updates of a training loop: torch optimisers and closed-form M-steps."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from functools import reduce
from inspect import Parameter, signature
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gae.autoencoder import Autoencoder
from gae.inference import Code, WarmStart
from gae.inference.auto_decoder import training_rows
from gae.inference.base import Sweep
from gae.likelihood import ClosedFormLearning, OnlineLearning
from gae.objective import joint, logsumexp, mean
from gae.training.noise import Noise
from gae.training.schedules import MakeScheduler, make_scheduler

if TYPE_CHECKING:
    import lightning_fabric

BOUNDS: dict[Any, str] = {joint: "joint", logsumexp: "logsumexp"}  # objectives of ``Inference.sweep``
EPOCHS, WARM_EPOCHS = 100, 1000  # default limits of closed-form learning; epochs with warm starts are short

Batch = Tensor | slice
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


class Learner(ABC):
    """Base class of parameter updates; an epoch is ``step`` on each of ``batches``, then ``finish``."""

    batch_size: int  # observations at a time
    counts_steps: bool  # whether a step updates the parameters
    config: dict[str, Any]  # settings that a resumed run must share
    noise: Noise  # of its draws, which the run seeds
    remedy: str  # advice for a run whose loss or parameters are not finite

    @abstractmethod
    def batches(self, n: int, order: torch.Generator) -> Sequence[Batch]:
        """The batches of one epoch, as indices into its n samples."""

    @abstractmethod
    def step(self, x: Tensor, batch: Batch, reseed: Callable[[], None], where: str) -> float:
        """Updates from x[batch]; returns the mean loss before the update, over all processes."""

    @abstractmethod
    def loss(self, x: Tensor, batch: Batch) -> float:
        """The mean loss of x[batch], over all processes."""

    def finish(self) -> bool:
        """Ends an epoch; returns True if learning has converged."""
        return False

    def rates(self) -> dict[str, float]:
        """The current learning rates, for loggers."""
        return {}

    def state(self) -> dict[str, Any]:
        """The state as a dictionary, for a checkpoint."""
        return {}

    def load(self, state: dict[str, Any]) -> None:  # noqa: B027 (a learner without state has nothing to load)
        """The inverse of ``state``."""

    def advice(self, what: str, where: str) -> str:
        """Error message of a run that cannot continue."""
        return f"{what} at {where}. {self.remedy} A run with `out` keeps its last good checkpoint."


class GradientLearner(Learner):
    """Training by any torch optimiser, through Fabric; each process handles its share of every batch.

    A batch holds the observations of one step of the optimiser; its gradient is accumulated over ``accumulate`` parts
    of ``batch_size`` observations.
    """

    counts_steps = True
    remedy = "Try a smaller learning rate, clip=1.0, or data and initial weights of unit scale."

    def __init__(
        self,
        autoencoder: Autoencoder,
        fabric: "lightning_fabric.Fabric",
        optimizer: MakeOptimizer,
        clip: float | None,
        batch_size: int,
        accumulate: int | None = None,
    ):
        for option, parts in (("accumulate", accumulate or 1), ("The number of processes", fabric.world_size)):
            if parts > 1 and not autoencoder.is_mean:
                raise ValueError(
                    f"{option} is {parts}, which splits each batch into parts, and here the loss of a batch is not the "
                    "mean over its parts. Set it to 1, or use aggregate=gae.objective.mean and penalties that are "
                    'means over observations, such as `SparseActivation` (penalty="each").'
                )
        parameters = [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("The autoencoder has no parameter that requires a gradient: there is nothing to fit.")
        instance = None if isinstance(optimizer, Optimizer) else optimizer(parameters)
        if not isinstance(instance, Optimizer):
            raise TypeError(
                "optimizer must be a callable params -> torch.optim.Optimizer, such as "
                f"functools.partial(torch.optim.Adam, lr=1e-3); got {optimizer!r}."
            )
        self.fabric, self.clip, self.batch_size = fabric, clip, batch_size
        self.noise = Noise(fabric)
        self.accumulate = accumulate or 1
        self.config = {"optimizer": type(instance).__name__, "groups": _settings(instance), "clip": clip}
        self.config |= {"accumulate": accumulate}
        self.scheduler: LRScheduler | None = None
        self.needs_closure = signature(type(instance).step).parameters["closure"].default is Parameter.empty
        self.module, self.optimizer = fabric.setup(autoencoder, instance)
        self.autoencoder = autoencoder
        self.named = dict(autoencoder.named_parameters())
        self.online = [part for part in autoencoder.modules() if isinstance(part, OnlineLearning)]

    def schedule(self, make: MakeScheduler, total_steps: int) -> None:
        """Schedules the learning rate."""
        self.scheduler, self.config["scheduler"] = make_scheduler(make, self.optimizer.optimizer, total_steps)

    def batches(self, n: int, order: torch.Generator) -> Sequence[Batch]:
        return self._split(torch.randperm(n, generator=order), self.batch_size * self.accumulate)

    def _split(self, rows: Tensor, size: int) -> list[Tensor]:
        parts = list(rows.split(size))
        if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:  # a single sample cannot be normalised
            parts[-2:] = [torch.cat(parts[-2:])]
        return parts

    def step(self, x: Tensor, batch: Batch, reseed: Callable[[], None], where: str) -> float:
        assert isinstance(batch, Tensor)
        parts = self._split(batch, self.batch_size) if self.accumulate > 1 else [batch]
        values: list[float] = []

        def closure() -> Tensor:
            reseed()
            self.optimizer.zero_grad()
            losses = []
            for part in parts:
                with nullcontext() if part is parts[-1] else self.fabric.no_backward_sync(self.module):
                    loss = self._weighted_loss(x, part, len(part) / len(batch), where)
                    losses.append((loss.detach(), self._reduced(loss)))
                    if not values:  # a line search may evaluate worse points later
                        self._refuse_loss(losses[-1][1], loss, where)
                    self.fabric.backward(loss)
            if not values:
                self._refuse_nonfinite(where)
            values.append(sum(value for _, value in losses))
            if self.clip is not None:
                self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.clip, error_if_nonfinite=False)
            return torch.stack([loss for loss, _ in losses]).sum()

        if self.needs_closure:
            self.optimizer.step(closure)
        else:
            closure()
            self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.online:
            self._update_online(x, parts)
        return values[0]

    def _weighted_loss(self, x: Tensor, part: Tensor, weight: float, where: str) -> Tensor:
        try:
            return self._loss(x, part) * weight
        except FloatingPointError as error:
            raise FloatingPointError(f"At {where}: {error} {self.remedy}") from error

    def _refuse_loss(self, value: float, loss: Tensor, where: str) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(self.advice(f"The loss is {value}", where))
        if not loss.requires_grad:
            raise FloatingPointError(self.advice("All samples' objectives are too large for gradients", where))

    @torch.no_grad()
    def _update_online(self, x: Tensor, parts: Sequence[Tensor]) -> None:
        """Updates the parts that learn in closed form, from the codes of the batch under the new parameters."""
        totals: list[Any] = [None for _ in self.online]
        for batch in parts:
            with self._own(x, batch) as (seen, share):
                code = self.autoencoder.inference.infer(self.autoencoder.likelihood, seen)
            for i, part in enumerate(self.online):
                moments = part.statistics(code)
                if moments is None:
                    continue
                if not share:
                    empty = {field.name: torch.zeros_like(getattr(moments, field.name)) for field in fields(moments)}
                    moments = replace(moments, **empty)
                totals[i] = moments if totals[i] is None else totals[i] + moments
        for part, moments in zip(self.online, totals, strict=True):
            if moments is not None:
                part.update(summed(moments, self.fabric))

    def _refuse_nonfinite(self, where: str) -> None:
        """Raises FloatingPointError for a non-finite gradient; a gradient scaler (16 bits) skips such steps instead."""
        if getattr(self.fabric.strategy.precision, "scaler", None) is not None:
            return
        grads = {name: p.grad for name, p in self.named.items() if p.grad is not None}
        norms = torch.stack(torch._foreach_norm(list(grads.values()))) if grads else torch.zeros(0)
        if bool(norms.isfinite().all()):
            return
        for name, grad in grads.items():
            if not bool(torch.isfinite(grad).all()):
                raise FloatingPointError(
                    f"The loss is finite, but the gradient of {name} is not finite at {where}: a function in its graph "
                    "overflows or has no slope there. Through an unrolled ascent that explodes, use fewer steps, a "
                    f"smaller rate, `Clipped`, or `Detach()`. {self.remedy} A run with `out` keeps its last good "
                    "checkpoint."
                )

    def loss(self, x: Tensor, batch: Batch) -> float:
        return self._reduced(self._loss(x, batch))

    def _loss(self, x: Tensor, batch: Batch) -> Tensor:
        """The loss of this process, scaled so that the mean over processes is the mean over the batch."""
        with self._own(x, batch) as (seen, share):
            return self.module(seen) * share

    @contextmanager
    def _own(self, x: Tensor, batch: Batch) -> Iterator[tuple[Tensor, float]]:
        """This process's observations of a batch, and their weight: 0 for one of a process that has none."""
        assert isinstance(batch, Tensor)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        own, world = (slice(rank, None, world), world) if rank < len(batch) else (slice(1), 0)
        rows = batch[own]
        with training_rows(self.module, rows), self.noise.of_rows(own, len(batch)):
            yield x[rows.to(x.device)].to(self.fabric.device), len(rows) * world / len(batch)

    def _reduced(self, loss: Tensor) -> float:
        return over_processes(loss.detach(), self.fabric, "mean")

    def rates(self) -> dict[str, float]:
        rates = [float(group["lr"]) for group in self.optimizer.param_groups if "lr" in group]
        return {f"learning_rate_{i}" if len(rates) > 1 else "learning_rate": rate for i, rate in enumerate(rates)}

    def state(self) -> dict[str, Any]:
        precision = self.fabric.strategy.precision.state_dict()  # the scale of 16-bit losses
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"optimizer": self.optimizer.optimizer.state_dict(), "precision": precision, "scheduler": scheduler}

    def load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])


class ClosedFormLearner(Learner):
    """Training by alternating codes (E-step) and closed-form parameters (M-step).

    Moments are summed over chunks and processes, or come from a pass of the engine over all data (``Inference.sweep``),
    if these are the same in every epoch. Learning has converged when no parameter changes by more than ``tol``,
    in the units of ``ClosedFormLearning.maximize``, which are invariant to offset and scale of the data.
    """

    counts_steps = False
    remedy = "Closed-form steps overflow or meet undefined values: centre the data and bring them to unit scale."
    chunk_bytes = 12 * 2**20  # of the rows whose statistics are added at a time, by default

    def __init__(
        self,
        autoencoder: Autoencoder,
        fabric: "lightning_fabric.Fabric",
        tol: float,
        batch_size: int | None,
        x: Tensor,
        is_fixed: bool = True,
    ):
        self.autoencoder, self.fabric, self.tol = autoencoder, fabric, tol
        self.noise = Noise(fabric)
        self.batch_size = batch_size or max(1, self.chunk_bytes // (x[0].numel() * x.element_size()))
        self.config = {"optimizer": "closed form", "tol": tol}
        self.epochs = WARM_EPOCHS if isinstance(autoencoder.inference, WarmStart) else EPOCHS
        if fabric.world_size > 1:  # all start from the first process, as `Fabric.setup` has it for an optimiser
            autoencoder.load_state_dict(fabric.broadcast(autoencoder.state_dict()))
        self.moments: Any = None
        self.codes: Tensor | None = None  # (N, *Z) of a ``WarmStart``, after the last epoch
        self.updated: Tensor | None = None  # ... in this epoch; 0 for the rows of other processes
        self.sweep = self._sweep(x) if is_fixed and batch_size is None else None

    def _sweep(self, x: Tensor) -> Sweep | None:
        """The engine's pass over all data, if it has one for the objective."""
        bound = BOUNDS.get(self.autoencoder.objective)
        if bound is None or self.fabric.world_size > 1 or self.fabric.device.type != "cpu":
            return None
        return self.autoencoder.inference.sweep(*self.autoencoder.likelihood.in_standard_units(x), bound)

    def batches(self, n: int, order: torch.Generator) -> Sequence[Batch]:
        size = self.batch_size if self.sweep is None else n
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]

    @torch.no_grad()
    def step(self, x: Tensor, batch: Batch, reseed: Callable[[], None], where: str) -> float:
        reseed()
        loss = self._chunk_loss(x, batch, learn=True) if self.sweep is None else self._swept_loss(self.sweep, x)
        if not math.isfinite(loss):
            raise FloatingPointError(self.advice(f"The loss is {loss}", where))
        return loss

    @torch.no_grad()
    def loss(self, x: Tensor, batch: Batch) -> float:
        return self._chunk_loss(x, batch, learn=False)

    def _swept_loss(self, sweep: Sweep, x: Tensor) -> float:
        total, self.moments = sweep()
        volume = torch.as_tensor(self.autoencoder.likelihood.log_volume(x))
        return volume.mean().item() - total.item() / len(x)

    def _chunk_loss(self, x: Tensor, batch: Batch, learn: bool) -> float:
        own = slice(self.fabric.global_rank, None, self.fabric.world_size)
        chunk, indices = x[batch], torch.arange(len(x))[batch][own]
        rows = chunk[own].to(self.fabric.device)
        total = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        if learn and self.updated is None and isinstance(self.autoencoder.inference, WarmStart):
            self.updated = rows.new_zeros(len(x), *self.autoencoder.likelihood.latent_shape)
        if len(rows):
            with self.noise.of_rows(own, len(chunk)):
                code = self._infer(rows, indices, learn)
            total -= len(rows) * self.autoencoder.aggregate(self.autoencoder.score(rows, code))
            if learn:
                likelihood = self.autoencoder.likelihood
                assert isinstance(likelihood, ClosedFormLearning)
                self._add(likelihood.statistics(rows, code))
        return over_processes(total, self.fabric, "sum") / len(chunk)

    def _infer(self, rows: Tensor, indices: Tensor, learn: bool) -> Code:
        """Codes of a batch; those of a ``WarmStart`` go on from the epoch before."""
        likelihood, engine = self.autoencoder.likelihood, self.autoencoder.inference
        if learn and isinstance(engine, WarmStart) and self.codes is not None:
            code = engine.resume(*likelihood.in_standard_units(rows), self.codes[indices].unsqueeze(0))
        else:
            with training_rows(self.autoencoder, indices):
                code = engine.infer(likelihood, rows)
        if learn and self.updated is not None:
            self.updated[indices] = code.z[0]
        return code

    def _add(self, moments: Any) -> None:
        if self.moments is None:
            self.moments = moments
        else:
            self.moments += moments

    @torch.no_grad()
    def finish(self) -> bool:
        likelihood, moments, self.moments = self.autoencoder.likelihood, self.moments, None
        assert isinstance(likelihood, ClosedFormLearning)
        if self.updated is not None:
            self.codes, self.updated = _reduced(self.updated, self.fabric, "sum"), None
        return likelihood.maximize(summed(moments, self.fabric)) <= self.tol

    def state(self) -> dict[str, Any]:
        return {} if self.codes is None else {"codes": self.codes}

    def load(self, state: dict[str, Any]) -> None:
        codes = state.get("codes")
        self.codes = None if codes is None else codes.to(self.fabric.device)


def has_closed_form(autoencoder: Autoencoder) -> bool:
    """Whether closed-form M-steps update every parameter, and the loss is the mean of the objective, on clean data."""
    learned_elsewhere = autoencoder.regularised or any(
        parameter.requires_grad for parameter in autoencoder.inference.parameters()
    )
    is_mean = autoencoder.aggregate is mean  # an M-step raises no other aggregate
    return is_mean and isinstance(autoencoder.likelihood, ClosedFormLearning) and not learned_elsewhere


def summed(moments: Any, fabric: "lightning_fabric.Fabric") -> Any:
    """Sufficient statistics of all processes."""
    if fabric.world_size == 1:
        return moments
    gathered = {field.name: fabric.all_gather(getattr(moments, field.name)) for field in fields(moments)}
    parts = [{name: values[i] for name, values in gathered.items()} for i in range(fabric.world_size)]
    return reduce(add, [replace(moments, **part) for part in parts])


def over_processes(value: Tensor, fabric: "lightning_fabric.Fabric", how: str) -> float:
    return _reduced(value, fabric, how).item()


def _reduced(value: Tensor, fabric: "lightning_fabric.Fabric", how: str) -> Tensor:
    if fabric.world_size == 1:
        return value
    reduced = fabric.all_reduce(value.clone(), reduce_op=how)
    assert isinstance(reduced, Tensor)
    return reduced


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Learning rate and other settings of each parameter group, as plain numbers."""
    return [
        {
            name: value.tolist() if isinstance(value, Tensor) else value
            for name, value in group.items()
            if name != "params"
        }
        for group in optimizer.param_groups
    ]
