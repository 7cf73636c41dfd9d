"""Training on Lightning Fabric, by closed-form M-steps or any torch optimiser, with bit-exact resumption."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gae.autoencoder import Autoencoder
from gae.data import Dataset, training_data
from gae.data.files import check_folder
from gae.evidence.usage import code_usage
from gae.inference import Code, Encoding, LearnsData
from gae.likelihood import (
    AcceptsMissing,
    DataDependentInit,
    Likelihood,
    NoiseScale,
    PartiallyObserved,
    StandardUnits,
)
from gae.nets import first_tensor
from gae.storage import checkpoint
from gae.storage.models import fitted
from gae.training import collapse
from gae.training.callbacks import Callback, check
from gae.training.devices import (
    computes_in_float64,
    dtype_of,
    is_mixed,
    lacks_float64,
    need_own_precision,
    placed,
    precision_of,
    single,
)
from gae.training.group import agreed
from gae.training.history import History, Log
from gae.training.learners import ClosedFormLearner, GradientLearner, Learner, MakeOptimizer, has_closed_form
from gae.training.one_step import OneStepLearner, is_solved_in_one_step
from gae.training.processes import refuse_many_processes
from gae.training.run import Run, mode
from gae.training.sampling import Samples, generator, isolated, reseed
from gae.training.scale import code_scale, warn_of_rescaling
from gae.training.schedules import MakeScheduler

if TYPE_CHECKING:
    import lightning_fabric

DEFAULT_OPTIMIZER = partial(torch.optim.Adam, lr=1e-3)
STEPS, EPOCHS = 1000, 30  # default length of training by an optimiser: about STEPS steps, at least EPOCHS epochs
SCALED = 100  # training observations whose codes are compared with the prior, without a density q(z|x)


def fit(
    autoencoder: Autoencoder,
    data: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    clip: float | None = None,
    validation: Any = None,
    patience: int | None = None,
    keep: str | None = None,
    tol: float | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    checkpoint_interval: float | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    logger: Any = None,
    device: str | torch.device | None = None,
    precision: str | int | None = None,
    fabric: "lightning_fabric.Fabric | None" = None,
    describe: dict[str, Any] | None = None,
) -> History:
    """Trains an autoencoder in place and returns its history.

    The order of the data and all noise are pure functions of (seed, epoch, step, process). The global random state is
    unchanged, and an interrupted and resumed run equals an uninterrupted one bit for bit (on a GPU, as far as its
    kernels are deterministic).

    Args:
        autoencoder: the model, trained on its current device unless ``device`` or ``fabric`` is given. Layers in
            evaluation mode inside a module in training mode stay in evaluation mode.
        data: a data set, whose training split is used, a tensor (N, *X), or anything else that ``gae.data.load`` reads
            (arrays, frames, torch data sets, paths), all rows of which are used.
        epochs: total number of epochs, including those before a resume. By default, enough for about 1000 optimiser
            steps, and at least 30; in closed form at most 100, or 1000 for a ``WarmStart``.
        steps: total number of optimiser steps, instead of ``epochs``; rounded up to whole epochs.
        batch_size: default 128. The last, smaller batch is used too; a single last sample joins the previous batch. For
            closed-form steps it only bounds memory: by default chunks of about 12 MB, or 48 MB for PCA; without it,
            mixtures learn by faster passes over all data.
        accumulate: number of batches whose gradients are added up for one step of the optimiser, as for one batch that
            is so many times as large, without its memory. Layers that couple the samples of a batch, such as batch
            normalisation, still see ``batch_size`` samples.
        optimizer: a callable params -> ``torch.optim.Optimizer``, LBFGS included. By default, the autoencoder's
            ``optimizer`` if it has one; closed-form M-steps if the likelihood has them, the engine has no trainable
            parameters and the aggregate is the mean; otherwise Adam(1e-3).
        scheduler: a callable optimizer -> ``torch.optim.lr_scheduler.LRScheduler``, stepped after each step of the
            optimiser. One with a required argument ``total_steps``, such as ``gae.training.cosine``, is given the
            number of steps of the run.
        clip: maximum norm of the gradient.
        validation: observations (M, *X), like ``data``, or the fraction of the training data to hold out.
        patience: number of epochs without a lower validation loss after which training stops and restores the best
            parameters.
        keep: "best", to restore the parameters with the lowest validation loss at the end, or "last". By default "best"
            with ``patience``, otherwise "last". ``gae.load`` loads the same ones from ``out``.
        tol: closed-form learning stops when no parameter changes by more than ``tol`` (default 1e-4): means and
            loadings in standard deviations of the data, non-negative parts relative to the largest, and logarithms of
            scales and weights. The criterion does not depend on offset and scale of the data.
        seed: seed of data order, noise, initialisation and held-out fraction.
        out: folder for checkpoints and ``metrics.csv``; created if missing.
        resume: continue the run in ``out``, or start one if there is none. A run that stopped early stays stopped.
        checkpoint_every: number of optimiser steps between additional checkpoints within an epoch.
        checkpoint_interval: seconds from one checkpoint, or the start, after which the next epoch to end has another;
            by default every epoch has one. The last epoch always has one.
        progress: whether to show a progress bar on standard error.
        callbacks: objects derived from ``gae.training.Callback``, such as ``gae.training.Anneal("objective.beta",
            steps=1000)`` for the warm-up of β. Their state is kept in checkpoints.
        logger: a logger of Lightning, or a list of them, to which the losses, the learning rate and the seconds of each
            epoch are logged: ``TensorBoardLogger`` and ``CSVLogger`` of ``lightning_fabric.loggers``, ``WandbLogger``
            and ``MLFlowLogger`` of ``lightning.pytorch.loggers``. Those of ``fabric`` are used too.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, or ``"auto"`` for the fastest that is there; the model
            stays on it. Work in float64 (closed forms, ``precision=64``) runs on the CPU, with a warning, in place of a
            device that has no float64 (MPS).
        precision: 32 (default); 64, to which the model and the data are converted; or ``"bf16-mixed"`` and
            ``"16-mixed"``, in which matrix products and convolutions have 16 bits, and all other numbers 32, in the
            inner solves of an engine too.
        fabric: a launched Fabric in place of ``device`` and ``precision``, for distributed training
            (``gae.training.launch``); required in processes that were launched together, as by torchrun.
        describe: JSON-serialisable metadata stored in the checkpoints, such as how to build the model; must be the same
            for a resumed run.

    Warns:
        CollapseWarning: if the engine has a density q(z|x) and no unit of the code is active after 200 optimiser
            steps or more, on some of the training data; ``History.usage`` has the variance and the KL of each unit.

    Raises:
        ValueError, TypeError: for data outside the likelihood's support, or options out of range, before anything is
            written; on ``resume``, for a run of another configuration.
        FileExistsError: if ``out`` is in use and ``resume`` is not set.
        FloatingPointError: when the loss or a parameter becomes NaN or infinite.

    >>> from gae.inference import ClosedForm
    >>> from gae.likelihood import LinearMixture
    >>> x = torch.randn(100, 5) * torch.tensor([3.0, 2.0, 0.1, 0.1, 0.1])
    >>> model = Autoencoder(LinearMixture(1, 2, (5,), flat_prior=True), ClosedForm())
    >>> history = fit(model, x, progress=False)
    >>> len(history.rows), history.stopped_early, bool((model.reconstruct(x) - x).square().mean() < 0.02)
    (2, True, True)
    """
    _check_options(
        *(seed, clip, tol, checkpoint_interval),
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        patience=patience,
        checkpoint_every=checkpoint_every,
    )
    check(callbacks)
    data = training_data(data, autoencoder.preparation, isinstance(autoencoder.likelihood, AcceptsMissing))
    fabric, dtype = _hardware(autoencoder, fabric, device, precision)
    autoencoder.to(_start_of(fabric.device), dtype)
    samples = _samples(autoencoder, data, validation, seed, dtype)
    _check_validation(samples, patience, keep)
    log = agreed(
        fabric,
        partial(_open, out, resume, checkpoint_every=checkpoint_every, checkpoint_interval=checkpoint_interval),
    )
    if isinstance(data, Dataset):
        autoencoder.preparation = data.preparation
    with isolated(fabric.device), mode(autoencoder, training=True):
        first = _prepare(autoencoder, samples, _start_of(fabric.device), seed)
        closed = (optimizer or autoencoder.optimizer) is None and has_closed_form(autoencoder)
        fabric = _with_float64(fabric, autoencoder, samples, closed)
        learner = _learner(
            *(autoencoder, fabric, optimizer, batch_size, samples, closed),
            clip=clip,
            checkpoint_every=checkpoint_every,
            tol=tol,
            steps=steps,
            accumulate=accumulate,
            scheduler=scheduler,
        )
        epochs = _plan(learner, samples, epochs, steps, scheduler)
        saving = checkpoint_every, checkpoint_interval or 0.0, log, describe
        run = Run(autoencoder, fabric, learner, samples, seed, patience, *saving, keep, callbacks)
        run.loggers = [*fabric.loggers, *_listed(logger)]
        if resume:
            run.resume()
        if isinstance(learner, GradientLearner) and first is not None:
            warn_of_rescaling(autoencoder, learner.config["groups"], first)
        history = run.train(epochs, progress)
        _describe_codes(history, autoencoder, samples.epoch(max(run.epoch - 1, 0)), fabric.device, seed)
    is_trained = isinstance(learner, ClosedFormLearner) or run.total >= collapse.STEPS
    if history.usage is not None and is_trained and fabric.is_global_zero:
        collapse.warn_of_collapse(history.usage)
    return history


def _describe_codes(history: History, autoencoder: Autoencoder, x: Tensor, device: torch.device, seed: int) -> None:
    """Use and scale of the trained model's code, in evaluation mode, from the same codes of training data."""
    likelihood, engine = autoencoder.likelihood, autoencoder.inference
    with torch.no_grad(), mode(autoencoder, training=False):
        reseed(device, seed, "usage")
        codes: Iterable[Code] = collapse.codes_with_density(autoencoder, x, device)
        if codes:
            history.usage = code_usage((code.q for code in codes if code.q is not None), likelihood.prior)
        else:
            reseed(device, seed, "scale")
            first = x[:SCALED].to(first_tensor(autoencoder))
            codes = (engine.infer(likelihood, batch) for batch in [first])  # not where no scale is known
        history.code_scale = code_scale(codes, likelihood.prior)


def restore(autoencoder: Autoencoder, path: str | os.PathLike[str]) -> checkpoint.Checkpoint:
    """Loads a checkpoint of ``fit`` into a model of the same structure, with the parameters that ``fit`` would return.

    ``gae.load`` builds the model too.

    Args:
        autoencoder: a model of the same structure as the fitted one.
        path: a checkpoint directory or a run's folder.

    Returns:
        The checkpoint; its ``state["describe"]`` is the metadata given to ``fit``.

    Raises:
        FileNotFoundError, ValueError: see ``gae.storage.checkpoint.load`` and ``gae.storage.checkpoint.restore``.
    """
    entry = checkpoint.load(path)
    checkpoint.restore(autoencoder, fitted(entry), str(entry.path))
    return entry


def _plan(
    learner: Learner, samples: Samples, epochs: int | None, steps: int | None, scheduler: MakeScheduler | None
) -> int:
    """The number of epochs, by default or with so many steps; schedules the learning rate over them."""
    if isinstance(learner, ClosedFormLearner):
        return epochs or learner.epochs
    assert isinstance(learner, GradientLearner)
    per_epoch = len(learner.batches(len(samples.epoch(0)), generator(0)))
    if epochs is None:
        epochs = max(EPOCHS, math.ceil(STEPS / per_epoch)) if steps is None else math.ceil(steps / per_epoch)
    if scheduler is not None:
        learner.schedule(scheduler, epochs * per_epoch)
    return epochs


def _check_options(
    seed: int, clip: float | None, tol: float | None, interval: float | None, **counts: int | None
) -> None:
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {count}.")
    if counts["epochs"] is not None and counts["steps"] is not None:
        raise ValueError(f"Give epochs or steps, not both; got epochs={counts['epochs']} and steps={counts['steps']}.")
    for name, value in (("clip", clip), ("tol", tol), ("checkpoint_interval", interval)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}.")


def _check_units(autoencoder: Autoencoder, data: Dataset | Tensor) -> None:
    """Raises ValueError for data to be standardised, and a model that would not do so."""
    wanted = isinstance(data, Dataset) and data.standardize
    if wanted and not isinstance(autoencoder.likelihood, StandardUnits):
        raise ValueError(
            "The data are to be standardised (standardize=True), but the model takes them as given. Build it from the "
            "data, such as `gae.ppca(data)`, or put its likelihood in standard units: "
            "`gae.likelihood.StandardUnits.of(likelihood)`."
        )


def _samples(
    autoencoder: Autoencoder, data: Dataset | Tensor, validation: Any, seed: int, dtype: torch.dtype | None
) -> Samples:
    """Training and validation observations in a dtype, or their own, checked against the model."""
    _check_units(autoencoder, data)
    if validation is not None and not isinstance(validation, (int, float, Tensor)):
        prepared = data.preparation if isinstance(data, Dataset) else autoencoder.preparation
        entire = training_data(validation, prepared, isinstance(autoencoder.likelihood, AcceptsMissing))
        validation = entire if isinstance(entire, Tensor) else entire.train
    samples = Samples(data, validation, seed, dtype)
    _check(autoencoder, samples)
    return samples


def _check(autoencoder: Autoencoder, samples: Samples) -> None:
    x = samples.epoch(0)
    autoencoder.likelihood.check(x)
    if isinstance(autoencoder.likelihood, NoiseScale):
        autoencoder.likelihood.warn_of_rounding(x)
    if isinstance(autoencoder.likelihood, AcceptsMissing):
        autoencoder.likelihood.need_observations(x)
    if len(x) < 2:
        raise ValueError(
            f"fit needs at least 2 training samples, got {len(x)}. Use `encode` to encode a single observation."
        )
    if samples.validation is not None:
        try:
            autoencoder.likelihood.check(samples.validation)
        except (TypeError, ValueError) as error:
            raise type(error)(f"In the validation data: {error}") from None


def _check_validation(samples: Samples, patience: int | None, keep: str | None) -> None:
    if keep not in (None, "best", "last"):
        raise ValueError(f'keep must be "best" or "last", got {keep!r}.')
    needs = "patience" if patience is not None else 'keep="best"' if keep == "best" else None
    if needs and samples.validation is None:
        raise ValueError(f"{needs} needs validation data: give validation=0.1 or a tensor of observations.")


def _open(out: str | os.PathLike[str] | None, resume: bool, **checkpoints: float | int | None) -> Log | None:
    if out is None:
        requested = {"resume": resume, **checkpoints}
        for name in (name for name, value in requested.items() if value):
            raise ValueError(f"{name}={requested[name]} needs a folder: give out=...")
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out={folder} is a file. Give a folder.")
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise FileExistsError(
            f"out={folder} is not empty. Pass resume=True (--resume) to continue its run, or another folder (--out)."
        )
    check_folder(folder)
    return Log(folder)


def _listed(logger: Any) -> list[Any]:
    loggers = logger if isinstance(logger, list) else [] if logger is None else [logger]
    for each in loggers:
        if not (hasattr(each, "log_metrics") and hasattr(each, "save")):
            raise TypeError(
                f"logger must be a logger of Lightning, such as lightning_fabric.loggers.CSVLogger(...), got {each!r}."
            )
    return loggers


def _hardware(
    autoencoder: Autoencoder,
    fabric: "lightning_fabric.Fabric | None",
    device: str | torch.device | None,
    precision: str | int | None,
) -> "tuple[lightning_fabric.Fabric, torch.dtype | None]":
    """The Fabric that trains, and the dtype to which the model and the data are converted; None: they keep theirs."""
    if fabric is None:
        refuse_many_processes("`fit` without a Fabric", "Give fabric=..., launched, so that they train one model.")
        fabric = single(device or first_tensor(autoencoder).device, precision or 32)
    else:
        for name, value in (("device", device), ("precision", precision)):
            if value is not None:
                raise ValueError(f"{name}={value} and a Fabric are given, which has its own {name}. Give one of them.")
        need_own_precision(fabric)
    name = precision_of(fabric)
    return fabric, None if precision is None and name == "32-true" else dtype_of(name)


def _start_of(device: torch.device) -> torch.device:
    """The device of the initialisation, which may use float64."""
    return torch.device("cpu") if lacks_float64(device) else device


def _with_float64(
    fabric: "lightning_fabric.Fabric", autoencoder: Autoencoder, samples: Samples, closed: bool
) -> "lightning_fabric.Fabric":
    """The Fabric, or one of the CPU if its device has no float64 and the training uses it; moves the model there."""

    def uses_float64() -> bool:
        x = _first_rows(autoencoder.likelihood, samples.epoch(0)).cpu()
        return closed or computes_in_float64(partial(_gradients, autoencoder, x))

    device = placed(fabric.device, uses_float64, f"Training this {type(autoencoder.likelihood).__name__}")
    autoencoder.to(device)
    return fabric if device == fabric.device else single(device, precision_of(fabric))


def _gradients(autoencoder: Autoencoder, x: Tensor) -> None:
    with mode(autoencoder, training=False):
        loss = autoencoder(x)
    parameters = [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]
    if loss.requires_grad:
        torch.autograd.grad(loss, parameters, allow_unused=True)


def _prepare(autoencoder: Autoencoder, samples: Samples, device: torch.device, seed: int) -> Encoding | None:
    """Data-dependent initialisation, and a first forward pass, which creates a guide's lazy parameters.

    Returns the encoding of that pass; None if its loss does not encode.
    """
    autoencoder.to(device)
    reseed(device, seed, "start")
    x = samples.epoch(0)
    if isinstance(autoencoder.likelihood, DataDependentInit):
        autoencoder.likelihood.initialize(x.to(device), seed)
    likelihood, values = autoencoder.likelihood.in_standard_units(x.to(device))
    for part in _own_parts(autoencoder):
        if isinstance(part, LearnsData):
            part.initialize(likelihood, values, seed)
    encodings: list[Encoding] = []
    hook = autoencoder.inference.register_forward_hook(lambda module, given, encoding: encodings.append(encoding))
    try:
        with torch.no_grad(), mode(autoencoder, training=False):
            autoencoder(_first_rows(autoencoder.likelihood, x).to(device))
    finally:
        hook.remove()
    return encodings[0] if encodings else None


def _first_rows(likelihood: Likelihood, x: Tensor) -> Tensor:
    """The first two observations; the second one has missing elements, if one after the first has."""
    if not isinstance(likelihood, AcceptsMissing):
        return x[:2]
    missing = x[1:].isnan().flatten(1).any(1)
    return x[[0, 1 + int(missing.long().argmax())]]


def _own_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Submodules that act on the module's own observations, excluding those inside a likelihood of measurements."""
    for child in module.children():
        if not isinstance(child, Likelihood):
            yield child
        nested = isinstance(module, Likelihood) and isinstance(child, Likelihood)
        if not nested or isinstance(module, PartiallyObserved):
            yield from _own_parts(child)


def _learner(
    autoencoder: Autoencoder,
    fabric: "lightning_fabric.Fabric",
    optimizer: MakeOptimizer | None,
    batch_size: int | None,
    samples: Samples,
    closed: bool,
    **only: Any,
) -> Learner:
    """The learner of the autoencoder; raises ValueError for options that it would ignore."""
    optimizer = optimizer or autoencoder.optimizer
    if closed and is_mixed(fabric):
        raise ValueError(
            f"precision={precision_of(fabric)} is for training by an optimizer: this model learns in closed form, from "
            "sums in float64. Use precision 32 or 64, or give an optimizer."
        )
    for name in [name for name in only if (name != "tol") == closed]:
        if only[name] is not None:
            kind = "an optimizer, and this model learns in closed form" if closed else "closed-form learning"
            raise ValueError(f"{name} is for {kind}. Omit {name}{', or give an optimizer' if closed else ''}.")
    if closed:
        learner = OneStepLearner if samples.are_fixed and is_solved_in_one_step(autoencoder) else ClosedFormLearner
        tol, x = only["tol"] or 1e-4, samples.epoch(0)
        return learner(autoencoder, fabric, tol, batch_size, x, samples.are_fixed)
    makes = optimizer or DEFAULT_OPTIMIZER
    return GradientLearner(autoencoder, fabric, makes, only["clip"], batch_size or 128, only["accumulate"])
