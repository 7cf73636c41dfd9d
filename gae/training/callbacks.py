"""Callbacks of ``fit``: objects whose methods are called at points of a training run."""

from collections.abc import Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gae.autoencoder import Autoencoder
from gae.training.history import History
from gae.training.learners import Learner

if TYPE_CHECKING:
    import lightning_fabric


@runtime_checkable
class TrainingRun(Protocol):
    """The state of a run of ``fit``, as callbacks see it.

    Attributes:
        autoencoder: the model.
        fabric: Lightning's devices and processes.
        learner: updates the parameters; ``rates()`` are its learning rates.
        history: the epochs so far.
        epoch: number of completed epochs.
        step: number of completed steps of the current epoch.
        total: number of all completed steps of the optimiser.
    """

    autoencoder: Autoencoder
    fabric: "lightning_fabric.Fabric"
    learner: Learner
    history: History
    epoch: int
    step: int
    total: int


class Callback:
    """Base class of callbacks; override any of its methods, which have the names of Lightning's hooks.

    Each method is given the run, and is called in every process of a distributed run. A callback that draws random
    numbers must take them from a generator of its own; one that is a function of ``run.total`` needs no state.

    Attributes:
        is_recorded: whether a resumed run must have the same callback; False for one that only watches.

    >>> import torch
    >>> from gae.systems import vae
    >>> from gae.training import fit
    >>> class Losses(Callback):
    ...     def on_train_batch_end(self, run, loss):
    ...         if run.total % 20 == 0:
    ...             print(run.total)
    >>> _ = fit(vae((4,), 2), torch.randn(100, 4), epochs=40, callbacks=[Losses()], progress=False)
    20
    40
    """

    is_recorded = True

    def on_train_start(self, run: TrainingRun) -> None:
        """Before the first step; a resumed run has its restored state."""

    def on_train_epoch_start(self, run: TrainingRun) -> None:
        """Before the steps of an epoch, and where a run resumes within one."""

    def on_train_batch_start(self, run: TrainingRun) -> None:
        """Before a step of the optimiser, or before the statistics of a chunk in closed-form learning."""

    def on_train_batch_end(self, run: TrainingRun, loss: float) -> None:
        """After a step, with the loss before its update."""

    def on_train_epoch_end(self, run: TrainingRun) -> None:
        """After the validation of an epoch, whose losses are in ``run.history.rows[-1]``, before its checkpoint."""

    def on_train_end(self, run: TrainingRun) -> None:
        """After the last epoch, with the parameters that ``fit`` leaves in the model."""

    def on_exception(self, run: TrainingRun, error: BaseException) -> None:
        """When training ends by an exception, Ctrl-C included."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint keeps, of numbers, text, lists, dictionaries and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""


HOOKS = [name for name in vars(Callback) if name.startswith("on_")]


def check(callbacks: Sequence[Callback]) -> None:
    """Raises TypeError for an object that is no ``Callback``, ValueError for a method that would never be called."""
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(
                f"callbacks must be a list of objects derived from gae.training.Callback, got {callback!r} in it."
            )
        for name in dir(callback):
            if name.startswith("on_") and name not in HOOKS:
                nearest = get_close_matches(name, HOOKS, 1) or HOOKS
                raise ValueError(
                    f"{type(callback).__name__}.{name} would never be called. Did you mean {nearest[0]}? The methods "
                    f"of a callback are {', '.join(HOOKS)}."
                )


def recorded(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks whose states are in a checkpoint."""
    return [callback for callback in callbacks if callback.is_recorded]


def described(callbacks: Sequence[Callback]) -> list[str] | None:
    """The classes of callbacks, with the options of dataclasses: a resumed run must have the same ones."""
    named = [repr(callback) if is_dataclass(callback) else type(callback).__qualname__ for callback in callbacks]
    return named or None
