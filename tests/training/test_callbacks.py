"""Callbacks, annealing, loggers and the parameters that a run keeps."""

import csv
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

import gae
from gae import Autoencoder
from gae.objective import elbo, minimum, soft_minimum
from gae.systems import ae, cae, gmm, pca, sparse_ae, vae
from gae.training import Anneal, Callback, fit
from gae.training.annealing import Number
from gae.training.callbacks import TrainingRun
from gae.training.learners import GradientLearner

quiet = partial(fit, progress=False)
X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
still = partial(torch.optim.SGD, lr=0.0)
adam = partial(torch.optim.Adam, lr=1e-2)


@pytest.fixture(autouse=True)
def first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps the rank of the last Fabric, which may be that of a test of several processes."""
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)


class Hooks(Callback):
    """Names of the hooks in the order of their calls, with the steps so far."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def on_train_start(self, run: TrainingRun) -> None:
        self.calls.append(("start", run.total))

    def on_train_epoch_start(self, run: TrainingRun) -> None:
        self.calls.append(("epoch", run.total))

    def on_train_batch_start(self, run: TrainingRun) -> None:
        self.calls.append(("batch", run.total))

    def on_train_batch_end(self, run: TrainingRun, loss: float) -> None:
        self.calls.append(("done", run.total))

    def on_train_epoch_end(self, run: TrainingRun) -> None:
        assert len(run.history.rows) == run.epoch
        self.calls.append(("end of epoch", run.total))

    def on_train_end(self, run: TrainingRun) -> None:
        self.calls.append(("end", run.total))


def model_of_vae(**options: Any) -> Autoencoder:
    torch.manual_seed(0)
    return vae((5,), 2, (8,), **options)


@pytest.mark.parametrize("model,batch_size", [(lambda: ae((5,), 2, (8,)), 20), (lambda: gmm((5,), 2), 20)])
def test_hooks_are_called_in_order(model: Any, batch_size: int) -> None:
    hooks = Hooks()
    quiet(model(), X, epochs=1, batch_size=batch_size, callbacks=[hooks])
    steps = [("batch", 0), ("done", 1), ("batch", 1), ("done", 2)]
    assert hooks.calls == [("start", 0), ("epoch", 0), *steps, ("end of epoch", 2), ("end", 2)]


def test_callbacks_that_fit_refuses() -> None:
    class Misspelt(Callback):
        def on_train_epoch_begin(self, run: TrainingRun) -> None: ...

    with pytest.raises(ValueError, match=r"on_train_epoch_begin would never be called. Did you mean on_train_epoch_en"):
        quiet(ae((5,), 2, (8,)), X, callbacks=[Misspelt()])
    with pytest.raises(TypeError):
        quiet(ae((5,), 2, (8,)), X, callbacks=[object()])  # type: ignore[list-item]


class Steps(Callback):
    """Counts steps, and fails at one of them."""

    def __init__(self, fail_at: int = -1) -> None:
        self.count, self.fail_at, self.error = 0, fail_at, ""

    def on_train_batch_end(self, run: TrainingRun, loss: float) -> None:
        self.count += 1
        if self.count == self.fail_at:
            raise KeyboardInterrupt

    def on_exception(self, run: TrainingRun, error: BaseException) -> None:
        self.error = type(error).__name__

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_the_state_of_a_callback_is_resumed(tmp_path: Path) -> None:
    run = partial(quiet, epochs=3, batch_size=20, out=tmp_path)
    first, second = Steps(fail_at=3), Steps()
    with pytest.raises(KeyboardInterrupt):
        run(ae((5,), 2, (8,)), X, callbacks=[first])
    assert first.error == "KeyboardInterrupt"
    run(ae((5,), 2, (8,)), X, callbacks=[second], resume=True)
    assert second.count == 6
    with pytest.raises(ValueError, match=r"config.callbacks was \['Steps'\], now None"):
        run(ae((5,), 2, (8,)), X, resume=True)


class Weights(Callback):
    """The weight of the KL by a formula, without ``Anneal``."""

    def on_train_batch_start(self, run: TrainingRun) -> None:
        run.autoencoder.objective = partial(elbo, analytic=True, beta=min(1.0, run.total / 5) * 4.0)

    def on_train_batch_end(self, run: TrainingRun, loss: float) -> None:
        run.autoencoder.objective = partial(elbo, analytic=True, beta=4.0)


def test_a_warm_up_is_training_with_a_growing_weight() -> None:
    results = []
    for callback in (Anneal("objective.beta", steps=5), Weights(), None):
        model = model_of_vae(beta=4.0, analytic=True)
        callbacks = [] if callback is None else [callback]
        history = quiet(model, X, epochs=4, batch_size=20, optimizer=adam, validation=0.2, callbacks=callbacks)
        results.append((model.state_dict(), [(row.train_loss, row.validation_loss) for row in history.rows]))
    annealed, by_hand, plain = results
    assert annealed[1] == by_hand[1] != plain[1]
    assert all(map(torch.equal, annealed[0].values(), by_hand[0].values()))


def test_validation_has_the_models_own_value() -> None:
    model = model_of_vae()
    before = model.objective
    warm_up = Anneal("objective.beta", steps=100)
    history = quiet(model, X, epochs=3, optimizer=still, validation=X, callbacks=[warm_up], seed=3)
    plain = quiet(model_of_vae(), X, epochs=1, optimizer=still, validation=X, seed=3)
    assert {row.validation_loss for row in history.rows} == {plain.rows[0].validation_loss}
    assert model.objective is before


def test_an_interrupted_run_leaves_the_models_own_value() -> None:
    model, buffer = model_of_vae(), torch.tensor(2.0)
    model.register_buffer("temperature", buffer)
    before = model.objective
    callbacks = [Anneal("objective.beta", steps=9), Anneal("temperature", steps=9), Steps(fail_at=2)]
    model.inference.register_forward_pre_hook(lambda *_: fails(model, before))
    with pytest.raises(KeyboardInterrupt):
        quiet(model, X, epochs=9, callbacks=callbacks)
    assert model.objective is before and float(buffer) == 2.0


def fails(model: Autoencoder, before: Any) -> None:
    """Ctrl-C within a step."""
    if model.training and model.objective is not before and model.objective.keywords["beta"] > 0:
        raise KeyboardInterrupt


def test_numbers_of_a_model() -> None:
    model = cae((5,), 2, (8,))
    model.aggregate = soft_minimum(3.0)
    (own,) = [part.weight for part in model.penalties]
    for path, wanted in (("penalties.0.weight", own), ("aggregate.beta", 3.0)):
        number = Number.at(model, path)
        number.set(0.25)
        assert number.own == wanted and Number.at(model, path).own == 0.25
        number.restore()
        assert Number.at(model, path).own == wanted
    model.objective = elbo
    number = Number.at(model, "objective.beta")
    number.set(0.5)
    assert number.own == 1.0 and model.objective.keywords == {"beta": 0.5}  # type: ignore[attr-defined]
    number.restore()
    assert model.objective is elbo


@pytest.mark.parametrize(
    "anneal,error,message",
    [
        (Anneal("objective.gamma", 5), ValueError, "objective has no argument 'gamma' with a value. Its numbers: beta"),
        (Anneal("likelihood.nothing", 5), ValueError, "has no attribute 'nothing'"),
        (Anneal("accepts_rescaling", 5), TypeError, "it is False, not a number"),
        (Anneal("likelihood.log_scale", 5), TypeError, "it is a parameter, which training changes"),
        (Anneal("objective.beta", 5, 0.0, "geometric"), ValueError, "needs positive ends, got 0.0"),
    ],
)
def test_annealing_that_fit_refuses(anneal: Anneal, error: type[Exception], message: str) -> None:
    model = model_of_vae()
    assert isinstance(model.likelihood.log_scale, nn.Parameter)
    with pytest.raises(error, match=message):
        quiet(model, X, callbacks=[anneal])


def test_options_of_annealing() -> None:
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, got 0"):
        Anneal("objective.beta", 0)
    with pytest.raises(ValueError, match="Valid shapes: linear, geometric"):
        Anneal("objective.beta", 5, shape="cubic")
    with pytest.raises(ValueError, match="counts steps of an optimizer, and this model learns in closed form"):
        quiet(pca((5,), latent=2), X, callbacks=[Anneal("objective.beta", 5)])


def test_an_aggregate_that_is_no_mean_cannot_be_accumulated() -> None:
    model = ae((5,), 2, (8,))
    model.aggregate = minimum
    with pytest.raises(ValueError, match="accumulate is 2, which splits each batch into parts"):
        quiet(model, X, accumulate=2)


def test_a_penalty_of_the_whole_batch_cannot_be_accumulated_or_shared() -> None:
    """KL of the mean activity: the mean over parts is another loss."""
    with pytest.raises(ValueError, match=r"accumulate is 2, .* is not the mean over its parts"):
        quiet(sparse_ae((5,), 3), X, accumulate=2)
    with pytest.raises(ValueError, match="The number of processes is 2, which splits each batch"):
        GradientLearner(sparse_ae((5,), 3), SimpleNamespace(world_size=2), torch.optim.Adam, None, 10)  # type: ignore[arg-type]
    quiet(sparse_ae((5,), 3, penalty="each"), X, accumulate=2, epochs=1)


class Parameters(Callback):
    """The parameters after each epoch."""

    def __init__(self) -> None:
        self.each: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, run: TrainingRun) -> None:
        self.each.append({name: value.clone() for name, value in run.autoencoder.state_dict().items()})


@pytest.mark.parametrize("options", [{}, {"keep": "last"}, {"keep": "best"}, {"patience": 9, "keep": "last"}])
def test_the_parameters_that_are_kept(options: dict[str, Any], tmp_path: Path) -> None:
    """A rate that is too large, so that the last epoch is not the best."""
    torch.manual_seed(0)
    model, epochs = ae((5,), 2, (8,)), Parameters()
    rate = partial(torch.optim.SGD, lr=0.3)
    wanted = {"epochs": 8, "batch_size": 20, "optimizer": rate, "clip": 5.0, "validation": 0.3, **options}
    history = quiet(model, X, callbacks=[epochs], out=tmp_path, **wanted)
    assert history.best_epoch < 8
    kept = history.best_epoch if options.get("keep") == "best" else 8
    for values in (model.state_dict(), gae.load(tmp_path).state_dict()):
        assert all(torch.equal(values[name], value) for name, value in epochs.each[kept - 1].items())


def test_what_is_kept_needs_validation() -> None:
    with pytest.raises(ValueError, match='keep="best" needs validation data'):
        quiet(ae((5,), 2, (8,)), X, keep="best")
    with pytest.raises(ValueError, match=r'keep must be "best" or "last", got \'newest\''):
        quiet(ae((5,), 2, (8,)), X, keep="newest", validation=0.2)


def test_epochs_are_logged(tmp_path: Path) -> None:
    from lightning_fabric.loggers import CSVLogger

    options: dict[str, Any] = {"epochs": 4, "batch_size": 20, "validation": 0.2, "checkpoint_interval": 1e6}
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    logger = CSVLogger(tmp_path, name="logs")
    history = quiet(
        ae((5,), 2, (8,)), X, logger=logger, optimizer=adam, scheduler=decay, out=tmp_path / "run", **options
    )
    with open(tmp_path / "logs" / "version_0" / "metrics.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row.pop("learning_rate") for row in rows] == pytest.approx([1e-2 / 4**epoch for epoch in (1, 2, 3, 4)])
    assert [row.pop("step") for row in rows] == [1, 2, 3, 4]
    assert rows == [row.metrics for row in history.rows]


def test_loggers_that_fit_refuses() -> None:
    with pytest.raises(TypeError, match=r"logger must be a logger of Lightning, .* got 'tensorboard'"):
        quiet(ae((5,), 2, (8,)), X, logger="tensorboard")


def test_loggers_of_a_fabric(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lightning_fabric import Fabric
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, name="board", version="")
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    table = CSVLogger(tmp_path, name="table", version="")
    history = quiet(ae((5,), 2, (8,)), X, epochs=2, fabric=fabric, logger=[table])
    logger.finalize("success")
    assert list((tmp_path / "board").glob("events.out.tfevents.*"))
    rows = (tmp_path / "table" / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 2 and all(str(row.train_loss) in line for row, line in zip(history.rows, rows, strict=True))
