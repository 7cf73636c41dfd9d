"""One training of a named system on a data set, by options of numbers and names, and its results on the test set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gae.analysis.metrics import EvaluationBudget, codebook_perplexity, encode, mean_and_error, squared_errors
from gae.autoencoder import Autoencoder
from gae.data import Dataset
from gae.data.checks import positive
from gae.data.progress import counted
from gae.data.text import PADDING
from gae.likelihood import CodebookDistribution
from gae.nets import first_tensor
from gae.systems.options import build, describe
from gae.training import Anneal, Callback, History, fit
from gae.training.schedules import SCHEDULES


@dataclass(frozen=True)
class TrainingOptions:
    """Options of ``fit`` that are numbers or names, as in the command and in sweeps; None is the default of ``fit``.

    Attributes:
        lr: learning rate of Adam; turns closed forms off.
        schedule: a name in ``gae.training.schedules.SCHEDULES``.
        beta_warm_up: number of optimiser steps over which the weight of the KL rises from 0 to the system's own.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    lr: float | None = None
    schedule: str | None = None
    beta_warm_up: int | None = None
    clip: float | None = None
    validation: float | None = None
    patience: int | None = None
    keep: str | None = None
    tol: float | None = None

    def __post_init__(self) -> None:
        if self.lr is not None:
            positive("lr", self.lr)
        if self.schedule not in (None, *SCHEDULES):
            raise ValueError(f"Unknown schedule {self.schedule!r}. Valid schedules: {', '.join(SCHEDULES)}.")
        if self.keep not in (None, "best", "last"):
            raise ValueError(f"keep must be best or last, got {self.keep!r}.")

    def for_fit(self) -> dict[str, Any]:
        """The arguments of ``fit``.

        >>> sorted(name for name, value in TrainingOptions(lr=1e-3, clip=1.0).for_fit().items() if value is not None)
        ['callbacks', 'clip', 'optimizer']
        """
        own = ("lr", "schedule", "beta_warm_up")
        callbacks: list[Callback] = []
        if self.beta_warm_up is not None:
            callbacks.append(Anneal("objective.beta", steps=self.beta_warm_up))
        return {
            **{name: value for name, value in vars(self).items() if name not in own},
            "optimizer": None if self.lr is None else partial(torch.optim.Adam, lr=self.lr),
            "scheduler": None if self.schedule is None else SCHEDULES[self.schedule],
            "callbacks": callbacks,
        }


def fit_system(
    system: str,
    data: Dataset,
    options: dict[str, Any],
    training: TrainingOptions,
    seed: int,
    callbacks: Sequence[Callback] = (),
    **run: Any,
) -> tuple[Autoencoder, History]:
    """Builds a system with the weights of a seed and trains it; ``run`` has further arguments of ``fit``.

    Sets the seed of torch's global generator.
    """
    described = describe(system, options, data)
    torch.manual_seed(seed)
    model = build(system, data, **options)
    return model, fit_model(model, data, described, training, seed, callbacks, **run)


def fit_model(
    model: Autoencoder,
    data: Dataset,
    described: dict[str, Any],
    training: TrainingOptions,
    seed: int,
    callbacks: Sequence[Callback] = (),
    **run: Any,
) -> History:
    """Trains a model; ``described`` is stored in its checkpoints, and ``run`` has further arguments of ``fit``."""
    options = training.for_fit()
    options["callbacks"] += callbacks
    return fit(model, data, seed=seed, describe=described, **options, **run)


def held_out_results(model: Autoencoder, data: Dataset, seed: int) -> dict[str, Any]:
    """Loss and reconstruction error on the test set; sets the seed of torch's global generator."""
    torch.manual_seed(seed)
    model.eval()
    test, budget, prior = data.test, EvaluationBudget(), model.likelihood.prior
    like = first_tensor(model, test)
    with torch.no_grad():
        loss = sum(float(model(batch.to(like))) * len(batch) for batch in test.split(1000)) / len(test)
    results: dict[str, Any] = {"test loss (nats)": loss}
    errors, codes, right = [], [], []
    for batch in counted(test.split(budget.batch_size), "test data"):
        batch = batch.to(like)
        with torch.no_grad():
            points = encode(model, batch, budget)
        if data.vocabulary is not None:  # differences of classes are meaningless
            right.append((points.mean == batch)[batch != PADDING].cpu().double())
            continue
        errors.append(squared_errors(points.mean, batch))
        codes.append(points.z)
    if data.vocabulary is not None:
        return {**results, "test tokens restored": float(torch.cat(right).mean())}
    results["test squared error per element"] = mean_and_error(torch.cat(errors))
    if isinstance(prior, CodebookDistribution):
        results[f"codebook perplexity, of {len(prior.vectors)}"] = codebook_perplexity(prior, torch.cat(codes))
    return results
