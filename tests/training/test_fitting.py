"""The training loop: optimisation, reports and errors."""

import csv
import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from gae import Autoencoder, nets
from gae.data import Dataset, linear_gaussian
from gae.inference import Amortized, Argmax, ClosedForm
from gae.likelihood import Bernoulli, Gaussian, LinearMixture
from gae.objective import elbo, joint
from gae.storage import checkpoint
from gae.systems import NormalEncoder, ae, gmm, kmeans, llgae, pca, ppca, smooth_llgae, vae
from gae.training import Epoch, History, fit, learners, restore

quiet = partial(fit, progress=False)
sgd = partial(torch.optim.SGD, lr=1e-3)
still = partial(torch.optim.SGD, lr=0.0)


def small(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return ae((5,), 2, (8,))


def small_vae(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return vae((5,), 2, (8,))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(50, 5)


def parameters(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_learns(x: Tensor) -> None:
    model = small()
    history = quiet(model, x, epochs=30, batch_size=10, optimizer=partial(torch.optim.Adam, lr=1e-2))
    assert [row.epoch for row in history.rows] == list(range(1, 31))
    assert history.rows[-1].train_loss < history.rows[0].train_loss - 0.5
    assert history.best_epoch > 15 and not history.stopped_early
    assert all(row.seconds > 0 and row.validation_loss is None for row in history.rows)


def test_equals_a_loop_by_hand(x: Tensor) -> None:
    model, other = small(), small()
    quiet(model, x, epochs=3, batch_size=50, optimizer=partial(torch.optim.SGD, lr=1e-2, momentum=0.9), clip=0.7)
    optimizer = torch.optim.SGD(other.parameters(), lr=1e-2, momentum=0.9)
    for part in other.modules():
        if isinstance(part, nets.InDataUnits):
            part.initialize(other.likelihood, x, seed=0)
    for _ in range(3):
        optimizer.zero_grad()
        other(x).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.7)
        optimizer.step()
    for a, b in zip(parameters(model), parameters(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # the one batch is in another order


def test_each_epoch_visits_every_sample_once_in_a_new_order(x: Tensor) -> None:
    seen: list[Tensor] = []
    model = small()
    model.inference.register_forward_pre_hook(lambda _, args: seen.append(args[1].clone()))
    quiet(model, x, epochs=2, batch_size=16, optimizer=still)
    batches = seen[1:]  # the first is a trial on two samples
    assert [len(batch) for batch in batches] == [16, 16, 16, 2] * 2
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])
    assert not torch.equal(first, second) and not torch.equal(first, x)
    for epoch in (first, second):
        assert torch.equal(epoch[epoch[:, 0].argsort()], x[x[:, 0].argsort()])


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    """An encoder with batch normalisation cannot see a single sample; batches of other sizes stay as they are."""
    sizes: list[int] = []
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = Autoencoder(Gaussian(nn.Linear(2, 5), 2), Amortized(encoder), joint)
    encoder[1].register_forward_pre_hook(lambda module, seen: sizes.append(len(seen[0])) if module.training else None)
    quiet(model, torch.randn(21, 5), epochs=1, batch_size=10)
    quiet(model, torch.randn(22, 5), epochs=1, batch_size=10)
    encoder[1] = nn.Identity()
    encoder.register_forward_pre_hook(lambda module, seen: sizes.append(len(seen[0])) if module.training else None)
    quiet(model, torch.randn(3, 5), epochs=1, batch_size=1)
    assert sizes == [10, 11, 10, 10, 2, 1, 1, 1]


@pytest.mark.parametrize("batch_size", [7, 16, 49, 50, 64])
def test_epoch_loss_is_the_mean_over_samples(batch_size: int, x: Tensor) -> None:
    x[-1] = 100.0  # a batch that holds it stands out
    model = small()
    history = quiet(model, x, epochs=2, batch_size=batch_size, optimizer=still, validation=x[40:])
    for row in history.rows:
        assert math.isclose(row.train_loss, model(x).item(), rel_tol=1e-5)
        assert row.validation_loss is not None
        assert math.isclose(row.validation_loss, model(x[40:]).item(), rel_tol=1e-5)


def test_clip_bounds_the_norm(x: Tensor) -> None:
    model = small()
    before = parameters(model)
    quiet(model, 100 * x, epochs=1, batch_size=50, optimizer=partial(torch.optim.SGD, lr=1.0), clip=0.25)
    step = torch.cat([(a - b).flatten() for a, b in zip(parameters(model), before, strict=True)])
    assert math.isclose(step.norm().item(), 0.25, rel_tol=1e-4)


def test_lbfgs_goes_deep(x: Tensor) -> None:
    by_adam, by_lbfgs = small(), small()
    quiet(by_adam, x, epochs=5, batch_size=50)
    optimizer = partial(torch.optim.LBFGS, max_iter=10, line_search_fn="strong_wolfe")
    history = quiet(by_lbfgs, x, epochs=5, batch_size=50, optimizer=optimizer)
    assert history.rows[-1].train_loss < by_adam(x).item() - 0.1


def test_global_generators_are_untouched_and_unused(x: Tensor) -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    model = small_vae()
    torch.set_rng_state(state)
    quiet(model, x, epochs=2, validation=0.2)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    other = small_vae()
    torch.manual_seed(123)
    quiet(other, x, epochs=2, validation=0.2)
    assert equal(parameters(model), parameters(other))
    different = small_vae()
    quiet(different, x, epochs=2, validation=0.2, seed=1)
    assert not equal(parameters(model), parameters(different))


def test_dynamic_binarisation_is_redrawn(digits: Dataset) -> None:
    from gae.data import load

    seen: list[Tensor] = []
    data = load("digits", binarize="dynamic")
    model = vae(data.event_shape, 2, (8,), head="bernoulli")
    model.inference.register_forward_pre_hook(lambda _, args: seen.append(args[1].clone()))
    quiet(model, data, epochs=2, batch_size=len(data.train), optimizer=still, seed=3)
    for epoch, found in enumerate(seen[1:3]):
        wanted = data.epoch(epoch, seed=3)
        assert torch.equal(found.flatten(1).sum(1).sort().values, wanted.flatten(1).sum(1).sort().values)
    assert seen[1].sum() != seen[2].sum()


def test_parameters_of_a_plain_guide_are_trained(x: Tensor) -> None:
    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.randn(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", Normal(loc.expand(len(x), 2), 1.0).to_event(1))

    pyro.clear_param_store()
    starts = []
    for epochs in (1, 2):
        torch.manual_seed(0)
        model = Autoencoder(Gaussian(nets.mlp(2, [4], (5,)), 2), Amortized(guide), elbo)
        quiet(model, x + 3, epochs=epochs, optimizer=sgd)
        starts.append(model.inference.declared["loc"].detach().clone())
    assert not torch.equal(*starts)
    assert not pyro.get_param_store().keys()


def test_modes_are_kept(x: Tensor) -> None:
    encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model = Autoencoder(Gaussian(nets.mlp(2, [8], (5,)), 2), Amortized(encoder), joint)
    encoder[1].eval()
    modes: list[tuple[bool, bool]] = []
    encoder[3].register_forward_hook(lambda *_: modes.append((encoder[1].training, encoder[2].training)))
    mean = encoder[1].running_mean.clone()
    quiet(model, x, epochs=1, batch_size=25, validation=x)
    assert modes == [
        (False, False),
        (False, True),
        (False, True),
        (False, False),
        (False, False),
        (False, False),
        (False, False),
    ]  # trial, two steps, validation, use of the code, scale of the codes
    assert torch.equal(encoder[1].running_mean, mean)
    assert model.training and not encoder[1].training
    quiet(model.eval(), x, epochs=1, batch_size=25)
    assert not model.training and not torch.equal(encoder[1].running_mean, mean)  # trained as a whole


def test_early_stopping_ends_with_the_best(x: Tensor, tmp_path: Path) -> None:
    model, held = small(), torch.randn(30, 5)
    options: dict[str, Any] = {"optimizer": partial(torch.optim.Adam, lr=0.03), "validation": held, "patience": 4}
    history = quiet(model, x[:20], epochs=500, out=tmp_path / "run", **options)
    losses = [row.validation_loss for row in history.rows]
    assert history.stopped_early and 1 < history.best_epoch == len(losses) - 4
    assert losses[history.best_epoch - 1] == min(losses)
    assert math.isclose(model(held).item(), min(losses), rel_tol=1e-6)
    other = small(1)
    restore(other, tmp_path / "run")
    assert equal(parameters(other), parameters(model))
    again = small()  # patience only decides when to stop, not the way there
    quiet(again, x[:20], epochs=history.best_epoch, **{**options, "patience": None})
    assert equal(parameters(again), parameters(model))


def test_held_out_fraction_is_not_trained_on(x: Tensor) -> None:
    x[:, 0] = torch.arange(50)
    seen: list[Tensor] = []
    model = small()
    model.inference.register_forward_pre_hook(lambda _, args: seen.append(args[1][:, 0].clone()))
    quiet(model, x, epochs=1, batch_size=50, validation=0.2)
    _, train, held = seen
    assert (len(train), len(held)) == (40, 10)
    assert torch.equal(torch.cat([train, held]).sort().values, x[:, 0])


def test_pca_is_exact_after_one_epoch() -> None:
    from sklearn.decomposition import PCA

    x = linear_gaussian(300, 3, 8, 0.3).dataset.train
    model = pca((8,), 3)
    history = quiet(model, x, batch_size=70)
    assert history.stopped_early and len(history.rows) == 2
    oracle = PCA(3).fit(x.double().numpy())
    wanted = oracle.inverse_transform(oracle.transform(x.double().numpy()))
    np.testing.assert_allclose(model.reconstruct(x).detach(), wanted, atol=1e-4)
    assert math.isclose(history.rows[1].train_loss, model(x).item(), rel_tol=1e-5)  # of the parameters before the step


@pytest.mark.parametrize("system", [ppca, kmeans, gmm, llgae])
def test_closed_form_learning_descends_and_chunks_do_not_matter(system: Any, digits: Dataset) -> None:
    found = []
    for batch_size in (None, 100):
        torch.manual_seed(0)
        model = system(digits.event_shape)
        history = quiet(model, digits, epochs=6, validation=digits.test, batch_size=batch_size, tol=1e-7)
        losses = [row.train_loss for row in history.rows]
        assert all(b <= a + 1e-4 for a, b in pairwise(losses))
        found.append(parameters(model))
        assert history.rows[-1].validation_loss == pytest.approx(model(digits.test).item(), rel=1e-4)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_kmeans_ends_where_lloyd_ends(digits: Dataset) -> None:
    from sklearn.cluster import KMeans

    model = kmeans(digits.event_shape, 10)
    model.likelihood.initialize(digits.train, seed=4)
    start = model.likelihood.means.detach().double().numpy()
    history = quiet(model, digits, epochs=300, tol=1e-7)
    assert history.stopped_early
    oracle = KMeans(10, init=start, n_init=1, max_iter=300, tol=0).fit(digits.train.flatten(1).double().numpy())
    np.testing.assert_allclose(model.likelihood.means.detach(), oracle.cluster_centers_, atol=1e-3)


@pytest.mark.parametrize("offset", [1e5, 1e9])
def test_data_whose_rounding_is_no_smaller_than_the_noise(offset: float) -> None:
    """Rounding by δ changes a log density by some r·δ, for residuals r of unit size."""
    exact = offset + torch.randn(60, 3, dtype=torch.float64)
    rounded = exact.float()
    error = float((rounded.double() - exact).abs().max())
    assert (error > 0.1) == (offset > 1e6)
    model = pca((3,), 2)
    if offset > 1e6:
        with pytest.warns(
            UserWarning, match=r"x reaches 1e\+09, where float32 rounds by .*, and the noise scale is 1: log"
        ):
            quiet(model, rounded, epochs=1)
    else:
        quiet(model, rounded, epochs=1)
    quiet(pca((3,), 2), exact, epochs=1, precision=64)


def test_a_learned_engine_is_never_left_out(x: Tensor) -> None:
    torch.manual_seed(0)
    model = Autoencoder(LinearMixture(1, 2, (5,)), Amortized(nn.Linear(5, 2)), joint)
    before = parameters(model.inference)
    quiet(model, x, epochs=1)
    assert not equal(parameters(model.inference), before)


def test_metrics_of_each_epoch(x: Tensor, tmp_path: Path) -> None:
    history = quiet(small(), x, epochs=3, validation=0.2, out=tmp_path)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Epoch(int(r["epoch"]), *(float(r[k]) for k in list(r)[1:])) for r in rows] == history.rows


def test_progress_bar_goes_to_standard_error(x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    fit(small(), x, epochs=2, batch_size=20)
    shown = capsys.readouterr()
    assert shown.out == "" and "6/6" in shown.err and "epoch 2" in shown.err
    quiet(small(), x, epochs=1)
    assert capsys.readouterr().err == ""


def test_progress_of_a_resumed_run_counts_all_its_steps(
    x: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet(small(), x, epochs=1, batch_size=20, out=tmp_path / "run")
    fit(small(), x, epochs=3, batch_size=20, out=tmp_path / "run", resume=True)
    assert "9/9" in capsys.readouterr().err


class Processes:
    """A process group whose other members hold the same values as this one."""

    def __init__(self, world_size: int):
        self.world_size, self.global_rank, self.device, self.calls = world_size, 0, torch.device("cpu"), 0

    def all_reduce(self, value: Tensor, reduce_op: str) -> Tensor:
        self.calls += 1
        return value * self.world_size if reduce_op == "sum" else value

    def all_gather(self, value: Tensor) -> Tensor:
        self.calls += 1
        return value.expand(self.world_size, *value.shape)

    def broadcast(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_values_are_reduced_over_the_processes_of_a_group_of_two_or_more(world_size: int, x: Tensor) -> None:
    """One process does not communicate; sums over copies of a process do not change a closed-form fit."""
    fabric = Processes(world_size)
    assert learners.over_processes(torch.tensor(1.5), fabric, "sum") == 1.5 * world_size
    assert fabric.calls == (world_size > 1)
    found = []
    for group in (fabric, Processes(1)):
        torch.manual_seed(0)
        model = ppca((5,), 2)
        model.likelihood.initialize(x, 0)
        learner = learners.ClosedFormLearner(model, group, 1e-9, None, x)
        learner.moments = model.likelihood.statistics(x, model.inference.infer(model.likelihood, x))
        learner.finish()
        found.append(parameters(model))
    assert fabric.calls > 1 or world_size == 1
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def bad(x: Tensor, index: tuple[int, int], value: float) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (lambda x: x[:0], {}, ValueError, "x is empty"),
    (lambda x: x[:1], {}, ValueError, "at least 2 training samples, got 1"),
    (lambda x: x[:2], {"validation": 0.5}, ValueError, "would hold out 1 of 2 training samples"),
    (lambda x: x.tolist(), {}, TypeError, "Data must be an array, a tensor.*got list"),
    (lambda x: x[:, :4], {}, ValueError, r"must have shape \(B, 5\), got \(50, 4\)"),
    (lambda x: x.to(torch.complex64), {}, TypeError, "x must hold real numbers, got complex64"),
    (lambda x: bad(x, (49, 3), math.nan), {}, ValueError, r"nan at index \(49, 3\)"),
    (lambda x: bad(x, (2, 0), math.inf), {}, ValueError, r"inf at index \(2, 0\)"),
    (
        None,
        {"validation": torch.full((3, 5), math.nan)},
        ValueError,
        r"In the validation data: .*nan at index \(0, 0\)",
    ),
    (None, {"validation": 0.0}, ValueError, "strictly between 0 and 1, got 0.0"),
    (None, {"validation": 1.0}, ValueError, "strictly between 0 and 1, got 1.0"),
    (None, {"epochs": 0}, ValueError, "epochs must be a whole number of at least 1, got 0"),
    (None, {"epochs": 1.5}, ValueError, "epochs must be a whole number of at least 1, got 1.5"),
    (None, {"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1"),
    (None, {"patience": 0, "validation": 0.1}, ValueError, "patience must be a whole number of at least 1"),
    (None, {"patience": 3}, ValueError, "patience needs validation data"),
    (None, {"checkpoint_every": 0}, ValueError, "checkpoint_every must be a whole number"),
    (None, {"checkpoint_interval": 0.0}, ValueError, "checkpoint_interval must be positive"),
    (None, {"clip": 0.0}, ValueError, "clip must be positive"),
    (None, {"seed": -1}, ValueError, "seed must lie in"),
    (None, {"tol": 1e-3}, ValueError, "tol is for closed-form learning"),
    (None, {"optimizer": torch.optim.SGD([torch.ones(1)])}, TypeError, "optimizer must be a callable"),
    (None, {"optimizer": lambda params: 3}, TypeError, "optimizer must be a callable"),
    (None, {"describe": {"act": torch.relu}}, TypeError, "Cannot store a builtin_function_or_method at .*act"),
]


@pytest.mark.parametrize("data,options,error,message", REFUSED, ids=[message for *_, message in REFUSED])
def test_refused_before_anything_is_written(
    data: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    x: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small()
    before = parameters(model)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's signatures are not checked
    with pytest.raises(error, match=message):
        quiet(model, data(x) if data else x, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    assert equal(parameters(model), before)


@pytest.mark.parametrize("option", [{"clip": 1.0}, {"checkpoint_every": 2}])
def test_options_that_closed_forms_would_ignore(option: dict[str, Any], x: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is for an optimizer, and this model learns in closed form"):
        quiet(pca((5,), 2), x, out=tmp_path / "run", **option)


def test_more_components_than_samples(x: Tensor, tmp_path: Path) -> None:
    model = Autoencoder(LinearMixture(51, 0, (5,)), Argmax(), joint)
    with pytest.raises(ValueError, match=r"K=51 .* N=50"):
        quiet(model, x, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_to_fit(x: Tensor) -> None:
    model = small()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        quiet(model, x)


@pytest.mark.parametrize("option", [{"resume": True}, {"checkpoint_every": 3}, {"checkpoint_interval": 1.0}])
def test_folder_is_needed(option: dict[str, Any], x: Tensor) -> None:
    with pytest.raises(ValueError, match="needs a folder: give out="):
        quiet(small(), x, **option)


def test_folder_in_use(x: Tensor, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("results")
    with pytest.raises(FileExistsError, match=r"is not empty. Pass resume=True .* or another folder"):
        quiet(small(), x, out=tmp_path)
    with pytest.raises(FileExistsError, match=r"thesis.txt is a file"):
        quiet(small(), x, out=tmp_path / "thesis.txt", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_folders_that_cannot_be_written_to(x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file, so nothing can be written to"):
        quiet(small(), x, out=tmp_path / "file" / "run")
    monkeypatch.setattr("os.access", lambda path, how: False)
    with pytest.raises(PermissionError, match="is not writable"):
        quiet(small(), x, out=tmp_path / "run")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_one_of_many_processes_is_refused(
    name: str, x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would train the whole model and write to the same folder; a single process, or a Fabric, is accepted."""
    monkeypatch.setenv(name, "1")
    quiet(small(), x, epochs=1)
    monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match=rf"one of 2 processes .*{name}=2.* `fit` without a Fabric .*Give fabric=..."):
        quiet(small(), x, epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_group_of_torch_distributed_is_refused(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"one of 3 processes .*torch.distributed.*Give fabric"):
        quiet(small(), x, epochs=1)


def test_divergence_stops_and_keeps_the_last_good(x: Tensor, tmp_path: Path) -> None:
    def loss_breaks(encoding: Any) -> Tensor:
        calls[0] += 1
        return joint(encoding) * (math.nan if calls[0] > 8 else 1.0)

    calls = [0]
    model = small()
    model.objective = loss_breaks
    with pytest.raises(FloatingPointError, match=r"loss is nan at epoch 3, step 2. Try a smaller learning rate, clip"):
        quiet(model, x, batch_size=20, out=tmp_path)  # a trial, then three steps an epoch
    assert checkpoint.load(tmp_path).step == 6
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())  # stopped before the update


def test_an_encoder_without_a_density_stops_and_says_where(x: Tensor) -> None:
    def guide(x: Tensor) -> Any:
        calls[0] += 1
        scale = torch.full((2,), 0.0 if calls[0] > 2 else 1.0)
        return Normal(x[:, :2], scale, validate_args=False).to_event(1)

    calls, model = [0], Autoencoder(small_vae().likelihood, Amortized(guide))
    with pytest.raises(FloatingPointError, match=r"At epoch 1, step 2: .* own draws.*smaller learning"):
        quiet(model, x, batch_size=20, optimizer=sgd)


def test_parameters_that_blow_up_are_not_saved(x: Tensor, tmp_path: Path) -> None:
    model = small()
    model.objective = lambda encoding: joint(encoding) + (0 * encoding.log_joint[0]).sqrt()  # finite; its slope is not
    with pytest.raises(FloatingPointError, match=r"the gradient of .* is not finite at epoch 1, step 1: .* rate"):
        quiet(model, x, batch_size=50, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())  # stopped before the update


def test_best_epoch() -> None:
    assert History().best_epoch == 0
    assert History([Epoch(1, 2.0, None, 0.1), Epoch(2, 1.0, None, 0.1), Epoch(3, 1.0, None, 0.1)]).best_epoch == 2


def test_exact_posterior_with_learned_scale_reaches_the_evidence() -> None:
    truth = linear_gaussian(4000, 2, 6, 0.4, seed=1)
    model = Autoencoder(LinearMixture(1, 2, (6,), learn_scale=True), ClosedForm(), elbo)
    quiet(model, truth.dataset)
    assert math.isclose(model.likelihood.log_scale.exp().item(), 0.4, rel_tol=0.02)


@pytest.mark.filterwarnings("ignore:x reaches 3")
def test_a_loss_without_any_gradient_is_said() -> None:
    """Rows with a non-differentiable objective are constants; if all rows are, there is no gradient."""
    x = 1e12 * (torch.randn(30, 4) + 30 * torch.eye(3, 4).repeat(10, 1))  # no cluster of a row or two, which would fit
    model = smooth_llgae((4,), latent=2, components=3)
    with pytest.raises(FloatingPointError, match=r"objectives are too large for gradients at epoch 1, step 1\. Try"):
        fit(model, x, epochs=1, progress=False)


class Counted(Bernoulli):
    """Counts the passes over the values of x."""

    passes = 0

    def check_support(self, x: Tensor) -> None:
        self.passes += 1
        super().check_support(x)


def counted(data: Dataset | Tensor, **options: Any) -> int:
    """The passes over values in a training of three epochs of several batches, beyond those of one without a step."""
    torch.manual_seed(0)
    model = Autoencoder(Counted(nn.Linear(2, 6), 2), Amortized(NormalEncoder(nn.Linear(6, 4))), elbo)
    fit(model, data, epochs=3, batch_size=4, optimizer=partial(torch.optim.SGD, lr=0.1), progress=False, **options)
    likelihood = model.likelihood
    assert isinstance(likelihood, Counted)
    return likelihood.passes


def test_values_are_looked_at_once_and_again_only_where_an_epoch_draws_them_anew() -> None:
    x = torch.rand(20, 6)
    fixed, dynamic = x.round(), Dataset("x", x, x[:2], None, None, (0.0, 1.0), "dynamic")
    assert counted(fixed, validation=fixed[:8]) == counted(fixed) + 1
    assert counted(dynamic) == counted(fixed) + 2


def test_an_epoch_with_other_values_is_refused() -> None:
    class Broken(Dataset):
        def epoch(self, epoch: int, seed: int = 0) -> Tensor:
            return self.train.round() if epoch < 2 else self.train

    x = torch.rand(20, 6)
    with pytest.raises(ValueError, match=r"needs x in \{0, 1\}"):
        counted(Broken("x", x, x[:2], None, None, (0.0, 1.0), "dynamic"))
