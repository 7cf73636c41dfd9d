"""The training loop: epochs and steps, early stopping, checkpoints and resumption."""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gae.autoencoder import Autoencoder
from gae.data.progress import Advance, progress
from gae.likelihood.door import known_values
from gae.storage import checkpoint
from gae.storage.models import structure
from gae.storage.packing import pack
from gae.training.callbacks import Callback, described, recorded
from gae.training.devices import precision_of
from gae.training.history import Epoch, History, Log
from gae.training.learners import Learner
from gae.training.sampling import Samples, generator

if TYPE_CHECKING:
    import lightning_fabric


@dataclass
class Run:
    """State of a training run and the loop that advances it; a checkpoint holds all state that the loop depends on."""

    autoencoder: Autoencoder
    fabric: "lightning_fabric.Fabric"
    learner: Learner
    samples: Samples
    seed: int
    patience: int | None
    checkpoint_every: int | None
    checkpoint_interval: float  # seconds
    log: Log | None
    describe: dict[str, Any] | None
    keep: str | None = None
    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Any] = ()  # Lightning's
    history: History = field(default_factory=History)
    best: dict[str, Any] | None = None
    epoch: int = 0  # completed epochs
    step: int = 0  # completed steps of this epoch
    total: int = 0  # completed steps
    loss_sum: float = 0.0  # over this epoch's samples so far
    seconds: float = 0.0  # of this epoch so far
    saved: float = field(default_factory=time.monotonic)  # time of the last checkpoint, or of the start
    checked: Tensor | None = None  # observations whose values are known to be valid

    def __post_init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.structure: dict[str, Any] = {}
        if self.log is not None:
            self.config = self._configuration()
            self.structure = structure(self.autoencoder) if self.fabric.is_global_zero else {}
            pack((self.config, self.describe))  # raises TypeError for values that a checkpoint cannot hold

    @property
    def keeps_best(self) -> bool:
        """Whether the parameters with the lowest validation loss are kept; by default, if training may wait for it."""
        return self.patience is not None if self.keep is None else self.keep == "best"

    def train(self, epochs: int, shown: bool) -> History:
        self.checked = self.samples.epoch(0)
        per_epoch = len(self.learner.batches(len(self.checked), generator(0)))
        shown = shown and self.fabric.is_global_zero
        bar = progress("training", epochs * per_epoch, self.total, shown=shown, keep=True, alone=True)
        with bar as advance, self._reporting_exceptions():
            self._call("on_train_start")
            while self.epoch < epochs and not self.history.stopped_early:
                self._train_epoch(epochs, advance)
            if self.best is not None:
                self.autoencoder.load_state_dict(self.best)
            self._call("on_train_end")
        self.fabric.barrier()
        return self.history

    @contextmanager
    def _reporting_exceptions(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._call("on_exception", error)
            raise

    def _call(self, hook: str, *given: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *given)

    def _train_epoch(self, epochs: int, advance: Advance) -> None:
        started = time.perf_counter() - self.seconds
        x = self._observations()
        batches = self.learner.batches(len(x), generator(self.seed, self.epoch))
        self._call("on_train_epoch_start")
        for batch in batches[self.step :]:
            self._call("on_train_batch_start")
            reseed = partial(self.learner.noise.seed, self.seed, self.epoch, self.step)
            with known_values():
                loss = self.learner.step(x, batch, reseed, f"epoch {self.epoch + 1}, step {self.step + 1}")
            self.loss_sum += loss * _size(batch)
            self.step, self.total = self.step + 1, self.total + 1
            self._call("on_train_batch_end", loss)
            advance(f"epoch {self.epoch + 1}, loss {loss:.4g} nats")
            if self.checkpoint_every and self.total % self.checkpoint_every == 0 and self.step < len(batches):
                self.seconds = time.perf_counter() - started
                self._save_checkpoint()
        converged = self.learner.finish()
        self._refuse_nonfinite()
        validation = self._validate()
        row = Epoch(self.epoch + 1, self.loss_sum / len(x), validation, time.perf_counter() - started)
        self._end_epoch(row, converged, epochs)

    def _observations(self) -> Tensor:
        """The observations of the epoch, checked at once if they are new: ``fit`` has checked the first ones."""
        x = self.samples.epoch(self.epoch)
        if x is not self.checked:
            self.autoencoder.likelihood.check(x)
            self.checked = x
        return x

    def _end_epoch(self, row: Epoch, converged: bool, epochs: int) -> None:
        self.history.rows.append(row)
        self.epoch, self.step, self.loss_sum, self.seconds = self.epoch + 1, 0, 0.0, 0.0
        if self.keeps_best and self.history.best_epoch == row.epoch:
            self.best = {name: _copied(value) for name, value in self.autoencoder.state_dict().items()}
        self._report(row)
        self._call("on_train_epoch_end")
        waited = row.epoch - self.history.best_epoch
        self.history.stopped_early = converged or (self.patience is not None and waited >= self.patience)
        is_last = self.history.stopped_early or self.epoch >= epochs
        if not is_last and time.monotonic() - self.saved < self.checkpoint_interval:
            return
        self._save_checkpoint()
        if self.log is not None and self.fabric.is_global_zero:
            self.log.write(self.history)

    def _report(self, row: Epoch) -> None:
        """Gives the metrics of an epoch to the loggers."""
        for logger in self.loggers if self.fabric.is_global_zero else ():
            logger.log_metrics({**row.metrics, **self.learner.rates()}, step=row.epoch)
            logger.save()

    def _validate(self) -> float | None:
        x = self.samples.validation
        if x is None:
            return None
        total = 0.0
        with torch.no_grad(), mode(self.autoencoder, training=False):
            for i, batch in enumerate(torch.arange(len(x)).split(self.learner.batch_size)):
                self.learner.noise.seed(self.seed, "validation", i)  # as in each epoch
                with known_values():
                    total += self.learner.loss(x, batch) * len(batch)
        if not math.isfinite(total):
            raise FloatingPointError(
                self.learner.advice(f"The validation loss is {total / len(x)}", f"epoch {self.epoch + 1}")
            )
        return total / len(x)

    def _refuse_nonfinite(self) -> None:
        for name, parameter in self.autoencoder.named_parameters():
            if not torch.isfinite(parameter).all():
                raise FloatingPointError(self.learner.advice(f"{name} is not finite", f"step {self.total}"))

    def _save_checkpoint(self) -> None:
        self._refuse_nonfinite()
        if self.log is not None and self.fabric.is_global_zero:
            checkpoint.save(self.log.folder, self.total, self._state())
        self.saved = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            **self.structure,
            "describe": self.describe,
            "config": self.config,
            "module": dict(self.autoencoder.state_dict()),
            "best": self.best,
            "learner": self.learner.state(),
            "history": self.history.state(),
            "callbacks": [callback.state_dict() for callback in recorded(self.callbacks)],
            "progress": {name: getattr(self, name) for name in ("epoch", "step", "total", "loss_sum", "seconds")},
        }

    def resume(self) -> None:
        """Resumes from the newest good checkpoint, if there is any."""
        assert self.log is not None
        if not checkpoint.checkpoints(self.log.folder):
            return
        entry = checkpoint.load(self.log.folder)
        now = {"config": self.config, "describe": self.describe}
        saved = {name: entry.state.get(name) for name in now}
        self._accept_processes(saved["config"])
        difference = _difference(saved, now)
        if difference:
            raise ValueError(
                f"{entry.path} is from another configuration: {difference}. Use the same configuration, or another "
                "`out` folder."
            )
        checkpoint.restore(self.autoencoder, entry.state["module"], str(entry.path))
        self.learner.load(entry.state["learner"])
        self.best, self.history = entry.state["best"], History.of(entry.state["history"])
        for name, value in entry.state["progress"].items():
            setattr(self, name, value)
        for callback, state in zip(recorded(self.callbacks), entry.state.get("callbacks", ()), strict=True):
            callback.load_state_dict(state)
        if self.fabric.is_global_zero:
            self.log.write(self.history)

    def _accept_processes(self, saved: Any) -> None:
        """Lets a run go on with another number of processes, with a warning, since some noise differs."""
        before, now = (dict(config or {}).get("processes") for config in (saved, self.config))
        if before == now or not before:
            return
        saved["processes"] = now
        if self.fabric.is_global_zero:
            warnings.warn(
                f"This run goes on with a number of processes of {now}, after {before}: the order of the data and all "
                "sums stay the same, but not the masks of dropout and the statistics of batch normalisation.",
                UserWarning,
                stacklevel=4,
            )

    def _configuration(self) -> dict[str, Any]:
        objective, precision = self.autoencoder.objective, precision_of(self.fabric)
        return {
            **self.samples.facts(),
            "seed": self.seed,
            "batch_size": self.learner.batch_size,
            "patience": self.patience,
            "keep": self.keep,
            "callbacks": described(recorded(self.callbacks)),
            "learner": self.learner.config,
            "likelihood": type(self.autoencoder.likelihood).__name__,
            "inference": type(self.autoencoder.inference).__name__,
            "objective": getattr(getattr(objective, "func", objective), "__name__", type(objective).__name__),
            "objective options": {name: repr(value) for name, value in getattr(objective, "keywords", {}).items()},
            "processes": self.fabric.world_size,
            "precision": {"32-true": "Precision"}.get(precision, precision),  # as earlier versions wrote it
        }


@contextmanager
def mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Sets a module's mode and restores the mode of each submodule afterwards.

    Submodules in evaluation mode inside a module in training mode stay in evaluation mode.
    """
    modes = {part: part.training for part in module.modules()}
    if not training or not module.training:
        module.train(training)
    try:
        yield
    finally:
        for part, was in modes.items():
            part.training = was


def _difference(saved: Any, now: Any, where: str = "") -> str | None:
    """A description of the first difference between two nested states."""
    if isinstance(saved, dict) and isinstance(now, dict):
        parts = [(key, saved.get(key), now.get(key)) for key in {**saved, **now}]
    elif isinstance(saved, (list, tuple)) and type(saved) is type(now) and len(saved) == len(now):
        parts = [(i, a, b) for i, (a, b) in enumerate(zip(saved, now, strict=True))]
    else:
        return None if saved == now else f"{where} was {saved!r}, now {now!r}"
    differences = (_difference(a, b, f"{where}.{key}" if where else str(key)) for key, a, b in parts)
    return next((difference for difference in differences if difference), None)


def _size(batch: Tensor | slice) -> int:
    return len(batch) if isinstance(batch, Tensor) else batch.stop - batch.start


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
