"""The auto-decoder: one code per training row, learned with the decoder, kept in checkpoints; new data by an ascent."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gae import Autoencoder, systems
from gae.data import Dataset, load
from gae.inference import Ascent, AutoDecoder, ClosedForm, Detach, GradientAscent, Zeros
from gae.inference.auto_decoder import training_rows
from gae.likelihood import Flat, Gaussian, LinearMixture
from gae.storage import checkpoint
from gae.training import fit, restore
from gae.training.corruption import GaussianNoise

train = partial(fit, progress=False)


def model(prior: nn.Module | None = None) -> Autoencoder:
    likelihood = Gaussian(nn.Linear(2, 3), 2, 0.5, prior=prior)
    inner = Ascent(Zeros(), GradientAscent(0.05), 5, adjoint=Detach())
    return Autoencoder(likelihood, AutoDecoder(2, inner))


def free(autoencoder: Autoencoder) -> AutoDecoder:
    assert isinstance(autoencoder.inference, AutoDecoder)
    return autoencoder.inference


def known(x: Tensor) -> Autoencoder:
    autoencoder = model()
    free(autoencoder).initialize(autoencoder.likelihood, x, 0)
    return autoencoder


# Codes in training.


def test_each_row_has_a_code_of_its_own() -> None:
    x = torch.randn(6, 3)
    x[4] = x[1]
    autoencoder, rows = known(x), torch.tensor([4, 1, 0, 1])
    codes = free(autoencoder).codes
    assert codes.shape == (6, 2) and len(codes.detach().unique(dim=0)) == 6
    with training_rows(autoencoder, rows):
        assert torch.equal(autoencoder.encode(x[rows]).z[0], codes[rows])


def test_gradients_reach_only_the_codes_of_the_batch() -> None:
    x, rows = torch.randn(6, 3), torch.tensor([4, 1])
    autoencoder = known(x)
    with training_rows(autoencoder, rows):
        autoencoder(x[rows]).backward()
    codes = free(autoencoder).codes
    assert codes.grad is not None
    assert (codes.grad.abs().sum(1) > 0).nonzero().flatten().tolist() == [1, 4]
    z = codes.detach()[rows].requires_grad_()
    loss = -autoencoder.likelihood.log_joint(x[rows], z.unsqueeze(0)).mean()
    assert torch.allclose(codes.grad[rows], torch.autograd.grad(loss, z)[0])


def test_observations_without_rows_are_refused_in_training_and_encoded_in_evaluation() -> None:
    x = torch.randn(6, 3)
    for autoencoder in (known(x), model()):
        with pytest.raises(ValueError, match=r"got none. To encode observations, call `\.eval\(\)`"):
            autoencoder.encode(x)
        inner = free(autoencoder).inner
        with training_rows(autoencoder.eval(), torch.arange(6)):
            assert torch.equal(autoencoder.encode(x).z, inner(autoencoder.likelihood, x).z)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, 1], "got 3 observations, but `training_rows` names 2"),
        ([0, 1, 6], r"the rows 0 \.\.\. 5, but `training_rows` names 0 \.\.\. 6"),
        ([-1, 1, 2], r"names -1 \.\.\. 2"),
    ],
)
def test_rows_that_do_not_fit_the_batch_or_the_codes(rows: list[int], message: str) -> None:
    x = torch.randn(6, 3)
    autoencoder = known(x)
    with training_rows(autoencoder, torch.tensor(rows)), pytest.raises(ValueError, match=message):
        autoencoder(x[:3])
    assert free(autoencoder).rows is None


def test_codes_start_from_the_prior_and_are_kept_for_as_many_rows() -> None:
    x = torch.randn(4000, 3)
    autoencoder, other = known(x), known(x)
    codes = free(autoencoder).codes
    assert torch.equal(codes, free(other).codes)
    assert codes.std().item() == pytest.approx(1, abs=0.05)
    before = codes.detach().clone()
    free(autoencoder).initialize(autoencoder.likelihood, x, 1)
    assert torch.equal(codes, before)
    free(autoencoder).initialize(autoencoder.likelihood, x[:7], 1)
    assert free(autoencoder).codes is codes and len(codes) == 7 and not torch.isin(codes, before).any()


def test_what_cannot_be_initialised() -> None:
    autoencoder, x = model(Flat(2)), torch.randn(6, 3)
    with pytest.raises(NotImplementedError, match="flat prior is improper"):
        free(autoencoder).initialize(autoencoder.likelihood, x, 0)
    with pytest.raises(ValueError, match=r"built for codes of shape \(2,\), but those of Gaussian have \(4,\)"):
        free(autoencoder).initialize(Gaussian(nn.Linear(4, 3), 4), x, 0)


# Fitting.


def test_fit_moves_each_code_to_the_mode_of_its_own_row() -> None:
    """For a fixed linear decoder W with WᵀW = 1.25 I, unit noise and prior N(0, I), the mode is Wᵀx / 2.25."""
    x = torch.randn(11, 2)
    x[7] = x[3]
    decoder = nn.Linear(2, 2, bias=False).requires_grad_(False)
    decoder.weight.copy_(torch.tensor([[1.0, 0.5], [-0.5, 1.0]]))
    autoencoder = Autoencoder(Gaussian(decoder, 2, 1.0, learn="fixed"), AutoDecoder(2, Zeros()))
    train(autoencoder, x, epochs=15, batch_size=3, optimizer=partial(torch.optim.SGD, lr=1.3))
    assert torch.allclose(free(autoencoder).codes, x @ decoder.weight / 2.25, atol=1e-3)


def test_closed_form_steps_score_the_codes_of_their_chunk() -> None:
    """The second epoch changes nothing, so its loss is that of the final parameters."""
    x = 2 * torch.randn(40, 3)  # beyond the noise of the model, whose code would collapse otherwise
    autoencoder = Autoencoder(LinearMixture(1, 2, (3,)), AutoDecoder(2, ClosedForm()))
    autoencoder.inference.requires_grad_(False)
    history = train(autoencoder, x, epochs=2, batch_size=7)
    with torch.no_grad():
        expected = -autoencoder.likelihood.log_joint(x, free(autoencoder).codes.unsqueeze(0)).mean()
    assert history.rows[1].train_loss == pytest.approx(expected.item(), abs=1e-4)


def test_rows_are_counted_after_those_held_out() -> None:
    autoencoder = model()
    train(autoencoder, torch.randn(20, 3), epochs=1, batch_size=5, validation=0.2)
    assert len(free(autoencoder).codes) == 16


def test_a_row_that_is_drawn_anew_or_corrupted_keeps_its_code() -> None:
    data = load("digits", binarize="dynamic")
    autoencoder = systems.build("glo", data.event_shape, latent=2, hidden=(8,), head="bernoulli", steps=2)
    train(autoencoder, data, epochs=2)
    assert len(free(autoencoder).codes) == len(data.train)
    noisy = Autoencoder(model().likelihood, AutoDecoder(2, Zeros()), corruption=GaussianNoise(0.1))
    train(noisy, torch.randn(20, 3), epochs=2)


def test_fit_finds_an_engine_inside_another() -> None:
    """``initialize`` is called on nested engines too, here the start of an ascent."""
    likelihood, x = Gaussian(nn.Linear(2, 3), 2, 0.5), torch.randn(20, 3)
    autoencoder = Autoencoder(likelihood, Ascent(AutoDecoder(2, Zeros()), GradientAscent(0.01), 2))
    train(autoencoder, x, epochs=1, batch_size=5)
    assert len(autoencoder.inference.init.codes) == 20  # type: ignore[union-attr, arg-type]


def options(out: Path) -> dict[str, Any]:
    return {"out": out, "batch_size": 8, "seed": 3}


def test_a_checkpoint_is_restored_into_a_new_model(tmp_path: Path) -> None:
    x = torch.randn(30, 3)
    autoencoder = model()
    train(autoencoder, x, epochs=2, **options(tmp_path / "run"))
    other = model()
    restore(other, tmp_path / "run")
    third = known(torch.randn(4, 3))
    third.load_state_dict(autoencoder.state_dict())
    for copy in (other, third):
        assert torch.equal(free(copy).codes, free(autoencoder).codes)
        assert torch.equal(copy.eval().encode(x).z, autoencoder.eval().encode(x).z)


def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path) -> None:
    x = torch.randn(30, 3)
    torch.manual_seed(0)
    whole = model()
    train(whole, x, epochs=4, **options(tmp_path / "whole"))
    torch.manual_seed(0)
    train(model(), x, epochs=2, **options(tmp_path / "parts"))
    resumed = model()
    train(resumed, x, epochs=4, resume=True, **options(tmp_path / "parts"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_codes_of_another_width_do_not_fit() -> None:
    autoencoder = known(torch.randn(6, 3))
    state = autoencoder.state_dict() | {"inference.codes": torch.zeros(6, 5)}
    with pytest.raises(ValueError, match=r"inference.codes: \(any, \*\(5,\)\) .* \(any, \*\(2,\)\) .* in the model"):
        checkpoint.restore(autoencoder, state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        autoencoder.load_state_dict(state)
    assert free(autoencoder).codes.shape == (6, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_types")
def test_glo_encodes_held_out_digits(digits: Dataset) -> None:
    """The error is far below that of the mean image, and close to that of training data with the same engine."""
    torch.manual_seed(0)
    autoencoder = systems.build("glo", digits.event_shape, latent=16)
    train(autoencoder, digits, epochs=40, optimizer=partial(torch.optim.Adam, lr=1e-2))

    def error(x: Tensor) -> float:
        with torch.no_grad():
            return (autoencoder.reconstruct(x) - x).square().mean().item()

    with training_rows(autoencoder, torch.arange(len(digits.train))):
        learned = error(digits.train)
    autoencoder.eval()
    seen, held_out = error(digits.train[:360]), error(digits.test)
    mean = (digits.test - digits.train.mean(0)).square().mean().item()
    assert max(learned, held_out) < 0.25 * mean
    assert held_out < 1.3 * seen
